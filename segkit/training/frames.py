"""Frames decoded once into flat arrays, and crops gathered from them."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.dataset import Frame, Problem, common_area, read_whole_pair
from ..data.images import OUTLIER, fill_gaps, hash_pixels, intensity_range, read_header
from ..devices import free_memory
from ..errors import SegkitError
from ..model.postprocess import whole_areas
from ..model.targets import distance_target

POINTS = 128  # foreground pixels remembered per frame, for crops that contain cells


@dataclass(frozen=True)
class Store:
    """Decoded frames, one after the other in two flat arrays, whatever their sizes.

    What there is one of per frame lies on the CPU, where crops are drawn, so that a GPU is never waited for.
    """

    frames: tuple[Frame, ...]
    pixels: Tensor  # (P,) int16, the bits of uint16, on the device that crops are cut on
    targets: Tensor  # (P,) uint8, there too
    start: Tensor  # (N,) int64, where each frame begins
    height: Tensor  # (N,) int64, pixels
    width: Tensor  # (N,) int64, pixels
    gain: Tensor  # (N,) float32
    bias: Tensor  # (N,) float32
    points: Tensor  # (N, POINTS, 2) int64
    cell_width: float  # median, pixels
    areas: np.ndarray  # (cells that do not touch the border,) int32, pixels
    foreground: float  # share of pixels inside cells
    hashes: tuple[str, ...]  # of the images, see images.hash_pixels

    def gather(self, index: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images and targets (0..1, 0 = background) at float coordinates.

        index: (B,) frames, on the CPU; y, x: (B, h, w) pixels; beyond the edge the frame is mirrored.
        Returns (B, 1, h, w) float32 twice: image bilinear, target nearest.
        """
        start, height, width, gain, bias = (
            t[index].to(y.device, non_blocking=True)[:, None, None]
            for t in (self.start, self.height, self.width, self.gain, self.bias))
        y, x = _mirror(y, height), _mirror(x, width)
        y0, x0 = y.floor(), x.floor()
        fy, fx = y - y0, x - x0
        y0, x0 = y0.long(), x0.long()
        y1, x1 = torch.minimum(y0 + 1, height - 1), torch.minimum(x0 + 1, width - 1)
        row0, row1 = start + y0 * width, start + y1 * width
        top = torch.lerp(self._value(row0 + x0), self._value(row0 + x1), fx)
        bottom = torch.lerp(self._value(row1 + x0), self._value(row1 + x1), fx)
        image = torch.lerp(top, bottom, fy) * gain + bias
        nearest = start + y.round().long() * width + x.round().long()
        return image[:, None], self.targets[nearest][:, None].float() / 255

    def _value(self, at: Tensor) -> Tensor:
        return self.pixels[at].int().bitwise_and(0xFFFF).float()

    def whole(self, index: list[int], stride: int) -> tuple[Tensor, Tensor]:
        """Frames of one size, unchanged, padded to a multiple of stride: (n, 1, H', W') twice."""
        height, width = int(self.height[index[0]]), int(self.width[index[0]])
        device = self.pixels.device
        y = torch.arange(-(-height // stride) * stride, dtype=torch.float32, device=device)
        x = torch.arange(-(-width // stride) * stride, dtype=torch.float32, device=device)
        shape = (len(index), len(y), len(x))
        return self.gather(torch.tensor(index), y[None, :, None].expand(shape), x[None, None, :].expand(shape))


def _mirror(t: Tensor, size: Tensor) -> Tensor:
    """Fold coordinates into 0..size-1 as a mirror at the outer pixels does."""
    period = (2 * (size - 1)).clamp(min=1)
    t = t.abs() % period
    return torch.minimum(torch.minimum(t, period - t), size - 1.0)


class Decoded(NamedTuple):
    """One frame as the store keeps it: image = gain * pixels + bias is normalised."""

    pixels: np.ndarray  # (H, W) uint16
    target: np.ndarray  # (H, W) uint8, see targets.distance_target
    gain: float
    bias: float
    points: np.ndarray  # (POINTS, 2) int32 (y, x); -1 without foreground
    widths: np.ndarray  # (cells,) float32, pixels
    areas: np.ndarray  # (cells that do not touch the border,) int32, pixels
    image_hash: str = ""  # see images.hash_pixels; of the whole image, whatever its masks file leaves of it


def decode(frame: Frame) -> Decoded:
    """Read, normalise and make the target of one pair, as `normalise` does: outliers are cut off.

    Whole numbers up to 65535 are kept exactly, others in 65535 steps.
    """
    whole, labels = read_whole_pair(frame)
    image, labels = common_area(frame.image.name, whole, labels)
    low, high = intensity_range(image)
    image = fill_gaps(image)
    least, most = float(image.min()), float(image.max())
    exact = least >= 0 and most <= 65535 and np.array_equal(image, np.round(image))
    least, most = max(least, low - OUTLIER * (high - low)), min(most, high + OUTLIER * (high - low))
    step, zero = (1.0, 0.0) if exact else ((most - least) / 65535 or 1.0, least)
    pixels = np.round((np.clip(image, least, most) - zero) / step).astype(np.uint16)
    target, widths = distance_target(labels)
    inside = np.flatnonzero(target)
    chosen = inside[np.linspace(0, len(inside) - 1, POINTS).astype(np.int64)] if len(inside) else None
    points = np.full((POINTS, 2), -1, np.int32) if chosen is None else np.stack(
        np.unravel_index(chosen, target.shape), axis=1).astype(np.int32)
    return Decoded(pixels, target, step / (high - low), (zero - low) / (high - low), points, widths,
                  whole_areas(labels), hash_pixels(whole))


def build_store(frames: Sequence[Frame], device: torch.device, cache_dir: Path,
                memory_limit: float = 0.0) -> tuple[Store, list[Problem]]:
    """Decode pairs into a Store on the device, in RAM or, where neither holds them, mapped from cache_dir.

    memory_limit: GB that decoded frames may take; 0: half of what is free. A cache on disk is used again as long as
    no source file has changed. Returns the store and a Problem for each pair that could not be decoded.
    Raises SegkitError where none could, or the disk is too small.
    """
    folder = cache_dir / _fingerprint(frames)
    cached = (folder / "index.npz").is_file()
    sizes, faults = ([], {}) if cached else _sizes(frames)
    if not cached and _bytes(sizes) <= (memory_limit * 1e9 or free_memory() / 2):
        flat_pixels, flat_targets = (np.empty(_bytes(sizes) // 3, kind) for kind in (np.uint16, np.uint8))
        at = 0

        def keep(decoded: Decoded) -> None:
            nonlocal at
            size = decoded.pixels.size
            flat_pixels[at:at + size], flat_targets[at:at + size] = decoded.pixels.ravel(), decoded.target.ravel()
            at += size

        index = _decode_all(frames, sizes, faults, keep)
    else:
        if not cached:
            _fill_cache(folder, frames, sizes, faults)
        index, sizes, faults = _load_index(folder)
        flat_pixels = np.memmap(folder / "pixels.u16", np.uint16, mode="c")
        flat_targets = np.memmap(folder / "targets.u8", np.uint8, mode="c")
    problems = [Problem(frames[i].image, reason, 1) for i, reason in sorted(faults.items())]
    sound = np.array([i not in faults for i in range(len(frames))], bool)
    if not sound.any():
        first = f": {problems[0].reason}" if problems else ""
        raise SegkitError(f"none of {len(problems)} pairs could be decoded{first}")
    home = torch.device("cpu")
    if device.type == "cuda" and _bytes(sizes) <= torch.cuda.mem_get_info(device)[0] / 2:
        home = device

    def tensor(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(values[sound]).to(dtype)

    heights, widths = (np.array([s[k] for s in sizes]) for k in (0, 1))
    starts = np.concatenate([[0], np.cumsum(heights * widths)[:-1]])
    cells = index["widths"]
    store = Store(tuple(f for f, ok in zip(frames, sound, strict=True) if ok),
                  torch.from_numpy(flat_pixels.view(np.int16)).to(home), torch.from_numpy(flat_targets).to(home),
                  tensor(starts, torch.int64), tensor(heights, torch.int64), tensor(widths, torch.int64),
                  tensor(index["gain"], torch.float32), tensor(index["bias"], torch.float32),
                  tensor(index["points"], torch.int64), float(np.median(cells)) if len(cells) else 0.0,
                  index["areas"],
                  float(index["inside"][sound].sum() / (heights * widths)[sound].sum()),
                  tuple(index["hashes"][sound].tolist()))
    return store, problems


def _sizes(frames: Sequence[Frame]) -> tuple[list[tuple[int, int]], dict[int, str]]:
    """The size that each image and its masks have in common, and which headers cannot be read (size 0), and why."""
    sizes, faults = [], {}
    for i, frame in enumerate(frames):
        try:
            image, masks = read_header(frame.image), read_header(frame.masks or frame.image)
            sizes.append((min(image.height, masks.height), min(image.width, masks.width)))
        except SegkitError as error:
            faults[i] = str(error)
            sizes.append((0, 0))
    return sizes, faults


def _bytes(sizes: Sequence[tuple[int, int]]) -> int:
    """What decoded frames take: uint16 image and uint8 target."""
    return 3 * sum(height * width for height, width in sizes)


def _decode_all(frames: Sequence[Frame], sizes: Sequence[tuple[int, int]], faults: dict[int, str],
                keep: Callable[[Decoded], None]) -> dict[str, np.ndarray]:
    """Hand each decoded frame to `keep`, in order; a frame that fails is handed on black, and added to faults."""
    rows: list[tuple[Any, ...]] = []
    widths, areas = [np.zeros(0, np.float32)], [np.zeros(0, np.int32)]

    def attempt(i: int) -> Decoded | str:
        if i in faults:
            return faults[i]
        try:
            decoded = decode(frames[i])
            return decoded if decoded.pixels.shape == sizes[i] else f"{frames[i].image.name} changed while it was read"
        except SegkitError as error:
            return str(error)

    workers = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(frames), desc="decoding", unit="frame",
                                                   leave=False) as bar:
        for block in range(0, len(frames), 16 * workers):  # in blocks, so that results never pile up
            numbers = range(block, min(block + 16 * workers, len(frames)))
            for i, decoded in zip(numbers, pool.map(attempt, numbers), strict=True):
                if isinstance(decoded, str):
                    faults[i] = decoded
                    decoded = Decoded(np.zeros(sizes[i], np.uint16), np.zeros(sizes[i], np.uint8), 0.0, 0.0,
                                      np.full((POINTS, 2), -1, np.int32), widths[0], areas[0])
                rows.append((decoded.gain, decoded.bias, decoded.points, np.count_nonzero(decoded.target),
                             decoded.image_hash))
                widths.append(decoded.widths)
                areas.append(decoded.areas)
                keep(decoded)
                bar.update()
    names = ("gain", "bias", "points", "inside", "hashes")
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return {**{name: np.array(column) for name, column in zip(names, columns, strict=True)},
            "widths": np.concatenate(widths), "areas": np.concatenate(areas)}


def _fingerprint(frames: Sequence[Frame]) -> str:
    """A name that changes with any source file: paths, sizes and times of change."""
    digest = hashlib.sha256(b"segkit store 4")
    for frame in frames:
        for path in (frame.image, frame.masks or frame.image):
            stat = path.stat() if path.exists() else None
            there = f"{stat.st_size}|{stat.st_mtime_ns}" if stat else "missing"
            digest.update(f"{path.parent.resolve()}/{path.name}|{there}|{frame.page}\n".encode())
    return digest.hexdigest()[:20]


def _fill_cache(folder: Path, frames: Sequence[Frame], sizes: Sequence[tuple[int, int]],
                faults: dict[int, str]) -> None:
    """Write the cache beside its place and rename it when it is whole."""
    part, needed = folder.with_name(f"{folder.name}.{os.getpid()}.part"), _bytes(sizes)  # another run may fill it, too
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        free = shutil.disk_usage(part).free
        if free < needed * 1.05:
            raise SegkitError(f"the decoded frames need {needed / 1e9:.1f} GB on disk in {folder.parent}, "
                              f"{free / 1e9:.1f} GB are free: free some space or raise MEMORY_LIMIT")
        with open(part / "pixels.u16", "wb") as pixels, open(part / "targets.u8", "wb") as targets:
            def keep(decoded: Decoded) -> None:
                pixels.write(decoded.pixels.tobytes())
                targets.write(decoded.target.tobytes())
            index = _decode_all(frames, sizes, faults, keep)
        np.savez(part / "index.npz", allow_pickle=False, faults=np.array(json.dumps(faults)),
                 sizes=np.array(sizes), **index)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except OSError as error:
        raise SegkitError(f"cannot write the cache of decoded frames in {folder.parent} ({error.strerror or error}): "
                          "free some disk space or raise MEMORY_LIMIT") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _load_index(folder: Path) -> tuple[dict[str, np.ndarray], list[tuple[int, int]], dict[int, str]]:
    with np.load(folder / "index.npz") as archive:
        index = {name: archive[name] for name in archive.files}
    faults = json.loads(str(index.pop("faults")))
    return index, [(int(h), int(w)) for h, w in index.pop("sizes")], {int(i): reason for i, reason in faults.items()}
