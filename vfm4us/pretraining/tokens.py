"""Images as the tokens of a transformer: cut, joined, hidden, embedded."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vfm4us.encoders import Encoder


def embed_tokens(
    encoder: Encoder,
    x: Tensor,
    hidden: Tensor | None = None,
    mask_token: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """All tokens of a ViT after its last norm: x (N, 1, P, P) -> (N, 1 + L, width), the class token first.

    hidden (N, L) bool: these tokens are replaced by `mask_token` (width,). kept (N, M): only these tokens are looked at.
    """
    body = encoder.body
    tokens = body.patch_embed(encoder.normalize(x))  # (N, rows, columns, width)
    if hidden is not None:
        tokens = torch.where(hidden.view(*tokens.shape[:3], 1), mask_token.to(tokens.dtype), tokens)
    tokens = body._pos_embed(tokens)
    if kept is not None:
        prefix = body.num_prefix_tokens
        chosen = take_tokens(tokens[:, prefix:], kept)
        tokens = torch.cat([tokens[:, :prefix], chosen], dim=1)
    return body.norm(body.blocks(body.norm_pre(tokens)))


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


def hidden_tokens(shape: tuple[int, ...], ratio: float, draw: torch.Generator) -> Tensor:
    """Bool of `shape` (..., L), exactly round(ratio * L) true along the last axis, at random."""
    return torch.rand(shape, generator=draw).argsort(-1) < round(ratio * shape[-1])  # of a permutation in each row


def begin_as_mae(encoder: Encoder) -> None:
    """Weights as MAE begins with them (uniform, by Xavier), and sine and cosine positions that are not trained.

    Weights that were read from a file stay, with their positions.
    """
    from lightly.models.modules import MaskedVisionTransformerTIMM

    if encoder.report is None:
        MaskedVisionTransformerTIMM(encoder.body)  # initialises what it is given
    encoder.body.pos_embed.requires_grad = False
