"""Downloads (zip archives, folders) into the layout that `discover` reads."""

import errno
import lzma
import os
import re
import shutil
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import pandas as pd
from tqdm.auto import tqdm

from ..errors import SegkitError
from ..files import replacing, write_errno
from .dataset import JUNK, Problems, table_of_problems, walk
from .images import IMAGE_SUFFIXES
from .tiff import DAMAGE

UNPACKED_BY_HAND = "unpack it with another program, such as 7-Zip, then arrange the folder"
TO_BE_READ = "check its permissions or the connection"
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}  # that Python can unpack
SIGNS = "[\u00b0\u00b5\u00b1\u00b2\u00b3\u00b7\u00d7]"  # of units and formulas, in plain text, not inside a word
LATIN = f"(?=[\u00c0-\u024f])(?!{SIGNS}).|(?<![^ -~])(?:(?<![A-Za-z]){SIGNS}|{SIGNS}(?![A-Za-z]))(?![^ -~])"
ENCODINGS = {"cp437": LATIN, "cp1252": LATIN,  # of names in archives, with their usual letters
             "cp932": "[\u3040-\u30ff\u4e00-\u9fff\uff10-\uff5a]|[\uff66-\uff9f]{2,}"}
PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".part", ".crdownload", ".download")
COSTS_ALL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}
DAMAGED_ZIP = (*DAMAGE, zipfile.BadZipFile, zlib.error, lzma.LZMAError, LookupError)  # what zipfile raises for one
OTHER_ARCHIVES = (b"7z\xbc\xaf", b"Rar!", b"\x1f\x8b")  # how 7z, rar and gz files begin
PART = re.compile(r"\.(z\d\d|(zip|7z|rar)\.\d{3}|part\d+)$", re.IGNORECASE)  # of a split archive
EXPERIMENT = re.compile(r"(?!preprocessedphasemasks$).*(raw_data|masks)", re.IGNORECASE | re.DOTALL)
POSITION = re.compile(r"pos(ition)?[_ ]?\d", re.IGNORECASE)
COPY = re.compile(r"( \(\d+\)|\.zip| - copy| copy( \d+)?|-\d{8}T\d{6}Z(-\d+)*(-\d{3})?)+$", re.IGNORECASE)


class Entry(NamedTuple):
    """An image file in a folder or an archive."""

    parts: tuple[str, ...]  # of its path as seen from outside
    archive: Path | None
    source: str  # path, or name inside the archive
    size: int  # bytes
    packed_crc: int | None = None  # of the content, as an archive records it

    @property
    def where(self) -> str:
        """The archive or the folder of the file."""
        return self.archive.name if self.archive else str(Path(self.source).parent)

    @property
    def crc(self) -> int:
        """CRC-32 of the content; a file outside an archive is read for it."""
        return file_crc(self.source) if self.packed_crc is None else self.packed_crc


def file_crc(path: str | Path) -> int:
    """CRC-32 of a file. Raises SegkitError where it cannot be read."""
    crc = 0
    for part in read_parts(str(path)):
        crc = zlib.crc32(part, crc)
    return crc


def read_parts(source: str, archive: Path | None = None,
               open_archive: Callable[[Path], zipfile.ZipFile] = zipfile.ZipFile) -> Iterator[bytes]:
    """The content of a file, or of an archive's entry, in parts.

    open_archive: opens an archive, or gives it as it is open for other entries; it is not closed here.
    Raises SegkitError, without an OSError as its cause, where the file cannot be read.
    """
    try:
        opened = open_archive(archive) if archive else None
        with opened.open(source) if opened else open(source, "rb") as file:
            while part := file.read(1 << 20):
                yield part
    except DAMAGED_ZIP as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that of a place before the archive's beginning
            raise SegkitError(f"{source} cannot be read ({error.strerror or error}): {TO_BE_READ}") from None
        raise SegkitError(f"{source} is damaged ({error}): download the archive again") from None


