"""What names of files and folders say: which frame a file is, and whether it is an image or masks."""

import os
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from .images import IMAGE_SUFFIXES

MASK_NAME = re.compile(r"^mask_(?P<a>.+)$|^(?P<b>.+?)_(?:cp_)?masks?$|^(?P<c>.+?)_labels$", re.IGNORECASE)
_BY_PRODUCT = re.compile(r"_(flows|cp_output|cp_outlines|outlines|dP|probability)$", re.IGNORECASE)


class Key(NamedTuple):
    """What a file's name says: everything but the last number, and that number (-1 without one)."""

    text: str
    number: int


def name_key(stem: str) -> Key:
    """Read the key of an image's or masks file's stem: `MASK_img_007`, `img_7` and `img_7_cp_masks` have one key."""
    match = MASK_NAME.match(stem)
    stem = next(filter(None, match.groups())) if match else stem
    parts = re.match(r"^(.*?)(\d+)(\D*)$", stem)
    if not parts:
        return Key(unicodedata.normalize("NFC", stem).casefold(), -1)
    return Key(unicodedata.normalize("NFC", f"{parts[1]}#{parts[3]}").casefold(), int(parts[2]))


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
