"""In words and tables: the machine, a dataset, the settings, all runs; and a run as one page."""

import datetime
import html
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import distributions, requires
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from packaging.requirements import Requirement

from ..data.dataset import Dataset, exclude, split_by_position
from ..data.discovery import discover, discover_split, experiment_name, is_raw
from ..data.images import read_header
from ..devices import describe_device, pick_device
from ..errors import SegkitError
from ..files import duration, read_json, read_table, write_text
from ..measure.growth import find_reference
from ..model.checkpoint import load_model
from ..model.unet import FIELD_OF_VIEW, UNet
from ..settings import BY_EXPERIMENT, CONDITIONS_FILE, Settings, public_fields, read_conditions
from ..training.distributed import ProcessGroup
from ..training.frames import MIN_STEPS, choose_crop, plan_epoch
from ..training.trainer import Trainer

VALIDATION_COST = 0.35  # of a pixel of a validation frame, as a share of a training pixel's time
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
HANDS_ON = {"answers", "hands-on"}  # tags of cells for a reader who runs the notebook
NOT_REPORTED = re.compile(r"^\*\*(What you will do|What you need):.*?(\n\n|\Z)|^\*\*On your own\*\*.*", re.S | re.M)
RUN_COLUMNS = {"run": "run", "DATASET_PATH": "dataset", "epochs": "epochs", "LEARNING_RATE": "learning rate",
               "CROP": "crop", "val_dice": "Dice", "val_panoptic_quality": "panoptic quality", "seconds": "minutes",
               "device": "device", "when": "when"}  # of table_of_runs, by the names in a run's files


