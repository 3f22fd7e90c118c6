from pathlib import Path

import pytest

from segkit import SegkitError, Settings
from segkit.notebook.report import dataset_verdict
from segkit.settings import STARTER, load_settings, parse_settings, save_form


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("SEGKIT_IGNORE_FORM", "SEGKIT_EPOCHS", "SEGKIT_DEVICE", "SEGKIT_START_FROM"):
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
    ("CROP", "a", "height x width"), ("RUN", "a/b", "a folder name without /"),
    ("RUN", "2024-01-01 12:30", "a folder name without /"), ("RUN", "a\tb", "a folder name without /"),
    ("DATASET_PATH", "", "give a folder"),
    ("SEED", "1e99", "from 0"), ("CROP", "\u00b2\u00b2", "height x width"), ("DATASET_PATH", "/", "RUN is empty")])
def test_a_wrong_value_names_setting_value_and_need(name, value, words):
    with pytest.raises(SegkitError, match=words if words.startswith("RUN") else rf"{name}.*{words}"):
        parse_settings({name: value})


def test_values_come_as_text_or_typed():
    settings = parse_settings({"EPOCHS": "2", "RESUME": "1", "VALIDATION": "01, 02", "CROP": "768x448",
                               "EXCLUDE": ["A/Pos1", "B/Pos2/3"], "MASKS_PATH": None})
    assert (settings.epochs, settings.resume, settings.validation) == (2, True, ("01", "02"))
    assert settings.crop_size() == (768, 448)
    assert settings.exclude == ("A/Pos1", "B/Pos2/3")
    assert parse_settings(settings.as_dict()) == settings


@pytest.mark.parametrize(("name", "value", "meant"), [
    ("epochs", "50", 50), ("epochs", 50.0, 50), ("learning_rate", "1e-3", 1e-3), ("resume", "yes", True),
    ("exclude", "REF/Pos1", ("REF/Pos1",)), ("validation", "09, 10", ("09", "10")), ("validation", ["09"], ("09",)),
    ("validation", (9, 10), ("9", "10")), ("crop", 128, "128"), ("dataset_path", "/data/a", Path("/data/a")),
    ("scale", "auto", "auto"), ("scale", "0.5", 0.5), ("scale", 2, 2.0),
    ("masks_path", "", None), ("model", Path("/runs/a"), "/runs/a"),
    ("conditions", "Experiment, drug_frame\nA, 6\n,\nB\n", "experiment,drug_frame\nA,6\n")])
def test_python_callers_may_give_text_as_well_as_typed_values(name, value, meant):
    settings = Settings(**{name: value})
    assert getattr(settings, name) == meant
    assert type(getattr(settings, name)) is type(meant) or isinstance(meant, Path)
    assert parse_settings({name.upper(): value}) == settings


@pytest.mark.parametrize(("name", "value"), [
    ("epochs", "many"), ("epochs", None), ("epochs", [1]), ("epochs", {}), ("scale", float("nan")),
    ("scale", "wide"),
    ("resume", "perhaps"),
    ("exclude", {"REF": "Pos1"}), ("exclude", [["REF"]]), ("dataset_path", None), ("dataset_path", ["/data/a"]),
    ("run", ["a"]), ("model", object())])
def test_what_cannot_be_meant_is_one_sentence_in_python_too(name, value):
    for make in (lambda: Settings(**{name: value}), lambda: parse_settings({name.upper(): value})):
        with pytest.raises(SegkitError, match=f"^{name.upper()} is"):
            make()


@pytest.mark.parametrize(("folder", "run"), [("2024-01-01 12:30", "2024-01-01 12-30"), ('a<b>"c|?*', "a-b--c---"),
                                             ("a{b}", "a{b}")])
def test_any_dataset_folder_gives_a_run_name_that_may_be_given_back(tmp_path, folder, run):
    settings = Settings(dataset_path=tmp_path / folder, root=tmp_path)
    assert settings.run == run
    assert parse_settings({"RUN": settings.run}, settings) == settings


