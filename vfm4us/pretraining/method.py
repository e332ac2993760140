"""What a method is, and what the methods other than ours share.

A new method is a subclass of `Method` in a file of `methods/`, called METHOD there, and a section in `sections.py`. It is given
an encoder, that section, and the images of a step over all processes; it gives back a loss. Each random number is drawn for the
global batch and cut to a process's part, so that k processes see what one would.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vfm4us.pretraining.pictures import Picture
from vfm4us.pretraining.section import AdamWConfig

Panels = tuple[tuple[str, dict[str, str], tuple[str, float] | None], ...]


class Method:
    """A network around an encoder, its loss on a batch of images, and its optimizer."""

    norm: ClassVar[str] = "token"  # the vector of a transformer that it trains
    rate_images: ClassVar[int]  # the learning rate is given per this many images of a batch

    network: nn.Module  # all that is saved; its `base_encoder` is what is measured and kept
    forward: nn.Module  # the part of it that `compile=true` compiles
    optimizer: torch.optim.Optimizer  # each group has a `scale` of the learning rate
    views: int  # crops of an image per step
    clip: float = 0.0  # longest gradient; 0: any

    # What a person is shown of it.
    pictured: ClassVar[int] = 8  # images in a picture
    bar: ClassVar[dict[str, tuple[str, str]]]  # short name -> term of the loss and its format
    panels: Panels  # of the curve: title, label -> term, (label, value) of a line or None
    advice: ClassVar[str] = "Lower the learning rate, or raise batch_size."  # against collapse

    def __init__(self, encoder: nn.Module, config: Any, batch_size: int):
        raise NotImplementedError

    # ---- of a step

    def new_optimizer(self) -> torch.optim.Optimizer:
        """At the start of a stage."""
        raise NotImplementedError

    def before_step(self, progress: float) -> None:
        """Weight decay, temperatures, what is at rest: functions of the share of the stage that is done."""

    def loss(
        self, images: Tensor, valid: Tensor, draw: torch.Generator, rank: int = 0, world_size: int = 1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and detached terms of a process's images (b / k, S, S) uint8. Changes nothing."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """What follows the trained weights, where that is not themselves."""

    def renew(self) -> None:
        """New weights for all but the encoder."""
        raise NotImplementedError

    # ---- for a person

    def said(self, values: dict[str, float]) -> str:
        """The terms of a step in words."""
        return ", ".join(f"{name.replace('_', ' ')} {v:.3f}" for name, v in values.items() if name != "learning_rate")

    def picture(self, images: Tensor, valid: Tensor, draw: torch.Generator) -> Picture:
        """What the network sees of these images; drawn by `pictures.draw`."""
        raise NotImplementedError


# ---- of the methods that train with AdamW ------------------------------------------------------------------------------


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


class Baseline(Method):
    """What others' methods share: AdamW, and lightly's decoders, heads and losses (`pip install -e .[baselines]`)."""

    rate_images = 256

    def __init__(self, config: Any):
        self.config, self.clip = config, config.adamw.clip

    def new_optimizer(self) -> torch.optim.AdamW:
        return adamw(self.network, self.config.adamw)

    def before_step(self, progress: float) -> None:
        start, end = self.config.adamw.weight_decay, self.config.adamw.weight_decay_end
        if end >= 0:
            decay = end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
            self.optimizer.param_groups[0]["weight_decay"] = decay
