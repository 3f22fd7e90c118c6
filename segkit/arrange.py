"""Make the users' layout out of what was downloaded: zip archives, with or without their ending, and folders."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pandas as pd
from tqdm.auto import tqdm

from .data import Problem
from .errors import SegkitError
from .files import replacing
from .images import IMAGE_SUFFIXES

_JUNK = re.compile(r"^(__MACOSX|\.DS_Store|Thumbs\.db|desktop\.ini|\._.*|\..*)$", re.IGNORECASE)
_EXPERIMENT = re.compile(r"raw_data|masks", re.IGNORECASE)


@dataclass(frozen=True)
class Move:
    """One file to be arranged: from a folder (archive None) or out of an archive, to a place in the layout."""

    source: str  # path, or name inside the archive
    archive: Path | None
    target: Path
    size: int  # bytes


@dataclass
class Plan:
    """What will go where; shown as a table before anything is done."""

    dataset_path: Path
    moves: list[Move] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def table(self) -> pd.DataFrame:
        """One row per source and target folder: files and megabytes."""
        rows = [(str(m.archive.name if m.archive else Path(m.source).parent),
                 str(m.target.parent.relative_to(self.dataset_path)), m.size / 1e6) for m in self.moves]
        table = pd.DataFrame(rows, columns=["from", "to", "MB"])
        return table.groupby(["from", "to"], as_index=False).agg(files=("MB", "size"), MB=("MB", "sum")).round(1)

    def problem_table(self) -> pd.DataFrame:
        return pd.DataFrame([(str(p.path), p.reason) for p in self.problems], columns=["path", "reason"])

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False) + (self.problem_table().to_html(index=False) if self.problems else "")


def plan_arrangement(source: str | Path, dataset_path: str | Path) -> Plan:
    """Say what `arrange` would do, and do nothing.

    source: an archive, an unpacked folder, or a folder of such. Raises SegkitError where it is not there or holds
    nothing that belongs to an experiment.
    """
    source, root = Path(source).expanduser(), Path(dataset_path).expanduser()
    if not source.exists():
        raise SegkitError(f"{source} is not there: give the folder of downloads, or one archive")
    plan = Plan(root)
    targets: dict[Path, int] = {}
    for name, archive, entry, size in _entries(source, root, plan):
        place = _place(name)
        if place is None:
            continue
        target = root.joinpath(*place)
        if target in targets:
            if targets[target] != size:
                plan.problems.append(Problem(Path(name), f"a second file of another size for {'/'.join(place)}: "
                                                         "the first is used; look which one is right", 1))
            continue
        targets[target] = size
        plan.moves.append(Move(entry, archive, target, size))
    if not plan.moves:
        first = f"; the first problem: {plan.problems[0].reason}" if plan.problems else ""
        raise SegkitError(f"{source} holds nothing to arrange: expected archives or folders named like HR_REF_raw_data "
                          f"and HR_REF_masks, with PosXXX folders in them{first}")
    return plan


def arrange(source: str | Path, dataset_path: str | Path, *, move: bool = False) -> Plan:
    """Copy or extract downloads into the layout that `discover` reads.

    source: an archive, an unpacked folder, or a folder of such; dataset_path: made if need be.
    move: move files of unpacked folders instead of copying them (archives are never removed).
    What is there already with the right size is kept, so that an interrupted call can be repeated. A file there of
    another size is not overwritten but listed, like damaged archives and entries that would land outside.
    Returns the plan with its problems. Raises SegkitError where nothing can be arranged or the disk is too full.
    """
    plan = plan_arrangement(source, dataset_path)
    todo = []
    for job in plan.moves:
        if not job.target.exists():
            todo.append(job)
        elif job.target.stat().st_size != job.size:
            plan.problems.append(Problem(job.target, "is there already with another size and was left as it is: remove "
                                                     "it and arrange again if the new one is right", 1))
    needed = sum(job.size for job in todo if not (move and job.archive is None))
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
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
                place = f"{job.archive.name}: " if job.archive else ""
                plan.problems.append(Problem(Path(job.source), f"{place}{job.source} is damaged ({error}): "
                                                               "download the archive again", 1))
    finally:
        for archive in opened.values():
            archive.close()
    return plan


def _carry_out(job: Move, opened: dict[Path, zipfile.ZipFile], move: bool) -> None:
    if job.archive is None and move:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(job.source, job.target)
        return
    with replacing(job.target) as temporary:
        if job.archive is None:
            shutil.copy2(job.source, temporary)
        else:
            archive = opened.setdefault(job.archive, zipfile.ZipFile(job.archive))
            with archive.open(job.source) as packed, open(temporary, "wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)


def _entries(source: Path, root: Path, plan: Plan) -> Iterator[tuple[str, Path | None, str, int]]:
    """(path as seen from outside, archive or None, name to open, bytes) of every file; archives are looked into."""
    if source.is_file():
        yield from _archive_entries(source, plan)
        return
    for folder, subfolders, files in os.walk(source):
        subfolders[:] = sorted(s for s in subfolders if not _JUNK.match(s)
                               and (Path(folder) / s).resolve() != root.resolve())
        for name in sorted(files):
            path = Path(folder) / name
            if _JUNK.match(name) or not path.is_file():
                continue
            if path.suffix.lower() in IMAGE_SUFFIXES:
                inside = path.relative_to(source.parent if _EXPERIMENT.search(source.name) else source)
                yield inside.as_posix(), None, str(path), path.stat().st_size
            elif zipfile.is_zipfile(path) or path.suffix.lower() == ".zip":
                yield from _archive_entries(path, plan)


def _archive_entries(path: Path, plan: Plan) -> Iterator[tuple[str, Path | None, str, int]]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        plan.problems.append(Problem(path, f"{path.name} is no sound zip archive ({error}): download it again"))
        return
    stem = path.stem if path.suffix.lower() == ".zip" else path.name
    for info in infos:
        parts = PurePosixPath(info.filename.replace("\\", "/")).parts
        if info.is_dir() or any(_JUNK.match(part) for part in parts if part != ".."):
            continue
        if ".." in parts or info.filename.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", info.filename):
            plan.problems.append(Problem(path, f"{path.name} holds {info.filename}, which would land outside the "
                                               "dataset: left out"))
            continue
        if PurePosixPath(info.filename).suffix.lower() not in IMAGE_SUFFIXES:
            continue
        named = any(_EXPERIMENT.search(part) for part in parts[:-1] if not _is_mask_folder(part))
        yield "/".join(parts if named else (stem, *parts)), path, info.filename, info.file_size


def _is_mask_folder(part: str) -> bool:
    return part.casefold() == "preprocessedphasemasks"


def _place(name: str) -> tuple[str, ...] | None:
    """Where a file belongs: (experiment folder, PosXXX, ..., file), or None for what is in no experiment."""
    parts = PurePosixPath(name).parts
    experiments = [i for i, part in enumerate(parts[:-1]) if _EXPERIMENT.search(part) and not _is_mask_folder(part)]
    positions = [i for i, part in enumerate(parts[:-1]) if re.match(r"pos[_ ]?\d", part, re.IGNORECASE)]
    before = [i for i in experiments if not positions or i < positions[0]]
    if not before or not positions:
        return None
    experiment = re.sub(r"( \(\d+\)|\.zip)+$", "", parts[before[-1]], flags=re.IGNORECASE)  # "REF_masks (1)" is a copy
    return experiment, *parts[positions[0]:]
