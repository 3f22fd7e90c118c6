"""Inference by the workers of a Dask cluster; the tasks of a lost worker are run again."""

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import groupby, islice
from typing import Any
from uuid import uuid4

import torch

from ..data.dataset import Frame
from ..devices import pick_device
from ..errors import SegkitError
from ..model.unet import UNet, copy_on_cpu

Work = Callable[[UNet, Sequence[Frame]], Iterable[Any]]
MAX_BLOCK = 128  # frames in a task
PATIENCE = "10s"  # how long to wait for the scheduler


def run_on_cluster(cluster: str, work: Work, model: UNet, frames: Sequence[Frame]) -> Generator[Any, None, None]:
    """As work(model, frames), with the same results in the same order, by the workers of a cluster.

    cluster: "local:4", 4 processes of this machine, or the address of a Dask scheduler, such as tcp://node7:8786; its
    workers must see all files under the same paths. A worker's device is its SEGKIT_DEVICE, or auto. The
    tables equal those of one process that computes with one thread, on a processor of the same kind.
    Raises SegkitError where the extra `cluster` is not installed, the scheduler does not respond, or its workers are
    lost again and again.
    """
    try:
        from distributed import CancelledError, Client, KilledWorker, LocalCluster
    except ImportError:
        raise SegkitError("CLUSTER needs the package distributed: pip install 'segkit[cluster]'") from None
    kind, _, number = cluster.partition(":")
    if kind == "local" and not (number.isdecimal() and int(number) > 0):
        raise SegkitError(f"CLUSTER is {cluster}: local:4, for 4 processes, or a scheduler's address was needed")
    with ExitStack() as stack:
        # the stack closes what was opened, whatever happens
        try:
            address = cluster if kind != "local" else stack.enter_context(LocalCluster(
                n_workers=int(number), threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR))
            client = stack.enter_context(Client(address, timeout=PATIENCE))
            student = _student_plugin(model)
            client.register_plugin(student)
            stack.callback(_unregister, client, student.name)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise SegkitError(f"CLUSTER {cluster} does not respond ({error}): start scheduler and workers") from None

        # workers started in another folder would look for a relative path there
        absolute = [replace(f, image=f.image.absolute(), masks=f.masks and f.masks.absolute()) for f in frames]
        tasks: deque[Any] = deque()
        for _, position in groupby(absolute, key=lambda f: f.unit):
            while block := list(islice(position, MAX_BLOCK)):
                tasks.append(client.submit(_run_task, student.name, work, block, pure=False))

        # a task that is taken off the queue is forgotten, so that no worker keeps its result
        try:
            while tasks:
                yield from tasks.popleft().result()
        except (KilledWorker, CancelledError):
            raise SegkitError(f"the scheduler of {cluster} was lost, or its workers again and again at the same task: "
                              "give them more memory, or fewer threads, and run this again to continue") from None


def _student_plugin(model: UNet) -> Any:
    """The model as a plugin: Dask sends it to every worker once, also to those that join later."""
    from distributed import WorkerPlugin

    class Student(WorkerPlugin):
        name = f"segkit-{uuid4().hex}"  # another user of the same scheduler has another student

        def setup(self, worker: Any) -> None:
            torch.set_num_threads(1)  # each of the worker's threads computes on one core
            device = pick_device(os.environ.get("SEGKIT_DEVICE", "auto"))
            self.model = copy.to(device).to(memory_format=torch.channels_last).eval()

    copy = copy_on_cpu(model)
    return Student()


def _run_task(student: str, work: Work, frames: Sequence[Frame]) -> list[Any]:
    """One task, on a worker."""
    from distributed import get_worker
    plugin: Any = get_worker().plugins[student]
    return list(work(plugin.model, frames))


def _unregister(client: Any, name: str) -> None:
    """Remove the student from the workers that are still connected."""
    with suppress(Exception):
        client.unregister_worker_plugin(name)
