"""Probes and their intervals."""

import numpy as np
import pytest

from vfm4us import probing
from vfm4us.data.store import open_or_prepare
from vfm4us.encoders import Encoder, EncoderSpec


def test_bootstrap_resamples_whole_groups():
    groups = np.array(["a", "a", "b", "c", "c", "c"])
    counts = probing.bootstrap_counts(groups, repeats=50, seed=1)
    assert counts.shape == (50, 6)
    assert (counts[:, 0] == counts[:, 1]).all() and (counts[:, 3] == counts[:, 5]).all()
    per_group = counts[:, [0, 2, 3]].sum(1)
    assert (per_group == 3).all() and counts.std(0).min() > 0


def test_weighted_balanced_accuracy_is_the_mean_recall():
    labels = np.array(["x", "x", "x", "y"])
    correct = np.array([1.0, 1.0, 0.0, 1.0])
    assert probing.weighted_balanced_accuracy(labels, correct, np.ones((1, 4)))[0] == pytest.approx((2 / 3 + 1) / 2)
    assert probing.weighted_balanced_accuracy(labels, correct, np.array([[0, 0, 2, 1]]))[0] == pytest.approx(0.5)
    only_x = probing.weighted_balanced_accuracy(labels, correct, np.array([[1, 1, 1, 0]]))[0]
    assert only_x == pytest.approx(2 / 3)


def test_cross_validation_predicts_every_image_once_and_never_from_its_own_group(textures, tmp_path, monkeypatch):
    dataset = open_or_prepare(textures / "one", tmp_path, 48)
    seen = []

    def spy(reference, labels, queries, *_):
        seen.append((len(reference), len(queries)))
        return np.full(len(queries), labels[0])

    monkeypatch.setattr(probing, "weighted_knn", spy)
    found = probing.cross_validate(Encoder(EncoderSpec(in_channels=1)), dataset)
    held = int(np.isin(dataset.splits, ["train", "val"]).sum())
    assert sum(q for _, q in seen) == held and all(r + q == held for r, q in seen) and len(seen) == 5
    assert found["knn"] == pytest.approx(0.5, abs=0.2) and found["linear"] > 0.8  # two textures are easily told apart
