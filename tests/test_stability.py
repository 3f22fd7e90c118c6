"""Trainings under bad conditions do not stick: three of the thirty of benchmarks/stability.py, on small frames."""

import pytest

from benchmarks.stability import best_dice, with_hot_pixels
from segkit import Settings
from segkit.settings import parse_settings
from tests.helpers import small_demo


@pytest.mark.parametrize("kind", ["one cell a frame", "learning rate x 10", "16 bits, hot pixels"])
def test_it_does_not_stick(kind, tmp_path):
    data = small_demo(tmp_path / "data", cells=1 if kind == "one cell a frame" else 6)
    if kind == "16 bits, hot pixels":
        data = with_hot_pixels(data, tmp_path / "hot")
    rate = 0.02 if kind == "learning rate x 10" else 0.002
    settings = parse_settings({"DATASET_PATH": data, "RUN": "r", "DEVICE": "cpu", "CROP": 48, "BATCH_SIZE": 8,
                               "CROPS_PER_EPOCH": 160, "EPOCHS": 3, "LEARNING_RATE": rate, "START_FROM": ""},
                              Settings(root=tmp_path))
    dice, _ = best_dice(settings)
    assert dice > 0.5  # stuck is 0.0; these reach 0.8 and more
