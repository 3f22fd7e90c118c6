"""Measure the cells of a frame."""

import numpy as np
import pandas as pd
from skimage.measure import regionprops_table

from ..data.dataset import Frame

CELL_COLUMNS = ("experiment", "position", "frame", "label", "area_px", "length_px", "width_px", "centroid_y",
                "centroid_x", "touches_border", "area_um2", "length_um", "width_um")


def measure_cells(labels: np.ndarray, frame: Frame, pixel_size_um: float | None = None) -> pd.DataFrame:
    """One row per cell of labels (H, W): CELL_COLUMNS, sizes in pixels and, with a pixel size, in um.

    Length and width are the axes of the ellipse with the cell's second moments; (y, x) from the upper left corner.
    """
    measured = regionprops_table(labels, properties=("label", "area", "axis_major_length", "axis_minor_length",
                                                     "centroid", "bbox"))
    height, width = labels.shape
    um = pixel_size_um or np.nan
    border = ((measured["bbox-0"] == 0) | (measured["bbox-1"] == 0)
              | (measured["bbox-2"] == height) | (measured["bbox-3"] == width))
    table = pd.DataFrame({
        "experiment": frame.experiment, "position": frame.position, "frame": frame.frame, "label": measured["label"],
        "area_px": measured["area"], "length_px": measured["axis_major_length"],
        "width_px": measured["axis_minor_length"], "centroid_y": measured["centroid-0"],
        "centroid_x": measured["centroid-1"], "touches_border": border})
    return table.assign(area_um2=table["area_px"] * um ** 2, length_um=table["length_px"] * um,
                        width_um=table["width_px"] * um)[list(CELL_COLUMNS)]
