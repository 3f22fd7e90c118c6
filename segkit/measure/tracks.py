"""Follow cells from frame to frame: links, divisions, and one row for each track."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
from scipy import fft, optimize, sparse, spatial

from ..errors import SegkitError

TRACK_COLUMNS = ("frame", "label", "track", "mother_track")
TRACKS_COLUMNS = ("track", "first_frame", "last_frame", "mother_track", "daughters", "began", "ended")
GAP = 2  # frames in which a cell may be missing
NEIGHBOURS = 6  # nearest cells that may be the next one, beside those that overlap
ALONE, AT_EXIT, LOST = 2.5, 1.0, 0.0  # cost of a cell without a partner: inside, where cells leave, missing before
DIVIDES, MERGES = 0.5, 2.0  # cost of a division, and of two cells under one label
SIGMA = 0.2  # standard deviation of a step of log area about the frame's growth
GROWTH = 0.05  # log area per frame, before any is measured


@dataclass
class _Cells:
    """Cells that can be linked: n of one frame, or of earlier ones where no successor was found; p pixels in all."""

    label: np.ndarray  # (n,) int
    area: np.ndarray  # (n,) pixels
    centre: np.ndarray  # (n, 2) y, x
    axis: np.ndarray  # (n, 2) y, x: unit vector along the cell
    size: np.ndarray  # (n, 2) length, width, pixels
    alone: np.ndarray  # (n,) cost of having no partner
    seen: np.ndarray  # (n,) frame in which it was measured
    track: np.ndarray  # (n,) 0: none yet
    channel: np.ndarray  # (n,) number of its channel, -1: none
    rank: np.ndarray  # (n,) neighbours in a channel follow each other
    slack: np.ndarray  # (n,) how far from `centre` it may be without cost, pixels
    y: np.ndarray  # (p,)
    x: np.ndarray  # (p,)
    owner: np.ndarray  # (p,) which of the n

    def take(self, keep: np.ndarray) -> "_Cells":
        """Those where keep (n,) is True."""
        inside = keep[self.owner]
        part = {f.name: getattr(self, f.name)[inside if f.name in ("y", "x", "owner") else keep] for f in fields(self)}
        return _Cells(**part | {"owner": (np.cumsum(keep) - 1)[part["owner"]]})

    def join(self, other: "_Cells") -> "_Cells":
        """Both together."""
        both = {f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)}
        both["owner"][len(self.owner):] += len(self.label)
        return _Cells(**both)

    def move(self, by: np.ndarray) -> "_Cells":
        """The cells by (n, 2) pixels further."""
        dy, dx = np.round(by).astype(int).T
        return replace(self, centre=self.centre + by, y=self.y + dy[self.owner], x=self.x + dx[self.owner])


def _measure(labels: np.ndarray, frame: int) -> _Cells:
    """The cells of a frame (H, W), in the order of their labels."""
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype.kind not in "iu" or (labels < 0).any():
        raise SegkitError(f"labels of frame {frame} are {type(labels).__name__} "
                          f"{getattr(labels, 'shape', '')} {getattr(labels, 'dtype', '')}: an array (height, width) of "
                          "whole numbers from 0 was needed; give one for each frame")
    where = np.flatnonzero(labels)
    values = labels.reshape(-1)[where].astype(np.int64)
    if values.max(initial=0) > labels.size:
        names, owner = np.unique(values, return_inverse=True)
    else:  # ten times as fast
        there = np.bincount(values) > 0
        names, owner = np.flatnonzero(there), (np.cumsum(there) - 1)[values]
    y, x = np.divmod(where, labels.shape[1])
    n = len(names)
    area = np.bincount(owner, minlength=n).astype(float)

    # the ellipse with the cell's second moments gives axis, length and width
    centre = np.stack([np.bincount(owner, v, n) / area for v in (y, x)], 1)
    dy, dx = y - centre[owner, 0], x - centre[owner, 1]
    yy, xx, yx = (np.bincount(owner, v, n) / area for v in (dy * dy, dx * dx, dy * dx))
    angle = np.arctan2(2 * yx, xx - yy) / 2
    half, root = (yy + xx) / 2, np.hypot((xx - yy) / 2, yx)
    size = 4 * np.sqrt(np.maximum(np.stack([half + root, half - root], 1), 0) + 1 / 12)
    edge = (y == 0) | (x == 0) | (y == labels.shape[0] - 1) | (x == labels.shape[1] - 1)
    alone = np.where(np.bincount(owner, edge, n) > 0, AT_EXIT, ALONE)
    return _Cells(names, area, centre, np.stack([np.sin(angle), np.cos(angle)], 1), size, alone,
                  np.full(n, frame), np.zeros(n, int), np.full(n, -1), np.zeros(n, int),
                  np.zeros(n), y, x, owner)


def _thumb(picture: np.ndarray) -> np.ndarray:
    """A quarter of the size, with mean 0 and soft edges, for `_drift`; (H // 4, W // 4) float32."""
    h, w = (side // 4 for side in picture.shape)
    small = np.zeros((h, w), np.float32)
    for y, x in np.ndindex(4, 4):
        small += picture[y:4 * h:4, x:4 * w:4]
    window = np.hanning(h + 2)[1:-1, None] * np.hanning(w + 2)[1:-1]
    return (small - small.mean()) * window.astype(np.float32)


def _drift(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How far (y, x) pixels the view moved, by phase correlation of two `_thumb`s (Kuglin and Hines 1975)."""
    if 0 in before.shape + after.shape:
        return np.zeros(2)
    shape = [fft.next_fast_len(max(sides), real=True) for sides in zip(before.shape, after.shape, strict=True)]
    cross = fft.rfft2(after, shape) * fft.rfft2(before, shape).conj()
    match = fft.irfft2(cross / (np.abs(cross) + 1e-9), shape)
    peak = np.array(np.unravel_index(match.argmax(), shape))
    # the centre of the peak lies between pixels of a quarter of the size
    near = np.ix_(*((p + np.arange(-1, 2)) % n for p, n in zip(peak, shape, strict=True)))
    weight = np.maximum(match[near], 0)
    peak = peak + np.array([weight.sum(1) @ [-1, 0, 1], weight.sum(0) @ [-1, 0, 1]]) / max(weight.sum(), 1e-9)
    return 4 * np.where(peak > np.array(shape) / 2, peak - shape, peak)


def _shared(a: _Cells, b: _Cells, shape: tuple[int, ...], shift: np.ndarray) -> tuple[_Cells, np.ndarray]:
    """a, moved by shift where that brings it nearer to b, and the pixels that each shares with each of b (n, m)."""
    index = np.full(shape, len(b.label))
    index[b.y, b.x] = b.owner
    index = np.pad(index, 1, constant_values=len(b.label))  # beyond the frame there is no cell

    def hits(by: np.ndarray, every: int) -> np.ndarray:
        dy, dx = np.round(by).astype(int) + 1
        return index[np.clip(a.y[::every] + dy, 0, shape[0] + 1), np.clip(a.x[::every] + dx, 0, shape[1] + 1)]

    # cells that fill the same places at random do so by far less
    found = [np.count_nonzero(hits(by, 4) < len(b.label)) for by in (np.zeros(2), shift)]
    shift = shift * (found[1] > 1.05 * found[0])
    pairs = a.owner * (len(b.label) + 1) + hits(shift, 1)
    shared = np.bincount(pairs, minlength=len(a.label) * (len(b.label) + 1)).reshape(-1, len(b.label) + 1)
    return a.move(np.tile(shift, (len(a.label), 1))), shared[:, :-1]


def _cost(area: np.ndarray, to_area: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Cost of a link: a step of log area against the expected area, and place (0: where it was)."""
    return np.minimum((np.log(to_area / area) / SIGMA) ** 2 / 2, 4.5) + place


def _two(one: _Cells, two: _Cells, i: np.ndarray, j: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Every two cells j, k of `two` that may together be one cell i of `one`: i, j, k and the cost.

    i, j, pixels: candidates and the pixels that they share.
    """
    # any two candidates of the same i; in a channel neighbours only
    order = np.lexsort((two.rank[j], i))
    i, j, pixels = i[order], j[order], pixels[order]
    lags = [np.flatnonzero(i[:len(i) - lag] == i[lag:]) for lag in range(1, np.bincount(i, minlength=1).max())]
    first = np.concatenate([np.zeros(0, int), *lags])
    second = np.concatenate([np.zeros(0, int), *(p + lag for lag, p in enumerate(lags, 1))])
    apart = two.rank[j[second]] - two.rank[j[first]]
    first, second = (v[(one.channel[i[first]] < 0) | (apart == 1)] for v in (first, second))
    i, j, k, pixels = i[first], j[first], j[second], pixels[first] + pixels[second]

    # they lie together where the one lies
    area, share = two.area[j] + two.area[k], (two.area[j] / (two.area[j] + two.area[k]))[:, None]
    centre = share * two.centre[j] + (1 - share) * two.centre[k]
    far = np.linalg.norm(two.centre[j] - two.centre[k], axis=1) - 0.6 * (two.size[j, 0] + two.size[k, 0])
    off = np.linalg.norm(one.centre[i] - centre, axis=1) - one.slack[i] - two.slack[j]
    place = _place(one.channel[i] >= 0, pixels / np.minimum(one.area[i], area),
                   (np.maximum(off, 0) + 2 * np.maximum(far, 0)) / np.sqrt(area))
    # and daughters differ little
    unlike = 3 * np.maximum(np.abs(np.log(two.area[j] / two.area[k])) - 0.4, 0) ** 2
    return i, j, k, _cost(one.area[i], area, place + unlike)


def _place(in_channel: np.ndarray, overlap: np.ndarray, off: np.ndarray) -> np.ndarray:
    """Cost of a place by overlap (0 to 1) and distance (in units of the root of the area); channels let cells slide."""
    return np.where(in_channel, 0.5 * np.minimum(off, 3), 2 * (1 - overlap) + off)


def _hypotheses(a: _Cells, b: _Cells, shared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What may have become of the cells a in b.

    Returns members (h, 4): two of a, two of b, -1 where there is none; gain (h,): cost saved against no link at all.
    """
    # candidates overlap or are near; in a channel all are
    near = min(NEIGHBOURS, len(b.label))
    pairs = shared > 0
    pairs[np.arange(len(a.label))[:, None], spatial.KDTree(b.centre).query(a.centre, range(1, near + 1))[1]] = True
    same = a.channel[:, None] == b.channel
    i, j = np.nonzero(same & (pairs | (a.channel >= 0)[:, None]))
    pixels = shared[i, j]

    # a cell continues, divides, or is drawn together with another one
    off = np.maximum(np.linalg.norm(a.centre[i] - b.centre[j], axis=1) - a.slack[i], 0)
    place = _place(a.channel[i] >= 0, pixels / np.minimum(a.area[i], b.area[j]), off / (a.area[i] * b.area[j]) ** 0.25)
    none = np.full(len(i), -1)
    links, gain = np.stack([i, none, j, none], 1), a.alone[i] + b.alone[j] - _cost(a.area[i], b.area[j], place)
    mother, one, two, cost = _two(a, b, i, j, pixels)
    divisions = np.stack([mother, np.full(len(one), -1), one, two], 1)
    gain_of_divisions = a.alone[mother] + b.alone[one] + b.alone[two] - cost - DIVIDES
    whole, one, two, cost = _two(b, a, j, i, pixels)
    merges = np.stack([one, two, whole, np.full(len(one), -1)], 1)
    gain_of_merges = a.alone[one] + a.alone[two] + b.alone[whole] - cost - MERGES
    gain = np.concatenate([gain, gain_of_divisions, gain_of_merges])
    return np.concatenate([links, divisions, merges])[gain > 0], gain[gain > 0]


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


def _channels(a: _Cells, b: _Cells, growth: float, closed: np.ndarray) -> tuple[_Cells, _Cells]:
    """Dead-end channels, found as cells in single file beside other files: a and b with `channel` and `rank`.

    No channels unless most cells are in such files. Cells of a may move along their channel as far as
    those nearer to the closed end have grown. closed (2,):
    evidence against either end as the closed one, added up over the frames.
    """
    n, both = len(a.label), a.join(b)
    turn = ((both.size[:, 0] - both.size[:, 1]) * (both.axis[:, 1] + 1j * both.axis[:, 0]) ** 2).sum()
    along = np.array([np.sin(np.angle(turn) / 2), np.cos(np.angle(turn) / 2)])
    along = along * np.sign(along[np.abs(along).argmax()])
    s, u = both.centre @ along, both.centre @ (along[::-1] * [1, -1])
    cosine = np.minimum(np.abs(both.axis @ along), 1)
    extent = both.size[:, 0] * cosine + both.size[:, 1] * np.sqrt(1 - cosine ** 2)

    # files are apart sideways; the second round corrects the angle by the files themselves
    for _ in range(2):
        order = np.argsort(u, kind="stable")
        file = np.empty(len(u), int)
        file[order] = np.cumsum(np.diff(u[order], prepend=-np.inf) > 0.75 * np.median(both.size[:, 1])) - 1
        ds, du = (v - (np.bincount(file, v) / np.bincount(file))[file] for v in (s, u))
        u = u - np.clip(ds @ du / max(ds @ ds, 1e-9), -0.1, 0.1) * s

    # cells of a file stand one after the other in both frames
    order, files = np.lexsort([s, file]), []
    for cells in np.split(order, np.flatnonzero(np.diff(file[order])) + 1):
        pair = cells[cells < n], cells[cells >= n]
        seen = pair[0][both.alone[pair[0]] > LOST], pair[1]
        if all((np.diff(s[c]) > 0.25 * (extent[c][1:] + extent[c][:-1])).all() for c in seen):
            files.append((cells, *pair))
    if sum(len(cells) for cells, *pair in files if max(map(len, pair)) >= 3) < 0.6 * len(u):
        return a, b

    # the closed end is where cells stay: ranks count from there
    low, high, further, rank, channel = s - extent / 2, s + extent / 2, np.zeros(len(u)), np.zeros(len(u), int), both.channel
    for _, i, j in files:
        if len(i) and len(j):
            closed += [abs(low[j[0]] - low[i[0]]), abs(high[j[-1]] - high[i[-1]])]
    way = 1 if closed[0] <= closed[1] else -1
    for number, (cells, *pair) in enumerate(files):
        channel[cells] = number
        end = low[cells].min() if way > 0 else high[cells].max()
        further[cells] = (s[cells] - end) * (np.exp(growth) - 1) / 2
        for part in pair:
            rank[part[::way]] = np.arange(len(part))
    a = replace(a, channel=channel[:n], rank=rank[:n], centre=a.centre + further[:n, None] * along,
                slack=np.abs(further[:n]))
    return a, replace(b, channel=channel[n:], rank=rank[n:])


def _align(size: tuple[int, int], nodes: np.ndarray, gain: np.ndarray, spare: np.ndarray) \
        -> tuple[list[int], tuple[int, int]]:
    """The hypotheses of a channel that keep its order, by dynamic programming.

    size: cells in both frames. nodes (h, 4): ranks, as `_hypotheses`. spare: cost saved where a cell of the first
    frame is beyond the outermost link. Returns the rows of nodes, and how many cells are not beyond it.
    """
    into: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for h, (i, i2, j, j2) in enumerate(nodes.tolist()):
        into.setdefault((max(i, i2) + 1, max(j, j2) + 1), []).append((h, 1 + (i2 >= 0), 1 + (j2 >= 0)))
    # best[p, q]: gain of the p and q innermost cells, and the last step to it
    best = {(0, 0): (0.0, -1, 0, 0)}
    for p, q in list(np.ndindex(size[0] + 1, size[1] + 1))[1:]:
        steps = [(best[p - take, q - give][0] + gain[h], h, take, give) for h, take, give in into.get((p, q), [])]
        steps += [(best[p - take, q - give][0], -1, take, give) for take, give in ((1, 0), (0, 1)) if p >= take and q >= give]
        best[p, q] = max(steps)
    # cells beyond the outermost link have left
    out = np.append(np.cumsum(spare[::-1])[::-1], 0)
    p, q = ends = max(best, key=lambda at: best[at][0] + out[at[0]])
    chosen = []
    while p or q:
        _, h, take, give = best[p, q]
        p, q = p - take, q - give
        chosen += [h] * (h >= 0)
    return chosen, ends


def _solve(a: _Cells, b: _Cells, shared: np.ndarray, growth: float, closed: np.ndarray) \
        -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Links from a to b: members (h, 4) as `_hypotheses`, doubt (h,), and who stands at a channel's exit (n + m,)."""
    n, total = len(a.label), len(a.label) + len(b.label)
    a, b = _channels(a, b, growth, closed)
    members, gain = _hypotheses(a, b, shared)
    nodes = np.where(members >= 0, members + [0, 0, n, n], total)
    channel, chosen, leaves = a.channel[members[:, 0]], np.zeros(len(gain), bool), np.zeros(total, bool)

    # each channel by its order, all other cells at once
    free = channel < 0
    chosen[free] = _pack(nodes[free], gain[free], total)
    for number in range(a.channel.max() + 1):
        rows, i, j = (np.flatnonzero(v == number) for v in (channel, a.channel, b.channel))
        i, j = i[np.argsort(a.rank[i])], j[np.argsort(b.rank[j])]
        ranks = np.where(members[rows] < 0, -1, np.concatenate([a.rank[members[rows, :2]], b.rank[members[rows, 2:]]], 1))
        found, (p, q) = _align((len(i), len(j)), ranks, gain[rows], np.maximum(a.alone[i] - AT_EXIT, 0))
        chosen[rows[found]] = True
        leaves[i[p:]] = leaves[n + j[q:]] = True

    # doubt: what is lost if another hypothesis takes the place of all that it excludes
    which = np.full(total + 1, len(gain))
    which[nodes[chosen]] = np.flatnonzero(chosen)[:, None]
    which[-1] = len(gain)
    rivals = np.sort(which[nodes], axis=1)
    rivals[:, 1:][rivals[:, 1:] == rivals[:, :-1]] = len(gain)
    margin = np.append(gain, 0.0)
    loss = margin[rivals].sum(1) - gain
    np.minimum.at(margin, rivals[~chosen], loss[~chosen, None])
    return members[chosen], np.minimum(2 / (1 + np.exp(margin[:-1][chosen])), 1), leaves


def _forced(a: _Cells, b: _Cells, todo: dict[tuple[int, int], tuple[int, ...]], frame: int) -> np.ndarray:
    """The user's corrections of cells a of this frame: members (h, 4) as `_hypotheses`; taken out of todo."""
    rows, names = [], b.label.tolist()
    for i in np.flatnonzero(a.alone > LOST):
        if (key := (frame, int(a.label[i]))) in todo:
            following = todo.pop(key)
            if len(following) > 2 or len(set(following) & set(names)) < len(following):
                raise SegkitError(f"the correction of cell {key[1]} in frame {frame} names {following}: one or two labels "
                                  "of the next frame were needed, or none")
            rows.append([i, -1, *map(names.index, following), -1, -1][:4])
    members = np.array(rows, int).reshape(-1, 4)
    used = members[:, 2:][members[:, 2:] >= 0]
    if len(set(used.tolist())) < len(used):
        raise SegkitError(f"corrections of frame {frame} name a cell of the next frame twice: name it once")
    return members


def _follow(a: _Cells, b: _Cells, shared: np.ndarray, forced: np.ndarray, growth: float, closed: np.ndarray,
            age: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_solve` for the cells that no correction is about; the corrections are added without doubt."""
    n, free = len(a.label), np.ones(len(a.label) + len(b.label), bool)
    free[forced[:, 0]] = False
    free[n + forced[:, 2:][forced[:, 2:] >= 0]] = False
    grown = replace(a, area=a.area * np.exp(growth * age))
    rows, columns = (np.append(np.flatnonzero(v), -1) for v in (free[:n], free[n:]))
    leaves, members, doubt = np.zeros(len(free), bool), forced, np.zeros(len(forced))
    if len(rows) > 1 and len(columns) > 1:
        rest = shared[rows[:-1]][:, columns[:-1]]
        found, doubts, leaves[free] = _solve(grown.take(free[:n]), b.take(free[n:]), rest, growth, closed)
        found = np.concatenate([rows[found[:, :2]], columns[found[:, 2:]]], 1)
        members, doubt = np.concatenate([forced, found]), np.concatenate([doubt, doubts])
    return members, doubt, leaves


def _carry(a: _Cells, b: _Cells, members: np.ndarray, frame: int, longest: int) -> tuple[_Cells, np.ndarray]:
    """Cells of a to look for again, where their neighbours have moved to; and which of b hold more than one cell.

    longest: frames for which a cell is looked for.
    """
    i, i2, j, j2 = members.T
    keep, hides = np.ones(len(a.label), bool), np.zeros(len(b.label), bool)
    one = (i2 < 0) & (j2 < 0) & (j >= 0)
    keep[i] = False
    # cells drawn as one are looked for as they were; the larger one stands for both
    merged = (i2 >= 0) & (frame - np.minimum(a.seen[i], a.seen[i2]) < longest)
    main = np.where(a.area[i] >= a.area[i2], i, i2)
    hides[j[merged]] = True
    keep[i2[(i2 >= 0) & ~merged]] = False
    keep[i[merged]] = True
    alone, label = np.full(len(a.label), LOST), a.label.copy()
    alone[main[merged]], label[main[merged]] = ALONE, b.label[j[merged]]
    moved = np.zeros((len(a.label), 2))
    if one.any():
        _, near = spatial.KDTree(a.centre[i[one]]).query(a.centre, range(1, min(2, one.sum()) + 1))
        moved = (b.centre[j[one]] - a.centre[i[one]])[near].mean(1)
    return replace(a.move(moved), alone=alone, label=label).take(keep), hides


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
    return link_frames(labels, frames, images)[list(TRACK_COLUMNS)]


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
    todo, rows, mothers, last = dict(corrections or {}), [], np.zeros(1, int), 0
    known, thumb = _measure(np.zeros((1, 1), int), 0), np.zeros((0, 0))
    growth, closed = np.array([GROWTH, 5.0]), np.zeros(2)  # per frame, and how many links it stands for

    for number, picture, image in _together(labels, numbers, images):
        cells, before = _measure(picture, number), thumb
        thumb = _thumb(picture > 0 if image is None else image)
        # links from the frame before, and from cells that were missing there
        known = known.take(number - known.seen <= (GAP + 1) * step)
        moved, shared = _shared(known, cells, picture.shape, _drift(before, thumb))
        forced = _forced(known, cells, todo, last)
        age = (number - known.seen) / step
        members, doubt, out = _follow(moved, cells, shared, forced, growth[0], closed, age)
        i, i2, j, j2 = members.T
        link, split = (j >= 0) & (j2 < 0), j2 >= 0

        # a link carries the track on; a division begins two, and every cell without a link one
        source = np.where((i2 >= 0) & (known.area[i2] > known.area[i]), i2, i)
        cells.track[j[link]] = known.track[source[link]]
        mother, doubts = np.zeros(len(cells.label), int), np.zeros(len(cells.label))
        for daughter in (j, j2):
            mother[daughter[split]] = known.track[i[split]]
            doubts[daughter[daughter >= 0]] = doubt[daughter >= 0]
        new = cells.track == 0
        cells.track[new] = len(mothers) + np.arange(new.sum())
        mothers = np.append(mothers, mother[new])
        leaves = (cells.alone == AT_EXIT) | out[len(known.label):]
        if rows:
            rows[-1][-1][np.isin(rows[-1][1], known.label[out[:len(known.label)] & (known.alone > LOST)])] = True
        rows.append((np.full(len(new), number), cells.label, cells.track, doubts, leaves))

        # what the next frame needs: growth, this frame's cells, and those still to be found
        step_of_area = np.log((cells.area[j] + split * cells.area[j2]) / known.area[i]) / age[i]
        step_of_area = step_of_area[(j >= 0) & (i2 < 0) & (known.alone[i] == ALONE) & (cells.alone[j] == ALONE)]
        if len(step_of_area):
            weights = growth[1], len(step_of_area)
            growth[:] = np.average([growth[0], np.median(step_of_area)], weights=weights), min(sum(weights), 50.0)
        missing, hidden = _carry(moved, cells, members, number, GAP * step)
        known, last = cells.take(~hidden).join(missing), number
    if todo:
        raise SegkitError(f"corrections name cells that are not there, or not before another frame: {sorted(todo)}")
    table = pd.DataFrame(dict(zip(("frame", "label", "track", "doubt", "leaves"),
                                  (np.concatenate(v) for v in zip(*rows, strict=True)), strict=True)))
    table.insert(3, "mother_track", mothers[table["track"]])
    return table


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
    radius of a disc of its area, after the median motion of the others); else the linking, or the segmentation, lost it.
    """
    cells = cells.sort_values(["track", "frame"])
    leaves = cells["touches_border"] | cells.get("leaves", False)
    rows = cells.assign(leaves=leaves.astype(bool)).groupby("track")
    start, end = rows.head(1).set_index("track"), rows.tail(1).set_index("track")
    daughters = start[start["mother_track"] > 0].reset_index().groupby("mother_track")["track"]
    text = daughters.agg(lambda tracks: " ".join(map(str, tracks))).reindex(start.index, fill_value="")
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
