"""Kill a training at random moments and go on: `python benchmarks/killed.py [TIMES=10]`.

A short training on the bundled demo is killed with SIGKILL TIMES times, each time at another moment, and resumed. Its
history (times aside) and its weights must be those of an undisturbed one. Exit code 1 if they are not. CPU.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

import segkit
from segkit.settings import DEMO, Settings, project_root

TRAIN = """
import sys, segkit
from pathlib import Path
dataset, root, run = (Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
resume = (root / "runs" / run / "last.pt").is_file()
split = segkit.split_by_position(segkit.discover(dataset).pairs)
settings = segkit.Settings(dataset_path=dataset, run=run, epochs=8, batch_size=4, crop="32x32", crops_per_epoch=16,
                           device="cpu", root=root, resume=resume, start_from="")
segkit.fit(segkit.UNet(), split, settings)
"""


def command(root: Path, run: str) -> list[str]:
    return [sys.executable, "-c", TRAIN, str(project_root() / DEMO), str(root), run]


def outcome(root: Path, run: str) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
    folder = Settings(root=root, run=run).run_dir
    history = pd.read_csv(folder / "history.csv").drop(columns=["seconds", "crops_per_second"])
    return history, segkit.load_model(folder, "cpu").state_dict()


def main(arguments: list[str]) -> int:
    times = int(dict(a.split("=", 1) for a in arguments).get("TIMES", "10"))
    source = random.Random(0)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        began = time.perf_counter()
        subprocess.run(command(root, "whole"), check=True, stderr=subprocess.DEVNULL)
        whole = time.perf_counter() - began
        history, weights = outcome(root, "whole")
        for k in range(times):
            run, after = f"killed{k}", source.uniform(0.2, 0.95) * whole
            process = subprocess.Popen(command(root, run), stderr=subprocess.DEVNULL)
            time.sleep(after)
            process.send_signal(signal.SIGKILL)
            process.wait()
            rows = root / "runs" / run / "history.csv"
            done = len(pd.read_csv(rows)) if rows.is_file() else 0
            subprocess.run(command(root, run), check=True, stderr=subprocess.DEVNULL)
            again, again_weights = outcome(root, run)
            same = history.equals(again) and all(torch.equal(weights[name], again_weights[name]) for name in weights)
            wrong += not same
            verdict = "the same" if same else "DIFFERENT"
            print(f"killed after {after:.1f} s, {done} epochs written: {verdict}", flush=True)
    print(f"{times - wrong} of {times} end as the undisturbed one")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
