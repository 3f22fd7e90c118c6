"""Find the images and masks of a dataset and pair them by name; what cannot be used becomes a Problem."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

from ..errors import SegkitError
from ..settings import Settings
from .dataset import Dataset, Frame, Problem, Split, exclude, labels_stem, masks_folder_name, split_by_position
from .images import IMAGE_SUFFIXES, Header, check_sizes, read_header

MASK_NAME = re.compile(r"^mask_(?P<a>.+)$|^(?P<b>.+?)_(?:cp_)?masks?$|^(?P<c>.+?)_labels$", re.IGNORECASE)
BY_PRODUCT = re.compile(r"_(flows|cp_output|cp_outlines|outlines|dP|probability)$", re.IGNORECASE)
MIN_STAMP, MIN_STAMP_STEP = 10_000, 50  # larger numbers with larger steps are time stamps and no frame numbers
BY_ORDER = "are numbered by the order of their names, as if equally spaced in time"
UNTOLD = f"{BY_ORDER}: their names do not tell the time"
IMAGE_FOLDERS = ("aphase", "preprocessedphase", "")  # "": directly in PosXXX; the first that holds images is used
MASK_FOLDERS = ("preprocessedphasemasks", "")


class Key(NamedTuple):
    """A file name in parts: its words (upper and lower case are the same), and the numbers between them."""

    words: tuple[str, ...]  # one more than numbers; what stands before, between and after them
    numbers: tuple[int, ...]

    def natural(self) -> tuple[str | int, ...]:
        """To sort by: words as text and numbers by value, so that t2 comes before t10."""
        return tuple(part for pair in zip(self.words, (*self.numbers, -1), strict=True) for part in pair)


def name_key(stem: str) -> Key:
    """Read the key of an image's or masks file's stem: `MASK_img_007`, `img_7` and `img_7_cp_masks` have one key."""
    match = MASK_NAME.match(stem)
    stem = next(filter(None, match.groups())) if match else stem
    parts = re.split(r"(\d+)", _plain(stem))
    return Key(tuple(parts[::2]), tuple(map(int, parts[1::2])))


def _plain(name: str) -> str:
    """A name to compare by: upper and lower case, and both ways to write an accent, are the same."""
    return unicodedata.normalize("NFC", name).casefold()


def frame_numbers(keys: Iterable[Key]) -> tuple[dict[Key, int], str]:
    """Read frame numbers from the names of one position's images: the number that differs between them and counts up.

    Where no number does so, or it is a time stamp, frames are numbered in natural order. A name that does not fit
    a time series beside it (`average` among `img_1`, `img_2`, ...) gets no number.
    Returns numbers by name, in natural order, and why they may not be the time ("" where nothing speaks against it).
    """
    keys = sorted(keys, key=Key.natural)
    if len(keys) < 2:
        return {key: key.numbers[-1] if key.numbers else 0 for key in keys}, ""

    # the time series: most of the names, with the same words and a number that counts up
    series = max(_by_words(keys), key=len)
    slot = time_slot(series) if 2 * len(series) > len(keys) else None
    if slot is None:
        return {key: k for k, key in enumerate(keys)}, UNTOLD
    numbers = [key.numbers[slot] for key in series]
    steps = _steps(numbers)
    usual = median_low(steps)

    # a time stamp tells the order, and whether the steps are even, but no frame number
    if numbers[-1] >= MIN_STAMP and usual >= MIN_STAMP_STEP:
        doubt = f"{BY_ORDER}: {numbers[0]} is a time stamp and no frame number"
        seconds = _steps(_seconds(numbers))
        if max(abs(step - median_low(seconds)) for step in seconds) > 0.2 * median_low(seconds):
            doubt += ", and the steps between the stamps are uneven"
        return {key: k for k, key in enumerate(series)}, doubt

    # larger steps may be minutes; with a step of 1, what is larger is a gap, and time is kept
    doubt = ""
    if len(steps) > 1 and usual > 1:
        rise = f"{min(steps)} to {max(steps)}, unevenly" if min(steps) < max(steps) else f"{steps[0]}"
        doubt = (f"have numbers that rise by {rise}: they are taken for frame numbers, MINUTES_PER_FRAME apart; number "
                 "the files 0, 1, 2, ... if they are minutes or seconds")
    return dict(zip(series, numbers, strict=True)), doubt


def time_slot(series: Sequence[Key]) -> int | None:
    """Which number tells the time of names with the same words, in natural order; None where it cannot be told.

    It differs in every name. Of several such, it is the one that rises by the smallest steps (the last, if equal).
    In natural order it must rise: else two orders are possible, or a day or an hour stands before it.
    """
    columns = list(zip(*(key.numbers for key in series), strict=True))
    steps = {slot: median_low(_steps(sorted(column))) for slot, column in enumerate(columns)
             if len(series) > 1 and len(set(column)) == len(column)}
    best = min(steps, key=lambda slot: (steps[slot], -slot), default=None)
    return best if best is not None and sorted(columns[best]) == list(columns[best]) else None


def same_frames(images: Collection[Key], masks: Collection[Key]) -> dict[Key, Key]:
    """Pair an image and a masks file that are named differently by the number that tells their frame.

    No other image or masks file may share it. A name whose words no other has must have one number only; of one image
    and one masks file the last numbers count.
    """
    alone, found = len(images) == len(masks) == 1, []
    for keys in (images, masks):
        by_number: dict[int, list[Key]] = defaultdict(list)
        for series in _by_words(sorted(keys, key=Key.natural)):
            slot = time_slot(series)
            if slot is None and len(series) == 1 and (len(series[0].numbers) == 1 or (alone and series[0].numbers)):
                slot = -1
            if slot is not None:
                for key in series:
                    by_number[key.numbers[slot]].append(key)
        found.append({number: same[0] for number, same in by_number.items() if len(same) == 1})
    return {found[0][number]: found[1][number] for number in found[0].keys() & found[1].keys()}


def _by_words(keys: Iterable[Key]) -> list[list[Key]]:
    """Names with the same words, together."""
    series: dict[tuple[str, ...], list[Key]] = defaultdict(list)
    for key in keys:
        series[key.words].append(key)
    return list(series.values())


def _steps(numbers: Iterable[int]) -> list[int]:
    """Differences between neighbours."""
    return [b - a for a, b in pairwise(numbers)]


def _seconds(stamps: Sequence[int]) -> list[int]:
    """Time stamps such as 20240101113000 or 113000 in seconds; other numbers unchanged."""
    clocks = [(n // 10 ** 6, n // 10 ** 4 % 100, n // 100 % 100, n % 100) for n in stamps]
    if any(h > 23 or m > 59 or s > 59 for _, h, m, s in clocks):
        return list(stamps)
    return [86400 * day + 3600 * h + 60 * m + s for day, h, m, s in clocks]


def _walk(root: Path, problems: list[Problem]) -> dict[Path, list[Path]]:
    """The image files (masks among them) in a folder and in each below it; a closed folder is a problem."""
    def closed(error: OSError) -> None:
        folder = Path(error.filename)
        problems.append(Problem(folder, f"{folder.name} cannot be read ({error.strerror}): give yourself the right to "
                                        "read it"))

    tree = {}
    for name, subfolders, files in os.walk(root, onerror=closed, followlinks=True):
        folder = Path(name)
        subfolders[:] = sorted(sub for sub in subfolders if not sub.startswith((".", "__MACOSX"))
                               and not folder.resolve().is_relative_to((folder / sub).resolve()))  # a link upwards
        images = [folder / file for file in sorted(files)
                  if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith(".")]
        tree[folder] = [image for image in images if image.is_file()]  # not a broken link
    return tree


def _images(files: Iterable[Path]) -> list[Path]:
    """The files that are neither masks nor other output of a segmentation."""
    return [f for f in files if not MASK_NAME.match(f.stem) and not BY_PRODUCT.search(f.stem)]


def _masks(files: Iterable[Path]) -> list[Path]:
    """The files that are named as masks."""
    return [f for f in files if MASK_NAME.match(f.stem)]


def _below(tree: Mapping[Path, list[Path]], folder: Path) -> Iterator[Path]:
    """The files in a folder and in all folders below it."""
    return (file for sub, files in tree.items() if sub.is_relative_to(folder) for file in files)


def pair(images: Sequence[Path], masks: Sequence[Path], experiment: str, position: str, where: Path,
         quiet: bool, problems: list[Problem]) -> list[Frame]:
    """The position's frames, in order; what is wrong with its files is added to problems.

    where: the folder that a problem of several files names. quiet: missing masks are no problem here.
    """
    masks_by_key = _by_key(masks, "masks file", problems)
    images_by_key = _by_key(images, "image", problems)

    # a damaged image keeps its place in time, so that it shifts no other frame
    headers: dict[Key, Header] = {}
    damaged: dict[Key, Problem] = {}
    for key, path in images_by_key.items():
        try:
            headers[key] = read_header(path)
        except SegkitError as error:
            damaged[key] = Problem(path, str(error), 1)
    starts = _first_frames(images_by_key, headers, where, problems)
    first = min(starts.values(), default=None)
    problems += [damaged[key] for key in damaged if key in starts]

    # pair by name, or else by the number that tells the frame; masks of images that are left out are no problem
    same_number = {key: other for key, other in same_frames(starts, masks_by_key).items() if other not in images_by_key}
    used: set[Key | None] = {*images_by_key.keys() - starts.keys()}
    frames: list[Frame] = []
    unpaired, cropped = 0, 0
    for key, start in starts.items():
        masks_key = key if key in masks_by_key else same_number.get(key)
        used.add(masks_key)
        if key in headers:
            image, header = images_by_key[key], headers[key]
            # segkit itself writes one masks file for each page
            own = [k if k in masks_by_key and k not in images_by_key else None
                   for k in (name_key(labels_stem(image, page)) for page in range(1, header.pages))]
            keys = [masks_key, *own] if any(own) else [masks_key] * header.pages
            used.update(keys)
            files = [masks_by_key[k] if k else None for k in keys]
            unpaired += files.count(None)
            files, differ = _usable_masks(image, header, files, problems)
            cropped += differ
            frames += [Frame(image, file, experiment, position, start + page, page, first)
                       for page, file in enumerate(files)]

    if unpaired and not quiet:
        problems.append(Problem(where, f"{unpaired} frame(s) of {experiment} {position} have no masks file", unpaired))
    if cropped:
        problems.append(Problem(where, f"{cropped} frame(s) differ by 1-2 pixels from their masks: cropped to the "
                                       "common area"))
    if spare := [path for key, path in masks_by_key.items() if key not in used]:
        problems.append(Problem(spare[0].parent, f"{len(spare)} masks file(s) of {experiment} {position} have no "
                                                 f"image, {spare[0].name} the first", len(spare)))
    return frames


def _usable_masks(image: Path, header: Header, files: list[Path | None],
                  problems: list[Problem]) -> tuple[list[Path | None], int]:
    """The masks file of each page, None where it does not fit; and how many pages differ in size by a pixel or two."""
    differ = 0
    for file, pages in Counter(f for f in files if f is not None).items():
        try:
            masks = read_header(file)
            check_sizes(image.name, header.size, masks.size)
            if pages != masks.pages:
                raise SegkitError(f"{image.name} has {pages} page(s), its masks file {masks.pages}: one page of masks "
                                  "a page of images was needed")
            differ += pages * (header.size != masks.size)
        except SegkitError as error:
            problems.append(Problem(file, str(error), pages))
            files = [None if f == file else f for f in files]
    return files, differ


def _first_frames(by_key: Mapping[Key, Path], headers: Mapping[Key, Header], where: Path,
                  problems: list[Problem]) -> dict[Key, int]:
    """The frame number of each file's first page, in order; files left out, and what is assumed, become problems."""
    numbers, doubt = frame_numbers(by_key)
    strays = sorted(by_key[key].name for key in by_key.keys() - numbers.keys())

    # one film, and single images beside it such as ImageJ's AVG_film: they are no times of it
    films = [key for key, header in headers.items() if header.pages > 1]
    if len(films) == 1 and len(headers) == len(by_key) and 1 < len(by_key) <= headers[films[0]].pages:
        numbers, doubt = {films[0]: 0}, ""
        strays = sorted(path.name for key, path in by_key.items() if key != films[0])
    # film, film_1, film_2: parts of a time-lapse
    if strays and all(header.pages > 1 for header in headers.values()):
        numbers, doubt, strays = {key: k for k, key in enumerate(sorted(by_key, key=Key.natural))}, UNTOLD, []
    if strays:
        problems.append(Problem(where, f"{len(strays)} image(s) are left out, {strays[0]} the first: their names do "
                                       f"not fit the others, such as {by_key[next(iter(numbers))].name}; move them "
                                       "elsewhere, or rename them if they are frames", len(strays)))

    # planes along z count as times only where the position has no other file
    several = len(numbers) > 1
    for key in [key for key in numbers if key in headers and headers[key].axis == "Z"]:
        planes = f"{by_key[key].name} holds {headers[key].pages} planes along z"
        if several:
            problems.append(Problem(by_key[key], f"{planes}, and other times lie beside it: export one z plane of "
                                                 "every time (if the planes are times, save them as such: in Fiji, "
                                                 "Image > Properties)", headers[key].pages))
            del numbers[key]
        else:
            problems.append(Problem(where, f"{planes} and no time: they are read as times; if they are depths, export "
                                           "one z plane of every time"))

    # parts of a time-lapse follow one another; the pages of a damaged part (0) are unknown
    pages = [headers[key].pages if key in headers else 0 for key in numbers]
    most = max(pages, default=0)
    if most > 1:
        assumed = [count or most for count in pages]
        gaps = any(step != 1 for step in _steps(numbers.values()))
        if len(pages) > 1 and (doubt or gaps or min(pages) < 2):
            doubt = f"({sum(assumed)} pages) {BY_ORDER}, and none missing between them"
            doubt += f"; a damaged one counts as {most}" if 0 in pages else ""
        numbers = dict(zip(numbers, accumulate(assumed, initial=0), strict=False))
    if doubt:
        problems.append(Problem(where, f"the {len(numbers)} images of {where.name} {doubt}"))
    return numbers


