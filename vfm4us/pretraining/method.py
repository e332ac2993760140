"""What the trainer asks of a method, and what the methods other than ours share.

All train this project's `Encoder` through `trainer.Trainer`, on the same images, with the same guards, and leave the same
checkpoint. Decoders, heads and losses of others' methods are lightly's (`pip install -e .[baselines]`), the transformer is timm's.
As for every method, each random number is drawn for the global batch and cut to a process's part.
"""

import math
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vfm4us.pretraining.settings import AdamWConfig, PretrainingConfig


class Method(Protocol):
    """What `trainer.Trainer` asks of a method."""

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


class Baseline:
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
