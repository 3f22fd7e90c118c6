"""Every setting, its default and range, and where its value comes from."""

from __future__ import annotations

import difflib
import io
import os
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Number
from pathlib import Path
from typing import Any

import pandas as pd

from .errors import SegkitError, readable
from .files import HELD, locked, read_json, write_json

DEMO = Path("tests") / "fixture"
PRECISIONS = ("auto", "bf16", "float32")
FORBIDDEN_IN_NAMES = re.compile(r'[/\\:*?"<>|\x00-\x1f]')  # characters that some system forbids in a folder's name
BY_EXPERIMENT = ("PIXEL_SIZE_UM", "MINUTES_PER_FRAME", "DRUG_FRAME", "REFERENCE")  # settings that may differ
OF_A_DATASET = ("RUN", "MASKS_PATH", "VALIDATION", "EXCLUDE", "SCALE", "CONDITIONS", "EXPERIMENTS", *BY_EXPERIMENT)
STARTER = Path(__file__).with_name("starter.safetensors")  # what MODEL=starter and START_FROM=starter name
FORM_FILE = "segkit.json"  # at the project's root: what the form of 01_setup saved
CONDITIONS_FILE = "experiments.csv"  # in a dataset's folder, optional
RESULT_FILES = ("last.pt", "model.safetensors", "report.json", "masks", "cells.csv")  # that make a run a dataset's own
REMOVED = {  # and what to use instead
    "EXPERIMENTS": f"use {CONDITIONS_FILE} in the dataset's folder, or the table of 01_setup (and delete {FORM_FILE})",
    "PROCESSES": "start torchrun --nproc-per-node=4 -m segkit train NAME=value ... for 4 processes",
    "MEMORY_LIMIT": "training frames are read from a file in runs/.cache, which needs no limit",
    "OPENVINO": "ONNX=1 writes model.onnx, which OpenVINO and ONNX Runtime read"}


