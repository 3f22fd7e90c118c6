"""Run the notebooks without a browser: the command `segkit`, which Make calls, too."""

import io
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import files
from pathlib import Path

from ..data.discovery import discover, discover_split
from ..errors import STOPPED, SegkitError
from ..files import duration, locked, log, replacing
from ..model.checkpoint import load_model
from ..model.unet import UNet
from ..settings import Settings, check_whose_run, load_settings, parse_settings, public_fields, record_settings
from ..training.run_dir import check_training
from ..training.trainer import fit
from .report import assumed_conditions, check_conditions, write_report

TRAIN_AND_MEASURE = ("01_setup", "02_data_exploration", "03_training", "04_inference", "05_tracking", "06_growth")
NOTEBOOKS = {"run": TRAIN_AND_MEASURE, "segment": TRAIN_AND_MEASURE[3:]}  # by command
HELP = """segkit run [NAME=value ...]      train, segment and measure: on the demo, or on DATASET_PATH=...
segkit segment [NAME=value ...]  segment and measure without training: with the starter, or with MODEL=...
segkit train [NAME=value ...]    train without notebooks; for several GPUs: torchrun --nproc-per-node=4 -m segkit train

Results are written to runs/RUN in the project's folder, or in this one outside a checkout. The settings:
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: "run" (also where no command is given), "segment" or "train", then NAME=value settings.

    Returns 0, or 1 after printing the reason as the last line.
    """
    # a console that lacks the letters of a path shows them escaped
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # help goes before everything else on the line
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help", "help"}.intersection(given):
        print(HELP + "\n".join(f"  {f.name.upper():18} {f.metadata['help']}" for f in public_fields()))
        return 0
    # a reason is one line, the last one, whatever happens in a notebook
    try:
        command = given.pop(0) if given and "=" not in given[0] else "run"
        if command not in (*NOTEBOOKS, "train") or not all("=" in argument for argument in given):
            raise SegkitError(f"{' '.join([command, *given])} is unknown: run, segment or train was needed, then "
                              "settings as NAME=value, such as EPOCHS=20 (segkit --help lists them)")
        values = dict(argument.split("=", 1) for argument in given)
        if command == "train":
            train(values)
        else:
            run_notebooks(command, values)
        return 0
    except SegkitError as error:
        reason = str(error)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    except KeyboardInterrupt:
        reason = "interrupted; RESUME=1 continues after the last epoch that was saved"
    print(f"\n{STOPPED}{reason}", file=sys.stderr)
    return 1


def train(values: dict[str, str]) -> None:
    """Train without notebooks; values: as in run_notebooks. torchrun starts several processes of this."""
    # torchrun ends all processes where one is lost: the main process then saves and logs what an interrupt does
    if os.environ.get("RANK", "0") == "0":
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    log.addHandler(logging.StreamHandler(sys.stdout))
    settings = _settings_from(values)
    try:
        fit(UNet(), discover_split(settings), settings)
    finally:
        if os.environ.get("RANK") == "0":  # of torchrun, which ends it now: not before its reason is printed
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _settings_from(values: dict[str, str]) -> Settings:
    """The settings that a command line means: no unknown names, relative paths from the caller's folder."""
    parse_settings(values)
    return load_settings(values, caller=Path(os.environ.get("SEGKIT_CALLER") or os.getcwd()))


