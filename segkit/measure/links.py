"""What becomes of the cells of one frame in the next: links, divisions, and cells drawn as one."""

import numpy as np
from scipy import optimize, sparse

NEIGHBOURS = 6  # nearest cells that may be the next one, beside those that overlap
ALONE, AT_EXIT, LOST = 2.5, 1.0, 0.0  # cost of a cell without a partner: inside, where cells leave, missing before
DIVIDES, MERGES = 0.5, 1.0  # cost of a division, and of two cells under one label
ALIGNED = 0.6  # of 1, all cells in one direction: cells in channels are at least so much
SIGMA = 0.18  # standard deviation of a step of log area about the frame's growth
# a cell that can be linked; places are complex, x + iy. axis: unit vector along it; alone: cost of having no partner;
# seen: frame in which it was measured; channel: -1 none; rank: order in the channel; slack: pixels it may be off
CELL = np.dtype([("label", int), ("area", float), ("centre", complex), ("axis", complex), ("length", float),
                 ("width", float), ("alone", float), ("seen", int), ("track", int), ("channel", int), ("rank", int),
                 ("slack", float)])


def _couples(one: np.ndarray, two: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(3, h): every cell i of `one` with two of its candidates j in `two`; in a channel these are neighbours."""
    order = np.lexsort((two["rank"][j], i))
    i, j = i[order], j[order]
    steps = range(1, np.bincount(i, minlength=1).max())
    found = np.concatenate([np.zeros((3, 0), int), *(
        np.stack([i[:-step], j[:-step], j[step:]])[:, i[:-step] == i[step:]] for step in steps)], axis=1)
    return found[:, (one["channel"][found[0]] < 0) | (two["rank"][found[2]] - two["rank"][found[1]] == 1)]


def _hypotheses(a: np.ndarray, b: np.ndarray, shared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What may have become of the cells a in b: a link, a division, or two cells drawn as one.

    Returns members (h, 4): two of a, two of b, -1 where there is none; gain (h,): cost saved against no link at all.
    """
    # candidates overlap or are near; in a channel all are
    near = np.argsort(np.abs(a["centre"][:, None] - b["centre"]), axis=1)[:, :NEIGHBOURS]
    pairs = (shared > 0) | (a["channel"] >= 0)[:, None]
    np.put_along_axis(pairs, near, True, axis=1)
    i, j = np.nonzero(pairs & (a["channel"][:, None] == b["channel"]))
    (m, d, e), (w, p, q) = _couples(a, b, i, j), _couples(b, a, j, i)
    p, q = np.where(a["area"][p] >= a["area"][q], [p, q], [q, p])
    members = np.full((len(i) + len(m) + len(w), 4), -1)
    members[:len(i), [0, 2]] = np.stack([i, j], 1)
    members[len(i):len(i) + len(m), [0, 2, 3]] = np.stack([m, d, e], 1)
    members[len(i) + len(m):, :3] = np.stack([p, q, w], 1)

    # conserved area; parts that lie together and are alike; -1 takes the last item, of no area
    sides, cost, gain = [], np.zeros(len(members)), np.zeros(len(members))
    for cells, parts, price in ((a, members[:, :2].T, MERGES), (b, members[:, 2:].T, DIVIDES)):
        values = cells["area"], cells["alone"], cells["centre"] * cells["area"]
        area, alone, place = (np.append(value, 0)[parts] for value in values)
        sides.append((area.sum(0), place.sum(0) / area.sum(0)))
        gain += alone.sum(0)
        two = parts[1] >= 0
        first, second = cells[parts[:, two]]
        far = np.abs(first["centre"] - second["centre"]) - 0.6 * (first["length"] + second["length"])
        unlike = np.maximum(np.abs(np.log(first["area"] / second["area"])) - 0.4, 0)
        cost[two] += price + 3 * unlike ** 2 + 2 * np.maximum(far, 0) / np.sqrt(area.sum(0)[two])
    (area, place), (to_area, to_place) = sides
    first = a[members[:, 0]]
    cost += np.minimum((np.log(to_area / area) / SIGMA) ** 2 / 2, np.where(first["alone"] == AT_EXIT, 1.5, 4.5))

    # place: overlap and distance, in units of the root of the area; channels let cells slide
    off = np.maximum(np.abs(to_place - place) - first["slack"], 0) / np.sqrt(to_area)
    pixels = sum(np.pad(shared, (0, 1))[members[:, k], members[:, m]] for k in (0, 1) for m in (2, 3))
    cost += np.where(first["channel"] >= 0, 0.5 * np.minimum(off, 3), 2 - 2 * pixels / np.minimum(area, to_area) + off)
    gain -= cost
    return members[gain > 0], gain[gain > 0]


def _pack(nodes: np.ndarray, gain: np.ndarray, size: int, exact: bool) -> np.ndarray:
    """Which rows of nodes (h, 4; size: none) have the largest sum of gain, with each node in at most one of them."""
    chosen, taken, members = np.zeros(len(nodes), bool), set[int](), nodes.tolist()
    for h in np.argsort(-gain, kind="stable").tolist():
        if taken.isdisjoint(members[h]):
            chosen[h] = True
            taken.update(k for k in members[h] if k < size)
    # greedy is exact for groups of cells in which every cell has got its best
    best, share = np.zeros(size + 1), gain / (nodes[:, :2] < size).sum(1)
    np.maximum.at(best, nodes[:, :2], share[:, None])
    if not exact or best[:size].sum() - gain[chosen].sum() < 1e-9:
        return chosen
    rows, columns = np.nonzero(nodes < size)
    table = sparse.csr_array((np.ones(len(rows)), (rows, nodes[rows, columns])), (len(nodes), size))
    groups, owner = sparse.csgraph.connected_components(table.T @ table, directed=False)
    best[size], group = 0, owner[nodes[:, 0]]
    gap = (np.bincount(owner, best[:-1], groups) - np.bincount(group, gain * chosen, groups))[group]
    # what lies further below its cells' best than all of the greedy choice is in no better one
    hard = (gap > 1e-9) & (best[nodes[:, :2]].sum(1) - gain <= gap + 1e-9)
    chosen[gap > 1e-9] = False
    for number in np.unique(group[hard]):  # small problems one by one
        some = np.flatnonzero(hard & (group == number))
        limit = optimize.LinearConstraint(table[some].T, -np.inf, 1)
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
    s, u, turned = (both["centre"] / along).real, (both["centre"] / along).imag, both["axis"] / along
    extent = (both["length"] * np.abs(turned.real) + both["width"] * np.abs(turned.imag)) / 2
    # files are apart sideways; the second round corrects the angle by the files themselves
    for _ in range(2):
        order, file = np.argsort(u, kind="stable"), np.zeros(len(u), int)
        file[order] = np.cumsum(np.diff(u[order], prepend=u.min()) > 0.75 * np.median(both["width"]))
        ds, du = (v - (np.bincount(file, v) / np.bincount(file))[file] for v in (s, u))
        u = u - np.clip(ds @ du / max(ds @ ds, 1e-9), -0.1, 0.1) * s

    files = _files(file, (both["alone"] > LOST) * (1 + (np.arange(len(u)) >= n)), s, extent)
    files = [one for one in files if np.ptp(du[file == one[0]]) < 1.2 * np.median(both["width"])]
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


def solve(a: np.ndarray, b: np.ndarray, shared: np.ndarray, forced: np.ndarray, memory: dict[str, np.ndarray],
          exact: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Links from a to b: members (h, 4) as `_hypotheses`, doubt (h,), who is at a channel's exit (n + m,); gain.

    forced: members that the user chose; exact: not only greedy. Sets the channels of a and b.
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
    channel, chosen, leaves = a["channel"][members[:, 0]], np.zeros(len(gain), bool), np.zeros(total, bool)

    # each channel by its order, all other cells at once
    chosen[channel < 0] = _pack(nodes[channel < 0], gain[channel < 0], total, exact)
    rank = np.concatenate([a["rank"], b["rank"], [-1]])
    for number in np.unique(a["channel"][a["channel"] >= 0]):
        rows, i, j = (np.flatnonzero(v == number) for v in (channel, a["channel"], b["channel"]))
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
