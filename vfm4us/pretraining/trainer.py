"""The coarse-to-fine loop: stage after stage, each on its own data, each from the weights of the one before.

`pretrain(config)` is the whole run; `Trainer.update` is one step. What is learnt from a batch is the method's, see
`methods/`. Every random number is a function of (seed, stage, step), so a run that was stopped anywhere
and continued ends in the same weights.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from vfm4us import checkpoints, log
from vfm4us.checkpoints import seen
from vfm4us.config import to_dict
from vfm4us.data import pools
from vfm4us.encoders import Encoder, EncoderSpec, family
from vfm4us.evaluation import representation
from vfm4us.phantoms.folders import write_phantoms
from vfm4us.pretraining import pictures
from vfm4us.pretraining.method import Method
from vfm4us.pretraining.methods import method_named
from vfm4us.pretraining.settings import PretrainingConfig, check, crops_of
from vfm4us.runtime.device import autocast, choose_device, choose_kernels, choose_precision, device_name
from vfm4us.runtime.files import write_text
from vfm4us.runtime.loop import NEVER, PLACE, Loop, Training, cosine_with_warmup
from vfm4us.runtime.processes import agreed, average_gradients, barrier, busy, come_to_meeting, processes
from vfm4us.runtime.rng import generator
from vfm4us.runtime.run import RunFolder


def pretrain(config: PretrainingConfig, method: str = "") -> Path:
    """Run (or continue) every stage of `config`; returns the run folder. A script for one `method` takes no other."""
    if method and config.method != method:
        raise ValueError(
            f"method is {config.method}, and this script is for {method}: use Pretraining/US-SSL/adv_main.py, or method={method}"
        )
    check(config)
    device = choose_device(config.device)
    with processes(device.type, config.wait_minutes) as (rank, world_size):
        trainer = Trainer(config, device, rank, world_size)
        try:
            trainer.fit()
        finally:
            trainer.folder.close()
    return trainer.folder.folder


# FLOPs of the attention kernel of CPUs, which torch's counter does not know: two products, and five going back.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda _, q, k, v, *__, **___: sdpa_flop_count(q, k, v) * 5 // 2
    ),
}


def build_encoder(config: PretrainingConfig) -> Encoder:
    """The encoder that a run begins with: random, or read from `encoder.weights`."""
    wanted, kind = config.encoder, method_named(config.method)
    side = getattr(config, config.method).image_side()
    spec = EncoderSpec(wanted.name, wanted.in_channels)
    if family(wanted.name).has_tokens:
        image = side or spec.image
        spec = dataclasses.replace(spec, patch=wanted.patch, norm=wanted.norm or kind.norm, image=image)
    encoder = Encoder(spec)
    if not wanted.weights:
        return encoder
    source = checkpoints.load_encoder(
        wanted.weights,
        wanted.in_channels,
        prefix=wanted.prefix or None,
        heads=wanted.heads or None,
        image_size=spec.image if side else None,
    )
    if (source.spec.name, source.spec.patch) != (spec.name, spec.patch):
        raise ValueError(
            f"encoder.weights {wanted.weights} holds a {source.spec.name}"
            + (f" with tokens of {source.spec.patch} px" if source.spec.name == spec.name else "")
            + f", but encoder.name is {spec.name}"
            + (f" and encoder.patch {spec.patch}" if source.spec.name == spec.name else "")
        )
    if {source.spec.norm, spec.norm} == {"token", "mean_of_norm"}:  # the same tensors, another vector of them
        other = Encoder(dataclasses.replace(source.spec, norm=spec.norm))
        other.load_state_dict(source.state_dict())
        source, other.report = other, source.report
    return source


def build_method(config: PretrainingConfig) -> Method:
    """What the run learns by, around the encoder it begins with."""
    return method_named(config.method)(build_encoder(config), getattr(config, config.method), config.batch_size)


def _as_it_is(batch):
    return batch


def _leave_signals(_worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; loader workers end when their training process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Trainer(Training):
    """What the loop trains here: the network by a method, on a pool of images per stage."""

    def __init__(self, config: PretrainingConfig, device: torch.device, rank: int, world_size: int):
        self.config, self.device, self.rank, self.world_size = config, device, rank, world_size
        if config.batch_size % world_size:
            near = config.batch_size // world_size * world_size or world_size
            raise ValueError(
                f"batch_size {config.batch_size} (of all processes together) is not divisible by {world_size} processes: "
                f"use {near} or {near + world_size}"
            )
        leaks = self._open_pools()
        self.folder = RunFolder(Path(config.logs) / config.name, config, config.resume, main=rank == 0)
        for stage, rows in leaks.items():
            if rank == 0:
                pools.write_leaks(self.folder.folder / f"leakage_{stage}.csv", rows)
        self.precision = self._choose_precision()
        self._say(f"{device_name()}, {self.precision}" + (f", {world_size} processes" if world_size > 1 else ""))
        torch.manual_seed(config.seed)
        self.method = build_method(config)
        if report := self.method.network.base_encoder.report:
            self._say(f"encoder.weights {config.encoder.weights}: {report}")
        self.seen_by_stage = self._digests()
        network = self.network = self.method.network.to(device, memory_format=torch.channels_last)
        choose_kernels(network, device, self.precision)
        if world_size > 1 and device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.method.optimizer = self.method.new_optimizer()
        self.loop = Loop(
            self,
            self.folder,
            [(stage.epochs, self.steps_per_epoch(i)) for i, stage in enumerate(config.stages)],
            device,
            save_every=60 * config.save_minutes,
            log_every=config.log_every,
            stop_after=config.stop_after,
            rank=rank,
            world_size=world_size,
        )
        self.flops, self.compiled = 0, False  # flops of one step over all processes; 0: not counted yet
        self.values: dict[str, float] = {}  # of the latest step

    def _choose_precision(self) -> str:
        """float32 or bfloat16, the same for all processes; a run that is gone on with keeps what it was started with."""
        config = self.config
        smallest = min(crops.size for crops in crops_of(config).values())
        # The strided convolution of a map of 1 x 1, which is what is left of 16 px: torch 2.14 returns what happened to lie in
        # memory as the gradient of its kernel.
        wrong = self.device.type == "cpu" and smallest <= 16 and not family(config.encoder.name).has_tokens
        if wrong and config.precision == "bfloat16":
            raise ValueError(
                f"precision=bfloat16 gives wrong gradients on a CPU for crops of {smallest} px, of which {config.encoder.name} "
                f"makes maps of 1 x 1: raise {next(iter(crops_of(config)))}.size, or precision=float32"
            )
        if config.precision != "auto":
            return config.precision
        chosen = "float32" if wrong else choose_precision(self.device, "auto")
        if self.device.type == "cpu" and self.rank == 0:
            chosen = self.folder.kept("precision", chosen, before="float32")
        return agreed(chosen)

    # ---- data -----------------------------------------------------------------------------------------------------

    def _open_pools(self) -> dict[str, list]:
        """Fill `self.training` and `self.held_out`, a pool per stage; returns the removed images of each stage."""
        config = self.config
        where = config.data.locations()
        if config.data.phantoms and self.rank == 0:
            with busy("making phantoms"):
                write_phantoms(where.phantoms, config.data.phantoms, where.size)
        barrier()
        self.training, self.held_out, leaks = [], [], {}
        with busy("packing and checking images"):
            opened = pools.stage_pools(config.stages, config.data.protected(), where, config.seed, config.batch_size)
        for i, (stage, stage_pool) in enumerate(zip(config.stages, opened, strict=True)):
            pool, leaks[stage.name] = stage_pool.training, stage_pool.leaks
            self._say(
                f"stage {stage.name}: {len(pool)} images to train on; {stage_pool.removed} left out because they equal "
                f"or nearly equal one of {stage_pool.checked} val and test images (leakage_{stage.name}.csv)"
            )
            if len(pool) < config.batch_size:
                raise ValueError(
                    f"stages.{i} ({stage.name}) has {len(pool)} images, fewer than batch_size "
                    f"{config.batch_size}: lower batch_size or add data"
                )
            for key, crops in crops_of(config).items():
                if (packed := pool.datasets[0].size) < crops.size:
                    raise ValueError(
                        f"{key}.size {crops.size} is larger than the images, packed at {packed} px: "
                        f"lower {key}.size, or raise data.size and pack again"
                    )
            self.training.append(pool)
            self.held_out.append(stage_pool.held_out)
            if self.held_out[-1] is None:
                self._say(
                    f"stage {stage.name} has no val images: only the effective rank is measured, on training images"
                )
        return leaks

    def _digests(self) -> list[Tensor]:
        """Of each stage the digests of all images that the encoder has seen by its end, those of encoder.weights among them."""
        known, stages = seen.seen(self.config.encoder.weights) if self.config.encoder.weights else seen.NONE, []
        for pool in self.training:
            parts = zip(pool.datasets, pool.parts, strict=True)
            known = seen.kept(known, *(seen.digests(d.sha256[i] for i in rows) for d, rows in parts)).numpy()
            stages.append(torch.from_numpy(known))
        return stages

    def steps_per_epoch(self, stage: int) -> int:
        """Optimizer steps in an epoch of a stage."""
        images = self.config.stages[stage].epoch_images or len(self.training[stage])
        return max(1, images // self.config.batch_size)

    def batches(self):
        """This process's (images, valid) of the rest of the current epoch, in an order that only the seed decides."""
        at = self.loop
        stage = self.config.stages[at.stage]
        used = [self.training[at.stage]] + (self.training[: at.stage] if stage.replay else [])
        pool = pools.concatenate(used) if len(used) > 1 else used[0]
        shares = pools.source_shares(used[0].sizes, stage.balance, [source.share for source in stage.data])
        if stage.replay:
            earlier = [size for p in used[1:] for size in p.sizes]
            shares = [(1 - stage.replay) * s for s in shares]
            shares += [stage.replay * s for s in pools.source_shares(earlier, stage.balance)]
        steps, b = at.per_epoch, self.config.batch_size
        number, epoch, _, _ = self._schedule()
        order = pools.epoch_order(pool.sizes, shares, steps * b, (self.config.seed, number, epoch))
        local = b // self.world_size
        lists = [order[s * b + self.rank * local : s * b + (self.rank + 1) * local] for s in range(at.step, steps)]
        workers = self.config.num_workers
        return torch.utils.data.DataLoader(
            pool,
            batch_sampler=lists,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_signals,
            multiprocessing_context="fork" if workers else None,  # a spawned worker would copy every memory map
            pin_memory=self.device.type == "cuda",
        )

    # ---- what the loop asks ---------------------------------------------------------------------------------------

    def fit(self) -> None:
        """From wherever the run is to its end."""
        if not self.loop.run():
            self._say(f"{self.folder.folder}: this run is finished; resume=false starts it afresh")

    def begin(self) -> None:
        if self.rank == 0:
            with busy("measuring"):
                for i in range(len(self.config.stages)):
                    self._monitor(i, "initial", both=True)

    def update(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor | float]:
        """One optimizer step on this process's images (b / k, S, S) uint8; returns loss, its terms and the rate."""
        images, valid = batch
        config, stage, method = self.config, self.config.stages[self.loop.stage], self.method
        number, _, step, steps = self._schedule()
        rate = cosine_with_warmup(
            step, steps, stage.warmup, stage.learning_rate * config.batch_size / method.rate_images
        )
        for group in method.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        progress = step / steps
        method.before_step(progress)
        self.network.train()
        draw = generator(config.seed, number, step)
        if config.compile and self.flops and not self.compiled:  # the first step is counted, which needs it as it is
            method.forward, self.compiled = torch.compile(method.forward), True
        counter = (
            contextlib.nullcontext() if self.flops else FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
        )
        with counter:
            images = images.to(self.device, non_blocking=True)
            with autocast(self.device, self.precision):
                loss, terms = method.loss(images, valid, draw, self.rank, self.world_size)
            method.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        self.flops = self.flops or counter.get_total_flops() * self.world_size
        parameters = list(self.network.parameters())
        average_gradients(parameters)
        if method.clip:
            nn.utils.clip_grad_norm_(parameters, method.clip)
        method.optimizer.step()
        method.after_step(progress)
        return {"loss": loss.detach()} | terms | {"learning_rate": rate}

    def _schedule(self) -> tuple[int, int, int, int]:
        """Of the schedule that the moment lies in: its number, its epochs and steps that are done, and all its steps.

        A stage has one of its own, or with schedule=run all stages have one together, as if they were one stage.
        """
        at, first = self.loop, 0 if self.config.schedule == "run" else self.loop.stage
        spanned = at.lengths[first:] if self.config.schedule == "run" else at.lengths[first : first + 1]
        before = at.lengths[first : at.stage]
        epoch = sum(epochs for epochs, _ in before) + at.epoch
        step = sum(epochs * steps for epochs, steps in before) + at.in_stage
        return first, epoch, step, sum(epochs * steps for epochs, steps in spanned)

    def begin_stage(self) -> None:
        """A fresh optimizer, and a new projector if asked; the encoder goes on as it is. With schedule=run all goes on."""
        if self.loop.stage and self.config.schedule == "run":
            return
        stage = self.config.stages[self.loop.stage]
        if self.loop.stage and stage.projector == "reset":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.seed + self.loop.stage)
                self.method.renew()
        self.method.optimizer = self.method.new_optimizer()
        if self.world_size > 1:
            for tensor in self.network.state_dict().values():
                come_to_meeting()
                dist.broadcast(tensor, 0)

    def seen(self, values: dict[str, float]) -> None:
        self.values = values

    def context(self) -> dict[str, str | int]:
        return {"stage": self.config.stages[self.loop.stage].name, "epoch": self.loop.epoch}

    def title(self) -> str:
        return self.config.stages[self.loop.stage].name

    def shown(self, values: dict[str, float]) -> dict[str, str]:
        return {short: f"{values[key]:{how}}" for short, (key, how) in self.method.bar.items() if key in values}

    def remedy(self) -> str:
        return f"Lower stages.{self.loop.stage}.learning_rate."

    # ---- measuring ------------------------------------------------------------------------------------------------

    def measure(self) -> dict[str, float]:
        if self.rank:
            return {}
        with busy("measuring"):
            return self._measure()

    def _measure(self) -> dict[str, float]:
        at, result = self.loop, {}
        last_epoch = at.epoch + 1 == at.epochs
        for i in range(len(self.config.stages)) if last_epoch else [at.stage]:
            measured = self._monitor(i, self.config.stages[at.stage].name, both=last_epoch)
            result = measured if i == at.stage else result
        score = result.get("knn", result.get("effective_rank"))
        return {} if score is None else {"score": score}

    def after_epoch(self, improved: bool, again: bool = False) -> None:
        """best.pt, the stage's file, and what the run was for; the epoch's own file comes last, as the sign that all is there."""
        at, checkpoint = self.loop, self.folder.checkpoints
        stage = self.config.stages[at.stage].name
        epochs_file = checkpoint / f"{stage}_{at.epoch:04d}.pt"
        outcome = [self.folder.folder / name for name in ("budget.json", "encoder.pt")] if at.finished else []
        if self.rank == 0 and not (again and all(file.is_file() for file in [epochs_file, *outcome])):
            state = self._state()
            if improved:
                checkpoints.save(checkpoint / "best.pt", state)
            if at.epoch == at.epochs:
                checkpoints.save(checkpoint / f"{stage}.pt", state)
            if at.finished:  # who finds encoder.pt finds what it has cost, too
                self._write_budget()
                checkpoints.save(outcome[1], state)
            self._pictures()
            checkpoints.save(epochs_file, state)
            checkpoints.keep_last(checkpoint, f"{stage}_[0-9][0-9][0-9][0-9].pt", self.config.keep_last)
        barrier()

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
                sides.append(encoder.embed(images[:, None], patches=patches, valid=valid))
                if not sides[-1].isfinite().all():
                    raise FloatingPointError(
                        f"training has failed by step {self.loop.total}: the embeddings of stage {self.config.stages[index].name} "
                        f"are not finite. {self.loop.left()} {self.remedy()}"
                    )
            figures = representation.measure(sides[0], labels[0], sides[1], labels[1] if predictable else [])
            result |= {name + suffix: value for name, value in figures.items()}
            if not patches:
                embeddings = sides[1]
        name = self.config.stages[index].name
        self.folder.log("monitor", self.loop.total, {"dataset": name, "after": after} | result)
        numbers = ", ".join(f"{k} {v:.3f}" if "knn" in k else f"{k} {v:.1f}" for k, v in result.items())
        self._say(f"  {after}: held-out {name} images: {numbers}")
        values = self.values
        told = (self.method.said(values), self.method.advice) if values else ()
        if told and (warning := representation.collapse_warning(embeddings, *told)):
            self._say(f"  WARNING: {warning}")
            self.folder.log("warning", self.loop.total, {"text": warning})
        return result

    def _pictures(self) -> None:
        """What the network saw of a few images of the stage, cut and varied as in training; and the curve."""
        if importlib.util.find_spec("matplotlib") is None:
            self._say("no pictures: matplotlib is not installed")
            return
        from vfm4us import plots

        config, at = self.config, self.loop
        stage, pool = config.stages[at.stage], self.training[at.stage]
        images, valid = pool.batch(pool.take(self.method.pictured, config.seed))
        draw = generator(config.seed, at.stage, at.in_stage)
        self.network.eval()  # running statistics: a picture takes one process, and must not change the network
        path = self.folder.folder / f"contact_sheet_{stage.name}.png"
        title = f"{config.name}, {stage.name} epoch {at.epoch}"
        sheet = pictures.draw(path, self.method.picture(images, valid, draw), title)
        self.folder.tensorboard.add_image("what_the_network_saw", sheet, self.loop.total, dataformats="HWC")
        plots.training_curve(self.folder.folder / "curve.png", self.folder.metrics(), config.name, self.method.panels)

    def _write_budget(self) -> None:
        """budget.json: what the run has cost, for tables that compare methods at equal cost."""
        steps = sum(epochs * steps for epochs, steps in self.loop.lengths)
        images, encoder = self.config.batch_size * steps, self.network.base_encoder
        budget = {
            "method": self.config.method,
            "encoder": encoder.spec.name,
            "parameters": sum(p.numel() for p in encoder.parameters()),
            "images": images,
            "views": images * self.method.views,
            "flops": self.flops * steps,
            "seconds": round(self.loop.seconds, 1),
        }
        write_text(self.folder.folder / "budget.json", json.dumps(budget, indent=1) + "\n")

    # ---- saving ---------------------------------------------------------------------------------------------------

    def _state(self) -> dict:
        """A checkpoint in the published form."""
        encoder, stage = self.network.base_encoder, self.config.stages[self.loop.stage]
        tensors = {checkpoints.ENCODER_PREFIX + k: v for k, v in encoder.published_state().items()}
        tensors |= {"module." + k: v.detach().cpu() for k, v in self._beside().items() if k.startswith("projector.")}
        return {
            "state_dict": tensors,
            "encoder": encoder.spec_dict(),
            "stage": stage.name,
            "epoch": self.loop.epoch,
            "step": self.loop.total,
            "config": to_dict(self.config),
            "trained_on": {"digests": self.seen_by_stage[self.loop.stage]},
        }

    def _beside(self) -> dict[str, Tensor]:
        """The network's tensors that are not the encoder's."""
        return {k: v for k, v in self.network.state_dict().items() if not k.startswith("base_encoder.")}

    def state(self) -> dict:
        """What last.pt holds: a checkpoint in the published form, and what the run needs to go on."""
        encoder, at = self.network.base_encoder, self.loop
        resume = {
            "optimizer": self.method.optimizer.state_dict(),
            "beside": {k: v.cpu() for k, v in self._beside().items() if not k.startswith("projector.")},
            # a third of a kernel, summed three times, is not the same kernel in the last bit
            "first_convolution": encoder.first_kernel.detach().cpu(),
            "flops": self.flops,
            "values": self.values,
            "data": [pool.fingerprint() for pool in self.training],
        }
        # `step` counts within the stage, and `best` is the score alone, as in files of 0.1.0
        place = at.place() | {"step": at.in_stage, "best": at.best["score"]}
        return self._state() | {"resume": resume | place}

    def restore(self, state: dict) -> dict:
        path = self.folder.checkpoints / "last.pt"
        encoder, saved = self.network.base_encoder, state["resume"]
        for stage, pool, before in zip(self.config.stages, self.training, saved["data"], strict=True):
            if pool.fingerprint() != before:
                raise ValueError(
                    f"the images of stage {stage.name} have changed since {path} was written, so it cannot go on as it would "
                    "have: put them back, or give the run another name (encoder.weights=FILE starts from its encoder)"
                )
        checkpoints.fill(encoder, checkpoints.recognise(state, str(path)), str(path))
        with torch.no_grad():
            encoder.first_kernel.copy_(saved["first_convolution"])
        prefix = checkpoints.PROJECTOR_PREFIX
        beside = {k.removeprefix("module."): v for k, v in state["state_dict"].items() if k.startswith(prefix)}
        beside |= saved.get("beside", {})  # absent in runs of 0.1.0
        at_hand = self._beside()
        if at_hand.keys() != beside.keys():
            raise ValueError(
                f"{path} lacks {sorted(at_hand.keys() ^ beside.keys())[:3]} of the network: it is of another version"
            )
        with torch.no_grad():
            for key, tensor in at_hand.items():
                tensor.copy_(beside[key])
        self.method.optimizer.load_state_dict(saved["optimizer"])
        self.values, self.flops = saved["values"], saved.get("flops", 0)
        place = {name: saved[name] for name in PLACE if name in saved}
        place["step"] -= saved["epoch"] * self.steps_per_epoch(saved["stage"])
        place["best"] = NEVER | {"score": saved["best"]}
        if not saved["finished"]:
            self._say(
                f"continuing {self.folder.folder}: stage {self.config.stages[saved['stage']].name}, "
                f"epoch {saved['epoch'] + 1}, step {saved['step']}"
            )
        return place

    def _say(self, text: str) -> None:
        if self.rank == 0:
            log.say(text)


