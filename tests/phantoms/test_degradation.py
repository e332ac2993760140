"""The degradation is seeded by the image itself, grows with its strength, and is what a cheaper scanner does."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import structural_similarity

from vfm4us.data.decode import read_grey
from vfm4us.data.sources import find_source
from vfm4us.phantoms.degradation import degrade, degraded, lateral_spread
from vfm4us.phantoms.make import make_phantom


def test_it_is_seeded_coarser_smoother_and_grows_with_strength():
    image = make_phantom(2, size=160).image
    once, again, other = degrade(image, 7), degrade(image, 7), degrade(image, 8)
    assert np.array_equal(once, again) and not np.array_equal(once, other)
    assert np.array_equal(degrade(image, np.random.default_rng(7)), once)
    assert once.shape == image.shape and once.dtype == np.uint8
    assert len(np.unique(once)) <= 40 < len(np.unique(image))
    assert np.all(once[ndimage.binary_erosion(image == 0, iterations=6)] == 0)
    likeness = [structural_similarity(image, degrade(image, 7, strength)) for strength in (0.0, 0.5, 1.0, 2.0)]
    assert likeness[0] == 1.0 and likeness == sorted(likeness, reverse=True) and likeness[2] > 0.15
    with pytest.raises(ValueError, match="shape"):
        degrade(np.zeros((4, 4, 3), np.uint8), 0)
    for strength in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="at least 0"):
            degrade(image, 0, strength)


def test_the_same_image_gives_the_same_answer_wherever_it_lies():
    image = make_phantom(3, size=96).image
    assert np.array_equal(degraded(image), degraded(image.copy(order="F")))
    other = image.copy()
    other[40, 40] ^= 1
    difference = degraded(other).astype(int) - degraded(image)
    assert (difference != 0).mean() > 0.2, "another image has other noise"


def test_a_point_spreads_across_the_beam_with_depth_and_with_side_lobes():
    field = np.zeros((3, 301), np.float32)
    field[:, 150] = 1
    sigma = np.array([[1.0], [2.0], [4.0]], np.float32)
    plain, lobes = lateral_spread(field, sigma, 0.0), lateral_spread(field, sigma, 0.03)
    x = np.arange(301) - 150
    for row, s in zip(plain, sigma[:, 0], strict=True):
        expected = np.exp(-(x**2) / (2 * s**2)) / (s * np.sqrt(2 * np.pi))
        assert row == pytest.approx(expected, abs=1e-3)
    assert plain.sum(1) == pytest.approx([1, 1, 1], abs=1e-4) and lobes.sum(1) == pytest.approx([1, 1, 1], abs=2e-2)
    assert (lobes[:, 150] < plain[:, 150]).all() and lobes[0, 158] > 20 * plain[0, 158]
    flat = np.full((4, 40), 7.0, np.float32)
    assert lateral_spread(flat, np.ones((4, 1), np.float32), 0.03) == pytest.approx(flat, rel=1e-3), "no dark borders"


@pytest.mark.parametrize("name", ["fetal_head", "busi", "liver"])
def test_real_images_lose_sharpness_and_gain_noise(real_data, name):
    record = next(r for r in find_source(real_data / name) if r.split == "val")
    image = read_grey(real_data / name / record.path)
    low = degraded(image)
    assert low.shape == image.shape and np.array_equal(low, degraded(image))
    assert len(np.unique(low)) <= 32
    assert 0.1 < structural_similarity(image, low, data_range=255) < 0.9
