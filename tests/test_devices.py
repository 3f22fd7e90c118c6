"""The same student on every device that this machine has; what it lacks is skipped."""

import pytest
import torch

from segkit import Settings, UNet, dice, discover, fit, load_model, read_image, segment, split_by_position
from segkit.training.distributed import ProcessGroup
from segkit.training.trainer import Trainer
from tests.helpers import small_demo

HERE = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
DEVICES = [pytest.param(name, marks=pytest.mark.skipif(not there, reason=f"no {name} on this machine"))
           for name, there in HERE.items()]
needs_cuda = pytest.mark.skipif(not HERE["cuda"], reason="no cuda on this machine")


def taught(folder, device, epochs=6, run="taught"):
    split = split_by_position(discover(folder / "data").pairs)
    settings = Settings(root=folder, dataset_path=folder / "data", run=run, device=device, epochs=epochs,
                        crops_per_epoch=128, crop="64x64")
    return split, settings, fit(UNet(), split, settings)


@pytest.mark.parametrize("device", DEVICES)
def test_what_a_device_has_taught_answers_alike_on_the_cpu(tmp_path, device):
    small_demo(tmp_path / "data")
    split, settings, history = taught(tmp_path, device)
    there, here = load_model(settings.run_dir, device), load_model(settings.run_dir, "cpu")
    assert next(there.parameters()).device.type == device
    assert history.best["val_dice"] > 0.5  # it has learnt, so that there is something to compare
    for frame in split.validation:
        image = read_image(frame.image)
        assert dice(segment(there, image).mask, segment(here, image).mask) > 0.998


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_seed_ends_alike_twice(tmp_path, device):
    small_demo(tmp_path / "data")
    once, again = (taught(tmp_path, device, 3, run)[2].rows[-1]["val_dice"] for run in ("one", "two"))
    assert once == again if device == "cpu" else abs(once - again) < 0.002


@needs_cuda
def test_the_default_batch_takes_less_than_8_gb():
    torch.cuda.reset_peak_memory_stats()
    settings = Settings()
    trainer = Trainer(UNet(), settings, ProcessGroup("cuda"))
    trainer.initialise(0.2)
    images = torch.rand(settings.batch_size, 1, 768, 448, device="cuda")
    for _ in range(2):
        trainer.train_step(images, (images > 0.8).float())
    assert torch.cuda.max_memory_allocated() < 8e9
