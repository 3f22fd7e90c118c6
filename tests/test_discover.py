import shutil

import numpy as np
import pytest

from segkit import SegkitError, discover, split_by_position
from segkit.data.dataset import exclude, masks_path_in, read_pair, read_valid
from segkit.data.pairing import name_key
from tests.helpers import FIXTURE, write


def test_the_fixture_is_found_whole():
    dataset = discover(FIXTURE)
    assert len(dataset.frames) == len(dataset.pairs) == 72
    assert dataset.problems == ()
    assert {f.unit for f in dataset.frames} == {(e, f"Pos{n}") for e, numbers in
                                                {"REF": (101, 102, 109), "RIF10": (201, 202, 209)}.items()
                                                for n in numbers}
    assert [f.frame for f in dataset.frames if f.unit == ("REF", "Pos109")] == list(range(10, 22))


def test_frame_1_is_never_frame_10(tmp_path):
    image = np.zeros((20, 20), np.uint8)
    for k in (1, 10, 100):
        write(tmp_path / "A_raw_data/Pos101" / f"img_{k}.tif", image)
    write(tmp_path / "A_masks/Pos101/MASK_img_000010.tif", image)
    pairs = discover(tmp_path).pairs
    assert [(f.frame, f.masks.name) for f in pairs] == [(10, "MASK_img_000010.tif")]


@pytest.mark.parametrize("stem", ["img_7", "IMG_007", "MASK_img_000000007", "img_7_cp_masks", "img_07_masks"])
def test_one_frame_has_one_key(stem):
    assert name_key(stem) == (("img_", ""), (7,))


def one_position(folder, names, masks=(), pages=1, **options):
    """A dataset of one position with small images of these names (all of so many pages) and masks of those."""
    for place, files in (("A_raw_data", names), ("A_masks", masks)):
        for name in files:
            shape = (20, 20) if pages == 1 else (pages, 20, 20)
            write(folder / place / "Pos101" / name, np.zeros(shape, np.uint8), photometric="minisblack", **options)
    return discover(folder)


def remarks(dataset):
    """Problems but those of missing masks: their reasons, as one text, and the frames that they cost."""
    said = [p for p in dataset.problems if "no masks" not in p.reason]
    return " | ".join(p.reason for p in said), sum(p.frames_lost for p in said)


def stamps(*minutes):
    return [f"img_20240101{11 + m // 60}{m % 60:02d}00.tif" for m in minutes]


@pytest.mark.parametrize(("names", "numbers", "words"), [
    ([f"exp_t{k}c1.tif" for k in range(1, 13)], list(range(1, 13)), ""),
    ([f"img_{k:09d}_Phase_000.tif" for k in (0, 1, 2, 5)], [0, 1, 2, 5], ""),
    ([f"img_{k}.tif" for k in (0, 1, 2, 3, 4, 6, 7)], [0, 1, 2, 3, 4, 6, 7], ""),
    ([f"img_20240101{k}_{k}.tif" for k in (7, 8, 9)], [7, 8, 9], ""),
    ([f"img_{k}.tif" for k in (0, 5, 10, 15)], [0, 5, 10, 15], "rise by 5: "),
    ([f"img_{k}.tif" for k in (0, 5, 10, 12)], [0, 5, 10, 12], "rise by 2 to 5, unevenly: "),
    (stamps(54, 56, 58, 60, 62), [0, 1, 2, 3, 4], "is a time stamp and no frame number"),
    (stamps(30, 32, 34, 60, 62), [0, 1, 2, 3, 4], "steps between the stamps are uneven"),
    (["a_20240101_235800.tif", "a_20240102_000000.tif", "a_20240102_000200.tif"], [0, 1, 2], "do not tell the time"),
    (["s1_t2.tif", "s2_t3.tif", "s3_t1.tif"], [0, 1, 2], "do not tell the time"),
    (["ctrl.tif", "inh.tif", "rif.tif"], [0, 1, 2], "do not tell the time"),
    (["exp_5_t12c1.tif"], [1], ""), (["ctrl.tif"], [0], "")])
