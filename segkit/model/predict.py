"""Inference on one image: tiles, scale, mirror images."""

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy import ndimage
from skimage.segmentation import expand_labels
from torch import Tensor

from ..data.images import blank_pixels, has_contrast, normalise
from ..devices import autocast, in_parts
from ..errors import SegkitError
from .baseline import BaselineUNet
from .postprocess import distance_target, label_cells, relabel
from .unet import PAIRS, STRIDE, ModelInfo, UNet

POSTPROCESSING = 6  # version; raise it where labels, or the quality, of the same image and weights change
TILE, MARGIN = 1024, 128  # pixels, multiples of STRIDE: tile size, and overlap on either side
MIRRORS = ((), (-2,), (-1,), (-2, -1))  # axes to flip
MIN_SCALE, MAX_SCALE = 0.02, 50
LADDER = tuple(2 ** (step / 2) for step in range(-4, 4))  # 0.25 to 2.8: the scales that scale="auto" tries
TRIED = 256  # pixels: side of the part of an image that is tried at every scale, as the network sees it
MIN_CELLS = 5  # fewer cells do not show how wide cells are
SAME_WIDTH = 2 ** 0.25  # a smaller factor, up to half a step of the ladder, is not worth a change of scale
FAINT = 0.1  # of a map; less is background
MIN_AGREEMENT, LOSS = 0.8, 0.02  # of the maps: what a scale needs, and how much less than at the first guess it may be


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
    affinity: np.ndarray | None = None  # float32 (pairs, h, w), see postprocess.join_fragments; version 1.1 has none


def segment(model: UNet, image: ArrayLike, *, scale: float | str = 1.0, flips: bool = False) -> Segmentation:
    """Segment the cells of one image.

    Parameters
    ----------
    model : UNet
        From `load_model`.
    image : array_like, (H, W)
        Raw intensities, any size, any dtype. An image of over 1024 pixels is predicted in overlapping tiles.
    scale : float or "auto"
        Factor that brings the image's cells to the width of the training cells; "auto" finds it, see `estimate_scale`.
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
    if scale == "auto":
        scale = estimate_scale(model, [np.asarray(image)]) or 1.0
    return label(model.info, predict(model, [image], scale=scale, flips=flips)[0])


def predict(model: UNet, images: Sequence[ArrayLike], *, scale: float | str = 1.0, flips: bool = False) -> list[Maps]:
    """The network's maps for images (H, W) of one size, of any dtype; see `segment`.

    An image without contrast is blank: normalised, it is a constant, and the training data hold none.
    Raises SegkitError unless every image is 2-D, not empty and as large as the first.
    """
    # checked here, before torch gives an error that no user understands
    if isinstance(scale, str) or not MIN_SCALE <= scale <= MAX_SCALE:
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
    maps = torch.stack([_predict_mirrored(model, x, axes) for axes in (MIRRORS if flips else MIRRORS[:1])]).mean(0)
    blank = [unseen | (not has_contrast(array, unseen)) for array, unseen in zip(arrays, blank, strict=True)]
    return [_as_maps(of_image, shape, unseen) for of_image, unseen in zip(maps.numpy(), blank, strict=True)]


def _as_maps(outputs: np.ndarray, shape: tuple[int, ...], blank: np.ndarray | bool = False) -> Maps:
    """Name the network's outputs (1 or more, h, w)."""
    distance = outputs[1] if len(outputs) > 1 else None
    return Maps(outputs[0], distance, shape, blank, outputs[2:] if len(outputs) > 2 else None)


