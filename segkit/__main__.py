"""`python -m segkit run NAME=value ...` and `python -m segkit segment ...`: the command `segkit`, also uninstalled."""

import sys

from .notebook.headless import main

if __name__ == "__main__":
    sys.exit(main())
