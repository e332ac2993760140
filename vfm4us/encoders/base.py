"""What every encoder is: its spec, its input, its vectors, and what it says of itself."""

import contextlib
import importlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm4us.encoders.families import family_of, names

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


class Tokens(NamedTuple):
    """The tokens of a transformer: a square grid of patches, and before them class and register tokens."""

    side: int  # of a patch, px
    prefix: int  # class and register tokens
    rows: int  # of the grid, for images of `spec.image` px

    @property
    def count(self) -> int:  # type: ignore[override]  # of a tuple nobody counts
        """Patches of an image of `spec.image` px."""
        return self.rows**2


_CLASSES: dict[str, type["Encoder"]] = {}  # name of an encoder -> its class, filled as the families are imported


def family(name: str) -> type["Encoder"]:
    """The class of an encoder by its name; ValueError lists the names."""
    importlib.import_module(f"vfm4us.encoders.{family_of(name).module}")
    return _CLASSES[name]


class Encoder(nn.Module):
    """`spec.name` with its head removed; `Encoder(spec)` is an instance of the family that has this name.

    Input: (N, 1 or 3, H, W) float in [0, 1]; normalisation happens inside. A ViT resamples its position embeddings to the
    input's size; a BEiT, whose positions are relative within a fixed window, resamples the image instead.
    Raises ValueError for an unknown name. `report` says where loaded weights came from (`vfm4us.load_encoder`).

    A family sets the class attributes and writes `build` and `pyramid`; no other module asks which family an encoder is of.
    """

    sizes: ClassVar[dict[str, tuple]] = {}  # name -> what `build` needs to know of it
    has_tokens: ClassVar[bool]  # of `families.py`
    any_size: ClassVar[bool] = True  # sees images at the size they have; else at `spec.image`
    first_convolution: ClassVar[str]  # name of the one tensor whose shape depends on the number of input channels
    head: ClassVar[str]  # what torchvision and timm call the classifier that was removed

    width: int  # length of the vector
    channels: tuple[int, ...]  # of the maps of `pyramid`, fine to coarse
    strides: tuple[int, ...]  # of the same maps: pixels from one place of a map to the next
    stages: tuple[str, ...]  # shallow to deep: the stem, then the blocks or stages
    tokens: Tokens | None = None
    report: Any = None

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        for name in cls.sizes:
            _CLASSES[name], cls.has_tokens = cls, family_of(name).has_tokens

    def __new__(cls, spec: EncoderSpec | None = None) -> "Encoder":
        return super().__new__(family((spec or EncoderSpec()).name) if cls is Encoder else cls)

    def __init__(self, spec: EncoderSpec | None = None):
        super().__init__()
        self.spec = spec or EncoderSpec()
        if self.spec.in_channels not in (1, 3):
            raise ValueError(f"encoder.in_channels must be 1 or 3, got {self.spec.in_channels}")
        self.body = self.build()

    # ---- what a family writes ------------------------------------------------------------------------------------

    def build(self) -> nn.Module:
        """The network of `self.spec` without a head, as torchvision or timm names its tensors; sets what stands above."""
        raise NotImplementedError

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Feature maps (N, channels, H / stride, W / stride), fine to coarse."""
        raise NotImplementedError

    def stage_of(self, name: str) -> int:
        """Place in `stages` of a tensor of the body."""
        raise NotImplementedError

    @contextlib.contextmanager
    def watching(self) -> Iterator[SimpleNamespace]:
        """While it is open, `.tensor` is what the last call put into or out of the deepest stage, within the graph.

        `as_map` makes a map of it: (N, C, h, w). For pictures of where the evidence lies.
        """
        raise NotImplementedError
        yield

    def as_map(self, x: Tensor) -> Tensor:
        """(N, C, h, w) of what `watching` gives."""
        return x

    def dilate(self) -> None:
        """Let the deepest stage work at stride 16, where it has a coarser one; the tensors stay what they are."""

    def timm_model(self) -> tuple[str, dict[str, Any]]:
        """timm's name for this network, and the options of `timm.create_model` that it needs."""
        return self.spec.name, {}

    @classmethod
    def torchvision_name(cls, name: str) -> str | None:
        """torchvision's name for the network, which segmentation-models-pytorch shares; None where it has none."""
        return None

    # ---- tokens, for masked methods ------------------------------------------------------------------------------

    def embed_tokens(
        self,
        x: Tensor,
        hidden: Tensor | None = None,
        mask_token: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """All tokens after the last norm: x (N, 1 or 3, P, P) -> (N, prefix + L, width), class and register tokens first.

        hidden (N, L) bool: these tokens are replaced by `mask_token` (width,). kept (N, M): only these tokens are looked at.
        """
        raise ValueError(f"a {self.spec.name} has no tokens to mask: use one of {', '.join(names(maskable=True))}")

    def pool(self, tokens: Tensor) -> Tensor:
        """The image's vector (N, width) of what `embed_tokens` gives."""
        raise ValueError(f"a {self.spec.name} has no tokens to mask: use one of {', '.join(names(maskable=True))}")

    # ---- the same for all families -------------------------------------------------------------------------------

    @property
    def depths(self) -> int:
        """Number of depths that `depth_of` tells apart."""
        return len(self.stages)

    def depth_of(self, name: str) -> int:
        """Depth of one of `named_parameters()`: 0 for the stem, `depths - 1` for the last block and what comes after it."""
        return self.stage_of(name.removeprefix("body."))

    @property
    def first_kernel(self) -> nn.Parameter:
        """The kernel of the first convolution."""
        return self.body.get_parameter(self.first_convolution)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.normalize(x))

    def normalize(self, x: Tensor) -> Tensor:
        """(N, 1 or 3, H, W) in [0, 1] -> the body's channels, normalised; resampled where the family has a fixed window."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"encoder input must be (N, 1 or 3, H, W), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(
                f"encoder input must be float in [0, 1], got {x.dtype}: images.float() / 255, or encoder.embed"
            )
        if x.shape[1] == 3 and self.spec.in_channels == 1:
            x = luminance(x)
        if not self.any_size and x.shape[-2:] != (self.spec.image,) * 2:
            x = F.interpolate(x, (self.spec.image,) * 2, mode="bilinear", antialias=True, align_corners=False)
        x = (x - self.spec.mean) / self.spec.std
        return x.expand(-1, self.spec.in_channels, -1, -1)

    def program(self) -> nn.Module:
        """Normalisation and network alone, for a recorded program: (N, in_channels, H, W) in [0, 1] -> (N, width)."""
        return _Program(self).eval()

    @torch.no_grad()
    def embed(
        self,
        images: Any,
        patches: int = 0,
        valid: Any = None,
        patch_size: int = 0,
        batch_size: int = 256,
        size: int = 224,
    ) -> Tensor:
        """Vectors (N, width), float32 on the CPU, of `images`, in evaluation mode.

        images:  anything `vfm4us.data.images.image_batch` takes: one image or a list of them (paths, PIL images, arrays), which
                 become grey and are resized to `size`; a folder or a CSV manifest; or a batch as a tensor or array of uint8 or
                 of float in [0, 1], grey or RGB, which keeps its size
        patches: 0 for the whole image; n for the mean of n patches' unit-norm vectors (a bag of patches), n windows of a
                 quarter of the image's area on a regular grid
        valid:   (N, 4) top, left, height, width of the part of each image that is no padding; patches stay inside
        patch_size: side to which a patch is resized; 0 for half the image's side
        size:    longer side that images other than a batch are resized to, px
        Raises ValueError and FileNotFoundError as `image_batch`.
        """
        from vfm4us.data.images import image_batch  # only this call knows of files; the encoders lie below them

        for name, value, low in (
            ("patches", patches, 0),
            ("patch_size", patch_size, 0),
            ("batch_size", batch_size, 1),
            ("size", size, 16),
        ):
            if not isinstance(value, int | np.integer) or value < low:
                raise ValueError(f"{name}={value!r}: expected a whole number of at least {low}")
        images, sizes = image_batch(images, size)
        valid = sizes if valid is None else valid
        if valid is not None and tuple(np.shape(valid)) != (len(images), 4):
            raise ValueError(
                f"valid of shape {tuple(np.shape(valid))}: expected ({len(images)}, 4), a row for each image"
            )
        device, training = next(self.parameters()).device, self.training
        self.eval()
        try:
            rows = []
            step = max(1, batch_size // max(1, patches))
            for start in range(0, len(images), step):
                x = images[start : start + step].to(device)
                x = x.float().div(255) if x.dtype == torch.uint8 else x.float()  # image_batch has seen to its range
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


class _Program(nn.Module):
    """An encoder without the checks of shapes, which a recorded program cannot hold."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.body, self.mean, self.std = encoder.body, encoder.spec.mean, encoder.spec.std

    def forward(self, images: Tensor) -> Tensor:
        return self.body((images - self.mean) / self.std)


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
