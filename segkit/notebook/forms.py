"""Forms for the settings, for what differs by experiment, and for downloads."""

import asyncio
import html
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ipywidgets as w
import traitlets

from ..data.dataset import Dataset
from ..data.discovery import discover
from ..data.downloads import Plan, arrange, plan_arrangement
from ..data.images import read_metadata
from ..errors import SegkitError
from ..files import write_text
from ..settings import (
    BY_EXPERIMENT,
    CONDITIONS_FILE,
    FORM_FILE,
    PRECISIONS,
    Settings,
    conditions_text,
    load_settings,
    parse_settings,
    public_fields,
    read_conditions,
    save_form,
)
from .report import dataset_verdict, shown_value
from .widgets import quiet_repr, say

FORM_GROUPS = {
    "Data": ("DATASET_PATH", "MASKS_PATH", "RUN", "VALIDATION", "EXCLUDE"),
    "Training": ("EPOCHS", "BATCH_SIZE", "CROP", "CROPS_PER_EPOCH", "LEARNING_RATE", "SEED", "DEVICE", "PRECISION",
                 "RESUME", "START_FROM"),
    "Measuring": ("MODEL", "SCALE", "FLIPS", "CLUSTER", "ONNX", *BY_EXPERIMENT),
}
FOLDERS = ("DATASET_PATH", "MASKS_PATH")
CHOICES = {"DEVICE": ("auto", "cpu", "cuda", "mps"), "PRECISION": PRECISIONS}
LABELS = {"description_width": "150px"}
ENTER_SECONDS = 0.5  # wait for a changed value after Enter


def _button(label: str, tooltip: str, action: Callable[[], None]) -> w.Button:
    button = w.Button(description=label, tooltip=tooltip, layout=w.Layout(width="auto"))
    button.on_click(lambda _: action())
    return button


