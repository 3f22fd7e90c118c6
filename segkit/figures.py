"""Pictures: every function takes arrays or tables and returns a figure; nothing is shown or kept."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torchvision.utils import draw_segmentation_masks

from .data import Dataset, Split
from .targets import normalise

TEACHER, STUDENT, ACCENT, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"  # Okabe and Ito's colour-blind-safe set
CELL_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
DPI = 72


class Picture(Figure):
    """A figure that Jupyter shows by itself, without pyplot's global state."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def to_png(figure: Picture) -> bytes:
    """A figure as PNG, for an ipywidgets.Image."""
    return figure._repr_png_()


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Picture, np.ndarray]:
    figure = Picture(width, height)
    return figure, figure.subplots(rows, columns, squeeze=False)


def grey(image: np.ndarray, contrast: float = 1.0) -> np.ndarray:
    """An image (H, W) of any range as float32 0..1 for display; contrast > 1 steepens it."""
    return np.clip((normalise(image) - 0.5) * contrast + 0.5, 0, 1)


def outlines(labels: np.ndarray) -> np.ndarray:
    """Bool (H, W): the pixels of cells that touch another cell or the background."""
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        differs = np.diff(labels, axis=axis) != 0
        first, second = [slice(None)] * 2, [slice(None)] * 2
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        edge[tuple(first)] |= differs
        edge[tuple(second)] |= differs
    return edge & (labels > 0)


def overlay(image: np.ndarray, labels: np.ndarray, colour: str | None = STUDENT, contrast: float = 1.0) -> np.ndarray:
    """RGB uint8 (H, W, 3): the image with outlines in one colour, or with None every cell filled in its own."""
    picture = torch.from_numpy((grey(image, contrast) * 255).astype(np.uint8)).expand(3, -1, -1)
    if not labels.any():
        return picture.permute(1, 2, 0).numpy()
    if colour:
        masks, colours, alpha = torch.from_numpy(outlines(labels))[None], [colour], 1.0
    else:
        kinds = np.where(labels > 0, (labels * 3) % len(CELL_COLOURS), -1)
        masks = torch.from_numpy(np.stack([kinds == k for k in range(len(CELL_COLOURS))]))
        colours, alpha = list(CELL_COLOURS), 0.55
    return draw_segmentation_masks(picture, masks, alpha=alpha, colors=colours).permute(1, 2, 0).numpy()


def scale_bar(axes, width: int, pixel_size_um: float | None) -> None:
    """A bar of a round length in um, about a quarter of the picture, in its lower right corner."""
    if not pixel_size_um:
        return
    wanted = width * pixel_size_um / 4
    nice = max((k * 10.0 ** e for e in range(-2, 5) for k in (1, 2, 5) if k * 10.0 ** e <= wanted), default=wanted)
    bar = nice / pixel_size_um
    top = axes.get_ylim()[0] * 0.95
    axes.plot([width * 0.96 - bar, width * 0.96], [top, top], color="white", lw=4, solid_capstyle="butt")
    axes.plot([width * 0.96 - bar, width * 0.96], [top, top], color="black", lw=2, solid_capstyle="butt")
    axes.text(width * 0.96 - bar / 2, top - axes.get_ylim()[0] * 0.02, f"{nice:g} µm", ha="center", va="bottom",
              fontsize=9, color="black", bbox={"facecolor": "white", "alpha": 0.7, "pad": 1, "linewidth": 0})


