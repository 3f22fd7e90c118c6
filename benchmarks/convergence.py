"""How good the student is after how many crops and seconds, beside the starting recipe: part of `make bench`.

Both train on the same frames with crops of the same size, the starting recipe for as many seconds as segkit took; both
are judged on the same whole validation frames (not counted in the seconds). Writes a figure into artefacts/.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
from plain_recipe import PlainTraining

import segkit
from segkit.data import read_pair
from segkit.devices import describe_device, pick_device
from segkit.figures import STUDENT, TEACHER, new_figure
from segkit.images import read_header
from segkit.judge import judge
from segkit.layout import choose_crop, covering
from segkit.scores import dice
from segkit.settings import Settings, parse_settings
from segkit.sources import load_settings

JUDGED = 12  # times that the starting recipe is judged


def train_student(split: segkit.Split, settings: Settings) -> tuple[pd.DataFrame, dict[str, float]]:
    """(crops, seconds, dice) after every epoch, and the kept student's scores; settings say CROPS_PER_EPOCH."""
    model = segkit.UNet()
    history = segkit.fit(model, split, settings).table()
    history = history[history["event"] == ""]
    crops = round(settings.crops_per_epoch / settings.batch_size) * settings.batch_size
    seconds = (crops / history["crops_per_second"]).cumsum()
    curve = pd.DataFrame({"crops": crops * history["epoch"], "seconds": seconds, "dice": history["val_dice"]})
    return curve, judge(model, split.validation)[["dice", "panoptic_quality"]].mean().to_dict()


def train_plain(split: segkit.Split, settings: Settings, crop: tuple[int, int],
                seconds: float) -> tuple[pd.DataFrame, dict[str, float]]:
    """The same for the starting recipe; its scores are those of its last state, as its author has them."""
    training = PlainTraining(split.train, crop, settings.batch_size, pick_device(settings.device), settings.seed)
    images = [read_pair(frame) for frame in split.validation]
    spent, crops, rows = 0.0, 0, []
    while spent < seconds:
        began = time.perf_counter()
        training.step()
        spent, crops = spent + time.perf_counter() - began, crops + settings.batch_size
        if spent >= seconds * (len(rows) + 1) / JUDGED:
            answers = [segkit.segment(training.network, image).mask for image, _ in images]
            rows.append((crops, spent, sum(dice(a, labels) for a, (_, labels) in zip(answers, images, strict=True))
                         / len(images)))
    curve = pd.DataFrame(rows, columns=["crops", "seconds", "dice"])
    return curve, judge(training.network, split.validation)[["dice", "panoptic_quality"]].mean().to_dict()


def main(arguments: list[str]) -> None:
    settings = parse_settings(dict(a.split("=", 1) for a in arguments), load_settings())
    device = pick_device(settings.device)
    split = segkit.split_by_position(segkit.discover(settings.dataset_path).pairs, settings.validation)
    sizes = [read_header(frame.image)[1:] for frame in split.train]
    crop = choose_crop(settings, device, (min(h for h, _ in sizes), min(w for _, w in sizes)))
    crops = settings.crops_per_epoch or covering(sum(h * w for h, w in sizes), crop)
    settings = replace(settings, crops_per_epoch=crops)
    with tempfile.TemporaryDirectory() as folder:
        student, student_scores = train_student(split, replace(settings, root=Path(folder), run="convergence"))
    plain, plain_scores = train_plain(split, settings, crop, student["seconds"].iloc[-1])
    name = settings.dataset_path.name
    print(f"{name}, crops of {crop[0]} x {crop[1]}, batch {settings.batch_size}; {describe_device(device)}\n")
    print("| training | crops seen | seconds | best Dice on the way | Dice at the end | panoptic quality at the end |\n"
          "| --- | --- | --- | --- | --- | --- |")
    for label, table, scores in (("plain recipe", plain, plain_scores), ("segkit", student, student_scores)):
        print(f"| {label} | {table['crops'].iloc[-1]} | {table['seconds'].iloc[-1]:.0f} | {table['dice'].max():.3f} | "
              f"{scores['dice']:.3f} | {scores['panoptic_quality']:.3f} |")
    reached = student[student["dice"] >= plain["dice"].max()]
    if len(reached):
        first, best = reached.iloc[0], plain.loc[plain["dice"].idxmax()]
        print(f"\nThe plain recipe's best Dice ({best['dice']:.3f}, after {best['crops']:.0f} crops) is reached by "
              f"segkit after {first['crops']:.0f} crops and {first['seconds']:.0f} s.")
    figure, grid = new_figure(9, 3.2, 1, 2)
    for axes, x, label in zip(grid[0], ("crops", "seconds"), ("crops seen", "seconds of training"), strict=True):
        for table, colour, who in ((student, STUDENT, "segkit"), (plain, TEACHER, "plain recipe")):
            axes.plot(table[x], table["dice"], color=colour, lw=2, marker=".", label=who)
        axes.set(xlabel=label, ylabel="validation Dice", ylim=(0, 1.02))
    grid[0, 1].legend(frameon=False)
    artefacts = settings.root / "artefacts"
    artefacts.mkdir(exist_ok=True)
    (artefacts / f"convergence_{name}.png").write_bytes(figure._repr_png_())


if __name__ == "__main__":
    main(sys.argv[1:])
