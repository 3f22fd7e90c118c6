import zipfile

import numpy as np
import pytest

from segkit import SegkitError, Settings, arrange, discover
from segkit.data.downloads import plan_arrangement
from segkit.notebook.widgets import ArrangeForm
from tests.helpers import FIXTURE, write


def zipped(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + str(file.relative_to(folder)))
    return path


@pytest.fixture
def downloads(tmp_path, tiny):
    """The tiny dataset as a course site gives it: one archive nested, one without its ending, and rubbish."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    zipped(tiny / "REF_raw_data", folder / "REF_raw_data.zip", "REF_raw_data/REF_raw_data/")
    zipped(tiny / "REF_masks", folder / "REF_masks", "__none__/".replace("__none__", "REF_masks"))
    with zipfile.ZipFile(folder / "REF_raw_data.zip", "a") as archive:
        archive.writestr("__MACOSX/REF_raw_data/Pos101/aphase/._img_000000000.tiff", b"rubbish")
        archive.writestr("REF_raw_data/.DS_Store", b"rubbish")
    (folder / "Thumbs.db").write_bytes(b"rubbish")
    return folder


def names(dataset):
    return [(f.name, f.masks is not None) for f in dataset.frames]


def test_zips_nested_and_without_ending_become_the_layout(downloads, tiny, tmp_path):
    plan = arrange(downloads, tmp_path / "dataset")
    assert plan.problems == []
    assert names(discover(tmp_path / "dataset")) == names(discover(tiny))
    assert plan.table()["files"].sum() == 8


def test_a_plan_changes_nothing(downloads, tmp_path):
    plan = plan_arrangement(downloads, tmp_path / "dataset")
    assert len(plan.copies) == 8
    assert not (tmp_path / "dataset").exists()


def test_unpacked_folders_are_copied_and_left_as_they_are(tmp_path):
    source = tmp_path / "in" / "REF_masks" / "REF_masks" / "Pos101" / "MASK_img_1.tif"
    write(source, np.zeros((4, 4), np.uint8))
    arrange(tmp_path / "in", tmp_path / "copied")
    assert source.exists()
    assert (tmp_path / "copied" / "REF_masks" / "Pos101" / "MASK_img_1.tif").is_file()


def test_several_archives_of_one_experiment_join(tiny, tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    for position in ("Pos101", "Pos109"):
        zipped(tiny / "REF_raw_data" / position, folder / f"{position}.zip", f"REF_raw_data/{position}/")
    arrange(folder, tmp_path / "dataset")
    assert len(discover(tmp_path / "dataset").frames) == 4


def test_an_archive_whose_entries_start_with_pos_takes_its_own_name(tiny, tmp_path):
    zipped(tiny / "REF_raw_data", tmp_path / "REF_raw_data.zip")
    arrange(tmp_path / "REF_raw_data.zip", tmp_path / "dataset")
    assert {f.experiment for f in discover(tmp_path / "dataset").frames} == {"REF"}


def test_nothing_lands_outside_the_dataset(downloads, tmp_path):
    with zipfile.ZipFile(downloads / "evil_masks.zip", "w") as archive:
        for name in ("../../evil_masks/Pos101/a.tif", "/evil_masks/Pos101/b.tif", "C:/evil_masks/Pos1/c.tif"):
            archive.writestr(name, b"x")
    plan = arrange(downloads, tmp_path / "dataset")
    assert sum("outside" in p.reason for p in plan.problems) == 3
    assert not list(tmp_path.rglob("[abc].tif"))


def test_a_damaged_archive_is_named_and_the_rest_goes_on(downloads, tmp_path):
    good = (downloads / "REF_raw_data.zip").read_bytes()
    (downloads / "A_raw_data.zip").write_bytes(good[:300])
    broken = bytearray((downloads / "REF_masks").read_bytes())
    broken[60:90] = bytes(30)  # the first entry's content
    (downloads / "REF_masks").write_bytes(broken)
    plan = arrange(downloads, tmp_path / "dataset")
    assert sum("A_raw_data.zip" in p.reason for p in plan.problems) == 1
    assert sum("damaged" in p.reason for p in plan.problems) == 1
    assert len(discover(tmp_path / "dataset").pairs) == 3


def test_a_damaged_entry_packed_by_lzma_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "REF_raw_data.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("REF_raw_data/Pos101/img_1.tif", bytes(range(256)) * 8)
    content = bytearray((tmp_path / "REF_raw_data.zip").read_bytes())
    content[80:120] = b"\xff" * 40
    (tmp_path / "REF_raw_data.zip").write_bytes(content)
    problem, = arrange(tmp_path, tmp_path / "dataset").problems
    assert "img_1.tif is damaged" in problem.reason


def test_an_interrupted_call_can_be_repeated_and_overwrites_nothing(downloads, tmp_path):
    arrange(downloads, tmp_path / "dataset")
    files = sorted((tmp_path / "dataset").rglob("*.tif*"))
    files[0].unlink()
    files[1].write_bytes(b"mine")
    plan = arrange(downloads, tmp_path / "dataset")
    assert files[0].is_file()
    assert files[1].read_bytes() == b"mine"
    assert [p.path for p in plan.problems] == [files[1]]


def test_copying_into_a_file_says_so_and_loses_nothing(tiny, tmp_path_factory):
    dataset, count = tmp_path_factory.mktemp("out"), len(list(tiny.rglob("*.tif*")))
    (dataset / "REF_masks").write_text("in the way")
    with pytest.raises(SegkitError, match="cannot write"):
        arrange(tiny, dataset)
    assert len(list(tiny.rglob("*.tif*"))) == count


@pytest.mark.parametrize("make", [lambda p: p / "nowhere", lambda p: p, lambda p: write(p / "a.tif", np.zeros((4, 4)))])
def test_nothing_to_arrange_gives_one_sentence(tmp_path, make):
    with pytest.raises(SegkitError, match=r"not there|nothing to arrange"):
        arrange(make(tmp_path), tmp_path / "dataset")


def test_the_form_shows_the_plan_before_it_acts(downloads, tmp_path):
    form = ArrangeForm(Settings(root=tmp_path))
    form.source.value = str(tmp_path / "nowhere")
    assert "not there" in form.message.value
    form.source.value = str(downloads)
    assert "8 files to be copied" in form.message.value
    assert not (tmp_path / "dataset").exists()
    form.button.click()
    assert len(discover(tmp_path / "dataset").pairs) == 4


def test_the_fixture_survives_the_round_trip(tmp_path):
    zipped(FIXTURE, tmp_path / "all.zip", "course/dataset/")
    arrange(tmp_path / "all.zip", tmp_path / "dataset")
    assert names(discover(tmp_path / "dataset")) == names(discover(FIXTURE))


def valid_zip(path, content=b"x" * 50, inside="REF_raw_data/Pos101/img_1.tif"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(inside, content)
    return path


def reasons(plan):
    return " | ".join(p.reason for p in plan.problems)


def test_what_cannot_be_unpacked_or_placed_is_named(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    valid_zip(source / "good.zip")
    whole = valid_zip(source / "REF_masks", b"y" * 5000, "REF_masks/Pos101/MASK_img_1.tif").read_bytes()
    (source / "REF_masks").write_bytes(whole[:3000])  # cut short, and without its ending
    (source / "HR_masks").write_bytes(b"")
    (source / "B_masks.tar.gz").write_bytes(b"\x1f\x8b")
    valid_zip(source / "TREAT raw.zip", inside="Pos1/img_1.tif")
    valid_zip(source / "nested.zip", inside="REF_masks.zip")
    said = reasons(arrange(source, tmp_path / "out"))
    for name in ("REF_masks is no valid", "HR_masks is no valid", "B_masks.tar.gz is no zip", "TREAT raw.zip belong to",
                 "nested.zip holds the archive"):
        assert name in said, name


def test_two_files_of_one_size_for_one_place_are_compared(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    valid_zip(source / "REF_raw_data.zip", b"a" * 50)
    valid_zip(source / "REF_raw_data (1).zip", b"a" * 50)
    assert arrange(source, tmp_path / "same").problems == []
    valid_zip(source / "REF_raw_data (1).zip", b"b" * 50)
    assert "different files" in reasons(arrange(source, tmp_path / "different"))
    again = arrange(source / "REF_raw_data.zip", tmp_path / "same")
    assert (again.problems, again.there_already) == ([], 1)
    other = arrange(valid_zip(tmp_path / "new.zip", b"c" * 50), tmp_path / "same")
    assert "another content" in reasons(other)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_entries_with_one_name_the_last_is_taken_and_said(tmp_path):
    place, inside = tmp_path / "out" / "REF_raw_data" / "Pos101" / "img_1.tif", "REF_raw_data/Pos101/img_1.tif"
    for first, problems in ((b"last", 0), (b"first", 1)):
        with zipfile.ZipFile(tmp_path / "REF_raw_data.zip", "w") as archive:
            archive.writestr(inside, first)
            archive.writestr(inside, b"last")
        for _ in range(2):
            plan = arrange(tmp_path / "REF_raw_data.zip", tmp_path / "out")
            assert place.read_bytes() == b"last"
            assert [p.reason for p in plan.problems] == problems * [
                f"REF_raw_data.zip holds two different files named {inside}: the last is used; look whether it is the "
                "right one"]


@pytest.mark.parametrize("name", ["HR_masks-20241122T101112Z-001.zip", "HR_masks - Copy.zip", "HR_masks copy 2.zip"])
def test_tails_that_browsers_and_drives_add_are_no_experiments_of_their_own(tmp_path, name):
    source = tmp_path / "in"
    source.mkdir()
    valid_zip(source / name, inside="Position 3/MASK_img_1.tif")
    arrange(source, tmp_path / "out")
    assert (tmp_path / "out" / "HR_masks" / "Position 3" / "MASK_img_1.tif").is_file()
