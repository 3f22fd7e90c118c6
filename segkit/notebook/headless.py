"""Run the notebooks without a browser: what `make run` and `make segment` call."""

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..data.dataset import Dataset
from ..data.discovery import discover, discover_split
from ..errors import STOPPED, SegkitError
from ..files import locked, read_table, replacing, writing
from ..model.checkpoint import load_model
from ..settings import (
    DEMO,
    Settings,
    check_whose_run,
    load_settings,
    name_and_value,
    parse_settings,
    project_root,
    record_settings,
)
from ..training.run_dir import check_training
from .machine import assumed_conditions
from .report import write_report

TRAIN_AND_MEASURE = ("01_setup", "02_data_exploration", "03_training", "04_inference", "05_growth")
REVIEW = "02_data_exploration"
MEASURE = ("04_inference", "05_growth")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run notebooks with NAME=value settings; "segment" as first argument leaves out the training, "run" does not.

    arguments: of the command line where None.

    Returns 0, or 1 after printing the reason as the last line.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = given.pop(0) if given[:1] in (["run"], ["segment"]) else "run"
    try:
        names = MEASURE if command == "segment" else TRAIN_AND_MEASURE
        values = dict(name_and_value(argument) for argument in given)
        run_notebooks(names, values)
    except SegkitError as error:
        print(f"\n{STOPPED}{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{STOPPED}interrupted; RESUME=1 goes on after the last epoch that was saved", file=sys.stderr)
        return 1
    return 0


def run_notebooks(names: Sequence[str], values: dict[str, str]) -> Settings:
    """Execute notebooks in order with papermill; executed copies go to the run's notebooks/ folder.

    values: settings by upper-case name; relative paths mean the working folder. The lines that are
    added to run.log meanwhile are printed. Raises SegkitError with the notebook's reason where one stops.
    """
    if not values.get("DATASET_PATH"):  # then what the environment names, or the demo, whatever the form says
        values = {**values, "DATASET_PATH": os.environ.get("SEGKIT_DATASET_PATH") or str(project_root() / DEMO)}
    parse_settings(values)  # an unknown name is an error
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of every setting that a notebook does not list
    settings = load_settings(values, caller=Path(os.environ.get("SEGKIT_CALLER") or os.getcwd()))
    if names is MEASURE:
        check_whose_run(settings)
    dataset = discover(settings.dataset_path, settings.masks_path)  # what is wrong is said before anything is begun
    if names is MEASURE:
        load_model(settings.model_path, "cpu")
    else:
        check_training(settings)
        discover_split(settings, dataset)
    folder = settings.run_dir / "notebooks"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(settings.run_dir):  # the notebooks' kernels, which this process starts, are let in
        if names is MEASURE:
            record_settings(settings)
        _run_all(names, settings, dataset, folder)
    return settings


def _run_all(names: Sequence[str], settings: Settings, dataset: Dataset, folder: Path) -> None:
    """Execute the notebooks of a run into a folder, and make a page of them."""
    print(f"run {settings.run}: {settings.dataset_path} -> {settings.run_dir}", flush=True)
    assumed = assumed_conditions(settings, {frame.experiment for frame in dataset.frames})
    print("assumed, please check:", ", ".join(f"{name}={settings.as_dict()[name]}" for name in assumed) or "nothing")
    for name in names:
        began = time.perf_counter()
        print(f"{name} ...", flush=True)
        with _following(settings.run_dir / "run.log"):
            _execute(settings.root / "notebooks" / f"{name}.ipynb", folder / f"{name}.ipynb", settings)
        print(f"{name} done in {time.perf_counter() - began:.0f} s", flush=True)
        if name == REVIEW:
            _say_flags(settings.run_dir / "review.csv")
    write_report(settings.run_dir)
    for line in dataset.problem_summary():
        print(f"left out: {line}")
    print(f"results in {settings.run_dir}; report.html there shows them", flush=True)


def _execute(source: Path, target: Path, settings: Settings) -> None:
    """Execute a notebook with papermill; its copy, also of one that stops, is written whole or not at all.

    All settings are handed over, so that the copy says with which ones it was executed (report.html shows them).
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    if not source.is_file():
        raise SegkitError(f"no notebook {source}: run this in the project's folder, which holds notebooks/")
    values = {name: "" if value is None else value for name, value in settings.as_dict().items()}  # None is "not set"
    stopped = None
    with replacing(target) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The specified file")  # it does not end in .ipynb yet
        paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (source, part)]  # papermill formats them
        try:
            papermill.execute_notebook(*paths, parameters=values, cwd=str(source.parent), progress_bar=False,
                                       kernel_name="python3", extra_arguments=["--log-level=ERROR"])
        except PapermillExecutionError as error:
            stopped = error
        except DeadKernelError:
            raise SegkitError(f"{source.stem}: its kernel was killed, most likely for want of memory: set a smaller "
                              "BATCH_SIZE, CROP or MEMORY_LIMIT") from None
    if stopped:
        if stopped.ename != "SegkitError":
            print("\n".join(stopped.traceback), file=sys.stderr)
        raise SegkitError(f"{source.stem}: {stopped.evalue or stopped.ename}")


def _say_flags(review: Path, at_most: int = 5) -> None:
    """Print which pairs 02 has flagged; they are learnt from all the same."""
    table = read_table(review)
    flagged = table[table["flags"].notna()]
    for row in flagged.head(at_most).itertuples():
        print(f"  flagged: {row.experiment}/{row.position}/{row.frame}: {row.flags}")
    if len(flagged):
        print(f"  {len(flagged)} of {len(table)} pairs are flagged (review.csv) and used all the same: EXCLUDE leaves "
              "frames out", flush=True)


@contextmanager
def _following(path: Path) -> Iterator[None]:
    """Print what is appended to a file while the block runs."""
    began, ended = path.stat().st_size if path.is_file() else 0, threading.Event()

    def follow() -> None:
        at, last = began, False
        while not last:
            last = ended.wait(0.5)
            if not path.is_file():
                continue
            if path.stat().st_size < at:  # the demo's run was renewed
                at = 0
            with open(path, encoding="utf-8", errors="replace") as file:
                file.seek(at)
                text = file.read()
                at = file.tell()
            if text:
                print("  " + text.rstrip("\n").replace("\n", "\n  "), flush=True)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

