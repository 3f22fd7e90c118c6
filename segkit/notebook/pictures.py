"""Pictures of a dataset's frames, and of the tracks of its cells."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby, pairwise

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import LogLocator, MaxNLocator

from ..data.dataset import Dataset, Frame, Split, common_area, masks_path_in, read_pair, read_valid
from ..data.discovery import discover
from ..data.images import read_image
from ..devices import pick_device
from ..errors import SegkitError
from ..measure.segment_dataset import segmented_frames
from ..measure.track_dataset import labels_of, rows_of, tracks_of_frame
from ..measure.tracks import lineages
from ..model.predict import segment
from ..model.unet import UNet
from ..settings import DEMO, Settings
from ..training.augment import gather_crops, sample_crops
from ..training.frames import build_store, choose_crop
from .plots import CELL_COLOURS, GREY, STUDENT, TEACHER, Picture, busiest, grey, new_figure, overlay, show_pictures

ENDS = {"death": ("x", "dies"), "border": ("|", "leaves over the border"), "lost": ("$?$", "is lost")}  # marks
MAX_LINES = 60  # lineages are drawn, the largest first, until they have so many cells in the end
STRIP, KYMOGRAPH_WIDTH = 48, 900  # pixels: smallest width of a frame's strip, and of all strips together
AROUND = 60  # pixels that are shown on each side of a cell
NEAR = 0.6  # of two cells' lengths together: the distance of their centres below which they are neighbours
Pair = tuple[Frame, np.ndarray, np.ndarray]  # a frame, its image (H, W) and its labels (H, W)


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
    return [pair for film in by_position(frames).values() for pair in read_valid(film[len(film) // 2:], 1)]


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


def number_colours(cells: pd.DataFrame) -> dict[int, int]:
    """By track: a number of its own, whose remainder is its place in CELL_COLOURS, the same in all figures.

    Greedy colouring: each track of the position gets the colour that its neighbours have in the fewest frames.
    """
    near: dict[int, list[int]] = {track: [] for track in sorted(cells["track"])}
    # a track's last cell counts in the next frame, too, where its daughters begin
    last = cells.sort_values("frame").drop_duplicates("track", keep="last")
    for _, frame in pd.concat([cells, last.assign(frame=last["frame"] + 1)]).groupby("frame"):
        track, y, x, length = frame[["track", "centroid_y", "centroid_x", "length_px"]].to_numpy().T
        apart = np.hypot(y[:, None] - y, x[:, None] - x)
        for a, b in track[np.argwhere(apart < NEAR * (length[:, None] + length))].tolist():
            near[a].append(b)
    numbers, count = dict[int, int](), len(CELL_COLOURS)
    for track, others in near.items():
        taken = Counter(numbers[other] % count for other in others if other in numbers)
        # where none is taken, tracks in a row have other colours
        numbers[track] = min(range((count + 1) * track, (count + 1) * track + count), key=lambda n: taken[n % count])
    return numbers


def coloured(frames: Sequence[Frame], cells: pd.DataFrame, settings: Settings) -> list[np.ndarray]:
    """RGB (H, W, 3): frames of one position with each cell in the colour of its track."""
    mine = rows_of(cells, *frames[0].unit)
    mine = mine.assign(colour=mine["track"].map(number_colours(mine)))
    return [overlay(read_image(frame.image, frame.page), tracks_of_frame(frame, mine, settings.run_dir, "colour"), None)
            for frame in frames]


def show_tracks(frames: Sequence[Frame], cells: pd.DataFrame, settings: Settings, count: int = 6) -> Picture:
    """A film strip of one position: a cell keeps its colour until it divides; of large frames the busiest part."""
    shown = frames[::-(-len(frames) // count)]
    part = busiest(labels_of(shown[-1], settings.run_dir) > 0, 896 // count)
    pictures = [picture[part] for picture in coloured(shown, cells, settings)]
    titles = [f"{frame.position}, frame {frame.frame}" for frame in shown]
    return show_pictures(pictures, titles, settings.for_experiment(frames[0].experiment).pixel_size_um, count)


def founders(tracks: pd.DataFrame) -> pd.Series:
    """By track: the track, without a mother, that its lineage begins with; tracks of one position."""
    return tracks["track"].iloc[lineages(tracks)[1]].set_axis(tracks["track"])


def show_lineages(tracks: pd.DataFrame, cells: pd.DataFrame) -> Picture:
    """Lineage trees of one position's tracks over the frames, in the colours of `show_tracks`; cells: its cells.

    A tree is drawn with plain lines: the graph libraries at hand place nodes, and here time places them.
    """
    root, numbers = founders(tracks), number_colours(cells)
    daughters = {track: sorted(group["track"]) for track, group in tracks.groupby("mother_track")}
    # heights: a leaf takes the next row, a mother stands in the middle of her daughters
    height, leaves = dict[int, float](), 0
    for founder in root.value_counts().sort_index().sort_values(ascending=False, kind="stable").index:
        if leaves >= MAX_LINES:
            break
        # daughters stand before their mother, from the last one back
        family, order = [founder], []
        while family:
            order.append(family.pop())
            family += daughters.get(order[-1], [])
        for track in reversed(order):
            below = [height[daughter] for daughter in daughters.get(track, [])]
            height[track] = float(np.mean(below)) if below else leaves
            leaves += not below
    # a line for each track, from its mother's down or up to it, and a mark where it ends in one of ENDS
    figure, ((axes,),) = new_figure(10, 0.13 * max(leaves, 5) + 0.9)
    shown = tracks.set_index("track").loc[list(height)].assign(y=list(height.values()))
    for row in shown.itertuples():
        colour = CELL_COLOURS[numbers[row.Index] % len(CELL_COLOURS)]
        axes.plot([row.first_frame, row.last_frame + 1], [row.y, row.y], color=colour, lw=2.5)
        if row.mother_track in height:
            axes.plot([row.first_frame] * 2, [height[row.mother_track], row.y], color=GREY, lw=1)
    for end, (marker, label) in ENDS.items():
        ended = shown[shown["ended"] == end]
        axes.plot(ended["last_frame"] + 1, ended["y"], marker=marker, color="black", ms=6, ls="", label=label)
    left_out = root.nunique() - root[list(height)].nunique()
    axes.set(xlabel="frame", yticks=[], title=f"{left_out} smaller lineages are not shown" if left_out else "")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def show_kymograph(frames: Sequence[Frame], cells: pd.DataFrame, tracks: pd.DataFrame, settings: Settings) -> Picture:
    """The place of one position's largest lineage in every frame, side by side, in the colours of `show_tracks`.

    In a mother machine that is a channel; it is turned upright.
    """
    root = cells["track"].map(founders(tracks))
    mine = cells[root == root.value_counts().sort_index().idxmax()]
    # the part of the frames that its cells cover, with the longer side upright
    reach = mine["length_px"].max() / 2
    low, high = mine[["centroid_y", "centroid_x"]].agg(["min", "max"]).to_numpy()
    box = tuple(slice(max(0, int(a - reach)), int(b + reach) + 1) for a, b in zip(low, high, strict=True))
    upright = (0, 1, 2) if np.argmax(high - low) == 0 else (1, 0, 2)
    width = max(STRIP, box[upright[1]].stop - box[upright[1]].start)
    # as many frames as have room
    shown = frames[::-(-len(frames) * width // KYMOGRAPH_WIDTH)]
    crops = [picture[box].transpose(upright) for picture in coloured(shown, cells, settings)]
    strips = [np.pad(crop, ((0, 0), (0, 2), (0, 0)), constant_values=255) for crop in crops]
    picture = np.concatenate(strips, 1)
    figure, ((axes,),) = new_figure(picture.shape[1] / 72 + 0.6, picture.shape[0] / 72 + 0.6)
    axes.imshow(picture, interpolation="nearest")
    axes.set_xticks([(k + 0.5) * strips[0].shape[1] for k in range(len(shown))], [f.frame for f in shown])
    axes.set(xlabel="frame", yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def show_cell_curves(cells: pd.DataFrame, minutes_per_frame: float) -> Picture:
    """Area and length of every cell of one position against time, log scale, in the colours of `show_tracks`."""
    (figure, (panels,)), numbers = new_figure(10, 3.2, 1, 2), number_colours(cells)
    um = cells["area_um2"].notna().any()
    values = {"area_um2": "area (µm²)", "length_um": "length (µm)"} if um else {
        "area_px": "area (pixels)", "length_px": "length (pixels)"}
    for axes, (value, label) in zip(panels, values.items(), strict=True):
        for track, line in cells.sort_values("frame").groupby("track"):
            hours, colour = line["frame"] * minutes_per_frame / 60, CELL_COLOURS[numbers[track] % len(CELL_COLOURS)]
            axes.plot(hours, line[value], color=colour, lw=1.2, marker=".", ms=3)
        axes.set(xlabel="time (h)", ylabel=label, yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    return figure


def show_links(links: pd.DataFrame, frames: Sequence[Frame], cells: pd.DataFrame, settings: Settings) -> Picture:
    """Each link (a row of `doubtful_links`) as two pictures: the cell, and what follows it in the next frame.

    Both are orange, all others blue; the numbers are those of the labels.
    """
    pairs = {first.name: (first, second) for film in by_position(frames).values() for first, second in pairwise(film)}
    pictures, titles, numbers = [], [], []
    for link in links.itertuples():
        pair = pairs[f"{link.experiment}/{link.position}/{link.frame}"]
        # both frames around the cell
        here = rows_of(cells, *pair[0].unit, link.frame).set_index("label").loc[link.label]
        corner = [max(0, int(here[name]) - AROUND) for name in ("centroid_y", "centroid_x")]
        part = tuple(slice(start, start + 2 * AROUND) for start in corner)
        for frame, chosen in zip(pair, ([link.label], list(map(int, link.next_label.split()))), strict=True):
            labels, image = labels_of(frame, settings.run_dir)[part], read_image(frame.image, frame.page)[part]
            orange = np.isin(labels, chosen)
            picture = overlay(image, labels, TEACHER)
            picture[orange] = overlay(image, labels, STUDENT)[orange]
            pictures.append(picture)
            titles.append(f"{frame.experiment} {frame.position}, frame {frame.frame}")
            table = rows_of(cells, *frame.unit, frame.frame)[["label", "centroid_y", "centroid_x"]]
            numbers.append(table.to_numpy() - [0, *corner])
    figure = show_pictures(pictures, titles, columns=2)
    for axes, picture, table in zip(figure.axes, pictures, numbers, strict=False):
        for label, y, x in table[(table[:, 1:] >= 0).all(1) & (table[:, 1:] < picture.shape[:2]).all(1)]:
            axes.text(x, y, f"{label:.0f}", color="white", fontsize=8, ha="center", va="center")
    return figure
