"""The running average of the weights, which is judged and kept, and its batch norm statistics."""

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from .devices import autocast
from .model import UNet

AVERAGING = 0.98  # share of the old weights in the running average
CALIBRATION = (4, 8)  # at least and at most so many batches of an epoch measure the statistics


@torch.no_grad()
def average_weights(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
    """Running average of the weights; over few steps it forgets faster, so that it never lags behind."""
    count = int(count)
    keep = min(AVERAGING, (1 + count) / (10 + count))
    torch._foreach_lerp_(list(averaged), list(current), 1 - keep)


def calibration_batches(steps: int) -> int:
    """How many batches of an epoch of `steps` measure the statistics: an eighth, within limits."""
    return min(max(steps // 8, CALIBRATION[0]), CALIBRATION[1])


@torch.no_grad()
def calibrate(model: UNet, batches: Iterable[Tensor], device: torch.device,
              mean: Callable[[Tensor], Tensor]) -> None:
    """Measure batch norm's statistics anew, on these batches of images: averaged weights have no others of their own.

    Without this, averaged weights are judged with the statistics of other weights, and for the first hundred steps
    answer all background (figures in benchmarks/README.md). mean: averages a tensor over the processes of a team.
    """
    with autocast(device, model.precision):
        update_bn((images.contiguous(memory_format=torch.channels_last) for images in batches), model)
    for layer in (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
        centre, variance = cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var)
        own = centre.clone()
        centre.copy_(mean(centre))
        variance.copy_(mean(variance + (own - centre) ** 2))
    model.eval()
