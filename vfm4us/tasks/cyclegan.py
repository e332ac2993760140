"""CycleGAN for ultrasound (Zhu et al. 2017, arXiv 1703.10593): its networks, and the loop that trains them.

Two generators, low to high quality (`enhancer`) and back (`degrader`), and a 70 x 70 PatchGAN discriminator in each domain, least
squares. The enhancer alone carries our encoder: it is the one that is used, and the way back needs no knowledge of anatomy.

    loss = adversarial + 10 (|degrader(enhancer(low)) - low| + |enhancer(degrader(high)) - high|)
           + 5 (|enhancer(high) - high| + |degrader(low) - low|)  [+ 100 |enhancer(low) - target|, where pairs may be used]

where |a - b| is a `Distance`: L1, and as the config says SSIM and an encoder's features. The other methods are in enhancers.py.

Every random number is a function of (seed, epoch, step) and the pools of earlier images are saved, so a run that was stopped
anywhere and continued ends in the same weights, bit for bit on a CPU. Images are (N, 1, H, W) in [-1, 1] throughout.
"""

import copy
import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm4us.augment import moved
from vfm4us.encoders import Encoder
from vfm4us.runtime.device import autocast
from vfm4us.runtime.loop import PLACE, Loop, Training
from vfm4us.runtime.rng import generator, stream
from vfm4us.runtime.run import RunFolder
from vfm4us.tasks.finetune import move_average
from vfm4us.tasks.sections import GeneratorConfig, TrainingConfig

COARSEST = 32  # px, of a ResNet's last stage: inputs are padded to a multiple of it
DRAW = 0.25  # loss of a discriminator that says 1/2 to everything
MEMORY = 0.98  # decay of the average by which a discriminator is said to have won, about 50 steps


# ---- networks -------------------------------------------------------------------------------------------------------


def normalised(*layers: nn.Module, channels: int) -> nn.Sequential:
    """The layers, followed by instance norm over `channels` maps and a ReLU."""
    return nn.Sequential(*layers, nn.InstanceNorm2d(channels), nn.ReLU(inplace=True))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with instance norm, added to their input; (N, width, H, W) keeps its shape."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            nn.InstanceNorm2d(width),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class EncoderBranch(nn.Module):
    """Our encoder's pyramid brought up to stride 4: (N, 1, H, W) in [0, 1] -> (N, width, H/4, W/4).

    From the coarsest map upward each finer one is added through a 1 x 1 convolution; a transformer's one map is enlarged
    step by step. Batch-norm statistics are never those of a batch: a crop or two say too little.
    """

    def __init__(self, encoder: Encoder, width: int):
        super().__init__()
        self.encoder = encoder
        channels = [count for count, stride in zip(encoder.channels, encoder.strides, strict=True) if stride >= 4]
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.smooth = nn.ModuleList(
            normalised(nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), channels=width)
            for _ in range(max(2, len(channels) - 1))
        )

    def train(self, mode: bool = True):
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        maps = self.encoder.pyramid(x)[-len(self.lateral) :]
        y = self.lateral[-1](maps[-1])
        for step, smooth in enumerate(self.smooth):
            finer = maps[-2 - step] if len(maps) > 1 else None
            size = [2 * side for side in y.shape[-2:]] if finer is None else finer.shape[-2:]
            y = F.interpolate(y, size, mode="bilinear", align_corners=False)
            y = smooth(y if finer is None else y + self.lateral[-2 - step](finer))
        quarter = [side // 4 for side in x.shape[-2:]]
        if list(y.shape[-2:]) != quarter:  # tokens of 14 px, or an encoder that resamples its input
            y = F.interpolate(y, quarter, mode="bilinear", align_corners=False)
        return y


class UNet(nn.Module):
    """A small U-Net that gives a change of its input, at first none: (N, 1, H, W) -> the same, any H and W.

    Three levels with `width`, twice and four times as many channels; our encoder joins at a quarter of the resolution. No norm:
    what is taken away from a pixel depends on its own brightness, and a crop must be treated as the image that it comes from.
    """

    residual = True

    def __init__(self, config: GeneratorConfig, encoder: Encoder):
        super().__init__()
        w = config.width

        def two(before: int, after: int, stride: int = 1) -> nn.Sequential:
            first, second = (nn.Conv2d(a, after, 3, stride=s, padding=1) for a, s in ((before, stride), (after, 1)))
            # with torch's weights, 2.4 times smaller, runs stood still for hundreds of steps
            for layer in (first, second):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
            return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))

        self.down = nn.ModuleList([two(1, w), two(w, 2 * w, stride=2), two(2 * w, 4 * w, stride=2)])
        self.branch = EncoderBranch(encoder, 4 * w)
        self.bottom = two(8 * w, 4 * w)
        self.up = nn.ModuleList([two(6 * w, 2 * w), two(3 * w, w)])
        self.last = nn.Conv2d(w, 1, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % COARSEST, 0, -height % COARSEST), mode="replicate")
        maps = [self.down[0](padded)]
        for layer in self.down[1:]:
            maps.append(layer(maps[-1]))
        y = self.bottom(torch.cat([maps[-1], self.branch((padded + 1) / 2)], dim=1))
        for layer, skip in zip(self.up, maps[-2::-1], strict=True):
            y = layer(torch.cat([F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False), skip], dim=1))
        return (x + self.last(y).float()[..., :height, :width]).clamp(-1, 1)


