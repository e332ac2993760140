"""Puts what lies beside the package, and is needed away from the repository, into the wheel as vfm4us/shipped/.

All else about the build is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIPPED = (
    "configs/**/*.yaml",
    "assets/published.csv",
    "weights/*",
    "scripts/*.py",
    "Pretraining/*/*.py",
    "Downstream/*/*.py",
)


class BuildWithShipped(build_py):
    """`build_py`, and the files named above as data of the package; a checkout in development mode has them already."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source in self._shipped():
            target = Path(self.build_lib, "vfm4us", "shipped", source.relative_to(ROOT))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_source_files(self) -> list[str]:
        return super().get_source_files() + [str(file.relative_to(ROOT)) for file in self._shipped()]

    def _shipped(self) -> list[Path]:
        return [file for pattern in SHIPPED for file in sorted(ROOT.glob(pattern)) if file.is_file()]


setup(cmdclass={"build_py": BuildWithShipped})