def test_a_run_is_named_after_its_dataset_and_the_demo_demo(tmp_path):
    assert Settings(root=tmp_path).run == "demo"
    assert parse_settings({"DATASET_PATH": "/data/other set"}, Settings(root=tmp_path)).run == "other set"
    assert parse_settings({"DATASET_PATH": "/data/x", "RUN": "y"}, Settings(root=tmp_path)).run == "y"


def test_a_dataset_path_of_the_wrong_type_is_one_sentence_from_every_source(tmp_path):
    for path in (["/data/a"], {}, "~nobody/data"):
        with pytest.raises(SegkitError, match=r"^DATASET_PATH .*(text was needed|is not there)"):
            dataset_verdict(load_settings({"DATASET_PATH": path or {"a": 1}}, tmp_path))


def test_a_new_dataset_does_not_inherit_the_saved_runs_name(tmp_path):
    save_form(parse_settings({"DATASET_PATH": "/data/a", "RUN": "special"}, Settings(root=tmp_path)))
    assert load_settings(root=tmp_path).run == "special"
    assert load_settings({"DATASET_PATH": "/data/b"}, tmp_path).run == "b"


def test_relative_paths_mean_the_projects_root(tmp_path):
    assert Settings(dataset_path=Path("x/../y"), root=tmp_path).dataset_path == tmp_path / "y"


@pytest.mark.parametrize("content", ["{", "null", "[]"])
def test_a_damaged_form_gives_one_sentence(tmp_path, content):
    (tmp_path / "segkit.json").write_text(content)
    with pytest.raises(SegkitError, match="saved form"):
        load_settings(root=tmp_path)


def with_conditions(folder, text="experiment,drug_frame,minutes_per_frame\nREF,6,10\nRIF,7,\n"):
    folder.mkdir(exist_ok=True)
    (folder / "experiments.csv").write_text(text)
    return folder


def test_a_value_for_one_experiment_goes_before_a_value_for_all_and_the_forms_table_before_the_file(tmp_path):
    data = with_conditions(tmp_path / "data")
    settings = load_settings({"DATASET_PATH": data}, tmp_path)
    assert [settings.for_experiment(e).drug_frame for e in ("REF", "RIF", "other")] == [6, 7, 30]
    assert [settings.for_experiment(e).minutes_per_frame for e in ("REF", "RIF")] == [10, 2]
    settings = load_settings({"DATASET_PATH": data, "DRUG_FRAME": 4, "MINUTES_PER_FRAME": 3}, tmp_path)
    assert [settings.for_experiment(e).drug_frame for e in ("REF", "RIF", "other")] == [6, 7, 4]
    assert [settings.for_experiment(e).minutes_per_frame for e in ("REF", "RIF")] == [10, 3]
    save_form(parse_settings({"DATASET_PATH": data, "CONDITIONS": "experiment,drug_frame\nRIF,9\n"},
                             Settings(root=tmp_path)))
    settings = load_settings(root=tmp_path)
    assert [settings.for_experiment(e).drug_frame for e in ("REF", "RIF")] == [30, 9]
    assert parse_settings(settings.as_dict(), Settings(root=tmp_path)) == settings  # as settings.json records it


def test_a_cleared_table_stays_cleared_and_another_dataset_does_not_inherit_it(tmp_path):
    data = with_conditions(tmp_path / "data")
    save_form(parse_settings({"DATASET_PATH": data, "CONDITIONS": "", "EXCLUDE": "A/Pos1", "EPOCHS": 3},
                             Settings(root=tmp_path)))
    assert load_settings(root=tmp_path).conditions == ""
    other = load_settings({"DATASET_PATH": tmp_path / "other"}, tmp_path)
    assert (other.exclude, other.epochs) == ((), 3)


@pytest.mark.parametrize(("text", "words"), [("a,b\n1,2\n", "experiment and any of"),
                                             ("experiment,speed\nA,3\n", "speed"),
                                             ("experiment,drug_frame\nA,6,7\n", "longer rows"),
                                             ("experiment,drug_frame\nA,6\nB,6,7\n", "cannot be read .*line 3"),
                                             ("experiment,drug_frame\n,3\n", "row 2: a name in every row"),
                                             ("experiment,drug_frame\nA,3\nA,4\n", "row 3: a name in every row"),
                                             ("experiment,drug_frame\nA,many\n", "row A: DRUG_FRAME.*a whole number"),
                                             ("experiment,drug_frame\nA,-2\n", "row A: DRUG_FRAME.*from -1"),
                                             ("", "a table with commas")])
