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
# # Follow every cell
#
# Cells of consecutive frames are linked to tracks: who is who, who divided, who left, who died.

# %%
from segkit import discover
from segkit.notebook import (
    by_position, check_dataset, conditions_table, display, doubtful_links, link_dataset,
    link_editor, load_settings, run_frames, show_cell_curves, show_kymograph,
    show_lineages, show_links, show_tracks, write_ctc,
)

# %% tags=["parameters"]
DATASET_PATH = None  # None: what the form in 01_setup saved, else the bundled demo
RUN = None
MODEL = None  # not used here: 04_inference has segmented with it

# %%
settings = load_settings(globals())
check_dataset(settings)
dataset = discover(settings.dataset_path, settings.masks_path)
frames = run_frames(dataset, settings)
cells, tracks, problems = link_dataset(frames, settings.run_dir)
positions = by_position(frames)
name = max(positions, key=lambda name: len(positions[name]))  # the first of the longest
film = positions[name]

# %%
show_tracks(film, cells, settings)

# %% [markdown]
# One position as a film strip (of large frames, the part that contains most cells in the end). A cell
# keeps its colour as long as it keeps its track; at a division both daughters begin tracks of their
# own, in new colours.
#
# **What you will do:** see how cells are followed, read a lineage tree and single-cell curves, check
# the doubtful links, and correct wrong ones.
#
# **What you need:** a dataset that `04_inference` has segmented. It takes a few seconds.

# %% [markdown]
# ## 1. Tracks
#
# The cells of a frame are linked to those of the next one by their overlap, after the two images were
# registered, and by their area, which is conserved: two daughters together are as large as their
# mother. In the dead-end channels of a mother machine the order along the channel decides. All links
# of two frames are chosen together. A cell that is missing in one or two frames keeps its track.
#
# A track ends by *division*, at the *border* of the frame, by *death* (it vanishes inside the image,
# and nothing is found at its place afterwards), with the *last frame*, or it is *lost*: nothing fits
# to follow it.

# %% tags=["nbval-ignore-output"]
mine = tracks[tracks["experiment"] + " " + tracks["position"] == name]
of_film = cells[cells["experiment"] + " " + cells["position"] == name]
print(f"{len(cells)} cells in {len(frames)} frames, {len(tracks)} tracks")
tracks.groupby(["experiment", "position"])["ended"].value_counts().unstack(fill_value=0)

# %%
followed = len(mine) > 0 and len(film) > 1
print("there is something to follow:", followed)
print("every cell has a track:", bool(cells["track"].notna().all()))
print("tracks.csv written:", (settings.run_dir / "tracks.csv").is_file())
for problem in problems:
    print(problem.reason)

# %% [markdown]
# ## 2. Lineage trees
#
# Time runs to the right, a line is a track, and at a division it forks. The colours are those of the
# film strip.

# %%
if followed:
    display(show_lineages(mine, of_film))

# %% [markdown]
# A tree that ends early with a question mark is a lost cell: look at it in section 5. Many of them, or
# divisions that come too fast one after the other, mean that the segmentation splits and merges cells:
# improve the student first.
#
# ## 3. Kymograph
#
# The place of the largest lineage in every frame, side by side; of a mother machine, that is a
# channel (turned upright).

# %%
if followed:
    display(show_kymograph(film, of_film, mine, settings))

# %% [markdown]
# ## 4. Single-cell curves
#
# Area and length of every cell over time, on a logarithmic scale: a straight line is exponential
# growth, and a jump down is a division.

# %%
minutes = conditions_table(settings, {film[0].experiment})["MINUTES_PER_FRAME"].iloc[0]
if followed:
    display(show_cell_curves(of_film, minutes))

# %% [markdown]
# A curve that jumps up or down without a division is a wrong link or a cell that was segmented
# differently in that frame. `06_growth` measures the slopes of these curves.
#
# ## 5. Doubtful links, and corrections
#
# A link is doubtful if another cell would have fitted nearly as well; a lost cell has none.

# %%
doubtful = doubtful_links(cells, tracks)
print("doubtful links per 100 cells below 5:", bool(100 * len(doubtful) < 5 * max(len(cells), 1)))

# %% tags=["nbval-ignore-output"]
doubtful.head(10)

# %%
if len(doubtful):
    display(show_links(doubtful[:3], frames, cells, settings))

# %% [markdown]
# The three most doubtful links, if there are any: on the left the cell, on the right what follows it,
# both in orange.
#
# Choose a link below: a doubtful one from the list, or any cell by position, frame and number. Choose
# what the cell becomes in the next frame (two cells: it divides; nothing: its track ends there), and
# press *Save link*. The choice is written into `runs/RUN/links.csv` and overrules what is found from the
# next run of this notebook on. If the frames are segmented again with another result, it is listed
# above as a problem and not used.

# %% tags=["hands-on"]
link_editor(frames, cells, tracks, settings)

# %% [markdown]
# ## 6. For other programs
#
# The format of the Cell Tracking Challenge: labels with track numbers, and a table of tracks with
# their mothers. TrackMate (in Fiji), napari and btrack read it.

# %%
folder = write_ctc(frames, cells, tracks, settings.run_dir)
print(f"{len(list(folder.rglob('man_track.txt')))} positions written into {folder.name}/")

# %% [markdown]
# ## Summary
#
# In `runs/RUN/` (the demo: `runs/demo/`) `tracks.csv` has a row per track: first and last frame,
# mother, daughters, how it began and ended. `cells.csv` has the columns `track` and `link_doubt`.
# `links.csv` holds your corrections, `ctc/` the tracks for other programs. Continue with `06_growth`.
#
# In Python, `segkit.link_cells(labels)` follows the cells of any labels.
#
# **On your own**
# - Find a division in the film strip, and the same one in the lineage tree and in the curves. What
#   happens to the length of the mother?
# - In the editor, let a cell become *nothing*, save, and run this notebook again. How does its track
#   end now? (Delete `links.csv` afterwards.)

# %% [markdown] tags=["answers"]
# <details><summary>Answers</summary>
#
# - The two daughters together are about as long as their mother, so each curve starts at half of it.
# - It is *lost* (the image shows a cell there afterwards), and a new track begins with the next frame.
#
# </details>
