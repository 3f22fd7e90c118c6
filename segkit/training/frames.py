"""Training data: frames decoded once into one memory-mapped store, and the size and number of crops."""

import hashlib
import math
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.dataset import Frame, Split, common_area, read_whole_pair
from ..data.images import blank_pixels, hash_pixels, normalise
from ..devices import computes_in_bf16, describe_device
from ..errors import SegkitError
from ..files import log, replacing
from ..measure.metrics import hashes_by_position
from ..measure.segment_dataset import prefetch
from ..model.postprocess import distance_target, smallest_area, whole_areas
from ..model.unet import STRIDE
from ..settings import Settings
from .distributed import ProcessGroup

MAX_UNUSED = 30 * 24 * 3600  # seconds that a store is kept after its last use
POINTS = 128  # foreground pixels remembered per frame, for crops that contain cells
BYTES_PER_PIXEL = {True: 1100, False: 1900}  # of GPU memory that a training step takes in bf16, in float32
GPU_CROP, CPU_CROP = (768, 448), (128, 128)  # CROP=auto, (height, width) pixels
MIN_CROP = 2 * STRIDE  # pixels; the deepest level needs more than one value per channel
FILES = {"pixels.f32": np.float32, "targets.u8": np.uint8, "labels.i16": np.int16}  # of a store
SCALES = 0.25, 4.0  # of a position; a factor beyond comes from wrong labels
MIN_STEPS = 200  # with fewer steps, touching cells are seldom separated (benchmarks/README.md)


