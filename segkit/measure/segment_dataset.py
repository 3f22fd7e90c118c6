"""The student at work on a whole dataset: label files, cells and scores."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ..data.dataset import Dataset, Frame, frames_of
from ..errors import SegkitError
from ..files import locked, log, logging_to, read_table, write_table
from ..model.unet import UNet
from .cells import CELL_COLUMNS
from .dask_backend import segment_on_cluster
from .pipeline import FrameResult, InferenceOptions, segment_frames

WIDTH_FRAMES = 20  # about so many frames are looked at to compare the cells' width with the training's
MIN_DICE = 0.5  # mean Dice below which one is warned of the student
WIDTH_RATIO = 1.4  # beyond this factor of the training cells' width the student is warned of


def segment_dataset(model: UNet, frames: Dataset | Iterable[Frame], out_dir: str | Path, *,
                    pixel_size_um: float | Mapping[str, float] | None = None, scale: float = 1.0,
                    flips: bool = False, cluster: str = "") -> Path:
    """Segment every frame, or every frame of a dataset, with or without teacher masks, and measure its cells.

    Writes into out_dir: masks/EXPERIMENT_masks/PosXXX/PreprocessedPhaseMasks/MASK_*.tif (uint16 labels, in the
    users' own layout), cells.csv (a row per cell and frame), frames.csv (a row per segmented frame) and, for frames
    with teacher labels, scores.csv.
    Interrupted and called again, it goes on: a frame whose label file this model made from the same image is only
    measured anew. A frame that cannot be read is logged and listed in skipped.csv, and the rest goes on.
    pixel_size_um: um per pixel, one for all or by experiment, for sizes in um and the TIFFs' resolution; None: pixels
    only. scale, flips: see `segment`; a warning is given where the cells are not as wide as the training's.
    cluster: where the work is done, as CLUSTER in Settings; see cluster.segment_on_cluster.
    Returns the path of cells.csv. Raises SegkitError where frames are something else, no frame could be read, out_dir
    cannot be written, another process writes into it, or the kernel is interrupted.
    """
    out_dir, frames = Path(out_dir), frames_of(frames)
    width_of = frozenset(f.name for f in frames[::max(1, len(frames) // WIDTH_FRAMES)])
    options = InferenceOptions(pixel_size_um, scale, flips, width_of)
    with locked(out_dir):
        return _segment(model, frames, out_dir, options, cluster)


def _segment(model: UNet, frames: Sequence[Frame], out_dir: Path, options: InferenceOptions, cluster: str) -> Path:
    done: list[FrameResult] = []
    results = (segment_on_cluster(cluster, model, frames, out_dir, options) if cluster else
               segment_frames(model, frames, out_dir, options))
    with logging_to(out_dir / "run.log"), closing(results):
        try:
            for result in tqdm(results, total=len(frames), desc="segmenting", unit="frame", leave=False):
                done.append(result)
        except KeyboardInterrupt:
            raise SegkitError(f"interrupted: {len(done)} of {len(frames)} frames are segmented in {out_dir}; "
                              "run this again to go on") from None
        skipped, scores = [d.skipped for d in done if d.skipped], [d.scores for d in done if d.scores]
        cells = [d.cells for d in done if d.cells is not None]
        for name, _, reason in skipped:
            log.info("left out %s: %s", name, reason)
        log.info("%d of %d frames segmented with the student of run %s, trained on %s", len(cells), len(frames),
                 *(model.info.settings.get(name, "?") for name in ("RUN", "DATASET_PATH")))
        widths = np.concatenate([np.zeros(0), *(d.widths for d in done)])
        for warning_text in (width_warning(model, widths, options.scale), dice_warning(scores)):
            if warning_text:
                log.info(warning_text)
                warnings.warn(warning_text, stacklevel=3)
    if frames and not cells:
        raise SegkitError(f"none of {len(frames)} frames could be read; the first: {skipped[0][2]}")
    table = pd.concat(cells, ignore_index=True) if cells else pd.DataFrame(columns=list(CELL_COLUMNS))
    write_table(out_dir / "cells.csv", table)
    seen = [(f.experiment, f.position, f.frame, len(d.cells)) for f, d in zip(frames, done, strict=True)
            if d.cells is not None]
    write_table(out_dir / "frames.csv", pd.DataFrame(seen, columns=["experiment", "position", "frame", "cells"]))
    for name, content in (("scores.csv", pd.DataFrame(scores)),
                          ("skipped.csv", pd.DataFrame(skipped, columns=["frame", "file", "reason"]))):
        if len(content):
            write_table(out_dir / name, content)
        else:
            (out_dir / name).unlink(missing_ok=True)
    return out_dir / "cells.csv"


def segmented_frames(frames: Iterable[Frame], run_dir: str | Path) -> list[Frame]:
    """The frames that the run's cells.csv covers, also those without any cell: its frames.csv names them.

    A label file alone says less: it may be older than the table, or newer where a segmenting was interrupted.
    """
    path = Path(run_dir) / "frames.csv"
    table = read_table(path) if path.is_file() else pd.DataFrame(columns=["experiment", "position", "frame"])
    seen = set(zip(table["experiment"], table["position"], table["frame"], strict=True))
    return [f for f in frames if (*f.unit, f.frame) in seen]


def width_warning(model: UNet, widths: np.ndarray, scale: float = 1.0) -> str:
    """What is wrong with the width of the cells that were found (pixels, each), compared with the training's, if it is.

    A student knows cells of about the width that it was taught; others it cuts up, merges or does not see.
    """
    known = model.info.cell_width
    if not known or len(widths) < 5:
        return ""
    found = float(np.median(widths)) * scale
    if 1 / WIDTH_RATIO <= found / known <= WIDTH_RATIO:
        return ""
    return (f"the cells found are {found / scale:.0f} pixels wide (median), the student was taught on cells of "
            f"{known:.0f}: look at the outlines in 04_inference (report.html), and try "
            f"SCALE={scale * known / found:.2f}")


def dice_warning(scores: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong where the student agrees little with the teacher's masks (rows of scores.csv), if it is."""
    if not scores or (mean := float(np.mean([row["dice"] for row in scores]))) >= MIN_DICE:
        return ""
    return (f"the student and the teacher's masks agree little: mean Dice {mean:.2f} over {len(scores)} frame(s). "
            "Look at the outlines in 04_inference (report.html); images of another kind need a student of their own")
