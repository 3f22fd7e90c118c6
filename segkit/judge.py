"""How far the student agrees with its teacher, frame by frame."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from .data import Frame, common_area, read_pair
from .images import read_labels
from .model import ModelInfo, UNet
from .scores import dice, match, match_instances, overlapping
from .segmentation import label, predict, segment

PROMINENCES = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
ALIKE = 0.001  # prominences whose panoptic quality is so near to the best one's are as good
CHOICE_FRAMES = 20  # at most so many frames are looked at to choose among them


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
