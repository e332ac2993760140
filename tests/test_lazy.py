"""Help, and what is wrong in a command line, are said before torch is imported, which takes two seconds."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("Pretraining", "Downstream", "scripts")
    for path in (ROOT / folder).rglob("*.py")
)
RUN = """
import runpy, sys
script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as ended:
    code = ended.code
heavy = {"torch", "sklearn", "matplotlib", "torchvision", "scipy.stats"} & set(sys.modules)
assert not heavy, f"imported: {', '.join(heavy)}"
sys.exit(code)
"""


def run(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", RUN, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_does_not_wait_for_torch(script):
    done = run(script, "--help")
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr


def test_what_may_be_left_out_is_not_asked_for():
    done = run("scripts/embed.py")
    assert done.returncode == 2 and done.stderr.endswith("error: the following arguments are required: DIR\n")


@pytest.mark.parametrize(
    "words",
    [
        ("Pretraining/US-SSL/adv_main.py", "emp_ssl.patches.cuont=3"),
        ("Pretraining/MAE/mae_main.py", "--config", "configs/absent.yaml"),
        ("Downstream/Classification/train.py", "finetune.epoch=3"),
        ("Downstream/Segmentation/evaluate.py", "model.pt", "data", "--flip=3"),
        ("Downstream/Generation/train.py", "--config", "configs/absent.yaml"),
        ("scripts/reproduce_tables.py", "worker=3", "task=clasification"),
        ("scripts/cross_validate.py", "fold=2"),
        ("scripts/probe.py", "--anchor"),
        ("scripts/gpu_check.py", "--minute=three"),
    ],
)
def test_a_mistake_in_the_command_line_does_not_wait_for_torch(words):
    done = run(*words)
    assert done.returncode == 2 and "error: " in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_command_by_its_name_does_not_wait_for_torch():
    done = run("vfm4us/cli.py", "classify", "--help")
    assert done.returncode == 0 and "usage: vfm4us classify" in done.stdout, done.stderr
