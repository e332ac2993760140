"""Which images weights were trained on: the first 64 bits of the sha256 of each file, 8 bytes an image, beside the weights.

They stand in a checkpoint as `trained_on: {digests: int64 (n,)}`, and in a model's those of its encoder as `pretraining_digests`.
Older files have none.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vfm4us.checkpoints import released
from vfm4us.checkpoints.loading import open_checkpoint

NONE = np.zeros(0, np.int64)
NEAR = 2  # bits: none of 2,497 held-out images of five sets has a perceptual hash so near to one of the released encoder's pool


def digests(sha256: Iterable[str]) -> np.ndarray:
    """int64 (n,) in the order of these sha256 in hex, of which at least 16 digits are given."""
    whole = bytes.fromhex("".join([digest[:16] for digest in sha256]))
    return np.frombuffer(whole, ">u8").astype(np.uint64).view(np.int64)


def kept(*parts: np.ndarray) -> Tensor:
    """Of several lists of digests each one once, sorted, as a checkpoint holds them."""
    return torch.from_numpy(np.unique(np.concatenate([NONE, *parts])))


def stated(state: Mapping[str, Any], key: str = "digests") -> np.ndarray:
    """The digests that a checkpoint holds; empty where it has none."""
    known = state.get("trained_on")
    value = known.get(key) if isinstance(known, Mapping) else None
    return value.numpy() if isinstance(value, Tensor) and value.dtype == torch.int64 and value.ndim == 1 else NONE


def seen(weights: str) -> np.ndarray:
    """Digests of what a released encoder or a file of this project was trained on; empty where nothing is known of that."""
    if listed := released.seen(weights):
        return digests(listed)
    if weights in ("none", "imagenet") or not released.resolve(weights)[0].exists():
        return NONE  # the last is what a probe names: random:0, timm:NAME
    return stated(open_checkpoint(weights)[1])


def among(sha256: Iterable[str], known: np.ndarray) -> np.ndarray:
    """Of each of these sha256 whether it is known, bool (n,)."""
    return np.isin(digests(sha256), known)


def looks_like(phash: np.ndarray, weights: str) -> np.ndarray:
    """Of each perceptual hash (uint64) whether a released encoder has seen the picture, maybe at another size: bool (n,)."""
    known = np.array(sorted(released.hashes(weights)), dtype=np.uint64)
    return np.array([bool((np.bitwise_count(known ^ bits) <= NEAR).any()) for bits in phash], dtype=bool)
