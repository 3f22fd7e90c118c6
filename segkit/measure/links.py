"""What becomes of the cells of one frame in the next: links, divisions, and cells drawn as one."""

from itertools import product

import numpy as np
from scipy import optimize, sparse, spatial

NEIGHBOURS = 6  # nearest cells that may be the next one, beside those that overlap
ALONE, AT_EXIT, LOST = 2.5, 1.0, 0.0  # cost of a cell without a partner: inside, where cells leave, missing before
DIVIDES, MERGES = 0.5, 1.0  # cost of a division, and of two cells under one label
HALVED = 2.0  # cost of a division of which one daughter is missing
ALIGNED = 0.6  # of 1, all cells in one direction: cells in channels are at least so much
SIGMA = 0.18  # standard deviation of a step of log area about the frame's growth
# a cell that can be linked; places are complex, x + iy. axis: unit vector along it; alone: cost of having no partner;
# seen: frame in which it was measured; moved: by how many pixels since; channel: -1 none; rank: order in the channel;
# slack: pixels it may be off; row: its number among all cells of the film; source: the row at which it was seen last.
# What is found: before, the row of the cell that it comes from (-1: none), by a division or not, with which doubt;
# leaves: it stands where cells leave or come in
CELL = np.dtype([("label", int), ("area", float), ("centre", complex), ("axis", complex), ("length", float),
                 ("width", float), ("alone", float), ("seen", int), ("moved", complex), ("channel", int), ("rank", int),
                 ("slack", float), ("row", int), ("source", int), ("before", int), ("divided", bool),
                 ("doubt", float), ("leaves", bool)])


