"""The project's own files agree with each other: packages, citation, pre-commit."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_an_installation_holds_every_sub_package_and_its_types():
    folders = sorted((ROOT / "segkit").rglob("__init__.py"))
    names = [".".join(path.parent.relative_to(ROOT).parts) for path in folders]
    setuptools = PYPROJECT["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(names)
    assert setuptools["package-data"] == {"segkit": ["py.typed"]}
    assert (ROOT / "segkit/py.typed").is_file()


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = PYPROJECT["project"]
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert citation["license"] == project["license"]


def test_pre_commit_runs_what_make_lint_runs_and_downloads_nothing():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert [(hook["entry"], hook["language"]) for hook in repos[0]["hooks"]] == [("make lint", "system")]
