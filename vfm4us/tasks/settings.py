"""The keys of a downstream run: what all tasks share. They lie apart from the tasks so that `--help` need not wait for torch."""

from dataclasses import dataclass
from typing import ClassVar

from vfm4us.config import option, section
from vfm4us.data import shares
from vfm4us.encoders.families import names


@dataclass
class InitialEncoderConfig:
    """The encoder a task starts from, and for how long it is frozen."""

    name: str = option("resnet18", "network, where weights is none or imagenet", choices=names(from_scratch=True))
    patch: int = option(16, "side of a token of a vit_*, px, where weights is none", low=4, high=64)
    norm: str = option(
        "token",
        "vector of a vit_*, where weights is none: the class token, or the mean",
        choices=["token", "mean_of_norm"],
    )
    weights: str = option(
        "none",
        "none (random), imagenet, open (this project's released encoder), or a checkpoint, run folder or Hugging Face folder of "
        "any published layout; {seed} in it is the run's seed",
    )
    prefix: str = option("", "what stands before the encoder's keys, where weights holds several encoders")
    heads: int = option(0, "attention heads of a vit_*, where nothing in weights tells how many; 0: it tells", low=0)
    in_channels: int = option(1, "channels of the first convolution; 1 is exact for grey images", choices=[1, 3])
    freeze_epochs: int = option(0, "epochs at the beginning in which only the head learns", low=0, high=100_000)


@dataclass
class FinetuneConfig:
    """The supervised loop: how long it runs, at which rates, and when it stops."""

    epochs: int = option(40, "passes over the training images", low=1, high=100_000)
    min_steps: int = option(
        400, "at least so many steps in all: small training sets are gone through more often", low=1
    )
    max_steps: int = option(
        0, "at most so many steps in all: an epoch is then part of a large training set; 0: any", low=0
    )
    batch_size: int = option(32, "images per step", low=2, high=65536)
    learning_rate: float = option(1e-3, "peak, of the head", low=0.0)
    encoder_rate: float = option(1.0, "rate of the encoder's last layer, as a share of the head's", low=0.0)
    layer_decay: float = option(1.0, "factor on the rate from each encoder stage to the one before", low=0.0, high=1.0)
    vector_rate: float = option(1.0, "further factor on the rate of batch-norm scales and biases", low=0.0)
    weight_decay: float = option(0.05, "on matrices and kernels only", low=0.0)
    warmup: float = option(0.1, "share of the steps in which the rate rises", low=0.0, high=1.0)
    clip: float = option(1.0, "largest norm of the gradient; 0: any", low=0.0)
    average: float = option(
        0.98, "decay of the exponential average of weights that is evaluated; 0: the weights", low=0.0, high=1.0
    )
    patience: int = option(15, "stop after so many epochs without a better validation; 0: never", low=0, high=100_000)


@dataclass
class TaskDataConfig:
    """Where a task's images lie, how they are packed and split, and how many of the labelled ones are used."""

    MOVED: ClassVar = {"labels": "label_share"}

    path: str = option("", "folder of images as the task wants them, CSV manifest, published or prepared dataset")
    size: int = option(
        224, "longer side to which plain folders are packed, px; prepared ones keep theirs", low=32, high=4096
    )
    splits: list[float] = option([*shares.TASK], "shares of train, val and test where the data have none")
    cache: str = option("data", "folder for what is packed from plain folders", free=True)
    frames: str = option(
        "", "of clips: first, all, every N, per second, N per second; empty: as a reading.yaml says, else per second"
    )
    label_share: float = option(
        1.0, "share of the labelled training images that is used, of each class, at least one", low=0.0, high=1.0
    )
    folds: int = option(
        0,
        "cross-fitting: the run of seed s is tested on part s modulo folds of train and val and learns from the others; 0: tested "
        "on the test split",
        low=0,
        high=1000,
    )
    with_test: bool = option(False, "with folds: each seed is tested on the test split as well")
    pretraining: list[str] = option(
        [], "datasets the encoder was pretrained on: duplicates of test images are reported"
    )
    hint: str = option("", "where to get the data, for the error if they are missing", free=True)


@dataclass
class EvaluationConfig:
    """What an evaluation script is told; a task's own adds to it."""

    checkpoint: str = option("", "trained model, or the run folder of train.py that holds it")
    data: str = option("", "folder of images as the task wants them, CSV manifest, or published dataset")
    split: str = option("all", "where the data have splits", choices=["all", "train", "val", "test"])
    out: str = option(
        "", "folder for what is written, over an earlier evaluation there; empty: evaluation/MODEL-on-DATA"
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>")


@dataclass
class TaskConfig:
    """The keys that all tasks share: names and places of runs, seeds, device, data and encoder."""

    doing: ClassVar[str]  # what the task does: "classifying the organs"
    evaluation: ClassVar[type[EvaluationConfig]] = EvaluationConfig  # the keys of its evaluation script

    name: str = option("task", "the runs lie in logs/<name>/seed-<n>")
    logs: str = option("logs", "folder for runs", free=True)
    seeds: list[int] = option(
        [0, 1, 2], "one run each; a finished one is not run again", free=True, low=0, high=2**32 - 1
    )
    seed: int = option(0, "of one run; set from seeds", free=True, low=0, high=2**32 - 1)
    resume: bool = option(True, "false: move an earlier run of this name aside", free=True)
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>", free=True)
    precision: str = option(
        "auto",
        "of the network in training: auto is bfloat16 on a GPU, float32 on a CPU",
        choices=["auto", "float32", "bfloat16"],
    )
    pictures: bool = option(True, "false: figures alone, for tables of hundreds of runs", free=True)
    keep_model: bool = option(True, "false: without the trained model of each seed, 50 to 100 MB", free=True)
    data: TaskDataConfig = section(TaskDataConfig, "what is trained and tested on")
    encoder: InitialEncoderConfig = section(InitialEncoderConfig, "where it starts from")
