"""Teach the student: crops in, best weights and history out; breakdowns mend themselves, nothing is lost."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from .data import Split
from .devices import describe_device
from .discover import discover_split
from .errors import SegkitError
from .files import locked
from .history import ANEW, BACK, History, duration, log, logging_to
from .judge import choose_prominence, join_records, positions_trained_on, score_frames
from .layout import learning_rate_at
from .learner import LEARNING, Learner
from .material import prepare
from .model import ModelInfo, UNet
from .model_file import load_model, save_model
from .run import check_training, finish_run, leave_out, load_checkpoint, open_run, save_checkpoint
from .settings import Settings
from .team import Team, launch, launched

TRIES = 3  # how often a broken-down training is set right before it gives up
LEARNT = 0.5  # validation Dice from which on a fall to half is a breakdown; below it a student still wavers
KEPT = ("epoch", "tries", "rate_scale", "best_dice", "least_loss")  # plain values that a checkpoint holds


def fit(model: UNet, split: Split, settings: Settings, on_epoch: Callable[[History], None] | None = None) -> History:
    """Train the student on split.train, judge it on split.validation, and keep the best in settings.run_dir.

    model: changed in place; holds the best weights at the end. on_epoch: called with the history after every epoch.
    Returns the history. The run folder gets what the README's table lists; RESUME goes on from its last.pt.
    With PROCESSES over 1, or started by torchrun, the frames are shared out among the processes; one of them writes.
    Raises SegkitError where the run exists already or another process writes into it, START_FROM was trained on
    validation positions, nothing can be decoded, the training breaks down more than 3 times, a file cannot be written,
    or the kernel is interrupted (nothing is lost then).
    """
    if settings.processes > 1 and not launched():
        if split != discover_split(settings):
            raise SegkitError("PROCESSES trains on the split that the settings give, and another one was handed over: "
                              "say it by VALIDATION and EXCLUDE, or set PROCESSES=1")
        if (model.info.outputs, model.info.upsampling) != (2, "smoothed"):
            raise SegkitError("PROCESSES trains segkit's own UNet(): set PROCESSES=1 for another")
        check_training(settings)
        with locked(settings.run_dir):  # the processes that are launched are let in
            history = launch(settings, on_epoch)
            _take_best(model, settings)
        return history
    team = Team(settings.device)
    if not team.first:
        return _train(model, split, settings, team, None)
    check_training(settings)  # before a folder is made
    with locked(settings.run_dir):
        return _train(model, split, settings, team, on_epoch)


def _train(model: UNet, split: Split, settings: Settings, team: Team,
           on_epoch: Callable[[History], None] | None) -> History:
    """`fit` as one process of a team; the first writes into the run's folder."""
    if team.first:
        open_run(split, settings)
    team.wait()
    with logging_to(settings.run_dir / "run.log") if team.first else nullcontext():
        log.disabled = not team.first
        try:
            return _Training(model, split, settings, team).run(on_epoch)
        except KeyboardInterrupt:  # later ones are caught where the epochs are counted
            raise SegkitError("interrupted before the first epoch: nothing is lost, run this again") from None
        except SegkitError as error:
            log.info("stopped: %s", error)
            raise
        finally:
            log.disabled = False


def _take_best(model: UNet, settings: Settings) -> None:
    """The weights that the run has kept, and what its file says of them."""
    best = load_model(settings.run_dir, "cpu")
    model.load_state_dict(best.state_dict())
    model.info = best.info
    model.eval()


