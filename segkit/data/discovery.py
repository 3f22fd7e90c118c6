"""Find the images and masks of a dataset and pair them by name; what cannot be used becomes a Problem."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

from ..errors import SegkitError
from ..settings import Settings
from .dataset import (
    Dataset,
    Frame,
    Problem,
    Split,
    check_sizes,
    exclude,
    labels_stem,
    masks_folder_name,
    split_by_position,
)
from .images import IMAGE_SUFFIXES, Header, read_header

MASK_NAME = re.compile(r"^mask_(?P<a>.+)$|^(?P<b>.+?)_(?:cp_)?masks?$|^(?P<c>.+?)_labels$", re.IGNORECASE)
_DIGITS = re.compile(r"(\d+)")
STAMP, STAMP_STEP = 10_000, 50  # numbers so large, with steps so large, are a clock's: no one keeps one frame of 50
BY_ORDER = "are numbered by the order of their names, as if equally spaced in time"
UNTOLD = f"{BY_ORDER}: their names do not tell the time"
_BY_PRODUCT = re.compile(r"_(flows|cp_output|cp_outlines|outlines|dP|probability)$", re.IGNORECASE)
IMAGE_FOLDERS = ("aphase", "preprocessedphase", "")  # "": directly in PosXXX; the first that holds images is used
POSITION = re.compile("pos", re.IGNORECASE)
MASK_FOLDERS = ("preprocessedphasemasks", "")


class Key(NamedTuple):
    """What a file's name says: its words (upper and lower case are one), and the numbers between them."""

    words: tuple[str, ...]  # one more than numbers; what stands before, between and after them
    numbers: tuple[int, ...]

    def natural(self) -> tuple[str | int, ...]:
        """To sort by: words as text and numbers by value, so that t2 comes before t10."""
        return tuple(part for pair in zip(self.words, (*self.numbers, -1), strict=True) for part in pair)


def name_key(stem: str) -> Key:
    """Read the key of an image's or masks file's stem: `MASK_img_007`, `img_7` and `img_7_cp_masks` have one key."""
    match = MASK_NAME.match(stem)
    stem = next(filter(None, match.groups())) if match else stem
    parts = _DIGITS.split(unicodedata.normalize("NFC", stem).casefold())
    return Key(tuple(parts[::2]), tuple(map(int, parts[1::2])))


