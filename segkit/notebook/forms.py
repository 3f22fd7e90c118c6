"""Forms for the settings, for what differs by experiment, and for downloads."""

import html
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as w
import traitlets

from .. import settings as known
from ..data.dataset import Dataset
from ..data.discovery import discover
from ..data.downloads import Plan, arrange, plan_arrangement
from ..data.tiff import read_metadata
from ..errors import SegkitError
from ..files import write_text
from ..settings import BY_EXPERIMENT, CONDITIONS_FILE, Settings
from .report import dataset_verdict, shown_value
from .widgets import QuietBox, say

FORM_GROUPS = {
    "Data": ("DATASET_PATH", "MASKS_PATH", "RUN", "VALIDATION", "EXCLUDE"),
    "Training": ("EPOCHS", "BATCH_SIZE", "CROP", "CROPS_PER_EPOCH", "LEARNING_RATE", "SEED", "DEVICE", "PRECISION",
                 "RESUME", "START_FROM"),
    "Measuring": ("MODEL", "SCALE", "FLIPS", "CLUSTER", "ONNX", *BY_EXPERIMENT),
}
KINDS = {"bool": w.Checkbox, "int": w.IntText, "float": w.FloatText}  # of a field, by the setting's type; else text
CHOICES = {"DEVICE": ("auto", "cpu", "cuda", "mps"), "PRECISION": known.PRECISIONS}
LABELS = {"description_width": "150px"}


def button(label: str, tooltip: str, action: Callable[[], None]) -> w.Button:
    button = w.Button(description=label, tooltip=tooltip, layout=w.Layout(width="auto", align_self="flex-start"))
    button.on_click(lambda _: action())
    return button


class SettingsForm(QuietBox):
    """A form for some of the settings. `form.settings` is what it holds now, valid or else a SegkitError.

    The dataset is scanned once for each DATASET_PATH and MASKS_PATH, and again after Save, since the folder may have
    been repaired. A scan that failed is repeated at every edit.
    """

    dataset = traitlets.Any()  # Dataset: what the scan found; None before it, and where it failed

    def __init__(self, settings: Settings, groups: Mapping[str, Sequence[str]] | None = None, *,
                 verdict: Callable[[Settings, Dataset], str] = dataset_verdict, save: bool = False) -> None:
        super().__init__()
        self._groups, self._verdict = groups or FORM_GROUPS, verdict
        self.message, self.saved = w.HTML(), w.HTML()
        buttons = [button("Save", "keep these values for the other notebooks", self.save),
                   button("Reset", "back to the defaults", self.reset)] if save else []
        self._buttons = w.HBox([*buttons, self.saved])
        self._show(settings)

    def _show(self, settings: Settings) -> None:
        """New fields with the values of these settings."""
        self._base = settings
        self.fields: dict[str, w.ValueWidget] = {}  # by upper-case name
        sections = [w.VBox([w.HTML(f"<b>{html.escape(title)}</b>"), *map(self._row, names)])
                    for title, names in self._groups.items()]
        self.children = [sections[0], self.message, *sections[1:], self._buttons]
        # tables of experiments by dataset; without one: the file in the dataset's folder, read each time
        self._tables: dict[Path, str | None] = {settings.dataset_path: settings.conditions}
        with suppress(SegkitError):  # where the file cannot be read, the table is the saved form's own
            if settings.conditions == Settings(root=settings.root, dataset_path=settings.dataset_path).conditions:
                self._tables.clear()
        self.dataset = None
        self._check()

    def _row(self, name: str) -> w.Widget:
        """The widget of a setting, by its kind, beside its help."""
        spec, value = next(f for f in known.public_fields() if f.name.upper() == name), shown_value(self._base, name)
        # the run of the dataset's own name is a hint in an empty field, see _check
        if name == "RUN" and value == known.parse_settings({"RUN": ""}, self._base).run:
            value = ""
        kind = KINDS.get(spec.type, partial(w.Text, continuous_update=False))
        if name in CHOICES:
            kind = partial(w.Dropdown, options=sorted({*CHOICES[name], value}))
        value = value if spec.type in KINDS else str(value)
        field = self.fields[name] = kind(value=value, description=name, tooltip=spec.metadata["help"], style=LABELS,
                                          layout=w.Layout(width="420px", flex="0 0 auto"))
        field.observe(lambda change: self._edited(name), "value")
        note = spec.metadata["help"] + (f" ({spec.metadata['unit']})" if spec.metadata["unit"] else "")
        return w.HBox([field, w.HTML(f'<span style="opacity:.7;font-size:90%">{html.escape(note)}</span>')])

    def set_conditions(self, text: str) -> None:
        """Take over an edited table of experiments."""
        self._tables[self.dataset.path] = text
        self._check()

    @property
    def settings(self) -> Settings:
        values = {name: field.value for name, field in self.fields.items()}
        # first without a table, which depends on the dataset that the values name
        settings = known.parse_settings({**values, "CONDITIONS": ""}, self._base)
        return replace(settings, conditions=self._tables.get(settings.dataset_path))

    def _edited(self, name: str) -> None:
        """Check an edited form; another folder is scanned, and another dataset does not take over the run's name."""
        if name in ("DATASET_PATH", "MASKS_PATH"):
            self.dataset = None
        if name == "DATASET_PATH" and "RUN" in self.fields and self.fields["RUN"].value == self._base.run:
            self.fields["RUN"].value = ""  # checks the form, too
        else:
            self._check()

    def _check(self) -> None:
        """Show what the form's values lead to; the dataset is scanned where it is not known."""
        self.saved.value = ""
        try:
            settings = self.settings
            if "RUN" in self.fields:
                self.fields["RUN"].placeholder = settings.run
            self.dataset = self.dataset or discover(settings.dataset_path, settings.masks_path)
            self.message.value = say(self._verdict(settings, self.dataset), True)
        except SegkitError as error:
            self.message.value = say(str(error), False)

    def save(self) -> None:
        """Keep the values in segkit.json, and scan the dataset again."""
        try:
            settings = self.settings
            path = known.save_form(settings)
            self.dataset = None
            self._check()
            self.saved.value = say(f"{shown_value(settings, 'DATASET_PATH')} and the rest are saved in {path.name}; "
                                   "the other notebooks use them from their next run", True)
        except SegkitError as error:
            self.saved.value = say(f"not saved: {error}", False)

    def reset(self) -> None:
        """Delete segkit.json, and show the defaults."""
        (self._base.root / known.FORM_FILE).unlink(missing_ok=True)
        self._show(known.load_settings(root=self._base.root))


