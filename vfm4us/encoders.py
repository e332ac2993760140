"""Image encoders: torchvision ResNets, timm ViTs and BEiTs behind one small interface.

`encoder(x)` gives one vector per image, `encoder.pyramid(x)` the feature maps, `encoder.embed(images)` vectors straight
from uint8 images, whole or as a bag of patches. Grey and RGB input are both taken whatever `in_channels` is.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm4us.data.images import image_batch

RESNETS = ("resnet18", "resnet34", "resnet50")
VITS = {  # width, depth, heads
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
}
BEITS = {name.replace("vit", "beit"): VITS[name] for name in ("vit_base", "vit_large")}
NAMES = RESNETS + tuple(VITS) + tuple(BEITS)

# One mean and deviation for all channels, so that a grey image means the same to a 1- and a 3-channel network;
# the averages over RGB of the ImageNet values that most downstream code normalises with.
MEAN, STD = 0.449, 0.226


@dataclass(frozen=True)
class EncoderSpec:
    """What a checkpoint says of its encoder. All but the first four are for transformers, which vary in more than size."""

    name: str = "resnet18"
    in_channels: int = 3
    mean: float = MEAN
    std: float = STD
    patch: int = 16  # side of a token, px
    image: int = 224  # side of the image that the position embeddings were made for, px
    heads: int = 0  # 0: the usual number for the name (MoCo v3 gives its vit_small 12 instead of 6)
    registers: int = 0  # register tokens (DINOv2)
    layer_scale: bool = False  # DINOv2
    norm: str = (
        "token"  # token: class token of the last norm; mean: norm of the mean token; mean_of_norm; none: no last norm
    )
    positions: str = "absolute"  # or relative: BEiT


class Encoder(nn.Module):
    """`spec.name` with its head removed. `width` is the length of the vector it gives.

    Input: (N, 1 or 3, H, W) float in [0, 1]; normalisation happens inside. A ViT resamples its position embeddings to the
    input's size; a BEiT, whose positions are relative within a fixed window, resamples the image instead.
    Raises ValueError for an unknown name. `report` says where loaded weights came from (`vfm4us.load_encoder`).
    """

    report = None

    def __init__(self, spec: EncoderSpec | None = None):
        super().__init__()
        self.spec = spec or EncoderSpec()
        name, channels = self.spec.name, self.spec.in_channels
        if channels not in (1, 3):
            raise ValueError(f"encoder.in_channels must be 1 or 3, got {channels}")
        if name in RESNETS:
            from torchvision.models import get_model

            self.body = get_model(name, weights=None)
            self.width, self.body.fc = self.body.fc.in_features, nn.Identity()
            if channels == 1:
                self.body.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
                nn.init.kaiming_normal_(self.body.conv1.weight, mode="fan_out", nonlinearity="relu")
        elif name in VITS or name in BEITS:
            self.body = _transformer(self.spec)
            self.width = self.body.num_features
        else:
            raise ValueError(f"encoder.name {name!r} is not one of {', '.join(NAMES)}")

    @property
    def first_convolution(self) -> str:
        """Name of the one tensor whose shape depends on the number of input channels."""
        return "conv1.weight" if self.spec.name in RESNETS else "patch_embed.proj.weight"

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.normalize(x))

    def normalize(self, x: Tensor) -> Tensor:
        """(N, 1 or 3, H, W) in [0, 1] -> the body's channels, normalised; resampled to the window of a BEiT."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"encoder input must be (N, 1 or 3, H, W), got {tuple(x.shape)}")
        if x.shape[1] == 3 and self.spec.in_channels == 1:
            x = luminance(x)
        if self.spec.name in BEITS and x.shape[-2:] != (self.spec.image,) * 2:
            x = F.interpolate(x, (self.spec.image,) * 2, mode="bilinear", antialias=True, align_corners=False)
        x = (x - self.spec.mean) / self.spec.std
        return x.expand(-1, self.spec.in_channels, -1, -1)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Feature maps, fine to coarse: strides 2, 4, 8, 16, 32 of a ResNet; the one map of a transformer's tokens."""
        x, body = self.normalize(x), self.body
        if self.spec.name not in RESNETS:
            return [body.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]]
        maps = [body.relu(body.bn1(body.conv1(x)))]
        x = body.maxpool(maps[0])
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            maps.append(x := stage(x))
        return maps

    @torch.no_grad()
    def embed(
        self, images, patches: int = 0, valid=None, patch_size: int = 0, batch_size: int = 256, size: int = 224
    ) -> Tensor:
        """Vectors (N, width), float32 on the CPU, of `images`, in evaluation mode.

        images:  anything `vfm4us.data.images.image_batch` takes: a tensor or array of uint8 or of float in [0, 1], grey or
                 RGB; PIL images, a list of images of different sizes, or the path of an image, a folder or a CSV manifest
        patches: 0 for the whole image; n for the mean of n patches' unit-norm vectors (a bag of patches), n windows of a
                 quarter of the image's area on a regular grid
        valid:   (N, 4) top, left, height, width of the part of each image that is no padding; patches stay inside
        patch_size: side to which a patch is resized; 0 for half the image's side
        size:    longer side that a folder's images, or a list's of different sizes, are resized to, px
        """
        images, own = image_batch(images, size)
        valid = own if valid is None else valid
        device, training = next(self.parameters()).device, self.training
        self.eval()
        try:
            rows = []
            step = max(1, batch_size // max(1, patches))
            for start in range(0, len(images), step):
                x = images[start : start + step].to(device)
                x = x.float().div(255) if x.dtype == torch.uint8 else x.float()
                if patches:
                    boxes = None if valid is None else torch.as_tensor(np.asarray(valid)[start : start + step])
                    bag = regular_patches(x, patches, boxes, patch_size)  # (n, N, C, P, P)
                    z = F.normalize(self(bag.flatten(0, 1)).float(), dim=-1)
                    rows.append(z.view(patches, len(x), -1).mean(0).cpu())
                else:
                    rows.append(self(x).float().cpu())
        finally:
            self.train(training)
        return torch.cat(rows) if rows else torch.empty(0, self.width)

    def published_state(self) -> dict[str, Tensor]:
        """The body's tensors as other libraries expect them: contiguous, with a 3-channel first convolution.

        A third of a one-channel kernel on each of three equal channels gives the same sum.
        """
        state = {key: value.detach().cpu().contiguous() for key, value in self.body.state_dict().items()}
        if self.spec.in_channels == 1:
            key = self.first_convolution
            state[key] = (state[key] / 3).repeat(1, 3, 1, 1)
        return state

    def load_published_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of `published_state`; a 3-channel kernel is summed for a 1-channel body."""
        state = dict(state)
        if self.spec.in_channels == 1:
            key = self.first_convolution
            state[key] = state[key].sum(1, keepdim=True)
        self.body.load_state_dict(state)

    def spec_dict(self) -> dict:
        """The spec as a checkpoint states it: of the published, 3-channel form."""
        return asdict(self.spec) | {"in_channels": 3, "mean": [self.spec.mean] * 3, "std": [self.spec.std] * 3}


def _transformer(spec: EncoderSpec) -> nn.Module:
    """timm's ViT or BEiT of this spec, without a head."""
    from timm.models.beit import Beit
    from timm.models.vision_transformer import VisionTransformer

    width, depth, heads = (VITS | BEITS)[spec.name]
    common = {
        "img_size": spec.image,
        "patch_size": spec.patch,
        "in_chans": spec.in_channels,
        "num_classes": 0,
        "embed_dim": width,
        "depth": depth,
        "num_heads": spec.heads or heads,
    }
    pool = "token" if spec.norm == "token" else "avg"
    if spec.name in BEITS:
        body = Beit(
            **common,
            global_pool=pool,
            use_fc_norm=spec.norm == "mean",
            init_values=0.1,
            use_abs_pos_emb=spec.positions != "relative",
            use_rel_pos_bias=True,
        )
        if spec.norm == "none":
            body.norm = nn.Identity()
        return body
    return VisionTransformer(
        **common,
        global_pool=pool,
        fc_norm=spec.norm == "mean",
        final_norm=spec.norm != "none",
        init_values=1e-5 if spec.layer_scale else None,
        reg_tokens=spec.registers,
        no_embed_class=spec.registers > 0,
        dynamic_img_size=True,
        dynamic_img_pad=True,
    )


def luminance(x: Tensor) -> Tensor:
    """(N, 3, H, W) RGB -> (N, 1, H, W), ITU-R 601 weights."""
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def regular_patches(x: Tensor, count: int, valid: Tensor | None = None, size: int = 0) -> Tensor:
    """`count` windows of half the height and width on a regular grid: (N, C, H, W) -> (count, N, C, P, P)."""
    side = size or max(16, min(x.shape[-2:]) // 2)
    rows = math.ceil(math.sqrt(count))
    place = torch.arange(count, device=x.device)
    down, right = (place // rows) / max(1, math.ceil(count / rows) - 1), (place % rows) / max(1, rows - 1)
    if valid is None:
        valid = torch.tensor([[0, 0, x.shape[-2], x.shape[-1]]], device=x.device).expand(len(x), 4)
    top, left, height, width = valid.to(x.device).float().unbind(-1)
    steps = (torch.arange(side, device=x.device) + 0.5) / side
    y = (top + down[:, None] * height / 2)[..., None] + steps * (height / 2)[:, None]  # (n, N, P)
    x_ = (left + right[:, None] * width / 2)[..., None] + steps * (width / 2)[:, None]
    grid = torch.stack(
        torch.broadcast_tensors((2 * x_ / x.shape[-1] - 1)[:, :, None, :], (2 * y / x.shape[-2] - 1)[:, :, :, None]),
        dim=-1,
    )
    return torch.stack([F.grid_sample(x, g, padding_mode="border", align_corners=False) for g in grid])
