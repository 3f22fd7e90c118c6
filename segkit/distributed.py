"""One process of a training in several: `torchrun --nproc-per-node=4 -m segkit.distributed EPOCHS=250 RUN=hr_ref`."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from .discover import discover_split
from .errors import STOPPED, SegkitError
from .headless import name_and_value
from .history import log
from .model import UNet
from .sources import load_settings
from .train import fit


def main(arguments: Sequence[str]) -> int:
    """Train with NAME=value settings, as one of the processes that torchrun starts.

    Returns 0, or 1 after printing the reason as the last line.
    """
    if os.environ.get("RANK", "0") == "0":  # torchrun ends the others where one is lost; this one says so
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    log.addHandler(logging.StreamHandler(sys.stdout))
    try:
        settings = load_settings(dict(name_and_value(a) for a in arguments))
        fit(UNet(), discover_split(settings), settings)
    except SegkitError as error:
        reason = str(error)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    else:
        return 0
    print(f"\n{STOPPED}{reason}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
