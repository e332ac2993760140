"""The keys of each task, and TASKS, which lists them by the name of the task and of its module."""

from dataclasses import dataclass
from typing import ClassVar

from vfm4us.config import option, section
from vfm4us.phantoms import degradation
from vfm4us.tasks.settings import EvaluationConfig, FinetuneConfig, InitialEncoderConfig, TaskConfig, TaskDataConfig
from vfm4us.views import ViewConfig

# the methods of generation, in enhancers.py
ENHANCERS = ("cyclegan", "supervised", "one-sided", "learned-degradation", "fitted-degradation")

# ---- classification --------------------------------------------------------------------------------------------------


@dataclass
class HeadConfig:
    """Width and dropout of the classifier's layers."""

    hidden: int = option(256, "width of the two hidden layers", low=1, high=65536)
    dropout: float = option(0.3, "after each of them", low=0.0, high=0.95)


@dataclass
class LabelledDataConfig(TaskDataConfig):
    """The labelled images of a classification, and which labels count as one."""

    merge: list[str] = option([], "labels to join, each as 'old > new'")


@dataclass
class AugmentConfig(ViewConfig):
    """How training images are varied, and how strongly two of them are mixed."""

    mixup: float = option(0.0, "alpha of mixup; 0: none", low=0.0)


@dataclass
class ClassifyConfig(EvaluationConfig):
    """How a trained classifier is used on other images, and which of their labels count as one."""

    merge: list[str] = option([], "labels to join, each as 'old > new'")
    leave_out: list[str] = option([], "labels whose images are not compared")


@dataclass
class ClassificationConfig(TaskConfig):
    """All keys of a classification run: how the encoder is used, against what it is trained, data, head and loop."""

    doing, evaluation = "classifying the organs", ClassifyConfig

    name: str = option("classification", "the runs lie in logs/<name>/seed-<n>")
    mode: str = option("finetune", "how the encoder is used", choices=["finetune", "linear", "knn"])
    balance: str = option("sampling", "against unequal classes", choices=["none", "sampling", "weights"])
    smoothing: float = option(0.1, "label smoothing", low=0.0, high=0.9)
    data: LabelledDataConfig = section(LabelledDataConfig, "what is classified")
    finetune: FinetuneConfig = section(FinetuneConfig, "the training loop")
    head: HeadConfig = section(HeadConfig, "Linear, BN, ReLU, dropout, twice; then Linear")
    augment: AugmentConfig = section(
        AugmentConfig,
        "of training images",
        scale_low=0.5,
        scale_high=1.0,
        ratio=1.2,
        jitter=0.5,
        blur=0.1,
        speckle=0.0,
        depth_gain=0.1,
    )


# ---- segmentation ----------------------------------------------------------------------------------------------------


@dataclass
class MaskedDataConfig(TaskDataConfig):
    """The images with masks, the names of their classes, and whether all classes count as one."""

    classes: list[str] = option(
        [], "names of the masks' classes 1, 2, ...; empty: numbered as the training masks have them"
    )
    join: bool = option(False, "all classes of the masks as one")


@dataclass
class SegmentConfig(EvaluationConfig):
    """How a trained segmenter is used on other images."""

    flips: bool = option(False, "average with the prediction for the mirrored image")


@dataclass
class SegmentationConfig(TaskConfig):
    """All keys of a segmentation run: decoder, losses, data, loop and how training images are varied."""

    doing, evaluation = "segmenting the lesions", SegmentConfig

    name: str = option("segmentation", "the runs lie in logs/<name>/seed-<n>")
    decoder: str = option("deeplabv3plus", "what turns features into masks", choices=["deeplabv3plus", "unet"])
    decoder_width: int = option(
        256,
        "its channels; of a U-Net those of the coarsest level, halved at each finer one down to 16",
        low=16,
        high=4096,
    )
    atrous_rates: list[int] = option([12, 24, 36], "three dilations of DeepLabv3+, px of a map at 1/16 of data.size")
    dice_weight: float = option(1.0, "of the soft Dice loss, beside a cross-entropy of weight 1", low=0.0)
    flips: bool = option(False, "average the prediction with that of the mirrored image when testing")
    data: MaskedDataConfig = section(MaskedDataConfig, "what is segmented")
    finetune: FinetuneConfig = section(FinetuneConfig, "the training loop", learning_rate=3e-3)
    augment: ViewConfig = section(
        ViewConfig,
        "of training images, and of their masks where it moves pixels",
        scale_low=0.5,
        scale_high=1.0,
        ratio=1.2,
        jitter=0.5,
        blur=0.1,
        speckle=0.0,
        depth_gain=0.1,
    )


