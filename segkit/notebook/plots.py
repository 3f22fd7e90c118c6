"""Figures: every function takes arrays or tables and returns a figure."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator
from skimage.segmentation import find_boundaries

from ..data.dataset import Dataset, Split
from ..data.images import normalise
from ..measure.growth import STOPPED_BELOW
from ..model.predict import densest_window

TEACHER, STUDENT, ACCENT, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"  # Okabe and Ito's
CELL_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")  # colour-blind-safe set
LINE_COLOURS = (TEACHER, STUDENT, ACCENT, GREY, "black")  # of lines that stand for neither teacher nor student
DPI = 72
MAX_WIDTH = 13  # inches of the widest figure
MIN_ZOOM = 0.44  # smallest size of a picture, as a share of its pixels; below it there are fewer columns
GAP, TITLE, BELOW = 8, 23, 20  # pixels between pictures, for a title, for the scale bar
PREVIEW = 200  # pixels of a side that are shown of a frame while the training runs
SCORES = {"dice": ("Dice", STUDENT, "o"), "panoptic_quality": ("panoptic quality", TEACHER, "s"),
          "ap50": ("AP at IoU 0.5", ACCENT, "D"), "ap75": ("AP at 0.75", PINK, "v"), "ap90": ("AP at 0.9", GREY, "^")}
PHASES = {"all": ("all frames", TEACHER), "before": ("before DRUG_FRAME", TEACHER),
          "after": ("from DRUG_FRAME on", STUDENT)}


class Picture(Figure):
    """A figure that Jupyter shows by itself, without pyplot's global state."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")

    def draw(self, renderer: Any) -> None:
        """Draw every text literally: a name between two dollar signs is no formula."""
        for text in self.findobj(Text):
            text.set_parse_math(False)  # type: ignore[attr-defined]
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return to_png(self, compress_level=6)