def list_images(source: Path, leave_out: Path, problems: Problems) -> Iterator[Entry]:
    """Every image in an archive, a folder, or a folder of archives and folders; what cannot be read is a problem.

    leave_out: a folder that is not searched.
    """
    if source.is_file():
        yield from _archive_entries(source, problems)
        return

    # a folder that is named as an experiment keeps its name in the paths
    base = source.parent if EXPERIMENT.match(source.name) else source
    skip = leave_out.resolve()
    for folder, files in walk(source, problems, follow=False):
        if folder.resolve().is_relative_to(skip) and not source.resolve().is_relative_to(skip):
            continue
        for path in files:
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield Entry(path.relative_to(base).parts, None, str(path), path.stat().st_size)
                continue
            # an archive also by its name, where its end is missing, or where a file without a suffix is empty
            begin = _begin(path)
            named = path.suffix.lower() in PACKED or PART.search(path.name)
            if named or begin.startswith(b"PK") or not (begin or path.suffix):
                yield from _archive_entries(path, problems)


def find_encoding(path: Path) -> tuple[str, float]:
    """The encoding of an archive's names, and the share of their other characters that are letters usual in it.

    Names that are marked as UTF-8 are read so in any case; the others may be in UTF-8 too, or in the code page of their
    maker's system: that which gives the most letters and the fewest other characters.
    """
    with zipfile.ZipFile(path) as archive:
        names = [info.orig_filename for info in archive.infolist() if not info.flag_bits & 0x800]
    raw = "/".join(names).encode("cp437")

    def letters(encoding: str) -> float:
        text = raw.decode(encoding, "replace")
        if "\ufffd" in text:
            return -1.0
        # a backslash is the second byte of a Japanese letter, or stands between folders where no / does
        other = [char for char in text if ord(char) > 127 or (char == "\\" and "/" in text)]
        usual = re.findall(ENCODINGS[encoding], text)
        return len("".join(usual)) / max(len(other), 1)

    # UTF-8 and Japanese syllables in a row do not come about by chance
    with suppress(UnicodeDecodeError):
        raw.decode("utf-8")
        return "utf-8", 1.0
    if re.search("[\u3041-\u30fe]{2}", raw.decode("cp932", "replace")) and letters("cp932") > 0:
        return "cp932", 1.0
    best = max(ENCODINGS, key=letters)
    return best, letters(best)


def _begin(path: Path) -> bytes:
    """How a file begins; empty where it cannot be read."""
    with suppress(OSError), open(path, "rb") as file:
        return file.read(100)
    return b""


