"""Growth put in is measured back out; verdicts follow from made-up growth that one can see through."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.verdicts import coverage, verdicts
from segkit import SegkitError, discover, growth_rates
from segkit.data.dataset import Frame, read_pair
from segkit.files import read_table, write_table
from segkit.measure.cells import cells_of_frame
from segkit.measure.growth import areas_over_time, compare_growth, find_reference, measure_growth
from segkit.settings import Settings, parse_settings
from tests.helpers import FIXTURE


def cells_of(experiment, position, areas, first=0):
    """One cell a frame, of these areas (pixels)."""
    return pd.DataFrame({"experiment": experiment, "position": position, "frame": first + np.arange(len(areas)),
                         "label": 1, "area_px": areas})


def said_of(cells, frames=(), drug_frame=6, minutes=10):
    """Verdict and reason of the only treated experiment."""
    growth = growth_rates(cells, frames, minutes_per_frame=minutes, drug_frame=drug_frame)
    return tuple(compare_growth(growth)[["verdict", "reason"]].iloc[0])


def filmed(experiment, areas, cells=20, first=0):
    """Cells and frames of positions of one experiment, by their total areas; 0: a frame without cells."""
    rows = [(f"Pos{k}", first + t, line[t] / cells) for k, line in enumerate(areas) for t in range(len(line))
            for _ in range(cells * (line[t] > 0))]
    frames = [Frame(Path("x"), None, experiment, f"Pos{k}", first + t) for k, line in enumerate(areas)
              for t in range(len(line))]
    return pd.DataFrame(rows, columns=["position", "frame", "area_px"]).assign(experiment=experiment), frames


def assay(treated, minutes=2.0, frames=60):
    """Four reference positions that grow, and treated ones with these areas; what is said of them (drug at 30)."""
    rng = np.random.default_rng(0)
    grow = [exponential(0.7 * f, frames, minutes) * np.exp(rng.normal(0, 0.01, frames)) for f in (1, 1.05, 0.95, 1.02)]
    (ref, ref_frames), (rif, rif_frames) = filmed("REF", grow), filmed("RIF", [f(line) for f, line in
                                                                            zip(treated, grow, strict=True)])
    return said_of(pd.concat([ref, rif]), ref_frames + rif_frames, 30, minutes)


def dies(after):
    """Growing areas that end `after` frames after the drug (frame 30)."""
    return lambda line: np.where(np.arange(len(line)) < 30 + after, line, 0)


def lives(line):
    return line


@pytest.mark.parametrize("after", [0, 1, 6, 10])
def test_a_drug_that_kills_every_cell_is_dying(after):
    assert assay([dies(after)] * 4) == ("dying", "4 of 4 positions died out")


def test_where_some_positions_die_out_the_verdict_is_dying_and_the_reason_says_how_many_grow():
    said = assay([dies(6)] * 3 + [lives])
    assert said == ("dying", "3 of 4 positions died out; 1 of the 1 others grow significantly")


def test_a_last_speck_does_not_bring_the_dead_back():
    def speck(line):
        return np.where(np.arange(len(line)) == len(line) - 1, 20, dies(6)(line))
    assert assay([speck] * 4)[0] == "cannot say"
    assert assay([speck] * 3 + [lives]) == ("cannot say", "3 of 4 positions that began with cells have no rate: "
                                                          "too few frames hold cells")


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize(("left", "verdict"), [(0.03, "dying"), (0.3, "dying"), (0.65, "cannot say")])
def test_a_drug_that_kills_a_part_at_once_does_not_grow(left, verdict, after):
    """The survivors grow on, and a slope that a few frames cannot move sees only them."""
    def part_dies(line):
        return np.where(np.arange(len(line)) < 30 + after, line, left * line)
    said, reason = assay([part_dies] * 4)
    assert said == verdict
    assert "vanished within a few frames in 4 of 4 positions" in reason


def test_a_few_bad_frames_are_no_death():
    def blinks(line):
        return np.where(np.isin(np.arange(len(line)), (33, 50)), 0.6 * line, line)
    assert assay([blinks] * 4)[0] == "grows"


def test_frames_may_come_from_a_generator():
    cells, frames = filmed("RIF", [dies(6)(exponential(0.7, 60, 2.0))])
    growth = growth_rates(cells, iter(frames), minutes_per_frame=2, drug_frame=30)
    assert growth["died_out"].tolist() == [True, False, True]


def test_specks_in_one_frame_are_no_cells_that_could_die():
    def flash(line):
        return np.where(np.arange(len(line)) == 28, 45, 0)
    assert assay([lives] * 3 + [flash])[0] != "dying"


def test_positions_that_grew_less_before_the_drug_too_are_named():
    slow = [lambda line, f=f: line[0] * (line / line[0]) ** f for f in (0.5, 0.52, 0.48, 0.5)]
    said, reason = assay(slow)
    assert said == "slowed"
    assert reason.endswith("; but they grew less before the drug, too")


def test_death_is_in_the_tables_of_growth(tmp_path):
    cells, frames = filmed("RIF", [dies(6)(exponential(0.7, 60, 2.0))])
    growth = growth_rates(cells, frames, minutes_per_frame=2, drug_frame=30).set_index("phase")
    assert growth["died_out"].tolist() == [True, False, True]
    assert growth["start_cells"].tolist() == [20, 20, 20]
    assert growth["growth_per_hour"].isna().tolist() == [True, False, True]
    write_table(tmp_path / "growth.csv", growth)
    assert "True" in (tmp_path / "growth.csv").read_text()


def test_a_reference_that_dies_out_too_says_nothing_of_the_drug():
    grow = exponential(0.7, 60, 2.0)
    (ref, f1), (rif, f2) = (filmed(e, [dies(6)(grow)] * 3) for e in ("REF", "RIF"))
    assert said_of(pd.concat([ref, rif]), f1 + f2, 30, 2.0) == ("cannot say", "all 3 reference positions died out")
    ref, f1 = filmed("REF", [dies(6)(grow), grow, grow])
    assert said_of(pd.concat([ref, rif]), f1 + f2, 30, 2.0) == ("cannot say", "1 of 3 reference positions died out too")


def test_without_frames_death_cannot_be_told_from_a_shorter_film():
    cells = pd.concat([filmed(e, [exponential(0.7, n, 2.0)] * 3)[0] for e, n in (("REF", 60), ("RIF", 36))])
    assert said_of(cells, (), 30, 2.0) == ("cannot say", "cells of some positions end before those of others: give "
                                                        "frames=, which tells death from a shorter time-lapse")


def test_one_position_a_side_cannot_say():
    cells = pd.concat([cells_of(e, "P", exponential(rate)).loc[lambda t: t.index.repeat(4)]
                       for e, rate in (("REF", 0.6), ("RIF", 0.5))])
    assert said_of(cells)[0] == "cannot say"
    assert "one position a side" in said_of(cells)[1]


def test_a_drug_frame_beyond_the_last_frame_is_not_taken_for_no_drug():
    cells = pd.concat([filmed(e, [exponential(0.6)] * 3)[0] for e in ("REF", "RIF")])
    assert said_of(cells, drug_frame=12) == ("cannot say", "DRUG_FRAME lies beyond the last frame of RIF: give the "
                                                           "first frame with drug")
    assert said_of(cells, drug_frame={"REF": 12, "RIF": 6})[1].endswith("of REF: give the first frame with drug, or -1 "
                                                                        "where it got no drug")
    assert said_of(cells, drug_frame={"REF": None, "RIF": 6})[0] == "grows"


def test_a_damaged_first_frame_does_not_move_the_drug(tmp_path):
    cells = cells_of("RIF", "Pos1", exponential(0.6, 10), first=12)
    frames = [Frame(tmp_path / "x", None, "RIF", "Pos1", k, first=10) for k in range(12, 22)]  # 10 and 11: damaged
    growth = growth_rates(cells, frames, minutes_per_frame=10, drug_frame=6).set_index("phase")
    assert growth.loc[["before", "after"], "frames"].tolist() == [4, 6]


@pytest.mark.parametrize(("change", "words"), [
    ({"cells": 7}, "cells is a int: a pandas.DataFrame"), ({"minutes_per_frame": -2}, "minutes_per_frame is -2"),
    ({"minutes_per_frame": {"A": 0}}, "minutes_per_frame is 0"), ({"cells": "none.csv"}, "none.csv"),
    ({"minutes_per_frame": "2"}, "minutes_per_frame is '2'"), ({"drug_frame": "30"}, "drug_frame is '30'"),
    ({"drug_frame": float("nan")}, "drug_frame is nan")])
def test_unsuitable_arguments_are_named(change, words):
    with pytest.raises(SegkitError, match=words):
        growth_rates(**{"cells": cells_of("A", "P", exponential(0.6)), **change})


def test_a_path_is_read_with_names_as_text(tmp_path):
    write_table(tmp_path / "cells.csv", cells_of("NA", "001", exponential(0.6)))
    growth = growth_rates(tmp_path / "cells.csv", minutes_per_frame=10)
    assert growth[["experiment", "position"]].iloc[0].tolist() == ["NA", "001"]
    with pytest.raises(SegkitError, match="growth is a str"):
        compare_growth("growth.csv")


def exponential(per_hour, frames=12, minutes=10, start=1000.0):
    return start * np.exp(per_hour * np.arange(frames) * minutes / 60)


def test_a_rate_put_in_comes_out_with_its_doubling_time():
    growth = growth_rates(cells_of("REF", "Pos1", exponential(0.6)), minutes_per_frame=10, drug_frame=6)
    assert growth["phase"].tolist() == ["all", "before", "after"]
    assert growth["growth_per_hour"].tolist() == pytest.approx([0.6] * 3)
    assert growth["doubling_minutes"].tolist() == pytest.approx([60 * np.log(2) / 0.6] * 3)
    assert growth["frames"].tolist() == [12, 6, 6]


def test_a_bad_frame_does_not_move_the_rate():
    areas = exponential(0.6)
    areas[4] *= 3
    table = growth_rates(cells_of("REF", "Pos1", areas), minutes_per_frame=10, drug_frame=None)
    assert table.loc[0, "growth_per_hour"] == pytest.approx(0.6, rel=0.02)
    assert table.loc[0, "low"] <= 0.6 <= table.loc[0, "high"]


def test_the_drug_frame_counts_from_the_positions_first_frame_also_if_that_one_is_empty(tmp_path):
    cells = cells_of("RIF", "Pos1", exponential(0.6, 11), first=21)
    frames = [Frame(tmp_path / "x", None, "RIF", "Pos1", k) for k in range(20, 32)]
    growth = growth_rates(cells, frames, minutes_per_frame=10, drug_frame=6).set_index("phase")
    assert growth.loc["before", ["frames", "empty_frames"]].tolist() == [6, 1]
    assert growth.loc["after", "frames"] == 6
    assert areas_over_time(cells, frames)["cells"].tolist() == [0] + [1] * 11


def test_too_few_frames_give_no_rate_and_a_shrinking_area_no_doubling():
    growth = growth_rates(cells_of("A", "P", [5, 6, 7]), drug_frame=-1)
    assert growth["growth_per_hour"].isna().all()
    shrinking = growth_rates(cells_of("A", "P", exponential(-0.2)), minutes_per_frame=10)
    assert shrinking.loc[0, "doubling_minutes"] == np.inf


def test_names_that_look_like_numbers_or_nothing_stay_names(tmp_path):
    cells = pd.concat([cells_of("NA", "001", exponential(0.5)), cells_of("2024", "001", exponential(0.5))])
    write_table(tmp_path / "cells.csv", cells)
    frames = [Frame(tmp_path / f"{k}.tif", None, e, "001", k) for e in ("NA", "2024") for k in range(12)]
    growth = growth_rates(read_table(tmp_path / "cells.csv"), frames, minutes_per_frame=10)
    assert growth["growth_per_hour"].dropna().unique() == pytest.approx([0.5])
    assert (growth["empty_frames"] == 0).all()
    with pytest.raises(SegkitError, match="read names as text"):
        growth_rates(pd.read_csv(tmp_path / "cells.csv").assign(experiment="other"), frames)


def test_a_table_that_is_none_of_cells_is_refused():
    with pytest.raises(SegkitError, match="area_px"):
        growth_rates(pd.DataFrame({"experiment": [], "position": [], "frame": []}))
    assert growth_rates(cells_of("A", "P", [])).empty


def test_the_fixtures_growth_is_measured_within_5_percent():
    truth = json.loads((FIXTURE / "truth.json").read_text())
    pairs = discover(FIXTURE).pairs
    cells = pd.concat([cells_of_frame(read_pair(f)[1], f) for f in pairs])
    growth = growth_rates(cells, pairs, minutes_per_frame=truth["minutes_per_frame"], drug_frame=truth["drug_frame"])
    reference = np.mean([p["growth_per_minute_before"] for p in truth["positions"].values()])
    for row in growth[growth["phase"] != "all"].itertuples():
        put_in = truth["positions"][f"{row.experiment}/{row.position}"][f"growth_per_minute_{row.phase}"]
        assert abs(row.growth_per_hour / 60 - put_in) < 0.05 * reference, (row.experiment, row.position, row.phase)


@pytest.mark.parametrize(("treated", "verdict"), [
    ((0.05, 0.06, 0.04), "stopped"), ((0.30, 0.32, 0.28), "slowed"), ((0.60, 0.57, 0.62), "grows"),
    ((0.0, 0.9, 0.4), "cannot say")])
def test_the_verdict_follows_the_interval(treated, verdict):
    rates = {"REF": (0.60, 0.58, 0.61, 0.62), "RIF10": treated}
    rng = np.random.default_rng(0)
    cells = pd.concat([cells_of(e, f"Pos{k}", exponential(rate) * rng.normal(1, 0.004, 12))
                       for e, all_rates in rates.items() for k, rate in enumerate(all_rates)])
    comparison = compare_growth(growth_rates(cells, minutes_per_frame=10, drug_frame=6))
    assert comparison[["experiment", "reference"]].iloc[0].tolist() == ["RIF10", "REF"]
    assert comparison.loc[0, "verdict"] == verdict
    assert comparison.loc[0, "ratio"] == pytest.approx(np.mean(treated) / np.mean(rates["REF"]), abs=0.03)


def test_too_few_cells_or_a_reference_that_does_not_grow_say_so():
    lonely = pd.concat([cells_of("REF", "P", exponential(0.6)), cells_of("RIF", "P", exponential(0.1))])
    assert said_of(lonely) == ("cannot say", "too few cells: the treated positions have 1.0 in an average frame")
    still = pd.concat([cells_of(e, f"P{k}", exponential(0.0)) for e in ("REF", "RIF") for k in range(4)])
    assert said_of(still) == ("cannot say", "the reference does not grow significantly")


@pytest.mark.parametrize(("experiment", "names", "found"), [
    ("RIF10", ["REF", "RIF10"], "REF"), ("HR_RIF10", ["HR_REF", "HR_RIF10", "REF", "RIF10"], "HR_REF"),
    ("RIF10", ["HR_REF", "REF", "RIF10"], "REF"), ("RIF10201_210", ["REF101_110", "RIF10201_210"], "REF101_110"),
    ("RIF10", ["PREF", "REFS", "RIF10"], None), ("HR_REF", ["HR_REF", "REF"], None), ("RIF10", ["RIF10"], None)])
def test_the_reference_is_the_one_that_is_named_alike(experiment, names, found):
    assert find_reference(experiment, names, "REF") == found


def test_experiments_may_differ_in_time_and_reference(tmp_path):
    settings = parse_settings({"CONDITIONS": "experiment,minutes_per_frame,drug_frame,reference\nRIF,5,-1,free\n",
                               "MINUTES_PER_FRAME": 10}, Settings(root=tmp_path))
    cells = pd.concat([cells_of("free", f"P{k}", exponential(0.6)) for k in range(3)]
                      + [cells_of("RIF", f"P{k}", exponential(0.6, minutes=5)) for k in range(3)])
    growth, comparison = measure_growth(cells, [], settings, tmp_path)
    assert growth["growth_per_hour"].dropna().tolist() == pytest.approx([0.6] * growth["growth_per_hour"].count())
    assert comparison[["experiment", "reference", "phase"]].values.tolist() == [["RIF", "free", "all"]]
    assert pd.read_csv(tmp_path / "growth.csv").shape == growth.shape
    assert (tmp_path / "comparison.csv").is_file()


def test_a_dataset_without_any_cell_gives_rows_and_no_rates(tmp_path):
    (tmp_path / "cells.csv").write_text("experiment,position,frame,label,area_px,area_um2\n")
    cells = pd.read_csv(tmp_path / "cells.csv")
    frames = [Frame(tmp_path / "x", None, e, "Pos1", k) for e in ("REF", "RIF") for k in range(6)]
    growth, comparison = measure_growth(cells, frames, Settings(root=tmp_path), tmp_path)
    assert growth["growth_per_hour"].isna().all()
    assert growth["empty_frames"].sum() == 24  # in all and in before
    assert comparison["verdict"].tolist() == ["cannot say"]
    assert "beyond the last frame of RIF" in comparison.loc[0, "reason"]


def test_simulated_verdicts_hold_their_error_rates():
    """A small version of benchmarks/verdicts.py: a method that forgets a source of spread is far outside."""
    condition = (60.0, 0.6, 0.1)  # doubling minutes, correlation of frames, spread between positions
    none, half, stop = (verdicts((3, 3), effect, condition, 60, seed=1) for effect in (1.0, 0.5, 0.0))
    assert none["verdict"].isin(("slowed", "stopped", "dying")).mean() <= 0.1
    assert (none["verdict"] == "grows").mean() >= 0.85
    assert (half["verdict"] == "slowed").mean() >= 0.9
    assert (stop["verdict"] == "stopped").mean() >= 0.9
    assert (verdicts((1, 1), 1.0, condition, 5)["verdict"] == "cannot say").all()
    assert not verdicts((1, 5), 1.0, condition, 60)["verdict"].isin(("stopped", "dying")).any()


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_a_positions_interval_covers_also_where_frames_are_correlated(correlation):
    assert 0.88 <= coverage(30, correlation, 200) <= 0.995
