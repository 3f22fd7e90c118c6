"""The training: batches, loss, optimiser, EMA, validation, checkpoints, rollback."""

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn
from tqdm.auto import tqdm

from ..data.dataset import Frame, Split
from ..data.discovery import discover_split
from ..devices import autocast, describe_device, free_memory, in_parts, keep_memory
from ..errors import SegkitError
from ..files import duration, locked, log, logging_to
from ..measure.metrics import hashes_by_position, join_records, positions_trained_on, score_frames, tune_prominence
from ..model.checkpoint import load_model, save_model
from ..model.postprocess import smallest_area
from ..model.unet import STRIDE, ModelInfo, UNet
from ..settings import Settings
from .augment import gather_crops, sample_crops
from .distributed import ProcessGroup, is_distributed, launch
from .frames import Store, build_store
from .run_dir import (
    ANEW,
    BACK,
    History,
    check_training,
    finish_run,
    leave_out,
    load_checkpoint,
    open_run,
    save_checkpoint,
)

EMA_DECAY = 0.98  # share of the old weights in the running average
BN_STATS_BATCHES = (4, 8)  # at least and at most so many batches of an epoch measure the statistics
GPU_CROP, CPU_CROP = (768, 448), (128, 128)  # CROP=auto, (height, width) pixels
MIN_CROP = 2 * STRIDE  # pixels; the deepest level needs more than one value per channel
FIELD_OF_VIEW = 200  # pixels, about: what one answer can depend on (five levels of two 3 x 3 convolutions)
MIN_STEPS = 200  # with fewer, touching cells are seldom told apart yet (benchmarks/README.md)
WARM_UP = 0.2  # share of the training during which the learning rate rises
WEIGHT_DECAY, CLIP = 1e-2, 1.0
PREVIEWS = 2
LEARNING = ("model", "average", "optimiser")  # what changes while a student learns
MAX_PIXELS = 2 ** 23  # pixels of whole frames that are judged at once on a GPU, at most 8 frames
TRIES = 3  # how often a broken-down training is set right before it gives up
DIVERGENCE_BELOW = 0.5  # validation Dice from which on a fall to half is a breakdown; below it a student still wavers
CHECKPOINT_FIELDS = ("epoch", "tries", "rate_scale", "best_dice", "least_loss")  # plain values that a checkpoint holds


