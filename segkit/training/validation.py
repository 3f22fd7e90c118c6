"""Validation on whole frames after every epoch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import Frame
from ..devices import autocast, in_parts
from ..model.unet import STRIDE, UNet
from .distributed import ProcessGroup
from .frames import Store
from .losses import batch_dice, student_loss
from .run_dir import Preview

MAX_PIXELS, MAX_FRAMES = 2 ** 23, 8  # of whole frames in one batch on a GPU
PREVIEWS = 2  # frames that the live figure shows


@torch.inference_mode()
def validate(model: UNet, store: Store, group: ProcessGroup) -> tuple[float, float, list[Preview]]:
    """Mean loss and mean Dice over the whole validation frames of all processes, and a few predictions to look at."""
    losses, dices, previews = validate_frames(model.eval(), store, group.device)
    loss, dice = np.mean(group.gather(list(zip(losses, dices, strict=True))), axis=0)
    return float(loss), float(dice), previews


@torch.inference_mode()
def validate_frames(model: UNet, store: Store, device: torch.device) -> tuple[list[float], list[float], list[Preview]]:
    """Loss and Dice of every frame of a store, in order, and the predictions of `preview_frames`."""
    largest = int((store.height * store.width).max())
    batch_size = 1 if device.type == "cpu" else max(1, min(MAX_FRAMES, MAX_PIXELS // largest))
    losses: list[Tensor] = []
    dices: list[Tensor] = []
    wanted, previews = preview_frames(store.frames), []
    for index in _batches_of_one_size(store, batch_size):
        # Whole frames are padded for the network, and the padding is removed again
        height, width = int(store.height[index[0]]), int(store.width[index[0]])
        images, targets = (t.to(device) for t in store.whole(index, STRIDE))  # (n, 1, H', W')
        with autocast(device, model.precision):
            output = in_parts(model, images.contiguous(memory_format=torch.channels_last))  # (n, 2, H', W')
        output, targets = output[..., :height, :width].float(), targets[..., :height, :width]
        losses += [student_loss(o, t) for o, t in zip(output.split(1), targets.split(1), strict=True)]
        dices.append(batch_dice(output[:, 0], targets[:, 0] > 0))
        for k, frame in enumerate(index):
            if frame in wanted:
                image, probability, mask = (t.cpu().numpy() for t in (
                    images[k, 0, :height, :width], output[k, 0].sigmoid(), targets[k, 0] > 0))  # (H, W) each
                previews.append((image, probability, mask))
    return torch.stack(losses).tolist(), torch.cat(dices).tolist(), previews


def preview_frames(frames: Sequence[Frame]) -> list[int]:
    """Indices of the frames to show: the last one of the first positions, or first and last of the only one."""
    last = {frame.unit: i for i, frame in enumerate(frames)}
    return sorted({*last.values(), *([0] if len(last) == 1 else [])})[:PREVIEWS]


def _batches_of_one_size(store: Store, batch_size: int) -> list[list[int]]:
    """Indices of frames, in order, in batches of one size (height, width)."""
    batches: list[list[int]] = []
    sizes = list(zip(store.height.tolist(), store.width.tolist(), strict=True))
    for i, size in enumerate(sizes):
        if batches and len(batches[-1]) < batch_size and sizes[batches[-1][0]] == size:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
