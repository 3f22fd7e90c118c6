"""How far the student agrees with its teacher, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from .data import Frame, check_sizes, read_pair
from .model import ModelInfo, UNet
from .scores import dice, match_instances
from .segmentation import Segmentation, predict, segment
from .targets import label_cells

MARKERS = (0.3, 0.4, 0.5, 0.6, 0.7)
MARKER_FRAMES = 20  # at most so many frames are looked at to choose the marker


def choose_marker(model: UNet, frames: Sequence[Frame]) -> ModelInfo:
    """The model's info with the distance above which a pixel is a cell's core: best panoptic quality on frames."""
    chosen = frames[::max(1, -(-len(frames) // MARKER_FRAMES))]
    quality = np.zeros(len(MARKERS))
    for frame in chosen:
        image, teacher = read_pair(frame)
        probability, distance = predict(model, image)
        for k, marker in enumerate(MARKERS):
            labels = label_cells(probability, distance, model.info.threshold, marker, model.info.min_area)
            quality[k] += match_instances(labels, teacher).panoptic_quality
    return replace(model.info, marker=MARKERS[int(quality.argmax())])


def score_frame(frame: Frame, result: Segmentation) -> dict[str, Any]:
    """Agreement with the teacher on one frame: Dice, panoptic quality, average precision, cell counts."""
    teacher = read_pair(frame)[1]
    check_sizes(frame.image.name, result.labels.shape, teacher.shape)
    labels = result.labels[:teacher.shape[0], :teacher.shape[1]]
    matched = match_instances(labels, teacher)
    return {"experiment": frame.experiment, "position": frame.position, "frame": frame.frame,
            "dice": dice(labels, teacher), "panoptic_quality": matched.panoptic_quality,
            "ap50": matched.average_precision, "ap75": match_instances(labels, teacher, 0.75).average_precision,
            "ap90": match_instances(labels, teacher, 0.9).average_precision,
            "cells": int(labels.max()), "teacher_cells": len(np.unique(teacher[teacher > 0]))}


def judge(model: UNet, frames: Sequence[Frame]) -> pd.DataFrame:
    """`score_frame` for every pair, segmented anew: one row per frame."""
    return pd.DataFrame([score_frame(frame, segment(model, read_pair(frame)[0])) for frame in frames])
