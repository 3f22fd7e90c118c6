"""Does any training stick? `python benchmarks/stability.py DATASET_PATH=... [SEEDS=10] [EPOCHS=...]`.

Short trainings, SEEDS of each: as they are; with a learning rate ten times as high; and on a copy of the images in 16
bits with hot pixels. Stuck is a validation Dice under half of what the same data reach with default settings and seed
0. Prints a table; exit code 1 if one is stuck.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile

import segkit
from segkit.data.discovery import discover_split
from segkit.settings import Settings, load_settings, parse_settings


def with_hot_pixels(source: Path, target: Path) -> Path:
    """A copy of a dataset with 16-bit images of little contrast, in which 20 pixels are at the top of the range."""
    rng = np.random.default_rng(0)
    shutil.copytree(source, target)
    for frame in segkit.discover(target).frames:
        image = segkit.read_image(frame.image, frame.page)
        image = 200 + 800 * (image - image.min()) / max(float(np.ptp(image)), 1)
        image[rng.integers(0, image.shape[0], 20), rng.integers(0, image.shape[1], 20)] = 65535
        tifffile.imwrite(frame.image, image.round().astype(np.uint16))
    return target


def best_dice(settings: Settings) -> tuple[float, int]:
    """Best validation Dice of a short training, and how many epochs were repeated."""
    split = discover_split(settings)
    shutil.rmtree(settings.run_dir, ignore_errors=True)
    try:
        history = segkit.fit(segkit.UNet(), split, settings)
    except segkit.SegkitError as error:
        print(f"stopped: {error}", flush=True)
        return 0.0, 3
    return (history.best or {"val_dice": 0.0})["val_dice"], len(history.events)


def main(arguments: list[str]) -> int:
    values = dict(a.split("=", 1) for a in arguments)
    seeds = int(values.pop("SEEDS", "10"))
    base = parse_settings({"EPOCHS": "6", "START_FROM": "", **values}, load_settings())
    stuck = 0
    with tempfile.TemporaryDirectory() as folder:
        hot = with_hot_pixels(base.dataset_path, Path(folder) / "hot")
        base = replace(base, root=Path(folder), run="stability")
        kinds = {"as they are": base, "learning rate x 10": replace(base, learning_rate=10 * base.learning_rate),
                 "16 bits, hot pixels": replace(base, dataset_path=hot)}
        usual = {path: best_dice(replace(base, dataset_path=path))[0] for path in (base.dataset_path, hot)}
        print("| training | usual Dice | least | median | repeated epochs | stuck | seconds |\n"
              "| --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for name, settings in kinds.items():
            began = time.perf_counter()
            results = [best_dice(replace(settings, seed=seed)) for seed in range(seeds)]
            dices = np.array([dice for dice, _ in results])
            bad = int((dices < 0.5 * usual[settings.dataset_path]).sum())
            stuck += bad
            print(f"| {name} | {usual[settings.dataset_path]:.3f} | {dices.min():.3f} | {np.median(dices):.3f} | "
                  f"{sum(n for _, n in results)} | {bad} of {seeds} | {time.perf_counter() - began:.0f} |", flush=True)
    return int(stuck > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
