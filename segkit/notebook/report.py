"""A run as a page that can be mailed, its scores, and all runs side by side."""

import datetime
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import SegkitError
from ..files import read_json, read_table, write_text
from ..model.checkpoint import load_model
from ..settings import Settings

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
HANDS_ON = {"answers", "hands-on"}  # tags of cells for a reader who runs the notebook
NOT_REPORTED = re.compile(r"^\*\*(What you will do|What you need):.*?(\n\n|\Z)|^\*\*On your own\*\*.*", re.S | re.M)
REPORTED = ("02_data_exploration", "03_training", "04_inference", "05_growth")
RUN_COLUMNS = ("run", "dataset", "epochs", "learning rate", "crop", "Dice", "panoptic quality", "minutes", "device",
               "when")


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
    # the settings of the results: of the last notebook that papermill executed
    used = notebooks[-1].metadata.get("papermill", {}).get("parameters", {})
    cells = [nbformat.v4.new_markdown_cell(_summary(run_dir, used))]
    for cell in (cell for notebook in notebooks for cell in notebook.cells):
        if HANDS_ON.isdisjoint(cell.metadata.get("tags", ())) and _has_content(cell):
            cells.append(cell)
    # a page that needs no other file and no network
    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True,
                            mathjax_url="", require_js_url="")
    page = nbformat.v4.new_notebook(cells=cells)
    content, _ = exporter.from_notebook_node(page, {"metadata": {"name": f"segkit: {run_dir.name}"}})
    write_text(run_dir / "report.html", content)
    return run_dir / "report.html"


def _has_content(cell: Any) -> bool:
    """Reduce a cell to what a reader of results needs: no instructions, widgets or warnings; whether any is left."""
    if cell.cell_type == "markdown":
        cell.source = re.sub(r"^## \d+\. ", "## ", NOT_REPORTED.sub("", cell.source), flags=re.M)
        return True
    cell.outputs = [output for output in cell.outputs if output.output_type != "error"
                    and output.get("name") != "stderr" and WIDGET_VIEW not in output.get("data", {})]
    return bool(cell.outputs)


def _summary(run_dir: Path, used: Mapping[str, Any]) -> str:
    """Which run it is, how its training scored, what the results were made with, as Markdown.

    used: settings that the last notebook was executed with, before those of settings.json, which are the training's.
    """
    report, settings = (read_json(run_dir / name, "the run's file") if (run_dir / name).is_file() else {}
                        for name in ("report.json", "settings.json"))
    settings |= used
    # the settings of the model's own training, which may be of another run and dataset
    try:
        model = Settings(root=run_dir.parent.parent, run=run_dir.name, model=settings.get("MODEL") or "")
        trained = load_model(model.model_path, "cpu").info.settings
    except SegkitError:
        trained = {}
    # what is always known, then what a training has left
    lines = [f"# Run {html.escape(run_dir.name)}", f"Written {datetime.date.today()}."]
    if report:
        lines.append(f"Trained for {report['epochs']} epochs (best: {report['best_epoch']}) on {report['device']}: "
                     f"validation Dice {report['val_dice']:.3f}, panoptic quality "
                     f"{report['val_panoptic_quality']:.3f}, over whole frames segmented into cells.")
    if trained:
        lines.append(html.escape(f"The results are of the model of run {trained.get('RUN')}, trained on the dataset "
                                 f"{trained.get('DATASET_PATH')}."))
    # all settings that are set, beside those of the training where they differ
    rows = []
    for name, value in settings.items():
        other = trained.get(name, value)
        if value not in ("", None) or other not in ("", None):
            different = html.escape(str(other)) if other != value else ""
            rows.append(f"<tr><td>{name}</td><td>{html.escape(str(value))}</td><td>{different}</td></tr>")
    lines.append("<details><summary>Settings</summary><table><tr><th></th><th>of these results</th>"
                 f"<th>of the model's training, where other</th></tr>{''.join(rows)}</table></details>")
    return "\n\n".join(lines)


def read_scores(run_dir: str | Path, parts: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The run's scores.csv, with a column `part` where parts names one for each frame; empty without teacher labels."""
    path = Path(run_dir) / "scores.csv"
    scores = read_table(path) if path.is_file() else pd.DataFrame(columns=["experiment", "position", "frame"])
    if parts is not None:
        scores["part"] = [parts[f"{row.experiment}/{row.position}/{row.frame}"] for row in scores.itertuples()]
    return scores


def table_of_runs(runs_dir: str | Path) -> pd.DataFrame:
    """One row per finished training under runs_dir, the newest first: data, main settings, scores, time, device."""
    rows = []
    for file in Path(runs_dir).glob("*/report.json"):
        try:
            report, settings = (json.loads((file.parent / name).read_text(encoding="utf-8"))
                                for name in ("report.json", "settings.json"))
        except (OSError, ValueError):
            continue  # a run that is being written, or was damaged: it is no row, and stays as it is
        rows.append((file.parent.name, Path(settings.get("DATASET_PATH", "")).name, report.get("epochs"),
                     settings.get("LEARNING_RATE"), settings.get("CROP"), report.get("val_dice"),
                     report.get("val_panoptic_quality"), report.get("seconds", 0) / 60, report.get("device"),
                     pd.Timestamp(file.stat().st_mtime, unit="s").round("min")))
    table = pd.DataFrame(rows, columns=list(RUN_COLUMNS)).sort_values("when", ascending=False, ignore_index=True)
    return table.round({"Dice": 4, "panoptic quality": 4, "minutes": 1})
