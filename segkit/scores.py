"""How well a segmentation agrees with its teacher: Dice for masks, matching for instances."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from .errors import SegkitError


def dice(mask: ArrayLike, target: ArrayLike) -> float:
    """Dice coefficient 2 |A & B| / (|A| + |B|) of two masks (H, W); labels count as mask where > 0.

    Two empty masks score 1.0. Raises SegkitError where the shapes differ. Source: Dice (1945), doi 10.2307/1932409.
    """
    a, b = _same_shape(np.asarray(mask) > 0, np.asarray(target) > 0)
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else 1.0


class Matching(NamedTuple):
    """Instances matched one to one at an IoU threshold."""

    tp: int
    fp: int
    fn: int
    precision: float
    recall: float
    average_precision: float  # tp / (tp + fp + fn)
    panoptic_quality: float  # sum of matched IoU / (tp + fp / 2 + fn / 2)


def match_instances(labels: ArrayLike, target_labels: ArrayLike, iou: float = 0.5) -> Matching:
    """Match instances to the target's, each at most once, so that most pairs reach the IoU threshold.

    labels, target_labels: (H, W) integers, 0 = background; iou: threshold in (0, 1], reached counts.
    Two empty pictures score 1.0 throughout. Raises SegkitError where the shapes differ, or for another threshold.
    Source: panoptic quality of Kirillov et al., CVPR 2019; average precision as in StarDist and Cellpose.
    """
    if not 0 < iou <= 1:
        raise SegkitError(f"iou is {iou}: a threshold above 0 and up to 1 was needed")
    a, b = _same_shape(np.asarray(labels), np.asarray(target_labels))
    overlap, area_a, area_b = _overlaps(a, b)
    union = area_a[:, None] + area_b[None, :] - overlap
    ious = overlap / np.maximum(union, 1)
    hits = ious >= iou
    rows, columns = linear_sum_assignment(-(hits + ious / (2 * max(ious.size, 1))))  # most hits, then best IoU
    matched = ious[rows, columns][hits[rows, columns]]
    tp = len(matched)
    fp, fn = len(area_a) - tp, len(area_b) - tp
    if tp + fp + fn == 0:
        return Matching(0, 0, 0, 1.0, 1.0, 1.0, 1.0)
    return Matching(tp, fp, fn, tp / (tp + fp) if tp + fp else 0.0, tp / (tp + fn) if tp + fn else 0.0,
                    tp / (tp + fp + fn), float(matched.sum()) / (tp + fp / 2 + fn / 2))


def _same_shape(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.shape != b.shape:
        raise SegkitError(f"shapes {a.shape} and {b.shape} differ: two pictures of one size were needed")
    return a, b


def _overlaps(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels shared by each pair of instances (n, m), and each instance's area (n,), (m,)."""
    inside = (a != 0) | (b != 0)
    a, b = a[inside], b[inside]  # sorting the background too would take most of the time
    ids_a, index_a = np.unique(a, return_inverse=True)
    ids_b, index_b = np.unique(b, return_inverse=True)
    pixels = np.bincount(index_a.ravel() * len(ids_b) + index_b.ravel(), minlength=len(ids_a) * len(ids_b))
    table = pixels.reshape(len(ids_a), len(ids_b))
    cells_a, cells_b = ids_a != 0, ids_b != 0
    return table[np.ix_(cells_a, cells_b)], table[cells_a].sum(1), table[:, cells_b].sum(0)
