"""Encoders take grey and RGB, whole images and bags of patches, and give vectors of the width they state."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vfm4us.encoders import NAMES, Encoder, EncoderSpec, ViT, family, names, regular_patches
from vfm4us.encoders.families import FAMILIES


@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith(("large", "huge"))])
def test_every_encoder_is_as_it_says_of_itself(name):
    encoder = Encoder(EncoderSpec(name, image=64)).eval()
    with torch.no_grad():
        assert encoder(torch.rand(2, 1, 64, 64)).shape == (2, encoder.width)
        maps = encoder.pyramid(torch.rand(2, 3, 64, 64))
    assert [m.shape[1] for m in maps] == list(encoder.channels)
    assert [64 // m.shape[-1] for m in maps] == list(encoder.strides)
    assert encoder.strides == ((2, 4, 8, 16, 32) if name.startswith("resnet") else (16,))
    depths = [encoder.depth_of(n) for n, _ in encoder.named_parameters()]
    assert set(depths) == set(range(encoder.depths)) and encoder.depths == len(encoder.stages)
    assert encoder.depth_of(f"body.{encoder.first_convolution}") == 0 and depths[-1] == encoder.depths - 1
    assert (encoder.tokens is not None) == encoder.has_tokens


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_tiny"])
def test_dilation_leaves_the_tensors_and_says_its_strides(name):
    encoder = Encoder(EncoderSpec(name)).eval()
    before = {k: tuple(v.shape) for k, v in encoder.state_dict().items()}
    encoder.dilate()
    assert before == {k: tuple(v.shape) for k, v in encoder.state_dict().items()}
    with torch.no_grad():
        maps = encoder.pyramid(torch.rand(1, 1, 64, 64))
    assert [64 // m.shape[-1] for m in maps] == list(encoder.strides) and encoder.strides[-1] == 16


@pytest.mark.parametrize("name", names(from_scratch=True)[:4])
def test_the_deepest_stage_can_be_watched(name):
    encoder = Encoder(EncoderSpec(name, in_channels=1)).eval()
    with encoder.watching() as seen:
        value = encoder(torch.rand(2, 1, 64, 64)).sum()
    gradient = encoder.as_map(torch.autograd.grad(value, seen.tensor)[0])
    assert gradient.shape[:2] == (2, encoder.channels[-1]) and gradient.shape[-1] == 64 // encoder.strides[-1]


def test_tokens_are_pooled_as_the_encoder_does_and_only_some_encoders_can_mask():
    spec = EncoderSpec("vit_tiny", in_channels=1, image=48, registers=2, norm="mean_of_norm")
    encoder, x = Encoder(spec).eval(), torch.rand(2, 1, 48, 48)
    with torch.no_grad():
        tokens = encoder.embed_tokens(x)
        torch.testing.assert_close(encoder.pool(tokens), encoder(x))
    assert encoder.tokens == (16, 3, 3) and tokens.shape == (2, 3 + encoder.tokens.count, encoder.width)
    for name in ("resnet18", "beit_base"):
        with pytest.raises(ValueError, match=f"{name} has no tokens to mask: use one of vit_tiny"):
            Encoder(EncoderSpec(name)).embed_tokens(x)


def test_classes_build_what_the_list_of_families_names():
    for known in FAMILIES:
        assert all(tuple(family(n).sizes) == known.names for n in known.names)
        assert family(known.names[0]).__module__ == f"vfm4us.encoders.{known.module}"


def test_a_copy_is_of_the_same_family():
    encoder = Encoder(EncoderSpec("vit_tiny"))
    assert type(copy.deepcopy(encoder)) is type(encoder) is ViT


def test_one_channel_vit_loads_its_published_form():
    torch.manual_seed(0)
    grey = Encoder(EncoderSpec("vit_small", in_channels=1)).eval()
    colour = Encoder(EncoderSpec("vit_small", in_channels=3)).eval()
    colour.load_published_state(grey.published_state())
    x = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grey(x), colour(x), atol=1e-4, rtol=1e-3)


def test_unknown_names_and_channels_are_refused():
    with pytest.raises(ValueError, match="resnet18"):
        Encoder(EncoderSpec("resnet19"))
    with pytest.raises(ValueError, match="1 or 3"):
        Encoder(EncoderSpec(in_channels=2))
    with pytest.raises(ValueError, match=r"\(N, 1 or 3, H, W\)"):
        Encoder()(torch.rand(2, 2, 32, 32))


def test_embed_takes_what_people_have_and_leaves_the_mode_alone():
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec(in_channels=1)).train()
    images = np.random.default_rng(0).integers(0, 256, (5, 48, 48), dtype=np.uint8)
    whole = encoder.embed(images)
    assert encoder.training and whole.shape == (5, 512)
    for form in (torch.from_numpy(images), images[:, None], images / np.float32(255), np.repeat(images[:, None], 3, 1)):
        torch.testing.assert_close(encoder.embed(form), whole, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(encoder.embed(images, batch_size=2), whole, atol=1e-5, rtol=1e-4)
    assert encoder.embed(images[:0]).shape == (0, 512)
    torch.testing.assert_close(encoder.embed(images[0], size=48), whole[:1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "images",
    [
        np.full((2, 32, 32), 200.0, np.float32),
        np.full((2, 32, 32), -0.5, np.float32),
        np.where(np.eye(32)[None] > 0, np.nan, 0.5),
        np.full((2, 32, 32), np.inf),
    ],
)
def test_embed_refuses_floats_whose_range_is_not_that_of_images(images):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Encoder(EncoderSpec(in_channels=1)).embed(images)


def test_arguments_that_cannot_be_meant_are_refused():
    encoder, images = Encoder(EncoderSpec(in_channels=1)), torch.zeros(2, 1, 32, 32)
    for arguments in ({"patches": -1}, {"batch_size": 0}, {"size": "224"}, {"size": 0}, {"patch_size": 0.5}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))}=.*expected a whole number"):
            encoder.embed(images, **arguments)
    with pytest.raises(ValueError, match=r"valid of shape \(1, 4\): expected \(2, 4\)"):
        encoder.embed(images, patches=2, valid=[[0, 0, 32, 32]])
    with pytest.raises(ValueError, match=r"torch.uint8: images.float\(\) / 255"):
        encoder(images.byte())


def test_a_bag_of_patches_is_the_mean_of_unit_patch_vectors():
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec(in_channels=1)).eval()
    images = torch.rand(4, 48, 48)
    bag = encoder.embed(images, patches=4)
    corners = [images[:, None, y : y + 24, x : x + 24] for y in (0, 24) for x in (0, 24)]
    with torch.no_grad():
        expected = torch.stack([F.normalize(encoder(c), dim=-1) for c in corners]).mean(0)
    torch.testing.assert_close(bag, expected, atol=1e-4, rtol=1e-3)


def test_patches_of_the_bag_stay_inside_the_valid_part():
    x = torch.ones(2, 1, 64, 64)
    x[0, :, :40, :64] = 0.5
    x[1, :, 8:64, 10:50] = 0.5
    patches = regular_patches(x, 9, torch.tensor([[0, 0, 40, 64], [8, 10, 56, 40]]), size=16)
    assert patches.shape == (9, 2, 1, 16, 16)
    torch.testing.assert_close(patches, torch.full_like(patches, 0.5))
