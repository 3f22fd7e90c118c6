"""The notebooks are paired, executed, small, and their stored outputs are compared with."""

import ast
import copy
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "notebooks").glob("0*.py"))
NAMES = [script.stem for script in SCRIPTS]


def stored(script):
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def test_all_six_are_there():
    assert NAMES == ["01_setup", "02_data_exploration", "03_training", "04_inference", "05_tracking", "06_growth"]


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_the_pair_is_in_step(script):
    def essence(cells):
        return [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in cells]
    assert essence(jupytext.read(script).cells) == essence(stored(script).cells)


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_it_is_stored_executed_without_errors_or_warnings(script):
    code = [c for c in stored(script).cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c.outputs]
    assert any(o.output_type in ("stream", "execute_result") for o in outputs)
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_it_is_light_and_names_no_machine(script):
    text = script.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert len(text) < 1e6
    for trace in (str(ROOT), str(Path.home()), "/home/", "PosixPath", "WindowsPath"):
        assert trace not in text, trace


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_cells_are_short_and_the_parameters_are_tagged(script):
    cells = stored(script).cells
    code = [c.source for c in cells if c.cell_type == "code"]
    assert max(source.count("\n") + 1 for source in code) <= 15
    assert max(len(line) for source in code for line in source.splitlines()) <= 100
    assert sum("parameters" in c.metadata.get("tags", []) for c in cells) == 1
    assert cells[0].source.startswith("# ")
    assert "On your own" in cells[-2].source
    assert cells[-1].metadata["tags"] == ["answers"]


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_one_cell_imports_and_segkit_offers_all_that_a_notebook_needs(script):
    cells = [ast.parse(c.source) for c in jupytext.read(script).cells if c.cell_type == "code"]
    imports = [[node for node in ast.walk(cell) if isinstance(node, ast.Import | ast.ImportFrom)] for cell in cells]
    assert imports[0]
    assert not any(imports[1:])
    modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports[0]}
    assert modules <= {"segkit", "segkit.notebook", "numpy", "pandas", "pathlib"}


def test_outputs_of_this_machine_are_shown_and_not_compared():
    shown = {c.source: c for script in SCRIPTS for c in jupytext.read(script).cells
             if "nbval-ignore-output" in c.metadata.get("tags", [])}
    for start in ("machine_report(", "settings_table(", "settings = form.settings", "table_of_runs("):
        assert any(source.startswith(start) for source in shown), start


def test_a_changed_stored_output_fails_the_run(tmp_path):
    notebook = stored(ROOT / "notebooks" / "02_data_exploration.py")
    cell = next(c for c in notebook.cells if "of them with masks" in str(c.get("outputs", "")))
    cell.source = f"print({cell.outputs[0].text!r}, end='')"  # at once what its own source prints
    changed = nbformat.from_dict(copy.deepcopy(cell) | {"id": "changed"})
    changed.outputs[0].text = changed.outputs[0].text.replace("72 images", "73 images")
    notebook.cells = [cell, changed]
    nbformat.write(notebook, tmp_path / "probe.ipynb")
    done = subprocess.run([sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider", "probe.ipynb"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    assert "73 images" in done.stdout


def test_environment_yml_is_in_step_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    assert f"python{project['requires-python']}" in conda
    assert pip[-1] == "-e .[test]"
    assert set(pip[:-1]) == {d for d in project["dependencies"] if d.startswith("torch")}
