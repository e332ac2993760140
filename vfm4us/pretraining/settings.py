"""Every key of a pretraining run with its default and meaning, and what about them can be wrong before data are looked at."""

import copy
import dataclasses
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vfm4us.config import option, section
from vfm4us.data import shares
from vfm4us.data.pools import Locations, SourceConfig
from vfm4us.encoders.families import family_of, names
from vfm4us.pretraining.sections import METHODS


@dataclass
class EncoderConfig:
    """The network that is pretrained and what it starts from."""

    name: str = option("resnet18", "network", choices=names(from_scratch=True))
    in_channels: int = option(1, "channels the network runs on; checkpoints always hold 3", choices=[1, 3])
    weights: str = option("", "checkpoint, run folder or open to start the first stage from; empty: random")
    prefix: str = option("", "what stands before the encoder's keys, where weights holds several encoders")
    heads: int = option(0, "attention heads of a ViT, where nothing in weights tells how many; 0: it tells", low=0)
    patch: int = option(16, "side of a token of a ViT, px", choices=[8, 16])
    norm: str = option(
        "",
        "vector of a ViT: its class token, or the mean of its other tokens; empty: the mean for mae and "
        "spatial_frequency, which do not train the class token, else the class token",
        choices=["", "token", "mean_of_norm"],
    )


@dataclass
class DataConfig:
    """Where images lie, how they are packed, and which of them must never be trained on."""

    size: int = option(224, "longer side to which plain folders are packed, px", low=32, high=4096)
    root: str = option("", "folder that relative source paths start from; empty: the working directory")
    cache: str = option("data", "folder for what is packed from plain folders", free=True)
    phantoms: int = option(
        0,
        "make this many built-in synthetic images first; sources name them as phantoms:coarse and phantoms:fine",
        low=0,
        high=1_000_000,
    )
    splits: list[float] = option(
        [*shares.PRETRAINING], "shares of train, val, test where a source has no splits of its own"
    )
    frames: str = option(
        "", "of clips: first, all, every N, per second, N per second; empty: as a reading.yaml says, else per second"
    )
    protect: list[str] = option([], "further datasets whose val and test images must not be trained on")
    protect_folds: int = option(
        0, "cross-fitting: divide their train and val anew into so many folds; 0: as they are", low=0, high=1000
    )
    protect_fold: int = option(0, "of these the one that must not be trained on, from 0", low=0)
    hint: str = option("", "what to tell a user whose data are missing: where to get them", free=True)

    def protected(self) -> list[SourceConfig]:
        """The further datasets, with what is held back of them."""
        return [SourceConfig(path, folds=self.protect_folds, fold=self.protect_fold) for path in self.protect]

    def locations(self) -> Locations:
        """Where the sources of the stages lie."""
        phantoms = Path(self.cache) / f"phantoms-{self.phantoms}-{self.size}"
        return Locations(Path(self.cache), self.size, tuple(self.splits), self.root, phantoms, self.hint, self.frames)


@dataclass
class StageConfig:
    """One stage of pretraining: its images, how long and how fast it learns, and what it takes from the stage before."""

    name: str = option("coarse", "also the name of its checkpoint")
    data: list[SourceConfig] = option([], "sources of images")
    epochs: int = option(30, "passes over the stage's images", low=1, high=100_000)
    learning_rate: float = option(
        0.3, "peak, per 100 images of the global batch; per 256 with AdamW (all methods but emp_ssl)", low=0.0
    )
    warmup: float = option(
        0.0,
        "share of the stage's steps (schedule=run: of all steps) over which the rate rises from 0",
        low=0.0,
        high=1.0,
    )
    epoch_images: int = option(0, "images that count as one epoch; 0: as many as the stage has", low=0)
    balance: float = option(0.0, "0: each source by its size, 1: all sources equally often", low=0.0, high=1.0)
    replay: float = option(0.0, "share of images drawn from the earlier stages' pools", low=0.0, high=0.95)
    projector: str = option(
        "keep", "start from the previous stage's projector (decoder, head), or a new one", choices=["keep", "reset"]
    )


