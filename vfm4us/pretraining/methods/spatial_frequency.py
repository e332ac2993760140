"""Masks in space and a stopped band in frequency."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from vfm4us.augment import PatchSampler, moved
from vfm4us.encoders import Encoder
from vfm4us.pretraining.method import Baseline
from vfm4us.pretraining.pictures import Picture, Rows
from vfm4us.pretraining.sections import SpatialFrequencyConfig
from vfm4us.pretraining.tokens import (
    hidden_mean,
    hidden_tokens,
    join_tokens,
    split_into_tokens,
)


def frequency_band(low: Tensor, width: float, size: int) -> Tensor:
    """(N, size, size) bool of `torch.fft.fft2`: True where a frequency lies in [low, low + width) cycles per px; low (N,)."""
    f = torch.fft.fftfreq(size, device=low.device)
    radius = (f[:, None] ** 2 + f**2).sqrt()
    return (radius >= low.view(-1, 1, 1)) & (radius < low.view(-1, 1, 1) + width)


def stop_band(x: Tensor, band: Tensor) -> Tensor:
    """x (N, 1, P, P) without the frequencies of `band` (N, P, P), the mean excepted. Values may leave [0, 1]."""
    spectrum = torch.fft.fft2(x.float()).masked_fill(band[:, None], 0)
    return torch.fft.ifft2(spectrum).real


def band_error(predicted: Tensor, target: Tensor, band: Tensor) -> Tensor:
    """Mean absolute error of the spectrum within the band, per frequency of it: (N, 1, P, P) twice, (N, P, P)."""
    spectrum = torch.fft.fft2(predicted.float() - target.float(), norm="ortho")[:, 0]
    return ((spectrum.abs() * band).sum((1, 2)) / band.sum((1, 2)).clamp(min=1)).mean()


class MaskedImage(nn.Module):
    """Encoder with a mask token, and one linear layer to pixels: crops (N, 1, P, P), hidden (N, L) -> (N, L, side^2)."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.base_encoder = encoder
        self.mask_token = nn.Parameter(0.02 * torch.randn(encoder.width))
        self.predict = nn.Linear(encoder.width, encoder.spec.patch**2)

    def forward(self, crops: Tensor, hidden: Tensor) -> Tensor:
        tokens = self.base_encoder.embed_tokens(crops, hidden, self.mask_token)
        return self.predict(tokens[:, self.base_encoder.tokens.prefix :])


class SpatialFrequency(Baseline):
    """Dual masking in the spirit of USFM (Jiao et al., Medical Image Analysis 2024): tokens hidden in space, a band in frequency.

    Each crop loses one ring of its spectrum, of random place, and some tokens of what is left; both are to be drawn again:
    loss = mean over hidden tokens of |predicted - x| + frequency_weight * mean over the ring of |F(predicted) - F(x)|
    USFM's pretraining code is not public: widths, shares and weights are ours.
    """

    norm = "mean_of_norm"
    bar: ClassVar = {"space": ("space", ".3f"), "band": ("band", ".3f")}
    panels = (
        ("absolute error, hidden tokens", {"error": "space"}, None),
        ("absolute error, stopped band", {"error": "band"}, None),
    )

    def __init__(self, encoder: Encoder, config: SpatialFrequencyConfig, batch_size: int):
        super().__init__(config)
        encoder.begin_as_mae()
        self.network = self.forward = MaskedImage(encoder)
        self.sampler, self.views = PatchSampler(self.config.crops), self.config.crops.count
        self.tokens = encoder.tokens.count

    def renew(self) -> None:
        new = MaskedImage(self.network.base_encoder)
        self.network.predict.load_state_dict(new.predict.state_dict())
        with torch.no_grad():
            self.network.mask_token.copy_(new.mask_token)

    def cut(self, images: Tensor, valid: Tensor, draw: torch.Generator, rank=0, world_size=1):
        """Crops (n b, 1, P, P), the same without their band, hidden tokens (n b, L), and the bands (n b, P, P)."""
        c = self.config
        crops = self.sampler(images, valid, draw, rank, world_size)
        mine, every = slice(rank * len(images), (rank + 1) * len(images)), (len(crops), len(images) * world_size)
        crops = crops.flatten(0, 1)
        hidden = hidden_tokens((*every, self.tokens), c.mask_ratio, draw)[:, mine].flatten(0, 1)
        place = torch.rand(every, generator=draw)[:, mine].flatten()
        hidden, place = moved(hidden, crops.device), moved(place, crops.device)
        band = frequency_band(
            c.band_low + (c.band_high - c.band_width - c.band_low) * place, c.band_width, c.crops.size
        )
        return crops, stop_band(crops, band), hidden, band

    def loss(self, images, valid, draw, rank=0, world_size=1):
        spec = self.network.base_encoder.spec
        crops, stopped, hidden, band = self.cut(images, valid, draw, rank, world_size)
        predicted = self.forward(stopped, hidden).float()
        target = (crops - spec.mean) / spec.std
        space = hidden_mean((predicted - split_into_tokens(target, spec.patch)).abs().mean(-1), hidden)
        within = band_error(join_tokens(predicted, spec.patch), target, band)
        return space + self.config.frequency_weight * within, {"space": space.detach(), "band": within.detach()}

    @torch.no_grad()
    def picture(self, images, valid, draw) -> Picture:
        spec = self.network.base_encoder.spec
        cut = self.cut(images.to(next(self.network.parameters()).device), valid, draw)
        crops, stopped, hidden = (x[: len(images)] for x in cut[:3])
        drawn = join_tokens(self.network(stopped, hidden).float() * spec.std + spec.mean, spec.patch)
        seen = split_into_tokens(stopped, spec.patch).masked_fill(hidden[..., None], math.nan)
        return Rows(
            {
                "crop": crops[:, 0],
                "band stopped": stopped[:, 0],
                "seen": join_tokens(seen, spec.patch)[:, 0],
                "drawn": drawn[:, 0],
            },
            f"a band of frequencies stopped, {100 * self.config.mask_ratio:.0f} % of the tokens hidden",
        )


METHOD = SpatialFrequency
