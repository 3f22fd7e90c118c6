"""Whatever comes: the only error is the named one, and what is promised of every answer holds.

`python -m tests.test_fuzz 5000` damages so many TIFFs; the tests do 2,000.
"""

import random
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from segkit import SegkitError, UNet, arrange, discover, match_instances, read_image, read_labels, segment
from segkit.data.images import read_header
from segkit.data.pairing import name_key
from segkit.data.tiff import read_metadata
from segkit.model.postprocess import distance_target, label_cells
from segkit.settings import Settings, parse_settings, public_fields

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
LABELS = arrays(np.int32, (12, 14), elements=st.integers(0, 4))


def damage(content, source):
    """A file's bytes with a few of them changed, cut off, or put in."""
    content = bytearray(content)
    for _ in range(source.randint(1, 6)):
        at = source.randrange(len(content))
        kind = source.randrange(4)
        if kind == 0:
            content[at] = source.randrange(256)
        elif kind == 1:
            content[at:at + source.randint(1, 40)] = source.randbytes(source.randint(0, 40))
        elif kind == 2 and len(content) > 60:
            del content[max(50, at):]
        else:
            content[source.randrange(min(200, len(content)))] = source.randrange(256)
        if not content:
            return b"x"
    return bytes(content)


def read_damaged_tiffs(count, folder, seed=0):
    """Read so many damaged files in every way; returns how many of them could be read all the same."""
    source, sound = random.Random(seed), []
    rng = np.random.default_rng(seed)
    for name, options in (("plain", {}), ("zlib", {"compression": "zlib", "predictor": True}),
                          ("lzw", {"compression": "lzw"}), ("zstd", {"compression": "zstd"}),
                          ("big", {"bigtiff": True}),
                          ("imagej", {"imagej": True}), ("tiled", {"tile": (16, 16)}), ("ome", {"ome": True})):
        stack = rng.integers(0, 5, (2, 20, 24) if name in ("imagej", "ome") else (20, 24)).astype(np.uint16)
        tifffile.imwrite(folder / f"{name}.tif", stack, **options)
        sound.append((folder / f"{name}.tif").read_bytes())
    read = 0
    path = folder / "damaged.tif"
    for _ in range(count):
        path.write_bytes(damage(source.choice(sound), source))
        for reader in (read_header, read_image, read_labels, read_metadata):
            with suppress(SegkitError):
                reader(path)
                read += reader is read_image
    return read


def test_damaged_tiffs_raise_the_named_error_and_no_other(tmp_path):
    assert read_damaged_tiffs(2000, tmp_path) < 2000  # some were damaged enough


def test_damaged_pngs_and_archives_are_named_and_leave_nothing_elsewhere(tmp_path):
    source, downloads, outcomes = random.Random(0), tmp_path / "downloads", []
    downloads.mkdir()
    image, archive = downloads / "img_1.png", downloads / "REF_raw_data.zip"
    Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24)).save(image)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for position in ("Pos101", "Pos102"):
            packed.write(image, f"REF_raw_data/{position}/aphase/img_1.png")
    contents = image.read_bytes(), archive.read_bytes()
    for k in range(300):
        for path, content in zip((image, archive), contents, strict=True):
            path.write_bytes(damage(content, source))
        for reader in (read_header, read_image, read_labels):
            with suppress(SegkitError):
                reader(image)
        try:
            outcomes.append(bool(arrange(archive, tmp_path / "arranged" / str(k)).problems))
        except SegkitError:
            outcomes.append(True)
    assert any(outcomes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arranged", "downloads"]
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {image.name, archive.name}


@MANY
@given(LABELS, LABELS, st.sampled_from([0.5, 0.75, 0.9]))
def test_matching_counts_every_cell_once(a, b, iou):
    found = match_instances(a, b, iou)
    cells = [len(np.unique(x[x > 0])) for x in (a, b)]
    assert (found.tp + found.fp, found.tp + found.fn) == tuple(cells)
    assert 0 <= found.average_precision <= 1
    assert 0 <= found.panoptic_quality <= 1
    back = match_instances(b, a, iou)
    assert (back.tp, back.fp, back.fn) == (found.tp, found.fn, found.fp)
    assert back.panoptic_quality == pytest.approx(found.panoptic_quality)
    assert match_instances(a, a).average_precision == 1.0


@MANY
@given(LABELS)
def test_cells_cut_from_any_map_are_numbered_without_gaps_and_keep_to_the_foreground(labels):
    distance = distance_target(labels)[0] / 255
    found = label_cells((labels > 0).astype(float), distance, min_area=3)
    assert np.array_equal(np.unique(found[found > 0]), np.arange(1, found.max() + 1))
    assert (np.bincount(found.ravel())[1:] >= 3).all()


@FEW
@given(arrays(st.sampled_from([np.uint8, np.uint16, np.int16, np.float32, np.float64]), array_shapes(
    min_dims=2, max_dims=2, min_side=1, max_side=40)))
def test_any_picture_is_segmented_at_its_own_size(image):
    result = segment(MODEL, image)
    assert result.labels.shape == image.shape
    assert np.isfinite(result.probability).all()


@MANY
@given(st.sampled_from([f.name.upper() for f in public_fields()]), st.one_of(
    st.text(max_size=12), st.integers(), st.floats(), st.booleans(), st.none()))
def test_any_value_is_a_setting_or_the_named_error(name, value):
    base = Settings(root=Path("/nowhere"))
    with suppress(SegkitError):
        assert parse_settings(parse_settings({name: value}, base).as_dict(), base).run


@MANY
@given(st.text(min_size=1, max_size=20))
def test_any_name_has_a_key_and_one_frame_is_never_another(name):
    name_key(name)
    assert name_key("img_1") != name_key("img_10")


@FEW
@given(st.lists(st.tuples(st.sampled_from(["A_raw_data", "A_masks", "B_raw_data", "x"]),
                          st.sampled_from(["Pos1", "pos_2", "junk"]),
                          st.sampled_from(["img_1.tif", "img_2.TIFF", "MASK_img_1.tif", "img_1_cp_masks.tif", "a.txt"]),
                          st.sampled_from([b"", b"II*\x00", b"sound"])), min_size=1, max_size=12))
def test_any_folder_is_a_dataset_or_the_named_error_and_no_image_is_lost_silently(files):
    with tempfile.TemporaryDirectory() as folder:
        root, images = Path(folder), set()
        tifffile.imwrite(root / "sound", np.ones((6, 6), np.uint8))
        sound = (root / "sound").read_bytes()
        for place, position, name, content in files:
            path = root / place / position / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(sound if content == b"sound" else content)
            if "raw_data" in place and position != "junk" and name in ("img_1.tif", "img_2.TIFF"):
                images.add(path)
        try:
            dataset = discover(root)
        except SegkitError:
            return
        named = {p.path for p in dataset.problems} | {f.image for f in dataset.frames}
        assert images <= named


MODEL = UNet().eval()

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        number = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
        print(f"{number} damaged files, {read_damaged_tiffs(number, Path(scratch), 1)} of them readable all the same")
