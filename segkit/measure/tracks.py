"""Follow cells from frame to frame: links, divisions, and one row for each track."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pandas as pd
from scipy import fft, optimize, sparse

from ..errors import SegkitError

TRACKS_COLUMNS = ("track", "first_frame", "last_frame", "mother_track", "daughters", "began", "ended")
GAP = 2  # frames in which a cell may be missing
NEIGHBOURS = 6  # nearest cells that may be the next one, beside those that overlap
ALONE, AT_EXIT, LOST = 2.5, 1.0, 0.0  # cost of a cell without a partner: inside, where cells leave, missing before
DIVIDES, MERGES = 0.5, 1.0  # cost of a division, and of two cells under one label
SIGMA = 0.18  # standard deviation of a step of log area about the frame's growth
GROWTH = (0.05, 0.15, 0.3, 0.5)  # log area per frame, before any is measured
# a cell that can be linked; places are complex, x + iy. axis: unit vector along it; alone: cost of having no partner;
# seen: frame in which it was measured; channel: -1 none; rank: order in the channel; slack: pixels it may be off
CELL = np.dtype([("label", int), ("area", float), ("centre", complex), ("axis", complex), ("length", float),
                 ("width", float), ("alone", float), ("seen", int), ("track", int), ("channel", int), ("rank", int),
                 ("slack", float)])


def _measure(labels: np.ndarray, frame: int) -> tuple[np.recarray, np.ndarray]:
    """The cells (n,) of a frame (H, W), in the order of their labels, and its pixels (3, p): cell, y, x."""
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype.kind not in "iu" or (labels < 0).any():
        raise SegkitError(f"the labels of frame {frame} are {type(labels).__name__} {getattr(labels, 'dtype', '')} "
                          f"{getattr(labels, 'shape', '')}: whole numbers from 0 of (height, width) were needed")
    where = np.flatnonzero(labels)
    values = labels.reshape(-1)[where].astype(np.int64)
    if values.max(initial=0) > labels.size:  # numbers too large for a table
        values = np.unique(values, return_inverse=True)[1] + 1
    there = np.bincount(values) > 0
    owner = (np.cumsum(there) - 1)[values]
    y, x = np.divmod(where, labels.shape[1])
    cells = np.zeros(there.sum(), CELL).view(np.recarray)
    cells.label[owner], cells.area = labels.reshape(-1)[where], np.bincount(owner, minlength=len(cells))

    def mean(v: np.ndarray) -> np.ndarray:
        return (np.bincount(owner, v.real, len(cells)) + 1j * np.bincount(owner, v.imag, len(cells))) / cells.area

    # the ellipse with the cell's second moments gives axis, length and width
    cells.centre = mean(x + 1j * y)
    around = x + 1j * y - cells.centre[owner]
    long, both = mean(around ** 2), mean(np.abs(around) ** 2).real + 1 / 6
    cells.axis = np.exp(0.5j * np.angle(long))
    cells.length, cells.width = 4 * np.sqrt((both + np.abs(long)) / 2), 4 * np.sqrt((both - np.abs(long)) / 2)
    edge = (y == 0) | (x == 0) | (y == labels.shape[0] - 1) | (x == labels.shape[1] - 1)
    cells.alone = np.where(np.bincount(owner, edge, len(cells)) > 0, AT_EXIT, ALONE)
    cells.seen, cells.channel = frame, -1
    return cells, np.stack([owner, y, x])


def _kept(cells: np.recarray, pixels: np.ndarray, keep: np.ndarray) -> tuple[np.recarray, np.ndarray]:
    """Cells and pixels of those where keep (n,) is True."""
    pixels = pixels[:, keep[pixels[0]]]
    pixels[0] = (np.cumsum(keep) - 1)[pixels[0]]
    return cells[keep], pixels


def _moved(cells: np.recarray, pixels: np.ndarray, by: np.ndarray) -> tuple[np.recarray, np.ndarray]:
    """Cells and pixels moved by (n,), x + iy."""
    cells = cells.copy()
    cells.centre += by
    return cells, np.stack([pixels[0], *(pixels[1:] + np.round([by.imag, by.real]).astype(int)[:, pixels[0]])])


def _thumb(picture: np.ndarray) -> np.ndarray:
    """A quarter of the size, with mean 0 and soft edges, for `_drift`; (H // 4, W // 4) float32."""
    h, w = (side // 4 for side in picture.shape)
    small = np.zeros((h, w), np.float32)
    for y, x in np.ndindex(4, 4):
        small += picture[y:4 * h:4, x:4 * w:4]
    return (small - small.mean()) * np.float32(np.hanning(h + 2)[1:-1, None] * np.hanning(w + 2)[1:-1])


def _drift(before: np.ndarray, after: np.ndarray, whiten: bool) -> complex:
    """How far the view moved, x + iy pixels, by the correlation of two `_thumb`s; of phases only: Kuglin and Hines 1975."""
    shape = [fft.next_fast_len(max(1, *sides), real=True) for sides in zip(before.shape, after.shape, strict=True)]
    cross = fft.rfft2(after, shape) * fft.rfft2(before, shape).conj()
    match = fft.irfft2(cross / (np.abs(cross) + 1e-9) if whiten else cross, shape)
    # small moves are likelier: channels look alike from one to the next
    rows, columns = (np.minimum(np.arange(n), n - np.arange(n)) for n in shape)
    match *= np.exp(-np.hypot(rows[:, None], columns) / 25)
    at = np.unravel_index(match.argmax(), shape)
    # the top of a parabola lies between pixels of a quarter of the size
    top = []
    for axis, (p, n) in enumerate(zip(at, shape, strict=True)):
        low, mid, high = np.moveaxis(match, axis, 0)[np.arange(p - 1, p + 2) % n, at[1 - axis]]
        top.append(p - n * (p > n / 2) + (high - low) / max(2 * (2 * mid - low - high), 1e-9))
    return 4 * complex(*top[::-1])


def _shared(a: np.recarray, pixels: np.ndarray, b: np.recarray, others: np.ndarray, shape: tuple[int, ...],
            shift: complex) -> tuple[np.ndarray, complex]:
    """Pixels that each of a, moved by the shift, shares with each of b (n, m); the shift, or 0 where that fits as well.

    pixels, others: those of a and of b, (3, p).
    """
    index = np.full((shape[0] + 2, shape[1] + 2), len(b))  # beyond the frame there is no cell
    index[others[1] + 1, others[2] + 1] = others[0]

    def under(by: complex, every: int = 1) -> np.ndarray:
        y, x = pixels[1:, ::every] + 1 + np.round([[by.imag], [by.real]]).astype(int)
        return index[np.clip(y, 0, shape[0] + 1), np.clip(x, 0, shape[1] + 1)]

    shift *= np.count_nonzero(under(shift, 4) < len(b)) > 1.05 * np.count_nonzero(under(0j, 4) < len(b))
    pairs = np.bincount(pixels[0] * (len(b) + 1) + under(shift), minlength=len(a) * (len(b) + 1))
    return pairs.reshape(len(a), len(b) + 1)[:, :-1], shift


def _couples(one: np.recarray, two: np.recarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(3, h): every cell i of `one` with two of its candidates j in `two`; in a channel these are neighbours."""
    order = np.lexsort((two.rank[j], i))
    i, j = i[order], j[order]
    steps = range(1, np.bincount(i, minlength=1).max())
    found = np.concatenate([np.zeros((3, 0), int), *(
        np.stack([i[:-step], j[:-step], j[step:]])[:, i[:-step] == i[step:]] for step in steps)], axis=1)
    return found[:, (one.channel[found[0]] < 0) | (two.rank[found[2]] - two.rank[found[1]] == 1)]


def _hypotheses(a: np.recarray, b: np.recarray, shared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What may have become of the cells a in b: a link, a division, or two cells drawn as one.

    Returns members (h, 4): two of a, two of b, -1 where there is none; gain (h,): cost saved against no link at all.
    """
    # candidates overlap or are near; in a channel all are
    near = np.argsort(np.abs(a.centre[:, None] - b.centre), axis=1)[:, :NEIGHBOURS]
    pairs = (shared > 0) | (a.channel >= 0)[:, None]
    np.put_along_axis(pairs, near, True, axis=1)
    i, j = np.nonzero(pairs & (a.channel[:, None] == b.channel))
    (m, d, e), (w, p, q) = _couples(a, b, i, j), _couples(b, a, j, i)
    p, q = np.where(a.area[p] >= a.area[q], [p, q], [q, p])
    members = np.full((len(i) + len(m) + len(w), 4), -1)
    members[:len(i), [0, 2]] = np.stack([i, j], 1)
    members[len(i):len(i) + len(m), [0, 2, 3]] = np.stack([m, d, e], 1)
    members[len(i) + len(m):, :3] = np.stack([p, q, w], 1)

    # conserved area; parts that lie together and are alike; -1 takes the last item, of no area
    sides, cost, gain = [], np.zeros(len(members)), np.zeros(len(members))
    for cells, parts, price in ((a, members[:, :2].T, MERGES), (b, members[:, 2:].T, DIVIDES)):
        area, alone, place = (np.append(v, 0)[parts] for v in (cells.area, cells.alone, cells.centre * cells.area))
        sides.append((area.sum(0), place.sum(0) / area.sum(0)))
        gain += alone.sum(0)
        two = parts[1] >= 0
        first, second = cells[parts[:, two]]
        far = np.abs(first.centre - second.centre) - 0.6 * (first.length + second.length)
        unlike = np.maximum(np.abs(np.log(first.area / second.area)) - 0.4, 0)
        cost[two] += price + 3 * unlike ** 2 + 2 * np.maximum(far, 0) / np.sqrt(area.sum(0)[two])
    (area, place), (to_area, to_place) = sides
    first = a[members[:, 0]]
    cost += np.minimum((np.log(to_area / area) / SIGMA) ** 2 / 2, np.where(first.alone == AT_EXIT, 1.5, 4.5))

    # place: overlap and distance, in units of the root of the area; channels let cells slide
    off = np.maximum(np.abs(to_place - place) - first.slack, 0) / np.sqrt(to_area)
    pixels = sum(np.pad(shared, (0, 1))[members[:, k], members[:, m]] for k in (0, 1) for m in (2, 3))
    cost += np.where(first.channel >= 0, 0.5 * np.minimum(off, 3), 2 - 2 * pixels / np.minimum(area, to_area) + off)
    gain -= cost
    return members[gain > 0], gain[gain > 0]


def _pack(nodes: np.ndarray, gain: np.ndarray, size: int) -> np.ndarray:
    """Which rows of nodes (h, 4; size: none) have the largest sum of gain, with each node in at most one of them."""
    rows, columns = np.nonzero(nodes < size)
    table = sparse.csr_array((np.ones(len(rows)), (rows, nodes[rows, columns])), (len(nodes), size))
    taken, chosen = np.zeros(size + 1, bool), np.zeros(len(nodes), bool)
    for h in np.argsort(-gain, kind="stable"):
        if not taken[nodes[h]].any():
            taken[nodes[h]] = chosen[h] = True
            taken[size] = False
    # greedy is exact for groups of cells in which every cell has got its best
    best, share = np.zeros(size + 1), gain / (nodes[:, :2] < size).sum(1)
    np.maximum.at(best, nodes[:, :2], share[:, None])
    groups, group = sparse.csgraph.connected_components(table.T @ table, directed=False)
    got = np.bincount(group[nodes[:, 0]], gain * chosen, groups)
    hard = (np.bincount(group, best[:-1], groups) > got + 1e-9)[group[nodes[:, 0]]]
    if hard.any():
        limit = optimize.LinearConstraint(table[hard].T, -np.inf, 1)
        chosen[hard] = optimize.milp(-gain[hard], integrality=1, bounds=(0, 1), constraints=limit).x > 0.5
    return chosen


def _channels(a: np.recarray, b: np.recarray, memory: dict[str, np.ndarray]) -> None:
    """Find dead-end channels, cells in single file beside other files, and set channel, rank, centre and slack.

    None unless most cells are in such files, in this frame and in most of those before. Cells of a may move along their
    channel as far as those nearer to the closed end have grown.
    """
    n, both = len(a), np.concatenate([a, b]).view(np.recarray)
    along = np.exp(0.5j * np.angle((both.axis ** 2 * (both.length - both.width)).sum()))
    along *= np.sign(max(along.real, along.imag, key=abs))
    s, u, turned = (both.centre / along).real, (both.centre / along).imag, both.axis / along
    extent = (both.length * np.abs(turned.real) + both.width * np.abs(turned.imag)) / 2
    # files are apart sideways; the second round corrects the angle by the files themselves
    for _ in range(2):
        order, file = np.argsort(u, kind="stable"), np.zeros(len(u), int)
        file[order] = np.cumsum(np.diff(u[order], prepend=u.min()) > 0.75 * np.median(both.width))
        ds, du = (v - (np.bincount(file, v) / np.bincount(file))[file] for v in (s, u))
        u = u - np.clip(ds @ du / max(ds @ ds, 1e-9), -0.1, 0.1) * s

    # cells of a file stand one after the other in both frames
    files: list[tuple[int, list[np.ndarray]]] = []
    seen = (both.alone > LOST) * (1 + (np.arange(len(u)) >= n))
    for number in range(file.max() + 1):
        parts = [np.flatnonzero((file == number) & (seen == k)) for k in (1, 2)]
        parts = [part[np.argsort(s[part], kind="stable")] for part in parts]
        gaps = [np.diff(s[p]) / (extent[p][1:] + extent[p][:-1]) for p in parts]
        narrow = np.ptp(du[file == number]) < 1.2 * np.median(both.width)
        if narrow and min(map(len, parts)) > 0 and min(v.min(initial=1) for v in gaps) > 0.5:
            files.append((number, parts))
    share = sum(len(i) + len(j) for _, (i, j) in files if len(i) + len(j) > 4) / len(u)
    memory["files"] = valid = np.append(memory["files"], share >= 0.6)
    if not valid[-1] or valid[-20:].mean() < 0.7:
        return

    # growth looks like drift to labels; at the closed end the cells of all channels begin, and stay
    blind = (memory["blind"] / along).real
    s[:n] -= blind
    low, high = s - extent, s + extent
    ends = np.array([[low[i[0]], high[i[-1]], low[j[0]], high[j[-1]]] for _, (i, j) in files])
    moved = np.median(ends[:, 2:] - ends[:, :2], axis=0)
    memory["open"] = memory["open"] + ends.std(0)[2:] + np.abs(moved)
    side = int(memory["open"][0] > memory["open"][1])
    shift = moved[side] * (len(files) > 2 or abs(moved[side]) < np.median(both.length) / 2)
    s[:n] += shift
    ends[:, side] += shift
    for (number, (i, _)), end in zip(files, ends[:, side::2], strict=True):
        cells, way = file == number, 1 - 2 * side
        for part in (np.flatnonzero(cells[:n]), n + np.flatnonzero(cells[n:])):
            both.rank[part[np.argsort(way * s[part], kind="stable")]] = np.arange(len(part))
        both.channel[cells], both.alone[i[::way][-1]] = number, AT_EXIT
        further = (s[cells] - way * (way * end).min()) * (np.exp(memory["growth"][0]) - 1) / 2
        both.centre[cells] += (shift - blind + further) * along
        both.slack[cells] = np.abs(further)
    a[:] = both[:n]
    b.channel, b.rank = both.channel[n:], both.rank[n:]


def _align(nodes: np.ndarray, gain: np.ndarray, spare: np.ndarray, count: int) -> tuple[list[int], int, int]:
    """The hypotheses of a channel that keep its order, by dynamic programming over the order in both frames.

    nodes (h, 4): ranks, as `_hypotheses`; spare: cost saved for each cell of the first frame beyond the outermost link;
    count: cells in the second frame. Returns rows of nodes, and how many cells of either frame are not beyond it.
    """
    into: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for h, (i, i2, j, j2) in enumerate(nodes.tolist()):
        into.setdefault((max(i, i2) + 1, max(j, j2) + 1), []).append((h, 1 + (i2 >= 0), 1 + (j2 >= 0)))
    # best[p, q]: gain of the p and q innermost cells, and the last step to it
    best: dict[tuple[int, int], tuple[float, int, int, int]] = {(0, 0): (0.0, -1, 0, 0)}
    for p, q in list(np.ndindex(len(spare) + 1, count + 1))[1:]:
        steps = [(best[p - take, q - give][0] + gain[h], h, take, give) for h, take, give in into.get((p, q), [])]
        best[p, q] = max(steps + [(best[p - take, q - give][0], -1, take, give)
                                  for take, give in ((1, 0), (0, 1)) if p >= take and q >= give])
    out = np.append(np.cumsum(spare[::-1])[::-1], 0)
    p, q = end = max(best, key=lambda at: best[at][0] + out[at[0]])
    chosen: list[int] = []
    while p or q:
        _, h, take, give = best[p, q]
        p, q, chosen = p - take, q - give, chosen + [h] * (h >= 0)
    return chosen, *end


def _solve(a: np.recarray, b: np.recarray, shared: np.ndarray, forced: np.ndarray, memory: dict[str, np.ndarray]) \
        -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Links from a to b: members (h, 4) as `_hypotheses`, doubt (h,), who is at a channel's exit (n + m,), the gain.

    forced: members that the user chose. Sets the channels of a and b.
    """
    total, offset = len(a) + len(b), np.array([0, 0, len(a), len(a)])
    _channels(a, b, memory)
    members, gain = _hypotheses(a, b, shared)
    # what the user chose leaves no choice to these cells
    blocked = np.zeros(total + 1, bool)
    blocked[np.where(forced < 0, total, forced + offset)] = True
    blocked[total] = False
    nodes = np.where(members < 0, total, members + offset)
    keep = ~blocked[nodes].any(1)
    members, gain, nodes = members[keep], gain[keep], nodes[keep]
    channel, chosen, leaves = a.channel[members[:, 0]], np.zeros(len(gain), bool), np.zeros(total, bool)

    # each channel by its order, all other cells at once
    chosen[channel < 0] = _pack(nodes[channel < 0], gain[channel < 0], total)
    rank = np.concatenate([a.rank, b.rank, [-1]])
    for number in np.unique(a.channel[a.channel >= 0]):
        rows, i, j = (np.flatnonzero(v == number) for v in (channel, a.channel, b.channel))
        i, j = i[np.argsort(a.rank[i])], j[np.argsort(b.rank[j])]
        found, p, q = _align(rank[nodes[rows]], gain[rows], np.maximum(a.alone[i] - AT_EXIT, 0), len(j))
        chosen[rows[found]] = leaves[i[p:]] = leaves[len(a) + j[q:]] = True

    # doubt: what is lost if another hypothesis takes the place of all that it excludes
    which, margin = np.full(total + 1, len(gain)), np.append(gain, 0)
    which[nodes[chosen]] = np.flatnonzero(chosen)[:, None]
    which[total] = len(gain)
    rivals = np.sort(which[nodes[~chosen]], axis=1)
    rivals[:, 1:][rivals[:, 1:] == rivals[:, :-1]] = len(gain)
    np.minimum.at(margin, rivals, (margin[rivals].sum(1) - gain[~chosen])[:, None])
    doubt = np.minimum(2 / (1 + np.exp(margin[:-1][chosen])), 1)
    return np.concatenate([forced, members[chosen]]), np.append(np.zeros(len(forced)), doubt), leaves, gain[chosen].sum()


def _forced(a: np.recarray, b: np.recarray, todo: dict[tuple[int, int], tuple[int, ...]], frame: int) -> np.ndarray:
    """The user's corrections of cells a of this frame: members (h, 4) as `_hypotheses`; they are taken out of todo."""
    rows: list[list[int]] = []
    for i in np.flatnonzero(a.alone > LOST):
        following = todo.pop((frame, int(a.label[i])), None)
        if following is not None:
            to = [int(k) for label in following for k in np.flatnonzero(b.label == label)]
            if len(following) > 2 or len(to) < len(following) or {*to} & {k for row in rows for k in row[2:]}:
                raise SegkitError(f"the correction of cell {a.label[i]} in frame {frame} names {list(following)}: no "
                                  "label, or one or two of the next frame that no other correction names, were needed")
            rows.append([int(i), -1, *to, -2, -2][:4])
    return np.maximum(np.array(rows, int).reshape(-1, 4), -1)


def _carry(a: np.recarray, pixels: np.ndarray, b: np.recarray, members: np.ndarray, frame: int, longest: int) \
        -> tuple[np.recarray, np.ndarray, np.ndarray]:
    """Cells of a to look for again, moved as their neighbours were, with pixels; and which of b are not to be linked.

    longest: for how many frames a cell is looked for.
    """
    i, i2, j, j2 = members.T
    keep, hidden, by = np.ones(len(a), bool), np.zeros(len(b), bool), np.zeros(len(a), complex)
    one = (i2 < 0) & (j2 < 0) & (j >= 0)
    if one.any():
        near = np.argsort(np.abs(a.centre[:, None] - a.centre[i[one]]), axis=1)[:, :2]
        by = (b.centre[j[one]] - a.centre[i[one]])[near].mean(1)
    # cells drawn as one are looked for as they were; the first stands for both
    merged = (i2 >= 0) & (frame - np.minimum(a.seen[i], a.seen[i2]) < longest)
    keep[i] = keep[i2[i2 >= 0]] = False
    a.alone = np.full(len(a), LOST)
    keep[i[merged]] = keep[i2[merged]] = hidden[j[merged]] = True
    a.alone[i[merged]] = ALONE
    a.label[i[merged]] = b.label[j[merged]]
    return *_kept(*_moved(a, pixels, by), keep), hidden


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
                images: Iterable[np.ndarray] | None = None,
                corrections: Mapping[tuple[int, int], tuple[int, ...]] | None = None) -> pd.DataFrame:
    """`link_cells` with the user's corrections, and the columns doubt and leaves.

    Parameters
    ----------
    labels, frames, images
        As in `link_cells`.
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
    todo, mothers, last = dict(corrections or {}), np.zeros(1, int), 0
    rows: list[tuple[np.ndarray, ...]] = []
    (known, pixels), thumb = _measure(np.zeros((1, 1), int), 0), np.zeros((0, 0), np.float32)
    # growth of log area per frame, and for how many links it stands; what tells of channels so far
    memory = {"growth": np.zeros(2), "files": np.zeros(0), "open": np.zeros(2)}

    for number, picture, image in _together(labels, numbers, images):
        cells, others = _measure(picture, number)
        before, thumb = thumb, _thumb(picture > 0 if image is None else image)
        # links from the frame before, and from cells that were missing there
        known, pixels = _kept(known, pixels, number - known.seen <= (GAP + 1) * step)
        shared, shift = _shared(known, pixels, cells, others, picture.shape, _drift(before, thumb, image is not None))
        known, pixels = _moved(known, pixels, np.full(len(known), shift))
        memory["blind"] = shift * (image is None)
        members, doubt, out = _follow(known, cells, shared, _forced(known, cells, todo, last), memory,
                                      (number - known.seen) / step)
        i, _, j, j2 = members.T
        link, split = (j >= 0) & (j2 < 0), j2 >= 0

        # a link carries the track on; a division begins two, and every cell without a link one
        cells.track[j[link]] = known.track[i[link]]
        mother, doubts, new = np.zeros(len(cells), int), np.zeros(len(cells)), cells.track == 0
        for daughter in (j, j2):
            mother[daughter[split]] = known.track[i[split]]
            doubts[daughter[daughter >= 0]] = doubt[daughter >= 0]
        cells.track[new] = len(mothers) + np.arange(new.sum())
        mothers = np.append(mothers, mother[new])
        if rows:
            rows[-1][-1][np.isin(rows[-1][1], known.label[out[:len(known)] & (known.alone > LOST)])] = True
        rows.append((np.full(len(cells), number), cells.label, cells.track, doubts,
                     (cells.alone == AT_EXIT) | out[len(known):]))

        # this frame's cells, and those still to be found
        missing, their_pixels, hidden = _carry(known, pixels, cells, members, number, GAP * step)
        known, pixels = _kept(cells, others, ~hidden)
        their_pixels[0] += len(known)
        known = np.concatenate([known, missing]).view(np.recarray)
        pixels, last = np.concatenate([pixels, their_pixels], axis=1), number
    if todo:
        raise SegkitError(f"corrections name cells that are not there, or not before another frame: {sorted(todo)}")
    names = ("frame", "label", "track", "doubt", "leaves")
    empty = (np.zeros(0, int),) * 3 + (np.zeros(0), np.zeros(0, bool))
    table = pd.DataFrame({name: np.concatenate(v) for name, *v in zip(names, empty, *rows, strict=True)})
    table.insert(3, "mother_track", mothers[table["track"]])
    return table


def _follow(a: np.recarray, b: np.recarray, shared: np.ndarray, forced: np.ndarray, memory: dict[str, np.ndarray],
            age: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_solve` for cells grown since they were seen, age frames ago; measures the growth."""
    if not len(a) or not len(b):
        return forced, np.zeros(len(forced)), np.zeros(len(a) + len(b), bool)
    # before any growth is measured, that which explains most
    guesses = [memory["growth"][0]] if memory["growth"][1] else GROWTH
    best = -np.inf
    for growth in guesses:
        trial = memory | {"growth": np.array([growth, 0.0])}
        grown = a.copy()
        grown.area *= np.exp(growth * age)
        *found, gain = _solve(grown, b, shared, forced, trial)
        gain -= 4 * growth  # one cell is no evidence of fast growth
        if gain > best:
            best, (members, doubt, leaves), kept = gain, found, trial
    memory |= kept | {"growth": np.array([kept["growth"][0], memory["growth"][1]])}
    i, i2, j, j2 = members.T
    step = np.log(np.append(b.area, 0)[[j, j2]].sum(0)[j >= 0] / a.area[i[j >= 0]]) / age[i[j >= 0]]
    step = step[((i2 < 0) & (grown.alone[i] == ALONE) & (b.alone[j] == ALONE))[j >= 0]]
    growth, weight = memory["growth"]
    if len(step):
        weight += len(step)
        memory["growth"] = np.array([growth + (np.median(step) - growth) * len(step) / weight, min(weight, 50)])
    return members, doubt, leaves


def _together(labels: Iterable[np.ndarray], numbers: list[int] | None, images: Iterable[np.ndarray] | None) \
        -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    """Number, labels and image of each frame; a SegkitError where there are not as many of each."""
    series = [labels, *([] if numbers is None else [numbers]), *([] if images is None else [images])]
    try:
        for k, (picture, *more) in enumerate(zip(*series, strict=True)):
            yield k if numbers is None else more[0], picture, None if images is None else more[-1]
    except (TypeError, ValueError) as error:
        raise SegkitError("labels, frames and images were to be series of the same length, one item for each frame: "
                          f"{error}") from error


def tracks_table(cells: pd.DataFrame, first_frame: int, last_frame: int) -> pd.DataFrame:
    """One row for each track of a position: when and how it began and ended.

    Parameters
    ----------
    cells : DataFrame
        One row per cell and frame: frame, label, track, mother_track, touches_border, area_px, centroid_y, centroid_x
        and, where known, leaves (`link_frames`).
    first_frame, last_frame : int
        The position's.

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
    daughters = start[start["mother_track"] > 0].reset_index().groupby("mother_track")["track"]
    text = pd.Series("", start.index, dtype=object)
    text.update(daughters.agg(lambda tracks: " ".join(map(str, tracks))))
    by_frame = dict(list(cells.set_index("track").groupby("frame")))
    frames = sorted(by_frame)

    def fate(track: int) -> str:
        """Whether nothing is seen where the cell was."""
        cell = end.loc[track]
        later = frames[bisect_right(frames, cell["frame"]):][:GAP + 1]
        if len(later) <= GAP:
            return "lost"
        for frame in later:
            others, before = by_frame[frame][["centroid_y", "centroid_x"]], by_frame[cell["frame"]]
            motion = (others - before[["centroid_y", "centroid_x"]]).median().fillna(0)
            away = others - cell[["centroid_y", "centroid_x"]].astype(float) - motion
            if (np.hypot(away["centroid_y"], away["centroid_x"]) < np.sqrt(cell["area_px"] / np.pi)).any():
                return "lost"
        return "death"

    began = np.select([start["mother_track"] > 0, start["frame"] == first_frame, start["leaves"]],
                      ["division", "first frame", "border"], "appeared")
    ended = np.select([text != "", end["frame"] == last_frame, end["leaves"]], ["division", "last frame", "border"], "")
    return pd.DataFrame({"track": start.index, "first_frame": start["frame"], "last_frame": end["frame"],
                         "mother_track": start["mother_track"], "daughters": text, "began": began,
                         "ended": [known or fate(track) for track, known in zip(start.index, ended, strict=True)]},
                        columns=list(TRACKS_COLUMNS)).reset_index(drop=True)
