"""What the tests give to worker processes, which import it by name."""

import os
import signal
import time
from pathlib import Path

from vfm4us.data import limits
from vfm4us.data.prepare import _packed


def squared(item, folder):
    return item * item


def dies_once(item, folder):
    """The process that comes to 7 first is killed."""
    if item == 7 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def dies_at_seven(item, folder, by):
    if item == 7:
        os.kill(os.getpid(), by)
    return item * item


def fails_at_seven(item, folder):
    if item == 7:
        raise ValueError("seven")
    return item


def holds(item, folder):
    """Begin and end of a time in which so many pixels were held."""
    with limits.hold(item), limits.hold(2 * item):
        begin = time.monotonic()
        time.sleep(0.05)
        return begin, time.monotonic(), item


def memory(item, folder):
    """As `holds`, with as many bytes in use; the sizes in use at once are written down."""
    with limits.hold(item):
        data = bytearray(item)
        data[::4096] = b"x" * len(data[::4096])
        mark = Path(folder) / f"{os.getpid()}"
        mark.write_text(str(item))
        used = sum(int(file.read_text() or 0) for file in Path(folder).iterdir())
        time.sleep(0.02)
        mark.write_text("0")
        return used


def packed_but_for_crashes(work, *common):
    if "crash" in work.records[0].path:
        os.kill(os.getpid(), signal.SIGSEGV)
    return _packed(work, *common)


def packed_slowly(work, *common):
    time.sleep(0.02)
    return _packed(work, *common)
