"""Train the starter: `python benchmarks/starter.py DATA=folder [OUT=segkit/starter.safetensors NAME=value ...]`.

DATA holds sets of real frames in the users' layout. Half of the crops show synthetic frames (`scenes.draw_frame`), the
others come from all real sets with equal shares, training positions only. Outlines that lie 0.7 pixels or more inside
of where Omnipose draws them are moved outwards. Frames are drawn by processes beside the training, so that none need
come twice. STEPS=6000, SECONDS=9000 (whatever ends first), FRAMES=1500 (kept at a time), CROP=160, WORKERS=1 (processes
that draw), SETS=delta,omnipose (default all). Other names are settings of the training (SEED, BATCH_SIZE, DEVICE, ...).
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from skimage.segmentation import expand_labels

import segkit
from segkit.data.dataset import Frame, read_pair
from segkit.data.discovery import discover
from segkit.data.images import hash_pixels, normalise
from segkit.data.label_review import outline_offset
from segkit.data.scenes import draw_frame
from segkit.measure.metrics import hashes_by_position
from segkit.model.checkpoint import save_model
from segkit.model.postprocess import distance_target, smallest_area, whole_areas
from segkit.settings import Settings, load_settings, parse_settings
from segkit.training.augment import gather_crops, sample_crops
from segkit.training.distributed import ProcessGroup
from segkit.training.frames import POINTS, SCALES, Store
from segkit.training.trainer import Trainer, learning_rate_at, recompute_bn_stats

OPTIONS = {"DATA": "", "OUT": "segkit/starter.safetensors", "SETS": "", "STEPS": "6000", "SECONDS": "9000",
           "FRAMES": "1500", "CROP": "160", "WORKERS": "1"}
SIDE = 256  # pixels, of a synthetic frame
TIGHT = 0.7  # pixels inside of Omnipose's outline from which on outlines are moved
ABOVE = 12  # pixels kept around delta's labelled rows: the cells of its trench have no labels


class Prepared(NamedTuple):
    """One frame as the store holds it; see `frames.Decoded`."""

    pixels: np.ndarray  # (H, W) float32
    target: np.ndarray  # (H, W) uint8
    labels: np.ndarray  # (H, W) int16
    widths: np.ndarray  # (cells,) float32, pixels
    areas: np.ndarray  # (whole cells,) int32, pixels
    record: tuple[Frame, str] | None = None  # of a real one: the frame and its image's hash


def prepare(image: np.ndarray, labels: np.ndarray, record: tuple[Frame, str] | None = None) -> Prepared:
    target, widths = distance_target(labels)
    return Prepared(normalise(image), target, labels.astype(np.int16), widths, whole_areas(labels), record)


def draw(seed: int) -> Prepared:
    return prepare(*draw_frame(np.random.default_rng(seed), (SIDE, SIDE)))


def read_set(folder: Path, validation: Sequence[str]) -> list[Prepared]:
    """The training frames of a real set, with outlines as Omnipose draws them."""
    dataset = discover(folder)
    kept = [f for f in dataset.pairs if not f.position.endswith(tuple(validation))]
    pairs = [read_pair(frame) for frame in kept]
    offset = outline_offset_of(pairs)
    frames = []
    for frame, (image, labels) in zip(kept, pairs, strict=True):
        record = frame, hash_pixels(image)
        if folder.name == "delta":
            image, labels = labelled_rows(image, labels)
        frames.append(prepare(image, move_outlines(labels, offset), record))
    return frames


def outline_offset_of(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Median over the pairs of an image and its labels; 0 where none can say."""
    offsets = [outline_offset(*pair) for pair in pairs[:10]]
    return float(np.nanmedian(offsets)) if not np.isnan(offsets).all() else 0.0


def move_outlines(labels: np.ndarray, offset: float) -> np.ndarray:
    """Labels grown by the offset (pixels), where it is worth it."""
    return expand_labels(labels, offset + 0.49) if offset >= TIGHT else labels


