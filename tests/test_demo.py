import hashlib
import json

import numpy as np
import pytest

from segkit import SegkitError, discover, make_demo_dataset, read_labels
from tests.helpers import FIXTURE

SMALL = {"shape": (64, 96), "frames": 3, "positions": {"REF": (101,), "RIF10": (209,)}, "cells": 3}


def files(path):
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in path.rglob("*") if p.is_file()}


def test_the_same_seed_writes_the_same_files_and_another_does_not(tmp_path):
    a, b, c = (make_demo_dataset(tmp_path / name, **SMALL, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert files(a) == files(b)
    assert files(a) != files(c)


def test_growth_measured_from_the_labels_is_the_growth_put_in():
    truth = json.loads((FIXTURE / "truth.json").read_text())
    drug = truth["drug_frame"]
    for name, position in truth["positions"].items():
        experiment, folder = name.split("/")
        areas = [np.count_nonzero(read_labels(f.masks)) for f in discover(FIXTURE).pairs
                 if f.unit == (experiment, folder)]
        assert areas == position["area_pixels"]
        minutes = np.arange(len(areas)) * truth["minutes_per_frame"]
        before = np.polyfit(minutes[:drug + 1], np.log(areas[:drug + 1]), 1)[0]
        after = np.polyfit(minutes[drug:], np.log(areas[drug:]), 1)[0]
        rate = position["growth_per_minute_before"]
        assert before == pytest.approx(rate, rel=0.05)
        assert after == pytest.approx(position["growth_per_minute_after"], abs=0.05 * rate)


def test_the_fixture_has_every_variety_and_is_small():
    paths = [str(p.relative_to(FIXTURE)) for p in FIXTURE.rglob("*.tif*")]
    for part in ("/aphase/", "/PreprocessedPhase/", ".tiff", "img_000000010.tif", "MASK_img_000000021.tif"):
        assert any(part in path for path in paths), part
    from tifffile import TiffFile
    kinds = {(("MASK" in p.name), TiffFile(p).pages[0].dtype.name) for p in FIXTURE.rglob("*000011.tif*")}
    assert kinds == {(False, "uint8"), (False, "uint16"), (True, "uint8"), (True, "uint16")}
    assert sum(p.stat().st_size for p in FIXTURE.rglob("*") if p.is_file()) < 1.5e6


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(SegkitError, match="not empty"):
        make_demo_dataset(tmp_path)