class SettingsForm(w.VBox):
    """A form for some of the settings. `form.settings` is what it holds now, valid or else a SegkitError.

    The dataset is scanned once for each DATASET_PATH and MASKS_PATH, and again after Enter in one of these fields and
    after Save, since the folder may have been repaired. A scan that failed is repeated at every edit.
    """

    dataset = traitlets.Any()  # Dataset: what the scan found; None where it failed

    def __init__(self, settings: Settings, groups: Mapping[str, Sequence[str]] | None = None, *,
                 verdict: Callable[[Settings, Dataset], str] = dataset_verdict, save: bool = False) -> None:
        self._start_from(settings)
        self._verdict, self._scans, self._filling = verdict, 0, False
        self._scanned: tuple[str, ...] | None = None  # the folders' fields as they were at that scan
        self._fields: dict[str, w.ValueWidget] = {}
        self.message, self.saved = w.HTML(), w.HTML()
        sections = [w.VBox([w.HTML(f"<b>{html.escape(title)}</b>"), *map(self._row, names)])
                    for title, names in (groups or FORM_GROUPS).items()]
        buttons = [_button("Save", "keep these values for the other notebooks", self.save),
                   _button("Reset", "back to the defaults", self.reset)] if save else []
        super().__init__([sections[0], self.message, *sections[1:], w.HBox([*buttons, self.saved])])
        self._check()

    __repr__ = quiet_repr

    def _start_from(self, settings: Settings) -> None:
        """Take over the values that the fields show before any edit."""
        self._base = settings
        self._table: str | None = None  # CONDITIONS as edited in the table of experiments
        self._followed = ""  # RUN as it follows from DATASET_PATH
        self._unsaved: dict[str, Any] = {}
        with suppress(SegkitError):  # a table that cannot be read, where the saved form's own is used
            if settings.conditions == Settings(root=settings.root, dataset_path=settings.dataset_path).conditions:
                self._unsaved = {"CONDITIONS": None}  # read the file each time

    def _row(self, name: str) -> w.Widget:
        """The widget of a setting, by its kind, beside its help."""
        spec, value = next(f for f in public_fields() if f.name.upper() == name), shown_value(self._base, name)
        limits = {"min": spec.metadata["low"], "max": spec.metadata["high"]}
        kind, options = {"bool": (w.Checkbox, {}), "int": (w.BoundedIntText, limits),
                         "float": (w.BoundedFloatText, {**limits, "step": None}),
                         }.get(spec.type, (w.Text, {"continuous_update": False}))
        if name in CHOICES:
            kind, options = w.Dropdown, {"options": list(dict.fromkeys([*CHOICES[name], value]))}
        field = kind(value=value, description=name, tooltip=spec.metadata["help"], style=LABELS,
                     layout=w.Layout(width="420px", flex="0 0 auto"), **options)
        # a text field tells of Enter also where its value stays the same
        field.observe(lambda change: self._check(), "value")
        if name in FOLDERS:
            field.on_msg(lambda widget, content, buffers: self._entered(content))
        self._fields[name] = field
        note = spec.metadata["help"] + (f" ({spec.metadata['unit']})" if spec.metadata["unit"] else "")
        return w.HBox([field, w.HTML(f'<span style="opacity:.7;font-size:90%">{html.escape(note)}</span>')])

    def field(self, name: str) -> w.ValueWidget:
        """The widget of one setting, by its upper-case name."""
        return self._fields[name]

    def set_conditions(self, text: str) -> None:
        """Take over an edited table of experiments."""
        self._table = text
        self._check()

    def _edited(self) -> dict[str, Any]:
        edited = {name: field.value for name, field in self._fields.items()
                  if field.value != shown_value(self._base, name)}
        if edited.get("RUN") == self._followed:
            del edited["RUN"]
        return edited

    @property
    def settings(self) -> Settings:
        settings = parse_settings({**self._unsaved, **self._edited()}, self._base)
        return settings if self._table is None else replace(settings, conditions=self._table)

    def _check(self, again: bool = False) -> None:
        """Show what the form's values lead to; again: scan the dataset again."""
        if self._filling:
            return
        self._filling = True  # what is filled in below needs no check of its own
        if not again:
            self.saved.value = ""
        # a table of experiments belongs to one dataset
        folders = tuple(self._fields[name].value for name in FOLDERS if name in self._fields)
        if folders != self._scanned:
            self._table = None
        try:
            # RUN follows DATASET_PATH until it is edited itself
            settings = self.settings
            if "RUN" in self._fields and "RUN" not in self._edited():
                self._followed = self._fields["RUN"].value = settings.run
            # a scan may take seconds, so it is done only where its result can be another
            if again or folders != self._scanned:
                self._scanned, self._scans = None, self._scans + 1
                self.dataset, self._scanned = discover(settings.dataset_path, settings.masks_path), folders
            self.message.value = say(self._verdict(settings, self.dataset), True)
        except SegkitError as error:
            self.message.value = say(str(error), False)
        finally:
            self._filling = False
        if folders != self._scanned:
            self.dataset = None

    def _entered(self, content: dict[str, Any]) -> None:
        """Scan again after Enter, unless the field's value has changed, which the browser tells just afterwards."""
        if content.get("event") != "submit":
            return
        scans = self._scans

        def scan_again() -> None:
            if self._scans == scans:
                self._check(again=True)
        try:
            asyncio.get_running_loop().call_later(ENTER_SECONDS, scan_again)
        except RuntimeError:  # no kernel, no loop
            scan_again()

    def save(self) -> None:
        """Keep the values in segkit.json, and scan the dataset again."""
        try:
            settings = self.settings
            path = save_form(settings)
            self.saved.value = say(f"{shown_value(settings, 'DATASET_PATH')} and the rest are saved in {path.name}; "
                                   "the other notebooks use them from their next run", True)
            self._check(again=True)
        except SegkitError as error:
            self.saved.value = say(f"not saved: {error}", False)

    def reset(self) -> None:
        """Delete segkit.json, and show the defaults."""
        (self._base.root / FORM_FILE).unlink(missing_ok=True)
        self._start_from(load_settings(root=self._base.root))
        self._filling = True
        for name, field in self._fields.items():
            field.value = shown_value(self._base, name)
        self._filling = False
        self._check()