class _Training:
    """The course of one training: what a checkpoint holds beside the weights, and what to do after every epoch."""

    def __init__(self, model: UNet, split: Split, settings: Settings, team: Team) -> None:
        self.settings, self.team = settings, team
        self.learner = Learner(model, team, settings)
        self.material = prepare(split, settings, team)
        if team.first and self.material.left_out:
            leave_out(settings.run_dir, self.material.left_out)
        self.steps = self.material.steps
        self.history, self.epoch, self.tries, self.rate_scale = History(), 0, 0, 1.0
        self.best_dice, self.least_loss = -1.0, math.inf
        self.sound: dict[str, Any] | None = None  # the last state worth going back to
        self.learner.start(self.material.foreground, self.tries)
        self.record: dict[str, Any] = {"trained_on": self.material.trained_on, "fully_recorded": True,
                                       "validated_on": self.material.validated_on}  # fields of ModelInfo
        if copies := positions_trained_on(ModelInfo(**self.record), self.material.validated_on, settings):
            log.info("%s: images of these validation positions are among the training's too, as copies",
                     ", ".join(copies))
        if start_from := self.learner.start_from:
            self._inherit(start_from)

    def _inherit(self, earlier: ModelInfo) -> None:
        """Add what START_FROM's model was trained on. Raises SegkitError where that holds validation positions."""
        path = self.settings.start_from_path
        if leaked := positions_trained_on(earlier, self.material.validated_on, self.settings):
            raise SegkitError(f"START_FROM {path} was trained on {len(leaked)} of the validation positions "
                              f"({', '.join(leaked[:5])}): set VALIDATION to positions that it was not trained on, or "
                              "START_FROM to another model, or to none")
        if not earlier.fully_recorded:
            log.info("what START_FROM %s was trained on is not known, since its file holds no full record of it: the "
                     "validation positions may be among it", path)
        self._join(earlier.trained_on, earlier.fully_recorded)

    def _join(self, trained_on: dict[str, list[str]], fully_recorded: bool) -> None:
        self.record |= {"trained_on": join_records(self.record["trained_on"], trained_on),
                        "fully_recorded": self.record["fully_recorded"] and fully_recorded}

    def run(self, on_epoch: Callable[[History], None] | None) -> History:
        if self.settings.resume:
            checkpoint = load_checkpoint(self.settings.run_dir, self.team.device, (*LEARNING, "state"))
            self._restore(checkpoint)
            self.sound = checkpoint if self.epoch else None
            log.info("resumed after epoch %d", self.epoch)
        epochs = self.settings.epochs
        try:
            with tqdm(total=epochs * self.steps, initial=self.epoch * self.steps, desc="training", unit="step",
                      leave=False, disable=not self.team.first) as bar:
                while self.epoch < epochs:
                    self._one_epoch(bar)
                    if on_epoch:
                        on_epoch(self.history)
            self._finish()
        except KeyboardInterrupt:
            raise SegkitError(f"interrupted: {self.epoch} of {epochs} epochs are saved in {self.settings.run_dir}; "
                              "RESUME=1 goes on from there") from None
        except RuntimeError as error:
            if self.team.size == 1:
                raise
            why = (str(error) or repr(error)).splitlines()[0]
            raise SegkitError(f"one of the {self.team.size} processes was lost ({why}): "
                              f"{self.epoch} of {epochs} epochs are saved in {self.settings.run_dir}; RESUME=1 goes on "
                              "from there") from None
        return self.history

    def _finish(self) -> None:
        """Judge the best student frame by frame, and write what is known of it."""
        model, team = self.learner.model, self.team
        team.wait()  # until its file is there
        _take_best(model, self.settings)
        # a resumed run may keep weights that were saved by an older version: what is known of the data is set again
        model.info = replace(model.info, cell_width=round(self.material.cell_width, 2),
                             min_area=self.material.min_area, **self.record)
        model.info = choose_prominence(model, self.material.validation_frames)
        scores = team.gather(score_frames(model, self.material.validation.frames).to_dict("records"))
        if team.first:
            finish_run(model, pd.DataFrame(scores).sort_values(["experiment", "position", "frame"]), self.history,
                       self.settings, describe_device(team.device, self.settings.precision))
        team.wait()

    def _one_epoch(self, bar: tqdm) -> None:
        began = time.perf_counter()
        loss, train_dice = self._train_epoch(bar)
        seconds = time.perf_counter() - began
        val_loss, val_dice = self._validate()
        number, event = self.epoch + 1, self._breakdown(loss, val_loss, val_dice)
        if event:
            event = self._set_right(event)
        else:
            self.epoch += 1
        rate = self.learner.optimiser.param_groups[0]["lr"]
        self.history.rows.append({
            "epoch": number, "train_loss": loss, "train_dice": train_dice, "val_loss": val_loss,
            "val_dice": val_dice, "learning_rate": rate, "event": event,
            "seconds": round(time.perf_counter() - began, 3),
            "crops_per_second": round(self.steps * self.settings.batch_size / seconds, 1)})
        bar.n = self.epoch * self.steps
        bar.set_postfix_str(f"Dice {val_dice:.3f}, {self.history.rows[-1]['crops_per_second']:.0f} crops/s")
        left = (self.settings.epochs - self.epoch) * self.history.rows[-1]["seconds"]
        log.info("epoch %d/%d  loss %.4f  validation Dice %.4f  %.0f crops/s  %s left%s", number,
                 self.settings.epochs, loss, val_dice, self.history.rows[-1]["crops_per_second"], duration(left),
                 f"  {event}" if event else "")
        self.best_dice = max(self.best_dice, -1.0 if event else val_dice)
        if not event and val_loss < self.least_loss:
            self.least_loss = val_loss
            self._keep_best(val_dice)
        checkpoint = {**self.learner.state(), "state": {**{name: getattr(self, name) for name in KEPT},
                                                        "rows": [dict(row) for row in self.history.rows],
                                                        "record": self.record}}
        if not event and val_dice >= 0.5 * self.best_dice:
            self.sound = checkpoint
        if self.team.first:
            save_checkpoint(checkpoint, self.settings.run_dir)
            self.history.save(self.settings.run_dir / "history.csv")  # what it names can be gone on from

    def _keep_best(self, val_dice: float) -> None:
        judged = cast(UNet, self.learner.average.module)
        judged.info = replace(self.learner.model.info, cell_width=round(self.material.cell_width, 2),
                              min_area=self.material.min_area, settings=self.settings.as_dict(),
                              scores={"val_dice": val_dice, "epoch": self.epoch}, **self.record)
        if self.team.first:
            save_model(judged, self.settings.run_dir / "model.safetensors")

    def _train_epoch(self, bar: tqdm) -> tuple[float, float]:
        """One pass; crops depend on seed, epoch, tries and process alone, so a resumed run repeats them."""
        seed = self.settings.seed * 1_000_003 + self.epoch * 101 + self.tries + self.team.rank * 15_485_863
        done, all_steps = self.epoch * self.steps, self.settings.epochs * self.steps
        rates = [learning_rate_at((done + step) / all_steps, self.settings.learning_rate) * self.rate_scale
                 for step in range(self.steps)]
        return self.learner.train(self.material.train, self.material.crop, rates,
                                  torch.Generator().manual_seed(seed % 2**63), bar.update)

    def _validate(self) -> tuple[float, float]:
        """Mean loss and Dice over all whole validation frames, each judged by one process."""
        losses, dices, self.history.previews = self.learner.validate(self.material.validation)
        loss, dice = np.mean(self.team.gather(list(zip(losses, dices, strict=True))), axis=0)
        return float(loss), float(dice)

    def _breakdown(self, loss: float, val_loss: float, val_dice: float) -> str:
        """Why this epoch cannot stand, or nothing: a loss without value, a fall, a student that answers nothing.

        Of a student that never answered anything the sound state is forgotten.
        """
        if not math.isfinite(loss + val_loss):
            return f"loss is {loss}, on validation {val_loss}"
        if self.best_dice > LEARNT and val_dice < 0.5 * self.best_dice:
            return f"validation Dice fell from {self.best_dice:.2f} to {val_dice:.2f}"
        trained = (self.epoch + 1) * self.steps
        if trained >= 200 and self.epoch >= 4 and self.best_dice < 0.05 and val_dice < 0.05:
            self.sound = None  # stuck from the start: there is nothing to go back to
            return f"validation Dice is {val_dice:.2f} after {trained} steps"
        return ""

    def _set_right(self, event: str) -> str:
        """Roll back to the last sound state, or begin anew; learn more slowly from here."""
        self.tries += 1
        if self.tries > TRIES:
            raise SegkitError(f"the training broke down {self.tries} times ({event}): look at the flagged frames in "
                              "02_data_exploration, and try a smaller LEARNING_RATE")
        self.rate_scale *= 0.5
        if self.sound:  # the best weights' file stays, and so does least_loss, which is theirs
            self.learner.restore(self.sound)
            self.epoch = self.sound["state"]["epoch"]
            return f"{event}: {BACK} {self.epoch}"
        self.epoch, self.best_dice, self.least_loss = 0, -1.0, math.inf
        self.learner.start(self.material.foreground, self.tries)
        return f"{event}: {ANEW}"

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.learner.restore(checkpoint)
        for name in KEPT:
            setattr(self, name, checkpoint["state"][name])
        self.history.rows = [dict(row) for row in checkpoint["state"]["rows"]]
        earlier = ModelInfo(**checkpoint["state"].get("record", {}))
        if not earlier.fully_recorded:
            log.info("what this run was trained on before is not known, since its last.pt holds no full record of it")
        self._join(earlier.trained_on, earlier.fully_recorded)
