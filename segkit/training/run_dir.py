"""The run folder: history, settings and split, checkpoint, report and model card."""

import io
import math
import os
import platform
from dataclasses import dataclass, field, replace
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..data.dataset import Split
from ..data.images import PERCENTILES
from ..errors import SegkitError
from ..files import check_lock, duration, log, read_json, replacing, write_json, write_text, writing
from ..model.checkpoint import save_model
from ..model.unet import ModelInfo, UNet
from ..settings import DEMO, Settings, check_dataset

COLUMNS = ("epoch", "train_loss", "train_dice", "val_loss", "val_dice", "learning_rate", "event", "seconds",
           "crops_per_second")
PACKAGES = ("segkit", "torch", "torchvision", "numpy", "scikit-image")
USUAL_DICE = 0.9  # on validation frames; a training that ends below it has a hint in its log


Preview = tuple[np.ndarray, np.ndarray, np.ndarray]  # image, probability, target mask: (H, W) each


@dataclass
class History:
    """How far a training has come: plain values that a checkpoint holds, and predictions to look at."""

    rows: list[dict[str, Any]] = field(default_factory=list)  # one per epoch, also of those that were rolled back
    previews: list[Preview] = field(default_factory=list)  # of the newest epoch, on the same frames throughout a run
    epoch: int = 0  # finished epochs, without those that were rolled back
    tries: int = 0  # rollbacks
    rate_scale: float = 1.0  # of the learning rate; halved by every rollback
    best_dice: float = -1.0
    least_loss: float = math.inf  # on the validation frames, since the last restart with other weights

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=list(COLUMNS))

    @property
    def best(self) -> dict[str, Any] | None:
        """The epoch whose weights are kept: that of the lowest validation loss.

        The best Dice comes early, when touching cells are not separated yet (figures in benchmarks/README.md).
        """
        return next((row for row in self.rows if row["val_loss"] == self.least_loss and not row["event"]), None)

    @property
    def events(self) -> list[str]:
        """Rollbacks and restarts, in order."""
        return [f"epoch {row['epoch']}: {row['event']}" for row in self.rows if row["event"]]

    def newest(self, epochs: int) -> str:
        """The newest epoch in a line, with the time that is left of so many epochs."""
        row = self.rows[-1]
        left = duration((epochs - self.epoch) * row["seconds"])
        event = f"  {row['event']}" if row["event"] else ""
        return (f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  validation Dice {row['val_dice']:.4f}  "
                f"{row['crops_per_second']:.0f} crops/s  {left} left{event}")

    def _repr_html_(self) -> str:
        return self.table().round(3).to_html(index=False)


def check_training(settings: Settings) -> bool:
    """Whether the run folder holds a training that is to be replaced: that of the bundled demo.

    Raises SegkitError where the folder belongs to another dataset, holds another training that is not resumed, nothing
    to resume, or more epochs than EPOCHS; and as `check_lock` and `load_checkpoint`.
    """
    run_dir, same_dataset = settings.run_dir, check_dataset(settings)
    check_lock(run_dir)
    # To resume, a checkpoint is needed, and epochs that are left to train
    if settings.resume:
        if not os.path.isfile(run_dir / "last.pt"):
            raise SegkitError(f"RESUME is set and {run_dir} holds no last.pt: set RESUME=0 or another RUN")
        checkpoint = load_checkpoint(run_dir)
        if len(checkpoint["model"]["out.bias"]) != ModelInfo().outputs:
            raise SegkitError(f"runs/{settings.run} is a training of version 1.1, which cannot be resumed: set "
                              "another RUN")
        epochs = checkpoint["state"]["epoch"]
        if epochs > settings.epochs:
            raise SegkitError(f"RESUME is set and {epochs} epochs of runs/{settings.run} are trained already, more "
                              f"than EPOCHS={settings.epochs}: set EPOCHS to {epochs} to finish, or higher")
        return False
    # A new training needs a folder without one; only that of the bundled demo is replaced
    if not any(os.path.isfile(run_dir / name) for name in ("last.pt", "model.safetensors", "report.json")):
        return False
    bundled = same_dataset and settings.dataset_path == settings.root / DEMO  # a user's folder may be called demo too
    if settings.run != "demo" or not bundled:
        raise SegkitError(f"runs/{settings.run} holds a training already: RESUME=1 continues it, a finished one with "
                          "more EPOCHS; another RUN starts a new one")
    return True


