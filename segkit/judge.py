"""How far the student agrees with its teacher, frame by frame."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .data import Frame, common_area, exclude, read_pair
from .discover import discover
from .errors import SegkitError
from .images import hash_pixels, read_image, read_labels
from .model import ModelInfo, UNet
from .scores import dice, match, match_instances, overlapping
from .segmentation import label, predict, segment
from .settings import Settings

PROMINENCES = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
ALIKE = 0.001  # prominences whose panoptic quality is so near to the best one's are as good
CHOICE_FRAMES = 20  # at most so many frames are looked at to choose among them


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


def choose_prominence(model: UNet, frames: Sequence[Frame]) -> ModelInfo:
    """The model's info with the prominence (`label_cells`) in the middle of those with the best panoptic quality."""
    chosen = frames[::max(1, -(-len(frames) // CHOICE_FRAMES))]
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
