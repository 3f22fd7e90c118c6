"""The loss of the student, Dice of a batch, and validation with both on whole frames after every epoch."""

from collections.abc import Iterator, Sequence
from itertools import groupby, islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.dataset import Frame
from ..devices import autocast, in_parts
from ..model.postprocess import pair_ends
from ..model.unet import PAIRS, STRIDE, UNet
from .distributed import ProcessGroup
from .frames import Store
from .run_dir import Preview

DISTANCE_WEIGHT = 2.0  # of the distance error, beside cross-entropy and soft Dice
PAIR_WEIGHT = 2.0  # of the error of pairs
MAX_FOREGROUND_WEIGHT = 50.0  # of a foreground pixel in the distance error, where cells are rare
MAX_PIXELS, MAX_FRAMES = 2 ** 23, 8  # of whole frames in one batch on a GPU
PREVIEWS = 2  # frames that the live figure shows


def student_loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, soft Dice loss (Milletari et al. 2016), the distance error and that of pairs, in float32.

    output: (B, 2 + pairs, H, W), foreground logits, distance, and logits that both pixels of each of PAIRS are of one
    cell; target: (B, 2, H, W), the distance, 0 = background, else (0, 1], and labels.
    """
    logits, distance = output[:, 0].float(), output[:, 1].float()  # (B, H, W) each
    foreground, probability = (target[:, 0] > 0).float(), logits.sigmoid()
    pixels, inside = foreground.numel(), foreground.sum()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, foreground, reduction="sum") / pixels
    dice_loss = 1 - (2 * (probability * foreground).sum() + 1) / (probability.sum() + inside + 1)
    # Foreground and background have the same weight in the distance error, however few pixels the cells cover
    share = inside / pixels
    extra = (1 - share) / share.clamp(min=1 / MAX_FOREGROUND_WEIGHT)
    error = F.smooth_l1_loss(distance, target[:, 0], reduction="none", beta=0.2)
    distance_loss = (error.sum() + extra * (error * foreground).sum()) / (pixels + extra * inside)
    # Pairs of pixels inside cells: of the same one, or of two that touch
    pair_error, pairs = output.new_zeros((), dtype=torch.float32), 1
    for half, logit in zip(PAIRS, output[:, 2:].unbind(1), strict=True):
        (first, _, second), (_, middle, _) = pair_ends(target[:, 1], half), pair_ends(logit, half)
        inside_cells = (first > 0) & (second > 0)
        error = F.binary_cross_entropy_with_logits(middle.float(), (first == second).float(), reduction="none")
        pair_error, pairs = pair_error + (error * inside_cells).sum(), pairs + inside_cells.sum()
    return cross_entropy + dice_loss + DISTANCE_WEIGHT * distance_loss + PAIR_WEIGHT * pair_error / pairs


def batch_dice(logits: Tensor, foreground: Tensor) -> Tensor:
    """Dice of each image: (B, H, W) twice, logits and bool -> (B,) float32; two empty masks score 1."""
    mask = logits > 0
    shared = (mask & foreground).sum((1, 2)).float()
    total = mask.sum((1, 2)).float() + foreground.sum((1, 2)).float()
    return torch.where(total > 0, 2 * shared / total.clamp(min=1), torch.ones_like(total))


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
    losses, dices, previews, wanted = [], [], [], preview_frames(store.frames)
    for index in _batches_of_one_size(store, batch_size):
        # Whole frames are padded for the network, and the padding is removed again
        height, width = int(store.height[index[0]]), int(store.width[index[0]])
        images, targets = (t.to(device) for t in store.whole(index, STRIDE))  # (n, 1 and 2, H', W')
        with autocast(device, model.precision):
            output = in_parts(model, images.contiguous(memory_format=torch.channels_last))  # (n, outputs, H', W')
        output, targets = output[..., :height, :width].float(), targets[..., :height, :width]
        losses += [student_loss(o, t) for o, t in zip(output.split(1), targets.split(1), strict=True)]
        dices.append(batch_dice(output[:, 0], targets[:, 0] > 0))
        for k in (k for k, frame in enumerate(index) if frame in wanted):
            shown = images[k, 0, :height, :width], output[k, 0].sigmoid(), targets[k, 0] > 0  # (H, W) each
            image, probability, mask = (tensor.cpu().numpy() for tensor in shown)
            previews.append((image, probability, mask))
    return torch.stack(losses).tolist(), torch.cat(dices).tolist(), previews


def preview_frames(frames: Sequence[Frame]) -> list[int]:
    """Indices of the frames to show: the last one of the first positions, or first and last of the only one."""
    last = {frame.unit: i for i, frame in enumerate(frames)}
    return sorted({*last.values(), *([0] if len(last) == 1 else [])})[:PREVIEWS]


def _batches_of_one_size(store: Store, batch_size: int) -> Iterator[list[int]]:
    """Indices of frames, in order, in batches of one size (height, width)."""
    sizes = list(zip(store.height.tolist(), store.width.tolist(), strict=True))
    for _, frames in groupby(range(len(sizes)), key=sizes.__getitem__):
        while batch := list(islice(frames, batch_size)):
            yield batch
