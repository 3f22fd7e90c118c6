"""The student at work on a whole dataset: label files, cells and scores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from tqdm.auto import tqdm

from .cells import CELL_COLUMNS, measure_cells
from .data import Frame, masks_path_in
from .errors import SegkitError
from .files import replacing
from .history import log
from .images import read_image
from .judge import score_frame
from .model import UNet
from .segmentation import segment


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


def write_labels(path: Path, labels: np.ndarray, pixel_size_um: float | None = None) -> None:
    """Write labels as TIFF, uint16, with the pixel size where it is known (Fiji and napari read it)."""
    if labels.max() > 65535:
        raise SegkitError(f"{path.name}: {labels.max()} cells in one frame, and 16-bit labels hold 65535")
    per_cm = 1e4 / pixel_size_um if pixel_size_um else None
    with replacing(path) as temporary:
        tifffile.imwrite(temporary, labels.astype(np.uint16), compression="zlib",
                         resolution=(per_cm, per_cm) if per_cm else None,
                         resolutionunit="CENTIMETER" if per_cm else None)
