"""From cells to growth: area over time, growth rates, and treated experiments against their reference."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ..data.dataset import Dataset, Frame, frames_of, of_experiment
from ..errors import SegkitError
from ..files import read_table, write_table
from ..settings import Settings

MIN_FRAMES, MIN_CELLS = 4, 3  # frames with cells in a phase, and cells in its average frame, for a rate or a verdict
STOPPED_BELOW = 0.25  # share of the reference's growth rate: the whole interval below it is called stopped
GROWS_ABOVE = 0.5  # share of the reference's growth rate: an interval that begins below it is too wide for "grows"
NO_GROWTH = "the reference does not surely grow"
ALPHA = 0.025  # error on one side of an interval or test
MAX_EMPTY = 0.25  # share of frames that lost their cells beyond which a phase has no rate (the slope breaks at 0.29)
SUDDEN = 5  # frames before and after one in which a loss of area counts as sudden
LOST, MOST = 0.2, 0.5  # share of the area that vanishes suddenly: more cannot be read as growth; and more is death
MAX_LOST = 0.2  # share of positions that began with cells and have no rate, beyond which nothing is said
RATIOS = np.linspace(-4, 6, 4001)  # at which the ratio's interval is looked for
GROWTH_COLUMNS = ("experiment", "position", "phase", "frames", "empty_frames", "start_cells", "died_out", "lost_share",
                  "mean_cells", "growth_per_hour", "standard_error", "low", "high", "doubling_minutes",
                  "doubling_low", "doubling_high")
COMPARISON_COLUMNS = ("experiment", "reference", "phase", "positions", "reference_positions", "positions_died_out",
                      "positions_slowed", "growth_per_hour", "reference_growth_per_hour", "ratio", "low", "high",
                      "verdict", "reason")


def areas_over_time(cells: pd.DataFrame | str | Path, frames: Dataset | Iterable[Frame] = ()) -> pd.DataFrame:
    """Total cell area of every frame.

    Parameters
    ----------
    cells : a row per cell, or the path of a run's cells.csv.
    frames : all frames that were segmented, so that those without any cell count too; left out, only frames with
        cells are known.

    Returns
    -------
    One row per frame: experiment, position, frame, since_start (frames since the position's first named image file),
    cells, area_px.

    Raises
    ------
    SegkitError where a column is missing, or cells belong to no frame's experiment.
    """
    cells = read_table(cells) if isinstance(cells, str | Path) else cells
    needed = ["experiment", "position", "frame", "area_px"]
    check_columns("cells", cells, needed, "cells.csv of a run")
    key = needed[:3]
    counted = cells[needed].assign(cells=1).groupby(key, as_index=False).sum()
    frames = frames_of(frames)
    seen = pd.DataFrame([(*f.unit, f.frame) for f in frames], columns=key).drop_duplicates()
    if strange := set() if seen.empty else set(counted["experiment"]) - set(seen["experiment"]):
        raise SegkitError(f"cells of experiment {strange.pop()}, and no frame belongs to it: give the frames that were "
                          "segmented, and read names as text (dtype={'experiment': str, 'position': str})")
    table = counted if seen.empty else seen.merge(counted, how="outer", on=key)
    table = table.astype({"cells": float, "area_px": float}).fillna({"cells": 0, "area_px": 0})
    table = table.sort_values(key, ignore_index=True)
    # time counts from the first named file, also where that file is damaged and so is no frame
    first = {f.unit: f.first for f in frames if f.first is not None}
    named = pd.Series([first.get(unit, np.inf) for unit in zip(table["experiment"], table["position"], strict=True)],
                      dtype=float)
    start = np.minimum(table.groupby(key[:2])["frame"].transform("min"), named)
    return table.assign(since_start=(table["frame"] - start).astype(int), cells=table["cells"].astype(int))[
        [*key, "since_start", "cells", "area_px"]]


def check_columns(name: str, table: Any, needed: Iterable[str], example: str) -> None:
    """Raise SegkitError unless `table` is a DataFrame that has the columns needed."""
    if not isinstance(table, pd.DataFrame):
        raise SegkitError(f"{name} is a {type(table).__name__}: a pandas.DataFrame, {example}, was needed")
    if missing := [column for column in needed if column not in table.columns]:
        raise SegkitError(f"the table {name} has no column {', '.join(missing)}: {example} was needed")


def growth_rates(cells: pd.DataFrame | str | Path, frames: Dataset | Iterable[Frame] = (), *,
                 minutes_per_frame: float | Mapping[str, float] = 2.0,
                 drug_frame: int | Mapping[str, int | None] | None = 30) -> pd.DataFrame:
    """Exponential growth of every position's total cell area: over all frames, before and after the drug.

    Parameters
    ----------
    cells, frames : see `areas_over_time`. Without frames, cells that died out cannot be told from a film that ended.
    minutes_per_frame : time between frames, one for all or by experiment.
    drug_frame : first frame with drug, counted from the position's first; None or below 0 without drug; one for all or
        by experiment.

    Returns
    -------
    GROWTH_COLUMNS, a row per position and phase (all, before, after; only all without drug). growth_per_hour: slope of
    the log area against time, with its standard error and 95 % interval (low, high), and the doubling time; empty
    where fewer than MIN_FRAMES frames hold cells, the position died out, or over a quarter of the frames lost their
    cells. start_cells: cells when the phase began. died_out: the phase began with cells and its last frames hold none
    (a tenth of the phase, at least 3 frames); empty where that is not known. lost_share: the largest share of the area
    that vanished within a few frames.

    Raises
    ------
    SegkitError for a table without the columns needed, an interval that is not above 0, or a mapping that lacks an
    experiment.

    Notes
    -----
    The slope is Theil and Sen's (Sen 1968, doi 10.1080/01621459.1968.10480934), the median over all pairs of frames, so
    that a bad frame does not move it. Its standard error is that of least squares, widened by the lag-1 correlation of
    the residuals, whose bias over few frames is corrected (simulated in benchmarks/verdicts.py).
    """
    frames = frames_of(frames)  # once: they may come from a generator
    areas = areas_over_time(cells, frames)
    last = areas["since_start"].max()
    rows = []
    for (experiment, position), line in areas.groupby(["experiment", "position"]):
        minutes, drug = of_experiment(minutes_per_frame, experiment), of_experiment(drug_frame, experiment)
        if not (isinstance(minutes, int | float | np.number) and minutes > 0):
            raise SegkitError(f"minutes_per_frame is {minutes!r}: a number above 0 was needed")
        if not (drug is None or (isinstance(drug, int | float | np.number) and drug == drug)):
            raise SegkitError(f"drug_frame is {drug!r}: a frame number, or None without drug, was needed")
        phases = {"all": line}
        if drug is not None and drug >= 0:
            with_drug = line["since_start"] >= drug
            phases |= {"before": line[~with_drug], "after": line[with_drug]}
        for phase, part in phases.items():
            start, empty = _start_cells(line, part), int((part["cells"] == 0).sum())
            died: bool | None = start > 0 and len(part) >= _end_frames(part) and bool(
                (part["cells"].iloc[-_end_frames(part):] == 0).all())
            if not frames and last - line["since_start"].max() >= _end_frames(line):
                died = None  # cells end before those of other positions: all dead, or a shorter film
            alive, gone = part[part["area_px"] > 0], (part["cells"] == 0) & ((part["cells"].cumsum() > 0) | (start > 0))
            if died or gone.sum() > MAX_EMPTY * len(part):  # a slope through the few frames left would hide the loss
                alive = alive[:0]
            rows.append({"experiment": experiment, "position": position, "phase": phase, "frames": len(part),
                         "empty_frames": empty, "start_cells": start, "died_out": died,
                         "lost_share": _lost_share(line, part), "mean_cells": part["cells"].mean(),
                         **_slope(alive, float(minutes))})
    return pd.DataFrame(rows, columns=list(GROWTH_COLUMNS))


def _end_frames(part: pd.DataFrame) -> int:
    """How many frames at the end of a phase must be empty for its cells to have died out."""
    return max(3, len(part) // 10)


def _start_cells(line: pd.DataFrame, part: pd.DataFrame) -> int:
    """How many cells a position (line) has when a phase of it (part) begins: in the frames just before, or the first.

    The median: specks in a single frame are no cells that could die.
    """
    first, n = part["since_start"].min(), _end_frames(part)
    before = line[line["since_start"].between(first - n, first - 1)]
    return int((before if len(before) else part[:n])["cells"].median()) if len(part) else 0


def _lost_share(line: pd.DataFrame, part: pd.DataFrame) -> float:
    """The largest share of its area that a position (line) loses suddenly in a phase (part), cells that die at once.

    Medians over the SUDDEN frames before and after each frame are compared, so that a bad frame or two change nothing.
    A slope that a few frames cannot move (Theil and Sen's) does not see such a step.
    """
    area, at = line["area_px"].to_numpy(), np.flatnonzero(line.index.isin(part.index))
    shares = [1 - np.median(area[i:i + SUDDEN]) / before for i in at
              if len(area[i:i + SUDDEN]) >= 3 and i >= 3 and (before := np.median(area[max(0, i - SUDDEN):i])) > 0]
    return max(0.0, *shares) if shares else 0.0


def _slope(line: pd.DataFrame, minutes: float) -> dict[str, float]:
    """Growth per hour with its standard error and interval, and the doubling time, of frames that hold cells."""
    names = ("growth_per_hour", "standard_error", "low", "high", "doubling_minutes", "doubling_low", "doubling_high")
    if len(line) < MIN_FRAMES:
        return dict.fromkeys(names, np.nan)
    rate, error, freedom = slope_with_error(line["since_start"].to_numpy() * minutes / 60,
                                            np.log(line["area_px"].to_numpy(float)))
    half = error * stats.t.ppf(0.975, freedom)
    doubling = [60 * np.log(2) / r if r > 0 else np.inf for r in (rate, rate + half, rate - half)]
    return dict(zip(names, (rate, error, rate - half, rate + half, *doubling), strict=True))


def slope_with_error(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Theil and Sen's slope of y against x, (n,) each; its standard error and degrees of freedom.

    Errors of neighbouring frames are correlated: n frames are worth n (1 - r) / (1 + r) independent ones, where r is
    the residuals' lag-1 correlation, corrected for its bias and limited so that at least three remain.
    """
    n, slope = len(x), float(stats.theilslopes(y, x).slope)
    residuals = y - slope * x
    residuals = residuals - residuals.mean()
    squares = float((residuals ** 2).sum())
    lag1 = float((residuals[1:] * residuals[:-1]).sum()) / squares if squares else 0.0
    r = float(np.clip((n * lag1 + 2) / max(n - 4, 1), 0, min(0.9, (n - 3) / (n + 3))))
    inflation = (1 + r) / (1 - r)
    variance = squares / max(n - 2 * inflation, 1)
    error = float(np.sqrt(variance * inflation / ((x - x.mean()) ** 2).sum()))
    return slope, error, max(n / inflation - 2, 1)


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

    Parameters
    ----------
    growth : from `growth_rates`.
    reference : name of the experiment without drug (see `find_reference`), one for all or by experiment.

    Returns
    -------
    COMPARISON_COLUMNS, a row per treated experiment: mean growth over positions, the ratio of the two means with its
    95 % interval (low, high), how many treated positions died out and how many are slower than the reference, and a
    verdict with its reason in words. The verdict is one of

    - dying: positions that began with cells end without any;
    - stopped: the whole interval lies below a quarter of the reference's growth;
    - slowed: the whole interval lies below the reference's growth;
    - grows: neither, and the interval begins above half of the reference's growth;
    - cannot say.

    Notes
    -----
    The interval is Fieller's, with the relative spread between positions pooled over both experiments
    (`ratio_interval`); error rates of the verdicts are simulated in benchmarks/verdicts.py.
    """
    check_columns("growth", growth, GROWTH_COLUMNS, "what segkit.growth_rates returns")
    names = growth["experiment"].unique()
    rows = []
    for experiment in names:
        chosen = find_reference(experiment, names, of_experiment(reference, experiment))
        if chosen:
            rows.append({"experiment": experiment, "reference": chosen, **_compare(
                growth[growth["experiment"] == experiment], growth[growth["experiment"] == chosen])})
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def _compare(treated: pd.DataFrame, reference: pd.DataFrame) -> dict[str, Any]:
    """The row of one treated experiment, without the names."""
    phase = "after" if (treated["phase"] == "after").any() else "all"
    one = treated[treated["phase"] == phase]
    # a reference that got no drug grows alike all the time
    other = reference[reference["phase"] == (phase if (reference["phase"] == phase).any() else "all")]
    y, x = (table[table["growth_per_hour"].notna()] for table in (one, other))
    died = int(one["died_out"].eq(True).sum())
    row: dict[str, Any] = {
        "phase": phase, "positions": len(y) + died,
        "reference_positions": len(x) + int(other["died_out"].eq(True).sum()),
        "positions_died_out": died, "positions_slowed": _count_slower(y["growth_per_hour"], x["growth_per_hour"]),
        "growth_per_hour": y["growth_per_hour"].mean(), "reference_growth_per_hour": x["growth_per_hour"].mean(),
        "ratio": np.nan, "low": np.nan, "high": np.nan, "verdict": "cannot say"}
    if reason := _no_death_known(one, other):
        return row | {"reason": reason}
    if died:  # before any rate is looked at: what died no longer has one
        others = f"; {int((y['low'] > 0).sum())} of the {len(y)} others surely grow" if len(y) else ""
        return row | {"verdict": "dying", "reason": f"{died} of {row['positions']} positions died out{others}"}
    if reason := _no_rates(y, x) or _lost(one):
        return row | {"reason": reason}
    sudden, usual = (table["lost_share"] > LOST for table in (y, x))
    if sudden.mean() > MAX_LOST:  # the survivors' growth would hide it
        lost = y["lost_share"].median()
        why = f"at least {LOST:.0%} of the area vanished within a few frames in {sudden.sum()} of {len(y)} positions"
        if lost > MOST and not usual.mean() > MAX_LOST:
            return row | {"verdict": "dying", "reason": f"{why}, {lost:.0%} in the middle one"}
        return row | {"reason": why}
    row["ratio"] = row["growth_per_hour"] / row["reference_growth_per_hour"]
    row["low"], row["high"] = _interval_of(y, x)
    row["verdict"], reason = _verdict(row["low"], row["high"])
    unrated = "".join(f"; {len(table) - len(rated)} of {len(table)} {whose}positions have no rate"
                      for table, rated, whose in ((one, y, ""), (other, x, "reference ")) if len(rated) < len(table))
    return row | {"reason": reason + unrated + _slower_before(treated, reference, phase)}


def _slower_before(treated: pd.DataFrame, reference: pd.DataFrame, phase: str) -> str:
    """That the treated positions grew less before the drug, too; an empty text where they did not."""
    y, x = (table[(table["phase"] == "before") & table["growth_per_hour"].notna()] for table in (treated, reference))
    if phase != "after" or len(y) + len(x) < 3 or not len(y) or not x["growth_per_hour"].mean() > 0:
        return ""
    return "; but they grew less before the drug, too" if _interval_of(y, x)[1] < 1 else ""


def _interval_of(y: pd.DataFrame, x: pd.DataFrame) -> tuple[float, float]:
    """`ratio_interval` of treated (y) and reference rows (x) of a growth table."""
    return ratio_interval(*(t[c].to_numpy() for t in (x, y) for c in ("growth_per_hour", "standard_error")))


def _no_death_known(one: pd.DataFrame, other: pd.DataFrame) -> str:
    """Why nothing can be said of death in treated (one) and reference positions (other), or an empty text."""
    for table, remedy in ((one, ""), (other, ", or -1 where it got no drug")):
        if len(table) and not table["frames"].any():
            return (f"DRUG_FRAME lies beyond the last frame of {table['experiment'].iloc[0]}: give the first frame "
                    f"with drug{remedy}")
    if one["died_out"].isna().any() or other["died_out"].isna().any():
        return "cells of some positions end before those of others: give frames=, which tells death from a shorter film"
    held = [table[table["start_cells"] > 0]["died_out"] for table in (one, other)]
    dead, alive = ([int((died == value).sum()) for died in held] for value in (True, False))
    if dead[1] and not alive[1]:
        return f"all {dead[1]} reference positions died out"
    if all(dead) and stats.fisher_exact([dead, alive], "greater").pvalue > ALPHA:
        return f"{dead[1]} of {dead[1] + alive[1]} reference positions died out too"
    if dead[0] and one.loc[one["died_out"].eq(True), "start_cells"].sum() < MIN_CELLS:
        return f"fewer than {MIN_CELLS} cells were there to die"
    return ""


def _no_rates(y: pd.DataFrame, x: pd.DataFrame) -> str:
    """Why the growth of treated (y) and reference positions (x) cannot be compared, or an empty text."""
    for table, whose in ((y, "treated"), (x, "reference")):
        if table.empty or table["mean_cells"].sum() < MIN_CELLS:
            return f"too few cells: the {whose} positions have {table['mean_cells'].sum():.1f} in an average frame"
    if not x["growth_per_hour"].mean() > 0:
        return NO_GROWTH
    if len(y) + len(x) < 3:
        return "one position a side: the spread between positions is not known, more positions are needed"
    return ""


def _lost(one: pd.DataFrame) -> str:
    """Why the rates that there are do not speak for all treated positions, or an empty text."""
    began = one[one["start_cells"] > 0]
    lost = int(began["growth_per_hour"].isna().sum())
    if lost <= MAX_LOST * len(began):
        return ""
    return f"{lost} of {len(began)} positions that began with cells have no rate: too few of their frames hold cells"


def _count_slower(y: pd.Series, x: pd.Series) -> int:
    """How many treated rates y lie below where all of them lie in 97.5 % without an effect (reference rates x)."""
    if len(x) < 2 or y.empty:
        return 0
    limit = stats.t.ppf(1 - ALPHA / len(y), len(x) - 1) * x.std(ddof=1) * np.sqrt(1 + 1 / len(x))
    return int((y < x.mean() - limit).sum())


def ratio_interval(x: np.ndarray, x_error: np.ndarray, y: np.ndarray, y_error: np.ndarray) -> tuple[float, float]:
    """95 % interval of mean(y) / mean(x), with the relative spread between positions pooled over both.

    Parameters
    ----------
    x, y : growth rates of the reference's and the treated positions, (n,) and (m,); n + m at least 3, mean(x) above 0.
    x_error, y_error : their standard errors within the position.

    Returns
    -------
    low and high; infinite where the reference does not surely grow.

    Notes
    -----
    Fieller's method (Fieller 1954, J R Stat Soc B 16:175): a ratio q is inside where mean(y) - q mean(x) does not
    differ from 0 by a t test with n + m - 2 degrees of freedom. A position's variance is that within it plus, relative
    to its mean rate, one spread tau that both arms share; so a single position on one side borrows the other's spread,
    and a full stop has none.
    Where treated positions surely differ more from each other than that (F test at 5 %), each arm has its own variance
    (Welch 1947, doi 10.1093/biomet/34.1-2.28).
    """
    (n, m), (wx, wy) = (len(x), len(y)), (np.mean(x_error ** 2), np.mean(y_error ** 2))
    ssx, ssy = ((v - v.mean()) @ (v - v.mean()) for v in (x, y))
    ratio = float(y.mean() / x.mean())
    q = RATIOS * max(1.0, abs(ratio))
    # the variance of mean(y) - q mean(x) at every q, and its degrees of freedom
    excess = ssx - (n - 1) * wx + ssy - (m - 1) * wy
    tau2 = np.maximum(0, excess / np.maximum(n - 1 + (m - 1) * q ** 2, 1e-9))
    vx, vy = np.maximum(tau2 + wx, 1e-12), np.maximum(q ** 2 * tau2 + wy, 1e-12)
    variance = (ssx / vx + ssy / vy) / (n + m - 2) * (vy / m + q ** 2 * vx / n)
    freedom = np.full_like(q, n + m - 2)
    if min(n, m) > 1 and _spreads_more(ratio, ssx / (n - 1), wx, ssy / (m - 1), wy, n, m):
        own_x, own_y = q ** 2 * max(ssx / (n - 1), wx) / n, max(ssy / (m - 1), wy) / m
        variance = own_x + own_y
        freedom = variance ** 2 / (own_x ** 2 / (n - 1) + own_y ** 2 / (m - 1))
    limit = stats.t.ppf(1 - ALPHA, freedom) ** 2 * variance
    inside = q[(y.mean() - q * x.mean()) ** 2 <= limit]
    if len(inside) == 0:  # narrower than a step between the ratios
        return ratio, ratio
    low, high = float(inside[0]), float(inside[-1])
    return (-np.inf if low == q[0] else low), (np.inf if high == q[-1] else high)


def _spreads_more(ratio: float, x_variance: float, wx: float, y_variance: float, wy: float, n: int, m: int) -> bool:
    """Whether treated positions differ more from each other than the reference's relative spread explains."""
    expected = ratio ** 2 * max(x_variance - wx, 0) + wy
    return bool(y_variance > stats.f.ppf(0.95, m - 1, n - 1) * expected)


def _verdict(low: float, high: float) -> tuple[str, str]:
    """What the ratio's interval says, and why."""
    if not np.isfinite(low) or not np.isfinite(high):
        return "cannot say", NO_GROWTH
    if high < STOPPED_BELOW:
        return "stopped", ("the whole interval lies below a quarter of the reference's growth"
                           + (", and the area shrinks" if high < 0 else ""))
    if high < 1:
        return "slowed", "the whole interval lies below the reference's growth"
    if low < GROWS_ABOVE:
        return "cannot say", "the interval is too wide: more positions are needed"
    return "grows", "no slowing is seen, and the whole interval lies above half of the reference's growth"
