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
# # Measure growth, and what the drug does to it
#
# From the cells that the student found to growth rates, doubling times, and a verdict for every treated experiment.

# %% tags=["colab"]
# In Colab, with this project in your Drive as the folder segkit: install it there. Elsewhere this cell does nothing.
import os
import sys

if "google.colab" in sys.modules:
    from google.colab import drive
    drive.mount("/content/drive")
    os.chdir("/content/drive/MyDrive/segkit/notebooks")
    os.system(f"{sys.executable} -m pip install --quiet --editable ..")
    sys.path.insert(0, "..")

# %% tags=["parameters"]
DATASET_PATH = None  # None: what the form in 01_setup saved, else the bundled demo
RUN = None
MODEL = None  # not used here: 04_inference has segmented with it

# %%
import pandas as pd

from segkit import SegkitError, discover, read_image, read_labels
from segkit.data.dataset import masks_path_in
from segkit.notebook.plots import busiest, overlay, show_pictures
from segkit.files import read_table
from segkit.measure.segment_dataset import segmented_frames
from segkit.settings import check_dataset, load_settings

settings = load_settings(globals())
check_dataset(settings)
dataset = discover(settings.dataset_path, settings.masks_path)
frames = segmented_frames(dataset.frames, settings.run_dir)
if not frames:
    raise SegkitError(f"no frame of this dataset is segmented in runs/{settings.run}: run 04_inference first")
cells = read_table(settings.run_dir / "cells.csv")

# %%
from IPython.display import display

