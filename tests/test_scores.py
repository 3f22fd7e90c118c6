import tracemalloc
from itertools import permutations

import numpy as np
import pytest

from segkit import SegkitError, dice, match_instances
from tests.helpers import squares

EMPTY = np.zeros((40, 48), np.int32)


def test_two_squares_overlapping_by_half_have_dice_one_half():
    assert dice(squares((5, 5)), squares((5, 10))) == 0.5


def test_two_empty_masks_score_one_and_one_empty_mask_zero():
    assert dice(EMPTY, EMPTY) == 1.0
    assert dice(EMPTY, squares((5, 5))) == 0.0
    assert match_instances(EMPTY, EMPTY) == (0, 0, 0, 1.0, 1.0, 1.0, 1.0)
    assert match_instances(EMPTY, squares((5, 5)))[:3] == (0, 0, 1)


def test_a_threshold_that_would_match_cells_apart_is_refused():
    with pytest.raises(SegkitError, match="iou is 0"):
        match_instances(EMPTY, EMPTY, 0)


def test_dice_is_exact_on_large_masks():
    assert dice(np.ones((5000, 5000), bool), np.ones((5000, 5000), bool)) == 1.0


def test_one_match_one_miss_one_invention():
    target = squares((0, 0), (20, 20))
    found = squares((0, 0), (0, 20))
    assert match_instances(found, target) == (1, 1, 1, 0.5, 0.5, 1 / 3, 0.5)


def test_panoptic_quality_weighs_matches_by_their_iou():
    target, found = squares((0, 0)), squares((0, 2))  # 8 x 10 shared of 12 x 10
    matched = match_instances(found, target)
    assert matched.tp == 1
    assert matched.panoptic_quality == pytest.approx(80 / 120)
    assert match_instances(found, target, iou=0.7).tp == 0
    assert match_instances(found, target, iou=80 / 120).tp == 1


def test_labels_need_not_be_numbered_without_gaps():
    target = squares((0, 0), (20, 20))
    assert match_instances(np.where(target == 2, 900, target), target).average_precision == 1.0


def test_two_touching_cells_merged_into_one_lose_both():
    target = squares((5, 5), (5, 15))
    assert match_instances((target > 0).astype(int), target)[:3] == (1, 0, 1)  # IoU 0.5 with either
    assert match_instances((target > 0).astype(int), target, 0.51)[:3] == (0, 1, 2)


def best_of_all(labels, target, iou):
    """Most pairs that reach the threshold, then the largest sum of IoU, among all ways to match."""
    cells, others = ([np.asarray(a == k) for k in np.unique(a) if k] for a in (labels, target))
    table = np.array([[(a & b).sum() / (a | b).sum() for b in others] for a in cells]).reshape(len(cells), len(others))
    table = np.where(table >= iou, table, 0)
    table = table if len(cells) <= len(others) else table.T
    ways = (table[np.arange(len(way)), list(way)] for way in permutations(range(table.shape[1]), table.shape[0]))
    return max((int((way > 0).sum()), float(way.sum())) for way in ways)


@pytest.mark.parametrize("iou", [0.1, 0.3, 0.5, 0.75, 0.9])
def test_the_matching_is_the_best_of_all(rng, iou):
    for _ in range(60):
        target = rng.integers(0, 5, rng.integers(1, 8, 2))
        labels = np.where(rng.random(target.shape) < rng.random(), target, rng.integers(0, 5, target.shape))
        found = match_instances(labels * 300 - (labels > 0), target, iou)
        pairs, total = best_of_all(labels, target, iou)
        assert found.tp == pairs
        assert found.panoptic_quality == pytest.approx(
            total / (found.tp + found.fp / 2 + found.fn / 2) if labels.any() or target.any() else 1.0)


def test_a_colony_of_thousands_of_cells_takes_little_memory():
    cells = np.kron(np.arange(1, 2501).reshape(50, 50), np.ones((6, 6), np.int32))
    tracemalloc.start()
    assert match_instances(np.roll(cells, 1, 1), cells).tp > 2400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # a dense table of 2500 x 2500 float64 is 50 MB, and several of them were needed


def test_shapes_must_agree():
    with pytest.raises(SegkitError, match="differ"):
        dice(np.zeros((2, 2)), np.zeros((2, 3)))


def test_labels_of_any_byte_order_are_matched():
    labels = np.zeros((8, 8), np.uint16)
    labels[1:4, 1:4] = 7
    assert match_instances(labels.astype(">u2"), labels).tp == 1
