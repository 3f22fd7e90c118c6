"""Where a student holds that was not tuned there: `python benchmarks/generality.py DATA=folder [NAME=value ...]`.

DATA holds sets of real frames in the users' layout. A student is trained on synthetic frames (`scenes.draw_frame`)
alone, kept in artefacts/synthetic_SEED.safetensors, and evaluated on every set; then, for each set, this student is
trained on with synthetic frames and all other sets, and evaluated on the one left out. For each: Dice, panoptic
quality, and panoptic quality with the threshold of `join_fragments` set best for every image. For the first student
also: false cells on frames without any, and sweeps of magnification, light, focus and noise. Cells are brought to the
student's width (SCALE=labels, by the set's labels; or auto, or a number), and outlines that lie far inside of
Omnipose's are moved first, as for the starter.

STUDENTS=synthetic (or left_out, or both, the default), SETS=delta,omnipose (default all), SEEDS=1, STEPS=2400 (of the
first student), MORE=500 (of each of the others), RATE=0.0008 (their learning rate), REAL=0.25 (of their crops, the
others are synthetic), SECONDS=3600 (of each, at most), FRAMES=1500 (synthetic ones; the first student gets new ones
while it is trained), CROP=128, LIMIT=5 (evaluated frames of a set), WORKERS=2 (processes that draw), PARALLEL=1
(students trained beside each other); MODEL=run or starter: a student in place of the first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.transform import rescale
from starter import Drawing, Pair, correct_labels, parse, read_set, train

import segkit
from segkit.data import scenes
from segkit.data.dataset import read_pair
from segkit.data.discovery import discover
from segkit.data.images import normalise
from segkit.measure.metrics import dice, estimate_quality, match_instances
from segkit.model.checkpoint import save_model
from segkit.model.postprocess import distance_target
from segkit.model.predict import estimate_scale, find_cells, label, predict
from segkit.settings import Settings
from segkit.training.frames import Decoded

OPTIONS = {"DATA": "", "STUDENTS": "both", "SETS": "", "SEEDS": "1", "STEPS": "2400", "MORE": "500",
           "RATE": "0.0008", "REAL": "0.25", "SECONDS": "3600", "FRAMES": "1500", "CROP": "128", "LIMIT": "5",
           "SCALE": "labels", "WORKERS": "2", "PARALLEL": "1", "MODEL": ""}
ARTEFACTS = Path(__file__).parents[1] / "artefacts"
HELD, LEAST = 24, 8  # synthetic frames of the sweeps, and frames without cells; cells in one of the sweeps
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)  # of the mean affinity
WIDTHS = 5, 40  # pixels, of the cells that are served
OTHER_FRAMES = 1000  # added to the seed: frames that are drawn during the training are not those drawn before it
THREADS = torch.get_num_threads()  # of the parent: a process that trains several students would divide its own again
PAINT = 24  # pixels around a cell that are painted over with it: its halo

DRAWN: list[Decoded] = []  # synthetic frames: processes are forked, so that each has them without a copy


# --- frames -----------------------------------------------------------------------------------------------------------

def evaluation_set(folder: Path, limit: int) -> list[Pair]:
    """Up to `limit` pairs of a set: all positions, outlines as for training."""
    frames = discover(folder).pairs
    return correct_labels(folder, [read_pair(frame) for frame in frames[::-(-len(frames) // limit)]])


def empty_frames(sparse: Sequence[Pair]) -> Iterator[tuple[str, np.ndarray]]:
    """Images without cells: rendered ones, and real ones whose cells are painted over with background."""
    rng = np.random.default_rng(1)
    for _ in range(HELD):
        image, labels = scenes.draw_frame(rng)
        while labels.any():
            image, labels = scenes.draw_frame(rng)
        yield "rendered", image
    for image, labels in sparse:
        cells = ndimage.distance_transform_edt(labels == 0) < PAINT
        elsewhere = np.roll(image, (image.shape[0] // 2, image.shape[1] // 3), (0, 1))
        elsewhere = elsewhere + np.median(image[~cells]) - np.median(elsewhere[~cells])
        if not (cells & np.roll(cells, (image.shape[0] // 2, image.shape[1] // 3), (0, 1))).any():
            yield "sparse, cells painted over", np.where(cells, elsewhere, image)


def magnified(image: np.ndarray, labels: np.ndarray, factor: float) -> Pair:
    """The pair resized; a pixel is of the cell that has the largest share of it, so that outlines stay smooth."""
    large = rescale(image, factor, order=1, anti_aliasing=factor < 1)
    cells = F.one_hot(torch.from_numpy(labels).long()).movedim(-1, 0)[None].float()
    return large, F.interpolate(cells, large.shape, mode="bilinear", antialias=True)[0].argmax(0).numpy()


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


# --- evaluation -------------------------------------------------------------------------------------------------------

def scale_for(model: segkit.UNet, image: np.ndarray, labels: np.ndarray, scale: str) -> float:
    """SCALE: a number, auto (found in the image), or labels (by their median width)."""
    if scale == "auto":
        return estimate_scale(model, [image]) or 1.0
    if scale != "labels":
        return float(scale)
    widths = distance_target(labels)[1]
    return model.info.cell_width / float(np.median(widths)) if len(widths) and model.info.cell_width else 1.0


def evaluate(model: segkit.UNet, image: np.ndarray, labels: np.ndarray, scale: str, chambers: bool = False) -> dict:
    """Scores of one image. chambers: cells outside the rows that have labels do not count (delta's trench)."""
    maps = predict(model, [image], scale=scale_for(model, image, labels, scale))[0]
    scores, rows, cells = {}, np.flatnonzero(labels.any(1)), {}
    for threshold in THRESHOLDS:
        shifted = None if maps.affinity is None else maps.affinity + (0.5 - threshold)
        cells[threshold] = find_cells(model.info, maps._replace(affinity=shifted))
        found = label(model.info, maps, cells[threshold]).labels
        for cell, box in enumerate(ndimage.find_objects(found) if chambers else (), start=1):
            if not rows[0] <= (box[0].start + box[0].stop) / 2 <= rows[-1]:
                found[found == cell] = 0
        scores[threshold] = match_instances(found, labels).panoptic_quality, dice(found > 0, labels > 0)
    best = max(scores, key=lambda threshold: scores[threshold][0])
    return {"cells": len(np.unique(labels[labels > 0])), "Dice": scores[0.5][1], "PQ": scores[0.5][0],
            "best PQ": scores[best][0], "best threshold": best,
            "quality": estimate_quality(model.info, maps, cells[0.5])}


def evaluate_set(model: segkit.UNet, folder: Path, limit: int, scale: str) -> pd.DataFrame:
    """One row for each of up to `limit` frames."""
    return pd.DataFrame([{"set": folder.name, "frame": k} | evaluate(model, *pair, scale, folder.name == "delta")
                         for k, pair in enumerate(evaluation_set(folder, limit))])


def false_cells(model: segkit.UNet, sparse: Sequence[Pair]) -> pd.DataFrame:
    """Cells found on frames that hold none."""
    found = [{"frames": kind, "false cells": segkit.segment(model, image).labels.max()}
             for kind, image in empty_frames(sparse)]
    return pd.DataFrame(found).groupby("frames")["false cells"].agg(["count", "mean", "max"]).reset_index()


def sweep(model: segkit.UNet) -> pd.DataFrame:
    """Scores of synthetic frames, each after each of `changes`; the factor of the magnification is to be found.

    A magnification that makes cells narrower or wider than WIDTHS is left out. lost: panoptic quality, against the
    same frame unchanged.
    """
    rng = np.random.default_rng(2)
    drawn = ((normalise(image), labels) for image, labels in iter(lambda: scenes.draw_frame(rng), None))
    pairs = list(islice((pair for pair in drawn if pair[1].max() >= LEAST), HELD))
    rows = []
    for frame, pair in enumerate(pairs):
        for name, change in changes().items():
            changed = change(*pair)
            if WIDTHS[0] <= np.median(distance_target(changed[1])[1]) <= WIDTHS[1]:
                rows.append({"change": name, "frame": frame} | evaluate(model, *changed, "auto"))
    swept = pd.DataFrame(rows)
    unchanged = swept[swept["change"] == "blur 0"].set_index("frame")["PQ"]
    return swept.assign(lost=swept["frame"].map(unchanged) - swept["PQ"])


def table(title: str, rows: pd.DataFrame) -> None:
    """Print a table in Markdown."""
    text = rows.map(lambda value: f"{value:.3f}" if isinstance(value, float) else str(value))
    lines = [f"| {' | '.join(line)} |" for line in ([*text.columns], ["---"] * len(text.columns), *text.to_numpy())]
    print(f"\n{title}\n\n" + "\n".join(lines), flush=True)


def rank_correlation(**scores: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of the quality that is estimated without labels with the panoptic quality."""
    frames = scores | {"all": pd.concat(scores.values())}
    return pd.DataFrame([{"frames": name, "count": len(rows), "rank correlation":
                          float(rows["quality"].corr(rows["PQ"], method="spearman"))} for name, rows in frames.items()])


def means(scores: pd.DataFrame) -> pd.DataFrame:
    """Cells and mean scores of every set, then of all sets."""
    by_set = scores.groupby("set", sort=False).agg({"cells": "sum", "Dice": "mean", "PQ": "mean", "best PQ": "mean"})
    mean = by_set[["Dice", "PQ", "best PQ"]].mean().to_frame("mean").T.assign(cells=by_set["cells"].sum())
    return pd.concat([by_set, mean]).rename_axis("set").reset_index()


def train_first(settings: Settings, options: Mapping[str, str]) -> str:
    """Train the student of synthetic frames alone; returns its file."""
    ARTEFACTS.mkdir(exist_ok=True)
    path = ARTEFACTS / f"synthetic_{settings.seed}.safetensors"
    drawing = Drawing(int(options["WORKERS"]), OTHER_FRAMES + settings.seed)
    model = train(DRAWN, {}, settings, steps=int(options["STEPS"]), seconds=float(options["SECONDS"]), real_share=0,
                  drawing=drawing)
    drawing.pool.shutdown(cancel_futures=True)
    save_model(model.cpu(), path)
    return str(path)


def left_out(folder: Path, sets: Sequence[Path], settings: Settings, options: Mapping[str, str],
             first: str) -> pd.DataFrame:
    """Scores of the set that a student did not see."""
    torch.set_num_threads(max(1, THREADS // int(options["PARALLEL"])))
    real = {other.name: read_set(other, settings.validation) for other in sets if other != folder}
    settings = replace(settings, learning_rate=float(options["RATE"]))
    model = train(DRAWN, real, settings, steps=int(options["MORE"]), seconds=float(options["SECONDS"]),
                  real_share=float(options["REAL"]), start=first)
    scores = evaluate_set(model, folder, int(options["LIMIT"]), options["SCALE"])
    print(scores.to_string(), flush=True)
    return scores


def alone(sets: Sequence[Path], settings: Settings, options: Mapping[str, str], first: str) -> dict[str, pd.DataFrame]:
    """Tables of the first student, by title."""
    model = segkit.load_model(settings.find_model(first), settings.device)
    scores = pd.concat([evaluate_set(model, folder, int(options["LIMIT"]), options["SCALE"]) for folder in sets])
    sparse = [pair for folder in sets if folder.name == "sparse" for pair in evaluation_set(folder, 14)]
    swept = sweep(model)
    by_change = swept.groupby("change", sort=False).agg(
        {"frame": "count", "Dice": "mean", "PQ": "mean", "best PQ": "mean", "lost": "mean"}).reset_index()
    return {"Every frame": scores, f"{options['MODEL'] or 'Synthetic frames alone'}, seed {settings.seed}":
            means(scores), "False cells on frames without any": false_cells(model, sparse),
            "Sweeps on synthetic frames": by_change,
            "Estimated against true quality": rank_correlation(real=scores, changed=swept)}


def main(arguments: list[str]) -> None:
    options, settings, sets = parse(arguments, OPTIONS)
    for seed in range(settings.seed, settings.seed + int(options["SEEDS"])):
        settings = replace(settings, seed=seed)
        if options["STUDENTS"] != "synthetic" or not options["MODEL"]:
            drawing = Drawing(int(options["WORKERS"]), seed)
            DRAWN[:] = islice(drawing.take(wait=True), int(options["FRAMES"]))
            drawing.pool.shutdown(cancel_futures=True)
        with ProcessPoolExecutor(int(options["PARALLEL"]), get_context("fork")) as pool:
            first = options["MODEL"] or pool.submit(train_first, settings, options).result()
            if options["STUDENTS"] != "left_out":
                for title, rows in pool.submit(alone, sets, settings, options, first).result().items():
                    table(title, rows)
            if options["STUDENTS"] != "synthetic":
                others = [pool.submit(left_out, folder, sets, settings, options, first) for folder in sets]
                scores = pd.concat([job.result() for job in others])
                table("Every frame", scores)
                table(f"Leave one out, seed {seed}", means(scores))
                table("Estimated against true quality", rank_correlation(real=scores))


if __name__ == "__main__":
    main(sys.argv[1:])
