"""`make run` without a browser: bad input ends with one sentence and exit code 1."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from papermill.exceptions import PapermillExecutionError

from segkit import SegkitError, UNet, discover, split_by_position
from segkit.data.discovery import discover_split
from segkit.model.checkpoint import save_model
from segkit.notebook.headless import TRAIN_AND_MEASURE, _Output, main
from segkit.notebook.plots import show_pictures
from segkit.notebook.report import dataset_verdict, settings_table, training_estimate
from segkit.notebook.widgets import Browser, ExperimentsForm, SettingsForm, browser
from segkit.settings import STARTER, Settings, check_whose_run, load_settings, parse_settings, record_settings
from segkit.training.run_dir import open_run, save_checkpoint
from tests.helpers import FIXTURE, write
from tests.notebook_settings import SETTINGS

ROOT = Path(__file__).parents[1]


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_an_unknown_setting_stops_before_anything_runs(capsys):
    assert main(["EPOCH=3"]) == 1
    assert last_line(capsys) == "segkit stopped: unknown setting EPOCH: did you mean EPOCHS?"
    assert main(["epochs=3"]) == 1
    assert last_line(capsys) == "segkit stopped: unknown setting epochs: did you mean EPOCHS?"
    for name, shown in (("zzz", "zzz"), ("", "(without a name)")):
        assert main([f"{name}=3"]) == 1
        assert last_line(capsys).startswith(f"segkit stopped: unknown setting {shown}: the settings are DATASET_PATH, ")
    assert main(["EPOCHS"]) == main(["run", "DEVICE=cpu", "EPOCHS"]) == 1
    assert "EPOCHS is unknown: run, segment or train was needed, then settings as NAME=value" in last_line(capsys)
    assert main(["train", "EPOCH=3"]) == 1
    assert "did you mean EPOCHS?" in last_line(capsys)


def test_a_students_results_are_not_replaced_by_another_students(tmp_path, monkeypatch, capsys):
    models = ("runs/other/model.safetensors", "runs/data/model.safetensors")
    for path in ("notebooks/01_setup.py", *models):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    write(tmp_path / "data/img_1.tif", np.zeros((40, 48), np.uint8))
    monkeypatch.chdir(tmp_path)
    assert main(["segment", "MODEL=runs/other", "DATASET_PATH=data"]) == 1
    assert "runs/data holds another student's training" in last_line(capsys)
    assert not (tmp_path / "runs" / "data" / "notebooks").exists()


@pytest.fixture
def project(tiny, monkeypatch):
    """A project's folder with a dataset, whose notebooks run to their end at once."""
    def execute(source, target, **options):
        Path(str(target).format()).write_text(json.dumps(options["parameters"]))  # papermill formats paths, too
    for folder in ("data", "notebooks"):
        (tiny / folder).mkdir()
    for name in ("01_setup.py", *(f"{name}.ipynb" for name in TRAIN_AND_MEASURE)):
        (tiny / "notebooks" / name).touch()
    for folder in tiny.glob("REF_*"):
        folder.rename(tiny / "data" / folder.name)
    monkeypatch.chdir(tiny)
    monkeypatch.setattr("papermill.execute_notebook", execute)
    monkeypatch.setattr("segkit.notebook.headless.write_report", lambda run_dir: None)
    return tiny


def test_make_run_names_what_is_assumed(project, capsys):
    assert main(["DATASET_PATH=data", "DRUG_FRAME=7"]) == 0
    said = capsys.readouterr().out
    assert "assumed, please check: PIXEL_SIZE_UM=0.0733, MINUTES_PER_FRAME=2.0, REFERENCE=REF\n" in said
    assert not (project / "runs/data/settings.json").exists()  # the training writes it


