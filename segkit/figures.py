"""Pictures of images and labels: every function takes arrays and returns one; nothing is shown or kept."""

import io
from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from matplotlib.text import Text
from PIL import Image
from scipy import ndimage
from skimage.segmentation import expand_labels, find_boundaries
from torchvision.utils import draw_segmentation_masks

from .targets import normalise

TEACHER, STUDENT, ACCENT, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"  # Okabe and Ito's colour-blind-safe set
CELL_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
NEAR = 4  # pixels around a cell; two cells nearer than twice that get different colours
DPI = 72
SHEET = 13  # inches, the widest figure
LEAST_ZOOM = 0.44  # pixels of the figure for each of the picture's; rather fewer columns than less
GAP, TITLE, BELOW = 8, 23, 20  # pixels between pictures, for a title, for the scale bar


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
    columns = min(columns, len(pictures), max(1, int(SHEET * DPI / (LEAST_ZOOM * width))))
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
