"""Write files whole or not at all; the lock of a folder; tables; the log of a run."""

import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from .errors import SegkitError

LOCK = "run.lock"  # in a folder that one process writes into
SPACE, RIGHTS, OTHER = "free some disk space", "choose a folder that you may write to", "choose another folder or name"
REMEDIES = {  # by what the system says where a file cannot be written; else the path and the disk are to be checked
    errno.ENOSPC: SPACE, errno.EDQUOT: SPACE, errno.EFBIG: SPACE, errno.EACCES: RIGHTS, errno.EPERM: RIGHTS,
    errno.EROFS: RIGHTS, errno.EISDIR: OTHER, errno.ENOTDIR: OTHER, errno.EEXIST: OTHER,
    errno.ENAMETOOLONG: "shorten the name of the file"}
HELD = "SEGKIT_LOCK"  # environment variable: the folders whose locks this process or one that started it holds
log = logging.getLogger("segkit")
log.setLevel(logging.INFO)
log.propagate = False


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise SegkitError where the block cannot write `path`, with the remedy that fits the cause."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "check the path and the disk")
        raise SegkitError(f"cannot write {path} ({error.strerror or error}): {remedy}; existing files are "
                          "unchanged") from error


def write_errno(error: SegkitError) -> int:
    """The system's number for why a file could not be written; 0 where an error has another cause."""
    return error.__cause__.errno or 0 if isinstance(error.__cause__, OSError) else 0


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well, else remove it.

    The block makes a file or a folder of it, and removes an older folder at `path`. Raises SegkitError where the folder
    cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into a folder while the block runs, except those that the block starts.

    The lock is `flock` on a file in the folder: the system releases it when the process ends, however it ends. Where a
    file system has no such locks, there is none. Raises SegkitError where another process holds the lock, or the
    folder cannot be written.
    """
    path, held = folder / LOCK, os.environ.get(HELD, "")
    if str(folder.resolve()) in held.split("\n"):  # held by this process, or one that started it
        yield
        return
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise SegkitError(f"{folder} is in use by {file.read() or 'another process'}: wait until it ends") from None
        except OSError as error:
            log.info("%s is not locked: its file system has no locks (%s)", folder, error.strerror)
        # the holder may have removed the file, between opening and locking it here
        if not os.path.exists(path) or not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            raise SegkitError(f"{folder} was in use until now: start this again")
        path.write_text(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        os.environ[HELD] = f"{held}\n{folder.resolve()}".strip()
        try:
            yield
        finally:
            os.environ[HELD] = held
            path.unlink(missing_ok=True)


def check_lock(folder: Path) -> None:
    """Raise SegkitError where another process holds the folder's lock; the file that a killed one left is removed."""
    if os.path.isfile(folder / LOCK):
        with locked(folder):
            pass


def read_table(path: str | Path) -> pd.DataFrame:
    """A table of a run; experiments and positions stay text, also where they are named 001 or NA."""
    try:
        return pd.read_csv(path, dtype={"experiment": str, "position": str}, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise SegkitError(f"the table {path} cannot be read ({error}): a CSV file of a run was needed") from None


def write_text(path: str | Path, text: str) -> None:
    """Replace a text file whole."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, content: Any) -> None:
    """Replace a JSON file whole."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """Read a JSON file; `what` names it in the SegkitError raised where it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SegkitError(f"{what} {path} cannot be read ({error}): delete it or write it again") from None


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Replace a CSV file whole."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", errors="backslashreplace")


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 12 min."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append everything logged through `log` to a file, with times, while the block runs."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
