"""What turns an encoder's feature maps into masks: the decoders of DeepLabv3+ and U-Net, on any encoder's pyramid."""

import torch.nn.functional as F
from torch import Tensor, nn

from vfm4us.encoders import Encoder


class Decoder(nn.Module):
    """(x, feature maps from fine to coarse) -> logits at the size of x."""

    def __init__(self, encoder: Encoder, outputs: int, kind: str, width: int, rates: list[int]):
        super().__init__()
        from segmentation_models_pytorch.base import SegmentationHead, initialization
        from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        full = encoder.width
        if len(encoder.channels) > 1:
            self.neck, channels = None, list(encoder.channels)  # strides 2 to 32
        elif kind == "unet":
            self.neck = FeaturePyramid(full, steps=3)
            channels = self.neck.channels  # strides 2 to 16
        else:
            self.neck = FeaturePyramid(full, steps=2)
            channels = [0, *self.neck.channels]  # this decoder does not look at stride 2
        channels = [encoder.spec.in_channels, *channels]
        depth = len(channels) - 1
        if kind == "unet":
            widths = [max(16, width >> level) for level in range(depth)]
            self.decoder = UnetDecoder(channels, widths, n_blocks=depth)
            self.segmentation_head = SegmentationHead(widths[-1], outputs)
        else:
            self.decoder = DeepLabV3PlusDecoder(
                channels, depth, width, rates, 16, aspp_separable=True, aspp_dropout=0.5
            )
            self.segmentation_head = SegmentationHead(width, outputs, kernel_size=1, upsampling=4)
        initialization.initialize_decoder(self.decoder)
        initialization.initialize_head(self.segmentation_head)

    def forward(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        if self.neck is not None:
            maps = self.neck(maps[-1])
            maps = maps if len(maps) == 4 else [maps[0], *maps]
        logits = self.segmentation_head(self.decoder([x, *maps]))
        if logits.shape[-2:] != x.shape[-2:]:  # tokens of 14 px, or an encoder that resamples its input
            logits = F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)
        return logits


class FeaturePyramid(nn.Module):
    """One map of a transformer's tokens (N, C, h, w) -> 1 + steps, from 2^steps times its size down to its own.

    The simple feature pyramid of ViTDet (Li et al. 2022, arXiv 2203.16527), its transposed convolutions in a chain.
    """

    def __init__(self, width: int, steps: int):
        super().__init__()
        self.channels = [64, 128, 256, width][-1 - steps :]
        self.steps = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(coarse, fine, 2, stride=2, bias=False), nn.BatchNorm2d(fine), nn.GELU())
            for fine, coarse in zip(self.channels[-2::-1], self.channels[:0:-1], strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [x]
        for step in self.steps:
            maps.append(step(maps[-1]))
        return maps[::-1]
