"""Review teacher labels: measure every pair and flag what looks wrong."""

import numpy as np
import pandas as pd
from scipy import ndimage
from skimage import measure
from tqdm.auto import tqdm

from ..errors import SegkitError
from .dataset import Dataset, read_pair
from .images import SPECK, normalise
from .optics import outline_level

MEASURES = ("cells", "foreground", "largest_cell", "contrast", "focus", "outline")
SHIFT_GAIN = 1.25  # correct masks of three public datasets reach 1.24, masks moved by 6 pixels 1.26 to 5.3
DISTANT = 10  # pixels between two parts of one cell that are not one
PROFILE, MIN_PROFILE = 6, 30  # pixels on either side of an outline, and the fewest at one distance from it
MIN_RISE = 0.15  # of the intensity range, from inside a cell to its halo
SHIFTS = (-6, -3, 0, 3, 6)  # pixels by which a mask is tried against its image


def review_teacher(dataset: Dataset) -> pd.DataFrame:
    """Measure every pair and flag what looks wrong, with the reason.

    Parameters
    ----------
    dataset : Dataset
        As `discover` returns it.

    Returns
    -------
    DataFrame
        A row per pair: experiment, position, frame, cells, foreground (share), largest_cell (pixels), contrast (of
        cells against their surroundings, in units of the image's intensity range), focus (mean absolute Laplacian),
        outline (`outline_offset`, pixels),
        flags (empty, or reasons separated by "; ").

    Notes
    -----
    A flag asks for a look, it is no verdict; leave frames out with EXCLUDE.
    """
    rows: list[dict] = []
    previous: tuple[tuple[str, str], np.ndarray] | None = None
    for frame in tqdm(dataset.pairs, desc="reviewing", unit="frame", leave=False):
        row: dict = {"experiment": frame.experiment, "position": frame.position, "frame": frame.frame}
        rows.append(row)
        try:
            image, labels = read_pair(frame)
        except SegkitError as error:
            row["flags"] = [str(error)]
            continue
        row |= _measure(image, labels)
        if previous and previous[0] == frame.unit and np.array_equal(previous[1], image):
            row["flags"].append("same image as the frame before")
        previous = frame.unit, image

    measured = [row for row in rows if "cells" in row]
    if not any(row["cells"] for row in measured):
        for row in measured:
            row["flags"].append("no cell in any masks file of the dataset")
    # only a position's own frames are comparable
    for unit in {(row["experiment"], row["position"]) for row in measured}:
        _compare_in_time([row for row in measured if (row["experiment"], row["position"]) == unit])
    table = pd.DataFrame(rows, columns=["experiment", "position", "frame", *MEASURES, "flags"])
    return table.assign(flags=["; ".join(flags) for flags in table["flags"]])


def _measure(image: np.ndarray, labels: np.ndarray) -> dict:
    """Measures and flags of one pair."""
    flags: list[str] = []
    areas = np.bincount(labels.ravel())[1:]
    areas = areas[areas > 0]
    scaled, foreground = normalise(image), labels > 0

    # the image: constant or overexposed
    saturated = float((image == image.max()).mean())
    if image.max() == image.min():
        flags.append("constant image")
    elif saturated > 0.02:
        flags.append(f"clipped: {saturated:.0%} of the pixels have the largest value")

    # the labels: specks, merged cells, a shift against the image
    if specks := int((areas < SPECK).sum()):
        flags.append(f"{specks} speck(s) of under {SPECK} pixels")
    if len(areas) >= 5 and areas.max() > 8 * np.median(areas):
        flags.append("one cell is over 8 times the median: merged cells?")
    flags += _no_labels(labels, areas)
    if foreground.any():
        gain, (y, x) = _best_shift(scaled, foreground)
        if gain > SHIFT_GAIN:
            flags.append(f"mask seems shifted: it fits better moved by {y}, {x} pixels (y, x)")
    surroundings = ndimage.binary_dilation(foreground, iterations=4) & ~foreground
    contrast = float(scaled[surroundings].mean() - scaled[foreground].mean()) if surroundings.any() else 0.0
    return {"cells": len(areas), "foreground": float(foreground.mean()), "flags": flags, "contrast": contrast,
            "largest_cell": int(areas.max(initial=0)), "focus": float(np.abs(ndimage.laplace(scaled)).mean()),
            "outline": outline_offset(scaled, labels)}


