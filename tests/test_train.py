"""Trainings of a few steps: enough to show what `fit` promises."""

import json
import math
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from segkit import SegkitError, Settings, UNet, discover, fit, load_model, segment_dataset, split_by_position
from segkit import settings as settings_module
from segkit.data.dataset import Frame, Split
from segkit.data.discovery import discover_split
from segkit.devices import in_parts
from segkit.measure.metrics import frame_parts
from segkit.model import unet as unet_module
from segkit.model.checkpoint import save_model
from segkit.model.unet import ModelInfo
from segkit.settings import DEMO, parse_settings
from segkit.training import losses as losses_module
from segkit.training import trainer as trainer_module
from segkit.training.distributed import ProcessGroup
from segkit.training.frames import build_store, prepare
from segkit.training.losses import validate_frames
from segkit.training.run_dir import load_checkpoint, open_run, save_checkpoint
from segkit.training.trainer import Trainer
from tests.helpers import squares, write


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    """Of a few thousand weights: what `fit` promises does not depend on their number, and the files are small."""
    monkeypatch.setattr(unet_module, "WIDTHS", (4, 4, 8, 8, 16))


def settings_for(tmp_path, **changes):
    values = {"DATASET_PATH": tmp_path, "RUN": "r", "EPOCHS": 2, "BATCH_SIZE": 2, "CROP": 16, "CROPS_PER_EPOCH": 4,
              "DEVICE": "cpu", "START_FROM": ""} | changes
    return parse_settings(values, Settings(root=tmp_path))


def train(tiny, **changes):
    settings = settings_for(tiny, **changes)
    model = UNet()
    history = fit(model, split_by_position(discover(tiny).pairs), settings)
    return model, history, settings


def untimed(history):
    return history.table().drop(columns=["seconds", "crops_per_second"])


def test_a_run_leaves_what_the_readme_says(tiny):
    _, history, settings = train(tiny)
    left = {p.name for p in settings.run_dir.iterdir()}
    assert left == {"settings.json", "split.json", "run.log", "history.csv", "model.safetensors", "MODEL_CARD.md",
                    "last.pt", "report.json"}
    assert len(history.rows) == 2
    assert len(pd.read_csv(settings.run_dir / "history.csv")) == 2
    report = json.loads((settings.run_dir / "report.json").read_text())
    assert set(report["val_dice_by_position"]) == {"REF Pos109"}
    assert report["val_dice"] < 0.9
    assert "this Dice is less than usual (above 0.9): more EPOCHS help" in (settings.run_dir / "run.log").read_text()
    assert json.loads((settings.run_dir / "split.json").read_text())["validation"] == ["REF/Pos109/0", "REF/Pos109/1"]
    info = load_model(settings.run_dir, "cpu").info
    assert (info.cell_width, info.min_area) == (9.0, 50)  # squares of 10: twice 5, less the edges; half their area
    assert torch.load(settings.run_dir / "last.pt", weights_only=True)["state"]["epoch"] == 2


def test_the_same_seed_trains_the_same_student_and_another_does_not(tiny):
    weights = [train(tiny, RUN=name, SEED=seed)[0].state_dict()["out.weight"] for name, seed in
               (("a", 1), ("b", 1), ("c", 2))]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_interrupted_run_resumes_and_ends_as_an_undisturbed_one(tiny):
    whole, history, _ = train(tiny, RUN="whole", EPOCHS=3)
    seen = []

    def interrupt(history):
        seen.append(len(history.rows))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(SegkitError, match="2 of 3 epochs are saved"):
        fit(UNet(), split_by_position(discover(tiny).pairs), settings_for(tiny, RUN="cut", EPOCHS=3), interrupt)
    again, resumed, _ = train(tiny, RUN="cut", EPOCHS=3, RESUME=1)
    pd.testing.assert_frame_equal(untimed(history), untimed(resumed))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_finished_run_is_not_overwritten_but_goes_on_with_more_epochs(tiny):
    train(tiny, EPOCHS=1)
    with pytest.raises(SegkitError, match="RESUME=1"):
        train(tiny, EPOCHS=1)
    _, history, _ = train(tiny, EPOCHS=2, RESUME=1)
    assert [row["epoch"] for row in history.rows] == [1, 2]


