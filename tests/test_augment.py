"""Patches come from inside the valid rectangle, are the same for the same seed, and vary as they should."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from vfm4us import augment
from vfm4us.augment import PatchConfig, PatchSampler

PLAIN = PatchConfig(count=8, size=24, flip=0, jitter=0, blur=0, speckle=0, depth_gain=0, shadow=0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [16, 24, 40])
@pytest.mark.parametrize("scale", [(0.05, 0.3), (0.25, 0.25), (1.0, 1.0)])
def test_no_patch_sees_anything_outside_the_valid_rectangle(size, scale):
    # 0.5 inside, 1 outside: any reach over the border would show
    valid = torch.tensor([[0, 0, 64, 40], [5, 9, 31, 50], [0, 0, 17, 64], [10, 10, 30, 30]])
    images = torch.full((4, 64, 64), 255, dtype=torch.uint8)
    for image, (top, left, height, width) in zip(images, valid.tolist(), strict=True):
        image[top : top + height, left : left + width] = 128
    config = dataclasses.replace(PLAIN, size=size, scale_low=scale[0], scale_high=scale[1], flip=0.5)
    patches = PatchSampler(config)(images, valid, seeded())
    assert patches.shape == (8, 4, 1, size, size)
    torch.testing.assert_close(patches, torch.full_like(patches, 128 / 255), atol=1e-4, rtol=0)


def test_boxes_lie_inside_and_have_the_area_asked_for():
    valid = torch.tensor([[3, 4, 50, 40], [0, 0, 20, 64]])
    sampler = PatchSampler(PatchConfig(count=50, scale_low=0.1, scale_high=0.4))
    numbers, _ = sampler.draw(2, seeded())
    top, left, height, width = sampler.boxes(valid, numbers).unbind(-1)
    v = valid.float()
    assert (top >= v[:, 0] - 1e-4).all() and (top + height <= v[:, 0] + v[:, 2] + 1e-4).all()
    assert (left >= v[:, 1] - 1e-4).all() and (left + width <= v[:, 1] + v[:, 3] + 1e-4).all()
    share = height * width / (v[:, 2] * v[:, 3])
    assert share.max() <= 0.4 + 1e-5 and share.min() >= 0.1 - 1e-5


def test_a_window_of_native_size_copies_the_pixels():
    image = torch.randint(0, 256, (1, 48, 48), dtype=torch.uint8, generator=seeded(3))
    config = dataclasses.replace(PLAIN, scale_low=0.25, scale_high=0.25, ratio=1.0, count=40)
    sampler = PatchSampler(config)
    numbers, _ = sampler.draw(1, seeded())
    for name in ("down", "right"):
        numbers[name] = (numbers[name] * 24).round() / 24  # windows at whole pixels
    valid = torch.tensor([[0, 0, 48, 48]])
    boxes = sampler.boxes(valid, numbers)
    patches = sampler.cut(*sampler.source(image, valid), valid, boxes, torch.zeros(40, 1, dtype=torch.bool))
    for p in range(40):
        top, left = (int(round(v)) for v in boxes[p, 0, :2].tolist())
        expected = image[0, top : top + 24, left : left + 24].float() / 255
        torch.testing.assert_close(patches[p, 0, 0], expected, atol=1e-4, rtol=0)


def test_large_windows_are_averaged_not_skipped():
    # a checkerboard of single pixels must become grey, not moire
    image = (torch.arange(128)[:, None] + torch.arange(128)) % 2 * 255
    config = dataclasses.replace(PLAIN, scale_low=0.9, scale_high=0.9, size=32)
    patches = PatchSampler(config)(image[None].to(torch.uint8), torch.tensor([[0, 0, 128, 128]]), seeded())
    assert patches.std() < 0.02


def test_same_seed_same_patches_and_process_r_of_k_cuts_its_own_part():
    images = torch.randint(0, 256, (6, 64, 64), dtype=torch.uint8, generator=seeded(1))
    valid = torch.tensor([[0, 0, 64, 64]]).expand(6, 4)
    sampler = PatchSampler(PatchConfig(count=5, size=24))
    whole = sampler(images, valid, seeded(7))
    assert torch.equal(whole, sampler(images, valid, seeded(7)))
    assert not torch.equal(whole, sampler(images, valid, seeded(8)))
    for rank in range(3):
        part = slice(2 * rank, 2 * rank + 2)
        theirs = sampler(images[part], valid[part], seeded(7), rank=rank, world_size=3)
        torch.testing.assert_close(theirs, whole[:, part], atol=1e-6, rtol=0)


def test_every_variation_changes_patches_and_keeps_their_range_and_black():
    images = torch.randint(30, 230, (4, 64, 64), dtype=torch.uint8, generator=seeded(1))
    images[:, :, :20] = 0
    images = F.avg_pool2d(images[:, None].float(), 3, 1, 1)[:, 0].to(torch.uint8)
    valid = torch.tensor([[0, 0, 64, 64]]).expand(4, 4)
    base = PatchSampler(PLAIN)(images, valid, seeded())
    for change in (
        {"jitter": 1.0, "gamma": 0.0},
        {"jitter": 1.0, "gain": 0.0, "contrast": 0.0},
        {"blur": 1.0},
        {"speckle": 1.0},
        {"depth_gain": 1.0},
        {"shadow": 1.0},
    ):
        varied = PatchSampler(dataclasses.replace(PLAIN, **change))(images, valid, seeded())
        assert varied.min() >= 0 and varied.max() <= 1, change
        assert (varied - base).abs().amax((2, 3, 4)).gt(0.01).float().mean() > 0.8, change
        if "blur" not in change:
            assert varied[base == 0].abs().max() == 0, change


def test_a_new_change_moves_no_random_number_of_another(monkeypatch):
    images = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=seeded(1))
    valid = torch.tensor([[0, 0, 64, 64]]).expand(3, 4)
    config = PatchConfig(count=5, size=24)
    before, after = seeded(7), seeded(7)
    patches = PatchSampler(config)(images, valid, before)
    monkeypatch.setattr(augment, "DRAWN", {"clutter": ("clutter_on", "clutter")} | augment.DRAWN)
    assert torch.equal(PatchSampler(config)(images, valid, after), patches)
    assert torch.equal(before.get_state(), after.get_state()), "what is drawn after the patches moves neither"
    monkeypatch.undo()
    numbers, _ = PatchSampler(config).draw(3, seeded(7))
    for name in ("blur", "jitter", "speckle", "depth_gain", "flip"):
        fewer, _ = PatchSampler(dataclasses.replace(config, **{name: 0.0})).draw(3, seeded(7))
        assert fewer.keys() < numbers.keys() and all(torch.equal(v, numbers[k]) for k, v in fewer.items())


@pytest.mark.parametrize("size", [64, 50])
@pytest.mark.parametrize("cell", [2, 4, 8, 16])
def test_cells_are_means_of_their_valid_pixels(size, cell):
    images = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=seeded())
    whole = torch.tensor([[0, 0, size, size]] * 3)
    valid = torch.tensor([[0, 0, size, size], [3, 5, 31, 20], [0, 0, 17, size]])
    torch.testing.assert_close(augment.average(images, None, cell), augment.average(images, whole, cell))
    means = augment.average(images, valid, cell)
    for picture, image, (top, left, height, width) in zip(means, images, valid.tolist(), strict=True):
        inside = torch.zeros(size, size)
        inside[top : top + height, left : left + width] = 1
        sums, counts = (
            F.avg_pool2d(F.pad(x, (0, -size % cell, 0, -size % cell))[None, None], cell)[0, 0]
            for x in (image.float() / 255 * inside, inside)
        )
        torch.testing.assert_close(picture, sums / counts.clamp(min=1e-9), atol=1e-6, rtol=1e-5)


def test_speckle_is_multiplicative_and_of_unit_grain():
    _, field = PatchSampler(PatchConfig(size=64)).draw(1, seeded())
    assert field.std().item() == pytest.approx(1.0, abs=0.05)
    bright = torch.full((1, 128, 128), 150, dtype=torch.uint8)
    dim = torch.full((1, 128, 128), 50, dtype=torch.uint8)
    sampler = PatchSampler(dataclasses.replace(PLAIN, speckle=1.0, speckle_strength=0.2, count=64))
    valid = torch.tensor([[0, 0, 128, 128]])
    spread = [sampler(x, valid, seeded())[:, 0].std((1, 2, 3)).mean().item() for x in (bright, dim)]
    assert spread[0] / spread[1] == pytest.approx(3.0, rel=0.1)


def test_shadow_darkens_below_and_not_above():
    images = torch.full((1, 128, 128), 200, dtype=torch.uint8)
    sampler = PatchSampler(dataclasses.replace(PLAIN, shadow=1.0, count=200, size=32))
    patches = sampler(images, torch.tensor([[0, 0, 128, 128]]), seeded())[:, 0, 0]
    assert patches[:, -1].mean() < patches[:, 0].mean() - 0.02


def test_contradictory_scales_are_refused():
    with pytest.raises(ValueError, match="scale_low"):
        PatchSampler(PatchConfig(scale_low=0.5, scale_high=0.2))


def test_masks_are_cut_from_the_same_windows_and_keep_their_class_numbers():
    generator = seeded()
    masks = torch.zeros(4, 64, 64, dtype=torch.uint8)
    masks[:, 20:44, 8:30], masks[:, 30:36, 14:20] = 1, 7
    images = torch.where(masks > 0, 200, 40).to(torch.uint8)
    valid = torch.tensor([[0, 0, 64, 64]] * 4)
    plain = {"jitter": 0.0, "blur": 0.0, "speckle": 0.0, "depth_gain": 0.0, "scale_low": 0.3, "scale_high": 0.9}
    sampler = PatchSampler(PatchConfig(count=3, size=48, **plain))
    patches, under = sampler(images, valid, generator, masks=masks)
    assert under.shape == (3, 4, 48, 48) and under.dtype == torch.uint8 and set(under.unique().tolist()) == {0, 1, 7}
    bright = patches[:, :, 0] > 120 / 255
    assert (bright == (under > 0)).float().mean() > 0.98, "the same window, mirrored or not"
    assert not torch.equal(bright[0], bright[1]), "windows differ"
    alone = sampler(images, valid, seeded())
    torch.testing.assert_close(alone, patches)


def test_photometric_changes_leave_the_mask_alone():
    images = torch.full((2, 32, 32), 128, dtype=torch.uint8)
    masks = torch.randint(0, 3, (2, 32, 32), dtype=torch.uint8, generator=seeded())
    whole = {"scale_low": 1.0, "scale_high": 1.0, "ratio": 1.0, "flip": 0.0, "jitter": 1.0, "gain": 0.5, "speckle": 1.0}
    sampler = PatchSampler(PatchConfig(count=1, size=32, **whole))
    patches, under = sampler(images, torch.tensor([[0, 0, 32, 32]] * 2), seeded(1), masks=masks)
    assert torch.equal(under[0], masks) and (patches - 128 / 255).abs().max() > 0.02


@pytest.mark.parametrize("side", [50, 291])
def test_grains_have_the_bits_of_a_pooled_field(side):
    field = torch.randn((side, side + 3), generator=seeded())
    assert torch.equal(augment.means_of_9(field), F.avg_pool2d(field[None, None], 3, stride=1)[0, 0])
