"""The lowest versions that pyproject.toml allows, as pins for pip: what `make test-lowest` installs."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement


def pins(project: dict) -> list[str]:
    """name==version for each dependency and extra that has a lower bound; segkit's own extras are passed over."""
    extras = project["optional-dependencies"].values()
    found = [Requirement(line) for line in (*project["dependencies"], *(line for extra in extras for line in extra))]
    return sorted(f"{r.name}=={bound.version}" for r in found for bound in r.specifier if bound.operator == ">=")


if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    print("\n".join(pins(project)))