def _by_key(files: Sequence[Path], what: str, problems: list[Problem]) -> dict[Key, Path]:
    """Files by key; of two with the same key the first is used, and the other is a problem."""
    found: dict[Key, Path] = {}
    for path in files:
        used = found.setdefault(name_key(path.stem), path)
        if used is not path:
            problems.append(Problem(path, f"a second {what} for the same frame: {used.name} is used, {path.name} is "
                                          "not; remove one of them", int(what == "image")))
    return found


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
    raw_folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and _is_raw(folder)]
    masks_folders = [folder for folder in sorted(masks_root.iterdir())
                     if folder.is_dir() and "masks" in folder.name.lower() and folder not in raw_folders]
    frames: list[Frame] = []
    problems: list[Problem] = []

    # where there are experiments, only they count
    names, used = set(), set()
    for raw in raw_folders:
        name, masks = _experiment_name(raw), _named(masks_folder_name(raw.name), masks_folders)
        if name in names:
            problems.append(Problem(raw, f"a second folder of experiment {name}: {raw.name} is left out; rename it",
                                    len(_images(_below(_walk(raw, []), raw)))))
            continue
        names.add(name)
        used.add(masks)
        frames += _scan_experiment(raw, masks, problems)
    if not raw_folders:
        frames += _scan_plain_folder(root, masks_root, problems)
    for folder in masks_folders if raw_folders else []:
        if folder not in used:
            expected = re.sub("masks", "raw_data", folder.name, flags=re.IGNORECASE)
            _note_unused(folder, expected, _walk(folder, problems), problems)

    if not frames:
        why = f"; the first problem: {problems[0].reason}" if problems else ""
        raise SegkitError(f"DATASET_PATH {root} holds no experiment with a usable image: {_guess(root)}expected "
                          f"folders such as HR_REF_raw_data/Pos101/aphase with .tif, .tiff or .png files{why}")
    frames.sort(key=lambda f: (f.experiment, f.position, f.frame, f.page))
    problems.sort(key=lambda p: (-p.frames_lost, str(p.path), p.reason))
    return Dataset(root, tuple(frames), tuple(problems))


