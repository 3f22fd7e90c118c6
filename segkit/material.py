"""What a training works with: decoded frames, and the sizes that follow from all of them together."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from .data import Frame, Split
from .decode import build_store
from .devices import describe_device, free_memory
from .history import log
from .judge import hashes_by_position
from .layout import FEW_STEPS, choose_crop, covering, steps_of
from .settings import Settings
from .store import Store
from .targets import smallest_area
from .team import Team


class Material(NamedTuple):
    """One process's share of the frames; all else is the same in every process."""

    train: Store
    validation: Store
    validation_frames: list[Frame]  # of all processes, those that could be decoded
    foreground: float  # share of the training's pixels
    cell_width: float  # pixels, median of the training cells
    min_area: int  # pixels, see targets.smallest_area
    crop: tuple[int, int]  # height, width
    steps: int  # of an epoch
    trained_on: dict[str, list[str]]  # of all processes, see judge.hashes_by_position
    validated_on: dict[str, list[str]]
    left_out: dict[str, str]  # frames of all processes that could not be decoded, by name, and why


def prepare(split: Split, settings: Settings, team: Team) -> Material:
    """Decode this process's share of the split; what cannot be decoded is logged and left out."""
    cache = settings.run_dir.parent / ".cache"
    limit = settings.memory_limit if team.here == 1 else (settings.memory_limit or free_memory() / 2e9) / team.here
    stores, records, left_out = [], [], {}
    for frames, what in ((split.train, "training frames"), (split.validation, "validation frames")):
        share = team.share(frames, what)
        store, problems = build_store(share, team.device, cache, limit)
        sound, size = set(store.frames), 3e-9 * store.pixels.numel()  # GB
        lost = [frame.name for frame in share if frame not in sound]
        for name, problem in team.gather(list(zip(lost, problems, strict=True))):
            log.info("left out %s: %s", problem.path, problem.reason)
            left_out[name] = problem.reason
        stores.append(store)
        records.append(hashes_by_position(team.gather(list(zip(store.frames, store.hashes, strict=True)))))
        limit -= size if size < limit else 0  # what lies on the disk takes none
    train, validation = stores
    decoded = set(team.gather(list(validation.frames)))
    shares = pd.DataFrame(team.gather([{
        "height": int(train.height.min()), "width": int(train.width.min()),
        "area": int((train.height * train.width).sum()), "foreground": train.foreground,
        "cell_width": train.cell_width, "train": len(train.frames), "validation": len(validation.frames)}]))
    cell_width = float(shares["cell_width"].median())
    crop = choose_crop(settings, team.device, (int(shares["height"].min()), int(shares["width"].min())))
    crops = settings.crops_per_epoch or covering(int(shares["area"].sum()), crop)
    steps = steps_of(crops, settings)
    log.info("%d training frames, %d validation frames; crops of %d x %d, %d steps of %d an epoch; %s",
             shares["train"].sum(), shares["validation"].sum(), *crop, steps, settings.batch_size,
             describe_device(team.device, settings.precision))
    if settings.epochs * steps < FEW_STEPS:
        log.info("%d steps in all are few: %d and more are usual, so set more EPOCHS", settings.epochs * steps,
                 FEW_STEPS)
    if team.size > 1:
        log.info("%d processes, each with %s training frames, %s validation frames and %d crops of every batch",
                 team.size, "/".join(map(str, shares["train"])), "/".join(map(str, shares["validation"])),
                 settings.batch_size // team.size)
    return Material(train, validation, [frame for frame in split.validation if frame in decoded],
                    float(np.average(shares["foreground"], weights=shares["area"])),
                    cell_width, smallest_area(team.gather(train.areas.tolist()), cell_width), crop, steps, records[0],
                    records[1], left_out)