def to_png(figure: Picture, compress_level: int = 1) -> bytes:
    """A figure as PNG, quickly, for an ipywidgets.Image; a higher level (to 9) is slower and smaller."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, pil_kwargs={"compress_level": compress_level})  # savefig draws twice
    return buffer.getvalue()


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Picture, np.ndarray]:
    """A figure, in inches, and its axes (rows, columns), each with a left and a lower line only."""
    figure = Picture(width, height)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_prop_cycle(color=LINE_COLOURS)
    return figure, grid


def grey(image: np.ndarray, contrast: float = 1.0) -> np.ndarray:
    """An image (H, W) of any range as float32 0..1 for display; contrast > 1 steepens it."""
    return np.clip((normalise(image) - 0.5) * contrast + 0.5, 0, 1)


def outlines(labels: np.ndarray) -> np.ndarray:
    """Bool (H, W): the pixels of cells that touch another cell or the background."""
    return find_boundaries(labels, connectivity=1, mode="inner")


def overlay(image: np.ndarray, labels: np.ndarray, colour: str | None = STUDENT, contrast: float = 1.0) -> np.ndarray:
    """RGB uint8 (H, W, 3): the image with outlines in one colour, or with None every cell filled in one of seven."""
    from torchvision.utils import draw_segmentation_masks  # here: it takes two seconds to import

    picture = torch.from_numpy((grey(image, contrast) * 255).astype(np.uint8)).expand(3, -1, -1)  # (3, H, W)
    # a cell is filled lightly within its rim, so that two touching cells of one colour are told apart, too
    colours = [colour] if colour else list(CELL_COLOURS)
    masks = (labels > 0) & (labels % len(colours) == np.arange(len(colours))[:, None, None])  # (colours, H, W)
    rims = torch.from_numpy(masks & outlines(labels))
    if not colour:
        picture = draw_segmentation_masks(picture, torch.from_numpy(masks), alpha=0.5, colors=colours)
    return draw_segmentation_masks(picture, rims, alpha=1, colors=colours).permute(1, 2, 0).numpy()


def busiest(weight: np.ndarray, side: int) -> tuple[slice, slice]:
    """The window of side x side pixels with the largest sum of weight (H, W); all of it where it has no weight."""
    return densest_window(weight.astype(np.float32), side) if weight.any() else (slice(None), slice(None))


def show_pictures(pictures: Sequence[np.ndarray], titles: Sequence[str], pixel_size_um: float | None = None,
                  columns: int = 5) -> Picture:
    """Pictures side by side, grey (H, W) float or RGB (H, W, 3), the scale bar under the first of the last row.

    A picture is shown with as many pixels as it has, or a multiple of them, as far as MAX_WIDTH holds them; there
    are fewer columns where it would be shown much smaller.
    """
    if not pictures:
        return _panels([])[0]
    # sizes in pixels of the figure, so that pixels of a picture fall on them exactly
    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures), max(1, int(MAX_WIDTH * DPI / (MIN_ZOOM * width))))
    rows = -(-len(pictures) // columns)
    # one pixel of the figure for each of the picture's, a few where it is small, fewer to fit
    room = (MAX_WIDTH * DPI - (columns - 1) * GAP) / columns
    zoom = min(-(-(4 if columns <= 2 else 3) * DPI // width), room / width)
    zoom = int(zoom) if zoom >= 2 else zoom
    wide, tall = zoom * width, zoom * height
    whole_width, whole_height = columns * (wide + GAP) - GAP, rows * (tall + TITLE) + BELOW
    figure = Picture(whole_width / DPI, whole_height / DPI)
    figure.set_layout_engine("none")
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw={
        "left": 0, "right": 1, "top": 1 - TITLE / whole_height, "bottom": BELOW / whole_height,
        "wspace": GAP / wide, "hspace": TITLE / tall})
    # the pictures, without ticks; the last row may have empty places
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, picture, title in zip(grid.flat, pictures, titles, strict=False):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1 if picture.dtype.kind == "f" else 255,
                    interpolation="nearest" if zoom == int(zoom) else "auto")
        axes.set_title(title, fontsize=10)
    if pixel_size_um:
        _scale_bar(grid[-1, 0], pictures[(rows - 1) * columns].shape[1], pixel_size_um)
    return figure


def _scale_bar(axes: Axes, width: int, pixel_size_um: float) -> None:
    """A bar of a round length in um, an eighth to a third of the picture, under its right end."""
    length = MaxNLocator(8, steps=(1, 2, 5, 10)).tick_values(0, width * pixel_size_um)[1]
    left, right, below = width - 0.5 - length / pixel_size_um, width - 0.5, -9 / 72 * DPI / axes.bbox.height
    across = axes.get_xaxis_transform()
    axes.plot([left, right], [below, below], color="black", lw=2.5, solid_capstyle="butt", clip_on=False,
              transform=across)
    axes.annotate(f"{length:g} µm", (left, below), (-4, 0), xycoords=across, textcoords="offset points", ha="right",
                  va="center", fontsize=9, annotation_clip=False)


def show_crops(images: np.ndarray, targets: np.ndarray) -> Picture:
    """Augmented crops above their targets: images (B, h, w), normalised; targets (B, h, w), 0 = background."""
    pictures = [*np.clip(images, 0, 1), *targets]
    return show_pictures(pictures, ["crop"] * len(images) + ["target"] * len(targets), columns=len(images))


def show_previews(previews: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Picture:
    """A few validation frames (image, probability, target mask), each (H, W); of large ones where most cells are."""
    pictures: list[np.ndarray] = []
    for image, probability, target in previews:
        part = busiest(target, PREVIEW)
        pictures += [np.clip(image[part], 0, 1), probability[part], target[part].astype(float)]
    titles = ["image", "student's probability", "teacher's mask"] * len(previews)
    return show_pictures(pictures, titles, columns=6)


def show_training(table: pd.DataFrame) -> Picture:
    """Loss and Dice of a History.table() against epochs; events, such as a rollback, as dotted lines."""
    figure, grid = new_figure(10, 3.2, 1, 2)
    for axes, kind, label in zip(grid[0], ("loss", "dice"), ("loss", "Dice"), strict=True):
        axes.plot(table["epoch"], table[f"train_{kind}"], color=GREY, lw=1.5, label="training crops")
        axes.plot(table["epoch"], table[f"val_{kind}"], color=STUDENT, lw=2, marker="o", ms=3,
                  label="whole validation frames")
        for epoch in table.loc[table["event"].fillna("") != "", "epoch"]:
            axes.axvline(epoch, color=TEACHER, ls=":", lw=1)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0, 1].set_ylim(0, 1.02)
    grid[0, 0].legend(frameon=False, loc="upper right")  # where a falling loss leaves room from the first epoch on
    return figure


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """A row for each name, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)