def test_a_table_of_experiments_that_cannot_be_read_is_named_with_the_row(tmp_path, text, words):
    with pytest.raises(SegkitError, match=rf"data/experiments\.csv.*{words}"):
        load_settings({"DATASET_PATH": with_conditions(tmp_path / "data", text)}, tmp_path)


@pytest.mark.parametrize("text", ["RIF", "RIF.DRUG_FRAME=3"])
def test_the_setting_of_version_1_1_names_what_replaced_it(tmp_path, monkeypatch, text):
    for make in (lambda: parse_settings({"EXPERIMENTS": text}), lambda: load_settings({"EXPERIMENTS": text}, tmp_path)):
        with pytest.raises(SegkitError, match=r"EXPERIMENTS is no longer a setting: .* experiments\.csv"):
            make()
    monkeypatch.setenv("SEGKIT_EXPERIMENTS", text)
    with pytest.raises(SegkitError, match="no longer a setting"):
        load_settings(root=tmp_path)


def test_an_experiment_that_the_dataset_lacks_is_named(tiny):
    settings = load_settings({"DATASET_PATH": with_conditions(tiny)}, tiny)
    with pytest.raises(SegkitError, match=r"experiments\.csv.*row RIF: the dataset has no such .*one of REF was"):
        dataset_verdict(settings)


def test_the_table_of_experiments_writes_into_the_form(tmp_path):
    from segkit.notebook.widgets import ExperimentsForm, SettingsForm
    from tests.helpers import FIXTURE
    form = SettingsForm(load_settings({"DATASET_PATH": FIXTURE}, tmp_path))
    table = ExperimentsForm(form)
    assert table.cells["RIF10", "drug_frame"].value == "6"  # the fixture's own experiments.csv
    table.cells["RIF10", "drug_frame"].value = "8"
    assert form.settings.for_experiment("RIF10").drug_frame == 8
    assert form.settings.for_experiment("REF").drug_frame == 6
    table.cells["RIF10", "drug_frame"].value = "many"
    assert "a whole number was needed" in form.message.value
    form.fields["DATASET_PATH"].value = "/nowhere"
    assert "appears when DATASET_PATH" in table.children[0].value


def test_the_table_of_one_dataset_does_not_hold_for_another(tmp_path, tiny):
    from segkit.notebook.widgets import ExperimentsForm, SettingsForm
    from tests.helpers import FIXTURE
    form = SettingsForm(load_settings({"DATASET_PATH": FIXTURE}, tmp_path), save=True)
    table = ExperimentsForm(form)
    assert "RIF10,10,6" in form.settings.conditions
    table.cells["RIF10", "drug_frame"].value = "4"
    form.fields["DATASET_PATH"].value = str(tiny)
    assert form.settings.conditions == ""
    assert {experiment for experiment, _ in table.cells} == {"REF"}
    form.save()
    assert load_settings(root=tmp_path).conditions == ""
    form.fields["DATASET_PATH"].value = str(FIXTURE)
    table.cells["RIF10", "drug_frame"].value = "4"
    form.save()
    for settings in (form.settings, load_settings(root=tmp_path)):
        assert [settings.for_experiment(e).drug_frame for e in ("REF", "RIF10")] == [6, 4]
        assert settings.for_experiment("RIF10").minutes_per_frame == 10


def test_a_saved_table_outlasts_other_edits_another_dataset_and_a_file_that_cannot_be_read(tmp_path, tiny):
    from segkit.notebook.widgets import SettingsForm
    from tests.helpers import FIXTURE
    with_conditions(tiny, "what,is\nthis,?\n")
    values = {"DATASET_PATH": tiny, "CONDITIONS": "experiment,drug_frame\nREF,5\n"}
    saved = parse_settings(values, Settings(root=tmp_path))
    form = SettingsForm(saved, save=True)
    assert "4 images" in form.message.value
    form.fields["MASKS_PATH"].value = str(tiny)
    assert form.settings.conditions == saved.conditions
    form.fields["DATASET_PATH"].value = str(FIXTURE)
    assert form.settings.for_experiment("REF").drug_frame == 6
    form.fields["DATASET_PATH"].value = f"{tiny}/"
    assert form.settings.conditions == saved.conditions
    form.save()
    assert "experiments.csv has columns what, is: experiment and any of" in form.saved.value
    (tiny / "experiments.csv").unlink()
    form.save()
    assert load_settings(root=tmp_path).for_experiment("REF").drug_frame == 5