def dice_loss_with_logits(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice over the batch; logits, target: (B, H, W), target 0 or 1. Milletari et al. 2016."""
    probability = logits.sigmoid()
    return _dice_loss((probability * target).sum(), probability.sum(), target.sum())


def _dice_loss(shared: Tensor, probability: Tensor, foreground: Tensor) -> Tensor:
    return 1 - (2 * shared + 1) / (probability + foreground + 1)


def loss_sums(output: Tensor, target: Tensor) -> Tensor:
    """The sums over all pixels that `student_loss` is computed from; those of a batch are its parts' sums added.

    output: (B, 2, H, W), foreground logits and distance; target: (B, 1, H, W), 0 = background, else (0, 1].
    Returns (7,) float32: pixels, foreground, cross-entropy, probability, probability in the foreground, smooth L1 of
    the distance, and that in the foreground.
    """
    logits, distance = output[:, 0].float(), output[:, 1].float()
    foreground, probability = (target[:, 0] > 0).float(), logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, foreground, reduction="sum")
    error = F.smooth_l1_loss(distance, target[:, 0], reduction="none", beta=0.2)
    return torch.stack([torch.full_like(cross_entropy, foreground.numel()), foreground.sum(), cross_entropy,
                        probability.sum(), (probability * foreground).sum(), error.sum(), (error * foreground).sum()])


def student_loss(output: Tensor, target: Tensor, batch_sums: Tensor | None = None) -> Tensor:
    """Loss of the two output maps, computed in float32: cross-entropy, soft Dice, and twice the distance's error.

    output, target: as in `loss_sums`. In the distance's error the foreground's pixels count as much as all others.
    batch_sums: where output is one part of a batch, `loss_sums` of the whole batch without gradients; then the loss is
    the batch's and its gradient this part's, so that the parts' gradients add up to the batch's.
    """
    sums = loss_sums(output, target)
    if batch_sums is not None:
        sums = batch_sums + sums - sums.detach()
    pixels, foreground, cross_entropy, probability, shared, error, error_inside = sums
    share = foreground / pixels
    more = (1 - share) / share.clamp(min=0.02)  # by which a pixel of the foreground counts more than another
    distance_loss = (error + more * error_inside) / (pixels + more * foreground)
    return cross_entropy / pixels + _dice_loss(shared, probability, foreground) + 2 * distance_loss


def batch_dice(logits: Tensor, foreground: Tensor) -> Tensor:
    """Dice of each picture: (B, H, W) twice, logits and bool -> (B,) float32; two empty masks score 1."""
    mask = logits > 0
    shared = (mask & foreground).sum((1, 2)).float()
    total = mask.sum((1, 2)).float() + foreground.sum((1, 2)).float()
    return torch.where(total > 0, 2 * shared / total.clamp(min=1), torch.ones_like(total))


@torch.no_grad()
def update_ema(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
    """Running average of the weights; over few steps it forgets faster, so that it never lags behind."""
    count = int(count)
    keep = min(EMA_DECAY, (1 + count) / (10 + count))
    torch._foreach_lerp_(list(averaged), list(current), 1 - keep)


def bn_stats_batches(steps: int) -> int:
    """How many batches of an epoch of `steps` measure the statistics: an eighth, within limits."""
    return min(max(steps // 8, BN_STATS_BATCHES[0]), BN_STATS_BATCHES[1])


@torch.no_grad()
def recompute_bn_stats(model: UNet, batches: Iterable[Tensor], device: torch.device,
              mean: Callable[[Tensor], Tensor]) -> None:
    """Measure batch norm's statistics anew, on these batches of images: averaged weights have no others of their own.

    Without this, averaged weights are judged with the statistics of other weights, and for the first hundred steps
    answer all background (figures in benchmarks/README.md). mean: averages a tensor over the processes of a group.
    """
    with autocast(device, model.precision):
        update_bn((images.contiguous(memory_format=torch.channels_last) for images in batches), model)
    for layer in (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
        centre, variance = cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var)
        own = centre.clone()
        centre.copy_(mean(centre))
        variance.copy_(mean(variance + (own - centre) ** 2))
    model.eval()


def choose_crop(settings: Settings, device: torch.device, smallest: tuple[int, int]) -> tuple[int, int]:
    """CROP as (height, width), shrunk to the smallest training frame and to multiples of the network's stride."""
    if settings.crop != "auto":
        wanted = settings.crop_size()
    elif device.type == "cpu":  # small crops teach as much in less time; half a frame leaves room to vary
        wanted = min(CPU_CROP[0], smallest[0] // 2), min(CPU_CROP[1], smallest[1] // 2)
    else:
        wanted = GPU_CROP
    height, width = (max(MIN_CROP, min(w, s) // STRIDE * STRIDE) for w, s in zip(wanted, smallest, strict=True))
    return height, width


def default_crops(area: int, crop: tuple[int, int]) -> int:
    """Crops in an epoch: as many as cover the training frames' area once, at least 64 and at most 4096."""
    return min(max(64, round(area / (crop[0] * crop[1]))), 4096)


def steps_of(crops: int, settings: Settings) -> int:
    """Steps of the optimiser in an epoch of so many crops."""
    return max(1, round(crops / settings.batch_size))


def learning_rate_at(progress: float, peak: float) -> float:
    """The schedule: a linear rise to the peak over the first fifth, then half a cosine down; progress 0..1."""
    if progress < WARM_UP:
        return peak * (0.04 + 0.96 * progress / WARM_UP)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))))


