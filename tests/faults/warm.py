"""Imported once by the process that trials are forked from: all work is done once, so that no trial imports anything."""

import contextlib
import gc
import io
import os
import tempfile
from pathlib import Path

import torch

from tests.faults import kills

torch.set_num_threads(1)
kills.make_cheap()
with (
    tempfile.TemporaryDirectory() as _folder,
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(io.StringIO()),
):
    _before, _source = Path.cwd(), Path(_folder) / "source"
    kills.make_source(_source)
    for _subject in kills.SUBJECTS.values():
        _out = Path(_folder) / _subject.name
        _out.mkdir()
        os.chdir(_out)
        _subject.work(_source, _out)
    os.chdir(_before)
gc.collect()
gc.freeze()
