"""The student at work on a whole dataset: label files, cells and scores."""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import tifffile
from tqdm.auto import tqdm

from .cells import CELL_COLUMNS, measure_cells
from .data import Frame, masks_path_in
from .errors import SegkitError
from .files import replacing, write_table
from .history import log, logging_to
from .images import read_image
from .judge import score_frame
from .model import UNet
from .segmentation import Maps, label, predict
from .targets import distance_target

GPU_BATCH = 8  # frames that go through the network together
WIDTH_FRAMES = 20  # about so many frames are looked at to compare the cells' width with the training's
WIDTH_RATIO = 1.4  # beyond this factor of the training cells' width the student is warned of
In = TypeVar("In")
Out = TypeVar("Out")


class _Read(NamedTuple):
    """A frame as it comes from the disk: its labels if this model has made them before, else its image."""

    frame: Frame
    path: Path  # of the label file
    stamp: str  # what the label file says of its making
    image: np.ndarray | None = None
    labels: np.ndarray | None = None
    fault: str = ""


class _Done(NamedTuple):
    """What is known of a frame at the end."""

    cells: pd.DataFrame | None = None
    scores: dict[str, Any] | None = None
    skipped: tuple[str, str, str] | None = None  # frame, file, reason
    widths: np.ndarray = np.zeros(0)  # pixels


