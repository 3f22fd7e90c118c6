"""The student at work: one image, or every frame of a dataset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import tifffile
import torch
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from .cells import CELL_COLUMNS, measure_cells
from .data import Frame, check_sizes, masks_path_in, read_pair
from .devices import autocast
from .errors import SegkitError
from .files import replacing
from .history import log
from .images import read_image
from .model import STRIDE, UNet
from .scores import dice, match_instances
from .targets import label_cells, normalise

MARKERS = (0.3, 0.4, 0.5, 0.6, 0.7)


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


def choose_marker(model: UNet, frames: Iterable[Frame], at_most: int = 20) -> UNet:
    """Set the distance above which a pixel is a cell's core to what gives the best panoptic quality on frames."""
    frames = list(frames)
    frames = frames[::-(-len(frames) // at_most)] if frames else []
    quality = np.zeros(len(MARKERS))
    for frame in frames:
        image, target = read_pair(frame)
        probability, distance = predict(model, image)
        for k, marker in enumerate(MARKERS):
            labels = label_cells(probability, distance, model.info.threshold, marker, model.info.min_area)
            quality[k] += match_instances(labels, target).panoptic_quality
    model.info = replace(model.info, marker=MARKERS[int(quality.argmax())])
    return model


def segment_dataset(model: UNet, frames: Iterable[Frame], out_dir: str | Path, *,
                    pixel_size_um: float | None = None) -> Path:
    """Segment every frame, with or without teacher masks, and measure its cells.

    Writes into out_dir: masks/EXPERIMENT_masks/PosXXX/PreprocessedPhaseMasks/MASK_*.tif (uint16 labels, in the
    users' own layout), cells.csv (a row per cell and frame) and, for frames with teacher labels, scores.csv.
    A frame that cannot be read is logged and listed in skipped.csv, and the rest goes on.
    pixel_size_um: um per pixel, for sizes in um and the TIFFs' resolution; None: pixels only.
    Returns the path of cells.csv. Raises SegkitError where no frame could be read or out_dir cannot be written.
    """
    out_dir, frames = Path(out_dir), list(frames)
    cells, scores, skipped = [], [], []
    for frame in tqdm(frames, desc="segmenting", unit="frame", leave=False):
        try:
            image = read_image(frame.image, frame.page)
            result = segment(model, image)
        except SegkitError as error:
            log.info("left out %s: %s", frame.name, error)
            skipped.append((frame.name, str(frame.image), str(error)))
            continue
        write_labels(masks_path_in(out_dir / "masks", frame), result.labels, pixel_size_um)
        cells.append(measure_cells(result.labels, frame, pixel_size_um))
        if frame.masks is not None:
            try:
                scores.append(score_frame(frame, result))
            except SegkitError as error:
                skipped.append((frame.name, str(frame.masks), str(error)))
    if frames and not cells:
        raise SegkitError(f"none of {len(frames)} frames could be read; the first: {skipped[0][2]}")
    table = pd.concat(cells, ignore_index=True) if cells else pd.DataFrame(columns=list(CELL_COLUMNS))
    for name, content in (("cells.csv", table), ("scores.csv", pd.DataFrame(scores)),
                          ("skipped.csv", pd.DataFrame(skipped, columns=["frame", "file", "reason"]))):
        if len(content) or name == "cells.csv":
            with replacing(out_dir / name) as temporary:
                content.to_csv(temporary, index=False, float_format="%.5g")
        else:
            (out_dir / name).unlink(missing_ok=True)
    return out_dir / "cells.csv"


def score_frame(frame: Frame, result: Segmentation) -> dict[str, object]:
    """Agreement with the teacher on one frame: Dice, panoptic quality, average precision, cell counts."""
    teacher = read_pair(frame)[1]
    check_sizes(frame.image.name, result.labels.shape, teacher.shape)
    labels = result.labels[:teacher.shape[0], :teacher.shape[1]]
    matched = match_instances(labels, teacher)
    return {"experiment": frame.experiment, "position": frame.position, "frame": frame.frame,
            "dice": dice(labels, teacher), "panoptic_quality": matched.panoptic_quality,
            "ap50": matched.average_precision, "ap75": match_instances(labels, teacher, 0.75).average_precision,
            "ap90": match_instances(labels, teacher, 0.9).average_precision,
            "cells": int(labels.max()), "teacher_cells": len(np.unique(teacher[teacher > 0]))}


def write_labels(path: Path, labels: np.ndarray, pixel_size_um: float | None = None) -> None:
    """Write labels as TIFF, uint16, with the pixel size where it is known (Fiji and napari read it)."""
    if labels.max() > 65535:
        raise SegkitError(f"{path.name}: {labels.max()} cells in one frame, and 16-bit labels hold 65535")
    per_cm = 1e4 / pixel_size_um if pixel_size_um else None
    with replacing(path) as temporary:
        tifffile.imwrite(temporary, labels.astype(np.uint16), compression="zlib",
                         resolution=(per_cm, per_cm) if per_cm else None, resolutionunit="CENTIMETER" if per_cm else None)
