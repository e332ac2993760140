"""Two processes never share a run folder, and what killed ones left is cleared away."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass

import pytest

from vfm4us.runtime import run
from vfm4us.runtime.run import RunFolder


@dataclass
class Config:
    seed: int = 0


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(run, "describe_run", dict)  # asks git three times


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_start_changes_nothing_and_names_the_first(tmp_path, resume):
    first = RunFolder(tmp_path / "a", Config(1))
    before = {p.name: p.read_bytes() for p in first.folder.iterdir() if p.is_file()}
    with pytest.raises(
        ValueError, match=rf"in use by another process \(process {os.getpid()} on {platform.node()}, since"
    ):
        RunFolder(tmp_path / "a", Config(2), resume=resume)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert {p.name: p.read_bytes() for p in first.folder.iterdir() if p.is_file()} == before
    first.close()
    again = RunFolder(tmp_path / "a", Config(2), resume=False)
    assert (tmp_path / "a-old1" / "config.yaml").read_text() == "seed: 1\n"
    with pytest.raises(ValueError, match="in use"):
        RunFolder(tmp_path / "a", Config(2))
    again.close()
    assert not list(tmp_path.glob("*/.*")), "no litter"


def test_a_lock_outlives_neither_its_process_nor_its_folder(tmp_path):
    code = f"from vfm4us.runtime.run import lock; lock(__import__('pathlib').Path({str(tmp_path / 'a')!r})); import os; os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert (tmp_path / "a" / ".lock").is_file()
    folder = RunFolder(tmp_path / "a", Config())
    (tmp_path / "a" / ".lock").unlink()  # as by someone who tidies up
    other = run.lock(tmp_path / "a")
    folder.close()
    assert (tmp_path / "a" / ".lock").is_file(), "the other's lock stays"
    run.unlock(other)


def test_a_refused_run_is_not_left_locked(tmp_path):
    RunFolder(tmp_path / "a", Config(1)).close()
    (tmp_path / "a" / "metrics.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(ValueError, match="seed: 1 -> 2"):
            RunFolder(tmp_path / "a", Config(2))


def test_what_killed_processes_left_is_removed_at_the_next_start(tmp_path):
    RunFolder(tmp_path / "a", Config()).close()
    for name in (".encoder.pt.123.tmp", ".budget.json.tmp", "checkpoints/.last.pt.123.tmp"):
        (tmp_path / "a" / name).write_bytes(b"half")
    RunFolder(tmp_path / "a", Config()).close()
    assert not list((tmp_path / "a").rglob(".*"))
