"""What a method is, and what the methods other than ours share.

A new method is a subclass of `Method` in a file of `methods/`, and one line in `methods/__init__.py`: its `Config` becomes the
section of its name. It is given an encoder, that section, and the images of a step over all processes; it gives back a loss.
Each random number is drawn for the global batch and cut to a process's part, so that k processes see what one would.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vfm4us.augment import ViewConfig
from vfm4us.config import option
from vfm4us.pretraining.pictures import Picture

Panels = tuple[tuple[str, dict[str, str], tuple[str, float] | None], ...]


class Method:
    """A network around an encoder, its loss on a batch of images, and its optimizer."""

    Config: ClassVar[type]  # its section of the config
    about: ClassVar[str]  # the same section in a few words, for --help
    masks_tokens: ClassVar[bool] = False  # needs a transformer
    norm: ClassVar[str] = "token"  # the vector of a transformer that it trains
    rate_images: ClassVar[int]  # the learning rate is given per this many images of a batch
    package: ClassVar[str] = ""  # of the extra `baselines`, that it cannot do without
    highest_rate: ClassVar[float] = math.inf  # a rate above it is meant for another optimizer

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

    # ---- of its config alone

    @classmethod
    def check(cls, config: Any, patch: int) -> None:
        """ValueError for what cannot work, beginning with the key within the section; `patch`: side of a transformer's token."""

    @classmethod
    def crops(cls, config: Any) -> dict[str, Any]:
        """Name -> what is cut from each image, with a `size` in px; the first is what a transformer is made for."""
        raise NotImplementedError

    @classmethod
    def image_side(cls, config: Any) -> int:
        """Side of the images that a transformer's positions are made for; 0: as usual."""
        return next(iter(cls.crops(config).values())).size

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


@dataclass
class AdamWConfig:
    """The optimizer of all methods but emp_ssl: its averages, weight decay and clipping; the rate is the stage's."""

    beta1: float = option(0.9, "decay of the mean gradient", low=0.0, high=0.9999)
    beta2: float = option(0.95, "decay of the mean squared gradient", low=0.0, high=0.9999)
    weight_decay: float = option(0.05, "on matrices and kernels only", low=0.0)
    weight_decay_end: float = option(-1.0, "reached by a cosine at the end of the stage; -1: constant", low=-1.0)
    clip: float = option(0.0, "longest gradient over all parameters; 0: any", low=0.0)


@dataclass
class CropConfig(ViewConfig):
    """How many crops are cut from an image, how large they are, and how each of them is varied."""

    count: int = option(1, "crops per image", low=0, high=1024)
    size: int = option(224, "side of a crop, px", low=16, high=4096)


# One crop of most of the image, hardly varied: the images are the target.
WEAK = {
    "scale_low": 0.2,
    "scale_high": 1.0,
    "gain": 0.1,
    "contrast": 0.1,
    "gamma": 0.1,
    "blur": 0.0,
    "speckle": 0.0,
    "depth_gain": 0.0,
}
STRONG = {"gain": 0.4, "contrast": 0.4, "gamma": 0.3, "blur": 0.5, "speckle": 0.2, "depth_gain": 0.3}


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
    highest_rate = 0.15
    package = "lightly"

    def __init__(self, config: Any):
        self.config, self.clip = config, config.adamw.clip

    @classmethod
    def check(cls, config: Any, patch: int) -> None:
        for name, crops in cls.crops(config).items():
            if crops.count == 0 and name != "local_crops":
                raise ValueError(f"{name}.count is 0: a method without crops sees nothing")
            if crops.scale_low > crops.scale_high:
                raise ValueError(f"{name}.scale_low {crops.scale_low} is above {name}.scale_high {crops.scale_high}")

    @classmethod
    def crops(cls, config: Any) -> dict[str, CropConfig]:
        return {"crops": config.crops}

    def new_optimizer(self) -> torch.optim.AdamW:
        return adamw(self.network, self.config.adamw)

    def before_step(self, progress: float) -> None:
        start, end = self.config.adamw.weight_decay, self.config.adamw.weight_decay_end
        if end >= 0:
            decay = end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
            self.optimizer.param_groups[0]["weight_decay"] = decay
