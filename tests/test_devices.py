"""The same student on every device that this machine has; what it lacks is skipped."""

import pytest
import torch

from segkit import Settings, UNet, dice, fit, load_model, read_image, segment
from segkit.data.discovery import discover_split
from segkit.training.distributed import ProcessGroup
from segkit.training.trainer import Trainer

HERE = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
DEVICES = [pytest.param(name, marks=pytest.mark.skipif(not there, reason=f"no {name} on this machine"))
           for name, there in HERE.items()]
needs_cuda = pytest.mark.skipif(not HERE["cuda"], reason="no cuda on this machine")


def train(settings, device, run, epochs):
    """Another training on the data of the fixture `taught`: on the CPU a very short one."""
    settings = Settings(root=settings.root, dataset_path=settings.dataset_path, run=f"{device}_{run}", device=device,
                        epochs=epochs, crops_per_epoch=32 if device == "cpu" else 128, crop="64x64",
                        start_from="")
    return settings, fit(UNet(), discover_split(settings), settings)


@pytest.mark.parametrize("device", DEVICES)
def test_what_a_device_has_taught_answers_alike_on_the_cpu(taught, device):
    settings, history = taught if device == "cpu" else train(taught[0], device, "taught", 6)
    there, here = load_model(settings.run_dir, device), load_model(settings.run_dir, "cpu")
    assert next(there.parameters()).device.type == device
    assert history.best["val_dice"] > 0.5  # it has learnt, so that there is something to compare
    for frame in discover_split(settings).validation:
        image = read_image(frame.image)
        assert dice(segment(there, image).mask, segment(here, image).mask) > 0.998


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_seed_ends_alike_twice(taught, device):
    epochs = 1 if device == "cpu" else 3
    once, again = (train(taught[0], device, run, epochs)[1].rows[-1] for run in ("one", "two"))
    if device == "cpu":
        assert (once["val_loss"], once["val_dice"]) == (again["val_loss"], again["val_dice"])
    else:
        assert abs(once["val_dice"] - again["val_dice"]) < 0.002


@needs_cuda
def test_the_default_batch_takes_less_than_8_gb():
    torch.cuda.reset_peak_memory_stats()
    settings = Settings(start_from="")
    trainer = Trainer(UNet(), settings, ProcessGroup("cuda"))
    trainer.initialise(0.2)
    images = torch.rand(settings.batch_size, 1, 768, 448, device="cuda")
    for _ in range(2):
        trainer.train_step(images, (images > 0.8).float().expand(-1, 2, -1, -1))
    assert torch.cuda.max_memory_allocated() < 8e9
