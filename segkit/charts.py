"""Charts of tables: every function takes tables and returns a figure; nothing is shown or kept."""

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from .data import Dataset, Split
from .figures import ACCENT, GREY, SHEET, STUDENT, TEACHER, Picture, bare_axes, busiest, new_figure, nothing_to_show
from .growth import STOPPED_BELOW

PREVIEW = 200  # pixels of a side that are shown of a frame while the training runs
SERIES = (TEACHER, STUDENT, ACCENT, GREY, "black")  # colours of lines that belong to nobody in particular


def show_training(table: pd.DataFrame,
                  previews: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]] = ()) -> Picture:
    """Loss and Dice against epochs, events as dotted lines; below, what the student sees in a few validation frames.

    table: History.table(); previews: History.previews, (image, probability, target mask), each (H, W); of a large
    frame the part with most cells is shown.
    """
    parts_shown = [busiest(target, PREVIEW) for _, _, target in previews]
    previews = [(i[part], p[part], t[part]) for (i, p, t), part in zip(previews, parts_shown, strict=True)]
    shapes = [image.shape for image, _, _ in previews]
    tall = max((10 / (3 * len(shapes)) * height / width + 0.35 for height, width in shapes), default=0)  # inches
    figure = Picture(10, 3.2 + tall)
    parts = figure.subfigures(2 if previews else 1, 1, squeeze=False, height_ratios=(3.2, tall)[:2 if previews else 1])
    parts = parts[:, 0]
    curves = bare_axes(parts[0], 1, 2)[0]
    for axes, kind, label in zip(curves, ("loss", "dice"), ("loss", "Dice"), strict=True):
        axes.plot(table["epoch"], table[f"train_{kind}"], color=GREY, lw=1.5, label="training crops")
        axes.plot(table["epoch"], table[f"val_{kind}"], color=STUDENT, lw=2, marker="o", ms=3,
                  label="whole validation frames")
        for epoch in table.loc[table["event"].fillna("") != "", "epoch"]:
            axes.axvline(epoch, color=TEACHER, ls=":", lw=1)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves[1].set_ylim(0, 1.02)
    curves[0].legend(frameon=False, loc="upper right")  # where a falling loss leaves room from the first epoch on
    pictures = [(p, t) for image, probability, target in previews
                for p, t in ((np.clip(image, 0, 1), "image"), (probability, "student's probability"),
                             (target.astype(float), "teacher's mask"))]
    for axes, (picture, title) in zip(parts[1].subplots(1, len(pictures)) if pictures else (), pictures, strict=True):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return figure


