"""The scripts behind the figures keep step with the module: each can be imported, and the yardstick runs to its end."""

import importlib
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import segkit
from tests.helpers import small_demo, squares

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
BEGINS = {"plain_recipe": "PlainTraining", "convergence": "compare"}  # where it begins, if not at main


@pytest.fixture
def benchmark_of(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for script in BENCHMARKS.glob("*.py"):
        sys.modules.pop(script.stem, None)


@pytest.mark.parametrize("name", sorted(script.stem for script in BENCHMARKS.glob("*.py")))
def test_a_script_can_be_imported(benchmark_of, name):
    assert callable(getattr(benchmark_of(name), BEGINS.get(name, "main")))


def test_the_starting_recipe_and_segkit_run_side_by_side(benchmark_of, tmp_path, monkeypatch, capsys):
    small_demo(tmp_path / "data")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/01_setup.py").touch()  # what makes a folder a project's, which gets artefacts/
    monkeypatch.chdir(tmp_path)
    benchmark_of("convergence").compare([f"DATASET_PATH={tmp_path / 'data'}", "EPOCHS=1", "CROP=32x32",
                                         "CROPS_PER_EPOCH=32", "BATCH_SIZE=8", "DEVICE=cpu", "PLAIN_BATCHES=2"], {})
    said = capsys.readouterr().out
    assert "| segkit |" in said
    assert "| starting recipe |" in said
    assert (tmp_path / "artefacts/convergence_data.csv").is_file()


def test_the_yardstick_magnifies_images_and_labels_alike(benchmark_of):
    labels = squares((4, 8))
    image, larger = benchmark_of("generality").magnified(1.0 * (labels > 0), labels, 2)
    assert image.shape == larger.shape == (80, 96)
    assert (larger > 0).sum() == 20 * 20
    assert ((image > 0.5) == (larger > 0)).mean() > 0.99


def test_the_starter_is_trained_on_equal_shares_of_what_has_no_validation_position(benchmark_of, tmp_path):
    starter = benchmark_of("starter")
    frames = starter.read_set(small_demo(tmp_path / "demo"), ("09",))
    assert frames
    assert {frame.position for frame in frames} == {"Pos101", "Pos102"}
    drawn = [starter.draw(seed) for seed in range(8)]
    store = starter.mixed_store(drawn, {"a": dict([next(iter(frames.items()))]), "b": frames}, 1 / 3,
                                torch.device("cpu"))
    shares = Counter(store.start.tolist())
    assert len(store.start) == 12  # a third is real
    assert shares[8 * starter.SIDE ** 2] == 2  # the only frame of its set
    # cells of all frames are brought to one width
    width = np.median(next(iter(frames.values())).widths)
    assert store.scale[8] == pytest.approx(starter.CELL_WIDTH / width)
    assert store.cell_width == starter.CELL_WIDTH


@pytest.mark.parametrize(("offset", "by"), [(0.3, 0), (1.0, 1), (2.0, 2), (-1.5, 0)])
def test_tight_outlines_are_moved_outwards_before_the_starters_training(benchmark_of, offset, by):
    labels = squares((10, 10), side=9)
    moved = benchmark_of("starter").move_outlines(labels, offset)
    assert np.ptp(np.flatnonzero(moved.any(1))) == 8 + 2 * by


def test_the_starter_is_trained_to_its_end(benchmark_of, tmp_path, capsys):
    small_demo(tmp_path / "data/demo")
    new, later = tmp_path / "new.safetensors", tmp_path / "later.safetensors"
    for values in ([f"OUT={new}", "STEPS=2"], [f"OUT={later}", "STEPS=1", f"START={new}", "SETS=none"]):
        benchmark_of("starter").main([f"DATA={tmp_path / 'data'}", "FRAMES=3", "CROP=32", "BATCH_SIZE=2", "DEVICE=cpu",
                                      *values])
    for path in (new, later):  # what the first weights were trained on stays known
        info = segkit.load_model(path).info
        assert info.fully_recorded
        assert set(info.trained_on) == {"REF/Pos101", "REF/Pos102"}
    assert capsys.readouterr().out.count("step 0") == 2
