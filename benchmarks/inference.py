"""How fast a trained student segments: `python benchmarks/inference.py [MODEL=runs/demo]`.

Synthetic frames of 768 x 448 with about 40 cells. In turns: the network alone as the starting recipe runs it (float32,
contiguous), the network alone as segkit runs it, `segment` with its labels, and `segment_dataset` per frame.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import segkit
from segkit.devices import describe_device, pick_device
from segkit.model.predict import predict
from segkit.model.unet import copy_on_cpu
from segkit.settings import load_settings, parse_settings

ROUNDS, FRAMES = 6, 16


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def synthetic_frames(folder: Path, count: int) -> tuple[segkit.Frame, ...]:
    """Frames of 768 x 448 with 38 cells and more."""
    return segkit.discover(segkit.make_demo_dataset(folder, shape=(768, 448), frames=count, cells=38,
                                                    positions={"REF": (101,)}, doubling_minutes=2000)).frames


def main(arguments: list[str]) -> None:
    settings = parse_settings(dict(a.split("=", 1) for a in arguments), load_settings())
    device = pick_device(settings.device)
    model = segkit.load_model(settings.model_path, settings.device)
    plain = copy_on_cpu(model).to(device)
    with tempfile.TemporaryDirectory() as folder:
        frames = synthetic_frames(Path(folder) / "data", FRAMES)
        image = segkit.read_image(frames[0].image)
        cells = segkit.segment(model, image).labels.max()
        x = torch.rand(1, 1, 768, 448, device=device)

        @torch.inference_mode()
        def plain_forward() -> None:
            plain(x).cpu()

        actions: dict[str, Callable[[], object]] = {
            "network, float32, contiguous": plain_forward, "network in segkit": lambda: predict(model, [image]),
            "`segment`, labels included": lambda: segkit.segment(model, image)}
        times = {name: min(seconds(action) for _ in range(ROUNDS + 1)) for name, action in actions.items()}
        whole = [seconds(partial(segkit.segment_dataset, model, frames, Path(folder) / f"out{k}")) / FRAMES
                 for k in range(2)]
        times["`segment_dataset`, a frame (reading, scores, tables and label files included)"] = min(whole)
    print(f"768 x 448, {cells} cells; {describe_device(device)}; torch {torch.__version__}; best of {ROUNDS}\n")
    print("| what | s a frame | times as fast as the first | over the network alone |\n| --- | --- | --- | --- |")
    first, alone = times["network, float32, contiguous"], times["network in segkit"]
    for name, value in times.items():
        print(f"| {name} | {value:.3f} | {first / value:.2f} | {value / alone:.2f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
