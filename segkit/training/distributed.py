"""Processes that train one student together, each on its share of the frames; a process alone is a group of one.

Hugging Face Accelerate joins them where torchrun started them. It was chosen over Lightning Fabric because it wraps a
model in one call, needs no launcher of its own, and depends on torch alone of the heavy packages.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from tempfile import TemporaryFile
from typing import IO, TypeVar, cast

import torch
from torch import Tensor, nn

from ..devices import pick_device
from ..errors import STOPPED, SegkitError
from ..settings import Settings
from .run_dir import History

POLL = 0.5  # seconds between looks at what a group has done
PATIENCE = timedelta(hours=6)  # with a process that decodes its share more slowly than the others
WATCHED = "watched"  # first argument of a process whose standard input ends together with its launcher's
Item = TypeVar("Item")


def is_distributed() -> bool:
    """Whether torchrun started this process as one of a group."""
    return "TORCHELASTIC_RUN_ID" in os.environ


class ProcessGroup:
    """The processes of this training. Methods that exchange something must be called by all of them, in one order."""

    def __init__(self, device: str = "auto") -> None:
        """device: as in Settings; with CUDA each process of a machine takes its own GPU.

        Raises SegkitError where torchrun started this process and the extra `cluster` is not installed, or a machine
        has fewer GPUs than processes.
        """
        self.device, self.rank, self.size, self._accelerator = pick_device(device), 0, 1, None
        self.here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_distributed() else 1  # processes of this machine
        there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(self.device.type, self.here)
        if self.here > there:
            raise SegkitError(f"{self.here} processes and {there} GPU(s) on this machine: one for each process was "
                              f"needed; set PROCESSES={there}, or DEVICE=cpu")
        if not is_distributed():
            return
        try:
            from accelerate import Accelerator
            from accelerate.utils import InitProcessGroupKwargs
        except ImportError:
            raise SegkitError("training in several processes needs the package accelerate: "
                              "pip install 'segkit[cluster]'") from None
        patient = InitProcessGroupKwargs(timeout=PATIENCE)
        accelerator = Accelerator(cpu=self.device.type == "cpu", mixed_precision="no", kwargs_handlers=[patient])
        self.device = accelerator.device
        self.rank, self.size = accelerator.process_index, accelerator.num_processes
        self._accelerator = accelerator if self.size > 1 else None  # a group of one has nothing to exchange

    @property
    def is_main_process(self) -> bool:
        """Whether this is the one process that writes and speaks."""
        return self.rank == 0

    def shard(self, items: Sequence[Item], what: str) -> list[Item]:
        """This process's items, every size-th. Raises SegkitError where there are fewer than processes."""
        if len(items) < self.size:
            raise SegkitError(f"{len(items)} {what} cannot be shared by {self.size} processes: start at most "
                              f"{len(items)}")
        return list(items[self.rank::self.size])

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as its forward pass must be called, so that gradients are averaged over the group."""
        return self._accelerator.prepare(model) if self._accelerator else model

    def gather(self, items: list[Item]) -> list[Item]:
        """The items of all processes, those of the first process first."""
        if self._accelerator is None:
            return items
        from accelerate.utils import gather_object
        return gather_object(items)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the group."""
        return self._accelerator.reduce(values, "mean") if self._accelerator else values

    def wait(self) -> None:
        """Go on when all have come here."""
        if self._accelerator:
            self._accelerator.wait_for_everyone()


def launch(settings: Settings, on_epoch: Callable[[History], None] | None = None) -> History:
    """Train in settings.processes processes of this machine, by torchrun and segkit.training.__main__.

    on_epoch: called after every epoch with the history (its previews are empty). Returns the history.
    They end when this process ends, however it is killed: each watches its standard input, which ends then.
    Raises SegkitError with the reason where the training stops before its end.
    """
    values = {name: "" if value is None else value for name, value in settings.as_dict().items()}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={settings.processes}", "-m", "segkit.training", WATCHED,
               *(f"{name}={int(value) if isinstance(value, bool) else value}" for name, value in values.items())]
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // settings.processes))}
    table, seen = settings.run_dir / "history.csv", None
    with suppress(FileNotFoundError):
        seen = table.stat().st_mtime_ns
    with TemporaryFile("w+", errors="replace") as said:
        group = subprocess.Popen(command, cwd=settings.root, env=threads | os.environ, stdin=subprocess.PIPE,
                                stdout=subprocess.DEVNULL, stderr=said,
                                start_new_session=True)  # an interrupt reaches it once, through us
        try:
            while group.poll() is None:
                time.sleep(POLL)
                with suppress(FileNotFoundError):
                    if on_epoch and seen != (seen := table.stat().st_mtime_ns):
                        on_epoch(History.read(table))
        except BaseException as error:
            group.terminate()
            group.wait()
            if not isinstance(error, KeyboardInterrupt):
                raise
            raise SegkitError(f"interrupted: the finished epochs are saved in {settings.run_dir}; RESUME=1 goes on "
                              "from there") from None
        finally:
            cast(IO, group.stdin).close()
        said.seek(0)
        reasons = [line.partition(STOPPED)[2].strip() for line in said if STOPPED in line]
    if group.returncode:
        raise SegkitError(reasons[0] if reasons else f"the {settings.processes} processes ended with code "
                          f"{group.returncode} and no reason: look at {settings.run_dir / 'run.log'}")
    return History.read(table)
