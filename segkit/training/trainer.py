"""Training of the student: `fit` opens the run folder and prepares the data, `run_training` is the loop.

Loss and validation are in losses.py, augmentation in augment.py, the run folder in run_dir.py.
"""

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn
from tqdm.auto import tqdm

from ..data.dataset import Split
from ..devices import autocast, describe_device, keep_memory
from ..errors import SegkitError
from ..files import locked, log, logging_to, write_table
from ..measure.metrics import join_records, positions_trained_on, score_frames
from ..model.checkpoint import load_model, save_model
from ..model.unet import PAIRS, ModelInfo, UNet
from ..settings import Settings
from . import run_dir
from .augment import gather_crops, sample_crops
from .distributed import ProcessGroup
from .frames import MIN_STEPS, TrainingData, prepare
from .losses import batch_dice, student_loss, validate
from .run_dir import History

WARM_UP = 0.2  # share of the training during which the learning rate rises
WEIGHT_DECAY, MAX_GRADIENT_NORM = 1e-2, 1.0
EMA_DECAY = 0.98
STRENGTH = 0.6  # of the augmentation at the start; half of it at the end
BN_STATS_BATCHES = (4, 8)  # batches of an epoch from which BatchNorm statistics are recomputed, at least and at most
MAX_TRIES = 3  # rollbacks before a training gives up
DIVERGENCE_ABOVE = 0.5  # validation Dice above which a fall to half is a divergence; students below it still waver
STUCK_BELOW = 0.05  # validation Dice of a student that predicts nothing


def learning_rate_at(progress: float, peak: float) -> float:
    """The schedule: a linear warm-up over the first fifth, then half a cosine down; progress 0..1."""
    if progress < WARM_UP:
        return peak * (0.04 + 0.96 * progress / WARM_UP)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))))