def new_enhancer(config: GeneratorConfig, encoder: Encoder) -> nn.Module:
    """The untrained network from low to high quality that the config asks for."""
    return UNet(config, encoder) if config.kind == "unet" else Generator(config, encoder)


class Generator(nn.Module):
    """Residual generator (N, 1, H, W) -> the same, any H and W; with an encoder, its branch is fused before the residual blocks.

    Two strided convolutions, `blocks` residual blocks at a quarter of the resolution, two transposed convolutions; instance norm,
    reflection padding. The branch is concatenated to what the blocks get, and mixed in by a 1 x 1 convolution. A residual one shows
    its last convolution the input and the first features as well: noise that is to be taken away does not fit through the blocks.
    A noisy one gets a second channel of white noise, so that one image has many answers.
    """

    def __init__(self, config: GeneratorConfig, encoder: Encoder | None = None, noisy: bool = False):
        super().__init__()
        w, self.residual, self.noisy = config.width, config.residual, noisy
        self.stem = nn.Sequential(
            normalised(nn.ReflectionPad2d(3), nn.Conv2d(1 + noisy, w, 7), channels=w),
            normalised(nn.Conv2d(w, 2 * w, 3, stride=2, padding=1), channels=2 * w),
            normalised(nn.Conv2d(2 * w, 4 * w, 3, stride=2, padding=1), channels=4 * w),
        )
        self.branch = EncoderBranch(encoder, 4 * w) if encoder is not None else None
        self.fuse = normalised(nn.Conv2d(8 * w, 4 * w, 1), channels=4 * w) if encoder is not None else None
        self.blocks = nn.Sequential(*(ResidualBlock(4 * w) for _ in range(config.blocks)))
        self.up = nn.Sequential(
            normalised(nn.ConvTranspose2d(4 * w, 2 * w, 3, stride=2, padding=1, output_padding=1), channels=2 * w),
            normalised(nn.ConvTranspose2d(2 * w, w, 3, stride=2, padding=1, output_padding=1), channels=w),
        )
        self.last = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(2 * w + 1 + noisy if self.residual else w, 1, 7))
        for name, module in self.named_modules():
            if not name.startswith("branch.encoder."):
                initialise(module)
        if self.residual:  # it begins by leaving an image as it is
            nn.init.zeros_(self.last[-1].weight)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        if self.noisy:
            noise = torch.randn(x.shape, generator=generator(0)).to(x) if noise is None else noise
            padded = self._padded(torch.cat([x, noise], dim=1))
        else:
            padded = self._padded(x)
        fine = self.stem[0](padded)
        y = self.up(self.blocks(self._fused(padded, self.stem[2](self.stem[1](fine)))))
        if self.residual:
            y = torch.cat([y, fine, padded.to(y.dtype)], dim=1)
        y = torch.tanh(self.last(y).float())[..., :height, :width]
        return (x + y).clamp(-1, 1) if self.residual else y

    def features(self, x: Tensor) -> list[Tensor]:
        """Maps of the way down: after each layer of the stem, and after half of the blocks."""
        maps = [self._padded(x)]
        for layer in self.stem:
            maps.append(layer(maps[-1]))
        return [*maps[1:], self.blocks[: (len(self.blocks) + 1) // 2](self._fused(maps[0], maps[-1]))]

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, -x.shape[-1] % COARSEST, 0, -x.shape[-2] % COARSEST), mode="replicate")

    def _fused(self, padded: Tensor, y: Tensor) -> Tensor:
        """What the blocks get: the stem's map, and what the encoder says."""
        return y if self.branch is None else self.fuse(torch.cat([y, self.branch((padded + 1) / 2)], dim=1))


