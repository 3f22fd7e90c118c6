"""Distributed training: the process group that torchrun starts; a process alone is a group of one.

Hugging Face Accelerate joins the processes. It was chosen over Lightning Fabric because it wraps a model in one call,
works with plain torchrun, and depends on torch alone of the heavy packages.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..devices import pick_device
from ..errors import SegkitError

TIMEOUT = timedelta(hours=6)  # for the slowest process, which may decode its shard long after the others
Item = TypeVar("Item")


class ProcessGroup:
    """The processes of this training. All of them must call the methods that communicate, in the same order."""

    def __init__(self, device: str = "auto") -> None:
        """device: as in Settings; with CUDA each process of a machine takes its own GPU.

        Raises SegkitError where torchrun started this process and the extra `cluster` is not installed, or a machine
        has fewer GPUs than processes.
        """
        self.device, self.rank, self.size, self._accelerator = pick_device(device), 0, 1, None
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine
        available = {"cuda": torch.cuda.device_count(), "mps": 1}.get(self.device.type, here)
        if here > available:
            raise SegkitError(f"{here} processes, {available} GPU(s), one each was needed: start fewer or DEVICE=cpu")
        try:
            from accelerate import Accelerator
            from accelerate.utils import InitProcessGroupKwargs
        except ImportError:
            raise SegkitError("several processes need the package accelerate: pip install 'segkit[cluster]'") from None
        accelerator = Accelerator(cpu=self.device.type == "cpu", mixed_precision="no",
                                  kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)])
        self.device = accelerator.device
        self.rank, self.size = accelerator.process_index, accelerator.num_processes
        self._accelerator = accelerator if self.size > 1 else None  # a group of one has nothing to communicate

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    def shard(self, items: Sequence[Item], what: str) -> list[Item]:
        """Every size-th item, for this process. Raises SegkitError where there are fewer items than processes."""
        if len(items) < self.size:
            raise SegkitError(f"{len(items)} {what} cannot be split over {self.size} processes: start fewer processes")
        return list(items[self.rank::self.size])

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the group."""
        return self._accelerator.prepare(model) if self._accelerator else model

    def gather(self, items: list[Item]) -> list[Item]:
        """The items of all processes, in the order of their ranks."""
        if self._accelerator is None:
            return items
        from accelerate.utils import gather_object
        return gather_object(items)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the group."""
        return self._accelerator.reduce(values, "mean") if self._accelerator else values

    def wait(self) -> None:
        """Continue when all processes have come here."""
        if self._accelerator:
            self._accelerator.wait_for_everyone()
