"""The starting recipe, written afresh from its description, to compare with.

Every crop decoded from TIFF again, in the main process, min-max normalised by itself, flipped, turned by up to 15
degrees and zoomed by 0.9 to 1.1, each with probability 0.5; batch norm; float32, contiguous; BCE on a sigmoid; AdamW,
learning rate 1e-4, no schedule. Crops are made to fit the frames. Cells are connected components of the mask.

Beside it, segkit trains in a process of its own (`apart`): its setting of the C library's memory would speed up others.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from segkit.data.dataset import Frame, read_pair
from segkit.data.images import read_header
from segkit.devices import pick_device
from segkit.model.baseline import BASELINE, BaselineUNet
from segkit.settings import Settings
from segkit.training.frames import choose_crop


def apart() -> ProcessPoolExecutor:
    """A process of its own, to hand functions to."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def crop_of(settings: Settings, frames: Sequence[Frame]) -> tuple[int, int]:
    """The crops' (height, width), pixels, that segkit chooses for these training frames."""
    sizes = [read_header(frame.image).size for frame in frames]
    smallest = min(h for h, _ in sizes), min(w for _, w in sizes)
    return choose_crop(settings, pick_device(settings.device), smallest)


def plain_crop(image: np.ndarray, labels: np.ndarray, size: tuple[int, int], rng: np.random.Generator,
               normalise_crop: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """One crop of the starting recipe: image and mask, float32 (h, w)."""
    y, x = (rng.integers(0, extent - s + 1) for extent, s in zip(image.shape, size, strict=True))
    image, mask = image[y:y + size[0], x:x + size[1]], (labels[y:y + size[0], x:x + size[1]] > 0).astype(np.float32)
    if normalise_crop:
        image = (image - image.min()) / max(float(image.max() - image.min()), 1e-6)
    for axis in (0, 1):
        if rng.random() < 0.5:
            image, mask = np.flip(image, axis), np.flip(mask, axis)
    if rng.random() < 0.5:
        angle, zoom = np.deg2rad(rng.uniform(-15, 15)), rng.uniform(0.9, 1.1)
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
        centre = (np.array(size) - 1) / 2
        image, mask = (ndimage.affine_transform(a, matrix, centre - matrix @ centre, order=1, mode="reflect")
                       for a in (image, mask))
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


class PlainUNet(BaselineUNet):
    """The starting recipe's network: the same layers, corners aligned, skip connections joined by a copy."""

    def __init__(self) -> None:
        super().__init__(BASELINE)
        self.requires_grad_()  # the biases too, as it had them

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.down[0](x)]
        for block in self.down[1:]:
            skips.append(block(F.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for block in self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = torch.cat([skips.pop(), x], dim=1)
            for layer in cast(nn.Sequential, block):
                x = layer(x)
        return self.out(x)


class PlainTraining:
    """The starting recipe's training: `step()` sees one more batch; `network` can be given to `segkit.segment`."""

    def __init__(self, frames: Sequence[Frame], crop: tuple[int, int], batch: int, device: torch.device,
                 seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.frames, self.crop, self.batch, self.device = frames, crop, batch, device
        self.rng = np.random.default_rng(seed)
        self.network: Any = PlainUNet().to(device)  # stands where `segkit.segment` expects a UNet
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=1e-4, weight_decay=1e-2)

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """One crop: image and mask (h, w)."""
        return plain_crop(*read_pair(self.frames[int(self.rng.integers(len(self.frames)))]), self.crop, self.rng)

    def loss(self, output: Tensor, masks: Tensor) -> Tensor:
        return F.binary_cross_entropy(output.sigmoid(), masks)

    def step(self) -> None:
        self.network.train()
        drawn = [self.draw() for _ in range(self.batch)]
        images, masks = (torch.from_numpy(np.stack(a))[:, None].to(self.device) for a in zip(*drawn, strict=True))
        loss = self.loss(self.network(images), masks.clamp(0, 1))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        float(loss.detach())  # waits for the device
