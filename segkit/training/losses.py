"""The loss of the student, and Dice of a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

DISTANCE_WEIGHT = 2.0  # of the distance error, beside cross-entropy and soft Dice
MAX_FOREGROUND_WEIGHT = 50.0  # of a foreground pixel in the distance error, where cells are rare


def loss_sums(output: Tensor, target: Tensor) -> Tensor:
    """Sums over all pixels from which `student_loss` is computed; the sums of parts of a batch add up.

    output: (B, 2, H, W), foreground logits and distance; target: (B, 1, H, W), 0 = background, else (0, 1].
    Returns (7,) float32: pixels, foreground, cross-entropy, probability, probability in the foreground, distance error,
    distance error in the foreground.
    """
    logits, distance = output[:, 0].float(), output[:, 1].float()  # (B, H, W) each
    foreground, probability = (target[:, 0] > 0).float(), logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, foreground, reduction="sum")
    error = F.smooth_l1_loss(distance, target[:, 0], reduction="none", beta=0.2)
    return torch.stack([torch.full_like(cross_entropy, foreground.numel()), foreground.sum(), cross_entropy,
                        probability.sum(), (probability * foreground).sum(), error.sum(), (error * foreground).sum()])


def student_loss(output: Tensor, target: Tensor, batch_sums: Tensor | None = None) -> Tensor:
    """Cross-entropy, soft Dice loss (Milletari et al. 2016) and the weighted distance error, computed in float32.

    output, target: as in `loss_sums`. batch_sums: where output is one part of a batch, `loss_sums` of the whole batch
    without gradients; the loss is then that of the batch, and its gradient that of the part.
    """
    sums = loss_sums(output, target)
    if batch_sums is not None:
        sums = batch_sums + sums - sums.detach()
    pixels, foreground, cross_entropy, probability, shared, error, error_inside = sums
    dice_loss = 1 - (2 * shared + 1) / (probability + foreground + 1)
    # Foreground and background have the same weight in the distance error, however few pixels the cells cover
    share = foreground / pixels
    extra = (1 - share) / share.clamp(min=1 / MAX_FOREGROUND_WEIGHT)
    distance_loss = (error + extra * error_inside) / (pixels + extra * foreground)
    return cross_entropy / pixels + dice_loss + DISTANCE_WEIGHT * distance_loss


def batch_dice(logits: Tensor, foreground: Tensor) -> Tensor:
    """Dice of each image: (B, H, W) twice, logits and bool -> (B,) float32; two empty masks score 1."""
    mask = logits > 0
    shared = (mask & foreground).sum((1, 2)).float()
    total = mask.sum((1, 2)).float() + foreground.sum((1, 2)).float()
    return torch.where(total > 0, 2 * shared / total.clamp(min=1), torch.ones_like(total))
