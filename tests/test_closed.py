"""Files and folders that the user has no right to: one sentence each, and no traceback."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import papermill  # noqa: F401  early, since it may lie where only root may read
import pytest

import segkit
from segkit import SegkitError, UNet
from segkit.model.checkpoint import save_model
from segkit.notebook.headless import run_notebooks
from segkit.notebook.report import table_of_runs
from segkit.settings import Settings, load_settings
from tests.helpers import FIXTURE

NOBODY = 65534


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with what is closed and what is open, seen by a user who is not root."""
    if sys.platform == "win32":
        pytest.skip("rights are others on Windows")
    root = Path(tempfile.mkdtemp())
    shutil.copytree(FIXTURE, root / "half")
    (root / "closed").mkdir()
    (root / "readonly").mkdir()
    save_model(UNet(), root / "closed.safetensors")
    root.chmod(0o777)
    for name in ("closed", "closed.safetensors", "half/REF_masks", "half/RIF10_raw_data"):
        (root / name).chmod(0)
    (root / "readonly").chmod(0o555)
    load_settings({"DATASET_PATH": str(FIXTURE)})  # what is imported late may lie where only root may read
    was_root = os.getuid() == 0
    if was_root:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        if not os.access(segkit.__file__, os.R_OK):
            pytest.skip("these tests run as root in a folder that nobody else may read")
        yield root
    finally:
        if was_root:
            os.setresuid(0, 0, 0)
        for path in (root / "closed", root / "readonly", root / "half/REF_masks", root / "half/RIF10_raw_data"):
            path.chmod(0o700)
        shutil.rmtree(root)


def test_closed_places_are_named(place: Path) -> None:
    closed, readonly = place / "closed", place / "readonly"
    split = segkit.split_by_position(segkit.discover(FIXTURE).pairs)
    settings = Settings(root=closed, dataset_path=FIXTURE, epochs=1)
    for attempt, found in (
            (lambda: segkit.discover(closed), "DATASET_PATH .*you may not read"),
            (lambda: segkit.discover(FIXTURE, closed), "MASKS_PATH .*you may not read"),
            (lambda: segkit.load_model(closed), "that you may read"),
            (lambda: segkit.load_model(place / "closed.safetensors"), "that you may read"),
            (lambda: segkit.make_demo_dataset(closed), "cannot write .*Permission denied"),
            (lambda: segkit.make_demo_dataset(readonly / "demo"), "cannot write .*Permission denied"),
            (lambda: segkit.arrange(closed, place / "out"), "cannot be read .*Permission denied"),
            (lambda: segkit.fit(UNet(), split, settings), "cannot write .*Permission denied"),
            (lambda: segkit.fit(UNet(), split, replace(settings, root=readonly)), "cannot write .*Permission denied")):
        with pytest.raises(SegkitError, match=found):
            attempt()


def test_make_run_in_a_closed_project_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "readonly")
    with pytest.raises(SegkitError, match=r"cannot write .*runs/new/.*Permission denied"):
        run_notebooks("run", {"DATASET_PATH": str(FIXTURE), "RUN": "new"})


def test_the_rest_goes_on(place: Path) -> None:
    problems = segkit.discover(place / "half").problems
    for name in ("REF_masks", "RIF10_raw_data"):
        assert any(problem.path.name == name and "cannot be read" in problem.reason for problem in problems)
    assert table_of_runs(place / "closed").empty
    assert load_settings({"DATASET_PATH": str(place / "closed")}).run == "closed"
