"""What the notebooks say about the machine, the dataset, its conditions, and the duration of a training."""

import os
import platform
import sys
import time
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import pandas as pd
import torch
from packaging.requirements import Requirement

from ..data.dataset import Dataset, exclude, split_by_position
from ..data.discovery import discover, discover_split
from ..data.images import read_header
from ..devices import describe_device, free_memory, pick_device
from ..errors import SegkitError
from ..files import duration
from ..model.unet import FIELD_OF_VIEW, UNet
from ..settings import BY_EXPERIMENT, CONDITIONS_FILE, Settings, public_fields, read_conditions
from ..training.distributed import ProcessGroup
from ..training.frames import MIN_STEPS, choose_crop, default_crops, steps_per_epoch
from ..training.trainer import Trainer

VALIDATION_COST = 0.35  # of a pixel of a validation frame, as a share of a training pixel's time


def check_installation() -> dict[str, bool]:
    """Whether each of segkit's packages is there in a version that it supports."""
    checks = {"Python>=3.11": sys.version_info >= (3, 11)}
    for requirement in map(Requirement, requires("segkit") or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            try:
                installed = requirement.specifier.contains(version(requirement.name), prereleases=True)
            except PackageNotFoundError:
                installed = False
            checks[str(requirement)] = installed
    return checks


@cache
def measure_speed(device: str, precision: str = "auto", crop: int = 64, batch: int = 16, steps: int = 2) -> float:
    """Megapixels per second through whole training steps of the student, after one to warm up; measured once."""
    trainer = Trainer(UNet(), Settings(batch_size=batch, precision=precision), ProcessGroup(device))
    trainer.initialise(foreground=0.2)
    images = torch.rand(batch, 1, crop, crop, device=trainer.device)
    targets = (torch.rand(batch, 1, crop, crop, device=trainer.device) > 0.8).float()
    trainer.train_step(images, targets).tolist()  # waits for the device
    began = time.perf_counter()
    for _ in range(steps):
        trainer.train_step(images, targets).tolist()
    return batch * crop * crop * steps / (time.perf_counter() - began) / 1e6


def machine_report(settings: Settings) -> pd.DataFrame:
    """Versions, device, free memory and measured speed, a row each."""
    device = pick_device(settings.device)
    crops = measure_speed(str(device), settings.precision) * 1e6 / 128**2
    rows = {"Python": platform.python_version(), "PyTorch": torch.__version__,
            "device": describe_device(device, settings.precision),
            "free memory": f"{free_memory() / 1e9:.1f} GB",
            "speed": f"about {crops:.0f} crops of 128 x 128 pixels per second"}
    if device.type == "cuda":
        rows["free GPU memory"] = f"{torch.cuda.mem_get_info(device)[0] / 1e9:.1f} GB"
    return pd.DataFrame({"": rows})


def check_conditions(settings: Settings, dataset: Dataset) -> None:
    """Raise SegkitError where the table of experiments names one that the dataset lacks."""
    experiments = {frame.experiment for frame in dataset.frames}
    damaged = {part.replace("_raw_data", "") for problem in dataset.problems for part in problem.path.parts}
    for name in read_conditions(settings.conditions or ""):
        if name not in experiments | damaged:
            raise SegkitError(f"{settings.dataset_path / CONDITIONS_FILE}, or the table of 01_setup, row {name}: the "
                              f"dataset has no such experiment; one of {', '.join(sorted(experiments))} was needed")


def dataset_verdict(settings: Settings, dataset: Dataset | None = None) -> str:
    """What is in DATASET_PATH, in a sentence; raises SegkitError with what is wrong with it.

    dataset: what `discover` has found there, if it has been called already.
    """
    dataset = dataset or discover(settings.dataset_path, settings.masks_path)
    check_conditions(settings, dataset)
    kept, excluded = exclude(dataset.pairs, settings.exclude)
    split = split_by_position(kept, settings.validation)
    problems = ""
    if dataset.problems:
        lost = sum(problem.frames_lost for problem in dataset.problems)
        first = "; ".join(dataset.problem_summary(1))
        problems = f"; {len(dataset.problems)} problem(s), {lost} frame(s) lost: {first}"
    return (f"{len(dataset.frames)} images, {len(dataset.pairs)} with masks, {len(split.train)} for training, "
            f"{len(split.validation)} for validation, {len(excluded)} excluded{problems}")


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
    return pd.DataFrame({name: {key: values[key] for key in BY_EXPERIMENT} for name, values in own.items()}).T


def assumed_conditions(settings: Settings, experiments: Iterable[str]) -> list[str]:
    """The settings of BY_EXPERIMENT with segkit's default in every experiment: assumed, unless somebody meant them."""
    table, default = conditions_table(settings, experiments), {f.name.upper(): f.default for f in public_fields()}
    return [name for name in BY_EXPERIMENT if (table[name] == default[name]).all()]


def training_estimate(settings: Settings, dataset: Dataset | None = None) -> str:
    """How long the training will take on this device, about, from a measured speed; dataset: as in dataset_verdict."""
    split = discover_split(settings, dataset or discover(settings.dataset_path, settings.masks_path))
    # the size of one frame stands for all, so that a form answers at once
    height, width = read_header(split.train[0].image).size
    device = pick_device(settings.device)
    crop = choose_crop(settings, device, (height, width))
    crops = settings.crops_per_epoch or default_crops(len(split.train) * height * width, crop)
    # training pixels of an epoch, and those of the validation frames, which need no backward pass
    pixels = crops * crop[0] * crop[1] + VALIDATION_COST * len(split.validation) * height * width
    seconds = settings.epochs * pixels / measure_speed(str(device), settings.precision) / 1e6
    steps = settings.epochs * steps_per_epoch(crops, settings)
    few = f", and fewer than {MIN_STEPS} are seldom enough: set more EPOCHS" if steps < MIN_STEPS else ""
    return (f"{crops} crops of {crop[0]} x {crop[1]} an epoch, {steps} steps in all; about {duration(seconds)} on this "
            f"device{few}")


def check_crop(settings: Settings, cells: pd.DataFrame, frame_size: tuple[int, int]) -> dict[str, bool]:
    """Whether 95 % of the cells are shorter than a crop's shorter side and than the network's field of view."""
    crop = choose_crop(settings, pick_device(settings.device), frame_size)
    longest = cells["length_px"].quantile(0.95)
    return {"95 % of the cells are shorter than a crop's shorter side": bool(longest < min(crop)),
            f"95 % are shorter than the field of view (about {FIELD_OF_VIEW} pixels)": bool(longest < FIELD_OF_VIEW)}