def run_notebooks(command: str, values: dict[str, str]) -> None:
    """Execute the notebooks of "run" or "segment" with papermill; executed copies go to the run's notebooks/ folder.

    values: settings by upper-case name; relative paths start from the working folder. What the cells print is printed
    meanwhile. Raises SegkitError with the notebook's reason where one stops.
    """
    # without a dataset: what the environment names, or the demo, whatever the saved form contains
    dataset_path = values.get("DATASET_PATH") or os.environ.get("SEGKIT_DATASET_PATH") or Settings().dataset_path
    settings = _settings_from({**values, "DATASET_PATH": str(dataset_path)})
    # whatever is wrong with dataset, model or run folder is reported before anything is written
    dataset = discover(settings.dataset_path, settings.masks_path)
    check_conditions(settings, dataset)
    if command == "segment":
        settings = parse_settings({"MODEL": settings.model or "starter"}, settings)
        check_whose_run(settings)
        load_model(settings.model_path, "cpu")
    else:
        check_training(settings)
        discover_split(settings, dataset)
    # from here on the run's folder is changed, by this process and the kernels that it starts
    with locked(settings.run_dir):
        if command == "segment":
            record_settings(settings)
        print(f"run {settings.run}: {settings.dataset_path} -> {settings.run_dir}", flush=True)
        assumed = assumed_conditions(settings, {frame.experiment for frame in dataset.frames})
        shown = ", ".join(f"{name}={settings.as_dict()[name]}" for name in assumed)
        print("assumed, please check:", shown or "nothing", flush=True)
        for name in NOTEBOOKS[command]:
            began = time.perf_counter()
            print(f"{name} ...", flush=True)
            seen = _log_lines(settings.run_dir)
            try:
                _execute(name, settings)
            finally:  # what the notebook has logged, but for the epochs, which a cell prints
                added = [line for line in _log_lines(settings.run_dir) if line not in seen and "  epoch " not in line]
                print("".join(f"  {line}" for line in added), end="", flush=True)
            print(f"{name} done in {duration(time.perf_counter() - began)}", flush=True)
        write_report(settings.run_dir)
    for line in dataset.problem_summary():
        print(f"left out: {line}")
    print(f"results in {settings.run_dir}; report.html there shows them", flush=True)


class _Output:
    """What papermill writes a notebook's output to: standard output.

    A line that is written over in a terminal, as that of the epochs is, becomes a line of its own in a file.
    """

    def write(self, text: str) -> None:
        sys.stdout.write(text if sys.stdout.isatty() else text.replace("\r", "\n"))

    def flush(self) -> None:
        sys.stdout.flush()


def _execute(name: str, settings: Settings) -> None:
    """Execute a notebook with papermill; its copy, also of one that stops, is written whole or not at all.

    All settings are handed over, so that the copy contains those that it was executed with (report.html shows them).
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    # the checkout's notebooks, else those that come with an installed package
    source = settings.root / "notebooks" / f"{name}.ipynb"
    installed = [Path(str(file.locate())).resolve() for file in files("segkit") or () if file.name == source.name]
    found = [path for path in (source, *installed) if path.is_file()]
    if not found:
        raise SegkitError(f"no notebook {source}: run this in the project's folder, which holds notebooks/")
    values = {name: "" if value is None else value for name, value in settings.as_dict().items()}  # None is "not set"
    stopped = None
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # it warns of every setting that a notebook does not name
    with replacing(settings.run_dir / "notebooks" / source.name) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The specified file")  # it does not end in .ipynb yet
        paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (found[0], part)]  # papermill formats them
        try:
            papermill.execute_notebook(*paths, parameters=values, cwd=str(settings.root), kernel_name="python3",
                                       progress_bar=False, stdout_file=_Output(), extra_arguments=["--log-level=ERROR"])
        except PapermillExecutionError as error:
            stopped = error
        except DeadKernelError:
            raise SegkitError(f"{name}: its kernel was killed, most likely out of memory: set a smaller "
                              "BATCH_SIZE or CROP") from None
    # after the copy is in place, so that it can be looked at
    if stopped:
        if stopped.ename != "SegkitError":
            print("\n".join(stopped.traceback), file=sys.stderr)
        raise SegkitError(f"{name}: {' '.join(stopped.evalue.split()) or stopped.ename}")


def _log_lines(run_dir: Path) -> list[str]:
    """The lines of a run's log until now, each with its end."""
    file = run_dir / "run.log"
    return file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
