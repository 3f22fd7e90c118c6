# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Measure growth, and the effect of the drug
#
# From the segmented cells to growth rates, doubling times, and a verdict for every treated
# experiment.

# %%
import pandas as pd

from segkit import discover, growth_rates
from segkit.notebook import (
    STUDENT, areas_over_time, assumed_conditions, by_position, check_conditions, check_dataset,
    conditions_table, display, film_strip, load_settings, measure_growth, measure_single_cells,
    read_scores, read_table, run_frames, show_growth, show_histograms, show_over_time,
    show_population, show_rates, show_ratios, student_pairs, which_estimate,
)

# %% tags=["parameters"]
DATASET_PATH = None  # None: what the form in 01_setup saved, else the bundled demo
RUN = None
MODEL = None  # not used here: 04_inference has segmented with it

# %%
settings = load_settings(globals())
check_dataset(settings)
dataset = discover(settings.dataset_path, settings.masks_path)
check_conditions(settings, dataset)
frames = run_frames(dataset, settings)
cells, tracks = (read_table(settings.run_dir / name) for name in ("cells.csv", "tracks.csv"))

# %%
positions = by_position(student_pairs(frames, settings))
for name in dict.fromkeys((min(positions), max(positions))):
    display(film_strip(positions[name], settings, 6, STUDENT))

# %% [markdown]
# The first position and the last as film strips, with the student's outlines and the frames' numbers;
# of large frames, the part that contains most cells in the end.
#
# **What you will do:** see the area grow, read growth rates with their uncertainty, compare treated
# experiments with their reference, and check the effect of the student's errors on the rates.
#
# **What you need:** a dataset that `04_inference` has segmented, and the right times: PIXEL_SIZE_UM,
# MINUTES_PER_FRAME, DRUG_FRAME and REFERENCE in `01_setup`. It takes a few seconds.

# %% [markdown]
# ## 1. Conditions of the experiments
#
# DRUG_FRAME is counted from a position's first frame. If a row is wrong, correct it in `01_setup` (or
# in an `experiments.csv` in the dataset's folder) and run this notebook again; nothing needs to be
# segmented again. (Only after a change of PIXEL_SIZE_UM run `04_inference`, too: it updates the sizes
# in `cells.csv` and keeps the masks.) A plain folder of images counts as one position filmed over
# time, in the order of the names: if its images are unrelated, the rates below are not growth.

# %%
experiments = sorted({frame.experiment for frame in frames})
assumed = assumed_conditions(settings, experiments)
print("segkit's own assumptions, please check:", ", ".join(assumed) or "none")
conditions = conditions_table(settings, experiments)
conditions

# %% [markdown]
# ## 2. Area over time
#
# The total area of all cells in a frame is a steadier measure than their number, which jumps when
# cells divide. On a logarithmic scale exponential growth is a straight line, and its slope is the
# growth rate.

# %%
areas = areas_over_time(cells, frames)
um2 = areas["experiment"].map(conditions["PIXEL_SIZE_UM"]).astype(float) ** 2
curves = {"student": areas.assign(area=areas["area_px"] * um2)}
scores = read_scores(settings.run_dir)
if len(scores):
    teacher = scores[["experiment", "position", "frame", "teacher_area_px", "teacher_cells"]]
    both = curves["student"].assign(um2=um2).merge(teacher)
    curves["teacher"] = both.assign(area=both["teacher_area_px"] * both["um2"])
show_growth(curves, conditions["MINUTES_PER_FRAME"], conditions["DRUG_FRAME"])

# %% [markdown]
# Orange is the student, dotted blue the teacher, where there is one; a line for each position. A
# student that lies below its teacher everywhere predicts cells that are too narrow, and needs more
# training (section 6 shows the effect on the rates). DRUG_FRAME, the dashed line, divides every
# position into before and after, also the reference's, which gets no drug: equal times are compared.
# A line that bends without a drug means that cells leave the field of view, or that the chamber is
# full.
#
# ## 3. Growth rates
#
# Each rate is the slope of the natural logarithm of the area against time: the median over all pairs
# of frames, so that one bad frame does not change it. The bar is its 95 % interval, wide where a phase
# has few frames. A phase in which the cells died out has no rate. A rate of 0.69 (ln 2) per hour
# doubles the area in one hour.

# %%
growth, comparison = measure_growth(cells, frames, settings, settings.run_dir)
show_rates(growth)

# %%
measured = growth["growth_per_hour"].notna()
phases = growth["frames"] > 0
print(f"{len(positions)} positions; phases with a growth rate: {measured.sum()} of {phases.sum()}")
print("growth.csv written:", (settings.run_dir / "growth.csv").is_file())
too_late = growth.loc[(growth["phase"] == "after") & ~phases, "experiment"]
if len(too_late):
    print("DRUG_FRAME lies beyond the last frame of", ", ".join(sorted(set(too_late))))

# %% [markdown]
# ## 4. Does the drug stop them?
#
# Each treated experiment is compared with its reference over the same phase. The 95 % interval comes
# from the spread between positions, pooled over both experiments: three positions a side are few, ten
# are better, and with one a side nothing can be said. The verdicts:
#
# - *dying*: positions that began the phase with cells end without any (a cross in the curves above),
#   or half of the cells and more vanish at once;
# - *stopped*: the whole interval lies below a quarter of the reference's growth (the dotted line);
# - *slowed*: the whole interval lies below the reference's growth;
# - *grows*: no slowing is seen, and the interval begins above half of the reference's growth;
# - *cannot say*: the reason stands beside it.
#
# *Slower* positions are those that lie below where all treated positions would lie without an effect.

# %%
if len(comparison):
    display(show_ratios(comparison))
