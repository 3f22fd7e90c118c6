"""Links against a known lineage: `python benchmarks/tracking.py [DATA=../shared/data/delta] [RUN=runs/NAME] [SEEDS=5]`.

Films with a known lineage: the demo's mechanics from their true labels, crowded, fast, drifting (512 x 512 pixels, 3
pixels a frame and jumps of 15), and with 5 % of the cells missed or merged with a neighbour. With DATA (a folder with
tracks_Pos101.csv) also that film from its teacher's labels: whole, one frame of two or three, turned, drifting, with
cells missed or merged; with RUN (a run folder) from the student's labels. F1 is counted over successive appearances of
those cells that the labels still hold (or that match a true cell at IoU 0.5), so a link across a closed gap counts as
right; a track is complete if all its links, and those to its daughters, were found. First time and memory.
"""

import resource
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from segkit import Frame, discover, link_cells, read_image, read_labels
from segkit.data.synthetic import grow

Film = tuple[list[np.ndarray], pd.DataFrame]  # labels of each frame, lineage
Cell = tuple[int, int]  # frame, label


def events(table: pd.DataFrame) -> tuple[set[tuple[Cell, Cell]], set[tuple[Cell, frozenset[Cell]]]]:
    """Links, also those to daughters, and divisions; a mother's track may end or go on as one of its daughters."""
    cells = {track: list(zip(rows["frame"], rows["label"], strict=True))
             for track, rows in table.sort_values("frame").groupby("track")}
    links = {link for line in cells.values() for link in pairwise(line)}
    daughters: dict[Cell, set[Cell]] = {}
    for track, mother in table.drop_duplicates("track")[["track", "mother_track"]].itertuples(index=False):
        before = [cell for cell in cells.get(mother, []) if cell[0] < cells[track][0][0]]
        if mother and before:
            after = [cell for cell in cells[mother] if cell[0] >= cells[track][0][0]]
            links.add((before[-1], cells[track][0]))
            daughters.setdefault(before[-1], set(after[:1])).add(cells[track][0])
    return links, {(mother, frozenset(two)) for mother, two in daughters.items() if len(two) == 2}


def scores(found: pd.DataFrame, true: pd.DataFrame) -> tuple[float, float, float]:
    """Link F1, division F1 and the share of complete tracks; found may hold cells that true does not."""
    held = set(zip(true["frame"], true["label"], strict=True))
    found = found[[cell in held for cell in zip(found["frame"], found["label"], strict=True)]]
    (links, divisions), (true_links, true_divisions) = events(found), events(true)

    def f1(one: set[Any], other: set[Any]) -> float:
        return 2 * len(one & other) / (len(one) + len(other)) if one or other else 1.0

    missed = {cell for link in true_links - links for cell in link[:1]}
    broken = true[[cell in missed for cell in zip(true["frame"], true["label"], strict=True)]]["track"].nunique()
    return f1(links, true_links), f1(divisions, true_divisions), 1 - broken / max(true["track"].nunique(), 1)


def film(seed: int, shape: tuple[int, int] = (128, 128), frames: int = 12, cells: int = 6, step: float = 0.0924) \
        -> Film:
    """A film of the demo's mechanics; step: growth of log area per frame."""
    rng, labels, rows = np.random.default_rng(seed), [], []
    for frame, (_, picture, lineage) in enumerate(grow(shape, frames, cells, np.full(frames, step), rng)):
        labels.append(picture)
        rows += [(frame, *cell) for cell in lineage.tolist()]
    return labels, pd.DataFrame(rows, columns=["frame", "label", "track", "mother_track"])


def drifting(labels: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """The view moves by 3 pixels a frame, and by 15 every seventh."""
    rng, at, moved = np.random.default_rng(seed), np.zeros(2), []
    for k, picture in enumerate(labels):
        moved.append(ndimage.shift(np.pad(picture, 40), np.round(at), order=0))
        angle = rng.uniform(0, 2 * np.pi)
        at = np.clip(at + (15 if k % 7 == 6 else 3) * np.array([np.sin(angle), np.cos(angle)]), -38, 38)
    return moved


def spoiled(labels: Sequence[np.ndarray], lineage: pd.DataFrame, share: float, rng: np.random.Generator,
            merged: float = 0.5) -> Film:
    """A share of the cells missed, or merged with the neighbour of the longest border; lineage of the cells left."""
    worse, gone = [], set()
    for frame, picture in enumerate(labels):
        picture = picture.copy()
        for label in np.unique(picture)[1:].tolist():
            if (frame, label) in gone or rng.random() >= share:
                continue
            if rng.random() >= merged:
                picture[picture == label] = 0
                gone.add((frame, label))
                continue
            border = picture[ndimage.binary_dilation(picture == label, iterations=2)]
            near = [k for k in border[(border > 0) & (border != label)].tolist() if (frame, k) not in gone]
            if near:
                other = int(np.bincount(near).argmax())
                picture[picture == other] = label
                gone |= {(frame, label), (frame, other)}
        worse.append(picture)
    held = [cell not in gone for cell in zip(lineage["frame"], lineage["label"], strict=True)]
    return worse, lineage[held]


def report(name: str, films: Sequence[Film]) -> None:
    """Print a row: means over films."""
    values = np.array([scores(link_cells(labels), lineage) for labels, lineage in films])
    print(f"| {name} | " + " | ".join(f"{value:.4f}" for value in values.mean(0)) + " |", flush=True)


def demo_rows(seeds: int) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "demo, 128 x 128, 12 frames": {}, "crowded: 24 frames": {"frames": 24},
        "fast: 25 % growth a frame": {"frames": 7, "step": 0.25},
        "fast: 40 % growth a frame": {"frames": 5, "step": 0.4},
        "512 x 512": {"shape": (512, 512), "cells": 20, "frames": 16}}
    for name, options in kinds.items():
        films = [film(seed, **options) for seed in range(seeds)]
        report(name, films)
        if "512" in name:
            report("the same, drifting", [(drifting(labels, k), rows) for k, (labels, rows) in enumerate(films)])
        report("the same, 5 % missed or merged",
               [spoiled(labels, rows, 0.05, np.random.default_rng(k)) for k, (labels, rows) in enumerate(films)])


