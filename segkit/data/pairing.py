"""Pair the images and masks files of one position by their names, and read frame numbers from them."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise, takewhile
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

from ..errors import SegkitError, readable
from .dataset import Frame, Problems, labels_stem
from .images import Header, check_sizes, read_header

MASK_NAME = re.compile(r"^mask_(?=.)|(?<=.)_((cp_)?masks?|labels?|seg|segmentation)$", re.IGNORECASE)
PHASE = re.compile(r"(^|[^a-z])(a?phase|phase.?contrast|ph|phc|phaco)($|[^a-z])")  # in the name of a channel
BARE = "(no word)"  # the label of names that lack the word of others beside them
JOINTS = {".", "-", ":"}  # between the numbers of a date or a clock
UNIT = re.compile(r"(d|day|days|h|hr|hrs|m|min|s|sec|ms)($|[^a-z])")  # after a number that counts time
WORDS = {"time": {"t", "time", "tp", "timepoint", "frame", "fr", "img", "image", "day", "hour", "h", "min"},
         "channel": {"c", "ch", "channel", "w", "wavelength", "z"},
         "position": {"xy", "pos", "position", "p", "s", "site", "stage", "series", "scene", "fov", "field", "point",
                      "well", "tile"}}  # what a number counts, by the letters before it
MIN_STAMP, MIN_STAMP_STEP = 10_000, 50  # larger numbers with larger steps are time stamps and no frame numbers
BY_ORDER = "are numbered by the order of their names, as if equally spaced in time"
UNTOLD = f"{BY_ORDER}: their names do not tell the time"


class Key(NamedTuple):
    """A file name in parts: its words (upper and lower case are the same), and the numbers between them."""

    words: tuple[str, ...]  # one more than numbers; what stands before, between and after them
    numbers: tuple[int, ...]

    def natural(self) -> tuple[str | int, ...]:
        """To sort by: words as text and numbers by value, so that t2 comes before t10."""
        return tuple(part for pair in zip(self.words, (*self.numbers, -1), strict=True) for part in pair)


def name_key(stem: str) -> Key:
    """Read the key of an image's or masks file's stem: `MASK_img_007`, `img_7` and `img_7_cp_masks` have one key."""
    parts = re.split(r"(\d+)", plain_name(MASK_NAME.sub("", stem, count=1)))
    return Key(tuple(parts[::2]), tuple(map(int, parts[1::2])))


def plain_name(name: str) -> str:
    """A name to compare by: upper and lower case, and both ways to write an accent, are the same."""
    return unicodedata.normalize("NFC", readable(name)).casefold()


def frame_numbers(keys: Collection[Key]) -> tuple[dict[Key, int], str]:
    """Read frame numbers from the names of one position's images: the number that differs between them and counts up.

    Where no number does so, or it is a time stamp, frames are numbered in natural order. A name that does not fit
    a time series beside it (`average` among `img_1`, `img_2`, ...) gets no number.
    Returns numbers by name, in natural order as the names, and why they may not be the time ("" where they are).
    """
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


def turns(keys: Collection[Key], stacks: Collection[Key] = ()) -> tuple[dict[Key, str], dict[Key, str]]:
    """The position, and the channel (or depth), by which the files of one folder take turns; "" where they do not.

    Files take turns where the same times occur with different words (img_1_phase, img_1_gfp), and where a number
    repeats beside one that counts the time (t1xy1, t1xy2). The files `stacks` hold several times each.
    """
    position, channel = dict.fromkeys(keys, ""), dict.fromkeys(keys, "")
    series = [_Series(same, set(same) <= set(stacks)) for same in _by_words(keys)]

    # other words with the same numbers, and stacks with other words: film, film_1, film_2 have the same
    several = [one for one in series if len(one.keys) > 1 and not one.is_stack]
    largest = max(several, key=lambda one: len(one.keys), default=None)
    repeating = [one for one in several if largest and one.repeats(largest)]
    for alike in (repeating, [one for one in series if one.is_stack]):
        beside = zip(*(one.parts for one in alike), strict=False)
        same = len([*takewhile(lambda parts: len(set(parts)) == 1, beside)])  # parts that all of them begin with
        differ = any(len(one.parts) > same for one in alike)
        for one in alike:
            channel |= dict.fromkeys(one.keys, " ".join(one.parts[same:]) or BARE * differ)

    # other numbers than the time
    for one in series:
        for column in one.turning():
            found = position if one.letters[column] in WORDS["position"] else channel
            for key in one.keys:
                found[key] = f"{found[key]} {one.letters[column]}{key.numbers[column]:02d}".strip()
    return position, channel


class _Series:
    """Names with the same words. What their numbers count is told by the letters beside them, and by their values."""

    def __init__(self, keys: Sequence[Key], is_stack: bool) -> None:
        self.keys, self.is_stack = keys, is_stack
        columns = list(zip(*(key.numbers for key in keys), strict=True))
        self.varying = {i: column for i, column in enumerate(columns) if len(set(column)) > 1}
        # the letters before each number: t, xy, channel
        self.letters = [re.findall(r"[^\W\d_]*$", word.rstrip("_-. ="))[0] for word in keys[0].words]
        # a number that stays the same belongs to the words: Cy5, w1Phase
        fixed = [" " if i in self.varying else str(number) for i, number in enumerate(keys[0].numbers)]
        text = "".join(word + number for word, number in zip(keys[0].words, [*fixed, ""], strict=True))
        # stacks that differ by a number only are parts of one time-lapse
        self.parts = re.findall(r"[^\W\d_]+" if is_stack else r"[^\W_]+", text)

    def repeats(self, other: "_Series") -> bool:
        """Whether half of the names have the numbers of another series, or, if they are many, numbers between them."""
        own, others = (list(zip(*one.varying.values(), strict=True)) for one in (self, other))
        between = [n for n in own if n in others or (2 * len(own) >= len(others) and min(others) <= n <= max(others))]
        return len(self.varying) == len(other.varying) and 2 * len(between) >= len(own)

    def may_be_time(self, column: int) -> bool:
        """Whether a number counts time by its letters (t1, 12h), in a date or clock (10-30, 240312), or its steps."""
        (before, after), numbers = self.keys[0].words[column:column + 2], sorted(set(self.varying[column]))
        dates = all(1900 <= n <= 2100 or (n > 10_000 and 0 < n // 100 % 100 < 13 and 0 < n % 100 < 32) for n in numbers)
        joined = (before in JOINTS and column > 0) or (after in JOINTS and column + 1 < len(self.keys[0].numbers))
        minutes = numbers[-1] < 60 and min(_steps(numbers)) > 1  # or seconds: channels and positions rise by 1
        return dates or joined or minutes or self.letters[column] in WORDS["time"] or bool(UNIT.match(after))

    def turning(self) -> list[int]:
        """The numbers by which the names take turns."""
        known = WORDS["position"] | WORDS["channel"]
        if self.is_stack:
            return [i for i in self.varying if self.letters[i] in known]
        if len(self.varying) < 2:
            return []
        # the time has its letter, or else is the most varied number
        time = max(self.varying, key=lambda i: (self.letters[i] in WORDS["time"], self.letters[i] not in known,
                                                len(set(self.varying[i])), i))
        unique = any(len(set(column)) == len(column) for column in self.varying.values())
        return [i for i, column in self.varying.items() if i != time and 2 * len(set(column)) <= len(column)
                and (self.letters[i] in known or not (unique or self.may_be_time(i)))]


class _Image(NamedTuple):
    """An image file and its header, of 0 pages where the file is damaged: it keeps its place in time."""

    path: Path
    header: Header


def _read(path: Path) -> _Image:
    try:
        return _Image(path, read_header(path))
    except SegkitError as error:
        return _Image(path, Header(0, 0, 0, times=(), left_out=(str(error), error.frames_lost)))


def _one_time_lapse(channel_of: Mapping[Key, str], images: dict[Key, _Image], where: Path,
                    problems: Problems) -> dict[Key, _Image]:
    """The images of one channel: that of phase contrast, where names or headers tell it; else none."""
    found = {key: f"{channel_of[key]} {image.header.channel}".strip()
             or "phase" * bool(PHASE.search(image.path.stem.casefold())) for key, image in images.items()}
    channels = {found[key]: image.path.name for key, image in images.items() if found[key]}
    phase = [channel for channel in channels if PHASE.search(channel.casefold())] or [c for c in channels if c == BARE]
    if len(channels) < 2:
        return images
    if len(phase) == 1:
        others = [name for channel, name in channels.items() if channel not in phase]
        problems.add(where, f"the images of {where.name} are of several channels or kinds: those such as "
                            f"{channels[phase[0]]} are read, those such as {' and '.join(others[:4])} are not")
        return {key: image for key, image in images.items() if found[key] == phase[0]}
    _refuse(images, "channels, depths, positions or conditions", channels, ", and their names do not tell which is "
            "phase contrast: move the others elsewhere, or give each a PosXXX folder", where, problems)
    return {}


def _refuse(images: Mapping[Key, _Image], kinds: str, examples: Mapping[str, str], remedy: str, where: Path,
            problems: Problems) -> None:
    """Make the images of several kinds a problem that costs all frames of theirs, as far as these are known."""
    lost = sum(max(image.header.pages, 1) for image in images.values())
    names = " and ".join(list(examples.values())[:4])
    problems.add(where, f"{where.name} holds images of several {kinds}, such as {names}{remedy}", lost)


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
    alone = len(images) == len(masks) == 1
    found = [_by_number(keys, alone) for keys in (images, masks)]
    return {found[0][number]: found[1][number] for number in found[0].keys() & found[1].keys()}


def _by_number(keys: Iterable[Key], alone: bool) -> dict[int, Key]:
    """Names by the number that tells their frame, without those that share it; alone: a name's last number counts."""
    numbers: dict[Key, int] = {}
    for series in _by_words(keys):
        slot = time_slot(series)
        if slot is None and len(series) == 1 and (len(series[0].numbers) == 1 or (alone and series[0].numbers)):
            slot = -1
        if slot is not None:
            numbers |= {key: key.numbers[slot] for key in series}
    count = Counter(numbers.values())
    return {number: key for key, number in numbers.items() if count[number] == 1}


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


