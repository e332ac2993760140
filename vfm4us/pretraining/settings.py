"""Every key of a pretraining run with its default and meaning, and what about them can be wrong before data are looked at."""

import copy
import re
from dataclasses import dataclass
from pathlib import Path

from vfm4us.augment import PatchConfig, PatchSampler, ViewConfig
from vfm4us.config import option, section
from vfm4us.data.pools import Locations, SourceConfig
from vfm4us.encoders import family, names
from vfm4us.pretraining.adversary import AdversaryConfig
from vfm4us.pretraining.masking import MaskingConfig

METHODS = ("emp_ssl", "mae", "dinov2", "simclr", "spatial_frequency")


@dataclass
class EncoderConfig:
    name: str = option("resnet18", "network", choices=names(from_scratch=True))
    in_channels: int = option(1, "channels the network runs on; checkpoints always hold 3", choices=[1, 3])
    weights: str = option("", "checkpoint or run folder to start the first stage from; empty: random")
    patch: int = option(16, "side of a token of a ViT, px", choices=[8, 16])
    norm: str = option(
        "",
        "vector of a ViT: its class token, or the mean of its other tokens; empty: the mean for mae and "
        "spatial_frequency, which do not train the class token, else the class token",
        choices=["", "token", "mean_of_norm"],
    )


@dataclass
class ProjectorConfig:
    hidden: int = option(4096, "width of its two hidden layers", low=8)
    out: int = option(1024, "length of the embedding that the objective sees (d)", low=8)


@dataclass
class ObjectiveConfig:
    similarity_weight: float = option(200.0, "of patch similarity", low=0.0)
    coding_rate_weight: float = option(1.0, "of total coding rate", low=0.0)
    epsilon: float = option(0.2, "distortion in the coding rate (not squared)", low=1e-6)


@dataclass
class OptimizerConfig:
    momentum: float = option(0.9, "of LARS", low=0.0, high=0.999)
    weight_decay: float = option(1e-4, "on matrices and kernels only", low=0.0)
    trust: float = option(0.005, "LARS trust coefficient (eta)", low=0.0)
    vector_rate: float = option(
        0.1, "rate of biases and batch norm, which LARS does not scale, as a share of the learning rate", low=0.0
    )


@dataclass
class AdamWConfig:
    beta1: float = option(0.9, "decay of the mean gradient", low=0.0, high=0.9999)
    beta2: float = option(0.95, "decay of the mean squared gradient", low=0.0, high=0.9999)
    weight_decay: float = option(0.05, "on matrices and kernels only", low=0.0)
    weight_decay_end: float = option(-1.0, "reached by a cosine at the end of the stage; -1: constant", low=-1.0)
    clip: float = option(0.0, "longest gradient over all parameters; 0: any", low=0.0)


@dataclass
class CropConfig(ViewConfig):
    count: int = option(1, "crops per image", low=0)
    size: int = option(224, "side of a crop, px", low=16)


# One crop of most of the image, hardly varied: the images are the target.
WEAK = {
    "scale_low": 0.2,
    "scale_high": 1.0,
    "gain": 0.1,
    "contrast": 0.1,
    "gamma": 0.1,
    "blur": 0.0,
    "speckle": 0.0,
    "depth_gain": 0.0,
}
STRONG = {"gain": 0.4, "contrast": 0.4, "gamma": 0.3, "blur": 0.5, "speckle": 0.2, "depth_gain": 0.3}


@dataclass
class MAEConfig:
    mask_ratio: float = option(0.75, "share of the tokens that is hidden", low=0.05, high=0.95)
    normalise: bool = option(True, "draw each token with mean 0 and deviation 1, else as it is")
    decoder_width: int = option(512, "of the decoder, which is dropped; a multiple of its heads and of 4", low=8)
    decoder_depth: int = option(8, "its blocks", low=1)
    decoder_heads: int = option(16, "its attention heads", low=1)
    crops: CropConfig = section(CropConfig, "of each image; several count as so many images", **WEAK)
    adamw: AdamWConfig = section(AdamWConfig, "optimizer")


