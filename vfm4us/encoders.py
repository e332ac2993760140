"""Image encoders: torchvision ResNets and timm ViTs behind one small interface.

`encoder(x)` gives one vector per image, `encoder.pyramid(x)` the feature maps, `encoder.embed(images)` vectors straight
from uint8 images, whole or as a bag of patches. Grey and RGB input are both taken whatever `in_channels` is.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESNETS = ("resnet18", "resnet34", "resnet50")
VITS = {"vit_small": "vit_small_patch16_224", "vit_base": "vit_base_patch16_224"}
NAMES = RESNETS + tuple(VITS)

# One mean and deviation for all channels, so that a grey image means the same to a 1- and a 3-channel network;
# the averages over RGB of the ImageNet values that most downstream code normalises with.
MEAN, STD = 0.449, 0.226


@dataclass(frozen=True)
class EncoderSpec:
    """What a checkpoint says of its encoder."""

    name: str = "resnet18"
    in_channels: int = 3
    mean: float = MEAN
    std: float = STD


class Encoder(nn.Module):
    """`spec.name` with its head removed. `width` is the length of the vector it gives.

    Input: (N, 1 or 3, H, W) float in [0, 1]; normalisation happens inside. Raises ValueError for an unknown name.
    """

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
        elif name in VITS:
            import timm

            self.body = timm.create_model(VITS[name], num_classes=0, in_chans=channels, dynamic_img_size=True)
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
        """(N, 1 or 3, H, W) in [0, 1] -> the body's channels, normalised."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"encoder input must be (N, 1 or 3, H, W), got {tuple(x.shape)}")
        if x.shape[1] == 3 and self.spec.in_channels == 1:
            x = luminance(x)
        x = (x - self.spec.mean) / self.spec.std
        return x.expand(-1, self.spec.in_channels, -1, -1)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Feature maps, fine to coarse: strides 2, 4, 8, 16, 32 of a ResNet; the one stride-16 map of a ViT."""
        x, body = self.normalize(x), self.body
        if self.spec.name not in RESNETS:
            return [body.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]]
        maps = [body.relu(body.bn1(body.conv1(x)))]
        x = body.maxpool(maps[0])
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            maps.append(x := stage(x))
        return maps

    @torch.no_grad()
    def embed(self, images, patches: int = 0, valid=None, patch_size: int = 0, batch_size: int = 256) -> Tensor:
        """Vectors (N, width), float32 on the CPU, of `images`, in evaluation mode.

        images:  numpy or tensor, (N, H, W), (N, 1, H, W) or (N, 3, H, W), uint8 or float in [0, 1]
        patches: 0 for the whole image; n for the mean of n patches' unit-norm vectors (a bag of patches), n windows of a
                 quarter of the image's area on a regular grid
        valid:   (N, 4) top, left, height, width of the part of each image that is no padding; patches stay inside
        patch_size: side to which a patch is resized; 0 for half the image's side
        """
        images = torch.as_tensor(np.asarray(images)) if not isinstance(images, Tensor) else images
        images = images[:, None] if images.ndim == 3 else images
        if images.ndim != 4:
            raise ValueError(f"embed needs images of shape (N, H, W) or (N, C, H, W), got {tuple(images.shape)}")
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
