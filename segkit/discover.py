"""Find images and masks in a folder; what cannot be used becomes a Problem."""

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from .data import Dataset, Frame, Problem, Split, exclude, masks_folder_name, split_by_position
from .errors import SegkitError
from .names import MASK_NAME, files_in, folders_below, folders_in, images_in, same_name
from .pairing import pair
from .settings import Settings

IMAGE_FOLDERS = ("aphase", "preprocessedphase", "")  # "": directly in PosXXX; the first that holds images is used
POSITION = re.compile("pos", re.IGNORECASE)
MASK_FOLDERS = ("preprocessedphasemasks", "")


def discover(dataset_path: str | Path, masks_path: str | Path | None = None) -> Dataset:
    """List every image under dataset_path and pair it with its masks file.

    dataset_path: holds `*raw_data*` folders, or is itself a plain folder of images.
    masks_path: where the masks folders lie, if not beside the raw ones (a run's masks/, say).
    Returns a Dataset: frames sorted by experiment, position and frame; problems by frames lost.
    File headers are read, no pixels, and nothing is written.
    Raises SegkitError where a folder does not exist or holds no usable image.
    """
    root = _folder("DATASET_PATH", dataset_path, "*_raw_data")
    scan = _Scan(_folder("MASKS_PATH", masks_path, "*_masks") if masks_path else root)
    raw_folders = [folder for folder in scan.listed(root) if "raw_data" in folder.name.lower()]
    for folder in raw_folders:
        scan.experiment(folder)
    if raw_folders:
        scan.unused_masks({folder: re.sub("masks", "raw_data", folder.name, flags=re.IGNORECASE)
                           for folder in scan.listed(scan.masks_root) if "masks" in folder.name.lower()
                           and folder not in raw_folders})
    else:
        scan.plain_folder(root)
    if not scan.frames:
        why = f"; the first problem: {scan.problems[0].reason}" if scan.problems else ""
        raise SegkitError(f"DATASET_PATH {root} holds no experiment with a usable image: {_guess(root)}expected "
                          f"folders such as HR_REF_raw_data/Pos101/aphase with .tif, .tiff or .png files{why}")
    frames = sorted(scan.frames, key=lambda f: (f.experiment, f.position, f.frame, f.page))
    problems = sorted(scan.problems, key=lambda p: (-p.frames_lost, str(p.path), p.reason))
    return Dataset(root, tuple(frames), tuple(problems))


def _folder(setting: str, path: str | Path, content: str) -> Path:
    folder = Path(path).expanduser()
    found = "" if os.path.isdir(folder) else "a file, not a folder" if os.path.exists(folder) else "not there"
    if not found and not os.access(folder, os.R_OK | os.X_OK):
        found = "closed to you (no right to read it)"
    if found:
        raise SegkitError(f"{setting} {folder} is {found}: give the folder that holds the {content} folders")
    return folder