class TrainingData(NamedTuple):
    """One process's share of the frames; all else is the same in every process."""

    train: Store
    validation: Store
    validation_frames: list[Frame]  # of all processes, those that could be decoded
    foreground: float  # share of the training's pixels
    cell_width: float  # pixels, median of the training cells
    min_area: int  # pixels, see targets.smallest_area
    crop: tuple[int, int]  # height, width
    steps: int  # of an epoch
    trained_on: dict[str, list[str]]  # of all processes, see judge.hashes_by_position
    validated_on: dict[str, list[str]]
    left_out: dict[str, str]  # frames of all processes that could not be decoded, by name, and why


def prepare(split: Split, settings: Settings, group: ProcessGroup) -> TrainingData:
    """Decode this process's share of the split; what cannot be decoded is logged and left out."""
    cache = settings.run_dir.parent / ".cache"
    limit = settings.memory_limit if group.here == 1 else (settings.memory_limit or free_memory() / 2e9) / group.here
    stores, records, left_out = [], [], {}
    for frames, what in ((split.train, "training frames"), (split.validation, "validation frames")):
        share = group.shard(frames, what)
        store, problems = build_store(share, group.device, cache, limit)
        sound, size = set(store.frames), 3e-9 * store.pixels.numel()  # GB
        lost = [frame.name for frame in share if frame not in sound]
        for name, problem in group.gather(list(zip(lost, problems, strict=True))):
            log.info("left out %s: %s", problem.path, problem.reason)
            left_out[name] = problem.reason
        stores.append(store)
        records.append(hashes_by_position(group.gather(list(zip(store.frames, store.hashes, strict=True)))))
        limit -= size if size < limit else 0  # what lies on the disk takes none
    train, validation = stores
    decoded = set(group.gather(list(validation.frames)))
    shares = pd.DataFrame(group.gather([{
        "height": int(train.height.min()), "width": int(train.width.min()),
        "area": int((train.height * train.width).sum()), "foreground": train.foreground,
        "cell_width": train.cell_width, "train": len(train.frames), "validation": len(validation.frames)}]))
    cell_width = float(shares["cell_width"].median())
    crop = choose_crop(settings, group.device, (int(shares["height"].min()), int(shares["width"].min())))
    crops = settings.crops_per_epoch or default_crops(int(shares["area"].sum()), crop)
    steps = steps_of(crops, settings)
    log.info("%d training frames, %d validation frames; crops of %d x %d, %d steps of %d an epoch; %s",
             shares["train"].sum(), shares["validation"].sum(), *crop, steps, settings.batch_size,
             describe_device(group.device, settings.precision))
    if settings.epochs * steps < MIN_STEPS:
        log.info("%d steps in all are few: %d and more are usual, so set more EPOCHS", settings.epochs * steps,
                 MIN_STEPS)
    if group.size > 1:
        log.info("%d processes, each with %s training frames, %s validation frames and %d crops of every batch",
                 group.size, "/".join(map(str, shares["train"])), "/".join(map(str, shares["validation"])),
                 settings.batch_size // group.size)
    return TrainingData(train, validation, [frame for frame in split.validation if frame in decoded],
                    float(np.average(shares["foreground"], weights=shares["area"])),
                    cell_width, smallest_area(group.gather(train.areas.tolist()), cell_width), crop, steps, records[0],
                    records[1], left_out)


class ValidationResult(NamedTuple):
    """What a look at whole frames gives: a loss and a Dice for each, and pictures of a few."""

    losses: list[float]
    dices: list[float]
    previews: list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # image, probability, target mask, each (H, W)


class Learner:
    """One process's student in training; with a group, the others' are kept equal to it."""

    def __init__(self, model: UNet, group: ProcessGroup, settings: Settings) -> None:
        self.group, self.settings, self.device = group, settings, group.device
        if self.device.type == "cpu":
            keep_memory()
        model.precision = settings.precision
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.forward = group.wrap(self.model)
        self.batch = settings.batch_size // group.size
        self.part = self.batch  # crops that go through the network at once
        if settings.batch_size % group.size:
            raise SegkitError(f"BATCH_SIZE is {settings.batch_size}: a multiple of the {group.size} processes was "
                              "needed")

    def start(self, foreground: float, tries: int) -> None:
        """Fresh weights by the seed, or another run's; then the optimiser and the running average.

        foreground: share of the training pixels inside cells, from which the output's bias starts.
        """
        torch.manual_seed(self.settings.seed + 1000 * tries)
        start_from = self.settings.start_from_path
        fresh = load_model(start_from, "cpu") if start_from else UNet(self.model.info)
        if start_from is None:
            share = min(max(foreground, 1e-3), 0.9)
            fresh.out.bias = nn.Parameter(torch.tensor([math.log(share / (1 - share)), 0.5 * share]))
        elif fresh.info.outputs != 2:
            raise SegkitError(f"START_FROM {start_from} is a model of the starting recipe, with masks only: start from "
                              "a model that segkit trained")
        self.start_from = fresh.info if start_from else None
        self.model.load_state_dict(fresh.state_dict())
        self.average = AveragedModel(self.model, multi_avg_fn=update_ema)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), weight_decay=WEIGHT_DECAY,
                                           fused=self.device.type in ("cpu", "cuda") or None)

    def train(self, store: Store, crop: tuple[int, int], rates: list[float], source: torch.Generator,
              on_step: Callable[[], object]) -> tuple[float, float]:
        """A step at each of these learning rates, on crops drawn by source; mean loss and Dice over the group."""
        self.model.train()
        newest: deque[Tensor] = deque(maxlen=bn_stats_batches(len(rates)))
        total = torch.zeros(2, device=self.device)
        for rate in rates:
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            images, targets = gather_crops(store, sample_crops(store, self.batch, crop, source), crop)
            newest.append(images.to(self.device))
            total += self.step(newest[-1], targets.to(self.device))
            on_step()
        recompute_bn_stats(cast(UNet, self.average.module), newest, self.device, self.group.mean)
        loss, dice = self.group.mean(total / len(rates)).tolist()
        return loss, dice

    def step(self, images: Tensor, targets: Tensor) -> Tensor:
        """One step of the optimiser, on images and targets (B, 1, h, w); returns the loss and the Dice, a tensor (2,).

        Out of GPU memory, the batch is computed in parts whose gradients add up to the batch's; batch norm alone then
        takes each part's mean and variance instead of the batch's.
        """
        while True:
            try:
                scores = self._accumulate(images, targets)
                break
            except torch.OutOfMemoryError:
                if self.part == 1 or self.group.size > 1:  # a group's processes must compute the same parts
                    what = "one crop" if self.part == 1 else f"{self.part} crops"
                    raise SegkitError(f"{what} of {images.shape[-2]} x {images.shape[-1]} do not fit into the GPU's "
                                      "memory: set a smaller CROP or BATCH_SIZE") from None
                self.part = -(-self.part // 2)
                torch.cuda.empty_cache()
                log.info("out of GPU memory: batches are now computed in parts of %d crops", self.part)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimiser.step()
        self.average.update_parameters(self.model)
        return scores

    def _accumulate(self, images: Tensor, targets: Tensor) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        parts = list(zip(images.contiguous(memory_format=torch.channels_last).split(self.part),
                         targets.split(self.part), strict=True))
        batch_sums: list[Tensor] = []
        if len(parts) > 1:  # soft Dice and the weights of the distance are those of the whole batch
            with torch.no_grad():
                sums = [loss_sums(self._output(self.model, part), target) for part, target in parts]
            batch_sums = [torch.stack(sums).sum(0)]
        dices = []
        for part, target in parts:
            output = self._output(self.forward, part)
            loss = student_loss(output, target, *batch_sums)
            loss.backward()
            dices.append(batch_dice(output[:, 0].detach(), target[:, 0] > 0))
        return torch.stack([loss.detach(), torch.cat(dices).mean()])

    def _output(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        with autocast(self.device, self.settings.precision):
            return network(images)

    @torch.inference_mode()
    def validate(self, store: Store) -> ValidationResult:
        """Loss and Dice of this process's whole frames, by the running average of the weights."""
        judged, largest = self.average.module.eval(), int((store.height * store.width).max())
        at_most = 1 if self.device.type == "cpu" else max(1, min(8, MAX_PIXELS // largest))
        losses: list[Tensor] = []
        dices: list[Tensor] = []
        wanted = preview_frames(store.frames)
        previews: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for index in _same_size(store, at_most):
            images, targets = (t.to(self.device) for t in store.whole(index, STRIDE))
            with autocast(self.device, self.settings.precision):
                output = in_parts(judged, images.contiguous(memory_format=torch.channels_last))
            height, width = int(store.height[index[0]]), int(store.width[index[0]])
            output, targets = output[..., :height, :width].float(), targets[..., :height, :width]
            losses += [student_loss(o, t) for o, t in zip(output.split(1), targets.split(1), strict=True)]
            dices.append(batch_dice(output[:, 0], targets[:, 0] > 0))
            for k, frame in enumerate(index):
                if frame in wanted:
                    image, probability, mask = (t.cpu().numpy() for t in (
                        images[k, 0, :height, :width], output[k, 0].sigmoid(), targets[k, 0] > 0))
                    previews[frame] = image, probability, mask
        return ValidationResult(torch.stack(losses).tolist(), torch.cat(dices).tolist(),
                      [previews[frame] for frame in sorted(previews)])

    def state(self) -> dict[str, dict[str, Any]]:
        """Weights, running average and optimiser, copied."""
        return copy.deepcopy({name: getattr(self, name).state_dict() for name in LEARNING})

    def restore(self, state: dict[str, dict[str, Any]]) -> None:
        """Go on from a state; it is not changed."""
        for name in LEARNING:
            getattr(self, name).load_state_dict(copy.deepcopy(state[name]))


def preview_frames(frames: Sequence[Frame]) -> list[int]:
    """Indices of the frames that are shown: the last one of the first positions, or first and last of the only one."""
    last = {frame.unit: i for i, frame in enumerate(frames)}
    return sorted({*last.values(), *([0] if len(last) == 1 else [])})[:PREVIEWS]


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


def fit(model: UNet, split: Split, settings: Settings, on_epoch: Callable[[History], None] | None = None) -> History:
    """Train the student on split.train, judge it on split.validation, and keep the best in settings.run_dir.

    model: changed in place; holds the best weights at the end. on_epoch: called with the history after every epoch.
    Returns the history. The run folder gets what the README's table lists; RESUME goes on from its last.pt.
    With PROCESSES over 1, or started by torchrun, the frames are shared out among the processes; one of them writes.
    Raises SegkitError where the run exists already or another process writes into it, START_FROM was trained on
    validation positions, nothing can be decoded, the training breaks down more than 3 times, a file cannot be written,
    or the kernel is interrupted (nothing is lost then).
    """
    if settings.processes > 1 and not is_distributed():
        if split != discover_split(settings):
            raise SegkitError("PROCESSES trains on the split that the settings give, and another one was handed over: "
                              "say it by VALIDATION and EXCLUDE, or set PROCESSES=1")
        if (model.info.outputs, model.info.upsampling) != (2, "smoothed"):
            raise SegkitError("PROCESSES trains segkit's own UNet(): set PROCESSES=1 for another")
        check_training(settings)
        with locked(settings.run_dir):  # the launched processes are let in
            history = launch(settings, on_epoch)
            _take_best(model, settings)
        return history
    group = ProcessGroup(settings.device)
    if not group.is_main_process:
        return _train(model, split, settings, group, None)
    check_training(settings)  # before a folder is made
    with locked(settings.run_dir):
        return _train(model, split, settings, group, on_epoch)


def _train(model: UNet, split: Split, settings: Settings, group: ProcessGroup,
           on_epoch: Callable[[History], None] | None) -> History:
    """`fit` as one process of a group; the first writes into the run's folder."""
    if group.is_main_process:
        open_run(split, settings)
    group.wait()
    with logging_to(settings.run_dir / "run.log") if group.is_main_process else nullcontext():
        log.disabled = not group.is_main_process
        try:
            return _Training(model, split, settings, group).run(on_epoch)
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

    def __init__(self, model: UNet, split: Split, settings: Settings, group: ProcessGroup) -> None:
        self.settings, self.group = settings, group
        self.learner = Learner(model, group, settings)
        self.training_data = prepare(split, settings, group)
        if group.is_main_process and self.training_data.left_out:
            leave_out(settings.run_dir, self.training_data.left_out)
        self.steps = self.training_data.steps
        self.history, self.epoch, self.tries, self.rate_scale = History(), 0, 0, 1.0
        self.best_dice, self.least_loss = -1.0, math.inf
        self.sound: dict[str, Any] | None = None  # the last state worth going back to
        self.learner.start(self.training_data.foreground, self.tries)
        self.record: dict[str, Any] = {"trained_on": self.training_data.trained_on, "fully_recorded": True,
                                       "validated_on": self.training_data.validated_on}  # fields of ModelInfo
        if copies := positions_trained_on(ModelInfo(**self.record), self.training_data.validated_on, settings):
            log.info("%s: images of these validation positions are among the training's too, as copies",
                     ", ".join(copies))
        if start_from := self.learner.start_from:
            self._inherit(start_from)

    def _inherit(self, earlier: ModelInfo) -> None:
        """Add what START_FROM's model was trained on. Raises SegkitError where that holds validation positions."""
        path = self.settings.start_from_path
        if leaked := positions_trained_on(earlier, self.training_data.validated_on, self.settings):
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
            checkpoint = load_checkpoint(self.settings.run_dir, self.group.device, (*LEARNING, "state"))
            self._restore(checkpoint)
            self.sound = checkpoint if self.epoch else None
            log.info("resumed after epoch %d", self.epoch)
        epochs = self.settings.epochs
        try:
            with tqdm(total=epochs * self.steps, initial=self.epoch * self.steps, desc="training", unit="step",
                      leave=False, disable=not self.group.is_main_process) as bar:
                while self.epoch < epochs:
                    self._one_epoch(bar)
                    if on_epoch:
                        on_epoch(self.history)
            self._finish()
        except KeyboardInterrupt:
            raise SegkitError(f"interrupted: {self.epoch} of {epochs} epochs are saved in {self.settings.run_dir}; "
                              "RESUME=1 goes on from there") from None
        except RuntimeError as error:
            if self.group.size == 1:
                raise
            why = (str(error) or repr(error)).splitlines()[0]
            raise SegkitError(f"one of the {self.group.size} processes was lost ({why}): "
                              f"{self.epoch} of {epochs} epochs are saved in {self.settings.run_dir}; RESUME=1 goes on "
                              "from there") from None
        return self.history

    def _finish(self) -> None:
        """Judge the best student frame by frame, and write what is known of it."""
        model, group = self.learner.model, self.group
        group.wait()  # until its file is there
        _take_best(model, self.settings)
        # a resumed run may keep weights that were saved by an older version: what is known of the data is set again
        model.info = replace(model.info, cell_width=round(self.training_data.cell_width, 2),
                             min_area=self.training_data.min_area, **self.record)
        model.info = tune_prominence(model, self.training_data.validation_frames)
        scores = group.gather(score_frames(model, self.training_data.validation.frames).to_dict("records"))
        if group.is_main_process:
            finish_run(model, pd.DataFrame(scores).sort_values(["experiment", "position", "frame"]), self.history,
                       self.settings, describe_device(group.device, self.settings.precision))
        group.wait()

    def _one_epoch(self, bar: tqdm) -> None:
        began = time.perf_counter()
        loss, train_dice = self._train_epoch(bar)
        seconds = time.perf_counter() - began
        val_loss, val_dice = self._validate()
        number, event = self.epoch + 1, self._divergence(loss, val_loss, val_dice)
        if event:
            event = self._roll_back(event)
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
        checkpoint = {**self.learner.state(), "state": {**{name: getattr(self, name) for name in CHECKPOINT_FIELDS},
                                                        "rows": [dict(row) for row in self.history.rows],
                                                        "record": self.record}}
        if not event and val_dice >= 0.5 * self.best_dice:
            self.sound = checkpoint
        if self.group.is_main_process:
            save_checkpoint(checkpoint, self.settings.run_dir)
            self.history.save(self.settings.run_dir / "history.csv")  # what it names can be gone on from

    def _keep_best(self, val_dice: float) -> None:
        judged = cast(UNet, self.learner.average.module)
        judged.info = replace(self.learner.model.info, cell_width=round(self.training_data.cell_width, 2),
                              min_area=self.training_data.min_area, settings=self.settings.as_dict(),
                              scores={"val_dice": val_dice, "epoch": self.epoch}, **self.record)
        if self.group.is_main_process:
            save_model(judged, self.settings.run_dir / "model.safetensors")

    def _train_epoch(self, bar: tqdm) -> tuple[float, float]:
        """One pass; crops depend on seed, epoch, tries and process alone, so a resumed run repeats them."""
        seed = self.settings.seed * 1_000_003 + self.epoch * 101 + self.tries + self.group.rank * 15_485_863
        done, all_steps = self.epoch * self.steps, self.settings.epochs * self.steps
        rates = [learning_rate_at((done + step) / all_steps, self.settings.learning_rate) * self.rate_scale
                 for step in range(self.steps)]
        return self.learner.train(self.training_data.train, self.training_data.crop, rates,
                                  torch.Generator().manual_seed(seed % 2**63), bar.update)

    def _validate(self) -> tuple[float, float]:
        """Mean loss and Dice over all whole validation frames, each judged by one process."""
        losses, dices, self.history.previews = self.learner.validate(self.training_data.validation)
        loss, dice = np.mean(self.group.gather(list(zip(losses, dices, strict=True))), axis=0)
        return float(loss), float(dice)

    def _divergence(self, loss: float, val_loss: float, val_dice: float) -> str:
        """Why this epoch cannot stand, or nothing: a loss without value, a fall, a student that answers nothing.

        Of a student that never answered anything the sound state is forgotten.
        """
        if not math.isfinite(loss + val_loss):
            return f"loss is {loss}, on validation {val_loss}"
        if self.best_dice > DIVERGENCE_BELOW and val_dice < 0.5 * self.best_dice:
            return f"validation Dice fell from {self.best_dice:.2f} to {val_dice:.2f}"
        trained = (self.epoch + 1) * self.steps
        if trained >= 200 and self.epoch >= 4 and self.best_dice < 0.05 and val_dice < 0.05:
            self.sound = None  # stuck from the start: there is nothing to go back to
            return f"validation Dice is {val_dice:.2f} after {trained} steps"
        return ""

    def _roll_back(self, event: str) -> str:
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
        self.learner.start(self.training_data.foreground, self.tries)
        return f"{event}: {ANEW}"

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        self.learner.restore(checkpoint)
        for name in CHECKPOINT_FIELDS:
            setattr(self, name, checkpoint["state"][name])
        self.history.rows = [dict(row) for row in checkpoint["state"]["rows"]]
        earlier = ModelInfo(**checkpoint["state"].get("record", {}))
        if not earlier.fully_recorded:
            log.info("what this run was trained on before is not known, since its last.pt holds no full record of it")
        self._join(earlier.trained_on, earlier.fully_recorded)