def project_root() -> Path:
    """The folder that holds notebooks/ and runs/: the working folder or the nearest above it, else the working one."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "notebooks" / "01_setup.py").is_file()), here)


def _setting(default: Any, help_: str, low: float | None = None, high: float | None = None, unit: str = "") -> Any:
    return field(default=default, metadata={"help": help_, "low": low, "high": high, "unit": unit})


@dataclass(frozen=True)
class Settings:
    """All settings of a run: frozen, lower-case here, upper-case in forms, Make, environment and papermill.

    Parameters
    ----------
    dataset_path, run, epochs, ... : the fields below, each with its default; their help, range and unit stand in
        the field's metadata. Values may be of their type or text: ``epochs="50"``,
        ``exclude="REF/Pos101,REF/Pos102"``, ``dataset_path="/data/dataset"``.
    conditions : str, optional
        What differs between experiments, as the text of a table with commas: a column ``experiment`` and any of
        ``pixel_size_um``, ``minutes_per_frame``, ``drug_frame``, ``reference``. None reads experiments.csv in the
        dataset's folder, if it is there.
    root : Path
        Folder that relative paths start from and that holds ``runs/``; by default the project's folder.

    Raises
    ------
    SegkitError
        For a value of the wrong kind or out of range, or a table of experiments that cannot be read.
    """

    dataset_path: Path = _setting(DEMO, "folder with the *_raw_data and *_masks folders, or a plain folder of images")
    masks_path: Path | None = _setting(None, "folder with the *_masks folders, if not DATASET_PATH")
    run: str = _setting("", "name of the run's folder under runs/; empty: the dataset folder's name")
    epochs: int = _setting(20, "number of training epochs", 1, 100_000)
    batch_size: int = _setting(16, "crops per training step", 1, 4096)
    crop: str = _setting("auto", "height x width of a crop; auto: 768x448, on a CPU 128x128 or half a frame",
                         unit="pixels")
    crops_per_epoch: int = _setting(0, "crops in an epoch; 0: cover the training frames, 64 to 4096", 0, 10_000_000)
    learning_rate: float = _setting(2e-3, "peak learning rate of the schedule", 1e-7, 1.0)
    seed: int = _setting(0, "random seed", 0, 2**31 - 1)
    device: str = _setting("auto", "auto, cpu, cuda or mps")
    precision: str = _setting("auto", "auto, bf16 or float32; auto: bf16 where the hardware has it")
    validation: tuple[str, ...] = _setting(("09", "10", "19", "20"), "suffixes of the validation positions")
    exclude: tuple[str, ...] = _setting((), "pairs to leave out: EXPERIMENT/PosXXX/frame, or EXPERIMENT/PosXXX")
    resume: bool = _setting(False, "resume an interrupted run, or a finished one with more EPOCHS")
    start_from: str = _setting("auto", "starter, run or model file that the training starts from; auto: the starter, "
                                       "unless it knows validation images; empty: none")
    model: str = _setting("", "starter, run or model file to segment with; empty: this run's, else the starter")
    scale: float | str = _setting("auto", "zoom to the width of the model's training cells; auto: found", 0.02, 50)
    flips: bool = _setting(False, "average the predictions for four mirror images: slower, a little better")
    cluster: str = _setting("", "where to segment: empty: this process; local:4: 4 processes of this machine; else the "
                                "address of a Dask scheduler (needs segkit[cluster])")
    onnx: bool = _setting(False, "write the student as model.onnx too (needs segkit[onnx])")
    pixel_size_um: float = _setting(0.0733, "size of a pixel", 1e-4, 1e3, "um")
    minutes_per_frame: float = _setting(2.0, "time between frames", 1e-4, 1e5, "min")
    drug_frame: int = _setting(30, "first frame with drug, from the position's first; -1: no drug", -1, 10_000_000)
    reference: str = _setting("REF", "experiment without drug that treated ones are compared with")
    conditions: str | None = _setting(None, "what differs by experiment; not set: experiments.csv in DATASET_PATH")
    root: Path = field(default_factory=project_root, metadata={"hidden": True})

    def __post_init__(self) -> None:
        # types and ranges first, so that all checks below compare values of the right kind
        mine = vars(self)  # an instance is frozen only once it is made
        mine.update({spec.name: _parse(spec, getattr(self, spec.name)) for spec in public_fields()})
        # absolute paths, so that a notebook in notebooks/ and Make at the root mean the same folder
        mine["root"] = Path(os.path.abspath(self.root))
        mine["dataset_path"] = self._absolute(self.dataset_path)
        mine["masks_path"] = self.masks_path and self._absolute(self.masks_path)
        # the run's name follows from the dataset's, such as "2024-01-01 12:30"
        if not self.run:
            named = FORBIDDEN_IN_NAMES.sub("-", readable(self.dataset_path.resolve().name)).strip()
            mine["run"] = "demo" if self.dataset_path == self.root / DEMO else named
        if self.run in ("", ".", "..") or FORBIDDEN_IN_NAMES.search(self.run):
            raise SegkitError(f"RUN is {self.run or 'empty'}: a folder name without / was needed")
        # what one field alone does not show
        if self.precision not in PRECISIONS:
            raise SegkitError(f"PRECISION is {self.precision}: one of {', '.join(PRECISIONS)} was needed")
        if self.crop != "auto":
            self.crop_size()
        self._load_conditions()

    def _absolute(self, path: str | Path) -> Path:
        path = Path(os.path.expanduser(path))
        return path if path.is_absolute() else Path(os.path.normpath(self.root / path))

    def _load_conditions(self) -> None:
        """Read the table of experiments, from its file where it is not given, and check every value in it."""
        path = self.dataset_path / CONDITIONS_FILE
        source = path if self.conditions is None and os.path.isfile(path) else self.conditions or ""
        table: Mapping[str, Mapping[str, Any]] = read_conditions(source)
        vars(self)["conditions"] = conditions_text(table)
        for experiment, row in table.items():
            try:
                replace(self, conditions="", **row)
            except SegkitError as error:
                place = source if isinstance(source, Path) else "CONDITIONS"
                raise SegkitError(f"{place}, row {experiment}: {error}") from None

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self.root / "runs" / self.run

    @property
    def model_path(self) -> Path:
        """Where the model to segment with lies: MODEL, else this run; where that holds none, the starter."""
        own = self.run_dir if os.path.isfile(self.run_dir / "model.safetensors") else STARTER
        return self.find_model(self.model) if self.model else own

    def find_model(self, text: str) -> Path:
        """Where the model lies that MODEL or START_FROM names: the starter, a run of that name, else a path."""
        run = self.root / "runs" / text
        return STARTER if text == "starter" else run if run.exists() else self._absolute(text)

    def crop_size(self) -> tuple[int, int]:
        """CROP as (height, width), pixels; "768x448" or "128" for a square. Not for "auto"."""
        parts = self.crop.lower().replace(" ", "").split("x")
        if len(parts) > 2 or not all(p.isdecimal() and int(p) >= 16 for p in parts):
            raise SegkitError(f"CROP is {self.crop}: auto or height x width, each at least 16 (768x448), was needed")
        return int(parts[0]), int(parts[-1])

    def for_experiment(self, experiment: str) -> Settings:
        """The settings of one experiment: its row of the table before the values for all."""
        row: dict[str, Any] = dict(read_conditions(self.conditions or "").get(experiment, {}))
        return replace(self, conditions="", **row)

    def as_dict(self) -> dict[str, Any]:
        """Upper-case names and plain values, as saved and shown."""
        return {f.name.upper(): _plain(getattr(self, f.name)) for f in public_fields()}


def public_fields() -> list[Any]:
    """The dataclass fields that a user can set, in their order."""
    return [f for f in fields(Settings) if not f.metadata.get("hidden")]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else ",".join(value) if isinstance(value, tuple) else value


def parse_settings(values: Mapping[str, Any], base: Settings | None = None) -> Settings:
    """Settings with some values replaced; names upper-case, values as text or typed.

    With another DATASET_PATH, what belongs to the old one has its default.

    Raises SegkitError for an unknown name or a value of the wrong kind or out of range.
    """
    known, base = [f.name.upper() for f in public_fields()], base or Settings()
    for name in values:
        if name in REMOVED:
            raise SegkitError(f"{name} is no longer a setting: {REMOVED[name]}")
        if name not in known:
            near = difflib.get_close_matches(name.upper(), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(known)}"
            raise SegkitError(f"unknown setting {name or '(without a name)'}: {hint}")
    merged = _layer(base.as_dict(), dict(values), base.root)
    return Settings(root=base.root, **{name.lower(): value for name, value in merged.items()})


def _whole_number(text: str) -> int:
    if float(text) != int(float(text)):
        raise ValueError
    return int(float(text))


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.replace("\n", ",").split(",") if part.strip())


_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}
_KINDS: dict[str, tuple[Callable[[str], Any], str]] = {  # by a field's type: how text is read, and what was needed
    "int": (_whole_number, "a whole number"), "float": (float, "a number"),
    "bool": (lambda text: _TRUTH[text.lower()], "1 or 0"), "tuple[str, ...]": (_split, "text, or a list of texts,"),
    "str": (str, "text"), "str | None": (str, "text"),
    "float | str": (lambda text: text if text == "auto" else float(text), "auto or a number"),
    "Path": (Path, "text"), "Path | None": (lambda text: Path(text) if text else None, "text"),
}


def _parse(spec: Any, value: Any) -> Any:
    """A setting's value in its type, from text or from what Python callers give. Raises SegkitError."""
    name, kind = spec.name.upper(), str(spec.type)
    if (isinstance(value, Path) and kind.startswith("Path")) or (value is None and kind.endswith("None")):
        return value
    convert, needed = _KINDS[kind]
    parts = value if isinstance(value, (list, tuple)) and kind.startswith("tuple") else [value]
    text = ",".join("" if part is None else str(part) for part in parts).strip()
    if kind == "Path" and not text:
        raise SegkitError(f"{name} is empty: give a folder")
    try:
        if not all(part is None or isinstance(part, (str, Path, Number)) for part in parts):
            raise ValueError
        parsed = convert(text)
    except (ValueError, KeyError, OverflowError):
        raise SegkitError(f"{name} is {text or 'empty'}: {needed} was needed") from None
    low, high = spec.metadata["low"], spec.metadata["high"]
    if low is not None and parsed != "auto" and not low <= parsed <= high:
        raise SegkitError(f"{name} is {parsed}: a value from {low:g} to {high:g} was needed")
    return parsed


