"""DINOv2: a student predicts its own moving average."""

import math
import random
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vfm4us.augment import PatchSampler, moved
from vfm4us.encoders import Encoder
from vfm4us.pretraining.method import Baseline
from vfm4us.pretraining.pictures import Picture, Rows
from vfm4us.pretraining.sections import DINOv2Config
from vfm4us.pretraining.tokens import (
    join_tokens,
    split_into_tokens,
)
from vfm4us.runtime.processes import come_to_meeting


class Distilled(nn.Module):
    """Student and teacher, each an encoder with a head; the teacher is the moving average, and what is kept."""

    def __init__(self, encoder: Encoder, config: DINOv2Config):
        from lightly.loss import DINOLoss, IBOTPatchLoss

        super().__init__()
        c = self.config = config
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
        """A projection head with prototypes; student and teacher have one each."""
        from lightly.models.modules import DINOv2ProjectionHead

        c = self.config
        return DINOv2ProjectionHead(self.base_encoder.width, c.hidden, c.bottleneck, c.prototypes, c.batch_norm)

    def forward(self, crops: Tensor, hidden: Tensor | None = None) -> Tensor:
        """The student's tokens of crops (N, 1, P, P), after its last norm."""
        return self.student.embed_tokens(crops, hidden, self.mask_token)


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


def token_weights(masks: Tensor) -> Tensor:
    """One weight for each hidden token of bool masks (B, rows, columns), equal within a crop: all crops that have some count alike.

    They sum to the share of the B crops that have any.
    """
    count = masks.sum((1, 2), keepdim=True).clamp(min=1)
    return (1.0 / (count * len(masks))).expand_as(masks)[masks]


