"""Files as people who do this work have them, made small."""

import errno
import io
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
import zipfile
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage import segmentation, transform

from segkit import (
    Frame,
    SegkitError,
    Settings,
    UNet,
    arrange,
    discover,
    fit,
    measure_cells,
    read_image,
    read_labels,
    review_teacher,
    segment,
    segment_dataset,
    split_by_position,
)
from segkit.data.images import blank_pixels, normalise
from segkit.data.label_review import _no_labels
from segkit.data.tiff import read_metadata
from segkit.files import replacing, write_text
from segkit.measure.metrics import score_frame
from segkit.model.checkpoint import save_model
from segkit.notebook.report import check_conditions
from segkit.settings import read_conditions
from segkit.training.frames import decode
from tests.helpers import squares

SHAPE = (32, 40)


def numbered(count, start=0):
    """Images (count, H, W) whose median is their number, times 100."""
    y, x = np.mgrid[:SHAPE[0], :SHAPE[1]]
    return np.stack([100 * (start + k) + (x + 2 * y) % 7 for k in range(count)]).astype(np.uint16)


def number(frame):
    return int(np.median(read_image(frame.image, frame.page)) // 100)


def found(folder):
    """(position, frame, number of the image) of every frame, and what was said besides missing masks."""
    try:
        dataset = discover(folder)
    except SegkitError as error:
        return [], str(error), 0
    said = [p for p in dataset.problems if "no masks" not in p.reason]
    return ([(f.position, f.frame, number(f)) for f in dataset.frames], " | ".join(p.reason for p in said),
            sum(p.frames_lost for p in said))


def position(folder, name="A_raw_data/Pos101"):
    (folder / name).mkdir(parents=True, exist_ok=True)
    return folder / name


def ome(images, own, times, **attributes):
    """An OME header: for each image (file name, uuid, page) of every time."""
    text = ""
    for planes in images:
        places = "".join(f'<TiffData FirstT="{t}" IFD="{page}" PlaneCount="1"><UUID FileName="{name}">{key}</UUID>'
                         "</TiffData>" for t, (name, key, page) in enumerate(planes))
        more = "".join(f' {name}="{value}"' for name, value in attributes.items())
        text += (f'<Image><Pixels DimensionOrder="XYCZT" Type="uint16" SizeX="{SHAPE[1]}" SizeY="{SHAPE[0]}" SizeC="1" '
                 f'SizeZ="1" SizeT="{times}"{more}><Channel SamplesPerPixel="1"/>{places}</Pixels></Image>')
    return ('<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="{own}">{text}</OME>')


def write_pages(path, pages, header=None):
    with tifffile.TiffWriter(path) as tif:
        for k, page in enumerate(pages):
            tif.write(page, description=None if k else header, metadata=None, contiguous=False)


@pytest.mark.parametrize(("parts", "kept", "expected"), [
    ((1, 1, 1, 1), (0, 1, 2, 3), [0, 1, 2, 3]),  # a file for each time
    ((3, 3), (0, 1), [0, 1, 2, 3, 4, 5]), ((3, 3), (0,), [0, 1, 2]), ((3, 3), (1,), [3, 4, 5]),
    ((3, 1), (0, 1), [0, 1, 2, 3])], ids=str)
def test_of_ome_files_that_name_each_other_each_gives_its_own_pages_at_their_times(tmp_path, parts, kept, expected):
    folder, ids = position(tmp_path), [f"urn:uuid:{uuid.UUID(int=k)}" for k in range(len(parts))]
    planes = [(f"film_{k}.ome.tif", ids[k], page) for k, count in enumerate(parts) for page in range(count)]
    for k, count in enumerate(parts):
        if k in kept:
            header = ome([planes], ids[k], len(planes))
            write_pages(folder / f"film_{k}.ome.tif", numbered(count, sum(parts[:k])), header)
    frames, said, lost = found(tmp_path)
    assert frames == [("Pos101", n, n) for n in expected]
    assert (said, lost) == ("", 0)


def test_a_neighbours_pages_are_not_taken_from_this_files_header(tmp_path):
    ids = ["urn:uuid:a", "urn:uuid:b"]
    images = [[(f"Pos{p}.ome.tif", ids[p], page) for page in range(2)] for p in range(2)]
    for p in range(2):
        folder = position(tmp_path, f"A_raw_data/Pos{101 + p}")
        for q in range(2):  # copies of both lie in both folders of the microscope's export
            write_pages(folder.parent.parent / f"Pos{q}.ome.tif", numbered(2, 5 * q), ome(images, ids[q], 2))
        (tmp_path / f"Pos{p}.ome.tif").rename(folder / f"Pos{p}.ome.tif")
    frames, said, _ = found(tmp_path)
    assert frames == [("Pos101", 0, 0), ("Pos101", 1, 1), ("Pos102", 0, 5), ("Pos102", 1, 6)]
    assert said == ""


def test_several_series_of_one_file_are_one_position_and_a_problem(tmp_path):
    with tifffile.TiffWriter(position(tmp_path) / "film.ome.tif", ome=True) as tif:
        for k in range(3):
            tif.write(numbered(4, 10 * k), metadata={"axes": "TYX"}, photometric="minisblack")
    frames, said, lost = found(tmp_path)
    assert [n for _, _, n in frames] == [0, 1, 2, 3]
    assert "8 page(s) (4, 5, 6, 7, 8, ..., counted from 0" in said
    assert "3 series" in said
    assert lost == 8


@pytest.mark.parametrize("kind", ["append", "plain"])
def test_pages_written_one_by_one_are_one_time_lapse(tmp_path, kind):
    path = position(tmp_path) / "film.tif"
    for image in numbered(5):
        tifffile.imwrite(path, image, append=True, metadata=None if kind == "plain" else {})
    assert found(tmp_path) == ([("Pos101", n, n) for n in range(5)], "", 0)


@pytest.mark.parametrize("odd", [0, 1, 7])
def test_a_page_of_another_size_is_a_problem_and_keeps_its_time(tmp_path, odd):
    images = list(numbered(8))
    images[odd] = images[odd][:20, :16]
    write_pages(position(tmp_path) / "film.tif", images)
    frames, said, lost = found(tmp_path)
    assert frames == [("Pos101", n, n) for n in range(8) if n != odd]
    assert f"1 page(s) ({odd}, counted from 0, of 20 x 16 pixels) are left out" in said
    assert lost == 1


def test_pages_that_a_header_names_and_the_file_lacks_are_a_problem(tmp_path):
    header = ome([[("film.ome.tif", "urn:uuid:a", k) for k in range(5)]], "urn:uuid:a", 5)
    write_pages(position(tmp_path) / "film.ome.tif", numbered(3), header)
    assert found(tmp_path) == ([("Pos101", n, n) for n in range(3)],
                               "film.ome.tif: 2 page(s) that its header names are not in it", 2)
    write_pages(position(tmp_path) / "film.ome.tif", numbered(7), header)
    frames, said, lost = found(tmp_path)
    assert (len(frames), lost) == (5, 2)
    assert "its header does not name them" in said


def test_an_imagej_stack_cut_short_is_refused_with_its_frames(tmp_path):
    path = position(tmp_path) / "film.tif"
    tifffile.imwrite(path, numbered(12), imagej=True, metadata={"axes": "TYX"})
    path.write_bytes(path.read_bytes()[:12 * 2 * SHAPE[0] * SHAPE[1] // 2])
    frames, said, _ = found(tmp_path)
    assert frames == []
    assert "film.tif is cut short" in said


@pytest.mark.parametrize("count", [3, 4])
def test_frames_saved_as_colours_are_refused_and_grey_in_colour_is_read(tmp_path, count):
    path = position(tmp_path) / "film.tif"
    tifffile.imwrite(path, numbered(count), photometric="rgb", planarconfig="separate")
    frames, said, _ = found(tmp_path)
    assert frames == []
    assert f"{count} planes that differ, saved as the colours of one picture" in said
    with pytest.raises(SegkitError, match="saved as the colours"):
        read_image(path)
    tifffile.imwrite(path, np.repeat(numbered(1, 3), 3, axis=0), photometric="rgb", planarconfig="separate")
    assert found(tmp_path)[0] == [("Pos101", 0, 3)]


@pytest.mark.parametrize(("names", "read", "words"), [
    (["img_{t:09d}_Phase_000.tif", "img_{t:09d}_GFP_000.tif"], 0, "those such as img_000000002_GFP_000.tif are not"),
    (["t{t:03d}_gfp.tif", "t{t:03d}_ph.tif", "t{t:03d}_mCherry.tif"], 1, "of several channels"),
    (["Position01Channel01Frame{t:06d}.tif", "Position01Channel02Frame{t:06d}.tif"], None, "several channels"),
    (["t{t}_c1.tif", "t{t}_c2.tif"], None, "t2_c1.tif and t2_c2.tif, and their names do not tell"),
    (["w1_t{t}.tif", "w2_t{t}.tif"], None, "do not tell which is phase contrast"),
    (["t{t:04d}z1.tif", "t{t:04d}z2.tif"], None, "depths"),
    (["t{t:04d}xy1.tif", "t{t:04d}xy2.tif"], None, "several positions"),
    (["e_w1Phase_t{t}.tif", "e_w2GFP_t{t}.tif"], 0, "of several channels"),
    (["t{t}_c1.tif", "t{t}_ph2.tif"], 1, "of several channels"),
    (["img_BF_{t}.tif", "img_YFP_{t}.tif"], None, "do not tell which is phase contrast")], ids=str)
def test_channels_do_not_take_turns_as_frames(tmp_path, names, read, words):
    folder = position(tmp_path)
    for t in range(3):
        for c, name in enumerate(names):
            tifffile.imwrite(folder / name.format(t=t), numbered(3, 10 * c)[t])
    frames, said, lost = found(tmp_path)
    assert frames == ([] if read is None else [("Pos101", t, 10 * read + t) for t in range(3)])
    assert words in said
    if read is not None:
        assert lost == 0


@pytest.mark.parametrize("name", ["t{t:04d}xy{p}.tif", "XY{p:02d}T{t:04d}.tif", "exp_s{p}_t{t}.tif",
                                  "XY{p:02d}T{t:04d}C1.tif"])
def test_positions_of_a_plain_folder_become_positions_with_their_masks(tmp_path, name):
    for t in range(3):
        for p in (1, 2):
            tifffile.imwrite(tmp_path / name.format(t=t, p=p), numbered(3, 10 * p)[t])
            tifffile.imwrite(tmp_path / f"MASK_{name.format(t=t, p=p)}", np.ones(SHAPE, np.uint8))
    dataset = discover(tmp_path)
    assert [(f.position[-2:], f.frame, number(f)) for f in dataset.frames] == [
        (f"0{p}", t, 10 * p + t) for p in (1, 2) for t in range(3)]
    assert len(dataset.pairs) == 6
    assert all(re.sub("^MASK_", "", f.masks.name) == f.image.name for f in dataset.pairs)


def test_a_date_and_a_clock_in_names_are_no_positions(tmp_path):
    names = [f"img_2024-01-01_{h}-{m:02d}.tif" for h in (10, 11) for m in (0, 30)]
    for k, name in enumerate(names):
        tifffile.imwrite(position(tmp_path) / name, numbered(4)[k])
    frames, said, lost = found(tmp_path)
    assert [n for _, _, n in frames] == [0, 1, 2, 3]
    assert "numbered by the order of their names" in said
    assert lost == 0


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_labels_of_16_bits_and_several_channels_are_read_whole(tmp_path, channels):
    truth = squares((2, 2), (2, 22), (22, 2))
    grey = np.repeat((truth * 3)[..., None], channels, -1).astype(np.uint16)
    if channels != 3:
        grey[..., -1] = 65535
    (tmp_path / "m.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(grey)))
    np.testing.assert_array_equal(np.unique(read_labels(tmp_path / "m.png")), [0, 3, 6, 9])


def described(folder, **options):
    path = Path(folder) / "a.tif"
    tifffile.imwrite(path, numbered(2), photometric="minisblack", **options)
    return {name: round(value, 6) for name, value in read_metadata(path).items()}


@pytest.mark.parametrize(("unit", "um"), [("micron", 0.1), ("microns", 0.1), ("um", 0.1), ("\u00b5m", 0.1),
                                          ("\\u00B5m", 0.1), ("Micrometres", 0.1), ("nm", None), ("mm", None),
                                          ("pixel", None), ("furlong", None), ("", None)])
@pytest.mark.parametrize(("tunit", "minutes"), [("sec", 0.5), ("s", 0.5), ("min", 30), ("minutes", 30), ("h", 1800),
                                                ("ms", None), ("fortnight", None)])
def test_imagejs_units_are_read_and_others_give_no_value(tmp_path, unit, um, tunit, minutes):
    if not unit.isascii():
        unit = unit.encode("unicode_escape").decode().replace("\\xb5", "\\u00B5")
    metadata = described(tmp_path, imagej=True, resolution=(10, 10),
                         metadata={"axes": "TYX", "unit": unit, "finterval": 30, "tunit": tunit})
    assert metadata.get("PIXEL_SIZE_UM") == um
    assert metadata.get("MINUTES_PER_FRAME") == minutes


@pytest.mark.parametrize(("attributes", "expected"), [
    ({"PhysicalSizeX": 65, "PhysicalSizeXUnit": "nm"}, {"PIXEL_SIZE_UM": 0.065}),
    ({"PhysicalSizeX": 0.065, "PhysicalSizeXUnit": "\u03bcm"}, {"PIXEL_SIZE_UM": 0.065}),
    ({"PhysicalSizeX": 0.065}, {"PIXEL_SIZE_UM": 0.065}), ({"PhysicalSizeX": 1, "PhysicalSizeXUnit": "pixel"}, {}),
    ({"TimeIncrement": 5, "TimeIncrementUnit": "min"}, {"MINUTES_PER_FRAME": 5}),
    ({"TimeIncrement": 300000, "TimeIncrementUnit": "ms"}, {"MINUTES_PER_FRAME": 5}),
    ({"TimeIncrement": 300}, {"MINUTES_PER_FRAME": 5})], ids=str)
def test_omes_units_are_read(tmp_path, attributes, expected):
    header = ome([[("a.tif", "urn:uuid:a", k) for k in range(2)]], "urn:uuid:a", 2, **attributes)
    assert described(tmp_path, description=header.encode(), metadata=None) == expected


@pytest.mark.parametrize("dpi", [72, 96, 300, 600, 1200, 2400, 4800])
@pytest.mark.parametrize("unit", ["INCH", "CENTIMETER"])
def test_print_resolutions_are_no_pixel_sizes(tmp_path, dpi, unit):
    per_unit = dpi if unit == "INCH" else dpi / 2.54
    assert described(tmp_path, resolution=(per_unit, per_unit), resolutionunit=unit) == {}


@pytest.fixture(scope="module")
def pairs():
    """Six frames of the demo with their labels."""
    frames = discover("tests/fixture").pairs
    return [(f.image, read_labels(f.masks)) for f in frames if f.unit == ("REF", "Pos101")][4:10]


def reviewed(folder, pairs, make, suffix=".tif", save=tifffile.imwrite):
    """What the review says of the demo's frames with other masks."""
    for image, labels in pairs:
        shutil.copy(image, position(folder) / image.name)
        save(position(folder, "A_masks/Pos101") / f"MASK_{image.stem}{suffix}", make(labels))
    return list(review_teacher(discover(folder))["flags"])


def as_jpeg(path, mask):
    content = io.BytesIO()
    Image.fromarray(mask).save(content, "jpeg", quality=80)
    Image.open(content).save(path)


def colours(labels, background, alpha=255):
    table = np.random.default_rng(0).integers(40, 220, (labels.max() + 1, 4)).astype(np.uint8)
    table[:, 3] = 255
    table[0] = (*[background] * 3, alpha)
    return table[labels]


def borders(labels):
    return np.where(segmentation.find_boundaries(labels, mode="inner"), 2, labels > 0).astype(np.uint8)


@pytest.mark.parametrize(("make", "words"), [
    (lambda a: np.where(a > 0, 2, 1).astype(np.uint8), "has no background"),
    (lambda a: np.where(a > 0, 0, 255).astype(np.uint8), "are cells and background swapped"),
    (lambda a: colours(a, 255), "has no background"), (lambda a: colours(a, 255, 0), "has no background"),
    (borders, "few numbers"),
    (lambda a: (a % 4 + 1) * (a > 0).astype(np.uint8), "one number in several distant parts|few numbers"),
    (lambda a: np.zeros(a.shape, np.uint8), "no cell in any masks file"),
    (lambda a: transform.resize(a.astype(float), (256, 256), order=3)[::2, ::2].round().clip(0).astype(np.uint8),
     "grey levels along the edges|distant"),
], ids=["classes", "inverted", "white", "transparent", "borders", "n-color", "empty", "smooth"])
def test_what_is_no_labels_is_flagged_by_its_name(tmp_path, pairs, make, words):
    flags = reviewed(tmp_path, pairs, make)
    assert all(re.search(words, flag) for flag in flags), flags


def test_labels_that_went_through_jpeg_are_flagged_and_true_ones_are_not(tmp_path, pairs):
    flags = reviewed(tmp_path / "jpeg", pairs, lambda a: (a > 0).astype(np.uint8) * 255, ".png", as_jpeg)
    assert all("grey levels along the edges" in flag for flag in flags), flags
    assert set(reviewed(tmp_path / "true", pairs, lambda a: a)) == {""}
    assert set(reviewed(tmp_path / "binary", pairs, lambda a: a > 0)) == {""}


def test_a_number_that_is_used_twice_is_flagged(tmp_path, pairs):
    flags = reviewed(tmp_path, pairs, lambda a: np.where(a == a.max(), 1, a).astype(np.uint8))
    assert any("one number in several distant parts: 1" in flag for flag in flags), flags


def test_n_colour_masks_beside_masks_are_passed_over(tmp_path, pairs):
    for image, labels in pairs:
        shutil.copy(image, tmp_path / image.name)
        tifffile.imwrite(tmp_path / f"{image.stem}_cp_masks.tif", labels)
        tifffile.imwrite(tmp_path / f"{image.stem}_cp_ncolor_masks.tif", labels % 4)
    assert [f.masks.name for f in discover(tmp_path).pairs] == [f"{image.stem}_cp_masks.tif" for image, _ in pairs]


def test_cells_that_touch_at_a_corner_only_are_two(tmp_path):
    mask = np.ones((20, 20), np.uint8)
    mask[np.arange(20), np.arange(20)] = 0  # a diagonal line
    mask[:3] = mask[-3:] = 0
    thin = np.eye(20, dtype=np.uint8)  # a diagonal line alone is one cell
    for name, array, count in (("a", mask, 2), ("b", thin, 1)):
        tifffile.imwrite(tmp_path / f"{name}.tif", array)
        assert read_labels(tmp_path / f"{name}.tif").max() == count


def drawn_over(kind, image):
    """An image (H, W) with something drawn over it, and where."""
    over = np.zeros(image.shape, bool)
    full = np.iinfo(image.dtype).max
    if kind.endswith("border"):
        over[:6] = over[:, :9] = True
    elif kind == "rotated":
        over |= np.add.outer(np.arange(image.shape[0]), np.arange(image.shape[1])) < 40
    elif kind == "scale bar":
        over[-10:-6, -40:-10] = True
    else:  # letters
        for left in range(10, 60, 10):
            over[10:22, left:left + 2] = over[20:22, left:left + 6] = True
    return np.where(over, 0 if kind in ("black border", "rotated") else full, image).astype(image.dtype), over


@pytest.mark.parametrize("kind", ["black border", "white border", "rotated", "scale bar", "letters"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_drawn_over_a_picture_is_treated_as_not_seen(pairs, kind, dtype):
    image = read_image(pairs[0][0])
    image = (image / image.max() * np.iinfo(dtype).max * 0.8).astype(dtype)
    changed, over = drawn_over(kind, image)
    np.testing.assert_array_equal(blank_pixels(changed), over)
    np.testing.assert_array_equal(normalise(changed), normalise(np.where(over, np.nan, image.astype(float))))
    assert not blank_pixels(image).any()
    model = UNet()
    model.out.bias.data[0] = 10.0  # every pixel is foreground
    found = segment(model, changed)
    np.testing.assert_array_equal(found.mask, ~over)
    assert found.probability[over].max() == 0


def test_halos_and_cells_that_are_cut_off_by_the_cameras_range_are_seen(pairs):
    image = read_image(pairs[0][0])
    low, high = np.percentile(image, (3, 97))
    clipped = np.clip((ndimage.gaussian_filter(image, 1.5) - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    assert (clipped == 255).sum() + (clipped == 0).sum() > 100
    assert not blank_pixels(clipped).any()
    assert not blank_pixels(np.zeros((9, 9))).any()


def test_no_target_lies_where_a_picture_is_drawn_over(tmp_path, pairs):
    changed, over = drawn_over("black border", read_image(pairs[0][0]).astype(np.uint16))
    tifffile.imwrite(tmp_path / "a.tif", changed)
    tifffile.imwrite(tmp_path / "m.tif", np.ones(over.shape, np.uint8) * (np.arange(over.shape[1]) > 3))
    decoded = decode(Frame(tmp_path / "a.tif", tmp_path / "m.tif", "A", "Pos1", 0))
    np.testing.assert_array_equal(decoded.target > 0, ~over)


def rod(length, width, angle, bend=0.0, shift=0.0):
    """A drawn rod (bool) with round ends; bend: curvature of its middle line, per pixel."""
    along = np.linspace(-1, 1, 6 * int(length)) * (length - width) / 2
    x, y = (np.sin(along * bend) / bend, (1 - np.cos(along * bend)) / bend) if bend else (along, 0 * along)
    line = np.stack([np.sin(angle) * x + np.cos(angle) * y, np.cos(angle) * x - np.sin(angle) * y])
    line += width / 2 + 2 + shift - line.min(axis=1, keepdims=True)
    size = np.ceil(line.max(axis=1) + width / 2 + 2).astype(int)
    pixels = np.stack(np.mgrid[:size[0], :size[1]], -1).reshape(-1, 2)
    return (cKDTree(line.T).query(pixels)[0] <= width / 2).reshape(size)


@pytest.mark.parametrize(("ratio", "bend"), [(2, 0), (3, 0), (5, 0), (12, 0), (30, 0), (60, 0), (5, 0.5), (12, 0.3),
                                             (30, 0.08)])
@pytest.mark.parametrize("width", [8, 10, 13])
def test_length_and_width_are_those_along_a_cell_straight_or_bent(width, ratio, bend):
    for k in range(3):
        cell = rod(ratio * width, width, 0.2 + 0.5 * k, bend / width, 0.3 * k).astype(np.int32)
        row = measure_cells(cell).iloc[0]
        assert row["length_px"] == pytest.approx(ratio * width, rel=0.03)
        assert row["width_px"] == pytest.approx(width, rel=0.06)


def test_any_labels_are_measured():
    labels = np.zeros((30, 40), np.uint16)
    labels[5:9, 10:20], labels[5:9, 20:24], labels[20:, 30:] = 7, 3, 9
    table = measure_cells(labels, pixel_size_um=0.5)
    assert table["label"].tolist() == [3, 7, 9]
    assert table["area_px"].tolist() == [16, 40, 100]
    assert table["area_um2"].tolist() == [4, 10, 25]
    assert table["touches_border"].tolist() == [False, False, True]
    assert table[["centroid_y", "centroid_x"]].to_numpy().tolist() == [[6.5, 21.5], [6.5, 14.5], [24.5, 34.5]]
    assert len(measure_cells(np.zeros((5, 5), int))) == 0
    with pytest.raises(SegkitError, match="whole numbers from 0"):
        measure_cells(np.zeros((5, 5)))


TABLE = "experiment,minutes_per_frame,drug_frame\nREF,2.5,\nRIF10,2.5,30\n"


@pytest.mark.parametrize("content", [
    TABLE.encode(), TABLE.replace(",", ";").replace(".", ",").encode(), TABLE.replace(",", "\t").encode("utf-16"),
    TABLE.replace(",", ";").replace("2.5", "2,5").encode("utf-8-sig"),
    TABLE.replace("\n", ";;\r\n").replace(",", ";").encode("cp1252"), ("\n" + TABLE + "\n,,\n").encode(),
    ("sep=;\r\n" + TABLE.replace(",", ";")).encode(), TABLE.encode("utf-16-le"), TABLE.encode("utf-16-be"),
    TABLE.replace("30\n", "30,,,\n").encode(), TABLE.replace("5,\n", "5,,,\n").encode(),
    TABLE.replace("30\n", "30,,\n").replace("5,\n", "5,,\n").encode()], ids=range(12))
def test_a_spreadsheets_table_of_experiments_is_read(tmp_path, content):
    (tmp_path / "experiments.csv").write_bytes(content)
    assert read_conditions(tmp_path / "experiments.csv") == {
        "REF": {"minutes_per_frame": "2.5"}, "RIF10": {"minutes_per_frame": "2.5", "drug_frame": "30"}}


@pytest.mark.parametrize("row", ['A,"1,000",', 'A,,"1,000"'])
def test_thousands_with_a_comma_are_no_decimals(row):
    text = f"experiment,minutes_per_frame,drug_frame\n{row}\n"
    for table in (text, text.replace('"1,000"', "1_000").replace(",", ";").replace("1_000", "1,000")):
        if table == text or row.startswith("A,,"):
            with pytest.raises(SegkitError, match=r"is 1,000: a (whole )?number was needed"):
                Settings(conditions=table)


def test_an_accent_that_a_mac_wrote_as_two_characters_is_the_tables(tmp_path):
    write_pages(position(tmp_path, "Re\u0301f_raw_data/Pos101") / "img_0.tif", numbered(1))
    (tmp_path / "experiments.csv").write_text("experiment,drug_frame\nR\u00e9f,7\n", "utf-8")
    dataset, settings = discover(tmp_path), Settings(dataset_path=tmp_path)
    check_conditions(settings, dataset)
    assert settings.for_experiment(dataset.frames[0].experiment).drug_frame == 7


def test_a_name_that_matches_no_experiment_is_refused(tiny):
    dataset = discover(tiny)
    for values, words in (({"conditions": "experiment,drug_frame\nREF10,3\n"}, "REF10: the dataset has no such"),
                          ({"reference": "WT"}, "REFERENCE is WT"),
                          ({"conditions": "experiment,reference\nREF,WT\n"}, "REFERENCE is WT")):
        with pytest.raises(SegkitError, match=words):
            check_conditions(Settings(dataset_path=tiny, **values), dataset)
    check_conditions(Settings(dataset_path=tiny), dataset)
    check_conditions(Settings(dataset_path=tiny, reference=""), dataset)
    # only folders of experiments count, also where their images cannot be used
    damaged = position(tiny, "RIF_raw_data/Pos101") / "img_0.tif"
    damaged.write_bytes(b"")
    dataset = discover(tiny)
    check_conditions(Settings(dataset_path=tiny, conditions="experiment,drug_frame\nRIF,3\n"), dataset)
    for name in (tiny.name, "Pos101", "img_0.tif", "RIF_raw_data"):
        with pytest.raises(SegkitError, match="the dataset has no such"):
            check_conditions(Settings(dataset_path=tiny, conditions=f"experiment,drug_frame\n{name},3\n"), dataset)


def archive(path, names, encoding=None, method=zipfile.ZIP_DEFLATED):
    """A zip archive of small images; encoding: of the names, without the mark of UTF-8."""
    content = io.BytesIO()
    tifffile.imwrite(content, np.zeros((8, 8), np.uint8))
    places = {f"{k:0{len(name.encode(encoding or 'utf-8'))}d}": name for k, name in enumerate(names)}
    with zipfile.ZipFile(path, "w", compression=method) as file:
        for place, name in places.items():
            file.writestr(place if encoding else name, content.getvalue())
    if encoding:  # Python writes such names only as UTF-8
        data = path.read_bytes()
        for place, name in places.items():
            data = data.replace(place.encode(), name.encode(encoding))
        path.write_bytes(data)
    return path


@pytest.mark.parametrize(("name", "encoding"), [
    ("\u5b9f\u9a13", "cp932"), ("\u8868\u793a_\u80fd\u529b", "cp932"), ("R\u00e9f\u00e9rence", "cp1252"),
    ("R\u00e9f\u00e9rence", "cp437"), ("Gr\u00f6\u00dfe", "cp1252"), ("Gr\u00f6\u00dfe", "utf-8"), ("plain", "cp932"),
    ("37\u00b0C", "utf-8"), ("\u0394lac_\u00b1", "utf-8"), ("37\u00b0C", "cp1252"), ("37\u00b0C", "cp437"),
    ("5\u00b5g", "cp1252"), ("Pr\u00f8ve", "cp1252"), ("\u30c6\u30b9\u30c8", "cp932"), ("\u30c7\u30fc\u30bf", "cp932"),
    ("\u30b3\u30f3\u30c8\u30ed\u30fc\u30eb", "cp932"), ("\uff83\uff7d\uff84", "cp932")])
def test_images_and_masks_of_archives_in_old_encodings_land_together(tmp_path, name, encoding):
    (tmp_path / "in").mkdir()
    archive(tmp_path / "in" / "a.zip", [f"{name}_raw_data/Pos101/img_{k:03d}.tif" for k in range(3)], encoding)
    archive(tmp_path / "in" / "b.zip", [f"{name}_masks/Pos101/MASK_img_{k:03d}.tif" for k in range(3)])  # UTF-8
    plan = arrange(tmp_path / "in", tmp_path / "out")
    assert not plan.problems
    assert [f.name for f in discover(tmp_path / "out").pairs] == [f"{name}/Pos101/{k}" for k in range(3)]


def test_what_python_cannot_unpack_is_to_be_unpacked_by_another_program(tmp_path):
    (tmp_path / "in").mkdir()
    archive(tmp_path / "in" / "REF_raw_data.zip", ["REF_raw_data/Pos101/img_0.tif"])
    deflate64 = archive(tmp_path / "in" / "REF_masks.zip", ["REF_masks/Pos101/MASK_img_0.tif"])
    data = bytearray(deflate64.read_bytes())
    data[8:10] = b"\x09\x00"
    data[data.find(b"PK\1\2") + 10] = 9
    deflate64.write_bytes(data)
    split = archive(tmp_path / "in" / "RIF_raw_data.zip", ["RIF_raw_data/Pos101/img_0.tif"])
    split.with_suffix(".z01").write_bytes(split.read_bytes()[:100])
    split.write_bytes(split.read_bytes()[100:-30])
    plan = arrange(tmp_path / "in", tmp_path / "out")
    assert len(plan.copies) == 1
    said = " | ".join(p.reason for p in plan.problems)
    assert "1 file(s) of REF_masks.zip are packed by a method that Python lacks, such as Deflate64: unpack it" in said
    assert "RIF_raw_data.zip is one part of a split archive: unpack it with another program" in said
    assert "download" not in said


@pytest.mark.parametrize("place", ["aphase/masks", "masks", "aphase/Masks"])
def test_cellposes_and_omniposes_masks_folder_is_found(tmp_path, place):
    for k in range(2):
        write_pages(position(tmp_path, "A_raw_data/Pos101/aphase") / f"img_{k}.tif", numbered(1))
        write_pages(position(tmp_path, f"A_raw_data/Pos101/{place}") / f"img_{k}_cp_masks.tif", numbered(1))
        write_pages(position(tmp_path, f"A_raw_data/Pos101/{place}") / f"img_{k}_flows.tif", numbered(1))
    dataset = discover(tmp_path)
    assert [f.masks.name for f in dataset.pairs] == ["img_0_cp_masks.tif", "img_1_cp_masks.tif"]
    assert not dataset.problems
    plain = discover(tmp_path / "A_raw_data/Pos101/aphase")
    assert len(plain.pairs) == (2 if place.startswith("aphase") else 0)


def test_seg_npy_files_are_named_and_not_loaded(tmp_path):
    folder = position(tmp_path)
    write_pages(folder / "img_0.tif", numbered(1))
    (folder / "img_0_seg.npy").write_bytes(b"a pickle")
    assert "1 file(s) such as img_0_seg.npy are not loaded" in found(tmp_path)[1]


def test_a_dataset_without_a_cell_is_not_trained_on(tiny):
    for mask in (tiny / "REF_masks").rglob("*.tif"):
        tifffile.imwrite(mask, np.zeros((40, 48), np.uint8))
    settings = Settings(dataset_path=tiny, root=tiny, epochs=1, device="cpu")
    with pytest.raises(SegkitError, match="no masks file of the training positions holds a cell"):
        fit(UNet(), split_by_position(discover(tiny).pairs), settings)


def bright(model):
    """The model, which finds cells everywhere."""
    model.out.bias.data[0] = 10.0
    return model


def test_frames_csv_tells_how_much_of_a_frame_is_not_seen(tmp_path, pairs):
    for k in range(2):
        image, over = drawn_over("black border", read_image(pairs[k][0]).astype(np.uint16))
        tifffile.imwrite(position(tmp_path) / f"img_{k}.tif", image if k else read_image(pairs[k][0]))
    for _ in range(2):  # predicted, then read from the label files
        segment_dataset(bright(UNet()), discover(tmp_path), tmp_path / "out")
        table = pd.read_csv(tmp_path / "out" / "frames.csv")
        assert table["not_seen"].tolist() == [0, pytest.approx(over.mean(), abs=1e-4)]


def test_folders_in_latin_1_are_segmented_and_their_tables_can_be_read(tmp_path, pairs):
    folder = os.fsencode(tmp_path) + b"/R\xe9f_raw_data/Pos101"
    os.makedirs(folder)
    for image, _ in pairs[:2]:
        shutil.copy(image, folder + b"/" + os.fsencode(image.name))
    (tmp_path / os.fsdecode(b"R\xe9f_raw_data/Pos101/img_9.tif")).write_bytes(b"")
    dataset = discover(tmp_path)
    assert {f.experiment for f in dataset.frames} == {"R\u00e9f"}
    assert dataset.problem_table()["path"].str.startswith("R\u00e9f").all()
    cells = pd.read_csv(segment_dataset(bright(UNet()), dataset, tmp_path / "out"))
    assert set(cells["experiment"]) == {"R\u00e9f"}
    assert len(discover(tmp_path, tmp_path / "out" / "masks").pairs) == 2


def test_one_name_that_is_too_long_costs_its_own_frame_only(tmp_path, pairs):
    for k, (image, _) in enumerate(pairs[:3]):
        shutil.copy(image, position(tmp_path) / f"{'x' * 240}{k:03d}.tif" if k == 1 else
                    position(tmp_path) / f"{'x' * 200}{k:03d}.tif")
    frames = [Frame(path, None, "A", "Pos101", k) for k, path in enumerate(sorted(position(tmp_path).iterdir()))]
    segment_dataset(bright(UNet()), frames, tmp_path / "out")
    assert len(pd.read_csv(tmp_path / "out" / "frames.csv")) == 2
    skipped = pd.read_csv(tmp_path / "out" / "skipped.csv")
    assert "shorten the name of the file" in skipped["reason"][0]
    assert len(skipped) == 1


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "free some disk space"), (errno.EACCES, "may write to"),
                                               (errno.ENAMETOOLONG, "shorten the name"), (errno.EIO, "check the path")])
def test_what_cannot_be_written_gets_the_advice_that_fits(tmp_path, number, words):
    with pytest.raises(SegkitError, match=words) as raised, replacing(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    assert ("disk space" in str(raised.value)) == (number == errno.ENOSPC)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SegkitError, match="choose another folder or name"):
        write_text(tmp_path / "folder", "text")


def test_one_file_of_an_archive_that_cannot_be_written_costs_no_other(tmp_path):
    (tmp_path / "in").mkdir()
    archive(tmp_path / "in" / "REF_raw_data.zip", [f"REF_raw_data/Pos101/{name}.tif" for name in ("a", "x" * 245, "b")])
    plan = arrange(tmp_path / "in", tmp_path / "out")
    assert len(discover(tmp_path / "out").frames) == 2
    assert [p.frames_lost for p in plan.problems] == [1]
    assert "shorten the name" in plan.problems[0].reason


def test_a_console_of_another_encoding_prints_every_path(tiny):
    dataset = tiny.rename(tiny.with_name("\u5b9f\u9a13"))
    code = ("from segkit.notebook import headless\nheadless._execute = headless.write_report = lambda *_: None\n"
            f"raise SystemExit(headless.main(['segment', {str('DATASET_PATH=' + str(dataset))!r}, 'MODEL=m']))")
    save_model(UNet(), dataset / "m")
    run = subprocess.run([sys.executable, "-c", code], cwd=dataset, capture_output=True, check=False,
                         env={**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONIOENCODING": "cp1252"})
    assert (run.returncode, run.stderr) == (0, b"")
    assert b"run \\u5b9f\\u9a13: " in run.stdout


def written(folder, names, pages=1):
    """Images of these names; the n-th holds the numbers from 10 n on."""
    for k, name in enumerate(names):
        stack = numbered(pages, 10 * k)
        tifffile.imwrite(folder / name, stack if pages > 1 else stack[0], photometric="minisblack",
                         metadata={"axes": "TYX"[-2 - (pages > 1):]})


@pytest.mark.parametrize(("names", "read", "words"), [
    (["film_c1.tif", "film_c2.tif"], [], "several channels"), (["C1-film.tif", "C2-film.tif"], [], "several channels"),
    (["film_Phase.tif", "film_GFP.tif"], [0, 1, 2], "those such as film_GFP.tif are not"),
    (["e_w1Phase.tif", "e_w2GFP.tif"], [0, 1, 2], "those such as e_w2GFP.tif are not"),
    (["film.tif", "film_registered.tif"], [0, 1, 2], "those such as film_registered.tif are not"),
    (["run_MMStack_Pos0.ome.tif", "run_MMStack_Pos1.ome.tif"], [], "several positions"),
    (["film.tif", "film-1.tif", "film-2.tif"], [0, 1, 2, 10, 11, 12, 20, 21, 22], "none missing between them"),
    (["film_1.tif", "film_2.tif"], [0, 1, 2, 10, 11, 12], "")], ids=str)
def test_stacks_of_one_folder_are_one_time_lapse_only_as_its_parts(tmp_path, names, read, words):
    written(position(tmp_path), names, pages=3)
    frames, said, lost = found(tmp_path)
    assert [n for _, _, n in frames] == read
    assert words in said
    assert lost in (0, 3 * len(names)) or not read


@pytest.mark.parametrize("names", [["exp_xy1.tif", "exp_xy2.tif"], ["film - Series001.tif", "film - Series002.tif"],
                                   ["run_MMStack_Pos0.ome.tif", "run_MMStack_Pos1.ome.tif"]], ids=str)
def test_stacks_of_positions_in_a_plain_folder_become_positions(tmp_path, names):
    written(tmp_path, names, pages=3)
    frames, _, lost = found(tmp_path)
    assert [(t, n) for _, t, n in frames] == [(0, 0), (1, 1), (2, 2), (0, 10), (1, 11), (2, 12)]
    assert len({name for name, _, _ in frames}) == 2
    assert lost == 0


@pytest.mark.parametrize(("names", "read", "words"), [
    ([f"20240312_t{t}c{c}.tif" for t in range(3) for c in (1, 2)], [], "several channels"),
    ([f"exp_2048x2048_t{t}c{c}.tif" for t in range(3) for c in (1, 2)], [], "several channels"),
    ([f"t{t}_{w}.tif" for t in range(3) for w in ("Ph3", "Cy5")], [0, 20, 40], "those such as t2_Cy5.tif are not"),
    ([f"t{t}_{w}.tif" for t in range(3) for w in ("phase", "488", "561")], [0, 30, 60], "are not"),
    ([f"img_{t}{w}.tif" for t in range(3) for w in ("", " (1)")], [0, 20, 40], "those such as img_2 (1).tif are not"),
    ([f"IMG{2 * t + c:04d}_t{t}_c{c}.tif" for t in range(3) for c in (0, 1)], [], "several channels"),
    ([f"{2 * t + c:04d}_{w}.tif" for t in range(3) for c, w in enumerate(("Phase", "GFP"))], [0, 20, 40], "are not"),
    ([f"{t}_c{c}.tif" for t in (0, 5, 13, 40) for c in (1, 2)], [], "several channels"),
    ([f"VID_{d:02d}d{h:02d}h{m:02d}m.tif" for d in (0, 1) for h in (0, 12) for m in (0, 30)],
     [0, 10, 20, 30, 40, 50, 60, 70], "by the order of their names"),
    ([f"exp_{h}h{m:02d}m.tif" for h in (0, 1) for m in (0, 15, 30, 45)], [0, 10, 20, 30, 40, 50, 60, 70], "order"),
    ([f"{d}.03.24_{k}.tif" for d in (12, 13) for k in (1, 2)], [0, 10, 20, 30], "by the order of their names"),
    ([f"img_{h}_{m:02d}.tif" for h in (10, 11) for m in (0, 30)], [0, 10, 20, 30], "by the order of their names"),
    ([f"100x_rep2_{k}.tif" for k in range(3)], [0, 10, 20], "")], ids=lambda names: names[0] if names else "")
def test_names_with_dates_clocks_and_numbers_of_channels(tmp_path, names, read, words):
    written(position(tmp_path), names)
    frames, said, lost = found(tmp_path)
    assert [n for _, _, n in frames] == read
    assert words in said
    assert lost == 0


def test_channels_that_only_the_ome_header_tells_are_no_frames(tmp_path):
    for c in range(2):
        header = ome([[(f"e_{c}.ome.tif", f"urn:uuid:{c}", k) for k in range(3)]], f"urn:uuid:{c}", 3)
        header = header.replace('SizeC="1"', 'SizeC="2"').replace('FirstT=', f'FirstC="{c}" FirstT=').replace(
            "<Channel SamplesPerPixel", '<Channel Name="GFP" SamplesPerPixel')
        header = header.replace("<TiffData", '<Channel Name="Phase contrast" SamplesPerPixel="1"/><TiffData', 1)
        write_pages(position(tmp_path) / f"e_{c}.ome.tif", numbered(3, 10 * c), header)
    frames, said, lost = found(tmp_path)
    assert frames == [("Pos101", t, 10 + t) for t in range(3)]
    assert "those such as e_1.ome.tif are read, those such as e_0.ome.tif are not" in said
    assert lost == 0


def test_labels_of_a_palette_are_its_indices(tmp_path):
    truth = squares((2, 2), (2, 22), (22, 2))
    picture = Image.fromarray(truth.astype(np.uint8), "P")
    picture.putpalette([255, 255, 255, 9, 9, 9, 9, 9, 9, 0, 0, 0])  # a white background, two cells of one colour, black
    picture.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "m.png"), truth)


def test_a_teachers_cells_that_are_not_seen_do_not_count(tmp_path, pairs):
    image, labels = read_image(pairs[3][0]).astype(np.uint16), pairs[3][1]
    over = np.zeros(labels.shape, bool)
    leftmost = labels[:, np.flatnonzero(labels.any(axis=0))[0]].max()
    over[:, :int(np.flatnonzero((labels == leftmost).any(axis=0)).max()) + 2] = True
    tifffile.imwrite(position(tmp_path) / "img_0.tif", np.where(over, 0, image).astype(np.uint16))
    tifffile.imwrite(position(tmp_path, "A_masks/Pos101") / "MASK_img_0.tif", labels)
    frame = discover(tmp_path).pairs[0]
    scores = score_frame(frame, np.where(over, 0, labels))
    assert scores["dice"] == 1
    assert scores["teacher_cells"] == scores["cells"] == len(np.unique(labels[~over])) - 1


def test_names_in_an_unknown_encoding_are_said(tmp_path):
    archive(tmp_path / "a.zip", ["\u00a71_raw_data/Pos101/img_0.tif"], "cp1252")
    plan = arrange(tmp_path / "a.zip", tmp_path / "out")
    assert len(plan.copies) == 1
    assert [p.reason.partition(":")[0] for p in plan.problems] == ["the names in a.zip are in an unknown encoding"]


def test_what_is_no_zip_archive_is_said_by_its_kind(tmp_path):
    archive(tmp_path / "REF.zip", ["REF_raw_data/Pos101/img_0.tif"])
    for name, begin in (("a", b"7z\xbc\xaf"), ("b", b"Rar!"), ("c", b"\x1f\x8b"), ("d", b"\n<!DOCTYPE html>")):
        (tmp_path / f"{name}.zip").write_bytes(begin + bytes(50))
    whole = (tmp_path / "REF.zip").read_bytes()
    (tmp_path / "e.zip.001").write_bytes(whole[:90])
    (tmp_path / "e.zip.002").write_bytes(whole[90:])
    said = {p.path.name: p.reason for p in arrange(tmp_path, tmp_path / "out").problems}
    words = [*["of another kind than its name says: unpack it"] * 3, "is a web page",
             *["one part of a split archive"] * 2]
    assert len(said) == len(words)
    assert all(word in said[name] for word, name in zip(words, sorted(said), strict=True)), said


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EDQUOT])
def test_a_source_that_cannot_be_read_costs_itself_only(tmp_path, monkeypatch, number):
    for k in range(3):
        write_pages(position(tmp_path / "in") / f"img_{k}.tif", numbered(1, k))

    def fails(path, *mode):
        if str(path).endswith("img_1.tif"):
            raise OSError(number, os.strerror(number))
        return open(path, *mode)

    monkeypatch.setattr("segkit.data.downloads.open", fails, raising=False)
    monkeypatch.setattr("shutil.copystat", lambda *_: fails("img_1.tif"))  # a disk without times and permissions
    plan = arrange(tmp_path / "in", tmp_path / "out")
    assert [f.frame for f in discover(tmp_path / "out").frames] == [0, 2]
    assert len(plan.problems) == 1
    assert f"cannot be read ({os.strerror(number)}): check its permissions" in plan.problems[0].reason


def test_an_archive_that_vanishes_costs_its_own_entries(tmp_path, monkeypatch):
    for name in "AB":
        archive(tmp_path / f"{name}.zip", [f"{name}_raw_data/Pos101/img_0.tif"])
    monkeypatch.setattr("segkit.data.downloads._check_space", lambda *_: (tmp_path / "A.zip").unlink())
    plan = arrange(tmp_path, tmp_path / "out")
    assert len(discover(tmp_path / "out").frames) == 1
    assert "cannot be read (No such file" in plan.problems[0].reason


def test_an_archive_on_a_lost_connection_is_not_to_be_downloaded_again(tmp_path, monkeypatch):
    archive(tmp_path / "a.zip", ["A_raw_data/Pos101/img_0.tif"])

    def lost(*_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr("zipfile.ZipFile.__init__", lost)
    with pytest.raises(SegkitError, match=r"a\.zip cannot be read \(Stale file handle\): check its permissions or the"):
        arrange(tmp_path, tmp_path / "out")


def test_an_image_that_cannot_be_reached_is_not_damaged(tmp_path, monkeypatch):
    for name in ("a.tif", "a.png"):
        with pytest.raises(SegkitError, match=f"{name} is not there"):
            read_image(tmp_path / name)
    (tmp_path / "b.tif").mkdir()
    with pytest.raises(SegkitError, match="is a folder"):
        read_image(tmp_path / "b.tif")

    def lost(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    write_pages(tmp_path / "c.tif", numbered(1))
    monkeypatch.setattr("tifffile.TiffFile.__init__", lost)
    with pytest.raises(SegkitError, match="check the disk or the connection"):
        read_image(tmp_path / "c.tif")


def test_a_folder_in_place_of_a_label_file_costs_its_own_frame_only(tmp_path, pairs):
    for k, (image, _) in enumerate(pairs[:2]):
        shutil.copy(image, position(tmp_path) / f"img_{k}.tif")
    folder = tmp_path / "out" / "masks" / "A_masks" / "Pos101" / "PreprocessedPhaseMasks" / "MASK_img_1.tif"
    (folder / "mine").mkdir(parents=True)
    segment_dataset(bright(UNet()), discover(tmp_path), tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "frames.csv")["frame"].tolist() == [0]


@pytest.mark.parametrize("dtype", [np.uint32, np.int64])
def test_cells_with_large_numbers_are_measured(dtype):
    labels = np.zeros((30, 40), dtype)
    labels[5:9, 10:20], labels[15:19, 10:24] = 10**9, 7
    table = measure_cells(labels)
    assert table["label"].tolist() == [7, 10**9]
    assert table["area_px"].tolist() == [56, 40]
    assert len(measure_cells(np.zeros((0, 5), int))) == 0


@pytest.mark.parametrize("um", ["0.1", 0, -1, float("nan")])
def test_a_pixel_size_that_is_none_is_refused(um):
    with pytest.raises(SegkitError, match="a number above 0 was needed"):
        measure_cells(np.ones((5, 5), int), pixel_size_um=um)


def test_a_hole_in_a_cell_does_not_lengthen_it():
    cell = rod(100, 12, 0.3).astype(np.int32)
    y, x = (int(c) for c in ndimage.center_of_mass(cell))
    whole, cell[y - 2:y + 2, x - 5:x + 5] = measure_cells(cell).iloc[0], 0
    assert measure_cells(cell).iloc[0]["length_px"] == pytest.approx(whole["length_px"], rel=0.03)


def test_specks_are_reviewed_quickly():
    labels = np.random.default_rng(0).integers(0, 4, (1024, 1024)).astype(np.int32)
    began = time.process_time()
    assert "grey levels along the edges: 181197 specks" in _no_labels(labels, np.bincount(labels.ravel())[1:])[0]
    assert time.process_time() - began < 3


@pytest.mark.parametrize("place", ["A_masks/Pos101/PreprocessedPhaseMasks", "A_raw_data/Pos101/masks",
                                   "A_masks/Pos101"])
def test_seg_npy_files_in_a_masks_folder_are_named_unless_masks_are_there(tmp_path, place):
    write_pages(position(tmp_path, "A_raw_data/Pos101/aphase") / "img_0.tif", numbered(1))
    (position(tmp_path, place) / "img_0_seg.npy").write_bytes(b"a pickle")
    assert any("img_0_seg.npy are not loaded" in p.reason for p in discover(tmp_path).problems)
    write_pages(position(tmp_path, "A_masks/Pos101/PreprocessedPhaseMasks") / "MASK_img_0.tif", numbered(1))
    assert not discover(tmp_path).problems


@pytest.mark.parametrize("tail", ["label", "labels", "seg", "segmentation", "cp_masks"])
def test_masks_and_other_output_of_other_tools_are_told_apart(tmp_path, tail):
    for name in ("img_1", "img_2"):
        write_pages(tmp_path / f"{name}.tif", numbered(1))
        write_pages(tmp_path / f"{name}_{tail}.tif", numbered(1))
        for other in ("Probabilities", "Simple Segmentation", "Object Identities", "dist", "cellprob", "bounds"):
            write_pages(tmp_path / f"{name}_{other}.tif", numbered(1))
    assert [f.masks.name for f in discover(tmp_path).frames] == [f"img_{k}_{tail}.tif" for k in (1, 2)]
