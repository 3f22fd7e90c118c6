"""The limits of the package: `python -m tests.structure`, a part of `make lint`.

Sub-packages import only what stands before them; only `notebook` imports matplotlib and ipywidgets; code lines, files,
lines of a file and of a function, and comments stay within the budget of pyproject.toml.
"""

import ast
import io
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ORDER = ("data", "model", "measure", "training", "notebook")  # the files beside them stand before all
SPACE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def imported(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """Full names of the modules that a file imports, also inside functions; package: that of the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


def wrong_imports(path: Path, tree: ast.AST) -> Iterator[str]:
    def rank(part: str) -> int:
        return ORDER.index(part) + 1 if part in ORDER else 0

    parts = path.relative_to(ROOT).parts
    if path.name in ("__init__.py", "__main__.py") and len(parts) == 2:
        return  # the public face and the command import everything
    for name in imported(tree, list(parts[:-1])):
        if name.startswith("segkit.") and rank(name.split(".")[1]) > rank(parts[1]):
            yield f"{path.relative_to(ROOT)} imports {name}, which stands after it"
        if name.split(".")[0] in ("matplotlib", "ipywidgets") and parts[1] != "notebook":
            yield f"{path.relative_to(ROOT)} imports {name}: only notebook does"


def code_lines(source: str, tree: ast.AST) -> int:
    """Lines that hold anything but a comment, a docstring or nothing."""
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            docstrings |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SPACE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def violations(package: Path = ROOT / "segkit") -> list[str]:
    """What breaks a limit, in sentences."""
    budget = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["segkit"]["budget"]
    found, code, comments = [], 0, 0
    files = sorted(package.rglob("*.py"))
    for path in files:
        source = path.read_text(encoding="utf-8")
        tree, name, lines = ast.parse(source), path.relative_to(ROOT), source.splitlines()
        code += code_lines(source, tree)
        comments += sum(line.lstrip().startswith("#") for line in lines)
        found += wrong_imports(path, tree)
        if len(lines) > budget["file_lines"]:
            found.append(f"{name} has {len(lines)} lines, more than {budget['file_lines']}")
        found += [f"{name}: {node.name} has {length} lines, more than {budget['function_lines']}"
                  for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
                  and (length := (node.end_lineno or 0) - node.lineno + 1) > budget["function_lines"]]
    modules = sum(path.name != "__init__.py" for path in files)
    if modules > budget["files"]:
        found.append(f"{modules} files, more than {budget['files']}")
    if code > budget["code_lines"]:
        found.append(f"{code} lines of code, more than {budget['code_lines']}")
    if comments * budget["code_lines_per_comment"] < code:
        found.append(f"{comments} comments in {code} lines of code, fewer than one in "
                     f"{budget['code_lines_per_comment']}")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(violations()) or 0)
