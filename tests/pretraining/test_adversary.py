"""The attack stays small, achieves something, and leaves the network as it was."""

import pytest
import torch
import torch.nn.functional as F

from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.pretraining.adversary import AdversaryConfig, frozen_statistics, perturb, random_start
from vfm4us.pretraining.methods.emp_ssl import Network, ProjectorConfig


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    network = Network(Encoder(EncoderSpec(in_channels=1)), ProjectorConfig(64, 32)).train()
    patches = torch.rand(12, 1, 32, 32)
    patches[0, :, :8] = 0.0
    patches[1, :, :8] = 1.0
    center = network(patches).detach()
    return network, patches, center


def objective(network, patches, center):
    with torch.no_grad(), frozen_statistics(network):
        return -F.cosine_similarity(network(patches), center, dim=-1).mean().item()


@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_the_change_is_bounded_and_the_objective_rises(setting, method):
    network, patches, center = setting
    config = AdversaryConfig(method=method, epsilon=0.03, steps=4)
    start = random_start(3, slice(0, 4), 4, 32, torch.Generator().manual_seed(1))
    with frozen_statistics(network):
        delta = perturb(network, patches, center, config, start=start).delta
    assert delta.abs().max() <= 0.03 + 1e-7
    attacked = patches + delta
    assert attacked.min() >= 0 and attacked.max() <= 1
    begin = (patches + 0.03 * start).clamp(0, 1)
    assert objective(network, attacked, center) > objective(network, begin, center)
    assert objective(network, attacked, center) > objective(network, patches, center)


def test_parameters_gradients_and_statistics_are_untouched(setting):
    network, patches, center = setting
    network.zero_grad()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with frozen_statistics(network):
        perturb(network, patches, center, AdversaryConfig(method="pgd"))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    network(patches)  # and outside of frozen_statistics they do move
    assert any(not torch.equal(before[k], v) for k, v in network.state_dict().items())
    network.load_state_dict(before)


def test_delta_is_one_grey_image_and_zero_on_padding():
    torch.manual_seed(1)
    encoder = Encoder(EncoderSpec(in_channels=3)).train()
    patches = torch.rand(4, 3, 32, 32)
    mask = torch.ones(4, 1, 32, 32)
    mask[:, :, :, 20:] = 0
    center = torch.randn(4, encoder.width)
    with frozen_statistics(encoder):
        delta = perturb(encoder, patches, center, AdversaryConfig(epsilon=0.05), mask=mask).delta
    assert delta.shape == (4, 1, 32, 32)
    assert delta[..., 20:].abs().max() == 0
    assert delta[..., :20].abs().max() > 0.01
    assert (patches + delta).min() >= 0 and (patches + delta).max() <= 1


def test_normalised_patches_are_refused(setting):
    network, patches, center = setting
    with pytest.raises(ValueError, match="before normalisation"):
        perturb(network, patches * 4 - 2, center, AdversaryConfig())