def _no_labels(labels: np.ndarray, areas: np.ndarray) -> list[str]:
    """Flags of labels (H, W) that look like classes, colours or grey levels, or like the background.

    areas: pixels of each label. A cell is one connected part with a number of its own.
    """
    parts = measure.label(labels, background=0, connectivity=2)  # connected pixels of one number
    pixels = np.bincount(parts.ravel())
    specks = np.count_nonzero(pixels[1:] < SPECK)
    large = np.where(pixels[parts] >= SPECK, parts, 0)
    table = pd.DataFrame(measure.regionprops_table(large, labels, ("bbox", "intensity_max")))
    by_number = table.groupby("intensity_max")
    # how far apart the parts of a number are along y or x: from the end of the first to the beginning of the last
    gaps = by_number[["bbox-0", "bbox-1"]].max().to_numpy() - by_number[["bbox-2", "bbox-3"]].min().to_numpy()
    distant = [str(int(number)) for number, gap in zip(by_number.groups, gaps, strict=True) if gap.max() >= DISTANT]
    flags = []
    if specks > max(10, len(table)):
        flags.append(f"grey levels along the edges: {specks} specks beside {len(table)} larger parts; was the file "
                     "saved as JPEG, or resized smoothly?")
    elif len(table) > 2 * len(by_number):
        flags.append(f"few numbers ({len(by_number)}) for many parts ({len(table)}): classes or colours in place of "
                     "cells?")
    elif distant:
        flags.append(f"one number in several distant parts: {', '.join(distant[:5])}")
    # the background of a frame reaches all its edges
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel(), minlength=2)[1:])
    edges = [largest[0].any(), largest[-1].any(), largest[:, 0].any(), largest[:, -1].any()]
    share = areas.max(initial=0) / labels.size
    if share > 1 / 2 or (share > 1 / 5 and all(edges)):
        flags.append(f"the largest cell covers {share:.0%} of the frame: are cells and background swapped, or is the "
                     "background a cell?")
    return flags


def _best_shift(scaled: np.ndarray, foreground: np.ndarray) -> tuple[float, tuple[int, int]]:
    """The shift (y, x) of the mask at which the image is steepest along its boundary, and by which factor."""
    # a mask in its place has its boundary on the image's edges
    steepness = ndimage.gaussian_gradient_magnitude(scaled, 1.0)
    rim = ndimage.binary_dilation(foreground) & ~ndimage.binary_erosion(foreground)
    found = {(y, x): float(steepness[np.roll(rim, (y, x), (0, 1))].mean()) for y in SHIFTS for x in SHIFTS}
    best = max(found, key=found.__getitem__)
    return found[best] / max(found[0, 0], 1e-6), best


def _compare_in_time(rows: list[dict]) -> None:
    """Flag what does not fit the same position's neighbouring frames; changes the rows' flags."""
    if len(rows) < 3:
        return
    counts = np.array([row["cells"] for row in rows], float)
    # two frames on either side: one wrong frame does not move their median
    usual = ndimage.generic_filter(counts, np.nanmedian, footprint=[1, 1, 0, 1, 1], mode="constant", cval=np.nan)
    focus = np.array([row["focus"] for row in rows])
    for k, row in enumerate(rows):
        if counts[k] == 0 and usual[k] >= 1:
            row["flags"].append(f"empty mask, and the frames beside it have {usual[k]:.0f} cells")
        elif abs(counts[k] - usual[k]) > max(3.0, 0.4 * usual[k]):
            row["flags"].append(f"{counts[k]:.0f} cells, and the frames beside it have {usual[k]:.0f}")
        if focus[k] < 0.5 * np.median(focus):
            row["flags"].append("out of focus: half as sharp as the position's other frames")


def outline_offset(image: np.ndarray, labels: np.ndarray) -> float:
    """How far outside of these outlines Omnipose would draw them, pixels (`optics.outline_level`); nan: cannot say.

    image, normalised, and labels: (H, W). The profile of the intensity across the outline is measured where no other
    cell is near.
    """
    if not labels.any():
        return np.nan
    outside, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    inside = ndimage.distance_transform_edt(labels > 0)
    depth = np.where(labels > 0, 0.5 - inside, outside - 0.5)  # pixels from the outline, negative inside
    owner, reach = labels[tuple(nearest)], 2 * PROFILE + 1
    alone = ndimage.maximum_filter(owner, reach) == ndimage.minimum_filter(owner, reach)

    # mean intensity by distance from the outline
    near = alone & (np.abs(depth) < PROFILE)
    by_distance = pd.Series(image[near]).groupby((2 * depth[near]).round() / 2)
    mean = by_distance.mean()[by_distance.size() >= MIN_PROFILE]
    at, profile = mean.index.to_numpy(), mean.to_numpy()
    if not (at < -1).any() or not (at > 2).any():
        return np.nan

    # from the darkest place inside to the halo
    start = int(np.argmin(np.where(at <= 1.5, profile, np.inf)))
    rise = np.maximum.accumulate(profile[start:start + int(profile[start:].argmax()) + 1])
    radius = np.median(ndimage.maximum(inside, labels, np.unique(labels[labels > 0]))) - 0.5
    if rise[-1] - rise[0] < MIN_RISE or profile[at < -1].mean() > profile[at > 1].mean():  # no dark cell with a halo
        return np.nan
    level = rise[0] + outline_level(float(radius)) * (rise[-1] - rise[0])
    return float(np.interp(level, rise, at[start:start + len(rise)]))
