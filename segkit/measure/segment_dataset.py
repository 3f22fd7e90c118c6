"""Inference on a whole dataset: label files, cells and scores."""

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

WIDTH_FRAMES = 20  # frames, about, whose cells' width is compared with the training cells'
MIN_DICE = 0.5  # a lower mean Dice gives a warning
MAX_WIDTH_RATIO = 1.4  # a larger factor between the cells' width and the training cells' gives a warning


def segment_dataset(model: UNet, frames: Dataset | Iterable[Frame], out_dir: str | Path, *,
                    pixel_size_um: float | Mapping[str, float] | None = None, scale: float = 1.0,
                    flips: bool = False, cluster: str = "") -> Path:
    """Segment the frames of a dataset, with or without teacher masks, and measure their cells.

    Parameters
    ----------
    model : UNet
        From `load_model`.
    frames : Dataset or iterable of Frame
    out_dir : str or Path
        Gets masks/EXPERIMENT_masks/PosXXX/PreprocessedPhaseMasks/MASK_*.tif (uint16 labels, in the users' own layout),
        cells.csv (a row per cell and frame), frames.csv (a row per segmented frame), scores.csv (a row per frame with
        teacher labels) and skipped.csv (frames that cannot be read, with the reason).
    pixel_size_um : float or mapping, optional
        um per pixel, one for all or by experiment, for sizes in um and the TIFFs' resolution.
    scale, flips
        See `segment`. A warning tells where the cells are not as wide as the training cells.
    cluster : str
        Where to compute: "" is this process; see dask_backend.segment_on_cluster.

    Returns
    -------
    Path
        Of cells.csv.

    Raises
    ------
    SegkitError
        If `frames` holds anything but frames, no frame can be read, out_dir cannot be written, another process writes
        into it, or the kernel is interrupted.

    Notes
    -----
    After an interruption the next call continues: a frame is only measured if this model made its label file from the
    same image.
    """
    out_dir, frames = Path(out_dir), frames_of(frames)
    width_of = frozenset(f.name for f in frames[::max(1, len(frames) // WIDTH_FRAMES)])
    options = InferenceOptions(pixel_size_um, scale, flips, width_of)
    with locked(out_dir), logging_to(out_dir / "run.log"):
        results = _segment(model, frames, out_dir, options, cluster)
        _report(model, results, scale)
        _write_tables(frames, results, out_dir)
    return out_dir / "cells.csv"


def _segment(model: UNet, frames: Sequence[Frame], out_dir: Path, options: InferenceOptions,
             cluster: str) -> list[FrameResult]:
    """The result of every frame; a progress bar while they are computed."""
    results = (segment_on_cluster(cluster, model, frames, out_dir, options) if cluster else
               segment_frames(model, frames, out_dir, options))
    done: list[FrameResult] = []
    try:
        with closing(results):
            done.extend(tqdm(results, total=len(frames), desc="segmenting", unit="frame", leave=False))
    except KeyboardInterrupt:
        raise SegkitError(f"interrupted: {len(done)} of {len(frames)} frames are segmented in {out_dir}; "
                          "run this again to continue") from None
    return done


def _report(model: UNet, results: Sequence[FrameResult], scale: float) -> None:
    """Log how many frames were segmented, which were left out, and why the student may not fit them."""
    for result in results:
        if result.skipped:
            log.info("left out %s: %s", result.skipped[0], result.skipped[2])
    segmented = sum(result.cells is not None for result in results)
    run, dataset_path = (model.info.settings.get(name, "?") for name in ("RUN", "DATASET_PATH"))
    log.info("%d of %d frames segmented with the student of run %s, trained on %s", segmented, len(results), run,
             dataset_path)
    widths = np.concatenate([np.zeros(0), *(result.widths for result in results)])
    scores = [result.scores for result in results if result.scores]
    for text in filter(None, (width_warning(model, widths, scale), dice_warning(scores))):
        log.info(text)
        warnings.warn(text, stacklevel=3)


def _write_tables(frames: Sequence[Frame], results: Sequence[FrameResult], out_dir: Path) -> None:
    """Write cells.csv and frames.csv, and scores.csv and skipped.csv where they have rows."""
    skipped = pd.DataFrame([r.skipped for r in results if r.skipped], columns=["frame", "file", "reason"])
    segmented = [(f, r.cells) for f, r in zip(frames, results, strict=True) if r.cells is not None]
    if frames and not segmented:
        raise SegkitError(f"none of {len(frames)} frames could be read; the first: {skipped['reason'][0]}")
    no_cells = pd.DataFrame(columns=list(CELL_COLUMNS))
    cells = pd.concat([table for _, table in segmented], ignore_index=True) if segmented else no_cells
    write_table(out_dir / "cells.csv", cells)
    # frames without any cell are not in cells.csv, and count in growth
    counts = [(f.experiment, f.position, f.frame, len(table)) for f, table in segmented]
    write_table(out_dir / "frames.csv", pd.DataFrame(counts, columns=["experiment", "position", "frame", "cells"]))

    # an earlier call may have left tables that hold no longer
    scores = pd.DataFrame([r.scores for r in results if r.scores])
    for name, table in (("scores.csv", scores), ("skipped.csv", skipped)):
        if len(table):
            write_table(out_dir / name, table)
        else:
            (out_dir / name).unlink(missing_ok=True)


def segmented_frames(frames: Iterable[Frame], run_dir: str | Path) -> list[Frame]:
    """The frames that the run's cells.csv covers, also those without any cell (frames.csv names them).

    A label file does not show that: it may be older than the table, or newer where inference was interrupted.
    """
    path = Path(run_dir) / "frames.csv"
    if not path.is_file():
        return []
    table = read_table(path)
    seen = set(zip(table["experiment"], table["position"], table["frame"], strict=True))
    return [f for f in frames if (*f.unit, f.frame) in seen]


def width_warning(model: UNet, widths: np.ndarray, scale: float = 1.0) -> str:
    """Warning if the cells found (widths in pixels) are not as wide as the training cells; "" if they are.

    The student knows cells of about one width; it splits, merges or misses others.
    """
    trained = model.info.cell_width
    if not trained or len(widths) < 5:
        return ""
    found = float(np.median(widths))
    ratio = found * scale / trained
    if 1 / MAX_WIDTH_RATIO <= ratio <= MAX_WIDTH_RATIO:
        return ""
    return (f"the cells found are {found:.0f} pixels wide (median), the student was trained on cells of "
            f"{trained:.0f}: look at the outlines in 04_inference (report.html), and try SCALE={scale / ratio:.2f}")


def dice_warning(scores: Sequence[Mapping[str, Any]]) -> str:
    """Warning if mean Dice (rows of scores.csv) is below 0.5, else ""."""
    if not scores or (mean := float(np.mean([row["dice"] for row in scores]))) >= MIN_DICE:
        return ""
    return (f"the student and the teacher's masks agree little: mean Dice {mean:.2f} over {len(scores)} frame(s). "
            "Look at the outlines in 04_inference (report.html); images of another kind need a student of their own")
