"""More than one process: trainings that share their frames, and segmenting on workers of which one is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from segkit import SegkitError, Settings, UNet, discover, fit, load_model, segment_dataset
from segkit.data.discovery import discover_split
from segkit.settings import parse_settings
from segkit.training.distributed import ProcessGroup
from tests.helpers import FIXTURE, small_demo, untrained_student


def settings_for(folder, **changes):
    if not (folder / "data").exists():
        small_demo(folder / "data")
    values = {"DATASET_PATH": folder / "data", "DEVICE": "cpu", "CROP": 48, "CROPS_PER_EPOCH": 320, "EPOCHS": 10}
    return parse_settings(values | changes, Settings(root=folder))


def train(settings, on_epoch=None):
    model = UNet()
    return model, fit(model, discover_split(settings), settings, on_epoch)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training by one process and by two: settings, and the epochs that were told while it ran."""
    folder, told = tmp_path_factory.mktemp("group"), []
    alone, together = settings_for(folder, RUN="alone"), settings_for(folder, RUN="together", PROCESSES=2)
    train(alone)
    model, history = train(together, lambda history: told.append(len(history.rows)))
    return alone, together, model, history, told


def test_two_processes_train_as_good_a_student_as_one(runs):
    alone, together, model, history, _ = runs
    one = pd.read_csv(alone.run_dir / "history.csv")["val_dice"].max()
    assert one > 0.98
    assert abs(max(row["val_dice"] for row in history.rows) - one) < 0.005
    assert torch.equal(model.out.weight, load_model(together.run_dir, "cpu").out.weight)


def test_every_frame_is_judged_once_and_every_batch_is_halved(runs):
    alone, together, *_ = runs
    said = (together.run_dir / "run.log").read_text()
    assert "2 processes, each with 8/8 training frames, 4/4 validation frames and 8 crops of every batch" in said
    assert said.count("epoch 10/10") == 1  # one process speaks
    one, two = (load_model(settings.run_dir, "cpu").info for settings in (alone, together))
    assert sum(map(len, two.trained_on.values())) == 16
    assert (two.trained_on, two.validated_on) == (one.trained_on, one.validated_on)
    assert {p.name for p in together.run_dir.iterdir()} == {p.name for p in alone.run_dir.iterdir()}


def test_the_notebook_is_told_of_epochs_while_they_are_trained(runs):
    *_, history, told = runs
    assert told
    assert told == sorted(told)
    assert len(history.rows) == 10


def test_one_process_goes_on_with_what_two_began(runs):
    together = runs[1]
    settings = settings_for(together.root, RUN="together", EPOCHS=11, RESUME=1)
    _, history = train(settings)
    assert [row["epoch"] for row in history.rows] == list(range(1, 12))


def test_a_lost_process_ends_the_run_with_a_sentence_and_its_epochs_are_kept(tmp_path):
    settings = settings_for(tmp_path, RUN="lost", PROCESSES=2, EPOCHS=50, CROPS_PER_EPOCH=32)

    def kill_one(history):
        found = subprocess.run(["pgrep", "-f", f"segkit.training .*{tmp_path}.*RUN=lost"],
                               capture_output=True, text=True).stdout.split()
        workers = [int(pid) for pid in found if "torch.distributed" not in Path(f"/proc/{pid}/cmdline").read_text()]
        os.kill(workers[-1], signal.SIGKILL)

    with pytest.raises(SegkitError, match="RESUME=1 goes on"):
        train(settings, kill_one)
    kept = torch.load(settings.run_dir / "last.pt", weights_only=True)["state"]["epoch"]
    assert kept >= 1
    _, history = train(settings_for(tmp_path, RUN="lost", EPOCHS=kept + 1, CROPS_PER_EPOCH=32, RESUME=1))
    assert len(history.rows) == kept + 1


