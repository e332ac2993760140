"""The one supervised loop: AdamW with layer-wise rates, cosine with warm-up, clipping, weight averaging, early stopping, resume.

A task gives a model with `encoder` and `head`, the batches of an epoch as lists of indices, a loss and a validation; this gives
back the model of its best epoch. Every random number is a function of (seed, epoch, step), so a run that was stopped anywhere
and continued ends in the same weights, bit for bit on a CPU.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vfm4us import log
from vfm4us.checkpoints import LoadReport, load_encoder, resolve
from vfm4us.checkpoints.imagenet import imagenet_weights
from vfm4us.data.pools import epoch_order
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.runtime.device import autocast, choose_kernels
from vfm4us.runtime.loop import PLACE, Loop, Training, cosine_with_warmup
from vfm4us.runtime.rng import stream
from vfm4us.runtime.run import RunFolder
from vfm4us.tasks.settings import FinetuneConfig, InitialEncoderConfig


def weights_of(config: InitialEncoderConfig, seed: int) -> str:
    """encoder.weights of the run of `seed`."""
    return config.weights.replace("{seed}", str(seed))


def refuse_missing_weights(config: InitialEncoderConfig, seed: int) -> None:
    """FileNotFoundError where encoder.weights names no file or folder: known before data are packed and other runs are done."""
    if config.weights not in ("none", "imagenet"):
        refuse_missing(
            weights_of(config, seed), "encoder.weights", "a checkpoint or run folder, open, imagenet or none"
        )


def refuse_missing(weights: str, key: str, wanted: str = "a checkpoint or run folder, or open") -> None:
    """FileNotFoundError that names the key where `weights` is no released encoder, file or folder."""
    path, _ = resolve(weights)
    if not path.exists():
        raise FileNotFoundError(f"{key}: {path} does not exist (looked from {Path.cwd()}); give {wanted}")


def make_encoder(config: InitialEncoderConfig, seed: int) -> tuple[Encoder, LoadReport | None]:
    """The encoder a task starts from, and the report of what was loaded. `random` depends on the seed alone."""
    if config.weights == "none":
        torch.manual_seed(seed)
        return Encoder(EncoderSpec(config.name, config.in_channels, patch=config.patch, norm=config.norm)), None
    source = imagenet_weights(config.name) if config.weights == "imagenet" else weights_of(config, seed)
    encoder = load_encoder(source, config.in_channels, prefix=config.prefix or None, heads=config.heads or None)
    return encoder, encoder.report


def parameter_groups(model: nn.Module, config: FinetuneConfig) -> list[dict]:
    """Groups for AdamW with `scale`, the share of the scheduled rate that each gets."""
    encoder, share = model.encoder, {}
    for name, parameter in encoder.named_parameters():
        below = encoder.depths - 1 - encoder.depth_of(name)
        share[id(parameter)] = config.encoder_rate * config.layer_decay**below
    groups: dict[tuple[float, float], list] = {}
    for parameter in model.parameters():
        scale, decay = share.get(id(parameter), 1.0), config.weight_decay
        if parameter.ndim == 1:
            scale, decay = scale * config.vector_rate, 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    return [{"params": p, "scale": scale, "weight_decay": decay} for (scale, decay), p in groups.items()]


def batches_of(
    parts: list[np.ndarray], shares: list[float], config: FinetuneConfig, seed: int, epoch: int
) -> list[np.ndarray]:
    """One epoch's batches: indices drawn from `parts` in these shares, each part gone through whole before it repeats."""
    if 0 < config.max_steps < max(config.min_steps, config.epochs):
        raise ValueError(
            f"finetune.max_steps {config.max_steps} is below finetune.min_steps {config.min_steps} or epochs {config.epochs}"
        )
    items, count = np.concatenate(parts), sum(map(len, parts))
    size = min(config.batch_size, max(2, count))
    steps = max(1, round(count / size), math.ceil(config.min_steps / config.epochs))
    if config.max_steps:
        steps = min(steps, config.max_steps // config.epochs)
    order = epoch_order([len(p) for p in parts], shares, steps * size, (seed, epoch))
    return [items[order[i * size : (i + 1) * size]] for i in range(steps)]


@torch.no_grad()
def move_average(averaged: nn.Module, model: nn.Module, decay: float, at: int) -> None:
    """Step `at` of the exponential average of a model's weights, shorter in the beginning; batch-norm statistics are copied."""
    decay = min(decay, (1 + at) / (10 + at))
    for ours, theirs in zip(averaged.parameters(), model.parameters(), strict=True):
        ours.lerp_(theirs, 1 - decay)
    for ours, theirs in zip(averaged.buffers(), model.buffers(), strict=True):
        ours.copy_(theirs)


class Finetuner(Training):
    """What the loop trains here: a model, its average, and what is best of it."""

    def __init__(
        self,
        model: nn.Module,
        config: FinetuneConfig,
        folder: RunFolder,
        device: torch.device,
        seed: int,
        freeze_epochs: int = 0,
        precision: str = "auto",
    ):
        self.model = model.to(device, memory_format=torch.channels_last)
        choose_kernels(model, device, precision)
        self.averaged = copy.deepcopy(self.model).requires_grad_(False) if config.average else self.model
        self.config, self.folder, self.device, self.seed = config, folder, device, seed
        self.freeze_epochs, self.precision = freeze_epochs, precision
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, config), lr=0.0)
        self.best_state: dict[str, Tensor] = {}

    def fit(
        self,
        batches: Callable[[int], list[np.ndarray]],
        loss: Callable[[nn.Module, np.ndarray, torch.Generator], Tensor],
        validate: Callable[[nn.Module], dict[str, float]],
    ) -> nn.Module:
        """Train to the end and return the model of the best epoch; signals.Stopped where a signal asked to stop (all is saved).

        batches(epoch) lists index arrays; loss(model, indices, generator) is a scalar; validate(model) has a `score`.
        """
        self._batches, self._loss, self._validate = batches, loss, validate
        steps = len(batches(0))
        least = f"; finetune.min_steps={self.config.min_steps} asks for so many" * (
            self.config.min_steps > self.config.epochs
        )
        log.note(f"at most {self.config.epochs} epochs of {steps} steps{least}")
        # five copies of the weights are not written after every short epoch
        Loop(self, self.folder, [(self.config.epochs, steps)], self.device, each_epoch=False).run()
        self.averaged.load_state_dict(self.best_state)
        return self.averaged.eval()

    # ---- what the loop asks ---------------------------------------------------------------------------------------

    def begin_epoch(self) -> None:
        frozen = self.loop.epoch < self.freeze_epochs
        self.model.train()
        if frozen:
            self.model.encoder.eval()
        self.model.encoder.requires_grad_(not frozen)

    def batches(self) -> list[np.ndarray]:
        return self._batches(self.loop.epoch)[self.loop.step :]

    def update(self, batch: np.ndarray) -> dict[str, Tensor | float]:
        config, at = self.config, self.loop
        draw = stream("fine-tuning", self.seed, at.total)
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=draw)))  # of dropout
        rate = cosine_with_warmup(at.total, at.epochs * at.per_epoch, config.warmup, config.learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        with autocast(self.device, self.precision):
            loss = self._loss(self.model, batch, draw)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        if config.average:
            move_average(self.averaged, self.model, config.average, at.total)
        return {"loss": loss.detach(), "learning_rate": rate}

    def measure(self) -> dict[str, float]:
        figures = self._validate(self.averaged)
        self.folder.log("monitor", self.loop.total, figures)
        return figures

    def remember(self) -> None:
        self.best_state = {k: v.detach().cpu().clone() for k, v in self.averaged.state_dict().items()}

    def enough(self) -> bool:
        epoch, patience = self.loop.epoch, self.config.patience
        return 0 < patience <= epoch - self.loop.best["epoch"] and epoch > self.freeze_epochs

    def remedy(self) -> str:
        return "Lower finetune.learning_rate."

    def shown(self, values: dict[str, float]) -> dict[str, str]:
        return {k: f"{v:.3f}" for k, v in values.items() if k not in ("score", "learning_rate")}

    def state(self) -> dict:
        return self.loop.place() | {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict() if self.config.average else {},
            "optimizer": self.optimizer.state_dict(),
            "best_state": self.best_state,
        }

    def restore(self, state: dict) -> dict:
        self.model.load_state_dict(state["model"])
        if self.config.average:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_state = state["best_state"]
        return {name: state[name] for name in PLACE if name in state}
