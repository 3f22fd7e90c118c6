"""From labels to the distance target, and from probability and distance maps to instance labels."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from ..data.images import EIGHT, SPECK
from .unet import PAIRS

LEVELS = np.arange(0.35, 1.0, 0.05)  # of the distance, at which peaks are separated; a lower one is no peak
SMOOTHING = 1.2  # pixels
PLATEAU, DEEP = 0.75, 2.5  # the target is 1 from this share of half the width nearby, or from so many pixels inside
NEARBY = 7  # pixels
CERTAIN = 0.85  # mean foreground probability of a cell; most debris is below it, 9 of 5,741 cells (benchmarks)
GREYS = 254  # the target's distance is stored as 1 + round(254 * distance), 0 = background


def distance_target(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each cell's distance to its edge, divided by half the cell's width nearby, with a plateau along its middle.

    A narrow part, such as a stalk, is as high as the rest, and the steps from pixel to pixel hardly show: where the
    target falls between two peaks, there is a border (figures in benchmarks/README.md).
    labels: int (H, W). Returns the target as uint8 (H, W), 0 = background, 1..255 = inside, 255 along the middle;
    and the cells' widths (n,), float32, pixels (twice the largest distance, less the half pixels at the edges).
    """
    target = np.zeros(labels.shape, np.uint8)
    widths = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        # zero padding: the image's border counts as an edge of the cell
        cell = np.pad(labels[box] == label, 1)
        distance = ndimage.distance_transform_edt(cell)[1:-1, 1:-1]  # to a pixel outside: the edge is 0.5 nearer
        widths.append(2 * distance.max() - 1)
        # relative to the width nearby, so that narrow parts are as high as wide ones
        nearby = ndimage.maximum_filter(distance, NEARBY)
        inside = cell[1:-1, 1:-1]
        plateau = np.minimum(PLATEAU * (nearby[inside] - 0.5), DEEP)
        share = np.minimum((distance[inside] - 0.5) / plateau, 1)
        target[box][inside] = 1 + np.round(GREYS * share).astype(np.uint8)
    return target, np.array(widths, np.float32)


