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
# # Set up: choose your pictures and check the machine
#
# segkit teaches a small neural network, the *student*, to outline bacteria in phase-contrast time-lapses.
# It learns from outlines that a large network, the *teacher* (Omnipose, say), drew before. The picture below is
# what you will have made by the end of `04_inference`, on your own images.

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
DATASET_PATH = None  # None: what the form below saved, else the bundled demo
RUN = None

# %%
from segkit import discover, read_image, read_labels
from segkit.notebook.plots import TEACHER, grey, overlay, show_pictures
from segkit.settings import DEMO
from segkit.settings import load_settings

settings = load_settings(globals())
example = discover(settings.root / DEMO).pairs[11]
image, labels = read_image(example.image), read_labels(example.masks)
show_pictures([grey(image), overlay(image, labels, TEACHER), overlay(image, labels, None)],
              ["phase contrast", "outlines", "cells"], settings.pixel_size_um)

# %% [markdown]
# Left: dark rods with a bright halo, and the chamber's wall of posts. Middle: their outlines. Right: every
# cell in a colour of its own, so that touching cells are counted apart. (This example is synthetic; it is part
# of the demo dataset that comes with segkit.)
#
# **What you will do:** check the installation, point segkit at your dataset, save the settings.
#
# **What you need:** a folder of TIFF or PNG images with their masks, or nothing at all for the demo.
# It takes about a minute.

# %% [markdown]
# ## 1. Is everything installed?
#
# PyTorch computes; torchvision must be the build that matches it.

# %%
from segkit.notebook.machine import check_installation

check_installation()

# %% [markdown]
# A `False` above means that a package is missing or that two do not fit together. In a terminal, in this project's
# folder, with its environment active (`source .venv/bin/activate`, or `conda activate segkit`), one of these puts it
# right:
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
# A few training steps are timed here. *Crops per second* says how many small pieces of your images the student
# can look at; `03_training` tells how long your training takes.

# %%
from segkit.notebook.machine import machine_report
from segkit.notebook.widgets import Facts

Facts(machine_report(settings.device, settings.precision))

# %% [markdown]
# ## 3. Still zip archives?
#
# If your pictures are still as downloaded (archives, folders inside folders), give the folder of downloads here and
# press Enter: you see what would go where. **Arrange** then copies; your downloads stay as they are. Otherwise go on.

# %%
from segkit.notebook.forms import ArrangeForm

ArrangeForm(settings)

# %% [markdown]
# ## 4. Which pictures?
#
# Type the folder that holds your `..._raw_data` and `..._masks` folders at DATASET_PATH and press Enter; the line
# below it says at once what is in it. Then press **Save**. The README shows how the folders must lie.
#
# An *epoch* is one round of training through the dataset; more epochs take longer and end better, up to a point.
# *Validation* positions are kept apart: the student never learns from them, so they show what it can really do.
#
# Set PIXEL_SIZE_UM, MINUTES_PER_FRAME and DRUG_FRAME (-1: no drug) to your microscope's and experiment's: every scale
# bar, all sizes in um and `05_growth` count on them. The rest may stay as it is.

# %%
from segkit.notebook.machine import dataset_verdict
from segkit.notebook.forms import SettingsForm

form = SettingsForm(settings, verdict=dataset_verdict, save=True)
form

# %% [markdown]
# Do your experiments differ in magnification, in the time between frames or in when the drug came? Write it into their
# rows; an empty field means: as in the form. Then press **Save** above. (A file `experiments.csv` in the dataset's
# folder, with the columns `experiment` and any of these names in lower case, says the same for good.)

# %%
from segkit.notebook.forms import ExperimentsForm

ExperimentsForm(form)

# %% [markdown]
# The form as plain text: run this cell and the next again after a change. What EXPERIMENTS says of an experiment goes
# before the values above it. (A reader without Jupyter sees the demo, with EPOCHS=12 on a CPU.)

# %% tags=["nbval-ignore-output"]
import pandas as pd

from segkit.notebook.machine import settings_table

pd.set_option("display.max_colwidth", None)
settings_table(form.settings)

# %%
dataset_verdict(form.settings)

# %% [markdown]
# If the last line is an error, it says what was found and what to do: correct DATASET_PATH in the form, save, and run
# the last two cells again.
#
# ## Summary
#
# If nothing above is `False` and the last line is no error, all is ready, and what you saved holds for the other
# notebooks. Go on with `02_data_exploration`.
#
# **On your own**
# - Type a folder that does not exist. What does the line below it say?
# - What changes in the verdict when VALIDATION is `01,02` instead of `09,10,19,20`?

# %% [markdown] tags=["answers"]
# <details><summary>Answers</summary>
#
# - It names the folder, says that it is not there, and what to give instead. Nothing is saved until it is right.
# - 24 to learn from and 48 to judge by: Pos101, 102, 201 and 202 judge now, and the others are learnt from. Still no
#   position is on both sides.
#
# </details>
