"""The methods that ours is compared with: MAE, DINOv2, SimCLR, and masks in space with a stopped band in frequency.

All train this project's `Encoder` through `stages.Trainer`, on the same images, with the same guards, and leave the same
checkpoint. Decoders, heads and losses are lightly's (`pip install -e .[baselines]`), the transformer is timm's.
As for every method, each random number is drawn for the global batch and cut to a process's part.
"""

import math
import random
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vfm4us import plots
from vfm4us.encoders import Encoder
from vfm4us.pretraining.patches import PatchSampler
from vfm4us.pretraining.settings import AdamWConfig, PretrainingConfig


class Method(Protocol):
    """What `stages.Trainer` asks of a method."""

    network: nn.Module  # all that is saved; its `base_encoder` is what is measured and kept
    forward: nn.Module  # the part of it that `compile=true` compiles
    optimizer: torch.optim.Optimizer  # each group has a `scale` of the learning rate
    views: int  # crops of an image per step
    rate_images: int  # the learning rate is given per this many images of a batch
    clip: float  # longest gradient; 0: any
    pictured: int  # images in a picture
    bar: dict[str, tuple[str, str]]  # short name -> term and format, for the progress bar
    panels: tuple  # of the curve, see plots.EMP_PANELS
    advice: str  # against collapse

    def new_optimizer(self) -> torch.optim.Optimizer: ...

    def renew(self) -> None:
        """New weights for all but the encoder."""

    def loss(
        self, images: Tensor, valid: Tensor, draw: torch.Generator, progress: float, rank: int, world_size: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and detached terms of a process's images (b / k, S, S) uint8; `progress` is the share of the stage done."""

    def after_step(self, progress: float) -> None: ...

    def said(self, values: dict[str, float]) -> str:
        """The terms of a step in words."""

    def picture(self, path: Path, images: Tensor, valid: Tensor, draw: torch.Generator, title: str) -> np.ndarray:
        """What the network saw of these images, written to `path`."""


def adamw(network: nn.Module, config: AdamWConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels only."""
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    vector = [p.ndim <= 1 or name.endswith(("cls_token", "pos_embed", "mask_token", "weight_g")) for name, p in trained]
    groups = [
        {
            "params": [p for (_, p), v in zip(trained, vector, strict=True) if not v],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for (_, p), v in zip(trained, vector, strict=True) if v], "weight_decay": 0.0},
    ]
    for group in groups:
        group["scale"] = 1.0
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2))


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


class _Baseline:
    """What all baselines share."""

    rate_images = 256
    pictured = 8
    advice = "Lower the learning rate, or raise batch_size."

    def __init__(self, config: PretrainingConfig):
        self.config, self.own = config, getattr(config, config.method)
        self.clip = self.own.adamw.clip

    def new_optimizer(self) -> torch.optim.AdamW:
        return adamw(self.network, self.own.adamw)

    def after_step(self, progress: float) -> None:
        """Nothing, where what is trained is what is kept."""

    def said(self, values: dict[str, float]) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {v:.3f}" for name, v in values.items() if name != "learning_rate")

    def set_weight_decay(self, progress: float) -> None:
        start, end = self.own.adamw.weight_decay, self.own.adamw.weight_decay_end
        if end >= 0:
            self.optimizer.param_groups[0]["weight_decay"] = end + (start - end) * 0.5 * (
                1 + math.cos(math.pi * progress)
            )


# ---- MAE --------------------------------------------------------------------------------------------------------------


class MaskedAutoencoder(nn.Module):
    """Encoder of the visible tokens, small decoder of all: crops (N, 1, P, P), hidden (N, L) -> pixels (N, L, side^2)."""

    def __init__(self, encoder: Encoder, config: PretrainingConfig):
        super().__init__()
        self.base_encoder, self.config = encoder, config.mae
        self.decoder = self.build_decoder()

    def build_decoder(self) -> nn.ModuleDict:
        from lightly.models.modules import MaskedVisionTransformerDecoderTIMM

        c, encoder = self.config, self.base_encoder
        body, side = encoder.body, encoder.spec.patch
        decoder = nn.ModuleDict(
            {
                "embed": nn.Linear(encoder.width, c.decoder_width),
                "blocks": MaskedVisionTransformerDecoderTIMM(
                    body.patch_embed.num_patches,
                    c.decoder_width,
                    c.decoder_depth,
                    c.decoder_heads,
                    body.num_prefix_tokens,
                ),
                "predict": nn.Linear(c.decoder_width, side**2 * encoder.spec.in_channels),
            }
        )
        return decoder

    def forward(self, crops: Tensor, hidden: Tensor) -> Tensor:
        prefix = self.base_encoder.body.num_prefix_tokens
        places = hidden.to(torch.uint8).argsort(dim=1, stable=True)  # the visible first, in order
        kept = places[:, : int((~hidden[0]).sum())]
        tokens = self.decoder["embed"](embed_tokens(self.base_encoder, crops, kept=kept))
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
    return (predicted.float() - target).square().mean(-1)[hidden].mean()


class MAE(_Baseline):
    """Masked autoencoder, He et al. 2021, arXiv 2111.06377: from the visible tokens to the pixels of the hidden ones.

    loss = mean over hidden tokens t of |predicted_t - (x_t - mean(x_t)) / std(x_t)|^2
    """

    bar = {"loss": ("loss", ".3f"), "mean": ("mean_error", ".3f")}
    panels = (
        ("error of hidden tokens", {"drawn": "loss", "each token's mean": "mean_error"}, None),
        ("learning rate", {"rate": "learning_rate"}, None),
    )

    def __init__(self, encoder: Encoder, config: PretrainingConfig):
        super().__init__(config)
        begin_as_mae(encoder)
        self.network = self.forward = MaskedAutoencoder(encoder, config)
        self.sampler, self.views = PatchSampler(self.own.crops), self.own.crops.count
        self.tokens = encoder.body.patch_embed.num_patches

    def renew(self) -> None:
        self.network.decoder.load_state_dict(self.network.build_decoder().state_dict())

    def target(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is to be drawn (N, L, side^2), and the mean and deviation that were taken out of each token."""
        encoder = self.network.base_encoder
        tokens = F.unfold(encoder.normalize(crops), encoder.spec.patch, stride=encoder.spec.patch).mT
        if self.own.normalise:
            return normalise_tokens(tokens)
        return tokens, torch.zeros_like(tokens[..., :1]), torch.ones_like(tokens[..., :1])

    def cut(self, images: Tensor, valid: Tensor, draw: torch.Generator, rank=0, world_size=1) -> tuple[Tensor, Tensor]:
        """Crops (n b, 1, P, P), the first of each image first, and their hidden tokens (n b, L)."""
        crops = self.sampler(images, valid, draw, rank, world_size)
        own = slice(rank * len(images), (rank + 1) * len(images))
        hidden = hidden_tokens((len(crops), len(images) * world_size, self.tokens), self.own.mask_ratio, draw)[:, own]
        return crops.flatten(0, 1), hidden.flatten(0, 1).to(crops.device)

    def loss(self, images, valid, draw, progress, rank, world_size):
        self.set_weight_decay(progress)
        crops, hidden = self.cut(images, valid, draw, rank, world_size)
        target = self.target(crops)[0]
        mean_error = masked_error(
            target.mean(-1, keepdim=True), target, hidden
        )  # below 1, as some tokens are plain black
        return masked_error(self.forward(crops, hidden), target, hidden), {"mean_error": mean_error}

    @torch.no_grad()
    def picture(self, path, images, valid, draw, title):
        """Image, what the encoder saw, and the reconstruction with the true mean and contrast of each token."""
        encoder = self.network.base_encoder
        side = encoder.spec.patch
        crops, hidden = (x[: len(images)] for x in self.cut(images.to(next(encoder.parameters()).device), valid, draw))
        _, mean, deviation = self.target(crops)
        drawn = self.network(crops, hidden).float() * deviation + mean
        drawn = drawn[..., : side**2] * encoder.spec.std + encoder.spec.mean
        true = split_into_tokens(crops, side)
        return plots.picture_rows(
            path,
            {
                "crop": crops[:, 0],
                "seen": join_tokens(true.masked_fill(hidden[..., None], math.nan), side)[:, 0],
                "drawn": join_tokens(drawn, side)[:, 0],
                "drawn and seen": join_tokens(torch.where(hidden[..., None], drawn, true), side)[:, 0],
            },
            f"{title}: {100 * self.own.mask_ratio:.0f} % of the tokens hidden",
        )


# ---- masks in space, a band in frequency -----------------------------------------------------------------------------


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
        tokens = embed_tokens(self.base_encoder, crops, hidden, self.mask_token)
        return self.predict(tokens[:, self.base_encoder.body.num_prefix_tokens :])


class SpatialFrequency(_Baseline):
    """Dual masking in the spirit of USFM (Jiao et al., Medical Image Analysis 2024): tokens hidden in space, a band in frequency.

    Each crop loses one ring of its spectrum, of random place, and some tokens of what is left; both are to be drawn again:
    loss = mean over hidden tokens of |predicted - x| + frequency_weight * mean over the ring of |F(predicted) - F(x)|
    USFM's pretraining code is not public: widths, shares and weights are ours.
    """

    bar = {"space": ("space", ".3f"), "band": ("band", ".3f")}
    panels = (
        ("absolute error, hidden tokens", {"error": "space"}, None),
        ("absolute error, stopped band", {"error": "band"}, None),
    )

    def __init__(self, encoder: Encoder, config: PretrainingConfig):
        super().__init__(config)
        begin_as_mae(encoder)
        self.network = self.forward = MaskedImage(encoder)
        self.sampler, self.views = PatchSampler(self.own.crops), self.own.crops.count
        self.tokens = encoder.body.patch_embed.num_patches

    def renew(self) -> None:
        new = MaskedImage(self.network.base_encoder)
        self.network.predict.load_state_dict(new.predict.state_dict())
        with torch.no_grad():
            self.network.mask_token.copy_(new.mask_token)

    def cut(self, images: Tensor, valid: Tensor, draw: torch.Generator, rank=0, world_size=1):
        """Crops (n b, 1, P, P), the same without their band, hidden tokens (n b, L), and the bands (n b, P, P)."""
        c = self.own
        crops = self.sampler(images, valid, draw, rank, world_size)
        own, every = slice(rank * len(images), (rank + 1) * len(images)), (len(crops), len(images) * world_size)
        crops = crops.flatten(0, 1)
        hidden = hidden_tokens((*every, self.tokens), c.mask_ratio, draw)[:, own].flatten(0, 1).to(crops.device)
        place = torch.rand(every, generator=draw)[:, own].flatten().to(crops.device)
        band = frequency_band(
            c.band_low + (c.band_high - c.band_width - c.band_low) * place, c.band_width, c.crops.size
        )
        return crops, stop_band(crops, band), hidden, band

    def loss(self, images, valid, draw, progress, rank, world_size):
        self.set_weight_decay(progress)
        spec = self.network.base_encoder.spec
        crops, stopped, hidden, band = self.cut(images, valid, draw, rank, world_size)
        predicted = self.forward(stopped, hidden).float()
        target = (crops - spec.mean) / spec.std
        space = (predicted - split_into_tokens(target, spec.patch)).abs().mean(-1)[hidden].mean()
        within = band_error(join_tokens(predicted, spec.patch), target, band)
        return space + self.own.frequency_weight * within, {"space": space.detach(), "band": within.detach()}

    @torch.no_grad()
    def picture(self, path, images, valid, draw, title):
        spec = self.network.base_encoder.spec
        cut = self.cut(images.to(next(self.network.parameters()).device), valid, draw)
        crops, stopped, hidden = (x[: len(images)] for x in cut[:3])
        drawn = join_tokens(self.network(stopped, hidden).float() * spec.std + spec.mean, spec.patch)
        seen = split_into_tokens(stopped, spec.patch).masked_fill(hidden[..., None], math.nan)
        return plots.picture_rows(
            path,
            {
                "crop": crops[:, 0],
                "band stopped": stopped[:, 0],
                "seen": join_tokens(seen, spec.patch)[:, 0],
                "drawn": drawn[:, 0],
            },
            f"{title}: a band of frequencies stopped, {100 * self.own.mask_ratio:.0f} % of the tokens hidden",
        )


# ---- SimCLR -----------------------------------------------------------------------------------------------------------


class ProjectedEncoder(nn.Module):
    """Encoder and SimCLR's projector: crops (N, 1, P, P) -> (N, out)."""

    def __init__(self, encoder: Encoder, config: PretrainingConfig):
        super().__init__()
        self.base_encoder, self.config = encoder, config.simclr
        self.projector = self.build_projector()

    def build_projector(self) -> nn.Module:
        from lightly.models.modules import SimCLRProjectionHead

        return SimCLRProjectionHead(self.base_encoder.width, self.config.hidden, self.config.out)

    def forward(self, crops: Tensor) -> Tensor:
        return self.projector(self.base_encoder(crops))


class SimCLR(_Baseline):
    """SimCLR, Chen et al. 2020, arXiv 2002.05709: two crops of an image against all other crops of the batch.

    The NT-Xent loss gathers the crops of all processes. It starts near log(2 b - 1), the value of chance.
    """

    views = 2
    bar = {"loss": ("loss", ".3f"), "cosine": ("same_image", ".3f")}
    advice = "Lower the learning rate or simclr.temperature, or raise batch_size."

    def __init__(self, encoder: Encoder, config: PretrainingConfig):
        from lightly.loss import NTXentLoss

        super().__init__(config)
        self.network = self.forward = ProjectedEncoder(encoder, config)
        self.sampler = PatchSampler(self.own.crops)
        self.objective = NTXentLoss(
            self.own.temperature, gather_distributed=dist.is_available() and dist.is_initialized()
        )
        self.panels = (
            ("NT-Xent loss", {"loss": "loss"}, ("chance", math.log(2 * config.batch_size - 1))),
            ("mean cosine", {"same image": "same_image", "different images": "other_images"}, None),
        )

    def renew(self) -> None:
        self.network.projector.load_state_dict(self.network.build_projector().state_dict())

    def loss(self, images, valid, draw, progress, rank, world_size):
        self.set_weight_decay(progress)
        crops = self.sampler(images, valid, draw, rank, world_size)  # (2, b, 1, P, P)
        z = self.forward(crops.flatten(0, 1)).float().unflatten(0, crops.shape[:2])
        with torch.no_grad():
            cosine = F.normalize(z[0], dim=-1) @ F.normalize(z[1], dim=-1).T
            same = cosine.diagonal().mean()
            other = (cosine.sum() - cosine.diagonal().sum()) / max(1, cosine.numel() - len(cosine))
        with torch.autocast(z.device.type, enabled=False):
            return self.objective(z[0], z[1]), {"same_image": same, "other_images": other}

    def picture(self, path, images, valid, draw, title):
        crops = self.sampler(images.to(next(self.network.parameters()).device), valid, draw)[:, :, 0]
        return plots.picture_rows(
            path, {"image": images.float() / 255, "crop 1": crops[0], "crop 2": crops[1]}, f"{title}: two crops"
        )


# ---- DINOv2 -----------------------------------------------------------------------------------------------------------


class Distilled(nn.Module):
    """Student and teacher, each an encoder with a head; the teacher is the moving average, and what is kept."""

    def __init__(self, encoder: Encoder, config: PretrainingConfig):
        from lightly.loss import DINOLoss, IBOTPatchLoss

        super().__init__()
        c = self.config = config.dinov2
        self.base_encoder, self.student = encoder, Encoder(encoder.spec)
        self.student.load_state_dict(encoder.state_dict())
        self.teacher_head, self.student_head = self.build_head(), self.build_head()
        self.teacher_head.load_state_dict(self.student_head.state_dict())
        for parameter in (*self.base_encoder.parameters(), *self.teacher_head.parameters()):
            parameter.requires_grad = False
        self.mask_token = nn.Parameter(0.02 * torch.randn(encoder.width))
        momentum = (
            1.0 if c.centring == "sinkhorn" else c.center_momentum
        )  # 1: the losses leave the batch's centre alone
        self.dino = DINOLoss(c.prototypes, student_temp=c.student_temperature, center_momentum=momentum)
        self.ibot = IBOTPatchLoss(c.prototypes, student_temp=c.student_temperature, center_momentum=momentum)

    def build_head(self) -> nn.Module:
        from lightly.models.modules import DINOv2ProjectionHead

        c = self.config
        return DINOv2ProjectionHead(self.base_encoder.width, c.hidden, c.bottleneck, c.prototypes, c.batch_norm)

    def forward(self, crops: Tensor, hidden: Tensor | None = None) -> Tensor:
        """The student's tokens of crops (N, 1, P, P), after its last norm."""
        return embed_tokens(self.student, crops, hidden, self.mask_token)


def block_masks(batch: int, side: int, config, draw: torch.Generator) -> Tensor:
    """(batch, side, side) bool: rectangles hidden in a share of the crops, between two shares of the tokens.

    lightly draws them from Python's generator, which is seeded from `draw` for that long.
    """
    from lightly.models.utils import random_block_mask

    least = max(1, min(4, int(config.mask_low * side**2)))  # tokens of a rectangle
    before = random.getstate()
    random.seed(int(torch.randint(2**62, (1,), generator=draw)))
    try:
        return random_block_mask((batch, side, side), config.masked_crops, config.mask_low, config.mask_high, least)
    finally:
        random.setstate(before)


def sinkhorn_centre(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """The centre (K,) with which softmax((logits - centre) / temperature) uses all K prototypes about equally: logits (N, K).

    Sinkhorn-Knopp (Caron et al. 2020, arXiv 2006.09882): prototypes and crops are scaled to equal sums in turn. The scale u_k
    of a prototype is a shift of its logits, centre_k = -temperature log u_k; that of a crop is the softmax's own. All
    processes' crops count.
    """
    scaled = logits.float() / temperature
    crops = torch.zeros_like(scaled[:, :1])  # log of each crop's scale, up to a constant
    for _ in range(iterations):
        prototypes = torch.logsumexp(scaled + crops, 0)
        if dist.is_available() and dist.is_initialized():
            parts = [torch.empty_like(prototypes) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, prototypes)
            prototypes = torch.logsumexp(torch.stack(parts), 0)
        crops = -torch.logsumexp(scaled - prototypes, 1, keepdim=True)
    return temperature * (prototypes - prototypes.mean())


def entropy(p: Tensor) -> Tensor:
    """Mean entropy, in nats, of distributions (..., K)."""
    return -(p * p.clamp(min=1e-12).log()).sum(-1).mean()


class DINOv2(_Baseline):
    """DINOv2, Oquab et al. 2023, arXiv 2304.07193: a student predicts its own moving average.

    Class tokens of all crops against the teacher's of the two global crops (DINO), hidden tokens against the teacher's
    (iBOT), class tokens of different images apart (KoLeo). One head for class and other tokens, centring by moving
    average or by Sinkhorn-Knopp, teacher temperature with warm-up, weight decay from 0.04 to 0.4, gradients clipped, last
    layer frozen at first; no layer scale, no stochastic depth, no registers. The teacher is kept, as in the published weights.
    """

    bar = {"DINO": ("dino", ".3f"), "iBOT": ("ibot", ".3f"), "H": ("teacher_entropy", ".2f")}
    advice = "Lower the learning rate or the teacher's temperature, or raise batch_size."

    def __init__(self, encoder: Encoder, config: PretrainingConfig):
        from lightly.loss import KoLeoLoss

        super().__init__(config)
        c = self.own
        self.network = self.forward = Distilled(encoder, config)
        self.koleo = KoLeoLoss()
        self.large = PatchSampler(c.global_crops)
        self.small = PatchSampler(c.local_crops) if c.local_crops.count else None
        self.views = 2 + c.local_crops.count
        self.panels = (
            ("losses", {"DINO": "dino", "iBOT": "ibot", "KoLeo": "koleo"}, ("log K", math.log(c.prototypes))),
            (
                "entropy of the teacher",
                {"of a crop": "teacher_entropy", "of the batch": "mean_entropy"},
                ("log K", math.log(c.prototypes)),
            ),
        )

    def new_optimizer(self) -> torch.optim.AdamW:
        self.network.student_head.last_layer.requires_grad_(True)  # it may be at rest
        return super().new_optimizer()

    def renew(self) -> None:
        network = self.network
        network.student_head.load_state_dict(network.build_head().state_dict())
        network.teacher_head.load_state_dict(network.student_head.state_dict())
        network.dino.center.zero_()
        network.ibot.center.center.zero_()

    def loss(self, images, valid, draw, progress, rank, world_size):
        self.set_weight_decay(progress)
        c, network, b = self.own, self.network, len(images)
        network.student_head.last_layer.requires_grad_(progress >= c.frozen_prototypes)
        prefix = network.student.body.num_prefix_tokens
        large = self.large(images, valid, draw, rank, world_size).flatten(0, 1)  # (2 b, 1, P, P), first crops first
        small = self.small(images, valid, draw, rank, world_size) if self.small else None
        side = c.global_crops.size // network.student.spec.patch
        # Drawn for each process in turn, as the share of masked crops holds within each.
        every = [block_masks(2 * b, side, c, draw) for _ in range(world_size)]
        any_hidden = all(bool(m.any()) for m in every)  # without, a process's centre would become the mean of nothing
        masks = every[rank].to(large.device)
        hidden = masks.flatten(1)
        warm = min(1.0, progress / c.teacher_warmup) if c.teacher_warmup else 1.0
        temperature = c.teacher_temperature_start + warm * (c.teacher_temperature - c.teacher_temperature_start)

        with torch.no_grad():
            tokens = embed_tokens(network.base_encoder, large)
            teacher_class = network.teacher_head(network.base_encoder.body.forward_head(tokens)).float()
            if any_hidden:
                teacher_hidden = network.teacher_head(tokens[:, prefix:][hidden]).float()
        tokens = self.forward(large, hidden)
        vectors = network.student.body.forward_head(tokens)
        student_class = list(network.student_head(vectors).float().chunk(2))
        if any_hidden:
            student_hidden = network.student_head(tokens[:, prefix:][hidden]).float()
        if small is not None:
            n = len(small)
            local = network.student.body.forward_head(self.forward(small.flatten(0, 1)))
            student_class += network.student_head(local).float().chunk(n)

        with torch.autocast(large.device.type, enabled=False):
            if c.centring == "sinkhorn":
                network.dino.center = sinkhorn_centre(teacher_class, temperature).view(1, 1, -1)
                if any_hidden:
                    network.ibot.center.center = sinkhorn_centre(teacher_hidden, temperature).view(1, -1)
            targets = (teacher_class - network.dino.center[0]) / temperature
            p = targets.softmax(-1)
            dino = network.dino(list(teacher_class.chunk(2)), student_class, teacher_temp=temperature)
            ibot = (
                network.ibot(teacher_hidden, student_hidden, masks, temperature) if any_hidden else dino.new_zeros(())
            )
            koleo = sum(self.koleo(v) for v in vectors.float().chunk(2)) / 2
        total = c.dino_weight * dino + c.ibot_weight * ibot + c.koleo_weight * koleo
        terms = {
            "dino": dino,
            "ibot": ibot,
            "koleo": koleo,
            "teacher_entropy": entropy(p),
            "mean_entropy": entropy(p.mean(0)),
        }
        return total, {k: v.detach() for k, v in terms.items()}

    def after_step(self, progress: float) -> None:
        """The teacher follows: momentum rises by a cosine to 1 at the end of the stage."""
        from lightly.models.utils import update_momentum

        start = self.own.teacher_momentum
        momentum = 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * progress))
        network = self.network
        update_momentum(network.student, network.base_encoder, momentum)
        update_momentum(network.student_head, network.teacher_head, momentum)

    def picture(self, path, images, valid, draw, title):
        c, device = self.own, next(self.network.parameters()).device
        large = self.large(images.to(device), valid, draw)
        small = self.small(images.to(device), valid, draw)[:, :, 0] if self.small else []
        side, token = c.global_crops.size // self.network.student.spec.patch, self.network.student.spec.patch
        masks = block_masks(2 * len(images), side, c, draw).flatten(1).to(device)
        seen = split_into_tokens(large.flatten(0, 1), token).masked_fill(masks[..., None], math.nan)
        seen = join_tokens(seen, token)[:, 0].chunk(2)
        rows = {"image": images.float() / 255, "teacher, crop 1": large[0, :, 0]}
        rows |= {f"student, crop {i + 1}": crops for i, crops in enumerate(seen)}
        rows |= {f"student, small {i + 1}": crops for i, crops in enumerate(small[:2])}
        return plots.picture_rows(path, rows, f"{title}: global crops, some with hidden blocks, and small ones")


BASELINES = {"mae": MAE, "dinov2": DINOv2, "simclr": SimCLR, "spatial_frequency": SpatialFrequency}
