"""Figures of masks equal those of another library and those worked out by hand; ignored pixels count nowhere."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from vfm4us.evaluation import segmentation as figures
from vfm4us.evaluation.segmentation import IGNORED, compare, outline_distances


def blobs(rng, shape, share=0.3):
    """A mask of smooth areas, which touch the border as often as not."""
    noise = gaussian_filter(rng.normal(size=shape), 4)
    return noise > np.quantile(noise, 1 - share)


def test_outline_distances_equal_monais():
    metrics = pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(0)
    for _ in range(12):
        shape = tuple(rng.integers(20, 70, 2))
        a, b = blobs(rng, shape), blobs(rng, shape, rng.uniform(0.02, 0.6))
        pair = [torch.tensor(mask)[None, None].float() for mask in (a, b)]
        far = metrics.compute_hausdorff_distance(*pair, include_background=True, percentile=95)
        mean = metrics.compute_average_surface_distance(*pair, include_background=True, symmetric=True)
        assert outline_distances(a, b) == pytest.approx((float(far), float(mean)), rel=2e-6)


def test_overlap_and_distance_of_two_squares():
    truth, predicted = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8)
    truth[5:15, 5:15], predicted[5:15, 8:18] = 1, 1
    measured = compare(predicted, truth, 2, spacing=(0.5, 0.2))
    assert measured["dice"].tolist() == [0.7, 1.0] and measured["iou"].tolist() == pytest.approx([70 / 130, 1.0])
    assert measured["hd95"].tolist() == [3.0, 0.0] and measured["hd95_mm"][0] == pytest.approx(0.6)
    assert (
        measured["truth_pixels"].tolist() == [100, 0] and measured["right"] == 1200 - 60 and measured["pixels"] == 1200
    )
    assert np.isnan(compare(predicted, truth, 1)["hd95_mm"]).all()
    alone = compare(np.zeros_like(truth), truth, 1, spacing=(0.5, 0.2))
    assert alone["hd95"][0] == alone["asd"][0] == 50 and alone["hd95_mm"][0] == pytest.approx(np.hypot(15, 8))


def test_ignored_pixels_change_no_figure_whatever_is_predicted_there():
    rng = np.random.default_rng(1)
    truth, predicted = blobs(rng, (48, 48)).astype(np.uint8), blobs(rng, (48, 48)).astype(np.uint8)
    ignored = blobs(rng, (48, 48), 0.1)
    outside = compare(np.where(ignored, 0, predicted), np.where(ignored, 0, truth), 1)
    for said in (0, 1):
        measured = compare(np.where(ignored, said, predicted), np.where(ignored, IGNORED, truth), 1)
        for name in ("dice", "iou", "hd95", "asd", "truth_pixels", "predicted_pixels"):
            assert measured[name].tolist() == outside[name].tolist(), name
        assert measured["pixels"] == (~ignored).sum() and measured["right"] == ((predicted == truth) & ~ignored).sum()


def test_distances_in_mm_are_averaged_over_the_images_whose_spacing_is_known():
    truth = np.zeros((20, 20), np.uint8)
    truth[5:10, 5:10] = 1
    moved = np.roll(truth, 2, axis=0)
    rows = [compare(moved, truth, 1, spacing) for spacing in ((0.5, 0.5), (1.0, 1.0), None)]
    outcome = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    outcome |= {"paths": np.array(list("abc")), "groups": np.array(list("abc")), "classes": np.array(["one"])}
    result = figures.evaluate([outcome])
    assert result["hd95_mm"]["mean"] == pytest.approx(1.5) and result["hd95"]["mean"] == 2
    assert result["images_with_spacing"]["per_seed"] == [2]
    del outcome["hd95_mm"]  # a run of before
    assert "hd95_mm" not in figures.evaluate([outcome])
