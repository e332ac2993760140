"""Intervals, resamples of groups, and means over classes."""

import numpy as np
import pytest

from vfm4us.evaluation import statistics


def test_bootstrap_resamples_whole_groups():
    groups = np.array(["a", "a", "b", "c", "c", "c"])
    counts = statistics.bootstrap_counts(groups, repeats=50, seed=1)
    assert counts.shape == (50, 6)
    assert (counts[:, 0] == counts[:, 1]).all() and (counts[:, 3] == counts[:, 5]).all()
    per_group = counts[:, [0, 2, 3]].sum(1)
    assert (per_group == 3).all() and counts.std(0).min() > 0


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


def test_holm_is_that_of_the_textbook():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]).tolist() == [1.0, 1.0] and statistics.holm([0.04]).tolist() == [0.04]
    assert len(statistics.holm([])) == 0
    with pytest.raises(ValueError, match="0 to 1"):
        statistics.holm([0.1, 1.2])


def test_equivalence_is_two_one_sided_t_tests():
    from scipy.stats import ttest_1samp

    seeds, still = np.array([0.004, -0.002, 0.003, 0.001, 0.006, -0.001]), np.full(50, 0.1)
    figures = statistics.equivalence(seeds, still, bound=0.015)
    expected = max(
        ttest_1samp(seeds, -0.015, alternative="greater").pvalue, ttest_1samp(seeds, 0.015, alternative="less").pvalue
    )
    assert figures["p"] == pytest.approx(expected) and figures["equivalent"]
    limits = ttest_1samp(seeds, 0).confidence_interval(0.90)
    assert (figures["low"], figures["high"]) == pytest.approx((limits.low, limits.high))
    for bound in (0.003, 0.0045, 0.006, 0.015):  # the 90 % interval within the bounds says the same
        figures = statistics.equivalence(seeds, still, bound=bound)
        assert figures["equivalent"] == (-bound < figures["low"] and figures["high"] < bound)
    assert not statistics.equivalence(seeds + 0.02, still)["equivalent"]
    with pytest.raises(ValueError, match="above 0"):
        statistics.equivalence(seeds, still, bound=0)


def test_the_power_line_names_half_widths():
    rows = [{"low": -0.01, "high": 0.03}, {"low": 0.0, "high": 0.1}, {"low": 0.01, "high": 0.07}, {"mean": 1}]
    assert "+- 0.030 wide at the median (+- 0.020 to 0.050)" in statistics.power_line(rows)
    assert "+- 0.020 wide" in statistics.power_line(rows[:1]) and statistics.power_line([]) == ""


@pytest.mark.parametrize("turned", [1, -1])
def test_datasets_are_resampled_each_for_itself(turned):
    """The same chance for both would make their mean as uncertain as one alone, or certain."""
    values = np.linspace(0, 1, 50)

    def outcome(name, of):
        names = np.array([f"{name}{i:02d}" for i in range(len(of))])
        return [{"paths": names, "groups": names, "values": of}]

    def width(*pairs):
        figures = statistics.differences(lambda o, c: {"mean": c @ o["values"] / c.sum(1)}, list(pairs))["mean"]
        return figures["high"] - figures["low"]

    first = outcome("a", values), outcome("a", 0 * values)
    second = outcome("b", values[::turned]), outcome("b", 0 * values)
    assert width(first, second) == pytest.approx(width(first) / 2**0.5, rel=0.1)
    assert width(first, first) == pytest.approx(width(first))  # the same images twice say no more than once


def crossfitted(shift: float, seeds: int = 6, seed: int = 0) -> list[dict]:
    """Outcomes of 90 images in 30 groups: seed s was tested on fold s modulo 3, each with the same noise for every `shift`."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(30), 3)
    of_image, of_seed = rng.normal(0.5, 0.2, 90), rng.normal(0, 0.05, seeds)
    result = []
    for s in range(seeds):
        rows = np.flatnonzero(groups % 3 == s % 3)
        names = np.array([f"i{i:02d}" for i in rows])
        values = of_image[rows] + of_seed[s] + shift
        result.append(
            {"paths": names, "groups": groups[rows].astype(str), "values": values, "fold": np.array([s % 3, 3])}
        )
    return result


def mean_score(o, counts):
    with np.errstate(invalid="ignore"):
        return {"mean": counts @ o["values"] / counts.sum(1)}


def test_cross_fitted_outcomes_are_of_all_images_and_their_differences_are_paired_in_the_seeds():
    ours, theirs = crossfitted(0.03), crossfitted(0.0)
    figures = statistics.figures(mean_score, ours)["mean"]
    assert figures["per_seed"] == pytest.approx([o["values"].mean() for o in ours]) and figures["low"] < figures["mean"]
    apart = statistics.differences(mean_score, [(ours, theirs)], bound=0.015)["mean"]
    assert apart["mean"] == pytest.approx(0.03) and apart["per_seed"] == pytest.approx([0.03] * 6)
    assert apart["high"] - apart["low"] < 1e-6, "what the two have in common is gone"
    assert not apart["equivalence"]["equivalent"]
    assert statistics.differences(mean_score, [(theirs, theirs)], bound=0.015)["mean"]["equivalence"]["equivalent"]
    with pytest.raises(ValueError, match="cross-fitted by other folds or seeds"):
        statistics.differences(mean_score, [(ours, theirs[::-1])])
    theirs[3]["paths"] = theirs[3]["paths"][::-1]
    with pytest.raises(ValueError, match="tested on different images"):
        statistics.differences(mean_score, [(ours, theirs)])


def test_a_difference_and_the_mean_that_it_is_part_of_see_the_same_resamples():
    """So that a score that is kept for each outcome and its resamples is right for both."""
    seen = {}

    def score(o, counts):
        if len(counts) > 1:
            seen.setdefault(id(o), set()).add(counts[:50].tobytes())
        return mean_score(o, counts)

    first, second = (crossfitted(0.1, seed=s) for s in (0, 1))
    for o in second:
        o["paths"] = np.char.add("other-", o["paths"])
    nothing = crossfitted(0.0, seed=2)
    others = [o | {"paths": p["paths"]} for o, p in zip(nothing, second, strict=True)]
    for pairs in ([(first, nothing)], [(second, others)], [(first, nothing), (second, others)]):
        statistics.differences(score, pairs)
    assert len(seen) == 24 and all(len(counts) == 1 for counts in seen.values())
    assert seen[id(first[0])] != seen[id(second[0])], "each dataset for itself"
