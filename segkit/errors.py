"""The one error that segkit raises for what a user can correct."""

import re

STOPPED = "segkit stopped: "  # begins the last line of a command that failed


def readable(name: str) -> str:
    """A file's name as text that can be written: bytes that are no UTF-8, which Python marks, are read as Latin-1."""
    return re.sub("[\udc80-\udcff]", lambda byte: chr(ord(byte[0]) - 0xDC00), name)


class SegkitError(Exception):
    """One sentence: what was found, what was needed and what to do.

    Jupyter shows the sentence alone: IPython asks an exception for `_render_traceback_` before it
    prints a traceback.

    Parameters
    ----------
    sentence : str
    frames_lost : int
        How many frames of a time-lapse it costs, where it is about one of its files.
    """

    def __init__(self, sentence: str, frames_lost: int = 1) -> None:
        super().__init__(readable(sentence))
        self.frames_lost = frames_lost

    def _render_traceback_(self) -> list[str]:
        return [f"SegkitError: {self}"]
