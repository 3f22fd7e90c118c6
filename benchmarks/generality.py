"""Where a student holds that was not tuned there: `python benchmarks/generality.py DATA=folder [NAME=value ...]`.

DATA holds sets of real frames in the users' layout. A student is trained on synthetic frames (`scenes.draw_frame`)
alone and evaluated on every set; then, for each set, on synthetic frames and all other sets, and evaluated on the one
left out. For each: Dice, panoptic quality, and panoptic quality with the prominence set best for every image. Then, for
the first student: false cells on frames without any, and sweeps of magnification, light, focus and noise.

STUDENTS=synthetic (or left_out, or both, the default), SETS=delta,omnipose (default all), SEEDS=1, STEPS=600,
FRAMES=300 (synthetic ones), LIMIT=5 (evaluated frames of a set), SCALE=1; MODEL=run evaluates a student that is there.
Other names are settings of the training. The screening, STUDENTS=synthetic, takes a quarter of an hour on 2 cores.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from scipy import ndimage
from skimage.transform import rescale

import segkit
from segkit.data import optics, scenes, synthetic
from segkit.data.dataset import Frame, Split, read_pair
from segkit.data.discovery import discover
from segkit.data.images import normalise
from segkit.measure.metrics import PROMINENCES, dice, match_instances
from segkit.model.predict import label, predict
from segkit.settings import Settings, load_settings, parse_settings

OPTIONS = {"DATA": "", "STUDENTS": "both", "SETS": "", "SEEDS": "1", "STEPS": "600", "FRAMES": "300", "LIMIT": "5",
           "SCALE": "1", "MODEL": ""}
EPOCHS, CROP = 6, "128x128"  # of a training by default: the steps are shared among the epochs
HELD = 16  # synthetic frames that validate a training, and those of the sweeps
PAINT = 24  # pixels around a cell that are painted over with it: its halo

Pair = tuple[np.ndarray, np.ndarray]  # image, labels


# --- frames -----------------------------------------------------------------------------------------------------------

def write_frames(folder: Path, count: int, seed: int, shape: tuple[int, int] = (256, 256)) -> Path:
    """Write synthetic frames in the users' layout: Pos101 to train on, HELD in Pos109 to validate; used again."""
    source = "".join(Path(str(module.__file__)).read_text("utf-8") for module in (optics, scenes, synthetic))
    name = hashlib.sha256(f"{count}|{seed}|{shape}|{source}".encode()).hexdigest()[:12]
    root = folder / f"synthetic_{name}"
    if (root / "ready").is_file():
        return root
    rng = np.random.default_rng(seed)
    for position, frames in (("Pos101", count), ("Pos109", HELD)):
        images = root / "SYNTHETIC_raw_data" / position / "aphase"
        masks = root / "SYNTHETIC_masks" / position / "PreprocessedPhaseMasks"
        for path in (images, masks):
            path.mkdir(parents=True, exist_ok=True)
        for k in range(frames):
            image, labels = scenes.draw_frame(rng, shape)
            stored = np.round((image - image.min()) / np.ptp(image) * 65535).astype(np.uint16)
            tifffile.imwrite(images / f"img_{k:09d}.tif", stored)
            tifffile.imwrite(masks / f"MASK_img_{k:09d}.tif", labels.astype(np.uint16))
    (root / "ready").touch()
    return root


def real_sets(data: Path, names: Sequence[str]) -> dict[str, tuple[Frame, ...]]:
    """Pairs of every set in the folder that has masks, or of the named ones."""
    folders = {path.parent.name: path.parent for path in sorted(data.glob("*/*_masks*"))}
    found = {name: discover(folders[name]).pairs for name in names or folders}
    return {name: tuple(pairs) for name, pairs in found.items() if pairs}


