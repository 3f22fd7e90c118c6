"""Tracks of a segmented dataset: tables, corrections, the Cell Tracking Challenge format, figures and the editor."""

import numpy as np
import pandas as pd
import pytest
import tifffile

from segkit import SegkitError
from segkit.data.dataset import Frame, masks_path_in
from segkit.files import write_table
from segkit.measure.cells import CELL_COLUMNS, cells_of_frame
from segkit.measure.segment_dataset import write_labels
from segkit.measure.track_dataset import (
    LINKS,
    correct_link,
    doubtful_links,
    link_dataset,
    predecessors,
    read_corrections,
    successors,
    write_ctc,
)
from segkit.notebook.pictures import (
    founders,
    number_colours,
    show_cell_curves,
    show_kymograph,
    show_lineages,
    show_links,
    show_tracks,
)
from segkit.notebook.plots import CELL_COLOURS, to_png
from segkit.notebook.widgets import LinkEditor
from segkit.settings import Settings
from tests.helpers import squares, write


def segmented(root, films):
    """A run folder and its frames: films is labels by position, one array per frame; REF_raw_data holds images."""
    out_dir, frames, cells = root / "runs" / "a", [], [pd.DataFrame(columns=list(CELL_COLUMNS))]
    for position, film in films.items():
        for k, labels in enumerate(film):
            grey = (200 - 100 * (labels > 0)).astype(np.uint8)
            image = write(root / f"REF_raw_data/{position}/img_{k:09d}.tif", grey)
            frames.append(Frame(image, None, "REF", position, k))
            write_labels(masks_path_in(out_dir / "masks", frames[-1]), labels, None, "test", 0.0, 1.0)
            cells.append(cells_of_frame(labels, frames[-1]))
    write_table(out_dir / "cells.csv", pd.concat(cells))
    return out_dir, frames


def rod(height, top=5, left=5, shape=(40, 48)):
    """One cell, 8 pixels wide."""
    labels = np.zeros(shape, np.int32)
    labels[top:top + height, left:left + 8] = 1
    return labels


# a cell that grows and divides, beside one that stays; the numbers of the labels change from frame to frame
BEFORE, SECOND = rod(16), rod(18)
BEFORE[30:38, 30:38], SECOND[30:38, 30:38] = 2, 2
AFTER = np.where(rod(9), 3, 0) + np.where(rod(9, top=14), 1, 0) + 2 * (squares((30, 30), side=8) > 0)
FILM = [BEFORE, SECOND, AFTER]


@pytest.fixture
def run(tmp_path):
    return segmented(tmp_path, {"Pos1": FILM, "Pos2": [BEFORE]})


def test_cells_get_tracks_and_tracks_a_table(run):
    out_dir, frames = run
    cells, tracks, problems = link_dataset(frames, out_dir)
    assert problems == []
    assert len(cells) == 9
    assert cells["track"].notna().all()
    one = tracks[tracks["position"] == "Pos1"].set_index("track")
    mother = cells.query("position == 'Pos1' and frame == 0 and label == 1")["track"].item()
    daughters = cells.query("position == 'Pos1' and frame == 2 and label != 2")["track"]
    assert one.loc[mother, "ended"] == "division"
    assert sorted(map(int, one.loc[mother, "daughters"].split())) == sorted(daughters)
    assert (one.loc[daughters, "mother_track"] == mother).all()
    assert cells.query("position == 'Pos1' and label == 2")["track"].nunique() == 1
    assert list(tracks[tracks["position"] == "Pos2"]["ended"]) == ["last frame"] * 2
    # the files are what was returned, and a second call changes nothing
    written = (out_dir / "cells.csv").read_bytes(), (out_dir / "tracks.csv").read_bytes()
    link_dataset(frames, out_dir)
    assert written == ((out_dir / "cells.csv").read_bytes(), (out_dir / "tracks.csv").read_bytes())


def test_predecessors_and_successors_go_through_a_division(run):
    out_dir, frames = run
    cells, tracks, _ = link_dataset(frames, out_dir)
    table = predecessors(cells, tracks).set_index(["position", "frame", "label"])
    assert table.loc[("Pos1", 2, 3), "from_label"] == 1
    assert table.loc[("Pos1", 2, 3), "from_frame"] == 1
    assert np.isnan(table.loc[("Pos1", 0, 1), "from_label"])
    found = successors(cells, tracks)
    assert set(found["REF", "Pos1", 1, 1]) == {1, 3}
    assert found["REF", "Pos1", 0, 2] == (2,)
    assert ("REF", "Pos1", 2, 2) not in found


