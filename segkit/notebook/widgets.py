"""What ipywidgets shows: forms, the live picture of a training, the browser, the editor of links."""

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import ipywidgets as w
import numpy as np
import pandas as pd
import traitlets

from .. import settings as known
from ..data.dataset import Dataset, Frame, read_pair
from ..data.discovery import discover
from ..data.downloads import Plan, arrange, plan_arrangement
from ..data.images import read_image
from ..data.tiff import read_metadata
from ..errors import SegkitError
from ..files import write_text
from ..measure.track_dataset import LINKS, correct_link, doubtful_links, rows_of, successors
from ..settings import BY_EXPERIMENT, CONDITIONS_FILE, Settings
from ..training.run_dir import History
from .pictures import by_position, show_links, student_pairs
from .plots import STUDENT, TEACHER, Picture, grey, overlay, show_pictures, show_previews, show_training, to_png
from .report import dataset_verdict, shown_value

FORM_GROUPS = {
    "Data": ("DATASET_PATH", "MASKS_PATH", "RUN", "VALIDATION", "EXCLUDE"),
    "Training": ("EPOCHS", "BATCH_SIZE", "CROP", "CROPS_PER_EPOCH", "LEARNING_RATE", "SEED", "DEVICE", "PRECISION",
                 "RESUME", "START_FROM"),
    "Measuring": ("MODEL", "SCALE", "FLIPS", "CLUSTER", "ONNX", *BY_EXPERIMENT),
}
KINDS = {"bool": w.Checkbox, "int": w.IntText, "float": w.FloatText}  # of a field, by the setting's type; else text
CHOICES = {"DEVICE": ("auto", "cpu", "cuda", "mps"), "PRECISION": known.PRECISIONS}
LABELS = {"description_width": "150px"}
NATURAL_SIZE = {"align_self": "flex-start", "max_width": "100%"}  # stretching would blur a picture
NEAREST = 12  # cells of the next frame that are offered as successors
_GOOD, _BAD = "#1E8E62", "#D0571A"  # of the sign alone, the words have the theme's colour: light or dark


class QuietBox(w.VBox):
    """A widget of which a notebook stores no machine's paths or figures as text."""

    def __repr__(self) -> str:
        return f"({type(self).__name__}: run the notebook to see it)"


def say(text: str, good: bool) -> str:
    """A sentence as HTML, behind a sign that says whether all is well."""
    colour, sign = (_GOOD, "✓") if good else (_BAD, "✗")
    return f'<b style="color:{colour}">{sign}</b> {html.escape(text)}'


@contextmanager
def told_in(message: w.HTML, before: str = "") -> Iterator[None]:
    """Clear a message; a SegkitError of the block becomes its text, behind the words `before`."""
    message.value = ""
    try:
        yield
    except SegkitError as error:
        message.value = say(before + str(error), False)


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

    def __init__(self, settings: Settings, groups: Mapping[str, Sequence[str]] = FORM_GROUPS, *,
                 verdict: Callable[[Settings, Dataset], str] = dataset_verdict, save: bool = False) -> None:
        super().__init__()
        self._groups, self._verdict = groups, verdict
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
        with told_in(self.message):
            settings = self.settings
            if "RUN" in self.fields:
                self.fields["RUN"].placeholder = settings.run
            self.dataset = self.dataset or discover(settings.dataset_path, settings.masks_path)
            self.message.value = say(self._verdict(settings, self.dataset), True)

    def save(self) -> None:
        """Keep the values in segkit.json, and scan the dataset again."""
        with told_in(self.saved, "not saved: "):
            settings = self.settings
            path = known.save_form(settings)
            self.dataset = None
            self._check()
            self.saved.value = say(f"{shown_value(settings, 'DATASET_PATH')} and the rest are saved in {path.name}; "
                                   "the other notebooks use them from their next run", True)

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
        with told_in(self._message, "not written: "):
            settings = self._form.settings
            path = settings.dataset_path / CONDITIONS_FILE
            write_text(path, settings.conditions or "experiment\n")
            self._message.value = say(f"written: {path}", True)


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


class LivePicture(QuietBox):
    """Curves and predictions of a training, drawn again after every epoch: pass `live.update` to fit as on_epoch."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._curves, self._previews = (w.Image(format="png", layout=NATURAL_SIZE) for _ in range(2))
        self._curves.value = to_png(show_training(History().table()))
        super().__init__([self._curves])

    def update(self, history: History) -> None:
        """Draw the history, and print the newest epoch over the one before."""
        self._curves.value = to_png(show_training(history.table()))
        if history.previews:
            self._previews.value = to_png(show_previews(history.previews))
            self.children = [self._curves, self._previews]
        end = "\n" if history.rows[-1]["epoch"] == self._epochs else "\r"
        print(f"{history.newest(self._epochs):<100}", end=end, flush=True)


class Browser(QuietBox):
    """Frames with the teacher's outlines; with student, this run's student's with the teacher's beside them."""

    def __init__(self, dataset: Dataset, settings: Settings, student: bool = False) -> None:
        self._settings, self._student = settings, student
        self._positions = by_position(dataset.frames)
        self._position = w.Dropdown(options=list(self._positions), description="position")
        self._frame = w.SelectionSlider(options=self._frames(), description="frame")
        self._teacher = w.Checkbox(True, description="teacher")
        self._contrast = w.FloatSlider(1.0, min=0.5, max=3, step=0.1, description="contrast")
        self._picture, self._message = w.Image(format="png", layout=NATURAL_SIZE), w.HTML()
        self._position.observe(lambda change: self._frame.set_trait("options", self._frames()), "value")
        for control in (self._frame, self._teacher, self._contrast):
            control.observe(lambda change: self._redraw(), "value")
        self._redraw()
        super().__init__([w.HBox([self._position, self._frame]), w.HBox([self._teacher, self._contrast]),
                          self._picture, self._message])

    def _frames(self) -> list[tuple[str, Frame]]:
        """The frames of the position chosen now, by their numbers."""
        return [(str(frame.frame), frame) for frame in self._positions[self._position.value]]

    def _redraw(self) -> None:
        picture = b""  # of a frame that cannot be read
        with told_in(self._message):
            picture = to_png(self.draw(self._frame.value, self._teacher.value, self._contrast.value))
        self._picture.value = picture

    def draw(self, frame: Frame, teacher: bool, contrast: float) -> Picture:
        """The picture of a frame; teacher: with the teacher's outlines."""
        sources = [("student", student_pairs([frame], self._settings)[0], STUDENT)] if self._student else []
        if teacher and frame.masks:
            sources.append(("teacher", frame, TEACHER))
        pictures = {}
        for name, pair, colour in sources:
            image, labels = read_pair(pair)
            pictures[f"{frame.name}, {name}: {labels.max()} cells"] = overlay(image, labels, colour, contrast)
        if not pictures:
            pictures[frame.name] = grey(read_image(frame.image, frame.page), contrast)
        um = self._settings.for_experiment(frame.experiment).pixel_size_um
        return show_pictures(list(pictures.values()), list(pictures), um)


