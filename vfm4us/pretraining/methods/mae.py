"""MAE: from the visible tokens to the pixels of the hidden ones."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm4us.augment import PatchSampler, moved
from vfm4us.encoders import Encoder
from vfm4us.pretraining.method import Baseline
from vfm4us.pretraining.pictures import Picture, Rows
from vfm4us.pretraining.sections import MAEConfig
from vfm4us.pretraining.tokens import (
    hidden_count,
    hidden_mean,
    hidden_tokens,
    join_tokens,
    split_into_tokens,
    take_tokens,
)


class MaskedAutoencoder(nn.Module):
    """Encoder of the visible tokens, small decoder of all: crops (N, 1, P, P), hidden (N, L) -> pixels (N, L, side^2)."""

    def __init__(self, encoder: Encoder, config: MAEConfig):
        super().__init__()
        self.base_encoder, self.config = encoder, config
        self.decoder = self.build_decoder()

    def build_decoder(self) -> nn.ModuleDict:
        """The decoder, which is thrown away after pretraining."""
        from lightly.models.modules import MaskedVisionTransformerDecoderTIMM

        c, encoder = self.config, self.base_encoder
        grid, side = encoder.tokens, encoder.spec.patch
        return nn.ModuleDict(
            {
                "embed": nn.Linear(encoder.width, c.decoder_width),
                "blocks": MaskedVisionTransformerDecoderTIMM(
                    grid.count,
                    c.decoder_width,
                    c.decoder_depth,
                    c.decoder_heads,
                    grid.prefix,
                ),
                "predict": nn.Linear(c.decoder_width, side**2 * encoder.spec.in_channels),
            }
        )

    def forward(self, crops: Tensor, hidden: Tensor) -> Tensor:
        """`hidden` has `mask_ratio` of the tokens of each crop, so that their number is known without looking."""
        prefix = self.base_encoder.tokens.prefix
        places = hidden.to(torch.uint8).argsort(dim=1, stable=True)  # the visible first, in order
        kept = places[:, : hidden.shape[1] - hidden_count(hidden.shape[1], self.config.mask_ratio)]
        tokens = self.decoder["embed"](self.base_encoder.embed_tokens(crops, kept=kept))
        blank = (
            self.decoder["blocks"].mask_token.to(tokens.dtype).expand(len(crops), hidden.shape[1] - kept.shape[1], -1)
        )
        every = torch.cat([tokens[:, prefix:], blank], dim=1)
        every = take_tokens(every, places.argsort(1))
        decoded = self.decoder["blocks"].decode(
            self.decoder["blocks"].add_pos_embed(torch.cat([tokens[:, :prefix], every], dim=1))
        )
        return self.decoder["predict"](decoded[:, prefix:])


def normalise_tokens(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each token (N, L, d) with mean 0 and variance 1, and the mean and deviation that it had."""
    mean = tokens.mean(-1, keepdim=True)
    deviation = (tokens.var(-1, keepdim=True) + 1e-6).sqrt()
    return (tokens - mean) / deviation, mean, deviation


def masked_error(predicted: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error of the hidden tokens alone: predicted, target (N, L, d), hidden (N, L)."""
    return hidden_mean((predicted.float() - target).square().mean(-1), hidden)


class MAE(Baseline):
    """Masked autoencoder, He et al. 2021, arXiv 2111.06377: from the visible tokens to the pixels of the hidden ones.

    loss = mean over hidden tokens t of |predicted_t - (x_t - mean(x_t)) / std(x_t)|^2
    """

    norm = "mean_of_norm"
    bar: ClassVar = {"loss": ("loss", ".3f"), "mean": ("mean_error", ".3f")}
    panels = (
        ("error of hidden tokens", {"drawn": "loss", "each token's mean": "mean_error"}, None),
        ("learning rate", {"rate": "learning_rate"}, None),
    )

    def __init__(self, encoder: Encoder, config: MAEConfig, batch_size: int):
        super().__init__(config)
        encoder.begin_as_mae()
        self.network = self.forward = MaskedAutoencoder(encoder, config)
        self.sampler, self.views = PatchSampler(self.config.crops), self.config.crops.count
        self.tokens = encoder.tokens.count

    def renew(self) -> None:
        self.network.decoder.load_state_dict(self.network.build_decoder().state_dict())

    def target(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is to be drawn (N, L, side^2), and the mean and deviation that were taken out of each token."""
        encoder = self.network.base_encoder
        tokens = F.unfold(encoder.normalize(crops), encoder.spec.patch, stride=encoder.spec.patch).mT
        if self.config.normalise:
            return normalise_tokens(tokens)
        return tokens, torch.zeros_like(tokens[..., :1]), torch.ones_like(tokens[..., :1])

    def cut(self, images: Tensor, valid: Tensor, draw: torch.Generator, rank=0, world_size=1) -> tuple[Tensor, Tensor]:
        """Crops (n b, 1, P, P), the first of each image first, and their hidden tokens (n b, L)."""
        crops = self.sampler(images, valid, draw, rank, world_size)
        mine = slice(rank * len(images), (rank + 1) * len(images))
        hidden = hidden_tokens((len(crops), len(images) * world_size, self.tokens), self.config.mask_ratio, draw)[
            :, mine
        ]
        return crops.flatten(0, 1), moved(hidden.flatten(0, 1), crops.device)

    def loss(self, images, valid, draw, rank=0, world_size=1):
        crops, hidden = self.cut(images, valid, draw, rank, world_size)
        target = self.target(crops)[0]
        mean_error = masked_error(
            target.mean(-1, keepdim=True), target, hidden
        )  # below 1, as some tokens are plain black
        return masked_error(self.forward(crops, hidden), target, hidden), {"mean_error": mean_error}

    @torch.no_grad()
    def picture(self, images, valid, draw) -> Picture:
        """Image, what the encoder saw, and the reconstruction with the true mean and contrast of each token."""
        encoder = self.network.base_encoder
        side = encoder.spec.patch
        crops, hidden = (x[: len(images)] for x in self.cut(images.to(next(encoder.parameters()).device), valid, draw))
        _, mean, deviation = self.target(crops)
        drawn = self.network(crops, hidden).float() * deviation + mean
        drawn = drawn[..., : side**2] * encoder.spec.std + encoder.spec.mean
        true = split_into_tokens(crops, side)
        return Rows(
            {
                "crop": crops[:, 0],
                "seen": join_tokens(true.masked_fill(hidden[..., None], math.nan), side)[:, 0],
                "drawn": join_tokens(drawn, side)[:, 0],
                "drawn and seen": join_tokens(torch.where(hidden[..., None], drawn, true), side)[:, 0],
            },
            f"{100 * self.config.mask_ratio:.0f} % of the tokens hidden",
        )


METHOD = MAE
