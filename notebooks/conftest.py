"""What `pytest --nbval notebooks` runs with: the bundled demo, a short training, no saved form."""

import os
import tempfile

from tests.notebook_settings import SETTINGS

os.environ.update(SETTINGS)
os.environ.setdefault("JUPYTER_RUNTIME_DIR", tempfile.mkdtemp(prefix="segkit-jupyter-"))
