"""The table of trainings in docs/measurements.md, and the demo's growth: `python benchmarks/readme.py FOLDER`.

FOLDER holds delta, omnipose and sparse. Each row is a `make run` of its own, in runs/readme_...; what is finished there
is not trained again.
"""

import subprocess
import sys
from pathlib import Path

from segkit import Settings
from segkit.files import read_json, read_table

TRAININGS = (("", 20), ("delta", 22), ("omnipose", 180), ("sparse", 12))  # "": the demo
FLIPPED = ("omnipose", 180)


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "segkit", *arguments], check=True)


def row(name: str, epochs: int, dataset: list[str]) -> str:
    """One training, or what is left of it, as a row of the table."""
    folder = Settings().root / "runs" / name
    if not (folder / "report.json").is_file():
        resume = ["RESUME=1"] if (folder / "last.pt").is_file() else []
        run(*dataset, f"EPOCHS={epochs}", f"RUN={name}", "START_FROM=", *resume)
    report = read_json(folder / "report.json", "the run's file")
    return (f"| {name}, EPOCHS={epochs} | {len(read_json(folder / 'split.json', 'the split')['train'])} | "
            f"{report['seconds']:.0f} s | {report['val_dice']:.3f} | {report['val_panoptic_quality']:.3f} |")


def flipped(name: str, dataset: list[str]) -> str:
    """The student of a training that is there, on all frames with FLIPS."""
    run("segment", *dataset, f"MODEL=runs/{name}", "FLIPS=1", f"RUN={name}_flips")
    scores = read_table(Settings().root / "runs" / f"{name}_flips" / "scores.csv")
    judged = scores[scores["position"].str.endswith(Settings().validation)]
    return f"| {name}, FLIPS=1 | | | {judged['dice'].mean():.3f} | {judged['panoptic_quality'].mean():.3f} |"


def growth_error(name: str) -> str:
    """How far the demo's measured growth is from what was put in, at most."""
    growth = read_table(Settings().root / "runs" / name / "growth.csv").query("phase != 'all'")
    truth = read_json(Settings().dataset_path / "truth.json", "the demo's truth")["positions"]
    true = [60 * truth[f"{row.experiment}/{row.position}"][f"growth_per_minute_{row.phase}"]
            for row in growth.itertuples()]
    error = (growth["growth_per_hour"] - true).abs().max() / max(true)
    return f"growth on the demo: at most {error:.1%} (of the rate without drug) from what was put in"


def main(folder: Path) -> None:
    rows = []
    for name, epochs in TRAININGS:
        dataset = [f"DATASET_PATH={folder / name}"] if name else []
        run_name = f"readme_{name or 'demo'}_{epochs}"
        rows.append(row(run_name, epochs, dataset))
        if (name, epochs) == FLIPPED:
            rows.append(flipped(run_name, dataset))
    print("\n| training | training frames | training | validation Dice | panoptic quality |\n| --- | --- | --- | --- | "
          "--- |", *rows, "", growth_error("readme_demo_20"), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
