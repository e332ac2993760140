"""What turns an encoder's vectors into classes: three trained layers, logistic regression as a layer, votes of neighbours."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm4us.evaluation.representation import logistic_regression, neighbour_votes
from vfm4us.tasks.sections import HeadConfig


class NeighbourHead(nn.Module):
    """Log of the weighted votes of the k nearest training images by cosine, T = 0.07 (Wu et al. 2018, arXiv 1805.01978)."""

    def __init__(self, reference: Tensor, codes: Tensor, classes: int, k: int):
        super().__init__()
        self.classes, self.k = classes, k
        self.register_buffer("reference", F.normalize(reference, dim=1))
        self.register_buffer("codes", codes)

    def forward(self, features: Tensor) -> Tensor:
        votes = neighbour_votes(self.reference, self.codes, features, self.classes, self.k).to(features.dtype)
        return ((votes + 1e-3) / (votes + 1e-3).sum(1, keepdim=True)).log()


def make_head(width: int, classes: int, config: HeadConfig) -> nn.Sequential:
    """Two hidden layers, each with batch norm, ReLU and dropout, then a linear one: vectors (N, width) -> logits (N, classes)."""
    layers: list[nn.Module] = []
    for size in (width, config.hidden):
        layers += [
            nn.Linear(size, config.hidden),
            nn.BatchNorm1d(config.hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
        ]
    return nn.Sequential(*layers, nn.Linear(config.hidden, classes))


def linear_head(features: Tensor, codes: np.ndarray, classes: int, strength: float) -> nn.Linear:
    """Logistic regression (balanced, C = `strength`) on standardised features, as a layer on the features themselves.

    A class without a training image gets a bias of -30.
    """
    scaler, model = logistic_regression(features, codes, strength)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    head = nn.Linear(features.shape[1], classes)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(-30.0)
        head.weight[model.classes_] = torch.from_numpy(weight / scaler.scale_).float()
        head.bias[model.classes_] = torch.from_numpy(bias - (weight / scaler.scale_) @ scaler.mean_).float()
    return head
