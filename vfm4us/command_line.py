"""The parser of every script: its docstring is the help, and a mistyped flag is answered with the nearest one."""

import argparse
import difflib
from pathlib import Path
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """argparse with the docstring as it is written, and no flag by its first letters: `--devic` is a mistake, not `--device`."""

    def __init__(self, description: str | None = None, **more: Any):
        more.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        more.setdefault("allow_abbrev", False)
        super().__init__(description=description, **more)

    def parse_known_args(self, *given: Any, **more: Any) -> Any:
        """As argparse, with the home folder written out, which a shell does behind a space alone: `--out=~/x` is no folder `~`."""
        values, rest = super().parse_known_args(*given, **more)
        for name, value in vars(values).items():
            if str(value).startswith("~/") and isinstance(value, str | Path):
                setattr(values, name, type(value)(Path(value).expanduser()))
        return values, rest

    def error(self, message: str) -> NoReturn:
        """Say the message, of an unknown flag with the nearest known one, and end with exit code 2."""
        unknown = message.removeprefix("unrecognized arguments: ").split() if "unrecognized" in message else []
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        for word in (word for word in unknown if word.startswith("-")):
            if near := difflib.get_close_matches("--" + word.lstrip("-").split("=")[0], flags, n=1):
                message += f"; {word}: did you mean {near[0]}?"
        super().error(message)
