"""Probes and their intervals."""

import numpy as np
import pytest

from vfm4us import probing


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
