"""Ways to train an enhancer beside CycleGAN: with pairs, from one side, and by a degradation that is learnt or fitted.

Each is a `CycleGAN` with fewer networks and other terms; the loop, the discriminators, saving and resuming are the same.

    supervised           pairs alone:  loss = |enhancer(low) - high|
    one-sided            no way back (CUT, Park et al. 2020, arXiv 2007.15651): adversarial + a patch of the enhanced image is more
                         like its own place in the input than like others + the same for high-quality images, as the identity
    learned-degradation  the degrader learns from unpaired images how quality is lost, noise and all; the enhancer learns to undo
                         that on pairs which the degrader makes (after Bulat et al. 2018, arXiv 1807.11458)
    fitted-degradation   the same with a model of a scanner in the degrader's place, and no discriminator (fitted_degradation.py)
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm4us.augment import moved
from vfm4us.tasks.cyclegan import CycleGAN, Generator, verdict
from vfm4us.tasks.fitted_degradation import Degradation, patch_distance
from vfm4us.tasks.sections import ENHANCERS, GeneratorConfig

TEMPERATURE = 0.07  # of the contrast between patches, as published


class Supervised(CycleGAN):
    """An enhancer that is trained on pairs: the ceiling of what one without pairs may reach."""

    networks: ClassVar = ("enhancer",)
    judged: ClassVar = ()

    def weights(self) -> dict[str, float]:
        return {"pair": 1.0}

    def terms(self, low: Tensor, high: Tensor, draw: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"pair": self.distance(self.generators["enhancer"](low), high)}, {}


class OneSided(CycleGAN):
    """Contrastive unpaired translation: the enhancer alone, and a discriminator of high quality."""

    networks: ClassVar = ("enhancer",)
    judged: ClassVar = ("high",)

    def new_projectors(self, networks: GeneratorConfig) -> nn.Module:
        """Two layers upon each of the maps that are compared."""
        w, out = networks.width, 64
        return nn.ModuleList(
            nn.Sequential(nn.Linear(width, out), nn.ReLU(), nn.Linear(out, out)) for width in (w, 2 * w, 4 * w, 4 * w)
        )

    def weights(self) -> dict[str, float]:
        return super().weights() | {"contrast": self.config.contrast_weight}

    def terms(self, low: Tensor, high: Tensor, draw: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        enhancer = self.generators["enhancer"]
        fake_high = enhancer(low)
        parts = {
            "adversarial_high": verdict(self.discriminators["high"](fake_high), 1.0),
            "contrast_low": self._contrast(fake_high, low, draw),
        }
        if self.config.identity_weight:
            same = enhancer(high)
            parts["contrast_high"] = self._contrast(same, high, draw)
            parts["identity_high"] = self.distance(same, high)
        if self.paired:
            parts["l1"] = self.distance(fake_high, high)
        return parts, {"high": fake_high}

    def _contrast(self, made: Tensor, source: Tensor, draw: torch.Generator) -> Tensor:
        enhancer = self.generators["enhancer"]
        losses = []
        for projector, a, b in zip(self.projectors, enhancer.features(made), enhancer.features(source), strict=True):
            places = torch.randperm(a.shape[-2] * a.shape[-1], generator=draw)[: self.config.contrast_patches]
            places = moved(places, a.device)
            q, k = (projector(m.flatten(2)[..., places].transpose(1, 2)) for m in (a, b))
            losses.append(patch_contrast(q.float(), k.float().detach()))
        return torch.stack(losses).mean()


def patch_contrast(q: Tensor, k: Tensor) -> Tensor:
    """Cross-entropy by which each of P vectors of an image finds its own place among the P of another; q, k (N, P, D)."""
    logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2) / TEMPERATURE
    itself = torch.arange(q.shape[1], device=q.device).expand(len(q), -1)
    return F.cross_entropy(logits.flatten(0, 1), itself.flatten())


class LearnedDegradation(CycleGAN):
    """A degrader with noise learns to make low quality from high; the enhancer is trained on its pairs, as with given ones.

    The degrader gets no gradient from the enhancer, so the two cannot agree on a code. It keeps the content: the 4 x 4 px means
    before and after it correlate, which allows for another blur, noise, brightness and contrast.
    """

    judged: ClassVar = ("low",)

    def new_degrader(self, networks: GeneratorConfig) -> nn.Module:
        return Generator(networks, noisy=True)

    def weights(self) -> dict[str, float]:
        return super().weights() | {"content": self.config.content_weight, "pair": 1.0}

    def terms(self, low: Tensor, high: Tensor, draw: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        enhancer, degrader = self.generators["enhancer"], self.generators["degrader"]
        noise = moved(torch.randn(high.shape, generator=draw), high.device)
        fake_low = degrader(high, noise)
        parts = {
            "adversarial_low": verdict(self.discriminators["low"](fake_low), 1.0),
            "content": 1 - correlation(F.avg_pool2d(fake_low.float(), 4), F.avg_pool2d(high, 4)),
            "pair": self.distance(enhancer(fake_low.detach().float()), high),
        }
        if self.paired:
            parts["l1"] = self.distance(enhancer(low), high)
        return parts, {"low": fake_low}


class FittedDegradation(CycleGAN):
    """Few numbers say how quality is lost; they are fitted by patches of both domains, and the enhancer undoes what they do.

    As in `LearnedDegradation` the degrader gets no gradient from the enhancer. It is fitted on all crops of a step.
    """

    judged: ClassVar = ()

    def new_degrader(self, networks: GeneratorConfig) -> nn.Module:
        return Degradation()

    def scaled_parameters(self) -> list[tuple[list[nn.Parameter], float]]:
        return [(list(self.generators["degrader"].parameters()), self.config.degradation_rate)]

    def weights(self) -> dict[str, float]:
        return super().weights() | {"patches": 1.0, "pair": 1.0}

    def terms(self, low: Tensor, high: Tensor, draw: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        enhancer, degrader = self.generators["enhancer"], self.generators["degrader"]
        with torch.no_grad():
            made = degrader(high, degrader.noise(high, draw))
        parts = {"pair": self.distance(enhancer(made), high)}
        if self.paired:
            parts["l1"] = self.distance(enhancer(low), high)
        return parts, {}

    def further_terms(self, low: Tensor, high: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        degrader = self.generators["degrader"]
        return {"patches": patch_distance(degrader(high, degrader.noise(high, draw)), low, draw)}


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Of two images each (N, 1, H, W), averaged over the images; one that is flat counts as like."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b))
    small = 1e-3 * a.shape[1]  # of the sums of squares, so that the noise of a black crop has no say
    return (((a * b).sum(1) + small) / ((a.square().sum(1) + small) * (b.square().sum(1) + small)).sqrt()).mean()


METHODS = dict(zip(ENHANCERS, (CycleGAN, Supervised, OneSided, LearnedDegradation, FittedDegradation), strict=True))
