"""A run as a page that can be mailed, and all runs side by side."""

import datetime
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import SegkitError
from ..files import read_json, write_text
from ..model.checkpoint import load_model
from ..settings import Settings, parse_settings

WIDGET = "application/vnd.jupyter.widget-"
FOR_WHO_RUNS = {"answers", "hands-on"}  # tags of cells that say what to press
NOT_READ = re.compile(r"^\*\*(What you will do|What you need):.*?(\n\n|\Z)|^\*\*On your own\*\*.*", re.S | re.M)
REPORTED = ("02_data_exploration", "03_training", "04_inference", "05_growth")


def write_report(run_dir: str | Path) -> Path:
    """Write run_dir/report.html: the run's executed notebooks one after the other, without code; returns its path.

    Raises SegkitError where no executed notebook is there.
    """
    import nbformat
    from nbconvert import HTMLExporter

    run_dir = Path(run_dir)
    files = [file for name in REPORTED if (file := run_dir / "notebooks" / f"{name}.ipynb").is_file()]
    if not files:
        raise SegkitError(f"no executed notebook in {run_dir / 'notebooks'}: make run and make segment leave them "
                          "there")
    notebooks = [nbformat.read(file, as_version=4) for file in files]
    used = notebooks[-1].metadata.get("papermill", {}).get("parameters", {})
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(_summary(run_dir, used))])
    for notebook in notebooks:
        widgets = notebook.metadata.get("widgets", {}).get(f"{WIDGET}state+json", {}).get("state", {})
        for cell in notebook.cells:
            if FOR_WHO_RUNS.intersection(cell.metadata.get("tags", ())):
                continue
            if cell.cell_type == "code":
                for output in cell.outputs:
                    _show_words(output, widgets)
                cell.outputs = [o for o in cell.outputs if o.output_type in ("stream", "display_data", "execute_result")
                                and o.get("name") != "stderr" and f"{WIDGET}view+json" not in o.get("data", {})]
            else:
                cell.source = re.sub(r"^## \d+\. ", "## ", NOT_READ.sub("", cell.source), flags=re.M)
            if cell.cell_type == "markdown" or cell.get("outputs"):
                page.cells.append(cell)
    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True,
                            mathjax_url="", require_js_url="")
    content, _ = exporter.from_notebook_node(page, {"metadata": {"name": f"segkit: {run_dir.name}"}})
    write_text(run_dir / "report.html", content)
    return run_dir / "report.html"


def _summary(run_dir: Path, used: dict[str, Any]) -> str:
    """Which run it is, how its training scored, what the results were made with, as Markdown.

    used: settings that the last notebook was executed with, before those of settings.json, which are the training's.
    """
    report, settings = (read_json(run_dir / name, "the run's file") if (run_dir / name).is_file() else {}
                        for name in ("report.json", "settings.json"))
    settings |= used
    try:
        model_path = parse_settings(settings, Settings(root=run_dir.parent.parent)).model_path
        trained = load_model(model_path, "cpu").info.settings
    except SegkitError:
        trained = {}
    lines = [f"# Run {html.escape(run_dir.name)}", f"Written {datetime.date.today()}."]
    if report:
        lines.append(f"Trained for {report['epochs']} epochs (best: {report['best_epoch']}) on {report['device']}: "
                     f"validation Dice {report['val_dice']:.3f}, panoptic quality "
                     f"{report['val_panoptic_quality']:.3f}, over whole frames cut into cells.")
    if trained:
        lines.append(html.escape(f"The results are of the model of run {trained.get('RUN')}, trained on the dataset "
                                 f"{trained.get('DATASET_PATH')}."))
    rows = [(name, value, trained.get(name, value)) for name, value in settings.items()]
    cells = "".join(f"<tr><td>{name}</td><td>{html.escape(str(value))}</td>"
                    f"<td>{html.escape(str(other)) if other != value else ''}</td></tr>"
                    for name, value, other in rows if value not in ("", None) or other not in ("", None))
    lines.append("<details><summary>Settings</summary><table><tr><th></th><th>of these results</th>"
                 f"<th>of the model's training, where other</th></tr>{cells}</table></details>")
    return "\n\n".join(lines)


def _show_words(output: Any, widgets: Mapping[str, Any]) -> None:
    """Make a widget of words (widgets.Facts) a text that needs no kernel, as the notebook remembers it."""
    view = output.get("data", {}).get(f"{WIDGET}view+json", {})
    widget = widgets.get(view.get("model_id"), {})
    if widget.get("model_name") == "HTMLModel":
        output.data = {"text/html": widget["state"].get("value", "")}


def table_of_runs(runs_dir: str | Path) -> pd.DataFrame:
    """One row per finished training under runs_dir, the newest first: data, main settings, scores, time, device."""
    rows = []
    for file in Path(runs_dir).glob("*/report.json"):
        try:
            report = json.loads(file.read_text(encoding="utf-8"))
            settings = json.loads((file.parent / "settings.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # a run that is being written, or was damaged: it is no row, and stays as it is
        rows.append({"run": file.parent.name, "dataset": Path(settings.get("DATASET_PATH", "")).name,
                     "epochs": report.get("epochs"), "learning rate": settings.get("LEARNING_RATE"),
                     "crop": settings.get("CROP"), "Dice": report.get("val_dice"),
                     "panoptic quality": report.get("val_panoptic_quality"), "minutes": report.get("seconds", 0) / 60,
                     "device": report.get("device"), "when": pd.Timestamp(file.stat().st_mtime, unit="s").round("min")})
    columns = ["run", "dataset", "epochs", "learning rate", "crop", "Dice", "panoptic quality", "minutes", "device",
               "when"]
    return pd.DataFrame(rows, columns=columns).sort_values("when", ascending=False, ignore_index=True)
