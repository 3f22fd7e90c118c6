"""Forms, sliders and the live picture: what the notebooks show that can be moved. Only this file knows ipywidgets."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import ipywidgets as w
import pandas as pd

from .arrange import Plan, arrange, plan_arrangement
from .charts import show_live
from .data import Dataset, exclude, split_by_position
from .devices import pick_device
from .discover import discover
from .errors import SegkitError
from .figures import to_png
from .history import History
from .images import read_header
from .layout import choose_crop, covering
from .machine import measure_speed
from .settings import Settings, parse_settings, public_fields
from .sources import FORM_FILE, load_settings, save_form

FORM_GROUPS = {
    "Data": ("DATASET_PATH", "MASKS_PATH", "RUN", "VALIDATION", "EXCLUDE"),
    "Training": ("EPOCHS", "BATCH_SIZE", "CROP", "CROPS_PER_EPOCH", "LEARNING_RATE", "SEED", "DEVICE", "MEMORY_LIMIT",
                 "RESUME", "START_FROM"),
    "Measuring": ("MODEL", "SCALE", "FLIPS", "ONNX", "PIXEL_SIZE_UM", "MINUTES_PER_FRAME", "DRUG_FRAME", "REFERENCE",
                  "EXPERIMENTS"),
}
_GREEN, _RED = "#00664B", "#A33B00"


def _quiet_repr(widget: w.Widget) -> str:
    """What a notebook stores of a widget as text: no machine's paths or figures."""
    return f"({type(widget).__name__}: run the notebook to see it)"


def _say(text: str, good: bool) -> str:
    colour, sign = (_GREEN, "✓") if good else (_RED, "✗")
    return f'<span style="color:{colour}">{sign} {html.escape(text)}</span>'


class SettingsForm(w.VBox):
    """A form for some of the settings. `form.settings` is what it holds now, valid or else a SegkitError."""

    def __init__(self, settings: Settings, groups: dict[str, Sequence[str]] | None = None, *,
                 verdict: Callable[[Settings], str] | None = None, save: bool = False) -> None:
        self._base, self._verdict = settings, verdict
        self._fields: dict[str, w.ValueWidget] = {}
        self.message, self.saved = w.HTML(), w.HTML()
        self._named_run = settings.run  # RUN as long as nobody has typed another
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
        self._judge()

    __repr__ = _quiet_repr

    def _row(self, name: str, value: Any) -> w.Widget:
        spec = next(f for f in public_fields() if f.name.upper() == name)
        style, layout = {"description_width": "150px"}, w.Layout(width="420px")
        common = {"description": name, "tooltip": spec.metadata["help"], "style": style, "layout": layout}
        low, high = spec.metadata["low"], spec.metadata["high"]
        if spec.type == "bool":
            field = w.Checkbox(value=value, indent=True, **common)
        elif spec.type == "int":
            field = w.BoundedIntText(value=value, min=low, max=high, **common)
        elif spec.type == "float":
            field = w.BoundedFloatText(value=value, min=low, max=high, step=None, **common)
        elif name == "DEVICE":
            field = w.Dropdown(value=value, options=sorted({"auto", "cpu", "cuda", "mps", value}), **common)
        else:
            field = w.Text(value=value, continuous_update=False, **common)
        field.observe(lambda change: self._judge(), "value")
        self._fields[name] = field
        unit = spec.metadata["unit"]
        note = f"{html.escape(spec.metadata['help'])}{f' ({unit})' if unit else ''}"
        return w.HBox([field, w.HTML(f'<span style="opacity:.7;font-size:90%">{note}</span>')])

    @property
    def settings(self) -> Settings:
        moved = {name: field.value for name, field in self._fields.items()
                 if field.value != shown_value(self._base, name) and (name, field.value) != ("RUN", self._named_run)}
        return parse_settings(moved, self._base)

    def _judge(self) -> None:
        self.saved.value = ""
        try:
            settings = self.settings
            run = self._fields.get("RUN")
            if run and run.value == self._named_run != settings.run:  # a run is named after its dataset
                self._named_run = settings.run
                run.value = settings.run
            self.message.value = _say(self._verdict(settings) if self._verdict else "these values will be used", True)
        except SegkitError as error:
            self.message.value = _say(str(error), False)

    def _save(self, button: w.Button) -> None:
        try:
            path = save_form(self.settings)
            self.saved.value = _say(f"saved in {path.name}; the other notebooks use it from their next run", True)
        except SegkitError as error:
            self.saved.value = _say(f"not saved: {error}", False)

    def _reset(self, button: w.Button) -> None:
        (self._base.root / FORM_FILE).unlink(missing_ok=True)
        self._base = load_settings(root=self._base.root)
        self._named_run = self._base.run
        for name, field in self._fields.items():
            field.value = shown_value(self._base, name)
        self._judge()


def dataset_verdict(settings: Settings) -> str:
    """What is in DATASET_PATH, in a sentence; raises SegkitError with what is wrong with it."""
    dataset = discover(settings.dataset_path, settings.masks_path)
    kept, excluded = exclude(dataset.pairs, settings.exclude)
    split = split_by_position(kept, settings.validation)
    lost = sum(problem.frames_lost for problem in dataset.problems)
    found = f"; {len(dataset.problems)} problem(s), {lost} frame(s) lost: {'; '.join(dataset.problem_summary(1))}"
    problems = found if dataset.problems else ""
    return (f"{len(dataset.frames)} images, {len(dataset.pairs)} with masks, {len(split.train)} to learn from, "
            f"{len(split.validation)} to judge by, {len(excluded)} excluded{problems}")


