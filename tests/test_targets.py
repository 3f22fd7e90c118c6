import numpy as np
import pytest
import torch

from segkit.data.images import SPECK, intensity_range, normalise
from segkit.measure.metrics import match_instances
from segkit.model import predict
from segkit.model.postprocess import (
    distance_target,
    join_fragments,
    label_cells,
    pair_ends,
    relabel,
    smallest_area,
    whole_areas,
)
from segkit.model.unet import PAIRS
from tests.helpers import affinity_of, squares


def test_the_distance_is_one_at_the_core_and_zero_outside():
    target, widths = distance_target(squares((5, 5), side=9))
    assert target[9, 9] == target[9, 8] == 255
    assert target[5, 5] == 1 + round(254 * 0.5 / 2.5)
    assert target[4, 5] == 0
    assert widths.tolist() == [9.0]


def test_every_cell_has_its_own_core_however_small_and_touching():
    labels = squares((5, 5), (5, 15)) + squares((30, 30), side=3) * 3
    target, widths = distance_target(labels)
    assert all(target[labels == k].max() == 255 for k in (1, 2, 3))
    assert (target[labels > 0] > 0).all()
    assert len(widths) == 3


def test_a_stalk_is_as_high_as_the_body_and_stays_with_it():
    labels = np.zeros((40, 90), np.int32)
    for x in range(10, 80):  # 13 pixels wide, tapering to three, then a step down every fourth pixel
        half, middle = max(1, 6 - max(0, x - 25) // 4), 12 + max(0, x - 45) // 4
        labels[middle - half:middle + half + 1, x] = 1
    target = distance_target(labels)[0] / 255
    assert min(target[:, x].max() for x in range(50, 75)) > 0.75
    assert label_cells((labels > 0).astype(float), target, prominence=0.3).max() == 1


def test_labels_come_back_from_a_perfect_distance_where_components_merge():
    labels = squares((5, 5), (5, 15), (15, 5))
    target, _ = distance_target(labels)
    distance = target / 255
    foreground = (labels > 0).astype(float)
    assert match_instances(label_cells(foreground, distance), labels).panoptic_quality == 1.0
    assert label_cells(foreground, None).max() == 1


def test_specks_are_dropped_holes_filled_and_numbers_have_no_gaps():
    labels = squares((20, 20), (0, 0), side=10)
    labels[5, 5] = 0  # a hole of one pixel
    probability = (labels > 0).astype(float)
    probability[35, 40] = 1.0  # a speck
    found = label_cells(probability, None)
    assert sorted(np.unique(found)) == [0, 1, 2]
    assert found[5, 5] > 0
    assert found[35, 40] == 0


def discs(radii, shape=(300, 300)):
    """Labels with a disc of each radius, touching none."""
    labels, (y, x) = np.zeros(shape, np.int32), np.indices(shape)
    for k, radius in enumerate(radii):
        at_y, at_x = 20 + 36 * (k // 8), 20 + 36 * (k % 8)
        labels[(y - at_y) ** 2 + (x - at_x) ** 2 <= radius ** 2] = k + 1
    return labels


@pytest.mark.parametrize("radius", [5, 8, 12])
def test_round_cells_of_any_size_within_the_trainings_are_kept_and_specks_dropped(rng, radius):
    labels = discs(radius * rng.uniform(0.7, 1.3, 64))
    target, widths = distance_target(labels)
    least = smallest_area(whole_areas(labels), float(np.median(widths)))
    truth = labels.copy()
    labels[280:280 + radius // 2, 280:280 + radius // 2] = 65  # a speck of a tenth of a cell
    found = label_cells((labels > 0).astype(float), target / 255, min_area=least)
    assert match_instances(found, truth)[:3] == (64, 0, 0)


def test_the_smallest_area_is_half_of_what_nearly_all_whole_cells_reach():
    labels = squares((5, 5), (5, 25), (20, 5), side=12)
    labels[38:, 20:40], labels[30, 30:33] = 4, 5  # cut off by the border; a speck
    assert sorted(whole_areas(labels)) == [3, 144, 144, 144]
    assert smallest_area(whole_areas(labels), 12.0) == 72
    assert smallest_area([300, 300], 9.0) == 61  # long cells: a disc of their width is one, too
    assert smallest_area([], 9.0) == smallest_area([14, 14], 9.0) == SPECK


def test_a_gap_between_two_cells_is_no_hole():
    labels = squares((5, 5), (5, 15))
    labels[9:11, 14:16] = 0  # between the two, and only there
    distance = distance_target(labels)[0] / 255
    found = label_cells((labels > 0).astype(float), distance)
    assert found.max() == 2
    assert (found[9:11, 14:16] == 0).all()


def test_a_piece_without_a_core_is_one_cell():
    probability = (squares((5, 5)) > 0).astype(float)
    assert label_cells(probability, np.zeros_like(probability)).max() == 1


@pytest.mark.parametrize(("valley", "cells"), [(0.9, 1), (0.7, 1), (0.3, 2)])
def test_two_peaks_are_two_cells_where_the_distance_falls_far_enough_between_them(valley, cells):
    distance = np.zeros((20, 40))
    distance[5:15, 5:35] = valley
    distance[5:15, 5:15] = distance[5:15, 25:35] = 1.0
    assert label_cells((distance > 0).astype(float), distance, prominence=0.4).max() == cells


def test_a_small_bump_on_a_cell_is_no_cell_of_its_own():
    distance = np.zeros((20, 40))
    distance[5:15, 5:35] = 0.6
    distance[8:12, 8:12] = 1.0
    distance[8:12, 28:32] = 0.7
    assert label_cells((distance > 0).astype(float), distance, prominence=0.2).max() == 1


def test_no_foreground_gives_no_cells():
    assert label_cells(np.zeros((8, 8)), np.zeros((8, 8))).max() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_normalisation_does_not_depend_on_the_dtype(rng, dtype):
    image = rng.integers(10, 200, (50, 60))
    np.testing.assert_allclose(normalise(image.astype(dtype)), normalise(image.astype(np.float64)), atol=1e-6)


def test_the_range_is_that_of_the_percentiles_and_minmax_that_of_the_extremes():
    image = np.arange(1001, dtype=np.float32).reshape(7, 143)
    assert intensity_range(image) == pytest.approx((5, 995))
    assert intensity_range(image, "minmax") == (0, 1000)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.full((1, 1), 7.0)])
def test_constant_and_empty_images_normalise_to_something_finite(image):
    assert np.isfinite(normalise(image)).all()


def test_pair_ends_are_the_pixels_on_either_side():
    values = np.arange(48).reshape(6, 8)
    for y, x in PAIRS:
        first, middle, second = pair_ends(values, (y, x))
        row, column = np.argwhere(values == middle[0, 0])[0]
        assert first[0, 0] == values[row - y, column - x]
        assert second[0, 0] == values[row + y, column + x]
        assert middle.shape == (6 - 2 * y, 8 - 2 * abs(x))


def test_fragments_of_one_cell_are_joined_and_touching_cells_are_not():
    labels = np.zeros((40, 60), int)
    labels[5:15, 5:50], labels[15:25, 5:50] = 1, 2  # two rods side by side
    fragments = relabel(np.where(labels, 3 * labels + np.arange(60) // 20, 0))
    joined = join_fragments(fragments, affinity_of(labels))
    assert fragments.max() == 6
    assert np.array_equal(relabel(joined), relabel(labels))


@pytest.mark.parametrize("labels", [np.zeros((12, 12), int), np.pad(np.ones((6, 6), int), 3), squares((5, 5), (5, 25))])
def test_without_neighbours_nothing_is_joined(labels):
    assert np.array_equal(join_fragments(relabel(labels), affinity_of(labels)), relabel(labels))


def test_cells_with_background_between_them_stay_apart():
    labels = squares((5, 5), (5, 16))  # a gap of one pixel
    assert join_fragments(relabel(labels), np.ones((len(PAIRS), *labels.shape), np.float32)).max() == 2


def test_the_mean_over_all_pairs_decides():
    fragments = np.zeros((30, 30), np.int32)
    fragments[5:15, 5:25], fragments[15:25, 5:25] = 1, 2
    affinity = np.zeros((len(PAIRS), 30, 30), np.float32)
    affinity[:, :, 5:14] = 1  # under a half of the border
    assert join_fragments(fragments, affinity).max() == 2
    affinity[:, :, 5:17] = 1
    assert join_fragments(fragments, affinity).max() == 1


def test_cells_with_a_waist_are_told_from_cells_end_to_end_by_affinity():
    one = np.zeros((24, 70), int)
    one[6:18, 5:65] = 1
    one[6:9, 32:38] = one[15:18, 32:38] = 0
    two = np.where(one & (np.arange(70) >= 35), 2, one)
    for labels in (one, two):
        distance = distance_target(labels)[0] / 255
        found = label_cells((labels > 0).astype(float), distance, prominence=0.05, affinity=affinity_of(labels))
        assert found.max() == labels.max()


def test_a_student_that_predicts_affinity_drops_cells_of_which_it_is_uncertain():
    labels = squares((5, 5), (25, 20))
    probability = np.choose(labels, [0, 0.9, 0.7])
    distance = distance_target(labels)[0] / 255
    assert np.array_equal(label_cells(probability, distance), labels)  # as version 1.1 does
    assert np.array_equal(label_cells(probability, distance, affinity=affinity_of(labels)), labels == 1)


@pytest.mark.parametrize("axes", predict.MIRRORS)
def test_pairs_of_a_mirror_image_change_places(monkeypatch, axes):
    """A stand-in for the network predicts of each pair the brightness of its first pixel times that of its second."""
    def outputs(model, x):
        maps = torch.zeros(len(x), 2 + len(PAIRS), *x.shape[-2:])
        for k, half in enumerate(PAIRS):
            first, _, second = pair_ends(x[:, 0], half)
            pair_ends(maps[:, 2 + k], half)[1][:] = first * second
        return maps

    monkeypatch.setattr(predict, "_predict_tiles", outputs)
    x = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(predict._predict_mirrored(None, x, axes), outputs(None, x))


@pytest.mark.parametrize("shape", [(1, 8), (2, 8), (3, 8), (8, 3), (3, 3), (4, 4)])
def test_small_images_have_few_pairs_or_none(shape):
    labels = np.ones(shape, np.int32)
    assert join_fragments(labels, np.ones((len(PAIRS), *shape), np.float32)).max() == 1