def show_split(dataset: Dataset, split: Split) -> Picture:
    """Each position as a row of frames: blue to learn from, orange to judge by, grey not used."""
    training, validation = set(split.train), set(split.validation)
    units = sorted({f.unit for f in dataset.frames})
    figure, grid = new_figure(9, 0.28 * len(units) + 1.0)
    axes = grid[0, 0]
    for colour, wanted, label in ((TEACHER, training, f"training ({len(split.train)})"),
                                  (STUDENT, validation, f"validation ({len(split.validation)})"),
                                  (GREY, set(dataset.frames) - training - validation, "not used")):
        if wanted:
            axes.scatter([f.frame for f in wanted], [units.index(f.unit) for f in wanted], color=colour, marker="s",
                         s=28, label=label)
    axes.set_yticks(range(len(units)), [" ".join(unit) for unit in units])
    axes.set(xlabel="frame", ylim=(len(units) - 0.5, -0.5))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _panels(count: int) -> tuple[Picture, list[Axes]]:
    """A panel for each experiment, at most three side by side."""
    columns, rows = min(count, 3), -(-count // 3)
    figure, grid = new_figure(max(6.0, SHEET / 3 * columns), 3.2 * rows, rows, columns)
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    return figure, list(grid.flat[:count])


def show_over_time(table: pd.DataFrame, value: str, ylabel: str,
                   ylim: tuple[float | None, float | None] = (0, None)) -> Picture:
    """A line per position against frames since its start, a panel per experiment; at most 12 lines are named.

    table: experiment, position, frame (or since_start) and the value's column.
    """
    names = sorted(table.loc[table[value].notna(), "experiment"].unique())
    if not names:
        return nothing_to_show()
    figure, panels = _panels(len(names))
    highest = table[value].max()
    for axes, name in zip(panels, names, strict=True):
        lines = table[table["experiment"] == name].groupby("position")
        for k, (position, line) in enumerate(lines):
            line = line.sort_values("frame")
            time = line.get("since_start", line["frame"] - line["frame"].min())
            axes.plot(time, line[value], color=SERIES[k % len(SERIES)], lw=1.5, marker=".", ms=4,
                      label=position if len(lines) <= 12 else None)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(title=name, xlabel="frames since the start", ylim=(ylim[0], ylim[1] or 1.05 * highest or None))
        if len(lines) <= 12:
            axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel(ylabel)
    return figure


def show_histograms(values: dict[str, np.ndarray], xlabel: str, bins: int = 40) -> Picture:
    """One outlined histogram per name, on shared axes."""
    if not values:
        return nothing_to_show()
    figure, grid = new_figure(6.5, 3)
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins)
    for k, (name, data) in enumerate(values.items()):
        grid[0, 0].hist(data, edges, histtype="step", lw=2, color=SERIES[k % len(SERIES)],
                        ls=("-", "--", ":")[k // len(SERIES) % 3], label=name)
    grid[0, 0].set(xlabel=xlabel, ylabel="count")
    grid[0, 0].legend(frameon=False)
    return figure


def show_scores(scores: pd.DataFrame, names: Sequence[str]) -> Picture:
    """Mean scores of every position (left) and how many cells too many or too few a frame has (right).

    scores: rows of scores.csv; names: one per row, what its position is called.
    """
    named = scores.assign(name=list(names), excess=scores["cells"] - scores["teacher_cells"])
    means = named.groupby("name")[["dice", "panoptic_quality", "ap50", "ap75", "ap90", "excess"]].mean()
    figure, grid = new_figure(10, 0.34 * len(means) + 1.4, 1, 2)
    left, right = grid[0]
    for (column, label), colour, mark, beside in zip(  # beside: a little above or below, so that none hides another
            (("dice", "Dice"), ("panoptic_quality", "panoptic quality"), ("ap50", "AP at IoU 0.5"),
             ("ap75", "AP at 0.75"), ("ap90", "AP at 0.9")), (STUDENT, TEACHER, ACCENT, "#CC79A7", GREY), "osDv^",
            (-0.3, -0.15, 0, 0.15, 0.3), strict=True):
        left.plot(means[column], np.arange(len(means)) + beside, mark, color=colour, ms=6, label=label)
    left.set_yticks(range(len(means)), list(means.index))
    low = min(0.9, np.floor(means.iloc[:, :5].min().min() * 10) / 10)
    left.set(xlabel="mean over frames", xlim=(low - 0.04 * (1 - low), 1 + 0.04 * (1 - low)))
    left.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    right.barh(range(len(means)), means["excess"], color=STUDENT, height=0.6)
    right.axvline(0, color=GREY, lw=1)
    widest = max(1.0, 1.1 * means["excess"].abs().max(), 0.1 * scores["teacher_cells"].mean())
    right.set_yticks(range(len(means)), [""] * len(means))
    right.set(xlabel="cells per frame, student minus teacher", xlim=(-widest, widest))
    for axes in (left, right):
        axes.set_ylim(len(means) - 0.5, -0.5)
    return figure


def show_growth(curves: dict[str, pd.DataFrame], minutes_per_frame: dict[str, float], drug_frame: dict[str, int],
                ylabel: str = "total cell area (µm²)") -> Picture:
    """Area over time, a panel per experiment, log scale; straight is exponential growth, a cross: died out.

    curves: by who drew them ("student", "teacher"): experiment, position, since_start (frames) and area.
    minutes_per_frame, drug_frame (negative: none): by experiment.
    """
    names = sorted({e for table in curves.values() for e in table["experiment"]})
    if not names:
        return nothing_to_show()
    figure, panels = _panels(len(names))
    areas = [area for table in curves.values() for area in table["area"] if area > 0] or [1.0]
    last = max((table["since_start"].max() for table in curves.values()), default=0)
    for axes, experiment in zip(panels, names, strict=True):
        hours = minutes_per_frame[experiment] / 60
        for (who, table), colour, style in zip(curves.items(), (STUDENT, TEACHER), ("-", ":"), strict=False):
            for k, (_, line) in enumerate(table[table["experiment"] == experiment].groupby("position")):
                seen = line[line["area"] > 0]
                axes.plot(seen["since_start"] * hours, seen["area"], style, color=colour, lw=1.8,
                          label=None if k else who)
                if len(seen) and seen["since_start"].max() < line["since_start"].max():  # the last frames are empty
                    axes.plot(seen["since_start"].iloc[-1] * hours, seen["area"].iloc[-1], "x", color="black", ms=8,
                              mew=2)
        if 0 <= drug_frame[experiment] <= last:
            axes.axvline(drug_frame[experiment] * hours, color=GREY, ls="--", lw=1, label="DRUG_FRAME")
        axes.set(title=experiment, xlabel="time (h)", yscale="log", ylim=(min(areas) * 0.9, max(areas) * 1.15))
        if max(areas) < 4 * min(areas):  # too little for the marks of powers of ten
            axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    panels[0].set_ylabel(ylabel)
    panels[0].legend(frameon=False)
    return figure


def show_rates(growth: pd.DataFrame) -> Picture:
    """Growth rate of every position with its 95 % interval, and the doubling time in words: before and after."""
    drug = (growth.loc[growth["phase"] == "after", "frames"] > 0).any()
    phases = [p for p in ("before", "after")
              if drug and growth.loc[growth["phase"] == p, ["frames", "start_cells"]].all(axis=1).any()]
    dead = growth["died_out"].eq(True)
    table = growth[growth["phase"].isin(phases or ["all"]) & (growth["growth_per_hour"].notna() | dead)]
    units = sorted(set(zip(table["experiment"], table["position"], strict=True)))
    figure, grid = new_figure(8, 0.42 * max(len(units), 1) + 1.1)
    axes = grid[0, 0]
    for k, phase in enumerate(phases or ["all"]):
        part = table[table["phase"] == phase]
        y = np.array([units.index(u) for u in zip(part["experiment"], part["position"], strict=True)]) + 0.3 * k - 0.15
        rate = part["growth_per_hour"].to_numpy()
        around = [rate - part["low"].to_numpy(), part["high"].to_numpy() - rate]
        axes.errorbar(rate, y, xerr=around, fmt="o", ms=5, capsize=3, color=(TEACHER, STUDENT)[k],
                      label={"all": "all frames", "before": "before DRUG_FRAME", "after": "from DRUG_FRAME on"}[phase])
        for low, at, height, doubling in zip(part["low"], part["high"], y, part["doubling_minutes"], strict=True):
            text = f"  doubles in {doubling:.0f} min" if low > 0 and doubling < 6000 else "  growth not certain"
            text, at = ("  died out", 0.0) if np.isnan(at) else (text, at)
            axes.text(at, height, text, va="center", fontsize=8, color=GREY)
    axes.axvline(0, color=GREY, lw=1)
    axes.set_yticks(range(len(units)), [" ".join(unit) for unit in units])
    axes.set(xlabel="growth rate (per hour), with 95 % interval", ylim=(len(units) - 0.4, -0.6))
    axes.set_xlim(axes.get_xlim()[0], axes.get_xlim()[1] * 1.3)  # room for the words
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def show_ratios(comparison: pd.DataFrame) -> Picture:
    """Growth of each treated experiment as a share of its reference's, with its 95 % interval, verdict and reason."""
    figure, grid = new_figure(11, 0.7 * max(len(comparison), 1) + 1.1)
    axes = grid[0, 0]
    for k, row in enumerate(comparison.itertuples()):
        if np.isfinite(row.low):
            axes.errorbar([row.ratio], [k], xerr=[[row.ratio - row.low], [row.high - row.ratio]], fmt="o", ms=6,
                          capsize=4, color=STUDENT)
        axes.text(1.03, k, f"{row.verdict}\n{textwrap.fill(row.reason, 60)}", va="center", fontsize=9,
                  transform=axes.get_yaxis_transform())
    for at, style in ((0, "-"), (STOPPED_BELOW, ":"), (1, "-")):
        axes.axvline(at, color=GREY, lw=1, ls=style)
    names = [f"{row.experiment} / {row.reference}" for row in comparison.itertuples()]
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="growth with drug / growth of the reference", ylim=(len(names) - 0.5, -0.5))
    axes.set_xlim(min(-0.1, axes.get_xlim()[0]), max(1.1, axes.get_xlim()[1]))
    return figure
