"""docs/extending.md: every recipe is followed in a copy of the repository, as a reader would."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text()
RECIPES = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.S | re.M))


# recipe: files of the package, scripts, lines added to what is there; as the table at the top of the page says
SIZES = {
    "A dataset": (1, 0, 2),
    "An encoder": (1, 0, 1),
    "A pretraining method": (2, 0, 2),
    "A task": (2, 2, 2),
    "An augmentation": (0, 0, 5),
}


def test_a_recipe_is_as_short_as_the_page_says():
    counted = {}
    for recipe, text in RECIPES.items():
        blocks = re.findall(r"^```(python|diff) (\S+)\n(.*?)^```", text, re.S | re.M)
        files = [file for kind, file, _ in blocks if kind == "python"]
        scripts = [file for file in files if not file.startswith("vfm4us/")]
        added = sum(content.count("\n+") for kind, _, content in blocks if kind == "diff")
        counted[recipe] = len(files) - len(scripts), len(scripts), added
    assert counted == SIZES


def apply_diff(path: Path, diff: str) -> None:
    """Lines that begin with a space or - must be in the file; those that begin with + are put behind them, - is taken out."""
    text, after, taken = path.read_text(), "", []
    for line in diff.splitlines():
        mark, rest = line[:1], line[1:]
        if mark == "+":
            assert after, "a line is added behind another"
            text = text.replace(f"{after}\n", f"{after}\n{rest}\n", 1)
        else:
            assert mark in " -" and f"{rest}\n" in text, f"{path.name} no longer holds {rest!r}"
            taken += [rest] * (mark == "-")
        after = rest
    for line in taken:
        text = text.replace(f"{line}\n", "", 1)
    path.write_text(text)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_works_as_it_is_written(recipe, tmp_path):
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns(".git", ".venv", "logs", "data", "__pycache__", "*.egg-info", ".*_cache", "build")
    shutil.copytree(ROOT, copy, ignore=lambda folder, names: ignored(folder, names) if Path(folder) == ROOT else [])
    blocks = re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```", RECIPES[recipe], re.S | re.M)
    assert any(kind == "sh" for kind, _, _ in blocks)
    for kind, file, content in blocks:
        if kind == "sh":
            for command in content.replace("\\\n", " ").splitlines():
                environment = os.environ | {
                    "PYTHONPATH": str(copy),
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                }
                done = subprocess.run(
                    ["bash", "-c", command], cwd=copy, env=environment, capture_output=True, text=True, timeout=600
                )
                assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        elif kind == "diff":
            apply_diff(copy / file, content)
        else:
            (copy / file).write_text(content)
