"""From cells to growth: area over time, growth rates, and treated experiments against their reference."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy

from ..data.dataset import Dataset, Frame, frames_of, of_experiment
from ..errors import SegkitError
from ..files import read_table, write_table
from ..settings import Settings

MIN_FRAMES, MIN_CELLS = 4, 3  # frames with cells in a phase, and cells in its average frame, for a rate or a verdict
STOPPED_BELOW = 0.25  # share of the reference's growth rate: the whole interval below it is called stopped
GROWS_ABOVE = 0.5  # share of the reference's growth rate: an interval that begins below it is too wide for "grows"
NO_GROWTH = "the reference does not grow significantly"
ALPHA = 0.025  # error on one side of an interval or test
MAX_EMPTY = 0.25  # share of frames that lost their cells beyond which a phase has no rate (the slope breaks at 0.29)
SUDDEN = 5  # frames before and after one in which a loss of area counts as sudden
LOST, MOST = 0.2, 0.5  # share of the area that vanishes suddenly: more cannot be read as growth; and more is death
MAX_LOST = 0.2  # share of positions that began with cells and have no rate, beyond which there is no verdict
RATIOS = np.linspace(-4, 6, 4001)  # candidates for the ends of the ratio's interval
GROWTH_COLUMNS = ("experiment", "position", "phase", "frames", "empty_frames", "start_cells", "died_out", "lost_share",
                  "mean_cells", "growth_per_hour", "standard_error", "low", "high", "doubling_minutes",
                  "doubling_low", "doubling_high")
COMPARISON_COLUMNS = ("experiment", "reference", "phase", "positions", "reference_positions", "positions_died_out",
                      "positions_slowed", "growth_per_hour", "reference_growth_per_hour", "ratio", "low", "high",
                      "verdict", "reason")


def areas_over_time(cells: pd.DataFrame | str | Path, frames: Dataset | Iterable[Frame] = ()) -> pd.DataFrame:
    """Total cell area (px) and number of cells in every frame, a row each; cells: a row per cell, or their CSV file.

    frames: all that were segmented, so that those without any cell count too. since_start: frames since the
    position's first image file. Raises SegkitError where a column is missing, or cells belong to no frame's experiment.
    """
    cells = read_table(cells) if isinstance(cells, str | Path) else cells
    key = ["experiment", "position", "frame"]
    check_columns("cells", cells, [*key, "area_px"], "cells.csv of a run")
    table = cells[[*key, "area_px"]].assign(cells=1).groupby(key, as_index=False).sum()

    # frames without any cell have area 0
    frames = frames_of(frames)
    seen = table[key].assign(first=np.nan)
    if frames:
        seen = pd.DataFrame([(*f.unit, f.frame, f.first) for f in frames], columns=[*key, "first"]).drop_duplicates(key)
    if strange := set(table["experiment"]) - set(seen["experiment"]):
        raise SegkitError(f"cells of experiment {strange.pop()}, and no frame belongs to it: give the frames that were "
                          "segmented, and read names as text (dtype={'experiment': str, 'position': str})")
    table = seen.merge(table, how="outer", on=key).sort_values(key, ignore_index=True)
    table = table.astype(dict.fromkeys(("first", "cells", "area_px"), float)).fillna({"cells": 0, "area_px": 0})

    # time counts from the first image file, even if that file is damaged and so is no frame
    start = table.groupby(key[:2])[["frame", "first"]].transform("min").min(axis=1)
    table["since_start"] = (table["frame"] - start).astype(int)
    return table[[*key, "since_start", "cells", "area_px"]].astype({"cells": int})


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
    cells, frames
        See `areas_over_time`. Without frames, cells that died out cannot be told from a time-lapse that ended.
    minutes_per_frame : float or mapping
        Time between frames, one for all or by experiment.
    drug_frame : int, None or mapping
        First frame with drug, counted from the position's first; None or below 0 without drug; or by experiment.

    Returns
    -------
    DataFrame
        GROWTH_COLUMNS, a row per position and phase (all, before, after). growth_per_hour is the slope of the log area
        against time. It is empty with fewer than MIN_FRAMES frames with cells, after dying out, or if over a quarter
        of the frames lost their cells. died_out: the last tenth of the frames (at least 3) hold no cells, and there
        were some (start_cells) when the phase began. lost_share: the largest share of the area that vanished suddenly.

    Raises
    ------
    SegkitError
        If a column is missing, a time is not above 0, or a mapping lacks an experiment.

    Notes
    -----
    Theil-Sen slope (Sen 1968, doi 10.1080/01621459.1968.10480934), robust to bad frames; see `slope_with_error`.
    """
    frames = frames_of(frames)  # once: they may come from a generator
    areas = areas_over_time(cells, frames)
    last = areas["since_start"].max()
    rows = []
    for (experiment, position), line in areas.groupby(["experiment", "position"]):
        minutes, drug = of_experiment(minutes_per_frame, experiment), of_experiment(drug_frame, experiment)
        # cells that end before those of other positions: all dead or, without frames, a shorter time-lapse
        end_known = bool(frames) or last - line["since_start"].max() < _end_frames(line)
        for phase, part in _phases(line, minutes, drug).items():
            rows.append({"experiment": experiment, "position": position, "phase": phase,
                         **_measure_phase(line, part, float(minutes), end_known)})
    return pd.DataFrame(rows, columns=list(GROWTH_COLUMNS))


