"""Find the images and masks of a dataset in its folders; what cannot be used becomes a Problem."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import SegkitError, readable
from ..settings import Settings
from .dataset import JUNK, Dataset, Frame, Problems, Split, exclude, masks_folder_name, split_by_position, walk
from .images import IMAGE_SUFFIXES
from .pairing import MASK_NAME, pair, plain_name

BY_PRODUCT = re.compile(r"_(flows|cp_output|cp_outlines|outlines|dP|dist|cellprob|bounds|ncolor_masks|probability|"
                        r"probabilities|simple segmentation|object identities)$", re.IGNORECASE)
IMAGE_FOLDERS = ("aphase", "preprocessedphase", "")  # "": directly in PosXXX; the first that holds images is used
MASK_FOLDERS = ("preprocessedphasemasks", "")
Tree = dict[Path, list[Path]]  # image files by folder


def discover(dataset_path: str | Path, masks_path: str | Path | None = None) -> Dataset:
    """List every image under dataset_path and pair it with its masks file.

    Parameters
    ----------
    dataset_path : str or Path
        A folder that holds `*raw_data*` folders, or a plain folder of images, or one position.
    masks_path : str or Path, optional
        The folder of the masks folders, if they are not beside the raw ones (a run's masks/, say).

    Returns
    -------
    Dataset
        Frames sorted by experiment, position and frame; problems sorted by frames lost.

    Raises
    ------
    SegkitError
        Where a folder does not exist or holds no usable image.

    Notes
    -----
    File headers are read, no pixels, and nothing is written.
    """
    root = _folder("DATASET_PATH", dataset_path, "*_raw_data")
    masks_root = _folder("MASKS_PATH", masks_path, "*_masks") if masks_path else root
    raw_folders = [folder for folder in _folders_in(root) if is_raw(folder)]
    problems = Problems()

    # beside experiments, other folders do not count
    if raw_folders:
        frames = _scan_experiments(raw_folders, masks_root, problems)
    else:
        frames = _scan_plain_folder(root, masks_root, problems)

    # the order does not depend on the file system; the costliest problem comes first
    frames.sort(key=lambda f: (f.experiment, f.position, f.frame, f.page))
    problems.sort(key=lambda p: (-p.frames_lost, str(p.path), p.reason))
    if not frames:
        why = f"; the first problem: {problems[0].reason}" if problems else ""
        raise SegkitError(f"DATASET_PATH {root} holds no experiment with a usable image: {_guess(root)}expected "
                          f"folders such as HR_REF_raw_data/Pos101/aphase with .tif, .tiff or .png files{why}")
    return Dataset(root, tuple(frames), tuple(problems))


def _folder(setting: str, path: str | Path, content: str) -> Path:
    """The folder that a setting names. Raises SegkitError where it cannot be used."""
    folder = Path(path).expanduser()
    if os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK):
        return folder
    found = "a folder that you may not read" if os.path.isdir(folder) else "not there"
    if os.path.isfile(folder):
        found = "a file, not a folder"
    raise SegkitError(f"{setting} {folder} is {found}: give the folder that holds the {content} folders")


def _images_by_folder(root: Path, problems: Problems, follow: bool = True) -> Tree:
    """The image files, masks among them, in a folder and in each one below it; see `walk`."""
    return {folder: _usable(files) for folder, files in walk(root, problems, follow)}


def _files_in(folder: Path, problems: Problems) -> list[Path]:
    """The image files, masks among them, directly in a folder."""
    return _usable(next(walk(folder, problems), (folder, []))[1])


def _usable(files: Iterable[Path]) -> list[Path]:
    """The files that are images or masks, without other output of a segmentation."""
    return [f for f in files if f.suffix.lower() in IMAGE_SUFFIXES and not BY_PRODUCT.search(f.stem)]


def _images(files: Iterable[Path]) -> list[Path]:
    return [f for f in files if not MASK_NAME.search(f.stem)]


def _masks(files: Iterable[Path]) -> list[Path]:
    return [f for f in files if MASK_NAME.search(f.stem)]


def _below(tree: Tree, folder: Path) -> Iterator[Path]:
    """The files in a folder and in all folders below it."""
    return (file for sub, files in tree.items() if sub.is_relative_to(folder) for file in files)


def _scan_experiments(raw_folders: Sequence[Path], masks_root: Path, problems: Problems) -> list[Frame]:
    """The frames of all experiments."""
    masks_folders = [folder for folder in _folders_in(masks_root)
                     if "masks" in folder.name.lower() and folder not in raw_folders]
    frames: list[Frame] = []
    by_name: dict[str, Path] = {}
    for raw in raw_folders:
        # two folders of one experiment would mix their positions
        name = experiment_name(raw.name)
        if by_name.setdefault(name, raw) is raw:
            frames += _scan_experiment(raw, _take(masks_folder_name(raw.name), masks_folders), problems)
        else:
            lost = len(_images(_below(_images_by_folder(raw, Problems()), raw)))
            problems.add(raw, f"a second folder of experiment {name}: {raw.name} is left out; rename it", lost)
    # masks folders of no experiment
    for folder in masks_folders:
        expected = re.sub("masks", "raw_data", folder.name, flags=re.IGNORECASE)
        _note_unused(folder, expected, _images_by_folder(folder, problems), problems)
    return frames


def _scan_experiment(raw: Path, masks: Path | None, problems: Problems) -> list[Frame]:
    """The frames of an experiment: its folder of images, and the masks folder that belongs to it."""
    name, frames = experiment_name(raw.name), []
    tree = _images_by_folder(raw, problems)
    masks_tree = _images_by_folder(masks, problems) if masks else {}
    masks_positions = [folder for folder in masks_tree if folder.parent == masks]

    # pair position by position; images in other folders have no position
    folders = [folder for folder in tree if folder.parent == raw]
    for folder in folders:
        if _is_position(folder):
            masks_folder = _take(folder.name, masks_positions)
            frames += _scan_position(folder, masks_folder, name, tree, masks_tree, masks is None, problems)
        elif lost := len(_images(_below(tree, folder))):
            problems.add(folder, f"{folder.name} is no PosXXX folder: its images are left out; rename it, or run "
                                 "segkit.arrange where it is a second folder of the same name", lost)
    if not any(map(_is_position, folders)):
        problems.add(raw, f"{raw.name} holds no PosXXX folder: expected Pos101 or the like")

    # files without a position, masks without images and images without masks are not lost silently
    for root, what, files in ((raw, "image(s)", _images(tree.get(raw, []))),
                              (masks or raw, "masks file(s)", masks_tree.get(masks or raw, []))):
        if files:
            problems.add(root, f"{len(files)} {what} lie outside any PosXXX folder: move them into one", len(files))
    for folder in masks_positions:
        _note_unused(folder, f"{raw.name}/{folder.name}", masks_tree, problems)
    unpaired = sum(frame.masks is None for frame in frames)
    if masks is None and unpaired:
        problems.add(raw, f"no masks folder beside {raw.name}: expected {masks_folder_name(raw.name)}; rename it or "
                          "run segkit.arrange", unpaired)
    return frames


def _note_unused(folder: Path, expected: str, tree: Tree, problems: Problems) -> None:
    """Masks whose images (in the folder `expected`) are not there are a problem."""
    if count := len(list(_below(tree, folder))):
        problems.add(folder, f"{count} masks file(s) in {folder.name} are not used: they need images in {expected}; "
                             "add or rename that folder, or move the masks elsewhere", count)


def _scan_position(folder: Path, masks_folder: Path | None, experiment: str, tree: Tree, masks_tree: Tree,
                   no_masks: bool, problems: Problems) -> list[Frame]:
    """The frames of a position: its images, with the masks in another folder or beside them."""
    before = len(problems)
    source, images = _pick(folder, tree, IMAGE_FOLDERS, problems)
    if not images and len(problems) == before:
        problems.add(folder, f"no image in {folder.name}: expected .tif, .tiff or .png files in aphase, "
                             "PreprocessedPhase or the folder itself")
    if not images:
        return []
    masks = _pick(masks_folder, masks_tree, MASK_FOLDERS, problems)[1] if masks_folder else []
    inside = [sub for sub in tree if plain_name(sub.name) == "masks" and sub.parent in (source, folder)]
    beside = _masks(tree[source]) + [file for sub in inside for file in tree[sub]]
    if not masks and not beside:
        elsewhere = [sub for sub in masks_tree if masks_folder and sub.is_relative_to(masks_folder)]
        _note_unread([source, *inside, *elsewhere], problems)
    return pair(images, masks + beside, experiment, readable(folder.name), folder, no_masks and not beside, problems)


def _note_unread(folders: Iterable[Path], problems: Problems) -> None:
    """Masks of a position without others that are saved in a way which is not read are a problem."""
    if unread := [file for folder in folders for file in sorted(folder.glob("*_seg.npy"))]:
        problems.add(unread[0].parent, f"{len(unread)} file(s) such as {unread[0].name} are not loaded, since a pickle "
                                       "can run code: save the masks as PNG or TIFF (in Cellpose: File, Save masks)")


def _scan_plain_folder(folder: Path, masks_root: Path, problems: Problems) -> list[Frame]:
    """Images in no layout; a position's folder, and the one in it that holds the images, keep their names."""
    place, source = folder.resolve(), folder
    experiment, position = readable(place.name), "Pos0"
    if named := next(filter(_is_position, (place, place.parent)), None):
        experiment, position = experiment_name(named.parent.name), readable(named.name)
    if named == place:
        source, _ = _pick(folder, _images_by_folder(folder, problems), IMAGE_FOLDERS, problems)
    # this folder alone, and masks in it: what else is below may be anything
    files = _files_in(source, problems)
    masks_tree = {sub: _files_in(sub, problems) for sub in _folders_in(source) if plain_name(sub.name) == "masks"}
    if masks_root != folder:
        elsewhere = _images_by_folder(masks_root, problems)
        masks_tree |= {sub: found for sub, found in elsewhere.items() if sub.resolve() != source.resolve()}
    masks = _masks(files) + [file for found in masks_tree.values() for file in found]
    if not masks:
        _note_unread([source, *masks_tree], problems)
    return pair(_images(files), masks, experiment, position, source, not masks, problems, plain=True)


def _pick(folder: Path, tree: Tree, names: tuple[str, ...], problems: Problems) -> tuple[Path, list[Path]]:
    """The first of the named subfolders that holds images, with these; others that do are a problem."""
    by_name = {sub.name.casefold(): sub for sub in tree if sub.parent == folder} | {"": folder}
    wanted = _images if names is IMAGE_FOLDERS else list
    found = [(by_name[name], files) for name in names if name in by_name and (files := wanted(tree[by_name[name]]))]
    for sub, files in found[1:]:
        problems.add(sub, f"{len(files)} file(s) in {sub.name} are not used: those in {found[0][0].name} are")
    if found:
        return found[0]
    # a folder of another name may be what the user means
    expected = "aphase" if names is IMAGE_FOLDERS else "PreprocessedPhaseMasks"
    for name, sub in by_name.items():
        if name not in (*names, "masks") and (files := _images(tree[sub])):
            problems.add(sub, f"{len(files)} image(s) in {sub.name} are left out: expected a folder named {expected}",
                         len(files))
    return folder, []


def _take(name: str, folders: list[Path]) -> Path | None:
    """Remove the folder of that name from a list and return it, if it is there."""
    found = next((folder for folder in folders if plain_name(folder.name) == plain_name(name)), None)
    if found:
        folders.remove(found)
    return found


def _folders_in(root: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones."""
    return sorted(path for path in root.iterdir() if not JUNK.match(path.name) and os.path.isdir(path))


def is_raw(folder: Path) -> bool:
    """Whether a folder is named as an experiment's folder of images."""
    return "raw_data" in folder.name.lower()


def _is_position(folder: Path) -> bool:
    """Whether a folder is a position in an experiment's folder of images."""
    return folder.name.lower().startswith("pos") and is_raw(folder.parent)


def experiment_name(folder: str) -> str:
    """HR_REF for a folder named HR_REF_raw_data; an accent is one character, also where a Mac wrote it as two."""
    name = re.sub("_?raw_data", "", folder, flags=re.IGNORECASE) or folder
    return unicodedata.normalize("NFC", readable(name))


def _guess(root: Path) -> str:
    """What a folder without experiments seems to be instead, with what to give."""
    place, closed = root.resolve(), Problems()
    if experiment := next(filter(is_raw, (*place.parents, place)), None):
        return f"it is part of an experiment itself, give {experiment.parent}; "
    tree = _images_by_folder(root, closed, follow=False)
    inside = [folder.parent for folder in tree if is_raw(folder) and folder.parent.parent == root]
    images = [folder for folder, files in tree.items() if folder != root and _images(files)]
    if inside:
        return f"give one of the folders in it, such as {inside[0]}; "
    if images:
        return f"images lie in {images[0].relative_to(root)}; "
    if any(map(_masks, tree.values())):
        return "there are masks in it and no images; "
    return f"{closed[0].reason}; " if closed else ""


def discover_split(settings: Settings, dataset: Dataset | None = None) -> Split:
    """The training and validation pairs by DATASET_PATH, MASKS_PATH, EXCLUDE and VALIDATION.

    dataset: what `discover` has found there, if it has been called already.
    """
    dataset = dataset or discover(settings.dataset_path, settings.masks_path)
    pairs, _ = exclude(dataset.pairs, settings.exclude)
    return split_by_position(pairs, settings.validation)
