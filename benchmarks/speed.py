"""How fast segkit trains beside the starting recipe, in one run on one machine: part of `make bench`.

The starting recipe and segkit each have a process of their own, which take turns.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from plain_recipe import PlainTraining, apart, crop_of

import segkit
from segkit.data.discovery import discover_split
from segkit.devices import describe_device, pick_device
from segkit.settings import Settings, load_settings, parse_settings
from segkit.training.augment import gather_crops, sample_crops
from segkit.training.distributed import ProcessGroup
from segkit.training.frames import build_store
from segkit.training.trainer import Trainer

SECONDS, ROUNDS = 8.0, 3  # each of the three is timed so often, in turns: other work on the machine hits all alike
PLAIN, SEGKIT, CEILING = "starting recipe", "segkit", "segkit, one fixed batch (ceiling)"


@cache
def plain_step(settings: Settings) -> Callable[[], object]:
    frames, device = discover_split(settings).train, pick_device(settings.device)
    return PlainTraining(frames, crop_of(settings, frames), settings.batch_size, device).step


@cache
def student_steps(settings: Settings) -> dict[str, Callable[[], object]]:
    """A step on crops cut anew, and one on the same crops again and again."""
    frames, device = discover_split(settings).train, pick_device(settings.device)
    with tempfile.TemporaryDirectory() as folder:
        store, _ = build_store(frames, device, Path(folder))
    trainer = Trainer(segkit.UNet(), settings, ProcessGroup(settings.device))
    trainer.initialise(store.foreground)
    trainer.learning_rate = settings.learning_rate
    crop, source = crop_of(settings, frames), torch.Generator().manual_seed(0)

    def cut() -> tuple[torch.Tensor, torch.Tensor]:
        images, targets = gather_crops(store, sample_crops(store, settings.batch_size, crop, source), crop)
        return images.to(device), targets.to(device)

    fixed = cut()
    return {SEGKIT: lambda: trainer.train_step(*cut()).tolist(), CEILING: lambda: trainer.train_step(*fixed).tolist()}


def crops_per_second(name: str, settings: Settings) -> tuple[float, float]:
    """Crops per second over some seconds, and the most GPU memory that this process has taken, GB."""
    step = plain_step(settings) if name == PLAIN else student_steps(settings)[name]
    step()  # warms up
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        step()
        count += settings.batch_size
    rate = count / (time.perf_counter() - began)
    return rate, torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


def main(arguments: list[str]) -> None:
    settings = parse_settings({"START_FROM": "", **dict(a.split("=", 1) for a in arguments)}, load_settings())
    rates, memory = dict.fromkeys((PLAIN, SEGKIT, CEILING), 0.0), 0.0
    with apart() as plain, apart() as ours:
        for _ in range(ROUNDS):
            for name in rates:
                rate, taken = (plain if name == PLAIN else ours).submit(crops_per_second, name, settings).result()
                rates[name], memory = max(rates[name], rate), taken
    height, width = crop_of(settings, discover_split(settings).train)
    print(f"{settings.dataset_path.name}, crops of {height} x {width}, batch {settings.batch_size}; "
          f"{describe_device(pick_device(settings.device))}; torch {torch.__version__}; best of {ROUNDS} rounds of "
          f"{SECONDS:.0f} s\n")
    print("| training | crops/s | times the starting recipe | share of the ceiling |\n| --- | --- | --- | --- |")
    for name, rate in rates.items():
        share = f"{rate / rates[CEILING]:.0%}" if name != PLAIN else ""
        print(f"| {name} | {rate:.1f} | {rate / rates[PLAIN]:.2f} | {share} |")
    if memory:
        print(f"\nGPU memory at most: {memory:.1f} GB")


if __name__ == "__main__":
    main(sys.argv[1:])
