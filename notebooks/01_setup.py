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
# # Set up: choose a dataset and check the machine
#
# segkit trains a small neural network, the *student*, to segment bacteria in phase-contrast
# time-lapses. It learns from the labels of a large network, the *teacher* (such as Omnipose).
# The figure below is what you will have by the end of `04_inference`, on your own images.

# %%
import pandas as pd

from segkit.notebook import (
    TEACHER, ArrangeForm, ExperimentsForm, SettingsForm, check_installation, dataset_verdict,
    example_pair, grey, load_settings, machine_report, overlay, settings_table, show_pictures,
)

pd.set_option("display.max_colwidth", None)

# %% tags=["parameters"]
DATASET_PATH = None  # None: what the form below saved, else the bundled demo
RUN = None

# %%
settings = load_settings(globals())
frame, image, labels = example_pair(settings)
show_pictures([grey(image), overlay(image, labels, TEACHER), overlay(image, labels, None)],
              ["phase contrast", "outlines", "cells"], settings.pixel_size_um)

# %% [markdown]
# Left: dark rods with a bright halo, and the posts of the chamber's wall. Middle: their outlines.
# Right: every cell within its own rim, so that touching cells are counted separately. (This example
# is synthetic; it is part of the demo dataset that comes with segkit.)
#
# **What you will do:** check the installation, select your dataset, save the settings.
#
# **What you need:** a folder of TIFF or PNG images with their masks, or nothing at all for the
# demo. It takes about a minute.

# %% [markdown]
# ## 1. Is everything installed?
#
# If a cell above stopped with an error about `torchvision`, it is not the build that matches PyTorch.

# %%
check_installation()

# %% [markdown]
# A `False` above means that a package is missing or too old. One of these commands repairs it, as
# well as a torchvision that does not match, in a terminal, in this project's folder, with its environment active
# (`source .venv/bin/activate`, or `conda activate segkit`):
#
# | machine | command |
# | --- | --- |
# | NVIDIA GPU, or any (5 GB more) | `pip install --upgrade torch torchvision` |
# | no GPU | `pip install --upgrade torch torchvision --index-url https://download.pytorch.org/whl/cpu` |
# | any other package | `pip install --editable .` |
# | conda | `conda env update -f environment.yml` |
#
# Then choose *Kernel, Restart Kernel*.

# %% [markdown]
# ## 2. What will it run on, and how fast?
#
# A few training steps are timed. *Crops per second* is how many small parts of your images the
# training processes; `03_training` estimates the duration of your training from it.

# %% tags=["nbval-ignore-output"]
machine_report(settings)

# %% [markdown]
# (A reader without a kernel sees the values of the machine that executed this notebook.)

# %% [markdown]
# ## 3. Still zip archives?
#
# If your images are still as downloaded (archives, folders inside folders), enter the folder of
# downloads and press Enter: you see what will go where. **Arrange** then copies; your downloads stay
# as they are. Otherwise skip this form.

# %%
ArrangeForm(settings)

# %% [markdown]
# ## 4. Which dataset?
#
# Enter the folder that holds your `..._raw_data` and `..._masks` folders at DATASET_PATH and press
# Enter; the line below it reports what is in it. Then press **Save**. The user guide shows the
# expected folder layout.
#
# An *epoch* is one pass over the training data; more epochs take longer and give better results, up
# to a point. *Validation* positions are kept out of the training, so that the scores on them show
# what the student does on new data.
#
# Set PIXEL_SIZE_UM, MINUTES_PER_FRAME and DRUG_FRAME (-1: no drug) to the values of your microscope
# and experiment: all scale bars, all sizes in um and `06_growth` depend on them. The other defaults
# are good for a start.

# %%
form = SettingsForm(settings, save=True)
form

# %% [markdown]
# Do your experiments differ in magnification, in the time between frames or in the frame of the
# drug? Enter the values in their rows (an empty field means: as in the form) and press **Save**
# above. The button below the table writes it as `experiments.csv` into the dataset's folder, so that
# it stays with the data.

# %%
ExperimentsForm(form)

# %% [markdown]
# All settings as plain text; run this cell and the next again after a change. A value in CONDITIONS,
# for one experiment, goes before the value for all.

# %% tags=["nbval-ignore-output"]
settings_table(form.settings)

# %%
dataset_verdict(form.settings)

# %% [markdown]
# If the last line is an error, it states what was found and what to do: correct DATASET_PATH in the
# form, save, and run the last two cells again.
#
# ## Summary
#
# If nothing above is `False` and the last line is no error, everything is ready, and the other
# notebooks use the saved settings. Continue with `02_data_exploration`.
#
# **On your own**
# - Enter a folder that does not exist. What does the line below it report?
# - What changes in that line when VALIDATION is `01,02` instead of `09,10,19,20`?

# %% [markdown] tags=["answers"]
# <details><summary>Answers</summary>
#
# - It names the folder, reports that it does not exist, and what to enter instead. Nothing is saved
#   until it is right.
# - 24 pairs for training and 48 for validation: Pos101, 102, 201 and 202 are the validation
#   positions, and the student is trained on the others. Still no position is on both sides.
#
# </details>