@dataclass
class MonitorConfig:
    """How many images the held-out measurements after each epoch are taken on."""

    reference: int = option(1000, "training images k-NN votes with, at most; 0: all", low=0)
    held_out: int = option(500, "held-out images measured, at most; 0: all", low=0)
    patches: int = option(
        9, "patches of the bag-of-patches embedding at the ends of stages; 0: do without", low=0, high=1024
    )


# A section for each method, under its name.
_METHOD_SECTIONS: Any = dataclasses.make_dataclass(
    "MethodSections", [(name, kind, section(kind, kind.about)) for name, kind in METHODS.items()]
)


@dataclass
class PretrainingConfig(_METHOD_SECTIONS):
    """All keys of a pretraining run: method, data, stages, where it computes, and what it writes."""

    # What was ours stood at the top before every method had a section.
    MOVED: ClassVar = {
        key: f"emp_ssl.{key}" for key in ("projector", "objective", "patches", "adversary", "masking", "optimizer")
    }

    name: str = option("pretraining", "of the run: its folder is logs/<name>")
    method: str = option(
        "emp_ssl", "how the encoder learns; the section of its name holds its keys", choices=[*METHODS]
    )
    logs: str = option("logs", "where run folders lie", free=True)
    seed: int = option(0, "of everything random", low=0, high=2**32 - 1)
    device: str = option("auto", "auto, cpu, cuda", free=True)
    precision: str = option(
        "auto",
        "of the network; auto: bfloat16 on a GPU and on a CPU with AVX512-BF16 or AMX, else float32",
        choices=["auto", "float32", "bfloat16"],
    )
    compile: bool = option(False, "torch.compile the network", free=True)
    num_workers: int = option(0, "loader processes; does not change any number", low=0, high=256, free=True)
    schedule: str = option(
        "stage",
        "stage: each stage has its own warm-up and cosine and begins with a new optimizer; run: one of each for all stages, and "
        "where a stage begins its pool changes and nothing else",
        choices=["stage", "run"],
    )
    batch_size: int = option(100, "images per step over all processes (b)", low=2, high=65536)
    log_every: int = option(10, "steps between logged lines", low=1, free=True)
    save_minutes: float = option(10.0, "longest time between two checkpoints", low=0.0, free=True)
    wait_minutes: float = option(
        30.0, "longest time that a process waits for another of the same run before it ends", low=0.01, free=True
    )
    keep_last: int = option(2, "epoch checkpoints kept beside last, best and each stage's", low=0, free=True)
    stop_after: int = option(0, "leave after this many further epochs, to be continued; 0: never", low=0, free=True)
    resume: bool = option(True, "continue a run of this name; false: move it aside and start afresh", free=True)
    encoder: EncoderConfig = section(EncoderConfig, "the network that is kept")
    data: DataConfig = section(DataConfig, "how images are packed and guarded")
    monitor: MonitorConfig = section(MonitorConfig, "held-out measurements after each epoch")
    stages: list[StageConfig] = option(
        [], "run in this order; [coarse], [fine] and [coarse, fine] are the released kinds"
    )


def check(config: PretrainingConfig) -> None:
    """Everything about a config that can be wrong before data are looked at; ValueError names the key."""
    if not config.stages:
        raise ValueError("stages is empty: list at least one stage with its data, see configs/pretraining/folder.yaml")
    stages = [s.name for s in config.stages]
    if len(set(stages)) < len(stages) or any(n in ("last", "best", "initial") or not _plain_name(n) for n in stages):
        raise ValueError(
            f"stages need different names of letters, digits, - and _, other than last, best, initial; got {stages}"
        )
    if not _plain_name(config.name):
        raise ValueError(f"name: {config.name!r} must be a folder name of letters, digits, '-', '_' and '.'")
    if config.stages[0].replay:
        raise ValueError("stages.0.replay: the first stage has no earlier stage to replay")
    for i, stage in enumerate(config.stages):
        _check_shares(stage, i, [s for earlier in config.stages[:i] for s in earlier.data])
    if config.schedule == "run":
        _check_one_schedule(config.stages)
    section = getattr(config, config.method)
    if section.package and importlib.util.find_spec(section.package) is None:
        raise ValueError(
            f"method={config.method} takes its losses from the package {section.package}, which is not installed: "
            "pip install -e .[baselines]"
        )
    if section.masks_tokens and not family_of(config.encoder.name).maskable:
        raise ValueError(
            f"encoder.name {config.encoder.name} has no tokens to mask: method={config.method} needs encoder.name="
            f"{' or '.join(names(maskable=True))}, as {config.method}'s own configs have"
        )
    for i, stage in enumerate(config.stages):
        if stage.learning_rate > section.highest_rate:
            raise ValueError(
                f"stages.{i}.learning_rate {stage.learning_rate} is a rate for LARS; method={config.method} trains with AdamW, "
                "whose rates per 256 images are 1e-4 to 5e-3, up to 0.1 for batches of a few images: see configs/pretraining"
            )
    try:
        section.check(config.encoder.patch)
    except ValueError as error:
        raise ValueError(f"{config.method}.{error}") from error
    if family_of(config.encoder.name).has_tokens:
        sides = {f"{key}.size": crops.size for key, crops in crops_of(config).items()}
        sides["half of data.size"] = config.data.size // 2
        for key, side in sides.items():
            if side % config.encoder.patch:
                raise ValueError(
                    f"{key} is {side}, and must be a multiple of encoder.patch {config.encoder.patch} for {config.encoder.name}"
                )


