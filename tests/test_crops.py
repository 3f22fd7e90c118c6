import os
import time

import numpy as np
import pytest
import torch

from segkit import SegkitError, Settings, discover
from segkit.data.dataset import read_pair
from segkit.data.images import normalise
from segkit.training import frames as frames_module
from segkit.training.augment import gather_crops, sample_crops
from segkit.training.frames import build_store, choose_crop
from tests.helpers import FIXTURE, squares, write

CPU = torch.device("cpu")
PLAIN = {"angle": 0.0, "zoom": 1.0, "mirror": 1.0, "contrast": 1.0, "offset": 0.0, "gamma": 1.0, "slope_y": 0.0,
         "slope_x": 0.0, "blur": 0.0, "noise": 0.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    pairs = [f for f in discover(FIXTURE).pairs if f.frame == 11]
    return build_store(pairs, CPU, tmp_path_factory.mktemp("cache"))[0]


def plain_plan(count, **changes):
    plan = {name: torch.full((count,), value) for name, value in (PLAIN | changes).items()}
    return plan | {"frame": torch.arange(count), "centre": torch.full((count, 2), 64.0),
                   "noise_seed": torch.zeros(1, dtype=torch.int64)}


def test_whole_frames_are_what_segment_sees(store):
    for k, frame in enumerate(store.frames):
        image, labels = read_pair(frame)
        whole, target = store.whole([k], 16)
        np.testing.assert_allclose(whole[0, 0].numpy(), normalise(image), atol=2e-5)
        np.testing.assert_array_equal(target[0, 0].numpy() > 0, labels > 0)


@pytest.mark.parametrize("kind", [np.float32, np.uint16])
def test_outliers_and_missing_pixels_are_as_segment_sees_them(tmp_path, kind):
    image = np.random.default_rng(0).normal(100, 5, (40, 48)).astype(kind)
    image[3, 4] = 60000
    if kind == np.float32:
        image[3, 5:9] = 1e6, -1e6, np.inf, -np.inf
        image[20:30, 10:30] = np.nan
    write(tmp_path / "A_raw_data" / "Pos1" / "img_0.tif", image)
    write(tmp_path / "A_masks" / "Pos1" / "MASK_img_0.tif", squares((5, 5)).astype(np.uint8))
    whole, _ = build_store(discover(tmp_path).pairs, CPU, tmp_path / "cache")[0].whole([0], 16)
    step = 1e-3 if kind == np.float32 else 0.05  # an outlier of whole numbers is cut off at a whole number
    np.testing.assert_allclose(whole[0, 0, :40, :48].numpy(), normalise(image), atol=step)


def test_an_unchanged_crop_is_cut_pixel_by_pixel(store):
    images, targets = gather_crops(store, plain_plan(2), (32, 48))
    whole, target = store.whole([1], 16)
    np.testing.assert_allclose(images[1].numpy(), whole[0, :, 48:80, 40:88].numpy(), atol=1e-5)
    np.testing.assert_array_equal(targets[1].numpy(), target[0, :, 48:80, 40:88].numpy())


def test_image_and_target_turn_together(store):
    plain, target = gather_crops(store, plain_plan(1), (32, 32))
    turned, turned_target = gather_crops(store, plain_plan(1, angle=np.pi / 2), (32, 32))
    np.testing.assert_allclose(turned[0, 0].numpy(), np.rot90(plain[0, 0].numpy(), -1), atol=1e-3)
    assert (turned_target[0, 0].numpy() == np.rot90(target[0, 0].numpy(), -1)).mean() > 0.99


def test_zoom_enlarges_cells(store):
    _, target = gather_crops(store, plain_plan(1), (96, 96))
    _, zoomed = gather_crops(store, plain_plan(1, zoom=0.7), (96, 96))
    assert (zoomed > 0).sum() < (target > 0).sum()


def test_targets_are_never_interpolated(store):
    plan = sample_crops(store, 8, (64, 64), torch.Generator().manual_seed(0))
    _, targets = gather_crops(store, plan, (64, 64))
    steps = targets * 255
    torch.testing.assert_close(steps, steps.round())


def test_the_same_seed_cuts_the_same_crops(store):
    a, b = (gather_crops(store, sample_crops(store, 4, (64, 64), torch.Generator().manual_seed(7)), (64, 64))
            for _ in range(2))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_a_crop_larger_than_its_frame_is_mirrored_not_broken(store):
    images, _ = gather_crops(store, plain_plan(1), (320, 320))
    assert images.shape == (1, 1, 320, 320)
    assert torch.isfinite(images).all()


def test_half_of_the_crops_look_at_cells(store):
    plan = sample_crops(store, 64, (32, 32), torch.Generator().manual_seed(0))
    _, targets = gather_crops(store, plan, (32, 32))
    assert ((targets > 0).flatten(1).any(1)).float().mean() > 0.5


def test_the_cache_on_disk_is_used_again_and_made_again_for_changed_files(tmp_path, tiny):
    pairs = discover(tiny).pairs
    first, _ = build_store(pairs, CPU, tmp_path / "c")
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").glob("*/index.npz")}
    second, _ = build_store(pairs, CPU, tmp_path / "c")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "c").glob("*/index.npz")} == made
    assert torch.equal(first.pixels, second.pixels)
    assert torch.equal(first.targets, second.targets)
    assert first.hashes == second.hashes
    pairs[0].image.touch()
    build_store(pairs, CPU, tmp_path / "c")
    assert len(list((tmp_path / "c").glob("*/index.npz"))) == 2