# ---- generation ------------------------------------------------------------------------------------------------------


@dataclass
class GeneratorConfig:
    """The sizes of generators and discriminators, and whether a generator gives a picture or a change of its input."""

    width: int = option(64, "channels at full resolution; twice and four times as many below", low=4, high=1024)
    blocks: int = option(
        9, "residual blocks at a quarter of the resolution; usually 9, or 6 for small images", low=1, high=64
    )
    residual: bool = option(
        False,
        "both generators give their input plus tanh(network), at first the input itself; false: tanh(network), as published",
    )
    discriminator_width: int = option(64, "channels of a discriminator's first layer", low=4, high=1024)
    kind: str = option(
        "blocks",
        "of the enhancer: blocks, the published residual blocks; unet, a small U-Net without norm",
        choices=["blocks", "unet"],
    )
    discriminator_norm: str = option(
        "instance", "of the discriminators; none lets them see brightness and contrast", choices=["instance", "none"]
    )


@dataclass
class TrainingConfig:
    """How an enhancer is trained: how long, how fast, on which crops, with which losses, and when it stops."""

    epochs: int = option(100, "with the full learning rate", low=0, high=100_000)
    decay_epochs: int = option(100, "further ones, in which it falls linearly to 0", low=0, high=100_000)
    steps: int = option(0, "per epoch; 0: one pass over the low-quality images", low=0)
    batch_size: int = option(1, "crops of each domain per step", low=1, high=65536)
    crop: int = option(256, "side of the crops, px at data.size", low=64, high=4096)
    learning_rate: float = option(2e-4, "of Adam, betas 0.5 and 0.999", low=0.0)
    encoder_rate: float = option(1.0, "rate of the encoder as a share of it", low=0.0)
    discriminator_steps: int = option(
        1,
        "of the discriminators for one of the generators, each on other crops; fitted-degradation has none and fits its model on "
        "all these crops",
        low=1,
        high=100,
    )
    adversarial_weight: float = option(1.0, "of the least-squares loss against the discriminators", low=0.0)
    cycle_weight: float = option(10.0, "of the way there and back", low=0.0)
    identity_weight: float = option(0.5, "of leaving alone what is in the domain already, times cycle_weight", low=0.0)
    l1_weight: float = option(100.0, "of the difference to the paired image, where paired=true", low=0.0)
    ssim_weight: float = option(
        0.0, "of 1 - SSIM, beside L1, wherever two images are compared: cycle, identity and pair", low=0.0
    )
    perceptual_weight: float = option(
        0.0, "of the difference of an encoder's features, beside L1, wherever two images are compared", low=0.0
    )
    perceptual_encoder: str = option(
        "", "checkpoint of the encoder whose features are compared; empty: encoder.weights, as they are loaded"
    )
    contrast_weight: float = option(
        1.0, "one-sided: of patches that stay more like themselves than like others of their image", low=0.0
    )
    contrast_patches: int = option(128, "one-sided: of an image that are compared", low=2, high=4096)
    content_weight: float = option(
        5.0, "learned-degradation: of 1 - correlation of 4 x 4 px means, before and after the degrader", low=0.0
    )
    degradation_rate: float = option(
        20.0, "fitted-degradation: rate of the model of the degradation, as a multiple of learning_rate", low=0.0
    )
    pool: int = option(50, "earlier images among which a discriminator's half is drawn", low=0, high=10000)
    average: float = option(
        0.0,
        "decay of the exponential average of the generators' weights that is evaluated; 0: the weights",
        low=0.0,
        high=1.0,
    )
    validation_images: int = option(64, "pairs by which an epoch is chosen, at most", low=1)
    won: float = option(
        0.005,
        "stop where a discriminator's mean loss over some 50 steps is below this (0.25 is a draw); 0: never",
        low=0.0,
    )