class Networks(nn.ModuleDict):
    """Generators by their names, and the strengths of the filters that the enhancer must beat (`filters.choose`)."""

    def __init__(self, networks: dict[str, nn.Module]):
        super().__init__(networks)
        self.filters: dict[str, float] = {}


class Discriminator(nn.Sequential):
    """PatchGAN: (N, 1, H, W) -> a map of verdicts, 1 for real, each on 70 x 70 px."""

    def __init__(self, width: int, norm: str = "instance"):
        layers = [nn.Conv2d(1, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        for before, stride in ((1, 2), (2, 2), (4, 1)):
            layers += [
                nn.Conv2d(before * width, 2 * before * width, 4, stride=stride, padding=1),
                nn.InstanceNorm2d(2 * before * width) if norm == "instance" else nn.Identity(),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        super().__init__(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))
        for module in self:
            initialise(module)


def initialise(module: nn.Module) -> None:
    """Set a convolution's weights to N(0, 0.02) and its bias to 0, as published; other layers stay as they are."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0, 0.02)
        nn.init.zeros_(module.bias)


class ImagePool:
    """Up to `size` earlier images; half of the time a discriminator is given one of them instead of the newest."""

    def __init__(self, size: int):
        self.size, self.images = size, []

    def exchange(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(N, C, H, W) -> the same, each image new or an earlier one whose place it takes."""
        given = []
        for image in images.detach():
            place = int(torch.randint(max(1, self.size), (1,), generator=generator))
            earlier = float(torch.rand(1, generator=generator)) < 0.5
            if len(self.images) < self.size:
                self.images.append(image.clone())
            elif self.size and earlier:
                image, self.images[place] = self.images[place], image.clone()
            given.append(image)
        return torch.stack(given)

    def draw(self, newest: Tensor, generator: torch.Generator) -> Tensor:
        """As many of the earlier images as there are newest ones; these themselves where nothing is kept."""
        if not self.images:
            return newest.detach()
        return torch.stack(
            [self.images[int(torch.randint(len(self.images), (1,), generator=generator))] for _ in newest]
        )


class Distance:
    """How far two images lie apart, (N, 1, H, W) in [-1, 1]: |a - b| + ssim_weight (1 - SSIM) + perceptual_weight |f(a) - f(b)|^2.

    f: all maps of an encoder, each pixel's features of length 1 (as in LPIPS, Zhang et al. 2018); the encoder never learns.
    """

    def __init__(self, config: TrainingConfig, encoder: Encoder | None = None):
        self.ssim_weight, self.perceptual_weight = config.ssim_weight, config.perceptual_weight
        self.encoder = copy.deepcopy(encoder).eval().requires_grad_(False) if config.perceptual_weight else None

    def __call__(self, made: Tensor, wanted: Tensor) -> Tensor:
        made = made.float()
        result = F.l1_loss(made, wanted)
        if self.ssim_weight:
            result = result + self.ssim_weight * (1 - structural_similarity(made, wanted))
        if self.encoder is not None:
            maps = [self.encoder.pyramid((x + 1) / 2) for x in (made, wanted)]
            apart = [
                (F.normalize(a.float()) - F.normalize(b.float())).square().sum(1).mean()
                for a, b in zip(*maps, strict=True)
            ]
            result = result + self.perceptual_weight * sum(apart) / len(apart)
        return result


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Mean SSIM of images (N, 1, H, W) in [-1, 1] over all Gaussian windows inside; `likeness.ssim` with a gradient."""
    x = torch.arange(-5.0, 6.0, device=a.device)
    line = torch.exp(-(x**2) / (2 * 1.5**2))
    line = line / line.sum()

    def mean(y: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(y, line[None, None, :, None]), line[None, None, None, :])

    with torch.autocast(a.device.type, enabled=False):
        a, b = (a.float() + 1) / 2, (b.float() + 1) / 2
        # one pass over all five, which is faster than five
        mean_a, mean_b, aa, bb, ab = mean(torch.cat([a, b, a * a, b * b, a * b])).chunk(5)
        spread, covariance = aa - mean_a**2 + bb - mean_b**2, ab - mean_a * mean_b
        c1, c2 = 0.01**2, 0.03**2
        return (
            (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (spread + c2))
        ).mean()


def learning_rate(epoch: int, config: TrainingConfig) -> float:
    """Constant for `epochs`, then linear, such that it would reach 0 one epoch after the last."""
    return config.learning_rate * (1 - max(0, epoch + 1 - config.epochs) / (config.decay_epochs + 1))


# ---- the loop -------------------------------------------------------------------------------------------------------


class CycleGAN(Training):
    """What the loop trains here: both generators and their average, both discriminators, their optimizers and pools.

    A method with less says which networks it has, and which domains are judged by a discriminator.
    """

    networks: ClassVar[tuple[str, ...]] = ("enhancer", "degrader")
    judged: ClassVar[tuple[str, ...]] = ("low", "high")

    def __init__(
        self,
        encoder: Encoder,
        networks: GeneratorConfig,
        config: TrainingConfig,
        folder: RunFolder,
        device: torch.device,
        seed: int,
        frozen: bool = False,
        freeze_epochs: int = 0,
        precision: str = "auto",
        paired: bool = False,
        compared_on: Encoder | None = None,
    ):
        self.distance = Distance(config, compared_on and compared_on.to(device))
        torch.manual_seed(seed)
        self.generators = Networks({"enhancer": new_enhancer(networks, encoder)})
        if "degrader" in self.networks:
            self.generators["degrader"] = self.new_degrader(networks)
        self.generators.to(device)
        self.averaged = copy.deepcopy(self.generators).requires_grad_(False) if config.average else self.generators
        self.discriminators = nn.ModuleDict(
            {k: Discriminator(networks.discriminator_width, networks.discriminator_norm) for k in self.judged}
        ).to(device)
        self.projectors = self.new_projectors(networks).to(device)
        if device.type == "cuda" or precision == "bfloat16":
            for module in (self.generators, self.averaged, self.discriminators):
                module.to(memory_format=torch.channels_last)
        self.config, self.folder, self.device, self.seed = config, folder, device, seed
        self.frozen_epochs = math.inf if frozen else freeze_epochs
        self.precision, self.paired = precision, paired
        scaled = [(list(encoder.parameters()), config.encoder_rate), *self.scaled_parameters()]
        apart = {id(p) for parameters, _ in scaled for p in parameters}
        rest = [p for p in [*self.generators.parameters(), *self.projectors.parameters()] if id(p) not in apart]
        groups = [{"params": parameters, "scale": scale} for parameters, scale in [(rest, 1.0), *scaled]]
        self.optimizers = {"generators": torch.optim.Adam(groups, lr=0.0, betas=(0.5, 0.999))}
        if self.judged:
            judges = [{"params": list(self.discriminators.parameters()), "scale": 1.0}]
            self.optimizers["discriminators"] = torch.optim.Adam(judges, lr=0.0, betas=(0.5, 0.999))
        self.pools = {k: ImagePool(config.pool) for k in self.judged}
        self.standing = dict.fromkeys(self.judged, DRAW)  # running mean of each discriminator's loss
        self.best_state: dict[str, Tensor] = {}

    def fit(
        self,
        batches: Callable[[int], list[tuple[np.ndarray, np.ndarray]]],
        crops: Callable[[np.ndarray, np.ndarray, torch.Generator], tuple[Tensor, Tensor]],
        validate: Callable[[nn.ModuleDict, int], dict[str, float]],
    ) -> Networks:
        """Train to the end and return the generators of the best epoch; Stopped where a signal asked to stop (all is saved).

        batches(epoch) lists pairs of row arrays (low, high); crops(low rows, high rows, generator) gives their images in [-1, 1];
        validate(generators, epoch) has a `score`. FloatingPointError where training has failed: what was saved last is kept.
        """
        self._batches, self._crops, self._validate = batches, crops, validate
        epochs = self.config.epochs + self.config.decay_epochs
        Loop(self, self.folder, [(epochs, len(batches(0)))], self.device).run()
        self.averaged.load_state_dict(self.best_state)
        return self.averaged.eval()

    # ---- what the loop asks ---------------------------------------------------------------------------------------

    def begin_epoch(self) -> None:
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.loop.epoch, self.config) * group["scale"]
        self.generators.train()
        self.generators["enhancer"].branch.encoder.requires_grad_(self.loop.epoch >= self.frozen_epochs)

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return self._batches(self.loop.epoch)[self.loop.step :]

    def update(self, batch: tuple[np.ndarray, np.ndarray]) -> dict[str, Tensor | float]:
        at = self.loop.total
        draw = stream("CycleGAN", self.seed, at)
        low, high = (moved(x, self.device) for x in self._crops(*batch, draw))
        return self._update(low, high, draw, at) | {"learning_rate": learning_rate(self.loop.epoch, self.config)}

    def seen(self, values: dict[str, float]) -> None:
        """Raises FloatingPointError where a discriminator has won."""
        for domain in self.standing:
            self.standing[domain] = MEMORY * self.standing[domain] + (1 - MEMORY) * values[f"discriminator_{domain}"]
            if self.standing[domain] < self.config.won:
                raise FloatingPointError(
                    f"the discriminator of {domain}-quality images has won at step {self.loop.total}: its loss is "
                    f"{self.standing[domain]:.4f} on average over some 50 steps ({DRAW} is a draw), so the generators learn "
                    f"nothing from it any more. {self.loop.left()} Give both domains like images (size, borders, overlays), or "
                    "a smaller network.discriminator_width or training.learning_rate; training.won=0 goes on regardless"
                )

    def measure(self) -> dict[str, float]:
        figures = self._validate(self.averaged, self.loop.epoch + 1)
        self.folder.log("monitor", self.loop.total, figures)
        return figures

    def remember(self) -> None:
        self.best_state = {k: v.detach().cpu().clone() for k, v in self.averaged.state_dict().items()}

    def remedy(self) -> str:
        return "Lower training.learning_rate, or precision=float32."

    def shown(self, values: dict[str, float]) -> dict[str, str]:
        return {k: f"{v:.3f}" for k, v in values.items() if k == "loss" or k.startswith("val_")}

    def state(self) -> dict:
        return self.loop.place() | {
            "generators": self.generators.state_dict(),
            "averaged": self.averaged.state_dict() if self.config.average else {},
            "discriminators": self.discriminators.state_dict(),
            "projectors": self.projectors.state_dict(),
            "optimizers": {k: v.state_dict() for k, v in self.optimizers.items()},
            "pools": {k: v.images for k, v in self.pools.items()},
            "standing": self.standing,
            "best_state": self.best_state,
        }

    def restore(self, state: dict) -> dict:
        self.generators.load_state_dict(state["generators"])
        if self.config.average:
            self.averaged.load_state_dict(state["averaged"])
        self.discriminators.load_state_dict(state["discriminators"])
        self.projectors.load_state_dict(state.get("projectors", {}))  # runs before there were any have none
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, pool in self.pools.items():
            pool.images = [image.to(self.device) for image in state["pools"][name]]
        self.standing, self.best_state = state["standing"], state["best_state"]
        return {name: state[name] for name in PLACE if name in state}

    # ---- one step -------------------------------------------------------------------------------------------------

    def new_degrader(self, networks: GeneratorConfig) -> nn.Module:
        """The untrained way back, from high to low quality."""
        return Generator(networks)

    def scaled_parameters(self) -> list[tuple[list[nn.Parameter], float]]:
        """Parameters of the generators with a rate of their own, and what it is to `training.learning_rate`; not the encoder's."""
        return []

    def new_projectors(self, networks: GeneratorConfig) -> nn.Module:
        """Further layers that learn with the generators, and are thrown away."""
        return nn.ModuleDict()

    def weights(self) -> dict[str, float]:
        """Of the terms of `terms`, by the first word of their names."""
        config = self.config
        return {
            "adversarial": config.adversarial_weight,
            "cycle": config.cycle_weight,
            "identity": config.identity_weight * config.cycle_weight,
            "l1": config.l1_weight,
        }

    def terms(self, low: Tensor, high: Tensor, draw: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The terms of the generators' loss, and what was made in each judged domain."""
        enhancer, degrader = self.generators["enhancer"], self.generators["degrader"]
        fake_high, fake_low = enhancer(low), degrader(high)
        parts = {
            "adversarial_high": verdict(self.discriminators["high"](fake_high), 1.0),
            "adversarial_low": verdict(self.discriminators["low"](fake_low), 1.0),
            "cycle_low": self.distance(degrader(fake_high), low),
            "cycle_high": self.distance(enhancer(fake_low), high),
        }
        if self.config.identity_weight:
            parts["identity_high"] = self.distance(enhancer(high), high)
            parts["identity_low"] = self.distance(degrader(low), low)
        if self.paired:
            parts["l1"] = self.distance(fake_high, high)
        return parts, {"low": fake_low, "high": fake_high}

    def further_terms(self, low: Tensor, high: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        """Terms of the generators' loss on all crops of a step, those for the discriminators' further steps among them."""
        return {}

    def _update(self, low: Tensor, high: Tensor, draw: torch.Generator, at: int) -> dict[str, Tensor]:
        """One step of the generators on the first crops, then those of the discriminators, on the images just made or earlier ones.

        low, high: batch_size crops for each of the discriminators' steps.
        """
        every = list(zip(low.split(self.config.batch_size), high.split(self.config.batch_size), strict=True))
        self.discriminators.requires_grad_(False)
        with autocast(self.device, self.precision):
            parts, made = self.terms(*every[0], draw)
            parts |= self.further_terms(low, high, draw)
        weights = self.weights()
        loss = sum(weights[name.split("_")[0]] * value for name, value in parts.items())
        self._step("generators", loss)
        if self.config.average:
            move_average(self.averaged, self.generators, self.config.average, at)
        self.discriminators.requires_grad_(True)
        for turn, (low, high) in enumerate(every if self.judged else []):
            with autocast(self.device, self.precision):
                for domain, real in (("low", low), ("high", high)):
                    if domain not in self.judged:
                        continue
                    network, pool, fake = self.discriminators[domain], self.pools[domain], made[domain].float()
                    earlier = pool.draw(fake, draw) if turn else pool.exchange(fake, draw)
                    parts[f"discriminator_{domain}"] = (
                        verdict(network(real), 1.0) + verdict(network(earlier), 0.0)
                    ) / 2
            self._step("discriminators", sum(parts[f"discriminator_{domain}"] for domain in self.judged))
        return {"loss": loss.detach()} | {name: value.detach() for name, value in parts.items()}

    def _step(self, side: str, loss: Tensor) -> None:
        self.optimizers[side].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[side].step()


def verdict(map_: Tensor, wanted: float) -> Tensor:
    """Least squares of a discriminator's map against 1 (real) or 0, in float32."""
    return (map_.float() - wanted).square().mean()
