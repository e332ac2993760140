"""Which encoders there are, and what a family says of them before its network is imported.

A new family is one file beside `resnet.py` that holds a subclass of `Encoder`, and one line here.
"""

from typing import NamedTuple


class Family(NamedTuple):
    """Encoders that one class builds."""

    module: str  # of vfm4us.encoders, where the class lies
    names: tuple[str, ...]
    from_scratch: bool = True  # can begin with random weights; else they are only ever read from a file
    has_tokens: bool = False  # have spec.patch, and input sides should be multiples of it
    maskable: bool = False  # have `embed_tokens` and `pool`, so that masked methods can train them


FAMILIES = (
    Family("resnet", ("resnet18", "resnet34", "resnet50")),
    Family("vit", ("vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"), has_tokens=True, maskable=True),
    Family("vit", ("beit_base", "beit_large"), from_scratch=False, has_tokens=True),
)


def names(**having: bool) -> list[str]:
    """Names of encoders, or of those whose family says so of itself: `names(from_scratch=True)`."""
    return [n for f in FAMILIES if all(getattr(f, k) == v for k, v in having.items()) for n in f.names]


def family_of(name: str) -> Family:
    """What is known of an encoder by its name; ValueError lists the names."""
    family = next((f for f in FAMILIES if name in f.names), None)
    if family is None:
        raise ValueError(f"encoder.name {name!r} is not one of {', '.join(names())}")
    return family


NAMES = tuple(names())
