"""Random numbers as functions of their place (seed, name, step), so that resuming needs no saved state."""

import zlib

import numpy as np
import torch

# Streams that are older than their names keep the numbers they were drawn from.
_NUMBERS = {"fine-tuning": 7, "CycleGAN": 9, "share of labels": 11}


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator that is a function of these numbers alone: (seed, stage, step), say."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def number_of(name: str) -> int:
    """The number that stands for the stream `name`."""
    return _NUMBERS.get(name, zlib.crc32(name.encode()))


def stream(name: str, seed: int, *place: int) -> torch.Generator:
    """The CPU generator of the stream `name` at a place (epoch, step); streams of other names are independent of it."""
    return generator(seed, number_of(name), *place)


def numpy_stream(name: str, seed: int) -> np.random.Generator:
    """The same for NumPy."""
    return np.random.default_rng((seed, number_of(name)))
