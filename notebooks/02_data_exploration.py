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
# # Look at the data before you learn from it
#
# What is in the dataset, what is wrong with it, and which part the student will be judged by.

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

# %%
import pandas as pd
from IPython.display import display

from segkit import discover
from segkit.data.dataset import Split, exclude, read_pair, read_valid, split_by_position
from segkit.notebook.plots import TEACHER, busiest, overlay, show_pictures
from segkit.settings import check_dataset, load_settings

pd.set_option("display.max_colwidth", None, "display.max_rows", 500)  # reasons in full
settings = load_settings(globals())
check_dataset(settings)
dataset = discover(settings.dataset_path, settings.masks_path)
frames = dataset.pairs or dataset.frames
first = [f for f in frames if f.unit == frames[0].unit]
strip = read_valid(first[:: -(-len(first) // 3)], 3)
part = busiest(strip[-1][2] > 0, 300) if strip else ()
pictures = [overlay(image, labels, TEACHER)[part] for _, image, labels in strip]
show_pictures(pictures, [f"frame {f.frame}" for f, _, _ in strip], settings.pixel_size_um, columns=3)

# %% [markdown]
# A film strip of the first position, with the teacher's outlines in blue (of large frames, the 300 x 300 pixels with
# most cells in the end). Do the outlines sit on the cells? If they are shifted, or belong to other frames, no training
# can help. The scale bar is as right as PIXEL_SIZE_UM in `01_setup` is.
#
# **What you will do:** count images and masks, read the list of problems, browse, look at the split.
#
# **What you need:** a dataset chosen in `01_setup` (or the demo). It takes a minute or two.

# %% [markdown]
# ## 1. What is there?
#
# A *position* is one chamber, filmed over time; an *experiment* is one treatment; a *pair* is an image with its masks.
# *First* and *last* are frame numbers, which need not begin at 0. A masks file holds a number per cell, 0 for
# background (its *labels*).

# %%
dataset

# %%
lost = sum(problem.frames_lost for problem in dataset.problems)
print(f"{len(dataset.frames)} images, {len(dataset.pairs)} of them with masks")
print(f"{len(dataset.problems)} problems, {lost} frames lost")
if not dataset.pairs:
    print("no masks: these images can be segmented with a student trained elsewhere (MODEL), not learnt from")

# %% [markdown]
# Every file that cannot be used is listed here with its reason, the costliest first. The rest is used all the same.

# %%
dataset.problem_table() if dataset.problems else "nothing: every file can be used"

# %% [markdown] tags=["hands-on"]
# ## 2. Browse
#
# Choose a position and a frame. The outlines are the teacher's.

# %%
import ipywidgets

from segkit.data.images import read_image
from segkit.notebook.plots import grey, to_png
from segkit.notebook.widgets import browser


def draw(frame, outlines, contrast):
    if outlines and frame.masks:
        image, labels = read_pair(frame)
        picture, title = overlay(image, labels, TEACHER, contrast), f"{frame.name}: {labels.max()} cells"
    else:
        picture, title = grey(read_image(frame.image, frame.page), contrast), frame.name
    return to_png(show_pictures([picture], [title], settings.pixel_size_um))


browser(dataset, draw, outlines=ipywidgets.Checkbox(True, description="outlines"),
        contrast=ipywidgets.FloatSlider(1.0, min=0.5, max=3, step=0.1, description="contrast"))

# %% [markdown]
# ## 3. How large are the cells?
#
# One frame per position is measured, the middle one. The student learns from *crops*, pieces cut out of the frames at
# random (CROP in `01_setup`), and sees about 100 pixels to each side of the pixel that it answers for.

# %%
from segkit.measure.cells import measure_cells
from segkit.notebook.plots import show_histograms

by_unit = {unit: [f for f in frames if f.unit == unit] for unit in sorted({f.unit for f in frames})}
middle = [pair for unit in by_unit.values() for pair in read_valid(unit[len(unit) // 2:], 1)]
cells = pd.concat([measure_cells(labels, f, settings.pixel_size_um) for f, _, labels in middle])
lengths = {name: group["length_px"].to_numpy() for name, group in cells.groupby("experiment")}
show_histograms(lengths, "cell length (pixels)", bins=20)

# %%
from segkit.devices import pick_device
from segkit.model.unet import FIELD_OF_VIEW
from segkit.training.frames import choose_crop

crop = choose_crop(settings, pick_device(settings.device), middle[0][1].shape)
longest = cells["length_px"].quantile(0.95)
print(f"95 % of the cells are shorter than the crop's shorter side: {longest < min(crop)}")
print(f"95 % of the cells are shorter than what the network sees around a pixel (about {FIELD_OF_VIEW} pixels): "
      f"{longest < FIELD_OF_VIEW}")

# %% [markdown]
# A `False` above means that long cells are seen in parts only: choose a larger CROP, or shrink the images.
# A second hump far to the right often means that the teacher merged touching cells into one.

# %%
from segkit.data.images import normalise

seen = {" ".join(f.unit): normalise(image).ravel() for f, image, _ in middle[:5]}
show_histograms(seen, "intensity, each frame's 0.5 and 99.5 percentiles at 0 and 1")

# %% [markdown]
# (The first five positions.) The highest hump is the background; cells are the lower one to its left where they are
# dark, and may have none of their own where they are few. However bright a frame is, and whether its file has 8 or 16
# bits: every frame is brought to the same range before the student sees it. A curve with another shape than the others'
# is worth a look in the browser above.

# %% [markdown]
# ## 4. Can the teacher be trusted?
#
# Every pair is read and measured: a minute for the demo, longer for a large dataset. A flag asks for a look: the mask
# is empty where its neighbours in time are not, the number of cells jumps, a mask seems shifted against its image, an
# image is clipped, out of focus or there twice. Flagged frames are learnt from all the same, unless EXCLUDE names them;
# `review.csv` in the run's folder has the table.

# %%
from segkit import review_teacher
from segkit.files import write_table

review = review_teacher(dataset)
write_table(settings.run_dir / "review.csv", review)
flagged = review[review["flags"] != ""]
print(f"{len(review)} pairs reviewed, {len(flagged)} flagged")
flagged[["experiment", "position", "frame", "cells", "flags"]] if len(flagged) else "no flags"

# %%
by_name = {(f.experiment, f.position, f.frame): f for f in dataset.pairs}
look = [by_name[row.experiment, row.position, row.frame] for row in flagged.itertuples()]
shown = read_valid(look, 6)
if shown:
    reasons = {f: row.flags.partition(":")[0][:40] for f, row in zip(look, flagged.itertuples(), strict=True)}
    display(show_pictures([overlay(image, labels, TEACHER) for _, image, labels in shown],
                          [f"{f.name}: {reasons[f]}" for f, _, _ in shown], columns=3))
print("to leave out all that are flagged, EXCLUDE =", ",".join(f.name for f in look) or "(nothing)")

# %% [markdown]
# (Up to six of them.) Outlines that all lie beside their cells by the same distance, or belong to another frame: leave
# the frame out, or mend its mask. Outlines that sit on the cells: the flag was a false alarm, keep the frame.

# %%
from segkit.notebook.plots import show_over_time

show_over_time(review, "foreground", "share of the frame inside cells")

# %% [markdown]
# One line per position. Growth bends the lines upwards; a drug flattens them; a jump is a frame to look at.
#
# ## 5. Who learns, who judges?
#
# Whole positions are kept for validation: two frames of one chamber look so much alike that a student could learn one
# by heart and be praised for the other.

# %%
from segkit.notebook.plots import show_split

kept, excluded = exclude(frames, settings.exclude)
split = split_by_position(kept, settings.validation) if dataset.pairs else Split((), ())
show_split(dataset, split)

# %%
print(f"{len(split.train)} training pairs, {len(split.validation)} validation pairs, {len(excluded)} excluded")
print(f"positions shared between training and validation: {split.shared_positions()}")

# %% [markdown]
# ## Summary
#
# You know what is there, what was left out and why, and that no position is on both sides. Go on with `03_training`.
#
# **On your own**
# - Find a frame whose outlines you do not believe, and leave it out: write its name (EXPERIMENT/PosXXX/frame) into
#   EXCLUDE in `01_setup`.
# - Which position has the most crowded last frame?

# %% [markdown] tags=["answers"]
# <details><summary>Answers</summary>
#
# - The next run of this notebook counts it among the excluded ones, and training leaves it out; `split.json` in the
#   run's folder keeps the list. The file itself stays as it is.
# - The one whose line ends highest in *share of the frame inside cells*. In code:
#   `review.groupby(["experiment", "position"])["foreground"].last().idxmax()`. In the demo it is one of the REF
#   positions, which go on growing.
#
# </details>
