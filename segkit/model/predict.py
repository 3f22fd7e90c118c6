"""Inference on one image."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from ..data.images import has_contrast, normalise
from ..devices import autocast, in_parts
from ..errors import SegkitError
from .postprocess import label_cells, relabel
from .unet import STRIDE, ModelInfo, UNet

POSTPROCESSING = 2  # raise it with every change that gives other labels for the same image and weights
TILE, MARGIN = 1024, 128  # pixels, multiples of STRIDE: tile size, and overlap on either side
MIRRORS = ((), (-2,), (-1,), (-2, -1))


class Segmentation(NamedTuple):
    """What the student sees in an image; every field has the image's height and width."""

    probability: np.ndarray  # float32 (H, W), that a pixel belongs to a cell
    mask: np.ndarray  # bool (H, W), equal to labels > 0
    labels: np.ndarray  # int32 (H, W), 0 = background, cells numbered from 1


class Maps(NamedTuple):
    """The network's prediction for an image, at the model's scale; distance is None for a model with masks only."""

    probability: np.ndarray  # float32 (h, w), the image's height and width times `scale`
    distance: np.ndarray | None  # float32 (h, w), 1 at a cell's core, 0 at its edge
    shape: tuple[int, ...]  # (H, W) of the image


def predict(model: UNet, images: Sequence[ArrayLike], *, scale: float = 1.0, flips: bool = False) -> list[Maps]:
    """The network's maps for images (H, W) of one size, of any dtype; see `segment`.

    The maps of an image without contrast are 0: normalised, it is a constant that no network was trained on.
    Raises SegkitError unless every image is 2-D, not empty and as large as the first.
    """
    if not 0.02 <= scale <= 50:
        raise SegkitError(f"scale is {scale}: a factor from 0.02 to 50 was needed")
    pictures = [np.asarray(image) for image in images]
    for picture in pictures:
        if picture.ndim != 2 or picture.size == 0 or picture.shape != pictures[0].shape:
            raise SegkitError(f"image has shape {picture.shape}: one picture of height x width was needed"
                              + (f", as large as the first {pictures[0].shape}" if len(pictures) > 1 else ""))
    x = torch.from_numpy(np.stack([normalise(p, model.info.normalisation) for p in pictures]))[:, None]  # (B, 1, H, W)
    if scale != 1:
        x = F.interpolate(x, [_scaled(n, scale) for n in x.shape[-2:]], mode="bilinear", antialias=True)
    maps = torch.stack([_tiled(model, x.flip(dims)).flip(dims) for dims in (MIRRORS if flips else MIRRORS[:1])]).mean(0)
    maps[[not has_contrast(picture) for picture in pictures]] = 0
    return [Maps(m[0], m[1] if len(m) > 1 else None, pictures[0].shape) for m in maps.numpy()]


def _scaled(size: int, scale: float) -> int:
    """The nearest whole number of pixels, or its neighbour where that is a multiple of STRIDE: no padding is needed.

    Cameras have such sizes, so that an image that was resized before comes back to its own pixels.
    """
    exact = size * scale
    near = (n for n in (math.floor(exact), math.ceil(exact)) if n % STRIDE == 0)
    return max(1, next(near, round(exact)))


def _tiled(model: UNet, x: Tensor) -> Tensor:
    """Probability and distance (B, 1 or 2, H, W), float32 on the CPU, for normalised images (B, 1, H, W)."""
    device = next(model.parameters()).device
    maps = torch.empty(len(x), model.info.outputs, *x.shape[-2:])
    rows, columns = (_spans(size, model.info.upsampling == "corners aligned") for size in x.shape[-2:])
    for top, bottom, first_row, last_row in rows:
        for left, right, first_column, last_column in columns:
            tile = x[..., top:bottom, left:right].numpy()
            padded = np.pad(tile, ((0, 0), (0, 0), (0, -tile.shape[-2] % STRIDE), (0, -tile.shape[-1] % STRIDE)),
                            mode="reflect")
            with torch.inference_mode(), autocast(device, model.precision):
                output = in_parts(model.eval(), torch.from_numpy(padded).to(device, memory_format=torch.channels_last))
                output = output[..., first_row - top:last_row - top, first_column - left:last_column - left].float()
                output[:, 0].sigmoid_()
            maps[..., first_row:last_row, first_column:last_column] = output.cpu()
    return maps


def _spans(size: int, align_corners: bool) -> list[tuple[int, int, int, int]]:
    """Tiles along an axis: the pixels that each reads (start, stop) and those that it predicts (from, to).

    Every tile starts at a multiple of the stride, so that the network pools the same pixels together as in the whole
    image. With aligned corners a prediction depends on the tile's size: as in the starting recipe, the first tile is
    the image cut to a multiple of the stride, and a second one, as large when it is padded, predicts the rest.
    """
    tile, margin = TILE, MARGIN
    if align_corners:
        tile, margin = max(size // STRIDE * STRIDE, min(size, STRIDE)), 0
    spans, answered = [], 0
    while answered < size:
        start = max(0, min(answered - margin, -(-(size - tile) // STRIDE) * STRIDE))
        stop = min(start + tile, size)
        to = size if stop == size else stop - margin
        spans.append((start, stop, answered, to))
        answered = to
    return spans


def segment(model: UNet, image: ArrayLike, *, scale: float = 1.0, flips: bool = False) -> Segmentation:
    """Outline the cells of one image.

    model: from `load_model`; image: (H, W), any size, any dtype, raw intensities. An image of over 1024 pixels is
    answered in overlapping tiles. scale: the factor that brings its cells to the training cells' width in pixels.
    flips: average the answers for the image and its three mirror images (four times the work).
    Returns probability, mask and labels of the image's size. A frame without cells gives empty ones.
    Raises SegkitError unless the image is two-dimensional.
    """
    return label(model.info, predict(model, [image], scale=scale, flips=flips)[0])


def label(info: ModelInfo, maps: Maps) -> Segmentation:
    """Post-process the network's maps, with the thresholds of this model; the result has the image's size.

    Cells are found at the model's scale, whose pixels the thresholds and areas are given in. Only then the labels are
    resized, by nearest neighbour, and the probability, smoothly.
    """
    probability = maps.probability
    labels = label_cells(probability, maps.distance, info.threshold, info.prominence, info.min_area)
    if labels.shape != maps.shape:
        nearest = ((np.arange(n) + 0.5) * (m / n) for n, m in zip(maps.shape, labels.shape, strict=True))
        labels = relabel(labels[np.ix_(*(position.astype(int) for position in nearest))])
        probability = F.interpolate(torch.from_numpy(probability)[None, None], maps.shape, mode="bilinear",
                                    antialias=True)[0, 0].numpy()
    return Segmentation(probability, labels > 0, labels)
