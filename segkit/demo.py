"""Synthetic time-lapses that look like the mission's, with exact labels and a growth rate that is known."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage
from tqdm.auto import tqdm

from .errors import SegkitError
from .files import writing
from .rods import Rods, divide, draw_labels, relax

RADIUS = 4.5  # half a rod's width, pixels
WALL = 4.0  # clearance from the chamber's edge, pixels
_write_tiff = partial(tifffile.imwrite, compression="zlib", compressionargs={"level": 9})


def make_demo_dataset(path: str | Path, *, shape: tuple[int, int] = (128, 128), frames: int = 12,
                      positions: Mapping[str, Sequence[int]] | None = None, cells: int = 6,
                      minutes_per_frame: float = 10.0, doubling_minutes: float = 75.0, drug_frame: int = 6,
                      drug_factor: float = 0.05, seed: int = 0) -> Path:
    """Write a synthetic dataset in the users' layout: images, exact labels, experiments.csv with the
    frames' timing, and truth.json with the growth put in.

    path: a new or empty folder. shape: (height, width), pixels. positions: position numbers per experiment; an
    experiment named RIF... is treated: from drug_frame on (counted from the first frame) its growth rate is
    drug_factor of before. cells: per position at the start. doubling_minutes: of the cells' area without drug.
    The folders vary as real ones do: aphase or PreprocessedPhase, .tif or .tiff, images and masks of 8 or 16 bits,
    numbering from 0 or later. Same seed, same files. Returns path. Raises SegkitError where path is not empty
    or cannot be written.
    """
    root = Path(path)
    positions = positions or {"REF": (101, 102, 109), "RIF10": (201, 202, 209)}
    grown: dict[str, dict[str, object]] = {}
    truth = {"minutes_per_frame": minutes_per_frame, "drug_frame": drug_frame, "reference": "REF", "positions": grown}
    jobs = [(experiment, number) for experiment, numbers in positions.items() for number in numbers]
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise SegkitError(f"{root} is not empty: give a new folder for the demo dataset")
        for order, (experiment, number) in enumerate(tqdm(jobs, desc="demo", unit="position", leave=False)):
            rng = np.random.default_rng([seed, order])
            rate = np.log(2) / doubling_minutes * rng.uniform(0.9, 1.1)  # per minute
            treated = experiment.startswith("RIF")
            rates = np.full(frames, rate)
            if treated:
                rates[drug_frame:] *= drug_factor
            first = (0, 0, 10)[order % 3]
            raw = root / f"{experiment}_raw_data" / f"Pos{number}" / ("aphase", "PreprocessedPhase")[order % 2]
            masks = root / f"{experiment}_masks" / f"Pos{number}" / "PreprocessedPhaseMasks"
            raw.mkdir(parents=True)
            masks.mkdir(parents=True)
            suffix, image_type = (".tiff", ".tif")[order % 2], (np.uint8, np.uint8, np.uint16)[order % 3]
            labels_type = (np.uint8, np.uint16)[order % 2]
            areas = []
            for k, (image, labels) in enumerate(grow(shape, frames, cells, rates * minutes_per_frame, rng)):
                areas.append(int((labels > 0).sum()))
                scale = 30000 if image_type is np.uint16 else 170
                picture = np.clip(image * scale, 0, np.iinfo(image_type).max).round().astype(image_type)
                _write_tiff(raw / f"img_{first + k:09d}{suffix}", picture, predictor=True)
                if labels.max() > np.iinfo(labels_type).max:
                    labels_type = np.uint16
                _write_tiff(masks / f"MASK_img_{first + k:09d}.tif", labels.astype(labels_type))
            grown[f"{experiment}/Pos{number}"] = {
                "growth_per_minute_before": rate, "growth_per_minute_after": rates[-1], "first_frame": first,
                "area_pixels": areas}
        lines = [f"{experiment},{minutes_per_frame:g},{drug_frame}" for experiment in positions]
        (root / "experiments.csv").write_text("experiment,minutes_per_frame,drug_frame\n" + "\n".join(lines) + "\n",
                                              encoding="utf-8")
        (root / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return root


def grow(shape: tuple[int, int], frames: int, cells: int, growth: np.ndarray,
         rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (image float32, about 0..1.2; labels int32) of one position, frame by frame.

    growth: (frames,) increase of log area from each frame to the next.
    """
    height, width = shape
    light = _light(shape, rng)
    dust = _dust(shape, rng)
    posts = _posts(shape)
    floor = width * 0.14 + WALL  # the posts' wall is on the left
    bounds = np.array([[WALL, floor], [height - WALL, width - WALL]])
    area = rng.uniform(0.7, 1.35, cells) * 230.0
    middle = bounds.mean(0)
    spread = (bounds[1] - bounds[0]) * 0.3
    rods = Rods(middle + rng.uniform(-1, 1, (cells, 2)) * spread, rng.uniform(0, np.pi, cells), area,
                RADIUS * rng.uniform(0.9, 1.1, cells), rng.uniform(330, 430, cells), np.arange(1, cells + 1))
    relax(rods, bounds, 150)
    for k in range(frames):
        labels = draw_labels(rods, shape)
        yield render(labels, light, dust, posts, rng), labels
        rods.area = rods.area * np.exp(growth[k])
        rods.centre = rods.centre + rng.normal(0, 0.25, rods.centre.shape)
        rods.angle = rods.angle + rng.normal(0, 0.02, len(rods.angle))
        rods = divide(rods, rng)
        relax(rods, bounds, 60)


