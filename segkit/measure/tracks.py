"""Follow cells from frame to frame: links, divisions, and one row for each track."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache

import numpy as np
import pandas as pd
from scipy import fft

from ..errors import SegkitError
from .links import ALONE, AT_EXIT, CELL, LOST, solve

TRACKS_COLUMNS = ("track", "first_frame", "last_frame", "mother_track", "daughters", "began", "ended")
GAP = 2  # frames in which a cell may be missing
HALVES = (0.35, 0.65)  # area of a daughter over her mother's
GROWTH = (0.05, 0.15, 0.3, 0.5)  # log area per frame, before any is measured


def _measure(labels: np.ndarray, frame: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The cells (n,) of a frame (H, W), in the order of their labels, and their runs of pixels (4, r).

    A run lies in one row of the image: its cell's row among all, y, first x and length. There are several times fewer
    runs than pixels. count: cells of the frames before.
    """
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype.kind not in "iu" \
            or labels.min(initial=0) < 0:
        raise SegkitError(f"the labels of frame {frame} are {type(labels).__name__} {getattr(labels, 'dtype', '')} "
                          f"{getattr(labels, 'shape', '')}: whole numbers from 0 of (height, width) were needed")
    # a run begins where the label changes, and in every row
    flat, (height, width) = labels.ravel(), labels.shape
    begins = np.append(True, flat[1:] != flat[:-1])[:flat.size]
    begins[::max(width, 1)] = True
    start = np.flatnonzero(begins)
    held = flat[start] > 0
    n, start = np.diff(start, append=flat.size)[held], start[held]
    (y, x), (numbers, owner) = np.divmod(start, max(width, 1)), np.unique(flat[start], return_inverse=True)
    cells = np.zeros(len(numbers), CELL)
    cells["label"], cells["area"] = numbers, np.bincount(owner, n, len(cells))

    def mean(v: np.ndarray) -> np.ndarray:
        return np.bincount(owner, n * v, len(cells)) / cells["area"]

    # the ellipse with the cell's second moments gives axis, length and width
    middle = x + (n - 1) / 2
    cells["centre"] = mean(middle) + 1j * mean(y)
    dx, dy = middle - cells["centre"].real[owner], y - cells["centre"].imag[owner]
    xx, yy, xy = mean(dx * dx + (n * n - 1) / 12), mean(dy * dy), mean(dx * dy)
    long, both = xx - yy + 2j * xy, xx + yy + 1 / 6
    cells["axis"] = np.exp(0.5j * np.angle(long))
    cells["length"], cells["width"] = 4 * np.sqrt((both + np.abs(long)) / 2), 4 * np.sqrt((both - np.abs(long)) / 2)
    edge = (y == 0) | (x == 0) | (y == height - 1) | (x + n == width)
    cells["alone"] = np.where(np.bincount(owner, edge, len(cells)) > 0, AT_EXIT, ALONE)
    cells["row"], cells["seen"] = count + np.arange(len(cells)), frame
    cells["source"], cells["channel"], cells["before"] = cells["row"], -1, -1
    return cells, np.stack([cells["row"][owner], y, x, n])