@dataclass(frozen=True)
class Store:
    """Decoded frames of any size, one after the other in flat arrays.

    The values per frame lie on the CPU, where crops are sampled, so that nothing waits for a GPU.
    """

    frames: tuple[Frame, ...]
    pixels: Tensor  # (P,) float32, normalised; on the GPU where they fit
    targets: Tensor  # (P,) uint8; on the same device
    labels: Tensor  # (P,) int16; likewise
    start: Tensor  # (N,) int64, where each frame begins
    height: Tensor  # (N,) int64, pixels
    width: Tensor  # (N,) int64, pixels
    points: Tensor  # (N, POINTS, 2) int64 (y, x)
    scale: Tensor  # (N,) float32: factor that brings the cells of each frame's position to the median width
    cell_width: float  # median, pixels
    areas: np.ndarray  # (cells that do not touch the border,) pixels, at that factor
    foreground: float  # share of pixels inside cells
    hashes: tuple[str, ...]  # of the images, see images.hash_pixels

    def window(self, index: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images, and targets (see `student_loss`), of rectangles, mirrored beyond the edge.

        index: (B,) frames; rows: (B, H) and columns: (B, W) int64 pixels; all on the CPU.
        Returns (B, 1, H, W) and (B, 2, H, W) float32.
        """
        height, width = self.height[index, None], self.width[index, None]
        row_start = self.start[index, None] + _mirror(rows, height) * width  # (B, H)
        row_start, columns = (t.to(self.pixels.device, non_blocking=True) for t in (row_start, _mirror(columns, width)))
        at = (row_start[:, :, None] + columns[:, None, :])[:, None]  # (B, 1, H, W)
        return self.pixels[at], torch.cat([self.targets[at].float() / 255, self.labels[at].float()], 1)

    def whole(self, index: list[int], stride: int) -> tuple[Tensor, Tensor]:
        """Frames of one size, padded to a multiple of stride; see `window`."""
        height, width = (-(-int(size[index[0]]) // stride) * stride for size in (self.height, self.width))
        rows, columns = (torch.arange(size).expand(len(index), size) for size in (height, width))
        return self.window(torch.tensor(index), rows, columns)


def _mirror(position: Tensor, size: Tensor) -> Tensor:
    """Fold pixel positions into 0..size-1 as a mirror at the outer pixels does."""
    period = (2 * (size - 1)).clamp(min=1)
    position = position.abs() % period
    return torch.minimum(torch.minimum(position, period - position), size - 1)


class Decoded(NamedTuple):
    """One frame as the store keeps it."""

    image: np.ndarray  # (H, W) float32, normalised
    target: np.ndarray  # (H, W) uint8, see postprocess.distance_target
    labels: np.ndarray  # (H, W) int16, over 32767 from 1 again
    points: np.ndarray  # (POINTS, 2) int32 (y, x); -1 without foreground
    widths: np.ndarray  # (cells,) float32, pixels
    areas: np.ndarray  # (cells that do not touch the border,) int32, pixels
    image_hash: str  # see images.hash_pixels; of the whole image, also where its masks file is smaller


def decode(frame: Frame) -> Decoded:
    """Read one pair; see `decode_pair`. Raises SegkitError where a file cannot be used."""
    whole, labels = read_whole_pair(frame)
    return decode_pair(*common_area(frame.image.name, whole, labels), hash_pixels(whole))


def decode_pair(image: np.ndarray, labels: np.ndarray, image_hash: str = "") -> Decoded:
    """Normalise an image (H, W) and make the target of its labels."""
    blank = blank_pixels(image)
    labels = np.where(blank, 0, labels)
    # The target, and some of its foreground pixels for crops that must contain cells
    target, widths = distance_target(labels)
    inside = np.argwhere(target)
    points = np.full((POINTS, 2), -1, np.int32)
    if len(inside):
        points[:] = inside[np.linspace(0, len(inside) - 1, POINTS).astype(np.int64)]
    numbers = np.where(labels, (labels - 1) % np.iinfo(np.int16).max + 1, 0).astype(np.int16)
    return Decoded(normalise(image, blank=blank), target, numbers, points, widths, whole_areas(labels), image_hash)


def build_store(frames: Sequence[Frame], device: torch.device, cache_dir: Path) -> tuple[Store, dict[Frame, str]]:
    """Decode pairs into a Store that is mapped from a file in cache_dir, or moved to the GPU where it fits.

    The file is used again as long as no image or masks file has changed and all of them could be decoded.
    Returns the store, and the pairs that could not be decoded with the reason.
    Raises SegkitError where none could, or the file cannot be written.
    """
    # Remove the stores of other frames that no training has used for long
    folder = cache_dir / _fingerprint(frames)
    for pixels_file in cache_dir.glob("*/pixels.f32"):
        if pixels_file.parent != folder and time.time() - pixels_file.parent.stat().st_mtime > MAX_UNUSED:
            shutil.rmtree(pixels_file.parent, ignore_errors=True)
    # Decode into a folder beside the final one: another training may fill the same cache
    reasons: dict[Frame, str] = {}
    if not (folder / "index.npz").is_file():
        with replacing(folder) as part:
            part.mkdir(exist_ok=True)
            reasons = _decode_into(part, frames)
            shutil.rmtree(folder, ignore_errors=True)
    os.utime(folder)
    with np.load(folder / "index.npz") as archive:
        index = dict(archive)
    if reasons:  # a file that could not be read now, on a network drive say, is tried again by the next training
        (folder / "index.npz").unlink(missing_ok=True)
    # The arrays stay in the file; a GPU that has room for them takes them whole
    arrays = [torch.from_numpy(np.memmap(folder / name, kind, mode="c")) for name, kind in FILES.items()]
    if device.type == "cuda" and sum(array.nbytes for array in arrays) <= torch.cuda.mem_get_info(device)[0] / 4:
        arrays = [array.to(device) for array in arrays]
    pixels, targets, labels = arrays
    # Values of each frame, and of all cells
    height, width = (torch.from_numpy(index["shapes"][:, k]) for k in (0, 1))
    size, decoded = height * width, tuple(frame for frame in frames if frame not in reasons)
    cell_width = float(np.median(index["widths"])) if len(index["widths"]) else 0.0
    units = [str(frame.unit) for frame in decoded]
    scale_of = cell_width / pd.Series(index["widths"]).groupby(np.repeat(units, index["cells"])).median()
    scale = scale_of.reindex(units).fillna(1).clip(*SCALES).to_numpy(np.float32)
    store = Store(decoded, pixels, targets, labels, torch.cumsum(size, 0) - size, height, width,
                  torch.from_numpy(index["points"]).long(), torch.tensor(scale), cell_width,
                  index["areas"] * np.repeat(scale, index["whole_cells"]) ** 2,
                  float(index["foreground"].sum() / size.sum()), tuple(index["hashes"].tolist()))
    return store, reasons


def _fingerprint(frames: Sequence[Frame]) -> str:
    """A name that changes with any image or masks file: paths, sizes and times of change."""
    digest = hashlib.sha256(b"segkit store 9")
    for frame in frames:
        for path in (frame.image, frame.masks or frame.image):
            there = f"{path.stat().st_size}|{path.stat().st_mtime_ns}" if path.exists() else "missing"
            digest.update(f"{path.parent.resolve()}/{path.name}|{there}|{frame.page}\n".encode())
    return digest.hexdigest()[:20]


def _decode_into(folder: Path, frames: Sequence[Frame]) -> dict[Frame, str]:
    """Write FILES and index.npz; returns the frames that cannot be decoded with the reason."""
    def attempt(frame: Frame) -> Decoded | str:
        try:
            return decode(frame)
        except SegkitError as error:
            return str(error)

    # Decode in parallel, and write in order
    reasons: dict[Frame, str] = {}
    kept: list[tuple] = []  # rows of the index: all but the large arrays
    workers = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        files = [stack.enter_context(open(folder / name, "wb")) for name in FILES]
        results = prefetch(pool, attempt, frames, 16 * workers)
        bar = tqdm(results, total=len(frames), desc="decoding", unit="frame", leave=False, delay=2)
        for frame, result in zip(frames, bar, strict=True):
            if isinstance(result, str):
                reasons[frame] = result
                continue
            for file, values in zip(files, result, strict=False):
                file.write(values.tobytes())
            kept.append((result.image.shape, np.count_nonzero(result.target), *result[3:]))
    if not kept:
        raise SegkitError(f"none of {len(frames)} pairs could be decoded: {next(iter(reasons.values()), '')}")
    # The index: a row for each decoded frame, widths and areas of all cells one after the other
    shapes, foreground, points, widths, areas, hashes = zip(*kept, strict=True)
    np.savez(folder / "index.npz", shapes=shapes, foreground=foreground, points=points, hashes=hashes,
             cells=[len(w) for w in widths], widths=np.concatenate(widths),
             whole_cells=[len(a) for a in areas], areas=np.concatenate(areas))
    return reasons


def step_memory(device: torch.device) -> float:
    """Bytes of GPU memory that a training step may take: half of it, as frames and other programs need the rest."""
    return torch.cuda.get_device_properties(device).total_memory / 2 if device.type == "cuda" else math.inf


def choose_crop(settings: Settings, device: torch.device, smallest: tuple[int, int],
                memory: float | None = None) -> tuple[int, int]:
    """CROP as (height, width), reduced to the smallest training frame and to multiples of the network's stride.

    memory: see `step_memory`; of all processes together, which share a batch.
    """
    if settings.crop != "auto":
        wanted = settings.crop_size()
    elif device.type == "cpu":  # small crops train as well in less time; half a frame leaves room for augmentation
        wanted = min(CPU_CROP[0], smallest[0] // 2), min(CPU_CROP[1], smallest[1] // 2)
    else:
        wanted = GPU_CROP
        memory = memory or step_memory(device)
        per_pixel = settings.batch_size * BYTES_PER_PIXEL[computes_in_bf16(device, settings.precision)]
        while per_pixel * wanted[0] * wanted[1] > memory and wanted[0] > MIN_CROP:
            wanted = wanted[0] // 2, wanted[1] // 2
    height, width = (max(MIN_CROP, min(w, s) // STRIDE * STRIDE) for w, s in zip(wanted, smallest, strict=True))
    return height, width


def plan_epoch(settings: Settings, device: torch.device, smallest: tuple[int, int], area: int,
               memory: float | None = None) -> tuple[tuple[int, int], int, int]:
    """Size of a crop (height, width), crops and steps of an epoch.

    smallest: (height, width) of the smallest training frame; area: pixels of all; memory: as in `choose_crop`.
    By default an epoch has as many crops as cover the training frames once, at least 64 and at most 4096.
    """
    crop = choose_crop(settings, device, smallest, memory)
    crops = settings.crops_per_epoch or min(max(64, round(area / (crop[0] * crop[1]))), 4096)
    return crop, crops, max(1, round(crops / settings.batch_size))


class TrainingData(NamedTuple):
    """Frames of one process; all other values are the same in all processes."""

    train: Store
    validation: Store
    foreground: float  # share of the training pixels
    cell_width: float  # pixels, median of the training cells
    min_area: int  # pixels, see postprocess.smallest_area
    crop: tuple[int, int]  # height, width
    steps: int  # of an epoch
    trained_on: dict[str, list[str]]  # see metrics.hashes_by_position
    validated_on: dict[str, list[str]]
    left_out: dict[str, str]  # frames that could not be decoded, by name, and why


def prepare(split: Split, settings: Settings, group: ProcessGroup) -> TrainingData:
    """Decode this process's shard of the split, and plan crops and steps. Frames that cannot be decoded are logged."""
    cache, left_out = settings.run_dir.parent / ".cache", {}

    def decoded(frames: Sequence[Frame], what: str) -> tuple[Store, dict[str, list[str]]]:
        store, reasons = build_store(group.shard(frames, what), group.device, cache)
        for frame, reason in group.gather(list(reasons.items())):
            log.info("left out %s: %s", frame.image, reason)
            left_out[frame.name] = reason
        return store, hashes_by_position(group.gather(list(zip(store.frames, store.hashes, strict=True))))

    train, trained_on = decoded(split.train, "training frames")
    validation, validated_on = decoded(split.validation, "validation frames")
    for store, what in ((train, "training"), (validation, "validation")):
        if not any(group.gather([store.foreground])):
            raise SegkitError(f"no masks file of the {what} positions holds a cell: are these the right masks?")
    # Values of the training frames over all processes
    shards = pd.DataFrame(group.gather([{
        "train": len(train.frames), "validation": len(validation.frames), "height": int(train.height.min()),
        "width": int(train.width.min()), "area": int((train.height * train.width).sum()),
        "foreground": train.foreground, "cell_width": train.cell_width}]))
    foreground = float(np.average(shards["foreground"], weights=shards["area"]))
    cell_width = float(shards["cell_width"].median())
    min_area = smallest_area(group.gather(train.areas.tolist()), cell_width)
    # The plan: size and number of crops, steps
    smallest = int(shards["height"].min()), int(shards["width"].min())
    memory = group.size * min(group.gather([step_memory(group.device)]))
    crop, _, steps = plan_epoch(settings, group.device, smallest, int(shards["area"].sum()), memory)
    # frames of several processes as 8+8
    log.info("%s training frames, %s validation frames; crops of %d x %d, %d steps of %d an epoch; %s",
             *("+".join(map(str, shards[part])) for part in ("train", "validation")), *crop, steps,
             settings.batch_size, describe_device(group.device, settings.precision))
    if settings.epochs * steps < MIN_STEPS:
        log.info("only %d steps in all; %d or more are usual: set more EPOCHS", settings.epochs * steps, MIN_STEPS)
    return TrainingData(train, validation, foreground, cell_width, min_area, crop, steps, trained_on, validated_on,
                        left_out)
