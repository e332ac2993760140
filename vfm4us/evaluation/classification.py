"""Figures of a classifier on labelled images: scores, calibration, recall of each class, with intervals."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn import metrics as sk
from torch import Tensor

from vfm4us.evaluation import statistics

FEWEST_TO_CALIBRATE = 50  # validation images
SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")


def balanced_accuracy(labels, predictions) -> float:
    """Mean recall over the classes that occur in `labels`."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    return float(np.mean([(predictions[labels == label] == label).mean() for label in np.unique(labels)]))


def scores(labels: np.ndarray, probabilities: np.ndarray, counts: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Accuracy, balanced accuracy, macro-F1 and macro one-vs-rest AUROC, each (R,), of (N,) codes and (N, C) probabilities.

    counts (R, N) says how often each image occurs in each of R resamples; by default once, in one. Averages go over the
    classes that occur in `labels`; AUROC needs two of them, all in the resample, and is NaN otherwise. Equal to
    scikit-learn's with sample_weight, and a hundred times as fast for many resamples.
    """
    weight = np.ones((1, len(labels))) if counts is None else counts.astype(np.float64)
    present, predicted = np.unique(labels), probabilities.argmax(1)
    total = weight.sum(1)
    right = weight * (labels == predicted)
    with np.errstate(invalid="ignore", divide="ignore"):
        true = np.stack([weight[:, labels == c].sum(1) for c in present])  # (classes, R)
        hit = np.stack([right[:, labels == c].sum(1) for c in present])
        called = np.stack([weight[:, predicted == c].sum(1) for c in present])
        f1 = np.where(true + called > 0, 2 * hit / np.maximum(true + called, 1e-12), 0.0)
        area, whole = np.full(len(weight), np.nan), (true > 0).all(0)  # a pair needs an image of each side
        if len(present) > 1 and whole.any():
            area[whole] = np.mean([_area(labels == c, probabilities[:, c], weight[whole]) for c in present], axis=0)
        return {
            "accuracy": right.sum(1) / total,
            "balanced_accuracy": (hit / true).mean(0),
            "macro_f1": f1.mean(0),
            "auroc": area,
        }


def _area(positive: np.ndarray, score: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Area under the ROC curve (R,): the weighted share of pairs in which the positive scores higher, ties counting half."""
    order = np.argsort(score, kind="stable")
    _, first = np.unique(score[order], return_index=True)  # images of one score together
    up = np.add.reduceat(weight[:, order] * positive[order], first, axis=1)
    down = np.add.reduceat(weight[:, order] * ~positive[order], first, axis=1)
    below = np.cumsum(down, axis=1) - down
    return (up * (below + down / 2)).sum(1) / (up.sum(1) * down.sum(1))


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equally wide bins of confidence (Guo et al. 2017, arXiv 1706.04599)."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(right[place == b].mean() - confidence[place == b].mean()) * (place == b).mean() for b in np.unique(place)
    ]
    return float(np.sum(gaps))


def calibrated_error(probabilities: np.ndarray, repeats: int = 200, bins: int = 15) -> float:
    """What `expected_calibration_error` shows on average, on as many images, where the probabilities (N, C) are exactly right.

    Each bin's accuracy is a mean over few images, so the estimate is never 0: on 193 images it is about 0.08. Labels are drawn
    from the probabilities themselves.
    """
    rng, steps = np.random.default_rng(0), probabilities.cumsum(1)
    drawn = [(steps < rng.random((len(steps), 1)) * steps[:, -1:]).sum(1) for _ in range(repeats)]
    return float(np.mean([expected_calibration_error(labels, probabilities, bins) for labels in drawn]))


def fit_temperature(labels: np.ndarray, logits: Tensor) -> float:
    """The temperature, from 0.05 to 20, with the least cross-entropy on these (validation) images; 1 if it is hardly less.

    A temperature fitted to 100 images varies by some 15 % even where 1 is right, and then does harm: it must gain more than a
    likelihood-ratio test at 5 % asks of one parameter (twice the log-likelihood, 3.84). Fewer than `FEWEST_TO_CALIBRATE` images,
    which a classifier may separate by chance, give 1.
    """
    if len(labels) < FEWEST_TO_CALIBRATE:
        return 1.0
    target = torch.from_numpy(np.asarray(labels))

    def entropy(log_t: float) -> float:
        return float(F.cross_entropy(logits.double() / np.exp(log_t), target))

    minimum = minimize_scalar(entropy, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(minimum.x)) if 2 * len(target) * (entropy(0.0) - minimum.fun) > 3.84 else 1.0


def outcome_scores(outcome: statistics.Outcome, counts: np.ndarray) -> dict[str, np.ndarray]:
    """`scores` of what one seed's model said of the test images."""
    return scores(outcome["labels"], outcome["probabilities"], counts)


def evaluate(outcomes: list[statistics.Outcome]) -> dict[str, dict]:
    """Every figure of several seeds on the same images, the scores with 95 % intervals over seeds and groups.

    Those named val_ are of the validation images: for choosing between settings, since the test split is not for that; the
    epoch or strength was chosen on the same images, so they flatter.
    """
    result = statistics.figures(outcome_scores, outcomes)
    classes = outcomes[0]["classes"].tolist()

    def each(values) -> dict:
        return {"mean": float(np.mean(values)), "per_seed": [float(v) for v in values]}

    for kind, after in (("probabilities", ""), ("uncalibrated", " before temperature")):
        if all(kind in o for o in outcomes):
            result["ece" + after] = each([expected_calibration_error(o["labels"], o[kind]) for o in outcomes])
            sure = [np.log(o[kind][np.arange(len(o["labels"])), o["labels"]].clip(1e-12)) for o in outcomes]
            result["cross_entropy" + after] = each([-s.mean() for s in sure])
    result["ece if calibrated"] = each([calibrated_error(o["probabilities"]) for o in outcomes])
    for code in np.unique(np.concatenate([o["labels"] for o in outcomes])):
        right = [(o["probabilities"].argmax(1) == code)[o["labels"] == code] for o in outcomes]
        if all(map(len, right)):  # a fold may hold none of a class
            result[f"recall {classes[code]}"] = each([r.mean() for r in right])
    if all("val_labels" in o for o in outcomes):
        chosen = [scores(o["val_labels"], o["val_probabilities"]) for o in outcomes]
        for name in SCORES:
            if all(np.isfinite(c[name][0]) for c in chosen):
                result[f"val_{name}"] = each([c[name][0] for c in chosen])
    confusion = sum(
        sk.confusion_matrix(o["labels"], o["probabilities"].argmax(1), labels=range(len(classes))) for o in outcomes
    )
    result["confusion"] = {"classes": classes, "rows_true_columns_predicted": confusion.tolist()}
    return result
