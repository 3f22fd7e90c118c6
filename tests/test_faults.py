import hashlib

import pytest
import torch

from segkit import discover, review_teacher, split_by_position
from segkit.training.frames import build_store
from tests.faults import FAULTS, make


def checksums(folder):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_said_costs_no_sound_pair_and_changes_no_file(tmp_path, name):
    folder, fault = make(tmp_path, name), FAULTS[name]
    before = checksums(folder)
    dataset = discover(folder)
    assert sum(f.position == "Pos101" for f in dataset.pairs) == fault.pairs
    assert sum(f.position == "Pos109" for f in dataset.pairs) == 3
    store, left_out = build_store(dataset.pairs, torch.device("cpu"), tmp_path / "cache")
    reasons = [*(p.reason for p in dataset.problems), *left_out.values()]
    if fault.words is None:
        assert reasons == []
    else:
        assert any(fault.words in reason for reason in reasons), reasons
        assert all(reason[-1] not in ".\n" and "\n" not in reason for reason in reasons)
    assert len(store.frames) == len(dataset.pairs) - len(left_out)
    assert len(review_teacher(dataset)) == len(dataset.pairs)
    if fault.pairs:
        split_by_position(dataset.pairs)
    assert checksums(folder) == before


def test_there_are_forty_faults():
    assert len(FAULTS) >= 40
