"""PRECISION is what a network computes in, in training and in use, on every CPU."""

import numpy as np
import pytest
import torch

from segkit import SegkitError, Settings, UNet, load_model, segment
from segkit.devices import describe_device
from segkit.model.checkpoint import save_model
from segkit.model.unet import copy_on_cpu
from segkit.training.distributed import ProcessGroup
from segkit.training.trainer import Trainer
from tests.helpers import untrained_student


def output_types(network, monkeypatch, action):
    """The types of what the network's forward pass returns while `action` runs."""
    seen = []
    forward = UNet.forward

    def spy(self, x):
        output = forward(self, x)
        seen.append(output.dtype)
        return output
    monkeypatch.setattr(UNet, "forward", spy)
    action()
    return set(seen)


@pytest.mark.parametrize(("precision", "kind"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_inference_and_training_compute_in_the_precision_that_is_set(tmp_path, monkeypatch, precision, kind):
    save_model(untrained_student(), tmp_path / "model.safetensors")
    model = load_model(tmp_path, "cpu", precision)
    assert copy_on_cpu(model).precision == precision
    image = np.random.default_rng(0).random((32, 32))
    assert output_types(model, monkeypatch, lambda: segment(model, image)) == {kind}
    trainer = Trainer(UNet(), Settings(precision=precision, batch_size=2, start_from=""), ProcessGroup("cpu"))
    trainer.initialise(0.2)
    crops, targets = torch.rand(2, 1, 32, 32), (torch.rand(2, 2, 32, 32) > 0.8).float()
    assert output_types(trainer.model, monkeypatch, lambda: trainer.train_step(crops, targets)) == {kind}
    assert precision in describe_device(torch.device("cpu"), precision)


def test_another_precision_is_refused():
    with pytest.raises(SegkitError, match="PRECISION is half: one of auto, bf16, float32"):
        Settings(precision="half")
    with pytest.raises(SegkitError, match="precision is half"):
        load_model("nowhere", "cpu", "half")
