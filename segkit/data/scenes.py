"""Random phase-contrast frames with exact labels, for training: rods, filaments, cocci; colonies, channels, posts."""

from dataclasses import replace

import numpy as np
from scipy import ndimage
from skimage.segmentation import relabel_sequential

from .optics import draw_microscope, field, outline_shift, render, smooth_noise
from .synthetic import Rods, divide, draw_labels, draw_thickness, join, relax

SCENES = {"empty": 0.1, "few": 0.2, "clumps": 0.2, "colony": 0.2, "crowded": 0.15, "channels": 0.15}  # shares of frames
HALF_WIDTHS = (2.5, 7.5)  # of cells, each frame has its own, pixels
MAX_CELLS = 200  # of a frame
OPEN = np.array([[-1e4, -1e4], [1e4, 1e4]])  # bounds where there are none


def draw_scene(shape: tuple[int, int], rng: np.random.Generator, blunt: float = 2) -> tuple[str, Rods, np.ndarray]:
    """A random scene for one frame: its kind (one of SCENES), cells, and where walls and posts are (H, W), 0 to 1.

    Half widths from 2.5 to 7.5 pixels, aspect ratios from 1.1 (cocci) to 14 (filaments). Cells may lie partly or wholly
    outside the frame. blunt: of the cells that divide, see `_constrict`.
    """
    kind = str(rng.choice(list(SCENES), p=list(SCENES.values())))
    radius, walls = float(np.exp(rng.uniform(*np.log(HALF_WIDTHS)))), np.zeros(shape)
    if kind == "channels":
        return kind, *_channels(shape, radius, rng, blunt)
    if kind == "colony":
        rods = _colony(shape, radius, rng)
    else:
        aspect = np.exp(rng.uniform(*np.log(rng.choice([(1.1, 1.4), (1.6, 5), (3, 14)], p=(0.2, 0.6, 0.2)))))
        cell = np.pi * radius ** 2 + 4 * radius ** 2 * (aspect - 1)  # pixels
        count = {"empty": 0, "few": rng.integers(1, 6), "clumps": rng.uniform(0.03, 0.4) * walls.size / cell,
                 "crowded": rng.uniform(0.6, 0.95) * walls.size / cell}[kind]
        rods = _rods(min(int(count), MAX_CELLS), radius, cell, rng)
        low, high = np.zeros(2), np.array(shape, float)
        if kind == "crowded":  # a dense strip where more cells than there may be would fill the frame
            high[rng.integers(2)] *= min(1, MAX_CELLS / count)
        rods.centre = rng.uniform(low, high, rods.centre.shape)
        if kind == "clumps":  # one to three of them, of any tightness
            middles = rng.uniform(low, high, (rng.integers(1, 4), 2))
            rods.centre = rng.choice(middles, len(rods.area)) + rng.normal(0, rng.uniform(10, 80), rods.centre.shape)
        if rng.random() < 1 / 3:
            rods.angle = rng.uniform(0, np.pi) + rng.normal(0, 0.1, len(rods.area))
        relax(rods, np.array([low - radius, high + radius]) if kind == "crowded" else OPEN, 60)
    rods = _constrict(rods, rng.uniform(0, 0.6), rng, blunt)
    rods.radius = rods.radius * rng.uniform(1, 1.2)  # neighbours press on each other
    if rng.random() < 0.2:  # posts, in a grid; cells are not drawn where they are
        side = rng.uniform(3, 8) * radius
        y, x = ((np.arange(n) + rng.integers(n)) % (side * rng.uniform(1.5, 4)) < side for n in shape)
        walls[y[:, None] & x] = 1
    return kind, rods, walls


def _rods(count: int, radius: float, area: float, rng: np.random.Generator) -> Rods:
    """Rods of about these half widths and areas, all at the origin and in any direction."""
    areas = area * rng.uniform(0.65, 1.35, count)
    return Rods(np.zeros((count, 2)), rng.uniform(0, np.pi, count), areas, radius * rng.uniform(0.93, 1.07, count),
                np.full(count, np.inf), np.arange(1, count + 1), np.zeros(count, int))


