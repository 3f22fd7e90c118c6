"""Device and precision; memory."""

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress

import torch
from torch import Tensor

from .errors import SegkitError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def pick_device(name: str = "auto") -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1" or "mps" into a device; auto prefers CUDA, then MPS.

    Raises SegkitError where that device is not there.
    """
    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if usable[kind]))
    kind, _, number = name.partition(":")
    if not usable.get(kind, False) or (number and (not number.isdecimal() or int(number) >= torch.cuda.device_count())):
        there = ", ".join(kind for kind, ok in usable.items() if ok)
        raise SegkitError(f"DEVICE is {name}, which PyTorch does not find here: choose auto or one of {there}")
    return torch.device(name)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic runs in hardware, so that it pays (2.4 to 3.6 times on AVX-512 with bf16)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return device.type == "cpu" and any(check() for check in checks if check is not None)


def computes_in_bf16(device: torch.device, precision: str = "auto") -> bool:
    """Whether a network runs in bf16 there; precision: "bf16" and "float32" force it, "auto" asks the hardware."""
    return has_fast_bf16(device) if precision == "auto" else precision == "bf16"


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager:
    """bf16 autocast, or plain float32; see `computes_in_bf16`."""
    return torch.autocast(device.type, torch.bfloat16) if computes_in_bf16(device, precision) else nullcontext()


def in_parts(forward: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """forward(batch), in halves where the GPU's memory does not hold the whole (B, C, H, W).

    Raises SegkitError where it does not hold one image.
    """
    try:
        return forward(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise SegkitError(f"an image of {batch.shape[-2]} x {batch.shape[-1]} pixels does not fit into the GPU's "
                              "memory: set DEVICE=cpu") from None
    # outside the handler, where the failed attempt's tensors are freed
    torch.cuda.empty_cache()
    return torch.cat([in_parts(forward, half) for half in batch.chunk(2)])


def keep_memory() -> None:
    """Let the C library keep large blocks of memory instead of requesting them from the system in every step.

    The system zeroes each page that it hands out: 60,000 of them in a training step of 16 crops of 128 x 128. Linux
    with glibc; elsewhere nothing happens.
    """
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            library.mallopt(option, 2**30)


def describe_device(device: torch.device, precision: str = "auto") -> str:
    """The device and its precision in words, as the report names them."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{name}{threads}, {'bf16' if computes_in_bf16(device, precision) else 'float32'}"