def _check_shares(stage: StageConfig, place: int, earlier: list[SourceConfig]) -> None:
    """ValueError for shares of the sources that are not shares of a whole."""
    shares, total = [source.share for source in stage.data], sum(source.share for source in stage.data)
    if any(shares) and (total > 1 + 1e-6 or (all(shares) and total < 1 - 1e-6)):
        raise ValueError(
            f"stages.{place}.data: the shares of its sources add up to {total:g}; make that 1, or less and leave out the share "
            "of the sources that the rest is for"
        )
    if not all(shares) and total > 1 - 1e-6:
        raise ValueError(
            f"stages.{place}.data.{shares.index(0)}.share: the other sources take all; give it a share or leave it out"
        )
    if stage.replay and any(source.share for source in earlier):
        raise ValueError(
            f"stages.{place}.replay draws from the earlier stages by size, and these have shares: list the earlier sources in "
            "this stage with shares instead"
        )


def _check_one_schedule(stages: list[StageConfig]) -> None:
    """ValueError where a stage asks for a schedule of its own."""
    for i, stage in enumerate(stages[1:], 1):
        for key in ("learning_rate", "warmup"):
            if getattr(stage, key) != getattr(stages[0], key):
                raise ValueError(
                    f"stages.{i}.{key} is {getattr(stage, key)} and stages.0.{key} is {getattr(stages[0], key)}: with "
                    "schedule=run there is one for all stages; give both the same, or schedule=stage"
                )
        if stage.projector != "keep":
            raise ValueError(
                f"stages.{i}.projector is {stage.projector}: with schedule=run it is kept; or schedule=stage"
            )


def crops_of(config: PretrainingConfig) -> dict[str, Any]:
    """What the method cuts from each image, by the name of its section; the first is what the encoder is made for."""
    section = getattr(config, config.method)
    return {f"{config.method}.{name}": crops for name, crops in section.cuts().items()}


def single_stage(config: PretrainingConfig, place: int) -> PretrainingConfig:
    """A copy with the coarse stage (place 0) or the fine one (1) alone, for as many images as both together.

    A stage alone starts from random weights: at the rate and warm-up of the first, with nothing to replay.
    """
    result = copy.deepcopy(config)
    coarse, fine = result.stages
    stage = result.stages[place]
    stage.epochs, stage.replay = coarse.epochs + fine.epochs, 0.0
    stage.learning_rate, stage.warmup = coarse.learning_rate, coarse.warmup
    result.stages = [stage]
    return result


def check_comparable(config: PretrainingConfig, file: str | Path) -> None:
    """ValueError unless the coarse stage alone, the fine one alone and both together would see equally many images."""
    if len(config.stages) != 2:
        raise ValueError(f"{file}: a comparison needs two stages, coarse and fine, not {len(config.stages)}")
    coarse, fine = config.stages
    if not coarse.epoch_images or coarse.epoch_images != fine.epoch_images:
        raise ValueError(
            f"{file}: stages.0.epoch_images and stages.1.epoch_images must be the same number above 0, so that coarse, fine and "
            "coarse-to-fine see equally many images"
        )


def _plain_name(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*", name) is not None
