"""The scripts behind the figures keep step with the module: each can be imported, and the yardstick runs to its end."""

import importlib
import sys
from pathlib import Path

import pytest

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


def test_the_yardstick_trains_on_what_has_no_validation_position(benchmark_of):
    frames = [segkit.Frame(Path("a.tif"), Path("a.tif"), "X", position, 0) for position in ("Pos101", "Pos109")]
    split = benchmark_of("generality").parts(frames, ("09",))
    assert [f.position for f in split.train] == ["Pos101"]
    assert [f.position for f in split.validation] == ["Pos109"]
    alone = benchmark_of("generality").parts(frames[1:], ("09",))
    assert [len(alone.train), len(alone.validation)] == [1, 0]