def check_installation() -> dict[str, bool]:
    """Whether each of segkit's packages is there in a version that it supports."""
    checks = {"Python>=3.11": sys.version_info >= (3, 11)}
    for requirement in map(Requirement, requires("segkit") or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found = [package.version for package in distributions(name=requirement.name)][:1]
            checks[str(requirement)] = any(requirement.specifier.filter(found, prereleases=True))
    return checks


@cache
def measure_speed(device: str, precision: str = "auto", crop: int = 64, batch: int = 16, steps: int = 2) -> float:
    """Megapixels per second through whole training steps of the student, after one to warm up; measured once."""
    trainer = Trainer(UNet(), Settings(batch_size=batch, precision=precision), ProcessGroup(device))
    trainer.initialise(foreground=0.2)
    images = torch.rand(batch, 1, crop, crop, device=trainer.device)
    targets = (torch.rand(batch, 2, crop, crop, device=trainer.device) > 0.8).float()
    trainer.train_step(images, targets).tolist()  # waits for the device
    began = time.perf_counter()
    for _ in range(steps):
        trainer.train_step(images, targets).tolist()
    return batch * crop * crop * steps / (time.perf_counter() - began) / 1e6


def machine_report(settings: Settings) -> pd.DataFrame:
    """Versions, device and measured speed, a row each."""
    device = pick_device(settings.device)
    crops = measure_speed(str(device), settings.precision) * 1e6 / 128**2
    rows = {"Python": platform.python_version(), "PyTorch": torch.__version__,
            "device": describe_device(device, settings.precision),
            "speed": f"about {crops:.0f} crops of 128 x 128 pixels per second"}
    if device.type == "cuda":
        rows["free GPU memory"] = f"{torch.cuda.mem_get_info(device)[0] / 1e9:.1f} GB"
    return pd.DataFrame({"": rows})


def check_conditions(settings: Settings, dataset: Dataset) -> None:
    """Raise SegkitError where the table of experiments, or a REFERENCE, names one that the dataset lacks."""
    usable = {frame.experiment for frame in dataset.frames}
    # an experiment without a usable image is there all the same
    there = usable | {experiment_name(folder.name) for folder in dataset.path.iterdir() if is_raw(folder)}
    needed = f"the dataset has no such experiment; one of {', '.join(sorted(usable))} was needed"
    for name in read_conditions(settings.conditions or ""):
        if name not in there:
            raise SegkitError(f"{settings.dataset_path / CONDITIONS_FILE}, or the table of 01_setup, row {name}: "
                              f"{needed}")
    for reference in {settings.for_experiment(name).reference for name in usable} - {Settings.reference, ""}:
        if not find_reference("", there, reference):
            raise SegkitError(f"REFERENCE is {reference}: {needed}")


def dataset_verdict(settings: Settings, dataset: Dataset | None = None) -> str:
    """What is in DATASET_PATH, in a sentence; raises SegkitError with what is wrong with it.

    dataset: what `discover` has found there, if it has been called already.
    """
    dataset = dataset or discover(settings.dataset_path, settings.masks_path)
    check_conditions(settings, dataset)
    kept, excluded = exclude(dataset.pairs, settings.exclude)
    split = split_by_position(kept, settings.validation)
    wrong = ""
    if dataset.problems:
        lost = sum(problem.frames_lost for problem in dataset.problems)
        wrong = f"; {len(dataset.problems)} problem(s), {lost} frame(s) lost: {'; '.join(dataset.problem_summary(1))}"
    return (f"{len(dataset.frames)} images, {len(dataset.pairs)} with masks, {len(split.train)} for training, "
            f"{len(split.validation)} for validation, {len(excluded)} excluded{wrong}")


def shown_value(settings: Settings, name: str) -> Any:
    """A setting's value as a form shows it: paths inside the project relative to it, nothing as empty text."""
    value = settings.as_dict()[name]
    return value.removeprefix(f"{settings.root}{os.sep}") if isinstance(value, str) else "" if value is None else value


def settings_table(settings: Settings) -> pd.DataFrame:
    """The settings as plain text, readable without a kernel; paths inside the project are shown relative to it."""
    table = pd.DataFrame([{"setting": spec.name.upper(), "value": str(shown_value(settings, spec.name.upper())),
                           "unit": spec.metadata["unit"], "meaning": spec.metadata["help"]}
                          for spec in public_fields()]).set_index("setting")
    # with spaces, so that a long value is broken into lines
    return table.assign(value=table["value"].str.strip().str.replace("\n", "; ").str.replace(",", ", "))


def conditions_table(settings: Settings, experiments: Iterable[str]) -> pd.DataFrame:
    """A row for each experiment: its pixel size, frame interval, drug frame and reference."""
    own = {name: settings.for_experiment(name).as_dict() for name in sorted(experiments)}
    return pd.DataFrame(own, index=list(BY_EXPERIMENT)).T


def assumed_conditions(settings: Settings, experiments: Iterable[str]) -> list[str]:
    """The settings of BY_EXPERIMENT with segkit's default in every experiment: assumed, unless somebody meant them."""
    table, default = conditions_table(settings, experiments), {f.name.upper(): f.default for f in public_fields()}
    return [name for name in BY_EXPERIMENT if (table[name] == default[name]).all()]


def training_estimate(settings: Settings, dataset: Dataset | None = None) -> str:
    """How long the training will take on this device, about, from a measured speed; dataset: as in dataset_verdict."""
    split = discover_split(settings, dataset)
    # the size of one frame stands for all, so that a form answers at once
    height, width = read_header(split.train[0].image).size
    device = pick_device(settings.device)
    crop, crops, steps = plan_epoch(settings, device, (height, width), len(split.train) * height * width)
    # training pixels of an epoch, and those of the validation frames, which need no backward pass
    pixels = crops * crop[0] * crop[1] + VALIDATION_COST * len(split.validation) * height * width
    seconds = settings.epochs * pixels / measure_speed(str(device), settings.precision) / 1e6
    steps *= settings.epochs
    few = f", and fewer than {MIN_STEPS} are seldom enough: set more EPOCHS" if steps < MIN_STEPS else ""
    return (f"{crops} crops of {crop[0]} x {crop[1]} an epoch, {steps} steps in all; about {duration(seconds)} on this "
            f"device{few}")


def check_crop(settings: Settings, cells: pd.DataFrame, frame_size: tuple[int, int]) -> dict[str, bool]:
    """Whether 95 % of the cells are shorter than a crop's shorter side and than the network's field of view."""
    crop = choose_crop(settings, pick_device(settings.device), frame_size)
    longest = cells["length_px"].quantile(0.95)
    return {"95 % of the cells are shorter than a crop's shorter side": bool(longest < min(crop)),
            f"95 % are shorter than the field of view (about {FIELD_OF_VIEW} pixels)": bool(longest < FIELD_OF_VIEW)}


def write_report(run_dir: str | Path) -> Path:
    """Write run_dir/report.html: the run's executed notebooks one after the other, without code; returns its path.

    Raises SegkitError where no executed notebook is there.
    """
    import nbformat
    from nbconvert import HTMLExporter

    run_dir = Path(run_dir)
    files = sorted((run_dir / "notebooks").glob("0[2-6]_*.ipynb"))  # 01 has no results
    if not files:
        raise SegkitError(f"no executed notebook in {run_dir / 'notebooks'}: make run and make segment leave them "
                          "there")
    notebooks = [nbformat.read(file, as_version=4) for file in files]
    # the settings of the results: of the last notebook that papermill executed
    used = notebooks[-1].metadata.get("papermill", {}).get("parameters", {})
    cells = [nbformat.v4.new_markdown_cell(_summary(run_dir, used))]
    # what a reader of results needs: no instructions, widgets or warnings
    for cell in (cell for notebook in notebooks for cell in notebook.cells):
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"^## \d+\. ", "## ", NOT_REPORTED.sub("", cell.source), flags=re.M)
        else:
            cell.outputs = [output for output in cell.outputs if output.output_type != "error"
                            and output.get("name") != "stderr" and WIDGET_VIEW not in output.get("data", {})]
        if HANDS_ON.isdisjoint(cell.metadata.get("tags", ())) and cell.get("outputs", True):
            cells.append(cell)
    # a page that needs no other file and no network
    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True,
                            mathjax_url="", require_js_url="")
    page = nbformat.v4.new_notebook(cells=cells)
    content, _ = exporter.from_notebook_node(page, {"metadata": {"name": f"segkit: {run_dir.name}"}})
    write_text(run_dir / "report.html", content)
    return run_dir / "report.html"