def show_pictures(pictures: Sequence[np.ndarray], titles: Sequence[str], pixel_size_um: float | None = None,
                  columns: int = 5, size: float = 2.6) -> Picture:
    """Pictures side by side: grey (H, W) float or RGB (H, W, 3); the scale bar on the first."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height, width = pictures[0].shape[:2]
    figure, grid = _figure(size * columns, (size * height / width + 0.25) * rows, rows, columns)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, picture, title in zip(grid.flat, pictures, titles, strict=False):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1 if picture.dtype.kind == "f" else 255)
        axes.set_title(title, fontsize=10)
    scale_bar(grid.flat[0], width, pixel_size_um)
    return figure


def _curves(axes_pair: np.ndarray, table: pd.DataFrame) -> None:
    for axes, kind, label in zip(axes_pair, ("loss", "dice"), ("loss", "Dice"), strict=True):
        axes.plot(table["epoch"], table[f"train_{kind}"], color=GREY, lw=1.5, label="training crops")
        axes.plot(table["epoch"], table[f"val_{kind}"], color=STUDENT, lw=2, marker="o", ms=3,
                  label="whole validation frames")
        for epoch in table.loc[table["event"].fillna("") != "", "epoch"]:
            axes.axvline(epoch, color=TEACHER, ls=":", lw=1)
        axes.set(xlabel="epoch", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
    axes_pair[1].set_ylim(0, 1.02)
    axes_pair[1].legend(frameon=False, loc="lower right")


def show_history(table: pd.DataFrame) -> Picture:
    """Loss and Dice against epochs, for training crops and whole validation frames; events as dotted lines."""
    figure, grid = _figure(9, 3.2, 1, 2)
    _curves(grid[0], table)
    return figure


def show_live(table: pd.DataFrame, previews: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Picture:
    """The training so far: its curves, and what the student now sees in the same validation frames."""
    figure = Picture(10, 5.4)
    top, bottom = np.asarray(figure.subfigures(2, 1)).tolist()
    _curves(top.subplots(1, 2), table)
    pictures = [(p, t) for image, probability, target in previews
                for p, t in ((np.clip(image, 0, 1), "image"), (probability, "student's probability"),
                             (target.astype(float), "teacher's mask"))]
    for axes, (picture, title) in zip(bottom.subplots(1, len(pictures)) if pictures else (), pictures, strict=True):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return figure


def show_split(dataset: Dataset, split: Split) -> Picture:
    """Each position as a row of frames: blue to learn from, orange to judge by, grey not used."""
    training, validation = set(split.train), set(split.validation)
    units = sorted({f.unit for f in dataset.frames})
    figure, grid = _figure(9, 0.28 * len(units) + 1.0)
    axes = grid[0, 0]
    for colour, wanted, label in ((TEACHER, training, f"training ({len(split.train)})"),
                                  (STUDENT, validation, f"validation ({len(split.validation)})"),
                                  (GREY, set(dataset.frames) - training - validation, "not used")):
        if wanted:
            axes.scatter([f.frame for f in wanted], [units.index(f.unit) for f in wanted], color=colour, marker="s",
                         s=28, label=label)
    axes.set_yticks(range(len(units)), [" ".join(unit) for unit in units])
    axes.set(xlabel="frame", ylim=(len(units) - 0.5, -0.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def show_over_time(table: pd.DataFrame, value: str, ylabel: str) -> Picture:
    """A line per position over frames, a colour per experiment; table: experiment, position, frame and the value."""
    figure, grid = _figure(7.5, 3)
    axes = grid[0, 0]
    for n, (experiment, lines) in enumerate(table.groupby("experiment")):
        colour = (TEACHER, STUDENT, ACCENT, GREY)[n % 4]
        for k, (_, line) in enumerate(lines.groupby("position")):
            axes.plot(line["frame"], line[value], color=colour, lw=1.5, marker=".",
                      label=None if k else str(experiment))
    axes.set(xlabel="frame", ylabel=ylabel, ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def show_histograms(values: dict[str, np.ndarray], xlabel: str, bins: int = 40) -> Picture:
    """One outlined histogram per name, on shared axes."""
    figure, grid = _figure(6.5, 3)
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins)
    for (name, data), colour in zip(values.items(), (TEACHER, STUDENT, ACCENT, GREY, "black"), strict=False):
        grid[0, 0].hist(data, edges, histtype="step", lw=2, color=colour, label=name)
    grid[0, 0].set(xlabel=xlabel, ylabel="count")
    grid[0, 0].spines[["top", "right"]].set_visible(False)
    grid[0, 0].legend(frameon=False)
    return figure


def show_bars(values: pd.Series, xlabel: str, colour: str = STUDENT) -> Picture:
    """Horizontal bars, one per index entry."""
    figure, grid = _figure(7, 0.3 * len(values) + 0.9)
    axes = grid[0, 0]
    axes.barh([str(name) for name in values.index], values.to_numpy(), color=colour, height=0.6)
    axes.invert_yaxis()
    axes.set(xlabel=xlabel)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
