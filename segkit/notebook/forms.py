"""Forms for the settings, for what differs by experiment, and for downloads."""

import asyncio
import html
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as w
import traitlets

from ..data.dataset import Dataset
from ..data.discovery import discover
from ..data.downloads import Plan, arrange, plan_arrangement
from ..data.images import read_metadata
from ..errors import SegkitError
from ..settings import (
    CONDITIONS,
    FORM_FILE,
    PRECISIONS,
    Settings,
    load_settings,
    own_conditions,
    parse_settings,
    public_fields,
    save_form,
)
from .machine import dataset_verdict, shown_value
from .widgets import quiet_repr, say

FORM_GROUPS = {
    "Data": ("DATASET_PATH", "MASKS_PATH", "RUN", "VALIDATION", "EXCLUDE"),
    "Training": ("EPOCHS", "BATCH_SIZE", "CROP", "CROPS_PER_EPOCH", "LEARNING_RATE", "SEED", "DEVICE", "PRECISION",
                 "MEMORY_LIMIT", "PROCESSES", "RESUME", "START_FROM"),
    "Measuring": ("MODEL", "SCALE", "FLIPS", "OPENVINO", "CLUSTER", "ONNX", "PIXEL_SIZE_UM", "MINUTES_PER_FRAME",
                  "DRUG_FRAME", "REFERENCE", "EXPERIMENTS"),
}
FOLDERS = ("DATASET_PATH", "MASKS_PATH")
ENTER_SECONDS = 0.5  # wait for a changed value after Enter


class SettingsForm(w.VBox):
    """A form for some of the settings. `form.settings` is what it holds now, valid or else a SegkitError.

    The dataset is scanned once for each DATASET_PATH and MASKS_PATH, and again after Enter in one of these fields and
    after Save, since the folder may have been repaired. A scan that failed is repeated at every edit.
    """

    dataset = traitlets.Any()  # Dataset: what the scan found; None where it failed

    def __init__(self, settings: Settings, groups: dict[str, Sequence[str]] | None = None, *,
                 verdict: Callable[[Settings, Dataset], str] = dataset_verdict, save: bool = False) -> None:
        self._base, self._verdict = settings, verdict
        self._scanned: tuple[str, ...] | None = None  # the folders' fields as they were at that scan
        self._scans, self._filling = 0, False
        self._fields: dict[str, w.ValueWidget] = {}
        self.message, self.saved = w.HTML(), w.HTML()
        self._followed: dict[str, str] = {}  # RUN and EXPERIMENTS as they follow from DATASET_PATH
        sections: list[w.Widget] = []
        for title, names in (groups or FORM_GROUPS).items():
            rows = [self._row(name, shown_value(settings, name)) for name in names]
            sections.append(w.VBox([w.HTML(f"<b>{html.escape(title)}</b>"), *rows]))
        buttons = []
        if save:
            for label, tip, action in (("Save", "keep these values for the other notebooks", self._save),
                                       ("Reset", "back to the defaults", self._reset)):
                button = w.Button(description=label, tooltip=tip)
                button.on_click(action)
                buttons.append(button)
        super().__init__([sections[0], self.message, *sections[1:], w.HBox([*buttons, self.saved])])
        self._check()

    __repr__ = quiet_repr

    def _row(self, name: str, value: Any) -> w.Widget:
        spec = next(f for f in public_fields() if f.name.upper() == name)
        style, layout = {"description_width": "150px"}, w.Layout(width="420px", flex="0 0 auto")
        common = {"description": name, "tooltip": spec.metadata["help"], "style": style, "layout": layout}
        low, high = spec.metadata["low"], spec.metadata["high"]
        if spec.type == "bool":
            field = w.Checkbox(value=value, indent=True, **common)
        elif spec.type == "int":
            field = w.BoundedIntText(value=value, min=low, max=high, **common)
        elif spec.type == "float":
            field = w.BoundedFloatText(value=value, min=low, max=high, step=None, **common)
        elif name in ("DEVICE", "PRECISION"):
            options = PRECISIONS if name == "PRECISION" else sorted({"auto", "cpu", "cuda", "mps", value})
            field = w.Dropdown(value=value, options=options, **common)
        else:
            field = w.Text(value=value, continuous_update=False, **common)
        field.observe(lambda change: self._check(), "value")
        if name in FOLDERS:
            field.on_msg(lambda widget, content, buffers: self._entered(content))
        self._fields[name] = field
        unit = spec.metadata["unit"]
        note = f"{html.escape(spec.metadata['help'])}{f' ({unit})' if unit else ''}"
        return w.HBox([field, w.HTML(f'<span style="opacity:.7;font-size:90%">{note}</span>')])

    def field(self, name: str) -> w.ValueWidget:
        """The widget of one setting, by its upper-case name."""
        return self._fields[name]

    def _moved(self) -> dict[str, Any]:
        return {name: field.value for name, field in self._fields.items()
                if field.value not in (shown_value(self._base, name), self._followed.get(name))}

    @property
    def settings(self) -> Settings:
        moved = self._moved()
        settings = parse_settings(moved, self._base)
        saved = self._base.experiments != own_conditions(self._base) and "DATASET_PATH" not in moved
        return settings if saved or "EXPERIMENTS" in moved else replace(settings, experiments=own_conditions(settings))

    def _check(self, again: bool = False) -> None:
        """Show what the form's values lead to; again: scan the dataset again."""
        if self._filling:
            return
        self._filling = True  # what is filled in below needs no check of its own
        if not again:
            self.saved.value = ""
        folders = tuple(self._fields[name].value for name in FOLDERS if name in self._fields)
        try:
            settings, moved = self.settings, self._moved()
            for name in {"RUN", "EXPERIMENTS"} & set(self._fields) - set(moved):
                self._followed[name] = shown_value(settings, name)
                self._fields[name].value = self._followed[name]
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

    def _save(self, button: w.Button) -> None:
        try:
            settings = self.settings
            path = save_form(settings)
            self.saved.value = say(f"{shown_value(settings, 'DATASET_PATH')} and the rest are saved in {path.name}; "
                                   "the other notebooks use them from their next run", True)
            self._check(again=True)
        except SegkitError as error:
            self.saved.value = say(f"not saved: {error}", False)

    def _reset(self, button: w.Button) -> None:
        (self._base.root / FORM_FILE).unlink(missing_ok=True)
        self._base = load_settings(root=self._base.root)
        self._followed.clear()
        self._filling = True
        for name, field in self._fields.items():
            field.value = shown_value(self._base, name)
        self._filling = False
        self._check()


