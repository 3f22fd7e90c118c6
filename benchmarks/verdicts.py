"""Error rates of growth verdicts on simulated assays: `python benchmarks/verdicts.py [REPEATS=1000]`.

The simulator: frames 2 minutes apart, 0 to 89, the drug acts from frame 30 on. A position's rate is r (1 + s z), one z
for both phases, times the effect (1, 0.5 or 0) after the drug. Total areas carry noise of 3 % whose lag-1 correlation
is 0 or 0.6. For each design (reference v treated positions) the worst of doubling times 60 and 180 minutes, correlation
0 and 0.6, and spreads s of 5 and 10 % is printed, with two standard errors of the simulation beside the targets.
"""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from segkit import Frame, compare_growth, growth_rates
from segkit.measure.growth import slope_with_error

MINUTES, FRAMES, DRUG, CELLS, NOISE = 2.0, 90, 30, 20, 0.03
CONDITIONS = tuple(product((60.0, 180.0), (0.0, 0.6), (0.05, 0.10)))  # doubling minutes, correlation, spread
DESIGNS = ((1, 1), (2, 2), (3, 3), (5, 5), (10, 10), (1, 5), (5, 1))


def noise(shape: tuple[int, ...], correlation: float, rng: np.random.Generator) -> np.ndarray:
    """First-order autoregressive noise along the last axis, of standard deviation NOISE."""
    steps = rng.standard_normal(shape)
    series = np.empty(shape)
    series[..., 0] = steps[..., 0]
    for t in range(1, shape[-1]):
        series[..., t] = correlation * series[..., t - 1] + np.sqrt(1 - correlation ** 2) * steps[..., t]
    return NOISE * series


def log_areas(positions: int, effect: float, condition: tuple[float, float, float],
              rng: np.random.Generator) -> np.ndarray:
    """Log total area (positions, FRAMES), as measured."""
    doubling, correlation, spread = condition
    rate = np.log(2) / doubling * (1 + spread * rng.standard_normal(positions))  # per minute
    frame = np.arange(FRAMES)
    grown = np.minimum(frame, DRUG) + effect * np.maximum(frame - DRUG, 0)
    return np.log(CELLS * 300.0) + rate[:, None] * grown * MINUTES + noise((positions, FRAMES), correlation, rng)


def growth_table(experiment: str, logs: np.ndarray) -> pd.DataFrame:
    """Rows of growth_rates for the phase after the drug, made without the tables of cells."""
    hours = np.arange(DRUG, FRAMES) * MINUTES / 60
    rows = []
    for k, line in enumerate(logs):
        rate, error, freedom = slope_with_error(hours, line[DRUG:])
        half = error * stats.t.ppf(0.975, freedom)
        rows.append({"experiment": experiment, "position": f"Pos{k}", "phase": "after", "frames": FRAMES - DRUG,
                     "empty_frames": 0, "start_cells": CELLS, "died_out": False, "lost_share": 0.0,
                     "mean_cells": CELLS,
                     "growth_per_hour": rate, "standard_error": error, "low": rate - half, "high": rate + half,
                     "doubling_minutes": 0.0, "doubling_low": 0.0, "doubling_high": 0.0})
    return pd.DataFrame(rows)


def verdicts(design: tuple[int, int], effect: float, condition: tuple[float, float, float], repeats: int,
             seed: int = 0) -> pd.DataFrame:
    """Rows of compare_growth, one for each simulated comparison."""
    rng, (references, treated) = np.random.default_rng(seed), design
    return pd.concat([compare_growth(pd.concat([
        growth_table("REF", log_areas(references, 1.0, condition, rng)),
        growth_table("RIF", log_areas(treated, effect, condition, rng))])) for _ in range(repeats)], ignore_index=True)


def cells_table(experiment: str, logs: np.ndarray, dies_at: Sequence[int | None]) -> pd.DataFrame:
    """cells.csv of positions whose cells all vanish at a frame (None: never): one row stands for all cells."""
    rows = [{"experiment": experiment, "position": f"Pos{k}", "frame": t, "area_px": np.exp(line[t]) / CELLS}
            for k, (line, end) in enumerate(zip(logs, dies_at, strict=True)) for t in range(end or FRAMES)
            for _ in range(CELLS)]
    return pd.DataFrame(rows)