def empty_frames(sparse: Sequence[Frame]) -> Iterator[tuple[str, np.ndarray]]:
    """Images without cells: rendered ones, and real ones whose cells are painted over with background."""
    rng = np.random.default_rng(1)
    for _ in range(HELD):
        image, labels = scenes.draw_frame(rng)
        while labels.any():
            image, labels = scenes.draw_frame(rng)
        yield "rendered", image
    for image, labels in map(read_pair, sparse):
        cells = ndimage.distance_transform_edt(labels == 0) < PAINT
        elsewhere = np.roll(image, (image.shape[0] // 2, image.shape[1] // 3), (0, 1))
        elsewhere = elsewhere + np.median(image[~cells]) - np.median(elsewhere[~cells])
        if not (cells & np.roll(cells, (image.shape[0] // 2, image.shape[1] // 3), (0, 1))).any():
            yield "sparse, cells painted over", np.where(cells, elsewhere, image)


def magnified(image: np.ndarray, labels: np.ndarray, factor: float) -> Pair:
    large = rescale(image, factor, order=1, anti_aliasing=factor < 1)
    rows, columns = (np.minimum((np.arange(n) + 0.5) / factor, m - 1).astype(int)
                     for n, m in zip(large.shape, labels.shape, strict=True))
    return large, labels[rows[:, None], columns]


def changes() -> Mapping[str, Callable[[np.ndarray, np.ndarray], Pair]]:
    """What the sweeps do to an image, normalised to 0..1, and its labels."""
    def light(slope: float, image: np.ndarray, labels: np.ndarray) -> Pair:
        return image + slope * np.linspace(-0.5, 0.5, image.shape[1]), labels

    def gamma(power: float, image: np.ndarray, labels: np.ndarray) -> Pair:
        return np.clip(image, 0, 1.5) ** power, labels

    def blur(sigma: float, image: np.ndarray, labels: np.ndarray) -> Pair:
        return ndimage.gaussian_filter(image, sigma), labels

    def noise(deviation: float, image: np.ndarray, labels: np.ndarray) -> Pair:
        return image + np.random.default_rng(0).normal(0, deviation, image.shape), labels

    asked = {blur: (0, 1, 2), noise: (0.05, 0.1), light: (0.5, 1), gamma: (0.6, 1.6)}
    done = {f"{change.__name__} {value:g}": partial(change, value) for change, values in asked.items()
            for value in values}
    return done | {f"magnification {factor:g}": partial(magnified, factor=factor) for factor in (0.6, 0.75, 1.5, 2, 3)}


# --- students ---------------------------------------------------------------------------------------------------------

def parts(pairs: Sequence[Frame], suffixes: Sequence[str]) -> Split:
    """The default split; a set that is not in both parts of it is trained on."""
    held = tuple(f for f in pairs if f.position.endswith(tuple(suffixes)))
    rest = tuple(f for f in pairs if f not in held)
    return Split(rest, held) if rest else Split(held, ())


def train(name: str, drawn: Sequence[Frame], real: Sequence[Sequence[Frame]], settings: Settings) -> segkit.UNet:
    """A student of synthetic frames and of real sets, which are drawn equally often; a finished one is used again."""
    settings = parse_settings({"RUN": name}, settings)
    own, others = parts(drawn, settings.validation), [parts(pairs, settings.validation) for pairs in real]
    # crops come from all frames with the same chance: frames of small sets are there several times
    repeated = [part.train * max(1, round(len(own.train) / len(part.train))) for part in others]
    split = Split(own.train + sum(repeated, ()), own.validation + sum((part.validation for part in others), ()))
    if not (settings.run_dir / "report.json").is_file():
        segkit.fit(segkit.UNet(), split, settings)
    return segkit.load_model(settings.run_dir, settings.device)


# --- evaluation -------------------------------------------------------------------------------------------------------

def evaluate(model: segkit.UNet, image: np.ndarray, labels: np.ndarray, scale: float, chambers: bool = False) -> dict:
    """Scores of one image. chambers: cells outside the rows that have labels do not count (delta's trench)."""
    maps, scores, rows = predict(model, [image], scale=scale)[0], {}, np.flatnonzero(labels.any(1))
    for prominence in {*PROMINENCES, model.info.prominence}:
        found = label(replace(model.info, prominence=prominence), maps).labels
        for cell, box in enumerate(ndimage.find_objects(found) if chambers else (), start=1):
            if not rows[0] <= (box[0].start + box[0].stop) / 2 <= rows[-1]:
                found[found == cell] = 0
        scores[prominence] = match_instances(found, labels).panoptic_quality, dice(found > 0, labels > 0)
    quality, overlap = scores[model.info.prominence]
    best = max(scores, key=lambda prominence: scores[prominence][0])
    return {"cells": len(np.unique(labels[labels > 0])), "Dice": overlap, "PQ": quality, "best PQ": scores[best][0],
            "best prominence": best}


def evaluate_set(model: segkit.UNet, name: str, frames: Sequence[Frame], limit: int, scale: float) -> pd.DataFrame:
    """One row for each of up to `limit` frames."""
    return pd.DataFrame([{"set": name, "frame": frame.name} | evaluate(model, *read_pair(frame), scale, name == "delta")
                         for frame in frames[::-(-len(frames) // limit)]])


def false_cells(model: segkit.UNet, sparse: Sequence[Frame], scale: float) -> pd.DataFrame:
    """Cells found on frames that hold none."""
    found = [{"frames": kind, "false cells": segkit.segment(model, image, scale=scale).labels.max()}
             for kind, image in empty_frames(sparse)]
    return pd.DataFrame(found).groupby("frames")["false cells"].agg(["count", "mean", "max"]).reset_index()


def sweep(model: segkit.UNet, frames: Sequence[Frame], scale: float) -> pd.DataFrame:
    """Scores of frames after each of `changes`."""
    pairs = [(normalise(image), labels) for image, labels in map(read_pair, frames) if labels.any()]
    rows = [{"change": name} | evaluate(model, *change(*pair), scale) for name, change in changes().items()
            for pair in pairs]
    return pd.DataFrame(rows).groupby("change", sort=False)[["Dice", "PQ", "best PQ"]].mean().reset_index()


def table(title: str, rows: pd.DataFrame) -> None:
    """Print a table in Markdown."""
    text = rows.map(lambda value: f"{value:.3f}" if isinstance(value, float) else str(value))
    lines = [f"| {' | '.join(line)} |" for line in ([*text.columns], ["---"] * len(text.columns), *text.to_numpy())]
    print(f"\n{title}\n\n" + "\n".join(lines), flush=True)


def means(scores: pd.DataFrame) -> pd.DataFrame:
    """Cells and mean scores of every set, then of all sets."""
    by_set = scores.groupby("set", sort=False).agg({"cells": "sum", "Dice": "mean", "PQ": "mean", "best PQ": "mean"})
    mean = by_set[["Dice", "PQ", "best PQ"]].mean().to_frame("mean").T.assign(cells=by_set["cells"].sum())
    return pd.concat([by_set, mean]).rename_axis("set").reset_index()


def main(arguments: list[str]) -> None:
    values = dict(a.split("=", 1) for a in arguments)
    options = {name: values.pop(name, default) for name, default in OPTIONS.items()}
    students, scale, limit = options["STUDENTS"], float(options["SCALE"]), int(options["LIMIT"])
    settings = parse_settings({"EPOCHS": EPOCHS, "CROP": CROP, "START_FROM": ""} | values, load_settings())
    crops = settings.crops_per_epoch or round(int(options["STEPS"]) / settings.epochs * settings.batch_size)
    settings = replace(settings, crops_per_epoch=crops)
    sets = real_sets(Path(options["DATA"]).expanduser(), [name for name in options["SETS"].split(",") if name])
    cache = settings.root / "runs" / ".cache"
    for seed in range(int(options["SEEDS"])):
        drawn = discover(write_frames(cache, int(options["FRAMES"]), seed)).pairs
        run, settings = f"generality_{crops * settings.epochs}_{seed}", replace(settings, seed=seed)
        if students != "left_out":
            model = segkit.load_model(settings.find_model(options["MODEL"]), settings.device) if options["MODEL"] \
                else train(f"{run}_synthetic", drawn, (), settings)
            scores = [evaluate_set(model, name, frames, limit, scale) for name, frames in sets.items()]
            table("Every frame", pd.concat(scores))
            table(f"Synthetic frames alone, seed {seed}", means(pd.concat(scores)))
            table("False cells on frames without any", false_cells(model, sets.get("sparse", ()), scale))
            held = parts(drawn, settings.validation).validation
            table("Sweeps on synthetic frames", sweep(model, held, scale))
        if students != "synthetic":
            scores = [evaluate_set(train(f"{run}_without_{name}", drawn, [
                pairs for other, pairs in sets.items() if other != name], settings), name, frames, limit, scale)
                for name, frames in sets.items()]
            table(f"Leave one out, seed {seed}", means(pd.concat(scores)))


if __name__ == "__main__":
    main(sys.argv[1:])
