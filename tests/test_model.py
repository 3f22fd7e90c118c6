import json
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from segkit import SegkitError, UNet, discover, load_model, read_image, segment
from segkit.measure.metrics import dice
from segkit.model.baseline import AlignedUpConv
from segkit.model.checkpoint import save_model
from segkit.model.unet import PAIRS, ModelInfo, UpConv
from segkit.settings import STARTER
from segkit.training.losses import batch_dice, student_loss
from tests.helpers import FIXTURE, squares


def test_parameters_are_the_starting_recipes_and_25_for_each_further_map():
    assert UNet().count_parameters() == 4_418_449 + 25 * (1 + len(PAIRS))
    assert UNet(ModelInfo(outputs=1)).count_parameters() == 4_418_449


@pytest.mark.parametrize("kind", [UpConv, AlignedUpConv])
def test_a_smaller_map_is_joined_as_upsampled_concatenated_and_convolved(kind):
    torch.manual_seed(0)
    block, x, skip = kind(5, 2).eval(), torch.rand(2, 3, 6, 8), torch.rand(2, 2, 12, 16)
    larger = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=kind is AlignedUpConv)
    expected, found = torch.cat([skip, larger], dim=1), block(x, skip)
    for layer in block:
        expected = layer(expected)
    rim = 2 if kind is UpConv else 0  # zero padding of x; and two convolutions see a pixel each
    inner = (..., slice(rim, 12 - rim), slice(rim, 16 - rim))
    torch.testing.assert_close(found[inner], expected[inner], atol=1e-5, rtol=1e-5)


def test_the_smaller_map_is_padded_with_zeros():
    torch.manual_seed(0)
    block, x, weight = UpConv(5, 2), torch.rand(2, 3, 6, 8), torch.rand(2, 3, 3, 3)
    wide = F.interpolate(F.pad(x, (2, 2, 2, 2)), scale_factor=2)  # (2, 3, 20, 24), every pixel repeated
    smooth = F.conv2d(wide, block.smoothing.expand(3, 1, 3, 3) / 4, groups=3)  # (2, 3, 18, 22)
    expected = F.conv2d(smooth, weight)[..., 2:-2, 2:-2]
    torch.testing.assert_close(block.convolve_upsampled(x, weight), expected, atol=1e-5, rtol=1e-5)


def test_a_bias_that_batch_norm_subtracts_needs_no_gradient():
    torch.manual_seed(0)
    model = UNet()
    still = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert len(still) == 18
    assert "out.bias" not in still
    model.requires_grad_().train()
    student_loss(model(torch.rand(2, 1, 32, 32)), (torch.rand(2, 2, 32, 32) > 0.5).float()).backward()
    largest = {kind: max(float(p.grad.abs().max()) for name, p in model.named_parameters()
                         if (name in still) == (kind == "still")) for kind in ("still", "learnt")}
    assert largest["still"] < 1e-5 * largest["learnt"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_memory_that_was_given_back_is_used_again():
    code = """
import resource, torch
from segkit.devices import keep_memory
def faults():
    found = []
    for _ in range(12):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 64 MB
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return sorted(found)[6]  # the first needs pages; a later one may, too, where a small block took part of its place
print(faults())
keep_memory()
print(faults())
"""
    anew, kept = map(int, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                         check=True).stdout.split())
    assert kept < anew / 10


def test_a_size_that_does_not_fit_says_what_would():
    with pytest.raises(ValueError, match="pad it to 48 x 64"):
        UNet()(torch.zeros(1, 1, 40, 50))


def test_saved_and_loaded_is_the_same(tmp_path):
    model = UNet(ModelInfo(prominence=0.3, cell_width=9.5, trained_on={"REF/Pos101": ["0123456789abcdef"]})).eval()
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path, "cpu")
    assert loaded.info == model.info
    x = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("damage", ["missing", "text", "cut", "foreign"])
