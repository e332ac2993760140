"""Masked cells: how many, where, and with what they are filled."""

import pytest
import torch

from vfm4us.pretraining.masking import MaskingConfig, choose_cells, fill_cells


@pytest.mark.parametrize("size", [32, 30])
def test_random_cells_are_whole_and_as_many_as_asked(size):
    config = MaskingConfig("random", ratio=0.25, cell=8)
    cells = choose_cells(torch.rand(5, 1, size, size), config, torch.Generator().manual_seed(0))
    assert cells.shape == (5, 1, size, size)
    corners = cells[:, 0, ::8, ::8]
    assert corners.sum((1, 2)).tolist() == [4] * 5
    whole = corners.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :size, :size]
    assert torch.equal(whole, cells[:, 0])
    assert not torch.equal(cells[0], cells[1])


def test_adversarial_cells_are_where_the_gradient_is_largest():
    gradient = torch.full((2, 1, 16, 16), 0.1)
    gradient[0, :, 4:8, 8:12] = -5.0  # the sign does not matter
    gradient[1, :, 12:, :4] = 5.0
    cells = choose_cells(
        torch.rand(2, 1, 16, 16), MaskingConfig("adversarial", ratio=1 / 16, cell=4), gradient=gradient
    )
    assert torch.equal(cells, gradient.abs() > 1)
    with pytest.raises(ValueError, match="adversary.weight"):
        choose_cells(torch.rand(2, 1, 16, 16), MaskingConfig("adversarial"))


def test_cells_are_filled_with_the_patch_mean_and_nothing_else_changes():
    patches = torch.rand(3, 1, 16, 16)
    cells = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    cells[1, :, :4, :4] = True
    filled = fill_cells(patches, cells)
    assert torch.equal(filled[~cells], patches[~cells])
    torch.testing.assert_close(filled[1, 0, :4, :4], patches[1].mean().expand(4, 4))
