"""The section of each method, and METHODS, which lists them by the name of the method and of its module in `methods/`.

They lie apart from the methods so that `--help` and the check of a config need not wait for torch.
"""

from dataclasses import dataclass
from typing import Any

from vfm4us.config import option, section
from vfm4us.pretraining.section import STRONG, WEAK, AdamWConfig, BaselineSection, CropConfig, Section
from vfm4us.views import PatchConfig, check_scales

# ---- ours --------------------------------------------------------------------------------------------------------------


@dataclass
class AdversaryConfig:
    """How the adversary looks for the worst pixel change, how large it may be, and what it weighs in the loss."""

    weight: float = option(0.0, "of the adversarial term in the loss; 0 is EMP-SSL exactly", low=0.0)
    method: str = option("fgsm", "one signed step, or projected gradient ascent", choices=["fgsm", "pgd"])
    epsilon: float = option(0.009, "largest change of a pixel, in units of the full grey range", low=0.0, high=1.0)
    steps: int = option(3, "gradient steps of pgd", low=1, high=100)
    step_size: float = option(1.25, "length of a step, in epsilon (fgsm) or in epsilon / steps (pgd)", low=0.0)


@dataclass
class MaskingConfig:
    """Which cells of a patch are masked, how many of them and how large they are."""

    strategy: str = option(
        "none",
        "which cells: at random, or where the adversary's gradient is largest",
        choices=["none", "random", "adversarial"],
    )
    ratio: float = option(0.25, "share of the cells that is masked", low=0.0, high=0.9)
    cell: int = option(16, "side of a cell, px of the patch", low=1, high=1024)


@dataclass
class ProjectorConfig:
    """The widths of the projector, the three layers between encoder and objective."""

    hidden: int = option(4096, "width of its two hidden layers", low=8, high=65536)
    out: int = option(1024, "length of the embedding that the objective sees (d)", low=8, high=65536)


@dataclass
class ObjectiveConfig:
    """What patch similarity and coding rate weigh in the loss, and the distortion of the coding rate."""

    similarity_weight: float = option(200.0, "of patch similarity", low=0.0)
    coding_rate_weight: float = option(1.0, "of total coding rate", low=0.0)
    epsilon: float = option(0.2, "distortion in the coding rate (not squared)", low=1e-6)


@dataclass
class OptimizerConfig:
    """The settings of LARS; the rate is the stage's."""

    momentum: float = option(0.9, "of LARS", low=0.0, high=0.999)
    weight_decay: float = option(1e-4, "on matrices and kernels only", low=0.0)
    trust: float = option(0.005, "LARS trust coefficient (eta)", low=0.0)
    vector_rate: float = option(
        0.1, "rate of biases and batch norm, which LARS does not scale, as a share of the learning rate", low=0.0
    )


@dataclass
class EmpSSLConfig(Section):
    """What decides how this project's method learns: projector, objective, patches, adversary, masks and optimizer."""

    projector: ProjectorConfig = section(ProjectorConfig, "three layers on top, dropped after pretraining")
    objective: ObjectiveConfig = section(ObjectiveConfig, "patch similarity and coding rate")
    patches: PatchConfig = section(PatchConfig, "what is cut from an image and how it is varied")
    adversary: AdversaryConfig = section(AdversaryConfig, "worst-case pixel changes")
    masking: MaskingConfig = section(
        MaskingConfig, "hidden cells, on the adversarial patches (on all without adversary)"
    )
    optimizer: OptimizerConfig = section(OptimizerConfig, "LARS")

    about = "ours: many patches that agree, images that spread out"

    def check(self, patch: int) -> None:
        masking, patches = self.masking, self.patches
        if masking.strategy == "adversarial" and not self.adversary.weight:
            raise ValueError(
                "emp_ssl.masking.strategy=adversarial needs the adversary: set emp_ssl.adversary.weight above 0"
            )
        if masking.strategy != "none" and masking.cell > patches.size:
            raise ValueError(f"masking.cell {masking.cell} is larger than patches.size {patches.size}")
        check_scales(patches)

    def cuts(self) -> dict[str, Any]:
        return {"patches": self.patches}

    def image_side(self) -> int:
        return 0  # patches and whole images are both looked at


# ---- others' -------------------------------------------------------------------------------------------------------------