units = sorted({f.unit for f in frames})
for unit in dict.fromkeys((units[0], units[-1])):
    film = [f for f in frames if f.unit == unit]
    strip = film[:: max(1, -(-len(film) // 6))]
    labels = [read_labels(masks_path_in(settings.run_dir / "masks", f)) for f in strip]
    part = busiest(labels[-1] > 0, 149)  # as wide as six pictures in a row are
    pictures = [overlay(read_image(f.image, f.page), cells_of)[part] for f, cells_of in zip(strip, labels, strict=True)]
    titles = [f"{f.experiment} {f.position}, frame {f.frame}" for f in strip]
    um = settings.for_experiment(unit[0]).pixel_size_um
    display(show_pictures(pictures, titles, um, columns=6))

# %% [markdown]
# The first position and the last as film strips, with the student's outlines and the frames' numbers; of large frames,
# the 149 x 149 pixels that hold most cells in the end.
#
# **What you will do:** see the area grow, read growth rates with their uncertainty, compare treated experiments with
# their reference, and check what the student's errors do to the rates.
#
# **What you need:** a dataset that `04_inference` has segmented, and the right times: PIXEL_SIZE_UM, MINUTES_PER_FRAME,
# DRUG_FRAME and REFERENCE in `01_setup`. It takes a few seconds.

# %% [markdown]
# ## 1. What is assumed about the experiments
#
# DRUG_FRAME is counted from a position's first frame. Where a line is wrong, correct it in `01_setup` (or in an
# `experiments.csv` in the dataset's folder) and run this notebook again; nothing needs to be segmented again. (Only
# after a change of PIXEL_SIZE_UM run `04_inference`, too: it renews the sizes in `cells.csv` and keeps the masks.) A
# plain folder of images counts as one position filmed over time, in the order of the names: if its pictures have
# nothing to do with each other, the rates below have nothing to do with growth.

# %%
from segkit.notebook.machine import assumed_conditions
from segkit.settings import CONDITIONS

experiments = sorted({f.experiment for f in frames})
own = {name: settings.for_experiment(name) for name in experiments}
given = {name: own[name].as_dict() for name in experiments}
print("segkit's own assumptions, please check:", ", ".join(assumed_conditions(settings, experiments)) or "none")
pd.DataFrame({name: {key: given[name][key] for key in CONDITIONS} for name in experiments}).T

# %% [markdown]
# ## 2. Area over time
#
# The total area of all cells in a frame is a steadier measure than their number, which jumps when cells divide. On this
# scale (logarithmic) exponential growth is a straight line, and its slope is the growth rate.

# %%
from segkit.notebook.plots import show_growth
from segkit.measure.growth import areas_over_time

areas = areas_over_time(cells, frames)
um2 = {name: own[name].pixel_size_um ** 2 for name in experiments}
curves = {"student": areas.assign(area=areas["area_px"] * areas["experiment"].map(um2))}
scores_csv = settings.run_dir / "scores.csv"
scores = read_table(scores_csv) if scores_csv.is_file() else pd.DataFrame()
if len(scores):
    both = areas.merge(scores[["experiment", "position", "frame", "teacher_area_px", "teacher_cells"]])
    curves["teacher"] = both.assign(area=both["teacher_area_px"] * both["experiment"].map(um2))
minutes = {name: s.minutes_per_frame for name, s in own.items()}
show_growth(curves, minutes, {name: s.drug_frame for name, s in own.items()})

# %% [markdown]
# Orange is the student, dotted blue the teacher, where there is one; a line for each position. A student that lies
# below its teacher all along draws cells too narrow, and needs more training (section 5 says what it does to rates). At
# the dashed line, DRUG_FRAME, every position is cut into before and after, also the reference's, which gets no drug:
# equal times are compared. A line that bends without a drug means that cells leave the field of view, or that the
# chamber is full.
#
# ## 3. Growth rates
#
# Each rate is the slope of the natural logarithm of the area against time: the median over all pairs of frames, so
# that one bad frame does not move it. The bar is its 95 % interval, wide where a phase has few frames. A phase in which
# the cells died out has no rate. A rate of 0.69 (ln 2) per hour doubles the area in one hour.

# %%
from segkit.notebook.plots import show_rates
from segkit.measure.growth import measure_growth

growth, comparison = measure_growth(cells, frames, settings, settings.run_dir)
show_rates(growth)

# %%
measured = growth["growth_per_hour"].notna()
print(f"{len(units)} positions; phases with a growth rate: {measured.sum()} of {(growth['frames'] > 0).sum()}")
print("growth.csv written:", (settings.run_dir / "growth.csv").is_file())
too_late = growth[(growth["phase"] == "after") & (growth["frames"] == 0)]
if len(too_late):
    print("DRUG_FRAME lies beyond the last frame of", ", ".join(sorted(set(too_late["experiment"]))))

# %% [markdown]
# ## 4. Does the drug stop them?
#
# Each treated experiment is compared with its reference over the same phase. The 95 % interval comes from the spread
# between positions, pooled over both experiments: three positions a side are few, ten are better, and one a side cannot
# say anything. The verdicts:
#
# - *dying*: positions that began the phase with cells end without any (a cross in the curves above), or half of the
#   cells and more vanish at once;
# - *stopped*: the whole interval lies below a quarter of the reference's growth (the dotted line);
# - *slowed*: the whole interval lies below the reference's growth;
# - *grows*: no slowing is seen, and the interval begins above half of the reference's growth;
# - *cannot say*: the reason stands beside it.
#
# *Slower* positions are those that lie below where all treated positions would lie without an effect.

# %%
from segkit.notebook.plots import show_ratios

if len(comparison):
    display(show_ratios(comparison))
for row in comparison.itertuples():
    print(f"{row.experiment} against {row.reference}: {row.verdict} ({row.reason}); "
          f"{row.positions_slowed} of {row.positions} positions slower, {row.positions_died_out} died out")
if comparison.empty:
    print("no treated experiment with a reference here: see REFERENCE above")

# %% [markdown]
# ## 5. What do the student's errors do to the rates?
#
# An outline that is always 2 % too wide changes no growth rate: only errors that change with time do. So the student's
# area is divided by the teacher's, frame by frame, and the *drift* of that ratio is what would be added to a rate.
# (Where hardly anything grows, 5 % of the fastest rate are next to nothing, and a `False` says little.)

# %%
from segkit.measure.growth import growth_rates

if len(scores):
    teacher = both.assign(area_px=both["teacher_area_px"])
    rates = [growth_rates(table, minutes_per_frame=minutes, drug_frame=None).query("phase == 'all'")
             for table in (both, teacher)]
    drift = (rates[0]["growth_per_hour"] - rates[1]["growth_per_hour"]).abs()
    usual = rates[1]["growth_per_hour"].abs().max()
    print(f"positions compared: {drift.notna().sum()}")
    print("student's and teacher's rates agree to 5 % of the fastest:", bool(drift.max() < 0.05 * usual))
else:
    print("no teacher masks here: nothing to compare with")

# %%
from segkit.notebook.plots import show_over_time

if len(scores):
    ratio = both["area_px"] / both["teacher_area_px"].clip(lower=1)
    limits = min(0.8, ratio.min()), max(1.2, ratio.max())
    display(show_over_time(both.assign(ratio=ratio), "ratio", "student's area / teacher's area", limits))

# %% [markdown]
# A level line is harmless. A line that falls as the frames get crowded would make growth look slower than it is. Other
# things that no student can mend: cells that leave or enter the field of view, cells cut off at the border (marked in
# `cells.csv`), drift out of focus, and a teacher who is wrong in the same way from the first frame to the last.
#
# The demo is synthetic: the growth that was put in is known, and the rates can be checked against it.

# %%
import json

truth_file = settings.dataset_path / "truth.json"
if truth_file.is_file():  # the synthetic demo knows the growth that was put in
    truth = json.loads(truth_file.read_text())["positions"]
    put_in = growth[growth["phase"] != "all"].assign(true=[
        60 * truth[f"{r.experiment}/{r.position}"][f"growth_per_minute_{r.phase}"]
        for r in growth[growth["phase"] != "all"].itertuples()])
    reference = put_in.loc[put_in["phase"] == "before", "true"].mean()
    off = (put_in["growth_per_hour"] - put_in["true"]).abs() / reference
    print("measured and true rates differ by less than 8 % of the reference's rate:", bool((off < 0.08).all()))
else:
    print("no truth.json: this is no synthetic dataset")

# %% [markdown]
# ## Summary
#
# In `runs/RUN/` (the demo: `runs/demo/`) `growth.csv` has a row per position and phase: growth rate, doubling time,
# 95 % interval, and whether the cells died out. `comparison.csv` has a row per treated experiment: the ratio to its
# reference, its interval, the verdict and its reason.
#
# The interval of one position knows only the scatter between frames (and its correlation from frame to frame); trust
# the spread between positions more. Cells are not followed through time: this is growth of all the cells in view
# together.
#
# **On your own**
# - In the table of experiments in `01_setup`, set DRUG_FRAME to 4 instead of 6 in both rows, and save. Which of RIF10's
#   rates changes more, before or after, and why?
# - Does the number of cells (`areas["cells"]`) tell the same story as their area?

# %% [markdown] tags=["answers"]
# <details><summary>Answers</summary>
#
# - *After*: it now holds two steps of fast growth, and its rate nearly doubles, though it stays
#   small. *Before* only loses frames.
# - On average; but it goes up in steps, when several cells divide at once, and needs many cells to be smooth.
#
# </details>
