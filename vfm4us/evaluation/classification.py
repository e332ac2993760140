"""Figures of a classifier on labelled images."""

import numpy as np


def balanced_accuracy(labels, predictions) -> float:
    """Mean recall over the classes that occur in `labels`."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    return float(np.mean([(predictions[labels == label] == label).mean() for label in np.unique(labels)]))


def weighted_balanced_accuracy(labels: np.ndarray, correct: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean recall over classes under each row of image weights: labels, correct (M,), counts (R, M) -> (R,)."""
    recalls = []
    for label in np.unique(labels):
        weight = counts[:, labels == label]
        with np.errstate(invalid="ignore"):  # a resample may miss a class: its recall is left out of that mean
            recalls.append(weight @ correct[labels == label] / weight.sum(1))
    return np.nanmean(recalls, axis=0)
