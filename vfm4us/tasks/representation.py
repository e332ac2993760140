"""Representation: what a frozen encoder's vectors tell of the labels, by k-NN and a linear probe; nothing is trained or chosen."""

from pathlib import Path

import numpy as np

from vfm4us.encoders import Encoder
from vfm4us.evaluation import representation as figures
from vfm4us.tasks.base import Task
from vfm4us.tasks.classification import LabelledData
from vfm4us.tasks.sections import RepresentationConfig

SHAPE = "size and shape"  # of the image file, beside the embeddings


class Representation(Task):
    """The probes of an encoder as it is. Fitted on train and val, with a label_share below 1 on that share of train."""

    name, config, figures = "representation", RepresentationConfig, figures
    file, model, truth = "", "encoder", "label"

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
        outcome: dict[str, np.ndarray] = {}
        for name in config.embeddings:
            if name == "square" and "whole" in config.embeddings and (dataset.valid[:, 2] == dataset.valid[:, 3]).all():
                outcome |= {
                    f"square {probe}": outcome[f"whole {probe}"] for probe in ("knn", "linear")
                }  # the same pixels
                continue
            seen = figures.CentralSquares(dataset) if name == "square" else dataset
            patches = config.patches if name == "patches" else 0
            said = figures.probe(model, seen, fitted, tested, data.codes, classes, patches, config.precision)
            outcome |= {f"{name} {probe}": probabilities for probe, probabilities in said.items()}
        a, b = (figures.file_shapes(dataset, rows) for rows in (fitted, tested))
        outcome[SHAPE] = figures.linear_probabilities(a, data.codes[fitted], b, classes, strength=1.0)
        return outcome | {
            "kinds": np.array(list(outcome)),
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
