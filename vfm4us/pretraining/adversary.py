"""The adversary: the smallest pixel change that pulls a patch furthest from its image.

The published method is called `adv` and has a strength of 0.009; its code was never released, so this is a
reconstruction. On patches x in [0, 1], before normalisation,

    delta* = argmax over |delta| <= epsilon, x + delta in [0, 1]  of  - mean cos(f(x + delta), stopgrad(zbar))

by one signed step from a random start (`fgsm`; Wong et al. 2020, arXiv 2001.03994) or k projected steps (`pgd`; Madry et
al. 2018, arXiv 1706.06083), after which the network is trained on x + delta as well.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm4us.augment import moved, windows
from vfm4us.pretraining.sections import AdversaryConfig


@dataclass
class Perturbation:
    """`delta` (N, 1, P, P), and the attack's `gradient` with respect to the patches at its last step, same shape."""

    delta: Tensor
    gradient: Tensor


def perturb(
    embed: Callable[[Tensor], Tensor],
    patches: Tensor,
    center: Tensor,
    config: AdversaryConfig,
    generator: torch.Generator | None = None,
    mask: Tensor | None = None,
    start: Tensor | None = None,
) -> Perturbation:
    """Find the perturbation of `patches` that lowers their cosine to `center` most.

    embed:    patches (N, C, P, P) in [0, 1] -> embeddings (N, d); wrap it in `frozen_statistics` (below) for batch norm
    patches:  (N, C, P, P) in [0, 1]; the perturbation is one grey image per patch, equal over the C channels
    center:   (N, d), the clean mean embedding of each patch's image; no gradient flows through it
    mask:     (N, 1, P, P), 0 on padding, where delta stays 0
    start:    random start in [-1, 1], shape (N, 1, P, P), in units of epsilon; drawn from `generator` if not given

    Parameter gradients are not touched. On a CPU, raises ValueError for patches outside [0, 1].
    """
    if not patches.is_cuda and (patches.min() < 0 or patches.max() > 1):  # to look would wait for a GPU
        raise ValueError("perturb works on patches in [0, 1], before normalisation")
    epsilon, center = config.epsilon, F.normalize(center.detach().float(), dim=-1)
    # The change may not leave [0, 1] on any channel.
    low = (-patches).amax(1, keepdim=True).clamp(min=-epsilon)
    high = (1 - patches).amin(1, keepdim=True).clamp(max=epsilon)
    if mask is not None:
        low, high = low * mask, high * mask
    if start is None:
        shape = (patches.shape[0], 1, *patches.shape[2:])
        start = moved(torch.rand(shape, generator=generator).mul_(2).sub_(1), patches.device)
    delta = (epsilon * start).clamp(low, high)
    count = config.steps if config.method == "pgd" else 1
    length = config.step_size * epsilon / count
    for _ in range(count):
        delta = delta.detach().requires_grad_(True)
        with torch.enable_grad():
            objective = -F.cosine_similarity(embed(patches + delta).float(), center, dim=-1).sum()
            (gradient,) = torch.autograd.grad(objective, delta)
        delta = (delta.detach() + length * gradient.sign()).clamp(low, high)
    return Perturbation(delta, gradient)


def random_start(n: int, mine: slice, batch: int, size: int, generator: torch.Generator, device="cpu") -> Tensor:
    """Starts in [-1, 1] for the images `own` of a global batch, (n * own, 1, size, size) on `device`, patches outermost."""
    field = torch.rand((3 * size, 3 * size), generator=generator) * 2 - 1
    row, column = moved(torch.rand((2, n, batch), generator=generator)[:, :, mine], device)
    return windows(moved(field, device), row.flatten(), column.flatten(), size)


@contextlib.contextmanager
def frozen_statistics(network: nn.Module):
    """Batch norm normalises as in training but leaves its running statistics and counters alone."""
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield network
    finally:
        for layer in layers:
            layer.track_running_stats = True