def read_conditions(source: Path | str) -> dict[str, dict[str, str]]:
    """The rows of a table of experiments (a file or its text) by experiment and setting, without empty cells.

    Commas, semicolons or tabs separate the cells; decimals have a point or, between the latter two, a comma, as
    spreadsheets write them.
    Raises SegkitError, naming the file and row, for an unknown column or a row without a name of its own.
    """
    if not source:
        return {}
    place = source if isinstance(source, Path) else "CONDITIONS"
    # all as text: 001 and NA are names of experiments, too, and the settings read their own values
    try:
        table, separator = _cells(_decoded(source.read_bytes()) if isinstance(source, Path) else source)
    except (OSError, ValueError) as error:
        raise SegkitError(f"{place} cannot be read ({str(error).strip()}): a table with commas was needed") from None
    known = [name.lower() for name in BY_EXPERIMENT]
    if "experiment" not in table or set(table) - {"experiment", *known}:
        raise SegkitError(f"{place} has columns {', '.join(table)}: experiment and any of {', '.join(known)}, "
                          "each once, were needed")
    table = table.set_index("experiment")
    wrong = table.index.duplicated() | (table.index == "")
    if wrong.any():
        raise SegkitError(f"{place}, row {wrong.argmax() + 2}: a name in every row was needed, each once")
    # beside separators that are commas, and in whole numbers, a comma parts thousands, if anything
    numbers = table.columns.difference(["reference", "drug_frame"])
    if separator != ",":
        table[numbers] = table[numbers].map(lambda value: value.replace(",", "."))
    return {experiment: {name: value for name, value in row.items() if value}
            for experiment, row in table.to_dict("index").items()}