def render(labels: np.ndarray, light: np.ndarray, dust: np.ndarray, posts: np.ndarray,
           rng: np.random.Generator) -> np.ndarray:
    """Phase contrast as it looks: dark bodies, darker in the middle, with a bright halo, under uneven light."""
    body = (labels > 0).astype(np.float32)
    edges = np.zeros_like(body)  # touching cells show a faint bright line between them
    edges[:-1] += (labels[:-1] != labels[1:]) & (labels[:-1] > 0) & (labels[1:] > 0)
    edges[:, :-1] += (labels[:, :-1] != labels[:, 1:]) & (labels[:, :-1] > 0) & (labels[:, 1:] > 0)
    sharp = ndimage.gaussian_filter(body, 1.0) - 0.35 * ndimage.gaussian_filter(edges, 0.8)
    halo = ndimage.gaussian_filter(body, 4.0)
    phase = 0.62 - 0.42 * sharp + 0.42 * np.maximum(halo - 0.35 * sharp, 0)
    picture = (phase + posts + dust) * light
    return (picture + rng.normal(0, 0.016, body.shape)).astype(np.float32)


def _light(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    a, b, c = rng.uniform(-0.09, 0.09, 3)
    return 1 + a * y[:, None] + b * x[None, :] + c * (y[:, None] ** 2 + x[None, :] ** 2 - 0.7)


def _posts(shape: tuple[int, int]) -> np.ndarray:
    """A wall of square posts along the left edge: grey squares with a bright rim."""
    height, width = shape
    side = max(6, int(width * 0.085))
    picture = np.zeros(shape, np.float32)
    for top in range(side // 2, height - side // 2, int(side * 1.9)):
        picture[top:top + side, side // 3:side // 3 + side] = 1
    soft = ndimage.gaussian_filter(picture, 0.8)
    return 0.24 * ndimage.gaussian_filter(picture, 2.5) - 0.26 * soft


def _dust(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A few specks, dark or bright, that stay where they are."""
    picture = np.zeros(shape, np.float32)
    count = max(2, shape[0] * shape[1] // 8000)
    for y, x, strength, size in zip(rng.uniform(0, shape[0], count), rng.uniform(0, shape[1], count),
                                    rng.uniform(-0.35, 0.3, count), rng.uniform(0.8, 1.8, count), strict=True):
        yy, xx = np.ogrid[:shape[0], :shape[1]]
        picture += strength * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / (2 * size ** 2))
    return picture