def _what_instead(path: Path, error: Exception) -> str:
    """What a file is that cannot be opened as an archive, and what to do."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return f"cannot be read ({error.strerror}): {TO_BE_READ}"
    begin = _begin(path)
    if PART.search(path.name) or path.with_suffix(".z01").exists() or "multiple disks" in str(error):
        return f"is one part of a split archive: {UNPACKED_BY_HAND}"
    if path.suffix.lower() in PACKED and path.suffix.lower() != ".zip" and not begin.startswith(b"PK"):
        return f"is no zip archive: {UNPACKED_BY_HAND}"
    if begin.startswith(OTHER_ARCHIVES):
        return f"is an archive of another kind than its name says: {UNPACKED_BY_HAND}"
    if re.match(rb"\W*<(!doctype )?html", begin, re.IGNORECASE):
        return "is a web page and no archive: download it in a browser where you are logged in"
    return f"is no valid zip archive ({error}): download it again"


def _archive_entries(path: Path, problems: Problems) -> Iterator[Entry]:
    """The images in an archive; what cannot be unpacked, or not safely, is a problem."""
    try:
        if PART.search(path.name):  # of the last part zipfile reads the names
            raise zipfile.BadZipFile
        encoding, certain = find_encoding(path)
        with zipfile.ZipFile(path, metadata_encoding=encoding) as archive:
            infos = archive.infolist()
    except DAMAGED_ZIP as error:
        problems.add(path, f"{path.name} {_what_instead(path, error)}")
        return
    if certain < 0.5:
        problems.add(path, f"the names in {path.name} are in an unknown encoding: {UNPACKED_BY_HAND}")
    if locked := [info for info in infos if info.compress_type not in METHODS or info.flag_bits & 1]:
        why = "with a password" if locked[0].flag_bits & 1 else "by a method that Python lacks, such as Deflate64"
        problems.add(path, f"{len(locked)} file(s) of {path.name} are packed {why}: {UNPACKED_BY_HAND}", len(locked))

    for info in (info for info in infos if info not in locked):
        inside = PureWindowsPath(info.filename)  # / and \ both separate folders
        suffix, parts = inside.suffix.lower(), inside.parts
        if info.is_dir() or any(JUNK.match(part) for part in parts if part != ".."):
            continue
        used = archive.getinfo(info.filename)  # of entries with one name the last is what zipfile opens
        if ".." in parts or inside.anchor:
            problems.add(path, f"{path.name} holds {info.filename}, which would land outside the dataset: left out")
        elif suffix in IMAGE_SUFFIXES and used is info:
            # without a folder named as an experiment, the archive's own name is that of the experiment
            outer = () if any(map(EXPERIMENT.match, parts[:-1])) else (path.name,)
            yield Entry((*outer, *parts), path, info.filename, info.file_size, info.CRC)
        elif suffix in IMAGE_SUFFIXES and (used.file_size, used.CRC) != (info.file_size, info.CRC):
            problems.add(path, f"{path.name} holds two different files named {info.filename}: the last is used; look "
                               "whether it is the right one", 1)
        elif suffix in PACKED:
            problems.add(path, f"{path.name} holds the archive {info.filename}: unpack it by hand")


@dataclass
class Plan:
    """What `arrange` copies and where to; shown as a table before anything is done."""

    dataset_path: Path
    copies: dict[Path, Entry] = field(default_factory=dict)  # by their place in the layout
    problems: Problems = field(default_factory=Problems)
    there_already: int = 0  # files that `arrange` found in their place

    def table(self) -> pd.DataFrame:
        """One row per source and target folder: files and megabytes."""
        rows = [(entry.where, str(target.parent.relative_to(self.dataset_path)), entry.size / 1e6)
                for target, entry in self.copies.items()]
        table = pd.DataFrame(rows, columns=["from", "to", "MB"])
        return table.groupby(["from", "to"], as_index=False).agg(files=("MB", "size"), MB=("MB", "sum")).round(1)

    def _repr_html_(self) -> str:
        shown = table_of_problems(self.problems, self.dataset_path)
        with pd.option_context("display.max_colwidth", None, "display.max_rows", None):
            problems = f"<b>{len(self.problems)} problem(s)</b>{shown.to_html(index=False)}" if self.problems else ""
            return problems + self.table().to_html(index=False)


def plan_arrangement(source: str | Path, dataset_path: str | Path) -> Plan:
    """Plan what `arrange` would do, and do nothing.

    source: an archive, an unpacked folder, or a folder of such. Raises SegkitError where it is not there or holds
    nothing that belongs to an experiment.
    """
    source, plan = Path(source).expanduser(), Plan(Path(dataset_path).expanduser())
    if not source.exists():
        raise SegkitError(f"{source} is not there: give the folder of downloads, or one archive")

    # one file for each place: of two different ones the first is used, and the other is a problem
    unplaced: Counter[str] = Counter()
    for entry in list_images(source, plan.dataset_path, plan.problems):
        place = _place(entry.parts)
        if place is None:
            unplaced[entry.where] += 1
            continue
        first = plan.copies.setdefault(plan.dataset_path / place, entry)
        if first is not entry and (first.size, first.crc) != (entry.size, entry.crc):
            plan.problems.add(Path(*entry.parts), f"{entry.where} and {first.where} hold different files for {place}: "
                                                f"that of {first.where} is used; check which one is right", 1)
    for where, count in unplaced.items():
        plan.problems.add(Path(where), f"{count} image(s) of {where} belong to no experiment and position: expected "
                                       "HR_REF_raw_data/Pos101/... in their path; rename the folders", count)
    if not plan.copies:
        why = f"; the first problem: {plan.problems[0].reason}" if plan.problems else ""
        raise SegkitError(f"{source} holds nothing to arrange: expected archives or folders named like HR_REF_raw_data "
                          f"and HR_REF_masks, with PosXXX folders in them{why}")
    return plan


def arrange(source: str | Path, dataset_path: str | Path) -> Plan:
    """Copy or extract downloads into the layout that `discover` reads.

    Parameters
    ----------
    source : str or Path
        An archive, an unpacked folder, or a folder of such. It is left as it is.
    dataset_path : str or Path
        The folder of the dataset; made if it is not there.

    Returns
    -------
    Plan
        What was copied, as a table when displayed, and the problems: damaged archives, entries that would land
        outside the dataset, and files in the dataset with another content, which are not overwritten.

    Raises
    ------
    SegkitError
        Where nothing can be arranged or the disk is too full.

    Notes
    -----
    What is there already with the same content is kept, so that an interrupted call can be repeated.
    """
    plan = plan_arrangement(source, dataset_path)

    # what is there already is kept, whatever its content
    todo = {}
    for target, entry in plan.copies.items():
        if not os.path.exists(target):
            todo[target] = entry
        elif target.stat().st_size == entry.size and file_crc(target) == entry.crc:
            plan.there_already += 1
        else:
            plan.problems.add(target, f"is there already, {entry.where} holds another content, and it was left as it "
                                      "is: remove it and arrange again if the new one is right", 1)

    _check_space(plan.dataset_path, sum(entry.size for entry in todo.values()))

    # each archive is opened once
    with ExitStack() as stack:
        open_archive = cache(lambda path: stack.enter_context(
            zipfile.ZipFile(path, metadata_encoding=find_encoding(path)[0])))
        for target, entry in tqdm(todo.items(), desc="arranging", unit="file", leave=False):
            _copy(entry, target, open_archive, plan.problems)
    return plan


def _check_space(folder: Path, needed: int) -> None:
    """Raise SegkitError where the disk has less than so many bytes free, before anything is written."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if needed * 1.02 > free:
        raise SegkitError(f"{folder} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: choose another disk")


