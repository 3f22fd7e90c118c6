"""Processes that train one student together, each on its share of the frames; a process alone is a team of one.

Hugging Face Accelerate joins them where torchrun started them. It was chosen over Lightning Fabric because it wraps a
model in one call, needs no launcher of its own, and depends on torch alone of the heavy packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pandas as pd
from torch import Tensor, nn

from .devices import pick_device
from .errors import SegkitError
from .history import History
from .settings import Settings

POLL = 0.5  # seconds between looks at what a team has done
Item = TypeVar("Item")


def launched() -> bool:
    """Whether torchrun started this process as one of a team."""
    return "TORCHELASTIC_RUN_ID" in os.environ


class Team:
    """The processes of this training. Methods that exchange something must be called by all of them, in one order."""

    def __init__(self, device: str = "auto") -> None:
        """device: as in Settings; with CUDA each process of a machine takes its own GPU.

        Raises SegkitError where torchrun started this process and the extra `cluster` is not installed.
        """
        self.device, self.rank, self.size, self._accelerator = pick_device(device), 0, 1, None
        if not launched():
            return
        try:
            from accelerate import Accelerator
        except ImportError:
            raise SegkitError("training in several processes needs the package accelerate: "
                              "pip install 'segkit[cluster]'") from None
        self._accelerator = Accelerator(cpu=self.device.type == "cpu", mixed_precision="no")  # autocast is our own
        self.device = self._accelerator.device
        self.rank, self.size = self._accelerator.process_index, self._accelerator.num_processes

    @property
    def first(self) -> bool:
        """Whether this is the one process that writes and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[Item], what: str) -> list[Item]:
        """This process's items, every size-th. Raises SegkitError where there are fewer than processes."""
        if len(items) < self.size:
            raise SegkitError(f"{len(items)} {what} cannot be shared by {self.size} processes: start at most "
                              f"{len(items)}")
        return list(items[self.rank::self.size])

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model as its forward pass must be called, so that gradients are averaged over the team."""
        return self._accelerator.prepare(model) if self._accelerator and self.size > 1 else model

    def gather(self, items: list[Item]) -> list[Item]:
        """The items of all processes, those of the first process first."""
        if self.size == 1:
            return items
        from accelerate.utils import gather_object
        return gather_object(items)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the team."""
        return self._accelerator.reduce(values, "mean") if self._accelerator and self.size > 1 else values

    def wait(self) -> None:
        """Go on when all have come here."""
        if self._accelerator and self.size > 1:
            self._accelerator.wait_for_everyone()


def launch(settings: Settings, on_epoch: Callable[[History], None] | None = None) -> History:
    """Train in settings.processes processes of this machine, by torchrun and segkit.distributed.

    on_epoch: called after every epoch with the history (its previews are empty). Returns the history.
    Raises SegkitError with the reason where the training stops before its end.
    """
    values = {name: "" if value is None else value for name, value in settings.as_dict().items()}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={settings.processes}", "-m", "segkit.distributed",
               *(f"{name}={int(value) if isinstance(value, bool) else value}" for name, value in values.items())]
    log_file, table = settings.run_dir / "run.log", settings.run_dir / "history.csv"
    said = log_file.stat().st_size if log_file.is_file() else 0
    team = subprocess.Popen(command, cwd=settings.root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)  # an interrupt reaches it once, through us
    seen: Any = table.stat().st_mtime_ns if table.is_file() else None
    try:
        while _runs(team):
            now = table.stat().st_mtime_ns if table.is_file() else None
            if on_epoch and now not in (None, seen):
                seen = now
                on_epoch(read_history(settings))
    except KeyboardInterrupt:
        team.terminate()
        team.wait()
    errors = team.stderr.read() if team.stderr else ""
    if team.returncode:
        lines = log_file.read_text(encoding="utf-8")[said:].splitlines() if log_file.is_file() else []
        stopped = [line.partition("stopped: ")[2] for line in lines if "stopped: " in line]
        reasons = stopped or [line for line in errors.splitlines() if line.startswith("segkit stopped: ")]
        raise SegkitError(reasons[-1] if reasons else f"the {settings.processes} processes ended with code "
                          f"{team.returncode}: {errors.strip().splitlines()[-1] if errors.strip() else 'no reason'}")
    return read_history(settings)


def _runs(process: subprocess.Popen) -> bool:
    try:
        process.wait(POLL)
        return False
    except subprocess.TimeoutExpired:
        return True


def read_history(settings: Settings) -> History:
    """The history that a run has written so far."""
    table = pd.read_csv(settings.run_dir / "history.csv", keep_default_na=False)
    return History(table.to_dict("records"))
