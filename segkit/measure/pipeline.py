"""Frames read, segmented, written and measured, several at a time."""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tifffile

from ..data.dataset import Frame, masks_path_in, of_experiment
from ..data.images import DAMAGE, open_tiff, read_image
from ..errors import SegkitError
from ..files import replacing
from ..model.predict import POSTPROCESSING, Maps, label, predict
from ..model.targets import distance_target
from ..model.unet import UNet
from .cells import measure_cells
from .metrics import score_frame

GPU_BATCH = 8  # frames that go through the network together


class InferenceOptions(NamedTuple):
    """How frames are segmented and measured; see `segkit.segment_dataset`."""

    pixel_size_um: float | Mapping[str, float] | None = None  # one for all, or by experiment
    scale: float = 1.0
    flips: bool = False
    width_of: frozenset[str] = frozenset()  # names of the frames whose cells' widths are measured


class _Input(NamedTuple):
    """A frame that was read: the labels in its label file if they are up to date, else its image."""

    frame: Frame
    path: Path  # of the label file
    provenance: str = ""
    image: np.ndarray | None = None  # float32 (H, W)
    labels: np.ndarray | None = None  # int32 (H, W)
    error: str = ""


class FrameResult(NamedTuple):
    """The outcome for one frame."""

    cells: pd.DataFrame | None = None
    scores: dict[str, Any] | None = None
    skipped: tuple[str, str, str] | None = None  # frame, file, reason
    widths: np.ndarray = np.zeros(0)  # pixels


def segment_frames(model: UNet, frames: Sequence[Frame], out_dir: Path,
                   options: InferenceOptions) -> Generator[FrameResult, None, None]:
    """Segment frames in order and write their label files; yields the result of each."""
    batch = 1 if next(model.parameters()).device.type == "cpu" else GPU_BATCH
    key = _fingerprint(model, options)
    # two threads read the next frames and finish the last ones while the network computes
    with ThreadPoolExecutor(2) as pool:
        inputs = _prefetch(pool, lambda frame: _read(frame, out_dir, key, options), frames, 2 * batch)
        predicted = _predict_batches(model, inputs, batch, options)
        yield from _prefetch(pool, lambda pair: _finish(model, options, *pair), predicted, 4)


def _prefetch(pool: ThreadPoolExecutor, work: Callable[[Any], Any], items: Iterable[Any], depth: int) -> Iterator[Any]:
    """Results in order, with up to `depth` more being computed in the pool's threads."""
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(frame: Frame, out_dir: Path, key: str, options: InferenceOptions) -> _Input:
    """Read a frame's labels if this model made them from the same image and in the same way, else its image."""
    path, um = masks_path_in(out_dir / "masks", frame), of_experiment(options.pixel_size_um, frame.experiment)
    try:
        stat = frame.image.stat()
        provenance = f"segkit labels {key} of {stat.st_size} {stat.st_mtime_ns} {frame.page}"
        labels = _read_own_labels(path, provenance, um)
        image = read_image(frame.image, frame.page) if labels is None else None
    except (SegkitError, OSError) as error:
        return _Input(frame, path, error=str(error))
    return _Input(frame, path, provenance, image, labels)


def _predict_batches(model: UNet, inputs: Iterable[_Input], batch: int,
                     options: InferenceOptions) -> Iterator[tuple[_Input, Maps | None]]:
    """Run the network on the inputs that have an image, neighbours of one size together; order is kept."""
    for shape, group in groupby(inputs, key=lambda given: None if given.image is None else given.image.shape):
        while together := list(islice(group, batch)):
            if shape is None:  # labels from a file, or an error
                yield from ((given, None) for given in together)
                continue
            images = [given.image for given in together if given.image is not None]
            yield from zip(together, predict(model, images, scale=options.scale, flips=options.flips), strict=True)


def _finish(model: UNet, options: InferenceOptions, given: _Input, maps: Maps | None) -> FrameResult:
    """Post-process the prediction, write the label file, measure and score the cells."""
    frame, labels, um = given.frame, given.labels, of_experiment(options.pixel_size_um, given.frame.experiment)
    error = given.error
    # a lamp that was off is no frame without cells: its growth would count as death
    if maps is not None and not maps.contrast:
        error = f"{frame.image.name} is constant: there is nothing to see in it"
    if error:
        return FrameResult(skipped=(frame.name, str(frame.image), error))

    if maps is not None:
        labels = label(model.info, maps).labels
        write_labels(given.path, labels, um, given.provenance)
    assert labels is not None
    widths = distance_target(labels)[1] if frame.name in options.width_of else np.zeros(0)
    result = FrameResult(measure_cells(labels, frame, um), widths=widths)
    # a damaged masks file costs the score, not the cells
    try:
        return result._replace(scores=score_frame(frame, labels)) if frame.masks else result
    except SegkitError as no_score:
        return result._replace(skipped=(frame.name, str(frame.masks), str(no_score)))


def _fingerprint(model: UNet, options: InferenceOptions) -> str:
    """A hash of everything but the image that labels depend on."""
    # settings that change labels, then the weights
    info = model.info
    parts = (POSTPROCESSING, info.normalisation, info.upsampling, info.threshold, info.prominence, info.min_area,
             options.scale, options.flips, model.precision)
    digest = hashlib.sha256(repr(parts).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_labels(path: Path, labels: np.ndarray, pixel_size_um: float | None = None, provenance: str = "") -> None:
    """Write labels (H, W) as TIFF, uint16, with the pixel size where it is known (Fiji and napari read it)."""
    if labels.max() > 65535:
        raise SegkitError(f"{path.name}: {labels.max()} cells in one frame, and 16-bit labels hold 65535")
    # nothing is better than a guess: without a tag, programs ask for the size
    resolution: dict[str, Any] = {}
    if pixel_size_um:
        per_cm = 1e4 / pixel_size_um
        resolution = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
    with replacing(path) as temporary:
        tifffile.imwrite(temporary, labels.astype(np.uint16), compression="zlib", metadata=None,
                         description=_description(provenance, pixel_size_um), **resolution)


def _description(provenance: str, pixel_size_um: float | None) -> str:
    return f"{provenance}; {pixel_size_um} um" if provenance else ""


def _read_own_labels(path: Path, provenance: str, pixel_size_um: float | None) -> np.ndarray | None:
    """The labels in a file of this provenance, else None; another pixel size in it is replaced by this one."""
    try:
        with open_tiff(path) as tif:
            description = tif.pages.first.description
            if not description.startswith(f"{provenance}; "):
                return None
            labels = tif.asarray().astype(np.int32)
    except DAMAGE:
        return None
    if description != _description(provenance, pixel_size_um):
        write_labels(path, labels, pixel_size_um, provenance)
    return labels
