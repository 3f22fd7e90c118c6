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
# # Outline every cell
#
# The student segments the whole dataset, and you see how far it agrees with its teacher.

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
MODEL = None  # None: the model that 03_training made for this run

# %%
from IPython.display import display

from segkit import discover, load_model, read_image, read_labels, segment
from segkit.data.dataset import read_valid
from segkit.notebook.plots import busiest, grey, overlay, show_pictures
from segkit.measure.metrics import frame_parts
from segkit.settings import check_whose_run, load_settings

settings = load_settings(globals())
check_whose_run(settings)
model = load_model(settings.model_path, settings.device, settings.precision)
dataset = discover(settings.dataset_path, settings.masks_path)
print("student of run", model.info.settings.get("RUN", "(unknown)"))

# %%
parts = frame_parts(model.info, dataset.frames, settings)
judged = [f for f in dataset.frames if parts[f.name] == "validation"] or dataset.frames
for frame, image, teacher in read_valid(judged[len(judged) // 2:], 1):
    probability, mask, labels = segment(model, image, scale=settings.scale, flips=settings.flips)
    pictures = {frame.name: grey(image), "probability": probability, "mask": mask.astype(float),
                "student's cells": overlay(image, labels, None)}
    if frame.masks:
        pictures["teacher's cells"] = overlay(image, teacher, None)
    part = busiest(mask | (teacher > 0), 300)
    display(show_pictures([picture[part] for picture in pictures.values()], [*pictures], settings.pixel_size_um,
                          columns=5 if max(image.shape) < 300 else 3))

# %% [markdown]
# A frame of a validation position of this student, which it was not trained on (of any position, where none of these
# is one); of a large one, the 300 x 300 pixels with most cells. *Probability*: how sure it is that a pixel belongs
# to a cell (black 0, white 1). *Mask*: where that exceeds one half. *Cells*: the mask cut apart where cells touch; the
# colours only tell neighbours apart and need not agree with the teacher's.
#
# **What you will do:** segment everything, compare with the teacher, find the worst frames, browse.
#
# **What you need:** a trained student (`03_training`), or MODEL set to a run that has one. The demo takes seconds; a
# frame of 768 x 448 pixels about a third of a second on two CPU cores.

# %% [markdown]
# ## 1. Segment everything
#
# Frames without masks are segmented too. What cannot be read is listed, and the rest goes on. Interrupted, it goes on
# where it stopped when you run it again. If a warning says that the cells are wider or narrower than those that the
# student was taught on, set SCALE in `01_setup` as it suggests.

# %%
import pandas as pd

from segkit import segment_dataset
from segkit.model.checkpoint import with_openvino
from segkit.files import read_table
from segkit.settings import record_settings

record_settings(settings)
student = with_openvino(model) if settings.openvino else model
pixel_size = {f.experiment: settings.for_experiment(f.experiment).pixel_size_um for f in dataset.frames}
cells_csv = segment_dataset(student, dataset.frames, settings.run_dir, pixel_size_um=pixel_size,
                            scale=settings.scale, flips=settings.flips, cluster=settings.cluster)
cells = read_table(cells_csv)
written = sum(1 for _ in (settings.run_dir / "masks").rglob("MASK_*.tif"))
print(f"{len(dataset.frames)} frames, {written} label files")
print("cells found:", len(cells) > 0)

# %%
from segkit.notebook.plots import show_histograms

sizes = {name: group["area_um2"].to_numpy() for name, group in cells.groupby("experiment")}
show_histograms(sizes, "cell area (µm²)", bins=20)

# %% [markdown]
# One hump is as it should be, wider where cells grow before they divide. A second one at twice the usual area: cells
# that were not cut apart. A bar far to the left: specks.

# %% [markdown]
# ## 2. How far does it agree with the teacher?
#
# *Dice* compares masks. The others compare cells: a cell counts as found when the area that it shares with a cell of
# the teacher's is at least half of what the two cover together (*IoU* 0.5; stricter at 0.75 and 0.9). *AP*, average
# precision, is the share of cells found, among all that either drew; *panoptic quality* also asks how well the found
# ones overlap. Where cells touch, look at these rather than at Dice.

# %%
from segkit.notebook.plots import show_scores

scores_csv = settings.run_dir / "scores.csv"
scores = read_table(scores_csv) if scores_csv.is_file() else pd.DataFrame(columns=["experiment", "position", "frame"])
scores["part"] = [parts[f"{row.experiment}/{row.position}/{row.frame}"] for row in scores.itertuples()]
if len(scores):
    known = scores["part"].map(lambda part: "" if part == "other" else f" ({part})")
    display(show_scores(scores, scores["experiment"] + " " + scores["position"] + known))
else:
    print("no teacher masks in this dataset: nothing to compare with")

# %%
from segkit.notebook.widgets import Facts

means = scores.groupby(["experiment", "part"]).mean(numeric_only=True) if len(scores) else pd.DataFrame()
Facts({f"{experiment}, {part} frames":
       f"Dice {row.dice:.3f}, panoptic quality {row.panoptic_quality:.3f}, AP {row.ap50:.3f} / {row.ap75:.3f} / "
       f"{row.ap90:.3f}, {row.cells:.1f} cells a frame (teacher {row.teacher_cells:.1f}), "
       f"{row.area_px / max(row.teacher_area_px, 1):.0%} of the teacher's area"
       for (experiment, part), row in means.iterrows()})

# %%
validated = scores[scores["part"] == "validation"]
judged = validated if len(validated) else scores
if len(validated):
    print("mean validation Dice above 0.90:", bool(validated["dice"].mean() > 0.9))
    print("mean validation panoptic quality above 0.60:", bool(validated["panoptic_quality"].mean() > 0.6))
else:
    print("no validation position with teacher masks here: nothing to judge by")

# %% [markdown]
# A `False` above: train on as `03_training` says, or look at the frames below. An area far from 100 % of the teacher's
# means outlines too narrow or too wide, and so do all sizes in `cells.csv`. In the figure's right half, bars to the
# right mean cells too many (cut up), to the left too few (merged or missed).
# Validation positions should score about as well as training ones; far lower means learning by heart. The validation
# positions also chose the student that was kept. For a test that nothing was chosen by, leave a position out of the
# training from the start (EXCLUDE): it is scored here as *excluded*.
#
# ## 3. The best frame, the middle one, the worst
#
# Look here before you trust a mean. Blue is the teacher, orange the student; the frames are those of validation
# positions, where there are any, in the order of their panoptic quality. Of a large frame you see the 230 x 230 pixels
# where the two masks differ most; the numbers are the whole frame's.

# %%
from segkit.data.dataset import common_area, masks_path_in, read_pair
from segkit.notebook.plots import TEACHER

by_name = {(f.experiment, f.position, f.frame): f for f in dataset.pairs}
ranked = judged.sort_values("panoptic_quality", ascending=False) if len(judged) else judged
names = {len(ranked) // 2: "middle", len(ranked) - 1: "worst", 0: "best"} if len(ranked) else {}
pictures, titles = [], []
for place, row in zip(sorted(names), ranked.iloc[sorted(names)].itertuples(), strict=True):
    pair = by_name[row.experiment, row.position, row.frame]
    image, teacher = read_pair(pair)
    labels = read_labels(masks_path_in(settings.run_dir / "masks", pair))
    image, labels = common_area(pair.name, image, labels)
    part = busiest((teacher > 0) != (labels > 0), 230)
    pictures += [overlay(image, teacher, TEACHER)[part], overlay(image, labels)[part]]
    titles += [f"{names[place]}: {pair.name}, teacher: {row.teacher_cells} cells",
               f"student: {row.cells} cells, panoptic quality {row.panoptic_quality:.2f}"]
show_pictures(pictures, titles, settings.pixel_size_um, columns=2) if pictures else "no teacher masks: nothing to rank"

# %% [markdown]
# Typical reasons for a bad frame (the demo has none): cells about to divide, cells that touch end to end or lie
# across each other, cells at the edge, and now and then a teacher who is wrong.

# %% [markdown] tags=["hands-on"]
# ## 4. Browse
#
# Every frame, with the student's outlines (orange) and, if you like, the teacher's (blue).

# %%
import ipywidgets

from segkit.notebook.plots import to_png
from segkit.notebook.widgets import browser


def draw(frame, teacher, contrast):
    image = read_image(frame.image, frame.page)
    labels = read_labels(masks_path_in(settings.run_dir / "masks", frame))
    pictures = {f"student: {labels.max()} cells": overlay(image, labels, contrast=contrast)}
    if teacher and frame.masks:
        pictures["teacher"] = overlay(*read_pair(frame), TEACHER, contrast)
    return to_png(show_pictures([*pictures.values()], [*pictures], settings.pixel_size_um))


browser(dataset, draw, teacher=ipywidgets.Checkbox(True, description="teacher"),
        contrast=ipywidgets.FloatSlider(1.0, min=0.5, max=3, step=0.1, description="contrast"))

# %% [markdown]
# ## 5. Take it elsewhere
#
# `MODEL_CARD.md` says what the student was trained on, how it scored and what it must not be trusted with; pass it on
# with `model.safetensors`. For other programs, ONNX=1 in the settings (or `segkit.export_onnx`) writes `model.onnx`.

# %%
from segkit import export_onnx

if settings.onnx:
    export_onnx(model, settings.run_dir / "model.onnx")
print("model.onnx asked for:", settings.onnx)

# %% [markdown]
# ## Summary
#
# In `runs/RUN/` (the demo: `runs/demo/`) `masks/` holds the labels of every frame in your own folder layout (16-bit
# TIFF, for Fiji or napari), `cells.csv` a row for every cell: area, length, width, place, and whether it touches the
# border (then it is cut off, and its size is not to be trusted). `scores.csv` holds the comparison.
#
# Agreement with a teacher is not truth: where the teacher is wrong, a good student is wrong with it.
#
# Go on with `05_growth`.
#
# **On your own**
# - Tick FLIPS in `01_setup`, save, and run this notebook again. How much better are the cells, how much longer does
#   it take?
# - Segment another dataset with this student: set MODEL to this run and DATASET_PATH to the new folder.

# %% [markdown] tags=["answers"]
# <details><summary>Answers</summary>
#
# - About four times the work; Dice hardly moves, panoptic quality may gain a few thousandths.
# - Look at the overlays first: another magnification needs SCALE, another organism may need masks and a training of
#   its own.
#
# </details>
