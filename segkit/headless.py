"""Run the notebooks without a browser: what `make run` and `make segment` call."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .advice import assumed_conditions
from .data import Dataset, exclude, split_by_position
from .discover import discover
from .errors import STOPPED, SegkitError
from .files import locked, read_table, write_json, writing
from .model_file import load_model
from .report import write_report
from .run import check_training
from .settings import DEMO, Settings, parse_settings
from .sources import check_whose_run, load_settings

TRAIN_AND_MEASURE = ("01_setup", "02_data_exploration", "03_training", "04_inference", "05_growth")
REVIEW = "02_data_exploration"
MEASURE = ("04_inference", "05_growth")


def main(arguments: Sequence[str]) -> int:
    """Run notebooks with NAME=value settings; "segment" as first argument leaves out the training.

    Returns 0, or 1 after printing the reason as the last line.
    """
    try:
        names = MEASURE if arguments[:1] == ["segment"] else TRAIN_AND_MEASURE
        values = dict(name_and_value(a) for a in arguments if a != "segment")
        run_notebooks(names, values)
    except SegkitError as error:
        print(f"\n{STOPPED}{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{STOPPED}interrupted; RESUME=1 goes on after the last epoch that was saved", file=sys.stderr)
        return 1
    return 0


def name_and_value(argument: str) -> tuple[str, str]:
    name, equals, value = argument.partition("=")
    if not equals:
        raise SegkitError(f"{argument} is no setting: NAME=value was needed, such as EPOCHS=20")
    return name, value


def run_notebooks(names: Sequence[str], values: dict[str, str]) -> Settings:
    """Execute notebooks in order with papermill; executed copies go to the run's notebooks/ folder.

    values: settings by upper-case name; relative paths mean the working folder. The lines that are
    added to run.log meanwhile are printed. Raises SegkitError with the notebook's reason where one stops.
    """
    values = {"DATASET_PATH": "", **values}
    if not values["DATASET_PATH"]:
        values["DATASET_PATH"] = str(load_settings().root / DEMO)
    caller = Path(os.environ.get("SEGKIT_CALLER") or os.getcwd())
    for name in ("DATASET_PATH", "MASKS_PATH"):
        if values.get(name):
            values[name] = os.path.normpath(caller / Path(values[name]).expanduser())
    for name in ("MODEL", "START_FROM"):
        if values.get(name) and (caller / values[name]).exists():
            values[name] = os.path.normpath(caller / values[name])
    parse_settings(values)  # an unknown name is an error
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of every setting that a notebook does not list
    settings = load_settings(values)
    values["RUN"] = settings.run
    if names is MEASURE:
        check_whose_run(settings)
    dataset = discover(settings.dataset_path, settings.masks_path)  # what is wrong is said before anything is begun
    if names is MEASURE:
        load_model(settings.model_path, "cpu")
    else:
        check_training(settings)
        split_by_position(exclude(dataset.pairs, settings.exclude)[0], settings.validation)
    folder = settings.run_dir / "notebooks"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(settings.run_dir):  # the notebooks' kernels, which this process starts, are let in
        _execute(names, values, settings, dataset, folder)
    return settings


def _execute(names: Sequence[str], values: Mapping[str, str], settings: Settings, dataset: Dataset,
             folder: Path) -> None:
    """Execute the notebooks of a run into a folder, and make a page of them."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    if names is MEASURE and not os.path.isfile(settings.run_dir / "last.pt"):  # else they are the training's
        write_json(settings.run_dir / "settings.json", settings.as_dict())
    typed = {name: settings.as_dict()[name] for name in values}
    print(f"run {settings.run}: {settings.dataset_path} -> {settings.run_dir}", flush=True)
    assumed = assumed_conditions(settings, {frame.experiment for frame in dataset.frames})
    print("assumed, please check:", ", ".join(f"{name}={settings.as_dict()[name]}" for name in assumed) or "nothing")
    for name in names:
        began = time.perf_counter()
        print(f"{name} ...", flush=True)
        with _following(settings.run_dir / "run.log"):
            try:
                papermill.execute_notebook(settings.root / "notebooks" / f"{name}.ipynb", folder / f"{name}.ipynb",
                                           parameters=typed, cwd=str(settings.root / "notebooks"), progress_bar=False,
                                           kernel_name="python3", extra_arguments=["--log-level=ERROR"])
            except PapermillExecutionError as error:
                if error.ename != "SegkitError":
                    print("\n".join(error.traceback), file=sys.stderr)
                raise SegkitError(f"{name}: {error.evalue or error.ename}") from None
        print(f"{name} done in {time.perf_counter() - began:.0f} s", flush=True)
        if name == REVIEW:
            _say_flags(settings.run_dir / "review.csv")
    write_report(settings.run_dir)
    for line in dataset.problem_summary():
        print(f"left out: {line}")
    print(f"results in {settings.run_dir}; report.html there shows them", flush=True)


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
