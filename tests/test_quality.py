"""Each fault is put into a valid time-lapse of squares, and must be the one that is flagged."""

import numpy as np
import pytest
from scipy import ndimage

from segkit import discover, review_teacher
from tests.helpers import squares, write

CORNERS = [(8, 8), (8, 40), (40, 8), (40, 40), (64, 24)]


def picture(labels, rng):
    image = np.where(labels > 0, 60.0, 160.0) + rng.normal(0, 4, labels.shape)
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture
def lapse(tmp_path, rng):
    """Seven valid frames of five squares; returns a function that spoils frame 3 and reviews."""
    for k in range(7):
        labels = squares(*CORNERS, shape=(88, 72))
        write(tmp_path / f"A_raw_data/Pos101/img_{k}.tif", picture(labels, rng))
        write(tmp_path / f"A_masks/Pos101/MASK_img_{k}.tif", labels.astype(np.uint16))

    def review(image=None, labels=None):
        if image is not None:
            write(tmp_path / "A_raw_data/Pos101/img_3.tif", image)
        if labels is not None:
            write(tmp_path / "A_masks/Pos101/MASK_img_3.tif", labels.astype(np.uint16))
        return review_teacher(discover(tmp_path))

    return review


def flagged(table):
    return {row.frame: row.flags for row in table.itertuples() if row.flags}


def test_a_valid_time_lapse_is_measured_and_not_flagged(lapse):
    table = lapse()
    assert flagged(table) == {}
    assert table["cells"].tolist() == [5] * 7
    assert table["largest_cell"].tolist() == [100] * 7
    assert table["foreground"].tolist() == pytest.approx([500 / (88 * 72)] * 7)
    assert (table["contrast"] > 0.5).all()


@pytest.mark.parametrize(("labels", "words"), [
    (squares(shape=(88, 72)), "empty mask, and the frames beside it have 5 cells"),
    (squares(*CORNERS, (26, 8), (26, 24), (26, 40), (64, 50), shape=(88, 72)), "9 cells"),
    (np.roll(squares(*CORNERS, shape=(88, 72)), 6, 1), "shifted: it fits better moved by 0, -6"),
])
def test_a_wrong_mask_is_flagged_with_the_reason(lapse, labels, words):
    found = flagged(lapse(labels=labels))
    assert words in found.pop(3)
    assert found == {}


def test_specks_and_merged_cells_are_flagged(lapse):
    labels = squares(*CORNERS, shape=(88, 72))
    labels[0, 0] = 6
    assert "1 speck(s)" in flagged(lapse(labels=labels))[3]
    labels[0, 0] = 0
    labels[55:88, :] = 7
    assert "merged cells" in flagged(lapse(labels=labels))[3]


def test_images_of_no_use_for_training_are_flagged(lapse, rng):
    labels = squares(*CORNERS, shape=(88, 72))
    assert "constant image" in flagged(lapse(image=np.zeros((88, 72), np.uint8)))[3]
    bright = np.minimum(picture(labels, rng).astype(int) + 90, 255).astype(np.uint8)
    assert "clipped" in flagged(lapse(image=bright))[3]
    blurred = ndimage.gaussian_filter(picture(labels, rng).astype(float), 3).astype(np.uint8)
    assert "out of focus" in flagged(lapse(image=blurred))[3]


def test_a_duplicated_frame_is_flagged(lapse, tmp_path):
    lapse()
    source = tmp_path / "A_raw_data/Pos101"
    (source / "img_4.tif").write_bytes((source / "img_3.tif").read_bytes())
    assert flagged(lapse()) == {4: "same image as the frame before"}
