"""Rebuild the .ipynb of every notebook from its .py and execute it on the fixture: `make notebooks`."""

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

from tests.notebook_settings import SETTINGS

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
KEPT_METADATA = ("kernelspec", "language_info", "jupytext")


def build(script: Path) -> None:
    """Bring the .ipynb in step (cell ids stay) and store it executed."""
    target = script.with_suffix(".ipynb")
    subprocess.run([sys.executable, "-m", "jupytext", "--quiet", "--update", "--to", "ipynb", str(script)], check=True)
    notebook = nbformat.read(target, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", store_widget_state=False, coalesce_streams=True,
                   resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata = {key: notebook.metadata[key] for key in KEPT_METADATA if key in notebook.metadata}
    notebook.metadata.get("language_info", {}).pop("version", None)
    nbformat.write(notebook, target)
    print(f"{target.name}: {target.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    os.environ.update(SETTINGS)
    wanted = sys.argv[1:] or ["0"]
    for script in sorted(NOTEBOOKS.glob("0*.py")):
        if any(script.name.startswith(name) for name in wanted):
            assert jupytext.read(script).cells
            build(script)