def show_split(dataset: Dataset, split: Split) -> Picture:
    """Each position as a row of frames: training blue, validation orange, frames of neither grey."""
    unused = set(dataset.frames).difference(split.train, split.validation)
    units = sorted({frame.unit for frame in dataset.frames})
    figure, grid = new_figure(9, 0.28 * len(units) + 1.0)
    axes = grid[0, 0]
    for frames, label, colour in ((split.train, "training", TEACHER), (split.validation, "validation", STUDENT),
                                  (unused, "not used", GREY)):
        if frames:
            axes.scatter([f.frame for f in frames], [units.index(f.unit) for f in frames], color=colour, marker="s",
                         s=28, label=f"{label} ({len(frames)})")
    _name_rows(axes, [" ".join(unit) for unit in units])
    axes.set_xlabel("frame")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _panels(names: Sequence[str]) -> tuple[Picture, list[Axes]]:
    """A panel for each experiment, at most three side by side; of none, one that says that there is nothing."""
    columns, rows = min(len(names), 3) or 1, -(-len(names) // 3) or 1
    figure, grid = new_figure(max(6.0, MAX_WIDTH / 3 * columns), 3.2 * rows if names else 0.5, rows, columns)
    for axes in grid.flat[len(names):]:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, names or ["nothing to show"], strict=False):
        axes.set_title(name)
    return figure, list(grid.flat)


def show_over_time(table: pd.DataFrame, value: str, ylabel: str,
                   ylim: tuple[float | None, float | None] = (0, None)) -> Picture:
    """A line per position against frames since its start, a panel per experiment; at most 12 lines are named.

    table: experiment, position, frame (or since_start) and the value's column.
    """
    # an experiment without any value gets no empty panel
    names = sorted(table.loc[table[value].notna(), "experiment"].unique())
    figure, panels = _panels(names)
    for axes, name in zip(panels, names, strict=False):
        lines = table[table["experiment"] == name].sort_values("frame").groupby("position")
        for position, line in lines:
            time = line.get("since_start", line["frame"] - line["frame"].min())
            axes.plot(time, line[value], lw=1.5, marker=".", ms=4, label=position)
        # frames are whole numbers; more than 12 names would cover the lines
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="frames since the start", ylim=(ylim[0], ylim[1] or 1.05 * table[value].max() or None))
        if len(lines) <= 12:
            axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel(ylabel)
    return figure


def show_histograms(values: Mapping[str, np.ndarray], xlabel: str, bins: int = 40) -> Picture:
    """One outlined histogram per name, on shared axes."""
    if not values:
        return _panels([])[0]
    figure, grid = new_figure(6.5, 3)
    styles = np.repeat(("-", "--", ":"), len(LINE_COLOURS)).tolist()
    grid[0, 0].hist(list(values.values()), bins, histtype="step", lw=2, ls=styles, label=list(values))
    grid[0, 0].set(xlabel=xlabel, ylabel="count")
    grid[0, 0].legend(frameon=False, reverse=True)
    return figure


def show_scores(scores: pd.DataFrame, names: Sequence[str]) -> Picture:
    """Mean scores of every position (left) and how many cells too many or too few a frame has (right).

    scores: rows of scores.csv; names: one per row, what its position is called.
    """
    excess = scores["cells"] - scores["teacher_cells"]
    means = scores.assign(name=list(names), excess=excess).groupby("name")[[*SCORES, "excess"]].mean()
    rows = np.arange(len(means))
    figure, ((left, right),) = new_figure(10, 0.34 * len(means) + 1.4, 1, 2)
    # scores a little above or below each other, so that none hides another
    for k, (column, (label, colour, marker)) in enumerate(SCORES.items()):
        left.plot(means[column], rows + 0.15 * (k - 2), marker, color=colour, ms=6, label=label, clip_on=False)
    left.set(xlabel="mean over frames", xlim=(min(0.9, means[[*SCORES]].min(axis=None)), 1))
    left.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _name_rows(left, list(means.index))
    # a tenth of the cells at least fits in, so that a single cell does not look like many
    right.barh(rows, means["excess"], color=STUDENT, height=0.6)
    right.axvline(0, color=GREY, lw=1)
    widest = max(1.0, 1.1 * means["excess"].abs().max(), 0.1 * scores["teacher_cells"].mean())
    right.set(xlabel="cells per frame, student minus teacher", xlim=(-widest, widest))
    _name_rows(right, [""] * len(means))
    return figure


