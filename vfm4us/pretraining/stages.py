"""The coarse-to-fine loop: stage after stage, each on its own data, each from the weights of the one before.

`pretrain(config)` is the whole method; `Trainer.step` is one update. Every random number is a function of
(seed, stage, step), so a run that was stopped anywhere and continued ends in the same weights.
"""

import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.optim import Lars
from torch import Tensor, nn
from tqdm import tqdm

from vfm4us import checkpoints, loading, plots, run
from vfm4us.config import to_dict
from vfm4us.data import pools
from vfm4us.data.phantoms import write_phantoms
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.pretraining import monitor
from vfm4us.pretraining.adversary import frozen_statistics, perturb, random_start
from vfm4us.pretraining.masking import choose_cells, fill_cells
from vfm4us.pretraining.objective import MultiPatchLoss
from vfm4us.pretraining.patches import PatchSampler
from vfm4us.pretraining.settings import OptimizerConfig, PretrainingConfig, ProjectorConfig, check


class Network(nn.Module):
    """Encoder and projector: patches (N, 1, P, P) in [0, 1] -> unit-norm embeddings (N, d)."""

    def __init__(self, encoder: Encoder, projector: ProjectorConfig):
        super().__init__()
        self.base_encoder = encoder
        self.projector = build_projector(encoder.width, projector)

    def forward(self, patches: Tensor) -> Tensor:
        return F.normalize(self.projector(self.base_encoder(patches)).float(), dim=-1)


def build_projector(width: int, config: ProjectorConfig) -> nn.Sequential:
    hidden = config.hidden
    return nn.Sequential(
        nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True),
        nn.Linear(hidden, config.out),
    )  # fmt: skip


def lars(network: nn.Module, config: OptimizerConfig) -> Lars:
    """LARS on matrices and kernels; plain momentum without decay on biases and batch norm, at a lower rate.

    LARS bounds a kernel's relative step by trust * rate. Vectors have no such bound: at the rates that suit kernels, 1 and more,
    batch-norm scales of 1 soon lay between -6 and 11. Barlow Twins (arXiv 2103.03230, section 2.2) has them 40 times
    slower for that reason.
    """
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "always_adapt": True, "scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "scale": config.vector_rate},
    ]
    return Lars(groups, lr=0.0, momentum=config.momentum, trust_coeff=config.trust)