def test_what_is_no_model_gives_one_sentence(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    if damage == "text":
        path.write_text("not a model")
    elif damage == "cut":
        save_model(UNet(), path)
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "foreign":
        save_file({"a": torch.zeros(2)}, path, {"segkit": json.dumps({"format": 2})})
    with pytest.raises(SegkitError, match=r"model|weights"):
        load_model(tmp_path)


def test_a_file_of_version_1_1_0_is_read(tmp_path):
    """What 1.1.0 wrote: a format number, the info without the fields that came later, and the weights."""
    torch.manual_seed(0)
    model, x = UNet(ModelInfo(outputs=2, prominence=0.3, cell_width=9.5)).eval(), torch.rand(1, 1, 32, 48)
    metadata = {"format": 2, **asdict(model.info)}
    for later in ("trained_on", "validated_on", "fully_recorded"):
        del metadata[later]
    save_file(model.state_dict(), tmp_path / "model.safetensors", {"segkit": json.dumps(metadata)})
    loaded = load_model(tmp_path, "cpu", "float32")
    assert loaded.info == model.info
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("change", [{"format": 1, "align_corners": False}, {"upsampling": "bilinear"}])
def test_a_file_of_version_1_0_is_refused_in_one_sentence(tmp_path, change):
    """Also where 1.1 saved it again."""
    metadata = {"format": 2, **asdict(ModelInfo()), **change}
    save_file(UNet().state_dict(), tmp_path / "model.safetensors", {"segkit": json.dumps(metadata)})
    with pytest.raises(SegkitError, match=r"is a model of version 1\.0, which is no longer read: train again"):
        load_model(tmp_path)


def test_loading_runs_no_code(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(SegkitError):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_starter_segments_a_frame_and_is_a_small_file_of_plain_numbers():
    frame = next(frame for frame in discover(FIXTURE).frames if frame.frame == 3)
    model = load_model("starter", "cpu")
    assert segment(model, read_image(frame.image)).labels.any()
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert STARTER.stat().st_size <= 9e6
    assert {value.dtype for value in load_file(STARTER).values()} == {torch.float16, torch.int64}  # which holds no code
    assert model.info.outputs == UNet().info.outputs  # so that a training can start from it
    assert model.info.fully_recorded
    assert model.info.trained_on
    assert not Path(model.info.settings["DATASET_PATH"]).is_absolute()  # no folder of the machine that trained it


def test_a_file_called_starter_is_reached_by_its_path(tmp_path, monkeypatch):
    save_model(UNet(ModelInfo(min_area=77)), tmp_path / "starter", half=True)
    monkeypatch.chdir(tmp_path)
    assert load_model("./starter", "cpu").info.min_area == load_model(Path("starter"), "cpu").info.min_area == 77
    assert load_model("starter", "cpu").info.min_area != 77


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (16, 16), (33, 47), (128, 100)])
def test_every_pixel_of_any_size_is_predicted(shape):
    result = segment(UNet(), np.random.default_rng(0).random(shape))
    assert [a.shape for a in result] == [shape] * 3
    assert [a.dtype for a in result] == [np.float32, bool, np.int32]
    np.testing.assert_array_equal(result.labels > 0, result.mask)


@pytest.mark.parametrize("image", [np.zeros((20, 20), np.uint16), np.full((20, 20), np.nan),
                                   np.ones((20, 20), bool), np.full((20, 20), 65535, np.uint16)])
def test_images_without_content_are_predicted_too(image):
    assert np.isfinite(segment(UNet(), image).probability).all()


def dotted(value, *pixels, dtype=np.float32):
    """A constant image with a few other pixels."""
    image = np.full((40, 48), value, dtype)
    for pixel in pixels:
        image[pixel] += 50
    return image


@pytest.mark.parametrize("image", [
    dotted(0, dtype=np.uint16), dotted(0.1), dotted(1e30), dotted(-3.7), dotted(np.nan), dotted(np.inf),
    dotted(0, (3, 4), (20, 20), (20, 21), dtype=np.uint8), dotted(7, *((y, x) for y in range(1, 39, 4)
                                                                   for x in range(1, 46, 4))),
    np.where(np.arange(48) % 3, np.float32(0.3), np.nextafter(np.float32(0.3), np.float32(1))) * np.ones((40, 1))],
    ids=["black", "0.1", "1e30", "-3.7", "nan", "inf", "hot pixels", "many hot pixels", "rounding"])
@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_an_image_without_contrast_has_no_cells(image, scale):
    found = segment(student_that_sees_cells_everywhere(), image, scale=scale)
    assert found.labels.max() == 0
    assert found.probability.max() == 0


@pytest.mark.parametrize("image", [squares((5, 5), side=4), np.eye(40) > 0, squares((0, 0), shape=(20, 20)) - 5.0,
                                   np.random.default_rng(0).normal(100, 1, (40, 48))],
                         ids=["one small cell", "bool", "quarter", "noise"])
def test_an_image_with_a_cells_worth_of_contrast_is_predicted(image):
    assert segment(student_that_sees_cells_everywhere(), image).labels.max() == 1


def student_that_sees_cells_everywhere():
    student = UNet()
    student.out.bias.data[:] = 20
    return student


@pytest.mark.parametrize("shape", [(3, 20, 20), (0, 5), (20,)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(SegkitError, match="height x width"):
        segment(UNet(), np.zeros(shape))


def test_losses_are_smallest_for_the_right_prediction():
    target = torch.zeros(1, 2, 8, 8)
    target[:, 0, 2:6, 2:6], target[:, 1, 2:6, 2:6] = 0.7, 3  # one cell
    pairs = torch.full((1, len(PAIRS), 8, 8), 12.0)
    right = torch.cat([torch.where(target[:, :1] > 0, 12.0, -12.0), target[:, :1], pairs], 1)
    assert student_loss(right, target) < 0.02
    assert student_loss(-right, target) > 2
    touching = target.clone()
    touching[:, 1, 2:6, 4:6] = 4
    assert student_loss(right, touching) > student_loss(right, target) + 1  # pairs from one cell to the other
    nothing = torch.cat([torch.full((1, 1, 8, 8), -20.0), torch.zeros(1, 1 + len(PAIRS), 8, 8)], 1)
    assert student_loss(nothing, torch.zeros(1, 2, 8, 8)) == pytest.approx(0, abs=1e-4)


def test_batch_dice_is_dice_frame_by_frame():
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(3, 9, 9)), rng.random((3, 9, 9)) > 0.5
    logits[2], target[2] = -1, False
    expected = [dice(a > 0, b) for a, b in zip(logits, target, strict=True)]
    assert batch_dice(torch.from_numpy(logits), torch.from_numpy(target)).tolist() == pytest.approx(expected)
    assert expected[2] == 1.0