def pair(images: Sequence[Path], masks: Sequence[Path], experiment: str, position: str, where: Path, quiet: bool,
         problems: Problems, plain: bool = False) -> list[Frame]:
    """The frames of a folder, in order; what is wrong with its files is added to problems.

    where: the folder that a problem of several files names. quiet: missing masks are no problem here. plain: the folder
    may hold several positions, as the names of its files tell.
    """
    masks_by_key = _by_key(masks, "masks file", problems)
    images_by_key = {key: _read(path) for key, path in _by_key(images, "image", problems).items()}
    stacks = {key for key, image in images_by_key.items() if image.header.pages > 1}
    position_of, channel_of = turns(images_by_key, stacks)
    names = sorted(set(position_of.values()))
    if len(names) > 1 and not plain:
        files = {name: images_by_key[key].path.name for key, name in position_of.items()}
        _refuse(images_by_key, "positions", files, ": give each position a PosXXX folder of its own", where, problems)
        return []
    frames: list[Frame] = []
    if len(names) > 1:
        position_of = turns(masks_by_key)[0] | position_of
    for name in names:
        own = {key: image for key, image in images_by_key.items() if position_of[key] == name}
        own_masks = {key: path for key, path in masks_by_key.items() if position_of.get(key, name) == name}
        frames += _pair_position(own, own_masks, channel_of, experiment, name or position, where, quiet, problems)
    return frames