def _cells(text: str) -> tuple[pd.DataFrame, str]:
    """The cells of a table as text, without empty rows and columns, and what separates them.

    A spreadsheet may write `sep=;` first, and leave empty cells at the end of all or some rows.
    Raises ValueError where the text is empty, or a row has more cells than there are columns.
    """
    text = re.sub(r"\Asep=.*\n", "", unicodedata.normalize("NFC", text.strip()))
    lines = [line.rstrip(",;\t ") for line in text.splitlines()]
    separator = max(",;\t", key=text.lstrip().partition("\n")[0].count)
    table = pd.read_csv(io.StringIO("\n".join(lines)), sep=separator, dtype=str, keep_default_na=False)
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes what is beyond the columns' names for an index
        raise ValueError("the first line, which names the columns, has fewer cells than others: longer rows")
    table = table.fillna("").map(str.strip).rename(columns=lambda name: name.strip().lower())
    named = ~table.columns.str.startswith("unnamed: ")
    return table.loc[table.ne("").any(axis=1), named | table.ne("").any()], separator


def _decoded(content: bytes) -> str:
    """The text of a file that a spreadsheet wrote: UTF-16, UTF-8, or what Windows used before."""
    if b"\0" in content[:20]:  # of every plain letter in UTF-16 one byte is 0
        return content.decode("utf-16-be" if content.startswith(b"\0") else "utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def conditions_text(table: Mapping[str, Mapping[str, str]]) -> str:
    """The text of a table of experiments, without rows and columns that are empty; see `read_conditions`."""
    rows = pd.DataFrame.from_dict({name: row for name, row in table.items() if row}, orient="index")
    columns = [name.lower() for name in BY_EXPERIMENT if name.lower() in rows]
    return rows[columns].to_csv(index_label="experiment") if columns else ""


def load_settings(parameters: Mapping[str, Any] | None = None, root: Path | None = None,
                  caller: Path | None = None) -> Settings:
    """Gather settings: defaults, the saved form, SEGKIT_* in the environment, then parameters that are not None.

    Parameters
    ----------
    parameters : mapping, optional
        Upper-case names, as papermill injects them; other names and None are passed over, so that a notebook can
        hand over its globals().
    root : Path, optional
        The project's folder, with segkit.json and runs/; found from the working folder if None.
    caller : Path, optional
        The folder that relative paths in the environment and the parameters start from; None: root.

    Returns
    -------
    Settings

    Raises
    ------
    SegkitError
        For an unknown name, a wrong value, a damaged saved form, or a table of experiments that cannot be read.
    """
    root = root or project_root()
    # the saved form is the weakest source: it holds for every notebook that nothing else is said to
    values: dict[str, Any] = {}
    form = root / FORM_FILE
    if form.is_file() and not os.environ.get("SEGKIT_IGNORE_FORM"):
        values = read_json(form, "the saved form")
        if not isinstance(values, dict):
            raise SegkitError(f"the saved form {form} holds no settings: delete it, or save the form again")
        # a form of version 1.1: only its table of experiments was of any effect on results
        values = {name: value for name, value in values.items()
                  if name not in REMOVED or (name == "EXPERIMENTS" and value)}
    # the environment; reserved names are no settings: for tests, the folder that make was called in, a run's lock
    reserved = {"SEGKIT_IGNORE_FORM", "SEGKIT_CALLER", HELD}
    environment = {name.removeprefix("SEGKIT_"): value for name, value in os.environ.items()
                   if name.startswith("SEGKIT_") and name not in reserved}
    # parameters are the strongest: someone gave them for this very run
    known = {f.name.upper() for f in public_fields()} | REMOVED.keys()
    given = {k: v for k, v in (parameters or {}).items() if k in known and v is not None}
    for layer in (environment, given):
        values = _layer(values, _resolve_from(caller, layer) if caller else layer, root)
    return parse_settings(values, Settings(root=root))


def _resolve_from(caller: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The values with relative paths made absolute; the starter, and a run's name where no such path is, are left."""
    paths = {name: os.path.normpath(caller / os.path.expanduser(values[name])) for name in
             ("DATASET_PATH", "MASKS_PATH", "MODEL", "START_FROM") if values.get(name)}
    return values | {name: path for name, path in paths.items() if name in ("DATASET_PATH", "MASKS_PATH")
                     or (values[name] not in ("auto", "starter") and os.path.exists(path))}


def _layer(below: dict[str, Any], above: dict[str, Any], root: Path) -> dict[str, Any]:
    """A stronger layer over a weaker one; another DATASET_PATH does not inherit what belongs to the old one."""
    old, new = (os.path.normpath(root / os.path.expanduser(str(layer.get("DATASET_PATH") or DEMO)))
                for layer in (below, below | above))
    if old != new:
        below = {name: value for name, value in below.items() if name not in OF_A_DATASET}
    return below | above


def save_form(settings: Settings) -> Path:
    """Keep the form's values for the other notebooks, in segkit.json at the project's root; returns its path."""
    path, root = settings.root / FORM_FILE, settings.root
    defaults = Settings(root=root, dataset_path=settings.dataset_path).as_dict() | {"DATASET_PATH": str(root / DEMO)}
    write_json(path, {name: value for name, value in settings.as_dict().items() if value != defaults[name]})
    return path


def check_dataset(settings: Settings) -> bool:
    """Whether the run's folder is this dataset's, as its settings.json says; another checkout's demo is the same demo.

    Raises SegkitError where it holds the training or the results of another dataset.
    """
    file, now = settings.run_dir / "settings.json", settings.dataset_path
    recorded = read_json(file, "the run's file").get("DATASET_PATH") if os.path.isfile(file) else None
    if not recorded or (now == settings.root / DEMO and Path(recorded).parts[-len(DEMO.parts):] == DEMO.parts):
        return bool(recorded)
    same = Path(recorded).resolve() == now.resolve()
    if not same and any(os.path.exists(settings.run_dir / name) for name in RESULT_FILES):
        raise SegkitError(f"runs/{settings.run} holds the results of another dataset, {recorded}: set RUN to another "
                          f"name; or, where it was only moved, write its new path as DATASET_PATH into {file}")
    return same


def check_whose_run(settings: Settings) -> None:
    """Raise SegkitError where results would replace those of another dataset, or of a student trained in this run."""
    check_dataset(settings)
    own = settings.run_dir / "model.safetensors"
    if os.path.isfile(own) and settings.model_path.resolve() not in (own.parent.resolve(), own.resolve()):
        raise SegkitError(f"runs/{settings.run} holds another student's training: set another RUN, or MODEL to {own}")


def record_settings(settings: Settings) -> None:
    """Write settings.json, which says whose results the run's folder holds; a training has written its own."""
    with locked(settings.run_dir):
        if not any(os.path.isfile(settings.run_dir / name) for name in ("last.pt", "model.safetensors")):
            write_json(settings.run_dir / "settings.json", settings.as_dict())