def _summary(run_dir: Path, used: Mapping[str, Any]) -> str:
    """Which run it is, how its training scored, what the results were made with, as Markdown.

    used: settings that the last notebook was executed with, before those of settings.json, which are the training's.
    """
    report, settings = (read_json(run_dir / name, "the run's file") if (run_dir / name).is_file() else {}
                        for name in ("report.json", "settings.json"))
    settings |= used
    # the settings of the model's own training, which may be of another run and dataset
    trained: dict[str, Any] = {}
    with suppress(SegkitError):
        model = Settings(root=run_dir.parent.parent, run=run_dir.name, model=settings.get("MODEL") or "")
        trained = load_model(model.model_path, "cpu").info.settings
    # what is always known, then what a training has left
    lines = [f"# Run {html.escape(run_dir.name)}", f"Written {datetime.date.today()}."]
    if report:
        lines.append(f"Trained for {report['epochs']} epochs (best: {report['best_epoch']}) on {report['device']}: "
                     f"validation Dice {report['val_dice']:.3f}, panoptic quality "
                     f"{report['val_panoptic_quality']:.3f}, over whole frames segmented into cells.")
    if trained:
        lines.append(html.escape(f"The results are of the model of run {trained.get('RUN')}, trained on the dataset "
                                 f"{trained.get('DATASET_PATH')}."))
    # all settings that are set, beside those of the training where they differ; papermill has empty text for None
    columns = {"of these results": settings, "of the model's training, where other": settings | trained}
    table = pd.DataFrame(columns, index=list(settings), dtype=object).fillna("")
    used, other = table.columns
    table[other] = table[other].replace("", "not set").where(table[used] != table[other], "")
    table = table.astype(str).replace("\n", "; ", regex=True)
    with pd.option_context("display.max_colwidth", None):
        shown = table[table.ne("").any(axis=1)].to_html(border=0, justify="left")
    lines.append(f"<details><summary>Settings</summary>{shown}</details>")
    return "\n\n".join(lines)


def read_scores(run_dir: str | Path, parts: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The run's scores.csv, with a column `part` where parts names one for each frame; empty without teacher labels."""
    path = Path(run_dir) / "scores.csv"
    scores = read_table(path) if path.is_file() else pd.DataFrame(columns=["experiment", "position", "frame"])
    if parts is not None:
        scores["part"] = [parts[f"{row.experiment}/{row.position}/{row.frame}"] for row in scores.itertuples()]
    return scores


def table_of_runs(runs_dir: str | Path) -> pd.DataFrame:
    """One row per finished training under runs_dir, the newest first: data, main settings, scores, time, device."""
    rows = []
    for file in Path(runs_dir).glob("*/report.json"):
        with suppress(SegkitError):  # a run that is being written, or was damaged: it is no row, and stays as it is
            run = read_json(file.with_name("settings.json"), "the run's file") | read_json(file, "the run's file")
            rows.append(run | {"run": file.parent.name, "DATASET_PATH": Path(run.get("DATASET_PATH", "")).name,
                               "seconds": run.get("seconds", 0) / 60,
                               "when": pd.Timestamp(file.stat().st_mtime, unit="s").round("min")})
    table = pd.DataFrame(rows, columns=list(RUN_COLUMNS)).rename(columns=RUN_COLUMNS)
    table = table.sort_values("when", ascending=False, ignore_index=True)
    return table.round({"Dice": 4, "panoptic quality": 4, "minutes": 1})
