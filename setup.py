"""What pyproject.toml cannot say: an installed segkit holds the notebooks, which lie outside the package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithNotebooks(build_py):
    """Copy notebooks/*.ipynb to segkit/notebooks/ in the build, where the command `segkit` looks for them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # then the checkout's own are used
            return
        target = Path(self.build_lib) / "segkit" / "notebooks"
        self.mkpath(str(target))
        for notebook in sorted(Path("notebooks").glob("*.ipynb")):
            self.copy_file(str(notebook), str(target / notebook.name))


setup(cmdclass={"build_py": BuildWithNotebooks})
