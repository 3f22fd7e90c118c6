"""Frames through the student, a few on their way at once: read, answered, cut into cells, written, measured."""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import tifffile

from ..data.dataset import Frame, masks_path_in, of_experiment
from ..data.images import DAMAGE, has_contrast, open_tiff, read_image
from ..errors import SegkitError
from ..files import replacing
from ..model.predict import POSTPROCESSING, Maps, label, predict
from ..model.targets import distance_target
from ..model.unet import UNet
from .cells import measure_cells
from .metrics import score_frame

GPU_BATCH = 8  # frames that go through the network together
In = TypeVar("In")
Out = TypeVar("Out")


class InferenceOptions(NamedTuple):
    """How frames are segmented and measured; see `segkit.segment_dataset`."""

    pixel_size_um: float | Mapping[str, float] | None = None  # one for all, or by experiment
    scale: float = 1.0
    flips: bool = False
    width_of: frozenset[str] = frozenset()  # names of the frames whose cells' widths are measured


class _Read(NamedTuple):
    """A frame as it comes from the disk: its labels if this model has made them before, else its image."""

    frame: Frame
    path: Path  # of the label file
    stamp: str  # what the label file says of its making
    image: np.ndarray | None = None
    labels: np.ndarray | None = None
    fault: str = ""


class FrameResult(NamedTuple):
    """What is known of a frame at the end."""

    cells: pd.DataFrame | None = None
    scores: dict[str, Any] | None = None
    skipped: tuple[str, str, str] | None = None  # frame, file, reason
    widths: np.ndarray = np.zeros(0)  # pixels


def segment_frames(model: UNet, frames: Sequence[Frame], out_dir: Path,
                   options: InferenceOptions) -> Generator[FrameResult, None, None]:
    """Segment frames in order and write their label files; what a frame gives, one after the other."""
    on_gpu = next(model.parameters()).device.type != "cpu"
    batch, key = GPU_BATCH if on_gpu else 1, _fingerprint(model, options)
    with ThreadPoolExecutor(2) as pool:
        read = _prefetch(pool, lambda frame: _read(frame, out_dir, key, options), frames, 2 * batch)
        yield from _prefetch(pool, lambda answer: _finish(model, *answer, options),
                          _predict_batches(model, read, batch, options), 4)


def _prefetch(pool: ThreadPoolExecutor, work: Callable[[In], Out], items: Iterable[In], depth: int) -> Iterator[Out]:
    """Results in order, with up to `depth` more on their way in the pool's threads."""
    waiting: deque[Future[Out]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(frame: Frame, out_dir: Path, key: str, options: InferenceOptions) -> _Read:
    path, um = masks_path_in(out_dir / "masks", frame), of_experiment(options.pixel_size_um, frame.experiment)
    try:
        stat = frame.image.stat()
        stamp = f"segkit labels {key} of {stat.st_size} {stat.st_mtime_ns} {frame.page}"
        if (labels := _labels_made_before(path, stamp, um)) is not None:
            return _Read(frame, path, stamp, labels=labels)
        image = read_image(frame.image, frame.page)
        if not has_contrast(image):  # a lamp that was off is no frame without cells: growth would take it for death
            raise SegkitError(f"{frame.image.name} is constant: there is nothing to see in it")
        return _Read(frame, path, stamp, image)
    except (SegkitError, OSError) as error:
        return _Read(frame, path, "", fault=str(error))


def _predict_batches(model: UNet, reads: Iterable[_Read], batch: int,
                     options: InferenceOptions) -> Iterator[tuple[_Read, Maps | None]]:
    """Run the network on what needs it, neighbours of one size together; order is kept."""
    waiting: list[_Read] = []

    def answer() -> Iterator[tuple[_Read, Maps]]:
        if waiting:
            maps = predict(model, [r.image for r in waiting if r.image is not None], scale=options.scale,
                           flips=options.flips)
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


def _finish(model: UNet, read: _Read, maps: Maps | None, options: InferenceOptions) -> FrameResult:
    """Cut the answer into cells, write the label file, measure and score."""
    frame, labels, um = read.frame, read.labels, of_experiment(options.pixel_size_um, read.frame.experiment)
    if read.fault:
        return FrameResult(skipped=(frame.name, str(frame.image), read.fault))
    if labels is None:
        assert maps is not None
        labels = label(model.info, maps).labels
        write_labels(read.path, labels, um, read.stamp)
    widths = distance_target(labels)[1] if frame.name in options.width_of else np.zeros(0)
    done = FrameResult(measure_cells(labels, frame, um), widths=widths)
    if frame.masks is None:
        return done
    try:
        return done._replace(scores=score_frame(frame, labels))
    except SegkitError as error:
        return done._replace(skipped=(frame.name, str(frame.masks), str(error)))


def _fingerprint(model: UNet, options: InferenceOptions) -> str:
    """A short name of everything but the image that labels depend on."""
    info = model.info
    how = (POSTPROCESSING, info.normalisation, info.upsampling, info.threshold, info.prominence, info.min_area,
           options.scale, options.flips, model.precision)
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
        tifffile.imwrite(temporary, labels.astype(np.uint16), compression="zlib", metadata=None,
                         description=_description(stamp, pixel_size_um),
                         resolution=(per_cm, per_cm) if per_cm else None,
                         resolutionunit="CENTIMETER" if per_cm else None)


def _description(stamp: str, pixel_size_um: float | None) -> str:
    return f"{stamp}; {pixel_size_um} um" if stamp else ""


def _labels_made_before(path: Path, stamp: str, pixel_size_um: float | None) -> np.ndarray | None:
    """The labels in a file that carries this stamp, else None; a file with another pixel size gets this one."""
    try:
        with open_tiff(path) as tif:
            found = tif.pages.first.description
            labels = tif.asarray().astype(np.int32) if found.startswith(f"{stamp}; ") else None
    except DAMAGE:
        return None
    if labels is not None and found != _description(stamp, pixel_size_um):
        write_labels(path, labels, pixel_size_um, stamp)
    return labels
