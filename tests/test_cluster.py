"""More than one process: trainings that share their frames, and segmenting on workers of which one is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from segkit import SegkitError, Settings, UNet, discover, fit, load_model, segment_dataset
from segkit.data.discovery import discover_split
from segkit.measure import dask_backend
from segkit.training.distributed import ProcessGroup
from segkit.training.trainer import Trainer
from tests.helpers import FIXTURE, untrained_student

FRAMES = [frame for frame in discover(FIXTURE).frames if frame.frame % 3 == 0]  # of six positions, a task each


def train(settings):
    return fit(UNet(), discover_split(settings), settings)


def start_two(settings):
    """The same training as two processes of torchrun, as the documentation says."""
    values = {name: value for name, value in settings.as_dict().items() if value is not None}
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "segkit", "train",
         *(f"{name}={int(value) if isinstance(value, bool) else value}" for name, value in values.items())],
        cwd=settings.root, env=os.environ | {"PYTHONPATH": str(FIXTURE.parents[1]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def runs(taught):
    """The same training by one process and by two."""
    alone = taught[0]
    together = replace(alone, run="together")
    process = start_two(together)
    _, said = process.communicate()
    assert process.returncode == 0, said
    return alone, together


def test_two_processes_train_as_good_a_student_as_one(runs):
    one, two = (pd.read_csv(settings.run_dir / "history.csv")["val_dice"].max() for settings in runs)
    assert one > 0.95
    assert abs(one - two) < 0.02


def test_every_frame_is_validated_once_and_every_batch_is_halved(runs):
    alone, together = runs
    said = (together.run_dir / "run.log").read_text()
    assert "8+8 training frames, 4+4 validation frames" in said
    assert said.count("epoch 2/2") == 1  # one process writes the log
    one, two = (load_model(settings.run_dir, "cpu").info for settings in (alone, together))
    assert sum(len(hashes) for unit, hashes in two.trained_on.items() if unit.startswith("REF/")) == 16
    assert (two.trained_on, two.validated_on) == (one.trained_on, one.validated_on)
    assert {p.name for p in together.run_dir.iterdir()} == {p.name for p in alone.run_dir.iterdir()}


def test_one_process_continues_what_two_began(runs):
    history = train(replace(runs[1], epochs=3, resume=True))
    assert [row["epoch"] for row in history.rows] == [1, 2, 3]


def test_a_lost_process_ends_the_run_with_a_sentence_and_its_epochs_are_kept(taught):
    settings = replace(taught[0], run="lost", epochs=50, crops_per_epoch=32)
    process = start_two(settings)
    while not (settings.run_dir / "history.csv").exists() and process.poll() is None:
        time.sleep(0.1)
    found = subprocess.run(["pgrep", "-f", f"segkit train .*{settings.root}.*RUN=lost"], capture_output=True,
                           text=True).stdout.split()
    workers = [int(pid) for pid in found if "torch.distributed" not in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(workers[-1], signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode != 0
    assert "RESUME=1 continues" in said
    kept = torch.load(settings.run_dir / "last.pt", weights_only=True)["state"]["epoch"]
    assert kept >= 1
    history = train(replace(settings, epochs=kept + 1, resume=True))
    assert len(history.rows) == kept + 1


def test_what_cannot_be_split_is_an_error():
    group = ProcessGroup("cpu")
    group.size = 2
    with pytest.raises(SegkitError, match="multiple of the 2 processes"):
        Trainer(UNet(), Settings(batch_size=5), group)
    with pytest.raises(SegkitError, match="1 frames cannot be split over 2 processes"):
        group.shard([1], "frames")
    alone = ProcessGroup("cpu")
    assert alone.shard([1, 2, 3], "frames") == [1, 2, 3]
    assert alone.gather([1]) == [1]


@pytest.fixture(scope="module")
def student():
    return untrained_student()


@pytest.fixture(scope="module")
def one_process(student, tmp_path_factory):
    folder, threads = tmp_path_factory.mktemp("one"), torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker's; sums are rounded differently with more
    segment_dataset(student, FRAMES, folder, pixel_size_um=0.1)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def cluster():
    """Two workers, on this machine's CPU."""
    distributed = pytest.importorskip("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGKIT_DEVICE", "cpu")
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            yield cluster


def same(folder, other):
    for name in ("cells.csv", "scores.csv"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    masks = sorted(p.relative_to(folder) for p in (folder / "masks").rglob("*.tif"))
    assert masks
    assert all((folder / m).read_bytes() == (other / m).read_bytes() for m in masks)


def test_workers_started_in_another_folder_read_a_dataset_given_by_a_relative_path(student, cluster, tmp_path,
                                                                                   monkeypatch):
    with cluster.get_client() as client:
        client.run(os.chdir, "/")
    monkeypatch.chdir(FIXTURE.parent)
    frames = discover("fixture").frames[:2]
    assert not frames[0].image.is_absolute()
    segment_dataset(student, frames, tmp_path / "out", cluster=cluster.scheduler_address)
    assert len(pd.read_csv(tmp_path / "out" / "scores.csv")) == 2


def test_a_killed_workers_tasks_are_done_again_and_nothing_differs(student, cluster, one_process, tmp_path):
    with cluster.get_client() as client:
        pids = list(client.run(os.getpid).values())

    def kill_one():
        while not any((tmp_path / "masks").rglob("*.tif")):
            time.sleep(0.02)
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    segment_dataset(student, FRAMES, tmp_path, pixel_size_um=0.1, cluster=cluster.scheduler_address)
    killer.join()
    with cluster.get_client() as client:
        assert set(client.run(os.getpid).values()) != set(pids)  # one of them is another process now
    same(one_process, tmp_path)


def test_a_cluster_that_is_not_there_is_said(student, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_backend, "PATIENCE", "1s")
    frames = discover(FIXTURE).frames[:1]
    for where, words in (("local:many", "local:4"), ("tcp://127.0.0.1:9", "does not respond")):
        with pytest.raises(SegkitError, match=words):
            segment_dataset(student, frames, tmp_path, cluster=where)


def test_without_the_extra_a_sentence_names_it(student, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SegkitError, match=r"segkit\[cluster\]"):
        segment_dataset(student, discover(FIXTURE).frames[:1], tmp_path, cluster="local:2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(SegkitError, match=r"segkit\[cluster\]"):
        ProcessGroup("cpu")
