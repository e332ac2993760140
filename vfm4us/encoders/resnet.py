"""torchvision's ResNets."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import ClassVar

from torch import Tensor, nn

from vfm4us.encoders.base import Encoder


class ResNet(Encoder):
    """ResNet18, 34 and 50 (He et al. 2015, arXiv 1512.03385): five maps, at strides 2 to 32."""

    sizes: ClassVar[dict[str, tuple]] = {  # kind of block, blocks of each stage
        "resnet18": ("basic", 2, 2, 2, 2),
        "resnet34": ("basic", 3, 4, 6, 3),
        "resnet50": ("bottleneck", 3, 4, 6, 3),
    }
    first_convolution, head = "conv1.weight", "fc"
    stages = ("stem", "layer1", "layer2", "layer3", "layer4")

    def build(self) -> nn.Module:
        from torchvision.models import get_model

        body = get_model(self.spec.name, weights=None)
        body.fc = nn.Identity()
        if self.spec.in_channels == 1:
            body.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
        growth = 4 if self.sizes[self.spec.name][0] == "bottleneck" else 1
        self.channels = (64, *(growth * width for width in (64, 128, 256, 512)))
        self.strides, self.width = (2, 4, 8, 16, 32), self.channels[-1]
        return body

    def pyramid(self, x: Tensor) -> list[Tensor]:
        body = self.body
        maps = [body.relu(body.bn1(body.conv1(self.normalize(x))))]
        x = body.maxpool(maps[0])
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            maps.append(x := stage(x))
        return maps

    def stage_of(self, name: str) -> int:
        part = name.split(".")[0]
        return self.stages.index(part) if part in self.stages else 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[SimpleNamespace]:
        seen = SimpleNamespace(tensor=None)
        handle = self.body.layer4.register_forward_hook(lambda _module, _inputs, out: setattr(seen, "tensor", out))
        try:
            yield seen
        finally:
            handle.remove()

    def dilate(self) -> None:
        for module in self.body.layer4.modules():
            if isinstance(module, nn.Conv2d):  # stride 1, and kernels twice as wide with holes
                module.stride, module.dilation = (1, 1), (2, 2)
                module.padding = tuple(2 * (size // 2) for size in module.kernel_size)
        self.strides = (*self.strides[:-1], self.strides[-2])

    @classmethod
    def torchvision_name(cls, name: str) -> str | None:
        return name
