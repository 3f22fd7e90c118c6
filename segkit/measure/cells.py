"""Measure the cells of a frame."""

from collections.abc import Iterator
from numbers import Real

import numpy as np
import pandas as pd
from scipy import ndimage
from skimage.segmentation import relabel_sequential

from ..data.dataset import Frame
from ..errors import SegkitError

CELL_COLUMNS = ("experiment", "position", "frame", "label", "area_px", "length_px", "width_px", "centroid_y",
                "centroid_x", "touches_border", "area_um2", "length_um", "width_um")
DIGITAL = 0.995  # a straight line's length, as a share of that measured on pixels, on the average over all directions


def measure_cells(labels: np.ndarray, pixel_size_um: float | None = None) -> pd.DataFrame:
    """Measure every cell of a frame.

    Parameters
    ----------
    labels : ndarray of int, (H, W)
        0 is background.
    pixel_size_um : float, optional
        um per pixel.

    Returns
    -------
    DataFrame
        One row per cell, CELL_COLUMNS from label on: sizes in pixels and, with a pixel size, in um; the centroid (y, x)
        in pixels from the upper left corner; whether the frame's border cuts the cell off.

    Raises
    ------
    SegkitError
        If labels are no whole numbers from 0, or not (H, W), or the pixel size is no number above 0.

    Notes
    -----
    Length (along the cell's middle) and width are those of the spherocylinder, straight or bent, with the cell's area
    A and perimeter P: P = 2 (length - width) + pi width, A = width (length - width) + pi width^2 / 4. The perimeter is
    the total variation of the cell's smoothed mask (coarea formula; Fleming and Rishel 1960, Arch Math 11:218). Both
    are within 3 % on drawn rods of 8 pixels' width or more, straight ones of 2 to 60 widths and bent ones.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or (labels.size and labels.min() < 0):
        raise SegkitError(f"labels have shape {labels.shape} and type {labels.dtype}: whole numbers from 0 of height x "
                          "width were needed")
    if pixel_size_um is not None and not (isinstance(pixel_size_um, Real) and pixel_size_um > 0):
        raise SegkitError(f"pixel_size_um is {pixel_size_um!r}: a number above 0 was needed")
    rows = []
    for label, box, cell in _cells(labels):
        rows_of_cell, columns_of_cell = cell.sum(1), cell.sum(0)  # pixels
        area, perimeter = int(rows_of_cell.sum()), _perimeter(cell)
        length, width = _spherocylinder(area, perimeter)
        # smoothing by a variance of 1/2 shortens a curve of radius r by 1 / (4 r^2): both ends together are a circle
        length, width = _spherocylinder(area, perimeter + np.pi / width)
        y, x = (side.start + float(pixels @ np.arange(len(pixels))) / area
                for side, pixels in zip(box, (rows_of_cell, columns_of_cell), strict=True))
        border = any(side.start == 0 or side.stop == size for side, size in zip(box, labels.shape, strict=True))
        rows.append((label, area, length, width, y, x, border))
    names, types = CELL_COLUMNS[3:10], (int, int, float, float, float, float, bool)
    table = pd.DataFrame(rows, columns=list(names)).astype(dict(zip(names, types, strict=True)))
    um = np.nan if pixel_size_um is None else pixel_size_um  # without it these columns are empty
    return table.assign(area_um2=table["area_px"] * um ** 2, length_um=table["length_px"] * um,
                        width_um=table["width_px"] * um)


def _cells(labels: np.ndarray) -> Iterator[tuple[int, tuple[slice, slice], np.ndarray]]:
    """The number, place and mask (h, w) of each cell."""
    if not labels.size:
        return
    # small numbers in place of large ones, since there is a box for every number up to the largest
    original = range(int(labels.max()) + 1)
    if labels.max() > labels.size:
        labels, _, original = relabel_sequential(labels)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box:
            yield int(original[label]), box, labels[box] == label


def _perimeter(cell: np.ndarray) -> float:
    """Outer perimeter in pixels of a cell's mask (h, w).

    It is the sum of the gradient of the mask, smoothed by (1, 2, 1) / 4.
    """
    mask = np.zeros((cell.shape[0] + 8, cell.shape[1] + 8), np.int16)
    mask[4:-4, 4:-4] = cell
    # a hole parts a row and a column: without more runs of pixels than these, none is looked for, which takes longer
    if (np.count_nonzero(mask[1:] > mask[:-1]) > cell.shape[1]
            and np.count_nonzero(mask[:, 1:] > mask[:, :-1]) > cell.shape[0]):
        mask = ndimage.binary_fill_holes(mask).astype(np.int16)
    mask = mask[:-2] + 2 * mask[1:-1] + mask[2:]
    mask = mask[:, :-2] + 2 * mask[:, 1:-1] + mask[:, 2:]
    dy = mask[2:, 1:-1] - mask[:-2, 1:-1]
    dx = mask[1:-1, 2:] - mask[1:-1, :-2]
    # 32: 16 of the smoothing, 2 of the difference
    return DIGITAL * float(np.sqrt(dy * dy + dx * dx, dtype=np.float32).sum()) / 32


def _spherocylinder(area: float, perimeter: float) -> tuple[float, float]:
    """Length and width of a rod with round ends; a disc where the perimeter is the smallest possible."""
    width = (perimeter - np.sqrt(max(perimeter ** 2 - 4 * np.pi * area, 0))) / np.pi
    return (perimeter - np.pi * width) / 2 + width, width


def cells_of_frame(labels: np.ndarray, frame: Frame, pixel_size_um: float | None = None) -> pd.DataFrame:
    """`measure_cells` with the columns that name the frame: CELL_COLUMNS."""
    table = measure_cells(labels, pixel_size_um)
    return table.assign(experiment=frame.experiment, position=frame.position, frame=frame.frame)[list(CELL_COLUMNS)]
