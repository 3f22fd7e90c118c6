"""The project's own files agree with each other: packages, citation, pre-commit."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_an_installation_holds_every_sub_package_and_its_types():
    folders = sorted((ROOT / "segkit").rglob("__init__.py"))
    names = [".".join(path.parent.relative_to(ROOT).parts) for path in folders]
    setuptools = PYPROJECT["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(names)
    assert setuptools["package-data"] == {"segkit": ["py.typed", "starter.safetensors", "training/model_card.md"]}
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


def test_a_wheel_holds_the_notebooks_and_the_types(tmp_path):
    pytest.importorskip("setuptools", "77.0.3")
    for name in ("segkit", "notebooks", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).symlink_to(ROOT / name)  # the build writes beside what it reads
    build = "import setuptools.build_meta as backend; print(backend.build_wheel('dist'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wheel, = (tmp_path / "dist").glob("*.whl")
    names = [name.partition(".data/data/")[2] or name for name in zipfile.ZipFile(wheel).namelist()]
    notebooks = {f"share/segkit/notebooks/{path.name}" for path in (ROOT / "notebooks").glob("0*.ipynb")}
    assert notebooks | {"segkit/py.typed", "segkit/starter.safetensors", "segkit/training/trainer.py",
                        "segkit/training/model_card.md"} <= set(names)
