"""Filters get the strength that does best on pairs, and an image that is too smooth loses in speckle and gradient."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vfm4us.evaluation import filters, likeness


def tissue(rng, shape=(72, 90)):
    """Two bright regions with fine speckle."""
    even = 90 + 60 * (np.arange(shape[1]) > 45)
    return (even * (1 + 0.15 * gaussian_filter(rng.normal(size=shape), 0.6) / 0.5)).clip(10, 245).astype(np.uint8)


@pytest.mark.parametrize("name", list(filters.GRIDS))
def test_more_noise_asks_for_a_stronger_filter_and_none_for_the_weakest(name):
    rng = np.random.default_rng(0)
    high = [gaussian_filter(rng.normal(size=(48, 60)), 4) for _ in range(2)]
    high = [(128 + 40 * x / x.std()).clip(0, 255).astype(np.uint8) for x in high]
    noisy = [(x + rng.normal(0, 35, x.shape)).clip(0, 255).astype(np.uint8) for x in high]
    weak, strong = (filters.choose(zip(low, high, strict=True))[name] for low in (high, noisy))
    assert weak == min(filters.GRIDS[name]) < strong
    both = list(zip(noisy, high, strict=True))
    best = max(filters.GRIDS[name], key=lambda s: sum(likeness.ssim(filters.apply(name, a, s), b) for a, b in both))
    assert strong == best
    made = filters.apply(name, noisy[0], strong)
    assert made.dtype == np.uint8 and made.shape == high[0].shape
    assert likeness.ssim(made, high[0]) > likeness.ssim(noisy[0], high[0])


def test_without_pairs_nothing_is_chosen_and_the_rule_says_so():
    assert filters.choose([]) == {}
    assert all("not chosen" in line for line in filters.rule(filters.USUAL, False).values())
    assert list(filters.GRIDS) == list(likeness.FILTERS)


def test_a_blur_that_wins_in_ssim_loses_in_speckle_and_gradient():
    rng = np.random.default_rng(0)
    target = tissue(rng)
    low = (target + rng.normal(0, 9, target.shape)).clip(0, 255).astype(np.uint8)
    other = tissue(rng)  # the same tissue with other speckle: what a picture looks like that is as lively as its target
    blurred = gaussian_filter(low, 1.0)
    assert likeness.ssim(blurred, target) > likeness.ssim(other, target)
    for figure in (likeness.speckle, likeness.gradient):
        assert figure(blurred, target) < 0.7 < 0.9 < figure(other, target)
        assert figure(target, target) == pytest.approx(1)
    assert likeness.speckle_ratio(blurred, target) < 1 and likeness.gradient_ratio(blurred, target) < 1
    assert likeness.speckle_ratio(low, target) > 1 and likeness.gradient_ratio(low, target) > 1


def test_speckle_and_gradient_equal_their_definitions():
    rng = np.random.default_rng(1)
    target = tissue(rng, (18, 27))
    image = tissue(rng, (18, 27))
    figures = []
    for i in range(2):
        for j in range(3):
            a, b = (x[9 * i : 9 * i + 9, 9 * j : 9 * j + 9].astype(float) for x in (image, target))
            quarters = [b[y, x].mean() for y in (slice(4), slice(-4, None)) for x in (slice(4), slice(-4, None))]
            figures.append((np.ptp(quarters) / b.mean(), a.std() / a.mean(), b.std() / b.mean()))
    even = sorted(figures)[:3]
    expected = np.median([f[1] for f in even]) / np.median([f[2] for f in even])
    assert likeness.speckle_ratio(image, target) == pytest.approx(expected)
    black = np.zeros((30, 30), np.uint8)
    assert np.isnan(likeness.speckle_ratio(black, black)) and likeness.speckle(black, black) == 1
    ramp = np.add.outer(np.zeros(20), np.arange(20)).astype(np.uint8)
    assert likeness.gradient_ratio(3 * ramp, ramp) == pytest.approx(3) and likeness.gradient(
        3 * ramp, ramp
    ) == pytest.approx(1 / 3)


def test_the_gain_over_the_filters_is_over_the_best_of_them_for_each_figure():
    rng = np.random.default_rng(0)
    n = 30
    outcome = {"paths": np.arange(n).astype(str), "groups": np.arange(n).astype(str)}
    levels = {
        "": (0.7, 25.0),
        "_input": (0.5, 20.0),
        "_blur": (0.65, 24.0),
        "_median": (0.6, 26.0),
        "_nlm": (0.55, 23.0),
    }
    for side, (ssim, psnr) in levels.items():
        outcome |= {f"ssim{side}": ssim + rng.normal(0, 0.01, n), f"psnr{side}": psnr + rng.normal(0, 0.1, n)}
    result = likeness.evaluate([outcome])
    assert result["ssim_over_filters"]["low"] > 0 and result["ssim_over_filters"]["mean"] == pytest.approx(
        0.05, abs=0.01
    )
    assert result["psnr_over_filters"]["high"] < 0 and result["psnr_over_filters"]["mean"] == pytest.approx(-1, abs=0.1)
    said = likeness.verdict(result)
    assert "(blur)" in said and "(median)" in said and "it is NOT beaten in PSNR" in said