@dataclass
class SpatialFrequencyConfig:
    mask_ratio: float = option(0.6, "share of the tokens that is hidden", low=0.05, high=0.95)
    band_low: float = option(0.05, "lowest frequency that may be taken away, cycles per px", low=0.001, high=0.7)
    band_high: float = option(0.45, "highest frequency that may be taken away, cycles per px", low=0.002, high=0.71)
    band_width: float = option(0.1, "width of the band that is taken from an image, cycles per px", low=0.001, high=0.7)
    frequency_weight: float = option(0.5, "of the error within the band, beside the error under the masks", low=0.0)
    crops: CropConfig = section(CropConfig, "of each image; several count as so many images", **WEAK)
    adamw: AdamWConfig = section(AdamWConfig, "optimizer")


@dataclass
class DINOv2Config:
    prototypes: int = option(65536, "outputs of the head (K)", low=8)
    hidden: int = option(2048, "width of the head's two hidden layers", low=8)
    bottleneck: int = option(256, "width in front of the prototypes", low=4)
    batch_norm: bool = option(False, "in the head's hidden layers: it spreads out vectors that hardly differ yet")
    mask_low: float = option(0.1, "least share of a masked crop's tokens that is hidden (iBOT)", low=0.0, high=0.9)
    mask_high: float = option(0.5, "greatest share of a masked crop's tokens that is hidden", low=0.0, high=0.9)
    masked_crops: float = option(0.5, "share of the global crops that the student sees masked", low=0.0, high=1.0)
    dino_weight: float = option(1.0, "of the class tokens' cross-entropy", low=0.0)
    ibot_weight: float = option(1.0, "of the masked tokens' cross-entropy", low=0.0)
    koleo_weight: float = option(0.1, "of the spread of the student's class tokens", low=0.0)
    student_temperature: float = option(0.1, "of the student's softmax", low=0.001)
    teacher_temperature_start: float = option(0.04, "of the teacher's softmax at first", low=0.001)
    teacher_temperature: float = option(0.07, "of the teacher's softmax after its warm-up", low=0.001)
    teacher_warmup: float = option(0.3, "share of a stage's steps over which it rises", low=0.0, high=1.0)
    teacher_momentum: float = option(
        0.994, "of the teacher's moving average, at first; 1 at the end", low=0.0, high=1.0
    )
    centring: str = option(
        "mean",
        "of the teacher: by a moving average, or by Sinkhorn-Knopp within the batch",
        choices=("mean", "sinkhorn"),
    )
    center_momentum: float = option(0.9, "of the moving average, where that centres the teacher", low=0.0, high=1.0)
    frozen_prototypes: float = option(0.01, "share of a stage's steps in which the last layer rests", low=0.0, high=1.0)
    global_crops: CropConfig = section(
        CropConfig, "large crops, for teacher and student", count=2, **STRONG | {"scale_low": 0.32, "scale_high": 1.0}
    )
    local_crops: CropConfig = section(
        CropConfig, "small crops, for the student", count=8, size=96, **STRONG | {"scale_low": 0.05, "scale_high": 0.32}
    )
    adamw: AdamWConfig = section(
        AdamWConfig, "optimizer", beta2=0.999, weight_decay=0.04, weight_decay_end=0.4, clip=3.0
    )


@dataclass
class SimCLRConfig:
    temperature: float = option(0.1, "of the softmax over all other crops", low=0.001)
    hidden: int = option(2048, "width of the projector's hidden layer", low=8)
    out: int = option(128, "length of the embedding that is compared", low=8)
    crops: CropConfig = section(
        CropConfig, "two crops of each image", count=2, **STRONG | {"scale_low": 0.08, "scale_high": 1.0}
    )
    adamw: AdamWConfig = section(AdamWConfig, "optimizer", beta2=0.999)


@dataclass
class DataConfig:
    size: int = option(224, "longer side to which plain folders are packed, px", low=32)
    root: str = option("", "folder that relative source paths start from; empty: the working directory")
    cache: str = option("data", "folder for what is packed from plain folders", free=True)
    phantoms: int = option(
        0,
        "make this many built-in synthetic images first; sources name them as phantoms:coarse and phantoms:fine",
        low=0,
    )
    splits: list[float] = option(
        [0.95, 0.05, 0.0], "shares of train, val, test where a source has no splits of its own"
    )
    protect: list[str] = option([], "further datasets whose val and test images must not be trained on")
    hint: str = option("", "what to tell a user whose data are missing: where to get them", free=True)

    def locations(self) -> Locations:
        """Where the sources of the stages lie."""
        phantoms = Path(self.cache) / f"phantoms-{self.phantoms}-{self.size}"
        return Locations(Path(self.cache), self.size, tuple(self.splits), self.root, phantoms, self.hint)


