"""Inference on a whole dataset: frames read, segmented, written and measured, several at a time."""

import errno
import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tifffile
from tqdm.auto import tqdm

from ..data.dataset import Dataset, Frame, frames_of, masks_path_in, of_experiment
from ..data.images import read_image
from ..data.tiff import DAMAGE, open_tiff
from ..errors import SegkitError
from ..files import locked, log, logging_to, read_table, replacing, write_errno, write_table
from ..model.predict import POSTPROCESSING, Maps, estimate_scale, find_cells, label, predict
from ..model.unet import UNet
from .cells import CELL_COLUMNS, cells_of_frame
from .dask_backend import run_on_cluster
from .metrics import estimate_quality, score_frame
from .track_dataset import image_of, link_dataset

GPU_BATCH = 8  # frames that go through the network together
SCALE_FRAMES = 3  # frames of a position from which scale="auto" is estimated
LOW_QUALITY = 0.65  # frames below are flagged: 38 of 40 with a panoptic quality under 0.5, 5 of 244 over 0.75
MIN_DICE = 0.5  # a lower mean Dice gives a warning
MAX_WIDTH_RATIO = 1.4  # a larger factor between the cells' width and the training cells' gives a warning


class FrameResult(NamedTuple):
    """A frame, and what becomes of it: it is read, segmented, and in the end measured or skipped."""

    frame: Frame
    path: Path  # of the label file
    scale: float
    pixel_size_um: float | None
    provenance: str = ""  # in the label file: which model, options and image it was made of
    image: np.ndarray | None = None  # float32 (H, W), until it is segmented
    labels: np.ndarray | None = None  # int32 (H, W), until its cells are measured
    not_seen: float = 0.0  # share of the image's pixels that hold no picture, see images.blank_pixels
    quality: float = 0.0  # 0 to 1, see metrics.estimate_quality
    cells: pd.DataFrame | None = None
    scores: dict[str, Any] | None = None
    skipped: tuple[str, str, str] | None = None  # frame, file, reason

    def skip(self, file: Path, reason: Exception | str) -> "FrameResult":
        """This result, with the reason why the frame has no cells, or no scores."""
        return self._replace(labels=None, skipped=(self.frame.name, str(file), str(reason)))