def whole_areas(labels: np.ndarray) -> np.ndarray:
    """Areas (n,), int32, pixels, of the cells in labels (H, W) that do not touch the border, which crops cells."""
    areas = np.bincount(labels.ravel()).astype(np.int32)
    areas[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = 0
    return areas[1:][areas[1:] > 0]


def smallest_area(areas: Sequence[int] | np.ndarray, width: float) -> int:
    """The smallest area of a cell (pixels), from the areas (`whole_areas`) and the width of the training cells.

    Half of what 99 % of these cells reach; specks in the teacher labels are ignored. At most three quarters of the
    width squared, about a disc of that width: where all training cells are long, shorter ones are still cells.
    """
    areas = np.asarray(areas)
    cells = areas[areas >= SPECK]
    half = np.percentile(cells, 1) / 2 if len(cells) else SPECK
    return max(SPECK, round(min(half, 0.75 * width ** 2)))


def pair_ends(values: Any, half: tuple[int, int]) -> tuple[Any, Any, Any]:
    """Of an array or tensor (..., H, W): the values at p - half, at p and at p + half, for every p that has both."""
    (height, width), (y, x) = values.shape[-2:], half
    rows, columns = max(0, height - 2 * y), max(0, width - 2 * abs(x))
    ends = [values[..., row:row + rows, column:column + columns]
            for row, column in ((0, abs(x) - x), (y, abs(x)), (2 * y, abs(x) + x))]
    return ends[0], ends[1], ends[2]


def label_cells(probability: np.ndarray, distance: np.ndarray | None, threshold: float = 0.5, prominence: float = 0.2,
                min_area: int = SPECK, affinity: np.ndarray | None = None) -> np.ndarray:
    """Instance segmentation: watershed of the foreground from the peaks of the distance, then joining by affinity.

    probability, distance: float (H, W); distance None: connected components (8-neighbourhood). prominence: how far the
    distance must fall between two peaks for them to be two fragments. affinity: (pairs, H, W), see `join_fragments`;
    without it each fragment is a cell. Cells smaller than min_area (pixels) are removed, smaller holes inside one cell
    filled; gaps between cells stay. With affinity, cells whose mean probability is below CERTAIN are removed, too.
    Returns int32 (H, W), 0 = background, numbered from 1 without gaps.
    """
    foreground = probability > threshold
    labels, count = ndimage.label(foreground, structure=EIGHT)
    if distance is not None and count:
        smooth = np.where(foreground, ndimage.gaussian_filter(distance, SMOOTHING), 0)
        peaks, peak_count = _prominent_peaks(smooth, prominence)
        # a component without a peak is one cell
        peakless = foreground & ~np.isin(labels, np.unique(labels[peaks > 0]))
        markers = np.where(peakless, labels + peak_count, peaks)
        labels = watershed(-smooth, markers, mask=foreground)
        if affinity is not None:
            labels = join_fragments(relabel(labels), affinity)

    # a cell's own pixels decide whether it is large and certain enough, not its holes
    areas = np.bincount(labels.ravel())
    unfit = areas < min_area
    if affinity is not None:  # files of version 1.1 give the labels that they gave then
        unfit |= np.bincount(labels.ravel(), probability.ravel()) < CERTAIN * areas
    filled = _fill_holes(labels, min_area)
    filled[unfit[filled]] = 0
    return relabel(filled)


def join_fragments(fragments: np.ndarray, affinity: np.ndarray) -> np.ndarray:
    """Join fragments (H, W), numbered without gaps, whose pairs of pixels belong to one cell rather than to two.

    affinity: (pairs, H, W), probability that the pixels of each of PAIRS, on either side of a pixel, are of one cell.
    The two fragments with the highest mean over all pairs that reach from one to the other are joined first, until no
    mean is above a half (average linkage, Bailoni et al. 2022, arXiv 1906.11713).
    """
    from skimage.graph import RAG, merge_hierarchical  # networkx takes half a second to import

    fragments, size, keys, values = fragments.astype(np.int64), int(fragments.max()) + 1, [], []
    component = ndimage.label(fragments > 0, structure=EIGHT)[0]  # cells with background between them stay apart
    for half, same in zip(PAIRS, affinity, strict=True):
        (a, _, b), (_, middle, _) = pair_ends(fragments, half), pair_ends(same, half)
        first, _, second = pair_ends(component, half)
        meet = (a != b) & (first == second) & (first > 0)
        a, b = a[meet], b[meet]
        keys.append(np.minimum(a, b) * size + np.maximum(a, b))  # one number for both fragments
        values.append(middle[meet])
    edges, edge, counts = np.unique(np.concatenate(keys), return_inverse=True, return_counts=True)
    means = np.bincount(edge, np.concatenate(values), len(counts)) / counts

    graph = RAG()
    graph.add_nodes_from((n, {"labels": [n]}) for n in range(size))  # background stays 0
    for key, mean, count in zip(edges.tolist(), means.tolist(), counts.tolist(), strict=True):
        graph.add_edge(*divmod(key, size), weight=1 - mean, count=count)
    return merge_hierarchical(fragments, graph, 0.5, rag_copy=False, in_place_merge=True,
                              merge_func=lambda graph, source, target: None, weight_func=_mean_of_both)


def _mean_of_both(graph: Any, source: int, target: int, other: int) -> dict[str, float]:
    """The edge from two joined fragments to a third: the mean over the pairs of both."""
    edges = [graph[node][other] for node in (source, target) if graph.has_edge(node, other)]
    count = sum(edge["count"] for edge in edges)
    return {"count": count, "weight": sum(edge["count"] * edge["weight"] for edge in edges) / count}


def relabel(labels: np.ndarray) -> np.ndarray:
    """The same cells, int32 (H, W), numbered from 1 without gaps and in the same order."""
    present = np.bincount(labels.ravel()) > 0
    present[0] = False
    return np.where(present, np.cumsum(present), 0)[labels].astype(np.int32)


def _fill_holes(labels: np.ndarray, min_area: int) -> np.ndarray:
    """Labels (H, W) whose holes of under min_area pixels are filled where one cell alone surrounds them."""
    holes, _ = ndimage.label(labels == 0)
    areas = np.bincount(holes.ravel())
    filled = labels.copy()
    for hole, (rows, columns) in enumerate(ndimage.find_objects(holes), start=1):
        if areas[hole] >= min_area:
            continue
        # one pixel more on every side holds all neighbours
        box = slice(max(0, rows.start - 1), rows.stop + 1), slice(max(0, columns.start - 1), columns.stop + 1)
        inside = holes[box] == hole
        around = labels[box][ndimage.binary_dilation(inside, EIGHT)]
        neighbours = np.unique(around[around > 0])
        if len(neighbours) == 1:
            filled[box][inside] = neighbours[0]
    return filled


def _largest(values: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """The largest value (0 or more) in each of the groups 1..groups."""
    largest = np.zeros(groups + 1, values.dtype)
    np.maximum.at(largest, group, values)
    return largest[1:]


def _prominent_peaks(height: np.ndarray, prominence: float) -> tuple[np.ndarray, int]:
    """Regions around the peaks that stand out by `prominence` (h-maxima, Soille 2003), found level by level.

    A region is split where, one level higher, at least two parts of it rise by the prominence. Returns labels and
    count.
    """
    regions, count = ndimage.label(height > LEVELS[0], structure=EIGHT)
    at = np.flatnonzero(regions)  # only these pixels matter: (n,) instead of (H, W)
    heights, owner = height.ravel()[at], regions.ravel()[at]
    for below, level in pairwise(LEVELS):
        # the parts of each region that are left at this level
        labelled, parts = ndimage.label(height > level, structure=EIGHT)
        if parts == 0:
            break
        part = labelled.ravel()[at]
        region = _largest(owner, part, parts)  # of each part, (parts,)

        # only regions with two prominent parts are split: noise on one peak makes no second cell
        rises = (_largest(heights, part, parts) - below >= prominence) & (region > 0)
        split = np.bincount(region[rises], minlength=count + 1) >= 2
        new = rises & split[region]

        # the parts get numbers of their own; the rest of a split region is background
        number = np.zeros(parts + 1, int)
        number[1:][new] = count + 1 + np.arange(new.sum())
        owner = np.where(split[owner], number[part], owner)
        count += int(new.sum())
    regions.ravel()[at] = owner
    return regions, count
