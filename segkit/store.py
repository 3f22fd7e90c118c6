"""Decoded frames in flat arrays, from which whole frames and turned, zoomed crops are gathered on the device."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .data import Frame


@dataclass(frozen=True)
class Store:
    """Decoded frames, one after the other in two flat arrays, whatever their sizes.

    What there is one of per frame lies on the CPU, where crops are drawn, so that a GPU is never waited for.
    """

    frames: tuple[Frame, ...]
    pixels: Tensor  # (P,) int16, the bits of uint16, on the device that crops are cut on
    targets: Tensor  # (P,) uint8, there too
    start: Tensor  # (N,) int64, where each frame begins
    height: Tensor  # (N,) int64, pixels
    width: Tensor  # (N,) int64, pixels
    gain: Tensor  # (N,) float32
    bias: Tensor  # (N,) float32
    points: Tensor  # (N, POINTS, 2) int64
    cell_width: float  # median, pixels
    areas: np.ndarray  # (cells that do not touch the border,) int32, pixels
    foreground: float  # share of pixels inside cells
    hashes: tuple[str, ...]  # of the images, see images.hash_pixels

    def gather(self, index: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images and targets (0..1, 0 = background) at float coordinates.

        index: (B,) frames, on the CPU; y, x: (B, h, w) pixels; beyond the edge the frame is mirrored.
        Returns (B, 1, h, w) float32 twice: image bilinear, target nearest.
        """
        start, height, width, gain, bias = (
            t[index].to(y.device, non_blocking=True)[:, None, None]
            for t in (self.start, self.height, self.width, self.gain, self.bias))
        y, x = _mirror(y, height), _mirror(x, width)
        y0, x0 = y.floor(), x.floor()
        fy, fx = y - y0, x - x0
        y0, x0 = y0.long(), x0.long()
        y1, x1 = torch.minimum(y0 + 1, height - 1), torch.minimum(x0 + 1, width - 1)
        row0, row1 = start + y0 * width, start + y1 * width
        top = torch.lerp(self._value(row0 + x0), self._value(row0 + x1), fx)
        bottom = torch.lerp(self._value(row1 + x0), self._value(row1 + x1), fx)
        image = torch.lerp(top, bottom, fy) * gain + bias
        nearest = start + y.round().long() * width + x.round().long()
        return image[:, None], self.targets[nearest][:, None].float() / 255

    def _value(self, at: Tensor) -> Tensor:
        return self.pixels[at].int().bitwise_and(0xFFFF).float()

    def whole(self, index: list[int], stride: int) -> tuple[Tensor, Tensor]:
        """Frames of one size, unchanged, padded to a multiple of stride: (n, 1, H', W') twice."""
        height, width = int(self.height[index[0]]), int(self.width[index[0]])
        device = self.pixels.device
        y = torch.arange(-(-height // stride) * stride, dtype=torch.float32, device=device)
        x = torch.arange(-(-width // stride) * stride, dtype=torch.float32, device=device)
        shape = (len(index), len(y), len(x))
        return self.gather(torch.tensor(index), y[None, :, None].expand(shape), x[None, None, :].expand(shape))


def _mirror(t: Tensor, size: Tensor) -> Tensor:
    """Fold coordinates into 0..size-1 as a mirror at the outer pixels does."""
    period = (2 * (size - 1)).clamp(min=1)
    t = t.abs() % period
    return torch.minimum(torch.minimum(t, period - t), size - 1.0)
