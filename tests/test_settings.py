from pathlib import Path

import pytest

from segkit import SegkitError, Settings
from segkit.settings import parse_settings
from segkit.sources import load_settings, save_form


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("SEGKIT_IGNORE_FORM", "SEGKIT_EPOCHS", "SEGKIT_DEVICE"):
        monkeypatch.delenv(name, raising=False)


def test_precedence_defaults_form_environment_parameters(tmp_path, monkeypatch):
    assert load_settings(root=tmp_path).epochs == 20
    save_form(parse_settings({"EPOCHS": 3, "BATCH_SIZE": 4}, Settings(root=tmp_path)))
    assert load_settings(root=tmp_path).epochs == 3
    monkeypatch.setenv("SEGKIT_EPOCHS", "5")
    assert load_settings(root=tmp_path).epochs == 5
    settings = load_settings({"EPOCHS": 7, "RUN": None, "unrelated": 1}, tmp_path)
    assert (settings.epochs, settings.batch_size) == (7, 4)
    monkeypatch.setenv("SEGKIT_IGNORE_FORM", "1")
    assert load_settings(root=tmp_path).batch_size == 16


def test_an_unknown_name_is_an_error_that_guesses(tmp_path, monkeypatch):
    with pytest.raises(SegkitError, match="did you mean EPOCHS"):
        parse_settings({"EPOCH": 3})
    monkeypatch.setenv("SEGKIT_EPOCHES", "3")
    with pytest.raises(SegkitError, match="EPOCHES"):
        load_settings(root=tmp_path)


@pytest.mark.parametrize(("name", "value", "words"), [
    ("EPOCHS", "many", "a whole number"), ("EPOCHS", "2.5", "a whole number"), ("EPOCHS", 0, "from 1"),
    ("LEARNING_RATE", "x", "a number"), ("RESUME", "perhaps", "1 or 0"), ("CROP", "8x8", "at least 16"),
    ("CROP", "a", "height x width"), ("RUN", "a/b", "plain folder name"), ("DATASET_PATH", "", "give a folder"),
    ("SEED", "1e99", "from 0")])
def test_a_wrong_value_names_setting_value_and_need(name, value, words):
    with pytest.raises(SegkitError, match=rf"{name}.*{words}"):
        parse_settings({name: value})


def test_values_come_as_text_or_typed():
    settings = parse_settings({"EPOCHS": "2", "RESUME": "1", "VALIDATION": "01, 02", "CROP": "768x448",
                               "EXCLUDE": ["A/Pos1", "B/Pos2/3"], "MASKS_PATH": None})
    assert (settings.epochs, settings.resume, settings.validation) == (2, True, ("01", "02"))
    assert settings.crop_size() == (768, 448)
    assert settings.exclude == ("A/Pos1", "B/Pos2/3")
    assert parse_settings(settings.as_dict()) == settings


def test_a_run_is_named_after_its_dataset_and_the_demo_demo(tmp_path):
    assert Settings(root=tmp_path).run == "demo"
    assert parse_settings({"DATASET_PATH": "/data/other set"}, Settings(root=tmp_path)).run == "other set"
    assert parse_settings({"DATASET_PATH": "/data/x", "RUN": "y"}, Settings(root=tmp_path)).run == "y"


def test_a_new_dataset_does_not_inherit_the_saved_runs_name(tmp_path):
    save_form(parse_settings({"DATASET_PATH": "/data/a", "RUN": "special"}, Settings(root=tmp_path)))
    assert load_settings(root=tmp_path).run == "special"
    assert load_settings({"DATASET_PATH": "/data/b"}, tmp_path).run == "b"


def test_relative_paths_mean_the_projects_root(tmp_path):
    assert Settings(dataset_path=Path("x/../y"), root=tmp_path).dataset_path == tmp_path / "y"


def test_a_damaged_form_gives_one_sentence(tmp_path):
    (tmp_path / "segkit.json").write_text("{")
    with pytest.raises(SegkitError, match="saved form"):
        load_settings(root=tmp_path)
