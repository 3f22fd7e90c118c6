import numpy as np
import pytest
import tifffile
from PIL import Image

from segkit import SegkitError, read_image, read_labels
from segkit.data.images import read_header
from segkit.data.tiff import read_metadata
from tests.helpers import squares

RAMP = np.arange(20 * 24, dtype=np.uint16).reshape(20, 24) * 100


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int16])
@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"compression": "zlib", "predictor": True},
                                     {"compression": "zstd"}, {"bigtiff": True}, {"ome": True}, {"imagej": True}],
                         ids=str)
def test_every_kind_of_tiff_gives_its_exact_values(tmp_path, dtype, options):
    if options.get("imagej") and dtype == np.int16:
        pytest.skip("ImageJ has no signed 16-bit")
    values = (RAMP % 250).astype(dtype)
    path = tmp_path / ("a.ome.tif" if options.get("ome") else "a.tif")
    tifffile.imwrite(path, values, **{k: v for k, v in options.items() if k != "ome"})
    assert read_header(path)[:3] == (1, 20, 24)
    image = read_image(path)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, values.astype(np.float32))


def test_16_bit_is_kept_exact(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RAMP)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), RAMP)


@pytest.mark.parametrize("options", [{}, {"imagej": True}, {"ome": True}], ids=str)
def test_a_multi_page_file_is_read_page_by_page(tmp_path, options):
    stack = np.stack([RAMP, RAMP + 1, RAMP + 2])
    path = tmp_path / "stack.ome.tif" if options.get("ome") else tmp_path / "stack.tif"
    meta = {"axes": "TYX"}
    tifffile.imwrite(path, stack, metadata=meta, imagej=bool(options.get("imagej")), photometric="minisblack")
    assert read_header(path).pages == 3
    np.testing.assert_array_equal(read_image(path, 2), RAMP + 2)
    with pytest.raises(SegkitError, match="3 page"):
        read_image(path, 3)


def test_a_stack_of_channels_is_refused_with_a_reason(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 2, 20, 24), np.uint16), imagej=True, metadata={"axes": "TCYX"})
    with pytest.raises(SegkitError, match="export the phase-contrast channel"):
        read_header(tmp_path / "a.tif")


def test_header_and_reader_agree_on_what_a_file_holds(tmp_path):
    tifffile.imwrite(tmp_path / "channels.tif", np.stack([[RAMP] * 2] * 3))  # axes unknown: QQYX
    for read in (read_header, read_image):
        with pytest.raises(SegkitError, match="one channel with time"):
            read(tmp_path / "channels.tif")
    with tifffile.TiffWriter(tmp_path / "thumbnail.tif") as tif:
        tif.write(RAMP, metadata=None)
        tif.write(RAMP[::4, ::4], subfiletype=1, metadata=None)
    assert read_header(tmp_path / "thumbnail.tif")[:3] == (1, 20, 24)
    np.testing.assert_array_equal(read_image(tmp_path / "thumbnail.tif"), RAMP)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P"])
def test_grey_pictures_saved_in_colour_give_the_grey(tmp_path, mode):
    grey = (RAMP % 250).astype(np.uint8)
    Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), grey)


def test_labels_of_every_encoding_give_the_same_cells(tmp_path):
    truth = np.zeros((20, 24), np.int32)
    truth[2:6, 2:6], truth[10:14, 10:20] = 1, 2
    colours = np.array([[0, 0, 0], [255, 0, 0], [255, 255, 0]], np.uint8)
    encodings = {"u8": truth.astype(np.uint8), "u16": truth.astype(np.uint16), "u32": truth.astype(np.uint32),
                 "float": truth.astype(np.float32), "binary": (truth > 0).astype(np.uint8) * 255,
                 "bool": truth > 0, "rgb": colours[truth]}
    for name, array in encodings.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, array, photometric="rgb" if name == "rgb" else "minisblack")
        labels = read_labels(path)
        assert labels.dtype == np.int32, name
        np.testing.assert_array_equal(labels, truth, err_msg=name)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535), (np.uint32, 2 ** 32 - 1),
                                            (np.float32, 1), (np.float64, 0.5)])
@pytest.mark.parametrize("background", [True, False])
def test_colours_of_every_type_stay_apart(tmp_path, dtype, top, background):
    truth = squares((4, 4), (4, 24), (24, 4))
    colours = (np.array([[0, 0, 0], [0.2, 0.4, 0.6], [0.2, 0.4, 0.8], [0.9, 0, 0]]) * top).astype(dtype)
    picture = colours[truth] if background else colours[truth.clip(1)]
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), truth if background else truth.clip(1))


@pytest.mark.parametrize("value", [np.nan, -1])
def test_colours_that_are_none_are_refused(tmp_path, value):
    colours = np.stack([RAMP, RAMP + 1, RAMP * float(value)], -1).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb")
    with pytest.raises(SegkitError, match="colours that are negative or not numbers"):
        read_labels(tmp_path / "a.tif")


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 16), (np.float32, None), (np.int16, None)])
@pytest.mark.parametrize("pages", [1, 3])
def test_bright_is_high_also_in_a_file_that_stores_white_as_0(tmp_path, dtype, bits, pages):
    stack = np.stack([RAMP % 250 + k for k in range(pages)]).astype(dtype)
    stored = 2 ** bits - 1 - stack if bits else -stack
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", pages - 1), stack[-1])


