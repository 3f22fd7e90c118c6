"""Review teacher labels: measure every pair and flag what looks wrong."""

from collections import defaultdict

import numpy as np
import pandas as pd
from scipy import ndimage
from tqdm.auto import tqdm

from ..errors import SegkitError
from .dataset import Dataset, read_pair
from .images import SPECK, normalise

MEASURES = ("cells", "foreground", "largest_cell", "contrast", "focus")
SHIFT_GAIN = 1.25  # sound masks of three public datasets reach 1.24, masks moved by 6 pixels 1.26 to 5.3
SHIFTS = (-6, -3, 0, 3, 6)  # pixels by which a mask is tried against its image


def review_teacher(dataset: Dataset) -> pd.DataFrame:
    """Measure every pair and flag what looks wrong, with the reason.

    Returns a row per pair: experiment, position, frame, cells, foreground (share), largest_cell (pixels), contrast
    (of cells against their surroundings, in units of the image's range), focus (mean absolute Laplacian), flags
    (empty, or reasons separated by "; "). A flag asks for a look, it is no verdict; leave frames out with EXCLUDE.
    """
    rows = []
    before: tuple[tuple[str, str], np.ndarray] | None = None
    for frame in tqdm(dataset.pairs, desc="reviewing", unit="frame", leave=False):
        which = {"experiment": frame.experiment, "position": frame.position, "frame": frame.frame}
        try:
            image, labels = read_pair(frame)
        except SegkitError as error:
            rows.append({**which, "flags": [str(error)]})
            continue
        rows.append({**which, **_measure(image, labels)})
        if before and before[0] == frame.unit and np.array_equal(before[1], image):
            rows[-1]["flags"].append("same image as the frame before")
        before = frame.unit, image
    by_unit = defaultdict(list)
    for row in rows:
        by_unit[row["experiment"], row["position"]].append(row)
    for unit in by_unit.values():
        _compare_in_time(unit)
    table = pd.DataFrame(rows, columns=["experiment", "position", "frame", *MEASURES, "flags"])
    return table.assign(flags=["; ".join(flags) for flags in table["flags"]])


def _measure(image: np.ndarray, labels: np.ndarray) -> dict:
    """What one pair says of itself."""
    flags: list[str] = []
    areas = np.bincount(labels.ravel())[1:]
    areas = areas[areas > 0]
    scaled = normalise(image)
    if image.max() == image.min():
        flags.append("constant image")
    else:
        top = float((image == image.max()).mean())
        if top > 0.02:
            flags.append(f"clipped: {top:.0%} of the pixels have the largest value")
    foreground = labels > 0
    contrast = _contrast(scaled, foreground)
    if (specks := int((areas < SPECK).sum())):
        flags.append(f"{specks} speck(s) of under {SPECK} pixels")
    if len(areas) >= 5 and areas.max() > 8 * np.median(areas):
        flags.append("one cell is over 8 times the median: merged cells?")
    if foreground.any() and not foreground.all():
        gain, (y, x) = _best_shift(scaled, foreground)
        if gain > SHIFT_GAIN:
            flags.append(f"mask seems shifted: it fits better moved by {y}, {x} pixels (y, x)")
    return {"cells": len(areas), "foreground": float(foreground.mean()), "flags": flags, "contrast": contrast,
            "largest_cell": int(areas.max(initial=0)), "focus": float(np.abs(ndimage.laplace(scaled)).mean())}


def _contrast(scaled: np.ndarray, foreground: np.ndarray) -> float:
    """Mean of the surroundings (up to 4 pixels away) minus mean of the cells."""
    ring = ndimage.binary_dilation(foreground, iterations=4) & ~foreground
    return float(scaled[ring].mean() - scaled[foreground].mean()) if ring.any() and foreground.any() else 0.0


def _best_shift(scaled: np.ndarray, foreground: np.ndarray) -> tuple[float, tuple[int, int]]:
    """By which factor the image's edges are steeper along the mask's rim when the mask is moved, and how far."""
    steepness = ndimage.gaussian_gradient_magnitude(scaled, 1.0)
    rim = ndimage.binary_dilation(foreground) & ~ndimage.binary_erosion(foreground)
    found = {(y, x): float(steepness[np.roll(rim, (y, x), (0, 1))].mean()) for y in SHIFTS for x in SHIFTS}
    best = max(found, key=found.__getitem__)
    return found[best] / max(found[0, 0], 1e-6), best


def _compare_in_time(rows: list[dict]) -> None:
    """Flag what does not fit the same position's neighbouring frames; changes the rows' flags."""
    measured = [row for row in rows if "cells" in row]
    counts = np.array([row["cells"] for row in measured], float)
    if len(counts) < 3:
        return
    for k, row in enumerate(measured):
        near = np.delete(counts[max(0, k - 2):k + 3], min(k, 2))
        usual = float(np.median(near))
        if counts[k] == 0 and usual >= 1:
            row["flags"].append(f"empty mask, and the frames beside it have {usual:.0f} cells")
        elif abs(counts[k] - usual) > max(3.0, 0.4 * usual):
            row["flags"].append(f"{counts[k]:.0f} cells, and the frames beside it have {usual:.0f}")
    focus = np.array([row["focus"] for row in measured])
    for row, value in zip(measured, focus, strict=True):
        if value < 0.5 * np.median(focus):
            row["flags"].append("out of focus: half as sharp as the position's other frames")
