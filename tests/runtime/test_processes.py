"""A process that hangs or dies is named, and does not leave the others waiting in silence."""

import ast
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.conftest import ROOT

SCRIPT = """
import os, sys, time
import torch, torch.distributed as dist
from vfm4us.runtime import processes, signals
processes.SAY_AFTER, processes.BEAT = 1.0, 0.3

def main():
    with processes.processes("cpu", wait_minutes=0.06) as (rank, world_size):
        for step in range(3):
            if rank == 1 and step == 1:
                {what}
            processes.come_to_meeting()
            dist.all_reduce(torch.ones(1))
        print("rank", rank, "done", flush=True)

sys.exit(signals.exit_code(main))
"""


@pytest.fixture
def run(tmp_path):
    def start(what):
        (tmp_path / "s.py").write_text(SCRIPT.format(what=textwrap.indent(what, " " * 16).strip()))
        common = os.environ | {
            "PYTHONPATH": str(ROOT),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(30000 + (os.getpid() * 7 + int(time.time())) % 20000),
            "OMP_NUM_THREADS": "1",
        }
        started = [
            subprocess.Popen(
                [sys.executable, str(tmp_path / "s.py")],
                env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            out, err = started[0].communicate(timeout=100)
        finally:
            for process in started:
                process.send_signal(signal.SIGKILL)
        started[1].communicate()
        return started[0].returncode, out, err, started[1].pid

    return start


def test_a_process_that_hangs_is_named_and_then_left(run):
    code, _, err, pid = run("time.sleep(1000)")
    assert code == 1 and "Traceback" not in err
    assert f"s for rank 1 (process {pid} on" in err
    assert f"minutes for rank 1 (process {pid} on" in err and "ends (wait_minutes)" in err


def test_a_process_that_dies_costs_one_line(run):
    code, _, err, pid = run("os._exit(3)")
    ours = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and "Traceback" not in err, err
    assert len(ours) == 1 and f"rank 1 (process {pid} on" in ours[0] and "goes on from what is saved" in ours[0]


def test_a_process_that_is_busy_alone_is_waited_for(run):
    code, out, err, _ = run('with processes.busy("packing images"):\n    time.sleep(6)')
    assert code == 0 and "rank 0 done" in out, err
    assert "packing images" in err


COLLECTIVE = {
    "all_reduce",
    "all_gather",
    "broadcast",
    "broadcast_object_list",
    "barrier",
    "reduce",
    "gather",
    "scatter",
}


def test_every_collective_call_is_announced_so_that_a_process_that_hangs_is_named():
    """In what is written here; those within packages are announced by hand."""
    found, dumb = 0, []
    for file in sorted((ROOT / "vfm4us").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            body = getattr(node, "body", None)
            for before, here in zip([None, *body], body, strict=False) if isinstance(body, list) else ():
                call = here.value if isinstance(here, ast.Expr) else None
                text = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
                if text.startswith("dist.") and text.removeprefix("dist.") in COLLECTIVE:
                    found += 1
                    if before is None or ast.unparse(before) != "come_to_meeting()":
                        dumb.append(f"{file.relative_to(ROOT)}:{here.lineno} {text}")
    assert found >= 7 and not dumb, dumb