def segment_dataset(model: UNet, frames: Dataset | Iterable[Frame], out_dir: str | Path, *,
                    pixel_size_um: float | Mapping[str, float] | None = None, scale: float | str = 1.0,
                    flips: bool = False, cluster: str = "") -> Path:
    """Segment the frames of a dataset, with or without teacher masks, and measure their cells.

    Parameters
    ----------
    model : UNet
        From `load_model`.
    frames : Dataset or iterable of Frame
    out_dir : str or Path
        Gets masks/EXPERIMENT_masks/PosXXX/PreprocessedPhaseMasks/MASK_*.tif (uint16 labels, in the users' own layout),
        cells.csv (a row per cell and frame, with its track), tracks.csv (a row per track), frames.csv (a row per
        segmented frame; not_seen: share of its pixels that are drawn over or not finite; scale: the factor that was
        used; quality: 0 to 1, estimated without labels), scores.csv (a row per frame with teacher labels) and
        skipped.csv (frames that cannot be read, with the reason).
    pixel_size_um : float or mapping, optional
        um per pixel, one for all or by experiment, for sizes in um and the TIFFs' resolution.
    scale, flips
        See `segment`; "auto" finds one factor for every position. Cells of another width than the training's are a
        warning.
    cluster : str
        Where to compute: "" is this process; see dask_backend.run_on_cluster.

    Returns
    -------
    Path of cells.csv

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
    with locked(out_dir), logging_to(out_dir / "run.log"):
        results = _segment_all(model, frames, out_dir, pixel_size_um, scale, flips, cluster)
        _report(model, results)
        _write_tables(results, out_dir)
        link_dataset([result.frame for result in results if result.cells is not None], out_dir)
    return out_dir / "cells.csv"


def _segment_all(model: UNet, frames: Sequence[Frame], out_dir: Path, pixel_size_um: float | Mapping[str, float] | None,
                 scale: float | str, flips: bool, cluster: str) -> list[FrameResult]:
    """The result of every frame, behind a progress bar; see `segment_dataset`."""
    results: list[FrameResult] = []
    try:
        work = partial(segment_frames, out_dir=out_dir.resolve(), scales=find_scales(model, frames, scale),
                       pixel_size_um=pixel_size_um, flips=flips)
        with closing(run_on_cluster(cluster, work, model, frames) if cluster else work(model, frames)) as running:
            results.extend(tqdm(running, total=len(frames), desc="segmenting", unit="frame", leave=False))
    except KeyboardInterrupt:
        raise SegkitError(f"interrupted: {len(results)} of {len(frames)} frames are segmented in {out_dir}; "
                          "run this again to continue") from None
    return results


def find_scales(model: UNet, frames: Sequence[Frame], scale: float | str) -> dict[tuple[str, str], float]:
    """The factor of every position (experiment, position): scale, or with "auto" one from a few of its frames.

    One position is one field of view through one objective. A position whose cells have the training's width at the
    factor of the experiment's last position takes it over, so that those of one magnification have one factor.
    """
    if not isinstance(scale, str):
        return {frame.unit: float(scale) for frame in frames}
    if scale != "auto":
        raise SegkitError(f'scale is {scale!r}: a number, or "auto", was needed')
    scales: dict[tuple[str, str], float] = {}
    unknown = []
    for unit, position in tqdm(groupby(frames, key=lambda f: f.unit), desc="finding the scale", leave=False):
        sample = list(position)
        images = map(image_of, sample[::-(-len(sample) // SCALE_FRAMES)])  # damaged frames are listed later
        guess = next((scale for (name, _), scale in reversed(scales.items()) if name == unit[0]), 1.0)
        factor = estimate_scale(model, [image for image in images if image is not None], guess)
        scales[unit] = factor or guess
        unknown += ["/".join(unit)] if factor is None else []
    if not model.info.cell_width:
        log.info("SCALE=auto: how wide the student's training cells were is not known: 1 is used")
    elif unknown:
        log.info("SCALE=auto: too few cells to measure in %s: the last position's factor, or 1, is used",
                 ", ".join(unknown[:9]))
    return scales


def segment_frames(model: UNet, frames: Sequence[Frame], out_dir: Path, scales: Mapping[tuple[str, str], float],
                   pixel_size_um: float | Mapping[str, float] | None,
                   flips: bool) -> Generator[FrameResult, None, None]:
    """Segment frames in order and write their label files; yields the result of each. scales: of `find_scales`."""
    batch = 1 if next(model.parameters()).device.type == "cpu" else GPU_BATCH
    keys = {scale: _fingerprint(model, flips, scale) for scale in set(scales.values())}
    todo = [FrameResult(frame, masks_path_in(out_dir / "masks", frame), scales[frame.unit],
                        of_experiment(pixel_size_um, frame.experiment)) for frame in frames]
    # two threads read the next frames and finish the last ones while the network computes
    with ThreadPoolExecutor(2) as pool:
        inputs = prefetch(pool, lambda given: _read(given, keys[given.scale]), todo, 2 * batch)
        predicted = _predict_batches(model, inputs, batch, flips)
        yield from prefetch(pool, lambda pair: _finish(model, *pair), predicted, 4)


def prefetch(pool: ThreadPoolExecutor, work: Callable[[Any], Any], items: Iterable[Any], depth: int) -> Iterator[Any]:
    """Results in order, with up to `depth` more being computed in the pool's threads."""
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(given: FrameResult, key: str) -> FrameResult:
    """Read a frame's labels if this model made them from the same image and in the same way, else its image."""
    frame = given.frame
    try:
        stat = frame.image.stat()
        given = given._replace(provenance=f"segkit labels {key} of {stat.st_size} {stat.st_mtime_ns} {frame.page}")
        return _read_own_labels(given) or given._replace(image=read_image(frame.image, frame.page))
    except (SegkitError, OSError) as error:
        return given.skip(frame.image, error)


