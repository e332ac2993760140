"""Scripts run as a user runs them: with their own working directory, command line, streams and exit code."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import torch


def script(path, *arguments, cwd) -> subprocess.CompletedProcess:
    """A script in a process of its own: what it wrote and how it ended."""
    return subprocess.run(_words(path, arguments), capture_output=True, text=True, cwd=cwd)


def script_soon(path, *arguments, cwd) -> subprocess.CompletedProcess:
    """As `script`, in a copy of this process, which has imported what takes a script its first seconds.

    For a script that the test has run by `script` before. With more than one thread a copy could wait for ever: then by `script`.
    """
    if torch.get_num_threads() > 1:
        return script(path, *arguments, cwd=cwd)
    words = _words(path, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os._exit(_run(words, cwd, out.fileno(), err.fileno()))
        _, status = os.waitpid(child, 0)
        said = [_text(file) for file in (out, err)]
    return subprocess.CompletedProcess(words, os.waitstatus_to_exitcode(status), *said)


def _words(path, arguments) -> list[str]:
    return [sys.executable, str(path), *map(str, arguments)]


def _text(file) -> str:
    file.seek(0)
    return io.TextIOWrapper(file, encoding="utf-8").read()


def _run(words: list[str], cwd, out: int, err: int) -> int:
    """The exit code of the script, in the copy."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr = (open(fd, "w", encoding="utf-8", closefd=False) for fd in (1, 2))
    code = 1
    try:
        os.chdir(cwd)
        sys.argv = words[1:]
        sys.path.insert(0, str(Path(words[1]).resolve().parent))
        runpy.run_path(words[1], run_name="__main__")
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            sys.stderr.write(left.code + "\n")
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code
