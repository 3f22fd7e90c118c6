"""Inference on one image: tiles, scale, mirror images."""

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from ..data.images import blank_pixels, has_contrast, normalise
from ..devices import autocast, in_parts
from ..errors import SegkitError
from .baseline import BaselineUNet
from .postprocess import label_cells, relabel
from .unet import STRIDE, ModelInfo, UNet

POSTPROCESSING = 3  # version; raise it with every change that gives other labels for the same image and weights
TILE, MARGIN = 1024, 128  # pixels, multiples of STRIDE: tile size, and overlap on either side
MIRRORS = ((), (-2,), (-1,), (-2, -1))  # axes to flip
MIN_SCALE, MAX_SCALE = 0.02, 50


class Segmentation(NamedTuple):
    """Cells found in an image (H, W); every field has its height and width."""

    probability: np.ndarray  # float32 (H, W), that a pixel belongs to a cell
    mask: np.ndarray  # bool (H, W), equal to labels > 0
    labels: np.ndarray  # int32 (H, W), 0 = background, cells numbered from 1


class Maps(NamedTuple):
    """The network's prediction for an image, at the model's scale."""

    probability: np.ndarray  # float32 (h, w), the image's height and width times `scale`
    distance: np.ndarray | None  # float32 (h, w), 1 at a cell's core, 0 at its edge; the baseline has none
    shape: tuple[int, ...]  # (H, W) of the image
    blank: np.ndarray | bool = False  # bool (H, W), see blank_pixels; all of an image without contrast


def segment(model: UNet, image: ArrayLike, *, scale: float = 1.0, flips: bool = False) -> Segmentation:
    """Segment the cells of one image.

    Parameters
    ----------
    model : UNet
        From `load_model`.
    image : array_like, (H, W)
        Raw intensities, any size, any dtype. An image of over 1024 pixels is predicted in overlapping tiles.
    scale : float
        Factor that brings the image's cells to the width of the training cells.
    flips : bool
        Average the predictions for the image and its three mirror images (four times the work).

    Returns
    -------
    Segmentation
        probability, float32; mask, bool; labels, int32; (H, W) each. Where nothing is seen (without contrast, not
        finite, or drawn over, as borders and scale bars are) all are 0.

    Raises
    ------
    SegkitError
        If the image is not two-dimensional, or scale is not between 0.02 and 50.
    """
    return label(model.info, predict(model, [image], scale=scale, flips=flips)[0])


def predict(model: UNet, images: Sequence[ArrayLike], *, scale: float = 1.0, flips: bool = False) -> list[Maps]:
    """The network's maps for images (H, W) of one size, of any dtype; see `segment`.

    An image without contrast is blank: normalised, it is a constant, and the training data hold none.
    Raises SegkitError unless every image is 2-D, not empty and as large as the first.
    """
    # checked here, before torch gives an error that no user understands
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise SegkitError(f"scale is {scale}: a factor from {MIN_SCALE} to {MAX_SCALE} was needed")
    arrays = [np.asarray(image) for image in images]
    shape = arrays[0].shape
    for array in arrays:
        if array.ndim != 2 or array.size == 0 or array.shape != shape:
            raise SegkitError(f"image has shape {array.shape}: height x width, the same for all, was needed")

    # intensities and cell width as in the training
    blank = [blank_pixels(array) for array in arrays]
    scaled = [normalise(array, model.info.normalisation, unseen) for array, unseen in zip(arrays, blank, strict=True)]
    x = torch.from_numpy(np.stack(scaled))[:, None]
    if scale != 1:  # (B, 1, H, W) -> (B, 1, h, w)
        x = F.interpolate(x, [_scaled(n, scale) for n in shape], mode="bilinear", antialias=True)

    # a flipped image is predicted, and its maps are flipped back
    mirrors = MIRRORS if flips else MIRRORS[:1]
    maps = torch.stack([_predict_tiles(model, x.flip(axes)).flip(axes) for axes in mirrors]).mean(0)
    blank = [unseen | (not has_contrast(array, unseen)) for array, unseen in zip(arrays, blank, strict=True)]
    return [Maps(of_image[0], of_image[1] if len(of_image) > 1 else None, shape, unseen)
            for of_image, unseen in zip(maps.numpy(), blank, strict=True)]  # (1 or 2, h, w) each


