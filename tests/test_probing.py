"""Probes and their intervals."""

import numpy as np
import pytest
from PIL import Image

from vfm4us import probing
from vfm4us.data.store import open_or_prepare, prepare
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


def test_the_interval_covers_both_seeds_and_images():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):  # true value 0.7; seeds vary by 0.02, the mean over images by 0.03
        image = rng.normal(0, 0.03)
        seeds = 0.7 + image + rng.normal(0, 0.02, 3)
        _, low, high = probing.interval(seeds, seeds.mean() + rng.normal(0, 0.03, 500))
        hits += low <= 0.7 <= high
    assert 0.92 <= hits / 400 <= 0.99
    mean, low, high = probing.interval(np.array([0.5]), 0.5 + rng.normal(0, 0.01, 5000))
    assert mean == 0.5 and high - low == pytest.approx(2 * 1.96 * 0.01, rel=0.05)


def test_the_interval_of_a_difference_is_welchs_where_images_do_not_vary():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(1)
    a, b = rng.normal(0.7, 0.02, 3), rng.normal(0.6, 0.05, 8)
    mean, low, high = probing.interval(a, np.full(100, a.mean() - b.mean()), b)
    expected = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert mean == pytest.approx(a.mean() - b.mean()) and (low, high) == pytest.approx((expected.low, expected.high))


def test_central_squares_hold_no_padding_and_no_shape(tmp_path):
    for i in range(12):
        picture = np.full((20 + 2 * i, 60), 40, np.uint8)
        picture[:, 20:40] = 200
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    dataset = prepare(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", size=32, progress=False)
    squares = probing.CentralSquares(dataset)
    assert squares.images.min() > 5 and (squares.images[:, 16, 16] > 150).all() and len(squares) == 12
    assert squares.labels == dataset.labels and (squares.valid == [0, 0, 32, 32]).all()


def test_the_shape_baseline_sees_sizes_and_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(40):
        label = "tall" if i % 2 else "wide"
        size = (40, 60 + i) if label == "tall" else (60 + i, 40)
        path = tmp_path / "images" / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, size[::-1], dtype=np.uint8)).save(path)
    dataset = open_or_prepare(tmp_path / "images", tmp_path / "cache", 48, (0.5, 0.0, 0.5))
    assert probing.shape_baseline(dataset) == 1.0
