"""From probability and distance maps to instance labels."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from ..data.images import EIGHT, SPECK

LEVELS = np.arange(0.35, 1.0, 0.05)  # of the distance, at which cells are looked for; below the first there is none
SMOOTHING = 1.2  # pixels


def whole_areas(labels: np.ndarray) -> np.ndarray:
    """Areas (n,), int32, pixels, of the cells of labels (H, W) that do not touch the border, which cuts cells off."""
    areas = np.bincount(labels.ravel(), minlength=1).astype(np.int32)
    areas[0] = 0
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        areas[edge] = 0
    return areas[areas > 0]


def smallest_area(areas: Sequence[int] | np.ndarray, width: float) -> int:
    """The area in pixels below which nothing is a cell, from the training cells' areas (`whole_areas`) and width.

    Half of what 99 % of these cells reach, the teacher's specks left out. No more than three quarters of the width
    squared, about a disc of that width: where all cells of a training are long, shorter ones remain cells.
    """
    cells = np.asarray(areas)[np.asarray(areas) >= SPECK]
    half = np.percentile(cells, 1) / 2 if len(cells) else SPECK
    return max(SPECK, round(min(half, 0.75 * width ** 2)))


def label_cells(probability: np.ndarray, distance: np.ndarray | None, threshold: float = 0.5, prominence: float = 0.2,
                min_area: int = SPECK) -> np.ndarray:
    """Cut the foreground into cells: watershed from the distance's prominent peaks, one for each cell.

    probability, distance: float (H, W); distance None: connected components (8-neighbourhood). prominence: how far the
    distance must fall between two peaks for them to be two cells.
    Cells smaller than min_area (pixels) are dropped, holes smaller than that inside one cell filled (gaps between cells
    stay); a piece of foreground without a peak is one cell.
    Returns int32 (H, W), 0 = background, numbered from 1 without gaps.
    """
    foreground = probability > threshold
    labels, count = ndimage.label(foreground, structure=EIGHT)
    if distance is not None and count:
        smooth = np.where(foreground, ndimage.gaussian_filter(distance, SMOOTHING), 0)
        peaks, peak_count = _prominent_peaks(smooth, prominence)
        without = foreground & ~np.isin(labels, np.unique(labels[peaks > 0]))
        labels = watershed(-smooth, np.where(without, labels + peak_count, peaks), mask=foreground)
    keep = np.bincount(labels.ravel()) >= min_area
    return relabel(np.where(keep, np.arange(len(keep)), 0)[_without_holes(labels, min_area)])


def relabel(labels: np.ndarray) -> np.ndarray:
    """The same cells, int32 (H, W), numbered from 1 without gaps and in the same order."""
    there = np.bincount(labels.ravel()) > 0
    there[0] = False
    return np.where(there, np.cumsum(there), 0)[labels].astype(np.int32)


def _largest(values: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """The largest value (0 or more) in each of the groups 1..groups."""
    largest = np.zeros(groups + 1, values.dtype)
    np.maximum.at(largest, group, values)
    return largest[1:]


def _without_holes(labels: np.ndarray, min_area: int) -> np.ndarray:
    """Fill the holes of under min_area pixels that a single cell surrounds."""
    holes, count = ndimage.label(labels == 0)
    small = np.bincount(holes.ravel()) < min_area
    small[0] = False
    at = np.flatnonzero(small[holes])
    if len(at) == 0:
        return labels
    top = labels.max() + 1
    hole = holes.ravel()[at]
    highest = _largest(ndimage.maximum_filter(labels, 3).ravel()[at], hole, count)
    lowest = top - _largest(ndimage.maximum_filter(np.where(labels > 0, top - labels, 0), 3).ravel()[at], hole, count)
    filled = labels.copy()
    filled.ravel()[at] = np.where(lowest == highest, highest, 0)[hole - 1]
    return filled


def _prominent_peaks(height: np.ndarray, prominence: float) -> tuple[np.ndarray, int]:
    """Regions around the peaks that stand out by `prominence` (h-maxima, Soille 2003), found level by level.

    A region is split where, one level up, two parts of it or more rise by the prominence. Returns labels and count.
    """
    regions, count = ndimage.label(height > LEVELS[0], structure=EIGHT)
    at = np.flatnonzero(regions)
    heights, owner = height.ravel()[at], regions.ravel()[at]
    for below, level in pairwise(LEVELS):
        labelled, parts = ndimage.label(height > level, structure=EIGHT)
        if parts == 0:
            break
        part = labelled.ravel()[at]
        belongs = _largest(owner, part, parts)
        rises = (_largest(heights, part, parts) - below >= prominence) & (belongs > 0)
        split = np.bincount(belongs[rises], minlength=count + 1) >= 2
        new = rises & split[belongs]
        renamed = np.zeros(parts + 1, int)
        renamed[1:][new] = count + 1 + np.arange(new.sum())
        owner = np.where(split[owner], renamed[part], owner)
        count += int(new.sum())
    regions.ravel()[at] = owner
    return regions, count
