"""k-NN, effective rank and the collapse warning read what they should."""

import numpy as np
import pytest
import torch

from vfm4us.pretraining import monitor


def test_knn_recovers_separated_classes_and_weighs_near_votes_more():
    torch.manual_seed(0)
    centers = torch.eye(3).repeat(1, 4) * 3
    labels = np.repeat(["a", "b", "c"], 30)
    points = centers.repeat_interleave(30, 0) + 0.3 * torch.randn(90, 12)
    assert (monitor.weighted_knn(points, labels, points + 0.01, k=10) == labels).all()
    # one very near vote outweighs two far ones
    reference = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    assert monitor.weighted_knn(reference, ["near", "far", "far"], torch.tensor([[1.0, 0.0]]), k=3)[0] == "near"


def test_effective_rank_of_known_spectra():
    assert monitor.effective_rank(torch.eye(8)) == pytest.approx(8, rel=1e-3)
    assert monitor.effective_rank(torch.ones(20, 8)) == pytest.approx(1, abs=1e-3)
    two = torch.zeros(10, 8)
    two[:5, 0] = 1.0
    two[5:, 1] = 1.0
    assert monitor.effective_rank(two) == pytest.approx(2, rel=1e-3)


def test_collapse_is_named_and_health_is_not():
    torch.manual_seed(0)
    assert monitor.collapse_warning(torch.randn(100, 32), "said", "advice") == ""
    flat = torch.ones(100, 32) + 1e-3 * torch.randn(100, 32)
    warning = monitor.collapse_warning(flat, "cosine 1.000", "Do this.")
    assert "collapsing" in warning and "(cosine 1.000). Do this." in warning
    line = torch.ones(100, 32) + torch.randn(100, 1) * torch.eye(32)[:1] * 5
    assert "collapsing" in monitor.collapse_warning(line, "said", "advice")


def test_measure_leaves_out_knn_where_there_is_one_label():
    z = torch.randn(10, 4)
    assert set(monitor.measure(z, ["a"] * 10, z, ["a"] * 10)) == {"effective_rank"}
    assert "knn" in monitor.measure(z, ["a", "b"] * 5, z, ["a", "b"] * 5)


def test_linear_probe_generalises_on_a_linear_problem():
    torch.manual_seed(0)
    x = torch.randn(400, 6)
    y = np.where(x[:, 0] + x[:, 1] > 0, "yes", "no")
    assert (monitor.linear_probe(x[:300], y[:300], x[300:]) == y[300:]).mean() > 0.9