def _folder(setting: str, path: str | Path, content: str) -> Path:
    """The folder that a setting names. Raises SegkitError where it cannot be used."""
    folder = Path(path).expanduser()
    found = "" if os.path.isdir(folder) else "a file, not a folder" if os.path.exists(folder) else "not there"
    if not found and not os.access(folder, os.R_OK | os.X_OK):
        found = "closed to you (no right to read it)"
    if found:
        raise SegkitError(f"{setting} {folder} is {found}: give the folder that holds the {content} folders")
    return folder


def _scan_experiment(raw: Path, masks: Path | None, problems: list[Problem]) -> list[Frame]:
    """The frames of an experiment: its folder of images, and the masks folder that belongs to it."""
    name, frames = _experiment_name(raw), []
    tree = _walk(raw, problems)
    masks_tree = _walk(masks, problems) if masks else {}
    masks_positions = [folder for folder in masks_tree if folder.parent == masks]

    for folder in [folder for folder in tree if folder.parent == raw]:
        if _is_position(folder):
            masks_folder = _named(folder.name, masks_positions)
            masks_positions = [other for other in masks_positions if other != masks_folder]
            frames += _scan_position(folder, masks_folder, name, tree, masks_tree, masks is None, problems)
        elif lost := len(_images(_below(tree, folder))):
            problems.append(Problem(folder, f"{folder.name} is no PosXXX folder: its images are left out; rename it, "
                                            "or run segkit.arrange where it is a second folder of the same name", lost))

    # files that belong to no position or to no image are not lost silently
    if not any(folder.parent == raw and _is_position(folder) for folder in tree):
        problems.append(Problem(raw, f"{raw.name} holds no PosXXX folder: expected Pos101 or the like"))
    loose = {raw: ("image(s)", _images(tree.get(raw, [])))}
    if masks:
        loose[masks] = "masks file(s)", masks_tree.get(masks, [])
    for folder, (what, files) in loose.items():
        if files:
            problems.append(Problem(folder, f"{len(files)} {what} lie outside any PosXXX folder: move them into one",
                                    len(files)))
    for folder in masks_positions:
        _note_unused(folder, f"{raw.name}/{folder.name}", masks_tree, problems)
    unpaired = sum(frame.masks is None for frame in frames)
    if masks is None and unpaired:
        problems.append(Problem(raw, f"no masks folder beside {raw.name}: expected {masks_folder_name(raw.name)}; "
                                     "rename it or run segkit.arrange", unpaired))
    return frames