class ExperimentsForm(w.VBox):
    """A table of what may differ by experiment, beside a SettingsForm that it writes EXPERIMENTS into.

    An empty field means: as in the form. What the TIFFs themselves say is shown as a hint.
    """

    def __init__(self, form: SettingsForm) -> None:
        self._form = form
        self.cells: dict[str, w.Text] = {}  # by EXPERIMENT.SETTING
        super().__init__([])
        form.observe(lambda change: self._list(), "dataset")
        self._list()

    __repr__ = quiet_repr

    def _list(self) -> None:
        """A row for each experiment of the dataset that the form names now."""
        if self._form.dataset is None:
            self.children = [w.HTML("the table appears when DATASET_PATH above is right")]
            return
        settings = self._form.settings
        frames = {f.experiment: f for f in reversed(self._form.dataset.frames)}
        head = [w.HTML(f"<b>{name}</b>", layout=w.Layout(width="170px")) for name in ("", *CONDITIONS)]
        rows, self.cells, shown = [w.HBox(head)], {}, settings.as_dict()
        said = dict(token.split("=", 1) for token in settings.experiments)
        for experiment, frame in sorted(frames.items()):
            fields = [w.Text(said.get(f"{experiment}.{name}", ""), placeholder=str(shown[name]),
                             layout=w.Layout(width="170px"), continuous_update=False) for name in CONDITIONS]
            for name, field in zip(CONDITIONS, fields, strict=True):
                self.cells[f"{experiment}.{name}"] = field
                field.observe(lambda change: self._write(), "value")
            hints = ", ".join(f"{name} {value:g}" for name, value in read_metadata(frame.image).items())
            rows.append(w.HBox([w.Label(experiment, layout=w.Layout(width="170px")), *fields,
                                w.HTML(f"the file says: {html.escape(hints)}" if hints else "")]))
        self.children = rows

    def _write(self) -> None:
        self._form.field("EXPERIMENTS").value = ",".join(
            f"{place}={field.value.strip()}" for place, field in self.cells.items() if field.value.strip())


class ArrangeForm(w.VBox):
    """Downloads in, the users' layout out: shows what will go where before anything is done."""

    def __init__(self, settings: Settings) -> None:
        style, layout = {"description_width": "150px"}, w.Layout(width="560px")
        self.source = w.Text(description="downloads", placeholder="folder of zip archives, or one archive", style=style,
                             layout=layout, continuous_update=False)
        self.target = w.Text(value=str(settings.root / "dataset"), description="arranged dataset", style=style,
                             layout=layout, continuous_update=False)
        self.button = w.Button(description="Arrange", disabled=True, tooltip="copy and extract; nothing is moved")
        self.message = w.HTML()
        self.source.observe(lambda change: self._preview(), "value")
        self.target.observe(lambda change: self._preview(), "value")
        self.button.on_click(lambda button: self._arrange())
        super().__init__([self.source, self.target, self.button, self.message])

    __repr__ = quiet_repr

    def _paths(self) -> tuple[str, str]:
        found = tuple(field.value.strip().strip("'\"") for field in (self.source, self.target))
        for path, what in zip(found, ("downloads", "arranged dataset"), strict=True):
            if not path:
                raise SegkitError(f"no folder is given at {what}")
        return found[0], found[1]

    def _preview(self) -> None:
        self._report(lambda: plan_arrangement(*self._paths()), lambda plan: "to be copied or extracted")

    def _arrange(self) -> None:
        self.button.disabled = True
        self.message.value = "arranging ..."
        self._report(lambda: arrange(*self._paths()), lambda plan: (
            f"arranged ({plan.there_already} were there already); set DATASET_PATH below to {self._paths()[1]}"))

    def _report(self, make: Callable[[], Plan], words: Callable[[Plan], str]) -> None:
        try:
            plan = make()
            lost = f", {len(plan.problems)} problem(s): see below" if plan.problems else ""
            self.message.value = say(f"{len(plan.copies)} files {words(plan)}{lost}", not lost) + plan._repr_html_()
            self.button.disabled = False
        except (SegkitError, OSError) as error:
            self.message.value = say(str(error), False)
            self.button.disabled = True
        except KeyboardInterrupt:
            self.message.value = say("interrupted: press Arrange again to go on", False)
            self.button.disabled = False