def test_what_the_cells_print_and_log_is_printed_in_the_terminal_and_figures_are_not(project, monkeypatch, capsys,
                                                                                    caplog):
    monkeypatch.undo()
    monkeypatch.chdir(project)
    monkeypatch.setattr("segkit.notebook.headless.write_report", lambda run_dir: None)
    cells = ["# parameters",
             "print('epoch 1/2', end='\\r', flush=True)\nprint('epoch 2/2  100 % ', end='\\r', flush=True)",
             "from IPython.display import Image\nImage(b'\\x89PNG', format='png')",
             "with open(f'runs/{RUN}/run.log', 'a') as file: print('noon  epoch 1\\nnoon  left out', file=file)",
             "if RUN == 'bad':\n    from segkit import SegkitError\n    raise SegkitError('EPOCHS is 0')"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
                                        metadata={"kernelspec": kernel})
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, project / "notebooks/04_inference.ipynb")
    for name in ("05_tracking", "06_growth"):
        shutil.copy(project / "notebooks/04_inference.ipynb", project / f"notebooks/{name}.ipynb")
    save_model(UNet(), project / "runs/student/model.safetensors")
    assert main(["segment", "DATASET_PATH=data", "MODEL=student"]) == 0
    said = capsys.readouterr()
    assert said.err == caplog.text == ""  # papermill warns of settings that a notebook does not name
    assert "\r" not in said.out  # in a file each epoch is a line
    lines = said.out.splitlines()
    assert lines[1].startswith("assumed, please check")
    assert lines[2:6] == ["04_inference ...", "epoch 1/2", "epoch 2/2  100 % ", "  noon  left out"]
    assert lines[6].startswith("04_inference done in")
    assert main(["segment", "DATASET_PATH=data", "MODEL=student", "RUN=bad"]) == 1
    assert last_line(capsys) == "segkit stopped: 04_inference: EPOCHS is 0"


@pytest.mark.parametrize(("terminal", "expected"), [(False, "a\nb\nc\n"), (True, "a\rb\rc\n")])
def test_a_line_is_written_over_in_a_terminal_only(monkeypatch, capsys, terminal, expected):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    for text in ("a\r", "b\r", "", "c\n"):
        _Output().write(text)
    assert capsys.readouterr().out == expected


