"""The dataset: frames, pairs, problems, and the split by position."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import SegkitError, readable
from .images import check_sizes, read_image, read_labels

JUNK = re.compile(r"^(__MACOSX.*|Thumbs\.db|desktop\.ini|\..*)$", re.IGNORECASE)  # made by operating systems


@dataclass(frozen=True)
class Frame:
    """One image of a time-lapse.

    Parameters
    ----------
    image, masks : Path
        The image file and its masks file; masks is None where no usable one belongs to it.
    experiment, position : str
        Such as "HR_REF" and "Pos101".
    frame : int
        Time index.
    page : int
        The plane of the image file, from 0.
    first : int, optional
        The frame number of the position's first image file, also where that file is damaged and so is no Frame; None
        where it is unknown.
    """

    image: Path
    masks: Path | None
    experiment: str
    position: str
    frame: int
    page: int = 0
    first: int | None = None

    @property
    def unit(self) -> tuple[str, str]:
        """(experiment, position): the unit that never straddles the split."""
        return self.experiment, self.position

    @property
    def name(self) -> str:
        """EXPERIMENT/PosXXX/frame, as settings and tables name it."""
        return f"{self.experiment}/{self.position}/{self.frame}"

    @property
    def masks_page(self) -> int:
        """The page of `masks` that holds this frame's labels; of labels written by segkit each page has a file."""
        return 0 if self.masks and self.masks.stem == labels_stem(self.image, self.page) else self.page


@dataclass(frozen=True)
class Problem:
    """Something in the dataset that cannot be used as it is.

    Parameters
    ----------
    path : Path
        The file or folder.
    reason : str
        What was found, what was needed and what to do.
    frames_lost : int
        How many frames it costs.
    """

    path: Path
    reason: str
    frames_lost: int = 0


class Problems(list[Problem]):
    """The problems found so far."""

    def add(self, path: Path, reason: str, frames_lost: int = 0) -> None:
        """Add a problem."""
        self.append(Problem(path, readable(reason), frames_lost))


def walk(root: Path, problems: Problems, follow: bool = True) -> Iterator[tuple[Path, list[Path]]]:
    """A folder and each one below it, with its files, sorted and without hidden ones; a closed folder is a problem.

    follow: also through symbolic links.
    """
    def closed(error: OSError) -> None:
        folder = Path(error.filename)
        problems.add(folder, f"{folder.name} cannot be read ({error.strerror}): change its permissions")

    for name, subfolders, files in os.walk(root, onerror=closed, followlinks=follow):
        folder = Path(name)
        subfolders[:] = sorted(sub for sub in subfolders if not JUNK.match(sub) and _is_followed(folder / sub, root))
        # without broken links; what a closed folder holds is named by who reads it
        is_closed = not os.access(folder, os.X_OK)
        yield folder, [folder / file for file in sorted(files) if not JUNK.match(file)
                       and (is_closed or os.path.isfile(folder / file))]


def _is_followed(folder: Path, root: Path) -> bool:
    """Whether `walk` enters a folder: a link only near the root, and not one to a folder above it.

    The latter leads round in a circle, and links between positions multiply with every level.
    """
    if not os.path.islink(folder):
        return True
    near = len(folder.relative_to(root).parts) <= 2
    return near and not folder.parent.resolve().is_relative_to(folder.resolve())


def table_of_problems(problems: Iterable[Problem], root: Path) -> pd.DataFrame:
    """One row per problem; paths inside root are relative to it."""
    rows = [(readable(os.path.relpath(p.path, root) if p.path.is_relative_to(root) else str(p.path)), p.reason,
             p.frames_lost) for p in problems]
    return pd.DataFrame(rows, columns=["path", "reason", "frames lost"])


