"""Follow the cells of a segmented dataset: tracks, the user's corrections, files for other programs."""

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from tqdm.auto import tqdm

from ..data.dataset import Frame, Problem, Problems, masks_path_in
from ..data.images import read_image, read_labels
from ..errors import SegkitError
from ..files import locked, log, read_table, replacing, write_table
from .tracks import TRACKS_COLUMNS, link_frames, tracks_table

LINKS = "links.csv"  # in a run's folder: the user's corrections
LINK_COLUMNS = ("experiment", "position", "frame", "label", "next_label", "labels_hash")
UNIT = ["experiment", "position"]
TRACK_COLUMNS = (*UNIT, *TRACKS_COLUMNS)
Corrections = dict[tuple[int, int], tuple[int, ...]]  # by frame and label: the labels in the next frame
DOUBTFUL = 0.5  # a link with more doubt is shown to the user


def link_dataset(frames: Iterable[Frame], out_dir: str | Path) -> tuple[pd.DataFrame, pd.DataFrame, list[Problem]]:
    """Follow the cells of segmented frames through time, each position by itself.

    Parameters
    ----------
    frames : iterable of Frame
        Those that `segment_dataset` has segmented into out_dir.
    out_dir : str or Path
        The run's folder. Its cells.csv gets the columns track and link_doubt (of the link from the frame before:
        0 certain, 1 a guess or none), its tracks.csv a row per track (TRACK_COLUMNS). The corrections in its links.csv
        (LINK_COLUMNS) overrule.

    Returns
    -------
    cells, tracks : DataFrame, as written
    problems : list of Problem, the rows of links.csv that do not fit the labels, and are not used

    Raises
    ------
    SegkitError
        If a table or a label file cannot be read, or the folder cannot be written.
    """
    out_dir, problems = Path(out_dir), Problems()
    ordered = sorted(frames, key=lambda f: (f.unit, f.frame))
    with locked(out_dir):
        cells = read_table(out_dir / "cells.csv").drop(columns=["track", "link_doubt"], errors="ignore")
        corrections = dict(iter(read_corrections(out_dir).groupby(UNIT)))
        linked = [cells[:0].assign(track=0, link_doubt=0.0)]
        lineages = [pd.DataFrame(columns=list(TRACK_COLUMNS))]
        shown = tqdm(ordered, desc="following cells", unit="frame", leave=False)
        for unit, group in groupby(shown, key=lambda f: f.unit):
            film = list(group)
            chosen = _usable(corrections.pop(unit), film, out_dir, problems) if unit in corrections else {}
            # frames are read one after the other, so that only a few are in memory
            labels = (labels_of(frame, out_dir) for frame in film)
            links = link_frames(labels, [f.frame for f in film], map(image_of, film), chosen)
            one = rows_of(cells, *unit).merge(links.rename(columns={"doubt": "link_doubt"}), on=["frame", "label"])
            tracks = tracks_table(one, film[0].frame, film[-1].frame)
            linked.append(one.drop(columns=["mother_track", "leaves"]))
            lineages.append(tracks.assign(experiment=unit[0], position=unit[1])[list(TRACK_COLUMNS)])
        cells, tracks = (pd.concat(tables[len(tables) > 1:], ignore_index=True) for tables in (linked, lineages))
        write_table(out_dir / "cells.csv", cells)
        write_table(out_dir / "tracks.csv", tracks)

    for unit in corrections:
        problems.add(out_dir / LINKS, f"{LINKS}: {' '.join(unit)} has no cells here")
    for problem in problems:
        log.info("%s", problem.reason)
    return cells, tracks, list(problems)


def rows_of(table: pd.DataFrame, experiment: str, position: str, frame: int | None = None) -> pd.DataFrame:
    """The rows of one position, or of one frame."""
    rows = table[(table["experiment"] == experiment) & (table["position"] == position)]
    return rows if frame is None else rows[rows["frame"] == frame]


def labels_of(frame: Frame, out_dir: Path) -> np.ndarray:
    """The labels int32 (H, W) that a run has predicted for a frame."""
    return read_labels(masks_path_in(out_dir / "masks", frame))


def image_of(frame: Frame) -> np.ndarray | None:
    """A frame's image (H, W); None where it cannot be read."""
    with suppress(SegkitError):
        return read_image(frame.image, frame.page)
    return None