@dataclass
class QualityDataConfig(TaskDataConfig):
    """The images of low and high quality, and whether the low ones are made from the high ones."""

    label_share: float = option(1.0, "share of the training images that is used, at least one", low=0.0, high=1.0)
    degrade: bool = option(
        False, "the images are of high quality: make the low-quality ones by vfm4us/phantoms/degradation.py"
    )
    level: str = option(
        "", "of that degradation, by name; empty: the number data.strength", choices=["", *degradation.LEVELS]
    )
    strength: float = option(1.0, "of that degradation, as a number", low=0.0, high=4.0)
    high: str = option(
        "", "high-quality images of their own, not paired with those of data.path: folder, manifest or dataset"
    )
    only: list[str] = option([], "labels (organs) that are used; empty: all")


@dataclass
class BranchConfig(InitialEncoderConfig):
    """The encoder that the enhancer starts from, and whether it learns."""

    freeze: bool = option(False, "the encoder's weights stay what they are")


@dataclass
class EnhanceConfig(EvaluationConfig):
    """How a trained enhancer is used on other images, and what they are compared with."""

    degrade: str = option(
        "", f"enhance degraded versions of the images, of this strength: {', '.join(degradation.LEVELS)} or a number"
    )
    tile: int | None = option(None, "side of the tiles of large images, px; as in training by default", low=64)
    reference: str = option("", "folder of high-quality images for KID, at least 50")
    kid_encoder: str = option("", "checkpoint whose features KID is taken on where Inception is not at hand")
    segmenter: str = option(
        "",
        "segmentation model that was trained on high quality: its Dice on every version of the images, which have masks",
    )


@dataclass
class GenerationConfig(TaskConfig):
    """All keys of a generation run: pairs or not, tiles of large images, data, networks and loop."""

    MOVED: ClassVar = {"generator": "network"}
    doing, evaluation = "enhancing the images", EnhanceConfig

    name: str = option("generation", "the runs lie in logs/<name>/seed-<n>")
    method: str = option(
        "cyclegan",
        "how the enhancer learns; supervised needs pairs, the others do without (vfm4us/tasks/enhancers.py)",
        choices=ENHANCERS,
    )
    paired: bool = option(
        False, "low and high quality of the same image are trained on together, with an L1 term; supervised always does"
    )
    tile: int = option(
        512,
        "images larger than this at data.size are enhanced in overlapping tiles of this side, px",
        low=64,
        high=8192,
    )
    overlap: int = option(64, "of neighbouring tiles, px", low=0, high=4096)
    kid_encoder: str = option(
        "",
        "checkpoint whose features KID is taken on, where torchvision's Inception weights are not in its cache",
        free=True,
    )
    data: QualityDataConfig = section(QualityDataConfig, "what is enhanced", size=256)
    encoder: BranchConfig = section(BranchConfig, "the branch of the enhancer, low to high quality")
    network: GeneratorConfig = section(GeneratorConfig, "both generators and the discriminators")
    training: TrainingConfig = section(TrainingConfig, "the loop and its losses")

    @property
    def with_pairs(self) -> bool:
        """Whether low and high quality of the same image are trained on together."""
        return self.paired or self.method == "supervised"


# ---- representation ---------------------------------------------------------------------------------------------------


@dataclass
class RepresentationConfig(TaskConfig):
    """All keys of a measurement of frozen encoders: how images become vectors, and whose labels are asked for."""

    doing = "probing an encoder"

    name: str = option("representation", "the runs lie in logs/<name>/seed-<n>")
    embeddings: list[str] = option(
        ["whole"],
        "whole images; square: their central squares, which hide the shape of the file; patches: the mean of some patches",
        choices=["whole", "square", "patches"],
    )
    patches: int = option(4, "patches of an image, for the embedding of that name", low=1, high=1024)
    data: LabelledDataConfig = section(LabelledDataConfig, "what is probed")


TASKS: dict[str, type[TaskConfig]] = {
    "classification": ClassificationConfig,
    "segmentation": SegmentationConfig,
    "generation": GenerationConfig,
    "representation": RepresentationConfig,
}