def print_result(folder: Path, config: PretrainingConfig) -> None:
    """What a finished run has to show, on the terminal of process 0."""
    if int(os.environ.get("RANK", 0)) == 0 and (folder / "encoder.pt").is_file():
        log.say(f"\n{summary(folder, config.encoder.weights or 'random')}\n")
        log.say(f"encoder   {folder / 'encoder.pt'}")
        log.say(f"pictures  {', '.join(str(p) for p in sorted(folder.glob('*.png')))}")


def summary(folder: Path, start: str = "random") -> str:
    """A table of held-out measurements: at the `start` and after each stage, on each stage's images."""
    lines = RunFolder(folder, None, main=False).metrics()
    figures = {(m["after"], m["dataset"]): m for m in lines if m["kind"] == "monitor"}
    moments, datasets = (list(dict.fromkeys(key[i] for key in figures)) for i in (0, 1))
    columns = [(d, k, name) for d in datasets for k, name in (("knn", "k-NN"), ("effective_rank", "rank"))]
    rows = [f"{'held-out images':<20}" + "".join(f"{f'{d}, {name}':>16}" for d, _, name in columns)]
    for i, moment in enumerate(moments):
        title = start if moment == "initial" else "-to-".join(moments[1 : i + 1])
        cells = [figures.get((moment, d), {}).get(k) for d, k, _ in columns]
        rows.append(
            f"{title:<20}" + "".join(f"{'-' if v is None else f'{v:.3f}' if v <= 1 else f'{v:.1f}':>16}" for v in cells)
        )
    rows.append(
        "k-NN: balanced accuracy of a weighted k-NN on whole images; rank: RankMe, the number of directions that features use"
    )
    if (folder / "budget.json").is_file():
        b = json.loads((folder / "budget.json").read_text())
        rows.append(
            f"{b['method']}: {b['images']:,} images, {b['views']:,} crops, {b['flops'] / 1e12:,.1f} TFLOP, "
            f"{b['seconds'] / 60:.1f} minutes; {b['encoder']}, {b['parameters'] / 1e6:.1f} million parameters"
        )
    return "\n".join(rows)
