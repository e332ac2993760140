"""Files that are written whole or not at all."""

import contextlib
import functools
import hashlib
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write `text` whole or not at all."""
    with unfinished(path) as beside, open(beside, "w", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(text)


def write_array(path: Path, save: Callable[..., None], *arrays: Any, **named: Any) -> None:
    """What `numpy.save` or `numpy.savez` writes, whole or not at all."""
    with unfinished(path) as beside, open(beside, "wb") as stream:
        save(stream, *arrays, **named)


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A file beside `path` to be written, which takes its place at the end; it is removed where writing fails."""
    path = Path(path)
    sweep(path.parent)
    beside = temporary(path)
    try:
        yield beside
        with open(beside, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def temporary(path: Path) -> Path:
    """Where what is to become `path` is written: a hidden file beside it whose name says which process it belongs to."""
    return path.with_name(f".{path.name}.{_here()}.{os.getpid()}.tmp")


def sweep(folder: Path) -> None:
    """Remove the files named by `temporary` that processes of this machine left behind when they were killed."""
    with contextlib.suppress(OSError):  # a folder that may only be read
        for entry in os.scandir(folder):
            parts = entry.name.split(".")  # "", the name, the machine, the process, "tmp"
            ours = parts[0] == "" and parts[-1] == "tmp" and parts[-3:-2] == [_here()]
            if ours and not _lives(parts[-2]):
                Path(entry.path).unlink(missing_ok=True)


@functools.cache
def _here() -> str:
    """This machine, as far as process numbers mean the same: a container may share its name with another."""
    numbers = Path("/proc/self/ns/pid")
    return hashlib.sha256(
        f"{platform.node()} {numbers.stat().st_ino if numbers.exists() else ''}".encode()
    ).hexdigest()[:8]


def _lives(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, OverflowError):  # somebody else's; or no number, so not ours
        return True
    return True