def _thumb(picture: np.ndarray) -> np.ndarray:
    """A quarter of the size, with mean 0 and soft edges, for `_drift`; (H // 4, W // 4) float32."""
    h, w = (side // 4 for side in picture.shape)
    rows = sum((picture[k:4 * h:4] for k in range(4)), np.zeros((h, picture.shape[1]), np.float32))
    small = np.asarray(sum(rows[:, k:4 * w:4] for k in range(4)), np.float32)
    return (small - small.mean()) * np.float32(np.hanning(h + 2)[1:-1, None] * np.hanning(w + 2)[1:-1])


def _drift(before: np.ndarray, after: np.ndarray, whiten: bool) -> complex:
    """How far the view moved, x + iy pixels, by the correlation of two `_thumb`s; whiten: of phases (Kuglin 1975)."""
    shape = [fft.next_fast_len(max(1, *sides), real=True) for sides in zip(before.shape, after.shape, strict=True)]
    cross = fft.rfft2(after, shape) * fft.rfft2(before, shape).conj()
    match = fft.irfft2(cross / (np.abs(cross) + np.float32(1e-9)) if whiten else cross, shape)
    # small moves are likelier: channels look alike from one to the next
    rows, columns = (n * fft.fftfreq(n) for n in shape)
    match *= np.exp(-np.hypot(rows[:, None], columns) / 25)
    at = np.unravel_index(match.argmax(), shape)
    # the top of a parabola lies between pixels of a quarter of the size
    top = []
    for axis, (p, n) in enumerate(zip(at, shape, strict=True)):
        low, mid, high = np.moveaxis(match, axis, 0)[np.arange(p - 1, p + 2) % n, at[1 - axis]]
        top.append(p - n * (p > n / 2) + (high - low) / max(2 * (2 * mid - low - high), 1e-9))
    return 4 * complex(*top[::-1])


def _pixels(cells: np.ndarray, runs: np.ndarray, shape: tuple[int, ...], by: complex = 0j) \
        -> tuple[np.ndarray, np.ndarray]:
    """Cell and flat index of each pixel of the cells' runs, moved by x + iy, that lies in a frame of this shape."""
    index = np.zeros(cells["row"].max(initial=0) + 1, int)
    index[cells["row"]] = np.arange(len(cells))
    owner, (y, x, n) = index[runs[0]], runs[1:]
    moved = cells["moved"] + np.round(by)
    right, down = np.array([moved.real, moved.imag], int)[:, owner]
    y, (low, high) = y + down, np.clip(np.stack([x, x + n]) + right, 0, shape[1])
    n = (high - low) * ((y >= 0) & (y < shape[0]))
    return np.repeat(owner, n), np.arange(n.sum()) + np.repeat(y * shape[1] + low - np.cumsum(n) + n, n)


def _shared(a: np.ndarray, runs: np.ndarray, b: np.ndarray, others: np.ndarray, shape: tuple[int, ...],
            shift: complex) -> tuple[np.ndarray, complex]:
    """Pixels that each of a, moved by the shift, shares with each of b (n, m); the shift, or 0 where that fits as well.

    runs, others: those of a and of b, (4, r).
    """
    index, (owner, at) = np.full(shape, len(b), np.int32).ravel(), _pixels(b, others, shape)
    index[at] = owner
    covered = [np.count_nonzero(index[_pixels(a, runs[:, ::4], shape, by)[1]] < len(b)) for by in (shift, 0j)]
    shift *= covered[0] > 1.05 * covered[1]
    owner, at = _pixels(a, runs, shape, shift)
    pairs = np.bincount(owner * (len(b) + 1) + index[at], minlength=len(a) * (len(b) + 1))
    return pairs.reshape(len(a), len(b) + 1)[:, :-1], shift


def _forced(a: np.ndarray, b: np.ndarray, todo: dict[tuple[int, int], tuple[int, ...]], frame: int) -> np.ndarray:
    """The user's corrections of cells a of this frame: members (h, 4) as in `solve`; they are taken out of todo."""
    rows: list[list[int]] = []
    for i in np.flatnonzero(a["alone"] > LOST) if todo else ():
        following = todo.pop((frame, int(a["label"][i])), None)
        if following is not None:
            to = [int(k) for label in following for k in np.flatnonzero(b["label"] == label)]
            if len(following) > 2 or len(to) < len(following) or {*to} & {k for row in rows for k in row[2:]}:
                raise SegkitError(f"the correction of a cell in frame {frame} names {list(following)}: no label, or "
                                  "one or two of the next frame that no other correction names, were needed")
            rows.append([int(i), -1, *to, -2, -2][:4])
    return np.maximum(np.array(rows, int).reshape(-1, 4), -1)


def _link(a: np.ndarray, b: np.ndarray, members: np.ndarray, doubt: np.ndarray) -> None:
    """Note for the cells b what they come from, and how sure that is; members, doubt: as in `solve`."""
    for daughter in members.T[2:]:  # one cell that continues the track, or two
        linked = daughter >= 0
        b["before"][daughter[linked]] = a["source"][members[linked, 0]]
        b["divided"][daughter[linked]] = members[linked, 3] >= 0
        b["doubt"][daughter[linked]] = doubt[linked]


def _carry(a: np.ndarray, b: np.ndarray, members: np.ndarray, frame: int, longest: int) -> np.ndarray:
    """Cells to link to the next frame: b, and those of a to look for again, moved as their neighbours.

    longest: for how many frames a cell is looked for.
    """
    i, i2, j, j2 = members.T
    keep, shown, one = np.ones(len(a), bool), np.ones(len(b), bool), (i2 < 0) & (j2 < 0) & (j >= 0)
    stays, moves = a["centre"][i[one]], b["centre"][j[one]] - a["centre"][i[one]]
    # cells drawn as one are looked for as they were; the first stands for both
    merged = (i2 >= 0) & (frame - np.minimum(a["seen"][i], a["seen"][i2]) < longest)
    keep[i] = keep[i2[i2 >= 0]] = shown[j[merged]] = False
    keep[i[merged]] = keep[i2[merged]] = True
    a["alone"] = LOST
    a["alone"][i[merged]] = ALONE
    for name in ("label", "source"):
        a[name][i[merged]] = b[name][j[merged]]
    a = a[keep]
    if len(moves):
        near = np.argsort(np.abs(a["centre"][:, None] - stays), axis=1)[:, :2]
        _move(a, moves[near].mean(1))
    return np.concatenate([b[shown], a])


def _move(cells: np.ndarray, by: np.ndarray | complex) -> None:
    """Move cells by x + iy: their centres, and their runs by whole pixels."""
    cells["centre"] += by
    cells["moved"] += np.round(by)


def link_cells(labels: Iterable[np.ndarray], frames: Iterable[int] | None = None,
               images: Iterable[np.ndarray] | None = None) -> pd.DataFrame:
    """Follow the cells of one position through its frames: tracks and divisions.

    Parameters
    ----------
    labels : iterable of ndarray of int, (H, W)
        One for each frame, 0 is background. A generator is read frame by frame.
    frames : iterable of int, optional
        The frames' numbers, increasing, where some are missing; else 0, 1, 2, ...
    images : iterable of ndarray, (H, W), optional
        The frames' images, which tell how far the view moved; else the labels do.

    Returns
    -------
    DataFrame
        One row per cell and frame: frame, label, track (from 1), mother_track (0: none). A division ends the mother's
        track and begins two.

    Raises
    ------
    SegkitError
        If labels or images are no arrays (H, W), labels no whole numbers from 0, or frames do not increase or are not
        as many.

    Notes
    -----
    One assignment per pair of frames among links, divisions and cells drawn as one: overlap after registration, and
    conserved area; in dead-end channels order and conserved area, by dynamic programming. A cell may be missing in two
    frames. The unit of time is the smallest step between frames: over more than three, no cell is followed. Frames of
    unequal size are compared from their upper left corner.
    """
    return link_frames(labels, frames, images)[["frame", "label", "track", "mother_track"]]


def link_frames(labels: Iterable[np.ndarray], frames: Iterable[int] | None = None,
                images: Iterable[np.ndarray | None] | None = None,
                corrections: Mapping[tuple[int, int], tuple[int, ...]] | None = None) -> pd.DataFrame:
    """`link_cells` with the user's corrections, and the columns doubt and leaves.

    Parameters
    ----------
    corrections : mapping of (frame, label) to tuple of int
        Labels of the next frame: one continues the cell, two are its daughters, none ends its track.

    Returns
    -------
    DataFrame
        Also doubt (0 to 1) about the link that leads to the cell, 0 where there is none; leaves: the cell stands where
        cells leave or come in: at the border of the image or, without a link, at the open end of a channel.
    """
    numbers = None if frames is None else [int(f) for f in frames]
    step = int(min(np.diff(numbers), default=1)) if numbers else 1
    if step < 1:
        raise SegkitError(f"frames are {numbers}: each number must be larger than the one before")
    # growth of log area per frame, and for how many links it stands; what tells of channels so far
    memory = {"growth": np.zeros(2), "files": np.zeros(0), "open": np.zeros(2), "blind": np.zeros(())}
    todo, last, film = dict(corrections or {}), 0, [np.zeros(0, CELL)]
    known, runs, thumb = film[0], np.zeros((4, 0), int), np.zeros((0, 0), np.float32)
    for number, picture, image in _together(labels, numbers, images):
        cells, others = _measure(picture, number, sum(map(len, film)))
        before, thumb = thumb, _thumb(picture > 0 if image is None else image)
        # links from the frame before, and from cells that were missing there
        known = known[number - known["seen"] <= (GAP + 1) * step]
        runs = runs[:, np.isin(runs[0], known["row"])]
        shared, shift = _shared(known, runs, cells, others, picture.shape, _drift(before, thumb, image is not None))
        _move(known, shift)
        memory["blind"] = np.array(shift * (image is None))
        forced, age = _forced(known, cells, todo, last), (number - known["seen"]) / step
        members, doubt, out = _follow(known, cells, shared, forced, memory, age)
        _link(known, cells, members, doubt)
        cells["leaves"] = (cells["alone"] == AT_EXIT) | out[len(known):]
        film[-1]["leaves"] |= np.isin(film[-1]["row"], known["source"][out[:len(known)]])
        film.append(cells)

        # this frame's cells, and those still to be found
        known, runs = _carry(known, cells, members, number, GAP * step), np.concatenate([others, runs], axis=1)
        last = number
    if todo:
        raise SegkitError(f"corrections name cells that are not there, or not before another frame: {sorted(todo)}")
    cells = np.concatenate(film)
    _join_late_sisters(cells, GAP * step)
    track, mother = _tracks(cells)
    return pd.DataFrame({"frame": cells["seen"], "label": cells["label"], "track": track, "mother_track": mother,
                         "doubt": cells["doubt"], "leaves": cells["leaves"]})


def _tracks(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tracks of the cells of a film and of their mothers (n,), numbered in the order in which they begin."""
    before, begins = cells["before"], (cells["before"] < 0) | cells["divided"]
    first = _founders(np.where(begins, -1, before))
    track = pd.factorize(first)[0] + 1
    return track, np.where(cells["divided"], track[before], 0)[first]


def _founders(before: np.ndarray) -> np.ndarray:
    """What each of n things, in a line of others that come before it, begins with; before (n,): -1 where none does."""
    root = np.where(before >= 0, before, np.arange(len(before)))
    for _ in range(len(root).bit_length()):  # twice as many steps back each time
        root = root[root]
    return root


def _join_late_sisters(cells: np.ndarray, longest: int) -> None:
    """Join daughters that were missing at first to their mothers; sets before, divided and doubt.

    The track of a cell that became half as large ends there, if one begins beside it up to `longest` frames later.
    """
    (track, _), frame, area, before = _tracks(cells), cells["seen"], cells["area"], cells["before"]
    ratio = area / area[before]
    # the user's own links have no doubt
    halved = np.flatnonzero((before >= 0) & ~cells["divided"] & (cells["doubt"] > 0) & (ratio > HALVES[0])
                            & (ratio < HALVES[1]))
    new = np.flatnonzero((before < 0) & ~cells["leaves"])
    wait, found = frame[new] - frame[halved][:, None], []
    at = {place: cell for cell, place in enumerate(zip(track.tolist(), frame.tolist(), strict=True))}
    for i, j in np.argwhere((wait > 0) & (wait <= longest)):
        here, sister = halved[i], new[j]
        if (beside := at.get((track[here], frame[sister]))) is not None:
            far = np.abs(cells["centre"][beside] - cells["centre"][sister]) / cells["length"][[beside, sister]].sum()
            if far < 0.6 and np.abs(np.log(area[beside] / area[sister])) < 0.4:
                found.append((far, here, sister))
    taken = set[int]()
    for _, here, sister in sorted(found):
        if taken.isdisjoint((here, sister)):
            taken |= {here, sister}
            cells["divided"][[here, sister]] = True
            for name in ("before", "doubt"):
                cells[name][sister] = cells[name][here]


def _grown(a: np.ndarray, growth: float, age: np.ndarray) -> np.ndarray:
    """The cells as large as they are to be, age frames after they were seen."""
    grown = a.copy()
    grown["area"] *= np.exp(growth * age)
    return grown


def _follow(a: np.ndarray, b: np.ndarray, shared: np.ndarray, forced: np.ndarray, memory: dict[str, np.ndarray],
            age: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`solve` for cells grown since they were seen, age frames ago; measures the growth."""
    if not len(a) or not len(b):
        return forced, np.zeros(len(forced)), np.zeros(len(a) + len(b), bool)
    # before any growth is measured, that which explains most; one cell is no evidence of fast growth
    if not memory["growth"][1]:
        gains = [solve(_grown(a, guess, age), b.copy(), shared, forced, memory | {"growth": np.array([guess, 0])},
                       exact=False)[-1] - 4 * guess for guess in GROWTH]
        memory["growth"][0] = GROWTH[int(np.argmax(gains))]
    growth, weight = memory["growth"]
    grown = _grown(a, growth, age)
    members, doubt, leaves, _ = solve(grown, b, shared, forced, memory)
    # only cells that are whole, and were in the frame before, show it
    i, i2, j, _ = members.T
    i, _, *daughters = members[(i2 < 0) & (j >= 0) & (grown["alone"][i] == ALONE) & (b["alone"][j] == ALONE)].T
    step = np.log(np.append(b["area"], 0)[daughters].sum(0) / a["area"][i]) / age[i]
    if len(step):
        weight += len(step)
        memory["growth"] = np.array([growth + (np.median(step) - growth) * len(step) / weight, min(weight, 50)])
    return members, doubt, leaves


def _together(labels: Iterable[np.ndarray], numbers: list[int] | None, images: Iterable[np.ndarray | None] | None) \
        -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    """Number, labels and image of each frame; a SegkitError where there are not as many of each."""
    series = [labels, *([] if numbers is None else [numbers]), *([] if images is None else [images])]
    try:
        for k, (picture, *more) in enumerate(zip(*series, strict=True)):
            yield k if numbers is None else more[0], picture, None if images is None else more[-1]
    except (TypeError, ValueError) as error:
        raise SegkitError("labels, frames and images were to be series of the same length, one item for each frame: "
                          f"{error}") from error


def lineages(tracks: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """For each row, a track (experiment, position, track, mother_track): rows of its mother (-1: none) and founder.

    The founder is the track, without a mother, that its lineage begins with.
    """
    names, mothers = (pd.MultiIndex.from_frame(tracks[["experiment", "position", column]])
                      for column in ("track", "mother_track"))
    mother = names.get_indexer(mothers)
    return mother, _founders(mother)


def tracks_table(cells: pd.DataFrame, first_frame: int, last_frame: int) -> pd.DataFrame:
    """One row for each track of a position: when and how it began and ended.

    Parameters
    ----------
    cells : DataFrame
        One row per cell and frame of the position from first_frame to last_frame: frame, label, track, mother_track,
        touches_border, area_px, centroid_y, centroid_x and, where known, leaves (`link_frames`).

    Returns
    -------
    DataFrame
        TRACKS_COLUMNS: daughters as text ("5 6"); began: first frame, division, border or appeared; ended: last frame,
        division, border, death or lost.

    Notes
    -----
    A cell that vanished inside the image died where the next GAP + 1 frames show no cell at its place (nearer than the
    radius of a disc of its area, after the median motion of the others); else the linking or segmentation lost it.
    """
    cells = cells.sort_values(["track", "frame"])
    leaves = cells["touches_border"] | cells.get("leaves", False)
    rows = cells.assign(leaves=leaves.astype(bool)).groupby("track")
    start, end = rows.head(1).set_index("track"), rows.tail(1).set_index("track")
    daughters = start[start["mother_track"] > 0].groupby("mother_track").groups
    text = pd.Series({track: " ".join(map(str, daughters.get(track, []))) for track in start.index}, dtype=object)
    by_frame = dict(iter(cells.set_index("track").groupby("frame")[["centroid_y", "centroid_x"]]))  # in order

    @cache
    def motion(before: int, after: int) -> np.ndarray:
        return (by_frame[after] - by_frame[before]).median().fillna(0).to_numpy()

    def fate(track: int) -> str:
        """Whether nothing is seen where the cell was."""
        cell = end.loc[track]
        later = [frame for frame in by_frame if frame > cell["frame"]][:GAP + 1]
        place = by_frame[cell["frame"]].loc[track].to_numpy()
        for frame in later:
            away = by_frame[frame].to_numpy() - place - motion(cell["frame"], frame)
            if (np.hypot(*away.T) < np.sqrt(cell["area_px"] / np.pi)).any():
                return "lost"
        return "death" if len(later) > GAP else "lost"

    began = np.select([start["mother_track"] > 0, start["frame"] == first_frame, start["leaves"]],
                      ["division", "first frame", "border"], "appeared")
    ended = np.select([text != "", end["frame"] == last_frame, end["leaves"]], ["division", "last frame", "border"], "")
    return pd.DataFrame({"track": start.index, "first_frame": start["frame"], "last_frame": end["frame"],
                         "mother_track": start["mother_track"], "daughters": text, "began": began,
                         "ended": [known or fate(track) for track, known in zip(start.index, ended, strict=True)]},
                        columns=list(TRACKS_COLUMNS)).reset_index(drop=True)