def frame_numbers(keys: Iterable[Key]) -> tuple[dict[Key, int], str]:
    """Read frame numbers from the names of one position's images: the number that differs between them and counts up.

    Where no number does so, or it is a time stamp, frames are numbered in natural order. A name that does not fit
    a time series beside it (`average` among `img_1`, `img_2`, ...) gets no number.
    Returns numbers by name, in natural order, and why they may not be the time ("" where nothing speaks against it).
    """
    keys = sorted(keys, key=Key.natural)
    if len(keys) < 2:
        return {key: key.numbers[-1] if key.numbers else 0 for key in keys}, ""
    series = max(_by_words(keys), key=len)
    slot = time_slot(series) if 2 * len(series) > len(keys) else None
    if slot is None:
        return {key: k for k, key in enumerate(keys)}, UNTOLD
    numbers = [key.numbers[slot] for key in series]
    steps = [b - a for a, b in pairwise(numbers)]
    if numbers[-1] >= STAMP and median_low(steps) >= STAMP_STEP:
        seconds = [b - a for a, b in pairwise(_seconds(numbers))]
        uneven = max(abs(step - median_low(seconds)) for step in seconds) > 0.2 * median_low(seconds)
        return {key: k for k, key in enumerate(series)}, (
            f"{BY_ORDER}: {numbers[0]} is a time stamp and no frame number"
            + uneven * ", and the steps between the stamps are uneven")
    doubt = ""
    if len(steps) > 1 and median_low(steps) > 1:  # with a step of 1, what is larger is a gap, and time is kept
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
    steps = {slot: median_low(b - a for a, b in pairwise(sorted(column))) for slot, column in enumerate(columns)
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
        numbers: list[tuple[int, Key]] = []
        for series in _by_words(sorted(keys, key=Key.natural)):
            slot = time_slot(series)
            if slot is None and len(series) == 1 and (len(series[0].numbers) == 1 or (alone and series[0].numbers)):
                slot = -1
            numbers += [(key.numbers[slot], key) for key in series] if slot is not None else []
        count = Counter(number for number, _ in numbers)
        found.append({number: key for number, key in numbers if count[number] == 1})
    return {found[0][n]: found[1][n] for n in found[0].keys() & found[1].keys()}


def _by_words(keys: Iterable[Key]) -> list[list[Key]]:
    series: dict[tuple[str, ...], list[Key]] = {}
    for key in keys:
        series.setdefault(key.words, []).append(key)
    return list(series.values())


def _seconds(stamps: Sequence[int]) -> list[int]:
    """Stamps such as 20240101113000 or 113000 in seconds; numbers that are none as they are."""
    clocks = [(n // 10 ** 6, n // 10 ** 4 % 100, n // 100 % 100, n % 100) for n in stamps]
    if any(h > 23 or m > 59 or s > 59 for _, h, m, s in clocks):
        return list(stamps)
    return [86400 * day + 3600 * h + 60 * m + s for day, h, m, s in clocks]


def same_name(a: str, b: str) -> bool:
    """Whether two names look the same: upper and lower case, and both ways to write an accent, are one."""
    return unicodedata.normalize("NFC", a).casefold() == unicodedata.normalize("NFC", b).casefold()


def folders_in(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(folder / e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__MACOSX")))


def files_in(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(folder / e.name for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES)
                      and not e.name.startswith(".") and e.is_file())


def images_in(folder: Path) -> list[Path]:
    """The picture files of a folder that are neither masks nor other output of a segmentation."""
    return [f for f in files_in(folder) if not MASK_NAME.match(f.stem) and not _BY_PRODUCT.search(f.stem)]


def folders_below(folder: Path) -> list[Path]:
    """The folder itself and every one below it."""
    return [Path(sub) for sub, _, _ in os.walk(folder)]


def pair(images: Sequence[Path], masks: Sequence[Path], experiment: str, position: str, where: Path,
         quiet: bool, problems: list[Problem]) -> list[Frame]:
    """The position's frames, in order; what is wrong with its files is added to problems.

    where: the folder that a problem of several files is said of. quiet: that there are no masks is no problem here.
    """
    by_key, by_image = _by_key(masks, "masks file", problems), _by_key(images, "image", problems)
    headers: dict[Key, Header] = {}
    damaged: dict[Key, Problem] = {}
    for key, path in by_image.items():
        try:
            headers[key] = read_header(path)
        except SegkitError as error:
            damaged[key] = Problem(path, str(error), 1)
    starts = _first_frames(by_image, headers, where, problems)
    first = min(starts.values(), default=None)
    problems += [damaged[key] for key in damaged if key in starts]
    same_number = {image: other for image, other in same_frames(starts, by_key).items() if other not in by_image}
    frames: list[Frame] = []
    unpaired, cropped = 0, 0
    used: set[Key | None] = {*by_image.keys() - starts.keys()}  # masks of images that are left out are no problem
    for key, start in starts.items():
        masks_key = key if key in by_key else same_number.get(key)
        used.add(masks_key)
        if key not in headers:
            continue
        image, header, masks_file = by_image[key], headers[key], by_key.get(masks_key) if masks_key else None
        files: list[Path | None] = [masks_file] * header.pages
        own = [k if (k := name_key(labels_stem(image, page))) in by_key and k not in by_image else None
               for page in range(1, header.pages)]  # a file for each page, as segkit writes them
        if any(own):
            used.update(own)
            files = [masks_file, *(by_key[k] if k else None for k in own)]
        unpaired += files.count(None)
        for file, pages in Counter(f for f in files if f is not None).items():
            try:
                cropped += pages * _differ(image, header._replace(pages=pages), file)
            except SegkitError as error:
                problems.append(Problem(file, str(error), pages))
                files = [None if f == file else f for f in files]
        frames += [Frame(image, labels_file, experiment, position, start + page, page, first)
                   for page, labels_file in enumerate(files)]
    if unpaired and not quiet:
        problems.append(Problem(where, f"{unpaired} frame(s) of {experiment} {position} have no masks file", unpaired))
    if cropped:
        problems.append(Problem(where, f"{cropped} frame(s) differ by 1-2 pixels from their masks: cropped to the "
                                       "common area"))
    if spare := [by_key[key] for key in by_key if key not in used]:
        problems.append(Problem(spare[0].parent, f"{len(spare)} masks file(s) of {experiment} {position} have no "
                                                 f"image, {spare[0].name} the first", len(spare)))
    return frames


def _first_frames(by_image: Mapping[Key, Path], headers: Mapping[Key, Header], where: Path,
                  problems: list[Problem]) -> dict[Key, int]:
    """The frame number of each file's first page, in order; files left out, and what is assumed, become problems."""
    numbers, doubt = frame_numbers(by_image)
    strays = sorted(by_image[key].name for key in by_image.keys() - numbers.keys())
    films = [key for key, header in headers.items() if header.pages > 1]
    if len(films) == 1 and len(headers) == len(by_image) and 1 < len(by_image) <= headers[films[0]].pages:
        # a film, and single pictures beside it such as ImageJ's AVG_film: they are no times of it
        doubt, strays = "", sorted(path.name for key, path in by_image.items() if key != films[0])
        numbers = {films[0]: 0}
    if strays and all(header.pages > 1 for header in headers.values()):  # film, film_1, film_2: parts of a time-lapse
        numbers, doubt, strays = {key: k for k, key in enumerate(sorted(by_image, key=Key.natural))}, UNTOLD, []
    if strays:
        problems.append(Problem(where, f"{len(strays)} image(s) are left out, {strays[0]} the first: their names do "
                                       f"not fit the others, such as {by_image[next(iter(numbers))].name}; move them "
                                       "elsewhere, or rename them if they are frames", len(strays)))
    several = len(numbers) > 1
    for key in [key for key in numbers if key in headers and headers[key].axis == "Z"]:
        planes = f"{by_image[key].name} holds {headers[key].pages} planes along z"
        if several:
            problems.append(Problem(by_image[key], f"{planes}, and other times lie beside it: export one z plane of "
                                                   "every time (if the planes are times, save them as such: in Fiji, "
                                                   "Image > Properties)", headers[key].pages))
            del numbers[key]
        else:
            problems.append(Problem(where, f"{planes} and no time: they are read as times; if they are depths, export "
                                           "one z plane of every time"))
    pages = [headers[key].pages if key in headers else 0 for key in numbers]  # 0: unknown, the file is damaged
    if max(pages, default=0) > 1:
        gaps = any(b - a != 1 for a, b in pairwise(numbers.values()))
        if len(pages) > 1 and (doubt or gaps or min(pages) < 2):
            doubt = f"({sum(n or max(pages) for n in pages)} pages) {BY_ORDER}, and none missing between them" + (
                f"; a damaged one counts as {max(pages)}" if 0 in pages else "")
        numbers = dict(zip(numbers, accumulate((n or max(pages) for n in pages), initial=0), strict=False))
    if doubt:
        problems.append(Problem(where, f"the {len(numbers)} images of {where.name} {doubt}"))
    return numbers


def _by_key(files: Sequence[Path], what: str, problems: list[Problem]) -> dict[Key, Path]:
    """Files by what their names say; of two that say the same the first is used, the other a problem."""
    found: dict[Key, Path] = {}
    clashes = defaultdict(list)
    for path in files:
        key = name_key(path.stem)
        if key in found:
            clashes[key].append(path)
        else:
            found[key] = path
    problems += [Problem(path, f"a second {what} for the same frame: {found[key].name} is used, {path.name} is not; "
                               "remove one of them", int(what == "image"))
                 for key, paths in clashes.items() for path in paths]
    return found


def _differ(image: Path, header: Header, masks: Path) -> bool:
    """Whether masks are a pixel or two larger or smaller. Raises SegkitError where they are damaged or do not fit."""
    other = read_header(masks)
    check_sizes(image.name, header.size, other.size)
    if header.pages != other.pages:
        raise SegkitError(f"{image.name} has {header.pages} page(s), its masks file {other.pages}: "
                          "one page of masks a page of images was needed")
    return header.size != other.size


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
