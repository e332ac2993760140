"""Is the embedding worth anything? Weighted k-NN, linear probe and effective rank on held-out images, while training."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor


def weighted_knn(
    reference: Tensor, reference_labels, queries: Tensor, k: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """Predicted label of each query: votes of its k nearest references by cosine, weighted by exp(cos / T).

    reference (N, d), reference_labels (N,), queries (M, d); returns (M,). Wu et al. 2018, arXiv 1805.01978, section 3.4.
    """
    classes, codes = np.unique(np.asarray(reference_labels), return_inverse=True)
    k = min(k, len(reference))
    similarity = F.normalize(queries.float(), dim=1) @ F.normalize(reference.float(), dim=1).T
    nearest = similarity.topk(k, dim=1)
    weight = (nearest.values / temperature).exp()
    votes = torch.zeros(len(queries), len(classes))
    votes.scatter_add_(1, torch.as_tensor(codes)[nearest.indices], weight)
    return classes[votes.argmax(1).numpy()]


def linear_probe(train: Tensor, train_labels, test: Tensor, strength: float = 0.01) -> np.ndarray:
    """Predicted labels (M,) of `test` (M, d) by logistic regression (C = `strength`, balanced) on standardised `train`."""
    scaler = StandardScaler().fit(train.numpy())
    model = LogisticRegression(C=strength, max_iter=2000, class_weight="balanced")
    model.fit(scaler.transform(train.numpy()), np.asarray(train_labels))
    return model.predict(scaler.transform(test.numpy()))


def effective_rank(z: Tensor) -> float:
    """RankMe: exp of the entropy of the singular values of z (N, d), normalised to sum 1; 1 ... min(N, d).

    Garrido et al. 2023, arXiv 2210.02885, equation 1. A collapsed embedding reads 1.
    """
    values = torch.linalg.svdvals(z.double())
    p = values / values.sum().clamp(min=1e-12) + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def balanced_accuracy(labels, predictions) -> float:
    """Mean recall over the classes that occur in `labels`."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    return float(np.mean([(predictions[labels == label] == label).mean() for label in np.unique(labels)]))


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
