"""Small datasets, made by hand, that the tests share."""

import os

import numpy as np
import pytest
import torch

from segkit import Settings, UNet, fit
from segkit.data.discovery import discover_split
from segkit.settings import parse_settings
from tests.helpers import small_demo, squares, write
from tests.notebook_settings import SETTINGS

os.environ["SEGKIT_IGNORE_FORM"] = SETTINGS["SEGKIT_IGNORE_FORM"]
torch.set_num_threads(1)  # small crops gain nothing from more, and threads wait for each other where a core is taken


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def taught(tmp_path_factory):
    """A training on the CPU that reaches a Dice of 0.95 on small_demo: its settings and history."""
    folder = tmp_path_factory.mktemp("taught")
    small_demo(folder / "data")
    settings = parse_settings({"DATASET_PATH": folder / "data", "RUN": "taught", "DEVICE": "cpu", "CROP": 48,
                               "BATCH_SIZE": 8, "CROPS_PER_EPOCH": 160, "EPOCHS": 2},
                              Settings(root=folder))
    return settings, fit(UNet(), discover_split(settings), settings)


@pytest.fixture
def tiny(tmp_path):
    """Two positions of two frames, dark squares on grey: REF Pos101 (training) and Pos109 (validation)."""
    for position in ("Pos101", "Pos109"):
        for k in range(2):
            labels = squares((4, 4 + k), (20, 24))
            image = np.where(labels > 0, 60, 160).astype(np.uint8)
            write(tmp_path / "REF_raw_data" / position / "aphase" / f"img_{k:09d}.tiff", image)
            write(tmp_path / "REF_masks" / position / "PreprocessedPhaseMasks" / f"MASK_img_{k:09d}.tif",
                  labels.astype(np.uint16))
    return tmp_path
