"""Downloads (zip archives, folders) into the layout that `discover` reads."""

import os
import re
import shutil
import struct
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd
from tqdm.auto import tqdm

from ..errors import SegkitError
from ..files import replacing
from .dataset import Problem, table_of_problems
from .images import IMAGE_SUFFIXES

_JUNK = re.compile(r"^(__MACOSX|\.DS_Store|Thumbs\.db|desktop\.ini|\._.*|\..*)$", re.IGNORECASE)
_PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".part", ".crdownload", ".download")
DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, LookupError, ArithmeticError,
               struct.error)  # what zipfile raises for one; NotImplementedError is a RuntimeError
EXPERIMENT = re.compile(r"raw_data|masks", re.IGNORECASE)
_COPY = re.compile(r"( \(\d+\)|\.zip| - copy| copy( \d+)?|-\d{8}T\d{6}Z(-\d+)*(-\d{3})?)+$", re.IGNORECASE)
FAULTS = {"password": "is locked with a password: unpack it by hand",
          "not readable": "may not be read: change its permissions"}


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


@dataclass(frozen=True)
class Move:
    """One file to be arranged, and its place in the layout."""

    entry: Entry
    target: Path


@dataclass
class Plan:
    """What will go where; shown as a table before anything is done."""

    dataset_path: Path
    moves: list[Move] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    there_already: int = 0  # files that `arrange` found in their place

    def table(self) -> pd.DataFrame:
        """One row per source and target folder: files and megabytes."""
        rows = [(m.entry.where,
                 str(m.target.parent.relative_to(self.dataset_path)), m.entry.size / 1e6) for m in self.moves]
        table = pd.DataFrame(rows, columns=["from", "to", "MB"])
        return table.groupby(["from", "to"], as_index=False).agg(files=("MB", "size"), MB=("MB", "sum")).round(1)

    def _repr_html_(self) -> str:
        said = table_of_problems(self.problems, self.dataset_path)
        with pd.option_context("display.max_colwidth", None, "display.max_rows", None):
            problems = f"<b>{len(self.problems)} problem(s)</b>{said.to_html(index=False)}"
            return (problems if self.problems else "") + self.table().to_html(index=False)


def plan_arrangement(source: str | Path, dataset_path: str | Path) -> Plan:
    """Say what `arrange` would do, and do nothing.

    source: an archive, an unpacked folder, or a folder of such. Raises SegkitError where it is not there or holds
    nothing that belongs to an experiment.
    """
    source, root = Path(source).expanduser(), Path(dataset_path).expanduser()
    if not source.exists():
        raise SegkitError(f"{source} is not there: give the folder of downloads, or one archive")
    plan = Plan(root)
    targets: dict[Path, Move] = {}
    left: Counter[str] = Counter()
    for entry in list_images(source, root, plan.problems):
        place = _place(entry.name)
        if place is None:
            left[entry.where] += 1
            continue
        job = Move(entry, root.joinpath(*place))
        first = targets.setdefault(job.target, job)
        if first is job:
            plan.moves.append(job)
        elif (first.entry.size, first.entry.crc) != (entry.size, entry.crc):
            other = first.entry.where
            plan.problems.append(Problem(Path(entry.name), f"{entry.where} and {other} hold different files for "
                                                           f"{'/'.join(place)}: that of {other} is used; look which "
                                                           "one is right", 1))
    for where, count in left.items():
        plan.problems.append(Problem(Path(where), f"{count} image(s) of {where} belong to no experiment and position: "
                                                  "expected HR_REF_raw_data/Pos101/... in their path; rename the "
                                                  "folders", count))
    if not plan.moves:
        why = f"; the first problem: {plan.problems[0].reason}" if plan.problems else ""
        raise SegkitError(f"{source} holds nothing to arrange: expected archives or folders named like HR_REF_raw_data "
                          f"and HR_REF_masks, with PosXXX folders in them{why}")
    return plan


def arrange(source: str | Path, dataset_path: str | Path, *, move: bool = False) -> Plan:
    """Copy or extract downloads into the layout that `discover` reads.

    source: an archive, an unpacked folder, or a folder of such; dataset_path: made if need be.
    move: move files of unpacked folders instead of copying them (archives are never removed).
    What is there already with the same content is kept, so that an interrupted call can be repeated. A file there with
    other content is not overwritten but listed, like damaged archives and entries that would land outside.
    Returns the plan with its problems. Raises SegkitError where nothing can be arranged or the disk is too full.
    """
    plan = plan_arrangement(source, dataset_path)
    todo = []
    for job in plan.moves:
        if not job.target.exists():
            todo.append(job)
        elif not _is_there(job):
            plan.problems.append(Problem(job.target, f"is there already, {job.entry.where} holds another content, and "
                                                     "it was left as it is: remove it and arrange again if the new one "
                                                     "is right", 1))
        else:
            plan.there_already += 1
    needed = sum(job.entry.size for job in todo if not (move and job.entry.archive is None))
    existing = next(p for p in (plan.dataset_path, *plan.dataset_path.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed * 1.02 > free:
        raise SegkitError(f"{needed / 1e9:.1f} GB are needed in {plan.dataset_path}, {free / 1e9:.1f} GB are free: "
                          "free some space or choose another disk")
    opened: dict[Path, zipfile.ZipFile] = {}
    try:
        for job in tqdm(todo, desc="arranging", unit="file", leave=False):
            try:
                _carry_out(job, opened, move)
            except DAMAGED_ZIP as error:
                what = next((words for sign, words in FAULTS.items() if sign in str(error)),
                            f"is damaged ({error}): download the archive again")
                plan.problems.append(Problem(Path(job.entry.source),
                                             f"{job.entry.where}: {job.entry.source} {what}", 1))
    finally:
        for archive in opened.values():
            archive.close()
    return plan


def _carry_out(job: Move, opened: dict[Path, zipfile.ZipFile], move: bool) -> None:
    if job.entry.archive is None and move:
        with suppress(OSError):  # on another disk it is copied and then removed; what else is wrong is said below
            job.target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(job.entry.source, job.target)
            return
    if job.entry.archive is None and not os.access(job.entry.source, os.R_OK):
        raise RuntimeError("not readable")
    with replacing(job.target) as temporary:
        if job.entry.archive is None:
            shutil.copy2(job.entry.source, temporary)
        else:
            if job.entry.archive not in opened:
                opened[job.entry.archive] = zipfile.ZipFile(job.entry.archive)
            with opened[job.entry.archive].open(job.entry.source) as packed, open(temporary, "wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
    if job.entry.archive is None and move:
        os.unlink(job.entry.source)


def _is_there(job: Move) -> bool:
    """Whether the target holds this content already."""
    return job.target.stat().st_size == job.entry.size and file_crc(job.target) == job.entry.crc


def _place(name: str) -> tuple[str, ...] | None:
    """Where a file belongs: (experiment folder, PosXXX, ..., file), or None for what is in no experiment."""
    parts = PurePosixPath(name).parts
    experiments = [i for i, part in enumerate(parts[:-1]) if EXPERIMENT.search(part) and not is_mask_folder(part)]
    positions = [i for i, part in enumerate(parts[:-1]) if re.match(r"pos(ition)?[_ ]?\d", part, re.IGNORECASE)]
    before = [i for i in experiments if not positions or i < positions[0]]
    if not before or not positions:
        return None
    experiment = _COPY.sub("", parts[before[-1]])  # "REF_masks (1)", "REF_masks-20241122T101112Z-001": as REF_masks
    return tuple(unicodedata.normalize("NFC", part) for part in (experiment, *parts[positions[0]:]))
