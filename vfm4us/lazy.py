"""Modules that are imported when they are first used, so that a script's --help and errors do not wait for torch."""

import importlib
from types import ModuleType
from typing import Any


class Lazy(ModuleType):
    """Stands for the module of that name: `plots = Lazy("vfm4us.plots")` instead of `from vfm4us import plots`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)