@dataclass(frozen=True)
class Dataset:
    """A dataset as `discover` returns it; a table when displayed.

    Parameters
    ----------
    path : Path
        The dataset's folder.
    frames : tuple of Frame
        Every usable image, sorted by experiment, position and frame.
    problems : tuple of Problem
        What cannot be used, sorted by frames lost.
    """

    path: Path
    frames: tuple[Frame, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def pairs(self) -> tuple[Frame, ...]:
        """The frames that have a usable masks file."""
        return tuple(frame for frame in self.frames if frame.masks is not None)

    def table(self) -> pd.DataFrame:
        """One row per position: frames, pairs, first and last frame index."""
        rows = [(*f.unit, f.frame, f.masks is not None) for f in self.frames]
        table = pd.DataFrame(rows, columns=["experiment", "position", "frame", "paired"])
        grouped = table.groupby(["experiment", "position"], as_index=False)
        return grouped.agg(frames=("frame", "size"), pairs=("paired", "sum"),
                           first=("frame", "min"), last=("frame", "max"))

    def problem_table(self) -> pd.DataFrame:
        """One row per problem, the costliest first; paths relative to the dataset."""
        return table_of_problems(self.problems, self.path)

    def problem_summary(self, at_most: int = 3) -> list[str]:
        """The costliest problems, a sentence each, and how many more there are."""
        lines = [f"{problem.path.name}: {problem.reason}" if problem.path.name not in problem.reason else problem.reason
                 for problem in self.problems[:at_most]]
        more = len(self.problems) - at_most
        return [*lines, f"and {more} more problem(s): see 02_data_exploration"] if more > 0 else lines

    def __repr__(self) -> str:
        return f"Dataset({len(self.frames)} images, {len(self.pairs)} with masks, {len(self.problems)} problems)"

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False)


def frames_of(given: Any) -> list[Frame]:
    """The frames of a dataset or a list. Raises SegkitError for anything else, such as a path or a single frame."""
    items = given.frames if isinstance(given, Dataset) else given
    frames = list(items) if isinstance(items, Iterable) and not isinstance(items, str) else [items]
    if not isinstance(items, Frame) and all(isinstance(frame, Frame) for frame in frames):
        return frames
    raise SegkitError(f"frames is {given!r:.80}: a dataset, as segkit.discover(path) gives, or a list of its frames "
                      "was needed")


@dataclass(frozen=True)
class Split:
    """Training and validation pairs; no (experiment, position) is in both.

    Parameters
    ----------
    train, validation : tuple of Frame
        Frames with masks.
    """

    train: tuple[Frame, ...]
    validation: tuple[Frame, ...]

    def shared_positions(self) -> int:
        """Number of positions on both sides: 0 in any split made by `split_by_position`."""
        return len({f.unit for f in self.train} & {f.unit for f in self.validation})


def split_by_position(pairs: Iterable[Frame], validation: str | Sequence[str] = ("09", "10", "19", "20")) -> Split:
    """Split pairs into training and validation by the suffix of the position's name.

    Parameters
    ----------
    pairs : iterable of Frame
        Frames with masks.
    validation : str or sequence of str
        Suffixes of the validation positions, such as "09" (Pos109, Pos209, ...), or whole names; one or several.

    Returns
    -------
    Split

    Raises
    ------
    SegkitError
        Where either side would be empty.
    """
    pairs = tuple(pairs)
    suffixes = tuple(filter(None, [validation] if isinstance(validation, str) else validation))
    held_out = tuple(f for f in pairs if f.position.endswith(suffixes))
    kept = tuple(f for f in pairs if not f.position.endswith(suffixes))
    positions = ", ".join(sorted({f.position for f in pairs})[:8]) or "none"

    # each way to an empty side has its own remedy
    if not pairs:
        raise SegkitError("no pair of an image and a masks file: training needs both (images without masks are "
                          "segmented by make segment DATASET_PATH=...); 02_data_exploration lists the problems")
    if len({f.unit for f in pairs}) == 1:
        raise SegkitError(f"the only position with masks is {' '.join(pairs[0].unit)}: training needs two at least, "
                          "one for training and one for validation")
    if not held_out or not kept:
        side = "training" if held_out else "validation"
        raise SegkitError(f"no {side} position: VALIDATION is {', '.join(suffixes) or 'empty'}, the positions are "
                          f"{positions}; set VALIDATION to the suffixes of some of them")
    return Split(kept, held_out)