def test_help_lists_commands_and_settings_and_an_unknown_command_is_one_sentence(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "segkit segment [NAME=value ...]" in said
    assert "EPOCHS             number of training epochs" in said
    assert main(["measure", "EPOCHS=2"]) == 1
    assert "measure EPOCHS=2 is unknown: run, segment or train was needed" in last_line(capsys)


@pytest.mark.parametrize("command", [[], ["segment", "MODEL=student"]])
def test_make_takes_the_dataset_from_the_environment_seen_from_the_callers_folder(project, monkeypatch, command):
    (project / "caller").mkdir()
    save_model(UNet(), project / "runs/student/model.safetensors")
    (project / "data").rename(project / "caller" / "data")
    monkeypatch.setenv("SEGKIT_CALLER", str(project / "caller"))
    monkeypatch.setenv("SEGKIT_DATASET_PATH", "data")
    monkeypatch.setenv("SEGKIT_VALIDATION", "109")
    assert main(command) == 0
    given = json.loads((project / "runs/data/notebooks/04_inference.ipynb").read_text())
    assert (given["DATASET_PATH"], given["VALIDATION"]) == (str(project / "caller" / "data"), "109")
    monkeypatch.setenv("SEGKIT_DATASET_PATH", "nowhere")
    assert main([*command, "DATASET_PATH=data"]) == 0  # what is typed goes before the environment


def test_without_a_dataset_make_means_the_demo_whatever_the_form_says(project, monkeypatch, capsys):
    monkeypatch.delenv("SEGKIT_IGNORE_FORM")
    (project / "segkit.json").write_text(json.dumps({"DATASET_PATH": str(project / "data")}))
    assert main([]) == 1
    assert f"DATASET_PATH {project}/tests/fixture is not there" in last_line(capsys)


def test_what_is_cleared_on_the_command_line_is_cleared_in_the_notebooks(project, monkeypatch):
    monkeypatch.delenv("SEGKIT_IGNORE_FORM")
    (project / "segkit.json").write_text(json.dumps({"DATASET_PATH": str(project / "data"), "MASKS_PATH": "/other"}))
    assert main(["DATASET_PATH=data", "MASKS_PATH="]) == 0
    given = json.loads((project / "runs/data/notebooks/02_data_exploration.ipynb").read_text())
    assert load_settings(given).masks_path is None


def test_a_runs_name_may_hold_braces(project):
    assert main(["DATASET_PATH=data", "RUN=a{b} {}"]) == 0
    assert (project / "runs/a{b} {}/notebooks/06_growth.ipynb").is_file()


def test_a_full_disk_ends_in_one_sentence_and_leaves_the_last_notebook_whole(project, monkeypatch, capsys):
    assert main(["DATASET_PATH=data"]) == 0
    before = (project / "runs/data/notebooks/01_setup.ipynb").read_text()

    def execute(source, target, **options):
        Path(target).write_text("{ half of it")
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("papermill.execute_notebook", execute)
    assert main(["DATASET_PATH=data"]) == 1
    assert "01_setup.ipynb (No space left on device): free some disk space" in last_line(capsys)
    assert (project / "runs/data/notebooks/01_setup.ipynb").read_text() == before
    assert not list((project / "runs").rglob("*.part"))


def test_the_notebook_that_stopped_is_kept_with_its_error(project, monkeypatch, capsys):
    def execute(source, target, **options):
        Path(target).write_text("stopped here")
        raise PapermillExecutionError(0, 1, "", "SegkitError", "EPOCHS is 0", [])
    monkeypatch.setattr("papermill.execute_notebook", execute)
    assert main(["DATASET_PATH=data"]) == 1
    assert last_line(capsys) == "segkit stopped: 01_setup: EPOCHS is 0"
    assert (project / "runs/data/notebooks/01_setup.ipynb").read_text() == "stopped here"
    (project / "notebooks/01_setup.ipynb").unlink()
    monkeypatch.setattr("segkit.notebook.headless.files", lambda name: None)  # an installation may hold notebooks
    assert main(["DATASET_PATH=data"]) == 1
    assert "01_setup.ipynb: run this in the project's folder" in last_line(capsys)


def test_a_training_that_is_there_stops_a_second_before_anything_is_replaced(project, capsys):
    (project / "runs/data/notebooks").mkdir(parents=True)
    (project / "runs/data/last.pt").touch()
    assert main(["DATASET_PATH=data"]) == 1
    reason = last_line(capsys)
    assert "runs/data holds a training already: RESUME=1 continues it, a finished one with more EPOCHS" in reason
    (project / "runs/data/last.pt").unlink()
    assert main(["DATASET_PATH=data", "RESUME=1"]) == 1
    assert "holds no last.pt" in last_line(capsys)
    assert [path.name for path in (project / "runs/data").iterdir()] == ["notebooks"]


def test_make_segment_keeps_what_was_asked(project):
    save_model(UNet(), project / "runs/student/model.safetensors")
    assert main(["segment", "DATASET_PATH=data", "MODEL=runs/student", "MINUTES_PER_FRAME=5"]) == 0
    assert json.loads((project / "runs/data/settings.json").read_text())["MINUTES_PER_FRAME"] == 5


def test_make_segment_without_a_model_uses_the_starter_and_leaves_a_trained_student_alone(project, capsys):
    assert main(["segment", "DATASET_PATH=data"]) == 0
    given = json.loads((project / "runs/data/notebooks/04_inference.ipynb").read_text())
    assert given["MODEL"] == json.loads((project / "runs/data/settings.json").read_text())["MODEL"] == "starter"
    save_model(UNet(), project / "runs/data/model.safetensors")
    assert main(["segment", "DATASET_PATH=data"]) == 1
    assert f"set another RUN, or MODEL to {project}/runs/data/model.safetensors" in last_line(capsys)
    assert main(["segment", "DATASET_PATH=data", "MODEL=runs/data"]) == 0


def test_a_run_without_a_model_is_segmented_with_the_starter(project):
    settings = load_settings({"DATASET_PATH": "data"})
    assert settings.model_path == STARTER
    save_model(UNet(), settings.run_dir / "model.safetensors")
    assert settings.model_path == settings.run_dir
    source = (ROOT / "notebooks/04_inference.py").read_text()
    assert source.index("if settings.model_path == STARTER:\n    print(") < source.index("= segment_dataset(")


def test_make_run_on_images_without_masks_names_the_command_that_segments_them(project, capsys):
    shutil.rmtree(project / "data/REF_masks")
    assert main(["DATASET_PATH=data"]) == 1
    assert "make segment DATASET_PATH=..." in last_line(capsys)
    assert not (project / "runs").exists()


@pytest.mark.parametrize("first", ["segment", "trained"])
@pytest.mark.parametrize("second", [["segment", "MODEL="], ["segment", "MODEL=runs/student"], [], ["RESUME=1"]])
def test_results_are_not_replaced_by_those_of_another_dataset_with_the_same_folder_name(project, capsys, first, second):
    save_model(UNet(), project / "runs/student/model.safetensors")
    shutil.copytree(project / "data", project / "b" / "data")
    if first == "segment":
        assert main(["segment", "DATASET_PATH=data", "MODEL=runs/student"]) == 0
        (project / "runs/data/cells.csv").touch()
    else:
        open_run(discover_split(parse_settings({"DATASET_PATH": "data"})), parse_settings({"DATASET_PATH": "data"}))
        save_checkpoint({}, project / "runs/data")
        save_model(UNet(), project / "runs/data/model.safetensors")
    before = {path: path.read_bytes() for path in (project / "runs/data").rglob("*") if path.is_file()}
    assert main([*second, "DATASET_PATH=b/data"]) == 1
    said = last_line(capsys)
    assert f"runs/data holds the results of another dataset, {project}/data: set RUN to another name" in said
    assert f"only moved, write its new path as DATASET_PATH into {project}/runs/data/settings.json" in said
    assert {path: path.read_bytes() for path in (project / "runs/data").rglob("*") if path.is_file()} == before
    assert main(["segment", "MODEL=runs/student", "DATASET_PATH=b/data", "RUN=b"]) == 0


def test_a_dataset_that_was_moved_keeps_its_run_as_the_sentence_says(project, capsys):
    save_model(UNet(), project / "runs/student/model.safetensors")
    segment = ["segment", "MODEL=runs/student"]
    assert main([*segment, "DATASET_PATH=data"]) == 0
    (project / "link").mkdir()
    (project / "link/data").symlink_to(project / "data")
    assert main([*segment, "DATASET_PATH=data/../link/data"]) == 0  # the same folder under another name
    (project / "runs/data/masks").mkdir()
    (project / "data").rename(project / "link/moved")
    assert main([*segment, "DATASET_PATH=link/moved", "RUN=data"]) == 1
    file = project / "runs/data/settings.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"DATASET_PATH": str(project / "link/moved")}))
    assert main([*segment, "DATASET_PATH=link/moved", "RUN=data"]) == 0


def test_a_notebook_opened_by_hand_says_in_the_runs_folder_whose_results_it_holds(project):
    settings = load_settings({"DATASET_PATH": "data", "MODEL": "student"})
    record_settings(settings)  # as 04_inference does before it segments
    (settings.run_dir / "masks").mkdir()
    other = load_settings({"DATASET_PATH": "b/data", "MODEL": "student"})
    with pytest.raises(SegkitError, match="of another dataset"):
        check_whose_run(other)
    source = (ROOT / "notebooks/04_inference.py").read_text()
    assert source.index("check_whose_run(settings)") < source.index("\nrecord_settings(settings)") < \
        source.index("= segment_dataset(")
    for name, writes in (("02_data_exploration", "write_table("), ("05_tracking", "= link_dataset("),
                         ("06_growth", "= measure_growth(")):
        source = (ROOT / f"notebooks/{name}.py").read_text()
        assert source.index("\ncheck_dataset(settings)") < source.index(writes)


@pytest.mark.parametrize(("arguments", "words"), [
    (["DATASET_PATH=data", "VALIDATION=77"], "no validation position"), (["DATASET_PATH=dat"], "dat is not there"),
    (["segment", "DATASET_PATH=data", "MODEL=runs/none"], "no trained model at .*none"),
    (["DATASET_PATH=data", "EXCLUDE=REF/Pos7"], "EXCLUDE names REF/Pos7")])
def test_what_is_wrong_is_said_before_a_folder_is_made(project, capsys, arguments, words):
    assert main(arguments) == 1
    assert re.search(words, last_line(capsys))
    assert not (project / "runs").exists()


needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


def make(folder, *arguments, caller=None):
    """What `make ARGUMENTS` in a folder with a fake Python says, called in another folder: exit code and lines."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/python").write_text('#!/bin/sh\necho "caller=$SEGKIT_CALLER"\nfor a; do echo "$a"; done\n')
    (folder / "bin/python").chmod(0o755)
    (folder / "pyproject.toml").touch()
    caller = caller or folder
    # as a user calls it: what was given to the make that runs the tests (PRECISION=float32) is not handed on
    inherited = {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "PRECISION"}
    environment = {name: value for name, value in os.environ.items() if name not in inherited} | {"PWD": str(caller)}
    done = subprocess.run(["make", "-s", "-f", ROOT / "Makefile", "-C", folder, *arguments], cwd=caller,
                          env=environment, capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).splitlines()


@needs_make
@pytest.mark.parametrize("name", ["REF (1); false", "a$b$$c $(HOME)", "a`touch touched`b", 'a"b\'c\\d #1'])
def test_make_hands_values_and_the_callers_folder_on_as_they_are(tmp_path, name):
    (tmp_path / name).mkdir()
    code, said = make(tmp_path, "-o", "install", "segment", f"BIN={tmp_path}/bin", f"DATASET_PATH={tmp_path / name}",
                      "EPOCHS=3", caller=tmp_path / name)
    assert said == [f"caller={tmp_path / name}", "-m", "segkit", "segment",
                    *sorted([f"DATASET_PATH={tmp_path / name}", "EPOCHS=3"], key=said.index)]
    assert code == 0
    assert not list(tmp_path.rglob("touched"))


@needs_make
@pytest.mark.parametrize("arguments", [["lint"], ["clean"]])
def test_make_removes_no_environment_that_it_has_not_made(tmp_path, arguments):
    own = tmp_path / "my env"
    (own / "bin").mkdir(parents=True)
    (own / "thesis.txt").touch()
    _, said = make(tmp_path, *arguments, f"VENV={own}", f"LOWEST={own}", "PYTHON=false")
    assert f"{own} is left as it is: make has not made it (no .made-by-segkit in it)" in said
    assert (own / "thesis.txt").is_file()


@needs_make
def test_make_removes_the_environment_that_it_has_made_also_where_that_was_interrupted(tmp_path):
    maker = tmp_path / "python3"  # of its environments pip does not work
    maker.write_text('#!/bin/sh\nmkdir -p "$3/bin" && printf \'#!/bin/sh\\ntest "$2" != pip\' > "$3/bin/python" && '
                     'chmod +x "$3/bin/python" && touch "$3/made_$(ls "$3" | wc -l)"\n')  # python3 -m venv FOLDER
    maker.chmod(0o755)
    for _ in range(2):
        code, _ = make(tmp_path, "lint", f"PYTHON={maker}")
        assert code != 0
        assert {path.name for path in (tmp_path / ".venv").iterdir()} == {".made-by-segkit", "bin", "made_1"}
    make(tmp_path, "clean")
    assert not (tmp_path / ".venv").exists()


def test_a_wrong_dataset_path_ends_make_run_with_the_reason(tmp_path):
    done = subprocess.run([sys.executable, "-m", "segkit", "DATASET_PATH=nowhere", "RUN=demo"],
                          env=os.environ | SETTINGS | {"SEGKIT_CALLER": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    reason = done.stderr.strip().splitlines()[-1]
    assert reason.startswith(f"segkit stopped: DATASET_PATH {tmp_path}/nowhere is not there")


def only_validation(tiny):
    (tiny / "REF_raw_data" / "Pos101").rename(tiny / "REF_raw_data" / "Pos119")
    (tiny / "REF_masks" / "Pos101").rename(tiny / "REF_masks" / "Pos119")


def no_validation(tiny):
    (tiny / "REF_raw_data" / "Pos109").rename(tiny / "REF_raw_data" / "Pos102")
    (tiny / "REF_masks" / "Pos109").rename(tiny / "REF_masks" / "Pos102")


def no_masks(tiny):
    (tiny / "REF_masks").rename(tiny / "other")


def no_experiment(tiny):
    (tiny / "REF_raw_data").rename(tiny / "pictures")


@pytest.mark.parametrize(("spoil", "words"), [
    (no_experiment, "no experiment"), (no_masks, "no pair"), (only_validation, "no training position"),
    (no_validation, "no validation position")])
def test_the_form_says_what_is_wrong_with_a_dataset(tiny, spoil, words):
    spoil(tiny)
    settings = parse_settings({"DATASET_PATH": tiny}, Settings())
    with pytest.raises(SegkitError, match=words):
        dataset_verdict(settings)
    assert words in SettingsForm(settings, verdict=dataset_verdict).message.value


def test_an_unreadable_image_and_a_mask_of_another_size_are_counted_in_the_verdict(tiny):
    (tiny / "REF_raw_data/Pos101/aphase/img_000000000.tiff").write_bytes(b"")
    assert "3 images, 3 with masks" in dataset_verdict(parse_settings({"DATASET_PATH": tiny}, Settings()))
    verdict = dataset_verdict(parse_settings({"DATASET_PATH": tiny}, Settings()))
    assert "1 problem(s), 1 frame(s) lost: img_000000000.tiff is empty (0 bytes)" in verdict
    write(tiny / "REF_masks/Pos109/PreprocessedPhaseMasks/MASK_img_000000000.tif", np.zeros((20, 20), np.uint8))
    assert "2 problem(s), 2 frame(s) lost" in dataset_verdict(parse_settings({"DATASET_PATH": tiny}, Settings()))
    assert any("40 x 48 pixels, its masks file 20 x 20" in line for line in discover(tiny).problem_summary())


def test_the_form_changes_saves_and_resets(tmp_path, tiny, monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "root").mkdir()
    form = SettingsForm(Settings(root=tmp_path / "root"), verdict=dataset_verdict, save=True)
    assert "not there" in form.message.value
    form.fields["DATASET_PATH"].value = str(tiny)
    assert "4 images" in form.message.value
    assert form.fields["RUN"].placeholder == form.settings.run == tiny.name
    assert form.fields["RUN"].value == ""
    form.fields["EPOCHS"].value = 7
    form.save()
    saved = load_settings(root=tmp_path / "root")
    assert (saved.dataset_path, saved.epochs) == (tiny, 7)
    form.reset()
    assert not (tmp_path / "root" / "segkit.json").exists()
    assert form.fields["EPOCHS"].value == 20


@pytest.fixture
def scans(monkeypatch):
    """Every scan of a dataset by the forms and their sentences."""
    seen = []
    for module in ("segkit.notebook.widgets", "segkit.notebook.report"):
        monkeypatch.setattr(f"{module}.discover", lambda *folders: seen.append(folders) or discover(*folders))
    return seen


def test_the_forms_scan_a_dataset_once_for_what_changed(tmp_path, tiny, scans):
    shutil.copytree(tiny, tmp_path / "root/data")
    form = SettingsForm(load_settings({"DATASET_PATH": FIXTURE}, tmp_path / "root"), verdict=dataset_verdict, save=True)
    table = ExperimentsForm(form)

    def change(name, value):
        scans.clear()
        form.fields[name].value = value
        return len(scans)
    assert len(scans) == 1
    assert [change("EPOCHS", 7), change("VALIDATION", "109"), change("DRUG_FRAME", 5)] == [0, 0, 0]
    assert change("DATASET_PATH", "data") == 1  # the form, its sentence and the table together
    assert {experiment for experiment, _ in table.cells} == {"REF"}
    assert change("MASKS_PATH", str(tiny)) == 1
    scans.clear()
    form.reset()
    assert len(scans) == 1
    assert "not there" in form.message.value  # this root holds no demo
    assert "appears when" in table.children[0].value
    training = SettingsForm(load_settings({"DATASET_PATH": tiny}, tmp_path / "root"), {"Training": ("EPOCHS",)},
                            verdict=training_estimate)
    scans.clear()
    training.fields["EPOCHS"].value = 9
    assert scans == []
    assert "steps in all" in training.message.value


@pytest.mark.parametrize("look", ["Save", "another form"])
def test_a_folder_that_was_repaired_is_seen_at_save_and_in_a_new_form(tiny, look):
    def new_form():
        return SettingsForm(load_settings({"DATASET_PATH": tiny}, tiny), verdict=dataset_verdict, save=True)
    (tiny / "REF_masks").rename(tiny / "later")
    form = new_form()
    assert "no pair" in form.message.value
    (tiny / "later").rename(tiny / "REF_masks")
    if look == "Save":
        form.save()
        assert "are saved" in form.saved.value
    else:
        form = new_form()
    assert "4 images, 4 with masks" in form.message.value


def test_another_dataset_does_not_take_over_the_run_of_the_saved_form_and_keeps_one_that_was_typed(tmp_path, tiny):
    form = SettingsForm(load_settings({"DATASET_PATH": FIXTURE, "RUN": "mine"}, tmp_path))
    assert form.fields["RUN"].value == form.settings.run == "mine"
    form.fields["DATASET_PATH"].value = str(tiny)
    assert form.fields["RUN"].value == ""
    assert form.settings.run == form.fields["RUN"].placeholder == tiny.name
    form.fields["RUN"].value = "typed"
    form.fields["DATASET_PATH"].value = str(FIXTURE)
    assert form.settings.run == "typed"


def test_a_value_out_of_range_is_one_sentence_below_the_form(tmp_path):
    form = SettingsForm(load_settings({"DATASET_PATH": FIXTURE}, tmp_path))
    form.fields["EPOCHS"].value = 0
    assert "EPOCHS is 0: a value from 1 to 100000 was needed" in form.message.value


def test_widgets_store_no_machine_in_a_notebook(tiny):
    assert "/" not in repr(SettingsForm(parse_settings({"DATASET_PATH": tiny}, Settings())))
    table = settings_table(Settings())
    assert table.loc["DATASET_PATH", "value"] == os.path.join("tests", "fixture")


def test_the_browser_follows_its_controls(tiny):
    seen = []
    class Listening(Browser):
        def draw(self, frame, *shown):
            seen.append((frame.name, *shown))
            return show_pictures([], [])
    box = Listening(discover(tiny), Settings(root=tiny))
    position, frame = box.children[0].children
    teacher, contrast = box.children[1].children
    frame.index = 1
    teacher.value = False
    contrast.value = 2.0
    position.value = "REF Pos109"
    assert seen[:4] == [("REF/Pos101/0", True, 1.0), ("REF/Pos101/1", True, 1.0), ("REF/Pos101/1", False, 1.0),
                        ("REF/Pos101/1", False, 2.0)]
    assert seen[-1][0].startswith("REF/Pos109")


def test_the_browser_shows_teacher_and_student_and_names_what_cannot_be_read(tiny):
    settings = Settings(root=tiny, dataset_path=tiny)
    box = browser(discover(tiny), settings)
    assert bytes(box.children[2].value).startswith(b"\x89PNG")
    box = browser(discover(tiny), settings, student=True)  # nothing is segmented yet
    assert bytes(box.children[2].value) == b""
    assert "REF/Pos101/0" in box.children[3].value
    shutil.copytree(tiny / "REF_masks", settings.run_dir / "masks" / "REF_masks")
    box.children[0].children[1].index = 1
    assert bytes(box.children[2].value).startswith(b"\x89PNG")


def test_a_segkit_error_shows_one_sentence_in_a_notebook(tiny):
    try:
        split_by_position([])
    except SegkitError as error:
        shown = error._render_traceback_()
    assert len(shown) == 1
    assert shown[0].startswith("SegkitError: no pair")
