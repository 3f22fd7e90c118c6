"""Measure the cells of a frame."""

import numpy as np
import pandas as pd
from skimage.measure import regionprops_table

from ..data.dataset import Frame

CELL_COLUMNS = ("experiment", "position", "frame", "label", "area_px", "length_px", "width_px", "centroid_y",
                "centroid_x", "touches_border", "area_um2", "length_um", "width_um")
MEASURED = {"label": "label", "area": "area_px", "axis_major_length": "length_px", "axis_minor_length": "width_px",
            "centroid-0": "centroid_y", "centroid-1": "centroid_x"}  # scikit-image's names -> ours


def measure_cells(labels: np.ndarray, frame: Frame, pixel_size_um: float | None = None) -> pd.DataFrame:
    """Measure every cell of a frame.

    Parameters
    ----------
    labels : ndarray of int, (H, W)
        0 is background.
    frame : Frame
        The frame of the labels.
    pixel_size_um : float, optional
        um per pixel.

    Returns
    -------
    DataFrame
        One row per cell, CELL_COLUMNS: sizes in pixels and, with a pixel size, in um; the centroid (y, x) in pixels
        from the upper left corner.

    Notes
    -----
    Length and width are the axes of the ellipse with the cell's second moments, as in scikit-image's regionprops.
    """
    measured = regionprops_table(labels, properties=("label", "area", "axis_major_length", "axis_minor_length",
                                                     "centroid", "bbox"))
    table = pd.DataFrame(measured).rename(columns=MEASURED)
    # such cells are cut off: their sizes are too small
    height, width = labels.shape
    border = ((table["bbox-0"] == 0) | (table["bbox-1"] == 0)
              | (table["bbox-2"] == height) | (table["bbox-3"] == width))
    # without a pixel size these columns are empty
    um = pixel_size_um or np.nan
    table = table.assign(experiment=frame.experiment, position=frame.position, frame=frame.frame,
                         touches_border=border, area_um2=table["area_px"] * um ** 2,
                         length_um=table["length_px"] * um, width_um=table["width_px"] * um)
    return table[list(CELL_COLUMNS)]
