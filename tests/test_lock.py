"""One run folder has one writer."""

import errno
import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from segkit import SegkitError, UNet, discover, segment_dataset
from segkit.files import HELD, LOCK, check_lock, locked
from segkit.notebook.headless import main
from segkit.settings import load_settings
from tests.helpers import ALONE
from tests.test_train import settings_for, train

HOLD = ALONE + """
import sys, time
from pathlib import Path
from segkit.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextmanager
def another_process_in(folder, seconds=100):
    """A process that holds the folder's lock, and is not told of ours."""
    environment = {name: value for name, value in os.environ.items() if name != HELD}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE,
                               text=True, env=environment)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_run_that_another_process_trains_is_refused_until_that_process_is_gone(tiny):
    folder = settings_for(tiny).run_dir
    with another_process_in(folder) as other:
        words = rf"runs/r is in use by process {other.pid} on .* since .*: wait until it ends"
        with pytest.raises(SegkitError, match=words):
            train(tiny)
        with pytest.raises(SegkitError, match=words):
            segment_dataset(UNet(), discover(tiny).frames, folder)
        assert [path.name for path in folder.iterdir()] == [LOCK]
        other.kill()  # and not waited for: it is a zombie, and writes no more
        time.sleep(0.2)
        train(tiny)
    assert (folder / "report.json").is_file()
    assert not (folder / LOCK).exists()


def test_the_demos_run_is_not_renewed_while_another_process_works_in_it(tiny, monkeypatch, capsys):
    """What is not renewed otherwise either is refused before the notebooks begin."""
    (tiny / "notebooks").mkdir()
    (tiny / "notebooks/01_setup.py").touch()
    (tiny / "runs/demo").mkdir(parents=True)
    (tiny / "runs/demo/last.pt").touch()
    (tiny / "tests").mkdir()
    (tiny / "tests/fixture").symlink_to(tiny)
    (tiny / "runs/demo/settings.json").write_text(json.dumps({"DATASET_PATH": str(tiny / "tests/fixture")}))
    monkeypatch.chdir(tiny)
    with another_process_in(tiny / "runs/demo") as other:
        assert main([]) == 1
        assert f"in use by process {other.pid}" in capsys.readouterr().err
        assert {path.name for path in (tiny / "runs/demo").iterdir()} == {LOCK, "last.pt", "settings.json"}


def test_the_process_itself_and_those_that_it_starts_are_let_in(tmp_path):
    with locked(tmp_path):
        assert "LOCK" not in load_settings().as_dict()  # the variable is no setting
        with locked(tmp_path):
            pass
        check_lock(tmp_path)
        subprocess.run([sys.executable, "-c", HOLD, tmp_path, "0"], check=True)
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()
    assert not os.environ[HELD]


def test_a_lock_is_removed_after_an_error(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_process_that_the_holder_starts_is_let_in_whatever_the_folder_is_called(tmp_path):
    folder = tmp_path / "2024-01-01 12:30"
    with locked(folder):
        subprocess.run([sys.executable, "-c", HOLD, folder, "0"], check=True)


def test_two_folders_are_locked_one_inside_the_other(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    with locked(one), locked(two):
        for folder in (one, two):
            subprocess.run([sys.executable, "-c", HOLD, folder, "0"], check=True)
    with another_process_in(one), locked(two), pytest.raises(SegkitError, match="in use by process"):
        check_lock(one)


def test_where_a_file_system_has_no_locks_the_run_is_written_all_the_same(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(tmp_path):
        check_lock(tmp_path)


def take(folder, results, meet):
    meet.wait()
    try:
        with locked(folder):
            results.put(1)
            meet.wait()  # hold it until all have tried
    except SegkitError:
        results.put(0)
        meet.wait()


def test_of_many_that_come_at_once_after_a_killed_one_one_gets_the_lock(tmp_path):
    with another_process_in(tmp_path):
        pass
    assert (tmp_path / LOCK).exists()
    fork = multiprocessing.get_context("fork")
    results, meet = fork.Queue(), fork.Barrier(8, timeout=60)
    processes = [fork.Process(target=take, args=(tmp_path, results, meet)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sum(results.get() for _ in processes) == 1
    assert not list(tmp_path.iterdir())