def _predict_batches(model: UNet, inputs: Iterable[FrameResult], batch: int,
                     flips: bool) -> Iterator[tuple[FrameResult, Maps | None]]:
    """Run the network on the inputs that have an image, neighbours of one size and scale together; order is kept."""
    for alike, group in groupby(inputs, key=lambda given: given.image is not None and (given.image.shape, given.scale)):
        while together := list(islice(group, batch)):
            images = [given.image for given in together if given.image is not None]
            # without an image there are labels from a file, or an error
            maps = predict(model, images, scale=together[0].scale, flips=flips) if alike else [None] * len(together)
            yield from zip((given._replace(image=None) for given in together), maps, strict=True)


def _finish(model: UNet, given: FrameResult, maps: Maps | None) -> FrameResult:
    """Post-process the prediction, write the label file, measure and score the cells."""
    frame = given.frame
    # a lamp that was off is no frame without cells: its growth would count as death
    if maps is not None and np.all(maps.blank):
        return given.skip(frame.image, f"{frame.image.name} is constant: it shows nothing")
    if maps is not None:
        found = find_cells(model.info, maps)
        labels, not_seen = label(model.info, maps, found).labels, float(np.mean(maps.blank))
        quality = estimate_quality(model.info, maps, found * labels.any())  # not of what lies in blank areas alone
        given = given._replace(labels=labels, not_seen=not_seen, quality=quality)
        try:
            write_labels(given.path, labels, given.pixel_size_um, given.provenance, not_seen, given.quality)
        except SegkitError as unwritten:  # one frame's own fault costs no other; a full disk would cost all
            if write_errno(unwritten) not in (0, errno.ENAMETOOLONG, errno.EISDIR):
                raise
            return given.skip(frame.image, unwritten)
    if given.labels is None:
        return given

    # a damaged masks file costs the score, not the cells
    result = given._replace(cells=cells_of_frame(given.labels, frame, given.pixel_size_um), labels=None)
    if not frame.masks:
        return result
    try:
        # of labels from a file it is known how much is not seen, but not where: then the image is read again
        blank = np.asarray(maps.blank) if maps else None if given.not_seen else np.zeros(given.labels.shape, bool)
        return result._replace(scores=score_frame(frame, given.labels, blank))
    except SegkitError as no_score:
        return result.skip(frame.masks, no_score)


