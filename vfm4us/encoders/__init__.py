"""Image encoders behind one small interface: torchvision ResNets, timm ViTs and BEiTs.

`encoder(x)` gives one vector per image, `encoder.pyramid(x)` the feature maps, `encoder.embed(images)` vectors straight
from uint8 images, whole or as a bag of patches. Grey and RGB input are both taken whatever `in_channels` is.

What is known of encoders by name lies in `families.py`; all else here is imported when it is first asked for, as it needs torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vfm4us.encoders.families import NAMES, names

if TYPE_CHECKING:
    from vfm4us.encoders.base import MEAN, STD, Encoder, EncoderSpec, Tokens, family, luminance, regular_patches
    from vfm4us.encoders.resnet import ResNet
    from vfm4us.encoders.small_maps import use_small_maps
    from vfm4us.encoders.vit import BEiT, ViT, write_attention_out

__all__ = [
    "MEAN",
    "NAMES",
    "STD",
    "BEiT",
    "Encoder",
    "EncoderSpec",
    "ResNet",
    "Tokens",
    "ViT",
    "family",
    "luminance",
    "names",
    "regular_patches",
    "use_small_maps",
    "write_attention_out",
]
MODULES = {
    "ResNet": "resnet",
    "BEiT": "vit",
    "ViT": "vit",
    "write_attention_out": "vit",
    "use_small_maps": "small_maps",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{MODULES.get(name, 'base')}"), name)
