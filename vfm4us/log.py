"""What the package says while it works, by the logger `vfm4us`.

Shown as plain lines, unless that logger has handlers: what a run says on standard output (`say`), progress and what it cannot
read on standard error (`note`). `logging.getLogger("vfm4us").setLevel("WARNING")` leaves warnings alone.
"""

import logging
import sys

from tqdm import tqdm

LOGGER = logging.getLogger("vfm4us")


class _Lines(logging.Handler):
    """Writes to what standard output or standard error is at that moment, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if getattr(record, "aside", False) else sys.stdout
        tqdm.write(self.format(record), file=stream)
        stream.flush()


def say(text: str, level: int = logging.INFO) -> None:
    """One line, or several, for whoever runs it."""
    _log(text, level, aside=False)


def note(text: str, level: int = logging.INFO) -> None:
    """The same on standard error, where it stays out of results that are piped on: progress, waiting, what cannot be read."""
    _log(text, level, aside=True)


def _log(text: str, level: int, aside: bool) -> None:
    if not LOGGER.handlers:  # nobody has taken it over
        LOGGER.addHandler(_Lines())
        LOGGER.propagate = False
    if LOGGER.level == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)
    LOGGER.log(level, "%s", text, extra={"aside": aside})
