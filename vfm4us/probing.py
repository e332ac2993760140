"""What an encoder is worth without training it: k-NN and linear probe on held-out images, with intervals."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from vfm4us import run
from vfm4us.data import splits as splitting
from vfm4us.data.store import PreparedDataset
from vfm4us.encoders import Encoder
from vfm4us.pretraining.monitor import balanced_accuracy, linear_probe, weighted_knn

METHODS = ("knn", "linear")


@dataclass
class Predictions:
    """What one encoder says of one dataset's held-out images."""

    rows: np.ndarray  # (M,) places in the dataset
    labels: np.ndarray  # (M,) true
    predicted: dict[str, np.ndarray]  # method -> (M,)


def shape_baseline(dataset: PreparedDataset, splits=("test",)) -> float:
    """Balanced accuracy of a linear probe that sees each image's native height, width and aspect ratio, and no pixel.

    Where it is well above chance, labels leak through the way images were exported.
    """
    size = np.array([[r.height, r.width, r.height / r.width] for r in dataset.records], dtype=np.float32)
    train, held_out, labels = dataset.indices("train"), rows_of(dataset, splits), np.asarray(dataset.labels)
    predicted = linear_probe(
        torch.from_numpy(size[train]), labels[train], torch.from_numpy(size[held_out]), strength=1.0
    )
    return balanced_accuracy(labels[held_out], predicted)


def rows_of(dataset: PreparedDataset, splits) -> np.ndarray:
    """The images of several splits, in order."""
    return np.flatnonzero(np.isin(dataset.splits, splits))


def embed_dataset(
    encoder: Encoder, dataset: PreparedDataset, rows: np.ndarray, patches: int = 0, precision: str = "float32"
) -> Tensor:
    """Vectors (len(rows), width) of some images of a prepared dataset, float32 whatever the network's `precision`."""
    with run.autocast(next(encoder.parameters()).device, precision):
        return encoder.embed(torch.from_numpy(dataset.images[rows]), patches=patches, valid=dataset.valid[rows])


class CentralSquares:
    """A prepared dataset whose images are the central square of their valid part, at the packed size: shape tells nothing."""

    def __init__(self, dataset: PreparedDataset):
        self.dataset, size = dataset, dataset.size
        self.images = np.empty_like(dataset.images)
        for i, (top, left, height, width) in enumerate(dataset.valid):
            side = min(height, width)
            y, x = top + (height - side) // 2, left + (width - side) // 2
            square = Image.fromarray(np.asarray(dataset.images[i][y : y + side, x : x + side]))
            self.images[i] = np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
        self.valid = np.tile(np.array([[0, 0, size, size]], dtype=np.int32), (len(dataset), 1))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name):
        return getattr(self.dataset, name)


def probe(
    encoder: Encoder,
    dataset: PreparedDataset,
    splits=("test",),
    patches: int = 0,
    k: int = 20,
    strength: float = 0.01,
    precision: str = "float32",
) -> Predictions:
    """Predict the labels of the images of `splits` from the train split's, by weighted k-NN and by a linear probe."""
    train, held_out = dataset.indices("train"), rows_of(dataset, splits)
    if not len(train) or not len(held_out):
        raise ValueError(f"{dataset.folder}: needs images in train and in {' or '.join(splits)} to probe an encoder")
    labels = np.asarray(dataset.labels)
    reference, queries = (embed_dataset(encoder, dataset, rows, patches, precision) for rows in (train, held_out))
    predicted = {
        "knn": weighted_knn(reference, labels[train], queries, k),
        "linear": linear_probe(reference, labels[train], queries, strength),
    }
    return Predictions(held_out, labels[held_out], predicted)


def cross_validate(
    encoder: Encoder,
    dataset: PreparedDataset,
    patches: int = 0,
    folds: int = 5,
    limit: int = 0,
    repeats: int = 1,
    precision: str = "float32",
) -> dict[str, float]:
    """Balanced accuracy of each probe over the train and val images, by cross-validation that never divides a group.

    For choosing settings: the test split is not looked at. `limit` takes a fixed random choice of that many images, `repeats`
    averages over other divisions into folds.
    """
    rows = rows_of(dataset, ["train", "val"])
    if limit and limit < len(rows):
        rows = np.sort(np.random.default_rng(0).choice(rows, limit, replace=False))
    vectors, labels = embed_dataset(encoder, dataset, rows, patches, precision), np.asarray(dataset.labels)[rows]
    scores: dict[str, list[float]] = {method: [] for method in METHODS}
    for seed in range(repeats):
        predicted = {method: np.empty_like(labels) for method in METHODS}
        place = splitting.folds(dataset.groups[rows], labels, folds, seed)
        for train, held_out in ((place != fold, place == fold) for fold in range(folds)):
            predicted["knn"][held_out] = weighted_knn(vectors[train], labels[train], vectors[held_out])
            predicted["linear"][held_out] = linear_probe(vectors[train], labels[train], vectors[held_out])
        for method, p in predicted.items():
            scores[method].append(balanced_accuracy(labels, p))
    return {method: float(np.mean(values)) for method, values in scores.items()}


def bootstrap_counts(groups: np.ndarray, repeats: int = 2000, seed: int = 0) -> np.ndarray:
    """How often each image occurs in each resample of whole groups: (repeats, M) integers."""
    names, codes = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=repeats)
    return counts[:, codes]


def weighted_balanced_accuracy(labels: np.ndarray, correct: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean recall over classes under each row of image weights: labels, correct (M,), counts (R, M) -> (R,)."""
    recalls = []
    for label in np.unique(labels):
        weight = counts[:, labels == label]
        with np.errstate(invalid="ignore"):  # a resample may miss a class: its recall is left out of that mean
            recalls.append(weight @ correct[labels == label] / weight.sum(1))
    return np.nanmean(recalls, axis=0)


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


def _standard_error(per_seed: np.ndarray, resamples: np.ndarray, against) -> tuple[float, float, float]:
    """Mean, its standard error and degrees of freedom, see `interval`."""
    arms = [np.asarray(x, dtype=float) for x in (per_seed, against) if len(x)]
    spread = [float(np.var(x, ddof=1)) / len(x) if len(x) > 1 else 0.0 for x in arms]
    total = sum(spread) + float(np.var(resamples, ddof=1))
    known = sum(v**2 / (len(x) - 1) for v, x in zip(spread, arms, strict=True) if v > 0)
    freedom = total**2 / known if known > 0 else np.inf
    mean = float(arms[0].mean() - (arms[1].mean() if len(arms) > 1 else 0.0))
    return mean, total**0.5, freedom