class LinkEditor(QuietBox):
    """Two frames side by side, a cell and its successors; a button writes the user's choice into links.csv.

    The doubtful links come first; any other cell can be chosen by position, frame and number.
    """

    def __init__(self, frames: Sequence[Frame], cells: pd.DataFrame, tracks: pd.DataFrame, settings: Settings) -> None:
        self._cells, self._settings, self._successors = cells, settings, successors(cells, tracks)
        # by position and frame number: the frame and the next one
        self._pairs = {name: {first.frame: (first, second) for first, second in pairwise(film)}
                       for name, film in by_position(frames).items() if len(film) > 1}
        doubtful = [(f"{row.experiment} {row.position}, frame {row.frame}, cell {row.label}: doubt {row.doubt:.2f}",
                     (f"{row.experiment} {row.position}", row.frame, row.label))
                    for row in doubtful_links(cells, tracks).itertuples()]
        self.doubtful = w.Dropdown(description="doubtful", options=[("choose one", None), *doubtful],
                                   layout=w.Layout(width="420px"))
        self.position = w.Dropdown(description="position", options=list(self._pairs))
        self.frame, self.label = w.Dropdown(description="frame"), w.Dropdown(description="cell")
        self.next = [w.Dropdown(description=name) for name in ("becomes", "and")]
        self._picture, self._message = w.Image(format="png", layout=NATURAL_SIZE), w.HTML()
        save = button("Save link", "write this choice into links.csv", self.save)
        super().__init__([self.doubtful, w.HBox([self.position, self.frame, self.label]),
                          w.HBox([*self.next, save]), self._message, self._picture])
        for control, action in ((self.doubtful, self._jump), (self.position, self._list_frames),
                                (self.frame, self._list_cells), (self.label, self._show)):
            control.observe(lambda change, action=action: action(), "value")
        self._list_frames()

    def _jump(self) -> None:
        """Show the doubtful link that was chosen."""
        if self.doubtful.value:
            self.position.value, self.frame.value, self.label.value = self.doubtful.value

    @staticmethod
    def _offer(field: w.Dropdown, options: list[int]) -> None:
        """New options, the first of them chosen, which ipywidgets does not do where none was."""
        field.options = options
        field.index = 0 if options else None

    def _list_frames(self) -> None:
        if self._pairs:
            self._offer(self.frame, list(self._pairs[self.position.value]))
            self._list_cells()

    def _list_cells(self) -> None:
        frame, _ = self._pairs[self.position.value][self.frame.value]
        self._offer(self.label, list(rows_of(self._cells, *frame.unit, frame.frame)["label"]))
        self._show()

    def _show(self) -> None:
        """The cell chosen now, with the cells of the next frame that are near, and its successors."""
        if self.label.value is None:
            return
        first, second = self._pairs[self.position.value][self.frame.value]
        # the nearest cells of the next frame are offered, beside those that follow now
        here = rows_of(self._cells, *first.unit, first.frame).set_index("label").loc[self.label.value]
        there = rows_of(self._cells, *second.unit, second.frame).set_index("label")
        away = np.hypot(there["centroid_y"] - here["centroid_y"], there["centroid_x"] - here["centroid_x"])
        near = there.index[np.argsort(away, kind="stable")[:NEAREST]].tolist()
        chosen = self._successors.get((*first.unit, first.frame, self.label.value), ())
        for k, field in enumerate(self.next):
            field.options = [("nothing", None), *((str(label), label) for label in sorted({*near, *chosen}))]
            field.value = chosen[k] if k < len(chosen) else None
        link = {"experiment": first.experiment, "position": first.position, "frame": first.frame,
                "label": self.label.value, "next_label": " ".join(map(str, chosen))}
        self._picture.value = to_png(show_links(pd.DataFrame([link]), (first, second), self._cells, self._settings))

    def save(self) -> None:
        """Write the choice into links.csv."""
        with told_in(self._message, "not saved: "):
            if self.label.value is None:
                raise SegkitError("no cell is chosen")
            first, second = self._pairs[self.position.value][self.frame.value]
            chosen = tuple(dict.fromkeys(field.value for field in self.next if field.value is not None))
            correct_link(first, self.label.value, chosen, second, self._settings.run_dir)
            self._message.value = say(f"saved in {LINKS}; run this notebook again to follow the cells with it", True)


browser, link_editor = Browser, LinkEditor  # as the notebooks call them
