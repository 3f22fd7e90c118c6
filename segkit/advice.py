"""What the forms say in words: what is in the dataset, how long a training takes, what the settings are."""

import os
from collections.abc import Iterable
from functools import cache
from typing import Any

import pandas as pd

from .data import Dataset, exclude, split_by_position
from .devices import pick_device
from .discover import discover, discover_split
from .history import duration
from .images import read_header
from .layout import FEW_STEPS, choose_crop, covering, steps_of
from .machine import measure_speed
from .settings import CONDITIONS, Settings, public_fields


def dataset_verdict(settings: Settings, dataset: Dataset | None = None) -> str:
    """What is in DATASET_PATH, in a sentence; raises SegkitError with what is wrong with it.

    dataset: what `discover` has found there, if it has been called already.
    """
    dataset = dataset or discover(settings.dataset_path, settings.masks_path)
    kept, excluded = exclude(dataset.pairs, settings.exclude)
    split = split_by_position(kept, settings.validation)
    lost = sum(problem.frames_lost for problem in dataset.problems)
    found = f"; {len(dataset.problems)} problem(s), {lost} frame(s) lost: {'; '.join(dataset.problem_summary(1))}"
    problems = found if dataset.problems else ""
    return (f"{len(dataset.frames)} images, {len(dataset.pairs)} with masks, {len(split.train)} to learn from, "
            f"{len(split.validation)} to judge by, {len(excluded)} excluded{problems}")


def shown_value(settings: Settings, name: str) -> Any:
    """A setting's value as a form shows it: paths inside the project relative to it, nothing as empty text."""
    value = settings.as_dict()[name]
    return value.removeprefix(f"{settings.root}{os.sep}") if isinstance(value, str) else "" if value is None else value


def settings_table(settings: Settings) -> pd.DataFrame:
    """The settings as plain text, readable without a kernel; paths inside the project are shown relative to it."""
    rows = [(f.name.upper(), str(shown_value(settings, f.name.upper())).replace(",", ", "), f.metadata["unit"],
             f.metadata["help"]) for f in public_fields()]  # with spaces, so that a long value is broken into lines
    return pd.DataFrame(rows, columns=["setting", "value", "unit", "meaning"]).set_index("setting")


def assumed_conditions(settings: Settings, experiments: Iterable[str]) -> list[str]:
    """The CONDITIONS that have segkit's default in every experiment: assumed, unless somebody meant them."""
    plain, own = Settings().as_dict(), [settings.for_experiment(name).as_dict() for name in experiments]
    return [name for name in CONDITIONS if all(said[name] == plain[name] for said in own)]


def training_estimate(settings: Settings, dataset: Dataset | None = None) -> str:
    """How long the training will take on this device, about, from a measured speed; dataset: as in dataset_verdict."""
    dataset = dataset or discover(settings.dataset_path, settings.masks_path)
    pairs = discover_split(settings, dataset)
    height, width = read_header(pairs.train[0].image).size
    speed = _speed(str(pick_device(settings.device)), settings.precision)
    crop = choose_crop(settings, pick_device(settings.device), (height, width))
    crops = settings.crops_per_epoch or covering(len(pairs.train) * height * width, crop)
    pixels = crops * crop[0] * crop[1] + 0.35 * len(pairs.validation) * height * width
    seconds = settings.epochs * pixels / speed / 1e6
    steps = settings.epochs * steps_of(crops, settings)
    few = f", and fewer than {FEW_STEPS} are seldom enough: set more EPOCHS" if steps < FEW_STEPS else ""
    return (f"{crops} crops of {crop[0]} x {crop[1]} an epoch, {steps} steps in all; about {duration(seconds)} on this "
            f"device{few}")


@cache
def _speed(device: str, precision: str) -> float:
    return measure_speed(pick_device(device), precision)
