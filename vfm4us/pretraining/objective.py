"""The multi-patch objective: patches of one image agree, images of one batch spread out.

EMP-SSL, Tong et al. 2023, arXiv 2304.03977: for a batch of b images with n patches each, `z[p, i]` the unit-norm
projection (d numbers) of patch p of image i and `zbar[i]` their mean over p,

    loss = - similarity_weight * mean_{p,i} cos(z[p,i], zbar[i])  -  coding_rate_weight * mean_p R(z[p])
    R(Z) = 1/2 logdet(I + d / (b eps) Z^T Z),    Z (b, d)                     total coding rate, Yu et al. 2020

The paper writes eps^2 and its released code eps; this is the code's version. A larger R is a wider spread, so it enters
the loss with a minus: a collapsed batch has R = 4.271 at d = 1024, an orthonormal one (b/2) log(1 + d / (0.2 b)).
"""

import contextlib
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vfm4us.runtime.processes import come_to_meeting


def total_coding_rate(z: Tensor, epsilon: float = 0.2) -> Tensor:
    """Total coding rate R of each (b, d) matrix in `z` of shape (..., b, d); returns shape (...,).

    Works on the smaller of the two Gram matrices (det(I + a Z Z^T) = det(I + a Z^T Z)) through a batched Cholesky
    factor, in float32 or wider, with the gradient in closed form: dR/dZ = a (I + a Z Z^T)^-1 Z, a = d / (b eps).

    Raises ValueError for fewer than two dimensions and FloatingPointError where z is not finite.
    """
    if z.ndim < 2:
        raise ValueError(f"total_coding_rate needs z of shape (..., b, d), got {tuple(z.shape)}")
    with torch.autocast(z.device.type, enabled=False):
        return _TotalCodingRate.apply(z if z.dtype == torch.float64 else z.float(), epsilon)


@contextlib.contextmanager
def full_precision():
    """No TF32 inside: its 10 bits are enough for a network, not for a determinant."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class _TotalCodingRate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, epsilon: float) -> Tensor:
        b, d = z.shape[-2:]
        a = d / (b * epsilon)
        with full_precision():
            gram = z @ z.mT if b < d else z.mT @ z
        gram = gram.mul_(a)
        gram.diagonal(dim1=-2, dim2=-1).add_(1.0)
        factor, info = torch.linalg.cholesky_ex(gram)
        ctx.save_for_backward(z, factor)
        ctx.a, ctx.rows = a, b < d
        rate = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # 1/2 logdet = sum of the factor's log diagonal
        return torch.where(
            info == 0, rate, torch.nan
        )  # it fails only where z is not finite; to look would wait for a GPU

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor):
        z, factor = ctx.saved_tensors
        with full_precision():
            if factor.is_cuda:  # there `cholesky_inverse` goes through the batch one by one
                identity = torch.eye(factor.shape[-1], device=factor.device, dtype=factor.dtype)
                half = torch.linalg.solve_triangular(factor, identity, upper=False)
                inverse = half.mT @ half
            else:
                inverse = torch.cholesky_inverse(factor)
            gradient = inverse @ z if ctx.rows else z @ inverse
        return gradient.mul_(ctx.a).mul_(upstream[..., None, None]), None


def patch_similarity(z: Tensor, center: Tensor | None = None) -> Tensor:
    """Mean cosine between each patch embedding and its image's mean embedding: S, a scalar in [-1, 1].

    `z` is (n, b, d). `center` (b, d) replaces the mean over the patches (the adversary measures against clean patches).
    Nothing is detached; the mean is not renormalised, since a cosine does not see its length.
    """
    if z.ndim != 3:
        raise ValueError(f"patch_similarity needs z of shape (n, b, d), got {tuple(z.shape)}")
    z = z if z.dtype == torch.float64 else z.float()
    center = z.mean(0) if center is None else center.to(z.dtype)
    return F.cosine_similarity(z, center.expand_as(z), dim=-1).mean()


class Terms(NamedTuple):
    """The loss and its two parts, each a scalar tensor."""

    loss: Tensor
    similarity: Tensor
    coding_rate: Tensor


class MultiPatchLoss(nn.Module):
    """`-similarity_weight * S - coding_rate_weight * mean_p R(z[p])` of z (n, b, d), over all processes' images.

    Under torch.distributed each process passes its own (n, b / k, d); every process then holds the loss of the global
    batch, and the mean of the processes' parameter gradients is the gradient that one process would have computed.
    """

    def __init__(self, similarity_weight: float = 200.0, coding_rate_weight: float = 1.0, epsilon: float = 0.2):
        super().__init__()
        self.similarity_weight, self.coding_rate_weight, self.epsilon = similarity_weight, coding_rate_weight, epsilon

    def forward(self, z: Tensor, center: Tensor | None = None) -> Terms:
        """`center` (b / k, d): compare with these instead of the patches' own mean (see `patch_similarity`)."""
        z = gather_images(z)
        center = None if center is None else gather_images(center[None])[0]
        similarity = patch_similarity(z, center)
        coding_rate = total_coding_rate(z, self.epsilon).mean()
        loss = -self.similarity_weight * similarity - self.coding_rate_weight * coding_rate
        return Terms(loss, similarity, coding_rate)


def gather_images(z: Tensor) -> Tensor:
    """(n, b / k, d) of each of k processes -> (n, b, d) of all, in rank order, differentiable; the identity for one."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return z
    return _Gather.apply(z)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.local = z.shape[1]
        parts = [torch.empty_like(z, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        come_to_meeting()
        dist.all_gather(parts, z.contiguous())
        return torch.cat(parts, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor):
        # Every process computes the same global loss, so its own slice is the whole gradient of that slice. Parameter
        # gradients are then averaged over the k processes; times k makes the average the sum.
        start = dist.get_rank() * ctx.local
        return upstream[:, start : start + ctx.local] * dist.get_world_size()
