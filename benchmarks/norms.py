"""Batch, group or instance norm? `python benchmarks/norms.py FOLDER... [SEEDS=3] [STEPS=100] [BATCH_SIZE=8]`.

Trains the student with each on every dataset and seed, the same number of steps, and prints validation Dice and
panoptic quality (mean and least over seeds), how many epochs broke down, and seconds of training per step.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
from torch import nn

import segkit
from segkit.data.discovery import discover_split
from segkit.measure.metrics import score_frames
from segkit.model.unet import DoubleConv
from segkit.settings import load_settings, parse_settings

EPOCHS = 5
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d, "group": lambda channels: nn.GroupNorm(8, channels),
    "instance": lambda channels: nn.GroupNorm(channels, channels)}


PLAIN_INIT = DoubleConv.__init__


def use_norm(norm: Callable[[int], nn.Module]) -> None:
    """Build every network from here on with this norm, and with trained biases where it is not batch norm."""
    def init(self: DoubleConv, channels_in: int, channels_out: int) -> None:
        PLAIN_INIT(self, channels_in, channels_out)
        for k, layer in enumerate(self):
            if norm is not nn.BatchNorm2d and isinstance(layer, nn.BatchNorm2d):
                self[k] = norm(layer.num_features)
                self[k - 1].requires_grad_()

    DoubleConv.__init__ = init  # type: ignore[method-assign]


def main(arguments: list[str]) -> None:
    values = dict(a.split("=", 1) for a in arguments if "=" in a)
    seeds, steps = int(values.pop("SEEDS", "3")), int(values.pop("STEPS", "100"))
    print("| dataset | norm | Dice | least Dice | panoptic quality | least | epochs repeated | s a step |\n"
          "| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for name in (a for a in arguments if "=" not in a):
        for norm, make_norm in NORMS.items():
            rows = []
            for seed in range(seeds):
                settings = parse_settings({"BATCH_SIZE": 8, "EPOCHS": EPOCHS, "START_FROM": "", **values,
                                           "DATASET_PATH": name, "SEED": seed, "RUN": "norms"}, load_settings())
                split = discover_split(settings)
                with tempfile.TemporaryDirectory() as folder:
                    settings = replace(settings, root=Path(folder),
                                       crops_per_epoch=settings.batch_size * steps // settings.epochs)
                    use_norm(make_norm)
                    model = segkit.UNet()
                    history = segkit.fit(model, split, settings)
                scores = score_frames(model, split.validation)[["dice", "panoptic_quality"]].mean()
                speed = settings.batch_size / history.table()["crops_per_second"].median()
                rows.append({**scores, "events": len(history.events), "step": speed})
            table = pd.DataFrame(rows)
            print(f"| {Path(name).name} | {norm} | {table['dice'].mean():.3f} | {table['dice'].min():.3f} | "
                  f"{table['panoptic_quality'].mean():.3f} | {table['panoptic_quality'].min():.3f} | "
                  f"{table['events'].sum()} | {table['step'].median():.2f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
