"""Write files whole or not at all; the lock of a folder; tables; the log of a run."""

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from .errors import SegkitError

LOCK = "run.lock"  # in a folder that one process writes into
TOKEN = "SEGKIT_LOCK"  # environment variable by which the processes that it starts are known
log = logging.getLogger("segkit")
log.setLevel(logging.INFO)
log.propagate = False


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise SegkitError where the block cannot write `path`, for want of rights or of space."""
    try:
        yield
    except OSError as error:
        raise SegkitError(f"cannot write {path} ({error.strerror or error}): free some disk space or choose a folder "
                          "that you may write to; files written before are as they were") from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well, else remove it.

    Raises SegkitError where the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into a folder while the block runs, except those that the block starts.

    The lock is a file in the folder, made if it is not there, that names host and process. Raises SegkitError as
    `check_lock`, and where the folder cannot be written.
    """
    path, inherited = folder / LOCK, os.environ.get(TOKEN)
    token = inherited or secrets.token_hex(8)
    own = {"host": socket.gethostname(), "process": os.getpid(), "started": _start_of(os.getpid()),
           "since": time.strftime("%Y-%m-%d %H:%M:%S"), "token": token}
    acquired = False
    try:
        # create the file only if it is not there, which also network file systems do in one step
        with writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            while not (acquired or check_lock(folder)):
                with suppress(FileExistsError), open(path, "x", encoding="utf-8") as file:  # else: look at that lock
                    acquired = True
                    json.dump(own, file)
        os.environ[TOKEN] = token
        yield
    finally:
        # remove no lock that another process has taken over
        if acquired and _holder(path).get("token", token) == token:
            path.unlink(missing_ok=True)
        if inherited is None:
            os.environ.pop(TOKEN, None)


def check_lock(folder: Path) -> bool:
    """Whether this process, or one that started it, holds the folder's lock; the lock of an ended one is removed.

    Raises SegkitError where another process holds it, or one of another machine that may be running.
    """
    path = folder / LOCK
    if not (holder := _holder(path)):
        return False
    host, process = holder.get("host", "?"), holder.get("process", "?")
    is_local = host == socket.gethostname()
    if (is_local and process == os.getpid()) or holder.get("token") == os.environ.get(TOKEN, ""):
        return True

    # a process number may be another process's by now: it is the holder if it started at the same time
    started = _start_of(process) if is_local else "?"
    if started == "?" or (started and holder["started"] in ("?", started)):
        raise SegkitError(f"{folder} is in use by process {process} on {host} since {holder.get('since', '?')}: wait "
                          f"until it ends, or choose another RUN or folder; if it is not running, remove {path}")
    _remove_ended(path, holder)
    return False


def _remove_ended(path: Path, holder: dict[str, Any]) -> None:
    """Remove the lock of an ended process; one at a time, so that none removes the next one's."""
    # whoever creates this file may remove the lock; the others look again
    removing = path.with_name(f".{LOCK}.removing")
    try:
        removing.touch(exist_ok=False)
    except FileExistsError:
        time.sleep(0.05)
        with suppress(FileNotFoundError):
            if time.time() - removing.stat().st_mtime > 10:  # its process was killed within this function
                removing.unlink()
        return
    try:
        if _holder(path) == holder:
            path.unlink(missing_ok=True)
    finally:
        removing.unlink(missing_ok=True)


def _holder(path: Path) -> dict[str, Any]:
    """The content of a lock; {} where there is none."""
    for _ in range(20):
        if not os.path.lexists(path):
            return {}
        with suppress(OSError, ValueError, TypeError, AttributeError):  # it is being written or removed, or damaged
            holder = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(holder.get("process"), int) and {"host", "started", "token"} <= holder.keys():
                return holder
        time.sleep(0.1)
    return {"process": "unknown"}


def _start_of(process: int) -> str:
    """When a process of this machine was started, by Linux; "" where it has ended, "?" where unknown."""
    if os.name == "posix":
        try:
            os.kill(process, 0)  # sends nothing
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass  # another user's, and running
    with suppress(OSError):
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    return "?"


def read_table(path: str | Path) -> pd.DataFrame:
    """A table of a run; experiments and positions stay text, also where they are named 001 or NA."""
    try:
        return pd.read_csv(path, dtype={"experiment": str, "position": str}, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise SegkitError(f"the table {path} cannot be read ({error}): a CSV file of a run was needed") from None


def write_text(path: str | Path, text: str) -> None:
    """Replace a text file whole."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
        table.to_csv(temporary, index=False, float_format="%.6g")


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 12 min."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append everything logged through `log` to a file, with times, while the block runs."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
