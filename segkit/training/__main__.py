"""One process of a training in several: `torchrun --nproc-per-node=4 -m segkit.training EPOCHS=250 RUN=hr_ref`."""

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence

from ..data.discovery import discover_split
from ..errors import STOPPED, SegkitError
from ..files import log
from ..model.unet import UNet
from ..settings import load_settings, name_and_value
from .distributed import WATCHED
from .trainer import fit


def main(arguments: Sequence[str]) -> int:
    """Train with NAME=value settings, as one of the processes that torchrun starts.

    "watched" as first argument ends this process as soon as its standard input ends: so group.launch starts it.
    Returns 0, or 1 after printing the reason as the last line.
    """
    if os.environ.get("RANK", "0") == "0":  # torchrun ends the others where one is lost; this one says so
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if watched := list(arguments[:1]) == [WATCHED]:
        threading.Thread(target=_end_with_the_launcher, daemon=True).start()
    log.addHandler(logging.StreamHandler(sys.stdout))
    try:
        settings = load_settings(dict(name_and_value(a) for a in arguments[watched:]))
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


def _end_with_the_launcher() -> None:
    """End this process when the one that launched the training is gone, however it was killed."""
    while os.read(0, 1):
        pass
    log.info("stopped: the process that started this training has ended; RESUME=1 goes on after the last epoch")
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
