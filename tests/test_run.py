"""A script ends with the exit code and the line that belong to what happened."""

import signal
from pathlib import Path

import pytest

from vfm4us import run


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (None, 0, ""),
        (ValueError("mode: 'x' is not known"), 2, "error: mode: 'x' is not known"),
        (FileNotFoundError("a.pt does not exist"), 2, "error: a.pt does not exist"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device"),
        (FloatingPointError("the loss is nan"), 2, "error: the loss is nan"),
        (run.Stopped(signal.SIGINT, Path("logs/a")), 130, "saved in logs/a; the same command goes on from here"),
        (run.Stopped(signal.SIGTERM, Path("logs/a")), 143, "saved in logs/a"),
        (KeyboardInterrupt(), 130, "left at once"),
    ],
)
def test_exit_codes(raised, code, said, capsys):
    def main():
        if raised is not None:
            raise raised

    assert run.exit_code(main) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err and "Traceback" not in printed.err


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(KeyError):
        run.exit_code(lambda: {}["missing"])
