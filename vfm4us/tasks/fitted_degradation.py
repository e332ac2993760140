"""How a cheaper scanner loses quality, as a model of some 360 numbers, and the distance by which it is fitted without pairs.

    low = Degradation()(high, noise)                       # (N, 1, H, W) in [-1, 1]; noise (N, 2, H, W), standard normal
    distance = patch_distance(low, real_low, generator)    # of two sets of images that need not show the same

A network that may do anything needs many images before it degrades as a scanner does, and a discriminator that it chases. So few
numbers need neither: they are fitted until patches of what is made are distributed as patches of real low-quality images are.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm4us.augment import moved
from vfm4us.runtime.rng import generator

BLACK = 1 / 255  # grey of [0, 1] from which on a pixel is tissue
AROUND = 7  # px: a dark pixel with tissue this near is tissue too


class Degradation(nn.Module):
    """A log-compressed image loses quality as in a scanner: (N, 1, H, W) in [-1, 1] -> the same; each noise gives another.

        echo    = (point spread * exp(range (grey - 1))) (1 + speckle (grain * noise))
        made    = curve(1 + log(sqrt(echo^2 + floor^2)) / range)

    grey in [0, 1]. Fitted are the point spread (`side` x `side` px, positive, of sum 1), the grain of the speckle (`grain` px,
    unit energy), range, speckle, the electronic noise's floor with how far it differs between crops, and a rising curve of
    `knots` pieces for gain and dynamic range. What is black with nothing around it, a border, stays black. Not in the model:
    what depends on depth or direction, fewer grey levels, JPEG, other structures.
    """

    def __init__(self, side: int = 15, grain: int = 11, knots: int = 12):
        super().__init__()
        self.side, self.knots = side, knots
        self.point_spread = nn.Parameter((-_squared_radius(side) / 2).clamp(min=-6.0))  # softmax of it
        self.grain = nn.Parameter(torch.exp(-_squared_radius(grain) / 2))
        self.log_range = nn.Parameter(torch.tensor(math.log(4.0)))
        self.log_speckle = nn.Parameter(torch.tensor(math.log(0.1)))
        self.log_floor = nn.Parameter(torch.tensor([-4.0, -0.7]))  # its mean, and the logarithm of its deviation
        self.start = nn.Parameter(torch.tensor(0.0))
        self.slopes = nn.Parameter(torch.full((knots,), math.log(math.e - 1)))  # softplus of it is 1: the identity

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            noise = self.noise(x, generator(0))
        with torch.autocast(x.device.type, enabled=False):
            grey = (x.float() + 1) / 2
            grain = self.grain / self.grain.square().sum().sqrt()
            spread = self.point_spread.flatten().softmax(0).view(self.side, self.side)
            speckle = 1 + self.log_speckle.exp() * _filtered(noise[:, :1], grain)
            range_ = self.log_range.exp()
            echo = _filtered(torch.exp(range_ * (grey - 1)), spread) * speckle.clamp(min=0.05)
            level = self.log_floor[0] + self.log_floor[1].exp() * noise[:, 1:, :1, :1]  # one of each crop
            floor = level.exp() * noise[:, 1:].abs()
            made = self._curve(1 + torch.log(torch.sqrt(echo**2 + floor**2 + 1e-12)) / range_)
            tissue = F.max_pool2d(grey, AROUND, 1, AROUND // 2) >= BLACK
            return made.clamp(0, 1) * tissue * 2 - 1

    @staticmethod
    def noise(x: Tensor, draw: torch.Generator) -> Tensor:
        """What `forward` takes for these images, drawn on the CPU: (N, 1, H, W) -> (N, 2, H, W)."""
        return moved(torch.randn(len(x), 2, *x.shape[-2:], generator=draw), x.device)

    def _curve(self, grey: Tensor) -> Tensor:
        rises = F.softplus(self.slopes) / self.knots
        places = grey.clamp(0, 1) * self.knots
        return self.start + sum(rise * (places - knot).clamp(0, 1) for knot, rise in enumerate(rises.unbind()))


def _squared_radius(side: int) -> Tensor:
    x = torch.arange(side) - side // 2.0
    return x[:, None] ** 2 + x**2


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """(N, 1, H, W) correlated with a square kernel of odd side, edges reflected; by FFT, as the kernel's gradient is slow else."""
    padded = F.pad(x, (kernel.shape[-1] // 2,) * 4, mode="reflect")
    size = padded.shape[-2:]
    made = torch.fft.irfft2(torch.fft.rfft2(padded) * torch.fft.rfft2(kernel, s=size).conj(), s=size)
    return made[..., : x.shape[-2], : x.shape[-1]]


def patch_distance(
    a: Tensor, b: Tensor, draw: torch.Generator, side: int = 7, directions: int = 32, patches: int = 4096
) -> Tensor:
    """Sliced 1-Wasserstein distance of the patches of two sets of images (N, 1, H, W), at full, half and quarter resolution.

    `patches` of each set, drawn anew, on random directions of length 1, of which every other one does not see brightness
    (Elnekave & Weiss 2022, arXiv 2203.12362). H and W are four times `side` at least.
    """
    total = torch.zeros((), device=a.device)
    for level in range(3):
        if level:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        lines = torch.randn(directions, side * side, generator=draw)
        lines[::2] -= lines[::2].mean(dim=1, keepdim=True)
        lines = moved(F.normalize(lines, dim=1), a.device)
        on_lines = [(lines @ _drawn_patches(x, side, patches, draw).T).sort(dim=1).values for x in (a, b)]
        total = total + (on_lines[0] - on_lines[1]).abs().mean()
    return total


def _drawn_patches(x: Tensor, side: int, count: int, draw: torch.Generator) -> Tensor:
    """(N, 1, H, W) -> `count` patches (count, side * side) at random places of random images."""
    images, tops, lefts = (
        torch.randint(high, (count, 1, 1), generator=draw) for high in (len(x), *(n - side + 1 for n in x.shape[-2:]))
    )
    across = torch.arange(side)
    places = (images * x.shape[-2] + tops + across[:, None]) * x.shape[-1] + lefts + across
    return x.flatten()[moved(places, x.device).flatten()].view(count, -1)
