"""The student leaves segkit as ONNX, and the starting recipe's students come in."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn

from segkit import SegkitError, UNet, export_onnx, load_model, segment
from segkit.model.checkpoint import save_model
from segkit.model.unet import ModelInfo


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = UNet(ModelInfo(prominence=0.3)).eval()
    return model, export_onnx(model, tmp_path_factory.mktemp("onnx") / "model.onnx")


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (2, 1, 96, 160), (3, 1, 128, 48)])
def test_onnx_predicts_as_torch_does_at_any_size(exported, shape):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, path = exported
    x = np.random.default_rng(0).random(shape, np.float32)
    maps = onnxruntime.InferenceSession(str(path)).run(None, {"image": x})[0]
    with torch.inference_mode():
        expected = model(torch.from_numpy(x))
    np.testing.assert_allclose(maps[:, 0], expected[:, 0].sigmoid(), atol=1e-4)
    np.testing.assert_allclose(maps[:, 1], expected[:, 1], atol=1e-3)
    np.testing.assert_allclose(maps[:, 2:], expected[:, 2:].sigmoid(), atol=1e-4)


def test_onnx_holds_the_models_info(exported):
    import onnx
    properties = {p.key: p.value for p in onnx.load(exported[1]).metadata_props}
    assert json.loads(properties["segkit"])["prominence"] == 0.3


class Recipe(nn.Module):
    """The starting recipe's network after FACTS: its names, aligned corners, skip first."""

    def __init__(self):
        super().__init__()
        def double(a, b):
            block = nn.Module()
            block.double_conv = nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(),
                                              nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            return block
        widths = (24, 48, 96, 192, 384)
        self.inc, self.outc = double(1, 24), nn.Conv2d(24, 1, 1)
        for k in range(4):
            setattr(self, f"down{k + 1}", nn.Sequential(nn.MaxPool2d(2), double(widths[k], widths[k + 1])))
            setattr(self, f"conv_up{k + 1}", double(widths[4 - k] + widths[3 - k], widths[3 - k]))

    def forward(self, x):
        skips = [self.inc.double_conv(x)]
        for k in range(1, 5):
            pool, block = getattr(self, f"down{k}")
            skips.append(block.double_conv(pool(skips[-1])))
        x = skips.pop()
        for k in range(1, 5):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = getattr(self, f"conv_up{k}").double_conv(torch.cat([skips.pop(), x], 1))
        return self.outc(x)


@pytest.fixture(scope="module")
def recipe():
    torch.manual_seed(3)
    network = Recipe()
    with torch.no_grad():
        network.train()(torch.rand(4, 1, 64, 64))  # running statistics other than 0 and 1
    return network.eval()


@pytest.mark.parametrize("shape", [(48, 64), (57, 70)])
def test_the_starting_recipes_weights_segment_as_they_did(recipe, tmp_path, shape):
    torch.save(recipe.state_dict(), tmp_path / "best_mycobacterium_model.pth")
    model = load_model(tmp_path / "best_mycobacterium_model.pth", "cpu", "float32")  # bit by bit
    image = np.random.default_rng(1).integers(0, 4000, shape).astype(np.uint16)
    low, high = float(image.min()), float(image.max())
    rows, columns = (n // 16 * 16 for n in shape)
    x = ((torch.from_numpy(image.astype(np.float32)) - low) / (high - low))[None, None, :rows, :columns]
    with torch.inference_mode():
        probability = recipe(x).sigmoid()[0, 0].numpy()
    result = segment(model, image)
    np.testing.assert_allclose(result.probability[:rows, :columns], probability, atol=1e-5)
    assert result.labels.max() == ndimage.label(result.probability > 0.5, np.ones((3, 3)))[1]
    save_model(model, tmp_path / "model.safetensors")  # converted to a model file
    np.testing.assert_array_equal(segment(load_model(tmp_path, "cpu"), image).labels, result.labels)


@pytest.mark.parametrize("content", [b"", b"text", {"a": torch.zeros(1)}, [1, 2]])
def test_other_pth_files_are_refused_in_a_sentence(tmp_path, content):
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(SegkitError, match="starting recipe"):
        load_model(path)
