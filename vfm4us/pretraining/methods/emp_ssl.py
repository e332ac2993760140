"""The method of this project: many patches per image that agree, images that spread out, an adversary and masks.

`compute_loss` is its objective, made of `objective.py`, `adversary.py`
and `masking.py`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm4us.augment import PatchSampler, moved
from vfm4us.config import to_dict
from vfm4us.encoders import Encoder
from vfm4us.pretraining.adversary import frozen_statistics, perturb, random_start
from vfm4us.pretraining.masking import choose_cells, fill_cells
from vfm4us.pretraining.method import Method
from vfm4us.pretraining.objective import MultiPatchLoss
from vfm4us.pretraining.pictures import Picture, Sheet
from vfm4us.pretraining.sections import EmpSSLConfig, OptimizerConfig, ProjectorConfig


class Network(nn.Module):
    """Encoder and projector: patches (N, 1, P, P) in [0, 1] -> unit-norm embeddings (N, d)."""

    def __init__(self, encoder: Encoder, projector: ProjectorConfig):
        super().__init__()
        self.base_encoder = encoder
        self.projector = build_projector(encoder.width, projector)

    def forward(self, patches: Tensor) -> Tensor:
        return F.normalize(self.projector(self.base_encoder(patches)).float(), dim=-1)


def build_projector(width: int, config: ProjectorConfig) -> nn.Sequential:
    """Three linear layers with batch norm and ReLU between them, (N, width) -> (N, config.out)."""
    hidden = config.hidden
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, config.out),
    )


def lars(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """LARS on matrices and kernels; plain momentum without decay on biases and batch norm, at a lower rate.

    LARS bounds a kernel's relative step by trust * rate. Vectors have no such bound: at the rates that suit kernels, 1 and more,
    batch-norm scales of 1 soon lay between -6 and 11. Barlow Twins (arXiv 2103.03230, section 2.2) has them 40 times
    slower for that reason.
    """
    from timm.optim import Lars  # it brings torchvision, which --help has no need of

    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "always_adapt": True, "scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "scale": config.vector_rate},
    ]
    return Lars(groups, lr=0.0, momentum=config.momentum, trust_coeff=config.trust)


@dataclass
class Draws:
    """The random numbers of one step that belong to the attack and the masks, for this process's images."""

    start: Tensor | None  # (n * b, 1, P, P) in [-1, 1]
    scores: Tensor | None  # (n * b, rows, columns)

    @classmethod
    def of(cls, config: EmpSSLConfig, generator: torch.Generator, b: int, device, rank=0, world_size=1) -> "Draws":
        """Drawn for the global batch and cut to this process's part, as the patches are."""
        n, size, mine = config.patches.count, config.patches.size, slice(rank * b, (rank + 1) * b)
        start = scores = None
        if config.adversary.weight:
            start = random_start(n, mine, b * world_size, size, generator, device)
        if config.masking.strategy == "random":
            rows = -(-size // config.masking.cell)
            scores = torch.rand((n, b * world_size, rows, rows), generator=generator)[:, mine].flatten(0, 1)
            scores = moved(scores, device)
        return cls(start, scores)


def harden(network: nn.Module, patches: Tensor, center: Tensor, config: EmpSSLConfig, draws: Draws):
    """Attacked and masked patches: (N, 1, P, P) of images with clean mean embeddings `center` (N, d).

    Returns what the network is to be shown, the attacked patches without masks, and the masked cells or None.
    """
    attacked, gradient, cells = patches, None, None
    if config.adversary.weight:
        attack = perturb(network, patches, center, config.adversary, start=draws.start)
        attacked, gradient = patches + attack.delta, attack.gradient
    shown = attacked
    if config.masking.strategy != "none":
        cells = choose_cells(attacked, config.masking, gradient=gradient, scores=draws.scores)
        shown = fill_cells(attacked, cells)
    return shown, attacked, cells


def compute_loss(
    network: nn.Module, objective: MultiPatchLoss, patches: Tensor, config: EmpSSLConfig, draws: Draws
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of patches (n, b, 1, P, P), and its terms as detached scalars.

    EMP-SSL on the patches, plus `adversary.weight` times the same on the attacked ones, compared with the clean means:
        loss = EMP(x) + weight * [200 (1 - S(x + delta; zbar)) - R(x + delta)]
    Weight 0 is EMP-SSL exactly, on masked patches if there is masking.
    """
    n, b = patches.shape[:2]
    flat = patches.flatten(0, 1)
    if not config.adversary.weight:
        shown, _, _ = harden(network, flat, flat, config, draws)
        terms = objective(network(shown).view(n, b, -1))
        return terms.loss, {"similarity": terms.similarity.detach(), "coding_rate": terms.coding_rate.detach()}

    z = network(flat).view(n, b, -1)
    center = z.mean(0)  # (b, d), not detached: the clean patches move towards the attacked ones too
    clean = objective(z)
    with frozen_statistics(network):  # running statistics describe clean patches alone
        shown, _, _ = harden(network, flat, center.detach().repeat(n, 1), config, draws)
        hard = objective(network(shown).view(n, b, -1), center)
    # The constant makes the term 0 instead of -200 where the attack achieves nothing.
    loss = clean.loss + config.adversary.weight * (hard.loss + objective.similarity_weight)
    values = {
        "similarity": clean.similarity,
        "coding_rate": clean.coding_rate,
        "adversarial_similarity": hard.similarity,
        "adversarial_coding_rate": hard.coding_rate,
    }
    return loss, {k: v.detach() for k, v in values.items()}


class EmpSSL(Method):
    """EMP-SSL (Tong et al. 2023, arXiv 2304.03977) with an adversary and masks."""

    rate_images = 100
    pictured = 4
    bar: ClassVar = {"S": ("similarity", ".3f"), "R": ("coding_rate", ".1f")}
    panels = (
        ("patch similarity", {"clean": "similarity", "adversarial": "adversarial_similarity"}, None),
        ("coding rate", {"clean": "coding_rate", "adversarial": "adversarial_coding_rate"}, None),
    )
    advice = "Lower emp_ssl.objective.similarity_weight or the learning rate, or raise batch_size."

    def __init__(self, encoder: Encoder, config: EmpSSLConfig, batch_size: int):
        self.config, self.views = config, config.patches.count
        self.network = self.forward = Network(encoder, config.projector)
        self.objective = MultiPatchLoss(**to_dict(config.objective))
        self.sampler = PatchSampler(config.patches)

    def new_optimizer(self) -> torch.optim.Optimizer:
        return lars(self.network, self.config.optimizer)

    def renew(self) -> None:
        """A new projector."""
        new = build_projector(self.network.base_encoder.width, self.config.projector)
        self.network.projector.load_state_dict(new.state_dict())

    def loss(
        self, images: Tensor, valid: Tensor, draw: torch.Generator, rank: int = 0, world_size: int = 1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        patches = self.sampler(images, valid, draw, rank, world_size)
        draws = Draws.of(self.config, draw, len(images), images.device, rank, world_size)
        return compute_loss(self.forward, self.objective, patches, self.config, draws)

    def said(self, values: dict[str, float]) -> str:
        return f"patch similarity {values['similarity']:.3f}, coding rate {values['coding_rate']:.2f}"

    def picture(self, images: Tensor, valid: Tensor, draw: torch.Generator) -> Picture:
        """Patches cut, attacked and masked as in training."""
        config, device = self.config, next(self.network.parameters()).device
        patches = self.sampler(images.to(device), valid, draw)
        draws, (n, b) = Draws.of(config, draw, len(images), device), patches.shape[:2]
        flat = patches.flatten(0, 1)
        with torch.no_grad():
            center = self.network(flat).view(n, b, -1).mean(0).repeat(n, 1)
        _, attacked, cells = harden(self.network, flat, center, config, draws)
        attack = config.adversary.method if config.adversary.weight else "off"
        return Sheet(
            images,
            patches,
            attacked.view_as(patches) if config.adversary.weight else None,
            None if cells is None else cells.view_as(patches),
            config.adversary.epsilon,
            f"adversary {attack}, masking {config.masking.strategy}",
        )


METHOD = EmpSSL
