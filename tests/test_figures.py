import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from segkit.data.dataset import Dataset, Frame, Split
from segkit.data.discovery import discover
from segkit.notebook import pictures
from segkit.notebook import plots as charts
from segkit.notebook.plots import (
    busiest,
    grey,
    outlines,
    overlay,
    show_crops,
    show_histograms,
    show_over_time,
    show_pictures,
    show_previews,
    show_training,
    to_png,
)
from segkit.settings import Settings
from segkit.training.run_dir import COLUMNS
from tests.helpers import squares


def test_outlines_are_the_rims_of_the_cells():
    edge = outlines(squares((5, 5)))
    assert edge.sum() == 4 * 10 - 4
    touching = outlines(squares((5, 5), (5, 15)))
    assert touching[10, 14]
    assert touching[10, 15]
    assert outlines(np.zeros((4, 4), int)).sum() == 0


def test_an_overlay_keeps_the_image_where_there_is_no_outline():
    image, labels = np.tile(np.linspace(0, 1, 48), (40, 1)), squares((5, 5))
    picture = overlay(image, labels)
    assert picture.shape == (40, 48, 3)
    rim = outlines(labels)
    np.testing.assert_array_equal(picture[~rim], np.repeat((grey(image) * 255).astype(np.uint8)[..., None], 3, 2)[~rim])
    assert (picture[rim] == (0xD5, 0x5E, 0x00)).all()


def test_neighbouring_numbers_get_different_colours():
    picture = overlay(np.ones((40, 48)), squares((5, 5), (5, 15), (20, 5)), None)
    assert len({tuple(picture[y, x]) for y, x in ((8, 8), (8, 18), (25, 8))}) == 3


def test_every_figure_becomes_a_png_with_and_without_content():
    rows = [dict.fromkeys(COLUMNS, 0.5) | {"epoch": 1, "event": "rolled back"}]
    for table in (pd.DataFrame(rows), pd.DataFrame(columns=list(COLUMNS))):
        for figure in (show_training(table), show_previews([(np.zeros((8, 8)),) * 3]), show_previews([])):
            assert to_png(figure).startswith(b"\x89PNG")
    line = pd.DataFrame({"experiment": ["A"], "position": ["P"], "frame": [0], "x": [1.0]})
    many = pd.concat(line.assign(experiment=name) for name in "ABCDE")
    for figure in (show_over_time(line, "x", "x"), show_over_time(many, "x", "x"), show_over_time(line[:0], "x", "x"),
                   show_over_time(line.assign(x=np.nan), "x", "x"),
                   show_pictures([np.zeros((8, 9))], ["a"], 0.1), show_pictures([], []), show_histograms({}, "x")):
        assert to_png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", [r"A$\frac$", "2$^$", "a$_$"])
def test_a_name_with_dollar_signs_is_drawn_as_it_is_and_stops_no_figure(name):
    frames = tuple(Frame(Path("i"), Path("m"), name, "Pos1", k) for k in range(2))
    line = pd.DataFrame({"experiment": name, "position": name, "frame": [0, 1], "since_start": [0, 1],
                         "area": [1.0, 2.0]})
    rates = pd.DataFrame({"experiment": [name], "position": ["P"], "phase": ["all"], "frames": [2], "low": [0.4],
                          "high": [0.6], "growth_per_hour": [0.5], "doubling_minutes": [83.0],
                          "died_out": [False], "start_cells": [5]})
    scores = pd.DataFrame([dict.fromkeys(("dice", "panoptic_quality", "ap50", "ap75", "ap90"), 0.9)
                           | {"cells": 3, "teacher_cells": 4}])
    ratios = pd.DataFrame([{"experiment": name, "reference": "REF", "ratio": 0.5, "low": 0.4, "high": 0.6,
                            "verdict": "slowed", "reason": "so"}])
    figures = [
        charts.show_split(Dataset(Path(), frames), Split(frames[:1], frames[1:])), show_over_time(line, "area", "x"),
        show_histograms({name: np.arange(9.0)}, name), charts.show_scores(scores, [name]), charts.show_rates(rates),
        charts.show_ratios(ratios), charts.show_growth({"student": line}, {name: 2.0}, {name: -1}),
        show_pictures([np.zeros((60, 90))], [name])]
    for figure in figures:
        assert to_png(figure).startswith(b"\x89PNG")
        assert any(name in text.get_text() and not text.get_parse_math() for text in figure.findobj(Text))


