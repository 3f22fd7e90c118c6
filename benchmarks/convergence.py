"""How good the student is after how many crops and seconds, beside the starting recipe: part of `make bench`.

`python benchmarks/convergence.py [DATASET_PATH=... EPOCHS=...] [PLAIN_BATCHES=500]`. Both train on the same frames with
crops of the same size; the starting recipe for as many seconds as segkit took, then on to PLAIN_BATCHES if those are
more. Both are judged on the same whole validation frames (not counted in the seconds). Curves and figure are in
artefacts/ afterwards.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent))
from plain_recipe import PlainTraining, apart

import segkit
from segkit.data.dataset import Frame, read_pair
from segkit.data.discovery import discover_split
from segkit.data.images import read_header
from segkit.devices import describe_device, pick_device
from segkit.measure.metrics import dice, score_frames
from segkit.notebook.plots import STUDENT, TEACHER, new_figure
from segkit.settings import Settings, load_settings, parse_settings
from segkit.training.frames import plan_epoch

JUDGED = 12  # times that a training is judged within segkit's seconds
PLAIN = "starting recipe"
COLOURS = (TEACHER, "#CC79A7", "#666666")


class Course(NamedTuple):
    """How a training went."""

    curve: pd.DataFrame  # crops, seconds, dice
    scores: dict[str, float]  # dice and panoptic_quality after the seconds that all had


def scores_of(network: segkit.UNet, frames: Sequence[Frame]) -> dict[str, float]:
    return score_frames(network, frames)[["dice", "panoptic_quality"]].mean().to_dict()


def train_student(settings: Settings) -> Course:
    """The student's course, a point after every epoch; settings say CROPS_PER_EPOCH. It stays in its run's folder."""
    model, split = segkit.UNet(), discover_split(settings)
    history = segkit.fit(model, split, settings).table()
    history = history[history["event"] == ""]
    crops = round(settings.crops_per_epoch / settings.batch_size) * settings.batch_size
    seconds = (crops / history["crops_per_second"]).cumsum()
    curve = pd.DataFrame({"crops": crops * history["epoch"], "seconds": seconds, "dice": history["val_dice"]})
    return Course(curve, scores_of(model, split.validation))


def train_plainly(training: PlainTraining, frames: Sequence[Frame], seconds: float, batches: int = 0) -> Course:
    """A plain loop's course over so many seconds of steps, or batches if those take longer.

    Its scores are those of its state after the seconds, as its author has them: nothing better is kept.
    """
    images = [read_pair(frame) for frame in frames]
    spent, steps, scores = 0.0, 0, None
    rows: list[tuple[int, float, float]] = []
    while scores is None or steps < batches:
        began = time.perf_counter()
        training.step()
        spent, steps = spent + time.perf_counter() - began, steps + 1
        if spent >= seconds * (len(rows) + 1) / JUDGED or steps == batches:
            answers = [segkit.segment(training.network, image).mask for image, _ in images]
            rows.append((steps * training.batch, spent,
                         sum(dice(a, labels) for a, (_, labels) in zip(answers, images, strict=True)) / len(images)))
        if spent >= seconds and scores is None:
            scores = scores_of(training.network, frames)
    return Course(pd.DataFrame(rows, columns=["crops", "seconds", "dice"]), scores)


Maker = Callable[[Sequence[Frame], tuple[int, int], int, torch.device, int], PlainTraining]


def compare(arguments: list[str], others: Mapping[str, Maker]) -> segkit.UNet:
    """Train the student, the starting recipe and others for the same seconds; print the table, draw the curves.

    Returns the student.
    """
    values = dict(a.split("=", 1) for a in arguments)
    batches = int(values.pop("PLAIN_BATCHES", "0"))
    settings = parse_settings({"START_FROM": "", **values}, load_settings())
    device = pick_device(settings.device)
    split = discover_split(settings)
    headers = [read_header(frame.image) for frame in split.train]
    smallest = min(h.height for h in headers), min(h.width for h in headers)
    crop, crops, _ = plan_epoch(settings, device, smallest, sum(h.height * h.width for h in headers))
    settings = replace(settings, crops_per_epoch=crops)
    with tempfile.TemporaryDirectory() as folder, apart() as process:
        run = replace(settings, root=Path(folder), run="convergence")
        student = process.submit(train_student, run).result()
        model = segkit.load_model(run.run_dir, settings.device)
    seconds = float(student.curve["seconds"].iloc[-1])
    name = settings.dataset_path.name
    print(f"{name}, crops of {crop[0]} x {crop[1]}, batch {settings.batch_size}; {describe_device(device)}; "
          f"torch {torch.__version__}\n")
    print(f"| training | crops/s | crops in {seconds:.0f} s | Dice | panoptic quality | best Dice on the way |\n"
          "| --- | --- | --- | --- | --- | --- |")
    courses = {"segkit": student}
    print(row("segkit", student, seconds), flush=True)
    for label, make in {PLAIN: PlainTraining, **others}.items():
        training = make(split.train, crop, settings.batch_size, device, settings.seed)
        courses[label] = train_plainly(training, split.validation, seconds, 0 if label in others else batches)
        print(row(label, courses[label], seconds), flush=True)
    curve, plain = student.curve, courses[PLAIN].curve
    reached, best = curve[curve["dice"] >= plain["dice"].max()], plain.loc[plain["dice"].idxmax()]
    print(f"\nThe starting recipe's best Dice in {plain['crops'].iloc[-1]} crops is {best['dice']:.3f}, after "
          f"{best['crops']:.0f} crops and {best['seconds']:.0f} s; segkit " + (
              f"reaches it after {reached.iloc[0]['crops']:.0f} crops and {reached.iloc[0]['seconds']:.0f} s."
              if len(reached) else "does not reach it."))
    artefacts = load_settings().root / "artefacts"
    artefacts.mkdir(exist_ok=True)
    curves = [course.curve.assign(training=label) for label, course in courses.items()]
    pd.concat(curves).to_csv(artefacts / f"convergence_{name}.csv", index=False)
    (artefacts / f"convergence_{name}.png").write_bytes(draw(courses)._repr_png_())
    return model


def row(label: str, course: Course, seconds: float) -> str:
    within = course.curve[course.curve["seconds"] <= 1.05 * seconds]
    crops, spent = within[["crops", "seconds"]].iloc[-1]
    return (f"| {label} | {crops / spent:.1f} | {crops:.0f} | {course.scores['dice']:.3f} | "
            f"{course.scores['panoptic_quality']:.3f} | {within['dice'].max():.3f} |")


def draw(courses: Mapping[str, Course]):
    """Validation Dice against crops seen, and against seconds."""
    figure, grid = new_figure(9, 3.6, 1, 2)
    colours = iter(COLOURS)
    for who, course in courses.items():
        colour = STUDENT if who == "segkit" else next(colours)
        for axes, x, label in zip(grid[0], ("crops", "seconds"), ("crops seen", "seconds of training"), strict=True):
            axes.plot(course.curve[x], course.curve["dice"], color=colour, lw=2, marker=".", label=who)
            axes.set(xlabel=label, ylabel="validation Dice", ylim=(0.5, 1))
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", frameon=False, ncols=2)
    return figure


if __name__ == "__main__":
    compare(sys.argv[1:], {})