def _predict_mirrored(model: UNet, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """`_predict_tiles` of a mirror image, mirrored back; one mirror exchanges the pairs along the two diagonals."""
    maps = _predict_tiles(model, x.flip(axes)).flip(axes)
    if len(axes) == 1 and maps.shape[1] > 2:
        maps[:, 2:] = maps[:, [2 + PAIRS.index((y, -x) if x * y else (y, x)) for y, x in PAIRS]]
    return maps


def _scaled(size: int, scale: float) -> int:
    """The nearest whole number of pixels, or its neighbour if that is a multiple of STRIDE and needs no padding.

    Many cameras have such sizes, so a resized image often comes back to its original pixels.
    """
    exact = size * scale
    near = (n for n in (math.floor(exact), math.ceil(exact)) if n % STRIDE == 0)
    return max(1, next(near, round(exact)))


def _predict_tiles(model: UNet, x: Tensor) -> Tensor:
    """The outputs (B, outputs, H, W), logits as probabilities, float32 on the CPU, of images (B, 1, H, W)."""
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
            inner[:, 2:].sigmoid_()
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


def find_cells(info: ModelInfo, maps: Maps) -> np.ndarray:
    """Labels int32 (h, w) by this model's thresholds, at its scale: that of its thresholds and areas."""
    return label_cells(maps.probability, maps.distance, info.threshold, info.prominence, info.min_area, maps.affinity)


def label(info: ModelInfo, maps: Maps, cells: np.ndarray | None = None) -> Segmentation:
    """The cells of the maps (`find_cells`, where they are known) in the image's size.

    Probabilities are resized bilinearly, labels by nearest neighbour up to where the probability falls below the
    threshold.
    """
    probability, labels = maps.probability, find_cells(info, maps) if cells is None else cells
    if labels.shape != maps.shape:  # (h, w) -> (H, W)
        nearest = [((np.arange(n) + 0.5) * (m / n)).astype(int) for n, m in zip(maps.shape, labels.shape, strict=True)]
        resized = F.interpolate(torch.from_numpy(probability)[None, None], maps.shape, mode="bilinear", antialias=True)
        # cells end where the probability does, not with the network's pixels; those of version 1.1 as they did then
        grow = 0 if maps.affinity is None else max(1, labels.shape[0] / maps.shape[0])
        labels, probability = expand_labels(labels, grow)[np.ix_(*nearest)], resized[0, 0].numpy()
        labels[(probability <= info.threshold) & (grow > 0)] = 0
    labels = relabel(np.where(maps.blank, 0, labels))
    return Segmentation(np.where(maps.blank, 0, probability), labels > 0, labels)


def agreement(maps: Maps, cells: np.ndarray) -> tuple[float, np.ndarray]:
    """How well distance and foreground agree, 0 to 1, without labels; and the cells' widths (n,), pixels.

    cells: int (h, w), those found in the maps. Their distances are compared with the distance map, wherever either map
    or the cells show more than background. Cells that are missed, split or merged make them differ.
    """
    target, widths = distance_target(cells)
    distance = np.zeros(cells.shape, np.float32) if maps.distance is None else np.clip(maps.distance, 0, 1)
    seen = (target > 0) | (distance > FAINT) | (maps.probability > FAINT)
    error = np.abs(target[seen] / np.float32(255) - distance[seen])
    return 1 - float(error.mean()) if len(error) else 1.0, widths


def estimate_scale(model: UNet, images: Iterable[np.ndarray], guess: float = 1.0) -> float | None:
    """The factor that brings the cells of these images, (H, W) each, to the width of the model's training cells.

    Returns the guess, or 1, where the factor is within 19 % of it, and the guess where no other scale suits the cells
    better; None where too few cells are found, or the width is unknown.

    Notes
    -----
    The network predicts the part of each image with most contrast at scales from 0.25 to 2.8. Where cells look as those
    of the training do, its maps agree best (figures in benchmarks/README.md).
    """
    inputs = [normalise(image, model.info.normalisation) for image in images if image.ndim == 2 and image.size]
    if not inputs or not model.info.cell_width:
        return None
    # most images are of the training's kind: a smaller and a larger scale suffice to tell
    smaller, usual, larger = (_try_scale(model, inputs, guess * step) for step in (LADDER[3], 1, LADDER[5]))
    if usual[0] >= max(smaller[0], larger[0], MIN_AGREEMENT) and _alike(usual[1], guess):
        return guess
    # the scale at which the maps agree best; noise, and cells that are split, look equally wide at every scale, so that
    # the factors that follow from neighbouring scales differ
    tries = [_try_scale(model, inputs, scale) for scale in LADDER]
    best = tries.index(max(tries))
    value, factor = tries[best]
    if sum(other > 0 and _alike(other, factor) for _, other in tries[max(best - 1, 0):best + 2]) < 2:
        return guess if usual[0] else None
    # the top of a parabola through it and its neighbours (the last scale is its own neighbour) lies a little too high,
    # the factor that follows from the width of the cells too low where they have other widths than the training's
    below, above = (tries[min(max(k, 0), len(tries) - 1)][0] for k in (best - 1, best + 1))
    top = LADDER[best] * 2 ** ((below - above) / (below + above - 2 * value - 1e-9) / 4)
    found = math.sqrt(top * factor)
    # a height that needs no padding: a resized image of a camera often comes back to its original pixels
    height = len(inputs[0])
    found = max(8, round(height * found / STRIDE)) * STRIDE / height if height * found > 7 * STRIDE else found
    found = next((known for known in (guess, 1.0) if _alike(found, known)), round(found, 4))
    suits = found == guess or _try_scale(model, inputs, found)[0] >= max(usual[0] - LOSS, MIN_AGREEMENT)
    return found if suits else guess


def _try_scale(model: UNet, inputs: Sequence[np.ndarray], scale: float) -> tuple[float, float]:
    """Agreement of the maps, and the factor that follows from the cells' width; 0, 0 where too few are found."""
    values, widths = [], []
    for image in inputs:
        # where it is steepest: cells are likely there
        window = densest_window(ndimage.gaussian_gradient_magnitude(image, 2.0), round(TRIED / scale))
        part = torch.from_numpy(image[window])[None, None]
        x = F.interpolate(part, [_scaled(n, scale) for n in part.shape[-2:]], mode="bilinear", antialias=True)
        maps = _as_maps(_predict_tiles(model, x)[0].numpy(), x.shape[-2:])
        value, found = agreement(maps, find_cells(model.info, maps))
        values += [value] * len(found)
        widths += found.tolist()
    if len(widths) < MIN_CELLS:
        return 0.0, 0.0
    middle = np.sort(widths)[len(widths) // 4:len(widths) - len(widths) // 4]
    return float(np.mean(values)), scale * model.info.cell_width / float(middle.mean())


def _alike(factor: float, other: float) -> bool:
    return 1 / SAME_WIDTH <= factor / other <= SAME_WIDTH


def densest_window(weight: np.ndarray, side: int) -> tuple[slice, slice]:
    """The window of up to side x side pixels with the largest mean of weight, float (H, W)."""
    height, width = (min(side, n) for n in weight.shape)
    mean = ndimage.uniform_filter(weight, (height, width))
    # without the windows that reach over the border
    rows, columns = (slice(n // 2, m - n + n // 2 + 1) for n, m in zip((height, width), weight.shape, strict=True))
    top, left = np.unravel_index(mean[rows, columns].argmax(), mean[rows, columns].shape)
    return slice(top, top + height), slice(left, left + width)
