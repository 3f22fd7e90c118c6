"""The module's parts import only what stands above them."""

import ast
from pathlib import Path

import pytest

import segkit

PACKAGE = Path(segkit.__file__).parent
ORDER = ("data", "model", "measure", "training", "notebook")  # the files beside them stand above all
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]


def imported(path):
    """What a file imports, as full names; also inside functions."""
    package = ["segkit", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


def rank(part):
    return ORDER.index(part) + 1 if part in ORDER else 0


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_imports_nothing_that_stands_below_it(path):
    parts = path.relative_to(PACKAGE).parts
    if parts[0] in ("__init__.py", "__main__.py"):
        return  # the public face and the command stand on everything
    own = rank(parts[0])
    below = [name for name in imported(path) if name.startswith("segkit.") and rank(name.split(".")[1]) > own]
    assert below == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_only_the_notebook_part_knows_how_things_are_shown(path):
    if path.relative_to(PACKAGE).parts[0] != "notebook":
        assert not [name for name in imported(path) if name.split(".")[0] in ("matplotlib", "ipywidgets")]
