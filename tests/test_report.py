"""The page that can be mailed, and the table of runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_output

from segkit import SegkitError, UNet
from segkit.files import write_json
from segkit.model.checkpoint import save_model
from segkit.notebook.report import table_of_runs, write_report
from segkit.notebook.widgets import LivePicture

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def test_the_report_shows_results_without_code(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for file in NOTEBOOKS.glob("0[46]*.ipynb"):
        shutil.copy(file, tmp_path / "notebooks")
    path = f"/data/{'long/' * 20}a&b"
    write_json(tmp_path / "settings.json", {"DATASET_PATH": path, "EPOCHS": 7, "EXCLUDE": ""})
    write_json(tmp_path / "report.json", {"epochs": 7, "best_epoch": 6, "device": "cpu", "val_dice": 0.98765,
                                          "val_panoptic_quality": 0.5})
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert f"Run {tmp_path.name}" in page
    assert "validation Dice 0.988, panoptic quality 0.500" in page
    assert f"<td>{path.replace('&', '&amp;')}</td>" in page
    assert "<th>EXCLUDE</th>" not in page
    assert page.count("data:image/png;base64,") >= 7
    assert "Measure growth" in page
    assert "segment_dataset(model" not in page
    assert "On your own" not in page
    assert "What you will do" not in page
    assert "6. Effect of the student" not in page
    assert "Effect of the student's errors on the rates" in page
    assert "Choose a position and a frame" not in page
    assert "run the notebook to see it" not in page


@pytest.mark.parametrize("other", [False, True])
def test_the_report_shows_the_settings_of_its_results_and_names_the_models_training(tmp_path, other):
    """A run segmented once more with another SCALE, and the model of a run over another dataset."""
    model, run = UNet(), tmp_path / "runs" / ("other" if other else "student")
    trained = {"RUN": "student", "DATASET_PATH": "/data/a<b", "EPOCHS": 250, "SCALE": 1.0, "MASKS_PATH": None,
               "EXCLUDE": "", "RESUME": False}
    removed = {"PROCESSES": 4}  # a setting of version 1.1
    model.info = replace(model.info, settings=trained | removed)
    save_model(model, tmp_path / "runs" / "student" / "model.safetensors")
    (run / "notebooks").mkdir(parents=True)
    used = {"RUN": run.name, "DATASET_PATH": "/data/c" if other else "/data/a<b", "EPOCHS": 20, "SCALE": 2.0,
            "MODEL": "student" if other else "", "MASKS_PATH": "", "EXCLUDE": "REF", "RESUME": False}
    write_json(run / "settings.json", used if other else trained)
    notebook = nbformat.v4.new_notebook(metadata={"papermill": {"parameters": used}})
    nbformat.write(notebook, run / "notebooks" / "04_inference.ipynb")
    page = " ".join(write_report(run).read_text(encoding="utf-8").split()).replace("> <", "><")
    assert "<th>SCALE</th><td>2.0</td><td>1.0</td>" in page
    assert "<th>EPOCHS</th><td>20</td><td>250</td>" in page
    assert "<th>EXCLUDE</th><td>REF</td><td>not set</td>" in page
    assert "<th>RESUME</th><td>False</td><td></td>" in page
    assert "MASKS_PATH" not in page
    assert "PROCESSES" not in page
    assert "of the model of run student, trained on the dataset /data/a&lt;b." in page
    assert ("<th>DATASET_PATH</th><td>/data/c</td><td>/data/a&lt;b</td>" in page) == other
    assert ("<th>DATASET_PATH</th><td>/data/a&lt;b</td><td></td>" in page) != other


def test_what_cells_print_and_their_tables_are_in_the_report_and_no_widget(tmp_path):
    (tmp_path / "notebooks").mkdir()
    outputs = (new_output("stream", text="validation Dice: 0.1234\n"),
               new_output("display_data", LivePicture(2)._repr_mimebundle_()))
    assert "run the notebook to see it" in outputs[1].data["text/plain"]
    notebook = nbformat.v4.new_notebook(cells=[new_code_cell("code", outputs=[output]) for output in outputs])
    nbformat.write(notebook, tmp_path / "notebooks" / "03_training.ipynb")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "validation Dice: 0.1234" in page
    assert "run the notebook to see it" not in page


def test_no_notebooks_no_report(tmp_path):
    with pytest.raises(SegkitError, match="no executed notebook"):
        write_report(tmp_path)


def test_runs_stand_side_by_side_and_a_damaged_one_is_left_out(tmp_path):
    for name, dice in (("a", 0.9), ("b", 0.8)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps({"val_dice": dice, "epochs": 5, "seconds": 60}))
        (tmp_path / name / "settings.json").write_text(json.dumps({"DATASET_PATH": "/data/x"}))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "report.json").write_text("{")
    table = table_of_runs(tmp_path)
    assert dict(zip(table["run"], table["Dice"], strict=True)) == {"a": 0.9, "b": 0.8}
    assert table["dataset"].unique().tolist() == ["x"]
    assert table_of_runs(tmp_path / "none").empty
