"""Images as the tokens of a transformer: cut, joined, hidden."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def take_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """tokens (N, L, d) at places (N, M) -> (N, M, d)."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def split_into_tokens(x: Tensor, side: int) -> Tensor:
    """(N, 1, P, P) -> (N, L, side^2), row by row."""
    return F.unfold(x, side, stride=side).mT


def join_tokens(tokens: Tensor, side: int) -> Tensor:
    """The inverse of `split_into_tokens`: (N, L, side^2) -> (N, 1, P, P)."""
    rows = math.isqrt(tokens.shape[1])
    return F.fold(tokens.mT, (rows * side, rows * side), side, stride=side)


def hidden_count(tokens: int, ratio: float) -> int:
    """How many of a crop's tokens are hidden."""
    return round(ratio * tokens)


def hidden_mean(error: Tensor, hidden: Tensor) -> Tensor:
    """Mean of error (N, L) over the hidden tokens (N, L) alone; indexing by `hidden` would wait for a GPU."""
    return torch.where(hidden, error, 0.0).sum() / hidden.sum()


def hidden_tokens(shape: tuple[int, ...], ratio: float, draw: torch.Generator) -> Tensor:
    """Bool of `shape` (..., L), exactly `hidden_count` true along the last axis, at random."""
    return torch.rand(shape, generator=draw).argsort(-1) < hidden_count(
        shape[-1], ratio
    )  # of a permutation in each row
