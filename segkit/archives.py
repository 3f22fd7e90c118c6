"""What downloads hold: images in folders and zip archives, with or without their ending."""

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .data import Problem
from .images import IMAGE_SUFFIXES

_JUNK = re.compile(r"^(__MACOSX|\.DS_Store|Thumbs\.db|desktop\.ini|\._.*|\..*)$", re.IGNORECASE)
_PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".part", ".crdownload", ".download")
DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, LookupError, ArithmeticError,
               struct.error)  # what zipfile raises for one; NotImplementedError is a RuntimeError
EXPERIMENT = re.compile(r"raw_data|masks", re.IGNORECASE)


class Entry(NamedTuple):
    """An image file in a folder or an archive."""

    name: str  # path as seen from outside
    archive: Path | None
    source: str  # path, or name inside the archive
    size: int  # bytes
    packed_crc: int | None  # of the content, where an archive says it

    @property
    def where(self) -> str:
        """The archive or the folder that it lies in."""
        return self.archive.name if self.archive else str(Path(self.source).parent)

    @property
    def crc(self) -> int:
        """CRC-32 of the content; a file is read for it."""
        return file_crc(self.source) if self.packed_crc is None else self.packed_crc


def file_crc(path: str | Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            crc = zlib.crc32(part, crc)
    return crc


def is_mask_folder(part: str) -> bool:
    return part.casefold() == "preprocessedphasemasks"


def list_images(source: Path, leave_out: Path, problems: list[Problem]) -> Iterator[Entry]:
    """Every image in an archive, a folder, or a folder of archives and folders; what cannot be read is a problem.

    leave_out: a folder that is not looked into.
    """
    if source.is_file():
        yield from _archive_entries(source, problems)
        return
    def unreadable(error: OSError) -> None:
        problems.append(Problem(Path(error.filename), f"{error.filename} cannot be read ({error.strerror})"))

    for folder, subfolders, files in os.walk(source, onerror=unreadable):
        subfolders[:] = sorted(s for s in subfolders if not _JUNK.match(s)
                               and (Path(folder) / s).resolve() != leave_out.resolve())
        for name in sorted(files):
            path = Path(folder) / name
            if _JUNK.match(name) or not path.is_file():
                continue
            if path.suffix.lower() in IMAGE_SUFFIXES:
                inside = path.relative_to(source.parent if EXPERIMENT.search(source.name) else source)
                yield Entry(inside.as_posix(), None, str(path), path.stat().st_size, None)
            elif _begins_as_archive(path) or path.suffix.lower() in _PACKED:
                yield from _archive_entries(path, problems)


def _begins_as_archive(path: Path) -> bool:
    """Whether a file begins as zip archives do (also one whose end is missing), or is empty and has no ending."""
    try:
        with open(path, "rb") as file:
            begin = file.read(4)
    except OSError:
        return False
    return begin[:2] == b"PK" or (not begin and not path.suffix)


def _archive_entries(path: Path, problems: list[Problem]) -> Iterator[Entry]:
    if path.suffix.lower() in _PACKED and path.suffix.lower() != ".zip" and not _begins_as_archive(path):
        problems.append(Problem(path, f"{path.name} is no zip archive: unpack it by hand, then arrange the "
                                      "folder"))
        return
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (*DAMAGED_ZIP, OSError) as error:
        problems.append(Problem(path, f"{path.name} is no sound zip archive ({error}): download it again"))
        return
    stem = path.stem if path.suffix.lower() == ".zip" else path.name
    last = {info.filename: info for info in infos}  # what zipfile opens by name, and unpacking leaves
    for info in infos:
        parts = PurePosixPath(info.filename.replace("\\", "/")).parts
        if info.is_dir() or any(_JUNK.match(part) for part in parts if part != ".."):
            continue
        if ".." in parts or info.filename.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", info.filename):
            problems.append(Problem(path, f"{path.name} holds {info.filename}, which would land outside the "
                                               "dataset: left out"))
            continue
        if PurePosixPath(info.filename).suffix.lower() not in IMAGE_SUFFIXES:
            if PurePosixPath(info.filename).suffix.lower() in _PACKED:
                problems.append(Problem(path, f"{path.name} holds the archive {info.filename}: unpack it by hand"))
            continue
        if (used := last[info.filename]) is not info:
            if (used.file_size, used.CRC) != (info.file_size, info.CRC):
                problems.append(Problem(path, f"{path.name} holds two different files named {info.filename}: the last "
                                              "is used; look whether it is the right one", 1))
            continue
        named = any(EXPERIMENT.search(part) for part in parts[:-1] if not is_mask_folder(part))
        yield Entry("/".join(parts if named else (stem, *parts)), path, info.filename, info.file_size, info.CRC)
