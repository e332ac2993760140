"""What reading one file may cost: only regular files, sizes known before a pixel is decoded, one budget of pixels for all.

A decoder needs up to a dozen bytes per pixel. Sixteen threads with 64 megapixels each would need 12 GB; so those who decode
take from one budget, and large images wait for each other while small ones go on side by side.
"""

import contextlib
import os
import stat
import threading

MAXIMUM_PIXELS = 64_000_000
MAXIMUM_BYTES = 512 * 1024**2
MINIMUM_SIDE = 16  # pixels
MAXIMUM_ASPECT = 16  # longer side over shorter side
UNIT = 1_000_000  # pixels that are taken from the budget at a time


def open_regular(path):
    """A file opened for reading bytes. Raises ValueError where it is no regular file: a FIFO or a device is not opened.

    The reason leaves out the path, which stands beside it.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"not a regular file but {_kind(status.st_mode)}")
        # what is exchanged for a FIFO between the two calls must not hang either
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        file = os.fdopen(handle, "rb")
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            file.close()
            raise ValueError("not a regular file")
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from error
    return file


def refuse_special(path) -> None:
    """ValueError for what is no regular file, or cannot be read, or is empty."""
    with open_regular(path) as file:
        if not os.fstat(file.fileno()).st_size:
            raise ValueError("empty file (0 bytes)")


def file_bytes(path) -> bytes:
    """The whole file; ValueError with a reason where it is empty, over MAXIMUM_BYTES, no regular file or cannot be read."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAXIMUM_BYTES:
            raise ValueError(f"{size} bytes is over the limit of {MAXIMUM_BYTES}")
        try:
            data = file.read()
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror or error}") from error
    if not data:
        raise ValueError("empty file (0 bytes)")
    return data


def first_bytes(path, count: int) -> bytes:
    """At most `count` bytes from the beginning of a regular file; ValueError as in `open_regular`."""
    with open_regular(path) as file:
        try:
            return file.read(count)
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror or error}") from error


def check_size(width: int, height: int) -> None:
    """ValueError for images that are too large, too small or too narrow: known from a header, before any pixel is decoded."""
    if width * height > MAXIMUM_PIXELS:
        raise ValueError(f"{width} x {height} pixels is over the limit of {MAXIMUM_PIXELS // 10**6} megapixels")
    if min(width, height) < MINIMUM_SIDE:
        raise ValueError(f"{width} x {height} pixels is too small: the shorter side must have {MINIMUM_SIDE}")
    if max(width, height) > MAXIMUM_ASPECT * min(width, height):
        raise ValueError(f"{width} x {height} pixels is too narrow: sides may differ {MAXIMUM_ASPECT}-fold")


class PixelBudget:
    """Pixels that may be under way at once, over all threads: `with budget.hold(width * height): decode`.

    One image always goes, however large. Others wait in the order in which they come. What a thread asks for while it holds
    some already (the mask of an image) is free, else two threads could wait for each other. For processes that share a budget
    give a lock and a semaphore of multiprocessing.
    """

    def __init__(self, pixels: int = MAXIMUM_PIXELS, gate=None, units=None):
        self.total = max(1, pixels // UNIT)
        self.gate = gate or threading.Lock()
        self.units = units or threading.Semaphore(self.total)
        self.of_thread = threading.local()

    @contextlib.contextmanager
    def hold(self, pixels: int):
        """Wait until so many pixels are free, and hold them in the block; a block within another holds nothing more."""
        if getattr(self.of_thread, "holds", False):
            yield
            return
        wanted, held = min(self.total, max(1, -(-pixels // UNIT))), 0
        self.of_thread.holds = True
        try:
            with self.gate:  # one at a time gathers its units, else two large ones could wait for each other for ever
                while held < wanted:
                    self.units.acquire()
                    held += 1
            yield
        finally:
            self.of_thread.holds = False
            for _ in range(held):
                self.units.release()


BUDGET = PixelBudget()


def share_budget(budget: PixelBudget) -> None:
    """Let this process decode within a budget that it shares with others."""
    global BUDGET
    BUDGET = budget


def hold(pixels: int):
    """The budget of this process, held for so many pixels: `with limits.hold(width * height): ...`"""
    return BUDGET.hold(pixels)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFDIR: "a folder",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")
