"""Growth of single cells along their tracks, its mean over related cells, and which estimate suits the data."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import scipy

from ..data.dataset import Dataset, Frame, of_experiment
from ..errors import SegkitError
from ..files import write_table
from ..settings import Settings
from .growth import ALPHA, MIN_FRAMES, STOPPED_BELOW, areas_over_time, check_columns, find_reference, ratio_interval
from .tracks import lineages

MIN_POINTS = 3  # sizes in a window for a rate
CUT = 0.2  # a step of log size that lies further than this beyond no growth and usual growth is a wrong link
CLEAR = 3  # standard errors of a cell's rate up to the limit of growth, below which growing cells cannot be counted
BROKEN, CROSSING, FOLLOWED = 0.2, 0.05, 0.5  # shares of tracks, and of cells, that decide `which_estimate`
POSITION, TRACK, SIZES = ["experiment", "position"], ["experiment", "position", "track"], ["area_px", "length_px"]
MOMENT, WHERE, TIME = [*POSITION, "since_start", "minutes"], [*TRACK, "frame"], ["experiment", "minutes"]
RATE_COLUMNS = (*POSITION, "frame", "since_start", "minutes", "label", "track", "founder", "area_rate_per_hour",
                "area_standard_error", "length_rate_per_hour", "length_standard_error")
POPULATION_COLUMNS = (*MOMENT, "positions", "lineages", "cells", "growth_per_hour", "standard_error", "low", "high",
                      "growing", "growing_share", "growing_low", "growing_high", "ratio", "ratio_low", "ratio_high")


def single_cell_rates(cells: pd.DataFrame, minutes_per_frame: float | Mapping[str, float] = 2.0, window: int = 5,
                      frames: Dataset | Iterable[Frame] = ()) -> pd.DataFrame:
    """Exponential growth of every cell in every frame, along its own past.

    Parameters
    ----------
    cells : DataFrame
        experiment, position, frame, label, track, mother_track (a number that is no track's: no mother), area_px,
        length_px; cells with touches_border, if there is that column, get no rate.
    minutes_per_frame : float or mapping
        Time between frames, one for all or by experiment.
    window : int
        Frames that a rate is fitted to: the cell's own and those before it.
    frames : all that were segmented (see `segkit.growth_rates`)

    Returns
    -------
    DataFrame
        RATE_COLUMNS, a row per row of cells. founder is the lineage's first track, minutes the time since the first
        frame; rates, with standard errors, are per hour, and empty below MIN_POINTS sizes.

    Raises
    ------
    SegkitError
        If a column is missing, a number too small, a track has two cells in a frame or begins before its mother ended.

    Notes
    -----
    Least squares of log size in a trailing window (Baltekin et al. 2017, PNAS 114:9170; Kandavalli et al. 2022, Nat
    Commun 13:6215); negative rates are kept. A new cell's past is its mother's: the step over a division is the log of
    the daughters' sum over the mother, unknown without two of them in one frame. A step below -CUT, or above CUT and
    usual growth, is a wrong link. Both are left out with their time. Usual growth: the experiment's median step per
    frame at that time, from 0 to CUT, times the frames that the step took.
    """
    check_columns("cells", cells, [*WHERE, *SIZES, "label", "mother_track"], "cells.csv with tracks.csv")
    table, mother = _family(cells)
    # time counts as in growth.csv
    table = table.merge(areas_over_time(cells, frames).drop(columns=["cells", "area_px"]), on=[*POSITION, "frame"])
    minutes = table["experiment"].map(lambda e: of_experiment(minutes_per_frame, e)).astype(float)
    if not (window >= MIN_POINTS and (minutes > 0).all()):
        raise SegkitError(f"window is {window}, minutes_per_frame {minutes_per_frame}: 3 or more, and above 0, needed")
    table["minutes"] = table["since_start"] * minutes

    # sizes at the border are parts of cells
    known = (table[SIZES] > 0).all(axis=1) & ~table["touches_border"].astype(bool)
    for size in ("area", "length"):
        rate, error = np.full((2, len(table)), np.nan)
        rate[known], error[known] = _window_rates(table[known], mother, f"{size}_px", window)
        table[f"{size}_rate_per_hour"], table[f"{size}_standard_error"] = rate * 60 / minutes, error * 60 / minutes
    return table.sort_values("row", ignore_index=True)[list(RATE_COLUMNS)]


def _family(cells: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Cells sorted by track and frame, with row, code (numbers all tracks) and founder; each code's mother, or -1."""
    table = cells.assign(touches_border=cells.get("touches_border", False), row=np.arange(len(cells)))
    table = table.sort_values(WHERE, ignore_index=True).assign(code=lambda t: t.groupby(TRACK).ngroup())

    own = table.drop_duplicates("code")
    mother, root = lineages(own)
    return table.assign(founder=own["track"].to_numpy()[root][table["code"]]), mother


def _window_rates(table: pd.DataFrame, mother: np.ndarray, size: str, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Slope of log size per frame along each cell's past, and its standard error; table as from `_family`."""
    before, step, passed = _steps(table, mother, size)
    pace = table.assign(step=step / passed).groupby(["experiment", "since_start"])["step"].transform("median")
    kept = (step > -CUT) & (step < CUT + passed * pace.clip(0, CUT).to_numpy())
    step, passed = np.where(kept, step, 0.0), np.where(kept, passed, 0.0)

    # walk back from every cell at once; a step that is cut takes its time with it
    time, n = table["since_start"].to_numpy(), len(table)
    x, y = np.zeros((2, window, n))
    seen, at, steps = np.ones(n, bool), np.arange(n), np.zeros(n)
    for k in range(1, window):
        seen &= (before[at] >= 0) & (time - time[before[at]] < window)
        steps += seen & kept[at]
        x[k], y[k] = np.where(seen, x[k - 1] - passed[at], np.nan), np.where(seen, y[k - 1] - step[at], np.nan)
        at = before[at]

    # least squares
    x, y = x - np.nanmean(x, axis=0), y - np.nanmean(y, axis=0)
    squares = np.where(steps >= MIN_POINTS - 1, np.nansum(x ** 2, axis=0), np.nan)
    slope = np.nansum(x * y, axis=0) / squares
    return slope, np.sqrt(np.nansum((y - slope * x) ** 2, axis=0) / np.maximum(steps - 1, 1) / squares)


def _steps(table: pd.DataFrame, mother: np.ndarray, size: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every cell: the row before it in its past (-1: none), the step of log size since, and the frames it took."""
    code, time, sizes = (table[c].to_numpy() for c in ("code", "since_start", size))
    first = ~table["code"].duplicated().to_numpy()
    before, last = np.where(first, -1, np.arange(len(table)) - 1), np.full(len(mother) + 1, -1)
    last[code] = np.arange(len(table))  # its last entry stands for no mother

    # before a new cell was its mother, who is compared with all her daughters: with a part of them nothing is known
    born = pd.DataFrame({"mother": mother[code[first]], "time": time[first], "size": sizes[first]})
    families, whole = born.groupby(["mother", "time"])["size"], sizes.astype(float)
    whole[first] = families.transform("sum").where(families.transform("size") > 1)
    before[first] = last[born["mother"]]
    passed = np.where(before < 0, np.nan, time - time[before])
    if (passed <= 0).any():
        raise SegkitError("experiment {}, position {}, track {}, frame {}: two cells, or the mother is still there; "
                          "one cell, after its mother's end, was needed".format(*table.loc[passed <= 0, WHERE].iloc[0]))
    return before, np.where(before < 0, np.nan, np.log(whole / sizes[before])), passed


def population_rates(rates: pd.DataFrame, reference: str | Mapping[str, str] = "REF") -> pd.DataFrame:
    """Mean single-cell rate of area over time, beside the reference's, and how many lineages grow.

    Parameters
    ----------
    rates : DataFrame
        From `single_cell_rates`.
    reference : str or mapping
        Name of the experiment without drug, one for all or by experiment (see `segkit.compare_growth`).

    Returns
    -------
    DataFrame
        POPULATION_COLUMNS, a row per position and time, then per experiment and time (position "all"), where a cell has
        a rate: the mean over cells, for an experiment over its positions, with its 95 % interval (low, high); how many
        lineages are growing (their mean rate exceeds a quarter of the reference's mean then, of their own without one),
        empty where that quarter is less than CLEAR standard errors of a cell's rate then (use a longer window); the
        ratio to the reference at the same time.

    Notes
    -----
    Cells of one founder are related: a position's interval is a jackknife over lineages (Efron and Stein 1981, doi
    10.1214/aos/1176345462), an experiment's over positions, with t; empty for a single one. The ratio's is Fieller's
    (`growth.ratio_interval`), the share's that of Clopper and Pearson (1934, doi 10.1093/biomet/26.4.404) with lineages
    as trials. Simulated in benchmarks/single_cell.py.
    """
    check_columns("rates", rates, RATE_COLUMNS, "what segkit.single_cell_rates returns")
    rated = rates.dropna(subset="area_rate_per_hour").assign(cells=1, total=rates["area_rate_per_hour"])
    founders = rated.groupby([*MOMENT, "founder"], as_index=False)[["total", "cells"]].sum()

    # the limit of growth is a share of the reference's mean at the same time, of its own without one
    means = founders.groupby(MOMENT).sum().eval("total / cells").groupby(TIME).mean()
    names = means.index.unique("experiment")
    chosen = {e: find_reference(e, names, of_experiment(reference, e)) for e in names}
    base = founders["experiment"].map({e: chosen[e] or e for e in names})
    limit = STOPPED_BELOW * means.reindex(pd.MultiIndex.from_arrays([base, founders["minutes"]])).to_numpy()
    founders = founders.join(rated.groupby(TIME)["area_standard_error"].mean(), on=TIME)
    grows = (founders["total"] > limit * founders["cells"]).astype(float)
    founders["growing"] = grows.where(limit > CLEAR * founders["area_standard_error"])

    # cells of a lineage are related, and so are lineages of a position
    own = _mean_of(founders.assign(weight=founders["cells"], lineages=1, positions=0)).assign(positions=1)
    table = pd.concat([own, _mean_of(own.assign(position="all", total=own["growth_per_hour"], weight=1))])
    k, rest = table["growing"], table["lineages"] - table["growing"]
    table = table.assign(growing_share=k / table["lineages"],
                         growing_low=np.where(k > 0, scipy.stats.beta.ppf(ALPHA, k, rest + 1), k),
                         growing_high=np.where(rest > 0, scipy.stats.beta.ppf(1 - ALPHA, k + 1, rest), 1 + rest))
    return _with_ratio(own, table, chosen)[list(POPULATION_COLUMNS)].reset_index(drop=True)


def _mean_of(units: pd.DataFrame) -> pd.DataFrame:
    """Mean of total over weight at every MOMENT with standard error and 95 % interval: a jackknife over units."""
    units = units.assign(units=1)
    total, weight, n = (units.groupby(MOMENT)[column].transform("sum") for column in ("total", "weight", "units"))
    without = (total - units["total"]) / (weight - units["weight"])  # empty where there is one unit
    units["variance"] = (n - 1) / n * (without - total / weight) ** 2
    table = units.groupby(MOMENT).sum(min_count=1, numeric_only=True).reset_index()
    mean, error = table["total"] / table["weight"], table["variance"] ** 0.5
    half = error * scipy.stats.t.ppf(1 - ALPHA, table["units"] - 1)
    return table.assign(growth_per_hour=mean, standard_error=error, low=mean - half, high=mean + half)


def _with_ratio(own: pd.DataFrame, table: pd.DataFrame, chosen: Mapping[str, str | None]) -> pd.DataFrame:
    """The table with the ratio of every row's positions (own) to those of its chosen reference at the same time."""
    parts = pd.concat([own, own.assign(position="all")]).fillna({"standard_error": 0})
    groups, found = dict(tuple(parts.groupby([*POSITION, "minutes"]))), []
    for experiment, position, minutes in table[[*POSITION, "minutes"]].itertuples(index=False):
        y, x = groups[experiment, position, minutes], groups.get((chosen[experiment], "all", minutes), own[:0])
        mean = x["growth_per_hour"].mean()  # empty without a reference
        interval = ratio_interval(x, y) if mean > 0 and len(x) + len(y) > 2 else (np.nan, np.nan)
        found.append((y["growth_per_hour"].mean() / mean if mean > 0 else np.nan, *interval))
    return table.assign(**dict(zip(POPULATION_COLUMNS[-3:], np.reshape(found, (-1, 3)).T, strict=True)))


def which_estimate(rates: pd.DataFrame, tracks: pd.DataFrame) -> str:
    """A sentence: whether total area or tracks suit these data better (or both, or neither), and why.

    Parameters
    ----------
    rates : DataFrame
        From `single_cell_rates`.
    tracks : DataFrame
        A row per track, with how it began and ended (tracks.csv).

    Notes
    -----
    Total area counts a cell that crosses the border as growth or loss; every division gives two tracks, so CROSSING of
    the tracks are about twice that share of the growth. Tracks fail where links do (BROKEN), or where too few cells
    have a rate (FOLLOWED).
    """
    if not (rates.groupby(POSITION)["frame"].nunique() >= MIN_FRAMES).any():
        return f"Neither total area nor tracks: no position has cells in {MIN_FRAMES} frames."
    n, followed = len(tracks), rates["area_rate_per_hour"].notna().mean()
    broken = int(((tracks["began"] == "appeared") | (tracks["ended"] == "lost")).sum())
    crossing = int((tracks[["began", "ended"]] == "border").any(axis=1).sum())
    links, area = broken <= BROKEN * n and followed >= FOLLOWED, crossing <= CROSSING * n
    kind = "Both" if links and area else "Tracks" if links else "Total area" if area else "Neither is safe"
    return (f"{kind}: {crossing} of {n} tracks begin or end at the border (total area takes that for growth or loss) "
            f"and {broken} inside without division or death; {followed:.0%} of cells have a rate.")


def measure_single_cells(cells: pd.DataFrame, tracks: pd.DataFrame, frames: Iterable[Frame], settings: Settings,
                         out_dir: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`single_cell_rates` and `population_rates` with each experiment's settings; writes them as CSV files.

    cells, tracks: of cells.csv and tracks.csv; frames: all that were segmented. Returns both tables, which
    single_cell_rates.csv and population_rates.csv hold.
    """
    own = {e: settings.for_experiment(e) for e in cells["experiment"].unique()}
    family = cells.merge(tracks[[*TRACK, "mother_track"]], how="left", on=TRACK)
    rates = single_cell_rates(family, {e: s.minutes_per_frame for e, s in own.items()}, frames=frames)
    population = population_rates(rates, {e: s.reference for e, s in own.items()})
    write_table(Path(out_dir) / "single_cell_rates.csv", rates)
    write_table(Path(out_dir) / "population_rates.csv", population)
    return rates, population
