"""The loss: known values, gradients, signs, and the same answer from one process and from two."""

import math

import pytest
import torch
import torch.nn.functional as F

from vfm4us.pretraining.objective import MultiPatchLoss, patch_similarity, total_coding_rate


def plain_rate(z, epsilon=0.2):
    """The formula as it is written, float64, d x d."""
    b, d = z.shape
    return 0.5 * torch.logdet(torch.eye(d, dtype=z.dtype) + d / (b * epsilon) * z.T @ z)


def unit(*shape, seed=0, dtype=torch.float32):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


@pytest.mark.parametrize("b", [16, 100])
def test_orthonormal_rows_have_the_known_rate(b):
    expected = b / 2 * math.log(1 + 1024 / (0.2 * b))
    assert expected == pytest.approx({16: 46.172, 100: 197.754}[b], abs=1e-3)
    assert total_coding_rate(torch.eye(1024)[:b]).item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("b", [16, 100])
def test_collapsed_embeddings_have_the_known_rate(b):
    assert total_coding_rate(unit(1, 1024).expand(b, 1024)).item() == pytest.approx(4.271, abs=1e-3)


@pytest.mark.parametrize(("b", "d"), [(5, 12), (12, 5), (8, 8), (64, 256)])
def test_rate_and_gradient_agree_with_the_plain_formula(b, d):
    z = unit(b, d, dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(plain_rate(z), z)
    for dtype in (torch.float64, torch.float32):
        ours = z.detach().to(dtype).requires_grad_()
        rate = total_coding_rate(ours)
        rate.backward()
        assert rate.item() == pytest.approx(plain_rate(z).item(), rel=1e-5)
        assert (ours.grad - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_batch_of_matrices_gives_each_its_own_rate():
    z = unit(2, 3, 6, 10)
    rates = total_coding_rate(z)
    assert rates.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert rates[i, j].item() == pytest.approx(plain_rate(z[i, j].double()).item(), rel=1e-5)


def test_upstream_weights_reach_the_gradient():
    z = unit(4, 6, 10).requires_grad_()
    total_coding_rate(z).mul(torch.tensor([1.0, 0.0, -2.0, 3.0])).sum().backward()
    weighted = z.grad.clone()
    z.grad = None
    total_coding_rate(z).sum().backward()
    torch.testing.assert_close(weighted, z.grad * torch.tensor([1.0, 0.0, -2.0, 3.0])[:, None, None])


def test_bfloat16_input_is_computed_in_float32():
    z = unit(20, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert total_coding_rate(z).item() == pytest.approx(plain_rate(z.double()).item(), rel=1e-5)


def test_collapsed_scores_worse_than_spread():
    loss = MultiPatchLoss()
    collapsed = unit(1, 1, 64).expand(4, 32, 64)
    spread = torch.eye(64)[:32].expand(4, 32, 64)
    assert loss(collapsed).similarity.item() == pytest.approx(1.0)
    assert loss(spread).similarity.item() == pytest.approx(1.0)
    assert loss(spread).loss < loss(collapsed).loss


def test_agreeing_patches_score_better_than_disagreeing_ones():
    loss = MultiPatchLoss(coding_rate_weight=0.0)
    image = unit(8, 32)
    assert loss(image.expand(5, 8, 32)).loss < loss(unit(5, 8, 32, seed=1)).loss


def test_similarity_is_the_mean_cosine_to_the_mean():
    z = unit(3, 4, 6, dtype=torch.float64)
    expected = sum(F.cosine_similarity(z[p, i], z[:, i].mean(0), dim=0) for p in range(3) for i in range(4)) / 12
    assert patch_similarity(z).item() == pytest.approx(expected.item(), abs=1e-12)


def test_golden_loss():
    # 200 * S and R of this fixed input, computed once with float64 logdet of the d x d matrix
    z = unit(4, 10, 24, seed=7, dtype=torch.float64)
    similarity = sum(F.cosine_similarity(z[p], z.mean(0), dim=-1).mean() for p in range(4)) / 4
    rate = sum(plain_rate(z[p]) for p in range(4)) / 4
    assert MultiPatchLoss()(z).loss.item() == pytest.approx((-200 * similarity - rate).item(), rel=1e-9)


def _one_of_two(rank, folder, z_all, weights, center_on):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    from vfm4us.runtime.processes import average_gradients

    half = z_all.shape[1] // 2
    weight = weights.clone().requires_grad_()
    z = F.normalize(z_all[:, rank * half : (rank + 1) * half] @ weight, dim=-1)
    terms = MultiPatchLoss()(z, z.mean(0) if center_on else None)
    terms.loss.backward()
    holder = torch.nn.Parameter(weight.detach())
    holder.grad = weight.grad
    average_gradients([holder])
    torch.save({"loss": terms.loss.detach(), "gradient": holder.grad}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("center_on", [False, True])
def test_two_processes_compute_the_loss_and_gradient_of_one(tmp_path, center_on):
    z_all, weights = torch.randn(3, 8, 12), torch.randn(12, 20)
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path), z_all, weights, center_on), nprocs=2)
    weight = weights.clone().requires_grad_()
    z = F.normalize(z_all @ weight, dim=-1)
    terms = MultiPatchLoss()(z, z.mean(0) if center_on else None)
    terms.loss.backward()
    for rank in range(2):
        theirs = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        torch.testing.assert_close(theirs["loss"], terms.loss.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs["gradient"], weight.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 12, 40), (3, 40, 12)])
def test_the_gradient_of_a_gpu_is_that_of_a_cpu(shape, monkeypatch):
    """The two ways to the inverse, both on a CPU: one goes through the batch one by one on a GPU."""
    z = F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double(), dim=-1)
    first, second = z.clone().requires_grad_(), z.clone().requires_grad_()
    total_coding_rate(first).sum().backward()
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    total_coding_rate(second).sum().backward()
    torch.testing.assert_close(second.grad, first.grad, rtol=1e-10, atol=1e-12)


def test_embeddings_that_are_not_finite_give_a_loss_that_is_not():
    z = F.normalize(torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    z[0, 3, 2] = torch.nan
    rate = total_coding_rate(z)
    assert rate[0].isnan() and rate[1].isfinite()
