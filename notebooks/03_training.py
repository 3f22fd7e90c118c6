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
# # Train the student
#
# A U-Net is trained to predict the teacher's masks, and you can watch its predictions improve. A
# *U-Net* is a network with a prediction for every pixel; its 4.4 million *parameters* (or *weights*)
# are the numbers that training adjusts.

# %%
from segkit import UNet, discover, fit, segment
from segkit.notebook import (
    LivePicture, SettingsForm, discover_split, display, example_crops, grey, load_settings,
    read_valid, show_crops, show_pictures, show_previews, show_training, table_of_runs,
    training_estimate,
)

# %% tags=["parameters"]
DATASET_PATH = None  # None: what the form in 01_setup saved, else the bundled demo
RUN = None
EPOCHS = None

# %%
settings = load_settings(globals())
dataset = discover(settings.dataset_path, settings.masks_path)
split = discover_split(settings, dataset)
model = UNet()
print(f"{len(split.train)} training pairs, {len(split.validation)} validation pairs")
print(f"{model.count_parameters():,} parameters")

# %%
for _, image, labels in read_valid(split.validation, 1):
    probability = segment(model, image).probability
    display(show_pictures([grey(image), probability, (labels > 0).astype(float)],
                          ["validation frame", "student, untrained", "teacher's mask"],
                          settings.pixel_size_um))

# %% [markdown]
# An untrained student has random weights (middle: even grey, no cells yet). Training makes it predict
# the teacher's mask (right). With START_FROM=auto, the default, the training starts from the
# *starter* instead, a student that comes with segkit; with an empty START_FROM, or where the starter
# was trained on your validation frames, it starts from random weights.
#
# **What you will do:** look at the training data, choose the number of epochs, watch, and keep the
# best student.
#
# **What you need:** a dataset with masks, chosen in `01_setup` (or the demo); without masks, go on
# with `04_inference`, which then uses the starter. The demo takes about a minute; for your own data,
# the line in the form below estimates the time on this device.
#
# Three terms first. *Loss* is what the training minimises: how far the prediction is from the target.
# *Dice* measures the overlap of two masks: twice their shared area over the sum of their areas, 0 for
# none, 1 for identical masks. *Validation* frames are never trained on.

# %% [markdown]
# ## 1. Training crops
#
# In every step the student is shown BATCH_SIZE *crops* of the training frames, with *augmentation*:
# each is turned, mirrored, zoomed, blurred and changed in brightness at random, so that no two are
# the same.

# %%
images, targets = example_crops(split, settings)
show_crops(images, targets)

# %% [markdown]
# Top: augmented crops as the student is shown them. Bottom: their targets, the distance of each
# pixel from its cell's edge (white in the middle of a cell, black outside), from which touching cells
# are told apart. A target that does not match its crop would mean wrong masks.

# %% [markdown] tags=["hands-on"]
# ## 2. How long?
#
# *Run All* trains with the values below. To change them, run the notebook down to this form, change
# them, and then run the cells below it; running the form's own cell again resets it. To continue an
# interrupted training, tick RESUME.
#
# EPOCHS is the number of passes over the training data, and LEARNING_RATE is the peak learning rate.
# With fewer than 200 steps in all, touching cells are seldom told apart; crowded colonies need some
# 700. Start with that, and continue with RESUME as long as the validation loss falls.

# %%
form = SettingsForm(
    settings, {"Training": ("EPOCHS", "LEARNING_RATE", "BATCH_SIZE", "CROP", "RESUME")},
    verdict=training_estimate)
form

# %% [markdown] tags=["hands-on"]
# ## 3. Train
#
# The figure is drawn again after every epoch: the curves above, and below the predictions for the
# same validation frames. From random weights, a Dice near 0 is usual in the first epochs. The stop
# button interrupts; every finished epoch is saved.

# %% tags=["nbval-ignore-output"]
settings = form.settings
live = LivePicture(settings.epochs)
display(live)
history = fit(model, split, settings, on_epoch=live.update)

# %% [markdown]
# ## 4. Was it successful?

# %%
show_training(history.table())

# %% [markdown]
# Both losses should fall and level off. The validation Dice (orange) is computed on whole frames, the
# training Dice (grey) on augmented crops, which are harder, so it may be the lower one. A validation
# Dice that falls while the training Dice rises means that the student overfits: more positions help,
# more epochs do not. A dotted line marks an epoch with a divergence, which was rolled back.

# %%
show_previews(history.previews)

# %% [markdown]
# Predictions of the last epoch for two validation frames (of large ones, the part with most cells).
# The probability should be as sharp as the teacher's mask, and darker between touching cells.

# %%
best = history.best
print("validation Dice above 0.90:", best["val_dice"] > 0.90)
print("epochs that had to be repeated:", len(history.events))

# %% tags=["nbval-ignore-output"]
print(f"best epoch: {best['epoch']} of {settings.epochs}")
print(f"validation Dice: {best['val_dice']:.4f}")
print(f"training time: {history.table()['seconds'].sum():.0f} s")

# %% [markdown]
# A `False` above: if the validation loss still falls at the last epoch, continue the training (tick
# RESUME, more EPOCHS). If it does not, more training frames help, and so does a look at the flagged
# ones in `02_data_exploration`.
#
# The *best* epoch is the one with the lowest validation loss, which includes the separation of
# touching cells; the Dice may be highest in another. Its student is saved, with everything that is
# needed to use it or to continue. (It is evaluated once more after instance segmentation, which
# removes specks: that Dice, in `report.json` and in `04_inference`, may differ a little.)

# %%
saved = ("model.safetensors", "MODEL_CARD.md", "report.json", "history.csv", "last.pt", "run.log")
{name: (settings.run_dir / name).is_file() for name in saved}

# %% [markdown]
# All runs of this project, the newest first, to compare them:

# %% tags=["nbval-ignore-output"]
table_of_runs(settings.run_dir.parent)

# %% [markdown]
# ## Summary
#
# In `runs/RUN/` (the demo: `runs/demo/`) `model.safetensors` is the student; `history.csv` contains
# the curves; RESUME continues from `last.pt`. Continue with `04_inference`.
#
# **On your own**
# - Tick RESUME, double EPOCHS and run the cells below the form. Does the Dice still rise?
# - Set another RUN in `01_setup` and train with half the LEARNING_RATE. Whose `val_dice` in
#   `history.csv` is higher after five epochs? (Set RUN back afterwards.)

# %% [markdown] tags=["answers"]
# <details><summary>Answers</summary>
#
# - A little, as a rule, while the learning rate falls once more. If the validation loss rises
#   instead, the student overfits; the weights of the lowest validation loss are kept in any case.
# - The one with the higher rate is usually ahead early; a lower rate catches up when the training is
#   long enough.
#
# </details>
