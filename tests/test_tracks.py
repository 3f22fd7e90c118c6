"""Linking: squares that one can follow by hand, the demo's own lineage, and what the segmentation gets wrong."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.tracking import scores, spoiled
from segkit import SegkitError, discover, link_cells, make_demo_dataset, measure_cells, read_image, read_labels
from segkit.measure.tracks import link_frames, tracks_table
from tests.helpers import squares


def boxes(*corners, shape=(60, 80)):
    """Labels with one rectangle per (label, y, x, height, width)."""
    labels = np.zeros(shape, np.int32)
    for label, y, x, height, width in corners:
        labels[y:y + height, x:x + width] = label
    return labels


def tracks(table):
    """Track of each (frame, label)."""
    return {(row.frame, row.label): row.track for row in table.itertuples()}


def fates(series, **options):
    """tracks_table of a film, by track."""
    linked = link_frames(series, **options)
    frames = options.get("frames") or range(len(series))
    cells = pd.concat([measure_cells(labels).assign(frame=k) for k, labels in zip(frames, series, strict=True)])
    return tracks_table(cells.merge(linked, on=["frame", "label"]), min(frames), max(frames)).set_index("track")


def channel(*heights, top=10, x=20, shape=(120, 60)):
    """Cells of these heights, 8 pixels wide, end to end in a channel that is closed at the top."""
    labels, y = np.zeros(shape, np.int32), top
    for label, height in enumerate(heights, 1):
        labels[y:y + height, x:x + 8] = label
        y += height + 1
    return labels


def test_a_cell_keeps_its_track_when_its_label_changes():
    first, second = boxes((1, 10, 10, 10, 10), (2, 30, 40, 10, 10)), boxes((7, 11, 11, 10, 10), (3, 31, 40, 10, 10))
    table = link_cells([first, second])
    assert list(table.columns) == ["frame", "label", "track", "mother_track"]
    assert tracks(table) == {(0, 1): 1, (0, 2): 2, (1, 7): 1, (1, 3): 2}
    assert (table["mother_track"] == 0).all()


def test_two_halves_in_the_place_of_a_cell_are_its_daughters():
    series = [boxes((1, 10, 10, 10, 40)), boxes((1, 10, 10, 10, 40)), boxes((2, 10, 10, 10, 20), (1, 10, 31, 10, 20))]
    table = link_cells(series)
    assert tracks(table) == {(0, 1): 1, (1, 1): 1, (2, 1): 2, (2, 2): 3}
    assert table["mother_track"].tolist() == [0, 0, 1, 1]
    rows = fates(series)
    assert rows["daughters"].tolist() == ["2 3", "", ""]
    assert rows["began"].tolist() == ["first frame", "division", "division"]
    assert rows["ended"].tolist() == ["division", "last frame", "last frame"]


@pytest.mark.parametrize("missing", [1, 2])
def test_a_daughter_that_is_missing_at_first_is_joined_to_her_mother(missing):
    mother, first, second = (1, 10, 10, 10, 40), (2, 10, 10, 10, 20), (3, 10, 31, 10, 19)
    other = (9, 40, 10, 10, 30)
    series = [boxes(mother, other)] * 2 + [boxes(first, other)] * missing + [boxes(first, second, other)] * 2
    rows = fates(series)
    assert rows["daughters"].tolist() == ["3 4", "", "", ""]
    assert rows["first_frame"].tolist() == [0, 0, 2, 2 + missing]
    assert rows["began"].tolist() == ["first frame"] * 2 + ["division"] * 2
    # the user says that she is no daughter
    kept = link_frames(series, corrections={(1, 1): (2,)})
    assert (kept["mother_track"] == 0).all()


def test_a_new_cell_beside_one_that_keeps_its_size_is_no_daughter():
    table = link_cells([boxes((1, 10, 10, 10, 20)), boxes((1, 10, 10, 10, 20), (2, 10, 31, 10, 20))])
    assert tracks(table) == {(0, 1): 1, (1, 1): 1, (1, 2): 2}
    assert (table["mother_track"] == 0).all()


def test_leaving_over_the_border_entering_dying_and_being_lost_are_told_apart():
    stays, x = (1, 40, 30, 10, 20), (50, 55, 60, 66, 72)
    series = [boxes(stays, (2, 10, x[k], 10, 20), (3, 20, 5, 8, 12)) if k < 3 else boxes(stays, (2, 10, x[k], 10, 20))
              if k < 5 else boxes(stays, (4, 0, 5, 6, 10)) for k in range(8)]
    rows = fates(series)
    assert rows["began"].tolist() == ["first frame"] * 3 + ["border"]
    assert rows["ended"].tolist() == ["last frame", "border", "death", "last frame"]
    # one frame before the end nobody knows whether it comes back
    assert fates(series[:4])["ended"].tolist() == ["last frame", "last frame", "lost"]


@pytest.mark.parametrize(("missing", "tracks_found"), [(1, 2), (2, 2), (3, 3)])
def test_a_cell_may_be_missing_in_two_frames(missing, tracks_found):
    both, one = squares((10, 10), (10, 30)), squares((10, 10))
    series = [both, *[one] * missing, both]
    assert link_cells(series)["track"].nunique() == tracks_found
    # the same where whole frames are missing, and their numbers say so
    frames = [0, 1, 2, 3 + missing]
    assert link_cells([both] * 4, frames)["track"].nunique() == (2 if missing < 3 else 4)


def test_two_cells_under_one_label_for_a_frame_are_no_division_afterwards():
    both, one = boxes((1, 10, 10, 10, 20), (2, 10, 31, 10, 16)), boxes((1, 10, 10, 10, 37))
    table = link_cells([both, both, one, both])
    assert tracks(table) == {(0, 1): 1, (0, 2): 2, (1, 1): 1, (1, 2): 2, (2, 1): 1, (3, 1): 1, (3, 2): 2}


@pytest.mark.parametrize("by_images", [False, True])
def test_the_view_may_jump_by_more_than_a_cell(by_images):
    rng = np.random.default_rng(0)
    scene = np.zeros((160, 200), np.int32)
    places = rng.permutation([(y, x) for y in range(30, 120, 16) for x in range(30, 160, 16)])[:25]
    for label, (y, x) in enumerate(places, 1):
        scene[y:y + 9, x:x + 9] = label
    image, at = rng.normal(size=(160, 200)).cumsum(0).cumsum(1), [(0, 0), (3, 0), (-9, 12), (-8, 14)]
    series = [np.roll(scene, by, (0, 1)) for by in at]
    images = [np.roll(image, by, (0, 1)) for by in at] if by_images else None
    table = link_cells(series, images=images)
    assert (table["track"] == table["label"]).all()


def test_in_a_channel_order_and_area_count_after_the_outermost_cell_is_washed_out():
    # every cell grows by a sixth: the last one's place is taken by its neighbour, which moves by its own length
    before = np.hstack([channel(12, 18, 24, 12, 18), channel(24, 12, 18, 18), channel(18, 18, 12, 24)])
    after = np.hstack([channel(14, 21, 28, 14), channel(28, 14, 21), channel(21, 21, 14)])
    before, after = (np.hstack([lane + 10 * k * (lane > 0) for k, lane in enumerate(np.hsplit(labels, 3))])
                     for labels in (before, after))
    for turn in range(4):
        table = tracks(link_cells([np.rot90(before, turn), np.rot90(after, turn)]))
        assert all(table[1, label] == table[0, label] for label in np.unique(after)[1:])


def test_corrections_overrule():
    series = [squares((10, 10), (10, 30)), squares((10, 10), (10, 30)), squares((10, 10), (10, 30))]
    assert tracks(link_frames(series))[1, 1] == 1
    swapped = link_frames(series, corrections={(0, 1): (2,), (0, 2): (1,)})
    assert tracks(swapped) == {(0, 1): 1, (0, 2): 2, (1, 1): 2, (1, 2): 1, (2, 1): 2, (2, 2): 1}
    assert (swapped["doubt"][swapped["frame"] == 1] == 0).all()
    ended = link_frames(series, corrections={(0, 1): ()})
    assert tracks(ended) == {(0, 1): 1, (0, 2): 2, (1, 1): 3, (1, 2): 2, (2, 1): 3, (2, 2): 2}
    divided = link_frames(series, corrections={(1, 1): (1, 2), (1, 2): ()})
    assert divided["mother_track"].tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("corrections", [{(0, 9): (1,)}, {(0, 1): (9,)}, {(0, 1): (1,), (0, 2): (1,)}, {(1, 1): (1,)},
                                         {(0, 1): (1, 2, 2)}])
def test_corrections_that_fit_no_cell_are_refused(corrections):
    with pytest.raises(SegkitError, match="correction"):
        link_frames([squares((10, 10), (10, 30))] * 2, corrections=corrections)


def test_doubt_is_higher_where_two_cells_could_be_the_next():
    others = (25, 2), (29, 18), (21, 36)
    clear, between = squares(*others, (5, 10), (5, 30)), squares(*others, (5, 20))
    table = link_frames([clear, clear, between])
    assert (table["doubt"][table["frame"] == 0] == 0).all()
    assert table["doubt"][table["frame"] == 1].max() < 0.1 < 0.2 < table["doubt"].iloc[-1] <= 1


@pytest.mark.parametrize(("labels", "options"), [
    (squares((10, 10)), {}), ([squares((10, 10)).astype(float)], {}), (7, {}), ([[[1]]], {}),
    ([-squares((10, 10))], {}),
    ([squares((10, 10))] * 2, {"frames": [0]}), ([squares((10, 10))] * 2, {"frames": [1, 1]}),
    ([squares((10, 10))] * 2, {"images": [np.zeros((40, 48))]})])
def test_bad_input_is_a_sentence(labels, options):
    with pytest.raises(SegkitError):
        link_cells(labels, **options)


def test_odd_input_works():
    empty, large = np.zeros((40, 48), np.uint16), squares((10, 10), (10, 30)).astype(np.int64) * 10 ** 9
    assert link_cells([]).empty
    assert link_cells([empty, empty]).empty
    assert link_cells([large, empty, large])["track"].tolist() == [1, 2, 1, 2]
    assert link_cells(iter([large]))["track"].tolist() == [1, 2]
    smaller = link_cells([large, large[:30, :40]])
    assert smaller["track"].tolist() == [1, 2, 1, 2]
    many = np.kron(np.arange(1, 2026).reshape(45, 45), np.pad(np.ones((6, 6), int), 2))
    assert (link_cells([many, many])["track"] == np.tile(np.arange(1, 2026), 2)).all()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Labels, images and lineage of each position of a small demo."""
    folder = make_demo_dataset(tmp_path_factory.mktemp("demo") / "demo", positions={"REF": (101, 102)}, seed=3)
    lineage, found = pd.read_csv(folder / "lineage.csv"), discover(folder)
    assert not found.problems
    films = []
    for _, rows in lineage.groupby("position"):
        frames = [f for f in found.pairs if f.position == rows["position"].iloc[0]]
        films.append(([read_labels(f.masks) for f in frames], [read_image(f.image) for f in frames], rows))
    return films