def open_run(split: Split, settings: Settings) -> Path:
    """Make the run folder, or empty that of the demo, and write settings.json and split.json into it.

    Raises SegkitError where `check_training` does, and where a resumed run would be validated on other frames than
    before, since it may have been trained on some of them.
    """
    run_dir = settings.run_dir
    if check_training(settings):
        with writing(run_dir):
            for name in ("last.pt", "model.safetensors", "MODEL_CARD.md", "report.json", "history.csv", "run.log"):
                (run_dir / name).unlink(missing_ok=True)
    train, validation = ([f.name for f in frames] for frames in (split.train, split.validation))
    # A resumed run must have the validation frames that it had, except those that could not be decoded
    known = settings.resume and os.path.isfile(run_dir / "split.json")
    earlier = read_json(run_dir / "split.json", "the run's file") if known else {}
    now = set(validation) - set(earlier.get("excluded", ()))
    if earlier and (others := sorted(set(earlier["validation"]) ^ now)):
        raise SegkitError(f"RESUME is set and runs/{settings.run} was validated on other frames, {others[0]} is one: "
                          "set VALIDATION and EXCLUDE as in settings.json, or another RUN and START_FROM to this run")
    write_json(run_dir / "settings.json", settings.as_dict())
    used = {"train": list(dict.fromkeys(train + earlier.get("train", []))), "validation": validation}
    write_json(run_dir / "split.json", used | {"excluded": dict.fromkeys(settings.exclude, "EXCLUDE")})
    return run_dir


def leave_out(run_dir: Path, reasons: dict[str, str]) -> None:
    """Move frames that could not be decoded to the excluded ones of split.json, with the reasons."""
    content = read_json(run_dir / "split.json", "the run's file")
    for side in ("train", "validation"):
        content[side] = [name for name in content[side] if name not in reasons]
    content["excluded"] |= reasons
    write_json(run_dir / "split.json", content)


def save_checkpoint(checkpoint: dict[str, Any], run_dir: Path) -> None:
    """Write last.pt: plain containers and tensors, so that it loads with weights_only=True."""
    content = io.BytesIO()  # torch's own writing to a full disk raises a RuntimeError
    torch.save(checkpoint, content)
    with replacing(run_dir / "last.pt") as temporary:
        temporary.write_bytes(content.getbuffer())


def load_checkpoint(run_dir: Path) -> dict[str, Any]:
    """Read last.pt, to the CPU. Raises SegkitError where it cannot be read, is damaged or lacks one of its parts."""
    path = run_dir / "last.pt"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        parts = {name: checkpoint[name] for name in ("model", "average", "optimiser", "state")}
        complete = "epoch" in parts["state"]
    except OSError as error:
        raise SegkitError(f"{path} cannot be read ({error.strerror or error}): check its rights and the disk") from None
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # which one depends on the place of the damage
        complete = False
    if not complete:
        raise SegkitError(f"{path} is damaged: set another RUN, and START_FROM to this run")
    return parts


def finish_run(model: UNet, scores: pd.DataFrame, history: History, settings: Settings, device: str) -> None:
    """Write the evaluated model, its card and report.json; scores: a row per validation frame."""
    # Scores over the validation frames, and their mean for each position
    best = history.best or {}
    by_position = scores.groupby(scores["experiment"] + " " + scores["position"])["dice"].mean()
    summary = {"val_dice": float(scores["dice"].mean()), "val_dice_by_position": by_position.to_dict(),
               "train_dice": best.get("train_dice"), "val_panoptic_quality": float(scores["panoptic_quality"].mean())}
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    seconds = round(sum(row["seconds"] for row in history.rows), 1)
    report = summary | {"best_epoch": best.get("epoch"), "epochs": history.epoch, "seconds": seconds, "device": device,
                        "versions": versions, "events": history.events}
    model.info = replace(model.info, scores=summary, versions=versions)
    save_model(model, settings.run_dir / "model.safetensors")
    write_text(settings.run_dir / "MODEL_CARD.md", model_card(model, report, len(scores)))
    write_json(settings.run_dir / "report.json", report)
    log.info("finished: validation Dice of the labels %.4f, panoptic quality %.4f (epoch %s)", summary["val_dice"],
             summary["val_panoptic_quality"], best.get("epoch"))
    if summary["val_dice"] < USUAL_DICE:
        log.info("this Dice is less than usual (above %s): more EPOCHS help as long as the validation loss falls "
                 "(RESUME=1 continues), and so do more training frames", USUAL_DICE)


def model_card(model: UNet, report: dict[str, Any], frames: int) -> str:
    """Training data, validation scores, use and limits of the model: model_card.md, filled in."""
    info = model.info
    # Whether the validation scores are those of data that the model was not trained on
    never = ", of positions that it was not trained on"
    if not info.fully_recorded:
        never = " (it is not known whether the weights that it started from were trained on these positions)"
    elif set().union(*info.trained_on.values()) & set().union(*info.validated_on.values()):
        never = " (some of their images are among the training images too, as copies)"
    positions = "\n".join(f"| {name} | {value:.4f} |" for name, value in report["val_dice_by_position"].items())
    dataset = Path(info.settings["DATASET_PATH"]).name
    start = info.settings["START_FROM"].removesuffix("/model.safetensors").rpartition("/")[2] or "random weights"
    template = resources.files(__package__).joinpath("model_card.md").read_text(encoding="utf-8")
    return template.format(info=info, report=report, frames=frames, never=never, positions=positions,
                           parameters=model.count_parameters(), percentiles=PERCENTILES, dataset=dataset, start=start)
