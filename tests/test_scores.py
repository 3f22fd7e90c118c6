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


def test_shapes_must_agree():
    with pytest.raises(SegkitError, match="differ"):
        dice(np.zeros((2, 2)), np.zeros((2, 3)))