def read_corrections(out_dir: Path) -> pd.DataFrame:
    """The user's corrections of links: LINK_COLUMNS, a row per link; two rows of one cell are a division.

    Raises SegkitError where links.csv is no such table.
    """
    path = out_dir / LINKS
    table = read_table(path) if path.is_file() else pd.DataFrame(columns=list(LINK_COLUMNS))
    if missing := set(LINK_COLUMNS).difference(table.columns):
        raise SegkitError(f"{path} has no column {', '.join(sorted(missing))}: write it by 05_tracking, or delete it")
    return table.astype({"next_label": "Int64"})


def _usable(rows: pd.DataFrame, film: Sequence[Frame], out_dir: Path, problems: Problems) -> Corrections:
    """The corrections of one position, as `link_frames` takes them; rows of other labels become problems."""
    pairs = {first.frame: (first, second) for first, second in pairwise(film)}
    usable: Corrections = {}
    for (frame, label), links in rows.groupby(["frame", "label"]):
        chosen = tuple(int(number) for number in links["next_label"].dropna())
        hashes = set(links["labels_hash"].astype(str))
        if reason := _misfit(label, chosen, hashes, pairs.get(frame), out_dir):
            name = f"{film[0].experiment} {film[0].position}, frame {frame}, label {label}"
            problems.add(out_dir / LINKS, f"{LINKS}: {name}: {reason}")
        else:
            usable[int(frame), int(label)] = chosen
    return usable


def _misfit(label: int, chosen: tuple[int, ...], hashes: set[str], pair: tuple[Frame, Frame] | None,
            out_dir: Path) -> str:
    """Why a correction does not fit the labels of its two frames, or an empty text."""
    if pair is None:
        return "no segmented frame follows it"
    if hashes != {labels_hash(*pair, out_dir)}:
        return "the frames were segmented again since: make this correction again"
    first, second = (labels_of(frame, out_dir) for frame in pair)
    missing = [number for labels, numbers in ((first, (label,)), (second, chosen))
               for number in numbers if not (labels == number).any()]
    if missing:
        return f"there is no cell {missing[0]}"
    return "" if len(set(chosen)) == len(chosen) <= 2 else "a cell has two daughters at most"


def labels_hash(frame: Frame, following: Frame, out_dir: Path) -> str:
    """A hash of the labels of two frames that follow each other: it tells whether a correction is still of them."""
    content = b"".join(np.ascontiguousarray(labels_of(f, out_dir)).tobytes() for f in (frame, following))
    return f"h{hashlib.sha256(content).hexdigest()[:16]}"  # a letter, so that no spreadsheet reads a number


def correct_link(frame: Frame, label: int, next_labels: Sequence[int], following: Frame, out_dir: Path) -> None:
    """Write a correction into links.csv: the cell is followed by none, one, or (a division) two of the next frame.

    An older correction of this cell, or of the next ones, is replaced.
    """
    with locked(out_dir):
        table = read_corrections(out_dir)
        here = rows_of(table, *frame.unit, frame.frame)
        table = table.drop(here.index[(here["label"] == label) | here["next_label"].isin(list(next_labels))])
        code = labels_hash(frame, following, out_dir)
        rows = [(*frame.unit, frame.frame, label, number, code) for number in next_labels or [pd.NA]]
        added = pd.DataFrame(rows, columns=list(LINK_COLUMNS)).astype({"next_label": "Int64"})
        write_table(out_dir / LINKS, pd.concat([table, added]) if len(table) else added)


def predecessors(cells: pd.DataFrame, tracks: pd.DataFrame) -> pd.DataFrame:
    """The cells with the cell that each comes from: columns from_frame and from_label, empty where there is none.

    It is the one before in the same track, else the last one of the mother's track.
    """
    key = [*UNIT, "track"]
    ordered = cells.merge(tracks[[*key, "mother_track"]], on=key).sort_values([*key, "frame"], ignore_index=True)
    before = ordered.groupby(key)[["frame", "label"]].shift()
    last = ordered.groupby(key)[["frame", "label"]].last()
    mother = ordered[[*UNIT, "mother_track"]].join(last, on=[*UNIT, "mother_track"])
    ordered[["from_frame", "from_label"]] = before.fillna(mother[["frame", "label"]])
    return ordered


def _links(cells: pd.DataFrame, tracks: pd.DataFrame) -> pd.DataFrame:
    """A row per link: experiment, position, frame and label of the cell, next_label, link_doubt."""
    names = {"label": "next_label", "from_frame": "frame", "from_label": "label"}
    linked = predecessors(cells, tracks).dropna(subset="from_label").drop(columns="frame")
    return linked.rename(columns=names).astype({"frame": int, "label": int})


