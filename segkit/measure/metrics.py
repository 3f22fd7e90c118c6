"""Metrics against teacher labels: Dice, matched instances, scores of frames."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from ..data.dataset import Frame, common_area, exclude, read_pair
from ..data.discovery import discover
from ..data.images import hash_pixels, read_image, read_labels
from ..errors import SegkitError
from ..model.predict import label, predict, segment
from ..model.unet import ModelInfo, UNet
from ..settings import Settings

PROMINENCES = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
ALIKE = 0.001  # prominences whose panoptic quality is so near to the best one's are as good
TUNING_FRAMES = 20  # at most so many frames are looked at to choose among them


def dice(mask: ArrayLike, target: ArrayLike) -> float:
    """Dice coefficient 2 |A & B| / (|A| + |B|) of two masks (H, W); labels count as mask where > 0.

    Two empty masks score 1.0. Raises SegkitError where the shapes differ. Source: Dice (1945), doi 10.2307/1932409.
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
    """Match instances to the target's, each at most once, so that most pairs reach the IoU threshold.

    labels, target_labels: (H, W) integers, 0 = background; iou: threshold in (0, 1], reached counts.
    Two empty pictures score 1.0 throughout. Raises SegkitError where the shapes differ, or for another threshold.
    Source: panoptic quality of Kirillov et al., CVPR 2019; average precision as in StarDist and Cellpose.
    """
    return match(overlapping(labels, target_labels), iou)


class Overlaps(NamedTuple):
    """The pairs of instances that share pixels, in the order of (instance, target)."""

    instance: np.ndarray  # (pairs,) int, 0..instances - 1
    target: np.ndarray  # (pairs,) int, 0..targets - 1
    iou: np.ndarray  # (pairs,) float64
    instances: int
    targets: int


