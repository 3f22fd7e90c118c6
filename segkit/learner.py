"""The student while it learns: its weights, their running average and the optimiser, a batch at a time."""

import copy
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .averaging import average_weights, calibrate, calibration_batches
from .crops import cut_crops, draw_crops
from .data import Frame
from .devices import autocast, in_parts, keep_memory
from .errors import SegkitError
from .history import log
from .losses import batch_dice, loss_sums, student_loss
from .model import STRIDE, UNet
from .model_file import load_model
from .settings import Settings
from .store import Store
from .team import Team

WEIGHT_DECAY, CLIP = 1e-2, 1.0
PREVIEWS = 2
LEARNING = ("model", "average", "optimiser")  # what changes while a student learns
WHOLE = 2 ** 23  # pixels of whole frames that are judged at once on a GPU, at most 8 frames


class Judged(NamedTuple):
    """What a look at whole frames gives: a loss and a Dice for each, and pictures of a few."""

    losses: list[float]
    dices: list[float]
    previews: list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # image, probability, target mask, each (H, W)


class Learner:
    """One process's student in training; with a team, the others' are kept equal to it."""

    def __init__(self, model: UNet, team: Team, settings: Settings) -> None:
        self.team, self.settings, self.device = team, settings, team.device
        if self.device.type == "cpu":
            keep_memory()
        model.precision = settings.precision
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.forward = team.wrap(self.model)
        self.batch = settings.batch_size // team.size
        self.part = self.batch  # crops that go through the network at once
        if settings.batch_size % team.size:
            raise SegkitError(f"BATCH_SIZE is {settings.batch_size}: a multiple of the {team.size} processes was "
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
        self.average = AveragedModel(self.model, multi_avg_fn=average_weights)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), weight_decay=WEIGHT_DECAY,
                                           fused=self.device.type in ("cpu", "cuda") or None)

    def train(self, store: Store, crop: tuple[int, int], rates: list[float], source: torch.Generator,
              on_step: Callable[[], object]) -> tuple[float, float]:
        """A step at each of these learning rates, on crops drawn by source; mean loss and Dice over the team."""
        self.model.train()
        newest: deque[Tensor] = deque(maxlen=calibration_batches(len(rates)))
        total = torch.zeros(2, device=self.device)
        for rate in rates:
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            images, targets = cut_crops(store, draw_crops(store, self.batch, crop, source), crop)
            newest.append(images.to(self.device))
            total += self.step(newest[-1], targets.to(self.device))
            on_step()
        calibrate(cast(UNet, self.average.module), newest, self.device, self.team.mean)
        loss, dice = self.team.mean(total / len(rates)).tolist()
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
                if self.part == 1 or self.team.size > 1:  # a team's processes must compute the same parts
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
    def validate(self, store: Store) -> Judged:
        """Loss and Dice of this process's whole frames, by the running average of the weights."""
        judged, largest = self.average.module.eval(), int((store.height * store.width).max())
        at_most = 1 if self.device.type == "cpu" else max(1, min(8, WHOLE // largest))
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
        return Judged(torch.stack(losses).tolist(), torch.cat(dices).tolist(),
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