def successors(cells: pd.DataFrame, tracks: pd.DataFrame) -> dict[tuple[str, str, int, int], tuple[int, ...]]:
    """The next labels of every cell that has some, by experiment, position, frame and label."""
    found: dict[tuple[str, str, int, int], tuple[int, ...]] = (
        _links(cells, tracks).groupby([*UNIT, "frame", "label"])["next_label"].agg(tuple).to_dict())
    return found


def doubtful_links(cells: pd.DataFrame, tracks: pd.DataFrame) -> pd.DataFrame:
    """The cells whose successor a user should look at, the most doubtful first.

    cells, tracks: from `link_dataset`. Columns: experiment, position, frame, label, doubt, and next_label, the numbers
    of what follows as text; empty where the cell is lost.
    """
    doubtful = _links(cells, tracks).query("link_doubt > @DOUBTFUL").astype({"next_label": str})
    rows = doubtful.groupby([*UNIT, "frame", "label"], as_index=False).agg(
        next_label=("next_label", " ".join), doubt=("link_doubt", "max"))
    # a cell that vanishes inside the image has no link that could be doubtful
    lost = tracks[tracks["ended"] == "lost"].rename(columns={"last_frame": "frame"})
    lost = lost[[*UNIT, "track", "frame"]].merge(cells[[*UNIT, "track", "frame", "label"]])
    rows = pd.concat([rows, lost.drop(columns="track").assign(next_label="", doubt=1.0)])
    return rows.sort_values(["doubt", *UNIT, "frame", "label"], ascending=[False, *[True] * 4], ignore_index=True)


def tracks_of_frame(frame: Frame, cells: pd.DataFrame, out_dir: Path, column: str = "track") -> np.ndarray:
    """A frame's labels (H, W) with each cell's track, or another column of cells, in place of its number."""
    mine, labels = rows_of(cells, *frame.unit, frame.frame), labels_of(frame, out_dir)
    numbers = np.zeros(int(labels.max()) + 1, np.int32)
    numbers[mine["label"]] = mine[column]
    return numbers[labels]


def write_ctc(frames: Iterable[Frame], cells: pd.DataFrame, tracks: pd.DataFrame, out_dir: str | Path) -> Path:
    """Write the tracks in the format of the Cell Tracking Challenge, which TrackMate, napari and btrack read.

    frames, cells, tracks: what `link_dataset` was given and returned. Each position gets a folder
    ctc/EXPERIMENT/POSITION_GT/TRA: labels with track numbers (man_track0000.tif; frames are counted from 0, without
    gaps) and man_track.txt (track, first and last frame, mother). A track that misses frames is continued under a new
    number, with the old one as its mother, since the format knows no gaps (Ulman et al. 2017, doi 10.1038/nmeth.4473).
    Returns the folder ctc; an older one is replaced.
    """
    out_dir = Path(out_dir)
    ordered = sorted(frames, key=lambda f: (f.unit, f.frame))
    with replacing(out_dir / "ctc") as folder:
        for unit, group in groupby(ordered, key=lambda f: f.unit):
            film = list(group)
            table = predecessors(rows_of(cells, *unit), tracks)
            table["time"] = table["frame"].map({f.frame: k for k, f in enumerate(film)})
            # a new number wherever the track is another one, or misses frames; its mother is the number before
            new = (table["track"].diff() != 0) | (table["time"].diff() != 1)
            table["number"] = new.cumsum()
            pieces = table.groupby("number").agg(first=("time", "min"), last=("time", "max"))
            number_of = table.set_index(["frame", "label"])["number"]
            before = pd.MultiIndex.from_frame(table.loc[new, ["from_frame", "from_label"]])
            pieces["mother"] = number_of.reindex(before).fillna(0).astype(int).to_numpy()
            place = folder / unit[0] / f"{unit[1]}_GT" / "TRA"
            place.mkdir(parents=True)
            pieces[["first", "last", "mother"]].to_csv(place / "man_track.txt", sep=" ", header=False)
            for time, frame in enumerate(film):
                numbers = tracks_of_frame(frame, table, out_dir, "number").astype(np.uint16)
                tifffile.imwrite(place / f"man_track{time:04d}.tif", numbers, compression="zlib")
        shutil.rmtree(out_dir / "ctc", ignore_errors=True)
    return out_dir / "ctc"
