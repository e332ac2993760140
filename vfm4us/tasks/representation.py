"""Representation: what a frozen encoder's vectors tell of the labels, by k-NN and a linear probe; nothing is trained or chosen."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vfm4us.config import option, section
from vfm4us.encoders import Encoder
from vfm4us.evaluation import representation as figures
from vfm4us.tasks.base import Task, TaskConfig
from vfm4us.tasks.classification import LabelledData, LabelledDataConfig

SHAPE = "size and shape"  # of the image file, beside the embeddings


@dataclass
class RepresentationConfig(TaskConfig):
    """All keys of a measurement of frozen encoders: how images become vectors, and whose labels are asked for."""

    name: str = option("representation", "the runs lie in logs/<name>/seed-<n>")
    embeddings: list[str] = option(
        ["whole"],
        "whole images; square: their central squares, which hide the shape of the file; patches: the mean of some patches",
        choices=["whole", "square", "patches"],
    )
    patches: int = option(4, "patches of an image, for the embedding of that name", low=1, high=1024)
    data: LabelledDataConfig = section(LabelledDataConfig, "what is probed")


class Representation(Task):
    """The probes of an encoder as it is. Fitted on train and val, with a label_share below 1 on that share of train."""

    name, config, figures = "representation", RepresentationConfig, figures
    file, model, doing, truth = "", "encoder", "probing an encoder", "label"

    def check(self, config: RepresentationConfig) -> None:
        if not config.embeddings:
            raise ValueError("embeddings is empty: give at least one of whole, square, patches")

    def read(self, config: RepresentationConfig) -> LabelledData:
        data = LabelledData(config.data, config.seed)
        if config.data.label_share >= 1:
            data.train = np.sort(np.concatenate([data.train, data.val]))
        return data

    def describe(self, data: LabelledData) -> str:
        return f"{len(data.classes)} classes, probes fitted on {len(data.train)} images, tested on {len(data.test)}"

    def train(self, config: RepresentationConfig, data: LabelledData, encoder: Encoder, folder, device):
        return encoder.to(device).eval(), {}

    def save(self, path: Path, model, config, size: int, known=None) -> None:
        """Nothing was trained."""

    def test(self, config: RepresentationConfig, data: LabelledData, model: Encoder, where: Path, validated):
        dataset, fitted, tested, classes = data.dataset, data.train, data.test, len(data.classes)
        found: dict[str, np.ndarray] = {}
        for name in config.embeddings:
            if name == "square" and "whole" in config.embeddings and (dataset.valid[:, 2] == dataset.valid[:, 3]).all():
                found |= {f"square {probe}": found[f"whole {probe}"] for probe in ("knn", "linear")}  # the same pixels
                continue
            seen = figures.CentralSquares(dataset) if name == "square" else dataset
            patches = config.patches if name == "patches" else 0
            said = figures.probe(model, seen, fitted, tested, data.codes, classes, patches, config.precision)
            found |= {f"{name} {probe}": probabilities for probe, probabilities in said.items()}
        a, b = (figures.file_shapes(dataset, rows) for rows in (fitted, tested))
        found[SHAPE] = figures.linear_probabilities(a, data.codes[fitted], b, classes, strength=1.0)
        return found | {
            "kinds": np.array(list(found)),
            "paths": np.array([dataset.records[i].path for i in tested]),
            "groups": np.asarray(dataset.groups)[tested],
            "splits": np.array([dataset.records[i].split for i in tested]),  # as published
            "labels": data.codes[tested],
            "classes": np.array(data.classes),
        }

    def protocol(self, config: RepresentationConfig, data: LabelledData, outcome, result):
        return {
            "selection": "none: the encoder as pretraining left it",
            "embeddings": config.embeddings,
            "probe": "k-NN k = 20, T = 0.07; logistic regression on standardised vectors, C = 0.01, balanced",
            "training_images": len(data.train),
            "test_images": len(data.test),
        }


TASK = Representation()
