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
# # Teach the student
#
# A U-Net learns to draw what the teacher drew, and you can watch it learn. A *U-Net* is a network that gives an answer
# for every pixel; its 4.4 million *parameters* (or *weights*) are the numbers that training adjusts.

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
EPOCHS = None

# %%
from IPython.display import display

from segkit import UNet, discover, fit, segment, split_by_position
from segkit.data.dataset import exclude, read_valid
from segkit.notebook.plots import grey, show_pictures
from segkit.settings import load_settings

settings = load_settings(globals())
dataset = discover(settings.dataset_path, settings.masks_path)
pairs, excluded = exclude(dataset.pairs, settings.exclude)
split = split_by_position(pairs, settings.validation)
model = UNet()
print(f"{len(split.train)} pairs to learn from, {len(split.validation)} to judge by")
print(f"{model.count_parameters():,} parameters")

# %%
for _, image, teacher in read_valid(split.validation, 1):
    display(show_pictures([grey(image), segment(model, image).probability, (teacher > 0).astype(float)],
                          ["a validation frame", "student, before it learns", "teacher"], settings.pixel_size_um))

# %% [markdown]
# The student starts from nothing (middle: even grey, it cannot tell cells yet), and shall see in such a frame what
# its teacher drew (right).
#
# **What you will do:** choose how long to train, watch, and keep the best student.
#
# **What you need:** a dataset with masks, chosen in `01_setup` (or the demo). The demo takes about a minute; for your
# own data, the line in the form below says how long this device will take.
#
# Three words first. *Loss* is what the training makes small: how wrong the student is. *Dice* says how well two masks
# overlap: twice the area that they share over the sum of their areas, 0 for not at all, 1 for exactly. *Validation*
# frames are those that the student never learns from.

# %% [markdown] tags=["hands-on"]
# ## 1. How long?
#
# *Run All* trains with the values below. To change them, run the notebook down to this form, change them, and then run
# the cells below it; running the form's own cell again resets it. If a training was interrupted, tick RESUME.
#
# EPOCHS is the number of rounds. In a training step the student looks at BATCH_SIZE crops (pieces of CROP pixels), and
# LEARNING_RATE is how far it then moves. With fewer than 200 steps in all touching cells are seldom told apart; crowded
# colonies take some 700. Start with that, and go on with RESUME as long as the validation loss falls.

# %%
from segkit.notebook.machine import training_estimate
from segkit.notebook.forms import SettingsForm

form = SettingsForm(settings, {"Training": ("EPOCHS", "LEARNING_RATE", "BATCH_SIZE", "CROP", "RESUME")},
                    verdict=training_estimate)
form

# %% [markdown] tags=["hands-on"]
# ## 2. Train
#
# The picture is renewed after every epoch: the curves above, and below what the student now makes of the same
# validation frames. A Dice near 0 is usual in the first epochs. The stop button interrupts; every finished epoch is
# saved.

# %%
from segkit.notebook.widgets import LivePicture

settings = form.settings
live = LivePicture()
display(live)
history = fit(model, split, settings, on_epoch=live.update)

# %% [markdown]
# ## 3. How did it go?

# %%
from segkit.notebook.plots import show_training

show_training(history.table(), history.previews)

# %% [markdown]
# Below the curves, what the student of the last epoch sees in two validation frames (of large ones, where most cells
# are). Both losses should fall
# and level off. The validation Dice (orange) is computed on whole frames, the training Dice (grey) on crops that are
# turned, blurred and darkened to make them harder, so it may well be the lower one. A validation Dice that falls
# while the training Dice rises means that the student learns the training frames by heart: more positions help, more
# epochs do not. A dotted line marks an epoch that broke down and was rolled back.

# %%
best = history.best
print("validation Dice above 0.90:", best["val_dice"] > 0.90)
print("epochs that had to be repeated:", len(history.events))

# %%
from segkit.notebook.widgets import Facts

Facts({"best epoch": f"{best['epoch']} of {settings.epochs}",
       "validation Dice": f"{best['val_dice']:.4f}",
       "training time": f"{history.table()['seconds'].sum():.0f} s"})

# %% [markdown]
# A `False` above: as long as the validation loss still falls at the last epoch, train on (tick RESUME, more EPOCHS). If
# it does not, more frames to learn from help, and so does a look at the flagged ones in `02_data_exploration`.
#
# *Best* is the epoch of the lowest validation loss, which weighs outlines and the separation of touching cells alike;
# the Dice may be highest in another. Its student is saved, with everything needed to use it or to go on. (It is judged
# once more when its mask has been cut into cells, without specks: that Dice, in `report.json` and in `04_inference`,
# may differ a little.)

# %%
kept = ("model.safetensors", "MODEL_CARD.md", "report.json", "history.csv", "last.pt", "run.log")
{name: (settings.run_dir / name).is_file() for name in kept}

# %% [markdown]
# All runs of this project so far, the newest first, to compare them:

# %%
from segkit.notebook.report import table_of_runs

Facts(table_of_runs(settings.run_dir.parent))

# %% [markdown]
# ## Summary
#
# In `runs/RUN/` (the demo: `runs/demo/`) `model.safetensors` is the student; `history.csv` holds the curves;
# `last.pt` lets RESUME go on. Go on with `04_inference`.
#
# **On your own**
# - Tick RESUME, double EPOCHS and run the cells below the form. Does the Dice still rise?
# - Set another RUN in `01_setup` and train with half the LEARNING_RATE. Whose `val_dice` in `history.csv` is higher
#   after five epochs? (Set RUN back afterwards.)

# %% [markdown] tags=["answers"]
# <details><summary>Answers</summary>
#
# - A little, as a rule, while the learning rate falls once more. If the validation loss rises instead, the student
#   learns by heart; the weights of the lowest validation loss are kept in any case.
# - The one with the higher rate is usually ahead early; a lower rate catches up when the training is long enough.
#
# </details>