def test_the_number_that_counts_up_is_the_time_and_what_is_assumed_is_a_problem(tmp_path, names, numbers, words):
    dataset = one_position(tmp_path, names)
    assert [(f.frame, f.image.name) for f in dataset.frames] == list(zip(numbers, names, strict=True))
    said, lost = remarks(dataset)
    assert words in said
    assert (bool(said), lost) == (bool(words), 0)
    assert ("uneven" in said) == ("uneven" in words)


def test_a_file_whose_name_does_not_fit_a_time_series_is_no_frame_but_a_problem(tmp_path):
    dataset = one_position(tmp_path, ["average.tif", "img_0.tif", "img_1.tif", "img_2.tif"], ["MASK_average.tif"])
    assert [f.image.name for f in dataset.frames] == ["img_0.tif", "img_1.tif", "img_2.tif"]
    said, lost = remarks(dataset)
    assert "1 image(s) are left out, average.tif the first" in said
    assert "masks file(s)" not in said
    assert lost == 1


def test_a_few_snapshots_between_the_frames_are_no_channel(tmp_path):
    series = [f"img_{k:03d}.tif" for k in range(0, 100, 5)]
    dataset = one_position(tmp_path, [*series, "snap_12.tif", "snap_33.tif"])
    assert [f.image.name for f in dataset.frames] == series
    said, lost = remarks(dataset)
    assert "2 image(s) are left out, snap_12.tif the first" in said
    assert lost == 2


def test_an_image_that_is_left_out_takes_no_masks_from_a_frame_of_the_same_number(tmp_path):
    dataset = one_position(tmp_path, ["snap_3.tif", "img_2.tif", "img_3.tif", "img_4.tif"],
                           [f"MASK_phase_{k}.tif" for k in (2, 3, 4)])
    assert [(f.image.name, f.masks.name) for f in dataset.pairs] == [
        (f"img_{k}.tif", f"MASK_phase_{k}.tif") for k in (2, 3, 4)]


@pytest.mark.parametrize("mask", ["MASK_exp_t{:03d}c1.tif", "exp_t{}c1_cp_masks.tif", "MASK_img_{:09d}.tif",
                                  "seg_{}_of_12.tif"])
def test_masks_are_paired_by_the_number_that_tells_the_time(tmp_path, mask):
    numbers = [1, 2, 10, 12]
    dataset = one_position(tmp_path, [f"exp_t{k}c1.tif" for k in numbers], [mask.format(k) for k in numbers])
    assert [f.masks and f.masks.name for f in dataset.frames] == [mask.format(k) for k in numbers]


def test_a_lone_image_takes_no_masks_by_a_number_that_may_not_be_its_time(tmp_path):
    dataset = one_position(tmp_path, ["exp_t3c1.tif"], [f"MASK_img_{k}.tif" for k in (1, 2, 3)])
    assert not dataset.pairs
    assert "3 masks file(s) of A Pos101 have no image" in remarks(dataset)[0]
    assert one_position(tmp_path / "alone", ["exp_t3c1.tif"], ["MASK_img_1.tif"]).pairs


@pytest.mark.parametrize("names", [[f"img_{k}.tif" for k in range(3, 8)], stamps(30, 32, 34, 36, 38)])
def test_a_damaged_first_file_still_is_where_frames_are_counted_from(tmp_path, names):
    first = one_position(tmp_path, names).frames[0].frame
    for name in names[:2]:
        (tmp_path / "A_raw_data/Pos101" / name).write_bytes(b"")
    frames = discover(tmp_path).frames
    assert [f.frame for f in frames] == [first + 2, first + 3, first + 4]
    assert {f.first for f in frames} == {first}


def test_parts_of_a_time_lapse_follow_one_another_and_what_is_missing_between_them_is_a_problem(tmp_path):
    parts = ["film_1.tif", "film_2.tif", "film_3.tif"]
    whole = one_position(tmp_path, parts, pages=2)
    assert ([f.frame for f in whole.frames], remarks(whole)) == ([0, 1, 2, 3, 4, 5], ("", 0))
    damaged = tmp_path / "A_raw_data/Pos101/film_1.tif"
    damaged.write_bytes(b"")
    said, lost = remarks(discover(tmp_path))
    assert [(f.frame, f.first) for f in discover(tmp_path).frames] == [(2, 0), (3, 0), (4, 0), (5, 0)]
    assert "a damaged one counts as 2" in said
    assert lost == 1
    damaged.with_name("film_2.tif").rename(damaged)
    said, lost = remarks(discover(tmp_path))
    assert "as if equally spaced in time, and none missing between them" in said
    damaged.rename(damaged.with_name("film.tif"))
    write(damaged.with_name("film_4.tif"), np.zeros((2, 20, 20), np.uint8), photometric="minisblack")
    dataset = discover(tmp_path)
    assert [f.image.stem for f in dataset.frames] == ["film"] * 2 + ["film_3"] * 2 + ["film_4"] * 2
    assert "equally spaced" in remarks(dataset)[0]