def overlapping(labels: ArrayLike, target_labels: ArrayLike) -> Overlaps:
    """The overlaps that `match` needs, computed once for any number of thresholds; see `match_instances`."""
    a, b = _same_shape(np.asarray(labels), np.asarray(target_labels))
    inside = (a != 0) | (b != 0)
    a, b = a[inside].astype(np.int64), b[inside].astype(np.int64)  # sorting the background too would take most time
    lowest, span = b.min(initial=0), b.max(initial=0) - b.min(initial=0) + 1
    pairs, pixels = np.unique(a * span + (b - lowest), return_counts=True)
    (ids_a, index_a), (ids_b, index_b) = (np.unique(ids, return_inverse=True)
                                          for ids in (pairs // span, pairs % span + lowest))
    union = np.bincount(index_a, pixels)[index_a] + np.bincount(index_b, pixels)[index_b] - pixels
    both = (ids_a[index_a] != 0) & (ids_b[index_b] != 0)
    (of_a, instances), (of_b, targets) = ((np.cumsum(ids != 0) - 1, int((ids != 0).sum())) for ids in (ids_a, ids_b))
    return Overlaps(of_a[index_a[both]], of_b[index_b[both]], (pixels / union)[both], instances, targets)


def match(overlaps: Overlaps, iou: float = 0.5) -> Matching:
    """Match one to one: most pairs that reach the threshold and, among these, the largest sum of IoU.

    A minimum weight matching of the overlapping pairs only (Jonker and Volgenant 1987, for sparse matrices), in which
    every instance may also be matched to nothing.
    """
    if not 0 < iou <= 1:
        raise SegkitError(f"iou is {iou}: a threshold above 0 and up to 1 was needed")
    n, m = overlaps.instances, overlaps.targets
    instance, target, ious = (values[overlaps.iou >= iou] for values in overlaps[:3])
    nothing = np.arange(n)
    gain = 2 + ious / (n + 1)  # nothing gains 1; all IoU together are less than one pair more
    graph = csr_array((np.append(gain, np.ones(n)), (np.append(instance, nothing), np.append(target, m + nothing))),
                      shape=(n, m + n))
    rows, columns = min_weight_full_bipartite_matching(graph, maximize=True)
    real = columns < m
    key = rows[real].astype(np.int64) * m + columns[real]
    matched = ious[np.searchsorted(instance * m + target, key)]  # pairs are in this order
    tp = len(matched)
    fp, fn = n - tp, m - tp
    if tp + fp + fn == 0:
        return Matching(0, 0, 0, 1.0, 1.0, 1.0, 1.0)
    return Matching(tp, fp, fn, tp / (tp + fp) if tp + fp else 0.0, tp / (tp + fn) if tp + fn else 0.0,
                    tp / (tp + fp + fn), float(matched.sum()) / (tp + fp / 2 + fn / 2))


def _same_shape(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.shape != b.shape:
        raise SegkitError(f"shapes {a.shape} and {b.shape} differ: two pictures of one size were needed")
    return a, b


def hashes_by_position(images: Iterable[tuple[Frame, str]]) -> dict[str, list[str]]:
    """Frames with the hashes of their images, as a model's file records them (ModelInfo.trained_on)."""
    record: dict[str, list[str]] = {}
    for frame, image_hash in images:
        if image_hash:
            record.setdefault("/".join(frame.unit), []).append(image_hash)
    return join_records(record)


def join_records(*records: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """What any of the records holds."""
    return {name: sorted({value for record in records for value in record.get(name, ())})
            for name in sorted(set().union(*records))}


def position_parts(info: ModelInfo, frames: Iterable[Frame], dataset_path: Path) -> dict[tuple[str, str], str]:
    """What each (experiment, position) was for this model: "training", "validation" or "other".

    The images decide, since positions of different datasets may have the same name. One image of each position is read;
    where the model's record has the position's name, as many as are needed to find one that it was trained or
    validated on. For a model file without a record (before 1.2) names decide, and only in the dataset that it was
    trained on.
    """
    positions: dict[tuple[str, str], list[Frame]] = {}
    for frame in frames:
        positions.setdefault(frame.unit, []).append(frame)
    if not info.trained_on:
        return _parts_by_name(info, positions, dataset_path)
    parts = {image_hash: part for part, record in (("validation", info.validated_on), ("training", info.trained_on))
             for hashes in record.values() for image_hash in hashes}
    known = info.trained_on.keys() | info.validated_on.keys()
    found = {}
    for unit, members in positions.items():
        hashes = filter(None, map(_image_hash, sorted(members, key=lambda frame: frame.masks is None)))
        looked_at = hashes if "/".join(unit) in known else islice(hashes, 1)
        found[unit] = next((parts[image_hash] for image_hash in looked_at if image_hash in parts), "other")
    return found


def frame_parts(info: ModelInfo, frames: Sequence[Frame], settings: Settings) -> dict[str, str]:
    """What each frame, by its name, was for this model: as `position_parts`, or "excluded".

    Excluded are the frames that EXCLUDE names and that the model was not trained on.
    """
    positions = position_parts(info, frames, settings.dataset_path)
    parts = {frame.name: positions[frame.unit] for frame in frames}
    trained = set().union(*info.trained_on.values())
    same = not trained and str(info.settings.get("EXCLUDE", "")) == ",".join(settings.exclude)
    for frame in exclude(frames, settings.exclude)[1]:
        if parts[frame.name] != "training" or same or (trained and _image_hash(frame) not in trained):
            parts[frame.name] = "excluded"
    return parts


def positions_trained_on(info: ModelInfo, validation: Mapping[str, Sequence[str]], settings: Settings) -> list[str]:
    """Which validation positions, given as `hashes_by_position`, a model was trained on, be it on other frames."""
    if not info.trained_on:
        parts = _parts_by_name(info, [(name.partition("/")[0], name.partition("/")[2]) for name in validation],
                               settings.dataset_path)
        return sorted("/".join(unit) for unit, part in parts.items() if part == "training")
    trained = set().union(*info.trained_on.values())
    found = {name for name, hashes in validation.items() if trained.intersection(hashes)}
    if alike := (validation.keys() & info.trained_on.keys()) - found:  # of another laboratory, or other frames
        frames = [frame for frame in discover(settings.dataset_path, settings.masks_path).frames
                  if "/".join(frame.unit) in alike]
        parts = position_parts(info, frames, settings.dataset_path)
        found |= {"/".join(unit) for unit, part in parts.items() if part == "training"}
    return sorted(found)


def _image_hash(frame: Frame) -> str:
    try:
        return hash_pixels(read_image(frame.image, frame.page))
    except SegkitError:
        return ""  # its Problem says so


def _parts_by_name(info: ModelInfo, positions: Iterable[tuple[str, str]],
                   dataset_path: Path) -> dict[tuple[str, str], str]:
    earlier = {name: str(info.settings.get(name, "")) for name in ("DATASET_PATH", "VALIDATION", "EXCLUDE")}
    if not earlier["DATASET_PATH"] or Path(earlier["DATASET_PATH"]).resolve() != Path(dataset_path).resolve():
        return dict.fromkeys(positions, "other")
    endings, excluded = tuple(earlier["VALIDATION"].split(",")), earlier["EXCLUDE"].split(",")
    return {unit: "other" if {unit[0], "/".join(unit)} & set(excluded) else
            "validation" if unit[1].endswith(endings) else "training" for unit in positions}


def tune_prominence(model: UNet, frames: Sequence[Frame]) -> ModelInfo:
    """The model's info with the prominence (`label_cells`) in the middle of those with the best panoptic quality."""
    chosen = frames[::max(1, -(-len(frames) // TUNING_FRAMES))]
    quality = np.zeros(len(PROMINENCES))
    for frame in chosen:
        image, teacher = read_pair(frame)
        maps = predict(model, [image])[0]
        for k, prominence in enumerate(PROMINENCES):
            labels = label(replace(model.info, prominence=prominence), maps).labels
            quality[k] += match_instances(labels, teacher).panoptic_quality
    best = np.flatnonzero(quality >= quality.max() - ALIKE * len(chosen))
    return replace(model.info, prominence=PROMINENCES[best[len(best) // 2]])


def score_frame(frame: Frame, labels: np.ndarray) -> dict[str, Any]:
    """Agreement of labels (H, W) with the teacher's: Dice, panoptic quality, average precision, cells, area.

    Raises SegkitError where the masks file cannot be read or is of another size (2 pixels are cut off).
    """
    assert frame.masks is not None, f"{frame.name} has no masks file"
    labels, teacher = common_area(frame.image.name, labels, read_labels(frame.masks, frame.masks_page))
    overlaps = overlapping(labels, teacher)
    matched, at_75, at_90 = (match(overlaps, iou) for iou in (0.5, 0.75, 0.9))
    return {"experiment": frame.experiment, "position": frame.position, "frame": frame.frame,
            "dice": dice(labels, teacher), "panoptic_quality": matched.panoptic_quality,
            "ap50": matched.average_precision, "ap75": at_75.average_precision, "ap90": at_90.average_precision,
            "cells": overlaps.instances, "teacher_cells": overlaps.targets,
            "area_px": int((labels > 0).sum()), "teacher_area_px": int((teacher > 0).sum())}


def score_frames(model: UNet, frames: Sequence[Frame]) -> pd.DataFrame:
    """`score_frame` for every pair, segmented anew: one row per frame."""
    return pd.DataFrame([score_frame(frame, segment(model, read_pair(frame)[0]).labels) for frame in frames])