def test_fewer_epochs_than_are_trained_already_are_refused_and_as_many_end_the_run(tiny):
    def interrupt(history):
        if len(history.rows) == 3:
            raise KeyboardInterrupt

    with pytest.raises(SegkitError, match="3 of 5 epochs"):
        fit(UNet(), split_by_position(discover(tiny).pairs), settings_for(tiny, EPOCHS=5), interrupt)
    with pytest.raises(SegkitError, match=r"3 epochs of runs/r are trained already.*EPOCHS=2: set EPOCHS to 3"):
        train(tiny, EPOCHS=2, RESUME=1)
    _, _, settings = train(tiny, EPOCHS=3, RESUME=1)
    report = json.loads((settings.run_dir / "report.json").read_text())
    assert report["best_epoch"] <= report["epochs"] == 3


def test_a_history_that_was_changed_by_hand_is_written_again_from_the_checkpoint(tiny):
    _, _, settings = train(tiny, EPOCHS=1)
    table = settings.run_dir / "history.csv"
    table.write_text(table.read_text().replace(",", ";"))
    train(tiny, EPOCHS=2, RESUME=1)
    assert pd.read_csv(table)["epoch"].tolist() == [1, 2]


def test_resume_without_a_run_and_a_damaged_last_pt_are_named(tiny):
    with pytest.raises(SegkitError, match=r"no last\.pt"):
        train(tiny, RESUME=1)
    _, _, settings = train(tiny)
    for content in (b"half", bytes(1000), b"some text\n"):
        (settings.run_dir / "last.pt").write_bytes(content)
        with pytest.raises(SegkitError, match="START_FROM"):
            train(tiny, EPOCHS=3, RESUME=1)
    save_checkpoint({"model": {}, "average": {}, "optimiser": {}, "state": {}}, settings.run_dir)
    with pytest.raises(SegkitError, match=r"last\.pt is damaged: set another RUN, and START_FROM"):
        train(tiny, EPOCHS=3, RESUME=1)


@pytest.mark.parametrize(("error", "seen", "words"), [
    (PermissionError(13, "Permission denied"), SegkitError, r"last\.pt cannot be read \(Permission denied\)"),
    (MemoryError("no memory"), MemoryError, "no memory")])
def test_a_last_pt_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch, error, seen, words):
    def fail(*_, **__):
        raise error
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(seen, match=words):
        load_checkpoint(tmp_path)


def split_of(train, validation):
    """A split of frames that are nowhere, a letter for each position."""
    return Split(*(tuple(Frame(Path("i.tif"), Path("m.tif"), "REF", letter, 0) for letter in letters)
                   for letters in (train, validation)))


def test_a_resumed_run_is_judged_by_the_same_frames_as_before(tmp_path):
    settings, resumed = settings_for(tmp_path), settings_for(tmp_path, RESUME=1)
    open_run(split_of("AB", "C"), settings)
    state = {"average": {}, "optimiser": {}, "state": {"epoch": 1}}
    save_checkpoint({"model": {"out.bias": torch.zeros(2)}, **state}, settings.run_dir)
    with pytest.raises(SegkitError, match=r"is a training of version 1\.1, which cannot be resumed: set another RUN"):
        open_run(split_of("AB", "C"), resumed)
    save_checkpoint({"model": {"out.bias": torch.zeros(ModelInfo().outputs)}, **state}, settings.run_dir)
    open_run(split_of("AD", "C"), resumed)  # more to learn from is fine, and so is less
    before = (settings.run_dir / "split.json").read_text()
    for other in ("CA", "CB", "CD", "CF", "F"):
        with pytest.raises(SegkitError, match=r"validated on other frames, REF/[ABCDF]/0 .*START_FROM to this run"):
            open_run(split_of("E", other), resumed)
    assert (settings.run_dir / "split.json").read_text() == before