@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_planes_along_z_are_times_only_where_nothing_else_is(tmp_path, kind):
    name = "film.ome.tif" if kind == "ome" else "film.tif"
    alone = one_position(tmp_path / "alone", [name], pages=3, metadata={"axes": "ZYX"}, **{kind: True})
    assert [f.frame for f in alone.frames] == [0, 1, 2]
    assert remarks(alone) == (f"{name} holds 3 planes along z and no time: they are read as times; if they are depths, "
                              "export one z plane of every time", 0)
    write(tmp_path / "alone" / "A_raw_data/Pos109/img_0.tif", np.zeros((20, 20), np.uint8))
    write(tmp_path / "alone" / "A_raw_data/Pos101" / f"b_{name}", np.zeros((3, 20, 20), np.uint8),
          photometric="minisblack", metadata={"axes": "ZYX"}, **{kind: True})
    several = discover(tmp_path / "alone")
    assert [f.position for f in several.frames] == ["Pos109"]
    assert remarks(several)[1] == 6
    write(tmp_path / "alone" / "A_raw_data/Pos110" / name, np.zeros((2, 3, 20, 20), np.uint8),
          photometric="minisblack", metadata={"axes": "TZYX"}, **{kind: True})
    assert "several z and several times: export one z plane of every time" in remarks(discover(tmp_path / "alone"))[0]


def test_masks_that_no_image_belongs_to_are_a_problem(tiny):
    for place in ("ORPHAN_masks/Pos101/PreprocessedPhaseMasks", "REF_masks/Pos110", "REF_masks"):
        for k in range(2):
            write(tiny / place / f"MASK_img_{k}.tif", np.zeros((40, 48), np.uint8))
    (tiny / "EMPTY_masks").mkdir()
    dataset = discover(tiny)
    assert len(dataset.pairs) == 4
    said = {p.path.relative_to(tiny).as_posix(): (p.reason, p.frames_lost) for p in dataset.problems}
    assert said == {
        "ORPHAN_masks": ("2 masks file(s) in ORPHAN_masks are not used: they need images in ORPHAN_raw_data; add or "
                         "rename that folder, or move the masks elsewhere", 2),
        "REF_masks/Pos110": ("2 masks file(s) in Pos110 are not used: they need images in REF_raw_data/Pos110; add or "
                             "rename that folder, or move the masks elsewhere", 2),
        "REF_masks": ("2 masks file(s) lie outside any PosXXX folder: move them into one", 2)}


def test_suffixes_of_folder_names_are_kept(tiny):
    (tiny / "REF_raw_data").rename(tiny / "REF_raw_data101_110")
    (tiny / "REF_masks").rename(tiny / "REF_masks101_110")
    assert {f.experiment for f in discover(tiny).pairs} == {"REF101_110"}


def test_omniposes_own_naming_beside_the_images(tmp_path):
    write(tmp_path / "A_raw_data/Pos101/img_1.tif", np.zeros((20, 20), np.uint8))
    write(tmp_path / "A_raw_data/Pos101/img_1_cp_masks.tif", np.zeros((20, 20), np.uint8))
    dataset = discover(tmp_path)
    assert len(dataset.frames) == len(dataset.pairs) == 1
    assert dataset.problems == ()


def test_a_plain_folder_of_images_is_a_dataset_without_experiments(tmp_path):
    for name in ("a_15.tif", "b_1.png", "c.tif"):
        if name.endswith("png"):
            from PIL import Image
            Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / name)
        else:
            write(tmp_path / name, np.zeros((20, 20), np.uint8))
    assert len(discover(tmp_path).frames) == 3