def _pair_position(images: dict[Key, _Image], masks: Mapping[Key, Path], channel_of: Mapping[Key, str],
                   experiment: str, position: str, where: Path, quiet: bool, problems: Problems) -> list[Frame]:
    """The frames of one position; channel_of: the channel of each image, where its name tells it."""
    of_one_channel = _one_time_lapse(channel_of, images, where, problems)
    starts = _first_frames(of_one_channel, where, problems)
    first = min(starts.values(), default=None)

    # pair by name, or else by the number that tells the frame; masks of images that are left out are no problem
    candidates = {key: path for key, path in masks.items() if key not in of_one_channel}
    paired = {key: masks[other] for key, other in same_frames(starts, candidates).items()}
    paired |= {key: masks[key] for key in starts if key in masks}
    used: set[Path | None] = {masks.get(key) for key in images.keys() - starts.keys()}
    frames: list[Frame] = []
    unpaired, cropped = 0, 0
    for key, start in starts.items():
        image, header = images[key]
        if header.left_out:
            problems.add(image, *header.left_out)
        # one file for all pages, or, as segkit itself writes them, one for each
        of_pages = [candidates.get(name_key(labels_stem(image, page))) for page in range(1, header.pages)]
        files = [paired.get(key), *of_pages] if any(of_pages) else [paired.get(key)] * header.pages
        used.update([paired.get(key), *files])
        unpaired += files.count(None)
        files, differ = _usable_masks(image, header, files, problems)
        cropped += differ
        times = (0,) if header.pages == 1 else header.times
        frames += [Frame(image, file, experiment, position, start + time, page, first)
                   for page, (file, time) in enumerate(zip(files, times, strict=True))]

    if unpaired and not quiet:
        problems.add(where, f"{unpaired} frame(s) of {experiment} {position} have no masks file", unpaired)
    if cropped:
        problems.add(where, f"{cropped} frame(s) differ by 1-2 pixels from their masks: cropped to the common area")
    if spare := [path for path in masks.values() if path not in used]:
        problems.add(spare[0].parent, f"{len(spare)} masks file(s) of {experiment} {position} have no image, "
                                      f"{spare[0].name} the first", len(spare))
    return frames