@torch.no_grad()
def update_ema(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
    """Exponential moving average of the weights; over the first steps it forgets faster, so that it does not lag."""
    count = int(count)
    decay = min(EMA_DECAY, (1 + count) / (10 + count))
    torch._foreach_lerp_(list(averaged), list(current), 1 - decay)


@torch.no_grad()
def recompute_bn_stats(model: UNet, batches: Iterable[Tensor], group: ProcessGroup) -> None:
    """Recompute BatchNorm statistics for the EMA weights from batches of images (B, 1, h, w).

    With the statistics of other weights, the EMA weights predict background only during the first hundred steps
    (figures in benchmarks/README.md).
    """
    with autocast(group.device, model.precision):
        update_bn((images.contiguous(memory_format=torch.channels_last) for images in batches), model)
    # Statistics of all processes: mean of the means; mean of the variances, plus the variance of the means
    for layer in (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
        mean, variance = cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var)
        own = mean.clone()
        mean.copy_(group.mean(mean))
        variance.copy_(group.mean(variance + (own - mean) ** 2))
    model.eval()


def fit(model: UNet, split: Split, settings: Settings, on_epoch: Callable[[History], None] | None = None) -> History:
    """Train the student, validate it after every epoch, and keep the best weights in settings.run_dir.

    Parameters
    ----------
    model : UNet
        Changed in place; holds the best weights at the end.
    split : Split
        Training and validation pairs; with torchrun, the frames are split over the processes.
    settings : Settings
        EPOCHS, BATCH_SIZE, CROP, LEARNING_RATE, SEED, RESUME, START_FROM, ... (docs, Settings).
    on_epoch : callable, optional
        Called with the history after every epoch.

    Returns
    -------
    History
        One row per epoch. The run folder holds what the docs list under "Run folder".

    Raises
    ------
    SegkitError
        The run exists already or another process writes into it; START_FROM was trained on validation positions
        (with START_FROM=auto, random weights are used then); no pair can be decoded; the training diverges more
        than 3 times; a file cannot be written; or the kernel is interrupted (finished epochs are saved then).
    """
    group, history = ProcessGroup(settings.device), History()
    with ExitStack() as stack:
        # One process writes the run folder and the log
        stack.callback(setattr, log, "disabled", log.disabled)
        log.disabled = not group.is_main_process
        if group.is_main_process:
            run_dir.check_training(settings)  # before a folder is made
            stack.enter_context(locked(settings.run_dir))
            run_dir.open_run(split, settings)
            stack.enter_context(logging_to(settings.run_dir / "run.log"))
        group.wait()
        try:
            _train(model, split, settings, group, history, on_epoch if group.is_main_process else None)
        except (KeyboardInterrupt, SegkitError, RuntimeError) as error:
            saved = f"{history.epoch} of {settings.epochs} epochs are saved in {settings.run_dir}; RESUME=1 continues"
            saved = saved if history.epoch else "no epoch was finished: run this again"
            if isinstance(error, KeyboardInterrupt):
                error = SegkitError(f"interrupted: {saved}")
            elif isinstance(error, RuntimeError) and group.size > 1:
                reason = str(error).partition("\n")[0]
                error = SegkitError(f"one of the {group.size} processes was lost ({reason}): {saved}")
            log.info("stopped: %s", error)
            raise error from None
    return history


def _train(model: UNet, split: Split, settings: Settings, group: ProcessGroup, history: History,
           on_epoch: Callable[[History], None] | None) -> None:
    """`fit` in one process of the group, in an open run folder."""
    trainer = Trainer(model, settings, group)
    data = prepare(split, settings, group)
    if group.is_main_process and data.left_out:
        run_dir.leave_out(settings.run_dir, data.left_out)
    # Initial weights, and the record of all images that they were trained on
    start_from = trainer.initialise(data.foreground)
    leaked = positions_trained_on(start_from, data.validated_on, settings) if start_from else []
    if leaked and settings.start_from == "auto":
        log.info("the starter was trained on images of validation positions (%s): the training starts from random "
                 "weights instead", ", ".join(leaked[:5]))
        trainer.settings = replace(trainer.settings, start_from="")
        start_from = trainer.initialise(data.foreground)
    model.info = replace(model.info, cell_width=round(data.cell_width, 2), min_area=data.min_area, fully_recorded=True,
                         trained_on=data.trained_on, validated_on=data.validated_on,
                         settings=trainer.settings.as_dict())
    if copies := positions_trained_on(model.info, data.validated_on, settings):
        log.info("%s: images of these validation positions are training images too, as copies", ", ".join(copies))
    if start_from:
        if leaked:
            raise SegkitError(f"START_FROM {settings.start_from} was trained on {len(leaked)} of the validation "
                              f"positions ({', '.join(leaked[:5])}): set VALIDATION to others, or another START_FROM")
        if not start_from.fully_recorded:
            log.info("what START_FROM %s was trained on is not known; it may be validation data", settings.start_from)
        model.info = _joined(model.info, start_from)
    # Resume from the checkpoint
    checkpoint = None
    if settings.resume:
        checkpoint = run_dir.load_checkpoint(settings.run_dir)
        trainer.load_state(checkpoint)
        state = checkpoint["state"]
        vars(history).update({name: state[name] for name in vars(history) if name != "previews"})
        earlier = ModelInfo(**state.get("record", {}))
        if not earlier.fully_recorded:
            log.info("what this run was trained on before is not known: its last.pt holds no full record of it")
        model.info = _joined(model.info, earlier)
        model.info.settings["START_FROM"] = earlier.settings.get("START_FROM", "unknown weights")
        log.info("resumed after epoch %d", history.epoch)
    run_training(trainer, data, history, checkpoint if history.epoch else None, on_epoch)
    _finish(model, data, history, settings, group)


def run_training(trainer: "Trainer", data: TrainingData, history: History, last_good: dict[str, Any] | None,
                 on_epoch: Callable[[History], None] | None) -> None:
    """The training loop: train an epoch, validate it, keep it or roll it back, until EPOCHS are trained.

    last_good: the checkpoint to roll back to.
    """
    settings, group = trainer.settings, trainer.group
    with tqdm(total=settings.epochs * data.steps, initial=history.epoch * data.steps, desc="training", unit="step",
              leave=False, disable=not group.is_main_process) as bar:
        while history.epoch < settings.epochs:
            began = time.perf_counter()
            train_loss, train_dice = trainer.train_epoch(data, history, bar.update)
            crops_per_second = round(data.steps * settings.batch_size / (time.perf_counter() - began), 1)
            # Validate the EMA weights, on whole frames
            val_loss, val_dice, history.previews = validate(trainer.ema_model, data.validation, group)
            row = {"epoch": history.epoch + 1, "train_loss": train_loss, "train_dice": train_dice,
                   "val_loss": val_loss, "val_dice": val_dice, "learning_rate": trainer.learning_rate, "event": "",
                   "seconds": round(time.perf_counter() - began, 3), "crops_per_second": crops_per_second}
            # After a divergence roll back; otherwise keep the weights if they are the best yet
            problem, hopeless = divergence(history, train_loss + val_loss, val_dice, data.steps)
            if problem:
                last_good = None if hopeless else last_good
                row["event"] = f"{problem}: {_roll_back(trainer, history, last_good, data.foreground, problem)}"
            else:
                history.epoch += 1
                history.best_dice = max(history.best_dice, val_dice)
                if val_loss < history.least_loss:
                    history.least_loss = val_loss
                    scores = {"val_loss": val_loss, "val_dice": val_dice, "epoch": history.epoch}
                    trainer.ema_model.info = replace(trainer.model.info, scores=scores)
                    if group.is_main_process:
                        save_model(trainer.ema_model, settings.run_dir / "model.safetensors")
            history.rows.append(row)
            # Save the checkpoint, then the history
            state = {name: value for name, value in vars(history).items() if name != "previews"}
            checkpoint = {**trainer.state(), "state": {**state, "record": asdict(trainer.model.info)}}
            if not problem and val_dice >= 0.5 * history.best_dice:
                last_good = checkpoint
            if group.is_main_process:
                run_dir.save_checkpoint(checkpoint, settings.run_dir)
                write_table(settings.run_dir / "history.csv", history.table())
            log.info(history.newest(settings.epochs))
            bar.n = history.epoch * data.steps
            bar.set_postfix_str(f"Dice {val_dice:.3f}, {crops_per_second:.0f} crops/s")
            if on_epoch:
                on_epoch(history)


class Trainer:
    """The student in training: its weights, their EMA and the optimiser."""

    def __init__(self, model: UNet, settings: Settings, group: ProcessGroup) -> None:
        if settings.batch_size % group.size:
            raise SegkitError(f"BATCH_SIZE={settings.batch_size}: a multiple of the {group.size} processes was needed")
        keep_memory()
        # a resumed run has its weights, and the record of what they started from
        if settings.start_from == "auto":
            settings = replace(settings, start_from="" if settings.resume else "starter")
        self.settings, self.group, self.device = settings, group, group.device
        self.batch_size = settings.batch_size // group.size
        self.learning_rate = 0.0
        model.precision = settings.precision
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.network = group.wrap(self.model)

    def train_epoch(self, data: TrainingData, history: History, on_step: Callable) -> list[float]:
        """One epoch of augmented crops; returns the mean loss and Dice over all processes."""
        # Crops depend on seed, epoch, tries and rank alone, so that a resumed run repeats them
        seed = self.settings.seed * 1_000_003 + history.epoch * 101 + history.tries + self.group.rank * 15_485_863
        generator = torch.Generator().manual_seed(seed % 2 ** 63)
        recent: deque[Tensor] = deque(maxlen=min(max(data.steps // 8, BN_STATS_BATCHES[0]), BN_STATS_BATCHES[1]))
        totals = torch.zeros(2, device=self.device)
        self.model.train()
        for step in range(data.steps):
            share = (history.epoch * data.steps + step) / (self.settings.epochs * data.steps)
            self.learning_rate = history.rate_scale * learning_rate_at(share, self.settings.learning_rate)
            # Sample and augment a batch of crops: (B, 1, h, w) and (B, 2, h, w)
            plan = sample_crops(data.train, self.batch_size, data.crop, generator, STRENGTH * (1 - share / 2))
            images, targets = (t.to(self.device) for t in gather_crops(data.train, plan, data.crop))
            totals += self.train_step(images, targets)
            recent.append(images)
            on_step()
        recompute_bn_stats(self.ema_model, recent, self.group)
        return self.group.mean(totals / data.steps).tolist()

    def train_step(self, images: Tensor, targets: Tensor) -> Tensor:
        """One step of the optimiser on images (B, 1, h, w) and targets (B, 2, h, w); returns loss and Dice, (2,)."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            # Forward
            with autocast(self.device, self.settings.precision):
                output = self.network(images.contiguous(memory_format=torch.channels_last))  # (B, outputs, h, w)
            # Loss
            loss = student_loss(output, targets)
            # Backward
            loss.backward()
        except torch.OutOfMemoryError:
            raise SegkitError(f"{len(images)} crops of {images.shape[-2]} x {images.shape[-1]} do not fit into the "
                              "GPU's memory: set a smaller BATCH_SIZE or CROP") from None
        # Clip the gradients, step
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.param_groups[0]["lr"] = self.learning_rate
        self.optimizer.step()
        # Update the EMA of the weights
        self.ema.update_parameters(self.model)
        return torch.stack([loss.detach(), batch_dice(output[:, 0].detach(), targets[:, 0] > 0).mean()])

    def initialise(self, foreground: float, tries: int = 0) -> ModelInfo | None:
        """Set initial weights, by SEED or those of START_FROM, with a new EMA and a new optimiser.

        foreground: share of training pixels inside cells, from which the output bias starts.
        Returns what START_FROM's file says about its model, or None.
        """
        torch.manual_seed(self.settings.seed + 1000 * tries)
        start_from = "" if tries else self.settings.start_from  # the same weights would fail again
        initial = load_model(self.settings.find_model(start_from), "cpu") if start_from else UNet(self.model.info)
        if not start_from:
            share = min(max(foreground, 1e-3), 0.9)
            bias = [math.log(share / (1 - share)), 0.5 * share, *[0.0] * len(PAIRS)]
            initial.out.bias = nn.Parameter(torch.tensor(bias))
        elif initial.info.outputs != self.model.info.outputs:
            raise SegkitError(f"START_FROM {start_from} predicts {initial.info.outputs} maps (version 1.1: 2), this "
                              f"model {self.model.info.outputs}: set START_FROM=auto, or empty, or another")
        self.model.load_state_dict(initial.state_dict())
        self.ema = AveragedModel(self.model, multi_avg_fn=update_ema)
        self.ema_model = cast(UNet, self.ema.module)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=WEIGHT_DECAY,
                                           fused=self.device.type in ("cpu", "cuda") or None)
        return initial.info if start_from else None

    def state(self) -> dict[str, dict[str, Any]]:
        """Copies of the weights, the EMA and the optimiser's state."""
        return copy.deepcopy({"model": self.model.state_dict(), "average": self.ema.state_dict(),
                              "optimiser": self.optimizer.state_dict()})

    def load_state(self, state: dict[str, dict[str, Any]]) -> None:
        """Continue from a state on any device, which is not changed."""
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["average"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimiser"]))


def divergence(history: History, loss: float, val_dice: float, steps: int) -> tuple[str, bool]:
    """Why an epoch cannot be kept, or "", and whether no earlier epoch is worth a rollback.

    loss: sum of training and validation loss; steps: of an epoch.
    """
    if not math.isfinite(loss):
        return f"loss is {loss}", False
    if history.best_dice > DIVERGENCE_ABOVE and val_dice < 0.5 * history.best_dice:
        return f"validation Dice fell from {history.best_dice:.2f} to {val_dice:.2f}", False
    trained = (history.epoch + 1) * steps
    if trained >= MIN_STEPS and history.epoch >= 4 and max(history.best_dice, val_dice) < STUCK_BELOW:
        return f"validation Dice is {val_dice:.2f} after {trained} steps", True
    return "", False


def _roll_back(trainer: Trainer, history: History, last_good: dict[str, Any] | None, foreground: float,
               problem: str) -> str:
    """Roll back to the last good epoch, or restart with other weights; halve the learning rate from here on."""
    history.tries += 1
    if history.tries > MAX_TRIES:
        raise SegkitError(f"the training diverged {history.tries} times ({problem}): look at the flagged frames in "
                          "02_data_exploration, and try a smaller LEARNING_RATE")
    history.rate_scale *= 0.5
    if last_good:  # the file of the best weights stays, and so does least_loss, which is theirs
        trainer.load_state(last_good)
        history.epoch = last_good["state"]["epoch"]
        return f"rolled back to epoch {history.epoch}"
    history.epoch, history.best_dice, history.least_loss = 0, -1.0, math.inf
    trainer.model.info.settings["START_FROM"] = ""
    trainer.initialise(foreground, history.tries)
    return "restarted with other weights"


def _joined(info: ModelInfo, earlier: ModelInfo) -> ModelInfo:
    """The info of a training that continues an earlier one: all images that the weights were trained on."""
    return replace(info, trained_on=join_records(info.trained_on, earlier.trained_on),
                   fully_recorded=info.fully_recorded and earlier.fully_recorded)


def _finish(model: UNet, data: TrainingData, history: History, settings: Settings, group: ProcessGroup) -> None:
    """Evaluate the best weights frame by frame, and write model file, card and report."""
    group.wait()  # until the main process has written the model file
    model.load_state_dict(load_model(settings.run_dir, "cpu").state_dict())
    model.eval()
    scores = group.gather(score_frames(model, data.validation.frames).to_dict("records"))
    if group.is_main_process:
        scores = pd.DataFrame(scores).sort_values(["experiment", "position", "frame"])
        run_dir.finish_run(model, scores, history, settings, describe_device(group.device, settings.precision))
    group.wait()
