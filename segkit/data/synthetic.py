"""Synthetic time-lapses with exact labels and known growth: rods that grow, divide and push each other."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from tqdm.auto import tqdm

from ..errors import SegkitError
from ..files import writing
from .optics import Microscope, draw_microscope, field, outline_shift, render

RADIUS = 4.5  # half a rod's width, pixels
WALL = 4.0  # clearance from the chamber's edge, pixels
EXPOSURE = 0.6  # an empty field in the demo's images, of the brightest that 8 bits hold
_write_tiff = partial(tifffile.imwrite, compression="zlib", compressionargs={"level": 9})


@dataclass
class Rods:
    """The cells of one frame: spherocylinders."""

    centre: np.ndarray  # (n, 2) y, x, pixels
    angle: np.ndarray  # (n,) radians
    area: np.ndarray  # (n,) pixels
    radius: np.ndarray  # (n,) pixels
    divides_at: np.ndarray  # (n,) area at which the cell divides
    label: np.ndarray  # (n,) int: the cell's track
    mother: np.ndarray  # (n,) int: the track of the cell that divided into it, 0: none

    def half_length(self) -> np.ndarray:
        """Half the distance between the caps' centres: area = pi r^2 + 4 r h."""
        return np.maximum((self.area - np.pi * self.radius ** 2) / (4 * self.radius), 0.5)

    def only(self, kept: np.ndarray) -> "Rods":
        """Those of the cells, (n,) bool."""
        return Rods(*(values[kept] for values in vars(self).values()))

    def direction(self) -> np.ndarray:
        """Unit vectors along the cells, (n, 2) y, x."""
        return np.stack([np.sin(self.angle), np.cos(self.angle)], 1)

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Both caps' centres, (n, 2) y, x each."""
        reach = self.direction() * self.half_length()[:, None]
        return self.centre - reach, self.centre + reach


def divide(rods: Rods, rng: np.random.Generator) -> Rods:
    """Cells above their division area become two, end to end; the two share the mother's area."""
    ready = rods.area >= rods.divides_at
    n = int(ready.sum())
    along = rods.direction()[ready]
    share = rng.uniform(0.45, 0.55, n)
    step = (rods.half_length()[ready] + rods.radius[ready])[:, None] / 2
    mother, last = rods.centre[ready].copy(), rods.label.max(initial=0)
    new = Rods(mother + along * step, rods.angle[ready] + rng.normal(0, 0.15, n), rods.area[ready] * (1 - share),
               rods.radius[ready], rng.uniform(330, 430, n), last + n + 1 + np.arange(n), rods.label[ready])
    # the other half keeps the mother's place in the arrays
    rods.mother[ready], rods.label[ready] = rods.label[ready], last + 1 + np.arange(n)
    rods.centre[ready] = mother - along * step
    rods.area[ready] *= share
    rods.divides_at[ready] = rng.uniform(330, 430, n)
    return join([rods, new])


