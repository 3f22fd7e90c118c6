"""The one error that segkit raises for what a user can correct."""


STOPPED = "segkit stopped: "  # begins the last line of a command that failed


class SegkitError(Exception):
    """One sentence: what was found, what was needed and what to do.

    Jupyter shows the sentence alone: IPython asks an exception for `_render_traceback_` before it
    prints a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"SegkitError: {self}"]
