"""A whole dataset: tiles, scale, going on where it stopped, and what comes back in."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from scipy import ndimage

from segkit import SegkitError, UNet, dice, discover, match_instances, read_image, read_labels, segment, segment_dataset
from segkit.data.dataset import Dataset, Frame, masks_path_in, read_pair
from segkit.data.tiff import read_metadata
from segkit.measure import segment_dataset as inference_module
from segkit.measure.metrics import estimate_quality
from segkit.measure.segment_dataset import (
    dice_warning,
    find_scales,
    scale_text,
    segmented_frames,
    width_warning,
    worst_frames,
)
from segkit.model import predict as predict_module
from segkit.model.postprocess import distance_target
from segkit.model.predict import Maps, _spans, agreement, estimate_scale, find_cells, label, predict
from segkit.model.unet import PAIRS, ModelInfo, copy_on_cpu
from tests.helpers import FIXTURE, affinity_of, squares, untrained_student, write


@pytest.fixture(scope="module")
def model():
    return untrained_student()


@pytest.fixture(scope="module")
def frames():
    return discover(FIXTURE).frames[:4]


@pytest.mark.parametrize("size", [1, 15, 16, 100, 1024, 1025, 1500, 3000])
@pytest.mark.parametrize("align_corners", [False, True])
def test_tiles_predict_every_pixel_once_and_read_more_than_they_predict(size, align_corners):
    spans = _spans(size, align_corners)
    assert spans[0][2] == 0
    assert spans[-1][3] == size
    assert all(a[3] == b[2] for a, b in pairwise(spans))
    for start, stop, first, last in spans:
        assert 0 <= start <= first < last <= stop <= size
        assert start % 16 == 0
        if not align_corners:
            assert stop - start <= 1024
            assert first - start >= 128 or first == 0
            assert stop - last >= 128 or last == size


def test_maps_predicted_in_tiles_are_the_whole_images(model, monkeypatch):
    """In float32, a size that is no multiple of the stride: a tile that starts off the stride differs by 0.7."""
    model = copy_on_cpu(model)
    model.precision = "float32"
    image = np.random.default_rng(0).random((427, 333))
    whole = predict(model, [image])[0]
    monkeypatch.setattr(predict_module, "TILE", 320)
    monkeypatch.setattr(predict_module, "MARGIN", 112)
    tiled = predict(model, [image])[0]
    np.testing.assert_allclose(tiled.probability, whole.probability, atol=1e-4)
    np.testing.assert_allclose(tiled.distance, whole.distance, atol=1e-4)


def test_cells_are_found_at_the_models_scale_and_their_labels_resized(monkeypatch):
    """At the image's scale these cells are below min_area, and the peaks of touching ones are smoothed away."""
    labels = squares((10, 10), (10, 26), (40, 60), shape=(80, 96), side=16)  # (h, w) of the network
    maps = torch.from_numpy(np.stack([labels > 0, distance_target(labels)[0] / 255]).astype(np.float32))[None]
    monkeypatch.setattr(predict_module, "_predict_tiles", lambda model, x: maps)
    image = np.random.default_rng(0).random((40, 48))
    found = segment(UNet(ModelInfo(min_area=150)), image, scale=2)
    assert match_instances(found.labels, labels[1::2, 1::2])[:3] == (3, 0, 0)
    np.testing.assert_array_equal(found.labels > 0, labels[1::2, 1::2] > 0)
    np.testing.assert_array_equal(found.mask, found.labels > 0)
    assert found.probability.shape == (40, 48)


@pytest.mark.parametrize(("size", "scale", "scaled"), [(90, 1 / 0.7, 128), (205, 1 / 1.6, 128), (64, 2, 128),
                                                       (30, 0.5, 15), (100, 0.666, 67), (3, 0.1, 1)])
def test_a_scaled_image_has_the_nearest_size_or_one_beside_it_that_needs_no_padding(size, scale, scaled):
    assert predict_module._scaled(size, scale) == scaled


