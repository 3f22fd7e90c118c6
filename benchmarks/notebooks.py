"""How long the notebooks take: `python benchmarks/notebooks.py`.

Each is executed on the demo, as Run All does: seconds to its end, and to the end of the first cell that leaves a
picture, the kernel's start included. Then 02 and 04 on a time-lapse of 121 frames of 819 x 682: seconds from a slider's
move to the PNG (without the browser), for frames that were not seen before.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import nbformat
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).parents[1]))
import segkit
from segkit.devices import describe_device, pick_device
from segkit.settings import project_root
from tests.notebook_settings import SETTINGS

FOLDER = project_root() / "notebooks"
RUN = "benchmark_notebooks"
REDRAW = """
import json, time
from segkit.notebook import to_png
times, box = [], browser(dataset, settings, student={student})
for frame in dataset.frames[::12]:
    began = time.perf_counter()
    to_png(box.draw(frame, True, 1.0))
    times.append(time.perf_counter() - began)
print(json.dumps(times))
"""


def execute(name: str, settings: dict[str, str], more: str = "") -> tuple[nbformat.NotebookNode, float, float]:
    """The executed notebook, seconds to its end and to its first picture; more: code for a last cell."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    if more:
        notebook.cells.append(nbformat.v4.new_code_cell(more))
    os.environ.update(settings)
    began = datetime.now(UTC)
    NotebookClient(notebook, timeout=1200, kernel_name="python3",
                   resources={"metadata": {"path": str(FOLDER)}}).execute()
    whole = (datetime.now(UTC) - began).total_seconds()
    pictures = [cell.metadata["execution"]["shell.execute_reply"] for cell in notebook.cells
                if any("image/png" in output.get("data", {}) for output in cell.get("outputs", ()))]
    return notebook, whole, (datetime.fromisoformat(pictures[0]) - began).total_seconds() if pictures else float("nan")


def main() -> None:
    print(f"{describe_device(pick_device())}\n\n| notebook, on the demo | s to its end | s to the first picture |\n"
          "| --- | --- | --- |")
    for file in sorted(FOLDER.glob("0*.ipynb")):
        _, whole, picture = execute(file.stem, SETTINGS)
        print(f"| {file.stem} | {whole:.0f} | {picture:.0f} |", flush=True)
    print("\n| slider to picture, 819 x 682 | median s | longest s |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        data = segkit.make_demo_dataset(Path(folder) / "data", shape=(819, 682), frames=121, cells=20,
                                        positions={"REF": (101, 109)}, minutes_per_frame=2)
        settings = {**SETTINGS, "SEGKIT_DATASET_PATH": str(data), "SEGKIT_MODEL": "demo", "SEGKIT_RUN": RUN}
        for name in ("02_data_exploration", "04_inference"):
            notebook, _, _ = execute(name, settings, REDRAW.format(student=name == "04_inference"))
            times = sorted(json.loads(notebook.cells[-1].outputs[0].text))
            print(f"| {name} | {times[len(times) // 2]:.2f} | {times[-1]:.2f} |", flush=True)
    shutil.rmtree(project_root() / "runs" / RUN)


if __name__ == "__main__":
    main()
