"""What an encoder is worth without training it: weighted k-NN, linear probe and effective rank of its vectors."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from vfm4us.data.dataset import PreparedDataset
from vfm4us.encoders import Encoder
from vfm4us.evaluation import statistics
from vfm4us.evaluation.classification import balanced_accuracy, scores
from vfm4us.runtime.device import autocast

MEASURES = ("balanced_accuracy", "auroc")


# ---- of vectors --------------------------------------------------------------------------------------------------------


def neighbour_votes(
    reference: Tensor, codes: Tensor, queries: Tensor, classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Votes (M, classes), float64, of each query's k nearest references by cosine, weighted by exp((cos - largest cos) / T).

    reference (N, d) of class numbers codes (N,), queries (M, d). Wu et al. 2018, arXiv 1805.01978, section 3.4.
    """
    similarity = F.normalize(queries.float(), dim=1) @ F.normalize(reference.float(), dim=1).T
    nearest = similarity.topk(min(k, len(reference)), dim=1)
    weight = ((nearest.values - nearest.values[:, :1]).double() / temperature).exp()
    return weight.new_zeros(len(queries), classes).scatter_add_(1, codes[nearest.indices], weight)


def knn_votes(
    reference: Tensor, codes: np.ndarray, queries: Tensor, classes: int, k: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """The share (M, classes) of `neighbour_votes` that each class has."""
    votes = neighbour_votes(reference, torch.as_tensor(codes), queries, classes, k, temperature)
    return (votes / votes.sum(1, keepdim=True)).numpy()


def weighted_knn(
    reference: Tensor, reference_labels, queries: Tensor, k: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """Predicted label (M,) of each query: the one with most votes of `knn_votes`; reference_labels (N,) of any type."""
    classes, codes = np.unique(np.asarray(reference_labels), return_inverse=True)
    return classes[knn_votes(reference, codes, queries, len(classes), k, temperature).argmax(1)]


def logistic_regression(features: Tensor, labels, strength: float) -> tuple[StandardScaler, LogisticRegression]:
    """The scaler of features (N, d), and logistic regression (C = `strength`, balanced) on what it makes of them."""
    scaler = StandardScaler().fit(features.numpy())
    model = LogisticRegression(C=strength, max_iter=2000, class_weight="balanced")
    return scaler, model.fit(scaler.transform(features.numpy()), np.asarray(labels))


def linear_probabilities(
    train: Tensor, codes: np.ndarray, test: Tensor, classes: int, strength: float = 0.01
) -> np.ndarray:
    """Probabilities (M, classes) of `test` (M, d) by `logistic_regression` on `train` (N, d) of class numbers codes (N,)."""
    scaler, model = logistic_regression(train, codes, strength)
    result = np.zeros((len(test), classes))
    result[:, model.classes_] = model.predict_proba(scaler.transform(test.numpy()))
    return result


def effective_rank(z: Tensor) -> float:
    """RankMe: exp of the entropy of the singular values of z (N, d), normalised to sum 1; 1 ... min(N, d).

    Garrido et al. 2023, arXiv 2210.02885, equation 1. A collapsed embedding reads 1.
    """
    values = torch.linalg.svdvals(z.double())
    p = values / values.sum().clamp(min=1e-12) + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def collapse_warning(embeddings: Tensor, said: str, advice: str) -> str:
    """A warning in plain words when the network gives nearly the same vector for every image, else an empty string.

    embeddings: (N, d) of N different held-out images. said: the training objective's terms, in words. advice: a remedy.
    """
    rank = effective_rank(embeddings - embeddings.mean(0))
    # RankMe sees the shape of the cloud; its size beside the vectors' length tells whether there is a cloud at all.
    spread = float(embeddings.std(0).norm() / embeddings.norm(dim=1).mean().clamp(min=1e-12))
    if spread > 0.02 and rank > 2:
        return ""
    return (
        f"the embedding is collapsing: images differ by {100 * spread:.2f} % of their vectors' length, in {rank:.1f} "
        f"directions ({said}). {advice}"
    )


def measure(reference: Tensor, reference_labels, held_out: Tensor, held_out_labels) -> dict[str, float]:
    """Effective rank of the held-out embeddings, and the k-NN balanced accuracy where there are labels to compare.

    k-NN needs two classes on each side and is left out otherwise.
    """
    result = {"effective_rank": effective_rank(held_out)}
    if len(set(reference_labels)) > 1 and len(set(held_out_labels)) > 1:
        predicted = weighted_knn(reference, reference_labels, held_out)
        result["knn"] = balanced_accuracy(held_out_labels, predicted)
    return result


# ---- of an encoder on a dataset ----------------------------------------------------------------------------------------


def file_shapes(dataset: PreparedDataset, rows: np.ndarray) -> Tensor:
    """Native height, width and aspect ratio (len(rows), 3) of some images, and no pixel.

    Where a probe of these is well above chance, labels leak through the way images were exported.
    """
    records = [dataset.records[i] for i in rows]
    return torch.tensor([[r.height, r.width, r.height / r.width] for r in records], dtype=torch.float32)


def embed_dataset(
    encoder: Encoder, dataset: PreparedDataset, rows: np.ndarray, patches: int = 0, precision: str = "float32"
) -> Tensor:
    """Vectors (len(rows), width) of some images of a prepared dataset, float32 whatever the network's `precision`."""
    with autocast(next(encoder.parameters()).device, precision):
        return encoder.embed(
            torch.from_numpy(dataset.images[rows])[:, None], patches=patches, valid=dataset.valid[rows]
        )


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
    dataset,
    fitted: np.ndarray,
    tested: np.ndarray,
    codes: np.ndarray,
    classes: int,
    patches: int = 0,
    precision: str = "float32",
) -> dict[str, np.ndarray]:
    """{method: probabilities (len(tested), classes)} of images `tested`, by probes that saw images `fitted`.

    codes (N,) are the class numbers of all images of the dataset. patches: 0, the whole image; n, the mean of n patches.
    """
    reference, queries = (embed_dataset(encoder, dataset, rows, patches, precision) for rows in (fitted, tested))
    return {
        "knn": knn_votes(reference, codes[fitted], queries, classes),
        "linear": linear_probabilities(reference, codes[fitted], queries, classes),
    }


# ---- figures -----------------------------------------------------------------------------------------------------------


def outcome_scores(outcome: statistics.Outcome, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Balanced accuracy and macro AUROC (R,) of each embedding and probe, `whole linear auroc`.

    Where a cross-fitted outcome holds images of the test split as well, these alone again: `test whole linear auroc`.
    """
    result = {}
    tested = outcome["splits"] == "test"
    scopes = {"": counts} | ({"test ": counts * tested} if tested.any() and not tested.all() else {})
    for scope, weights in scopes.items():
        for kind in outcome["kinds"].tolist():
            measured = scores(outcome["labels"], outcome[kind], weights)
            result |= {f"{scope}{kind} {measure}": measured[measure] for measure in MEASURES}
    return result


def evaluate(outcomes: list[statistics.Outcome]) -> dict[str, dict]:
    """Every figure of several seeds, with 95 % intervals over seeds and groups."""
    return statistics.figures(outcome_scores, outcomes)