def _note_unused(folder: Path, expected: str, tree: Mapping[Path, list[Path]], problems: list[Problem]) -> None:
    """Masks whose images (in the folder `expected`) are not there are a problem."""
    if count := len(list(_below(tree, folder))):
        problems.append(Problem(folder, f"{count} masks file(s) in {folder.name} are not used: they need images in "
                                        f"{expected}; add or rename that folder, or move the masks elsewhere", count))


def _scan_position(folder: Path, masks_folder: Path | None, experiment: str, tree: Mapping[Path, list[Path]],
                   masks_tree: Mapping[Path, list[Path]], no_masks: bool, problems: list[Problem]) -> list[Frame]:
    """The frames of a position: its images, with the masks in another folder or beside them."""
    before = len(problems)
    source, images = _pick(folder, tree, IMAGE_FOLDERS, problems)
    if not images and len(problems) == before:
        problems.append(Problem(folder, f"no image in {folder.name}: expected .tif, .tiff or .png files in aphase, "
                                        "PreprocessedPhase or the folder itself"))
    if not images:
        return []
    masks = _pick(masks_folder, masks_tree, MASK_FOLDERS, problems)[1] if masks_folder else []
    beside = _masks(tree[source])
    return pair(images, masks + beside, experiment, folder.name, folder, no_masks and not beside, problems)


