"""Where the settings' values come from: the dataset, the saved form, the environment, the caller."""

import csv
import os
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import SegkitError
from .files import TOKEN, read_json, write_json
from .settings import CONDITIONS, DEMO, Settings, parse_settings, project_root, public_fields

FORM_FILE = "segkit.json"
CONDITIONS_FILE = "experiments.csv"  # in a dataset's folder, optional: what it says of itself
OF_A_DATASET = ("RUN", "MASKS_PATH", "VALIDATION", "EXCLUDE", "SCALE", "EXPERIMENTS", *CONDITIONS)


def load_settings(parameters: Mapping[str, Any] | None = None, root: Path | None = None) -> Settings:
    """Gather settings: defaults, the saved form, SEGKIT_* in the environment, then parameters that are not None.

    EXPERIMENTS, where nobody sets it, is what the dataset's own experiments.csv says of settings that nobody sets.

    parameters: upper-case names, as papermill injects them; other names and None are passed over, so that a
    notebook can hand over its globals().
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
    values = _layer(values, {name.removeprefix("SEGKIT_"): value for name, value in os.environ.items()
                             if name.startswith("SEGKIT_") and name not in reserved}, root)
    known = {f.name.upper() for f in public_fields()}
    values = _layer(values, {k: v for k, v in (parameters or {}).items() if k in known and v is not None}, root)
    settings = parse_settings(values, Settings(root=root))
    if "EXPERIMENTS" in values:
        return settings
    return replace(settings, experiments=dataset_conditions(settings.dataset_path, values))


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


def check_whose_run(settings: Settings) -> None:
    """Raise SegkitError where the results of MODEL would replace those of another student, trained in this run."""
    own = settings.run_dir / "model.safetensors"
    if os.path.isfile(own) and settings.model_path.resolve() not in (own.parent.resolve(), own.resolve()):
        raise SegkitError(f"runs/{settings.run} holds another student's training and results: set RUN to a name of "
                          "their own for the results of this MODEL")


def _layer(below: dict[str, Any], above: dict[str, Any], root: Path) -> dict[str, Any]:
    """A stronger layer over a weaker one; another DATASET_PATH does not inherit what belongs to the old one."""
    old, new = (os.path.normpath(root / Path(layer.get("DATASET_PATH") or DEMO).expanduser())
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
