"""Facts, the live picture and the sliders: what is seen and moved in the notebooks."""

import gc
import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as w
import pandas as pd

from ..data.dataset import Dataset
from ..errors import SegkitError
from ..training.run_dir import History
from .plots import show_training, to_png

AS_IT_IS = {"align_self": "flex-start", "max_width": "100%"}  # a picture is not stretched, which would blur it
_GOOD, _BAD = "#1E8E62", "#D0571A"  # of the sign alone, the words have the theme's colour: light or dark


def quiet_repr(widget: w.Widget) -> str:
    """What a notebook stores of a widget as text: no machine's paths or figures."""
    return f"({type(widget).__name__}: run the notebook to see it)"


def say(text: str, good: bool) -> str:
    """A sentence as HTML, behind a sign that says whether all is well."""
    colour, sign = (_GOOD, "✓") if good else (_BAD, "✗")
    return f'<b style="color:{colour}">{sign}</b> {html.escape(text)}'


class Facts(w.HTML):
    """Facts of this machine or run, as a widget: they are seen, and not compared with another machine's."""

    def __init__(self, rows: dict[str, str] | pd.DataFrame) -> None:
        if isinstance(rows, pd.DataFrame):
            super().__init__(rows.to_html(index=False, float_format="{:.3g}".format))
        else:
            lines = (f"<b>{html.escape(name)}</b>: {html.escape(value)}" for name, value in rows.items())
            super().__init__("<br>".join(lines))

    __repr__ = quiet_repr


class LivePicture(w.Image):
    """A picture of the training that is renewed after every epoch: pass `live.update` to fit as on_epoch."""

    def __init__(self) -> None:
        super().__init__(value=to_png(show_training(History().table())), format="png", layout=AS_IT_IS)

    __repr__ = quiet_repr

    def update(self, history: History) -> None:
        self.value = to_png(show_training(history.table(), history.previews))


class Browser(w.VBox):
    """Position and frame controls above a picture."""

    __repr__ = quiet_repr


def browser(dataset: Dataset, draw: Callable[..., bytes], **options: w.ValueWidget) -> Browser:
    """Choose a position and a frame; draw(frame, **option values) -> PNG is shown at once.

    options: further widgets, by the name under which draw takes their value.
    """
    units = sorted({f.unit for f in dataset.frames})
    by_unit = {unit: [f for f in dataset.frames if f.unit == unit] for unit in units}
    position = w.Dropdown(options=[(" ".join(unit), unit) for unit in units], description="position")
    frame = w.SelectionSlider(options=_frame_options(by_unit[units[0]]), description="frame")
    picture, message = w.Image(format="png", layout=AS_IT_IS), w.HTML()

    def redraw(change: Any = None) -> None:
        try:
            picture.value = draw(frame.value, **{name: option.value for name, option in options.items()})
            message.value = ""
        except SegkitError as error:
            message.value, picture.value = say(str(error), False), b""

    def change_position(change: Any) -> None:
        frame.options = _frame_options(by_unit[position.value])

    position.observe(change_position, "value")
    for control in (frame, *options.values()):
        control.observe(redraw, "value")
    redraw()
    gc.collect()
    gc.freeze()  # looking through all that the notebook holds would stop a slider for 0.3 s now and then
    return Browser([w.HBox([position, frame]), w.HBox(list(options.values())), picture, message])


def _frame_options(frames: Sequence[Any]) -> list[tuple[str, Any]]:
    return [(str(f.frame), f) for f in frames]