def _usable_masks(image: Path, header: Header, files: list[Path | None],
                  problems: Problems) -> tuple[list[Path | None], int]:
    """The masks file of each page, None where it does not fit; and how many pages differ in size by a pixel or two."""
    differ = 0
    for file, pages in Counter(f for f in files if f is not None).items():
        try:
            masks = read_header(file, labels=True)
            check_sizes(image.name, header.size, masks.size)
            if pages != masks.pages:
                raise SegkitError(f"{image.name} has {pages} page(s), its masks file {masks.pages}: export both whole")
            differ += pages * (header.size != masks.size)
        except SegkitError as error:
            problems.add(file, str(error), pages)
            files = [None if f == file else f for f in files]
    return files, differ


def _first_frames(images: Mapping[Key, _Image], where: Path, problems: Problems) -> dict[Key, int]:
    """The frame number of each file's first page, in order; files left out, and what is assumed, become problems."""
    headers = {key: image.header for key, image in images.items()}
    counts = [header.pages for header in headers.values()]
    most, is_whole = max(counts, default=0), all(counts)
    # headers that tell the time of every page go before names
    times = [time for header in headers.values() for time in header.times]
    if is_whole and most > 1 and len(set(times)) == len(times) and all(h.axis != "Z" for h in headers.values()):
        return {key: 0 if header.pages > 1 else header.times[0] for key, header in headers.items()}
    numbers, doubt = frame_numbers(headers)

    # one time-lapse, and single images beside it such as ImageJ's AVG_film: they are no times of it
    stacks = [key for key, header in headers.items() if header.pages > 1]
    if len(stacks) == 1 and is_whole and 1 < len(images) <= most:
        numbers, doubt = {stacks[0]: 0}, ""
    # a.tif, a_1.tif, a_2.tif, each with several pages: parts of a time-lapse
    elif len(numbers) < len(images) and 1 not in counts:
        numbers, doubt = {key: k for k, key in enumerate(headers)}, UNTOLD
    if strays := sorted(images[key].path.name for key in images.keys() - numbers.keys()):
        problems.add(where, f"{len(strays)} image(s) are left out, {strays[0]} the first: rename them if they are "
                            f"frames, as {images[next(iter(numbers))].path.name}, or move them elsewhere", len(strays))

    # planes along z count as times only where the position has no other file
    is_alone = len(numbers) == 1
    use = "read as times" if is_alone else ("left out, since other times lie beside them (if they are times, save them "
                                            "as such: in Fiji, Image > Properties)")
    for path, header in [images[key] for key in numbers if headers[key].axis == "Z"]:
        problems.add(path, f"{path.name} holds {header.pages} planes along z and no time: they are {use}; if they are "
                           "depths, export one z plane of every time", 0 if is_alone else header.pages)
    numbers = {key: number for key, number in numbers.items() if is_alone or headers[key].axis != "Z"}

    # parts of a time-lapse follow one another; the pages of a damaged part are unknown
    counts = [headers[key].pages for key in numbers]
    if max(counts, default=0) > 1:
        assumed = [headers[key].times[-1] + 1 if headers[key].pages else most for key in numbers]
        gaps = any(step != 1 for step in _steps(numbers.values()))
        if len(counts) > 1 and (doubt or gaps or min(counts) < 2):
            doubt = f"({sum(assumed)} pages) {BY_ORDER}, and none missing between them"
            doubt += f"; a damaged one counts as {most}" if 0 in counts else ""
        numbers = dict(zip(numbers, accumulate(assumed, initial=0), strict=False))
    if doubt:
        problems.add(where, f"the {len(numbers)} images of {where.name} {doubt}")
    return numbers


def _by_key(files: Sequence[Path], what: str, problems: Problems) -> dict[Key, Path]:
    """Files by key, in natural order; of two with the same key the first is used, and the other is a problem."""
    found: dict[Key, Path] = {}
    for path in files:
        used = found.setdefault(name_key(path.stem), path)
        if used is not path:
            problems.add(path, f"a second {what} for the same frame as {used.name}, which is used: remove one of them",
                         int(what == "image"))
    return {key: found[key] for key in sorted(found, key=Key.natural)}
