"""How well a segmentation agrees with its teacher: Dice for masks, matching for instances."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

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
    return match(overlapping(labels, target_labels), iou)


class Overlaps(NamedTuple):
    """The pairs of instances that share pixels, in the order of (instance, target)."""

    instance: np.ndarray  # (pairs,) int, 0..instances - 1
    target: np.ndarray  # (pairs,) int, 0..targets - 1
    iou: np.ndarray  # (pairs,) float64
    instances: int
    targets: int


def overlapping(labels: ArrayLike, target_labels: ArrayLike) -> Overlaps:
    """The overlaps that `match` needs, computed once for any number of thresholds; see `match_instances`."""
    a, b = _same_shape(np.asarray(labels), np.asarray(target_labels))
    inside = (a != 0) | (b != 0)
    a, b = a[inside].astype(np.int64), b[inside].astype(np.int64)  # sorting the background too would take most time
    lowest, span = b.min(initial=0), b.max(initial=0) - b.min(initial=0) + 1
    pairs, pixels = np.unique(a * span + (b - lowest), return_counts=True)
    (ids_a, index_a), (ids_b, index_b) = (np.unique(ids, return_inverse=True)
                                          for ids in (pairs // span, pairs % span + lowest))
    union = np.bincount(index_a, pixels)[index_a] + np.bincount(index_b, pixels)[index_b] - pixels
    both = (ids_a[index_a] != 0) & (ids_b[index_b] != 0)
    (of_a, instances), (of_b, targets) = ((np.cumsum(ids != 0) - 1, int((ids != 0).sum())) for ids in (ids_a, ids_b))
    return Overlaps(of_a[index_a[both]], of_b[index_b[both]], (pixels / union)[both], instances, targets)


def match(overlaps: Overlaps, iou: float = 0.5) -> Matching:
    """Match one to one: most pairs that reach the threshold and, among these, the largest sum of IoU.

    A minimum weight matching of the overlapping pairs only (Jonker and Volgenant 1987, for sparse matrices), in which
    every instance may also be matched to nothing.
    """
    if not 0 < iou <= 1:
        raise SegkitError(f"iou is {iou}: a threshold above 0 and up to 1 was needed")
    n, m = overlaps.instances, overlaps.targets
    instance, target, ious = (values[overlaps.iou >= iou] for values in overlaps[:3])
    nothing = np.arange(n)
    gain = 2 + ious / (n + 1)  # nothing gains 1; all IoU together are less than one pair more
    graph = csr_array((np.append(gain, np.ones(n)), (np.append(instance, nothing), np.append(target, m + nothing))),
                      shape=(n, m + n))
    rows, columns = min_weight_full_bipartite_matching(graph, maximize=True)
    real = columns < m
    key = rows[real].astype(np.int64) * m + columns[real]
    matched = ious[np.searchsorted(instance * m + target, key)]  # pairs are in this order
    tp = len(matched)
    fp, fn = n - tp, m - tp
    if tp + fp + fn == 0:
        return Matching(0, 0, 0, 1.0, 1.0, 1.0, 1.0)
    return Matching(tp, fp, fn, tp / (tp + fp) if tp + fp else 0.0, tp / (tp + fn) if tp + fn else 0.0,
                    tp / (tp + fp + fn), float(matched.sum()) / (tp + fp / 2 + fn / 2))


def _same_shape(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.shape != b.shape:
        raise SegkitError(f"shapes {a.shape} and {b.shape} differ: two pictures of one size were needed")
    return a, b
