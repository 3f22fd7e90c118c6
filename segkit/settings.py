"""Every setting, its default and range, and where its value comes from."""

from __future__ import annotations

import csv
import difflib
import os
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Number
from pathlib import Path
from typing import Any

from .errors import SegkitError
from .files import TOKEN, locked, read_json, write_json

DEMO = Path("tests") / "fixture"
PRECISIONS = ("auto", "bf16", "float32")
NOT_IN_A_NAME = re.compile(r'[/\\:*?"<>|\x00-\x1f]')  # what a folder's name must not hold on some system
CONDITIONS = ("PIXEL_SIZE_UM", "MINUTES_PER_FRAME", "DRUG_FRAME", "REFERENCE")  # may differ by experiment


def project_root() -> Path:
    """The folder that holds notebooks/ and runs/: the working folder or the nearest above it, else the working one."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "notebooks" / "01_setup.py").is_file()), here)


def _setting(default: Any, help_: str, low: float | None = None, high: float | None = None, unit: str = "") -> Any:
    return field(default=default, metadata={"help": help_, "low": low, "high": high, "unit": unit})


@dataclass(frozen=True)
class Settings:
    """All settings of a run; lower-case here, upper-case in forms, Make, environment and papermill.

    Values may be of their type or text: epochs="50", exclude="REF/Pos101,REF/Pos102", dataset_path="/data/dataset".
    """

    dataset_path: Path = _setting(DEMO, "folder with the *_raw_data and *_masks folders, or a plain folder of images")
    masks_path: Path | None = _setting(None, "folder with the *_masks folders, if not DATASET_PATH")
    run: str = _setting("", "name of the run's folder under runs/; empty: the dataset folder's name")
    epochs: int = _setting(20, "rounds of training", 1, 100_000)
    batch_size: int = _setting(16, "crops per training step", 1, 4096)
    crop: str = _setting("auto", "crop's height x width, such as 768x448; auto: that on a GPU, 128x128 or half a frame "
                                 "on a CPU", unit="pixels")
    crops_per_epoch: int = _setting(0, "crops in an epoch; 0: as many as cover the training frames, 64 to 4096",
                                    0, 10_000_000)
    learning_rate: float = _setting(2e-3, "size of the largest steps that the training takes", 1e-7, 1.0)
    seed: int = _setting(0, "start of every random choice", 0, 2**31 - 1)
    device: str = _setting("auto", "auto, cpu, cuda or mps")
    precision: str = _setting("auto", "auto, bf16 or float32; auto: bf16 where the hardware has it")
    processes: int = _setting(1, "processes of this machine that train together, such as one for each GPU (needs pip "
                                 "install 'segkit[cluster]')", 1, 1024)
    validation: tuple[str, ...] = _setting(("09", "10", "19", "20"), "endings of the positions to judge by")
    exclude: tuple[str, ...] = _setting((), "pairs not to use: EXPERIMENT/PosXXX/frame, or EXPERIMENT/PosXXX")
    resume: bool = _setting(False, "go on with an interrupted run, or with a finished one for more EPOCHS")
    start_from: str = _setting("", "run or model file whose weights the training starts from")
    model: str = _setting("", "run or model file to segment with; empty: this run's")
    memory_limit: float = _setting(0.0, "memory for decoded frames; 0: half of what is free", 0, 1e6, "GB")
    scale: float = _setting(1.0, "factor that brings other cells to the width of the model's training cells", 0.02, 50)
    flips: bool = _setting(False, "average the answers for four mirror images: slower, a little better")
    openvino: bool = _setting(False, "segment through OpenVINO on a CPU: faster (needs pip install 'segkit[openvino]')")
    cluster: str = _setting("", "where to segment: empty: in this process; local:4: 4 processes of this machine; else "
                                "the address of a Dask scheduler (needs pip install 'segkit[cluster]')")
    onnx: bool = _setting(False, "write the student as model.onnx too (needs pip install 'segkit[onnx]')")
    pixel_size_um: float = _setting(0.0733, "size of a pixel", 1e-4, 1e3, "um")
    minutes_per_frame: float = _setting(2.0, "time between frames", 1e-4, 1e5, "min")
    drug_frame: int = _setting(30, "first frame with drug, counted from a position's first; -1: no drug", -1,
                               10_000_000)
    reference: str = _setting("REF", "experiment without drug that treated ones are compared with")
    experiments: tuple[str, ...] = _setting((), "where experiments differ: EXPERIMENT.SETTING=value, such as "
                                                "RIF10.DRUG_FRAME=6, for the four settings above")
    root: Path = field(default_factory=project_root, metadata={"hidden": True})

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(os.path.abspath(self.root)))
        for spec in public_fields():
            value, low, high = _parse(spec, getattr(self, spec.name)), spec.metadata["low"], spec.metadata["high"]
            object.__setattr__(self, spec.name, value)
            if low is not None and not low <= value <= high:
                raise SegkitError(f"{spec.name.upper()} is {value}: a value from {low:g} to {high:g} was needed")
        for name in ("dataset_path", "masks_path"):
            if getattr(self, name) is not None:
                path = Path(os.path.expanduser(getattr(self, name)))
                object.__setattr__(self, name, path if path.is_absolute() else Path(os.path.normpath(self.root / path)))
        if not self.run:
            demo = self.dataset_path == self.root / DEMO
            named = NOT_IN_A_NAME.sub("-", self.dataset_path.resolve().name).strip()  # such as "2024-01-01 12:30"
            object.__setattr__(self, "run", "demo" if demo else named)
        if self.run in ("", ".", "..") or NOT_IN_A_NAME.search(self.run):
            raise SegkitError(f"RUN is {self.run or 'empty'}: a plain folder name was needed, without / or other marks "
                              "of a path")
        if self.precision not in PRECISIONS:
            raise SegkitError(f"PRECISION is {self.precision}: one of {', '.join(PRECISIONS)} was needed")
        if self.openvino and self.cluster:
            raise SegkitError("OPENVINO and CLUSTER are both set: a cluster computes with PyTorch; set one of them")
        if self.crop != "auto":
            self.crop_size()
        for experiment in {token.partition("=")[0].rpartition(".")[0] for token in self.experiments}:
            self.for_experiment(experiment)

    @property
    def run_dir(self) -> Path:
        return self.root / "runs" / self.run

    @property
    def model_path(self) -> Path:
        """Where the model to segment with lies: MODEL, else this run."""
        return self._path(self.model) if self.model else self.run_dir

    @property
    def start_from_path(self) -> Path | None:
        return self._path(self.start_from) if self.start_from else None

    def _path(self, text: str) -> Path:
        path = Path(os.path.expanduser(text))
        named = self.root / "runs" / path
        return path if path.is_absolute() else named if named.exists() else self.root / path

    def crop_size(self) -> tuple[int, int]:
        """CROP as (height, width), pixels; "768x448" or "128" for a square. Not for "auto"."""
        parts = self.crop.lower().replace(" ", "").split("x")
        if len(parts) > 2 or not all(p.isdecimal() and int(p) >= 16 for p in parts):
            raise SegkitError(f"CROP is {self.crop}: height x width in pixels was needed, each at least 16, "
                              "such as 768x448, or auto")
        return int(parts[0]), int(parts[-1])

    def for_experiment(self, experiment: str) -> Settings:
        """The settings with what EXPERIMENTS says of one experiment. Raises SegkitError for what it must not say."""
        values = {}
        for token in self.experiments:
            place, equals, value = token.partition("=")
            name, _, setting = place.rpartition(".")
            if not (name and equals and setting in CONDITIONS):
                raise SegkitError(f"EXPERIMENTS holds {token}: EXPERIMENT.SETTING=value was needed, such as "
                                  f"RIF10.DRUG_FRAME=6; the settings are {', '.join(CONDITIONS)}")
            if name == experiment:
                values[setting] = value
        return parse_settings(values, replace(self, experiments=()))

    def as_dict(self) -> dict[str, Any]:
        """Upper-case names and plain values, as saved and shown."""
        return {f.name.upper(): _plain(getattr(self, f.name)) for f in public_fields()}


def public_fields() -> list[Any]:
    """The dataclass fields that a user can set, in their order."""
    return [f for f in fields(Settings) if not f.metadata.get("hidden")]


_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else ",".join(value) if isinstance(value, tuple) else value


def parse_settings(values: Mapping[str, Any], base: Settings | None = None) -> Settings:
    """Settings with some values replaced; names upper-case, values as text or typed.

    Raises SegkitError for an unknown name or a value of the wrong kind or out of range.
    """
    known, base = {f.name.upper(): f for f in public_fields()}, base or Settings()
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name.upper(), known, 1)
            raise SegkitError(f"unknown setting {name}: " + (f"did you mean {near[0]}?" if near else
                                                             f"the settings are {', '.join(known)}"))
    given = {name.lower(): value for name, value in values.items()}
    settings = replace(base, **given)
    if settings.dataset_path == base.dataset_path:
        return settings
    # a run is named after its dataset unless it is named beside it, and experiments are of one dataset
    return replace(base, **{"run": "", "experiments": (), **given})


def _parse(spec: Any, value: Any) -> Any:
    """A setting's value in its type, from text or from what Python callers give. Raises SegkitError."""
    name, kind = spec.name.upper(), str(spec.type)
    if kind.startswith("Path") and isinstance(value, Path):
        return value
    parts = value if isinstance(value, (list, tuple)) and kind.startswith("tuple") else [value]
    text = ",".join("" if part is None else str(part) for part in parts).strip()
    try:
        if not all(part is None or isinstance(part, (str, Path, Number)) for part in parts):
            raise ValueError
        if kind == "int":
            number = float(text)
            if number != int(number):
                raise ValueError
            return int(number)
        if kind == "float":
            return float(text)
        if kind == "bool":
            return _TRUTH[text.lower()]
    except (ValueError, KeyError, OverflowError):
        what = {"int": "a whole number", "float": "a number", "bool": "1 or 0"}.get(
            kind, "text, or a list of texts," if kind.startswith("tuple") else "text")
        raise SegkitError(f"{name} is {text or 'empty'}: {what} was needed") from None
    if kind.startswith("tuple"):
        return tuple(part.strip() for part in text.replace("\n", ",").split(",") if part.strip())
    if kind.startswith("Path"):
        if not text and kind == "Path":
            raise SegkitError(f"{name} is empty: give a folder")
        return Path(text) if text else None
    return text


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


def name_and_value(argument: str) -> tuple[str, str]:
    name, equals, value = argument.partition("=")
    if not equals:
        raise SegkitError(f"{argument} is no setting: NAME=value was needed, such as EPOCHS=20")
    return name, value