def _phases(line: pd.DataFrame, minutes: Any, drug: Any) -> dict[str, pd.DataFrame]:
    """A position's frames by phase. Raises SegkitError for times that are no numbers."""
    if not (isinstance(minutes, int | float | np.number) and minutes > 0):
        raise SegkitError(f"minutes_per_frame is {minutes!r}: a number above 0 was needed")
    if not (drug is None or (isinstance(drug, int | float | np.number) and not np.isnan(drug))):
        raise SegkitError(f"drug_frame is {drug!r}: a frame number, or None without drug, was needed")
    if drug is None or drug < 0:
        return {"all": line}
    with_drug = line["since_start"] >= drug
    return {"all": line, "before": line[~with_drug], "after": line[with_drug]}


def _measure_phase(line: pd.DataFrame, part: pd.DataFrame, minutes: float, end_known: bool) -> dict[str, Any]:
    """Death and growth of a position (line) in one phase (part): GROWTH_COLUMNS from frames on."""
    start, end = _start_cells(line, part), _end_frames(part)
    empty = part["cells"] == 0
    died = start > 0 and len(part) >= end and bool(empty[-end:].all()) if end_known else None

    # a slope through the few frames left would hide that the others lost their cells
    lost = empty & ((part["cells"].cumsum() > 0) | (start > 0))
    rated = not died and lost.sum() <= MAX_EMPTY * len(part)
    growth = _slope(part[part["area_px"] > 0] if rated else part[:0], minutes)
    return {"frames": len(part), "empty_frames": int(empty.sum()), "start_cells": start, "died_out": died,
            "lost_share": _lost_share(line, part), "mean_cells": part["cells"].mean(), **growth}