def masked_cross_entropy(ibot, teacher: Tensor, student: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """iBOT's loss of the hidden tokens' logits (M, K), weighted by `token_weights`; moves the centre of `ibot` on.

    lightly's own forward, but for indexing by a mask on the device.
    """
    wanted = ((teacher - ibot.center.value) / temperature).softmax(-1)
    loss = -(wanted * (student / ibot.student_temp).log_softmax(-1)).sum(-1)
    come_to_meeting()
    ibot.center.update(teacher)
    return (loss * weights).sum()


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
            come_to_meeting()
            dist.all_gather(parts, prototypes)
            prototypes = torch.logsumexp(torch.stack(parts), 0)
        crops = -torch.logsumexp(scaled - prototypes, 1, keepdim=True)
    return temperature * (prototypes - prototypes.mean())


def entropy(p: Tensor) -> Tensor:
    """Mean entropy, in nats, of distributions (..., K)."""
    return -(p * p.clamp(min=1e-12).log()).sum(-1).mean()


class DINOv2(Baseline):
    """DINOv2, Oquab et al. 2023, arXiv 2304.07193: a student predicts its own moving average.

    Class tokens of all crops against the teacher's of the two global crops (DINO), hidden tokens against the teacher's
    (iBOT), class tokens of different images apart (KoLeo). One head for class and other tokens, centring by moving
    average or by Sinkhorn-Knopp, teacher temperature with warm-up, weight decay from 0.04 to 0.4, gradients clipped, last
    layer frozen at first; no layer scale, no stochastic depth, no registers. The teacher is kept, as in the published weights.
    """

    bar: ClassVar = {"DINO": ("dino", ".3f"), "iBOT": ("ibot", ".3f"), "H": ("teacher_entropy", ".2f")}
    advice = "Lower the learning rate or the teacher's temperature, or raise batch_size."

    def __init__(self, encoder: Encoder, config: DINOv2Config, batch_size: int):
        from lightly.loss import KoLeoLoss

        super().__init__(config)
        c = self.config
        self.network = self.forward = Distilled(encoder, config)
        self.koleo, self.temperature = KoLeoLoss(), config.teacher_temperature_start
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

    def before_step(self, progress: float) -> None:
        super().before_step(progress)
        c = self.config
        self.network.student_head.last_layer.requires_grad_(progress >= c.frozen_prototypes)
        warm = min(1.0, progress / c.teacher_warmup) if c.teacher_warmup else 1.0
        self.temperature = c.teacher_temperature_start + warm * (c.teacher_temperature - c.teacher_temperature_start)

    def loss(self, images, valid, draw, rank=0, world_size=1):
        c, network, b, temperature = self.config, self.network, len(images), self.temperature
        prefix = network.student.tokens.prefix
        large = self.large(images, valid, draw, rank, world_size).flatten(0, 1)  # (2 b, 1, P, P), first crops first
        small = self.small(images, valid, draw, rank, world_size) if self.small else None
        side = c.global_crops.size // network.student.spec.patch
        # Drawn for each process in turn, as the share of masked crops holds within each.
        every = [block_masks(2 * b, side, c, draw) for _ in range(world_size)]
        any_hidden = all(bool(m.any()) for m in every)  # without, a process's centre would become the mean of nothing
        hidden = moved(every[rank].flatten(1), large.device)
        # Places and weights of the hidden tokens are taken on the CPU: indexing by a mask would wait for a GPU.
        places = moved(every[rank].flatten().nonzero()[:, 0], large.device)
        weights = moved(token_weights(every[rank]), large.device)

        with torch.no_grad():
            tokens = network.base_encoder.embed_tokens(large)
            teacher_class = network.teacher_head(network.base_encoder.pool(tokens)).float()
            if any_hidden:
                teacher_hidden = network.teacher_head(tokens[:, prefix:].flatten(0, 1)[places]).float()
        tokens = self.forward(large, hidden)
        vectors = network.student.pool(tokens)
        student_class = list(network.student_head(vectors).float().chunk(2))
        if any_hidden:
            student_hidden = network.student_head(tokens[:, prefix:].flatten(0, 1)[places]).float()
        if small is not None:
            n = len(small)
            local = network.student.pool(self.forward(small.flatten(0, 1)))
            student_class += network.student_head(local).float().chunk(n)

        with torch.autocast(large.device.type, enabled=False):
            if c.centring == "sinkhorn":
                network.dino.center = sinkhorn_centre(teacher_class, temperature).view(1, 1, -1)
                if any_hidden:
                    network.ibot.center.center = sinkhorn_centre(teacher_hidden, temperature).view(1, -1)
            targets = (teacher_class - network.dino.center[0]) / temperature
            p = targets.softmax(-1)
            come_to_meeting()  # the loss sums the centre over all processes
            dino = network.dino(list(teacher_class.chunk(2)), student_class, teacher_temp=temperature)
            ibot = dino.new_zeros(())
            if any_hidden:
                ibot = masked_cross_entropy(network.ibot, teacher_hidden, student_hidden, weights, temperature)
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

        start = self.config.teacher_momentum
        momentum = 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * progress))
        network = self.network
        update_momentum(network.student, network.base_encoder, momentum)
        update_momentum(network.student_head, network.teacher_head, momentum)

    def picture(self, images, valid, draw) -> Picture:
        c, device = self.config, next(self.network.parameters()).device
        large = self.large(images.to(device), valid, draw)
        small = self.small(images.to(device), valid, draw)[:, :, 0] if self.small else []
        side, token = c.global_crops.size // self.network.student.spec.patch, self.network.student.spec.patch
        masks = block_masks(2 * len(images), side, c, draw).flatten(1).to(device)
        seen = split_into_tokens(large.flatten(0, 1), token).masked_fill(masks[..., None], math.nan)
        seen = join_tokens(seen, token)[:, 0].chunk(2)
        rows = {"image": images.float() / 255, "teacher, crop 1": large[0, :, 0]}
        rows |= {f"student, crop {i + 1}": crops for i, crops in enumerate(seen)}
        rows |= {f"student, small {i + 1}": crops for i, crops in enumerate(small[:2])}
        return Rows(rows, "global crops, some with hidden blocks, and small ones")


METHOD = DINOv2
