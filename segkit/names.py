"""What names of files and folders say: which frame a file is, and whether it is an image or masks."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

from .images import IMAGE_SUFFIXES

MASK_NAME = re.compile(r"^mask_(?P<a>.+)$|^(?P<b>.+?)_(?:cp_)?masks?$|^(?P<c>.+?)_labels$", re.IGNORECASE)
_DIGITS = re.compile(r"(\d+)")
STAMP, STAMP_STEP = 10_000, 50  # numbers so large, with steps so large, are a clock's: no one keeps one frame of 50
BY_ORDER = "are numbered by the order of their names, as if equally spaced in time"
UNTOLD = f"{BY_ORDER}: their names do not tell the time"
_BY_PRODUCT = re.compile(r"_(flows|cp_output|cp_outlines|outlines|dP|probability)$", re.IGNORECASE)


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
