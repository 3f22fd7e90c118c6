"""Single-cell growth, simulated and on the demo: `python benchmarks/single_cell.py [REPEATS=500 DATASET_PATH=...]`.

The simulator: frames 2 minutes apart; the cells of a position begin with ages of exponential growth, grow at its rate
r (1 + s z) times that of their founder, 1 + l z, which all descendants share, and divide into 45 to 55 %; areas carry
noise of 3 %, independent between cells and frames. Nobody enters or leaves. From the drug on the rate is multiplied by
an effect. With a share of links wrong, two cells of a frame exchange their tracks.
"""

import importlib
import sys
from itertools import product
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from segkit import discover, read_labels
from segkit.data.synthetic import grow
from segkit.measure import single_cell
from segkit.measure.cells import cells_of_frame, measure_cells
from segkit.measure.single_cell import population_rates, single_cell_rates

MINUTES, NOISE = 2.0, 0.03


def lineages(positions: int, founders: int, frames: int, *, doubling: float = 60.0, spread: float = 0.1,
             lineage: float = 0.1, noise: float = NOISE, wrong: float = 0.0, drug: int | None = None,
             effect: float = 0.0, growers: float = 0.0, experiment: str = "REF", seed: int = 0) -> pd.DataFrame:
    """Cells with their tracks; true_rate_per_hour is each cell's own from this frame to the next.

    growers: share of founders that the drug does not change.
    """
    rng = np.random.default_rng(seed)
    n = positions * founders
    position, founder = np.repeat(np.arange(positions), founders), np.arange(n)
    rate = np.log(2) / doubling * MINUTES * (1 + spread * rng.standard_normal(positions))[position]  # per frame
    rate = rate * (1 + lineage * rng.standard_normal(n))
    immune = rng.random(n) < growers
    # density of ages in exponential growth: 2 ln 2 2^-age
    size = np.log(150) - np.log2(1 - rng.random(n) / 2) * np.log(2)
    divides = np.full(n, np.log(300.0))
    track, mother, last, rows = founder + 1, np.zeros(n, int), n, []
    for frame in range(frames):
        now = np.where(immune, rate, rate * (effect if drug is not None and frame >= drug else 1.0))
        rows.append(np.stack([position, np.full(len(size), frame), track, mother, founder, now * 60 / MINUTES,
                              np.exp(size + noise * rng.standard_normal(len(size)))]))
        size = size + now

        # a division ends the mother's track and begins two
        ready = size >= divides
        k = int(ready.sum())
        share = rng.uniform(0.45, 0.55, k)
        both = [np.concatenate([values[~ready], values[ready], values[ready]])
                for values in (position, founder, rate, immune, track, mother, size)]
        position, founder, rate, immune, track, mother, size = both
        if k:
            mother[-2 * k:], track[-2 * k:] = track[-2 * k:], last + 1 + np.arange(2 * k)
            size[-2 * k:] += np.log(np.concatenate([share, 1 - share]))
            last += 2 * k
        divides = np.concatenate([divides[~ready], np.log(300.0) + 0.1 * rng.standard_normal(2 * k)])

        # two cells of a position exchange their names: half as many swaps, since each spoils two links
        for one in np.flatnonzero(rng.random(len(size)) < wrong / 2):
            other = rng.choice(np.flatnonzero(position == position[one]))
            track[[one, other]], mother[[one, other]] = track[[other, one]], mother[[other, one]]
    names = ["position", "frame", "track", "mother_track", "true_founder", "true_rate_per_hour", "area_px"]
    table = pd.DataFrame(np.concatenate(rows, axis=1).T, columns=names)
    table = table.astype(dict.fromkeys(names[:5], int)).astype({"position": str})
    return table.assign(experiment=experiment, label=table["track"], length_px=table["area_px"] / 8)


def truth(frame: int, **options: Any) -> float:
    """The mean over cells of the true rate, per hour, in the limit of many founders: fast lineages have more cells."""
    table = lineages(1, 20000, frame + 1, **(options | {"spread": 0, "noise": 0, "seed": 99}))
    return float(table.loc[table["frame"] == frame, "true_rate_per_hour"].mean())