class ExperimentsForm(w.VBox):
    """A table of what may differ by experiment, beside a SettingsForm that saves it with its values.

    An empty field means: as in the form. What the TIFFs' tags contain is shown as a hint. A button writes the table
    into the dataset's folder.
    """

    def __init__(self, form: SettingsForm) -> None:
        self._form = form
        self._rows: dict[str, dict[str, str]] = {}  # the table as it was read
        self.cells: dict[tuple[str, str], w.Text] = {}  # by experiment and lower-case setting
        self._message = w.HTML()
        self._button = _button(f"Write {CONDITIONS_FILE}", "keep this table in the dataset's folder", self.write)
        super().__init__([])
        form.observe(lambda change: self._list(), "dataset")
        self._list()

    __repr__ = quiet_repr

    def _list(self) -> None:
        """A row for each experiment of the dataset that the form names now."""
        self.cells, self._message.value = {}, ""
        if self._form.dataset is None:
            self.children = [w.HTML("the table appears when DATASET_PATH above is right")]
            return
        settings, names = self._form.settings, [name.lower() for name in BY_EXPERIMENT]
        table = self._rows = read_conditions(settings.conditions or "")
        frames = {frame.experiment: frame for frame in reversed(self._form.dataset.frames)}
        items = [w.HTML(f"<b>{name}</b>") for name in ("", *BY_EXPERIMENT, "in the file")]
        for experiment, frame in sorted(frames.items()):
            for name in names:
                cell = w.Text(table.get(experiment, {}).get(name, ""), placeholder=str(getattr(settings, name)),
                              layout=w.Layout(width="auto"), continuous_update=False)
                cell.observe(lambda change: self._edit(), "value")
                self.cells[experiment, name] = cell
            tags = ", ".join(f"{name} {value:g}" for name, value in read_metadata(frame.image).items())
            items += [w.Label(experiment), *(self.cells[experiment, name] for name in names), w.Label(tags)]
        grid = w.GridBox(items, layout=w.Layout(grid_template_columns=f"repeat({len(names) + 2}, 170px)"))
        self.children = [grid, w.HBox([self._button, self._message])]

    def _edit(self) -> None:
        shown = {experiment for experiment, _ in self.cells}  # others, without a usable image now, keep their rows
        table = {name: dict(row) for name, row in self._rows.items() if name not in shown}
        for (experiment, name), cell in self.cells.items():
            table.setdefault(experiment, {}).update({name: cell.value.strip()} if cell.value.strip() else {})
        self._form.set_conditions(conditions_text(table))

    def write(self) -> None:
        """Write experiments.csv into the dataset's folder."""
        try:
            settings = self._form.settings
            path = settings.dataset_path / CONDITIONS_FILE
            write_text(path, settings.conditions or "experiment\n")
            self._message.value = say(f"written: {path}", True)
        except SegkitError as error:
            self._message.value = say(f"not written: {error}", False)


class ArrangeForm(w.VBox):
    """Downloads in, the users' layout out: shows what will go where before anything is done."""

    def __init__(self, settings: Settings) -> None:
        common = {"style": LABELS, "layout": w.Layout(width="560px"), "continuous_update": False}
        self.source = w.Text(description="downloads", placeholder="folder of zip archives, or one archive", **common)
        self.target = w.Text(value=str(settings.root / "dataset"), description="arranged dataset", **common)
        self.button = _button("Arrange", "copy and extract; nothing is moved", lambda: self._run(arrange))
        self.message = w.HTML()
        self.button.disabled = True
        for field in (self.source, self.target):
            field.observe(lambda change: self._run(plan_arrangement), "value")
        super().__init__([self.source, self.target, self.button, self.message])

    __repr__ = quiet_repr

    def _run(self, action: Callable[[str, str], Plan]) -> None:
        """Plan the arrangement, or carry it out, and show what went or will go where."""
        self.button.disabled, self.message.value = True, "reading ..."
        try:
            for field in (self.source, self.target):
                if not field.value.strip():
                    raise SegkitError(f"no folder is given at {field.description}")
            source, target = (field.value.strip().strip("'\"") for field in (self.source, self.target))
            plan = action(source, target)
            done = "to be copied or extracted" if action is plan_arrangement else (
                f"arranged ({plan.there_already} were there already); set DATASET_PATH below to {target}")
            lost = f", {len(plan.problems)} problem(s): see below" if plan.problems else ""
            self.message.value = say(f"{len(plan.copies)} files {done}{lost}", not lost) + plan._repr_html_()
            self.button.disabled = False
        except (SegkitError, OSError) as error:
            self.message.value = say(str(error), False)
        except KeyboardInterrupt:
            self.message.value = say("interrupted: press Arrange again to continue", False)
            self.button.disabled = False