def exclude(pairs: Iterable[Frame], names: Sequence[str]) -> tuple[tuple[Frame, ...], tuple[Frame, ...]]:
    """Part frames into (kept, excluded); names are EXPERIMENT/PosXXX/frame, or a beginning of that.

    Raises SegkitError for a name that excludes nothing: it is more likely misspelt than meant.
    """
    pairs = tuple(pairs)
    excluded: set[Frame] = set()
    for name in names:
        matching = {frame for frame in pairs if f"{frame.name}/".startswith(f"{name.strip('/')}/")}
        if not matching:
            example = f", such as {pairs[0].name}" if pairs else ""
            raise SegkitError(f"EXCLUDE names {name}, which no frame matches: give EXPERIMENT/PosXXX/frame{example}")
        excluded |= matching
    return tuple(f for f in pairs if f not in excluded), tuple(f for f in pairs if f in excluded)


def read_pair(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Read a frame's image (float32) and labels (int32), both (H, W): the area they have in common.

    Raises SegkitError where they differ by more than 2 pixels or cannot be read.
    """
    return common_area(frame.image.name, *read_whole_pair(frame))


def read_whole_pair(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """As `read_pair`, each with all its pixels, so that their sizes may differ."""
    try:
        return read_image(frame.image, frame.page), read_masks(frame)
    except SegkitError as error:
        raise SegkitError(f"{frame.name}: {error}") from None


def read_masks(frame: Frame) -> np.ndarray:
    """A frame's labels (H, W), whole. Raises SegkitError where they cannot be read, or have no background."""
    if frame.masks is None:
        raise SegkitError("it has no masks file: a pair was needed")
    labels = read_labels(frame.masks, frame.masks_page)
    if labels.all():
        raise SegkitError(f"its masks file {frame.masks.name} has no background, which is 0 in instance labels: are "
                          "these classes, or colours on white?")
    return labels


def read_valid(frames: Iterable[Frame], at_most: int) -> list[tuple[Frame, np.ndarray, np.ndarray]]:
    """The first frames that can be read: frame, image and labels (no cells without a masks file), as `read_pair`."""
    valid: list[tuple[Frame, np.ndarray, np.ndarray]] = []
    for frame in frames:
        if len(valid) == at_most:
            break
        with suppress(SegkitError):  # discover or review_teacher names it
            image = read_image(frame.image, frame.page)
            labels = read_masks(frame) if frame.masks else np.zeros(image.shape, np.int32)
            valid.append((frame, *common_area(frame.name, image, labels)))
    return valid


def common_area(name: str, image: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels (H, W) without the 1-2 pixels by which one is larger. Raises SegkitError as `check_sizes`."""
    check_sizes(name, image.shape, masks.shape)
    height, width = (min(a, b) for a, b in zip(image.shape, masks.shape, strict=True))
    return image[:height, :width], masks[:height, :width]


def of_experiment(value: Any, experiment: str) -> Any:
    """The value for an experiment: a mapping's entry, or one value for all. Raises SegkitError where it is missing."""
    if isinstance(value, Mapping) and experiment not in value:
        raise SegkitError(f"there is no value for experiment {experiment}, only for {', '.join(map(str, value))}")
    return value[experiment] if isinstance(value, Mapping) else value


def masks_folder_name(raw_folder: str) -> str:
    """The masks folder that belongs to a raw one: HR_REF_raw_data -> HR_REF_masks, whatever follows."""
    return re.sub("raw_data", "masks", raw_folder, flags=re.IGNORECASE)


def masks_path_in(root: Path, frame: Frame) -> Path:
    """Where under root a frame's labels are written, in the users' own layout."""
    raw = next((p.parent.name for p in frame.image.parents
                if p.name == frame.position and "raw_data" in p.parent.name.lower()), None)
    folder = masks_folder_name(raw) if raw else f"{frame.experiment}_masks"
    return root / folder / frame.position / "PreprocessedPhaseMasks" / f"{labels_stem(frame.image, frame.page)}.tif"


def labels_stem(image: Path, page: int) -> str:
    """The name of the labels file of an image, or of one of its pages, without its suffix."""
    return f"MASK_{image.stem}" + (f"_page{page:05d}" if page else "")