def show_growth(curves: Mapping[str, pd.DataFrame], minutes_per_frame: Mapping[str, float],
                drug_frame: Mapping[str, int]) -> Picture:
    """Area over time, a panel per experiment, log scale; straight is exponential growth, a cross: died out.

    curves: by source ("student", "teacher"): experiment, position, since_start (frames) and area.
    minutes_per_frame, drug_frame (negative: none): by experiment.
    """
    # one table of all lines, so that all panels have the same range
    lines = pd.concat([table.assign(source=source) for source, table in curves.items()])
    names = sorted(lines["experiment"].unique())
    figure, panels = _panels(names)
    areas = lines["area"][lines["area"] > 0]
    scale = {"yscale": "log", "ylim": (areas.min() * 0.9, areas.max() * 1.15)} if len(areas) else {}
    lines["hours"] = lines["since_start"] * lines["experiment"].map(dict(minutes_per_frame)) / 60
    styles = dict(zip(curves, ((STUDENT, "-"), (TEACHER, ":")), strict=False))
    for axes, experiment in zip(panels, names, strict=False):
        for (source, _), line in lines[lines["experiment"] == experiment].groupby(["source", "position"]):
            seen = line[line["area"] > 0]
            axes.plot(seen["hours"], seen["area"], color=styles[source][0], ls=styles[source][1], lw=1.8, label=source)
            if seen["hours"].max() < line["hours"].max():  # the last frames hold no cell
                axes.plot(seen["hours"].iloc[-1], seen["area"].iloc[-1], "x", color="black", ms=8, mew=2)
        if 0 <= drug_frame[experiment] <= lines["since_start"].max():
            axes.axvline(drug_frame[experiment] * minutes_per_frame[experiment] / 60, color=GREY, ls="--", lw=1,
                         label="DRUG_FRAME")
        axes.set(xlabel="time (h)", **scale)
        # few areas are powers of ten, so plain numbers mark the axis; over many decades the powers are enough
        if areas.max() / areas.min() < 1e6:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    panels[0].set_ylabel("total cell area (µm²)")
    # every position has a line of the same label: one entry for all
    entries = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))  # one of each label
    panels[0].legend(entries.values(), entries.keys(), frameon=False)
    return figure


def _intervals(axes: Axes, table: pd.DataFrame, value: str, height: np.ndarray, colour: str, label: str = "") -> None:
    """A dot for each row of the table at its height, with a bar from `low` to `high`."""
    errors = [table[value] - table["low"], table["high"] - table[value]]
    axes.errorbar(table[value], height, xerr=errors, fmt="o", ms=5, capsize=3, color=colour, label=label)


