"""Write files whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from .errors import SegkitError


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


def read_table(path: str | Path) -> pd.DataFrame:
    """A table of a run; experiments and positions stay text, also where they are called 001 or NA."""
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
        raise SegkitError(f"{what} {path} cannot be read ({error}): delete it or write it anew") from None


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Replace a CSV file whole."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
