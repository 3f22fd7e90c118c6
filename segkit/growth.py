"""From cells to growth: area over time, growth rates, and treated experiments against their reference."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from .data import Frame, of_experiment
from .errors import SegkitError
from .files import write_table
from .settings import Settings

LEAST_FRAMES, LEAST_CELLS = 4, 3  # frames with cells in a phase, and cells in its average frame, to say anything
STOPPED_BELOW = 0.25  # a treated experiment that surely grows at less than this share of its reference has stopped
GROWTH_COLUMNS = ("experiment", "position", "phase", "frames", "empty_frames", "mean_cells", "growth_per_hour", "low",
                  "high", "doubling_minutes", "doubling_low", "doubling_high")
COMPARISON_COLUMNS = ("experiment", "reference", "phase", "positions", "reference_positions", "growth_per_hour",
                      "reference_growth_per_hour", "ratio", "low", "high", "positions_slowed", "verdict")


def areas_over_time(cells: pd.DataFrame, frames: Iterable[Frame] = ()) -> pd.DataFrame:
    """One row per frame: experiment, position, frame, since_start (frames), cells, area_px.

    cells: a row per cell, as in cells.csv. frames: all that were looked at, so that those without any cell count too;
    left out, only frames with cells are known. Raises SegkitError where a column is missing
    or cells belong to no frame's experiment.
    """
    needed = ["experiment", "position", "frame", "area_px"]
    if missing := [name for name in needed if name not in cells.columns]:
        raise SegkitError(f"the table of cells has no column {', '.join(missing)}: cells.csv of a run was needed")
    key = needed[:3]
    counted = cells[needed].assign(cells=1).groupby(key, as_index=False).sum()
    seen = pd.DataFrame([(*f.unit, f.frame) for f in frames], columns=key).drop_duplicates()
    if strange := set() if seen.empty else set(counted["experiment"]) - set(seen["experiment"]):
        raise SegkitError(f"cells of experiment {strange.pop()}, and no frame belongs to it: give the frames that were "
                          "segmented, and read names as text (dtype={'experiment': str, 'position': str})")
    table = counted if seen.empty else seen.merge(counted, how="outer", on=key)
    table = table.astype({"cells": float, "area_px": float}).fillna({"cells": 0, "area_px": 0})
    table = table.sort_values(key, ignore_index=True)
    start = table.groupby(key[:2])["frame"].transform("min")
    return table.assign(since_start=table["frame"] - start, cells=table["cells"].astype(int))[
        [*key, "since_start", "cells", "area_px"]]


def growth_rates(cells: pd.DataFrame, frames: Iterable[Frame] = (), *,
                 minutes_per_frame: float | Mapping[str, float] = 2.0,
                 drug_frame: int | Mapping[str, int | None] | None = 30) -> pd.DataFrame:
    """Exponential growth of every position's total cell area: over all frames, before and after the drug.

    cells, frames: see `areas_over_time`. minutes_per_frame; drug_frame: first frame with drug, counted from the
    position's first frame, None or below 0 without drug; both one for all, or by experiment.
    Returns GROWTH_COLUMNS, a row per position and phase (all, before, after): growth per hour (slope of log area) with
    its 95 % interval, and the doubling time; without value where fewer than LEAST_FRAMES frames hold cells.
    The slope is Theil and Sen's (Sen 1968, doi 10.1080/01621459.1968.10480934): the median over all pairs of frames, so
    that a bad frame does not move it. The interval takes frames' errors as independent. Raises SegkitError where a
    mapping lacks an experiment.
    """
    rows = []
    for (experiment, position), line in areas_over_time(cells, frames).groupby(["experiment", "position"]):
        minutes, drug = of_experiment(minutes_per_frame, experiment), of_experiment(drug_frame, experiment)
        with_drug = line["since_start"] >= (np.inf if drug is None or drug < 0 else drug)
        for phase, part in (("all", line), ("before", line[~with_drug]), ("after", line[with_drug])):
            rows.append({"experiment": experiment, "position": position, "phase": phase, "frames": len(part),
                         "empty_frames": int((part["cells"] == 0).sum()), "mean_cells": part["cells"].mean(),
                         **_slope(part[part["cells"] > 0], minutes)})
    return pd.DataFrame(rows, columns=list(GROWTH_COLUMNS))


def _slope(line: pd.DataFrame, minutes: float) -> dict[str, float]:
    names = ("growth_per_hour", "low", "high", "doubling_minutes", "doubling_low", "doubling_high")
    if len(line) < LEAST_FRAMES:
        return dict.fromkeys(names, np.nan)
    fit = stats.theilslopes(np.log(line["area_px"].to_numpy(float)), line["since_start"].to_numpy() * minutes / 60)
    doubling = [60 * np.log(2) / rate if rate > 0 else np.inf for rate in (fit.slope, fit.high_slope, fit.low_slope)]
    return dict(zip(names, (float(fit.slope), float(fit.low_slope), float(fit.high_slope), *doubling), strict=True))


def measure_growth(cells: pd.DataFrame, frames: Iterable[Frame], settings: Settings,
                   out_dir: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`growth_rates` and `compare_growth` under the settings of each experiment; written as growth.csv, comparison.csv.

    cells: of cells.csv; frames: all that were segmented. Returns both tables.
    """
    frames = list(frames)
    own = {e: settings.for_experiment(e) for e in {f.experiment for f in frames} | set(cells["experiment"])}
    growth = growth_rates(cells, frames, minutes_per_frame={e: s.minutes_per_frame for e, s in own.items()},
                          drug_frame={e: s.drug_frame for e, s in own.items()})
    comparison = compare_growth(growth, {e: s.reference for e, s in own.items()})
    write_table(Path(out_dir) / "growth.csv", growth)
    write_table(Path(out_dir) / "comparison.csv", comparison)
    return growth, comparison