def knows_squares(model, x):
    """Instead of a network: squares of side 10 are predicted right, of others the distance is too low."""
    maps = []
    for image in x[:, 0].numpy():
        labels = ndimage.label(image > 0.5)[0]
        target, widths = distance_target(labels)
        right = np.clip(1.2 - abs(np.log2(np.median(widths) / 9)), 0, 1) if len(widths) else 0.0
        maps.append([image > 0.5, right * target / 255])
    return torch.from_numpy(np.array(maps, np.float32))  # (B, 2, h, w)


def rows_of_squares(side, count=9):
    """An image with a square of this side in each of count places, three sides apart."""
    corners = [(side + 3 * side * (k // 3), side + 3 * side * (k % 3)) for k in range(count)]
    return (squares(*corners, shape=(9 * side, 9 * side), side=side) > 0) * 100.0 + 50


@pytest.mark.parametrize(("side", "factor"), [(10, 1), (9, 1), (20, 0.5), (5, 2), (28, 0.36)])
def test_auto_scale_brings_cells_to_the_width_of_the_training(monkeypatch, side, factor):
    monkeypatch.setattr(predict_module, "_predict_tiles", knows_squares)
    model = UNet(ModelInfo(cell_width=9.0))
    found = estimate_scale(model, [rows_of_squares(side)])
    assert found == (1.0 if factor == 1 else pytest.approx(factor, rel=0.15))
    assert np.array_equal(segment(model, rows_of_squares(side), scale="auto").labels,
                          segment(model, rows_of_squares(side), scale=found).labels)


def test_auto_scale_is_not_guessed_from_few_cells_or_for_a_student_of_unknown_width(monkeypatch):
    monkeypatch.setattr(predict_module, "_predict_tiles", knows_squares)
    model, few = UNet(ModelInfo(cell_width=9.0)), rows_of_squares(20, count=4)
    assert estimate_scale(model, [few]) is None
    assert estimate_scale(UNet(ModelInfo()), [rows_of_squares(20)]) is None
    assert estimate_scale(model, [few, few]) == pytest.approx(0.5, rel=0.1)


def test_auto_scale_is_one_factor_for_every_position(tmp_path, monkeypatch, caplog):
    for position, side in (("Pos1", 20), ("Pos2", 22), ("Pos3", 10)):
        for k in range(2):
            write(tmp_path / "A_raw_data" / position / f"img_{k}.tif", rows_of_squares(side).astype(np.uint8))
    write(tmp_path / "B_raw_data" / "Pos1" / "img_0.tif", rows_of_squares(20, count=1).astype(np.uint8))
    frames, model = discover(tmp_path).frames, untrained_student()
    with caplog.at_level("INFO", "segkit"):
        assert set(find_scales(model, frames, "auto").values()) == {1.0}  # its training cells' width is not known
    assert caplog.text.count("is not known: 1 is used") == 1
    monkeypatch.setattr(predict_module, "_predict_tiles", knows_squares)
    model.info = ModelInfo(cell_width=9.0)
    segment_dataset(model, frames, tmp_path / "out", scale="auto")
    table = pd.read_csv(tmp_path / "out" / "frames.csv")
    factor = table["scale"][0]
    assert factor == pytest.approx(0.5, rel=0.1)
    assert table["scale"].tolist() == [factor] * 4 + [1.0] * 3  # 22 is near 20
    assert scale_text(table) == f"SCALE: A {factor:.3g} to 1, B 1"
    assert "too few cells to measure in B/Pos1:" in (tmp_path / "out" / "run.log").read_text()
    monkeypatch.setattr(inference_module, "predict", None)  # nothing is segmented again
    segment_dataset(model, frames[:2], tmp_path / "out", scale=factor)
    segment_dataset(model, frames[4:6], tmp_path / "out", scale=1)
    with pytest.raises(TypeError):
        segment_dataset(model, frames[4:6], tmp_path / "out", scale=factor)


def test_outlines_of_a_scaled_image_follow_the_probability_and_those_of_version_1_1_its_pixels():
    y, x = np.mgrid[:80, :96]
    disc = np.hypot(y - 39.5, x - 47.5) < 25
    probability = disc.reshape(20, 4, 24, 4).mean((1, 3), dtype=np.float32)
    cells = np.where(probability > 0.5, 1 + (np.arange(24) >= 12), 0)  # two that touch in the middle
    maps = Maps(probability, None, disc.shape, affinity=np.ones((len(PAIRS), 20, 24)))
    found = label(ModelInfo(), maps, cells).labels
    coarse = label(ModelInfo(outputs=2), maps._replace(affinity=None), cells).labels
    assert np.array_equal(coarse, np.kron(cells, np.ones((4, 4), int)))
    assert dice(found, disc) > 0.99 > dice(coarse, disc)
    assert np.array_equal(found[found > 0], (1 + (x >= 48))[found > 0])


def test_maps_agree_less_where_cells_are_merged_missed_or_imagined():
    cells = squares((5, 5), (5, 15), (25, 20))  # the first two touch
    maps = Maps((cells > 0).astype(np.float32), distance_target(cells)[0] / np.float32(255), cells.shape)
    right, widths = agreement(maps, cells)
    assert right == pytest.approx(1)
    assert widths.tolist() == [9, 9, 9]
    for wrong in (np.minimum(cells, 1), np.where(cells == 3, 0, cells), cells + squares((30, 0)) * 4):
        assert agreement(maps, wrong)[0] < 0.95
    assert agreement(Maps(np.zeros((9, 9)), np.zeros((9, 9)), (9, 9)), np.zeros((9, 9), int))[0] == 1


def test_quality_is_lower_where_borders_are_blurred_or_cells_are_doubtful():
    info, cells = ModelInfo(), squares((5, 5), (5, 15), (25, 20))  # the first two touch
    maps = Maps((cells > 0).astype(np.float32), distance_target(cells)[0] / np.float32(255), cells.shape,
                affinity=affinity_of(cells))
    assert estimate_quality(info, maps, cells) == pytest.approx(1)
    blurred = maps._replace(probability=ndimage.gaussian_filter(maps.probability, 1.0))
    assert 0.4 < estimate_quality(info, blurred, cells) < 0.8
    unsure = maps._replace(probability=np.where(cells == 3, np.float32(0.85), maps.probability))
    assert estimate_quality(info, unsure, cells) == pytest.approx(0.95 ** 2)  # the mean of 1, 1 and 0.85
    assert np.isnan(estimate_quality(info, maps, 0 * cells))  # empty, or not seen


@pytest.mark.parametrize("together", [0.4, 0.6])
def test_quality_is_lower_where_two_cells_are_nearly_one(together):
    info, cells = ModelInfo(), squares((5, 5), (5, 15), (25, 20))
    affinity = np.where(affinity_of(np.minimum(cells, 1)) > affinity_of(cells), together, affinity_of(cells))
    maps = Maps((cells > 0).astype(np.float32), distance_target(cells)[0] / np.float32(255), cells.shape,
                affinity=affinity)
    found = find_cells(info, maps)
    assert found.max() == (3 if together < 0.5 else 2)
    assert estimate_quality(info, maps, found) < 0.7


def test_quality_of_a_student_of_version_1_1_is_lower_where_its_cells_depend_on_the_prominence():
    cells = np.minimum(squares((5, 5), (5, 15)), 1)
    hollow = 1 - 0.35 * np.exp(-(np.arange(48) - 14.5) ** 2 / 9)  # two peaks in one cell
    maps = Maps((cells > 0).astype(np.float32), (hollow * distance_target(cells)[0] / 255).astype(np.float32),
                cells.shape)
    qualities = [estimate_quality(ModelInfo(prominence=prominence), maps, cells) for prominence in (0.05, 0.25, 0.9)]
    assert qualities[1] < 0.8
    assert qualities[2] == pytest.approx(1)


def test_cells_that_lie_in_blank_areas_alone_have_no_quality(model, frames, tmp_path, monkeypatch):
    cells = squares((5, 5), (25, 20), shape=read_image(frames[0].image).shape)
    maps = Maps((cells > 0).astype(np.float32), distance_target(cells)[0] / np.float32(255), cells.shape, cells > 0)
    monkeypatch.setattr(inference_module, "predict", lambda *arguments, **options: [maps])
    segment_dataset(model, frames[:1], tmp_path, scale=1.0)
    (row,) = pd.read_csv(tmp_path / "frames.csv").itertuples()
    assert row.cells == 0
    assert np.isnan(row.quality)


def test_the_worst_frames_come_first_and_are_flagged(tmp_path):
    table = pd.DataFrame({"experiment": "A", "position": "Pos1", "frame": range(4), "quality": [0.9, 0.1, np.nan, 0.6]})
    table.to_csv(tmp_path / "frames.csv", index=False)
    worst = worst_frames(tmp_path, 3)
    assert worst["frame"].tolist() == [1, 3, 0]
    assert worst["flagged"].tolist() == [True, True, False]


def test_cells_too_small_for_the_images_pixels_leave_no_gap_in_the_numbers():
    labels = np.zeros((60, 60), np.int32)
    labels[0, 0], labels[30:50, 30:50] = 1, 2
    found = label(ModelInfo(outputs=1, min_area=1), Maps((labels > 0).astype(np.float32), None, (20, 20)))
    assert np.unique(found.labels).tolist() == [0, 1]


def test_scale_and_flips_keep_the_images_size(model):
    image = read_image(discover(FIXTURE).frames[0].image)
    for options in ({"scale": 0.5}, {"scale": 1.7}, {"flips": True}):
        assert segment(model, image, **options).labels.shape == image.shape


def test_flip_averaging_does_not_depend_on_which_way_the_image_lies(model):
    image = read_image(discover(FIXTURE).frames[0].image)
    straight, mirrored = (segment(model, picture, flips=True).probability for picture in (image, image[::-1]))
    np.testing.assert_allclose(mirrored[::-1], straight, atol=2e-2)


def test_inference_continues_where_it_stopped_and_ends_the_same(model, frames, tmp_path, monkeypatch):
    whole = pd.read_csv(segment_dataset(model, frames, tmp_path / "whole"))
    calls = []
    real = inference_module.predict

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(inference_module, "predict", interrupted)
    with pytest.raises(SegkitError, match="run this again to continue"):
        segment_dataset(model, frames, tmp_path / "parts")
    calls[:] = [1] * 10
    resumed = pd.read_csv(segment_dataset(model, frames, tmp_path / "parts"))
    assert len(calls) - 10 == 2  # of four frames, two were done before
    pd.testing.assert_frame_equal(resumed, whole)
    segment_dataset(model, frames, tmp_path / "parts")
    assert len(calls) - 10 == 2
    segment_dataset(model, frames, tmp_path / "parts", flips=True)  # another way of segmenting: all again
    assert len(calls) - 10 == 6


def test_label_files_of_another_post_processing_are_made_again(model, frames, tmp_path, monkeypatch):
    segment_dataset(model, frames[:1], tmp_path)
    path = masks_path_in(tmp_path / "masks", frames[0])
    stamp = tifffile.TiffFile(path).pages.first.description
    monkeypatch.setattr(inference_module, "POSTPROCESSING", inference_module.POSTPROCESSING + 1)
    segment_dataset(model, frames[:1], tmp_path)
    assert tifffile.TiffFile(path).pages.first.description != stamp


def test_a_damaged_label_file_is_made_again(model, frames, tmp_path):
    whole = pd.read_csv(segment_dataset(model, frames, tmp_path))
    path = masks_path_in(tmp_path / "masks", frames[0])
    with tifffile.TiffFile(path) as tif:
        at, size = tif.pages.first.dataoffsets[0], tif.pages.first.databytecounts[0]
    content = path.read_bytes()
    path.write_bytes(content[:at] + b"\xff" * size + content[at + size:])
    pd.testing.assert_frame_equal(pd.read_csv(segment_dataset(model, frames, tmp_path)), whole)
    assert path.read_bytes() == content


def test_an_image_that_changed_is_segmented_again(model, tmp_path):
    raw = tmp_path / "data" / "A_raw_data" / "Pos1"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(2):
        tifffile.imwrite(raw / f"img_{k}.tif", rng.integers(0, 255, (40, 40)).astype(np.uint8))
    first = pd.read_csv(segment_dataset(model, discover(tmp_path / "data").frames, tmp_path / "out"))
    tifffile.imwrite(raw / "img_1.tif", rng.integers(0, 60000, (40, 44)).astype(np.uint16))
    segment_dataset(model, discover(tmp_path / "data").frames, tmp_path / "out")
    assert read_labels(next((tmp_path / "out").rglob("MASK_img_1.tif"))).shape == (40, 44)
    assert len(first) >= 0


def test_the_labels_come_back_as_a_dataset_with_their_pixel_size(model, frames, tmp_path):
    segment_dataset(model, frames, tmp_path, pixel_size_um={"REF": 0.05})
    again = discover(FIXTURE, tmp_path / "masks")
    assert [f.name for f in again.pairs] == [f.name for f in frames]
    for frame in again.pairs:
        image = read_image(frame.image)
        assert dice(read_labels(frame.masks), segment(model, image).labels) == 1.0
        with tifffile.TiffFile(frame.masks) as tif:
            numerator, denominator = tif.pages.first.tags["XResolution"].value
            assert numerator / denominator == pytest.approx(1e4 / 0.05, rel=1e-3)  # pixels per cm
    cells = pd.read_csv(tmp_path / "cells.csv")
    np.testing.assert_allclose(cells["area_um2"], cells["area_px"] * 0.0025, rtol=1e-4)


def test_the_labels_of_a_stack_come_back_page_by_page(model, tmp_path):
    raw, rng = tmp_path / "data" / "A_raw_data" / "Pos1", np.random.default_rng(0)
    raw.mkdir(parents=True)
    for name in ("lapse_7", "lapse_8"):
        tifffile.imwrite(raw / f"{name}.tif", rng.integers(0, 255, (3, 40, 44)).astype(np.uint8),
                         photometric="minisblack")
    frames = discover(tmp_path / "data").frames
    segment_dataset(model, frames, tmp_path)
    again = discover(tmp_path / "data", tmp_path / "masks")
    assert again.problems == ()
    assert [(f.image.stem, f.page) for f in again.pairs] == [(f.image.stem, f.page) for f in frames]
    for frame in again.pairs:
        image, labels = read_pair(frame)
        assert labels.any()
        assert np.array_equal(labels > 0, segment(model, image).mask)
    read_page = tmp_path / "masks" / "A_masks" / "Pos1" / "PreprocessedPhaseMasks" / "MASK_lapse_7_page00002.tif"
    read_page.unlink()
    fewer = discover(tmp_path / "data", tmp_path / "masks")
    assert [f.masks is None for f in fewer.frames] == [False, False, True, False, False, False]
    assert [p.frames_lost for p in fewer.problems] == [1]


def test_label_files_of_pages_and_of_numbered_images_are_never_the_same(tmp_path):
    pages = [Frame(tmp_path / "A_raw_data" / "Pos1" / "img.tif", None, "A", "Pos1", k, k) for k in range(3)]
    single = Frame(tmp_path / "A_raw_data" / "Pos1" / "img_00001.tif", None, "A", "Pos1", 3)
    assert len({masks_path_in(tmp_path, frame) for frame in (*pages, single)}) == 4


def test_a_plain_folder_below_raw_data_has_its_own_name(tmp_path):
    folder = tmp_path / "raw_data" / "mine"
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "img_1.tif", np.zeros((8, 9), np.uint8))
    frame = discover(folder).frames[0]
    assert masks_path_in(tmp_path, frame).relative_to(tmp_path).parts[:2] == ("mine_masks", "Pos0")


def test_a_pixel_size_that_lacks_an_experiment_is_named(model, frames, tmp_path):
    with pytest.raises(SegkitError, match="no value for experiment REF, only for OTHER"):
        segment_dataset(model, frames, tmp_path, pixel_size_um={"OTHER": 0.1})


def test_a_dataset_is_segmented_as_its_frames_are(model, frames, tmp_path):
    dataset = Dataset(FIXTURE, tuple(frames[:2]))
    tables = [segment_dataset(model, given, tmp_path / str(k)) for k, given in
              enumerate((dataset, dataset.frames, iter(frames[:2])))]
    assert len({table.read_text() for table in tables}) == 1


def test_what_are_no_frames_is_refused_before_anything_is_written(model, frames, tmp_path):
    for given in (FIXTURE, str(FIXTURE), "", frames[0], None, [frames[0], frames[1].image], discover(FIXTURE).table()):
        with pytest.raises(SegkitError, match="a list of its frames was needed"):
            segment_dataset(model, given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_unreadable_frame_is_listed_and_the_rest_done(model, frames, tmp_path):
    import dataclasses
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"no picture")
    mixed = [frames[0], dataclasses.replace(frames[1], image=broken, masks=None), frames[2],
             dataclasses.replace(frames[3], masks=broken)]  # the last has no score, and its cells all the same
    segment_dataset(model, mixed, tmp_path / "out")
    skipped = pd.read_csv(tmp_path / "out" / "skipped.csv")
    assert skipped["frame"].tolist() == [frames[1].name, frames[3].name]
    assert len(pd.read_csv(tmp_path / "out" / "scores.csv")) == 2
    assert "3 of 4 frames segmented" in (tmp_path / "out" / "run.log").read_text()
    with pytest.raises(SegkitError, match="none of 1 frames"):
        segment_dataset(model, mixed[1:2], tmp_path / "none")


def test_an_output_folder_that_cannot_be_written_gives_a_sentence(model, frames, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SegkitError, match="cannot write"):
        segment_dataset(model, frames[:1], tmp_path / "file" / "out")


def test_cells_of_another_width_give_a_warning():
    model = UNet(ModelInfo(cell_width=8.0))
    assert width_warning(model, np.full(9, 9.0)) == ""
    assert "try SCALE=0.50" in width_warning(model, np.full(9, 16.0))
    assert width_warning(model, np.full(9, 16.0), scale=0.5) == ""
    assert width_warning(model, np.zeros(0)) == ""


def test_a_low_dice_gives_a_warning():
    assert dice_warning([]) == dice_warning([{"dice": 0.9}, {"dice": 0.2}]) == ""
    assert "mean Dice 0.20 over 2 frame(s)" in dice_warning([{"dice": 0.3}, {"dice": 0.1}])


def test_growth_counts_the_frames_that_the_last_tables_cover(tiny, tmp_path, model):
    frames, out = discover(tiny).frames, tmp_path / "out"
    assert segmented_frames(frames, out) == []
    segment_dataset(model, frames, out)
    assert segmented_frames(frames, out) == list(frames)
    write(frames[0].image, np.random.default_rng(0).integers(0, 255, (40, 48), np.uint8), compression="zlib")
    content = bytearray(frames[0].image.read_bytes())
    content[300:-300] = bytes(len(content) - 600)  # damaged inside; its label file stays from before
    frames[0].image.write_bytes(content)
    segment_dataset(model, frames, out)
    assert masks_path_in(out / "masks", frames[0]).is_file()
    assert segmented_frames(frames, out) == list(frames[1:])
    segment_dataset(model, frames[2:], out)
    assert segmented_frames(frames, out) == list(frames[2:])


def test_a_constant_frame_is_skipped_and_no_frame_without_cells(tiny, tmp_path, model):
    frames = discover(tiny).frames
    write(frames[1].image, np.zeros((40, 48), np.uint8))
    segment_dataset(model, frames, tmp_path / "out")
    assert "is constant" in pd.read_csv(tmp_path / "out" / "skipped.csv")["reason"].iloc[0]
    assert segmented_frames(frames, tmp_path / "out") == [frames[0], *frames[2:]]


def test_another_pixel_size_is_written_into_labels_that_are_kept(tiny, tmp_path, model, monkeypatch):
    frames, out = discover(tiny).frames[:1], tmp_path / "out"
    segment_dataset(model, frames, out, pixel_size_um=0.1)
    monkeypatch.setattr(inference_module, "predict", None)  # nothing is segmented again
    segment_dataset(model, frames, out, pixel_size_um=0.2)
    assert read_metadata(masks_path_in(out / "masks", frames[0]))["PIXEL_SIZE_UM"] == pytest.approx(0.2)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), 1000])
def test_a_scale_out_of_range_is_refused(model, scale):
    with pytest.raises(SegkitError, match="scale is"):
        segment(model, np.eye(32), scale=scale)