def test_only_the_bundled_demos_training_is_renewed(tmp_path):
    bundled = Settings(root=tmp_path)
    users = Settings(root=tmp_path, dataset_path=tmp_path / "data" / "demo")
    assert bundled.dataset_path == tmp_path / DEMO
    assert bundled.run == users.run == "demo"
    split, last = split_of("A", "B"), bundled.run_dir / "last.pt"
    open_run(split, bundled)
    last.touch()
    open_run(split, bundled)
    assert not last.exists()
    for before, after, words in ((bundled, users, "of another dataset, .*set RUN"),
                                 (users, bundled, "of another dataset, .*set RUN"),
                                 (users, users, "RESUME=1 continues.*another RUN")):
        open_run(split, before)
        last.touch()
        with pytest.raises(SegkitError, match=words):
            open_run(split, after)
        last.unlink()


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(tmp_path):
    save_checkpoint({"model": {}, "state": {"epoch": 1}}, tmp_path)
    before = (tmp_path / "last.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # no file grows beyond 1000 bytes
    try:
        with pytest.raises(SegkitError, match="free some disk space"):
            save_checkpoint({"model": {"weight": torch.zeros(1000)}, "state": {"epoch": 2}}, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.fixture
def four(tmp_path, rng):
    """Four positions of two frames, no two images alike: REF Pos101, Pos102, Pos103 and Pos109."""
    for position in ("Pos101", "Pos102", "Pos103", "Pos109"):
        add_position(tmp_path, rng, position)
    return tmp_path


def add_position(folder, rng, position, experiment="REF", frames=2):
    for k in range(frames):
        labels = squares((4, 4 + k), (20, 24))
        image = (np.where(labels > 0, 60, 160) + rng.integers(0, 9, labels.shape)).astype(np.uint8)
        write(folder / f"{experiment}_raw_data/{position}/aphase/img_{k:09d}.tiff", image)
        write(folder / f"{experiment}_masks/{position}/PreprocessedPhaseMasks/MASK_img_{k:09d}.tif",
              labels.astype(np.uint16))


def train_on(folder, **changes):
    """A training on what the settings give, with what it leaves."""
    settings = settings_for(folder, **{"DATASET_PATH": folder, "EPOCHS": 1} | changes)
    fit(UNet(), discover_split(settings), settings)
    return load_model(settings.run_dir, "cpu").info, (settings.run_dir / "MODEL_CARD.md").read_text()


def without_record(run_dir, **settings):
    """Make a run's model file one of version 1.1, which records nothing."""
    model = load_model(run_dir, "cpu")
    model.info = replace(model.info, trained_on={}, validated_on={}, fully_recorded=False,
                         settings=model.info.settings | settings)
    save_model(model, run_dir / "model.safetensors")


def test_a_model_file_names_the_images_that_it_was_trained_and_validated_on(four):
    info, card = train_on(four)
    assert list(info.trained_on) == ["REF/Pos101", "REF/Pos102", "REF/Pos103"]
    assert list(info.validated_on) == ["REF/Pos109"]
    assert len({h for record in (info.trained_on, info.validated_on) for hs in record.values() for h in hs}) == 8
    assert info.fully_recorded
    assert "of positions that it was not trained on" in card


def test_start_from_a_model_trained_on_validation_positions_is_refused(four):
    train_on(four, VALIDATION="103")
    with pytest.raises(SegkitError, match=r"trained on 1 of the validation positions \(REF/Pos109\): set VALIDATION"):
        train_on(four, RUN="b", START_FROM="r")
    assert not (four / "runs/b/last.pt").exists()
    info, card = train_on(four, RUN="c", START_FROM="r", VALIDATION="103", EXCLUDE="REF/Pos101,REF/Pos102")
    assert list(info.trained_on) == ["REF/Pos101", "REF/Pos102", "REF/Pos109"]  # what it started from was
    assert "of positions that it was not trained on" in card
    with pytest.raises(SegkitError, match=r"\(REF/Pos101\)"):  # over two generations
        train_on(four, RUN="d", START_FROM="c", VALIDATION="101")


def test_other_frames_of_a_position_that_was_trained_on_are_refused_too(four):
    train_on(four, VALIDATION="103", EXCLUDE="REF/Pos109/1")
    with pytest.raises(SegkitError, match=r"\(REF/Pos109\)"):
        train_on(four, RUN="b", START_FROM="r", EXCLUDE="REF/Pos109/0")


def test_images_decide_and_not_names_what_a_model_was_trained_on(four, rng, tmp_path_factory):
    train_on(four, VALIDATION="103")
    other, renamed = (tmp_path_factory.mktemp(name) for name in ("other", "renamed"))
    for folder in (other, renamed):
        add_position(folder, rng, "Pos102")
    add_position(other, rng, "Pos109")  # another laboratory's of the same name
    train_on(four, RUN="b", START_FROM="r", DATASET_PATH=other)
    add_position(renamed, rng, "Pos9", "NEW")
    for k, (image, mask) in enumerate(zip(sorted(four.glob("REF_raw_data/Pos109/*/*")),
                                          sorted(four.glob("REF_masks/Pos109/*/*")), strict=True)):
        write(renamed / f"NEW_raw_data/Pos9/aphase/img_{k:09d}.tiff", tifffile.imread(image).astype(np.uint16),
              compression="zlib")  # stored otherwise
        write(renamed / f"NEW_masks/Pos9/PreprocessedPhaseMasks/MASK_img_{k:09d}.tif", tifffile.imread(mask)[:-1])
    with pytest.raises(SegkitError, match=r"\(NEW/Pos9\)"):
        train_on(four, RUN="c", START_FROM="r", DATASET_PATH=renamed, VALIDATION="Pos9")


def test_black_frames_are_in_every_position_and_prove_nothing(four):
    for position in ("Pos103", "Pos109"):
        write(four / f"REF_raw_data/{position}/aphase/img_000000000.tiff", np.zeros((40, 48), np.uint8))
    train_on(four, VALIDATION="109", EXCLUDE="REF/Pos101")
    train_on(four, RUN="b", VALIDATION="109", START_FROM="r")


def test_what_a_file_of_version_1_1_was_trained_on_is_said_to_be_unknown(four, rng, tmp_path_factory):
    train_on(four, VALIDATION="103", EXCLUDE="REF/Pos101,REF/Pos102/1")
    without_record(four / "runs/r")
    for position in ("102", "109"):  # but for what its settings tell
        with pytest.raises(SegkitError, match=rf"trained on 1 of the validation positions \(REF/Pos{position}\)"):
            train_on(four, RUN="a", START_FROM="r", VALIDATION=position)
    other = tmp_path_factory.mktemp("other")
    for position in ("Pos101", "Pos109"):
        add_position(other, rng, position)
    for name, changes in (("b", {"VALIDATION": "101"}), ("c", {"VALIDATION": "103"}), ("d", {"DATASET_PATH": other})):
        info, card = train_on(four, RUN=name, START_FROM="r", **changes)
        log = (four / f"runs/{name}/run.log").read_text()
        assert log.count("was trained on is not known") == 1
        assert not info.fully_recorded
        assert "was not trained on" not in card
        assert "it is not known whether" in card
    assert "was not trained on" not in train_on(four, RUN="e", START_FROM="d", DATASET_PATH=other)[1]


def test_a_resumed_run_records_what_it_was_trained_on(four):
    train_on(four, EXCLUDE="REF/Pos101")
    info, card = train_on(four, EXCLUDE="REF/Pos102", RESUME=1, EPOCHS=2)
    assert list(info.trained_on) == ["REF/Pos101", "REF/Pos102", "REF/Pos103"]
    assert "was not trained on" in card
    path = four / "runs/r/last.pt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["state"]["record"]  # as version 1.1 wrote it
    save_checkpoint(checkpoint, path.parent)
    info, card = train_on(four, RESUME=1, EPOCHS=3)
    assert not info.fully_recorded
    assert "was not trained on" not in card
    assert "what this run was trained on before is not known" in (path.parent / "run.log").read_text()


def test_the_parts_of_a_dataset_are_those_of_the_model_and_not_of_the_settings(four, rng, tmp_path_factory):
    info, _ = train_on(four, VALIDATION="103", EXCLUDE="REF/Pos101,REF/Pos102/1")
    frames, settings = discover(four).frames, settings_for(four, DATASET_PATH=four)  # VALIDATION: 09 and others

    def parts(info, frames=frames, settings=settings):
        of_positions = {frame.unit: part for frame, part in zip(frames, frame_parts(info, frames, settings).values(),
                                                               strict=True)}
        return {position: part for (_, position), part in of_positions.items()}

    expected = {"Pos101": "other", "Pos102": "training", "Pos103": "validation", "Pos109": "training"}
    assert parts(info) == expected
    without_record(four / "runs/r")
    assert parts(load_model(four / "runs/r", "cpu").info) == dict.fromkeys(expected, "other")  # not known
    other = tmp_path_factory.mktemp("other")
    for position in ("Pos103", "Pos109"):  # another laboratory's
        add_position(other, rng, position)
    of_other = discover(other).frames
    for model in (info, load_model(four / "runs/r", "cpu").info, ModelInfo()):
        assert parts(model, of_other, settings_for(four, DATASET_PATH=other)) == {"Pos103": "other", "Pos109": "other"}


def test_frames_that_exclude_names_are_excluded_unless_the_model_was_trained_on_them(four):
    info, _ = train_on(four, EXCLUDE="REF/Pos101,REF/Pos102/1")
    frames = discover(four).frames
    settings = settings_for(four, DATASET_PATH=four, EXCLUDE="REF/Pos101,REF/Pos102,REF/Pos109/1")
    parts = frame_parts(info, frames, settings)
    assert {name.removeprefix("REF/"): part for name, part in parts.items()} == {
        "Pos101/0": "excluded", "Pos101/1": "excluded", "Pos102/0": "training", "Pos102/1": "excluded",
        "Pos103/0": "training", "Pos103/1": "training", "Pos109/0": "validation", "Pos109/1": "excluded"}


def test_copies_of_training_images_among_the_validations_are_said(tiny):
    *_, settings = train(tiny)  # its two positions are the same
    assert "REF/Pos109: images of these validation positions" in (settings.run_dir / "run.log").read_text()
    assert "was not trained on" not in (settings.run_dir / "MODEL_CARD.md").read_text()


def test_start_from_begins_with_another_runs_weights(tiny, rng):
    add_position(tiny, rng, "Pos109")
    first, _, _ = train(tiny)
    second, _, _ = train(tiny, RUN="second", START_FROM="r", LEARNING_RATE=1e-7, EPOCHS=1)
    for name, value in first.named_parameters():  # the running statistics are measured anew
        torch.testing.assert_close(value, second.get_parameter(name), atol=1e-4, rtol=0)


def test_start_from_a_model_with_other_outputs_is_refused(tiny, monkeypatch):
    save_model(UNet(ModelInfo(outputs=1)), tiny / "other.safetensors")
    with pytest.raises(SegkitError, match=r"START_FROM other\.safetensors predicts 1 maps .*, this model 10"):
        train(tiny, START_FROM="other.safetensors")


@pytest.fixture
def starter(tmp_path, monkeypatch):
    """A starter of the small network, and how to say what it was trained on."""
    path = tmp_path / "starter.safetensors"
    monkeypatch.setattr(settings_module, "STARTER", path)

    def write_starter(**records):
        torch.manual_seed(7)
        model = UNet(ModelInfo(fully_recorded=True, trained_on={"LAB/Pos1": ["0123"]} | records))
        save_model(model, path, half=True)
        return load_model(path, "cpu")
    return write_starter


def test_a_training_begins_with_the_starters_weights_and_adds_its_record(four, starter):
    weights = starter()
    settings = settings_for(four, DATASET_PATH=four, EPOCHS=1, LEARNING_RATE=1e-7, START_FROM=Settings().start_from)
    model = UNet()
    fit(model, discover_split(settings), settings)
    for name, value in weights.named_parameters():
        torch.testing.assert_close(value, model.get_parameter(name), atol=1e-4, rtol=0)
    assert list(model.info.trained_on) == ["LAB/Pos1", "REF/Pos101", "REF/Pos102", "REF/Pos103"]
    assert model.info.fully_recorded
    assert "starting from starter," in (settings.run_dir / "MODEL_CARD.md").read_text()
    info, card = train_on(four, EPOCHS=2, RESUME=1, START_FROM="auto")
    assert list(info.trained_on) == ["LAB/Pos1", "REF/Pos101", "REF/Pos102", "REF/Pos103"]
    assert "starting from starter," in card


def test_a_starter_that_was_trained_on_validation_frames_gives_way_to_random_weights(four, starter):
    scratch, _ = train_on(four)
    starter(**{"LAB/Pos2": scratch.validated_on["REF/Pos109"][:1]})
    info, card = train_on(four, RUN="b", START_FROM="auto")
    log = (four / "runs/b/run.log").read_text()
    assert log.count("the starter was trained on images of validation positions (REF/Pos109): the training starts from "
                     "random weights instead") == 1
    assert info.trained_on == scratch.trained_on
    assert "starting from random weights," in card
    first, second = (load_model(four / "runs" / run, "cpu").state_dict() for run in "rb")
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    info, card = train_on(four, RUN="b", START_FROM="auto", EPOCHS=2, RESUME=1)
    assert "starting from random weights," in card
    assert (four / "runs/b/run.log").read_text().count("the starter was trained") == 1
    for name in ("starter", "starter.safetensors"):  # the same file, asked for by name
        with pytest.raises(SegkitError, match=r"on 1 of the validation positions \(REF/Pos109\): set VALIDATION"):
            train_on(four, RUN="c", START_FROM=name)


def test_an_empty_start_from_means_random_weights(four, starter):
    starter()
    info, card = train_on(four, START_FROM="")
    assert "LAB/Pos1" not in info.trained_on
    assert "starting from random weights," in card


def test_a_loss_without_value_is_rolled_back_and_said(tiny, monkeypatch):
    real, calls = trainer_module.student_loss, []

    def sometimes_nan(output, target):
        calls.append(output.requires_grad)
        loss = real(output, target)
        return loss * float("nan") if sum(calls) == 3 and output.requires_grad else loss

    monkeypatch.setattr(trainer_module, "student_loss", sometimes_nan)
    _, history, settings = train(tiny, EPOCHS=3)
    assert sum(row["event"] == "" for row in history.rows) == 3
    assert len(history.events) == 1
    assert "nan" in history.events[0]
    assert json.loads((settings.run_dir / "report.json").read_text())["events"] == history.events
    assert np.isfinite([float(v.sum()) for v in load_model(settings.run_dir, "cpu").state_dict().values()]).all()


def test_a_divergence_right_after_resuming_goes_back_to_what_was_resumed(tiny, monkeypatch):
    train(tiny, EPOCHS=2)
    real, calls = trainer_module.student_loss, []

    def first_nan(output, target):
        calls.append(output)
        return real(output, target) * (math.nan if len(calls) == 1 else 1)

    monkeypatch.setattr(trainer_module, "student_loss", first_nan)
    _, history, settings = train(tiny, EPOCHS=3, RESUME=1)
    assert [event[-24:] for event in history.events] == [": rolled back to epoch 2"]
    assert history.epoch == json.loads((settings.run_dir / "report.json").read_text())["epochs"] == 3
    assert [row["epoch"] for row in history.rows if not row["event"]] == [1, 2, 3]


@pytest.mark.parametrize(("course", "event", "kept"), [
    ([(1.0, 0.4), (0.5, 0.1), (math.nan, 0.1), (0.8, 0.4), (0.7, 0.4), (0.6, 0.4), (0.6, 0.4)], "rolled back",
     [1.0, 0.5]),
    ([(0.2, 0.0), (0.1, 0.0), (0.1, 0.0), (0.1, 0.0), (0.1, 0.0), (0.6, 0.4), (0.5, 0.4), (0.7, 0.4), (0.7, 0.4),
      (0.7, 0.4)], "restarted", [0.2, 0.1, 0.6, 0.5])])
def test_the_best_epoch_is_the_one_whose_weights_were_kept_last(tiny, monkeypatch, course, event, kept):
    left, saved = iter(course), []
    monkeypatch.setattr(Trainer, "train_epoch", lambda self, data, progress, on_step: (1.0, 0.5))
    monkeypatch.setattr(trainer_module, "validate", lambda model, store, group: (*next(left), []))
    monkeypatch.setattr(trainer_module, "save_model", lambda model, path: (
        saved.append(model.info.scores["val_loss"]), save_model(model, path)))
    _, history, _ = train(tiny, EPOCHS=5, CROPS_PER_EPOCH=100)  # 50 steps an epoch
    assert [event in said for said in history.events] == [True]
    assert saved == kept
    assert history.best["val_loss"] == kept[-1]


def test_a_training_that_never_works_stops_after_three_tries(tiny, monkeypatch):
    monkeypatch.setattr(trainer_module, "student_loss", lambda output, target: output.sum() * float("nan"))
    with pytest.raises(SegkitError, match="diverged 4 times"):
        train(tiny)


def test_frames_of_many_sizes_and_smaller_than_the_crop_train(tiny):
    write(tiny / "REF_raw_data/Pos101/aphase/img_000000002.tiff", np.full((20, 33), 90, np.uint8))
    write(tiny / "REF_masks/Pos101/PreprocessedPhaseMasks/MASK_img_000000002.tif",
          squares((3, 3), shape=(20, 33)).astype(np.uint16))
    _, history, settings = train(tiny, CROP="768x448")
    assert len(history.rows) == 2
    assert "crops of 32 x 32" in (settings.run_dir / "run.log").read_text()


def test_a_folder_that_cannot_be_written_gives_one_sentence(tiny):
    (tiny / "runs").write_text("a file where the folder should be")
    with pytest.raises(SegkitError, match="cannot write"):
        train(tiny)


def test_every_frame_is_segmented_written_measured_and_loads_back_as_masks(tiny):
    from segkit import read_labels
    for mask in (tiny / "REF_masks/Pos101").rglob("*.tif"):
        mask.unlink()
    dataset = discover(tiny)
    path = segment_dataset(UNet(), dataset.frames, tiny / "out", pixel_size_um=0.1)
    assert path == tiny / "out" / "cells.csv"
    again = discover(tiny, tiny / "out" / "masks")
    assert len(again.pairs) == 4
    labels = read_labels(again.pairs[0].masks)
    cells = pd.read_csv(path)
    assert ((cells["frame"] == 0) & (cells["position"] == "Pos101")).sum() == labels.max()
    assert len(pd.read_csv(tiny / "out" / "scores.csv")) == 2


def test_a_split_with_nothing_left_to_read_stops(tiny):
    split = split_by_position(discover(tiny).pairs)
    for frame in split.train:
        frame.image.write_bytes(b"")
    with pytest.raises(SegkitError, match="none of 2 pairs"):
        fit(UNet(), Split(split.train, split.validation), settings_for(tiny))


def test_a_validation_frame_that_cannot_be_decoded_is_left_out_and_the_others_judge(tiny):
    split = split_by_position(discover(tiny).pairs)
    image = split.validation[0].image
    image.write_bytes(image.read_bytes()[:-300])
    settings = settings_for(tiny)
    fit(UNet(), split, settings)
    assert f"left out {image}" in (settings.run_dir / "run.log").read_text()
    assert (settings.run_dir / "report.json").is_file()
    name, said = split.validation[0].name, json.loads((settings.run_dir / "split.json").read_text())
    assert said["validation"] == [split.validation[1].name]
    assert image.name in said["excluded"][name]
    fit(UNet(), split, settings_for(tiny, RESUME=1, EPOCHS=3))  # judged by the same frames as before


def test_a_damaged_page_costs_its_own_frame_only(tiny):
    raw, masks = tiny / "REF_raw_data/Pos109/aphase", tiny / "REF_masks/Pos109/PreprocessedPhaseMasks"
    for path in (*raw.iterdir(), *masks.iterdir()):
        path.unlink()
    noise = np.random.default_rng(0).integers(0, 255, (3, 40, 48), np.uint8)
    stack = write(raw / "lapse.tif", noise, photometric="minisblack", compression="zlib")
    write(masks / "MASK_lapse.tif", np.stack([squares((4, 4)).astype(np.uint8)] * 3), photometric="minisblack")
    with tifffile.TiffFile(stack) as file:
        start = file.pages[1].dataoffsets[0]
    content = bytearray(stack.read_bytes())
    content[start:start + 400] = bytes(400)
    stack.write_bytes(content)
    split = split_by_position(discover(tiny).pairs)
    training_data = prepare(split, settings_for(tiny), ProcessGroup("cpu"))
    assert [frame.name for frame in training_data.validation.frames] == ["REF/Pos109/0", "REF/Pos109/2"]


def test_each_frame_of_a_group_has_its_own_validation_loss(tiny, monkeypatch):
    store, _ = build_store(discover(tiny).pairs, torch.device("cpu"), tiny)
    trainer = Trainer(UNet(), settings_for(tiny), ProcessGroup("cpu"))
    trainer.initialise(0.3)
    model, device = trainer.ema_model.eval(), torch.device("cpu")
    alone = validate_frames(model, store, device)[0]
    monkeypatch.setattr(losses_module, "_batches_of_one_size", lambda store, batch_size: [[0, 1, 2, 3]])  # on a GPU
    assert validate_frames(model, store, device)[0] == pytest.approx(alone, rel=1e-5)
    assert len(set(alone)) == 2  # two positions with the same two frames


class SmallMemory:
    """A GPU's memory that holds so many pictures at once, before a network."""

    def __init__(self, network, pictures):
        self.network, self.pictures, self.seen = network, pictures, []

    def __call__(self, batch):
        if len(batch) > self.pictures:
            raise torch.OutOfMemoryError
        self.seen.append(len(batch))
        return self.network(batch)


def test_a_batch_beyond_the_gpus_memory_is_said_with_what_to_do(tiny):
    trainer = Trainer(UNet(), settings_for(tiny, BATCH_SIZE=4), ProcessGroup("cpu"))
    trainer.initialise(0.3)
    trainer.network = SmallMemory(trainer.model, 0)
    with pytest.raises(SegkitError, match=r"4 crops of 32 x 32 do not fit .* set a smaller BATCH_SIZE"):
        trainer.train_step(torch.rand(4, 1, 32, 32), torch.zeros(4, 1, 32, 32))


def test_pictures_beyond_the_gpus_memory_are_answered_in_parts():
    batch, memory = torch.rand(5, 1, 32, 48), SmallMemory(torch.neg, 2)
    assert torch.equal(in_parts(memory, batch), -batch)
    assert memory.seen == [2, 1, 2]
    with pytest.raises(SegkitError, match="32 x 48 pixels does not fit into the GPU's memory: set DEVICE=cpu"):
        in_parts(SmallMemory(torch.neg, 0), batch)


def test_the_weights_kept_are_those_of_the_lowest_validation_loss(tiny):
    _, history, settings = train(tiny, EPOCHS=4, LEARNING_RATE=0.02)
    sound = [row for row in history.rows if not row["event"]]
    assert history.best["val_loss"] == min(row["val_loss"] for row in sound)
    assert json.loads((settings.run_dir / "report.json").read_text())["best_epoch"] == history.best["epoch"]
