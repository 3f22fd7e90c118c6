"""What `make lint` says of the package's limits: it holds them, and each limit that is broken is found."""

import pytest

from tests import structure


def test_the_package_holds_its_limits():
    assert structure.violations() == []


@pytest.mark.parametrize(("content", "words"), [
    ("from ..training.trainer import fit\n",
     "segkit/model/x.py imports segkit.training.trainer, which stands after it"),
    ("import matplotlib.pyplot\n", "segkit/model/x.py imports matplotlib.pyplot: only notebook does"),
    ("x = 1\n" * 451, "segkit/model/x.py has 451 lines, more than 450"),
    ("def f():\n" + "    x = 1\n" * 50, "segkit/model/x.py: f has 51 lines, more than 50")])
def test_what_breaks_a_limit_is_named(tmp_path, monkeypatch, content, words):
    (tmp_path / "segkit" / "model").mkdir(parents=True)
    (tmp_path / "segkit" / "model" / "x.py").write_text(content)
    (tmp_path / "pyproject.toml").write_bytes((structure.ROOT / "pyproject.toml").read_bytes())
    monkeypatch.setattr(structure, "ROOT", tmp_path)
    assert words in structure.violations(tmp_path / "segkit")


def test_only_code_counts():
    source = '"""Docstring."""\n\n# comment\nx = (1,\n     2)\n\n\ndef f():\n    """More."""\n    return x  # why\n'
    assert structure.code_lines(source, structure.ast.parse(source)) == 4