def death(dies_at: Sequence[int | None], repeats: int, seed: int = 0) -> pd.DataFrame:
    """Rows of compare_growth where treated positions die; four reference positions grow."""
    rng, condition, rows = np.random.default_rng(seed), (60.0, 0.0, 0.1), []
    frames = [Frame(Path("frame"), None, e, f"Pos{k}", t)
              for e in ("REF", "RIF") for k in range(4) for t in range(FRAMES)]
    for _ in range(repeats):
        cells = pd.concat([cells_table("REF", log_areas(4, 1, condition, rng), [None] * 4),
                           cells_table("RIF", log_areas(4, 1, condition, rng), dies_at)])
        rows.append(compare_growth(growth_rates(cells, frames, minutes_per_frame=MINUTES, drug_frame=DRUG)))
    return pd.concat(rows, ignore_index=True)


def coverage(frames: int, correlation: float, repeats: int, seed: int = 0) -> float:
    """How often a position's 95 % interval holds the true slope."""
    rng, hours = np.random.default_rng(seed), np.arange(frames) * MINUTES / 60
    hits = 0
    for e in noise((repeats, frames), correlation, rng):
        rate, error, freedom = slope_with_error(hours, 0.5 * hours + e)
        hits += abs(rate - 0.5) <= error * stats.t.ppf(0.975, freedom)
    return hits / repeats


def main(arguments: list[str]) -> None:
    repeats = int(dict(a.split("=", 1) for a in arguments).get("REPEATS", 1000))
    print(f"{repeats} comparisons for each of {len(CONDITIONS)} conditions; the worst of them, in %\n")
    print("| reference v treated | no effect: slower | no effect: grows | half rate: slowed | full stop: stopped | "
          "interval covers 1 | interval covers 0.5 |\n| --- | --- | --- | --- | --- | --- | --- |")
    tasks = [(design, effect, condition, repeats)
             for design in DESIGNS for condition in CONDITIONS for effect in (1.0, 0.5, 0.0)]
    with ProcessPoolExecutor(min(os.cpu_count() or 1, len(tasks))) as pool:
        tables = dict(zip(tasks, pool.map(verdicts, *zip(*tasks, strict=True)), strict=True))
    for design in DESIGNS:
        seen: dict[str, list[float]] = {name: [] for name in ("slower", "grows", "slowed", "stopped", "one", "half")}
        for condition in CONDITIONS:
            none, half, stop = (tables[design, effect, condition, repeats] for effect in (1.0, 0.5, 0.0))
            seen["slower"].append(none["verdict"].isin(("slowed", "stopped", "dying")).mean())
            seen["grows"].append((none["verdict"] == "grows").mean())
            seen["slowed"].append((half["verdict"] == "slowed").mean())
            seen["stopped"].append((stop["verdict"] == "stopped").mean())
            for name, table, truth in (("one", none, 1.0), ("half", half, 0.5)):
                seen[name].append(((table["low"] <= truth) & (truth <= table["high"])).mean())
        print(f"| {design[0]} v {design[1]} | {100 * max(seen['slower']):.1f} | {100 * min(seen['grows']):.1f} | "
              f"{100 * min(seen['slowed']):.1f} | {100 * min(seen['stopped']):.1f} | "
              + " | ".join(f"{100 * min(seen[n]):.1f} to {100 * max(seen[n]):.1f}" for n in ("one", "half")) + " |",
              flush=True)
    print("\n| treated positions | verdicts |\n| --- | --- |")
    for words, dies_at in (("die 1 frame after the drug", [DRUG + 1] * 4), ("6 frames", [DRUG + 6] * 4),
                           ("10 frames", [DRUG + 10] * 4), ("3 of 4, 6 frames", [DRUG + 6] * 3 + [None])):
        table = death(dies_at, max(repeats // 50, 4))
        print(f"| {words} | {table['verdict'].value_counts().to_dict()}: {table['reason'].iloc[0]} |")
    print("\n| frames | correlation | a position's interval covers |\n| --- | --- | --- |")
    for frames, correlation in product((30, 60, 90), (0.0, 0.6)):
        print(f"| {frames} | {correlation} | {100 * coverage(frames, correlation, 2 * repeats):.1f} % |")


if __name__ == "__main__":
    main(sys.argv[1:])