def test_the_demo_says_which_cell_each_label_is(demo):
    for labels, _, rows in demo:
        for frame, picture in enumerate(labels):
            cells = rows[rows["frame"] == frame]
            assert sorted(cells["label"]) == np.unique(picture)[1:].tolist() == list(range(1, len(cells) + 1))
        assert not (rows.groupby("track")["label"].nunique() == 1).all()
        assert set(rows["mother_track"]) - {0} <= set(rows["track"])
        assert (rows[rows["mother_track"] > 0].groupby("mother_track")["track"].nunique() == 2).all()


def test_the_demos_links_and_divisions_are_exact_from_its_true_labels(demo):
    for labels, images, rows in demo:
        by_labels, by_images = link_cells(iter(labels)), link_cells(labels, images=images)
        assert scores(by_labels, rows)[:2] == scores(by_images, rows)[:2] == (1.0, 1.0)
        pd.testing.assert_frame_equal(by_labels, link_cells(labels))
        assert scores(by_labels.assign(track=by_labels["frame"] * 1000 + by_labels["label"]), rows)[0] < 0.5


def test_links_survive_cells_that_the_segmentation_missed_or_merged(demo):
    found = []
    for seed, (labels, _, rows) in enumerate(demo):
        worse, held = spoiled(labels, rows, 0.05, np.random.default_rng(seed))
        assert len(held) < len(rows)
        found.append(scores(link_cells(worse), held)[0])
    assert np.mean(found) >= 0.98


@pytest.mark.parametrize(("column", "ended"), [(33.0, "lost"), (60.0, "death")])
def test_a_cell_is_dead_where_nothing_is_seen_at_its_place(column, ended):
    """Track 1 is seen in frames 0 and 1, track 2 in all; from frame 2 on track 2 is at `column`, track 3 stays."""
    rows = [(frame, 1, 30.0) for frame in (0, 1)] + [(frame, 2, column) for frame in range(8)]
    rows += [(frame, 3, 100.0) for frame in range(8)]
    cells = pd.DataFrame(rows, columns=["frame", "track", "centroid_x"]).assign(
        mother_track=0, label=1, area_px=200, touches_border=False, centroid_y=30.0)
    assert tracks_table(cells, 0, 7)["ended"].tolist() == [ended, "last frame", "last frame"]
