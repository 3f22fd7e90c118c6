"""Train the starter: `python benchmarks/starter.py DATA=folder [OUT=segkit/starter.safetensors NAME=value ...]`.

DATA holds sets of real frames in the users' layout. Most of the crops show synthetic frames (`scenes.draw_frame`), the
others, a share of REAL=0.25, come from all real sets alike, training positions only. Outlines that lie 0.7 pixels or
more inside of where Omnipose draws them are moved outwards. Frames are drawn by processes beside the training, so that
none need come twice. STEPS=6000, SECONDS=9000 (whatever ends first), FRAMES=1500 (kept at a time), CROP=160, WORKERS=1
(processes that draw), SETS=delta,omnipose (default all), START=run or model file to go on from (default random
weights). Other names are settings of the training (SEED, BATCH_SIZE, DEVICE, ...).
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from skimage.segmentation import expand_labels

import segkit
from segkit.data.dataset import Frame, read_pair
from segkit.data.discovery import discover
from segkit.data.images import hash_pixels, normalise
from segkit.data.label_review import outline_offset
from segkit.data.scenes import draw_frame
from segkit.measure.metrics import hashes_by_position, join_records
from segkit.model.checkpoint import save_model
from segkit.model.postprocess import smallest_area
from segkit.settings import Settings, load_settings, parse_settings
from segkit.training.augment import gather_crops, sample_crops
from segkit.training.distributed import ProcessGroup
from segkit.training.frames import SCALES, Decoded, Store, decode_pair
from segkit.training.trainer import Trainer, learning_rate_at, recompute_bn_stats

OPTIONS = {"DATA": "", "OUT": "segkit/starter.safetensors", "SETS": "", "STEPS": "6000", "SECONDS": "9000",
           "FRAMES": "1500", "CROP": "160", "WORKERS": "1", "START": "", "REAL": "0.25"}
SIDE = 256  # pixels, of a synthetic frame
CELL_WIDTH = 9.0  # pixels, to which the cells of every frame are brought: at 7 touching cells are joined more often
TIGHT = 0.7  # pixels inside of Omnipose's outline from which on outlines are moved
Pair = tuple[np.ndarray, np.ndarray]  # image, labels
ABOVE = 12  # pixels kept around delta's labelled rows: the cells of its trench have no labels


def draw(seed: int) -> Decoded:
    return decode_pair(*draw_frame(np.random.default_rng(seed), (SIDE, SIDE)))


def read_set(folder: Path, validation: Sequence[str]) -> dict[Frame, Decoded]:
    """The training frames of a real set, with outlines as Omnipose draws them."""
    frames = [f for f in discover(folder).pairs if not f.position.endswith(tuple(validation))]
    pairs = [read_pair(frame) for frame in frames]
    return {frame: decode_pair(*corrected, hash_pixels(image)) for frame, (image, _), corrected in
            zip(frames, pairs, correct_labels(folder, pairs), strict=True)}


def correct_labels(folder: Path, pairs: Sequence[Pair]) -> list[Pair]:
    """Images and labels of a set, with outlines as Omnipose draws them; of delta the rows that have labels."""
    offsets = [outline_offset(normalise(image), labels) for image, labels in pairs[:10]]
    offset = float(np.nanmedian(offsets)) if not np.isnan(offsets).all() else 0.0
    if folder.name == "delta":
        pairs = [labelled_rows(*pair) for pair in pairs]
    return [(image, move_outlines(labels, offset)) for image, labels in pairs]


def move_outlines(labels: np.ndarray, offset: float) -> np.ndarray:
    """Labels grown by the offset (pixels), where it is worth it."""
    return expand_labels(labels, offset + 0.49) if offset >= TIGHT else labels


def labelled_rows(image: np.ndarray, labels: np.ndarray) -> Pair:
    rows = np.flatnonzero(labels.any(1))
    kept = slice(max(0, rows[0] - ABOVE), rows[-1] + ABOVE // 2)
    return image[kept], labels[kept]


def mixed_store(drawn: Sequence[Decoded], real: Mapping[str, Mapping[Frame, Decoded]], real_share: float,
                device: torch.device) -> Store:
    """All frames; those of real sets are listed so often that together they have this share, each set the same."""
    groups = [drawn, *(list(each.values()) for each in real.values())]
    frames = [frame for group in groups for frame in group]
    index, first = list(range(len(drawn))), len(drawn)
    for each in real.values():
        listed = round(len(drawn) * real_share / (1 - real_share) / len(real))
        index += (first + np.arange(listed) % len(each)).tolist()
        first += len(each)
    pixels, targets, labels = (torch.from_numpy(np.concatenate([values.ravel() for values in part])).to(device)
                               for part in list(zip(*frames, strict=True))[:3])
    height, width = (torch.tensor([frame.image.shape[k] for frame in frames]) for k in (0, 1))
    start = torch.cumsum(height * width, 0) - height * width
    scales = [scale_of(frame) for frame in frames]
    points = torch.from_numpy(np.stack([frame.points for frame in frames])).long()
    areas = np.concatenate([frame.areas * scale ** 2 for frame, scale in zip(frames, scales, strict=True)])
    shares = [float(np.mean([(frame.target > 0).mean() for frame in group])) for group in groups]
    at = torch.tensor(index)
    return Store(tuple(index), pixels, targets, labels, start[at], height[at], width[at],  # type: ignore[arg-type]
                 points[at], torch.tensor(scales)[at], CELL_WIDTH, areas, min(shares), ())


def scale_of(frame: Decoded) -> float:
    return float(np.clip(CELL_WIDTH / np.median(frame.widths), *SCALES)) if len(frame.widths) else 1.0


class Drawing:
    """Synthetic frames, drawn by processes beside this one without end."""

    def __init__(self, workers: int, seed: int) -> None:
        self.pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        self.seeds = count(seed * 10 ** 9)
        self.waiting: deque[Future[Decoded]] = deque()
        self.order(4 * workers)

    def order(self, frames: int) -> None:
        self.waiting += [self.pool.submit(draw, next(self.seeds)) for _ in range(frames)]

    def take(self, wait: bool) -> Iterator[Decoded]:
        """The frames that are ready, in order; with wait, frames without end."""
        while wait or (self.waiting and self.waiting[0].done()):
            self.order(1)
            yield self.waiting.popleft().result()


def train(drawn: Sequence[Decoded], real: Mapping[str, Mapping[Frame, Decoded]], settings: Settings, *, steps: int,
          seconds: float, real_share: float, drawing: Drawing | None = None, start: str = "") -> segkit.UNet:
    """A student of these frames; new ones of `drawing` take the places of the oldest. start: a model to go on from."""
    group = ProcessGroup(settings.device)
    store, side = mixed_store(drawn, real, real_share, group.device), int(settings.crop.partition("x")[0])
    model = segkit.UNet()
    trainer = Trainer(model, replace(settings, start_from=start), group)
    earlier = trainer.initialise(0.2)
    trainer.model.train()
    generator, began, oldest = torch.Generator().manual_seed(settings.seed), time.monotonic(), 0
    for step in count():
        progress = max(step / steps, (time.monotonic() - began) / seconds)
        if progress >= 1:
            break
        for frame in drawing.take(wait=False) if drawing else ():
            place = slice(oldest * SIDE ** 2, (oldest + 1) * SIDE ** 2)
            stored, new = (store.pixels, store.targets, store.labels), (frame.image, frame.target, frame.labels)
            for values, array in zip(stored, new, strict=True):
                values[place] = torch.from_numpy(array.ravel()).to(values.device)
            store.points[oldest] = torch.from_numpy(frame.points)
            store.scale[oldest] = scale_of(frame)
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
    records = [(frame, decoded.image_hash) for frames in real.values() for frame, decoded in frames.items()]
    trainer.ema_model.info = replace(
        model.info, cell_width=round(store.cell_width, 2), min_area=smallest_area(store.areas, store.cell_width),
        trained_on=join_records(hashes_by_position(records), earlier.trained_on if earlier else {}),
        fully_recorded=True, settings={"DATASET_PATH": ", ".join(["synthetic", *real]), "RUN": "starter", "STEPS": step,
                                       "SEED": settings.seed})
    return trainer.ema_model


def parse(arguments: Sequence[str], defaults: Mapping[str, str]) -> tuple[dict[str, str], Settings, list[Path]]:
    """The options of a script, the settings, and the folders of the sets in DATA (those of SETS, if any)."""
    values = dict(argument.split("=", 1) for argument in arguments)
    own = {name: values.pop(name, default) for name, default in defaults.items()}
    folders = sorted(path.parent for path in Path(own["DATA"]).expanduser().glob("*/*_masks*"))
    wanted = [folder for folder in folders if not own["SETS"] or folder.name in own["SETS"].split(",")]
    return own, parse_settings({"CROP": own["CROP"]} | values, load_settings()), wanted


def main(arguments: list[str]) -> None:
    own, settings, folders = parse(arguments, OPTIONS)
    drawing = Drawing(int(own["WORKERS"]), settings.seed)
    real = {folder.name: read_set(folder, settings.validation) for folder in folders}
    drawn = list(islice(drawing.take(wait=True), int(own["FRAMES"])))
    model = train(drawn, real, settings, steps=int(own["STEPS"]), seconds=float(own["SECONDS"]),
                  real_share=float(own["REAL"]), drawing=drawing, start=own["START"])
    save_model(model.cpu(), Path(own["OUT"]), half=True)
    drawing.pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    main(sys.argv[1:])
