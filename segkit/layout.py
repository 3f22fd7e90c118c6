"""How a training is laid out: the crop's size, the epoch's length, the learning rate's course."""

import math

import torch

from .model import STRIDE
from .settings import Settings

GPU_CROP, CPU_CROP = (768, 448), (128, 128)  # CROP=auto, (height, width) pixels
LEAST_CROP = 2 * STRIDE  # pixels; the deepest level needs more than one value per channel
FIELD_OF_VIEW = 200  # pixels, about: what one answer can depend on (five levels of two 3 x 3 convolutions)
FEW_STEPS = 200  # with fewer, touching cells are seldom told apart yet (benchmarks/README.md)
WARM_UP = 0.2  # share of the training during which the learning rate rises


def choose_crop(settings: Settings, device: torch.device, smallest: tuple[int, int]) -> tuple[int, int]:
    """CROP as (height, width), shrunk to the smallest training frame and to multiples of the network's stride."""
    if settings.crop != "auto":
        wanted = settings.crop_size()
    elif device.type == "cpu":  # small crops teach as much in less time; half a frame leaves room to vary
        wanted = min(CPU_CROP[0], smallest[0] // 2), min(CPU_CROP[1], smallest[1] // 2)
    else:
        wanted = GPU_CROP
    height, width = (max(LEAST_CROP, min(w, s) // STRIDE * STRIDE) for w, s in zip(wanted, smallest, strict=True))
    return height, width


def covering(area: int, crop: tuple[int, int]) -> int:
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