def join(parts: Sequence[Rods]) -> Rods:
    """All cells of several groups, in order."""
    return Rods(*(np.concatenate(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))


def relax(rods: Rods, bounds: np.ndarray, rounds: int) -> None:
    """Push overlapping rods apart and into the chamber: positions and angles move, areas do not."""
    n = len(rods.area)
    i, j = np.triu_indices(n, 1)
    for _ in range(rounds):
        # pairs near enough to touch, and the points at which they come closest
        reach = rods.half_length() + rods.radius
        inertia = reach ** 2 / 1.5
        near = np.linalg.norm(rods.centre[i] - rods.centre[j], axis=1) < reach[i] + reach[j]
        a, b = i[near], j[near]
        start, end = rods.ends()
        s, t = _closest(start[a], end[a], start[b], end[b])
        on_a = start[a] + s[:, None] * (end[a] - start[a])
        on_b = start[b] + t[:, None] * (end[b] - start[b])
        gap = on_a - on_b
        distance = np.linalg.norm(gap, axis=1)

        # overlap pushes both rods apart and turns them about their centres
        depth = rods.radius[a] + rods.radius[b] + 0.3 - distance
        push = depth > 0
        moved = bool(push.any())
        normal = gap / np.maximum(distance, 1e-6)[:, None]
        normal[distance < 1e-6] = (0.0, 1.0)
        force = 0.4 * np.maximum(depth, 0)[:, None] * normal
        shift, turn = np.zeros((n, 2)), np.zeros(n)
        for which, point, sign in ((a, on_a, 1.0), (b, on_b, -1.0)):
            np.add.at(shift, which, 0.5 * sign * force)
            arm = point - rods.centre[which]
            np.add.at(turn, which, sign * (arm[:, 1] * force[:, 0] - arm[:, 0] * force[:, 1]) / inertia[which])

        # the chamber's walls push the ends back inside
        for end_point in rods.ends():
            out = (np.maximum(bounds[0] + rods.radius[:, None] - end_point, 0)
                   - np.maximum(end_point - bounds[1] + rods.radius[:, None], 0))
            moved |= bool((np.abs(out) > 0.05).any())
            arm = end_point - rods.centre
            shift += 0.5 * out
            turn += 0.5 * (arm[:, 1] * out[:, 0] - arm[:, 0] * out[:, 1]) / inertia
        rods.centre = rods.centre + shift
        rods.angle = rods.angle + np.clip(turn, -0.2, 0.2)
        if not moved:
            return


def _closest(p0: np.ndarray, p1: np.ndarray, q0: np.ndarray, q1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parameters (0..1) of the closest points of segment pairs, each array (m, 2); Ericson 2005, section 5.1.9."""
    u, v, w = p1 - p0, q1 - q0, p0 - q0
    a, b, c, d, e = ((x * y).sum(1) for x, y in ((u, u), (u, v), (v, v), (u, w), (v, w)))
    s = np.clip((b * e - c * d) / np.maximum(a * c - b * b, 1e-9), 0, 1)
    t = np.clip((b * s + e) / np.maximum(c, 1e-9), 0, 1)
    s = np.clip((b * t - d) / np.maximum(a, 1e-9), 0, 1)
    return s, t


def _boxes(rods: Rods, shape: tuple[int, int], rim: float, warp: np.ndarray | None = None,
           blunt: float = 2) -> Iterator[tuple[int, tuple[slice, ...], np.ndarray]]:
    """Each rod's number, the box (rim: pixels more on each side) around it, and the box's distances from its axis.

    warp: (2, H, W), pixels, by which each pixel's place (y, x) is moved: it bends the rods. blunt: 2 for round caps,
    more for flatter ones.
    """
    rim += 0 if warp is None else float(np.abs(warp).max())
    for k, (p, q, reach) in enumerate(zip(*rods.ends(), rods.radius * 2 ** (0.5 - 1 / blunt), strict=True)):  # corners
        low = np.maximum(np.floor(np.minimum(p, q) - reach - rim - 1), 0).astype(int)
        high = np.minimum(np.ceil(np.maximum(p, q) + reach + rim + 2), shape).astype(int)
        if (high <= low).any():
            continue
        # only the box around the rod: most pixels are far from it
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        y, x = np.mgrid[box].astype(np.float32) + (0 if warp is None else warp[:, *box])
        along = q - p
        place = ((y - p[0]) * along[0] + (x - p[1]) * along[1]) / max((along ** 2).sum(), 1e-9)
        t = np.clip(place, 0, 1)
        distance = np.hypot(y - p[0] - t * along[0], x - p[1] - t * along[1])
        if blunt != 2:
            beyond = np.abs(place - t) * np.hypot(*along)
            distance = (np.maximum(distance ** 2 - beyond ** 2, 0) ** (blunt / 2) + beyond ** blunt) ** (1 / blunt)
        yield k, box, distance


def draw_labels(rods: Rods, shape: tuple[int, int], warp: np.ndarray | None = None, blunt: float = 2) -> np.ndarray:
    """Instance labels int32 (H, W): a pixel belongs to the nearest rod that covers it. warp, blunt: see `_boxes`."""
    labels = np.zeros(shape, np.int32)
    depth = np.zeros(shape, np.float32)  # of a pixel inside its rod, relative to the radius
    for k, box, distance in _boxes(rods, shape, 0, warp, blunt):
        inside = 1 - distance / rods.radius[k]
        better = (inside > 0) & (inside > depth[box])
        labels[box][better] = rods.label[k]
        depth[box][better] = inside[better]
    return labels


def draw_thickness(rods: Rods, shape: tuple[int, int], rim: float, warp: np.ndarray | None = None,
                   density: np.ndarray | None = None, blunt: float = 2) -> np.ndarray:
    """Thickness of the cells float64 (H, W), 1 in the middle of a typical one: rods of circular section.

    rim: pixels by which a rod reaches beyond its label; density: (n,) factor of each rod; warp, blunt: see `_boxes`.
    """
    thickness = np.zeros(shape)
    for k, box, distance in _boxes(rods, shape, max(rim, 0), warp, blunt):
        half = np.sqrt(np.maximum((rods.radius[k] + rim) ** 2 - distance.astype(float) ** 2, 0))
        half *= (1 if density is None else density[k]) / np.median(rods.radius + rim)
        np.maximum(thickness[box], half, out=thickness[box])
    return thickness


def make_demo_dataset(path: str | Path, *, shape: tuple[int, int] = (128, 128), frames: int = 12, cells: int = 6,
                      positions: Mapping[str, Sequence[int]] | None = None, seed: int = 0, drug_factor: float = 0.05,
                      minutes_per_frame: float = 10.0, doubling_minutes: float = 75.0, drug_frame: int = 6) -> Path:
    """Write a synthetic dataset in the users' layout: images, exact labels, experiments.csv, truth.json, lineage.csv.

    Parameters
    ----------
    path : str or Path
        A new or empty folder.
    shape : (int, int)
        Height and width of the images, pixels.
    frames, cells, seed : int
        Frames per position; cells per position at the start; the same seed writes the same files.
    positions : mapping of str to sequence of int, optional
        Position numbers by experiment; RIF... grows at drug_factor times its rate from its drug_frame-th frame on.
    minutes_per_frame, doubling_minutes : float
        Frame interval, and doubling time of the cells' area without drug, minutes.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    SegkitError
        Where the folder is not empty or cannot be written.
    """
    root = Path(path)
    positions = positions or {"REF": (101, 102, 109), "RIF10": (201, 202, 209)}
    jobs = [(experiment, number) for experiment, numbers in positions.items() for number in numbers]
    grown, lineage = {}, ["experiment,position,frame,label,track,mother_track\n"]
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise SegkitError(f"{root} is not empty: give a new folder for the demo dataset")
        # each position has a generator of its own, so that it does not depend on the others
        for order, (experiment, number) in enumerate(tqdm(jobs, desc="demo", unit="position", leave=False)):
            rng = np.random.default_rng([seed, order])
            rates = np.full(frames, np.log(2) / doubling_minutes * rng.uniform(0.9, 1.1))  # per minute
            before = rates[0]
            rates[drug_frame:] *= drug_factor if experiment.startswith("RIF") else 1
            truth = {"growth_per_minute_before": before, "growth_per_minute_after": rates[-1]}
            film = grow(shape, frames, cells, rates * minutes_per_frame, rng)
            grown[f"{experiment}/Pos{number}"] = truth | _write_position(root, experiment, number, order, film, lineage)
        _write_truth(root, positions, {"minutes_per_frame": minutes_per_frame, "drug_frame": drug_frame,
                                       "reference": "REF", "positions": grown}, lineage)
    return root


def _write_truth(root: Path, experiments: Iterable[str], truth: Mapping[str, object], lineage: Iterable[str]) -> None:
    """Write the timing as users do (experiments.csv), and what was put in, for the tests to measure (truth.json).

    Label numbers have a new order in every frame: lineage.csv says which cell each is.
    """
    (root / "lineage.csv").write_text("".join(lineage), "utf-8")
    timing = [f"{experiment},{truth['minutes_per_frame']:g},{truth['drug_frame']}\n" for experiment in experiments]
    (root / "experiments.csv").write_text("experiment,minutes_per_frame,drug_frame\n" + "".join(timing), "utf-8")
    (root / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", "utf-8")


def _write_position(root: Path, experiment: str, number: int, order: int, movie: Iterable[tuple[np.ndarray, ...]],
                    lineage: list[str]) -> dict[str, object]:
    """Write one position's images and labels and add its cells to lineage; returns what truth.json records.

    Folders vary by their order as real ones do: their names, suffixes, 8 or 16 bits, numbering from 0 or later.
    """
    raw = root / f"{experiment}_raw_data" / f"Pos{number}" / ("aphase", "PreprocessedPhase")[order % 2]
    masks = root / f"{experiment}_masks" / f"Pos{number}" / "PreprocessedPhaseMasks"
    raw.mkdir(parents=True)
    masks.mkdir(parents=True)

    # labels of 8 bits become 16 where a label needs them
    first, suffix = (0, 0, 10)[order % 3], (".tiff", ".tif")[order % 2]
    image_type, scale = ((np.uint8, 170), (np.uint8, 170), (np.uint16, 30000))[order % 3]
    labels_type = np.dtype((np.uint8, np.uint16)[order % 2])
    areas = []
    for k, (image, labels, cells) in enumerate(movie, first):
        lineage += [f"{experiment},Pos{number},{k},{label},{track},{mother}\n" for label, track, mother in cells]
        areas.append(int((labels > 0).sum()))
        stored = np.clip(image * scale, 0, np.iinfo(image_type).max).round().astype(image_type)
        _write_tiff(raw / f"img_{k:09d}{suffix}", stored, predictor=True)
        labels_type = np.promote_types(labels_type, np.min_scalar_type(labels.max()))
        _write_tiff(masks / f"MASK_img_{k:09d}.tif", labels.astype(labels_type))
    return {"first_frame": first, "area_pixels": areas}


def grow(shape: tuple[int, int], frames: int, cells: int, growth: np.ndarray,
         rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (image float32, about 0..1.2; labels int32; label, track, mother's track of each cell) of each frame.

    growth: (frames,) increase of log area from each frame to the next.
    """
    # what stays the same in all frames
    height, width = shape
    microscope, obstacles, light = _demo_field(shape, rng)
    rim = -outline_shift(microscope, RADIUS)
    numbering = rng.spawn(1)[0]  # a stream of its own

    # cells in the middle of the chamber, pushed apart
    floor = width * 0.14 + WALL  # the wall of posts is on the left
    bounds = np.array([[WALL, floor], [height - WALL, width - WALL]])
    area = rng.uniform(0.7, 1.35, cells) * 230.0
    rods = Rods(bounds.mean(0) + rng.uniform(-1, 1, (cells, 2)) * ((bounds[1] - bounds[0]) * 0.3),
                rng.uniform(0, np.pi, cells), area, RADIUS * rng.uniform(0.9, 1.1, cells),
                rng.uniform(330, 430, cells), np.arange(1, cells + 1), np.zeros(cells, int))
    relax(rods, bounds, 150)

    for k in range(frames):
        tracks = draw_labels(rods, shape)
        seen = np.isin(rods.label, tracks)
        lineage = np.stack([numbering.permutation(seen.sum()) + 1, rods.label[seen], rods.mother[seen]], 1)
        numbers = np.zeros(rods.label.max() + 1, np.int32)
        numbers[lineage[:, 1]] = lineage[:, 0]
        labels = numbers[tracks]
        image = EXPOSURE * render(draw_thickness(rods, shape, rim), obstacles, light, microscope, rng)
        yield image, labels, lineage[np.argsort(lineage[:, 0])]
        rods.area = rods.area * np.exp(growth[k])
        rods.centre = rods.centre + rng.normal(0, 0.25, rods.centre.shape)
        rods.angle = rods.angle + rng.normal(0, 0.02, len(rods.angle))
        rods = divide(rods, rng)
        relax(rods, bounds, 60)


def _demo_field(shape: tuple[int, int], rng: np.random.Generator) -> tuple[Microscope, np.ndarray, np.ndarray]:
    """The demo's microscope (a good one), the phase of what does not move, and light: see `optics.field`."""
    # a generator of its own, from as many numbers as earlier versions drew here: the cells stay those they were
    seeds = rng.random(3 + 4 * max(2, shape[0] * shape[1] // 8000))
    rng = np.random.default_rng((seeds * 2 ** 32).astype(np.uint32))
    phase = rng.uniform(0.5, 0.8)
    microscope = replace(
        draw_microscope(rng, RADIUS), phase=phase, ring=phase * rng.uniform(1.05, 1.25), blur=rng.uniform(0.8, 1.1),
        leak=RADIUS * rng.uniform(1.2, 2), defocus=rng.uniform(-2, 2), light=tuple(rng.uniform(-0.09, 0.09, 3)),
        blotches=0.01, dirt=0.01, specks=1.0, noise=rng.uniform(0.012, 0.02), grain=0.0)
    obstacles, light = field(shape, microscope, rng)
    # a wall of square posts along the left edge
    height, width = shape
    side = max(6, int(width * 0.085))
    for top in range(side // 2, height - side // 2, int(side * 1.9)):
        obstacles[top:top + side, side // 3:side // 3 + side] = 0.4 * phase
    return microscope, obstacles, light
