"""`python -m segkit run NAME=value ...`, segment and train: the command `segkit`, also where it is not installed."""

import sys

from .notebook.headless import main

if __name__ == "__main__":
    sys.exit(main())