def every(source: Film, step: int) -> Film:
    """Every step-th frame."""
    labels, rows = source
    rows = rows[rows["frame"] % step == 0]
    return labels[::step], rows.assign(frame=rows["frame"] // step)


def delta_film(folder: Path) -> tuple[Film, list[Frame]]:
    """Pos101 of a folder in the layout of the users, with tracks_Pos101.csv, and its frames."""
    frames = [f for f in discover(folder).pairs if f.position == "Pos101"]
    rows = pd.read_csv(folder / "tracks_Pos101.csv")
    number = {key: k for k, key in enumerate(dict.fromkeys(zip(rows["chamber"], rows["track"], strict=True)), 1)}
    for column in ("mother_track", "track"):
        rows[column] = [number.get(key, 0) for key in zip(rows["chamber"], rows[column], strict=True)]
    return ([read_labels(f.masks) for f in frames if f.masks], rows), frames


def matched(labels: Sequence[np.ndarray], true: Film) -> pd.DataFrame:
    """The true lineage of those cells that a label matches at IoU 0.5, with the labels' numbers."""
    number: dict[Cell, int] = {}
    for frame, (picture, teacher) in enumerate(zip(labels, true[0], strict=True)):
        both = np.bincount((teacher.astype(np.int64) * (picture.max() + 1) + picture).ravel(),
                           minlength=(teacher.max() + 1) * (picture.max() + 1)).reshape(teacher.max() + 1, -1)
        iou = both / np.maximum(both.sum(0) + both.sum(1)[:, None] - both, 1)
        number |= {(frame, int(t) + 1): int(p) + 1 for t, p in np.argwhere(iou[1:, 1:] > 0.5)}
    rows = true[1].assign(label=[number.get(cell, 0) for cell in zip(true[1]["frame"], true[1]["label"], strict=True)])
    return rows[rows["label"] > 0]


def speed(cells: int, side: int) -> None:
    """Print time a frame, with registration by the images, and peak memory: the demo's mechanics, slow growth."""
    labels, lineage = film(0, (side, side), 20, cells, 0.02)
    rng = np.random.default_rng(0)
    images = [rng.normal(1 - 0.5 * (picture > 0), 0.1).astype(np.float32) for picture in labels]
    spent = []
    for _ in range(3):
        start = time.process_time()
        link_cells(labels, images=images)
        spent.append(1000 * (time.process_time() - start) / len(labels))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    counts = lineage.groupby("frame").size()
    print(f"| {counts.min()} to {counts.max()} cells, {side} x {side} | {np.median(spent):.1f} ms | {peak:.0f} MB |",
          flush=True)


def main(arguments: Sequence[str]) -> None:
    options = dict(a.split("=", 1) for a in arguments)
    print("| speed | processor time a frame | memory of the whole process |\n| --- | --- | --- |")
    for cells, side in ((36, 512), (270, 800), (900, 1400)):
        speed(cells, side)
    print("\n| film | link F1 | division F1 | complete tracks |\n| --- | --- | --- | --- |", flush=True)
    demo_rows(int(options.get("SEEDS", 5)))
    if "DATA" not in options:
        return
    whole, frames = delta_film(Path(options["DATA"]))
    report("delta Pos101, teacher's labels", [whole])
    for step in (2, 3):
        report(f"delta, one frame of {step}", [every(whole, step)])
    turned = [np.ascontiguousarray(np.rot90(picture)) for picture in whole[0]], whole[1]
    report("delta, turned", [turned])
    report("delta, drifting", [(drifting(whole[0], 0), whole[1])])
    for name, merged in (("missed", 0.0), ("merged", 1.0)):
        report(f"delta, 5 % {name}", [spoiled(*whole, 0.05, np.random.default_rng(k), merged) for k in range(3)])
    if "RUN" in options:
        folder = Path(options["RUN"]) / "masks" / "DELTA_masks" / "Pos101" / "PreprocessedPhaseMasks"
        labels = [read_labels(path) for path in sorted(folder.glob("MASK_img_*.tif"))]
        report("delta, student's labels", [(labels, matched(labels, whole))])
        images = [read_image(f.image) for f in frames]
        print("with images:", scores(link_cells(labels, images=images), matched(labels, whole)))


if __name__ == "__main__":
    main(sys.argv[1:])
