"""The command `vfm4us`, from the checkout and from a wheel in an environment of its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vfm4us import __version__, cli


def test_every_command_says_what_it_does(capsys):
    assert cli.main([]) == 0 and cli.main(["--version"]) == 0
    said = capsys.readouterr().out
    assert said.endswith(f"vfm4us {__version__}\n")
    for name, script in cli.commands().items():
        assert f"  {name:<20} {cli.summary(script)}\n" in said and len(cli.summary(script)) > 20
    assert cli.commands().keys() >= {
        "pretrain",
        "classify",
        "segment",
        "enhance",
        "probe",
        "prepare",
        "inspect",
        "export",
        "tables",
    }


def test_a_mistyped_command_is_told_the_nearest(capsys):
    assert cli.main(["clasify"]) == 2
    assert "no command 'clasify': did you mean 'classify'" in capsys.readouterr().err


def test_a_command_is_its_script(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["before"])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    assert cli.main(["pretrain", "pathces.count=3"]) == 2
    assert (
        "command line 'pathces.count=3': unknown config key 'pathces': did you mean 'patches', which is now 'emp_ssl.patches'"
        in capsys.readouterr().err
    )
    assert cli.main(["inspect", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: vfm4us inspect ")
    assert cli.main(["inspect", "nothing.pth"]) == 1


def test_the_overview_loads_nothing_heavy():
    start = os.times()
    done = subprocess.run([sys.executable, "-m", "vfm4us.cli", "--help"], cwd=ROOT, capture_output=True, text=True)
    spent = os.times().children_user - start.children_user
    assert done.returncode == 0 and "classify" in done.stdout
    assert spent < 1, f"{spent:.2f} s of CPU"


@pytest.mark.slow
def test_a_wheel_runs_from_another_folder_without_the_checkout(tmp_path):
    """In an environment that has this one's packages, but for vfm4us."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    source = tmp_path / "source"
    leave = shutil.ignore_patterns(".*", "__pycache__", "data", "logs", "build", "*.egg-info", "tests")
    shutil.copytree(ROOT, source, ignore=lambda folder, names: leave(folder, names) if Path(folder) == ROOT else [])
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"vfm4us-{__version__}-")
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env/bin/python"
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def run(*command):
        return subprocess.run(list(map(str, command)), cwd=elsewhere, env=environment, capture_output=True, text=True)

    where = run(python, "-c", "import vfm4us.config as c; print(c.__file__, c.REPOSITORY)").stdout.split()
    assert all(Path(w).is_relative_to(site) for w in where), where
    brought = {
        f.relative_to(site / "vfm4us/shipped").as_posix() for f in site.glob("vfm4us/shipped/**/*") if f.is_file()
    }
    assert brought >= {f.relative_to(source).as_posix() for f in source.glob("configs/**/*.yaml")} | {
        "assets/published.csv"
    }
    vfm4us = tmp_path / "env/bin/vfm4us"
    assert run(vfm4us, "--version").stdout == f"vfm4us {__version__}\n"
    missing = run(vfm4us, "pretrain", "--config", "configs/pretraining/us510k.yaml")
    assert missing.returncode == 2 and "US-510K/coarse" in missing.stderr and "Traceback" not in missing.stderr
    small = [
        "data.phantoms=84",
        "data.size=64",
        "emp_ssl.patches.size=16",
        "emp_ssl.patches.count=2",
        "stages.0.epoch_images=16",
    ]
    small += ["projector={hidden: 32, out: 16}", "monitor={reference: 16, held_out: 8, patches: 0}", "batch_size=8"]
    done = run(vfm4us, "pretrain", "stop_after=1", "device=cpu", *small)
    assert done.returncode == 0 and (elsewhere / "logs/quickstart/checkpoints/last.pt").is_file(), done.stderr