@pytest.mark.parametrize("areas", [(0.0, 0.0, 0.0), (0.0, 1e-2, 1e6), (1.0, 2.0, 4.0)])
def test_growth_of_any_range_has_ticks_and_no_warning(areas, recwarn):
    line = pd.DataFrame({"experiment": "A", "position": "P", "since_start": [0, 1, 2], "area": areas})
    axes = charts.show_growth({"student": line}, {"A": 2.0}, {"A": 1}).axes[0]
    low, high = axes.get_ylim()
    assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 2
    assert to_png(axes.figure).startswith(b"\x89PNG")
    assert not recwarn.list


@pytest.mark.parametrize(("qualities", "shown"), [
    ((), []), ((0.5,), ["best"]), ((0.5, 0.9), ["best", "worst"]), ((0.5, 0.9, 0.7), ["best", "middle", "worst"])])
def test_of_few_frames_none_is_shown_twice(tiny, monkeypatch, qualities, shown):
    titles = []
    monkeypatch.setattr(pictures, "show_pictures", lambda _, names, *__, **___: titles.extend(names[::2]))
    dataset, settings = discover(tiny), Settings(root=tiny, dataset_path=tiny)
    shutil.copytree(tiny / "REF_masks", settings.run_dir / "masks" / "REF_masks")
    scores = pd.DataFrame([{"experiment": "REF", "position": frame.position, "frame": frame.frame, "cells": 2,
                            "teacher_cells": 2, "panoptic_quality": quality}
                           for frame, quality in zip(dataset.pairs, qualities, strict=False)],
                          columns=["experiment", "position", "frame", "cells", "teacher_cells", "panoptic_quality"])
    pictures.show_best_and_worst(scores, dataset, settings)
    assert [title.partition(":")[0] for title in titles] == shown


def test_crops_are_shown_above_their_targets():
    figure = show_crops(np.full((3, 8, 9), 1.5), np.zeros((3, 8, 9)))
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert [picture.shape for picture in shown] == [(8, 9)] * 6
    assert [float(picture.max()) for picture in shown] == [1.0] * 3 + [0.0] * 3


def test_a_picture_has_as_many_pixels_as_the_image_or_a_multiple_and_fits_the_sheet():
    for count, width, wide in ((1, 600, 600), (2, 600, 936), (6, 600, 936), (1, 128, 3 * 128), (3, 128, 3 * 256 + 16)):
        figure = show_pictures([np.zeros((500, width))] * count, ["a"] * count, columns=6)
        assert round(figure.bbox.width) == wide
    assert show_pictures([np.zeros((520, 696))] * 5, ["a"] * 5).axes[0].get_subplotspec().get_gridspec().ncols == 3


def test_the_busiest_window_holds_what_there_is_and_lies_inside():
    weight = np.zeros((50, 70), bool)
    weight[44:48, 60:66] = True
    part = busiest(weight, 20)
    assert weight[part].shape == (20, 20)
    assert weight[part].sum() == weight.sum()
    assert weight[busiest(weight, 60)].shape == (50, 60)
    assert weight[busiest(np.zeros_like(weight), 20)].shape == (50, 70)  # nothing to choose by: all of it


def test_touching_cells_of_one_colour_are_told_apart_by_their_rims():
    labels = squares((5, 5), (5, 15), (20, 5))
    labels[labels == 2] = 8  # the colour of 1
    picture = overlay(np.ones((40, 48)), labels, None)
    inside, rim = picture[8, 8], picture[8, 14]
    assert (picture[8, 18] == inside).all()
    assert (picture[8, 15] == rim).all()
    assert np.abs(inside.astype(int) - rim).sum() > 100
    assert (picture[25, 8] != inside).any()
    assert (picture[35, 40] == picture[0, 0]).all()


def test_a_ratio_without_an_interval_has_its_verdict_and_no_dot():
    rows = [{"experiment": name, "reference": "REF", "ratio": 0.5, "low": low, "high": high, "verdict": "slowed",
             "reason": "so"} for name, low, high in (("A", 0.4, 0.6), ("B", -np.inf, np.inf), ("C", np.nan, np.nan))]
    figure = charts.show_ratios(pd.DataFrame(rows))
    assert np.isfinite(figure.axes[0].lines[0].get_xdata().astype(float)).tolist() == [True, False, False]
    assert to_png(figure).startswith(b"\x89PNG")
    assert to_png(charts.show_ratios(pd.DataFrame(rows[:0], columns=list(rows[0])))).startswith(b"\x89PNG")
