"""Pictures of a dataset's frames, the live picture of a training, and the browser."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

import ipywidgets as w
import numpy as np
import pandas as pd
import torch

from ..data.dataset import Dataset, Frame, Split, common_area, masks_path_in, read_pair, read_valid
from ..data.discovery import discover
from ..data.images import read_image
from ..devices import pick_device
from ..errors import SegkitError
from ..measure.segment_dataset import segmented_frames
from ..model.predict import segment
from ..model.unet import UNet
from ..settings import DEMO, Settings
from ..training.augment import gather_crops, sample_crops
from ..training.frames import build_store, choose_crop
from ..training.run_dir import History
from . import plots
from .plots import STUDENT, TEACHER, Picture, busiest, grey, overlay, show_pictures, to_png

NATURAL_SIZE = {"align_self": "flex-start", "max_width": "100%"}  # stretching would blur a picture
_GOOD, _BAD = "#1E8E62", "#D0571A"  # of the sign alone, the words have the theme's colour: light or dark
Pair = tuple[Frame, np.ndarray, np.ndarray]  # a frame, its image (H, W) and its labels (H, W)


class QuietBox(w.VBox):
    """A widget of which a notebook stores no machine's paths or figures as text."""

    def __repr__(self) -> str:
        return f"({type(self).__name__}: run the notebook to see it)"


def say(text: str, good: bool) -> str:
    """A sentence as HTML, behind a sign that says whether all is well."""
    colour, sign = (_GOOD, "✓") if good else (_BAD, "✗")
    return f'<b style="color:{colour}">{sign}</b> {html.escape(text)}'


def example_pair(settings: Settings) -> Pair:
    """A pair of the demo, else (in an installed package) of the dataset."""
    demo = settings.root / DEMO
    pairs = discover(demo).pairs if demo.is_dir() else discover(settings.dataset_path, settings.masks_path).pairs
    return read_valid(pairs[11:] + pairs[:11], 1)[0]


