"""How fast segkit trains beside the starting recipe, in one run on one machine: part of `make bench`."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from plain_recipe import PlainTraining

import segkit
from segkit.crops import cut_crops, draw_crops
from segkit.decode import build_store
from segkit.devices import autocast, describe_device, pick_device
from segkit.discover import discover_split
from segkit.layout import choose_crop
from segkit.losses import student_loss
from segkit.settings import parse_settings
from segkit.sources import load_settings

SECONDS, ROUNDS = 8.0, 3  # each of the three is timed so often, in turns: other work on the machine hits all alike


def crops_per_second(step: Callable[[], None], batch: int) -> float:
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        step()
        count += batch
    return count / (time.perf_counter() - began)


def main(arguments: list[str]) -> None:
    settings = parse_settings(dict(a.split("=", 1) for a in arguments), load_settings())
    device = pick_device(settings.device)
    split = discover_split(settings)
    with tempfile.TemporaryDirectory() as cache:
        store, _ = build_store(split.train, device, Path(cache))
    crop = choose_crop(settings, device, (int(store.height.min()), int(store.width.min())))
    batch, source = settings.batch_size, torch.Generator().manual_seed(0)
    plain = PlainTraining(split.train, crop, batch, device)
    student = segkit.UNet().to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3, fused=device.type == "cuda" or None)

    def student_step(images: torch.Tensor, targets: torch.Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        with autocast(device):
            output = student(images.contiguous(memory_format=torch.channels_last))
        loss = student_loss(output, targets)
        loss.backward()
        optimiser.step()
        float(loss.detach())

    def cut() -> tuple[torch.Tensor, torch.Tensor]:
        return cut_crops(store, draw_crops(store, batch, crop, source), crop)

    fixed = cut()
    steps: dict[str, Callable[[], None]] = {
        "plain recipe": plain.step, "segkit": lambda: student_step(*cut()),
        "segkit, one fixed batch (ceiling)": lambda: student_step(*fixed)}
    for step in steps.values():
        step()  # warms up
    rates = dict.fromkeys(steps, 0.0)
    for _ in range(ROUNDS):
        for name, step in steps.items():
            rates[name] = max(rates[name], crops_per_second(step, batch))
    print(f"{settings.dataset_path.name}, crops of {crop[0]} x {crop[1]}, batch {batch}; {describe_device(device)}; "
          f"torch {torch.__version__}; best of {ROUNDS} rounds of {SECONDS:.0f} s\n")
    print("| training | crops/s | times the plain recipe | share of the ceiling |\n| --- | --- | --- | --- |")
    ceiling = rates["segkit, one fixed batch (ceiling)"]
    for name, rate in rates.items():
        share = f"{rate / ceiling:.0%}" if name != "plain recipe" else ""
        print(f"| {name} | {rate:.1f} | {rate / rates['plain recipe']:.2f} | {share} |")
    if device.type == "cuda":
        print(f"\nGPU memory at most: {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB")


if __name__ == "__main__":
    main(sys.argv[1:])