def shown_value(settings: Settings, name: str) -> Any:
    """A setting's value as a form shows it: paths inside the project relative to it, nothing as empty text."""
    value = settings.as_dict()[name]
    return value.removeprefix(f"{settings.root}{os.sep}") if isinstance(value, str) else "" if value is None else value


def settings_table(settings: Settings) -> pd.DataFrame:
    """The settings as plain text, readable without a kernel; paths inside the project are shown relative to it."""
    rows = [(f.name.upper(), str(shown_value(settings, f.name.upper())), f.metadata["unit"], f.metadata["help"])
            for f in public_fields()]
    return pd.DataFrame(rows, columns=["setting", "value", "unit", "meaning"]).set_index("setting")


class Facts(w.HTML):
    """Facts of this machine or run, as a widget: they are seen, and not compared with another machine's."""

    def __init__(self, rows: dict[str, str]) -> None:
        lines = (f"<b>{html.escape(name)}</b>: {html.escape(value)}" for name, value in rows.items())
        super().__init__("<br>".join(lines))

    __repr__ = _quiet_repr


def training_estimate(settings: Settings) -> str:
    """How long the training will take on this device, about, from a measured speed."""
    pairs = split_by_position(exclude(discover(settings.dataset_path, settings.masks_path).pairs,
                                      settings.exclude)[0], settings.validation)
    height, width = read_header(pairs.train[0].image)[1:]
    speed = _speed(str(pick_device(settings.device)))
    crop = choose_crop(settings, pick_device(settings.device), (height, width))
    crops = settings.crops_per_epoch or covering(len(pairs.train) * height * width, crop)
    pixels = crops * crop[0] * crop[1] + 0.35 * len(pairs.validation) * height * width
    seconds = settings.epochs * pixels / speed / 1e6
    return f"{crops} crops of {crop[0]} x {crop[1]} an epoch; about {seconds / 60:.0f} min on this device" if (
        seconds >= 90) else f"{crops} crops of {crop[0]} x {crop[1]} an epoch; about {seconds:.0f} s on this device"


@cache
def _speed(device: str) -> float:
    return measure_speed(pick_device(device))


class LivePicture(w.Image):
    """A picture of the training that is renewed after every epoch: pass `live.update` to fit as on_epoch."""

    def __init__(self) -> None:
        super().__init__(value=to_png(show_live(History().table(), [])), format="png")

    __repr__ = _quiet_repr

    def update(self, history: History) -> None:
        self.value = to_png(show_live(history.table(), history.previews))


class ArrangeForm(w.VBox):
    """Downloads in, the users' layout out: shows what will go where before anything is done."""

    def __init__(self, settings: Settings) -> None:
        style, layout = {"description_width": "150px"}, w.Layout(width="560px")
        self.source = w.Text(description="downloads", placeholder="folder of zip archives, or one archive", style=style,
                             layout=layout, continuous_update=False)
        self.target = w.Text(value=str(settings.root / "dataset"), description="new DATASET_PATH", style=style,
                             layout=layout, continuous_update=False)
        self.button = w.Button(description="Arrange", disabled=True, tooltip="copy and extract; nothing is moved")
        self.message = w.HTML()
        self.source.observe(lambda change: self._preview(), "value")
        self.target.observe(lambda change: self._preview(), "value")
        self.button.on_click(lambda button: self._arrange())
        super().__init__([self.source, self.target, self.button, self.message])

    __repr__ = _quiet_repr

    def _preview(self) -> None:
        self._report(lambda: plan_arrangement(self.source.value, self.target.value), "will be copied or extracted")

    def _arrange(self) -> None:
        self._report(lambda: arrange(self.source.value, self.target.value), "arranged; set DATASET_PATH below")

    def _report(self, make: Callable[[], Plan], done: str) -> None:
        try:
            plan = make()
            self.message.value = _say(f"{len(plan.moves)} files {done}", True) + plan._repr_html_()
            self.button.disabled = False
        except (SegkitError, OSError) as error:
            self.message.value = _say(str(error), False)
            self.button.disabled = True


class Browser(w.VBox):
    """Position and frame controls above a picture."""

    __repr__ = _quiet_repr


def browser(dataset: Dataset, draw: Callable[..., bytes], **options: w.ValueWidget) -> Browser:
    """Choose a position and a frame; draw(frame, **option values) -> PNG is shown at once.

    options: further widgets, by the name under which draw takes their value.
    """
    units = sorted({f.unit for f in dataset.frames})
    by_unit = {unit: [f for f in dataset.frames if f.unit == unit] for unit in units}
    position = w.Dropdown(options=[(" ".join(unit), unit) for unit in units], description="position")
    frame = w.SelectionSlider(options=_frame_options(by_unit[units[0]]), description="frame")
    picture, message = w.Image(format="png"), w.HTML()

    def redraw(change: Any = None) -> None:
        try:
            picture.value = draw(frame.value, **{name: option.value for name, option in options.items()})
            message.value = ""
        except SegkitError as error:
            message.value = _say(str(error), False)

    def change_position(change: Any) -> None:
        frame.options = _frame_options(by_unit[position.value])

    position.observe(change_position, "value")
    for control in (frame, *options.values()):
        control.observe(redraw, "value")
    redraw()
    return Browser([w.HBox([position, frame]), w.HBox(list(options.values())), picture, message])


def _frame_options(frames: Sequence[Any]) -> list[tuple[str, Any]]:
    return [(str(f.frame), f) for f in frames]
