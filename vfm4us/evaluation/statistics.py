"""How sure a figure is: intervals over seeds and over groups of test images, paired differences, p values.

    result = figures(score, outcomes)                  # every score as {mean, low, high, per_seed}
    result = differences(score, [(ours, theirs)])      # {mean, low, high, p}, paired in the test images

An outcome is what one seed's model did on the test images: arrays. `paths` and `groups` (N,) are in every one; the rest is the
task's own, say the probabilities of a classifier, or the Dice of each image. The task says what follows from it:
`score(outcome, counts)` -> {name: (R,)} with counts (R, N), how often each image occurs in each of R resamples. For a figure per
image that is `counts @ dice / counts.sum(1)`.

Cross-fitted outcomes have `fold` too, (fold, folds): each seed was tested on the images of its fold, those of all folds together
are resampled, and each seed's figure is of those that it was tested on. Differences are then paired in the seeds as well.
"""

import zlib
from collections.abc import Callable

import numpy as np
from scipy import stats

Outcome = dict[str, np.ndarray]
Score = Callable[[Outcome, np.ndarray], dict[str, np.ndarray]]

FEW_GROUPS = 20
INTERVAL = "95 %, Student's t over seeds plus bootstrap over test groups"


def bootstrap_counts(groups: np.ndarray, repeats: int = 2000, seed: int = 0) -> np.ndarray:
    """How often each image occurs in each resample of whole groups: (repeats, M) integers."""
    names, codes = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=repeats)
    return counts[:, codes]


def interval(
    per_seed: np.ndarray, resamples: np.ndarray, against=(), level: float = 0.95
) -> tuple[float, float, float]:
    """Mean and confidence limits of a figure that varies over pretraining seeds and over the choice of test images.

    per_seed (n,): the figure of each seed. resamples (R,): the mean over seeds in each bootstrap resample of test groups.
    against (m,): the figures of another arm's own seeds, whose mean is subtracted; `resamples` then holds differences, which
    are paired in the images. Variances add up, s^2 / n + s'^2 / m + var(resamples); Student's t with Welch-Satterthwaite
    degrees of freedom, since three seeds say little about their own spread. One seed counts as if seeds did not vary.
    """
    mean, error, freedom = _standard_error(per_seed, resamples, against)
    half = float(stats.t.ppf(0.5 + level / 2, freedom)) * error
    return mean, mean - half, mean + half


def p_value(per_seed: np.ndarray, resamples: np.ndarray, against=()) -> float:
    """Two-sided, of a mean of 0: below 0.05 where the 95 % `interval` of the same arguments leaves 0 out."""
    mean, error, freedom = _standard_error(per_seed, resamples, against)
    if not error:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, freedom))


def equivalence(per_seed: np.ndarray, resamples: np.ndarray, against=(), bound: float = 0.015) -> dict:
    """Whether a difference lies within +- bound, by two one-sided tests at 5 % (Schuirmann 1987); arguments as of `interval`.

    {low, high}: the 90 % interval, which lies within the bounds exactly where `p`, the larger of the two, is below 0.05.
    """
    if not bound > 0:
        raise ValueError(f"bound {bound}: an equivalence bound is above 0")
    mean, error, freedom = _standard_error(per_seed, resamples, against)
    _, low, high = interval(per_seed, resamples, against, level=0.90)
    nearest = bound - abs(mean)
    p = float(stats.t.sf(nearest / error, freedom)) if error else float(nearest <= 0)
    return {"low": low, "high": high, "p": p, "bound": bound, "equivalent": p < 0.05}


def holm(p_values) -> np.ndarray:
    """p-values (n,) corrected for their number, in the same order (Holm 1979): each may be compared with 0.05 as it is."""
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values lie from 0 to 1, in one row: {p_values}")
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected


