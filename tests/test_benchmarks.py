"""The scripts behind the figures keep step with the module: each can be imported, and the yardstick runs to its end."""

import importlib
import sys
from pathlib import Path

import pytest

from tests.helpers import small_demo

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