def test_a_correction_overrules_and_another_one_replaces_it(run):
    out_dir, frames = run
    correct_link(frames[1], 1, (3,), frames[2], out_dir)
    cells, tracks, problems = link_dataset(frames, out_dir)
    assert problems == []
    assert successors(cells, tracks)["REF", "Pos1", 1, 1] == (3,)
    assert cells.query("position == 'Pos1' and frame == 2 and label == 3")["link_doubt"].item() == 0
    correct_link(frames[1], 1, (), frames[2], out_dir)
    assert len(read_corrections(out_dir)) == 1
    cells, tracks, _ = link_dataset(frames, out_dir)
    assert ("REF", "Pos1", 1, 1) not in successors(cells, tracks)
    correct_link(frames[1], 1, (1, 3), frames[2], out_dir)
    cells, tracks, _ = link_dataset(frames, out_dir)
    assert set(successors(cells, tracks)["REF", "Pos1", 1, 1]) == {1, 3}
    # label 3 can only have one cell before it: the older correction gives way
    correct_link(frames[1], 2, (3,), frames[2], out_dir)
    assert list(read_corrections(out_dir)["label"]) == [1, 2]


def test_a_correction_of_an_older_segmentation_is_a_problem_and_no_link(run):
    out_dir, frames = run
    before, *_ = link_dataset(frames, out_dir)
    correct_link(frames[1], 1, (2,), frames[2], out_dir)
    write_labels(masks_path_in(out_dir / "masks", frames[2]), np.roll(FILM[2], 1, 1), None, "test", 0.0, 1.0)
    cells, _, (problem,) = link_dataset(frames, out_dir)
    assert "segmented again" in problem.reason
    assert "frame 1, label 1" in problem.reason
    pd.testing.assert_series_equal(cells["track"], before["track"])


@pytest.mark.parametrize(("row", "reason"), [
    ({"position": "Pos9"}, "no cells here"), ({"frame": 2}, "no segmented frame follows"),
    ({"frame": 7}, "no segmented frame follows"), ({"labels_hash": "0"}, "segmented again"),
    ({"label": 9}, "no cell 9"), ({"next_label": 9}, "no cell 9"),
])
def test_every_row_that_does_not_fit_is_named(run, row, reason):
    out_dir, frames = run
    correct_link(frames[1], 1, (3,), frames[2], out_dir)
    table = read_corrections(out_dir)
    write_table(out_dir / LINKS, table.assign(**row))
    _, _, (problem,) = link_dataset(frames, out_dir)
    assert reason in problem.reason
    assert LINKS in problem.reason


def test_a_table_that_is_no_links_csv_is_an_error(run):
    out_dir, frames = run
    (out_dir / LINKS).write_text("a,b\n1,2\n")
    with pytest.raises(SegkitError, match="no column experiment"):
        link_dataset(frames, out_dir)


def test_a_lost_cell_is_listed_first_among_the_doubtful_links(tmp_path):
    out_dir, frames = segmented(tmp_path, {"Pos1": FILM})
    correct_link(frames[1], 2, (), frames[2], out_dir)  # the cell is still there
    cells, tracks, _ = link_dataset(frames, out_dir)
    first = doubtful_links(cells, tracks).iloc[0]
    assert (first["frame"], first["label"], first["next_label"]) == (1, 2, "")


def test_the_cell_tracking_challenge_format_has_no_gaps(tmp_path):
    still = squares((10, 10), (25, 30), side=8)
    missed = np.where(still == 1, 1, 0)
    out_dir, frames = segmented(tmp_path, {"Pos1": [still, missed, still]})
    cells, tracks, _ = link_dataset(frames, out_dir)
    assert len(tracks) == 2
    folder = write_ctc(frames, cells, tracks, out_dir) / "REF" / "Pos1_GT" / "TRA"
    rows = np.loadtxt(folder / "man_track.txt", dtype=int)
    assert rows.tolist() == [[1, 0, 2, 0], [2, 0, 0, 0], [3, 2, 2, 2]]
    images = [tifffile.imread(folder / f"man_track{k:04d}.tif") for k in range(3)]
    assert [sorted(set(image.ravel())) for image in images] == [[0, 1, 2], [0, 1], [0, 1, 3]]
    assert all(image.dtype == np.uint16 for image in images)


def test_mothers_stand_in_the_cell_tracking_challenge_format(run):
    out_dir, frames = run
    cells, tracks, _ = link_dataset(frames, out_dir)
    rows = np.loadtxt(write_ctc(frames, cells, tracks, out_dir) / "REF/Pos1_GT/TRA/man_track.txt", dtype=int)
    mother = rows[(rows[:, 1] == 0) & (rows[:, 2] == 1), 0].item()
    assert sorted(rows[:, 3]) == [0, 0, mother, mother]


