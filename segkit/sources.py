"""Where the settings' values come from: the dataset, the saved form, the environment, the caller."""

import csv
import os
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import SegkitError
from .files import TOKEN, locked, read_json, write_json
from .settings import CONDITIONS, DEMO, Settings, parse_settings, project_root, public_fields

FORM_FILE = "segkit.json"
CONDITIONS_FILE = "experiments.csv"  # in a dataset's folder, optional: what it says of itself
HELD = ("last.pt", "model.safetensors", "report.json", "masks", "cells.csv")  # what a run's folder holds of a dataset
OF_A_DATASET = ("RUN", "MASKS_PATH", "VALIDATION", "EXCLUDE", "SCALE", "EXPERIMENTS", *CONDITIONS)


def load_settings(parameters: Mapping[str, Any] | None = None, root: Path | None = None,
                  caller: Path | None = None) -> Settings:
    """Gather settings: defaults, the saved form, SEGKIT_* in the environment, then parameters that are not None.

    EXPERIMENTS, where nobody sets it, is what the dataset's own experiments.csv says of settings that nobody sets.

    parameters: upper-case names, as papermill injects them; other names and None are passed over, so that a
    notebook can hand over its globals().
    caller: the folder that relative paths in the environment and the parameters mean; None: the project's root.
    """
    root = root or project_root()
    values: dict[str, Any] = {}
    form = root / FORM_FILE
    if form.is_file() and not os.environ.get("SEGKIT_IGNORE_FORM"):
        values = read_json(form, "the saved form")
        if not isinstance(values, dict):
            raise SegkitError(f"the saved form {form} holds no settings: delete it, or save the form anew")
    # not settings: for tests, the folder that make was called in, and the lock of a run
    reserved = {"SEGKIT_IGNORE_FORM", "SEGKIT_CALLER", TOKEN}
    environment = {name.removeprefix("SEGKIT_"): value for name, value in os.environ.items()
                   if name.startswith("SEGKIT_") and name not in reserved}
    known = {f.name.upper() for f in public_fields()}
    given = {k: v for k, v in (parameters or {}).items() if k in known and v is not None}
    for layer in (environment, given):
        values = _layer(values, _seen_from(caller, layer) if caller else layer, root)
    settings = parse_settings(values, Settings(root=root))
    if "EXPERIMENTS" in values:
        return settings
    return replace(settings, experiments=dataset_conditions(settings.dataset_path, values))


def _seen_from(caller: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The values with relative paths made absolute; a model that is not there may be a run's name and is left."""
    paths = {name: os.path.normpath(caller / os.path.expanduser(values[name])) for name in
             ("DATASET_PATH", "MASKS_PATH", "MODEL", "START_FROM") if values.get(name)}
    return values | {name: path for name, path in paths.items()
                     if name in ("DATASET_PATH", "MASKS_PATH") or os.path.exists(path)}


def dataset_conditions(dataset_path: Path, given: Container[str] = ()) -> tuple[str, ...]:
    """What a dataset's own experiments.csv says, in the form of EXPERIMENTS; nothing without that file.

    given: settings that it says nothing of, since somebody has set them.

    Its columns are experiment and any of pixel_size_um, minutes_per_frame, drug_frame, reference; empty cells say
    nothing. Raises SegkitError where it cannot be read.
    """
    path = dataset_path / CONDITIONS_FILE
    if not os.path.isfile(path):
        return ()
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise SegkitError(f"{path} cannot be read ({error}): a table with commas was needed") from None
    tokens = []
    for row in rows:
        cells = {str(name).strip().upper(): (value or "").strip() for name, value in row.items() if name}
        experiment = cells.pop("EXPERIMENT", "")
        if not experiment or set(cells) - set(CONDITIONS):
            raise SegkitError(f"{path} has columns {', '.join(map(str, row))}: experiment and any of "
                              f"{', '.join(CONDITIONS).lower()} were needed, and a name in every row")
        tokens += [f"{experiment}.{name}={value}" for name, value in cells.items()
                   if value and name not in given]
    return tuple(tokens)


def own_conditions(settings: Settings) -> tuple[str, ...]:
    """EXPERIMENTS where nobody sets it: what the dataset's experiments.csv says of settings that have their default."""
    plain, now = Settings().as_dict(), settings.as_dict()
    return dataset_conditions(settings.dataset_path, {name for name in CONDITIONS if now[name] != plain[name]})


def check_dataset(settings: Settings) -> bool:
    """Whether the run's folder is this dataset's, as its settings.json says; another checkout's demo is the same demo.

    Raises SegkitError where it holds the training or the results of another dataset.
    """
    file, now = settings.run_dir / "settings.json", settings.dataset_path
    said = read_json(file, "the run's file").get("DATASET_PATH") if os.path.isfile(file) else None
    if not said or (now == settings.root / DEMO and Path(said).parts[-len(DEMO.parts):] == DEMO.parts):
        return bool(said)
    same = Path(said).resolve() == now.resolve()
    if not same and any(os.path.exists(settings.run_dir / name) for name in HELD):
        raise SegkitError(f"runs/{settings.run} holds the results of another dataset, {said}: set RUN to another name "
                          f"for those of {now}; or, where this is the same dataset, only moved, write its new path as "
                          f"DATASET_PATH into {file}")
    return same


def check_whose_run(settings: Settings) -> None:
    """Raise SegkitError where results would replace those of another dataset, or of a student trained in this run."""
    check_dataset(settings)
    own = settings.run_dir / "model.safetensors"
    if os.path.isfile(own) and settings.model_path.resolve() not in (own.parent.resolve(), own.resolve()):
        raise SegkitError(f"runs/{settings.run} holds another student's training and results: set RUN to a name of "
                          "their own for the results of this MODEL")


def record_settings(settings: Settings) -> None:
    """Write settings.json, which says whose results the run's folder holds; a training has written its own."""
    with locked(settings.run_dir):
        if not any(os.path.isfile(settings.run_dir / name) for name in ("last.pt", "model.safetensors")):
            write_json(settings.run_dir / "settings.json", settings.as_dict())


def _layer(below: dict[str, Any], above: dict[str, Any], root: Path) -> dict[str, Any]:
    """A stronger layer over a weaker one; another DATASET_PATH does not inherit what belongs to the old one."""
    old, new = (os.path.normpath(root / os.path.expanduser(str(layer.get("DATASET_PATH") or DEMO)))
                for layer in (below, below | above))
    if old != new:
        below = {k: v for k, v in below.items() if k not in OF_A_DATASET}
    return below | above


def save_form(settings: Settings) -> Path:
    """Keep the form's values for the other notebooks, in segkit.json at the project's root."""
    plain = Settings(root=settings.root, dataset_path=settings.dataset_path)
    defaults = replace(plain, experiments=own_conditions(settings)).as_dict()
    defaults["DATASET_PATH"] = Settings(root=settings.root).as_dict()["DATASET_PATH"]
    write_json(settings.root / FORM_FILE, {k: v for k, v in settings.as_dict().items() if v != defaults[k]})
    return settings.root / FORM_FILE
