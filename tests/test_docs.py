"""The documentation: links and anchors lead somewhere, and what it lists is what the code has."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import segkit
from segkit.settings import load_settings, public_fields

ROOT = Path(__file__).parent.parent
DOCS, NOTEBOOKS = ROOT / "docs", ROOT / "notebooks"
SITE_PAGES = sorted(DOCS.glob("*.md"))
PAGES = [*SITE_PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "segkit/README.md",
                                                 "benchmarks/README.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
INCLUDE = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)
OF_MAKE = {"TORCH", "PYTHON", "DATA", "PLAIN_BATCHES", "FRAMES", "STEPS", "NAME"}  # set in commands, and no settings


def text_of(page: Path) -> str:
    """A page with what it includes."""
    return INCLUDE.sub(lambda found: (ROOT / found[1]).read_text(encoding="utf-8"), page.read_text(encoding="utf-8"))


def without_code(text: str) -> str:
    """The text without blocks and spans of code, which hold no links."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]+`", lambda span: span[0].strip("`").replace("[", "").replace("]", ""), text)


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts and MkDocs make them, and of its API entries."""
    text = without_code(text_of(page))
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE))


def links_of(page: Path) -> list[str]:
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page)))
    return [link for link in links if not link.startswith(("https://", "http://"))]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_and_anchors_lead_somewhere(page):
    lost = []
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if page.parent == DOCS and path.startswith("notebooks/"):
            target = ROOT / path  # where docs/add_notebooks.py takes them from
        if not target.is_file() or (anchor and anchor not in anchors_of(target)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("page", SITE_PAGES, ids=[page.name for page in SITE_PAGES])
def test_a_page_of_the_site_links_only_within_the_site(page):
    outside = [link for link in links_of(page) if link.startswith("..")]
    assert outside == []


def test_the_check_of_links_finds_a_lost_one(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A heading\n\n[here](#a-heading) [lost](#nothing) [`gone`](gone.md) `[no](link.md)`\n")
    assert links_of(page) == ["#a-heading", "#nothing", "gone.md"]
    assert anchors_of(page) == {"a-heading"}


def test_the_readme_has_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_page_and_notebook_is_in_the_navigation_once():
    def leaves(entry):
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [leaf for part in parts for leaf in leaves(part)]
    navigation = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    notebooks = [f"notebooks/{path.name}" for path in NOTEBOOKS.glob("0*.ipynb")]
    assert sorted(navigation) == sorted([page.name for page in SITE_PAGES] + notebooks)


def test_the_api_page_has_every_public_name_once():
    entries = re.findall(r"^::: segkit\.(\S+)$", text_of(DOCS / "api.md"), flags=re.MULTILINE)
    assert sorted(entries) == sorted(segkit.__all__)


def test_the_settings_page_has_every_setting_once():
    rows = re.findall(r"^\| ([A-Z_]+) \|", text_of(DOCS / "settings.md"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(field.name.upper() for field in public_fields())


def test_the_example_of_a_table_of_experiments_is_read(tmp_path):
    example = re.search(r"^    (experiment,.*?)\n\n", text_of(DOCS / "data.md"), flags=re.MULTILINE | re.DOTALL)[1]
    (tmp_path / "experiments.csv").write_text("\n".join(line.strip() for line in example.splitlines()))
    settings = load_settings({"DATASET_PATH": tmp_path}, tmp_path)
    treated = settings.for_experiment("RIF10")
    assert (treated.pixel_size_um, treated.minutes_per_frame, treated.drug_frame) == (0.1, 10, 6)
    assert settings.for_experiment("REF").pixel_size_um == settings.pixel_size_um


def test_the_map_of_the_module_has_every_file_once():
    package = Path(segkit.__file__).parent
    files = [path.stem for path in package.rglob("*.py") if path.stem != "__init__"]
    rows = re.findall(r"^\| `(\w+)` \|", text_of(package / "README.md"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(files)


def test_the_example_in_the_readme_uses_public_names():
    example = re.search(r"```python\n(.*?)```", text_of(ROOT / "README.md"), flags=re.DOTALL)[1]
    used = {node.attr for node in ast.walk(ast.parse(example))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "segkit"}
    assert used
    assert used <= set(segkit.__all__)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_name_targets_and_settings_that_exist(page):
    targets = set(re.findall(r"^([a-z][\w -]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    targets = {target for line in targets for target in line.split()}
    commands = re.findall(r"(?:\bmake|\bsegkit run|\bsegkit segment|-m segkit\.training)[^`\n]*", text_of(page))
    settings = {field.name.upper() for field in public_fields()}
    for command in commands:
        if target := re.match(r"make ([a-z-]+)( |$)(?=[A-Z ]|$)", command):
            assert target[1] in targets, command
        assert set(re.findall(r"\b([A-Z_]{2,})=", command)) - settings <= OF_MAKE, command


def test_the_site_builds_without_a_warning(tmp_path):
    needed = ("mkdocs", "material", "mkdocs_jupyter", "mkdocstrings_handlers")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        pytest.skip(f"the extra docs is not installed (no {missing[0]}): pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/notebooks/06_growth.html").is_file()