def test_figures_of_tracks_with_much_and_little_content(run):
    out_dir, frames = run
    cells, tracks, _ = link_dataset(frames, out_dir)
    settings = Settings(root=out_dir.parent.parent, run="a")
    film = frames[:3]
    one, mine = cells[cells["position"] == "Pos1"], tracks[tracks["position"] == "Pos1"]
    links = pd.DataFrame({"experiment": "REF", "position": "Pos1", "frame": [1, 1], "label": [1, 2],
                          "next_label": ["1 3", ""]})
    for figure in (show_tracks(film, cells, settings), show_lineages(mine, one), show_lineages(mine[:0], one[:0]),
                   show_kymograph(film, one, mine, settings), show_cell_curves(one, 2.0),
                   show_cell_curves(one[:0], 2.0),
                   show_links(links, frames, cells, settings), show_links(links[:0], frames, cells, settings)):
        assert to_png(figure).startswith(b"\x89PNG")


def test_a_track_has_one_colour_in_the_film_and_the_tree_and_lineages_their_founder(run):
    out_dir, frames = run
    cells, tracks, _ = link_dataset(frames, out_dir)
    mine = tracks[tracks["position"] == "Pos1"].set_index("track")
    one = cells[cells["position"] == "Pos1"]
    lines = show_lineages(mine.reset_index(), one).axes[0].get_lines()
    horizontal = {line.get_color() for line in lines if len(line.get_ydata()) == 2 and line.get_linewidth() == 2.5}
    numbers = number_colours(one)
    assert horizontal == {CELL_COLOURS[numbers[track] % 7] for track in mine.index}
    root = founders(mine.reset_index())
    for track, row in mine.iterrows():
        assert root[track] == (row["mother_track"] or track)


def test_the_editor_offers_what_is_near_and_saves_the_choice(run):
    out_dir, frames = run
    cells, tracks, _ = link_dataset(frames, out_dir)
    editor = LinkEditor(frames, cells, tracks, Settings(root=out_dir.parent.parent, run="a"))
    assert editor.position.options == ("REF Pos1",)  # of a single frame nothing can be linked
    editor.frame.value, editor.label.value = 1, 1
    assert {field.value for field in editor.next} == {1, 3}
    assert bytes(editor._picture.value).startswith(b"\x89PNG")
    editor.next[0].value, editor.next[1].value = 3, None
    editor.save()
    assert "saved" in editor._message.value
    assert list(read_corrections(out_dir)["next_label"]) == [3]


def test_the_editor_saves_nothing_of_a_frame_without_cells(tmp_path):
    out_dir, frames = segmented(tmp_path, {"Pos1": [BEFORE, 0 * BEFORE, BEFORE]})
    cells, tracks, _ = link_dataset(frames, out_dir)
    editor = LinkEditor(frames, cells, tracks, Settings(root=tmp_path, run="a"))
    editor.frame.value = 1
    editor.save()
    assert "not saved: no cell is chosen" in editor._message.value
    assert len(read_corrections(out_dir)) == 0


def test_the_editor_begins_with_the_doubtful_links(tmp_path):
    out_dir, frames = segmented(tmp_path, {"Pos1": FILM})
    correct_link(frames[1], 2, (), frames[2], out_dir)
    cells, tracks, _ = link_dataset(frames, out_dir)
    editor = LinkEditor(frames, cells, tracks, Settings(root=tmp_path, run="a"))
    editor.doubtful.index = 1
    assert (editor.position.value, editor.frame.value, editor.label.value) == ("REF Pos1", 1, 2)
    assert [field.value for field in editor.next] == [None, None]


def test_the_editor_of_single_frames_has_nothing_to_choose(tmp_path):
    out_dir, frames = segmented(tmp_path, {"Pos1": [BEFORE]})
    cells, tracks, _ = link_dataset(frames, out_dir)
    editor = LinkEditor(frames, cells, tracks, Settings(root=tmp_path, run="a"))
    assert editor.position.options == ()
    editor.save()
    assert "not saved" in editor._message.value


def test_no_frames_give_empty_tables(tmp_path):
    out_dir, _ = segmented(tmp_path, {})
    cells, tracks, problems = link_dataset([], out_dir)
    assert len(cells) == len(tracks) == len(problems) == 0
    assert {"track", "link_doubt"} < set(cells)
