"""Convolutions of maps of a few pixels: what they give, when they are taken, and that nothing else changes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vfm4us.encoders import Encoder, EncoderSpec, small_maps
from vfm4us.runtime.device import choose_kernels
from vfm4us.runtime.rng import generator


def layer(low=128, high=160, stride=1, padding=1):
    convolution = nn.Conv2d(low, high, 3, stride, padding, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(torch.randn(convolution.weight.shape, generator=generator(0)) / 30)
    made = copy.deepcopy(convolution)
    small_maps.use_small_maps(made)
    return convolution, made


def taken(function):
    """What `function` gives in bf16, and whether the products were taken."""
    with torch.profiler.profile() as profile, torch.autocast("cpu", torch.bfloat16):
        made = function()
    return made, any(event.key == "vfm4us::small_map_convolution" for event in profile.key_averages())


@pytest.mark.parametrize(
    "side, stride, padding", [(2, 1, 1), (3, 1, 1), (4, 2, 1), (6, 2, 1), (5, 1, 0), (3, 2, 1), (1, 1, 1)]
)
def test_values_and_gradients_are_those_of_the_convolution(side, stride, padding):
    plain, small = layer(stride=stride, padding=padding)
    x = torch.randn(64, 128, side, side, generator=generator(1)).bfloat16()
    made, products = taken(lambda: small(x.requires_grad_()))
    assert products and made.dtype == torch.bfloat16
    exact = x.detach().double().requires_grad_()
    weight = plain.weight.detach().bfloat16().double().requires_grad_()  # what the products are given
    wanted = F.conv2d(exact, weight, None, stride, padding)
    assert made.shape == wanted.shape
    gradient = torch.randn(wanted.shape, generator=generator(2)).bfloat16()
    made.backward(gradient)
    wanted.backward(gradient.double())
    for ours, theirs in ((made, wanted), (x.grad, exact.grad), (small.weight.grad, weight.grad)):
        assert (ours - theirs).abs().max() < 0.01 * theirs.abs().max(), "bf16 keeps 8 bits"
    assert small.weight.grad.dtype == torch.float32


def test_what_is_not_asked_for_is_not_computed():
    _, small = layer()
    small.requires_grad_(False)
    x = torch.randn(64, 128, 2, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        small(x).sum().backward()
    assert x.grad.shape == x.shape and x.grad.dtype == torch.float32 and small.weight.grad is None
    small.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        small(x.detach()).sum().backward()
    assert small.weight.grad.shape == small.weight.shape


def test_the_compiler_is_told_the_truth():
    """Shapes, strides, types and gradients that `compile=true` counts on."""
    _, small = layer(stride=2)
    x = torch.rand(2, 128, 4, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.vfm4us.small_map_convolution, (x, small.weight, 2, 1))
    made = torch.rand(2, 160, 2, 2)
    for of in ((True, True), (True, False), (False, True)):
        arguments = (made, x.detach(), small.weight.detach(), 2, 1, *of)
        torch.library.opcheck(torch.ops.vfm4us.small_map_convolution_backward, arguments)


def test_larger_maps_few_images_and_float32_are_convolved_as_ever():
    plain, small = layer()
    for x in (torch.rand(64, 128, 4, 4), torch.rand(63, 128, 2, 2)):
        made, products = taken(lambda x=x: small(x))
        assert not products and torch.equal(made, taken(lambda x=x: plain(x))[0])
    x = torch.rand(64, 128, 2, 2)
    assert torch.equal(small(x), plain(x))


def test_only_convolutions_that_it_can_replace_are_touched():
    others = [
        nn.Conv2d(128, 128, 1, bias=False),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.Conv2d(128, 128, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
    ]
    network = nn.Sequential(*others)
    small_maps.use_small_maps(network)
    assert all(type(module) is nn.Conv2d for module in network)


def test_an_encoder_has_the_same_names_features_and_cost():
    encoder = Encoder(EncoderSpec("resnet18", in_channels=1)).eval()
    faster = copy.deepcopy(encoder)
    for where, precision in (("cpu", "float32"), ("cuda", "bfloat16")):
        choose_kernels(faster, torch.device(where), precision)
        assert not any(isinstance(m, small_maps.SmallMapConv2d) for m in faster.modules())
    choose_kernels(faster, torch.device("cpu"), "bfloat16")
    assert sum(isinstance(m, small_maps.SmallMapConv2d) for m in faster.modules()) == 11
    assert faster.state_dict().keys() == encoder.state_dict().keys()
    x = torch.rand(64, 1, 64, 64, generator=generator(0))
    with FlopCounterMode(display=False) as theirs:
        before, _ = taken(lambda: encoder(x))
        before.sum().backward()
    with FlopCounterMode(display=False) as ours:
        after, products = taken(lambda: faster(x))
        after.sum().backward()
    assert products, "by the last stage, of 2 x 2"
    assert ours.get_total_flops() == theirs.get_total_flops()
    assert F.cosine_similarity(before.float(), after.float()).min() > 0.999