@pytest.mark.parametrize("place", ["REF_raw_data/Pos101", "REF_raw_data/Pos101/aphase"])
def test_a_single_position_is_a_dataset_and_keeps_its_names(tiny, place):
    frames = discover(tiny / place).frames
    assert [(f.name, f.masks) for f in frames] == [("REF/Pos101/0", None), ("REF/Pos101/1", None)]
    assert masks_path_in(tiny, frames[0]).parent == tiny / "REF_masks" / "Pos101" / "PreprocessedPhaseMasks"


def test_images_are_not_taken_for_their_own_masks(tmp_path):
    for folder, value in (("img", 3), ("labels", 1)):
        write(tmp_path / folder / "a_0.tif", np.full((20, 20), value, np.uint8))
    dataset = discover(tmp_path / "img", tmp_path)
    assert [f.masks for f in dataset.frames] == [tmp_path / "labels" / "a_0.tif"]
    assert not dataset.problems


def test_a_mask_that_cannot_be_used_loses_the_pair_but_not_the_frame(tiny):
    mask = next((tiny / "REF_masks").rglob("MASK_img_000000001.tif"))
    mask.write_bytes(b"")
    dataset = discover(tiny)
    assert (len(dataset.frames), len(dataset.pairs)) == (4, 3)
    assert [(p.path, p.frames_lost) for p in dataset.problems] == [(mask, 1)]
    assert "0 bytes" in dataset.problems[0].reason


def test_an_image_that_cannot_be_read_is_listed_and_the_rest_goes_on(tiny):
    image = next((tiny / "REF_raw_data").rglob("img_000000000.tiff"))
    image.write_bytes(image.read_bytes()[:100])
    dataset = discover(tiny)
    assert len(dataset.frames) == 3
    assert [(p.path, p.frames_lost) for p in dataset.problems] == [(image, 1)]


@pytest.mark.parametrize(("by", "pairs"), [(2, 4), (3, 3)])
def test_a_size_difference_of_2_pixels_is_cropped_and_of_3_refused(tiny, by, pairs):
    mask = next((tiny / "REF_masks").rglob("MASK_img_000000001.tif"))
    write(mask, np.eye(40 - by, 48, dtype=np.uint16))
    dataset = discover(tiny)
    assert len(dataset.pairs) == pairs
    assert len(dataset.problems) == 1
    if by == 2:
        image, labels = read_pair(next(f for f in dataset.pairs if f.masks == mask))
        assert image.shape == labels.shape == (38, 48)
        assert "cropped" in dataset.problems[0].reason


def test_missing_masks_are_counted_once_per_position(tiny):
    for mask in (tiny / "REF_masks/Pos101").rglob("*.tif"):
        mask.unlink()
    assert [(p.frames_lost, "no masks file" in p.reason) for p in discover(tiny).problems] == [(2, True)]


def test_a_missing_masks_folder_is_named(tiny):
    (tiny / "REF_masks").rename(tiny / "elsewhere")
    problem, = discover(tiny).problems
    assert problem.frames_lost == 4
    assert "expected REF_masks" in problem.reason


def test_masks_may_lie_under_masks_path(tiny, tmp_path_factory):
    other = tmp_path_factory.mktemp("masks")
    (tiny / "REF_masks").rename(other / "REF_masks")
    assert len(discover(tiny, other).pairs) == 4


@pytest.mark.parametrize(("make", "words"), [
    (lambda p: p / "nowhere", "not there"),
    (lambda p: p, "no experiment"),
    (lambda p: write(p / "a.tif", np.zeros((4, 4))), "a file, not a folder")])
def test_a_wrong_dataset_path_gives_one_sentence(tmp_path, make, words):
    with pytest.raises(SegkitError, match=words):
        discover(make(tmp_path))


def test_one_ending_may_be_given_as_text():
    pairs = discover(FIXTURE).pairs
    assert split_by_position(pairs, "09") == split_by_position(pairs, ("09",))


def test_no_position_is_on_both_sides_of_the_split():
    split = split_by_position(discover(FIXTURE).pairs)
    assert (len(split.train), len(split.validation), split.shared_positions()) == (48, 24, 0)
    assert {f.position for f in split.validation} == {"Pos109", "Pos209"}


@pytest.mark.parametrize(("endings", "words"), [(("77",), "no validation position"), ((), "no validation position"),
                                                (("1", "2", "9"), "no training position")])