def example_crops(split: Split, settings: Settings, count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Augmented crops of a few training frames and their targets, both (count, h, w), as the training sees them."""
    device = torch.device("cpu")
    store, _ = build_store(split.train[::-(-len(split.train) // count)], device, settings.run_dir.parent / ".cache")
    smallest = int(store.height.min()), int(store.width.min())
    crop = choose_crop(settings, pick_device(settings.device), smallest)
    plan = sample_crops(store, count, crop, torch.Generator().manual_seed(settings.seed))
    images, targets = gather_crops(store, plan, crop)  # (count, 1, h, w)
    return images[:, 0].numpy(), targets[:, 0].numpy()


def run_frames(dataset: Dataset, settings: Settings) -> list[Frame]:
    """The frames of a dataset that this run has segmented. Raises SegkitError where there are none."""
    if not (frames := segmented_frames(dataset.frames, settings.run_dir)):
        raise SegkitError(f"no frame of this dataset is segmented in runs/{settings.run}: run 04_inference first")
    return frames


def student_pairs(frames: Iterable[Frame], settings: Settings) -> list[Frame]:
    """The frames, paired with the labels that this run's student predicted."""
    return [replace(frame, masks=masks_path_in(settings.run_dir / "masks", frame)) for frame in frames]


def by_position(frames: Iterable[Frame]) -> dict[str, list[Frame]]:
    """The frames of each position, by its experiment and name."""
    ordered = sorted(frames, key=lambda frame: (" ".join(frame.unit), frame.frame))
    return {name: list(film) for name, film in groupby(ordered, key=lambda frame: " ".join(frame.unit))}


def middle_frames(frames: Iterable[Frame]) -> list[Pair]:
    """The middle frame of every position, or the next one that can be read."""
    positions = by_position(frames).values()
    return [pair for film in positions for pair in read_valid(film[len(film) // 2:], 1)]


def film_strip(frames: Sequence[Frame], settings: Settings, count: int, colour: str = TEACHER) -> Picture:
    """Frames of one position, evenly spread over its time, with outlines; of large ones where most cells are."""
    pairs = read_valid(frames[::-(-len(frames) // count)], count)
    part = busiest(pairs[-1][2] > 0, 896 // count) if pairs else ()
    pictures = [overlay(image, labels, colour)[part] for _, image, labels in pairs]
    titles = [f"{frame.experiment} {frame.position}, frame {frame.frame}" for frame, _, _ in pairs]
    return show_pictures(pictures, titles, settings.for_experiment(frames[0].experiment).pixel_size_um, count)


def show_flagged(dataset: Dataset, flagged: pd.DataFrame, count: int = 6) -> Picture:
    """The first flagged pairs with the teacher's outlines; flagged: rows of `review_teacher`."""
    reasons = {f"{row.experiment}/{row.position}/{row.frame}": row.flags for row in flagged.itertuples()}
    pairs = read_valid([frame for frame in dataset.pairs if frame.name in reasons], count)
    titles = [f"{frame.name}: {reasons[frame.name].partition(':')[0][:40]}" for frame, _, _ in pairs]
    return show_pictures([overlay(image, labels, TEACHER) for _, image, labels in pairs], titles, columns=3)


def show_segmentation(model: UNet, frames: Iterable[Frame], settings: Settings) -> Picture:
    """Image, probability, mask and cells of the first frame that can be read, and the teacher's cells."""
    for frame, image, teacher in read_valid(frames, 1):
        probability, mask, labels = segment(model, image, scale=settings.scale, flips=settings.flips)
        pictures = {frame.name: grey(image), "probability": probability, "mask": mask.astype(float),
                    "student's cells": overlay(image, labels, None)}
        if frame.masks:
            pictures["teacher's cells"] = overlay(image, teacher, None)
        part = busiest(mask | (teacher > 0), 300)
        return show_pictures([picture[part] for picture in pictures.values()], list(pictures),
                             settings.for_experiment(frame.experiment).pixel_size_um,
                             columns=5 if max(image.shape) < 300 else 3)
    return show_pictures([], [])


def show_best_and_worst(scores: pd.DataFrame, dataset: Dataset, settings: Settings) -> Picture:
    """Teacher and student of the best frame, the middle one and the worst by panoptic quality.

    scores: rows of scores.csv. Of a large frame the part is shown where the two masks differ most.
    """
    frames = {frame.name: frame for frame in dataset.pairs}
    ranked = scores.sort_values("panoptic_quality", ascending=False)
    # of one or two frames each once
    places = {len(ranked) // 2: "middle", len(ranked) - 1: "worst", 0: "best"} if len(ranked) else {}
    pictures, titles = [], []
    for place, name in sorted(places.items()):
        row = ranked.iloc[place]
        frame = frames[f"{row['experiment']}/{row['position']}/{row['frame']}"]
        image, teacher = read_pair(frame)
        _, student = read_pair(student_pairs([frame], settings)[0])
        image, student = common_area(frame.name, image, student)
        part = busiest((teacher > 0) != (student > 0), 230)
        pictures += [overlay(image, teacher, TEACHER)[part], overlay(image, student)[part]]
        titles += [f"{name}: {frame.name}, teacher: {row['teacher_cells']} cells",
                   f"student: {row['cells']} cells, panoptic quality {row['panoptic_quality']:.2f}"]
    return show_pictures(pictures, titles, settings.pixel_size_um, columns=2)


class LivePicture(QuietBox):
    """Curves and predictions of a training, drawn again after every epoch: pass `live.update` to fit as on_epoch."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._curves, self._previews = (w.Image(format="png", layout=NATURAL_SIZE) for _ in range(2))
        self._curves.value = to_png(plots.show_training(History().table()))
        super().__init__([self._curves])

    def update(self, history: History) -> None:
        """Draw the history, and print the newest epoch over the one before."""
        self._curves.value = to_png(plots.show_training(history.table()))
        if history.previews:
            self._previews.value = to_png(plots.show_previews(history.previews))
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
        try:
            figure = self.draw(self._frame.value, self._teacher.value, self._contrast.value)
            self._picture.value, self._message.value = to_png(figure), ""
        except SegkitError as error:
            self._picture.value, self._message.value = b"", say(str(error), False)

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


browser = Browser  # as the notebooks call it