def test_processes_end_with_the_kernel_that_launched_them_however_it_is_killed(tmp_path):
    settings_for(tmp_path)
    code = f"""
from tests.test_cluster import Path, settings_for, train
train(settings_for(Path({str(tmp_path)!r}), RUN="left", PROCESSES=2, EPOCHS=1000, CROPS_PER_EPOCH=16))"""
    kernel, table = subprocess.Popen([sys.executable, "-c", code]), tmp_path / "runs/left/history.csv"

    def running():
        return subprocess.run(["pgrep", "-f", f"segkit.training .*{tmp_path}.*RUN=left"], capture_output=True,
                              text=True).stdout.split()

    while not table.exists() and kernel.poll() is None:
        time.sleep(0.1)
    assert len(running()) == 3  # torchrun and its two
    kernel.kill()  # and not waited for: a zombie's processes must end too
    until = time.time() + 10
    while running() and time.time() < until:
        time.sleep(0.1)
    assert running() == []
    assert "the process that started this training has ended" in (tmp_path / "runs/left/run.log").read_text()
    kernel.wait()


def test_what_cannot_be_shared_out_is_said(tmp_path):
    with pytest.raises(SegkitError, match="multiple of the 2 processes"):
        train(settings_for(tmp_path, RUN="odd", PROCESSES=2, BATCH_SIZE=5))
    other = discover_split(settings_for(tmp_path, VALIDATION="101"))
    with pytest.raises(SegkitError, match="the split that the settings give"):
        fit(UNet(), other, settings_for(tmp_path, RUN="other", PROCESSES=2))
    alone = ProcessGroup("cpu")
    assert alone.share([1, 2, 3], "frames") == [1, 2, 3]
    assert alone.gather([1]) == [1]


@pytest.fixture(scope="module")
def student():
    return untrained_student()


@pytest.fixture(scope="module")
def one_process(student, tmp_path_factory):
    folder, threads = tmp_path_factory.mktemp("one"), torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker's; sums are rounded differently with more
    segment_dataset(student, discover(FIXTURE).frames, folder, pixel_size_um=0.1)
    torch.set_num_threads(threads)
    return folder


def same(folder, other):
    for name in ("cells.csv", "scores.csv"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    masks = sorted(p.relative_to(folder) for p in (folder / "masks").rglob("*.tif"))
    assert masks
    assert all((folder / m).read_bytes() == (other / m).read_bytes() for m in masks)


def test_a_killed_workers_tasks_are_done_again_and_nothing_differs(student, one_process, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("SEGKIT_DEVICE", "cpu")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        pids = []

        def kill_one():
            while not any((tmp_path / "masks").rglob("*.tif")):
                time.sleep(0.02)
            with distributed.Client(cluster) as client:
                pids.extend(client.run(os.getpid).values())
            os.kill(pids[0], signal.SIGKILL)

        killer = threading.Thread(target=kill_one, daemon=True)
        killer.start()
        segment_dataset(student, discover(FIXTURE).frames, tmp_path, pixel_size_um=0.1,
                        cluster=cluster.scheduler_address)
        killer.join()
        with distributed.Client(cluster) as client:
            assert set(client.run(os.getpid).values()) != set(pids)  # one of them is another process now
    same(one_process, tmp_path)


def test_workers_started_in_another_folder_read_a_dataset_given_by_a_relative_path(student, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("SEGKIT_DEVICE", "cpu")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client:
            client.run(os.chdir, "/")
        monkeypatch.chdir(FIXTURE.parent)
        frames = discover("fixture").frames[:2]
        assert not frames[0].image.is_absolute()
        segment_dataset(student, frames, tmp_path / "out", cluster=cluster.scheduler_address)
    assert len(pd.read_csv(tmp_path / "out" / "scores.csv")) == 2


def test_a_cluster_that_is_not_there_is_said(student, tmp_path):
    frames = discover(FIXTURE).frames[:1]
    for where, words in (("local:many", "local:4"), ("tcp://127.0.0.1:9", "does not answer")):
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
