"""3 x 3 convolutions of maps of a few pixels, as matrix products: several times faster on a CPU in bf16 than its convolutions.

    use_small_maps(network)    # from now on the network's convolutions choose, map by map

The last stage of a ResNet sees maps of 2 x 2 or 3 x 3 where patches have 64 or 96 px. There most of a kernel falls outside of the
map, and libraries multiply the zeros. Here each pixel of the result is one product of the pixels that exist by the part of the
kernel that meets them. `benchmark.py layers` has the ratio.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

MOST = 9  # pixels of the result: at 4 x 4 the library is as fast
LEAST_CHANNELS, LEAST_IMAGES = 128, 64  # with 32 images the library is ahead at 3 x 3, with 64 channels at 2 x 2


class SmallMapConv2d(nn.Conv2d):
    """`nn.Conv2d` that takes the products below where autocast computes in bf16 and the result has few pixels."""

    def forward(self, x: Tensor) -> Tensor:
        in_bfloat16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        stride, padding = self.stride[0], self.padding[0]
        pixels = _side(x.shape[-2], 3, stride, padding) * _side(x.shape[-1], 3, stride, padding)
        if x.device.type == "cpu" and in_bfloat16 and pixels <= MOST and len(x) >= LEAST_IMAGES:
            return torch.ops.vfm4us.small_map_convolution(x, self.weight, stride, padding)
        return super().forward(x)


def use_small_maps(network: nn.Module) -> None:
    """Have the 3 x 3 convolutions within `network` look for small maps; parameters and their names stay as they are."""
    for module in network.modules():
        plain = type(module) is nn.Conv2d and module.kernel_size == (3, 3) and module.dilation == (1, 1)
        even = plain and module.groups == 1 and module.bias is None and len({*module.stride}) == 1
        if even and module.padding in ((0, 0), (1, 1)) and module.padding_mode == "zeros":
            if min(module.in_channels, module.out_channels) >= LEAST_CHANNELS:
                module.__class__ = SmallMapConv2d


def _side(side: int, kernel: int, stride: int, padding: int) -> int:
    return (side + 2 * padding - kernel) // stride + 1


def _meetings(x: Tensor, weight: Tensor, stride: int, padding: int) -> Iterator[tuple]:
    """Row and column of each pixel of the result, and the slices of map and kernel that meet there."""
    spans = []
    for side, kernel in zip(x.shape[-2:], weight.shape[-2:], strict=True):
        of_side = []
        for begin in range(-padding, side + padding - kernel + 1, stride):
            first, last = max(0, begin), min(side, begin + kernel)
            of_side.append((slice(first, last), slice(first - begin, last - begin)))
        spans.append(of_side)
    for row, (ys, kernel_ys) in enumerate(spans[0]):
        for column, (xs, kernel_xs) in enumerate(spans[1]):
            yield row, column, (slice(None), ys, xs), (slice(None), kernel_ys, kernel_xs)


def _last(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W, C) in bf16, which costs nothing where x lies so."""
    return x.to(torch.bfloat16).permute(0, 2, 3, 1).contiguous()


@torch.library.custom_op("vfm4us::small_map_convolution", mutates_args=())
def small_map_convolution(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """`F.conv2d` without bias, in bf16: (N, C, H, W) and (D, C, k, k) -> (N, D, H', W'), channels last."""
    images, kernels = _last(x), _last(weight)
    height, width = (_side(side, weight.shape[-1], stride, padding) for side in x.shape[-2:])
    made = images.new_empty(len(x), height, width, len(weight))
    for row, column, at, part in _meetings(x, weight, stride, padding):
        made[:, row, column] = images[at].flatten(1) @ kernels[part].flatten(1).T
    return made.permute(0, 3, 1, 2)


@small_map_convolution.register_fake
def _(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    height, width = (_side(side, weight.shape[-1], stride, padding) for side in x.shape[-2:])
    return x.new_empty(len(x), height, width, len(weight), dtype=torch.bfloat16).permute(0, 3, 1, 2)


@torch.library.custom_op("vfm4us::small_map_convolution_backward", mutates_args=())
def small_map_convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, of_x: bool, of_weight: bool
) -> list[Tensor]:
    """Gradients of the map and of the kernel, each in its own type; an empty tensor for one that is not asked for."""
    wanted, images, kernels = _last(gradient), _last(x), _last(weight)
    to_x = torch.zeros(images.shape) if of_x else torch.empty(0)  # float32: sums of up to nine products
    to_kernels = torch.zeros(kernels.shape) if of_weight else torch.empty(0)
    for row, column, at, part in _meetings(x, weight, stride, padding):
        of_pixel = wanted[:, row, column].contiguous()
        if of_x:
            to_x[at] += (of_pixel @ kernels[part].flatten(1)).view_as(to_x[at])
        if of_weight:
            to_kernels[part] += (of_pixel.T @ images[at].flatten(1)).view_as(to_kernels[part])
    return [
        made.to(like.dtype).permute(0, 3, 1, 2) if made.numel() else made
        for made, like in ((to_x, x), (to_kernels, weight))
    ]


@small_map_convolution_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, of_x: bool, of_weight: bool
) -> list[Tensor]:
    return [
        like.new_empty([like.shape[i] for i in (0, 2, 3, 1)]).permute(0, 3, 1, 2)
        if asked
        else like.new_empty(0, dtype=torch.float32)
        for asked, like in ((of_x, x), (of_weight, weight))
    ]


def _remember(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, *ctx.how = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    asked = ctx.needs_input_grad[:2]
    made = torch.ops.vfm4us.small_map_convolution_backward(gradient, *ctx.saved_tensors, *ctx.how, *asked)
    return *(g if a else None for g, a in zip(made, asked, strict=True)), None, None


torch.library.register_autograd("vfm4us::small_map_convolution", _backward, setup_context=_remember)


# Counted as the convolutions that they are, so that the cost of a run does not depend on how it was computed.


@register_flop_formula(torch.ops.vfm4us.small_map_convolution)
def _flops(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return conv_flop_count(x, weight, out_shape)


@register_flop_formula(torch.ops.vfm4us.small_map_convolution_backward)
def _flops_backward(gradient: Any, x: Any, weight: Any, _: int, __: int, *asked: bool, **___: Any) -> int:
    return sum(asked) * conv_flop_count(x, weight, gradient)