def test_a_pair_that_cannot_be_decoded_is_a_problem_and_the_rest_goes_on(tmp_path, tiny):
    pairs = discover(tiny).pairs
    content = bytearray(pairs[1].image.read_bytes())
    pairs[1].image.write_bytes(content[:len(content) // 2])
    store, reasons = build_store(pairs, CPU, tmp_path / "c")
    assert len(store.frames) == 3
    assert list(reasons) == [pairs[1]]
    pairs[1].image.write_bytes(content)
    assert len(build_store(pairs, CPU, tmp_path / "c")[0].frames) == 4


def test_a_pair_that_could_not_be_decoded_is_tried_again_by_the_next_training(tmp_path, tiny, monkeypatch):
    pairs, real, failed = discover(tiny).pairs, frames_module.decode, []

    def fail_once(frame):
        if frame == pairs[1] and not failed:
            failed.append(frame)
            raise SegkitError("the network drive does not answer")
        return real(frame)

    monkeypatch.setattr(frames_module, "decode", fail_once)
    store, reasons = build_store(pairs, CPU, tmp_path / "c")
    assert (len(store.frames), reasons) == (3, {pairs[1]: "the network drive does not answer"})
    assert len(build_store(pairs, CPU, tmp_path / "c")[0].frames) == 4


def test_a_dataset_that_could_not_be_read_at_all_is_tried_again(tmp_path, tiny, monkeypatch):
    def away(frame):
        raise SegkitError("the network drive does not answer")

    pairs = discover(tiny).pairs
    with monkeypatch.context() as patch:
        patch.setattr(frames_module, "decode", away)
        with pytest.raises(SegkitError, match=r"none of 4 pairs .*network drive"):
            build_store(pairs, CPU, tmp_path / "c")
    assert len(build_store(pairs, CPU, tmp_path / "c")[0].frames) == 4


def test_stores_that_no_training_has_used_for_a_month_are_removed(tmp_path, tiny):
    pairs = discover(tiny).pairs
    for part, age in ((pairs[:2], 40), (pairs[2:], 20)):
        build_store(part, CPU, tmp_path / "c")
        newest = max((tmp_path / "c").iterdir(), key=lambda folder: folder.stat().st_mtime)
        os.utime(newest, (time.time() - 86400 * age,) * 2)
    build_store(pairs, CPU, tmp_path / "c")
    assert len(list((tmp_path / "c").iterdir())) == 2


@pytest.mark.parametrize(("gigabytes", "precision", "processes", "crop"), [
    (80, "bf16", 1, (768, 448)), (13, "bf16", 1, (768, 448)), (8, "bf16", 1, (384, 224)),
    (24, "float32", 1, (768, 448)),
    (12, "float32", 1, (384, 224)), (8, "float32", 4, (768, 448)), (0.1, "float32", 1, (48, 32))])
def test_crops_fit_the_memory_of_a_gpu(gigabytes, precision, processes, crop):
    settings = Settings(precision=precision)
    assert choose_crop(settings, torch.device("cuda"), (2000, 2000), processes * gigabytes * 1e9 / 2) == crop
    assert choose_crop(Settings(crop="800x800"), torch.device("cuda"), (2000, 2000), 1e6) == (800, 800)


def test_cells_of_all_positions_are_brought_to_one_width(tmp_path):
    """Four cells 7 pixels wide at one position, two of 15 pixels at the other."""
    rng = np.random.default_rng(0)
    kept = {"Pos101": squares((4, 4), (4, 24), (24, 4), (24, 24), side=7), "Pos102": squares((4, 4), (22, 24), side=15)}
    for position, labels in kept.items():
        for kind, values in (("raw_data", rng.integers(0, 255, (40, 48), np.uint8)),
                             ("masks", labels.astype(np.uint8))):
            folder = tmp_path / f"A_{kind}/{position}/{'aphase' if kind == 'raw_data' else 'PreprocessedPhaseMasks'}"
            folder.mkdir(parents=True)
            write(folder / f"{'MASK_' if kind == 'masks' else ''}img_000000000.tif", values)
    store = build_store(discover(tmp_path).pairs, CPU, tmp_path / "cache")[0]
    assert store.cell_width == 7
    assert store.scale.tolist() == pytest.approx([1, 7 / 15])
    assert store.areas.tolist() == pytest.approx([49] * 6)
    plan = sample_crops(store, 200, (32, 32), torch.Generator().manual_seed(0), strength=0.0)
    assert set(plan["frame"].tolist()) == {0, 1}
    torch.testing.assert_close(plan["zoom"], store.scale[plan["frame"]])


def test_a_weaker_augmentation_changes_less(store):
    plans = [sample_crops(store, 500, (32, 32), torch.Generator().manual_seed(0), strength=s) for s in (0.0, 0.3, 1.0)]
    for plan in plans:
        plan["zoom"] = plan["zoom"] / store.scale[plan["frame"]]
    for name in ("zoom", "contrast", "gamma", "offset", "noise", "blur"):
        spread = [float(plan[name].std()) for plan in plans]
        assert spread[0] < 1e-6
        assert 0 < spread[1] < 0.5 * spread[2]
    turned = [float((torch.remainder(plan["angle"] + 0.01, torch.pi / 2) > 0.02).float().mean()) for plan in plans]
    assert turned[0] == 0
    assert 0.1 < turned[1] < 0.2 < 0.4 < turned[2] < 0.6


def test_a_position_of_wrong_labels_is_not_reduced_to_nothing(tmp_path):
    """Its background is a cell, 300 pixels wide."""
    for position, labels in (("Pos101", squares((4, 4), (4, 24), (24, 4), side=7)),
                             ("Pos102", np.pad(np.ones((290, 290), np.int32), 5))):
        for folder, name, values in (("A_raw_data", "img_000000000", np.add.outer(*map(np.arange, labels.shape)) % 200),
                                     ("A_masks", "MASK_img_000000000", labels)):
            kind = "aphase" if folder == "A_raw_data" else "PreprocessedPhaseMasks"
            (tmp_path / folder / position / kind).mkdir(parents=True)
            write(tmp_path / folder / position / kind / f"{name}.tif", values.astype(np.uint8))
    store = build_store(discover(tmp_path).pairs, CPU, tmp_path / "cache")[0]
    assert store.scale.tolist() == [1, 0.25]