def find_reference(experiment: str, experiments: Iterable[str], reference: str) -> str | None:
    """The experiment that a treated one is compared with: named `reference`, or _reference at its end.

    The numbers of its positions may follow (REF101_110). Of several (REF, HR_REF) the one that begins most like the
    treated one's name (HR_RIF10) is taken. None where there is none, or the experiment is itself a reference.
    """
    name = re.compile(rf"(.*_)?{re.escape(reference)}(\d+_\d+)?")  # HR_REF; REF101_110 of REF_raw_data101_110
    named = [e for e in sorted(experiments) if reference and name.fullmatch(e)]
    if experiment in named or not named:
        return None

    def alike(name: str) -> tuple[int, bool]:
        shared = next((k for k, (a, b) in enumerate(zip(name, experiment, strict=False)) if a != b), len(name))
        return shared, name == reference
    return max(named, key=alike)


def compare_growth(growth: pd.DataFrame, reference: str | Mapping[str, str] = "REF") -> pd.DataFrame:
    """Each treated experiment's growth against its reference's, after the drug (over all frames where none was given).

    growth: from `growth_rates`; reference: its name (see `find_reference`), one for all or by experiment.
    Returns COMPARISON_COLUMNS: mean growth over positions, their ratio with a 95 % interval (t distributions over
    positions; over frames where there is one position), how many treated positions are surely slower than the
    reference, and the verdict: stopped (surely under a quarter of the reference), slowed (surely slower), grows, or
    why nothing can be said.
    """
    names = growth["experiment"].unique()
    rows = []
    for experiment in names:
        chosen = find_reference(experiment, names, of_experiment(reference, experiment))
        if chosen:
            rows.append({"experiment": experiment, "reference": chosen, **_compare(
                growth[growth["experiment"] == experiment], growth[growth["experiment"] == chosen])})
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def _compare(treated: pd.DataFrame, reference: pd.DataFrame) -> dict[str, Any]:
    drug = (treated.loc[treated["phase"] == "after", "frames"] > 0).any()
    phase = "after" if drug else "all"
    one, other = (table[(table["phase"] == phase) & table["growth_per_hour"].notna()] for table in (treated, reference))
    if drug and other.empty:  # a reference without drug frame grows alike all the time
        other = reference[(reference["phase"] == "all") & reference["growth_per_hour"].notna()]
    row: dict[str, Any] = {"phase": phase, "positions": len(one), "reference_positions": len(other),
                           "growth_per_hour": one["growth_per_hour"].mean(),
                           "reference_growth_per_hour": other["growth_per_hour"].mean(),
                           "ratio": np.nan, "low": np.nan, "high": np.nan, "positions_slowed": 0}
    cells = [table["mean_cells"].sum() for table in (one, other)]
    if one.empty or other.empty or min(cells) < LEAST_CELLS:
        return row | {"verdict": "too few cells to say"}
    slow, usual = _draws(one, 0), _draws(other, 1)
    least = np.quantile(usual, 0.025)
    row["positions_slowed"] = int((one["high"] < least).sum())
    if least <= 0:
        return row | {"verdict": f"cannot say: the reference {reference['experiment'].iloc[0]} does not surely grow"}
    row["ratio"] = row["growth_per_hour"] / row["reference_growth_per_hour"]
    row["low"], row["high"] = np.quantile(slow / usual, (0.025, 0.975))
    return row | {"verdict": _verdict(row["low"], row["high"])}


def _verdict(low: float, high: float) -> str:
    if high < STOPPED_BELOW:
        return "stopped"
    if high < 1:
        return "slowed"
    return "grows" if low >= 0.5 else "cannot say: the interval is too wide, more positions are needed"


def _draws(positions: pd.DataFrame, seed: int, count: int = 20_000) -> np.ndarray:
    """Plausible mean growth rates of an experiment: t distribution over its positions."""
    n, rng = len(positions), np.random.default_rng(seed)
    within = ((positions["high"] - positions["low"]) / (2 * stats.norm.ppf(0.975))).to_numpy()
    if n == 1:
        return positions["growth_per_hour"].iloc[0] + within[0] * rng.standard_normal(count)
    error = max(positions["growth_per_hour"].std(ddof=1), np.sqrt((within ** 2).mean())) / np.sqrt(n)
    return positions["growth_per_hour"].mean() + error * rng.standard_t(n - 1, count)
