"""Growth of single cells: rates that one can compute by hand, and intervals on simulated lineages."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.single_cell import coverage, demo, lineages, ratio_coverage
from segkit import SegkitError
from segkit.data.dataset import Frame
from segkit.measure.single_cell import (
    POPULATION_COLUMNS,
    RATE_COLUMNS,
    population_rates,
    single_cell_rates,
    which_estimate,
)

STEP = 0.02  # of log area per frame, 2 minutes apart
HOURLY = 30 * STEP


def cell(frames, areas, track=1, mother=0, experiment="REF", position="Pos1"):
    """Rows of one track."""
    return pd.DataFrame({"experiment": experiment, "position": position, "frame": np.asarray(frames), "label": track,
                         "track": track, "mother_track": mother, "area_px": np.asarray(areas, float),
                         "length_px": np.sqrt(areas)})


def growing(frames, size=100.0, step=STEP):
    return size * np.exp(step * np.asarray(frames))


def rates_of(*tracks, **options):
    return single_cell_rates(pd.concat(tracks, ignore_index=True), **options)


def family(share=0.5, late=0):
    """A mother for 6 frames, then two daughters for 6, the second of them seen late."""
    after = np.arange(6, 12)
    return (cell(np.arange(6), growing(np.arange(6))), cell(after, share * growing(after), 2, 1),
            cell(after[late:], (1 - share) * growing(after[late:]), 3, 1))


def test_a_lone_cell_has_its_rate_from_its_third_frame_on():
    rates = rates_of(cell(np.arange(8), growing(np.arange(8))))
    assert list(rates.columns) == list(RATE_COLUMNS)
    assert rates["area_rate_per_hour"].isna().tolist() == [True] * 2 + [False] * 6
    assert np.allclose(rates["area_rate_per_hour"][2:], HOURLY)
    assert np.allclose(rates["length_rate_per_hour"][2:], HOURLY / 2)
    assert rates["minutes"].tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_a_division_changes_no_rate(share):
    rates = rates_of(*family(share))
    assert np.allclose(rates["area_rate_per_hour"].dropna(), HOURLY)
    assert rates["area_rate_per_hour"].notna().sum() == 4 + 6 + 6
    assert set(rates["founder"]) == {1}


def test_without_the_sister_in_the_same_frame_the_division_is_left_out():
    for rates in (rates_of(*family(late=1)), rates_of(*family()[:2])):
        daughter = rates[rates["track"] == 2]["area_rate_per_hour"]
        assert np.allclose(daughter, HOURLY)
    lone = rates_of(family()[1], family()[0][5:])  # the mother's last frame only: two points in the daughter's second
    assert lone["area_rate_per_hour"].isna().tolist() == [True, True, False, False, False, False, True]


def test_missing_frames_count_with_their_true_time():
    frames = np.array([0, 1, 2, 4, 5, 7, 20, 21])
    rates = rates_of(cell(frames, growing(frames)))["area_rate_per_hour"]
    assert np.allclose(rates[2:6], HOURLY)
    assert rates[6:].isna().all()  # after 13 frames the window holds too few points


def test_a_growing_cell_that_was_missing_for_frames_is_no_wrong_link():
    """Steps of 0.1 per frame: over three frames the area changes by 0.3, which growth explains."""
    frames = np.array([0, 1, 2, 3, 6, 7])
    others = [cell(np.arange(8), growing(np.arange(8), step=0.1), k) for k in (2, 3)]
    rates = rates_of(cell(frames, growing(frames, step=0.1)), *others)
    assert np.allclose(rates["area_rate_per_hour"].dropna(), 3)
    assert rates.loc[4, "area_rate_per_hour"] == pytest.approx(3)  # frames 2, 3 and 6


def test_fast_growth_is_no_wrong_link():
    """Steps of 0.19 per frame with noise of 0.04: four in ten are beyond 0.2; without them the mean would be lower."""
    rng, frames = np.random.default_rng(0), np.arange(10)
    areas = growing(frames, step=0.19) * np.exp(rng.normal(0, 0.03, (40, 10)))
    rates = rates_of(*(cell(frames, line, k) for k, line in enumerate(areas, start=1)))
    assert rates["area_rate_per_hour"].mean() == pytest.approx(30 * 0.19, rel=0.01)


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.4, 2.0])
@pytest.mark.parametrize("step", [0.0, STEP, 0.1])
def test_one_wrong_link_changes_no_rate(factor, step):
    frames = np.arange(10)
    wrong = growing(frames, step=step) * np.where(frames < 5, 1, factor)
    others = [cell(frames, growing(frames, step=step), k) for k in (2, 3, 4)]
    rates = rates_of(cell(frames, wrong), *others)["area_rate_per_hour"]
    assert np.allclose(rates.dropna(), 30 * step, atol=1e-9)
    assert rates.notna().sum() == 4 * 8


def test_a_cell_that_shrinks_has_a_negative_rate():
    rates = rates_of(cell(np.arange(5), growing(np.arange(5), step=-STEP)))
    assert rates["area_rate_per_hour"][4] == pytest.approx(-HOURLY)


def test_the_window_trails_so_that_nothing_changes_before_the_drug():
    """Frame 5 is the first with drug; the effect acts from 5 to 6 on."""
    frames = np.arange(12)
    rates = rates_of(cell(frames, growing(np.minimum(frames, 5))))["area_rate_per_hour"] / HOURLY
    assert np.allclose(rates[2:10], [1, 1, 1, 1, 0.8, 0.5, 0.2, 0])


def test_a_stopped_population_reads_zero():
    cells = lineages(1, 200, 20, doubling=60, drug=0, effect=0.0, seed=1)
    reference = np.log(2)  # per hour
    last = single_cell_rates(cells, window=15).query("frame == 19")["area_rate_per_hour"]
    assert abs(last.median()) < 0.01 * reference + 3 * last.std() / np.sqrt(len(last))
    assert (last < 0).mean() == pytest.approx(0.5, abs=0.1)


def test_wrong_links_make_nothing_grow():
    """Cells that stopped and 0.5 % of wrong links: plain fits show cells that grow, and these do not."""
    cells = lineages(1, 1000, 31, drug=0, effect=0.0, wrong=0.005, seed=2)
    last = single_cell_rates(cells, window=31).query("frame == 30")["area_rate_per_hour"]
    plain = cells.groupby("track")["area_px"].agg(lambda a: np.polyfit(np.arange(len(a)), np.log(a), 1)[0] * 30)
    limit = 0.5 * np.log(2)  # half of the reference's rate per hour
    assert (plain > limit).sum() > 5
    assert (last > limit).sum() == 0


def test_time_counts_from_the_first_frame_and_each_experiment_has_its_interval():
    frames = np.arange(3, 8)
    cells = [cell(frames, growing(frames), experiment=e) for e in ("REF", "RIF")]
    files = [Frame("x", None, e, "Pos1", k, first=1) for e in ("REF", "RIF") for k in frames]
    rates = rates_of(*cells, minutes_per_frame={"REF": 2.0, "RIF": 4.0}, frames=files)
    assert rates["since_start"].tolist() == [2, 3, 4, 5, 6] * 2
    last = rates.groupby("experiment")[["minutes", "area_rate_per_hour"]].last()
    assert np.allclose(last, [[12, HOURLY], [24, HOURLY / 2]])


def test_tracks_are_known_within_their_position_and_rows_keep_their_order():
    first, second = family(), [part.assign(position="Pos2", area_px=part["area_px"] * 2) for part in family()]
    cells = pd.concat([*first, *second]).sample(frac=1, random_state=0)
    rates = single_cell_rates(cells)
    assert rates["track"].tolist() == cells["track"].tolist()
    assert np.allclose(rates["area_rate_per_hour"].dropna(), HOURLY)


def test_cells_cut_off_by_the_border_have_no_rate_and_leave_a_gap():
    frames = np.arange(8)
    cells = cell(frames, growing(frames) * np.where(frames == 4, 0.9, 1)).assign(touches_border=frames == 4)
    rates = single_cell_rates(cells)["area_rate_per_hour"]
    assert rates.isna().tolist() == [True, True, False, False, True, False, False, False]
    assert np.allclose(rates.dropna(), HOURLY)


def test_what_cannot_be_followed_is_empty_or_said():
    one = cell([0], [100.0])
    assert single_cell_rates(one)["area_rate_per_hour"].isna().all()
    assert list(population_rates(single_cell_rates(one)).columns) == list(POPULATION_COLUMNS)
    assert len(single_cell_rates(one[:0])) == len(population_rates(single_cell_rates(one[:0]))) == 0
    with pytest.raises(SegkitError, match="track 1, frame 0: two cells"):
        rates_of(one, one)
    with pytest.raises(SegkitError, match=r"track 2, frame 5: .*the mother is still there"):
        rates_of(cell(np.arange(7), growing(np.arange(7))), cell([5], [50.0], 2, 1))
    with pytest.raises(SegkitError, match="no column mother_track"):
        single_cell_rates(one.drop(columns="mother_track"))
    with pytest.raises(SegkitError, match="window is 2"):
        single_cell_rates(one, window=2)
    with pytest.raises(SegkitError, match="minutes_per_frame 0"):
        single_cell_rates(one, 0)


def population(steps, experiment="REF", position="Pos1"):
    """Cells of several tracks without divisions, each with its own step."""
    return [cell(np.arange(6), growing(np.arange(6), step=step), k, experiment=experiment, position=position)
            for k, step in enumerate(steps, start=1)]


def test_cells_of_one_lineage_are_one_piece_of_evidence():
    """Two daughters and two cells of their own: lineage rates 1, 1 (twice) and 4 times HOURLY."""
    parts = [*family(), cell(np.arange(12), growing(np.arange(12)), 4),
             cell(np.arange(12), growing(np.arange(12), step=4 * STEP), 5)]
    row = population_rates(rates_of(*parts)).query("since_start == 11 and position == 'Pos1'").iloc[0]
    assert (row["cells"], row["lineages"], row["positions"]) == (4, 3, 1)
    assert row["growth_per_hour"] == pytest.approx(HOURLY * 7 / 4)
    # left out one by one: means 5/2, 2 and 1, from 7/4 away by 3/4, 1/4 and -3/4
    assert row["standard_error"] == pytest.approx(HOURLY * np.sqrt(2 / 3 * (9 + 1 + 9) / 16))


def test_positions_are_the_unit_of_an_experiment():
    parts = population([STEP], position="Pos1") + population([2 * STEP, 2 * STEP, 2 * STEP], position="Pos2")
    row = population_rates(rates_of(*parts)).query("since_start == 5 and position == 'all'").iloc[0]
    assert (row["cells"], row["lineages"], row["positions"]) == (4, 4, 2)
    assert row["growth_per_hour"] == pytest.approx(1.5 * HOURLY)
    assert row["standard_error"] == pytest.approx(0.5 * HOURLY)


def test_a_single_lineage_or_position_has_no_interval():
    table = population_rates(rates_of(*population([STEP])))
    assert table[["standard_error", "low", "high", "ratio", "ratio_low"]].isna().all(axis=None)


def test_growth_is_a_share_of_the_reference_at_the_same_time():
    parts = [c for p in ("Pos1", "Pos2", "Pos3") for c in population([STEP, STEP], position=p)]
    parts += [c for p in ("Pos1", "Pos2", "Pos3") for c in population([STEP, 0, 0, 0], "RIF", p)]
    table = population_rates(rates_of(*parts)).query("since_start == 5").set_index(["experiment", "position"])
    assert table.loc[("RIF", "all"), ["growing", "growing_share", "ratio"]].tolist() == pytest.approx([3, 0.25, 0.25])
    # Clopper and Pearson, 3 of 12
    low_and_high = table.loc[("RIF", "all"), ["growing_low", "growing_high"]]
    assert low_and_high.tolist() == pytest.approx([0.0549, 0.5719], abs=1e-4)
    assert table.loc[("RIF", "all"), ["ratio_low", "ratio_high"]].tolist() == pytest.approx([0.25, 0.25], abs=0.01)
    assert table.loc[("REF", "all"), ["growing", "growing_low", "growing_high"]].tolist() == pytest.approx(
        [6, 0.025 ** (1 / 6), 1], abs=1e-4)
    assert np.isnan(table.loc[("REF", "all"), "ratio"])
    none = population_rates(rates_of(*population([STEP] * 3), *population([0] * 3, "RIF"))).query("since_start == 5")
    ends = none.set_index("experiment").loc["RIF", ["growing_low", "growing_high"]]
    assert ends.iloc[0].tolist() == [0, pytest.approx(1 - 0.025 ** (1 / 3))]


def test_growing_cells_are_counted_only_where_noise_allows():
    cells = pd.concat([lineages(3, 10, 31, seed=0), lineages(3, 10, 31, drug=0, seed=1, experiment="RIF")])
    short, long = (population_rates(single_cell_rates(cells, window=w)).query("since_start == 30") for w in (5, 21))
    assert short["growing"].isna().all()
    shares = long[long["position"] == "all"].set_index("experiment")["growing_share"]
    assert shares.tolist() == [1, 0]


def test_experiments_of_other_frame_intervals_are_compared_at_equal_times():
    parts = [c for p in ("Pos1", "Pos2") for c in population([STEP, STEP], position=p)]
    parts += [c for p in ("Pos1", "Pos2") for c in population([STEP, STEP], "RIF", p)]
    table = population_rates(rates_of(*parts, minutes_per_frame={"REF": 2.0, "RIF": 4.0}))
    ratio = table.query("experiment == 'RIF' and position == 'all'").set_index("minutes")["ratio"]
    assert ratio[8] == pytest.approx(0.5)
    assert ratio[[12, 16, 20]].isna().all()


def tracks_of(**counts):
    """tracks.csv by how tracks begin and end."""
    return pd.DataFrame([(began, ended) for (began, ended), n in counts["kinds"].items() for _ in range(n)],
                        columns=["began", "ended"])


@pytest.mark.parametrize(("kinds", "kind"), [
    ({("first frame", "division"): 10, ("division", "last frame"): 20}, "Both"),
    ({("first frame", "division"): 10, ("division", "border"): 20}, "Tracks"),
    ({("first frame", "lost"): 10, ("appeared", "last frame"): 20}, "Total area"),
    ({("first frame", "lost"): 10, ("appeared", "border"): 20}, "Neither is safe")])
def test_the_tracks_decide_which_estimate_suits(kinds, kind):
    rates = rates_of(*(cell(np.arange(12), growing(np.arange(12)), k) for k in range(1, 4)))
    said = which_estimate(rates, tracks_of(kinds=kinds))
    assert said.startswith(f"{kind}: ")
    assert said.endswith("83% of cells have a rate.")


def test_short_tracks_and_single_frames_suit_no_tracking():
    whole = tracks_of(kinds={("first frame", "last frame"): 3})
    short = rates_of(*(cell([k, k + 1], [100.0, 102.0], k + 1) for k in range(4)))
    assert which_estimate(short, whole).startswith("Total area: ")
    assert which_estimate(rates_of(cell([0], [100.0])), whole) == (
        "Neither total area nor tracks: no position has cells in 4 frames.")


@pytest.mark.parametrize("lineage", [0.1, 0.3])
def test_intervals_hold_the_true_mean_as_often_as_they_say(lineage):
    held = coverage(3, 6, 20, 250, spread=0.0, lineage=lineage)
    assert 92 <= held["position"] <= 98
    assert 92 <= held["experiment"] <= 98
    assert abs(held["bias"]) < 2


def test_the_ratio_s_interval_holds_the_true_ratio_as_often_as_it_says():
    assert 91 <= ratio_coverage((3, 3), 6, 0.5, 200) <= 99


def test_single_cells_of_the_demo_have_the_rates_put_in():
    rates, tracks = demo()
    assert tracks["error"].abs().median() < 0.03
    stopped, _ = demo(factor=0.0)
    last = stopped.query("experiment == 'RIF' and since_start > 9")["area_rate_per_hour"]
    assert abs(last.median()) < 0.01 * rates.query("experiment == 'REF'")["area_rate_per_hour"].mean()
