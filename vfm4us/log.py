"""What the package says while it works, by the logger `vfm4us`.

Shown as plain lines on standard output, unless that logger has handlers. `logging.getLogger("vfm4us").setLevel("WARNING")`
leaves warnings alone.
"""

import logging
import sys

from tqdm import tqdm

LOGGER = logging.getLogger("vfm4us")


class _Lines(logging.Handler):
    """Writes to what standard output is at that moment, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def say(text: str, level: int = logging.INFO) -> None:
    """One line, or several, for whoever runs it."""
    if not LOGGER.handlers:  # nobody has taken it over
        LOGGER.addHandler(_Lines())
        LOGGER.propagate = False
    if LOGGER.level == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)
    LOGGER.log(level, "%s", text)
