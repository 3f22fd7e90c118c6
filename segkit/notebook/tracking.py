"""Figures of tracks, and the correction of links."""

from collections.abc import Sequence
from itertools import pairwise

import ipywidgets as w
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, MaxNLocator

from ..data.dataset import Frame
from ..data.images import read_image
from ..errors import SegkitError
from ..measure.track_dataset import (
    LINKS,
    correct_link,
    doubtful_links,
    labels_of,
    rows_of,
    successors,
    tracks_of_frame,
)
from ..measure.tracks import lineages
from ..settings import Settings
from .forms import button
from .plots import CELL_COLOURS, GREY, STUDENT, TEACHER, Picture, busiest, new_figure, overlay, show_pictures, to_png
from .widgets import NATURAL_SIZE, QuietBox, by_position, say

ENDS = {"death": ("x", "dies"), "border": ("|", "leaves over the border"), "lost": ("$?$", "is lost")}  # marks
MAX_LINES = 60  # lineages are drawn, the largest first, until they have so many cells in the end
STRIP, KYMOGRAPH_WIDTH = 48, 900  # pixels: smallest width of a frame's strip, and of all strips together
AROUND = 60  # pixels that are shown on each side of a cell
NEAR = 0.6  # of two cells' lengths together: the distance of their centres below which they are neighbours
NEAREST = 12  # cells of the next frame that are offered as successors


def number_colours(cells: pd.DataFrame) -> dict[int, int]:
    """By track: a number of its own, whose rest modulo 7 is its place in CELL_COLOURS, the same in all figures.

    Greedy colouring: each track of the position gets the colour that its neighbours have in the fewest frames.
    """
    near: dict[int, list[int]] = {track: [] for track in sorted(cells["track"])}
    for _, frame in cells.groupby("frame"):
        track, y, x, length = frame[["track", "centroid_y", "centroid_x", "length_px"]].to_numpy().T
        apart = np.hypot(y[:, None] - y, x[:, None] - x)
        for a, b in track[np.argwhere(apart < NEAR * (length[:, None] + length))]:
            near[a].append(b)
    numbers: dict[int, int] = {}
    for track, others in near.items():
        taken = [numbers[other] % 7 for other in others if other in numbers]
        numbers[track] = min(range(8 * track, 8 * track + 7), key=lambda number: taken.count(number % 7))
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
        colour = CELL_COLOURS[numbers[row.Index] % 7]
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
            hours, colour = line["frame"] * minutes_per_frame / 60, CELL_COLOURS[numbers[track] % 7]
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


class LinkEditor(QuietBox):
    """Two frames side by side, a cell and its successors; a button writes the user's choice into links.csv.

    The doubtful links come first; any other cell can be chosen by position, frame and number.
    """

    def __init__(self, frames: Sequence[Frame], cells: pd.DataFrame, tracks: pd.DataFrame,
                 settings: Settings) -> None:
        self._cells, self._settings, self._successors = cells, settings, successors(cells, tracks)
        self._films = {name: film for name, film in by_position(frames).items() if len(film) > 1}
        doubtful = [(f"{row.experiment} {row.position}, frame {row.frame}, cell {row.label}: doubt {row.doubt:.2f}",
                     (f"{row.experiment} {row.position}", row.frame, row.label))
                    for row in doubtful_links(cells, tracks).itertuples()]
        self.doubtful = w.Dropdown(description="doubtful", options=[("choose one", None), *doubtful],
                                   layout=w.Layout(width="420px"))
        self.position = w.Dropdown(description="position", options=list(self._films))
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
        if self._films:  # the last frame has no next one
            self._offer(self.frame, [f.frame for f in self._films[self.position.value][:-1]])
            self._list_cells()

    def _pair(self) -> tuple[Frame, Frame]:
        """The frame chosen now, and the next one."""
        film = self._films[self.position.value]
        return film[self.frame.index], film[self.frame.index + 1]

    def _list_cells(self) -> None:
        frame, _ = self._pair()
        self._offer(self.label, list(rows_of(self._cells, *frame.unit, frame.frame)["label"]))
        self._show()

    def _show(self) -> None:
        """The cell chosen now, with the cells of the next frame that are near, and its successors."""
        if self.label.value is None:
            return
        first, second = self._pair()
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
        shown = show_links(pd.DataFrame([link]), (first, second), self._cells, self._settings)
        self._picture.value = to_png(shown)

    def save(self) -> None:
        """Write the choice into links.csv."""
        first, second = self._pair()
        chosen = tuple(dict.fromkeys(field.value for field in self.next if field.value is not None))
        try:
            correct_link(first, self.label.value, chosen, second, self._settings.run_dir)
            self._message.value = say(f"saved in {LINKS}; run this notebook again to follow the cells with it", True)
        except SegkitError as error:
            self._message.value = say(f"not saved: {error}", False)


link_editor = LinkEditor  # as the notebooks call it
