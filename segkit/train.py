"""Teach the student: crops in, best weights and history out; breakdowns mend themselves, nothing is lost."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from .averaging import average_weights, calibrate, calibration_batches
from .crops import cut_crops, draw_crops
from .data import Split
from .decode import build_store
from .devices import autocast, describe_device, pick_device
from .errors import SegkitError
from .history import History, log, logging_to
from .judge import choose_prominence, judge
from .layout import choose_crop, covering, learning_rate_at
from .losses import batch_dice, student_loss
from .model import STRIDE, UNet
from .model_file import load_model, save_model
from .run import Checkpoint, finish_run, load_checkpoint, open_run, save_checkpoint
from .settings import Settings
from .store import Store

WEIGHT_DECAY, CLIP = 1e-2, 1.0
TRIES = 3  # how often a broken-down training is set right before it gives up
LEARNT = 0.5  # validation Dice from which on a fall to half is a breakdown; below it a student still wavers
SPECK = 12  # pixels; nothing smaller is a cell, nor anything smaller than a disc of the training cells' width
PREVIEWS = 2
KEPT = ("epoch", "tries", "rate_scale", "best_dice", "least_loss")  # plain values that a checkpoint holds


def fit(model: UNet, split: Split, settings: Settings, on_epoch: Callable[[History], None] | None = None) -> History:
    """Train the student on split.train, judge it on split.validation, and keep the best in settings.run_dir.

    model: changed in place; holds the best weights at the end. on_epoch: called with the history after every epoch.
    Returns the history. The run folder gets what DESIGN's table lists; RESUME goes on from its last.pt.
    Raises SegkitError where the run exists already, nothing can be decoded, the training breaks down
    more than 3 times, a file cannot be written, or the kernel is interrupted (nothing is lost then).
    """
    with logging_to(open_run(split, settings) / "run.log"):
        try:
            return _Training(model, split, settings).run(on_epoch)
        except SegkitError as error:
            log.info("stopped: %s", error)
            raise


class _Training:
    """The state of one training: what a checkpoint holds, and what the steps need."""

    def __init__(self, model: UNet, split: Split, settings: Settings) -> None:
        self.settings = settings
        self.device = pick_device(settings.device)
        cache = settings.run_dir.parent / ".cache"
        self.train, problems = build_store(split.train, self.device, cache, settings.memory_limit)
        self.validation, more = build_store(split.validation, self.device, cache, settings.memory_limit)
        for problem in problems + more:
            log.info("left out %s: %s", problem.path, problem.reason)
        self.crop = choose_crop(settings, self.device, (int(self.train.height.min()), int(self.train.width.min())))
        crops = settings.crops_per_epoch or covering(int((self.train.height * self.train.width).sum()), self.crop)
        self.steps = max(1, round(crops / settings.batch_size))
        self.micro = settings.batch_size
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.history, self.epoch, self.tries, self.rate_scale = History(), 0, 0, 1.0
        self.best_dice, self.least_loss = -1.0, math.inf
        self.sound: Checkpoint | None = None  # the last state worth going back to
        self._start_weights()
        log.info("%d training frames, %d validation frames; crops of %d x %d, %d steps of %d an epoch; %s",
                 len(self.train.frames), len(self.validation.frames), *self.crop, self.steps, settings.batch_size,
                 describe_device(self.device))

    def _start_weights(self) -> None:
        """Fresh weights by the seed, or another run's; then the optimiser and the running average."""
        torch.manual_seed(self.settings.seed + 1000 * self.tries)
        start_from = self.settings.start_from_path
        fresh = load_model(start_from, "cpu") if start_from else UNet(self.model.info)
        if start_from is None:
            share = min(max(self.train.foreground, 1e-3), 0.9)
            fresh.out.bias = nn.Parameter(torch.tensor([math.log(share / (1 - share)), 0.5 * share]))
        elif fresh.info.outputs != 2:
            raise SegkitError(f"START_FROM {start_from} is a model of the starting recipe, with masks only: start "
                              "from a model that segkit trained")
        self.model.load_state_dict(fresh.state_dict())
        self.average = AveragedModel(self.model, multi_avg_fn=average_weights)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), weight_decay=WEIGHT_DECAY,
                                           fused=self.device.type == "cuda" or None)

    def run(self, on_epoch: Callable[[History], None] | None) -> History:
        if self.settings.resume:
            self._restore(load_checkpoint(self.settings.run_dir, self.device))
            log.info("resumed after epoch %d", self.epoch)
        epochs = self.settings.epochs
        try:
            with tqdm(total=epochs * self.steps, initial=self.epoch * self.steps, desc="training", unit="step",
                      leave=False) as bar:
                while self.epoch < epochs:
                    self._one_epoch(bar)
                    if on_epoch:
                        on_epoch(self.history)
        except KeyboardInterrupt:
            raise SegkitError(f"interrupted: {self.epoch} of {epochs} epochs are saved in {self.settings.run_dir}; "
                              "RESUME=1 goes on from there") from None
        best = load_model(self.settings.run_dir, str(self.device))
        self.model.load_state_dict(best.state_dict())
        self.model.eval()
        self.model.info = best.info
        self.model.info = choose_prominence(self.model, self.validation.frames)
        finish_run(self.model, judge(self.model, self.validation.frames), self.history, self.settings,
                   describe_device(self.device))
        return self.history

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
        rate = self.optimiser.param_groups[0]["lr"]
        self.history.rows.append({
            "epoch": number, "train_loss": loss, "train_dice": train_dice, "val_loss": val_loss,
            "val_dice": val_dice, "learning_rate": rate, "event": event,
            "seconds": round(time.perf_counter() - began, 3),
            "crops_per_second": round(self.steps * self.settings.batch_size / seconds, 1)})
        bar.n = self.epoch * self.steps
        bar.set_postfix_str(f"Dice {val_dice:.3f}, {self.history.rows[-1]['crops_per_second']:.0f} crops/s")
        log.info("epoch %d/%d  loss %.4f  validation Dice %.4f  %.0f crops/s%s", number,
                 self.settings.epochs, loss, val_dice, self.history.rows[-1]["crops_per_second"],
                 f"  {event}" if event else "")
        self.best_dice = max(self.best_dice, -1.0 if event else val_dice)
        if not event and val_loss < self.least_loss:
            self.least_loss = val_loss
            judged = cast(UNet, self.average.module)
            width = round(self.train.cell_width, 2)
            judged.info = replace(self.model.info, cell_width=width, min_area=max(SPECK, round(0.75 * width ** 2)),
                                  settings=self.settings.as_dict(), scores={"val_dice": val_dice, "epoch": self.epoch})
            save_model(judged, self.settings.run_dir / "model.safetensors")
        self.history.save(self.settings.run_dir / "history.csv")
        checkpoint = self._checkpoint()
        if not event and val_dice >= 0.5 * self.best_dice:
            self.sound = checkpoint
        save_checkpoint(checkpoint, self.settings.run_dir)

    def _train_epoch(self, bar: tqdm) -> tuple[float, float]:
        """One pass of `steps` batches; crops depend on seed, epoch and tries alone, so a resumed run repeats them."""
        source = torch.Generator().manual_seed(
            (self.settings.seed * 1_000_003 + self.epoch * 101 + self.tries) % 2**63)
        self.model.train()
        newest: deque[Tensor] = deque(maxlen=calibration_batches(self.steps))
        total = torch.zeros(2, device=self.device)
        for step in range(self.steps):
            progress = (self.epoch * self.steps + step) / (self.settings.epochs * self.steps)
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate_at(progress, self.settings.learning_rate) * self.rate_scale
            plan = draw_crops(self.train, self.settings.batch_size, self.crop, source)
            images, targets = cut_crops(self.train, plan, self.crop)
            newest.append(images.to(self.device))
            total += self._step(newest[-1], targets.to(self.device))
            bar.update()
        calibrate(self.average.module, newest, self.device)
        loss, train_dice = (total / self.steps).tolist()
        return loss, train_dice

    def _step(self, images: Tensor, targets: Tensor) -> Tensor:
        """One step of the optimiser. Out of GPU memory, the batch is halved and its gradients are summed."""
        while True:
            try:
                scores = self._accumulate(images, targets)
                break
            except torch.OutOfMemoryError:
                if self.micro == 1:
                    raise SegkitError(f"one crop of {self.crop[0]} x {self.crop[1]} does not fit into the GPU's "
                                      "memory: set a smaller CROP") from None
                self.micro = -(-self.micro // 2)
                torch.cuda.empty_cache()
                log.info("out of GPU memory: batches are now computed in parts of %d crops", self.micro)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimiser.step()
        self.average.update_parameters(self.model)
        return scores

    def _accumulate(self, images: Tensor, targets: Tensor) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        scores = torch.zeros(2, device=self.device)
        for part, target in zip(images.split(self.micro), targets.split(self.micro), strict=True):
            share = len(part) / len(images)
            with autocast(self.device):
                output = self.model(part.contiguous(memory_format=torch.channels_last))
            loss = student_loss(output, target)
            (loss * share).backward()
            dice = batch_dice(output[:, 0].detach(), target[:, 0] > 0).mean()
            scores += share * torch.stack([loss.detach(), dice])
        return scores

    @torch.inference_mode()
    def _validate(self) -> tuple[float, float]:
        """Mean loss and Dice over all whole validation frames, by the running average of the weights."""
        judged = self.average.module.eval()
        losses: list[Tensor] = []
        dices: list[Tensor] = []
        previews: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for index in _same_size(self.validation, 1 if self.device.type == "cpu" else 8):
            images, targets = (t.to(self.device) for t in self.validation.whole(index, STRIDE))
            with autocast(self.device):
                output = judged(images.contiguous(memory_format=torch.channels_last))
            height, width = int(self.validation.height[index[0]]), int(self.validation.width[index[0]])
            output, targets = output[..., :height, :width].float(), targets[..., :height, :width]
            losses += [student_loss(output, targets)] * len(index)
            dices.append(batch_dice(output[:, 0], targets[:, 0] > 0))
            if len(previews) < PREVIEWS:
                image, probability, mask = (t.cpu().numpy() for t in (
                    images[0, 0, :height, :width], output[0, 0].sigmoid(), targets[0, 0] > 0))
                previews.append((image, probability, mask))
        self.history.previews = previews
        return float(torch.stack(losses).cpu().double().mean()), float(torch.cat(dices).cpu().double().mean())

    def _breakdown(self, loss: float, val_loss: float, val_dice: float) -> str:
        """Why this epoch cannot stand, or nothing: a loss without value, a fall, a student that answers nothing."""
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
        if self.sound:
            tries, scale, rows = self.tries, self.rate_scale, self.history.rows
            self._restore(self.sound)
            self.tries, self.rate_scale, self.history.rows = tries, scale, rows
            return f"{event}: rolled back to epoch {self.epoch}"
        self.epoch, self.best_dice, self.least_loss = 0, -1.0, math.inf
        self._start_weights()
        return f"{event}: started anew with other weights"

    def _checkpoint(self) -> Checkpoint:
        """Everything needed to go on, copied."""
        return Checkpoint.of(self.model, self.average, self.optimiser, {
            **{name: getattr(self, name) for name in KEPT}, "rows": [dict(row) for row in self.history.rows]})

    def _restore(self, checkpoint: Checkpoint) -> None:
        checkpoint.load_into(self.model, self.average, self.optimiser)
        state = checkpoint.state
        for name in KEPT:
            setattr(self, name, state[name])
        self.history.rows = [dict(row) for row in state["rows"]]


def _same_size(store: Store, at_most: int) -> list[list[int]]:
    """Indices of frames, in order, in groups of one size."""
    groups: list[list[int]] = []
    sizes = list(zip(store.height.tolist(), store.width.tolist(), strict=True))
    for i, size in enumerate(sizes):
        if groups and len(groups[-1]) < at_most and sizes[groups[-1][0]] == size:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
