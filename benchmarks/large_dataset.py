"""Discovery and decoding at the size of real experiments: `python benchmarks/large_dataset.py FOLDER`.

FOLDER (about 6 GB) gets 40 positions of 121 frames, 819 x 682, 16-bit: one position made by the demo generator and
copied, and 50,000 tiny pairs. Prints a table; nothing is asserted, since machines differ.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import tifffile
import torch

import segkit
from segkit.training import frames as decoding

POSITIONS, FRAMES = 40, 121
CPU = torch.device("cpu")


def make_large(root: Path) -> Path:
    """REF and RIF10 with 20 positions each, copies of one generated position."""
    folder = root / "large"
    if folder.exists():
        return folder
    one = segkit.make_demo_dataset(root / "one", shape=(819, 682), frames=FRAMES, positions={"X": (1, 2, 3)}, cells=14,
                                   minutes_per_frame=2, doubling_minutes=180, drug_frame=30)
    raw = next((one / "X_raw_data" / "Pos3").iterdir())  # the generator's third position is 16-bit
    for k in range(POSITIONS):
        experiment, position = (("REF", 101 + k), ("RIF10", 181 + k))[k >= POSITIONS // 2]
        shutil.copytree(raw, folder / f"{experiment}_raw_data" / f"Pos{position}" / raw.name)
        shutil.copytree(one / "X_masks" / "Pos3", folder / f"{experiment}_masks" / f"Pos{position}")
    return folder


def make_many(root: Path, pairs: int) -> Path:
    """Tiny valid pairs, 500 a position."""
    folder = root / f"many{pairs}"
    if folder.exists():
        return folder
    tifffile.imwrite(root / "tiny.tif", np.zeros((4, 4), np.uint8))
    content = (root / "tiny.tif").read_bytes()
    for k in range(pairs):
        for place, name in (("A_raw_data", "img"), ("A_masks", "MASK_img")):
            sub = folder / place / f"Pos{101 + k // 500}"
            sub.mkdir(parents=True, exist_ok=True)
            (sub / f"{name}_{k % 500:09d}.tif").write_bytes(content)
    return folder


class PeakAnonymous:
    """The largest anonymous memory of this process while the block runs, above that at its start, bytes (Linux)."""

    def __enter__(self) -> PeakAnonymous:
        self.start = self.peak = self._now()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(0.05):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def timed(action):
    began = time.perf_counter()
    result = action()
    return result, time.perf_counter() - began


def main(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    large = make_large(root)
    print(f"| what | figure |\n| --- | --- |\n| CPU cores | {len(os.sched_getaffinity(0))} |", flush=True)
    dataset, seconds = timed(lambda: segkit.discover(large))
    print(f"| discover {len(dataset.pairs)} pairs of 819 x 682, 16-bit | {seconds:.1f} s |", flush=True)
    some = dataset.pairs[:3 * FRAMES]
    shutil.rmtree(root / "cache", ignore_errors=True)
    _, two = timed(lambda: decoding.build_store(some, CPU, root / "cache"))
    _, one = timed(lambda: [decoding.decode(frame) for frame in some])
    print(f"| decode {len(some)} frames: one by one / in parallel | {one:.1f} s / {two:.1f} s, {one / two:.2f} times |")
    shutil.rmtree(root / "cache")
    with PeakAnonymous() as memory:
        _, first = timed(lambda: decoding.build_store(dataset.pairs, CPU, root / "cache"))
        (store, _), second = timed(lambda: decoding.build_store(dataset.pairs, CPU, root / "cache"))
        for k in range(0, len(dataset.pairs), 100):
            store.whole([k], 16)
    print(f"| store: first start / second start | {first:.0f} s / {second:.1f} s |")
    grown = (memory.peak - memory.start) / 1e9
    print(f"| anonymous memory above the start while it was built and read | {grown:.2f} GB |")
    for pairs in (12_500, 25_000, 50_000):
        found, seconds = timed(lambda n=pairs: segkit.discover(make_many(root, n)))
        found, seconds = timed(lambda n=pairs: segkit.discover(make_many(root, n)))
        print(f"| discover {len(found.pairs)} tiny pairs | {seconds:.1f} s |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