for row in comparison.itertuples():
    print(f"{row.experiment} against {row.reference}: {row.verdict} ({row.reason}); "
          f"{row.positions_slowed} of {row.positions} positions slower, "
          f"{row.positions_died_out} died out")
if comparison.empty:
    print("no treated experiment with a reference here: see REFERENCE above")

# %% [markdown]
# ## 5. Growth of single cells
#
# `05_tracking` followed every cell. Its growth rate is the slope of the logarithm of its area over the
# last five frames, its mother's included. Cells that enter or leave do not change these rates, which
# they do with the total area. Rates below 0 are kept, so that a population that stopped reads 0.

# %%
rates, population = measure_single_cells(
    cells, tracks, frames, settings, settings.run_dir)
display(show_population(population, conditions["DRUG_FRAME"]))

# %% [markdown]
# Left: the mean over all cells. The band is its 95 % interval, for which the positions are the unit
# (cells of one lineage, and of one position, are related). Right: the same as a share of the
# reference's mean at the same time; below the dotted line growth has *stopped*.

# %%
rated = rates.dropna(subset="area_rate_per_hour")
since_drug = rated["since_start"] - rated["experiment"].map(conditions["DRUG_FRAME"])
without = rated["experiment"].map(conditions["DRUG_FRAME"]) < 0
rated = rated[without | (since_drug < 0) | (since_drug >= 4)]  # windows on one side of the drug
part = (since_drug[rated.index] >= 0).map({True: " after", False: " before"}).where(~without, "")
values = {name: group["area_rate_per_hour"] for name, group in rated.groupby(
    rated["experiment"] + part)}
display(show_histograms(values, "growth rate of a cell (per hour)", bins=30))

# %% [markdown]
# Only rates whose five frames lie all before or all after DRUG_FRAME are shown. One peak each: all
# cells do the same. Two peaks in a treated experiment, one of them near 0: some cells go on growing (or
# their tracks are wrong: look at them in `05_tracking`).

# %% tags=["nbval-ignore-output"]
print(which_estimate(rates, tracks))

# %% [markdown]
# ## 6. Effect of the student's errors on the rates
#
# Outlines that are always 2 % too wide change no growth rate: only errors that change with time do. So
# the student's area is divided by the teacher's, frame by frame, and the *drift* of that ratio is what
# would be added to a rate. (Where hardly anything grows, 10 % of the fastest rate are next to nothing,
# and a `False` means little.)

# %%
def rates_of(table):
    minutes = dict(conditions["MINUTES_PER_FRAME"])
    rates = growth_rates(table, minutes_per_frame=minutes, drug_frame=None)
    return rates.loc[rates["phase"] == "all", "growth_per_hour"]


if len(scores):
    student, teacher = rates_of(both), rates_of(both.assign(area_px=both["teacher_area_px"]))
    drift = (student - teacher).abs()
    print(f"positions compared: {drift.notna().sum()}")
    print("student's and teacher's rates agree to 10 % of the fastest:",
          bool(drift.max() < 0.1 * teacher.abs().max()))

# %%
if len(scores):
    ratio = both["area_px"] / both["teacher_area_px"].clip(lower=1)
    limits = min(0.8, ratio.min()), max(1.2, ratio.max())
    display(show_over_time(both.assign(ratio=ratio), "ratio", "student's area / teacher's", limits))
else:
    print("no teacher masks here: nothing to compare with")

# %% [markdown]
# A level line is harmless. A line that falls as the frames get crowded would make growth look slower
# than it is. Errors that no student can correct: cells that leave or enter the field of view, cells
# cut off at the border (marked in `cells.csv`), focus drift, and a teacher with the same error from
# the first frame to the last.
#
# The demo is synthetic: the growth that was put in is known, and the rates can be checked against it.

# %%
truth_file = settings.dataset_path / "truth.json"
if truth_file.is_file():
    truth = pd.read_json(truth_file, typ="series")["positions"]
    phases = growth[growth["phase"] != "all"]
    true = [60 * truth[f"{row.experiment}/{row.position}"][f"growth_per_minute_{row.phase}"]
            for row in phases.itertuples()]
    phases = phases.assign(true=true)
    reference = phases.loc[phases["phase"] == "before", "true"].mean()
    error = (phases["growth_per_hour"] - phases["true"]).abs() / reference
    print("measured and true rates differ by less than 12 % of the reference's rate:",
          bool((error < 0.12).all()))
else:
    print("no truth.json: this is no synthetic dataset")

# %% [markdown]
# ## Summary
#
# In `runs/RUN/` (the demo: `runs/demo/`) `growth.csv` has a row per position and phase: growth rate,
# doubling time, 95 % interval, and whether the cells died out. `comparison.csv` has a row per treated
# experiment: the ratio to its reference, its interval, the verdict and its reason.
#
# The interval of one position includes only the scatter between frames (and its correlation from
# frame to frame); the spread between positions is more reliable. The verdicts are those of the total
# area of all cells in view; section 5 says which of the two estimates suits these data.
# `single_cell_rates.csv` and `population_rates.csv` have the rates of single cells.
#
# **On your own**
# - In the table of experiments in `01_setup`, set DRUG_FRAME to 4 instead of 6 in both rows, and save.
#   Which of RIF10's rates changes more, before or after, and why?
# - Does the number of cells (`areas["cells"]`) show the same growth as their area?

# %% [markdown] tags=["answers"]
# <details><summary>Answers</summary>
#
# - *After*: it now contains two steps of fast growth, and its rate nearly doubles, though it stays
#   small. *Before* only loses frames.
# - On average; but it rises in steps, when several cells divide at once, and needs many cells to be
#   smooth.
#
# </details>
