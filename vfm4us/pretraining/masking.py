"""Masking: square cells of a patch are set to the patch's mean grey, so that the network must do without them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vfm4us.augment import moved
from vfm4us.pretraining.sections import MaskingConfig


def choose_cells(
    patches: Tensor,
    config: MaskingConfig,
    generator: torch.Generator | None = None,
    gradient: Tensor | None = None,
    scores: Tensor | None = None,
) -> Tensor:
    """Masked cells as (N, 1, P, P) bool, exactly `round(ratio * cells)` of each patch's cells.

    `random` ranks cells by uniform `scores` (N, rows, columns), drawn from `generator` if not given; `adversarial` by the
    mean absolute `gradient` (N, 1, P, P) inside a cell, which the adversary has computed already.
    """
    n, _, height, width = patches.shape
    rows, columns = -(-height // config.cell), -(-width // config.cell)
    if config.strategy == "adversarial":
        if gradient is None:
            raise ValueError(
                "emp_ssl.masking.strategy=adversarial needs the adversary: set emp_ssl.adversary.weight above 0"
            )
        pad = (0, columns * config.cell - width, 0, rows * config.cell - height)
        scores = F.avg_pool2d(F.pad(gradient.abs().float(), pad), config.cell)[:, 0]
    elif scores is None:
        scores = moved(torch.rand((n, rows, columns), generator=generator), patches.device)
    count = round(config.ratio * rows * columns)
    chosen = torch.zeros(n, rows * columns, dtype=torch.bool, device=patches.device)
    chosen.scatter_(1, scores.flatten(1).topk(count, dim=1).indices, True)
    cells = chosen.view(n, 1, rows, columns)
    return cells.repeat_interleave(config.cell, 2).repeat_interleave(config.cell, 3)[..., :height, :width]


def fill_cells(patches: Tensor, cells: Tensor) -> Tensor:
    """`patches` (N, C, P, P) with the chosen `cells` (N, 1, P, P) replaced by each patch's mean, per channel."""
    return torch.where(cells, patches.mean((2, 3), keepdim=True), patches)
