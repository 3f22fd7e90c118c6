"""What the training minimises."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_loss_with_logits(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice over the batch; logits, target: (B, H, W), target 0 or 1. Milletari et al. 2016."""
    probability = logits.sigmoid()
    shared = (probability * target).sum()
    return 1 - (2 * shared + 1) / (probability.sum() + target.sum() + 1)


def distance_loss(distance: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 between predicted and true distance (B, H, W); pixels inside cells count as much as all others."""
    loss = F.smooth_l1_loss(distance, target, reduction="none", beta=0.2)
    inside = (target > 0).float()
    weight = 1 + inside * (1 - inside.mean()) / inside.mean().clamp(min=0.02)
    return (loss * weight).sum() / weight.sum()


def student_loss(output: Tensor, target: Tensor) -> Tensor:
    """Loss of the two output maps, computed in float32.

    output: (B, 2, H, W), foreground logits and distance; target: (B, 1, H, W), 0 = background, else (0, 1].
    """
    logits, distance = output[:, 0].float(), output[:, 1].float()
    foreground = (target[:, 0] > 0).float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, foreground)
    return cross_entropy + dice_loss_with_logits(logits, foreground) + 2 * distance_loss(distance, target[:, 0])


def batch_dice(logits: Tensor, foreground: Tensor) -> Tensor:
    """Dice of each picture: (B, H, W) twice, logits and bool -> (B,) float32; two empty masks score 1."""
    mask = logits > 0
    shared = (mask & foreground).sum((1, 2)).float()
    total = mask.sum((1, 2)).float() + foreground.sum((1, 2)).float()
    return torch.where(total > 0, 2 * shared / total.clamp(min=1), torch.ones_like(total))
