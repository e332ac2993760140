"""Processes that pack: the same bytes however many, within one budget, and no death of one loses or hangs anything."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import working
from making_trees import speckle
from PIL import Image

from vfm4us.data import prepare as preparing
from vfm4us.data import workers
from vfm4us.data.dataset import PreparedDataset
from vfm4us.data.prepare import prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Processes begin after the first image, however small the set is."""
    monkeypatch.setattr(preparing, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(preparing, "WORTH_IT", 0.0)
    monkeypatch.setattr(preparing, "BATCH", 4)


def source(root, count=30):
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for k in range(count):
        Image.fromarray(speckle(k)).save(root / "images" / f"{k:02d}.png")
        mask = np.zeros(speckle(k).shape, np.uint8)
        mask[5 : 20 + k, 5:30] = 255
        Image.fromarray(mask).save(root / "masks" / f"{k:02d}.png")
    (root / "images" / "09.png").write_bytes(b"text")
    pages = [Image.fromarray(speckle(100 + k)) for k in range(12)]
    pages[0].save(root / "images" / "pages.tif", save_all=True, append_images=pages[1:])
    return root


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != "dataset.json"}


def run(work, batches, common, count=2, ahead=4, given_up=None):
    return [
        result for several in workers.in_processes(work, common, batches, count, ahead, given_up) for result in several
    ]


def test_bytes_are_the_same_by_one_two_and_four_processes(tmp_path, monkeypatch):
    root = source(tmp_path / "source")
    reading = {"frames": "all"}
    results = []
    real = workers.in_processes
    monkeypatch.setattr(preparing, "in_processes", lambda *a: results.append(a[3]) or real(*a))
    folders = [
        prepare(root, tmp_path / str(k), size=48, workers=k, progress=False, reading=reading).folder for k in (1, 2, 4)
    ]
    assert results == [2, 4] and len(PreparedDataset(folders[0])) == 41
    assert contents(folders[0]) == contents(folders[1]) == contents(folders[2])


def test_a_small_set_starts_no_process(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(workers.subprocess, "Popen", None)
    assert len(prepare(source(tmp_path / "source"), tmp_path / "out", size=48, workers=4, progress=False)) > 29


def test_results_come_in_order_and_an_error_is_raised_here(tmp_path):
    items = [[3 * k, 3 * k + 1, 3 * k + 2] for k in range(20)]
    assert run(working.squared, items, (tmp_path,), count=3) == [k * k for k in range(60)]
    with pytest.raises(ValueError, match="seven"):
        run(working.fails_at_seven, items, (tmp_path,))


def test_what_a_killed_process_had_is_done_again(tmp_path):
    items = [[3 * k, 3 * k + 1, 3 * k + 2] for k in range(10)]
    assert run(working.dies_once, items, (tmp_path,)) == [k * k for k in range(30)]
    assert (tmp_path / "died").exists()


def test_an_item_that_ends_its_process_twice_is_named_and_the_others_are_done(tmp_path):
    seen = []
    items = [[3 * k, 3 * k + 1, 3 * k + 2] for k in range(10)]
    for by in (signal.SIGSEGV, signal.SIGKILL):
        result = run(
            working.dies_at_seven, items, (tmp_path, by), given_up=lambda item, died: seen.append((item, died.crashed))
        )
        assert result == [k * k if k != 7 else None for k in range(30)]
    assert seen == [(7, True), (7, False)]


def test_a_worker_that_cannot_begin_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ChildProcessError, match="ended with exit code 1"):
        run(working.squared, [[1]], (tmp_path,))


def test_a_crash_of_a_decoder_is_a_reason_and_a_kill_an_error(tmp_path, monkeypatch):
    root = source(tmp_path / "source")
    (root / "images" / "10.png").rename(root / "images" / "10crash.png")
    (root / "masks" / "10.png").rename(root / "masks" / "10crash.png")
    monkeypatch.setattr(preparing, "_packed", working.packed_but_for_crashes)
    dataset = prepare(root, tmp_path / "out", size=48, workers=2, progress=False)
    assert "images/10crash.png,its decoder crashed (SIGSEGV)" in (dataset.folder / "rejected.csv").read_text()
    assert len(dataset) == 29
    monkeypatch.setattr(workers, "CRASHES", set())  # as a kill for want of memory
    with pytest.raises(ChildProcessError, match="10crash.png was ended from outside twice"):
        prepare(root, tmp_path / "again", size=48, workers=2, progress=False)
    assert (tmp_path / "again.partial" / "journal.jsonl").is_file()


def test_large_images_wait_for_each_other_over_all_processes(tmp_path):
    items = [[40_000_000], [30_000_000], [1_000_000], [64_000_000]] * 3
    times = run(working.holds, items, (tmp_path,), count=4, ahead=12)
    large = sorted(time for time in times if time[2] > 24_000_000)
    assert all(a[1] <= b[0] for a, b in zip(large[:-1], large[1:], strict=True))


def test_memory_of_all_processes_is_bounded(tmp_path):
    sizes = [[60_000_000], [3_000_000], [40_000_000], [20_000_000]] * 5
    most = max(run(working.memory, sizes, (tmp_path,), count=4, ahead=16))
    assert 60_000_000 <= most <= 80_000_000 + 16_000_000, most  # the budget, and what each may use without asking


PACK = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import working
from vfm4us.data import prepare as preparing
preparing.FIRST_SECONDS = preparing.WORTH_IT = 0
preparing.BATCH, preparing.SAVE_EVERY, preparing._packed = 2, 0.05, working.packed_slowly
preparing.prepare(sys.argv[1], sys.argv[2], size=48, workers=2, reading={"frames": "all"})
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are found by /proc")
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_by_a_signal_no_process_stays_and_the_same_call_goes_on(tmp_path, by):
    root = source(tmp_path / "source", 60)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'data'}"}
    command = [sys.executable, "-c", PACK, str(root), str(tmp_path / "out")]
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    journal, deadline = tmp_path / "out.partial" / "journal.jsonl", time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < 8:
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    tasks = [child for task in children.parent.parent.iterdir() for child in (task / "children").read_text().split()]
    assert len(tasks) == 2
    parent.send_signal(by)
    parent.communicate(timeout=60)
    while any(Path(f"/proc/{pid}").is_dir() and "\nState:\tZ" not in status(pid) for pid in tasks):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "images are kept from the call before" in again.stderr
    alone = prepare(root, tmp_path / "alone", size=48, workers=1, progress=False, reading={"frames": "all"})
    assert contents(tmp_path / "out") == contents(alone.folder)


def status(pid):
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "\nState:\tZ"
