"""The wave model: what any phase-contrast image of a cell shows, and what random frames promise."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from segkit import measure_cells
from segkit.data.optics import Microscope, draw_microscope, field, intensity, outline_level, outline_shift, render
from segkit.data.scenes import HALF_WIDTHS, SCENES, _constrict, draw_frame, draw_scene, draw_stalks
from segkit.data.synthetic import Rods, draw_labels, draw_thickness

PLAIN = Microscope(phase=0.6, ring=0.7, leak=12.0, blur=1.0)
DARK = np.ones((64, 64))


def rods(*places, radius=5.0):
    """Vertical cells of 20 pixels beside each other, one for each (y, x)."""
    n = len(places)
    return Rods(np.array(places, float), np.full(n, np.pi / 2), np.full(n, np.pi * radius ** 2 + 4 * radius * 5.0),
                np.full(n, radius), np.full(n, 400.0), np.arange(1, n + 1), np.zeros(n, int))


def image_of(cells, microscope=PLAIN):
    thickness = draw_thickness(cells, (64, 64), 0.0)
    return render(thickness, np.zeros((64, 64)), DARK, microscope, np.random.default_rng(0))


def test_a_cell_is_dark_and_its_halo_brighter_than_the_background():
    image = image_of(rods((32, 32)))
    background = image[2, 2]
    assert image[32, 32] < 0.3 * background
    assert image[32, 22:43].max() > 1.15 * background
    assert background == pytest.approx(1, abs=0.15)


def test_a_cell_grows_darker_with_its_phase_until_the_ring_is_reached():
    middle = [image_of(rods((32, 32)), replace(PLAIN, phase=phase))[32, 32] for phase in np.linspace(0, 0.7, 8)]
    assert (np.diff(middle) < 0).all()


def test_a_uniform_specimen_gives_a_uniform_image():
    for phase in (0.0, 0.3, -1.0):
        image = intensity(np.full((40, 56), phase), replace(PLAIN, defocus=5.0))
        np.testing.assert_allclose(image, 1.0, rtol=1e-9)


def test_touching_cells_are_told_apart_by_their_thickness_alone():
    # the labels of two flat bodies meet without a dip in thickness: the image has nothing there either
    flat = np.zeros((64, 64))
    flat[:, 22:42] = 1.0
    across = intensity(0.6 * flat, replace(PLAIN, leak=200.0))[32, 26:38]
    assert np.ptp(across) < 0.01
    # two round ones have a dip, and are brighter there than in their middles, but darker than the background
    image = image_of(rods((32, 27), (32, 37)))
    assert image[32, 27] < 0.5 * image[32, 32]
    assert image[32, 32] < 1.0


def test_labels_and_thickness_agree():
    cells = rods((32, 20), (32, 40))
    labels, thickness = draw_labels(cells, (64, 64)), draw_thickness(cells, (64, 64), 0.0)
    assert ((labels > 0) == (thickness > 0)).all()
    assert thickness.max() == pytest.approx(1, abs=0.01)
    inner = draw_thickness(cells, (64, 64), -1.0) > 0
    assert inner.sum() < (labels > 0).sum()
    assert (labels[inner] > 0).all()


def test_the_outline_lies_where_the_intensity_has_risen_as_far_as_omnipose_has_it():
    shift = outline_shift(PLAIN, 5.0)
    long = replace_area(rods((32, 32)), 4000)
    profile = image_of(long)[32, 32:48].astype(float)
    level = profile.min() + outline_level(5.0) * (profile.max() - profile.min())
    assert np.interp(level, profile[:profile.argmax() + 1], np.arange(profile.argmax() + 1)) == pytest.approx(
        5.0 + shift, abs=0.1)


def replace_area(cells, area):
    cells.area = np.full(len(cells.area), float(area))
    return cells


def test_an_empty_field_has_light_and_noise_only():
    microscope = replace(PLAIN, noise=0.02)
    obstacles, light = field((64, 64), microscope, np.random.default_rng(0))
    image = render(np.zeros((64, 64)), obstacles, light, microscope, np.random.default_rng(1))
    assert not obstacles.any()
    assert (light == 1).all()
    assert image.mean() == pytest.approx(1, abs=0.002)
    assert image.std() == pytest.approx(0.02, rel=0.05)


def test_the_same_seed_draws_the_same_frame_and_another_does_not():
    (a, labels_a), (b, labels_b), (c, _) = (draw_frame(np.random.default_rng(seed), (96, 112)) for seed in (4, 4, 5))
    assert (a == b).all()
    assert (labels_a == labels_b).all()
    assert not (a == c).all()
    assert draw_microscope(np.random.default_rng(4), 5.0) == draw_microscope(np.random.default_rng(4), 5.0)


def test_every_kind_of_scene_comes_and_widths_keep_to_their_range():
    rng = np.random.default_rng(0)
    kinds, widths = Counter(), []
    for _ in range(60):
        kind, cells, walls = draw_scene((96, 96), rng)
        kinds[kind] += 1
        assert walls.shape == (96, 96)
        assert 0 <= walls.min() <= walls.max() <= 1
        assert (kind != "empty" or len(cells.area) == 0)
        widths += list(cells.radius)
    assert set(kinds) == set(SCENES)
    assert min(widths) > 0.9 * HALF_WIDTHS[0]
    assert max(widths) < 1.3 * HALF_WIDTHS[1]
    assert max(widths) > 1.8 * min(widths)


def test_a_deep_waist_divides_a_cell_and_a_shallow_one_may():
    mothers = rods(*((30, 20 * k) for k in range(400)), radius=3.0)
    daughters = _constrict(mothers, 1.0, np.random.default_rng(0))
    between = (daughters.ends()[0][400:] - daughters.ends()[1][:400])[:, 0]  # the centres of the two inner caps
    overlap = 1 - between / 6.0  # of each daughter beyond the waist, in half widths
    one_cell = daughters.label[:400] == daughters.label[400:]
    assert not one_cell[overlap < 0.45].any()
    assert 0.1 < one_cell[(overlap > 0.6) & (overlap < 0.8)].mean() < 0.5 < one_cell[overlap > 1.05].mean() <= 1
    # two cells meet at an angle, one is straight
    bent = daughters.angle[:400] != daughters.angle[400:]
    assert (bent == ~one_cell).all()


def test_between_blunt_cells_the_thickness_falls_where_the_outline_hardly_does():
    halves = rods((22, 32), (42, 32))  # their ends, in row 32, touch
    for blunt, narrow in ((2, True), (4, False)):
        labels = draw_labels(halves, (64, 64), blunt=blunt)
        thickness = draw_thickness(halves, (64, 64), 0.0, blunt=blunt)
        assert ((labels > 0) == (thickness > 0)).all()
        assert ((labels[31] > 0).sum() < 0.7 * (labels[24] > 0).sum()) == narrow
        assert thickness[31, 32] < 0.7 * thickness[24, 32]
    # the corners of an oblique one are whole, too
    wide = rods((64.3, 63.6), radius=20.0)
    upright, oblique = ((draw_labels(cell, (128, 128), blunt=4) > 0).sum()
                        for cell in (wide, replace(wide, angle=wide.angle + np.pi / 4)))
    assert oblique == pytest.approx(upright, rel=0.01)


def test_a_stalk_is_a_thin_part_of_its_cell_and_grows_at_a_free_pole_only():
    cells = rods((600, 600), (600, 700), (622, 700))  # the last two stand end to end: the pole between them is not free
    labels = draw_labels(cells, (1200, 1300))  # no stalk is longer than 540 pixels
    for seed in range(8):
        stalks = draw_stalks(cells, labels, np.random.default_rng(seed))
        assert set(stalks.label) <= {1, 3}
        assert (stalks.radius <= 0.6 * cells.radius.max()).all()
        for cell in set(stalks.label):
            stalk = draw_labels(stalks.only(stalks.label == cell), labels.shape) > 0
            assert ndimage.label(stalk | (labels == cell), np.ones((3, 3)))[1] == 1
            assert (stalk & (labels != cell)).sum() > 10
    assert len(draw_stalks(cells.only(cells.label < 0), labels, np.random.default_rng(0)).label) == 0


def test_drawn_labels_can_be_measured_and_cells_are_darker_than_what_surrounds_them():
    darker = 0
    for seed in range(12):
        image, labels = draw_frame(np.random.default_rng(seed), (128, 128))
        cells = measure_cells(labels)
        assert image.shape == labels.shape == (128, 128)
        assert image.dtype == np.float32
        assert labels.dtype == np.int32
        assert list(cells.label) == list(range(1, labels.max() + 1))
        assert np.isfinite(image).all()
        whole = cells[~cells.touches_border & (cells.area_px > 60)]
        assert whole.width_px.between(2.5, 20).all()  # in a crowd some are half hidden
        assert whole.empty or whole.width_px.quantile(0.05) > 3.5
        darker += labels.max() == 0 or image[labels > 0].mean() < np.median(image[labels == 0])
    assert darker >= 9  # in some channels the walls are darker