def _scan_plain_folder(folder: Path, masks_root: Path, problems: list[Problem]) -> list[Frame]:
    """Images in no layout; a position's folder, and the one in it that holds the images, keep their names."""
    tree, source, place = _walk(folder, problems), folder, folder.resolve()
    experiment, position = place.name, "Pos0"
    if _is_position(place):
        experiment, position = _experiment_name(place.parent), place.name
        source, _ = _pick(folder, tree, IMAGE_FOLDERS, problems)
    elif _is_position(place.parent):
        experiment, position = _experiment_name(place.parent.parent), place.parent.name
    images, masks = _images(tree[source]), _masks(tree[source])
    if masks_root != folder:
        masks += [f for f in _below(_walk(masks_root, problems), masks_root) if f.parent.resolve() != source.resolve()]
    return pair(images, masks, experiment, position, source, not masks, problems) if images else []


def _pick(folder: Path, tree: Mapping[Path, list[Path]], names: tuple[str, ...],
          problems: list[Problem]) -> tuple[Path, list[Path]]:
    """The first of the named subfolders that holds images, with these; others that do are a problem."""
    by_name = {sub.name.casefold(): sub for sub in tree if sub.parent == folder} | {"": folder}
    wanted = _images if names is IMAGE_FOLDERS else list
    found = [(by_name[name], files) for name in names if name in by_name and (files := wanted(tree[by_name[name]]))]
    for sub, files in found[1:]:
        problems.append(Problem(sub, f"{len(files)} file(s) in {sub.name} are not used: those in {found[0][0].name} "
                                     "are"))
    if found:
        return found[0]
    expected = "aphase" if names is IMAGE_FOLDERS else "PreprocessedPhaseMasks"
    for name, sub in by_name.items():
        if name not in names and (files := _images(tree[sub])):
            problems.append(Problem(sub, f"{len(files)} image(s) in {sub.name} are left out: expected a folder named "
                                         f"{expected}", len(files)))
    return folder, []


def _named(name: str, folders: Iterable[Path]) -> Path | None:
    """The folder of that name, if it is there."""
    return next((folder for folder in folders if _plain(folder.name) == _plain(name)), None)


def _is_raw(folder: Path) -> bool:
    """Whether a folder is named as an experiment's folder of images."""
    return "raw_data" in folder.name.lower()


def _is_position(folder: Path) -> bool:
    """Whether a folder is a position in an experiment's folder of images."""
    return folder.name.lower().startswith("pos") and _is_raw(folder.parent)


def _experiment_name(raw: Path) -> str:
    """HR_REF for the folder HR_REF_raw_data."""
    return re.sub("_?raw_data", "", raw.name, flags=re.IGNORECASE) or raw.name


def _guess(root: Path) -> str:
    """What a folder without experiments seems to be instead, with what to give."""
    place, closed = root.resolve(), list[Problem]()
    if experiment := next(filter(_is_raw, (*place.parents, place)), None):
        return f"it is part of an experiment itself, give {experiment.parent}; "
    tree = _walk(root, closed)
    inside = [folder.parent for folder in tree if _is_raw(folder) and folder.parent.parent == root]
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
