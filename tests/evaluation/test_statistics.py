"""Intervals, resamples of groups, and means over classes."""

import numpy as np
import pytest

from vfm4us.evaluation import statistics
from vfm4us.evaluation.classification import weighted_balanced_accuracy


def test_bootstrap_resamples_whole_groups():
    groups = np.array(["a", "a", "b", "c", "c", "c"])
    counts = statistics.bootstrap_counts(groups, repeats=50, seed=1)
    assert counts.shape == (50, 6)
    assert (counts[:, 0] == counts[:, 1]).all() and (counts[:, 3] == counts[:, 5]).all()
    per_group = counts[:, [0, 2, 3]].sum(1)
    assert (per_group == 3).all() and counts.std(0).min() > 0


def test_weighted_balanced_accuracy_is_the_mean_recall():
    labels = np.array(["x", "x", "x", "y"])
    correct = np.array([1.0, 1.0, 0.0, 1.0])
    assert weighted_balanced_accuracy(labels, correct, np.ones((1, 4)))[0] == pytest.approx((2 / 3 + 1) / 2)
    assert weighted_balanced_accuracy(labels, correct, np.array([[0, 0, 2, 1]]))[0] == pytest.approx(0.5)
    only_x = weighted_balanced_accuracy(labels, correct, np.array([[1, 1, 1, 0]]))[0]
    assert only_x == pytest.approx(2 / 3)


def test_the_interval_covers_both_seeds_and_images():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):  # true value 0.7; seeds vary by 0.02, the mean over images by 0.03
        image = rng.normal(0, 0.03)
        seeds = 0.7 + image + rng.normal(0, 0.02, 3)
        _, low, high = statistics.interval(seeds, seeds.mean() + rng.normal(0, 0.03, 500))
        hits += low <= 0.7 <= high
    assert 0.92 <= hits / 400 <= 0.99
    mean, low, high = statistics.interval(np.array([0.5]), 0.5 + rng.normal(0, 0.01, 5000))
    assert mean == 0.5 and high - low == pytest.approx(2 * 1.96 * 0.01, rel=0.05)


def test_the_interval_of_a_difference_is_welchs_where_images_do_not_vary():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(1)
    a, b = rng.normal(0.7, 0.02, 3), rng.normal(0.6, 0.05, 8)
    mean, low, high = statistics.interval(a, np.full(100, a.mean() - b.mean()), b)
    expected = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert mean == pytest.approx(a.mean() - b.mean()) and (low, high) == pytest.approx((expected.low, expected.high))