class ExperimentsForm(QuietBox):
    """A table of what may differ by experiment, beside a SettingsForm that saves it with its values.

    An empty field means: as in the form. What the TIFFs' tags contain is shown as a hint. A button writes the table
    into the dataset's folder.
    """

    def __init__(self, form: SettingsForm) -> None:
        self._form, self._message = form, w.HTML()
        self._button = button(f"Write {CONDITIONS_FILE}", "keep this table in the dataset's folder", self.write)
        super().__init__()
        form.observe(lambda change: self._list(), "dataset")
        self._list()

    def _list(self) -> None:
        """A row for each experiment of the dataset that the form names now."""
        self.cells: dict[tuple[str, str], w.Text] = {}  # by experiment and lower-case setting
        self._message.value = ""
        if self._form.dataset is None:
            self.children = [w.HTML("the table appears when DATASET_PATH above is right")]
            return
        settings, names = self._form.settings, [name.lower() for name in BY_EXPERIMENT]
        self._rows = known.read_conditions(settings.conditions or "")
        frames = {frame.experiment: frame for frame in reversed(self._form.dataset.frames)}
        items = [w.HTML(f"<b>{name}</b>") for name in ("", *BY_EXPERIMENT, "in the file")]
        for experiment, frame in sorted(frames.items()):
            for name in names:
                value, placeholder = self._rows.get(experiment, {}).get(name, ""), str(getattr(settings, name))
                cell = w.Text(value, placeholder=placeholder, layout=w.Layout(width="auto"), continuous_update=False)
                cell.observe(partial(self._edit, experiment, name), "value")
                self.cells[experiment, name] = cell
            tags = ", ".join(f"{name} {value:g}" for name, value in read_metadata(frame.image).items())
            items += [w.Label(experiment), *(self.cells[experiment, name] for name in names), w.Label(tags)]
        grid = w.GridBox(items, layout=w.Layout(grid_template_columns=f"repeat({len(names) + 2}, 170px)"))
        self.children = [grid, w.HBox([self._button, self._message])]

    def _edit(self, experiment: str, name: str, change: Any) -> None:
        """Take over a cell; rows of experiments without a usable image now stay as they are."""
        self._rows.setdefault(experiment, {})[name] = change["new"].strip()
        self._form.set_conditions(known.conditions_text(self._rows))

    def write(self) -> None:
        """Write experiments.csv into the dataset's folder."""
        try:
            settings = self._form.settings
            path = settings.dataset_path / CONDITIONS_FILE
            write_text(path, settings.conditions or "experiment\n")
            self._message.value = say(f"written: {path}", True)
        except SegkitError as error:
            self._message.value = say(f"not written: {error}", False)


class ArrangeForm(QuietBox):
    """Downloads in, the users' layout out: shows what will go where before anything is done."""

    def __init__(self, settings: Settings) -> None:
        common = {"style": LABELS, "layout": w.Layout(width="560px"), "continuous_update": False}
        self.source = w.Text(description="downloads", placeholder="folder of zip archives, or one archive", **common)
        self.target = w.Text(value=str(settings.root / "dataset"), description="arranged dataset", **common)
        self.button = button("Arrange", "copy and extract; nothing is moved", lambda: self._run(arrange))
        self.message = w.HTML()
        for field in (self.source, self.target):
            field.observe(lambda change: self._run(plan_arrangement), "value")
        super().__init__([self.source, self.target, self.button, self.message])

    def _run(self, action: Callable[[str, str], Plan]) -> None:
        """Plan the arrangement, or carry it out, and show what went or will go where."""
        self.message.value = "reading ..."
        try:
            source, target = (field.value.strip().strip("'\"") for field in (self.source, self.target))
            if not source or not target:
                raise SegkitError("a folder was needed in both fields")
            plan = action(source, target)
            done = "to be copied or extracted" if action is plan_arrangement else (
                f"arranged ({plan.there_already} were there already); set DATASET_PATH below to {target}")
            lost = f", {len(plan.problems)} problem(s): see below" if plan.problems else ""
            self.message.value = say(f"{len(plan.copies)} files {done}{lost}", not lost) + plan._repr_html_()
        except (SegkitError, OSError, KeyboardInterrupt) as error:
            self.message.value = say(str(error) or "interrupted: press Arrange again to continue", False)
