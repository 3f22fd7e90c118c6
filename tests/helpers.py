"""Shapes that one can count by hand, and the committed fixture."""

from pathlib import Path

import numpy as np
import tifffile
import torch
from torch.optim.swa_utils import update_bn

import segkit
from segkit import UNet, make_demo_dataset
from segkit.model.postprocess import pair_ends
from segkit.model.unet import PAIRS

FIXTURE = Path(__file__).parent / "fixture"
# for python -c: modules of segkit are imported without those that the package itself imports, which take seconds
ALONE = f"""
import sys, types
sys.modules["segkit"] = types.ModuleType("segkit")
sys.modules["segkit"].__path__ = [{str(Path(segkit.__file__).parent)!r}]
"""


def squares(*corners, shape=(40, 48), side=10):
    """Labels with one square of the given side per upper left corner."""
    labels = np.zeros(shape, np.int32)
    for k, (y, x) in enumerate(corners, start=1):
        labels[y:y + side, x:x + side] = k
    return labels


def affinity_of(labels):
    """What a perfect student predicts for each of PAIRS."""
    affinity = np.zeros((len(PAIRS), *labels.shape), np.float32)
    for k, half in enumerate(PAIRS):
        first, _, second = pair_ends(labels, half)
        pair_ends(affinity[k], half)[1][:] = (first == second) & (first > 0)
    return affinity


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, **options)
    return path


def untrained_student():
    """Deterministic: some pixels are cells, most are not; certain of it, so that cells are kept."""
    torch.manual_seed(1)
    student = UNet()
    update_bn([torch.rand(4, 1, 64, 64)], student)
    with torch.no_grad():
        student.out.weight[0] *= 20
        student.out.bias[0] *= 20
    return student.eval()


def small_demo(path, cells=6):
    """Synthetic frames on which a student learns within half a minute: 16 to learn from, 8 to judge by."""
    return make_demo_dataset(path, shape=(96, 96), frames=8, positions={"REF": (101, 102, 109)}, cells=cells)
