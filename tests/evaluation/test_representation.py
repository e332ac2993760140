"""k-NN, effective rank, the collapse warning, probes of a dataset."""

import numpy as np
import pytest
import torch
from PIL import Image

from vfm4us.data.prepare import open_or_prepare, prepare
from vfm4us.evaluation import representation


def test_central_squares_hold_no_padding_and_no_shape(tmp_path):
    for i in range(12):
        picture = np.full((20 + 2 * i, 60), 40, np.uint8)
        picture[:, 20:40] = 200
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    dataset = prepare(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", size=32, progress=False)
    squares = representation.CentralSquares(dataset)
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
    train, test = dataset.indices("train"), dataset.indices("test")
    codes = np.array([label == "tall" for label in dataset.labels], dtype=int)
    shapes = [representation.file_shapes(dataset, rows) for rows in (train, test)]
    said = representation.linear_probabilities(shapes[0], codes[train], shapes[1], 2, strength=1.0)
    assert (said.argmax(1) == codes[test]).all() and np.allclose(said.sum(1), 1)


def test_knn_recovers_separated_classes_and_weighs_near_votes_more():
    torch.manual_seed(0)
    centers = torch.eye(3).repeat(1, 4) * 3
    labels = np.repeat(["a", "b", "c"], 30)
    points = centers.repeat_interleave(30, 0) + 0.3 * torch.randn(90, 12)
    assert (representation.weighted_knn(points, labels, points + 0.01, k=10) == labels).all()
    # one very near vote outweighs two far ones
    reference = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    assert representation.weighted_knn(reference, ["near", "far", "far"], torch.tensor([[1.0, 0.0]]), k=3)[0] == "near"


def test_effective_rank_of_known_spectra():
    assert representation.effective_rank(torch.eye(8)) == pytest.approx(8, rel=1e-3)
    assert representation.effective_rank(torch.ones(20, 8)) == pytest.approx(1, abs=1e-3)
    two = torch.zeros(10, 8)
    two[:5, 0] = 1.0
    two[5:, 1] = 1.0
    assert representation.effective_rank(two) == pytest.approx(2, rel=1e-3)


def test_collapse_is_named_and_health_is_not():
    torch.manual_seed(0)
    assert representation.collapse_warning(torch.randn(100, 32), "said", "advice") == ""
    flat = torch.ones(100, 32) + 1e-3 * torch.randn(100, 32)
    warning = representation.collapse_warning(flat, "cosine 1.000", "Do this.")
    assert "collapsing" in warning and "(cosine 1.000). Do this." in warning
    line = torch.ones(100, 32) + torch.randn(100, 1) * torch.eye(32)[:1] * 5
    assert "collapsing" in representation.collapse_warning(line, "said", "advice")


def test_measure_leaves_out_knn_where_there_is_one_label():
    z = torch.randn(10, 4)
    assert set(representation.measure(z, ["a"] * 10, z, ["a"] * 10)) == {"effective_rank"}
    assert "knn" in representation.measure(z, ["a", "b"] * 5, z, ["a", "b"] * 5)


def test_linear_probe_generalises_on_a_linear_problem():
    torch.manual_seed(0)
    x = torch.randn(400, 6)
    y = (x[:, 0] + x[:, 1] > 0).long().numpy()
    assert (representation.linear_probabilities(x[:300], y[:300], x[300:], 2).argmax(1) == y[300:]).mean() > 0.9
    few = representation.linear_probabilities(x[:300], 2 * y[:300], x[300:], 4)
    assert few.shape == (100, 4) and (few[:, [1, 3]] == 0).all(), "a class without an image to learn from is never said"