@dataclass
class StageConfig:
    name: str = option("coarse", "also the name of its checkpoint")
    data: list[SourceConfig] = option([], "sources of images")
    epochs: int = option(30, "passes over the stage's images", low=1)
    learning_rate: float = option(
        0.3, "peak, per 100 images of the global batch; per 256 with AdamW (all methods but emp_ssl)", low=0.0
    )
    warmup: float = option(0.0, "share of the stage's steps over which the rate rises from 0", low=0.0, high=1.0)
    epoch_images: int = option(0, "images that count as one epoch; 0: as many as the stage has", low=0)
    balance: float = option(0.0, "0: each source by its size, 1: all sources equally often", low=0.0, high=1.0)
    replay: float = option(0.0, "share of images drawn from the earlier stages' pools", low=0.0, high=0.95)
    projector: str = option(
        "keep", "start from the previous stage's projector (decoder, head), or a new one", choices=["keep", "reset"]
    )


@dataclass
class MonitorConfig:
    reference: int = option(1000, "training images k-NN votes with, at most; 0: all", low=0)
    held_out: int = option(500, "held-out images measured, at most; 0: all", low=0)
    patches: int = option(9, "patches of the bag-of-patches embedding at the ends of stages; 0: do without", low=0)


@dataclass
class PretrainingConfig:
    name: str = option("pretraining", "of the run: its folder is logs/<name>")
    method: str = option(
        "emp_ssl", "how the encoder learns; the section of its name holds its keys", choices=[*METHODS]
    )
    logs: str = option("logs", "where run folders lie", free=True)
    seed: int = option(0, "of everything random", low=0)
    device: str = option("auto", "auto, cpu, cuda", free=True)
    precision: str = option(
        "auto", "of the network; auto: bfloat16 on a GPU, float32 on a CPU", choices=["auto", "float32", "bfloat16"]
    )
    compile: bool = option(False, "torch.compile the network", free=True)
    num_workers: int = option(0, "loader processes; does not change any number", low=0, free=True)
    batch_size: int = option(100, "images per step over all processes (b)", low=2)
    log_every: int = option(10, "steps between logged lines", low=1, free=True)
    save_minutes: float = option(10.0, "longest time between two checkpoints", low=0.0, free=True)
    keep_last: int = option(2, "epoch checkpoints kept beside last, best and each stage's", low=0, free=True)
    stop_after: int = option(0, "leave after this many further epochs, to be continued; 0: never", low=0, free=True)
    resume: bool = option(True, "continue a run of this name; false: move it aside and start afresh", free=True)
    encoder: EncoderConfig = section(EncoderConfig, "the network that is kept")
    projector: ProjectorConfig = section(ProjectorConfig, "emp_ssl: three layers on top, dropped after pretraining")
    objective: ObjectiveConfig = section(ObjectiveConfig, "emp_ssl: EMP-SSL")
    patches: PatchConfig = section(PatchConfig, "emp_ssl: what is cut from an image and how it is varied")
    adversary: AdversaryConfig = section(AdversaryConfig, "emp_ssl: worst-case pixel changes")
    masking: MaskingConfig = section(
        MaskingConfig, "emp_ssl: hidden cells, on the adversarial patches (on all without adversary)"
    )
    optimizer: OptimizerConfig = section(OptimizerConfig, "emp_ssl: LARS")
    mae: MAEConfig = section(MAEConfig, "masked autoencoder")
    dinov2: DINOv2Config = section(DINOv2Config, "DINO, iBOT and KoLeo with a teacher")
    simclr: SimCLRConfig = section(SimCLRConfig, "two crops against all others")
    spatial_frequency: SpatialFrequencyConfig = section(
        SpatialFrequencyConfig, "masks in space, a stopped band in frequency"
    )
    data: DataConfig = section(DataConfig, "how images are packed and guarded")
    monitor: MonitorConfig = section(MonitorConfig, "held-out measurements after each epoch")
    stages: list[StageConfig] = option(
        [], "run in this order; [coarse], [fine] and [coarse, fine] are the released kinds"
    )