def _constrict(rods: Rods, share: float, rng: np.random.Generator, blunt: float = 2) -> Rods:
    """Some of the cells divide: two daughters that overlap, often still one cell (label) where the waist is shallow.

    Two cells are bent at the waist. Between blunt ones the thickness falls, as at a septum, the outline hardly does.
    """
    chosen = (rods.half_length() > 1.2 * rods.radius) & (rng.random(len(rods.area)) < share)
    mothers = rods.only(chosen)
    half, overlap = mothers.half_length(), mothers.radius * rng.uniform(0.1, 1.2, len(mothers.area)) * 2 / blunt
    middle = half * rng.uniform(-0.15, 0.15, len(half))  # of the waist, from the mother's middle
    apart = overlap < mothers.radius * rng.uniform(0.5, 1.2, len(half))  # teachers differ
    cells = [rods.only(~chosen)]
    for side in (-1, 1):
        length = (half + mothers.radius - side * middle + overlap) / 2 - mothers.radius  # half of the axis
        cells.append(replace(mothers, centre=mothers.centre + side * mothers.direction() * (half - length)[:, None],
                             area=np.pi * mothers.radius ** 2 + 4 * mothers.radius * np.maximum(length, 0.5),
                             angle=mothers.angle + apart * rng.normal(0, 0.08, len(half))))
    label, count = np.arange(1, len(rods.area) + len(half) + 1), len(rods.area)
    label[count:] = np.where(apart, label[count:], label[count - len(half):count])
    return replace(join(cells), label=label)


def draw_stalks(rods: Rods, labels: np.ndarray, rng: np.random.Generator) -> Rods:
    """Stalks at a free pole of some of the cells, as *Caulobacter* has: chains of thin rods with the cell's label."""
    beyond = np.clip(rods.ends()[1] + 2 * rods.radius[:, None] * rods.direction(), 0, np.array(labels.shape) - 1)
    free = labels[tuple(beyond.astype(int).T)] == 0
    link = rods.only(free & (rng.random(len(free)) < rng.uniform(0.3, 1)))
    link.centre, link.radius = link.ends()[1], 0 * link.radius + rng.uniform(0.2, 0.6) * rods.radius.max(initial=5)
    link.area = (np.pi + 3) * link.radius ** 2
    turn, links, stalks = np.zeros(len(link.area)), rng.integers(5, 120, len(link.area)), [link.only(link.area < 0)]
    for k in range(links.max(initial=0)):
        turn = 0.8 * turn + rng.normal(0, 0.06, len(turn))
        link = replace(link, angle=link.angle + turn)
        link.centre = link.centre + 1.5 * link.radius[:, None] * link.direction()
        stalks.append(link.only(k < links))
    return join(stalks)


def _colony(shape: tuple[int, int], radius: float, rng: np.random.Generator) -> Rods:
    """Colonies that grew from one to three cells to a few or to many."""
    slim = rng.uniform(3, 7)  # pixels: as `divide` knows one area only, slim cells are the long ones
    rods = _rods(int(rng.integers(1, 4)), slim, 260, rng)
    rods.divides_at = rng.uniform(330, 430, len(rods.area))
    rods.centre = rng.uniform(0, 1, rods.centre.shape) * shape * (slim / radius)
    count = np.exp(rng.uniform(np.log(6), np.log(MAX_CELLS)))
    while len(rods.area) < count:
        rods.area = rods.area * 1.15
        rods = divide(rods, rng)
        relax(rods, OPEN, 10)
    grown = radius / slim
    return replace(rods, centre=rods.centre * grown, radius=rods.radius * grown, area=rods.area * grown ** 2)


def _channels(shape: tuple[int, int], radius: float, rng: np.random.Generator, blunt: float) -> tuple[Rods, np.ndarray]:
    """Dead-end channels that open into a trench, with cells end to end; walls (H, W) are 1."""
    half = radius * rng.uniform(1.0, 1.35)
    pitch, top, bottom = 2 * half * rng.uniform(1.5, 4), *rng.uniform((-0.2, 0.5), (0.3, 1.1)) * shape[0]
    middles = np.arange(rng.uniform(0, pitch), shape[1], pitch)
    y, x = np.ogrid[:shape[0], :shape[1]]
    inside = (np.abs(x - middles[:, None, None]) < half).any(0) & (y > top)
    trench = y + 0 * x > bottom + rng.uniform(0, 2) * smooth_noise((1, shape[1]), rng.uniform(2, 30), rng)
    walls = 1.0 * (~(inside | trench) | (y > bottom + radius * rng.uniform(6, 40)))  # the far wall is often outside
    walls = 1.0 * (ndimage.gaussian_filter(walls, half * rng.uniform(0.2, 0.7) * rng.integers(2)) > 0.5)  # rounded
    for row in rng.integers(0, shape[0], rng.integers(0, 4)):  # bands where they are lower
        walls[row:row + int(radius * np.exp(rng.uniform(-1, 3.5)))] *= rng.uniform(0.05, 1)
    # cells from the closed end on, as many as a random share of the channel holds
    places = []
    for middle in middles:
        at, full = top, top + rng.uniform(0, 1.1) * (bottom - top)
        while (length := 2 * radius * rng.uniform(1.5, 5)) + at < full:
            places.append((at + length / 2, middle, length))
            at += length + rng.exponential(1.0)
    rods = _rods(len(places), radius, 1.0, rng)
    centre_y, centre_x, lengths = np.array(places).reshape(-1, 3).T
    rods.centre = np.stack([centre_y, centre_x + rng.uniform(-1, 1, len(places)) * (half - radius)], 1)
    rods.area = np.pi * rods.radius ** 2 + 2 * rods.radius * (lengths - 2 * rods.radius)
    rods.angle = np.pi / 2 + rng.normal(0, 0.02, len(places))
    return _constrict(rods, rng.uniform(0, 0.8), rng, blunt), walls


