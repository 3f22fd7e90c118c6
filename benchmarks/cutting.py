"""How surely maps are cut into cells: `python benchmarks/cutting.py DATASET_PATH=... [MODEL=...]`.

Panoptic quality against the teacher, for up to 20 frames of a dataset: of the connected components of the teacher's
own mask; then at several prominences (`label_cells`) of the teacher's own targets, blurred by one pixel and with noise
of 0.05 (1.5 pixels wide) added, and of a student's maps.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

import segkit
from segkit.data.dataset import exclude, read_pair
from segkit.data.discovery import discover
from segkit.data.images import EIGHT
from segkit.model.postprocess import distance_target, label_cells
from segkit.model.predict import predict
from segkit.settings import load_settings, parse_settings

PROMINENCES, FRAMES, NOISE = (0.2, 0.3, 0.4, 0.5), 20, 0.05


def blurred_target(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The teacher's target (H, W) as a student might answer it."""
    noise = ndimage.gaussian_filter(rng.normal(size=labels.shape), 1.5)
    target = ndimage.gaussian_filter(distance_target(labels)[0] / 255, 1.0)
    return target + NOISE / noise.std() * noise * (labels > 0)


def qualities(probability: np.ndarray, distance: np.ndarray, labels: np.ndarray, min_area: int) -> Sequence[str]:
    found = (label_cells(probability, distance, 0.5, prominence, min_area) for prominence in PROMINENCES)
    return [f"{segkit.match_instances(cells, labels).panoptic_quality:.3f}" for cells in found]


def main(arguments: list[str]) -> None:
    values = dict(a.split("=", 1) for a in arguments)
    settings, rng = parse_settings(values, load_settings()), np.random.default_rng(0)
    pairs, _ = exclude(discover(settings.dataset_path, settings.masks_path).pairs, settings.exclude)
    model = segkit.load_model(settings.model_path, settings.device) if "MODEL" in values else None
    print(f"panoptic quality at a prominence of {' / '.join(map(str, PROMINENCES))}\n\n"
          "| frame | cells | the mask's components | teacher's target, blurred and with noise | student |\n"
          "| --- | --- | --- | --- | --- |")
    for frame in pairs[::max(1, -(-len(pairs) // FRAMES))]:
        image, labels = read_pair(frame)
        components = segkit.match_instances(ndimage.label(labels > 0, structure=EIGHT)[0], labels).panoptic_quality
        teacher = qualities((labels > 0).astype(float), blurred_target(labels, rng), labels, 12)
        student: Sequence[str] = ()
        if model is not None:
            maps = predict(model, [image])[0]
            assert maps.distance is not None
            student = qualities(maps.probability, maps.distance, labels, model.info.min_area)
        row = (frame.name, labels.max(), f"{components:.3f}", " / ".join(teacher), " / ".join(student))
        print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
