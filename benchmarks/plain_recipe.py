"""How fast segkit trains beside the starting recipe, in one run on one machine: `make bench`.

The starting recipe, written afresh from its description: every crop decoded from TIFF again, in the main process,
min-max normalised by itself, flipped, turned by up to 15 degrees and zoomed by 0.9 to 1.1, each with probability 0.5;
batch norm; float32, contiguous; BCE on a sigmoid; AdamW, learning rate 1e-4. Crops are made to fit the frames.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

import segkit
from segkit.crops import cut_crops, draw_crops
from segkit.data import Frame, read_pair
from segkit.decode import build_store
from segkit.devices import autocast, describe_device, pick_device
from segkit.layout import choose_crop
from segkit.losses import student_loss
from segkit.model import ModelInfo
from segkit.settings import parse_settings
from segkit.sources import load_settings

SECONDS = 20.0  # for each of the three


def plain_crop(frame: Frame, size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One crop of the starting recipe: image and mask, float32 (h, w)."""
    image, labels = read_pair(frame)
    y, x = (rng.integers(0, extent - s + 1) for extent, s in zip(image.shape, size, strict=True))
    image, mask = image[y:y + size[0], x:x + size[1]], (labels[y:y + size[0], x:x + size[1]] > 0).astype(np.float32)
    image = (image - image.min()) / max(float(image.max() - image.min()), 1e-6)
    for axis in (0, 1):
        if rng.random() < 0.5:
            image, mask = np.flip(image, axis), np.flip(mask, axis)
    if rng.random() < 0.5:
        angle, zoom = np.deg2rad(rng.uniform(-15, 15)), rng.uniform(0.9, 1.1)
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
        centre = (np.array(size) - 1) / 2
        image, mask = (ndimage.affine_transform(a, matrix, centre - matrix @ centre, order=1, mode="reflect")
                       for a in (image, mask))
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def crops_per_second(step, batch: int) -> float:
    """Repeat a training step for SECONDS, after one to warm up."""
    step()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        step()
        count += batch
    return count / (time.perf_counter() - began)


def main(arguments: list[str]) -> None:
    settings = parse_settings(dict(a.split("=", 1) for a in arguments), load_settings())
    device = pick_device(settings.device)
    split = segkit.split_by_position(segkit.discover(settings.dataset_path).pairs, settings.validation)
    with tempfile.TemporaryDirectory() as cache:
        store, _ = build_store(split.train, device, Path(cache))
    crop = choose_crop(settings, device, (int(store.height.min()), int(store.width.min())))
    batch, rng, source = settings.batch_size, np.random.default_rng(0), torch.Generator().manual_seed(0)

    plain = segkit.UNet(ModelInfo(norm="batch", outputs=1, align_corners=True)).to(device)
    plain_optimiser = torch.optim.AdamW(plain.parameters(), lr=1e-4, weight_decay=1e-2)

    def plain_step() -> None:
        drawn = [plain_crop(split.train[rng.integers(len(split.train))], crop, rng) for _ in range(batch)]
        images, masks = (torch.from_numpy(np.stack(a))[:, None].to(device) for a in zip(*drawn, strict=True))
        loss = F.binary_cross_entropy(plain(images).sigmoid(), masks.clamp(0, 1))
        plain_optimiser.zero_grad()
        loss.backward()
        plain_optimiser.step()
        float(loss.detach())

    student = segkit.UNet().to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3)

    def student_step(images: torch.Tensor, targets: torch.Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        with autocast(device):
            output = student(images.contiguous(memory_format=torch.channels_last))
        loss = student_loss(output, targets)
        loss.backward()
        optimiser.step()
        float(loss.detach())

    def cut() -> tuple[torch.Tensor, torch.Tensor]:
        return cut_crops(store, draw_crops(store, batch, crop, source), crop)

    fixed = cut()
    rates = {"plain recipe": crops_per_second(plain_step, batch),
             "segkit": crops_per_second(lambda: student_step(*cut()), batch),
             "segkit, one fixed batch (ceiling)": crops_per_second(lambda: student_step(*fixed), batch)}
    print(f"{settings.dataset_path.name}, crops of {crop[0]} x {crop[1]}, batch {batch}; {describe_device(device)}; "
          f"torch {torch.__version__}\n")
    print("| training | crops/s | times the plain recipe | share of the ceiling |\n| --- | --- | --- | --- |")
    ceiling = rates["segkit, one fixed batch (ceiling)"]
    for name, rate in rates.items():
        share = f"{rate / ceiling:.0%}" if name != "plain recipe" else ""
        print(f"| {name} | {rate:.1f} | {rate / rates['plain recipe']:.2f} | {share} |")


if __name__ == "__main__":
    main(sys.argv[1:])
