"""What the training minimises."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
