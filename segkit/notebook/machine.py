"""What the notebooks say about the machine, the dataset and the duration of a training."""

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
from ..files import duration
from ..model.unet import UNet
from ..settings import CONDITIONS, Settings, public_fields
from ..training.distributed import ProcessGroup
from ..training.frames import MIN_STEPS, choose_crop, default_crops, steps_per_epoch
from ..training.trainer import Trainer


def check_installation() -> dict[str, bool]:
    """Whether each of segkit's packages is there in a version that it supports, and torchvision matches torch."""
    checks = {"Python>=3.11": sys.version_info >= (3, 11)}
    for line in requires("segkit") or ():
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            checks[str(requirement)] = requirement.specifier.contains(version(requirement.name), prereleases=True)
        except PackageNotFoundError:
            checks[str(requirement)] = False
    try:
        from torchvision.ops import nms
        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
        checks["torch and torchvision match"] = True
    except (ImportError, RuntimeError):
        checks["torch and torchvision match"] = False
    return checks


def measure_speed(device: torch.device, precision: str = "auto", crop: int = 64, batch: int = 16,
                  steps: int = 2) -> float:
    """Megapixels per second through whole training steps of the student, after one to warm up."""
    trainer = Trainer(UNet(), Settings(batch_size=batch, precision=precision), ProcessGroup(str(device)))
    trainer.initialise(foreground=0.2)
    images = torch.rand(batch, 1, crop, crop, device=device)
    targets = (torch.rand(batch, 1, crop, crop, device=device) > 0.8).float()
    began = 0.0
    for step in range(steps + 1):
        if step == 1:
            began = time.perf_counter()
        trainer.train_step(images, targets).tolist()  # waits for the device
    return batch * crop * crop * steps / (time.perf_counter() - began) / 1e6


def machine_report(device_name: str = "auto", precision: str = "auto") -> dict[str, str]:
    """Versions, device, free memory and measured speed, in words."""
    device = pick_device(device_name)
    megapixels = measure_speed(device, precision)
    rows = {"Python": platform.python_version(), "PyTorch": torch.__version__,
            "device": describe_device(device, precision),
            "free memory": f"{free_memory() / 1e9:.1f} GB",
            "speed": f"about {megapixels * 1e6 / 128**2:.0f} crops of 128 x 128 pixels per second"}
    if device.type == "cuda":
        rows["free GPU memory"] = f"{torch.cuda.mem_get_info(device)[0] / 1e9:.1f} GB"
    return rows


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
    crops = settings.crops_per_epoch or default_crops(len(pairs.train) * height * width, crop)
    pixels = crops * crop[0] * crop[1] + 0.35 * len(pairs.validation) * height * width
    seconds = settings.epochs * pixels / speed / 1e6
    steps = settings.epochs * steps_per_epoch(crops, settings)
    few = f", and fewer than {MIN_STEPS} are seldom enough: set more EPOCHS" if steps < MIN_STEPS else ""
    return (f"{crops} crops of {crop[0]} x {crop[1]} an epoch, {steps} steps in all; about {duration(seconds)} on this "
            f"device{few}")


@cache
def _speed(device: str, precision: str) -> float:
    return measure_speed(pick_device(device), precision)
