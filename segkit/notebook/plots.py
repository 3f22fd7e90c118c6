"""Figures: every function takes arrays or tables and returns a figure."""

import io
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, NullLocator
from PIL import Image
from scipy import ndimage
from skimage.segmentation import expand_labels, find_boundaries
from torchvision.utils import draw_segmentation_masks

from ..data.dataset import Dataset, Split
from ..data.images import normalise
from ..measure.growth import STOPPED_BELOW

TEACHER, STUDENT, ACCENT, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"  # Okabe and Ito's colour-blind-safe set
CELL_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
NEAR = 4  # pixels around a cell; two cells nearer than twice that get different colours
DPI = 72
SHEET = 13  # inches, the widest figure
MIN_ZOOM = 0.44  # pixels of the figure for each of the picture's; rather fewer columns than less
GAP, TITLE, BELOW = 8, 23, 20  # pixels between pictures, for a title, for the scale bar
PREVIEW = 200  # pixels of a side that are shown of a frame while the training runs
SERIES = (TEACHER, STUDENT, ACCENT, GREY, "black")  # colours of lines that belong to nobody in particular


class Picture(Figure):
    """A figure that Jupyter shows by itself, without pyplot's global state."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
        self.canvas: FigureCanvasAgg = FigureCanvasAgg(self)

    def draw(self, renderer: RendererBase) -> None:
        """Draw every text as it is: what stands between two dollar signs of a name is no formula."""
        for text in self.findobj(Text):
            cast(Text, text).set_parse_math(False)
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return to_png(self, compress_level=6)


def to_png(figure: Picture, compress_level: int = 1) -> bytes:
    """A figure as PNG, quickly, for an ipywidgets.Image; a higher level (to 9) is slower and smaller."""
    figure.canvas.draw()  # savefig would draw twice
    buffer = io.BytesIO()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    picture.save(buffer, "png", compress_level=compress_level, dpi=(DPI, DPI))
    return buffer.getvalue()


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Picture, np.ndarray]:
    """A figure and its axes (rows, columns), each with a left and a lower line only."""
    figure = Picture(width, height)
    return figure, bare_axes(figure, rows, columns)


def bare_axes(figure: FigureBase, rows: int, columns: int) -> np.ndarray:
    """Axes (rows, columns) in a figure or a part of one, each with a left and a lower line only."""
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return grid


def grey(image: np.ndarray, contrast: float = 1.0) -> np.ndarray:
    """An image (H, W) of any range as float32 0..1 for display; contrast > 1 steepens it."""
    return np.clip((normalise(image) - 0.5) * contrast + 0.5, 0, 1)


def outlines(labels: np.ndarray) -> np.ndarray:
    """Bool (H, W): the pixels of cells that touch another cell or the background."""
    return find_boundaries(labels, connectivity=1, mode="inner")


def cell_colours(labels: np.ndarray) -> np.ndarray:
    """An index into CELL_COLOURS for every pixel (H, W), -1 for background; cells that are near each other differ."""
    near = expand_labels(labels, NEAR)
    pairs = np.concatenate([np.stack([near[1:], near[:-1]], -1).reshape(-1, 2),
                            np.stack([near[:, 1:], near[:, :-1]], -1).reshape(-1, 2)])
    neighbours = defaultdict(set)
    for a, b in np.unique(pairs[(pairs[:, 0] != pairs[:, 1]) & pairs.all(axis=1)], axis=0):
        neighbours[a].add(b)
        neighbours[b].add(a)
    colour_of = np.full(labels.max() + 1, -1)
    for cell in np.unique(labels[labels > 0]):
        wished = (cell * 3 + np.arange(len(CELL_COLOURS))) % len(CELL_COLOURS)
        taken = colour_of[list(neighbours[cell])]
        colour_of[cell] = next((c for c in wished if c not in taken), wished[0])
    return colour_of[labels]


def overlay(image: np.ndarray, labels: np.ndarray, colour: str | None = STUDENT, contrast: float = 1.0) -> np.ndarray:
    """RGB uint8 (H, W, 3): the image with outlines in one colour, or with None every cell filled in its own."""
    picture = torch.from_numpy((grey(image, contrast) * 255).astype(np.uint8)).expand(3, -1, -1)
    if not labels.any():
        return picture.permute(1, 2, 0).numpy()
    if colour:
        masks, colours, alpha = torch.from_numpy(outlines(labels))[None], [colour], 1.0
    else:
        kinds = cell_colours(labels)
        masks = torch.from_numpy(np.stack([kinds == k for k in range(len(CELL_COLOURS))]))
        colours, alpha = list(CELL_COLOURS), 0.55
    return draw_segmentation_masks(picture, masks, alpha=alpha, colors=colours).permute(1, 2, 0).numpy()


def busiest(weight: np.ndarray, side: int) -> tuple[slice, slice]:
    """Where the window of side x side pixels lies that holds most of weight (H, W).

    All of it, where it is smaller or has no weight.
    """
    if not weight.any():
        return slice(None), slice(None)
    size = [min(side, n) for n in weight.shape]
    mean = ndimage.uniform_filter(weight.astype(np.float32), size, mode="constant")
    y, x = (min(max(0, int(c) - n // 2), whole - n) for c, n, whole in zip(
        np.unravel_index(mean.argmax(), mean.shape), size, weight.shape, strict=True))
    return slice(y, y + size[0]), slice(x, x + size[1])


def scale_bar(axes, width: int, pixel_size_um: float | None) -> None:
    """A bar of a round length in um, about a quarter of the picture, under its right end."""
    if not pixel_size_um:
        return
    wanted = width * pixel_size_um / 4
    nice = max((k * 10.0 ** e for e in range(-2, 5) for k in (1, 2, 5) if k * 10.0 ** e <= wanted), default=wanted)
    bar = nice / pixel_size_um
    below, right = -9 / 72 * DPI / axes.bbox.height, width - 0.5
    axes.plot([right - bar, right], [below, below], color="black", lw=2.5, solid_capstyle="butt", clip_on=False,
              transform=axes.get_xaxis_transform())
    axes.annotate(f"{nice:g} µm", (right - bar, below), (-4, 0), xycoords=axes.get_xaxis_transform(),
                  textcoords="offset points", ha="right", va="center", fontsize=9, annotation_clip=False)


def nothing_to_show() -> Picture:
    """A small figure that says so, where a table or list is empty."""
    figure = Picture(4, 0.5)
    figure.text(0.02, 0.5, "nothing to show", va="center", color=GREY)
    return figure


def show_pictures(pictures: Sequence[np.ndarray], titles: Sequence[str], pixel_size_um: float | None = None,
                  columns: int = 5) -> Picture:
    """Pictures side by side, grey (H, W) float or RGB (H, W, 3), the scale bar under the first of the last row.

    A picture is shown with as many pixels as it has, or a multiple of them, as far as SHEET inches hold them; there
    are fewer columns where it would be shown much smaller.
    """
    if not pictures:
        return nothing_to_show()
    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures), max(1, int(SHEET * DPI / (MIN_ZOOM * width))))
    rows = -(-len(pictures) // columns)
    zoom = _zoom(width, columns)
    wide, tall = zoom * width, zoom * height
    whole_width, whole_height = columns * (wide + GAP) - GAP, rows * (tall + TITLE) + BELOW
    figure = Picture(whole_width / DPI, whole_height / DPI)
    figure.set_layout_engine("none")
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw={
        "left": 0, "right": 1, "top": 1 - TITLE / whole_height, "bottom": BELOW / whole_height,
        "wspace": GAP / wide, "hspace": TITLE / tall})
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, picture, title in zip(grid.flat, pictures, titles, strict=False):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1 if picture.dtype.kind == "f" else 255,
                    interpolation="nearest" if zoom == int(zoom) else "auto")
        axes.set_title(title, fontsize=10)
    scale_bar(grid[-1, 0], pictures[(rows - 1) * columns].shape[1], pixel_size_um)
    return figure


def _zoom(width: int, columns: int) -> float:
    """Pixels of the figure for each of the picture's: one, or a few where the picture is small; fewer to fit."""
    room = (SHEET * DPI - (columns - 1) * GAP) / columns
    wanted = max(1, -(-(4 if columns <= 2 else 3) * DPI // width))
    return wanted if wanted * width <= room else room // width if room >= 2 * width else room / width


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