def _scaled(size: int, scale: float) -> int:
    """The nearest whole number of pixels, or its neighbour if that is a multiple of STRIDE and needs no padding.

    Many cameras have such sizes, so a resized image often comes back to its original pixels.
    """
    exact = size * scale
    near = (n for n in (math.floor(exact), math.ceil(exact)) if n % STRIDE == 0)
    return max(1, next(near, round(exact)))


def _predict_tiles(model: UNet, x: Tensor) -> Tensor:
    """Probability and distance (B, 1 or 2, H, W), float32 on the CPU, for normalised images (B, 1, H, W)."""
    device = next(model.parameters()).device
    maps = torch.empty(len(x), model.info.outputs, *x.shape[-2:])
    rows, columns = (_spans(size, isinstance(model, BaselineUNet)) for size in x.shape[-2:])
    for (top, bottom, first_row, last_row), (left, right, first_column, last_column) in product(rows, columns):
        # NumPy's reflection, unlike torch's, also works where the padding is wider than the image
        tile = x[..., top:bottom, left:right].numpy()
        padding = [(0, 0), (0, 0), (0, -tile.shape[-2] % STRIDE), (0, -tile.shape[-1] % STRIDE)]
        padded = torch.from_numpy(np.pad(tile, padding, mode="reflect"))  # multiples of STRIDE
        with torch.inference_mode(), autocast(device, model.precision):
            output = in_parts(model.eval(), padded.to(device, memory_format=torch.channels_last))
            # only the inner part: near the tile's edge the network sees too little of the image
            inner = output[..., first_row - top:last_row - top, first_column - left:last_column - left].float()
            inner[:, 0].sigmoid_()
        maps[..., first_row:last_row, first_column:last_column] = inner.cpu()
    return maps


def _spans(size: int, align_corners: bool) -> list[tuple[int, int, int, int]]:
    """Tiles along an axis: the pixels that each reads (start, stop) and those that it predicts (from, to).

    Every tile starts at a multiple of STRIDE, so that the network pools the same pixels as in the whole image. With
    aligned corners a prediction depends on the tile's size. As in the starting recipe, the first tile is then the image
    cropped to a multiple of STRIDE. A second tile, padded to the same size, predicts the rest.
    """
    tile, margin = TILE, MARGIN
    if align_corners:
        tile, margin = max(size // STRIDE * STRIDE, min(size, STRIDE)), 0
    spans, done = [], 0
    while done < size:
        last_start = math.ceil((size - tile) / STRIDE) * STRIDE
        start = max(0, min(done - margin, last_start))
        stop = min(start + tile, size)
        to = size if stop == size else stop - margin
        spans.append((start, stop, done, to))
        done = to
    return spans


def label(info: ModelInfo, maps: Maps) -> Segmentation:
    """Post-process the network's maps with this model's thresholds; the result has the image's size.

    Cells are found at the model's scale, the scale of its thresholds and areas. Then labels are resized by nearest
    neighbour, probabilities bilinearly.
    """
    probability = maps.probability
    labels = label_cells(probability, maps.distance, info.threshold, info.prominence, info.min_area)
    if labels.shape != maps.shape:  # (h, w) -> (H, W)
        nearest = [((np.arange(n) + 0.5) * (m / n)).astype(int) for n, m in zip(maps.shape, labels.shape, strict=True)]
        labels = labels[np.ix_(*nearest)]
        resized = F.interpolate(torch.from_numpy(probability)[None, None], maps.shape, mode="bilinear", antialias=True)
        probability = resized[0, 0].numpy()
    labels = relabel(np.where(maps.blank, 0, labels))
    return Segmentation(np.where(maps.blank, 0, probability), labels > 0, labels)