def test_the_table_is_written_into_the_datasets_folder_at_the_press_of_a_button_only(tmp_path, tiny):
    from segkit.notebook.widgets import ExperimentsForm, SettingsForm
    form = SettingsForm(load_settings({"DATASET_PATH": tiny}, tmp_path), save=True)
    table = ExperimentsForm(form)
    table.cells["REF", "drug_frame"].value = "5"
    form.save()
    assert not (tiny / "experiments.csv").exists()
    assert load_settings(root=tmp_path).for_experiment("REF").drug_frame == 5
    table.write()
    assert (tiny / "experiments.csv").read_text() == "experiment,drug_frame\nREF,5\n"
    form.save()  # the same now: the form keeps no table of its own, so that the file may change
    with_conditions(tiny, "experiment,drug_frame\nREF,7\n")
    SettingsForm(load_settings(root=tmp_path), save=True).save()
    assert load_settings(root=tmp_path).for_experiment("REF").drug_frame == 7
    table.cells["REF", "drug_frame"].value = "many"
    table.write()
    assert "not written: CONDITIONS, row REF: DRUG_FRAME is many" in table._message.value


def test_the_same_folder_written_otherwise_keeps_its_saved_values(tmp_path):
    save_form(parse_settings({"DATASET_PATH": "/data/a", "VALIDATION": "03"}, Settings(root=tmp_path)))
    assert load_settings({"DATASET_PATH": "/data/a/"}, tmp_path).validation == ("03",)
    save_form(parse_settings({"EXCLUDE": "REF/Pos101"}, Settings(root=tmp_path)))
    assert load_settings({"DATASET_PATH": Settings(root=tmp_path).dataset_path}, tmp_path).exclude == ("REF/Pos101",)


def test_a_form_that_keeps_no_table_of_its_own_follows_the_file(tmp_path, tiny):
    from segkit.notebook.widgets import SettingsForm
    with_conditions(tiny, "experiment,drug_frame\nREF,5\n")
    form = SettingsForm(load_settings({"DATASET_PATH": tiny}, tmp_path), save=True)
    with_conditions(tiny, "experiment,drug_frame\nREF,7\n")
    form.save()
    assert form.settings.for_experiment("REF").drug_frame == 7
    assert load_settings(root=tmp_path).for_experiment("REF").drug_frame == 7


def test_starter_is_the_student_of_the_package_and_a_path_is_the_users_file(tmp_path):
    (tmp_path / "caller/starter").mkdir(parents=True)
    (tmp_path / "runs/starter").mkdir(parents=True)
    caller = tmp_path / "caller"
    named = {"DATASET_PATH": "starter", "MODEL": "starter", "START_FROM": "starter"}
    settings = load_settings(named, tmp_path, caller)
    assert settings.dataset_path == caller / "starter"
    assert settings.model_path == settings.find_model(settings.start_from) == STARTER
    own = load_settings({"MODEL": "./starter", "START_FROM": "runs/starter"}, tmp_path, caller)
    assert own.model_path == caller / "starter"
    assert own.find_model(own.start_from) == tmp_path / "runs/starter"


def test_trainings_start_from_the_starter_unless_start_from_is_empty(tmp_path, monkeypatch):
    assert load_settings(root=tmp_path).start_from == "auto"
    save_form(parse_settings({"START_FROM": ""}, Settings(root=tmp_path)))
    assert load_settings(root=tmp_path).start_from == ""
    monkeypatch.setenv("SEGKIT_START_FROM", "starter")
    assert load_settings(root=tmp_path).start_from == "starter"
    assert load_settings({"START_FROM": ""}, tmp_path).start_from == ""