def test_what_imagej_marks_white_is_zero_and_labels_are_never_inverted(tmp_path):
    labels = squares((5, 5), (5, 25)).astype(np.uint8)
    for name, description in (("imagej", "ImageJ=1.54f"), ("plain", None)):
        tifffile.imwrite(tmp_path / f"{name}.tif", labels, photometric="miniswhite", description=description,
                         metadata=None)
        np.testing.assert_array_equal(read_labels(tmp_path / f"{name}.tif"), labels)
    np.testing.assert_array_equal(read_image(tmp_path / "imagej.tif"), labels)
    np.testing.assert_array_equal(read_image(tmp_path / "plain.tif"), 255 - labels)


def test_numbers_far_beyond_the_cells_are_renumbered(tmp_path):
    labels = squares((5, 5), (5, 25))
    tifffile.imwrite(tmp_path / "a.tif", (labels * 10 ** 9).astype(np.uint32))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), labels)


def test_a_probability_map_is_no_labels(tmp_path):
    tifffile.imwrite(tmp_path / "p.tif", np.full((20, 24), 0.5, np.float32))
    with pytest.raises(SegkitError, match="not whole numbers"):
        read_labels(tmp_path / "p.tif")


@pytest.mark.parametrize("content", [b"", b"II*\0", b"not a picture at all"], ids=["empty", "header", "text"])
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_a_damaged_file_gives_one_sentence(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    for read in (read_header, read_image):
        with pytest.raises(SegkitError, match=r"a\.(tif|png)"):
            read(path)


@pytest.mark.parametrize("pages", [2, 150])
def test_a_chain_of_pages_that_leads_back_into_itself_is_no_endless_file(tmp_path, pages):
    path = tmp_path / "img_1.tif"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(pages):
            writer.write(np.ones((4, 5), np.uint8), metadata=None)
    with tifffile.TiffFile(path) as tif:
        first, last = tif.pages[0].offset, tif.pages[-1]
    content = bytearray(path.read_bytes())
    end = last.offset + 2 + 12 * len(last.tags)
    assert content[end:end + 4] == bytes(4)  # where the last page says that there is none after it
    content[end:end + 4] = first.to_bytes(4, "little")
    path.write_bytes(content)
    for reader in (read_header, read_image, read_labels):
        with pytest.raises(SegkitError, match="is damaged"):
            reader(path)


@pytest.mark.parametrize("compression", [None, "zlib", "zstd", "lzw"])
def test_a_size_far_beyond_what_is_stored_is_said_before_memory_is_taken(tmp_path, compression):
    path = tmp_path / "img_1.tif"
    tifffile.imwrite(path, np.zeros((3000, 3000), np.uint16), compression=compression)
    assert read_header(path)[:3] == (1, 3000, 3000)
    assert not read_labels(path).any()
    with tifffile.TiffFile(path) as tif:
        tag = tif.pages[0].tags["ImageLength"]
    content = bytearray(path.read_bytes())
    content[tag.valueoffset:tag.valueoffset + 4] = (3 * 10 ** 8).to_bytes(4, "little")
    path.write_bytes(content)
    for reader in (read_header, read_image, read_labels):
        with pytest.raises(SegkitError, match="is damaged"):
            reader(path)


def test_what_tifffile_logs_of_a_damaged_file_is_dropped_while_segkit_reads_it_and_only_then(tmp_path, caplog):
    path = tmp_path / "img_1.tif"
    tifffile.imwrite(path, RAMP, metadata=None)
    with tifffile.TiffFile(path) as tif:
        end = tif.pages[0].offset + 2 + 12 * len(tif.pages[0].tags)
    content = bytearray(path.read_bytes())
    content[end:end + 4] = (10 ** 8).to_bytes(4, "little")  # the next page is beyond the end of the file
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path), RAMP)
    assert read_header(path).pages == 1
    assert not caplog.records
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) == 1
    assert "invalid page offset" in caplog.text


def test_a_file_cut_short_is_noticed_without_decoding(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RAMP)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SegkitError, match="cut short"):
        read_header(path)


@pytest.mark.parametrize(("options", "found"), [
    ({"imagej": True, "resolution": (1 / 0.065, 1 / 0.065), "metadata": {"unit": "um", "finterval": 120}},
     {"PIXEL_SIZE_UM": 0.065, "MINUTES_PER_FRAME": 2.0}),
    ({"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.1, "PhysicalSizeXUnit": "µm"}},
     {"PIXEL_SIZE_UM": 0.1}),
    ({"resolution": (1e4 / 0.0733, 1e4 / 0.0733), "resolutionunit": "CENTIMETER"}, {"PIXEL_SIZE_UM": 0.0733}),
    ({"resolution": (72, 72), "resolutionunit": "INCH"}, {}), ({}, {})])
def test_metadata_offers_pixel_size_and_time_where_they_are_plausible(tmp_path, options, found):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 9), np.uint16), **options)
    assert read_metadata(tmp_path / "a.tif") == pytest.approx(found, rel=1e-3)


def test_metadata_of_what_is_no_tiff_are_none(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\x00rubbish")
    assert read_metadata(tmp_path / "a.tif") == read_metadata(tmp_path / "missing.tif") == {}