def check(config: PretrainingConfig) -> None:
    """Everything about a config that can be wrong before data are looked at; ValueError names the key."""
    if not config.stages:
        raise ValueError("stages is empty: list at least one stage with its data, see configs/pretraining/folder.yaml")
    names = [s.name for s in config.stages]
    if len(set(names)) < len(names) or any(n in ("last", "best", "initial") or not _plain_name(n) for n in names):
        raise ValueError(
            f"stages need different names of letters, digits, - and _, other than last, best, initial; got {names}"
        )
    if not _plain_name(config.name):
        raise ValueError(f"name: {config.name!r} must be a folder name of letters, digits, '-', '_' and '.'")
    if config.stages[0].replay:
        raise ValueError("stages.0.replay: the first stage has no earlier stage to replay")
    if config.method == "emp_ssl":
        _check_emp_ssl(config)
    else:
        _check_baseline(config)
    if family(config.encoder.name).has_tokens:
        sides = {f"{key}.size": crops.size for key, crops in crops_of(config).items()}
        sides["half of data.size"] = config.data.size // 2
        for key, side in sides.items():
            if side % config.encoder.patch:
                raise ValueError(
                    f"{key} is {side}, and must be a multiple of encoder.patch {config.encoder.patch} for {config.encoder.name}"
                )


def _check_emp_ssl(config: PretrainingConfig) -> None:
    if config.masking.strategy == "adversarial" and not config.adversary.weight:
        raise ValueError("masking.strategy=adversarial needs the adversary: set adversary.weight above 0")
    if config.masking.strategy != "none" and config.masking.cell > config.patches.size:
        raise ValueError(f"masking.cell {config.masking.cell} is larger than patches.size {config.patches.size}")
    PatchSampler(config.patches)


def _check_baseline(config: PretrainingConfig) -> None:
    method, own = config.method, getattr(config, config.method)
    try:
        import lightly.loss  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"method={method} takes its losses from the package lightly, which is not installed: pip install -e .[baselines]"
        ) from error
    if method != "simclr" and not family(config.encoder.name).maskable:
        raise ValueError(
            f"encoder.name {config.encoder.name} has no tokens to mask: method={method} needs one of "
            + ", ".join(names(maskable=True))
        )
    for i, stage in enumerate(config.stages):
        if stage.learning_rate > 0.15:
            raise ValueError(
                f"stages.{i}.learning_rate {stage.learning_rate} is a rate for LARS; method={method} trains with AdamW, whose "
                "rates per 256 images are 1e-4 to 5e-3, up to 0.1 for batches of a few images: see configs/pretraining"
            )
    for key, crops in crops_of(config).items():
        if key in ("simclr.crops", "dinov2.global_crops") and crops.count != 2:
            raise ValueError(f"{key}.count is {crops.count}, and must be 2")
        if crops.count == 0 and key != "dinov2.local_crops":
            raise ValueError(f"{key}.count is 0: a method without crops sees nothing")
        if crops.scale_low > crops.scale_high:
            raise ValueError(f"{key}.scale_low {crops.scale_low} is above {key}.scale_high {crops.scale_high}")
    if method == "mae" and (own.decoder_width % own.decoder_heads or own.decoder_width % 4):
        raise ValueError(
            f"mae.decoder_width {own.decoder_width} must be a multiple of 4 and of mae.decoder_heads {own.decoder_heads}"
        )
    if method == "spatial_frequency" and own.band_low + own.band_width > own.band_high:
        raise ValueError(
            f"spatial_frequency.band_width {own.band_width} does not fit between band_low {own.band_low} and "
            f"band_high {own.band_high}"
        )
    if method == "dinov2" and own.mask_low > own.mask_high:
        raise ValueError(f"dinov2.mask_low {own.mask_low} is above dinov2.mask_high {own.mask_high}")
    if method == "dinov2" and own.mask_low * (tokens := (own.global_crops.size // config.encoder.patch) ** 2) < 1:
        raise ValueError(
            f"dinov2.mask_low {own.mask_low} hides none of {tokens} tokens of a crop: raise it, or the crop's size"
        )


def crops_of(config: PretrainingConfig) -> dict[str, PatchConfig | CropConfig]:
    """What the method cuts from each image, by the name of its section; the first is what the encoder is made for."""
    if config.method == "emp_ssl":
        return {"patches": config.patches}
    own, names = getattr(config, config.method), ("crops", "global_crops", "local_crops")
    return {f"{config.method}.{name}": getattr(own, name) for name in names if hasattr(own, name)}


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
