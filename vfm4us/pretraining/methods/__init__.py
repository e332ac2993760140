"""The methods an encoder can be pretrained by: one file each, by the name of its section in `sections.METHODS`."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfm4us.pretraining.method import Method


def method_named(name: str) -> "type[Method]":
    """The class METHOD of the module of that name."""
    return importlib.import_module(f"{__name__}.{name}").METHOD