def _debris(shape: tuple[int, int], radius: float, rng: np.random.Generator) -> np.ndarray:
    """What is not a cell (H, W), 1 as thick as a cell: ragged clumps and scratches, darker or brighter than around."""
    y, x = np.mgrid[:shape[0], :shape[1]]
    rough = ndimage.gaussian_filter(rng.normal(size=shape), radius * np.exp(rng.uniform(-2.1, -0.5)))
    relief = np.maximum(rng.uniform(-0.5, 1) + rough / rough.std(), rng.choice([0, -9]))  # 0: with gaps between
    cover = np.zeros(shape)
    for _ in range(rng.integers(0, 4)):  # scratches through the whole frame
        (top, left), angle = rng.uniform(0, shape), rng.uniform(0, np.pi)
        across = (y - top) * np.cos(angle) + (x - left) * np.sin(angle)
        across += radius * rng.uniform(0, 3) * smooth_noise(shape, rng.uniform(20, 80), rng)
        cover += np.exp(rng.uniform(-3, 0) - (across / (radius * rng.uniform(0.4, 2))) ** 2)
    for _ in range(rng.integers(0, 9)):
        (top, left), (height, width) = rng.uniform(0, shape), radius * np.exp(rng.uniform(-1.2, 0.9, 2))
        cover += rng.uniform(0.1, 1) * np.exp(-((y - top) / height) ** 2 - ((x - left) / width) ** 2)
    return cover * relief


def draw_frame(rng: np.random.Generator, shape: tuple[int, int] = (256, 256)) -> tuple[np.ndarray, np.ndarray]:
    """A random phase-contrast image and its exact labels, for training.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : (int, int)
        Height and width, pixels.

    Returns
    -------
    image : (H, W) float32
        Intensity, 1 in an empty field.
    labels : (H, W) int32
        0 = background, numbered from 1 without gaps; outlined as Omnipose does (`optics.outline_shift`).

    Notes
    -----
    The scene is one of `draw_scene`, bent by a smooth warp in a half of the frames; cells are blunt in two of five. The
    microscope is one of `draw_microscope`.
    """
    blunt = rng.uniform(2, 4.5) if rng.random() < 0.4 else 2.0
    kind, rods, walls = draw_scene(shape, rng, blunt)
    radius = float(np.median(rods.radius)) if len(rods.radius) else 5.0
    microscope = draw_microscope(rng, radius)
    warp = None
    if not walls.any() and rng.random() < 0.5:
        scale = rng.uniform(30, 100)
        warp = rng.uniform(0, 0.09) * scale * np.stack([smooth_noise(shape, scale, rng) for _ in range(2)])

    labels = draw_labels(rods, shape, warp, blunt)
    if kind != "channels":  # cells on posts are left out
        blocked = np.unique(labels[walls > 0])
        rods, labels = rods.only(~np.isin(rods.label, blocked)), np.where(np.isin(labels, blocked), 0, labels)
    texture = 1 + rng.uniform(0, 0.18) * smooth_noise(shape, radius * rng.uniform(0.5, 2), rng)
    thickness = texture * draw_thickness(rods, shape, -outline_shift(microscope, radius), warp,
                                         rng.uniform(0.85, 1.15, rods.label.max(initial=0) + 1)[rods.label], blunt)
    if kind in ("few", "clumps") and not walls.any() and 0 < len(rods.area) <= 12 and rng.random() < 0.7:
        stalks = draw_stalks(rods, labels, rng)
        labels = np.where(labels, labels, draw_labels(stalks, shape, warp))
        rim = -0.35 * stalks.radius.max(initial=1)  # labels reach beyond what is dark, as Omnipose's do
        thickness = np.maximum(thickness, rng.uniform(0.15, 0.5) * draw_thickness(stalks, shape, rim, warp))
    obstacles, light = field(shape, microscope, rng)
    if rng.random() < (0.5 if kind in ("empty", "few") else 0.25):
        obstacles += microscope.phase * _debris(shape, radius, rng)
    depth = rng.uniform(0.2, 1.2) if rng.random() < 0.8 else rng.uniform(-0.6, -0.2)  # radians
    obstacles += depth * ndimage.gaussian_filter(walls, rng.uniform(0.5, 3))
    return render(thickness, obstacles, light, microscope, rng), relabel_sequential(labels)[0].astype(np.int32)
