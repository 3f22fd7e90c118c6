"""Metrics against teacher labels: Dice, matched instances, scores of frames."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from skimage.segmentation import expand_labels

from ..data.dataset import Frame, common_area, exclude, read_masks, read_pair
from ..data.discovery import discover
from ..data.images import blank_pixels, hash_pixels, read_image
from ..errors import SegkitError
from ..model.postprocess import join_fragments
from ..model.predict import Maps, find_cells, segment
from ..model.unet import ModelInfo, UNet
from ..settings import Settings

DOUBT = 0.2  # of the affinity: how far `estimate_quality` moves the threshold at which fragments are joined


def dice(mask: ArrayLike, target: ArrayLike) -> float:
    """Dice coefficient 2 |A & B| / (|A| + |B|) of two masks.

    Parameters
    ----------
    mask, target : array_like, (H, W)
        Boolean, or labels: values above 0 are foreground.

    Returns
    -------
    float
        From 0 to 1; two empty masks score 1.

    Raises
    ------
    SegkitError
        If the shapes differ.

    Notes
    -----
    Dice 1945, doi 10.2307/1932409.
    """
    a, b = _same_shape(np.asarray(mask) > 0, np.asarray(target) > 0)
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else 1.0


class Matching(NamedTuple):
    """Instances matched one to one at an IoU threshold."""

    tp: int
    fp: int
    fn: int
    precision: float
    recall: float
    average_precision: float  # tp / (tp + fp + fn)
    panoptic_quality: float  # sum of matched IoU / (tp + fp / 2 + fn / 2)


def match_instances(labels: ArrayLike, target_labels: ArrayLike, iou: float = 0.5) -> Matching:
    """Match predicted instances with those of the target, one to one, as many as reach the IoU threshold.

    Parameters
    ----------
    labels, target_labels : array_like of int, (H, W)
        0 is background; numbers may have gaps.
    iou : float
        Threshold in (0, 1]; a pair with exactly this IoU matches.

    Returns
    -------
    Matching
        tp, fp, fn, precision, recall, average_precision, panoptic_quality. Without any instance on either side all
        ratios are 1.

    Raises
    ------
    SegkitError
        If the shapes differ or the threshold is outside (0, 1].

    Notes
    -----
    Panoptic quality: Kirillov et al., CVPR 2019. Average precision as in StarDist and Cellpose.
    """
    return match(iou_table(labels, target_labels), iou)


def iou_table(labels: ArrayLike, target_labels: ArrayLike) -> csr_array:
    """IoU of every predicted with every target instance, (instances, targets), sparse: a cell overlaps few others.

    Computed once, it serves `match` at any number of thresholds. See `match_instances`.
    """
    a, b = _same_shape(np.asarray(labels), np.asarray(target_labels))
    # most of an image is background in both: leaving it out saves most of the time
    foreground = (a != 0) | (b != 0)
    instance, instances = _number(a[foreground])
    target, targets = _number(b[foreground])

    # shared pixels of every pair; row 0 and column 0 are background, and only count in the areas
    ones = np.ones(len(instance))
    shared = coo_array((ones, (instance, target)), shape=(instances + 1, targets + 1)).tocsr()
    area, target_area = shared.sum(axis=1), shared.sum(axis=0)
    pairs = shared[1:, 1:].tocoo()
    union = area[1:][pairs.row] + target_area[1:][pairs.col] - pairs.data
    return csr_array((pairs.data / union, (pairs.row, pairs.col)), shape=(instances, targets))


def match(table: csr_array, iou: float = 0.5) -> Matching:
    """Match one to one: the most pairs that reach the threshold and, among these, the largest sum of IoU.

    A maximum weight matching of the sparse graph of overlaps (Jonker and Volgenant 1987); table: see `iou_table`.
    """
    if not 0 < iou <= 1:
        raise SegkitError(f"iou is {iou}: a threshold above 0 and up to 1 was needed")
    n, m = table.shape
    pairs = table.tocoo()
    reached = pairs.data >= iou
    instance, target, ious = pairs.row[reached], pairs.col[reached], pairs.data[reached]

    # a pair gains 2 and a little for its IoU, so that one more pair gains more than all IoU together;
    # an instance without a partner takes a column of its own, which gains 1
    alone = np.arange(n)
    gain = np.concatenate([2 + ious / (n + 1), np.ones(n)])
    rows, columns = np.concatenate([instance, alone]), np.concatenate([target, m + alone])
    graph = csr_array((gain, (rows, columns)), shape=(n, m + n))
    _, partner = min_weight_full_bipartite_matching(graph, maximize=True)  # (n,), a column for each instance

    matched = ious[partner[instance] == target]
    tp, fp, fn = len(matched), n - len(matched), m - len(matched)
    if tp + fp + fn == 0:
        return Matching(0, 0, 0, 1.0, 1.0, 1.0, 1.0)
    return Matching(tp, fp, fn, precision=tp / max(n, 1), recall=tp / max(m, 1), average_precision=tp / (tp + fp + fn),
                    panoptic_quality=float(matched.sum()) / (tp + fp / 2 + fn / 2))


def _number(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Labels (n,) as 1, 2, ... without gaps, in order, 0 still background; and how many there are."""
    native = labels.astype(labels.dtype.newbyteorder("="), copy=False)  # pandas takes no other byte order
    codes, found = pd.factorize(native, sort=True)
    numbers = np.where(found != 0, np.cumsum(found != 0), 0)
    return numbers[codes], int(np.count_nonzero(found))