def segment_dataset(model: UNet, frames: Iterable[Frame], out_dir: str | Path, *,
                    pixel_size_um: float | Mapping[str, float] | None = None, scale: float = 1.0,
                    flips: bool = False) -> Path:
    """Segment every frame, with or without teacher masks, and measure its cells.

    Writes into out_dir: masks/EXPERIMENT_masks/PosXXX/PreprocessedPhaseMasks/MASK_*.tif (uint16 labels, in the
    users' own layout), cells.csv (a row per cell and frame) and, for frames with teacher labels, scores.csv.
    Interrupted and called again, it goes on: a frame whose label file this model made from the same image is only
    measured anew. A frame that cannot be read is logged and listed in skipped.csv, and the rest goes on.
    pixel_size_um: um per pixel, one for all or by experiment, for sizes in um and the TIFFs' resolution; None: pixels
    only. scale, flips: see `segment`; a warning is given where the cells are not as wide as the training's.
    Returns the path of cells.csv. Raises SegkitError where no frame could be read, out_dir cannot be written, or the
    kernel is interrupted.
    """
    out_dir, frames = Path(out_dir), list(frames)
    key = _fingerprint(model, scale, flips)
    measured_widths = set(frames[::max(1, len(frames) // WIDTH_FRAMES)])
    done: list[_Done] = []

    def finish(answer: tuple[_Read, Maps | None]) -> _Done:
        frame = answer[0].frame
        um = pixel_size_um[frame.experiment] if isinstance(pixel_size_um, Mapping) else pixel_size_um
        return _finish(model, *answer, um, frame in measured_widths)

    with logging_to(out_dir / "run.log"), ThreadPoolExecutor(2) as pool:
        on_gpu = next(model.parameters()).device.type != "cpu"
        read = _ahead(pool, lambda frame: _read(frame, out_dir, key), frames, 2 * GPU_BATCH if on_gpu else 2)
        answers = _answers(model, read, GPU_BATCH if on_gpu else 1, scale, flips)
        try:
            for result in tqdm(_ahead(pool, finish, answers, 4), total=len(frames), desc="segmenting", unit="frame",
                               leave=False):
                done.append(result)
        except KeyboardInterrupt:
            raise SegkitError(f"interrupted: {len(done)} of {len(frames)} frames are segmented in {out_dir}; "
                              "run this again to go on") from None
        skipped = [d.skipped for d in done if d.skipped]
        for name, _, reason in skipped:
            log.info("left out %s: %s", name, reason)
        if complaint := width_complaint(model, np.concatenate([np.zeros(0), *(d.widths for d in done)]), scale):
            log.info(complaint)
            warnings.warn(complaint, stacklevel=2)
    cells = [d.cells for d in done if d.cells is not None]
    if frames and not cells:
        raise SegkitError(f"none of {len(frames)} frames could be read; the first: {skipped[0][2]}")
    table = pd.concat(cells, ignore_index=True) if cells else pd.DataFrame(columns=list(CELL_COLUMNS))
    write_table(out_dir / "cells.csv", table)
    for name, content in (("scores.csv", pd.DataFrame([d.scores for d in done if d.scores])),
                          ("skipped.csv", pd.DataFrame(skipped, columns=["frame", "file", "reason"]))):
        if len(content):
            write_table(out_dir / name, content)
        else:
            (out_dir / name).unlink(missing_ok=True)
    return out_dir / "cells.csv"


def _ahead(pool: ThreadPoolExecutor, work: Callable[[In], Out], items: Iterable[In], depth: int) -> Iterator[Out]:
    """Results in order, with up to `depth` more on their way in the pool's threads."""
    waiting: deque[Future[Out]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(frame: Frame, out_dir: Path, key: str) -> _Read:
    path = masks_path_in(out_dir / "masks", frame)
    try:
        stat = frame.image.stat()
        stamp = f"segkit labels {key} of {stat.st_size} {stat.st_mtime_ns} {frame.page}"
        labels = _labels_made_before(path, stamp)
        return _Read(frame, path, stamp, read_image(frame.image, frame.page) if labels is None else None, labels)
    except (SegkitError, OSError) as error:
        return _Read(frame, path, "", fault=str(error))


def _answers(model: UNet, reads: Iterable[_Read], batch: int, scale: float,
             flips: bool) -> Iterator[tuple[_Read, Maps | None]]:
    """Run the network on what needs it, neighbours of one size together; order is kept."""
    waiting: list[_Read] = []

    def answer() -> Iterator[tuple[_Read, Maps]]:
        if waiting:
            maps = predict(model, [r.image for r in waiting if r.image is not None], scale=scale, flips=flips)
            yield from zip(waiting, maps, strict=True)
        waiting.clear()

    for read in reads:
        alike = bool(waiting) and read.image is not None and read.image.shape == waiting[0].image.shape  # type: ignore
        if not alike or len(waiting) == batch:
            yield from answer()
        if read.image is None:
            yield read, None
        else:
            waiting.append(read)
    yield from answer()


def _finish(model: UNet, read: _Read, maps: Maps | None, um: float | None, widths: bool) -> _Done:
    """Cut the answer into cells, write the label file, measure and score."""
    frame, labels = read.frame, read.labels
    if read.fault:
        return _Done(skipped=(frame.name, str(frame.image), read.fault))
    if labels is None:
        assert maps is not None
        labels = label(model, maps).labels
        write_labels(read.path, labels, um, read.stamp)
    done = _Done(measure_cells(labels, frame, um), widths=distance_target(labels)[1] if widths else np.zeros(0))
    if frame.masks is None:
        return done
    try:
        return done._replace(scores=score_frame(frame, labels))
    except SegkitError as error:
        return done._replace(skipped=(frame.name, str(frame.masks), str(error)))


def _fingerprint(model: UNet, scale: float, flips: bool) -> str:
    """A short name of everything but the image that labels depend on."""
    info = model.info
    how = (info.normalisation, info.align_corners, info.threshold, info.prominence, info.min_area, scale, flips)
    digest = hashlib.sha256(repr(how).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_labels(path: Path, labels: np.ndarray, pixel_size_um: float | None = None, stamp: str = "") -> None:
    """Write labels as TIFF, uint16, with the pixel size where it is known (Fiji and napari read it)."""
    if labels.max() > 65535:
        raise SegkitError(f"{path.name}: {labels.max()} cells in one frame, and 16-bit labels hold 65535")
    per_cm = 1e4 / pixel_size_um if pixel_size_um else None
    with replacing(path) as temporary:
        tifffile.imwrite(temporary, labels.astype(np.uint16), compression="zlib", description=stamp, metadata=None,
                         resolution=(per_cm, per_cm) if per_cm else None,
                         resolutionunit="CENTIMETER" if per_cm else None)


def _labels_made_before(path: Path, stamp: str) -> np.ndarray | None:
    """The labels in a file that carries this stamp, else None."""
    try:
        with tifffile.TiffFile(path) as tif:
            return tif.asarray().astype(np.int32) if tif.pages.first.description == stamp else None
    except (OSError, ValueError, tifffile.TiffFileError):
        return None


def width_complaint(model: UNet, widths: np.ndarray, scale: float = 1.0) -> str:
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
            f"{known:.0f}: look at the overlays, and try SCALE={scale * known / found:.2f}")
