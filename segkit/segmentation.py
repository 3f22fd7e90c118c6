"""The student at work on one image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from .devices import autocast
from .errors import SegkitError
from .model import STRIDE, UNet
from .targets import label_cells, normalise


class Segmentation(NamedTuple):
    """What the student sees in an image; every field has the image's height and width."""

    probability: np.ndarray  # float32 (H, W), that a pixel belongs to a cell
    mask: np.ndarray  # bool (H, W), equal to labels > 0
    labels: np.ndarray  # int32 (H, W), 0 = background, cells numbered from 1


def predict(model: UNet, image: ArrayLike) -> tuple[np.ndarray, np.ndarray | None]:
    """The network's maps for an image (H, W) of any size and dtype: probability and distance, float32 (H, W).

    The distance is None for a model with masks only. Raises SegkitError unless the image is 2-D and not empty.
    """
    image = np.asarray(image)
    if image.ndim != 2 or image.size == 0:
        raise SegkitError(f"image has shape {image.shape}: one picture of height x width was needed")
    height, width = image.shape
    padded = np.pad(normalise(image, model.info.normalisation), ((0, -height % STRIDE), (0, -width % STRIDE)),
                    mode="reflect")
    device = next(model.parameters()).device
    x = torch.from_numpy(padded)[None, None].to(device, memory_format=torch.channels_last)  # (1, 1, H', W')
    with torch.inference_mode(), autocast(device):
        output = model.eval()(x)[0, :, :height, :width].float()
    return output[0].sigmoid().cpu().numpy(), output[1].cpu().numpy() if len(output) > 1 else None


def segment(model: UNet, image: ArrayLike) -> Segmentation:
    """Outline the cells of one image.

    model: from `load_model`; image: (H, W), any size, any dtype, raw intensities.
    Returns probability, mask and labels of the image's size. A frame without cells gives empty ones.
    Raises SegkitError unless the image is two-dimensional.
    """
    probability, distance = predict(model, image)
    info = model.info
    labels = label_cells(probability, distance, info.threshold, info.marker, info.min_area)
    return Segmentation(probability, labels > 0, labels)
