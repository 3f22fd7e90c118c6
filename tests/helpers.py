"""Shapes that one can count by hand, and the committed fixture."""

from pathlib import Path

import numpy as np
import tifffile

FIXTURE = Path(__file__).parent / "fixture"


def squares(*corners, shape=(40, 48), side=10):
    """Labels with one square of the given side per upper left corner."""
    labels = np.zeros(shape, np.int32)
    for k, (y, x) in enumerate(corners, start=1):
        labels[y:y + side, x:x + side] = k
    return labels


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, **options)
    return path
