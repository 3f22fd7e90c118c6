"""What the notebooks say of the machine: installed packages, device, memory, speed."""

import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement

from .devices import describe_device, free_memory, pick_device
from .learner import Learner
from .model import UNet
from .settings import Settings
from .team import Team


def check_installation() -> dict[str, bool]:
    """Whether each of segkit's packages is there in a version that it supports, and torchvision matches torch."""
    checks = {"Python>=3.11": sys.version_info >= (3, 11)}
    for line in requires("segkit") or ():
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            checks[str(requirement)] = requirement.specifier.contains(version(requirement.name), prereleases=True)
        except PackageNotFoundError:
            checks[str(requirement)] = False
    try:
        from torchvision.ops import nms
        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
        checks["torch and torchvision match"] = True
    except (ImportError, RuntimeError):
        checks["torch and torchvision match"] = False
    return checks


def measure_speed(device: torch.device, precision: str = "auto", crop: int = 64, batch: int = 16,
                  steps: int = 2) -> float:
    """Megapixels per second through whole training steps of the student, after one to warm up."""
    learner = Learner(UNet(), Team(str(device)), Settings(batch_size=batch, precision=precision))
    learner.start(foreground=0.2, tries=0)
    images = torch.rand(batch, 1, crop, crop, device=device)
    targets = (torch.rand(batch, 1, crop, crop, device=device) > 0.8).float()
    began = 0.0
    for step in range(steps + 1):
        if step == 1:
            began = time.perf_counter()
        learner.step(images, targets).tolist()  # waits for the device
    return batch * crop * crop * steps / (time.perf_counter() - began) / 1e6


def machine_report(device_name: str = "auto", precision: str = "auto") -> dict[str, str]:
    """Versions, device, free memory and measured speed, in words."""
    device = pick_device(device_name)
    megapixels = measure_speed(device, precision)
    rows = {"Python": platform.python_version(), "PyTorch": torch.__version__,
            "device": describe_device(device, precision),
            "free memory": f"{free_memory() / 1e9:.1f} GB",
            "speed": f"about {megapixels * 1e6 / 128**2:.0f} crops of 128 x 128 pixels per second"}
    if device.type == "cuda":
        rows["free GPU memory"] = f"{torch.cuda.mem_get_info(device)[0] / 1e9:.1f} GB"
    return rows

