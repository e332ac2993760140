"""Progress of long work: a bar on a terminal, a line a minute in a log file."""

import sys
import time
from typing import Any

from tqdm import tqdm

from vfm4us import log

EVERY = 60.0  # seconds between two lines


class ProgressLines:
    """What tqdm's bar shows, as a line a minute; the first after `EVERY` seconds and the last at the end of long work."""

    def __init__(self, total: int, initial: int, unit: str, what: str):
        self.total, self.done, self.initial, self.unit, self.what = total, initial, initial, unit, what
        self.begun = self.told = time.monotonic()

    def update(self, count: int = 1) -> None:
        """`count` more are done; a line is written where the last is long enough ago."""
        self.done += count
        now = time.monotonic()
        if now - self.told >= EVERY:
            self._tell(now)

    def close(self) -> None:
        """The last line, where any was written before."""
        if self.told > self.begun:
            self._tell(time.monotonic())

    def _tell(self, now: float) -> None:
        self.told = now
        rate = (self.done - self.initial) / max(now - self.begun, 1e-9)
        left = f", {(self.total - self.done) / rate / 60:.0f} min left" if rate and self.done < self.total else ""
        log.note(f"{self.what}: {self.done} of {self.total} {self.unit}s, {rate:.1f} a second{left}")

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def progress(total: int, unit: str, what: str, initial: int = 0, show: bool = True) -> Any:
    """A bar with `update(count)` and `close()`, also in a `with`; lines where the output is no terminal; nothing without `show`."""
    if not show or sys.stderr.isatty():
        return tqdm(total=total, initial=initial, unit=unit, desc=what, disable=not show)
    return ProgressLines(total, initial, unit, what)
