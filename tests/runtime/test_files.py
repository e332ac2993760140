"""Files are written whole or not at all, and what a killed process leaves is swept by the next that writes there."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from vfm4us import checkpoints
from vfm4us.data.csv_files import write_rows
from vfm4us.runtime import files


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_by(path, process):
    """A temporary file of `path` that a process left."""
    mine = files.temporary(path)
    theirs = mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{process}."))
    theirs.write_text("half")
    return theirs


WRITERS = {
    "text": lambda path: files.write_text(path, "whole"),
    "array": lambda path: files.write_array(path, np.save, np.ones(3)),
    "checkpoint": lambda path: checkpoints.save(path, {"a": torch.ones(3)}),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_what_dead_processes_left_is_swept_by_the_next_writer(write, tmp_path, dead):
    path = tmp_path / "number.pt"
    other = left_by(tmp_path / "another.npz", dead)
    left = left_by(path, dead)
    write(path)
    assert not left.exists() and not other.exists() and list(tmp_path.iterdir()) == [path]


def test_files_of_living_processes_and_of_other_machines_and_of_users_stay(tmp_path, dead):
    living = left_by(tmp_path / "a.pt", os.getppid())
    elsewhere = tmp_path / f".a.pt.00000000.{dead}.tmp"
    named = [tmp_path / name for name in (".tmp", "a.tmp", f".a.{dead}.tmp", f"a.pt.{dead}.tmp", ".a.pt.x.y.tmp")]
    for file in (elsewhere, *named):
        file.write_text("theirs")
    files.write_text(tmp_path / "a.pt", "whole")
    assert all(file.exists() for file in (living, elsewhere, *named))


def test_nothing_is_left_where_writing_fails(tmp_path):
    def fail(stream):
        stream.write(b"half")
        raise OSError("no")

    (tmp_path / "a.npy").write_text("before")
    with pytest.raises(OSError, match="no"):
        files.write_array(tmp_path / "a.npy", fail)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.npy", "before")]


def test_a_name_that_is_not_utf8_is_written(tmp_path):
    files.write_text(tmp_path / "a.csv", "path\nb\udcff.png\n")
    assert (tmp_path / "a.csv").read_bytes() == b"path\nb\xff.png\n"


def test_a_table_that_cannot_be_written_to_its_end_leaves_the_one_before(tmp_path):
    """leakage_*.csv, duplicates.csv, per_image.csv: a run that goes on writes them anew."""
    path = tmp_path / "a.csv"
    write_rows(path, ["name", "value"], [["a", 1]])

    def cut_short():
        yield ["b", 2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(path, ["name", "value"], cut_short())
    assert path.read_text() == "name,value\na,1\n" and list(tmp_path.iterdir()) == [path]
