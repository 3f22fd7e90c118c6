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
# # Look at the data before training on it
#
# What is in the dataset, what is wrong with it, and which part validates the student.

# %%
import pandas as pd

from segkit import Split, discover, review_teacher, split_by_position
from segkit.notebook import (
    browser, by_position, cells_of_frame, check_crop, check_dataset, exclude, film_strip,
    load_settings, middle_frames, normalise, show_flagged, show_histograms, show_over_time,
    show_split, write_table,
)

pd.set_option("display.max_colwidth", None, "display.max_rows", 500)  # reasons in full

# %% tags=["parameters"]
DATASET_PATH = None  # None: what the form in 01_setup saved, else the bundled demo
RUN = None

# %%
settings = load_settings(globals())
check_dataset(settings)
dataset = discover(settings.dataset_path, settings.masks_path)
frames = dataset.pairs or dataset.frames
first_position = next(iter(by_position(frames).values()))
film_strip(first_position, settings, 3)

# %% [markdown]
# A film strip of the first position, with the teacher's outlines in blue (of large frames, the part
# with most cells in the end). Do the outlines match the cells? If they are shifted, or belong to
# other frames, no training can help. The scale bar is as right as PIXEL_SIZE_UM in `01_setup` is.
#
# **What you will do:** count images and masks, read the list of problems, browse, look at the split.
#
# **What you need:** a dataset chosen in `01_setup` (or the demo). It takes a minute or two.

# %% [markdown]
# ## 1. What is there?
#
# A *position* is one chamber, filmed over time; an *experiment* is one treatment; a *pair* is an
# image with its masks. *First* and *last* are frame numbers, which need not begin at 0. A masks file
# contains a number per cell, 0 for background (its *labels*).

# %%
dataset

# %%
lost = sum(problem.frames_lost for problem in dataset.problems)
print(f"{len(dataset.frames)} images, {len(dataset.pairs)} of them with masks")
print(f"{len(dataset.problems)} problems, {lost} frames lost")
if not dataset.pairs:
    print("no masks: 04_inference segments these images; a training needs masks")

# %% [markdown]
# Every file that cannot be used is listed here with its reason, the costliest first. The other files
# are used.

# %%
dataset.problem_table() if dataset.problems else "nothing: every file can be used"

# %% [markdown] tags=["hands-on"]
# ## 2. Browse
#
# Choose a position and a frame. The outlines are the teacher's.

# %%
browser(dataset, settings)

# %% [markdown]
# ## 3. How large are the cells?
#
# One frame per position is measured, the middle one. The student is trained on *crops*, parts cut
# out of the frames at random positions (CROP in `01_setup`). Its *field of view* is about 200 pixels
# wide: no pixel further away changes its prediction for a pixel.

# %%
middle = middle_frames(frames)
cells = pd.concat([cells_of_frame(labels, frame) for frame, _, labels in middle])
lengths = {name: group["length_px"] for name, group in cells.groupby("experiment")}
show_histograms(lengths, "cell length (pixels)", bins=20)

# %%
check_crop(settings, cells, middle[0][1].shape)

# %% [markdown]
# A `False` above means that long cells are seen in parts only: choose a larger CROP, or shrink the
# images. A second peak far to the right often means that the teacher merged touching cells.

# %%
intensities = {" ".join(frame.unit): normalise(image).ravel() for frame, image, _ in middle[:5]}
show_histograms(intensities, "intensity, each frame's 0.5 and 99.5 percentiles at 0 and 1")

# %% [markdown]
# (The first five positions.) The highest peak is the background; cells are the lower one to its left
# where they are dark, and may have no peak of their own where they are few. Every frame is
# normalised to the same range, whatever its brightness and bit depth. A curve of another shape than
# the others is worth a look in the browser above.

# %% [markdown]
# ## 4. Are the teacher's labels good?
#
# Every pair is read and measured: a minute for the demo, longer for a large dataset. A flag asks for
# a look: the mask is empty where its neighbours in time are not, the number of cells jumps, a mask
# seems shifted against its image, an image is clipped, out of focus or there twice. Flagged frames
# are used for training unless EXCLUDE names them; `review.csv` in the run's folder has the table.

# %%
review = review_teacher(dataset)
write_table(settings.run_dir / "review.csv", review)
flagged = review[review["flags"] != ""]
print(f"{len(flagged)} of {len(review)} pairs are flagged; EXCLUDE leaves frames out")
for row in flagged.head(5).itertuples():
    print(f"flagged: {row.experiment}/{row.position}/{row.frame}: {row.flags}")
flagged[["experiment", "position", "frame", "cells", "flags"]] if len(flagged) else "no flags"

# %% [markdown]
# Every teacher draws outlines by a convention of its own, and a pixel matters: for a cell 7 pixels
# wide, an outline that is off by one pixel lowers the IoU by about a third. segkit measures the
# intensity across the outlines of cells that stand alone, and compares with Omnipose. A student
# draws outlines as its teacher does. Where yours differ by a pixel or more, areas differ from those
# that the starter finds.

# %%
offset, side = review["outline"].median(), "outside"
if offset < 0:
    offset, side = -offset, "inside"
print(f"Omnipose would draw the outlines {offset:.1f} pixels further {side} (median; nan: unknown)")

# %%
names = flagged["experiment"] + "/" + flagged["position"] + "/" + flagged["frame"].astype(str)
print("to leave out all flagged frames: EXCLUDE =", ",".join(names) or "(nothing)")
show_flagged(dataset, flagged)

# %% [markdown]
# (Up to six of them.) If all outlines lie beside their cells by the same distance, or belong to
# another frame: leave the frame out, or repair its mask. If the outlines match the cells, it was a
# false alarm: keep the frame.

# %%
show_over_time(review, "foreground", "share of the frame inside cells")

# %% [markdown]
# One line per position. Growth bends the lines upwards; a drug flattens them; a jump is a frame to
# look at.
#
# ## 5. Training/validation split
#
# Whole positions are kept for validation: two frames of one chamber look so much alike that a
# student that overfits to one would score well on the other.

# %%
kept, excluded = exclude(frames, settings.exclude)
split = split_by_position(kept, settings.validation) if dataset.pairs else Split((), ())
show_split(dataset, split)

# %%
print(f"{len(split.train)} training pairs, {len(split.validation)} validation pairs, "
      f"{len(excluded)} excluded")
print(f"positions shared by training and validation: {split.shared_positions()}")

# %% [markdown]
# ## Summary
#
# You know what is there, what was left out and why, and that no position is on both sides of the
# split. Continue with `03_training`.
#
# **On your own**
# - Find a frame whose outlines look wrong, and leave it out: write its name
#   (EXPERIMENT/PosXXX/frame) into EXCLUDE in `01_setup`.
# - Which position has the most crowded last frame?

# %% [markdown] tags=["answers"]
# <details><summary>Answers</summary>
#
# - The next run of this notebook counts it among the excluded ones, and the training leaves it out;
#   `split.json` in the run's folder keeps the list. The file itself stays as it is.
# - The one whose line ends highest in *share of the frame inside cells*. In code:
#   `review.groupby(["experiment", "position"])["foreground"].last().idxmax()`. In the demo it is one
#   of the REF positions, which continue to grow.
#
# </details>