def _end_frames(part: pd.DataFrame) -> int:
    """How many frames at the end of a phase must be empty for its cells to have died out."""
    return max(3, len(part) // 10)


def _start_cells(line: pd.DataFrame, part: pd.DataFrame) -> int:
    """How many cells a position (line) has when a phase (part) begins: in the frames just before, else the first ones.

    The median: specks in a single frame are no cells that could die.
    """
    if part.empty:
        return 0
    first, n = part["since_start"].min(), _end_frames(part)
    before = line[line["since_start"].between(first - n, first - 1)]
    return int((before if len(before) else part[:n])["cells"].median())


def _lost_share(line: pd.DataFrame, part: pd.DataFrame) -> float:
    """The largest share of its area that a position (line) loses suddenly in a phase (part).

    Cells that die at once make such a step, which a robust slope does not show. Medians over the SUDDEN frames before
    and after each frame are compared, so that a bad frame or two change nothing.
    """
    area = line["area_px"]
    earlier = area.rolling(SUDDEN, min_periods=3).median().shift()
    later = area[::-1].rolling(SUDDEN, min_periods=3).median()[::-1]  # this frame and the next ones
    lost = (1 - later / earlier)[earlier > 0].reindex(part.index)
    return float(np.nanmax([0.0, *lost]))


def _slope(line: pd.DataFrame, minutes: float) -> dict[str, float]:
    """Growth per hour with standard error and 95 % interval, and the doubling time, of frames that hold cells."""
    if len(line) < MIN_FRAMES:
        return {}
    hours, log_area = line["since_start"].to_numpy() * minutes / 60, np.log(line["area_px"].to_numpy(float))
    rate, error, freedom = slope_with_error(hours, log_area)
    half = error * scipy.stats.t.ppf(1 - ALPHA, freedom)
    doubling = [60 * np.log(2) / r if r > 0 else np.inf for r in (rate, rate + half, rate - half)]
    return dict(zip(GROWTH_COLUMNS[-7:], (rate, error, rate - half, rate + half, *doubling), strict=True))


def slope_with_error(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Theil-Sen slope of y against x, (n,) each; its standard error and degrees of freedom.

    The standard error is that of least squares, widened for correlated errors of neighbouring frames: n frames are
    worth n (1 - r) / (1 + r) independent ones. r is the residuals' lag-1 correlation, corrected for its bias over few
    frames and limited so that at least three remain (simulated in benchmarks/verdicts.py).
    """
    n, slope = len(x), float(scipy.stats.theilslopes(y, x).slope)
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
    """`growth_rates` and `compare_growth` with each experiment's settings; writes growth.csv and comparison.csv.

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
    pattern = re.compile(rf"(.*_)?{re.escape(reference)}(\d+_\d+)?")  # HR_REF; REF101_110 of REF_raw_data101_110
    named = [e for e in sorted(experiments) if reference and pattern.fullmatch(e)]
    if experiment in named:
        return None
    alike = {name: len(os.path.commonprefix([name, experiment])) for name in named}  # noqa: RUF071  (letters)
    return max(named, key=lambda name: (alike[name], name == reference), default=None)


def compare_growth(growth: pd.DataFrame, reference: str | Mapping[str, str] = "REF") -> pd.DataFrame:
    """Each treated experiment's growth against its reference's, after the drug (over all frames without a drug).

    Parameters
    ----------
    growth : DataFrame
        From `growth_rates`.
    reference : str or mapping
        Name of the experiment without drug (see `find_reference`), one for all or by experiment.

    Returns
    -------
    DataFrame
        COMPARISON_COLUMNS, a row per treated experiment: mean growth over positions, the ratio of the two means with
        its 95 % interval (low, high), how many treated positions died out and how many are slower than the reference,
        and a verdict with its reason in words. The verdict is one of

        - dying: positions that began with cells end without any;
        - stopped: the whole interval lies below a quarter of the reference's growth;
        - slowed: the whole interval lies below the reference's growth;
        - grows: neither, and the interval begins above half of the reference's growth;
        - cannot say.

    Raises
    ------
    SegkitError
        If `growth` is no such table, or a mapping lacks an experiment.

    Notes
    -----
    The interval is Fieller's, with the relative spread between positions pooled over both experiments
    (`ratio_interval`); error rates of the verdicts are simulated in benchmarks/verdicts.py.
    """
    check_columns("growth", growth, GROWTH_COLUMNS, "what segkit.growth_rates returns")
    names = growth["experiment"].unique()
    rows = []
    for experiment in names:  # a reference has no row of its own
        chosen = find_reference(experiment, names, of_experiment(reference, experiment))
        if chosen:
            treated, untreated = (growth[growth["experiment"] == name] for name in (experiment, chosen))
            rows.append({"experiment": experiment, "reference": chosen, **_compare(treated, untreated)})
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def _compare(treated: pd.DataFrame, reference: pd.DataFrame) -> dict[str, Any]:
    """The row of one treated experiment, without the names."""
    phase = "after" if (treated["phase"] == "after").any() else "all"
    one = treated[treated["phase"] == phase]
    # a reference without drug grows the same all the time
    other = reference[reference["phase"] == (phase if (reference["phase"] == phase).any() else "all")]
    y, x = (table.dropna(subset="growth_per_hour") for table in (one, other))
    died = int(one["died_out"].eq(True).sum())
    row: dict[str, Any] = {
        "phase": phase, "positions": len(y) + died, "positions_died_out": died, "verdict": "cannot say",
        "positions_slowed": _count_slower(y["growth_per_hour"], x["growth_per_hour"]),
        "reference_positions": len(x) + int(other["died_out"].eq(True).sum()),
        "growth_per_hour": y["growth_per_hour"].mean(), "reference_growth_per_hour": x["growth_per_hour"].mean()}

    # death comes first: positions that died out have no rate
    if reason := _death_unknown(one, other):
        return row | {"reason": reason}
    if died:
        growing = f"; {int((y['low'] > 0).sum())} of the {len(y)} others grow significantly" if len(y) else ""
        return row | {"verdict": "dying", "reason": f"{died} of {row['positions']} positions died out{growing}"}
    if reason := _no_rates(y, x, one):
        return row | {"reason": reason}
    # the survivors' growth would hide a sudden loss
    if loss := _sudden_loss(y["lost_share"], x["lost_share"]):
        return row | loss

    # only now the rates speak for all positions
    row["ratio"] = row["growth_per_hour"] / row["reference_growth_per_hour"]
    row["low"], row["high"] = ratio_interval(x, y)
    row["verdict"], reason = _verdict(row["low"], row["high"])
    for table, rated, whose in ((one, y, ""), (other, x, "reference ")):
        if len(rated) < len(table):
            reason += f"; {len(table) - len(rated)} of {len(table)} {whose}positions have no rate"
    return row | {"reason": reason + _slower_before(treated, reference)}


def _slower_before(treated: pd.DataFrame, reference: pd.DataFrame) -> str:
    """That the treated positions grew less before the drug, too; an empty text where they did not."""
    y, x = (table[table["phase"] == "before"].dropna(subset="growth_per_hour") for table in (treated, reference))
    known = len(y) and len(y) + len(x) > 2 and x["growth_per_hour"].mean() > 0
    return "; but they grew less before the drug, too" if known and ratio_interval(x, y)[1] < 1 else ""


def _death_unknown(one: pd.DataFrame, other: pd.DataFrame) -> str:
    """Why deaths in treated (one) and reference positions (other) cannot be compared, or an empty text."""
    for table, remedy in ((one, ""), (other, ", or -1 where it got no drug")):
        if len(table) and not table["frames"].any():
            return (f"DRUG_FRAME lies beyond the last frame of {table['experiment'].iloc[0]}: give the first frame "
                    f"with drug{remedy}")
    if one["died_out"].isna().any() or other["died_out"].isna().any():
        return ("cells of some positions end before those of others: give frames=, which tells death from a shorter "
                "time-lapse")

    # of the positions that began with cells, in both arms
    died = [table.loc[table["start_cells"] > 0, "died_out"].astype(bool) for table in (one, other)]
    dead, alive = [int(arm.sum()) for arm in died], [int((~arm).sum()) for arm in died]
    if dead[1] and not alive[1]:
        return f"all {dead[1]} reference positions died out"
    if all(dead) and scipy.stats.fisher_exact([dead, alive], "greater").pvalue > ALPHA:
        return f"{dead[1]} of {dead[1] + alive[1]} reference positions died out too"
    if dead[0] and one.loc[one["died_out"].eq(True), "start_cells"].sum() < MIN_CELLS:
        return f"fewer than {MIN_CELLS} cells were there to die"
    return ""


def _no_rates(y: pd.DataFrame, x: pd.DataFrame, one: pd.DataFrame) -> str:
    """Why the rates of treated (y of one) and reference positions (x) cannot be compared, or an empty text."""
    for table, whose in ((y, "treated"), (x, "reference")):
        if table["mean_cells"].sum() < MIN_CELLS:
            return f"too few cells: the {whose} positions have {table['mean_cells'].sum():.1f} in an average frame"
    if not x["growth_per_hour"].mean() > 0:
        return NO_GROWTH
    if len(y) + len(x) < 3:
        return "one position a side: the spread between positions is not known, more positions are needed"
    began = one[one["start_cells"] > 0]
    lost = int(began["growth_per_hour"].isna().sum())
    if lost > MAX_LOST * len(began):
        return f"{lost} of {len(began)} positions that began with cells have no rate: too few frames hold cells"
    return ""


def _sudden_loss(treated: pd.Series, reference: pd.Series) -> dict[str, str]:
    """Verdict and reason where many treated positions lost much of their area suddenly (lost_share), else nothing.

    It is death unless the reference, without drug, loses area in the same way.
    """
    lost, usual = treated > LOST, reference > LOST
    if lost.mean() <= MAX_LOST:
        return {}
    reason = f"at least {LOST:.0%} of the area vanished within a few frames in {lost.sum()} of {len(lost)} positions"
    if treated.median() > MOST and usual.mean() <= MAX_LOST:
        return {"verdict": "dying", "reason": f"{reason}, {treated.median():.0%} in the middle one"}
    return {"reason": reason}


def _count_slower(y: pd.Series, x: pd.Series) -> int:
    """How many treated rates y lie below where all of them lie in 97.5 % without an effect (reference rates x)."""
    if len(x) < 2 or y.empty:
        return 0
    limit = scipy.stats.t.ppf(1 - ALPHA / len(y), len(x) - 1) * x.std(ddof=1) * np.sqrt(1 + 1 / len(x))
    return int((y < x.mean() - limit).sum())


def ratio_interval(reference: pd.DataFrame, treated: pd.DataFrame) -> tuple[float, float]:
    """95 % interval of the ratio of mean growth, treated to reference; infinite where the reference may not grow.

    Fieller's method (Fieller 1954, J R Stat Soc B 16:175): a ratio q is inside where mean(y) - q mean(x) does not
    differ from 0 by a t test with n + m - 2 degrees of freedom. A position's variance is that within it plus, relative
    to its mean rate, one spread tau that both arms share; so a single position on one side borrows the other's spread,
    and a full stop has none. Where treated positions differ significantly more from each other than that (F test at
    5 %), each arm has its own variance (Welch 1947, doi 10.1093/biomet/34.1-2.28).
    """
    x, y = (table["growth_per_hour"].to_numpy() for table in (reference, treated))  # (n,), (m,)
    n, m = len(x), len(y)
    within_x, within_y = (np.mean(table["standard_error"].to_numpy() ** 2) for table in (reference, treated))
    squares_x, squares_y = ((v - v.mean()) @ (v - v.mean()) for v in (x, y))
    ratio = float(y.mean() / x.mean())
    q = RATIOS * max(1.0, abs(ratio))  # (4001,)

    # the variance of mean(y) - q mean(x) at every q, and its degrees of freedom
    excess = squares_x - (n - 1) * within_x + squares_y - (m - 1) * within_y
    tau2 = np.maximum(0, excess / np.maximum(n - 1 + (m - 1) * q ** 2, 1e-9))
    of_x, of_y = np.maximum(tau2 + within_x, 1e-12), np.maximum(q ** 2 * tau2 + within_y, 1e-12)
    variance = (squares_x / of_x + squares_y / of_y) / (n + m - 2) * (of_y / m + q ** 2 * of_x / n)
    freedom: Any = n + m - 2  # one for all q, which is fast, or one for each

    # an effect that differs between positions: the arms do not share one spread
    if min(n, m) > 1:
        variance_x, variance_y = squares_x / (n - 1), squares_y / (m - 1)
        expected = ratio ** 2 * max(variance_x - within_x, 0) + within_y
        if variance_y > scipy.stats.f.ppf(0.95, m - 1, n - 1) * expected:
            of_x, of_y = q ** 2 * max(variance_x, within_x) / n, max(variance_y, within_y) / m
            variance = of_x + of_y
            freedom = variance ** 2 / (of_x ** 2 / (n - 1) + of_y ** 2 / (m - 1))

    # the ratios that the t test does not reject
    limit = scipy.stats.t.ppf(1 - ALPHA, freedom) ** 2 * variance
    inside = q[(y.mean() - q * x.mean()) ** 2 <= limit]
    if len(inside) == 0:  # narrower than a step between the ratios
        return ratio, ratio
    low, high = float(inside[0]), float(inside[-1])
    return (-np.inf if low == q[0] else low), (np.inf if high == q[-1] else high)


def _verdict(low: float, high: float) -> tuple[str, str]:
    """What the ratio's interval means, and why."""
    if not np.isfinite(low) or not np.isfinite(high):
        return "cannot say", NO_GROWTH
    if high < STOPPED_BELOW:
        shrinks = ", and the area shrinks" if high < 0 else ""
        return "stopped", f"the whole interval lies below a quarter of the reference's growth{shrinks}"
    if high < 1:
        return "slowed", "the whole interval lies below the reference's growth"
    if low < GROWS_ABOVE:
        return "cannot say", "the interval is too wide: more positions are needed"
    return "grows", "no slowing is seen, and the whole interval lies above half of the reference's growth"
