"""Shapes that one can count by hand, and the committed fixture."""

from pathlib import Path

import numpy as np
import tifffile

from segkit import make_demo_dataset

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


def small_demo(path, cells=6):
    """Synthetic frames on which a student learns within half a minute: 16 to learn from, 8 to judge by."""
    return make_demo_dataset(path, shape=(96, 96), frames=8, positions={"REF": (101, 102, 109)}, cells=cells)