def test_a_split_with_an_empty_side_is_refused(endings, words):
    with pytest.raises(SegkitError, match=words):
        split_by_position(discover(FIXTURE).pairs, endings)


def test_a_dataset_without_pairs_cannot_be_split():
    with pytest.raises(SegkitError, match="no pair"):
        split_by_position([])


def test_exclude_takes_frames_and_positions_and_refuses_what_matches_nothing(tiny):
    pairs = discover(tiny).pairs
    kept, excluded = exclude(pairs, ["REF/Pos101/1", "REF/Pos109"])
    assert [f.name for f in kept] == ["REF/Pos101/0"]
    assert len(excluded) == 3
    with pytest.raises(SegkitError, match="REF/Pos10"):
        exclude(pairs, ["REF/Pos10"])


def test_an_accent_written_in_two_ways_is_one_name(tiny):
    (tiny / "REF_raw_data").rename(tiny / "Bu\u0308_raw_data")
    (tiny / "REF_masks").rename(tiny / "B\u00fc_masks")
    assert len(discover(tiny).pairs) == 4
    assert name_key("n\u00e9_masks") == name_key("ne\u0301")


def test_two_folders_of_one_experiment_are_not_added_up(tiny):
    shutil.copytree(tiny / "REF_raw_data", tiny / "REFraw_data")
    dataset = discover(tiny)
    assert len(dataset.frames) == 4
    assert [(p.path.name, p.frames_lost) for p in dataset.problems] == [("REFraw_data", 4)]


@pytest.mark.parametrize(("make", "words"), [
    (lambda p: p / "REF_raw_data", "part of an experiment"),
    (lambda p: p / "REF_masks", "masks in it and no images"), (lambda p: p.parent, "give one of the folders in it")])
def test_one_folder_too_high_or_too_low_says_which_to_give(tiny, make, words):
    with pytest.raises(SegkitError, match=words):
        discover(make(tiny))


def test_one_position_alone_cannot_train(tiny):
    with pytest.raises(SegkitError, match="needs two at least"):
        split_by_position([f for f in discover(tiny).pairs if f.position == "Pos101"])


def test_frames_that_cannot_be_decoded_are_passed_over_and_named_with_their_position(tiny):
    pairs = discover(tiny).pairs
    pairs[0].masks.write_bytes(pairs[0].masks.read_bytes()[:-30])
    assert [f.name for f, _, _ in read_valid(pairs, 2)] == [f.name for f in pairs[1:3]]
    with pytest.raises(SegkitError, match=r"^REF/Pos101/0: MASK_img"):
        read_pair(pairs[0])


def test_linked_folders_are_searched_and_a_link_upwards_leads_in_no_circle(tiny):
    (tiny / "REF_raw_data/Pos101").rename(tiny / "elsewhere")
    (tiny / "REF_raw_data/Pos101").symlink_to(tiny / "elsewhere")
    (tiny / "REF_raw_data/Pos109/upwards").symlink_to(tiny)
    dataset = discover(tiny)
    assert (len(dataset.pairs), dataset.problems) == (4, ())


def test_a_projection_beside_a_film_is_no_frame_of_it(tmp_path):
    write(tmp_path / "film.tif", np.random.default_rng(0).integers(0, 255, (3, 20, 24), np.uint8),
          photometric="minisblack")
    write(tmp_path / "AVG_film.tif", np.zeros((20, 24), np.uint8))
    dataset = discover(tmp_path)
    assert [(f.image.name, f.frame, f.page) for f in dataset.frames] == [("film.tif", k, k) for k in range(3)]
    assert "AVG_film.tif" in dataset.problems[0].reason


def test_hidden_folders_are_no_experiments_and_links_between_positions_end(tiny):
    shutil.copytree(tiny / "REF_raw_data", tiny / ".REF_raw_data")
    shutil.copytree(tiny / "REF_raw_data", tiny / "__MACOSX_raw_data")
    names = sorted((tiny / "REF_raw_data").iterdir())
    for folder in names:
        for other in names:
            if other != folder:
                (folder / f"link_{other.name}").symlink_to(other)
    assert {frame.experiment for frame in discover(tiny).frames} == {"REF"}
    assert len(discover(tiny).frames) == 4
