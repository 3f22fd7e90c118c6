"""Make the users' layout out of what was downloaded: zip archives, with or without their ending, and folders."""

import os
import re
import shutil
import unicodedata
import zipfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pandas as pd
from tqdm.auto import tqdm

from .archives import DAMAGED_ZIP, EXPERIMENT, Entry, file_crc, is_mask_folder, list_images
from .data import Problem, table_of_problems
from .errors import SegkitError
from .files import replacing

_COPY = re.compile(r"( \(\d+\)|\.zip| - copy| copy( \d+)?|-\d{8}T\d{6}Z(-\d+)*(-\d{3})?)+$", re.IGNORECASE)
FAULTS = {"password": "is locked with a password: unpack it by hand",
          "not readable": "may not be read: change its permissions"}


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