def assays(repeats: int, positions: int, founders: int, frames: int, name: str, **options: Any) -> pd.DataFrame:
    """Cells of many experiments of one kind, named name0, name1, ..."""
    cells = lineages(repeats * positions, founders, frames, **options)
    return cells.assign(experiment=name + (cells["position"].astype(int) // positions).astype(str))


def coverage(positions: int, founders: int, frame: int, repeats: int, seed: int = 0,
             **options: Any) -> dict[str, float]:
    """In %: how often the intervals of a position and of an experiment hold the true mean, and the mean's bias."""
    true = truth(frame, **options)
    rates = single_cell_rates(assays(repeats, positions, founders, frame + 1, "E", seed=seed, **options), MINUTES)
    table = population_rates(rates[rates["frame"] == frame], "none")
    whole, hit = table["position"] == "all", (table["low"] <= true) & (true <= table["high"])
    return {"position": 100 * hit[~whole].mean(), "experiment": 100 * hit[whole].mean(),
            "bias": 100 * (table.loc[whole, "growth_per_hour"].mean() / true - 1)}


def ratio_coverage(design: tuple[int, int], founders: int, effect: float, repeats: int, seed: int = 0,
                   **options: Any) -> float:
    """How often the ratio's interval holds its truth, in %, at frame 20 with the drug at frame 10."""
    reference, treated = (assays(repeats, n, founders, 21, name, seed=seed + k, drug=10, effect=e, **options)
                          for k, (n, name, e) in enumerate(zip(design, ("REF", "T"), (1.0, effect), strict=True)))
    true = truth(20, drug=10, effect=effect, **options) / truth(20, **options)
    rates = single_cell_rates(pd.concat([reference, treated]), MINUTES)
    own = {name: name.replace("T", "REF") for name in rates["experiment"].unique()}
    table = population_rates(rates[rates["frame"] == 20], own)
    table = table[(table["position"] == "all") & table["experiment"].str.startswith("T")]
    return 100 * float(((table["ratio_low"] <= true) & (true <= table["ratio_high"])).mean())


def share_coverage(growers: float, founders: int, repeats: int, window: int = 21) -> tuple[float, float, float]:
    """In %: how often the interval of the share of growing lineages holds it, its mean, and how often it is given.

    One position each, 20 frames after the drug; a reference of 5 positions.
    """
    cells = assays(repeats, 1, founders, 31, "T", drug=10, effect=0.0, growers=growers, seed=1)
    rates = single_cell_rates(pd.concat([cells, lineages(5, 10, 31, seed=2)]), MINUTES, window)
    table = population_rates(rates[rates["frame"] == 30], dict.fromkeys(rates["experiment"].unique(), "REF"))
    table = table[(table["position"] == "all") & (table["experiment"] != "REF")]
    held = (table["growing_low"] <= growers) & (growers <= table["growing_high"])
    given = table["growing_share"].notna()
    return 100 * held[given].mean(), 100 * table["growing_share"].mean(), 100 * given.mean()


def real(dataset: str, position: str = "Pos101", minutes: float = 5.0) -> None:
    """Print the steps of a real film's cells that a limit of CUT alone, and one above usual growth, would leave out."""
    link_cells = importlib.import_module("segkit.measure.tracks").link_cells
    frames = sorted((f for f in discover(dataset).pairs if f.position == position), key=lambda f: f.frame)
    movie = [read_labels(f.masks, f.page) for f in frames if f.masks]
    cells = pd.concat([cells_of_frame(labels, f) for f, labels in zip(frames, movie, strict=True)])
    cells = cells.merge(link_cells(movie, [f.frame for f in frames]), on=["frame", "label"])
    table, mother = single_cell._family(cells)
    _, step, _ = single_cell._steps(table.assign(since_start=table["frame"]), mother, "area_px")
    born = ~table["code"].duplicated().to_numpy()
    divided, usual = np.nanmedian(step[born]), np.nanmedian(step)
    step = step[np.isfinite(step)]
    rate = single_cell_rates(cells, minutes)["area_rate_per_hour"]
    far, wrong = np.abs(step) > 0.2, (step < -0.2) | (step > 0.2 + usual)
    print(f"\n{position}: {len(step)} steps of log area, mean {step.mean():.3f}, median {usual:.3f} (over a division "
          f"{divided:.3f})\n{far.sum()} beyond 0.2, {wrong.sum()} beyond 0.2 and usual growth; mean with the first "
          f"set to 0: {np.where(far, 0, step).mean():.3f}, without the others: {step[~wrong].mean():.3f}\n"
          f"mean rate {rate.mean():.3f} per hour; {100 * rate.notna().mean():.0f} % of the cells have one")


def wrong_links(founders: int = 4000) -> None:
    """Print what wrong links do to growing and stopped cells, by how steps beyond the limit are treated."""
    print("\n| links wrong, % | steps beyond 0.2 | growing: bias, % | stopped: above half the reference's rate, % |\n"
          "| --- | --- | --- | --- |")
    for wrong, cut in product((0.0, 0.005, 0.02), (True, False)):
        found = []
        for effect in (1.0, 0.0):
            cells = lineages(1, founders, 31, spread=0, lineage=0, wrong=wrong, drug=0, effect=effect, seed=5)
            with mock.patch.object(single_cell, "CUT", 0.2 if cut else np.inf):
                rates = single_cell_rates(cells, MINUTES, 31 if effect == 0 else 5)
            found.append(rates.loc[rates["frame"] == 30, "area_rate_per_hour"] / np.log(2))
        print(f"| {100 * wrong:g} | {'left out' if cut else 'kept'} | {100 * (found[0].mean() - 1):.1f} | "
              f"{100 * (found[1] > 0.5).mean():.2f} |", flush=True)


def demo(factor: float = 0.05, positions: int = 3, frames: int = 12, drug: int = 6, minutes: float = 10.0,
         seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Single-cell rates of the demo's labels, and for each track and phase the median's error over the reference."""
    cells, true = [], dict[tuple[str, str, bool], float]()
    for k, (experiment, p) in enumerate(product(("REF", "RIF"), range(positions))):
        rng = np.random.default_rng([seed, k])
        growth = np.full(frames, np.log(2) / 75 * rng.uniform(0.9, 1.1))
        growth[drug:] *= factor if experiment == "RIF" else 1
        for frame, (_, labels, lineage) in enumerate(grow((128, 128), frames, 6, growth * minutes, rng)):
            truth = pd.DataFrame(lineage, columns=["label", "track", "mother_track"])
            table = measure_cells(labels).merge(truth, on="label")
            cells.append(table.assign(frame=frame, experiment=experiment, position=f"Pos{p}"))
        true |= {(experiment, f"Pos{p}", after): 60 * growth[-1 if after else 0] for after in (False, True)}
    rates = single_cell_rates(pd.concat(cells), minutes)

    # windows that lie within one phase; the effect acts from the drug's frame to the next
    rates["after"] = rates["since_start"] > drug
    inside = ~rates["since_start"].between(drug + 1, drug + 3)
    key = ["experiment", "position", "after", "track"]
    tracks = rates[inside].groupby(key)["area_rate_per_hour"].median().dropna().reset_index()
    tracks["true"] = [true[row] for row in tracks[key[:3]].itertuples(index=False, name=None)]
    reference = np.mean([rate for (experiment, *_), rate in true.items() if experiment == "REF"])
    return rates, tracks.assign(error=(tracks["area_rate_per_hour"] - tracks["true"]) / reference)


def main(arguments: list[str]) -> None:
    given = dict(a.split("=", 1) for a in arguments)
    repeats = int(given.get("REPEATS", 500))
    print(f"{repeats} experiments for each line; %\n\n| positions | founders | spread | lineages | noise | position's "
          "interval covers | experiment's interval covers | bias |\n" + "| --- " * 8 + "|")
    for (positions, founders), spread, lineage, noise in product(((3, 6), (5, 10), (10, 20)), (0.0, 0.1), (0.1, 0.3),
                                                                 (0.01, NOISE)):
        held = coverage(positions, founders, 30, repeats, spread=spread, lineage=lineage, noise=noise)
        # a position's own mean is not the experiment's where positions differ
        own = f"{held['position']:.1f}" if not spread else ""
        print(f"| {positions} | {founders} | {100 * spread:.0f} | {100 * lineage:.0f} | {100 * noise:.0f} | {own} | "
              f"{held['experiment']:.1f} | {held['bias']:.1f} |", flush=True)
    print("\n| reference v treated | effect | ratio's interval covers |\n| --- | --- | --- |")
    for design, effect in product(((2, 2), (3, 3), (5, 5), (1, 5), (5, 1)), (1.0, 0.5, 0.0)):
        held_ratio = ratio_coverage(design, 10, effect, repeats)
        print(f"| {design[0]} v {design[1]} | {effect:g} | {held_ratio:.1f} |", flush=True)
    print("\n| founders | that grow, % | interval of their share covers | mean share | share is given |\n"
          + "| --- " * 5 + "|")
    for founders, growers in product((10, 40), (0.0, 0.1, 0.5)):
        print(f"| {founders} | {100 * growers:.0f} | "
              + " | ".join(f"{v:.1f}" for v in share_coverage(growers, founders, repeats)) + " |", flush=True)
    wrong_links()
    rates, tracks = demo()
    error = 100 * tracks["error"].abs()
    print(f"\ndemo: {len(tracks)} tracks and phases, error over the reference's rate: median {error.median():.1f} %, "
          f"90th percentile {error.quantile(0.9):.1f} %")
    rates, _ = demo(0.0)
    last = rates[(rates["experiment"] == "RIF") & (rates["since_start"] > 9)]["area_rate_per_hour"]
    reference = rates.loc[rates["experiment"] == "REF", "area_rate_per_hour"].mean()
    print(f"demo, stopped: median rate {100 * last.median() / reference:.2f} % of the reference's")
    if "DATASET_PATH" in given:
        real(given["DATASET_PATH"])


if __name__ == "__main__":
    main(sys.argv[1:])