def power_line(differences) -> str:
    """Which difference a table could have seen: the half-widths of its 95 % intervals; figures with `low` and `high`."""
    halves = sorted((d["high"] - d["low"]) / 2 for d in differences if "low" in d)
    if not halves:
        return ""
    said = "The 95 % interval of a difference here is"
    if len(halves) == 1:
        return f"{said} +- {halves[0]:.3f} wide: a smaller one is not shown by these runs."
    middle, whole = halves[len(halves) // 2], f"+- {halves[0]:.3f} to {halves[-1]:.3f}"
    return f"{said} +- {middle:.3f} wide at the median ({whole}): smaller ones are not shown by these runs."


def _standard_error(per_seed: np.ndarray, resamples: np.ndarray, against) -> tuple[float, float, float]:
    """Mean, its standard error and degrees of freedom, see `interval`."""
    arms = [np.asarray(x, dtype=float) for x in (per_seed, against) if len(x)]
    spread = [float(np.var(x, ddof=1)) / len(x) if len(x) > 1 else 0.0 for x in arms]
    total = sum(spread) + float(np.var(resamples, ddof=1))
    known = sum(v**2 / (len(x) - 1) for v, x in zip(spread, arms, strict=True) if v > 0)
    freedom = total**2 / known if known > 0 else np.inf
    mean = float(arms[0].mean() - (arms[1].mean() if len(arms) > 1 else 0.0))
    return mean, total**0.5, freedom


def figures(
    score: Score,
    outcomes: list[Outcome],
    unbounded: tuple[str, ...] = (),
    repeats: int = 2000,
    signed: tuple[str, ...] = (),
) -> dict[str, dict]:
    """Every score as {mean, low, high, per_seed}: 95 % intervals over seeds and over resampled test groups.

    Scores lie in [0, 1] but for those named in `unbounded`, which lie above 0, and in `signed`, which may be anything. One that
    is not finite is left out, e.g. an AUROC of one class. Where every resample says the same, as of a perfect score, the
    limits are those of a share of the groups (Clopper and Pearson 1934), and there are none for other scores.
    """
    seeds, resamples = _resample(score, outcomes, repeats)
    groups = len(np.unique(_united(outcomes)[0]))
    result = {}
    for name, values in seeds.items():
        if not np.isfinite(values).all():
            continue
        result[name] = {"mean": float(values.mean()), "per_seed": values.tolist()}
        share = name not in unbounded and name not in signed and 0 <= values.mean() <= 1
        if len(resamples[name]) > 1:
            _, low, high = interval(values, resamples[name])
            if name not in signed:
                low, high = max(0.0, low), high if name in unbounded else min(1.0, high)
            if low < high:
                result[name] |= {"low": low, "high": high}
            elif share:
                result[name] |= dict(zip(("low", "high"), share_limits(float(values.mean()), groups), strict=True))
    return result


def share_limits(share: float, count: int) -> tuple[float, float]:
    """95 % limits of a share of `count` independent cases (Clopper and Pearson 1934): of 20 right of 20, 0.83 to 1."""
    right = share * count
    low = float(stats.beta.ppf(0.025, right, count - right + 1)) if right > 0 else 0.0
    return low, float(stats.beta.ppf(0.975, right + 1, count - right)) if right < count else 1.0


def few_groups(outcomes: list[Outcome]) -> str:
    """What is to be said of a test split with so few groups that a bootstrap over them is too narrow; else nothing."""
    count = len(np.unique(_united(outcomes)[0]))
    if count >= FEW_GROUPS:
        return ""
    return (
        f"the test images are of {count} group{'s'[: count > 1]} (patients, or single images): intervals over fewer than "
        f"{FEW_GROUPS} are too narrow"
    )


def differences(
    score: Score, pairs: list[tuple[list[Outcome], list[Outcome]]], repeats: int = 2000, bound: float = 0.0
) -> dict[str, dict]:
    """Ours minus theirs for each pair of (ours, theirs), each score as {mean, low, high, p}; several pairs: the mean over them.

    Both sides of a pair are resampled alike, so they must have the same test images; several pairs are several datasets, each
    resampled for itself, as chance has it that a case of one is drawn with a case of another. With a `bound` above 0 each score
    has its `equivalence`, too; cross-fitted ones have the difference of each seed, `per_seed`.
    """
    by_dataset: list[dict] = []
    paired = all("fold" in o for ours, theirs in pairs for o in (*ours, *theirs))
    for ours, theirs in pairs:
        if paired and [o["fold"].tolist() for o in ours] != [o["fold"].tolist() for o in theirs]:
            raise ValueError(
                "the two sides of a difference were cross-fitted by other folds or seeds: give both the same"
            )
        # of the images of a dataset alone, so that a difference and the mean that it is part of see the same resamples
        seed = zlib.crc32("\n".join(sorted({str(path) for o in ours for path in o["paths"]})).encode())
        seeds, resamples = _resample(score, [*ours, *theirs], repeats, len(ours), seed)
        by_dataset.append({name: (v[: len(ours)], v[len(ours) :], resamples[name]) for name, v in seeds.items()})
    result: dict[str, dict] = {}
    for name in by_dataset[0]:
        ours, theirs, resamples = zip(*(f[name] for f in by_dataset if name in f), strict=True)
        few = min(len(r) for r in resamples)
        sides = [np.mean([v[: min(map(len, side))] for v in side], axis=0) for side in (ours, theirs)]
        if len(resamples) == len(pairs) and few > 1 and np.isfinite(sides[0]).all() and np.isfinite(sides[1]).all():
            moved = np.mean([r[:few] for r in resamples], axis=0)
            about = (sides[0] - sides[1], moved, ()) if paired else (sides[0], moved, sides[1])
            result[name] = dict(zip(("mean", "low", "high"), interval(*about), strict=True))
            result[name]["p"] = p_value(*about)
            if bound:
                result[name]["equivalence"] = equivalence(*about, bound=bound)
            if paired:
                result[name]["per_seed"] = about[0].tolist()
    return result


def _resample(score: Score, outcomes: list[Outcome], repeats: int, ours: int = 0, seed: int = 0) -> tuple[dict, dict]:
    """Each score of each seed {name: (seeds,)}; and in each resample its mean over them, or over `ours` minus over the rest."""
    groups, places = _united(outcomes)
    counts = bootstrap_counts(groups, repeats, seed)
    single = [score(o, np.ones((1, len(place)))) for o, place in zip(outcomes, places, strict=True)]
    several = [score(o, counts[:, place]) for o, place in zip(outcomes, places, strict=True)]
    seeds = {name: np.array([float(s[name][0]) for s in single]) for name in single[0]}
    resamples = {}
    for name in seeds:
        values = np.array([s[name] for s in several])
        resamples[name] = values[:ours].mean(0) - values[ours:].mean(0) if ours else values.mean(0)
    # a resample without any image of a class cannot say anything of that class, nor of an average over classes
    kept = [np.isfinite(values) for name, values in resamples.items() if np.isfinite(seeds[name]).all()]
    whole = np.all(kept, axis=0) if kept else np.zeros(repeats, bool)
    return seeds, {name: values[whole] for name, values in resamples.items()}


def _united(outcomes: list[Outcome]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The groups of all test images, and where those of each outcome lie among them: all, or of cross-fitted ones its fold's.

    ValueError where two outcomes of the same fold, or two that are of none, were tested on different images.
    """
    of_fold: dict[tuple, Outcome] = {}
    for o in outcomes:
        first = of_fold.setdefault(tuple(o.get("fold", ())), o)
        if not all(np.array_equal(o[name], first[name]) for name in ("paths", "groups")):
            raise ValueError(
                "the seeds or runs were tested on different images, so they cannot be compared: did the data change? "
                "resume=false repeats a run"
            )
    if len(of_fold) == 1:
        return outcomes[0]["groups"], [np.arange(len(o["paths"])) for o in outcomes]
    paths, first_of = np.unique(np.concatenate([o["paths"] for o in of_fold.values()]), return_index=True)
    groups = np.concatenate([o["groups"] for o in of_fold.values()])[first_of]
    return groups, [np.searchsorted(paths, o["paths"]) for o in outcomes]