def _couples(one: np.ndarray, two: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(3, h): every cell i of `one` with two of its candidates j in `two`; in a channel these are neighbours."""
    order = np.lexsort((two["rank"][j], i))
    i, j = i[order], j[order]
    # each candidate with those of the same cell that follow it
    place = np.arange(len(i))
    more = np.cumsum(np.bincount(i))[i] - place - 1
    first = np.repeat(place, more)
    second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(more) - more, more)
    keep = (one["channel"][i[first]] < 0) | (two["rank"][j[second]] - two["rank"][j[first]] == 1)
    return np.stack([i[first], j[first], j[second]])[:, keep]


def _candidates(a: np.ndarray, b: np.ndarray, shared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a cell of a and one of b that overlap it or is near; in a channel all of this channel are."""
    places = (np.ascontiguousarray(cells["centre"])[:, None].view(float) for cells in (b, a))
    near = spatial.KDTree(next(places)).query(next(places), NEIGHBOURS)[1]
    pairs = np.pad((shared > 0) | (a["channel"] >= 0)[:, None], ((0, 0), (0, 1)))  # the last column: no neighbour
    np.put_along_axis(pairs, near, True, axis=1)
    i, j = np.nonzero(pairs[:, :-1] & (a["channel"][:, None] == b["channel"]))
    return i, j


def _hypotheses(a: np.ndarray, b: np.ndarray, shared: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What may have become of the cells a in b: a link, a division, or two cells drawn as one.

    Returns members (h, 4): two of a, two of b, -1 where there is none; gain (h,): cost saved against no link at all;
    useful (h,): False where the link of two of the members gains as much.
    """
    i, j = _candidates(a, b, shared)
    (m, d, e), (w, p, q) = _couples(a, b, i, j), _couples(b, a, j, i)
    p, q = np.where(a["area"][p] >= a["area"][q], [p, q], [q, p])
    kinds = (i, -1, j, -1), (m, -1, d, e), (p, q, w, -1)
    members = np.concatenate([np.stack(np.broadcast_arrays(*kind), axis=1) for kind in kinds])
    i, i2, j, j2 = members.T
    single = (i2 < 0) & (j2 < 0)

    # conserved area; parts that lie together and are alike. The last cell stands for none
    sides, cost, gain = [], np.zeros(len(members)), np.zeros(len(members))
    for cells, one, two, price in ((a, i, i2, MERGES), (b, j, j2, DIVIDES)):
        area, alone, length, place = (np.append(v, 0) for v in (
            cells["area"], cells["alone"], cells["length"], cells["centre"] * cells["area"]))
        gain += alone[one] + alone[two]
        sides.append((area[one] + area[two], (place[one] + place[two]) / (area[one] + area[two])))
        some = two >= 0
        one, two = one[some], two[some]
        far = np.abs(place[one] / area[one] - place[two] / area[two]) - 0.6 * (length[one] + length[two])
        unlike = np.maximum(np.abs(np.log(area[one] / area[two])) - 0.4, 0)
        cost[some] += price + 3 * unlike ** 2 + 2 * np.maximum(far, 0) / np.sqrt(area[one] + area[two])
    (area, place), (to_area, to_place) = sides
    exits, slack, channel = (a[name][i] for name in ("alone", "slack", "channel"))
    ratio = np.log(to_area / area)
    change = np.minimum((ratio / SIGMA) ** 2 / 2, np.where(exits == AT_EXIT, 1.5, 4.5))
    halved = HALVED + ((ratio + np.log(2)) / SIGMA) ** 2 / 2
    cost += np.where(single, np.minimum(change, halved), change)

    # place: overlap and distance, in units of the root of the area; channels let cells slide
    off = np.maximum(np.abs(to_place - place) - slack, 0) / np.sqrt(to_area)
    shared = np.pad(shared, (0, 1))
    pixels = shared[i, j] + shared[i2, j] + shared[i, j2]
    cost += np.where(channel >= 0, 0.5 * np.minimum(off, 3), 2 - 2 * pixels / np.minimum(area, to_area) + off)
    gain -= cost
    links = np.full(shared.shape, -np.inf)
    links[i[single], j[single]] = gain[single]
    rival = np.max([links[i, j], links[i2, j], links[i, j2]], axis=0)
    useful = gain > np.where(single, 0, rival)
    return members[gain > 0], gain[gain > 0], useful[gain > 0]


def _pack(nodes: np.ndarray, gain: np.ndarray, size: int, exact: bool) -> np.ndarray:
    """Which rows of nodes (h, 4; size: none) have the largest sum of gain, with each node in at most one of them.

    exact: also where the greedy choice is not the best one.
    """
    # greedy, first those rows that fall least below the best shares of their cells
    best, share = np.zeros(size + 1), gain / (nodes < size).sum(1)
    np.maximum.at(best, nodes.ravel(), share.repeat(4))
    best[size] = 0
    short = (best[nodes].sum(1) - gain).round(9)
    chosen, taken, members = np.zeros(len(nodes), bool), set[int](), nodes.tolist()
    for h in np.lexsort([-gain, short]).tolist():
        if taken.isdisjoint(members[h]):
            chosen[h] = True
            taken.update(k for k in members[h] if k < size)
    # no choice is better if every cell has got its best; else search around those that have not
    loose = best > 0
    loose[nodes[chosen & (short <= 0)]] = False
    if not exact or not loose.any():
        return chosen
    for some in (slice(None), chosen):
        loose[nodes[some][loose[nodes[some]].any(1)]] = True
        loose[size] = False
    some = np.flatnonzero((loose[nodes] | (nodes == size)).all(1))
    rows, place = np.nonzero(nodes[some] < size)
    table = sparse.csr_array((np.ones(len(rows)), (nodes[some][rows, place], rows)), (size, len(some)))
    limit = optimize.LinearConstraint(table, -np.inf, 1)
    chosen[some] = optimize.milp(-gain[some], integrality=1, bounds=(0, 1), constraints=limit).x > 0.5
    return chosen


def _channels(a: np.ndarray, b: np.ndarray, memory: dict[str, np.ndarray]) -> None:
    """Find dead-end channels, cells in single file beside other files, and set channel, rank, centre and slack.

    None unless most cells are, now and in most frames before. Cells of a may move as far as those behind them grew.
    """
    n, both = len(a), np.concatenate([a, b])
    weight = both["length"] - both["width"]
    direction = (both["axis"] ** 2 * weight).sum()
    along = np.exp(0.5j * np.angle(direction))
    along *= np.sign(max(along.real, along.imag, key=abs))
    if np.abs(direction) < ALIGNED * weight.sum():  # cells in channels lie in one direction
        memory["files"] = np.append(memory["files"], False)
        return
    wide = np.median(both["width"])
    s, u, turned = (both["centre"] / along).real, (both["centre"] / along).imag, both["axis"] / along
    extent = (both["length"] * np.abs(turned.real) + both["width"] * np.abs(turned.imag)) / 2
    # files are apart sideways; the second round corrects the angle by the files themselves
    for _ in range(2):
        order, file = np.argsort(u, kind="stable"), np.zeros(len(u), int)
        file[order] = np.cumsum(np.diff(u[order], prepend=u.min()) > 0.75 * wide)
        ds, du = (v - (np.bincount(file, v) / np.bincount(file))[file] for v in (s, u))
        u = u - np.clip(ds @ du / max(ds @ ds, 1e-9), -0.1, 0.1) * s

    files = _files(file, (both["alone"] > LOST) * (1 + (np.arange(len(u)) >= n)), s, extent)
    files = [one for one in files if np.ptp(du[file == one[0]]) < 1.2 * wide]
    share = sum(len(i) + len(j) for _, (i, j) in files if len(i) + len(j) > 4) / len(u)
    memory["files"] = valid = np.append(memory["files"], share >= 0.6)
    if not valid[-1] or valid[-20:].mean() < 0.7:
        return

    # growth looks like drift to labels; at the closed end the cells of all channels begin, and stay
    s[:n] -= (blind := (memory["blind"] / along).real)
    ends = np.array([[s[k[0]] - extent[k[0]], s[k[-1]] + extent[k[-1]]] for _, pair in files for k in pair])
    moved = np.median((ends := ends.reshape(-1, 4))[:, 2:] - ends[:, :2], axis=0)
    memory["open"] = memory["open"] + ends.std(0)[2:] + np.abs(moved)
    side = int(memory["open"][0] > memory["open"][1])
    shift = moved[side] * (len(files) > 2 or abs(moved[side]) < np.median(both["length"]) / 2)
    s[:n] += shift
    ends[:, side] += shift
    for (number, (i, _)), end in zip(files, ends[:, side::2], strict=True):
        cells, way = file == number, 1 - 2 * side
        for part in (np.flatnonzero(cells[:n]), n + np.flatnonzero(cells[n:])):
            both["rank"][part[np.argsort(way * s[part], kind="stable")]] = np.arange(len(part))
        both["channel"][cells], both["alone"][i[::way][-1]] = number, AT_EXIT
        further = (s[cells] - way * (way * end).min()) * (np.exp(memory["growth"][0]) - 1) / 2
        both["centre"][cells] += (shift - blind + further) * along
        both["slack"][cells] = np.abs(further)
    a[:], b["channel"], b["rank"] = both[:n], both["channel"][n:], both["rank"][n:]


def _files(file: np.ndarray, frame: np.ndarray, s: np.ndarray, extent: np.ndarray) \
        -> list[tuple[int, list[np.ndarray]]]:
    """The files whose cells stand one after the other in both frames: number, and its cells (indices) in each frame.

    For each cell (n,): its file, its frame (1 or 2; 0: not seen there), place along the files, half its extent there.
    """
    found = []
    for number in range(file.max() + 1):
        parts = [np.flatnonzero((file == number) & (frame == k)) for k in (1, 2)]
        parts = [part[np.argsort(s[part], kind="stable")] for part in parts]
        gaps = [np.diff(s[p]) / (extent[p][1:] + extent[p][:-1]) for p in parts]
        if min(map(len, parts)) > 0 and min(v.min(initial=1) for v in gaps) > 0.5:
            found.append((number, parts))
    return found


def _align(nodes: np.ndarray, gain: np.ndarray, spare: np.ndarray, count: int) -> tuple[list[int], int, int]:
    """The hypotheses of a channel that keep its order, by dynamic programming over the order in both frames.

    nodes (h, 4): ranks, as `_hypotheses`; spare: cost saved for each cell of the first frame beyond the outermost link;
    count: cells in the second frame. Returns rows of nodes, and how many cells of either frame are not beyond it.
    """
    # best[p, q]: gain of the p and q innermost cells, and the last step to it
    into: dict[tuple[int, int], list[tuple[float, int, int, int]]] = {}
    for h, ((i, i2, j, j2), value) in enumerate(zip(nodes.tolist(), gain.tolist(), strict=True)):
        into.setdefault((max(i, i2) + 1, max(j, j2) + 1), []).append((value, h, 1 + (i2 >= 0), 1 + (j2 >= 0)))
    best: dict[tuple[int, int], tuple[float, int, int, int]] = {(0, 0): (0.0, -1, 0, 0)}
    for p, q in list(product(range(len(spare) + 1), range(count + 1)))[1:]:
        steps = into.get((p, q), []) + [(0.0, -1, 1, 0)] * (p > 0) + [(0.0, -1, 0, 1)] * (q > 0)
        best[p, q] = max([(best[p - take, q - give][0] + value, h, take, give) for value, h, take, give in steps])
    out = np.append(np.cumsum(spare[::-1])[::-1], 0)
    p, q = end = max(best, key=lambda at: best[at][0] + out[at[0]])
    chosen: list[int] = []
    while p or q:
        _, h, take, give = best[p, q]
        p, q, chosen = p - take, q - give, chosen + [h] * (h >= 0)
    return chosen, *end


def solve(a: np.ndarray, b: np.ndarray, shared: np.ndarray, forced: np.ndarray, memory: dict[str, np.ndarray],
          exact: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Links from a to b: members (h, 4) as `_hypotheses`, doubt (h,), who is at a channel's exit (n + m,); gain.

    forced: members that the user chose; exact: not only greedy. Sets the channels of a and b.
    """
    total, offset = len(a) + len(b), np.array([0, 0, len(a), len(a)])
    _channels(a, b, memory)
    members, gain, useful = _hypotheses(a, b, shared)
    # what the user chose leaves no choice to these cells
    nodes = np.where(members < 0, total, members + offset)
    keep = ~np.isin(nodes, (forced + offset)[forced >= 0]).any(1)
    members, gain, useful, nodes = members[keep], gain[keep], useful[keep], nodes[keep]
    channel, chosen, leaves = a["channel"][members[:, 0]], np.zeros(len(gain), bool), np.zeros(total, bool)

    # each channel by its order, all other cells at once
    free = useful & (channel < 0)
    chosen[free] = _pack(nodes[free], gain[free], total, exact)
    rank = np.concatenate([a["rank"], b["rank"], [-1]])
    for number in np.unique(a["channel"][a["channel"] >= 0]):
        rows, i, j = (np.flatnonzero(v == number) for v in (np.where(useful, channel, -1), a["channel"], b["channel"]))
        i, j = i[np.argsort(a["rank"][i])], j[np.argsort(b["rank"][j])]
        found, p, q = _align(rank[nodes[rows]], gain[rows], np.maximum(a["alone"][i] - AT_EXIT, 0), len(j))
        chosen[rows[found]] = leaves[i[p:]] = leaves[len(a) + j[q:]] = True

    # doubt: what is lost if another hypothesis takes the place of all that it excludes
    which, margin = np.full(total + 1, len(gain)), np.append(gain, 0)
    which[nodes[chosen]] = np.flatnonzero(chosen)[:, None]
    which[total] = len(gain)
    rivals = np.sort(which[nodes[~chosen]], axis=1)
    rivals[:, 1:][rivals[:, 1:] == rivals[:, :-1]] = len(gain)
    np.minimum.at(margin, rivals, (margin[rivals].sum(1) - gain[~chosen])[:, None])
    doubt = np.minimum(2 / (1 + np.exp(margin[:-1][chosen])), 1)
    doubt = np.append(np.zeros(len(forced)), doubt)
    return np.concatenate([forced, members[chosen]]), doubt, leaves, gain[chosen].sum()
