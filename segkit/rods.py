"""Rod-shaped cells that grow, divide and push each other: the mechanics of the demo dataset."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Rods:
    """The cells of one frame: spherocylinders."""

    centre: np.ndarray  # (n, 2) y, x, pixels
    angle: np.ndarray  # (n,) radians
    area: np.ndarray  # (n,) pixels
    radius: np.ndarray  # (n,) pixels
    divides_at: np.ndarray  # (n,) area at which the cell divides
    label: np.ndarray  # (n,) int

    def half_length(self) -> np.ndarray:
        """Half the distance between the caps' centres: area = pi r^2 + 4 r h."""
        return np.maximum((self.area - np.pi * self.radius ** 2) / (4 * self.radius), 0.5)

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Both caps' centres, (n, 2) y, x each."""
        reach = np.stack([np.sin(self.angle), np.cos(self.angle)], 1) * self.half_length()[:, None]
        return self.centre - reach, self.centre + reach


def divide(rods: Rods, rng: np.random.Generator) -> Rods:
    """Cells past their size become two halves, end to end, with the mother's area between them."""
    ready = rods.area >= rods.divides_at
    n = int(ready.sum())
    if n == 0:
        return rods
    along = np.stack([np.sin(rods.angle), np.cos(rods.angle)], 1)[ready]
    share = rng.uniform(0.45, 0.55, n)
    step = (rods.half_length()[ready] + rods.radius[ready])[:, None] / 2
    mother = rods.centre[ready].copy()
    new = Rods(mother + along * step, rods.angle[ready] + rng.normal(0, 0.15, n), rods.area[ready] * (1 - share),
               rods.radius[ready], rng.uniform(330, 430, n), rods.label.max() + 1 + np.arange(n))
    rods.centre[ready] = mother - along * step
    rods.area[ready] *= share
    rods.divides_at[ready] = rng.uniform(330, 430, n)
    names = ("centre", "angle", "area", "radius", "divides_at", "label")
    return Rods(*(np.concatenate([getattr(rods, name), getattr(new, name)]) for name in names))


def relax(rods: Rods, bounds: np.ndarray, rounds: int) -> None:
    """Push overlapping rods apart and into the chamber: positions and angles move, areas do not."""
    n = len(rods.area)
    i, j = np.triu_indices(n, 1)
    for _ in range(rounds):
        half = rods.half_length()
        reach = half + rods.radius
        near = np.linalg.norm(rods.centre[i] - rods.centre[j], axis=1) < reach[i] + reach[j]
        a, b = i[near], j[near]
        start, end = rods.ends()
        s, t = _closest(start[a], end[a], start[b], end[b])
        on_a = start[a] + s[:, None] * (end[a] - start[a])
        on_b = start[b] + t[:, None] * (end[b] - start[b])
        gap = on_a - on_b
        distance = np.linalg.norm(gap, axis=1)
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
            inertia = (half[which] + rods.radius[which]) ** 2 / 1.5
            np.add.at(turn, which, sign * (arm[:, 1] * force[:, 0] - arm[:, 0] * force[:, 1]) / inertia)
        for end_point in rods.ends():
            out = (np.maximum(bounds[0] + rods.radius[:, None] - end_point, 0)
                   - np.maximum(end_point - bounds[1] + rods.radius[:, None], 0))
            moved |= bool((np.abs(out) > 0.05).any())
            arm = end_point - rods.centre
            shift += 0.5 * out
            turn += 0.5 * (arm[:, 1] * out[:, 0] - arm[:, 0] * out[:, 1]) / ((half + rods.radius) ** 2 / 1.5)
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


def draw_labels(rods: Rods, shape: tuple[int, int]) -> np.ndarray:
    """Instance labels int32 (H, W): a pixel belongs to the nearest rod that covers it."""
    labels = np.zeros(shape, np.int32)
    depth = np.zeros(shape, np.float32)  # how deep inside its rod a pixel lies, relative to the radius
    starts, ends = rods.ends()
    for p, q, radius, label in zip(starts, ends, rods.radius, rods.label, strict=True):
        low = np.maximum(np.floor(np.minimum(p, q) - radius - 1), 0).astype(int)
        high = np.minimum(np.ceil(np.maximum(p, q) + radius + 2), shape).astype(int)
        if (high <= low).any():
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        y, x = np.mgrid[box].astype(np.float32)
        along = q - p
        t = np.clip(((y - p[0]) * along[0] + (x - p[1]) * along[1]) / max((along ** 2).sum(), 1e-9), 0, 1)
        inside = 1 - np.hypot(y - p[0] - t * along[0], x - p[1] - t * along[1]) / radius
        better = (inside > 0) & (inside > depth[box])
        labels[box][better] = label
        depth[box][better] = inside[better]
    return labels