def _fingerprint(model: UNet, flips: bool, scale: float) -> str:
    """A hash of everything but the image that labels depend on."""
    # settings that change labels, then the weights
    info = model.info
    parts = (POSTPROCESSING, info.normalisation, info.upsampling, info.threshold, info.prominence, info.min_area,
             scale, flips, model.precision)
    digest = hashlib.sha256(repr(parts).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_labels(path: Path, labels: np.ndarray, pixel_size_um: float | None, provenance: str, not_seen: float,
                 quality: float) -> None:
    """Write labels (H, W) as TIFF, uint16, with the pixel size where it is known (Fiji and napari read it)."""
    if labels.max() > 65535:
        raise SegkitError(f"{path.name}: {labels.max()} cells in one frame, and 16-bit labels hold 65535")
    text = f"{provenance}; {pixel_size_um} um; {not_seen:.6g} not seen; {quality:.4f} quality"
    options: dict[str, Any] = {"compression": "zlib", "metadata": None, "description": text}
    if pixel_size_um:
        options |= {"resolution": (1e4 / pixel_size_um, 1e4 / pixel_size_um), "resolutionunit": "CENTIMETER"}
    with replacing(path) as temporary:
        tifffile.imwrite(temporary, labels.astype(np.uint16), **options)


def _read_own_labels(given: FrameResult) -> FrameResult | None:
    """The result with the labels in its file, if their provenance is the same.

    Another pixel size in the file is replaced by this one.
    """
    try:
        with open_tiff(given.path) as tif:
            found, size, *numbers = tif.pages.first.description.split("; ")
            not_seen, quality = (float(number.partition(" ")[0]) for number in numbers)
            if found != given.provenance:
                return None
            labels = tif.asarray().astype(np.int32)
    except DAMAGE:
        return None
    if size != f"{given.pixel_size_um} um":
        write_labels(given.path, labels, given.pixel_size_um, given.provenance, not_seen, quality)
    return given._replace(labels=labels, not_seen=not_seen, quality=quality)


def _report(model: UNet, results: Sequence[FrameResult]) -> None:
    """Log how many frames were segmented, which were left out, and why the student may not suit them."""
    for name, _, reason in (result.skipped for result in results if result.skipped):
        log.info("left out %s: %s", name, reason)
    segmented = sum(result.cells is not None for result in results)
    run = model.info.settings.get("RUN", "?")
    log.info("%d of %d frames segmented with the student of run %s", segmented, len(results), run)

    # in the notebook, too: the user must see that this student is not the right one
    scale = float(np.median([result.scale for result in results] or [1.0]))  # positions may differ
    widths = [result.cells["width_px"] * (result.scale / scale) for result in results if result.cells is not None]
    too_wide = width_warning(model, np.concatenate([np.zeros(0), *widths]), scale)
    for text in filter(None, (too_wide, dice_warning([result.scores for result in results if result.scores]))):
        log.info(text)
        warnings.warn(text, stacklevel=3)


def _write_tables(results: Sequence[FrameResult], out_dir: Path) -> None:
    """Write cells.csv and frames.csv, and scores.csv and skipped.csv where they have rows."""
    skipped = pd.DataFrame([r.skipped for r in results if r.skipped], columns=["frame", "file", "reason"])
    segmented = [(r, r.cells) for r in results if r.cells is not None]
    if results and not segmented:
        raise SegkitError(f"none of {len(results)} frames could be read; the first: {skipped['reason'][0]}")
    cells = [found for _, found in segmented] or [pd.DataFrame(columns=list(CELL_COLUMNS))]
    write_table(out_dir / "cells.csv", pd.concat(cells, ignore_index=True))
    # frames without any cell are not in cells.csv, but count in growth
    rows = [(*r.frame.unit, r.frame.frame, len(found), r.not_seen, r.scale, r.quality) for r, found in segmented]
    table = pd.DataFrame(rows, columns=["experiment", "position", "frame", "cells", "not_seen", "scale", "quality"])
    write_table(out_dir / "frames.csv", table)
    log.info(scale_text(table))

    # a table of an earlier call that has no rows now would be wrong
    scores = pd.DataFrame([r.scores for r in results if r.scores])
    for name, table in (("scores.csv", scores), ("skipped.csv", skipped)):
        if len(table):
            write_table(out_dir / name, table)
        else:
            (out_dir / name).unlink(missing_ok=True)


def scale_text(frames: pd.DataFrame) -> str:
    """The factors that brought the cells to the width of the training's, by experiment; frames: rows of frames.csv."""
    ranges = frames.groupby("experiment")["scale"].agg(["min", "max"])
    return "SCALE: " + ", ".join(f"{name} {low:.3g}" + (f" to {high:.3g}" if high > low else "")
                                 for name, low, high in ranges.itertuples())


def worst_frames(run_dir: str | Path, count: int = 10) -> pd.DataFrame:
    """The frames with the lowest estimated quality, worst first: rows of frames.csv, and whether they are `flagged`."""
    table = read_table(Path(run_dir) / "frames.csv")
    return table.assign(flagged=table["quality"] < LOW_QUALITY).nsmallest(count, "quality")


def segmented_frames(frames: Iterable[Frame], run_dir: str | Path) -> list[Frame]:
    """The frames that the run's cells.csv covers, also those without any cell (frames.csv names them).

    A label file does not show that: it may be older than the table, or newer where inference was interrupted.
    """
    path = Path(run_dir) / "frames.csv"
    if not path.is_file():
        return []
    seen = set(read_table(path)[["experiment", "position", "frame"]].itertuples(index=False, name=None))
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
            "Look at the outlines in 04_inference (report.html); train a student on images of this kind")