@dataclass
class MAEConfig(BaselineSection):
    """What decides how MAE learns: how much is hidden, the decoder, crops and optimizer."""

    mask_ratio: float = option(0.75, "share of the tokens that is hidden", low=0.05, high=0.95)
    normalise: bool = option(True, "draw each token with mean 0 and deviation 1, else as it is")
    decoder_width: int = option(
        512, "of the decoder, which is dropped; a multiple of its heads and of 4", low=8, high=4096
    )
    decoder_depth: int = option(8, "its blocks", low=1, high=64)
    decoder_heads: int = option(16, "its attention heads", low=1, high=64)
    crops: CropConfig = section(CropConfig, "of each image; several count as so many images", **WEAK)
    adamw: AdamWConfig = section(AdamWConfig, "optimizer")

    about, masks_tokens = "masked autoencoder", True

    def check(self, patch: int) -> None:
        super().check(patch)
        if self.decoder_width % self.decoder_heads or self.decoder_width % 4:
            raise ValueError(
                f"decoder_width {self.decoder_width} must be a multiple of 4 and of decoder_heads {self.decoder_heads}"
            )


@dataclass
class DINOv2Config(BaselineSection):
    """What decides how DINOv2 learns: its head, masks, losses, teacher, crops and optimizer."""

    prototypes: int = option(65536, "outputs of the head (K)", low=8, high=1_000_000)
    hidden: int = option(2048, "width of the head's two hidden layers", low=8, high=65536)
    bottleneck: int = option(256, "width in front of the prototypes", low=4, high=16384)
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

    about, masks_tokens = "DINO, iBOT and KoLeo with a teacher", True

    def check(self, patch: int) -> None:
        super().check(patch)
        if self.global_crops.count != 2:
            raise ValueError(f"global_crops.count is {self.global_crops.count}, and must be 2")
        if self.mask_low > self.mask_high:
            raise ValueError(f"mask_low {self.mask_low} is above mask_high {self.mask_high}")
        if self.mask_low * (tokens := (self.global_crops.size // patch) ** 2) < 1:
            raise ValueError(
                f"mask_low {self.mask_low} hides none of {tokens} tokens of a crop: raise it, or the crop's size"
            )

    def cuts(self) -> dict[str, Any]:
        return {"global_crops": self.global_crops, "local_crops": self.local_crops}


@dataclass
class SimCLRConfig(BaselineSection):
    """What decides how SimCLR learns: temperature, projector, crops and optimizer."""

    temperature: float = option(0.1, "of the softmax over all other crops", low=0.001)
    hidden: int = option(2048, "width of the projector's hidden layer", low=8, high=65536)
    out: int = option(128, "length of the embedding that is compared", low=8, high=65536)
    crops: CropConfig = section(
        CropConfig, "two crops of each image", count=2, **STRONG | {"scale_low": 0.08, "scale_high": 1.0}
    )
    adamw: AdamWConfig = section(AdamWConfig, "optimizer", beta2=0.999)

    about = "two crops against all others"

    def check(self, patch: int) -> None:
        super().check(patch)
        if self.crops.count != 2:
            raise ValueError(f"crops.count is {self.crops.count}, and must be 2")


@dataclass
class SpatialFrequencyConfig(BaselineSection):
    """What decides how masks in space and frequency teach: their sizes, the loss between them, crops and optimizer."""

    mask_ratio: float = option(0.6, "share of the tokens that is hidden", low=0.05, high=0.95)
    band_low: float = option(0.05, "lowest frequency that may be taken away, cycles per px", low=0.001, high=0.7)
    band_high: float = option(0.45, "highest frequency that may be taken away, cycles per px", low=0.002, high=0.71)
    band_width: float = option(0.1, "width of the band that is taken from an image, cycles per px", low=0.001, high=0.7)
    frequency_weight: float = option(0.5, "of the error within the band, beside the error under the masks", low=0.0)
    crops: CropConfig = section(CropConfig, "of each image; several count as so many images", **WEAK)
    adamw: AdamWConfig = section(AdamWConfig, "optimizer")

    about, masks_tokens = "masks in space, a stopped band in frequency", True

    def check(self, patch: int) -> None:
        super().check(patch)
        if self.band_low + self.band_width > self.band_high:
            raise ValueError(
                f"band_width {self.band_width} does not fit between band_low {self.band_low} and "
                f"band_high {self.band_high}"
            )


METHODS: dict[str, type[Section]] = {
    "emp_ssl": EmpSSLConfig,
    "mae": MAEConfig,
    "dinov2": DINOv2Config,
    "simclr": SimCLRConfig,
    "spatial_frequency": SpatialFrequencyConfig,
}