def labelled_rows(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.flatnonzero(labels.any(1))
    kept = slice(max(0, rows[0] - ABOVE), rows[-1] + ABOVE // 2)
    return image[kept], labels[kept]


def mixed_store(drawn: Sequence[Prepared], real: Mapping[str, Sequence[Prepared]], device: torch.device) -> Store:
    """All frames; those of a real set are listed so often that every set has the same share, together a half."""
    frames = [*drawn, *(frame for frames in real.values() for frame in frames)]
    index, first = list(range(len(drawn))), len(drawn)
    for each in real.values():
        index += (first + np.arange(len(drawn) // len(real)) % len(each)).tolist()
        first += len(each)
    pixels, targets, labels = (torch.from_numpy(np.concatenate([values.ravel() for values in part])).to(device)
                               for part in list(zip(*frames, strict=True))[:3])
    height, width = (torch.tensor([frame.pixels.shape[k] for frame in frames]) for k in (0, 1))
    start = torch.cumsum(height * width, 0) - height * width
    cell_width = float(np.median(np.concatenate([frame.widths for frame in frames])))
    scale = torch.tensor([scale_of(frame, cell_width) for frame in frames])
    points = torch.stack([points_of(frame) for frame in frames])
    areas = np.concatenate([frame.areas for frame in frames])
    shares = [float(np.mean([(frame.target > 0).mean() for frame in part])) for part in (drawn, *real.values())]
    at = torch.tensor(index)
    return Store(tuple(index), pixels, targets, labels, start[at], height[at], width[at],  # type: ignore[arg-type]
                 points[at], scale[at], cell_width, areas, min(shares), ())


def scale_of(frame: Prepared, cell_width: float) -> float:
    return float(np.clip(cell_width / np.median(frame.widths), *SCALES)) if len(frame.widths) else 1.0


def points_of(frame: Prepared) -> torch.Tensor:
    inside = np.argwhere(frame.target)
    points = inside[np.linspace(0, len(inside) - 1, POINTS).astype(int)] if len(inside) else np.full((POINTS, 2), -1)
    return torch.from_numpy(points)


class Drawing:
    """Synthetic frames, drawn by processes beside this one without end."""

    def __init__(self, workers: int, seed: int) -> None:
        self.pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        self.seeds = count(seed * 10 ** 9)
        self.waiting: deque[Future[Prepared]] = deque()
        self.order(4 * workers)

    def order(self, frames: int) -> None:
        self.waiting += [self.pool.submit(draw, next(self.seeds)) for _ in range(frames)]

    def take(self, wait: bool) -> Iterator[Prepared]:
        """The frames that are ready, in order; with wait, frames without end."""
        while wait or (self.waiting and self.waiting[0].done()):
            self.order(1)
            yield self.waiting.popleft().result()


def train(drawn: list[Prepared], real: Mapping[str, Sequence[Prepared]], settings: Settings, *, steps: int,
          seconds: float, drawing: Drawing | None = None) -> segkit.UNet:
    """A student of these frames; new ones of `drawing` take the places of the oldest."""
    group = ProcessGroup(settings.device)
    store, side = mixed_store(drawn, real, group.device), int(settings.crop.partition("x")[0])
    model = segkit.UNet()
    trainer = Trainer(model, replace(settings, start_from=""), group)
    trainer.initialise(0.2)
    trainer.model.train()
    generator, began, oldest = torch.Generator().manual_seed(settings.seed), time.monotonic(), 0
    for step in count():
        progress = max(step / steps, (time.monotonic() - began) / seconds)
        if progress >= 1:
            break
        for frame in drawing.take(wait=False) if drawing else ():
            place = slice(oldest * SIDE ** 2, (oldest + 1) * SIDE ** 2)
            stored, new = (store.pixels, store.targets, store.labels), (frame.pixels, frame.target, frame.labels)
            for values, array in zip(stored, new, strict=True):
                values[place] = torch.from_numpy(array.ravel()).to(values.device)
            store.points[oldest], store.scale[oldest] = points_of(frame), scale_of(frame, store.cell_width)
            oldest = (oldest + 1) % len(drawn)
        trainer.learning_rate = learning_rate_at(progress, settings.learning_rate)
        plan = sample_crops(store, settings.batch_size, (side, side), generator)
        images, targets = (t.to(group.device) for t in gather_crops(store, plan, (side, side)))
        values = trainer.train_step(images, targets)
        if step % 100 == 0:
            print(f"step {step}, {time.monotonic() - began:.0f} s: loss {values[0]:.3f}, Dice {values[1]:.3f}, "
                  f"{oldest} new frames", flush=True)
    plans = (sample_crops(store, settings.batch_size, (side, side), generator) for _ in range(16))
    batches = (gather_crops(store, plan, (side, side))[0].to(group.device) for plan in plans)
    recompute_bn_stats(trainer.ema_model, batches, group)
    records = [frame.record for frames in real.values() for frame in frames if frame.record]
    trainer.ema_model.info = replace(
        model.info, cell_width=round(store.cell_width, 2), min_area=smallest_area(store.areas, store.cell_width),
        trained_on=hashes_by_position(records), fully_recorded=True,
        settings={"DATASET_PATH": ", ".join(["synthetic", *real]), "RUN": "starter", "STEPS": step,
                  "SEED": settings.seed})
    return trainer.ema_model


@cache
def options(arguments: tuple[str, ...]) -> tuple[dict[str, str], Settings]:
    """The values of OPTIONS, and the settings."""
    values = dict(argument.split("=", 1) for argument in arguments)
    own = {name: values.pop(name, default) for name, default in OPTIONS.items()}
    return own, parse_settings({"CROP": own["CROP"]} | values, load_settings())


def main(arguments: list[str]) -> None:
    own, settings = options(tuple(arguments))
    folders = sorted(path.parent for path in Path(own["DATA"]).expanduser().glob("*/*_masks*"))
    names = own["SETS"].split(",") if own["SETS"] else [folder.name for folder in folders]
    drawing = Drawing(int(own["WORKERS"]), settings.seed)
    real = {folder.name: read_set(folder, settings.validation) for folder in folders if folder.name in names}
    drawn = [frame for frame, _ in zip(drawing.take(wait=True), range(int(own["FRAMES"])), strict=False)]
    model = train(drawn, real, settings, steps=int(own["STEPS"]), seconds=float(own["SECONDS"]), drawing=drawing)
    save_model(model.cpu(), Path(own["OUT"]), half=True)
    drawing.pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    main(sys.argv[1:])