class _Scan:
    """Frames and problems gathered so far."""

    def __init__(self, masks_root: Path) -> None:
        self.masks_root = masks_root
        self.names: set[str] = set()  # of experiments
        self.used: set[Path] = set()  # masks folders
        self.frames: list[Frame] = []
        self.problems: list[Problem] = []

    def problem(self, path: Path, reason: str, frames_lost: int = 0) -> None:
        self.problems.append(Problem(path, reason, frames_lost))

    def experiment(self, raw: Path) -> None:
        name = _experiment_name(raw)
        if name in self.names:
            self.problem(raw, f"a second folder of experiment {name}: {raw.name} is left out; rename it",
                         sum(len(images_in(sub)) for sub in folders_below(raw)))
            return
        self.names.add(name)
        wanted = masks_folder_name(raw.name)
        masks = next((f for f in self.listed(self.masks_root) if same_name(f.name, wanted)), None)
        positions = []
        for folder in self.listed(raw):
            if POSITION.match(folder.name):
                positions.append(folder)
            elif lost := sum(len(images_in(sub)) for sub in folders_below(folder)):
                self.problem(folder, f"{folder.name} is no PosXXX folder: its images are left out; rename it, or run "
                                     "segkit.arrange where it is a second folder of the same name", lost)
        self.loose(raw, "image(s)", images_in)
        if not positions:
            self.problem(raw, f"{raw.name} holds no PosXXX folder: expected Pos101 or the like")
        before = len(self.frames)
        mask_positions = self.listed(masks) if masks else []
        for folder in positions:
            mask_position = next((f for f in mask_positions if same_name(f.name, folder.name)), None)
            if mask_position:
                self.used.add(mask_position)
            try:
                self.position(folder, mask_position, name, without_masks=masks is None)
            except OSError as error:
                self.unreadable(folder, error)
        if masks:
            self.used.add(masks)
            self.unused_masks({folder: f"{raw.name}/{folder.name}" for folder in mask_positions})
            self.loose(masks, "masks file(s)", files_in)
        unpaired = sum(frame.masks is None for frame in self.frames[before:])
        if masks is None and unpaired:
            self.problem(raw, f"no masks folder beside {raw.name}: expected {wanted}; rename it or run segkit.arrange",
                         unpaired)

    def loose(self, folder: Path, what: str, listed: Callable[[Path], list[Path]]) -> None:
        """Files of an experiment that lie in no position are a problem."""
        with suppress(OSError):  # a folder that may not be read is a problem already
            if files := listed(folder):
                self.problem(folder, f"{len(files)} {what} lie outside any PosXXX folder: move them into one",
                             len(files))

    def unused_masks(self, folders: Mapping[Path, str]) -> None:
        """Say which folders of masks no image belongs to; folders: with the images that were expected, as text."""
        for folder, expected in folders.items():
            if folder not in self.used and (count := sum(len(files_in(sub)) for sub in folders_below(folder))):
                self.problem(folder, f"{count} masks file(s) in {folder.name} are not used: they need images in "
                                     f"{expected}; add or rename that folder, or move the masks elsewhere", count)

    def listed(self, folder: Path) -> list[Path]:
        """The folders in a folder; one that may not be read is a problem, and empty."""
        try:
            return folders_in(folder)
        except OSError as error:
            self.unreadable(folder, error)
            return []

    def unreadable(self, folder: Path, error: OSError) -> None:
        self.problem(folder, f"{folder.name} cannot be read ({error.strerror}): give yourself the right to read it")

    def position(self, folder: Path, mask_folder: Path | None, experiment: str, without_masks: bool) -> None:
        before = len(self.problems)
        source, images = self._pick(folder, IMAGE_FOLDERS)
        if not images and len(self.problems) == before:
            self.problem(folder, f"no image in {folder.name}: expected .tif, .tiff or .png files in aphase, "
                                 "PreprocessedPhase or the folder itself")
        if not images:
            return
        _, masks = self._pick(mask_folder, MASK_FOLDERS) if mask_folder else (folder, [])
        beside = [f for f in files_in(source) if MASK_NAME.match(f.stem)]
        self.frames += pair(images, masks + beside, experiment, folder.name, folder, without_masks and not beside,
                            self.problems)

    def plain_folder(self, folder: Path) -> None:
        """Images in no layout; a position's folder, and the one in it that holds the images, keep their names."""
        experiment, position, source = folder.resolve().name, "Pos0", folder
        for place in (folder.resolve(), folder.resolve().parent):
            if POSITION.match(place.name) and "raw_data" in place.parent.name.lower():
                experiment, position = _experiment_name(place.parent), place.name
                source = self._pick(folder, IMAGE_FOLDERS)[0] if place == folder.resolve() else folder
        masks = [f for f in files_in(source) if MASK_NAME.match(f.stem)]
        if self.masks_root != folder:
            masks += [f for sub in folders_below(self.masks_root) if sub.resolve() != folder.resolve()
                      for f in files_in(sub)]
        if images := images_in(source):
            self.frames += pair(images, masks, experiment, position, source, not masks, self.problems)

    def _pick(self, folder: Path, names: tuple[str, ...]) -> tuple[Path, list[Path]]:
        """The first of the named subfolders that holds images; others that do are a problem."""
        by_name = {sub.name.casefold(): sub for sub in folders_in(folder)} | {"": folder}
        listed = images_in if names is IMAGE_FOLDERS else files_in
        found = [(by_name[name], files) for name in names if name in by_name and (files := listed(by_name[name]))]
        for sub, files in found[1:]:
            self.problem(sub, f"{len(files)} file(s) in {sub.name} are not used: those in {found[0][0].name} are")
        for name, sub in by_name.items():
            if name not in names and not found and (files := images_in(sub)):
                self.problem(sub, f"{len(files)} image(s) in {sub.name} are left out: expected a folder named "
                                  f"{'aphase' if names is IMAGE_FOLDERS else 'PreprocessedPhaseMasks'}", len(files))
        return found[0] if found else (folder, [])


def _experiment_name(raw: Path) -> str:
    return re.sub("_?raw_data", "", raw.name, flags=re.IGNORECASE) or raw.name


def _guess(root: Path) -> str:
    """What a folder without experiments seems to be instead, with what to give."""
    above = next((p for p in root.resolve().parents if "raw_data" in p.name.lower()), None)
    if "raw_data" in root.name.lower() or above:
        return f"it is part of an experiment itself, give {(above or root.resolve()).parent}; "
    try:
        inside = [sub for sub in folders_in(root) if any("raw_data" in f.name.lower() for f in folders_in(sub))]
        pictures = [sub for sub in folders_below(root) if sub != root and images_in(sub)]
        if inside:
            return f"give one of the folders in it, such as {inside[0]}; "
        if any(MASK_NAME.match(f.stem) for sub in folders_below(root) for f in files_in(sub)) and not pictures:
            return "there are masks in it and no images; "
        if pictures:
            return f"images lie in {pictures[0].relative_to(root)}; "
    except OSError as error:
        return f"it cannot be read ({error.strerror}); "
    return ""


def discover_split(settings: Settings, dataset: Dataset | None = None) -> Split:
    """The training and validation pairs by DATASET_PATH, MASKS_PATH, EXCLUDE and VALIDATION.

    dataset: what `discover` has found there, if it has been called already.
    """
    dataset = dataset or discover(settings.dataset_path, settings.masks_path)
    pairs, _ = exclude(dataset.pairs, settings.exclude)
    return split_by_position(pairs, settings.validation)
