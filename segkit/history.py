"""What a training has gone through, epoch by epoch, and what is kept of it on disk."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .errors import SegkitError
from .files import write_table, writing

COLUMNS = ("epoch", "train_loss", "train_dice", "val_loss", "val_dice", "learning_rate", "event", "seconds",
           "crops_per_second")
ANEW = "started anew with other weights"  # how the event of an epoch ends after which nothing earlier counts
BACK = "rolled back to epoch"  # what stands before the number of the epoch that a training has gone back to
log = logging.getLogger("segkit")
log.setLevel(logging.INFO)
log.propagate = False


@dataclass
class History:
    """One row per epoch, and the newest predictions on a few validation frames."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    previews: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    # (image, probability, target mask), each (H, W); the same frames throughout a run

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=list(COLUMNS))

    @property
    def best(self) -> dict[str, Any] | None:
        """The epoch whose weights are kept: the lowest validation loss, which weighs mask and cells alike.

        Epochs before a training was started anew do not count: their weights were replaced.

        The best Dice comes early, when touching cells are not yet told apart (figures in benchmarks/README.md).
        """
        first = max((i for i, row in enumerate(self.rows) if row["event"].endswith(ANEW)), default=0)
        return min((row for row in self.rows[first:] if not row["event"]), key=lambda row: row["val_loss"],
                   default=None)

    @property
    def trained(self) -> int:
        """How many epochs are trained, without those that were rolled back."""
        if not self.rows or self.rows[-1]["event"].endswith(ANEW):
            return 0
        _, back, epoch = self.rows[-1]["event"].rpartition(BACK)
        return int(epoch if back else self.rows[-1]["epoch"])

    @property
    def events(self) -> list[str]:
        """Everything out of the ordinary, in order."""
        return [f"epoch {row['epoch']}: {row['event']}" for row in self.rows if row["event"]]

    def save(self, path: Path) -> None:
        write_table(path, self.table())

    @classmethod
    def read(cls, path: Path) -> "History":
        """The rows of a saved history, without previews. Raises SegkitError where it is damaged."""
        numbers = {name: [""] for name in COLUMNS if name != "event"}
        try:
            table = pd.read_csv(path, keep_default_na=False, na_values=numbers)[list(COLUMNS)]
        except (ValueError, KeyError) as error:
            raise SegkitError(f"{path} cannot be read ({type(error).__name__}): delete it, RESUME=1 writes it again "
                              "from last.pt") from None
        return cls(table.to_dict("records"))

    def _repr_html_(self) -> str:
        return self.table().round(3).to_html(index=False)


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 12 min."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append everything said through `log` to a file, with times, while the block runs."""
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
