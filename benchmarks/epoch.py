"""Seconds of an epoch at the size of a real experiment: `python benchmarks/epoch.py [EPOCHS=3 CROPS_PER_EPOCH=3900]`.

By default three epochs of 3,900 crops of 768 x 448, each judged on 970 whole frames (synthetic ones, 121 of them again
and again under other names). For a GPU; FRAMES=n takes fewer frames, to try it on a CPU. Prints the fastest epoch but
the first, and what 250 of them take; the starting recipe took over 6 hours for these on its author's GPU.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

import segkit
from segkit.data.dataset import Frame, Split
from segkit.devices import describe_device, pick_device
from segkit.settings import parse_settings

POSITION, ALL = 121, 970  # frames


def many(frames: list[Frame], count: int, name: str) -> tuple[Frame, ...]:
    """The same frames again and again, as positions of other names."""
    return tuple(replace(frames[k % len(frames)], position=f"{name}{k // len(frames)}") for k in range(count))


def main(arguments: list[str]) -> None:
    values = {"EPOCHS": "3", "CROPS_PER_EPOCH": "3900", "CROP": "768x448", "START_FROM": "",
              **dict(a.split("=", 1) for a in arguments)}
    count = int(values.pop("FRAMES", ALL))
    with tempfile.TemporaryDirectory() as folder:
        settings = parse_settings(values, segkit.Settings(root=Path(folder), run="epoch"))
        made = segkit.make_demo_dataset(Path(folder) / "data", shape=(768, 448), frames=min(count, POSITION), cells=20,
                                        positions={"REF": (101,)}, doubling_minutes=2000)
        frames = list(segkit.discover(made).pairs)
        split = Split(many(frames, 4 * count, "Train"), many(frames, count, "Judge"))
        history = segkit.fit(segkit.UNet(), split, settings)
    table = history.table().iloc[1:]
    best = table.loc[table["seconds"].idxmin()]
    device = pick_device(settings.device)
    print(f"{describe_device(device)}, torch {torch.__version__}: {len(split.train)} training frames; an epoch of "
          f"{settings.crops_per_epoch} crops of {settings.crop} and {count} whole validation frames: "
          f"{best['seconds']:.1f} s ({best['crops_per_second']:.0f} crops/s); 250 epochs: "
          f"{250 * best['seconds'] / 60:.0f} min")
    if device.type == "cuda":
        print(f"GPU memory at most: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


if __name__ == "__main__":
    main(sys.argv[1:])