def _copy(entry: Entry, target: Path, open_archive: Callable[[Path], zipfile.ZipFile], problems: Problems) -> None:
    """Copy or extract one file; what is wrong with it is a problem and costs no other, but a full disk would cost all.

    Raises SegkitError where no file can be written.
    """
    try:
        with replacing(target) as temporary:
            with open(temporary, "wb") as file:
                for part in read_parts(entry.source, entry.archive, open_archive):
                    file.write(part)
            # times and permissions, where the disk has them
            if entry.archive is None:
                with suppress(OSError):
                    shutil.copystat(entry.source, temporary)
    except SegkitError as error:
        if write_errno(error) in COSTS_ALL:
            raise
        problems.add(Path(entry.source), f"{entry.where}: {error}", 1)


def _place(parts: tuple[str, ...]) -> str | None:
    """Where a file belongs: experiment folder/PosXXX/.../file, or None for what is in no experiment."""
    position = next((i for i, part in enumerate(parts[:-1]) if POSITION.match(part)), 0)
    experiments = [part for part in parts[:position] if EXPERIMENT.match(part)]
    if not experiments:
        return None
    experiment = COPY.sub("", experiments[-1])  # "REF_masks (1)", "REF_masks-20241122T101112Z-001": as REF_masks
    return unicodedata.normalize("NFC", "/".join((experiment, *parts[position:])))
