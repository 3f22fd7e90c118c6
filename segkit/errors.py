"""The one error that segkit raises for what a user can put right."""


STOPPED = "segkit stopped: "  # what the last line of a command begins with that could not go on


class SegkitError(Exception):
    """What was found, what was needed and what to do, in one sentence.

    Jupyter shows the sentence alone: IPython asks an exception for `_render_traceback_` before it
    prints a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"SegkitError: {self}"]
