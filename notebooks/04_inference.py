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
# # Segment every cell
#
# The student segments the whole dataset, and its labels are compared with the teacher's.

# %%
from segkit import discover, export_onnx, load_model, segment_dataset
from segkit.notebook import (
    STARTER, browser, check_whose_run, display, frame_parts, load_settings, read_scores,
    read_table, record_settings, scale_text, show_best_and_worst, show_histograms, show_scores,
    show_segmentation, worst_frames,
)

# %% tags=["parameters"]
DATASET_PATH = None  # None: what the form in 01_setup saved, else the bundled demo
RUN = None
MODEL = None  # None: the model that 03_training made for this run, else the starter

# %%
settings = load_settings(globals())
check_whose_run(settings)
model = load_model(settings.model_path, settings.device, settings.precision)
dataset = discover(settings.dataset_path, settings.masks_path)
print("student of run", model.info.settings.get("RUN", "(unknown)"))
if settings.model_path == STARTER:
    print("This is the starter, which comes with segkit: this run holds no student of its own.")

# %%
parts = frame_parts(model.info, dataset.frames, settings)
validation = [f for f in dataset.frames if parts[f.name] == "validation"] or dataset.frames
show_segmentation(model, validation[len(validation) // 2:], settings)

# %% [markdown]
# A frame of a validation position, which the student was not trained on (of any position, where none
# of these is one); of a large frame, the part with most cells. *Probability*: of a pixel to belong to
# a cell (black 0, white 1). *Mask*: where it exceeds one half. *Cells*: instance segmentation, which
# separates touching cells; the colours only distinguish neighbours and need not agree with the
# teacher's.
#
# **What you will do:** segment everything, compare with the teacher, find the worst frames, browse.
#
# **What you need:** a trained student (`03_training`), or MODEL set to a run that has one; without
# either, the *starter* is used, a student that comes with segkit. The demo takes seconds; a frame of
# 768 x 448 pixels about a third of a second on two CPU cores.

# %% [markdown]
# ## 1. Segment everything
#
# Frames without masks are segmented, too. Files that cannot be read are listed, and the others are
# processed. After an interruption, run the cell again: it continues. SCALE=auto resizes the images of
# a position where their cells are wider or narrower than the training cells.

# %%
record_settings(settings)
pixel_size = {name: settings.for_experiment(name).pixel_size_um
              for name in {frame.experiment for frame in dataset.frames}}
cells_csv = segment_dataset(
    model, dataset.frames, settings.run_dir, pixel_size_um=pixel_size, scale=settings.scale,
    flips=settings.flips, cluster=settings.cluster)
cells = read_table(cells_csv)
written = list((settings.run_dir / "masks").rglob("MASK_*.tif"))
print(f"{len(dataset.frames)} frames, {len(written)} label files")
print("cells found:", len(cells) > 0)
print(scale_text(read_table(settings.run_dir / "frames.csv")))

# %%
sizes = {name: group["area_um2"] for name, group in cells.groupby("experiment")}
show_histograms(sizes, "cell area (µm²)", bins=20)

# %% [markdown]
# One peak is usual, wider where cells grow before they divide. A second one at twice the usual area:
# cells that were not separated. A bar far to the left: specks.
#
# *Quality* is estimated without labels (0 to 1; about the panoptic quality below): how well the cells
# fit the predicted probability, and how little changes if parts of cells are joined more or less
# readily. The worst frames first: look at the flagged ones in the browser below (section 4) before
# you trust their cells.

# %% tags=["nbval-ignore-output"]
worst_frames(settings.run_dir, 5)

# %% [markdown]
# ## 2. How well does it agree with the teacher?
#
# *Dice* compares masks. The other scores compare cells: a cell is found if its overlap with a
# teacher's cell is at least half of the area that the two cover together (*IoU* 0.5; stricter at 0.75
# and 0.9). *AP*, average precision, is the share of cells found, among all cells of either;
# *panoptic quality* also measures how well the found ones overlap. Where cells touch, these scores
# tell more than Dice.

# %%
scores = read_scores(settings.run_dir, parts)
if len(scores):
    part = scores["part"].map(lambda part: "" if part == "other" else f" ({part})")
    display(show_scores(scores, scores["experiment"] + " " + scores["position"] + part))
else:
    print("no teacher masks in this dataset: nothing to compare with")

# %% tags=["nbval-ignore-output"]
scores.drop(columns="frame").groupby(["experiment", "part"]).mean(numeric_only=True).round(3)

# %%
evaluated = scores[scores["part"] == "validation"]
if len(evaluated):
    good = evaluated["dice"].mean() > 0.9, evaluated["panoptic_quality"].mean() > 0.6
    print("mean validation Dice above 0.90:", bool(good[0]))
    print("mean validation panoptic quality above 0.60:", bool(good[1]))
else:
    print("no validation position with teacher masks here: nothing to evaluate")

# %% [markdown]
# A `False` above: continue the training as described in `03_training`, or look at the frames below.
# If `area_px` differs much from `teacher_area_px`, the outlines are too narrow or too wide, and so
# are all sizes in `cells.csv`. In the figure's right half, bars to the right mean too many cells
# (split), to the left too few (merged or missed). Validation positions should score about as well as
# training ones; much lower means overfitting. The validation positions also selected the student that
# was kept. For an independent test, leave a position out of the training from the start (EXCLUDE): it
# is scored here as *excluded*.
#
# ## 3. The best frame, the middle one, the worst
#
# Look here before you trust a mean. Blue is the teacher, orange the student; the frames are those of
# validation positions, where there are any, ranked by panoptic quality. Of a large frame you see the
# part where the two masks differ most; the numbers are the whole frame's.

# %%
ranked = evaluated if len(evaluated) else scores
show_best_and_worst(ranked, dataset, settings) if len(ranked) else "no teacher masks: no ranking"

# %% [markdown]
# Typical reasons for a bad frame (the demo has none): cells about to divide, cells that touch end to
# end or lie across each other, cells at the edge, and sometimes wrong labels of the teacher.

# %% [markdown] tags=["hands-on"]
# ## 4. Browse
#
# Every frame, with the student's outlines (orange) and, if you like, the teacher's (blue).

# %%
browser(dataset, settings, student=True)

# %% [markdown]
# ## 5. Use it elsewhere
#
# `MODEL_CARD.md` describes what the student was trained on, its scores and its limits; pass it on with
# `model.safetensors`. For other programs, ONNX=1 in the settings (or `segkit.export_onnx`) writes
# `model.onnx`.

# %%
if settings.onnx:
    export_onnx(model, settings.run_dir / "model.onnx")
print("model.onnx requested:", settings.onnx)

# %% [markdown]
# ## Summary
#
# In `runs/RUN/` (the demo: `runs/demo/`) `masks/` contains the labels of every frame in your own
# folder layout (16-bit TIFF, for Fiji or napari), `cells.csv` a row for every cell: area, length,
# width, centroid, and whether it touches the border (then it is cut off, and its size is too small).
# `scores.csv` contains the comparison.
#
# Agreement with a teacher is not truth: where the teacher is wrong, a good student is wrong, too.
#
# Continue with `05_tracking`.
#
# **On your own**
# - Tick FLIPS in `01_setup`, save, and run this notebook again. How much better are the cells, how
#   much longer does it take?
# - Segment another dataset with this student: set MODEL to this run and DATASET_PATH to the new
#   folder.

# %% [markdown] tags=["answers"]
# <details><summary>Answers</summary>
#
# - About four times the work; Dice hardly changes, panoptic quality may rise by a few thousandths.
# - Look at the outlines first: another magnification needs SCALE, another organism may need masks and
#   a training of its own.
#
# </details>