def _same_shape(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.shape != b.shape:
        raise SegkitError(f"shapes {a.shape} and {b.shape} differ: two images of one size were needed")
    return a, b


def estimate_quality(info: ModelInfo, maps: Maps, cells: np.ndarray) -> float:
    """The panoptic quality of a frame, 0 to 1, estimated without labels. NaN without any cell: empty, or not seen.

    cells: of `find_cells`, numbered without gaps.

    Notes
    -----
    The square of the mean IoU of the cells with the foreground probability in and around them, times the panoptic
    quality between the cells that are found where fragments are joined readily and where they are joined reluctantly
    (with files of version 1.1: with less and with more prominence; the starting recipe has neither). Figures are in
    benchmarks/README.md.
    """
    if not cells.any():
        return math.nan
    # (cells,): what of the probability lies in each cell, and what in it and one pixel around it
    inside, nearby = (np.bincount(region.ravel(), maps.probability.ravel())[1:]
                      for region in (cells, expand_labels(cells)))
    overlap = float(np.mean(inside / (np.bincount(cells.ravel())[1:] + nearby - inside)))

    if maps.affinity is None:
        split, joined = (find_cells(replace(info, prominence=info.prominence * step), maps) for step in (0.6, 1.6))
    else:
        split = find_cells(info, maps._replace(affinity=maps.affinity - DOUBT))
        joined = join_fragments(cells, maps.affinity + DOUBT)
    return overlap ** 2 * match_instances(split, joined).panoptic_quality


def hashes_by_position(images: Iterable[tuple[Frame, str]]) -> dict[str, list[str]]:
    """Frames with the hashes of their images, as a model file records them (ModelInfo.trained_on)."""
    return join_records(*({"/".join(frame.unit): [image_hash]} for frame, image_hash in images if image_hash))


def join_records(*records: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The union of records: EXPERIMENT/position -> hashes of its images."""
    joined: dict[str, set[str]] = {}
    for record in records:
        for name, hashes in record.items():
            joined.setdefault(name, set()).update(hashes)
    return {name: sorted(joined[name]) for name in sorted(joined)}


def position_parts(info: ModelInfo, frames: Iterable[Frame]) -> dict[tuple[str, str], str]:
    """What each (experiment, position) was for this model: "training", "validation" or "other".

    The images decide, since positions of different datasets may have the same name. For a model file without a record
    (before 1.2) all are "other".
    """
    part_of = dict.fromkeys(set().union(*info.validated_on.values()), "validation")
    part_of |= dict.fromkeys(set().union(*info.trained_on.values()), "training")
    parts = {}
    # pairs first, since a training uses no other frames
    ordered = sorted(frames, key=lambda frame: (frame.unit, frame.masks is None))
    for unit, members in groupby(ordered, key=lambda frame: frame.unit):
        # one image is enough for a name that the model does not know; for a known name any of the images may be the
        # one that was used
        known = "/".join(unit) in info.trained_on.keys() | info.validated_on.keys()
        hashes = islice(filter(None, map(_image_hash, members)), None if known else 1)
        parts[unit] = next((part_of[image_hash] for image_hash in hashes if image_hash in part_of), "other")
    return parts


def frame_parts(info: ModelInfo, frames: Sequence[Frame], settings: Settings) -> dict[str, str]:
    """What each frame, by its name, was for this model: as `position_parts`, or "excluded".

    Excluded are the frames that EXCLUDE names and that the model was not trained on.
    """
    positions, trained = position_parts(info, frames), set().union(*info.trained_on.values())
    parts = {frame.name: positions[frame.unit] for frame in frames}
    for frame in exclude(frames, settings.exclude)[1]:
        if parts[frame.name] != "training" or _image_hash(frame) not in trained:
            parts[frame.name] = "excluded"
    return parts


def positions_trained_on(info: ModelInfo, validation: Mapping[str, Sequence[str]], settings: Settings) -> list[str]:
    """Which validation positions, given as `hashes_by_position`, a model was trained on, even on other frames."""
    trained = set().union(*info.trained_on.values())
    found = {name for name, hashes in validation.items() if trained.intersection(hashes)}
    # a model file of version 1.1 has no such record: its settings tell which positions of its own dataset it was
    # trained on
    names = ("DATASET_PATH", "VALIDATION", "EXCLUDE")
    path, suffixes, left_out = (str(info.settings.get(name) or "") for name in names)
    if not info.trained_on and path and Path(path).resolve() == settings.dataset_path.resolve():
        unused = tuple(f"{name}/" for name in left_out.split(","))
        found |= {name for name in validation
                  if not name.endswith(tuple(suffixes.split(","))) and not f"{name}/".startswith(unused)}
    # the same name: another laboratory's position, or other frames of this one
    alike = (validation.keys() & info.trained_on.keys()) - found
    frames = discover(settings.dataset_path, settings.masks_path).frames if alike else ()
    parts = position_parts(info, [frame for frame in frames if "/".join(frame.unit) in alike])
    return sorted(found | {"/".join(unit) for unit, part in parts.items() if part == "training"})


def _image_hash(frame: Frame) -> str:
    try:
        return hash_pixels(read_image(frame.image, frame.page))
    except SegkitError:
        return ""  # a Problem of the dataset


def score_frame(frame: Frame, labels: np.ndarray, blank: np.ndarray | None = None) -> dict[str, Any]:
    """Agreement of labels (H, W) with the teacher's: Dice, panoptic quality, average precision, cells, area.

    blank: the image's `blank_pixels`, where nothing counts; None reads the image for them.
    Raises SegkitError where the masks file cannot be read or differs in size by more than 2 pixels.
    """
    blank = blank_pixels(read_image(frame.image, frame.page)) if blank is None else blank
    labels, teacher = common_area(frame.image.name, np.where(blank, 0, labels), read_masks(frame))
    teacher = np.where(blank[:teacher.shape[0], :teacher.shape[1]], 0, teacher)
    table = iou_table(labels, teacher)
    at_50, at_75, at_90 = (match(table, iou) for iou in (0.5, 0.75, 0.9))
    return {"experiment": frame.experiment, "position": frame.position, "frame": frame.frame,
            "dice": dice(labels, teacher), "panoptic_quality": at_50.panoptic_quality,
            "ap50": at_50.average_precision, "ap75": at_75.average_precision, "ap90": at_90.average_precision,
            "cells": table.shape[0], "teacher_cells": table.shape[1],
            "area_px": int((labels > 0).sum()), "teacher_area_px": int((teacher > 0).sum())}


def score_frames(model: UNet, frames: Sequence[Frame]) -> pd.DataFrame:
    """`score_frame` for every pair, segmented again: one row per frame."""
    images = (read_pair(frame)[0] for frame in frames)
    return pd.DataFrame([score_frame(frame, segment(model, image).labels, blank_pixels(image))
                         for frame, image in zip(frames, images, strict=True)])