def show_rates(growth: pd.DataFrame) -> Picture:
    """Growth rate of every position with its 95 % interval, and the doubling time in words: before and after."""
    # before and after the drug, where there are such frames with cells; else all frames
    seen = growth[(growth["frames"] > 0) & (growth["start_cells"] > 0)]
    treated = ((growth["phase"] == "after") & (growth["frames"] > 0)).any()
    phases = [phase for phase in ("before", "after") if treated and (seen["phase"] == phase).any()] or ["all"]
    known = growth["growth_per_hour"].notna() | growth["died_out"].eq(True)
    table = growth[growth["phase"].isin(phases) & known].assign(unit=growth["experiment"] + " " + growth["position"])
    units = sorted(table["unit"].unique())
    figure, ((axes,),) = new_figure(8, 0.42 * max(len(units), 1) + 1.1)
    # a bar for each phase, the later one a little below
    for k, phase in enumerate(phases):
        part, (label, colour) = table[table["phase"] == phase], PHASES[phase]
        height = part["unit"].map(units.index).to_numpy() + 0.3 * k - 0.15
        _intervals(axes, part, "growth_per_hour", height, colour, label)
        for row, y in zip(part.itertuples(), height, strict=True):
            x, text = (0.0, "died out") if np.isnan(row.high) else (row.high, "growth not certain")
            if row.low > 0 and row.doubling_minutes < 6000:
                text = f"doubles in {row.doubling_minutes:.0f} min"
            axes.text(x, y, f"  {text}", va="center", fontsize=8, color=GREY)
    axes.axvline(0, color=GREY, lw=1)
    _name_rows(axes, units)
    axes.set_xlabel("growth rate (per hour), with 95 % interval")
    axes.set_xlim(axes.get_xlim()[0], axes.get_xlim()[1] * 1.3)  # room for the words
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def show_ratios(comparison: pd.DataFrame) -> Picture:
    """Growth of each treated experiment as a share of its reference's, with its 95 % interval, verdict and reason."""
    figure, ((axes,),) = new_figure(11, 0.7 * max(len(comparison), 1) + 1.1)
    known = comparison.where(comparison["low"] > -np.inf)  # a ratio without an interval is no dot
    _intervals(axes, known, "ratio", np.arange(len(comparison)), STUDENT)
    for k, row in enumerate(comparison.itertuples()):
        axes.text(1.03, k, f"{row.verdict}\n{textwrap.fill(row.reason, 60)}", va="center", fontsize=9,
                  transform=axes.get_yaxis_transform())
    for ratio, style in ((0, "-"), (STOPPED_BELOW, ":"), (1, "-")):
        axes.axvline(ratio, color=GREY, lw=1, ls=style)
    _name_rows(axes, [f"{row.experiment} / {row.reference}" for row in comparison.itertuples()])
    axes.set_xlabel("growth with drug / growth of the reference")
    axes.set_xlim(min(-0.1, axes.get_xlim()[0]), max(1.1, axes.get_xlim()[1]))
    return figure


def show_population(population: pd.DataFrame, drug_frame: Mapping[str, int]) -> Picture:
    """Mean single-cell growth rate of every experiment over time (left), and as a share of the reference's (right).

    population: from `population_rates`; bands are 95 % intervals. drug_frame (negative: none): by experiment.
    """
    whole = population[population["position"] == "all"].assign(hours=population["minutes"] / 60)
    figure, (panels,) = new_figure(11, 3.4, 1, 2)
    columns = ("growth_per_hour", "low", "high"), ("ratio", "ratio_low", "ratio_high")
    # the time of the drug, where the time-lapse holds it; one line for all experiments that have it at the same time
    drug = whole[whole["since_start"] == whole["experiment"].map(dict(drug_frame))]
    for axes, (value, low, high) in zip(panels, columns, strict=True):
        for experiment, line in whole[whole[value].notna()].groupby("experiment"):
            (curve,) = axes.plot(line["hours"], line[value], lw=2, label=experiment)
            axes.fill_between(line["hours"], line[low], line[high], color=curve.get_color(), alpha=0.2, lw=0)
        axes.axhline(0, color=GREY, lw=1)
        for hours in drug["hours"].unique():
            axes.axvline(hours, color=GREY, ls="--", lw=1)
        axes.set_xlabel("time (h)")
        # wide bands of few cells do not set the scale
        values = whole[value].dropna()
        if len(values):
            reach = max(values.max(), 0) - min(values.min(), 0)
            axes.set_ylim(min(values.min(), 0) - 0.3 * reach, max(values.max(), 0) + 0.3 * reach)
            axes.legend(frameon=False)
    for ratio, style in ((STOPPED_BELOW, ":"), (1, "-")):
        panels[1].axhline(ratio, color=GREY, lw=1, ls=style)
    if whole["ratio"].isna().all():
        panels[1].set_visible(False)  # there is no reference
    panels[0].set_ylabel("growth rate of a cell (per hour)")
    panels[1].set_ylabel("growth / growth of the reference")
    return figure
