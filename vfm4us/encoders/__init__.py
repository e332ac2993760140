"""Image encoders behind one small interface: torchvision ResNets, timm ViTs and BEiTs.

`encoder(x)` gives one vector per image, `encoder.pyramid(x)` the feature maps, `encoder.embed(images)` vectors straight
from uint8 images, whole or as a bag of patches. Grey and RGB input are both taken whatever `in_channels` is.

A new family is one file beside `resnet.py` that holds a subclass of `Encoder`, and one line here that imports it.
"""

from vfm4us.encoders.base import (
    MEAN,
    STD,
    Encoder,
    EncoderSpec,
    Tokens,
    family,
    luminance,
    names,
    regular_patches,
)
from vfm4us.encoders.resnet import ResNet
from vfm4us.encoders.vit import BEiT, ViT, write_attention_out

NAMES = tuple(names())

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
    "write_attention_out",
]
