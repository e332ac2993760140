"""SimCLR: two crops of an image against all other crops of the batch."""

import math
from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vfm4us.augment import PatchSampler
from vfm4us.encoders import Encoder
from vfm4us.pretraining.method import Baseline
from vfm4us.pretraining.pictures import Picture, Rows
from vfm4us.pretraining.sections import SimCLRConfig
from vfm4us.runtime.processes import come_to_meeting


class ProjectedEncoder(nn.Module):
    """Encoder and SimCLR's projector: crops (N, 1, P, P) -> (N, out)."""

    def __init__(self, encoder: Encoder, config: SimCLRConfig):
        super().__init__()
        self.base_encoder, self.config = encoder, config
        self.projector = self.build_projector()

    def build_projector(self) -> nn.Module:
        """The projection head, which is thrown away after pretraining."""
        from lightly.models.modules import SimCLRProjectionHead

        return SimCLRProjectionHead(self.base_encoder.width, self.config.hidden, self.config.out)

    def forward(self, crops: Tensor) -> Tensor:
        return self.projector(self.base_encoder(crops))


class SimCLR(Baseline):
    """SimCLR, Chen et al. 2020, arXiv 2002.05709: two crops of an image against all other crops of the batch.

    The NT-Xent loss gathers the crops of all processes. It starts near log(2 b - 1), the value of chance.
    """

    views = 2
    bar: ClassVar = {"loss": ("loss", ".3f"), "cosine": ("same_image", ".3f")}
    advice = "Lower the learning rate or simclr.temperature, or raise batch_size."

    def __init__(self, encoder: Encoder, config: SimCLRConfig, batch_size: int):
        from lightly.loss import NTXentLoss

        super().__init__(config)
        self.network = self.forward = ProjectedEncoder(encoder, config)
        self.sampler = PatchSampler(self.config.crops)
        self.objective = NTXentLoss(
            self.config.temperature, gather_distributed=dist.is_available() and dist.is_initialized()
        )
        self.panels = (
            ("NT-Xent loss", {"loss": "loss"}, ("chance", math.log(2 * batch_size - 1))),
            ("mean cosine", {"same image": "same_image", "different images": "other_images"}, None),
        )

    def renew(self) -> None:
        self.network.projector.load_state_dict(self.network.build_projector().state_dict())

    def loss(self, images, valid, draw, rank=0, world_size=1):
        crops = self.sampler(images, valid, draw, rank, world_size)  # (2, b, 1, P, P)
        z = self.forward(crops.flatten(0, 1)).float().unflatten(0, crops.shape[:2])
        with torch.no_grad():
            cosine = F.normalize(z[0], dim=-1) @ F.normalize(z[1], dim=-1).T
            same = cosine.diagonal().mean()
            other = (cosine.sum() - cosine.diagonal().sum()) / max(1, cosine.numel() - len(cosine))
        come_to_meeting()  # the loss gathers the crops of all processes
        with torch.autocast(z.device.type, enabled=False):
            return self.objective(z[0], z[1]), {"same_image": same, "other_images": other}

    def picture(self, images, valid, draw) -> Picture:
        crops = self.sampler(images.to(next(self.network.parameters()).device), valid, draw)[:, :, 0]
        return Rows({"image": images.float() / 255, "crop 1": crops[0], "crop 2": crops[1]}, "two crops")


METHOD = SimCLR