@dataclass
class Draws:
    """The random numbers of one step that belong to the attack and the masks, for this process's images."""

    start: Tensor | None  # (n * b, 1, P, P) in [-1, 1]
    scores: Tensor | None  # (n * b, rows, columns)

    @classmethod
    def of(cls, config: PretrainingConfig, generator: torch.Generator, b: int, device, rank=0, world_size=1) -> "Draws":
        """Drawn for the global batch and cut to this process's part, as the patches are."""
        n, size, own = config.patches.count, config.patches.size, slice(rank * b, (rank + 1) * b)
        start = scores = None
        if config.adversary.weight:
            start = random_start(n, own, b * world_size, size, generator, device)
        if config.masking.strategy == "random":
            rows = -(-size // config.masking.cell)
            scores = torch.rand((n, b * world_size, rows, rows), generator=generator)[:, own].flatten(0, 1).to(device)
        return cls(start, scores)


def harden(network: nn.Module, patches: Tensor, center: Tensor, config: PretrainingConfig, draws: Draws):
    """Attacked and masked patches: (N, 1, P, P) of images with clean mean embeddings `center` (N, d).

    Returns what the network is to be shown, the attacked patches without masks, and the masked cells or None.
    """
    attacked, gradient, cells = patches, None, None
    if config.adversary.weight:
        attack = perturb(network, patches, center, config.adversary, start=draws.start)
        attacked, gradient = patches + attack.delta, attack.gradient
    shown = attacked
    if config.masking.strategy != "none":
        cells = choose_cells(attacked, config.masking, gradient=gradient, scores=draws.scores)
        shown = fill_cells(attacked, cells)
    return shown, attacked, cells


def compute_loss(
    network: nn.Module, objective: MultiPatchLoss, patches: Tensor, config: PretrainingConfig, draws: Draws
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of patches (n, b, 1, P, P), and its terms as detached scalars.

    EMP-SSL on the patches, plus `adversary.weight` times the same on the attacked ones, compared with the clean means:
        loss = EMP(x) + weight * [200 (1 - S(x + delta; zbar)) - R(x + delta)]
    Weight 0 is EMP-SSL exactly, on masked patches if there is masking.
    """
    n, b = patches.shape[:2]
    flat = patches.flatten(0, 1)
    if not config.adversary.weight:
        shown, _, _ = harden(network, flat, flat, config, draws)
        terms = objective(network(shown).view(n, b, -1))
        return terms.loss, {"similarity": terms.similarity.detach(), "coding_rate": terms.coding_rate.detach()}

    z = network(flat).view(n, b, -1)
    center = z.mean(0)  # (b, d), not detached: the clean patches move towards the attacked ones too
    clean = objective(z)
    with frozen_statistics(network):  # running statistics describe clean patches alone
        shown, _, _ = harden(network, flat, center.detach().repeat(n, 1), config, draws)
        hard = objective(network(shown).view(n, b, -1), center)
    # The constant makes the term 0 instead of -200 where the attack achieves nothing.
    loss = clean.loss + config.adversary.weight * (hard.loss + objective.similarity_weight)
    values = {
        "similarity": clean.similarity,
        "coding_rate": clean.coding_rate,
        "adversarial_similarity": hard.similarity,
        "adversarial_coding_rate": hard.coding_rate,
    }
    return loss, {k: v.detach() for k, v in values.items()}


def pretrain(config: PretrainingConfig) -> Path:
    """Run (or continue) every stage of `config`; returns the run folder."""
    check(config)
    device = run.choose_device(config.device)
    with run.processes(device.type) as (rank, world_size):
        trainer = Trainer(config, device, rank, world_size)
        try:
            with run.StopSignal() as stop:
                trainer.fit(stop)
        finally:
            trainer.folder.close()
    return trainer.folder.folder


def _as_it_is(batch):
    return batch


def _leave_signals(_worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; loader workers end when their training process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Trainer:
    """State of a run: network, optimizer, position; `fit` goes through all stages from wherever that is."""

    def __init__(self, config: PretrainingConfig, device: torch.device, rank: int, world_size: int):
        self.config, self.device, self.rank, self.world_size = config, device, rank, world_size
        if config.batch_size % world_size:
            near = config.batch_size // world_size * world_size or world_size
            raise ValueError(
                f"batch_size {config.batch_size} (of all processes together) is not divisible by {world_size} processes: "
                f"use {near} or {near + world_size}"
            )
        leaks = self._open_pools()
        self.folder = run.RunFolder(Path(config.logs) / config.name, config, config.resume, main=rank == 0)
        for stage, rows in leaks.items():
            if rank == 0:
                pools.write_leaks(self.folder.folder / f"leakage_{stage}.csv", rows)
        torch.manual_seed(config.seed)
        encoder = Encoder(EncoderSpec(config.encoder.name, config.encoder.in_channels))
        if config.encoder.weights:
            source = loading.load_encoder(config.encoder.weights, config.encoder.in_channels)
            if source.spec.name != config.encoder.name:
                raise ValueError(
                    f"encoder.weights {config.encoder.weights} holds a {source.spec.name}, "
                    f"but encoder.name is {config.encoder.name}"
                )
            encoder = source
            self._say(f"encoder.weights {config.encoder.weights}: {source.report}")
        network = Network(encoder, config.projector).to(device, memory_format=torch.channels_last)
        if world_size > 1 and device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = network
        self.forward = torch.compile(network) if config.compile else network
        self.objective = MultiPatchLoss(**to_dict(config.objective))
        self.sampler = PatchSampler(config.patches)
        self.optimizer = lars(network, config.optimizer)
        self.stage, self.epoch, self.step = 0, 0, 0  # step counts within the stage
        self.best, self.seconds, self.finished = -math.inf, 0.0, False
        self.values: dict[str, float] = {}  # of the latest step

    # ---- data -----------------------------------------------------------------------------------------------------

    def _open_pools(self) -> dict[str, list]:
        """Fill `self.training` and `self.held_out`, a pool per stage; returns the removed images of each stage."""
        config = self.config
        where = config.data.locations()
        if config.data.phantoms and self.rank == 0:
            write_phantoms(where.phantoms, config.data.phantoms, where.size)
        if self.world_size > 1:
            dist.barrier()
        self.training, self.held_out, leaks = [], [], {}
        opened = pools.stage_pools(config.stages, config.data.protect, where, config.seed)
        for i, (stage, found) in enumerate(zip(config.stages, opened, strict=True)):
            pool, leaks[stage.name] = found.training, found.leaks
            self._say(
                f"stage {stage.name}: {len(pool)} images to train on; {found.removed} left out because they equal "
                f"or nearly equal one of {found.checked} val and test images (leakage_{stage.name}.csv)"
            )
            if len(pool) < config.batch_size:
                raise ValueError(
                    f"stages.{i} ({stage.name}) has {len(pool)} images, fewer than batch_size "
                    f"{config.batch_size}: lower batch_size or add data"
                )
            if (packed := pool.datasets[0].size) < config.patches.size:
                raise ValueError(
                    f"patches.size {config.patches.size} is larger than the images, packed at {packed} px: "
                    f"lower patches.size, or raise data.size and pack again"
                )
            self.training.append(pool)
            self.held_out.append(found.held_out)
            if self.held_out[-1] is None:
                self._say(
                    f"stage {stage.name} has no val images: only the effective rank is measured, on training images"
                )
        return leaks

    def steps_per_epoch(self, stage: int) -> int:
        images = self.config.stages[stage].epoch_images or len(self.training[stage])
        return max(1, images // self.config.batch_size)

    def _batches(self):
        """This process's (images, valid) of the rest of the current epoch, in an order that only the seed decides."""
        stage = self.config.stages[self.stage]
        used = [self.training[self.stage]] + (self.training[: self.stage] if stage.replay else [])
        pool = pools.concatenate(used) if len(used) > 1 else used[0]
        shares = pools.source_shares(used[0].sizes, stage.balance)
        if stage.replay:
            earlier = [size for p in used[1:] for size in p.sizes]
            shares = [(1 - stage.replay) * s for s in shares]
            shares += [stage.replay * s for s in pools.source_shares(earlier, stage.balance)]
        steps, b = self.steps_per_epoch(self.stage), self.config.batch_size
        order = pools.epoch_order(pool.sizes, shares, steps * b, (self.config.seed, self.stage, self.epoch))
        local = b // self.world_size
        lists = [
            order[s * b + self.rank * local : s * b + (self.rank + 1) * local]
            for s in range(self.step - self.epoch * steps, steps)
        ]
        workers = self.config.num_workers
        return torch.utils.data.DataLoader(
            pool, batch_sampler=lists, num_workers=workers, collate_fn=_as_it_is, worker_init_fn=_leave_signals,
            multiprocessing_context="fork" if workers else None,  # a spawned worker would copy every memory map
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip

    # ---- the loop -------------------------------------------------------------------------------------------------

    def fit(self, stop: run.StopSignal) -> None:
        continuing = self._restore()
        self._agree(continuing)
        if not continuing:
            self.folder.open_log(-1)
            if self.rank == 0:
                for i in range(len(self.config.stages)):
                    self._monitor(i, "initial", both=True)
        if self.finished:
            return self._say(f"{self.folder.folder}: this run is finished; resume=false starts it afresh")
        epochs_done, saved = 0, time.monotonic()
        for index in range(self.stage, len(self.config.stages)):
            self.stage = index
            stage = self.config.stages[self.stage]
            if self.epoch == 0 and self.step == 0:
                self._enter_stage()
            per_epoch = self.steps_per_epoch(self.stage)
            for epoch in range(self.epoch, stage.epochs):
                self.epoch = epoch
                bar = tqdm(
                    self._batches(),
                    desc=f"{stage.name} {self.epoch + 1}/{stage.epochs}",
                    unit="step",
                    initial=self.step - self.epoch * per_epoch,
                    total=per_epoch,
                    disable=self.rank > 0,
                    dynamic_ncols=True,
                )
                for images, valid in bar:
                    began = time.monotonic()
                    values = self.values = self.update(images, valid)
                    self.step += 1
                    self.seconds += time.monotonic() - began
                    bar.set_postfix(S=f"{values['similarity']:.3f}", R=f"{values['coding_rate']:.1f}", refresh=False)
                    if self.step % self.config.log_every == 0:
                        self.folder.log(
                            "train", self._global_step(), {"stage": stage.name, "epoch": self.epoch} | values
                        )
                    asked = stop.seen_by_any(self.world_size, self.device)
                    if asked or time.monotonic() - saved > 60 * self.config.save_minutes:
                        self._save("last")
                        saved = time.monotonic()
                    if asked:
                        bar.close()
                        raise run.Stopped(stop.number, self.folder.folder)
                last_epoch = self.epoch + 1 == stage.epochs
                self._after_epoch(last_epoch)
                self.epoch += 1  # what is saved is the position to go on from
                if last_epoch and self.stage + 1 == len(self.config.stages):
                    self.finished = True
                    per_stage = [s.epochs * self.steps_per_epoch(i) for i, s in enumerate(self.config.stages)]
                    images = self.config.batch_size * sum(per_stage)
                    self._say(
                        f"{images} images, {images * self.config.patches.count} patches, {self.seconds / 60:.1f} minutes"
                    )
                self._save("last")
                saved, epochs_done = time.monotonic(), epochs_done + 1
                if epochs_done == self.config.stop_after and not self.finished:
                    return self._say(f"stopped after {epochs_done} epochs as asked; the same command goes on")
            self.epoch, self.step = 0, 0

    def update(self, images: Tensor, valid: Tensor) -> dict[str, float]:
        """One optimizer step on this process's images (b / k, S, S) uint8; returns loss, its terms and the rate."""
        config, stage = self.config, self.config.stages[self.stage]
        rate = run.cosine_with_warmup(
            self.step,
            stage.epochs * self.steps_per_epoch(self.stage),
            stage.warmup,
            stage.learning_rate * config.batch_size / 100,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.network.train()
        draw = run.generator(config.seed, self.stage, self.step)
        patches = self.sampler(images.to(self.device, non_blocking=True), valid, draw, self.rank, self.world_size)
        draws = Draws.of(config, draw, len(images), self.device, self.rank, self.world_size)
        with run.autocast(self.device, config.precision):
            loss, terms = compute_loss(self.forward, self.objective, patches, config, draws)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.average_gradients(list(self.network.parameters()))
        values = {"loss": loss.item()} | {k: v.item() for k, v in terms.items()} | {"learning_rate": rate}
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(
                f"the loss is {values['loss']} at step {self.step} of stage {stage.name}: lower "
                f"stages.{self.stage}.learning_rate; the last checkpoint is from before that"
            )
        self.optimizer.step()
        return values

    def _enter_stage(self) -> None:
        """A fresh optimizer, and a new projector if asked; the encoder goes on as it is."""
        stage = self.config.stages[self.stage]
        if self.stage and stage.projector == "reset":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.seed + self.stage)
                new = build_projector(self.network.base_encoder.width, self.config.projector)
            self.network.projector.load_state_dict(new.state_dict())
        self.optimizer = lars(self.network, self.config.optimizer)
        if self.world_size > 1:
            for tensor in self.network.state_dict().values():
                dist.broadcast(tensor, 0)
        self.best = -math.inf

    # ---- measuring ------------------------------------------------------------------------------------------------

    def _after_epoch(self, last_epoch: bool) -> None:
        if self.rank == 0:
            stage = self.config.stages[self.stage]
            result = {}
            for i in range(len(self.config.stages)) if last_epoch else [self.stage]:
                measured = self._monitor(i, stage.name, both=last_epoch)
                result = measured if i == self.stage else result
            score = result.get("knn", result.get("effective_rank"))
            if score is not None and score > self.best:
                self.best = score
                self._save("best")
            self._pictures()
            checkpoints.save(self.folder.checkpoints / f"{stage.name}_{self.epoch + 1:04d}.pt", self._state())
            checkpoints.keep_last(
                self.folder.checkpoints, f"{stage.name}_[0-9][0-9][0-9][0-9].pt", self.config.keep_last
            )
            if last_epoch:
                self._save(stage.name)
                if self.stage + 1 == len(self.config.stages):
                    checkpoints.save(self.folder.folder / "encoder.pt", self._state())
        if self.world_size > 1:
            dist.barrier()

    def _monitor(self, index: int, after: str, both: bool) -> dict[str, float]:
        """Held-out measurements of the encoder on stage `index`'s images, logged and printed."""
        training, held_out, c = self.training[index], self.held_out[index], self.config.monitor
        encoder, result, predictable = self.network.base_encoder, {}, held_out is not None
        held_out = held_out or training  # nothing to predict: rank and collapse on training images
        chosen = training.take(c.reference, self.config.seed), held_out.take(c.held_out, self.config.seed)
        labels = [
            np.array(pool.labels)[items].tolist() for pool, items in zip((training, held_out), chosen, strict=True)
        ]
        for suffix, patches in (("", 0), ("_patches", c.patches)) if both and c.patches else (("", 0),):
            sides = []
            for pool, items in zip((training, held_out), chosen, strict=True):
                images, valid = pool.batch(items)
                sides.append(encoder.embed(images, patches=patches, valid=valid))
            found = monitor.measure(sides[0], labels[0], sides[1], labels[1] if predictable else [])
            result |= {name + suffix: value for name, value in found.items()}
            if not patches:
                embeddings = sides[1]
        name = self.config.stages[index].name
        self.folder.log("monitor", self._global_step(), {"dataset": name, "after": after} | result)
        numbers = ", ".join(f"{k} {v:.3f}" if "knn" in k else f"{k} {v:.1f}" for k, v in result.items())
        self._say(f"  {after}: held-out {name} images: {numbers}")
        values = self.values
        if values and (warning := monitor.collapse_warning(embeddings, values["similarity"], values["coding_rate"])):
            self._say(f"  WARNING: {warning}")
            self.folder.log("warning", self._global_step(), {"text": warning})
        return result

    def _pictures(self) -> None:
        """A contact sheet of a few images of the stage, cut, attacked and masked as in training; and the curve."""
        config, stage, pool = self.config, self.config.stages[self.stage], self.training[self.stage]
        images, valid = pool.batch(pool.take(4, config.seed))
        draw = run.generator(config.seed, self.stage, self.step)
        patches = self.sampler(images.to(self.device), valid, draw)
        draws, (n, b) = Draws.of(config, draw, len(images), self.device), patches.shape[:2]
        self.network.eval()  # running statistics: a picture takes one process, and must not change the network
        flat = patches.flatten(0, 1)
        with torch.no_grad():
            center = self.network(flat).view(n, b, -1).mean(0).repeat(n, 1)
        _, attacked, cells = harden(self.network, flat, center, config, draws)
        attack = config.adversary.method if config.adversary.weight else "off"
        sheet = plots.contact_sheet(
            self.folder.folder / f"contact_sheet_{stage.name}.png",
            images,
            patches,
            attacked.view_as(patches) if config.adversary.weight else None,
            None if cells is None else cells.view_as(patches),
            config.adversary.epsilon,
            f"{config.name}, {stage.name} epoch {self.epoch + 1}: adversary {attack}, masking {config.masking.strategy}",
        )
        self.folder.tensorboard.add_image("what_the_network_saw", sheet, self._global_step(), dataformats="HWC")
        plots.training_curve(self.folder.folder / "curve.png", self.folder.metrics(), config.name)

    def _global_step(self) -> int:
        """Steps since the start of the run."""
        before = sum(self.config.stages[i].epochs * self.steps_per_epoch(i) for i in range(self.stage))
        return before + self.step

    # ---- saving ---------------------------------------------------------------------------------------------------

    def _state(self) -> dict:
        """A checkpoint in the published form."""
        encoder, stage = self.network.base_encoder, self.config.stages[self.stage]
        tensors = {checkpoints.ENCODER_PREFIX + k: v for k, v in encoder.published_state().items()}
        tensors |= {
            checkpoints.PROJECTOR_PREFIX + k: v.detach().cpu() for k, v in self.network.projector.state_dict().items()
        }
        return {
            "state_dict": tensors,
            "encoder": encoder.spec_dict(),
            "stage": stage.name,
            "epoch": self.epoch + 1,
            "step": self._global_step(),
            "config": to_dict(self.config),
        }

    def _save(self, name: str) -> None:
        """checkpoints/<name>.pt; `last` also holds what the run needs to go on."""
        if self.rank:
            return
        state = self._state()
        if name == "last":
            encoder = self.network.base_encoder
            state["epoch"] = self.epoch
            state["resume"] = {
                "optimizer": self.optimizer.state_dict(),
                # a third of a kernel, summed three times, is not the same kernel in the last bit
                "first_convolution": encoder.body.state_dict()[encoder.first_convolution].cpu(),
                "stage": self.stage, "epoch": self.epoch, "step": self.step, "best": self.best,
                "seconds": self.seconds, "finished": self.finished, "values": self.values,
                "data": [pool.fingerprint() for pool in self.training],
            }  # fmt: skip
        checkpoints.save(self.folder.checkpoints / f"{name}.pt", state)

    def _restore(self) -> bool:
        """Go back to where last.pt was written; False where there is none."""
        path = self.folder.checkpoints / "last.pt"
        if not path.is_file():
            return False
        state = checkpoints.read(path)
        encoder, saved = self.network.base_encoder, state["resume"]
        for stage, pool, before in zip(self.config.stages, self.training, saved["data"], strict=True):
            if pool.fingerprint() != before:
                raise ValueError(
                    f"the images of stage {stage.name} have changed since {path} was written, so it cannot go on as it would "
                    "have: put them back, or give the run another name (encoder.weights=FILE starts from its encoder)"
                )
        loading.fill(encoder, loading.recognise(state, str(path)), str(path))
        with torch.no_grad():
            encoder.body.get_parameter(encoder.first_convolution).copy_(saved["first_convolution"])
        prefix = checkpoints.PROJECTOR_PREFIX
        self.network.projector.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state["state_dict"].items() if k.startswith(prefix)}
        )
        self.optimizer.load_state_dict(saved["optimizer"])
        self.stage, self.epoch, self.step = saved["stage"], saved["epoch"], saved["step"]
        self.best, self.seconds, self.finished = saved["best"], saved["seconds"], saved["finished"]
        self.values = saved["values"]
        boundary = self.step == self.epoch * self.steps_per_epoch(self.stage)
        self.folder.open_log(self._global_step(), epoch_ended=boundary)
        if not self.finished:
            self._say(
                f"continuing {self.folder.folder}: stage {self.config.stages[self.stage].name}, "
                f"epoch {self.epoch + 1}, step {self.step}"
            )
        return True

    def _agree(self, continuing: bool) -> None:
        """Every process must stand where process 0 stands, or their collective calls would not meet."""
        if self.world_size > 1:
            place = [continuing, self.stage, self.epoch, self.step]
            first = [list(place)]
            dist.broadcast_object_list(first, 0)
            if first[0] != place:
                raise ValueError(
                    "the processes found different checkpoints: logs must be on a file system all machines share"
                )

    def _say(self, text: str) -> None:
        if self.rank == 0:
            tqdm.write(text)


def summary(folder: Path, start: str = "random") -> str:
    """A table of held-out measurements: at the `start` and after each stage, on each stage's images."""
    lines = run.RunFolder(folder, None, main=False).metrics()
    found = {(m["after"], m["dataset"]): m for m in lines if m["kind"] == "monitor"}
    moments, datasets = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
    columns = [(d, k, name) for d in datasets for k, name in (("knn", "k-NN"), ("effective_rank", "rank"))]
    rows = [f"{'held-out images':<20}" + "".join(f"{f'{d}, {name}':>16}" for d, _, name in columns)]
    for i, moment in enumerate(moments):
        title = start if moment == "initial" else "-to-".join(moments[1 : i + 1])
        cells = [found.get((moment, d), {}).get(k) for d, k, _ in columns]
        rows.append(
            f"{title:<20}" + "".join(f"{'-' if v is None else f'{v:.3f}' if v <= 1 else f'{v:.1f}':>16}" for v in cells)
        )
    return "\n".join(rows + ["k-NN: balanced accuracy of a weighted k-NN on whole images; rank: RankMe"])
