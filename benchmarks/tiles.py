"""Does an image answered in tiles equal the whole one? `python benchmarks/tiles.py MODEL=runs/delta DATASET_PATH=...`.

Validation frames are laid side by side until they are larger than a tile; the student answers that picture in tiles and
at once. Prints Dice and panoptic quality of the one against the other, and of both against the teacher.
"""

from __future__ import annotations

import sys

import numpy as np

import segkit
from segkit.data.dataset import read_pair
from segkit.data.discovery import discover_split
from segkit.model import predict as segmentation
from segkit.settings import load_settings, parse_settings

SIDE = 1500  # pixels, at least


def mosaic(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures (H, W) of one size, repeated in turn, to a square of SIDE or more."""
    height, width = pictures[0].shape
    rows, columns = -(-SIDE // height), -(-SIDE // width)
    return np.block([[pictures[(r * columns + c) % len(pictures)] for c in range(columns)] for r in range(rows)])


def main(arguments: list[str]) -> None:
    settings = parse_settings(dict(a.split("=", 1) for a in arguments), load_settings())
    model = segkit.load_model(settings.model_path, settings.device)
    pairs = [read_pair(frame) for frame in discover_split(settings).validation]
    alike = [pair for pair in pairs if pair[0].shape == pairs[0][0].shape]
    image, teacher = mosaic([image for image, _ in alike]), mosaic([labels > 0 for _, labels in alike])
    tiled = segkit.segment(model, image)
    segmentation.TILE = 1 << 20
    whole = segkit.segment(model, image)
    agreed, quality = segkit.dice(tiled.mask, whole.mask), segkit.match_instances(tiled.labels, whole.labels)
    print(f"{image.shape[0]} x {image.shape[1]} pixels in tiles of 1024, {whole.labels.max()} cells: Dice with the "
          f"answer at once {agreed:.4f}, panoptic quality {quality.panoptic_quality:.4f}; Dice with the teacher "
          f"{segkit.dice(tiled.mask, teacher):.4f} in tiles, {segkit.dice(whole.mask, teacher):.4f} at once")


if __name__ == "__main__":
    main(sys.argv[1:])
