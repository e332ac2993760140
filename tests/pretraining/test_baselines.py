"""Each baseline does what its paper says, learns on the images at hand, is resumed bit for bit, and leaves an encoder."""

import json
import math
import os
import random
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import vfm4us
from tests.conftest import ROOT
from vfm4us import checkpoints, config, plots
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.pretraining import tokens, trainer
from vfm4us.pretraining.methods import dinov2, mae, spatial_frequency
from vfm4us.pretraining.settings import METHODS, PretrainingConfig
from vfm4us.pretraining.trainer import Trainer, pretrain
from vfm4us.runtime import signals
from vfm4us.runtime.processes import average_gradients, processes
from vfm4us.runtime.rng import generator
from vfm4us.runtime.run import RunFolder

pytest.importorskip("lightly", reason="the baselines need pip install -e .[baselines]")

SMALL = {
    "mae": {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2, "crops": {"size": 32, "count": 2}},
    "spatial_frequency": {"crops": {"size": 32}},
    "simclr": {"hidden": 32, "out": 16, "crops": {"size": 32}},
    "dinov2": {
        "prototypes": 32,
        "hidden": 32,
        "bottleneck": 16,
        "teacher_momentum": 0.9,
        "frozen_prototypes": 0.2,
        "global_crops": {"size": 32},
        "local_crops": {"size": 16, "count": 2},
    },
}


@pytest.fixture
def build(tiny):
    """A function that builds a two-stage config of a baseline over the textures, 6 steps of 8 images in each stage."""

    def settings(method: str, *overrides: str) -> PretrainingConfig:
        rates = [
            "stages.0.learning_rate=0.01",
            "stages.1.learning_rate=0.005",
            "stages.0.epochs=1",
            "stages.1.epochs=1",
        ]
        named = [f"name={method}", f"method={method}", "encoder.name=vit_tiny", "encoder.patch=8", "monitor.patches=0"]
        return tiny(*named, *rates, *overrides, **{method: json.loads(json.dumps(SMALL[method]))})

    return settings


@pytest.fixture
def one_step(build):
    """A function that makes a method and gives it images (8, 48, 48) to work on."""

    def method_of(name: str, *overrides: str):
        settings = build(name, *overrides)
        torch.manual_seed(0)
        method = trainer.build_method(settings)
        method.optimizer = method.new_optimizer()
        images = torch.randint(0, 256, (8, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
        return method, images, torch.tensor([[0, 0, 48, 48]]).expand(8, 4)

    return method_of


# ---- what all share ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["token", "mean_of_norm"])
def test_tokens_pooled_are_the_encoders_own_vector(norm):
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("vit_tiny", 1, patch=8, image=32, norm=norm)).eval()
    for side in (32, 16):
        x = torch.rand(3, 1, side, side)
        with torch.no_grad():
            features = encoder.embed_tokens(x)
            assert features.shape == (3, 1 + (side // 8) ** 2, 192)
            torch.testing.assert_close(encoder.pool(features), encoder(x))


def test_tokens_are_cut_and_joined_without_loss():
    x = torch.rand(2, 1, 32, 32)
    cut = tokens.split_into_tokens(x, 8)
    assert cut.shape == (2, 16, 64) and torch.equal(cut[:, 1].view(2, 8, 8), x[:, 0, :8, 8:16])
    assert torch.equal(tokens.join_tokens(cut, 8), x)


@pytest.mark.parametrize("method", list(SMALL))
def test_a_run_stopped_twice_and_continued_ends_in_the_same_weights(build, method, monkeypatch):
    class StopAfter(signals.StopSignal):
        """Asks to stop after so many steps."""

        left = 0

        def asked(self, _):
            StopAfter.left -= 1
            return 2 if StopAfter.left == 0 else 0

    short = ["stages.0.epoch_images=32", "stages.1.epoch_images=32"]
    whole = pretrain(build(method, "name=whole", *short))
    monkeypatch.setattr(signals, "StopSignal", StopAfter)
    for steps in (2, 4, 100):  # in the first stage, in the second, to the end
        trained = Trainer(build(method, "name=parts", *short), torch.device("cpu"), 0, 1)
        try:
            StopAfter.left = steps
            trained.fit()
        except signals.Stopped:
            assert steps < 100
        finally:
            trained.folder.close()
    a, b = (checkpoints.read(f / "checkpoints" / "last.pt") for f in (whole, trained.folder.folder))
    assert a["step"] == b["step"] == 8 and b["resume"]["finished"]
    for kind in (a["state_dict"], a["resume"]["beside"]):
        other = b["state_dict"] if kind is a["state_dict"] else b["resume"]["beside"]
        assert kind.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in kind.items())
    logs = [RunFolder(f, None, main=False).metrics() for f in (whole, trained.folder.folder)]
    assert logs[0] == logs[1] and len([x for x in logs[0] if x["kind"] == "train"]) == 8

    # what a run leaves: an encoder any task loads, its cost, and pictures
    encoder = vfm4us.load_encoder(whole / "encoder.pt", in_channels=1)
    assert encoder.spec.name == "vit_tiny" and encoder.spec.patch == 8 and encoder.spec.image == 32
    assert encoder.spec.norm == ("mean_of_norm" if method in ("mae", "spatial_frequency") else "token")
    assert encoder.embed(torch.rand(3, 1, 48, 48)).shape == (3, 192)
    assert all(k.startswith(("module.base_encoder.", "module.projector.")) for k in a["state_dict"])
    budget = json.loads((whole / "budget.json").read_text())
    assert budget["method"] == method and budget["images"] == 64 and budget["encoder"] == "vit_tiny"
    assert budget["views"] == 64 * {"dinov2": 4, "spatial_frequency": 1}.get(method, 2) and budget["flops"] > 0
    assert budget["parameters"] == sum(p.numel() for p in encoder.parameters())
    assert f"{method}: 64 images" in trainer.summary(whole)
    for name in ("contact_sheet_coarse.png", "contact_sheet_fine.png", "curve.png"):
        assert np.asarray(Image.open(whole / name)).std() > 10
    lines = [x for x in logs[0] if x["kind"] == "train"]
    keys = {key for _, keys, _ in trained.method.panels for key in keys.values()}
    assert keys | {key for key, _ in trained.method.bar.values()} <= lines[0].keys()


def test_the_first_weights_differ_from_the_last_and_a_new_head_only_where_asked(build):
    still = ["stages.1.learning_rate=0.0", "stages.0.epoch_images=8", "stages.1.epoch_images=8"]
    kept = pretrain(build("mae", "name=kept", *still))
    renewed = pretrain(build("mae", "name=renewed", *still, "stages.1.projector=reset"))
    a, b = (checkpoints.read(f / "checkpoints" / "last.pt") for f in (kept, renewed))
    assert all(torch.equal(v, b["state_dict"][k]) for k, v in a["state_dict"].items()), "the encoder stays"
    key = "decoder.predict.weight"
    assert not torch.equal(a["resume"]["beside"][key], b["resume"]["beside"][key])


def test_another_run_may_start_from_an_encoder_and_other_tokens_are_refused(build):
    folder = pretrain(build("mae", "stop_after=1", "stages.0.epoch_images=8"))
    weights = folder / "checkpoints" / "coarse.pt"
    before = vfm4us.load_encoder(weights, in_channels=1)
    started = trainer.build_encoder(build("dinov2", f"encoder.weights={weights}"))
    assert all(torch.equal(v, started.body.state_dict()[k]) for k, v in before.body.state_dict().items())
    with pytest.raises(ValueError, match="tokens of 8 px.*encoder.patch 16"):
        trainer.build_encoder(build("mae", f"encoder.weights={weights}", "encoder.patch=16"))


def test_attention_is_counted_alike_by_every_kernel():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for kernel in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        q = torch.rand(2, 3, 40, 16, requires_grad=True)
        with sdpa_kernel(kernel), FlopCounterMode(display=False, custom_mapping=trainer.CPU_ATTENTION) as counter:
            F.scaled_dot_product_attention(q, q, q).sum().backward()
        counts.append(counter.get_total_flops())
    forward = 2 * 2 * 2 * 3 * 40 * 40 * 16
    assert counts == [3 * forward, 3.5 * forward], "flash attention computes the scores once more, going back"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["encoder.name=resnet18"], "encoder.name resnet18 has no tokens to mask"),
        (["stages.0.learning_rate=0.3"], "stages.0.learning_rate 0.3 is a rate for LARS"),
        (["mae.crops.count=0"], "mae.crops.count is 0"),
        (["method=simclr", "simclr.crops.count=3"], "simclr.crops.count is 3, and must be 2"),
        (["mae.crops.size=36"], "mae.crops.size is 36, and must be a multiple of encoder.patch 8"),
        (["mae.crops.size=64"], "mae.crops.size 64 is larger than the images"),
        (["mae.decoder_width=26", "mae.decoder_heads=4"], "mae.decoder_width 26 must be a multiple"),
        (["mae.mask_ratio=1.0"], "mae.mask_ratio: 1.0 is above"),
        (["mae.mask_ration=0.5"], "did you mean 'mask_ratio'"),
        (["method=mea"], "did you mean 'mae'"),
    ],
)
def test_bad_configs_name_the_key(build, overrides, message):
    with pytest.raises(ValueError, match=message):
        pretrain(build("mae", *overrides))


def test_without_lightly_the_error_names_the_extra(build, monkeypatch, tiny):
    monkeypatch.setitem(sys.modules, "lightly", None)
    with pytest.raises(ValueError, match=r"lightly, which is not installed: pip install -e \.\[baselines\]"):
        pretrain(build("mae"))
    trainer.check(tiny())  # our own method does without


# ---- MAE --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.25])
def test_exactly_this_share_of_the_tokens_is_hidden(ratio):
    hidden = tokens.hidden_tokens((50, 144), ratio, torch.Generator().manual_seed(0))
    assert (hidden.sum(1) == 144 * ratio).all()
    share = hidden.float().mean(0)
    assert (share - ratio).abs().max() < 0.35, "every place in turn"


def test_the_error_is_of_hidden_tokens_alone_and_they_are_not_looked_at(one_step):
    method, _, _ = one_step("mae")
    crops = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    hidden = tokens.hidden_tokens((4, 16), 0.75, torch.Generator().manual_seed(2))
    predicted = method.network(crops, hidden).detach().requires_grad_(True)
    target, mean, deviation = method.target(crops)
    assert target.mean(-1).abs().max() < 1e-5 and (target.var(-1) - 1).abs().max() < 1e-3
    mae.masked_error(predicted, target, hidden).backward()
    assert predicted.grad[~hidden].abs().max() == 0 and predicted.grad[hidden].abs().amin(-1).max() > 0
    by_hand = sum(((predicted[i, t] - target[i, t]) ** 2).mean() for i, t in hidden.nonzero().tolist()) / 48
    torch.testing.assert_close(mae.masked_error(predicted, target, hidden), by_hand)
    # other pixels below the masks: the same prediction; other pixels beside them: another
    other = torch.where(hidden[..., None], torch.rand(4, 16, 64), tokens.split_into_tokens(crops, 8))
    again = method.network(tokens.join_tokens(other, 8), hidden)
    assert torch.equal(again, method.network(crops, hidden))
    flipped = torch.where(hidden[..., None], other, 1 - other)
    assert not torch.allclose(method.network(tokens.join_tokens(flipped, 8), hidden), again, atol=1e-3)


def test_tokens_keep_their_places_through_the_decoder(one_step):
    """With the identity for a decoder, each visible token comes out where it went in."""
    method, _, _ = one_step("mae")
    network, x = method.network, torch.rand(2, 1, 32, 32)
    network.decoder["embed"], network.decoder["predict"] = torch.nn.Identity(), torch.nn.Identity()
    blocks = network.decoder["blocks"]
    blocks.mask_token = torch.nn.Parameter(torch.full((1, 1, 192), -7.0))
    blocks.add_pos_embed = blocks.decode = lambda tokens: tokens
    hidden = tokens.hidden_tokens((2, 16), network.config.mask_ratio, torch.Generator().manual_seed(5))
    out, body = network(x, hidden), network.base_encoder.body
    assert (out[hidden] == -7).all()
    for block in body.blocks:  # without attention a token depends on itself alone
        block.attn.forward = lambda y, **_: torch.zeros_like(y)
    out, every = network(x, hidden), network.base_encoder.embed_tokens(x)[:, 1:]
    torch.testing.assert_close(out[~hidden], every[~hidden])


# ---- masks in space, a band in frequency ------------------------------------------------------------------------------


def test_the_band_is_gone_and_the_rest_is_as_it_was():
    x = torch.rand(3, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    band = spatial_frequency.frequency_band(torch.tensor([0.05, 0.2, 0.35]), 0.1, 48)
    stopped = spatial_frequency.stop_band(x, band)
    assert stopped.dtype == torch.float32 and stopped.shape == x.shape
    before, after = torch.fft.fft2(x)[:, 0], torch.fft.fft2(stopped)[:, 0]
    assert after[band].abs().max() < 1e-4 < before[band].abs().mean()
    torch.testing.assert_close(after[~band], before[~band], rtol=1e-4, atol=1e-3)
    assert not band[:, 0, 0].any() and band.flatten(1).any(1).all(), "the mean stays, and each image loses something"
    column = torch.arange(48)
    wave = torch.cos(2 * math.pi * 0.25 * column).expand(
        1, 1, 48, 48
    )  # 0.25 cycles per px lie in the second band alone
    left = [float(spatial_frequency.stop_band(wave, band[i : i + 1]).abs().max()) for i in range(3)]
    assert left[1] < 1e-5 and left[0] > 0.99 and left[2] > 0.99


def test_the_band_error_sees_the_band_alone():
    x = torch.rand(2, 1, 32, 32)
    band = spatial_frequency.frequency_band(torch.tensor([0.1, 0.3]), 0.1, 32)
    outside = spatial_frequency.stop_band(torch.rand(2, 1, 32, 32), band)
    assert float(spatial_frequency.band_error(x + outside, x, band)) < 1e-5
    assert float(spatial_frequency.band_error(spatial_frequency.stop_band(x, band), x, band)) > 0.01


def test_masked_tokens_are_replaced_before_the_encoder(one_step):
    method, images, valid = one_step("spatial_frequency")
    crops, stopped, hidden, band = method.cut(images, valid, generator(1))
    assert (hidden.sum(1) == round(0.6 * 16)).all() and band.shape == (8, 32, 32)
    other = torch.where(hidden[..., None], torch.rand(8, 16, 64), tokens.split_into_tokens(stopped, 8))
    with torch.no_grad():
        assert torch.equal(method.network(tokens.join_tokens(other, 8), hidden), method.network(stopped, hidden))
    method.before_step(0.0)
    method.loss(images, valid, generator(1), 0, 1)[0].backward()
    assert method.network.mask_token.grad.abs().max() > 0


# ---- SimCLR -----------------------------------------------------------------------------------------------------------


def test_aligned_crops_cost_less_and_chance_costs_its_value(one_step):
    method, images, valid = one_step("simclr", "simclr.temperature=0.5")
    crops = torch.rand(8, 1, 32, 32)

    def loss_of(second):
        method.sampler = lambda *_: torch.stack([crops, second])
        return method.loss(images, valid, None)

    (aligned, terms), (shifted, _) = loss_of(crops), loss_of(crops.roll(1, 0))
    assert aligned < shifted and terms["same_image"] > 0.999 > terms["other_images"]
    z = torch.zeros(8, 4)
    z[:, 0] = 1
    assert float(method.objective(z, z)) == pytest.approx(math.log(2 * 8 - 1)), "all alike: chance"


# ---- DINOv2 -----------------------------------------------------------------------------------------------------------


def test_the_teacher_gets_no_gradient_and_follows_by_moving_average(one_step):
    method, images, valid = one_step("dinov2")
    network = method.network
    same = [p.clone() for p in network.base_encoder.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(same, network.student.parameters(), strict=True))
    method.before_step(0.5)
    loss, terms = method.loss(images, valid, generator(1), 0, 1)
    loss.backward()
    assert all(p.grad is None for m in (network.base_encoder, network.teacher_head) for p in m.parameters())
    assert all(p.grad is not None for m in (network.student, network.student_head) for p in m.parameters())
    assert network.mask_token.grad.abs().max() > 0
    trained = {id(p) for group in method.optimizer.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in network.base_encoder.parameters()}
    for group in method.optimizer.param_groups:
        group["lr"] = 0.01
    method.optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(same, network.base_encoder.parameters(), strict=True))
    method.after_step(0.5)  # momentum 0.95 at half of the stage
    for before, student, teacher in zip(
        same, network.student.parameters(), network.base_encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(teacher, 0.95 * before + 0.05 * student, rtol=1e-5, atol=1e-6)
    moved = [p.clone() for p in network.base_encoder.parameters()]
    method.after_step(1.0)
    assert all(torch.equal(p, q) for p, q in zip(moved, network.base_encoder.parameters(), strict=True)), "1 at the end"
    assert 0 < terms["teacher_entropy"] <= terms["mean_entropy"] + 1e-6 <= math.log(32) + 1e-5
    assert network.dino.center.abs().max() > 0 and network.ibot.center.center.isfinite().all()


def test_the_last_layer_rests_at_first_and_then_moves(one_step):
    method, images, valid = one_step("dinov2")
    for progress, rests in ((0.0, True), (0.3, False)):
        method.optimizer.zero_grad(set_to_none=True)
        method.before_step(progress)
        method.loss(images, valid, generator(1), 0, 1)[0].backward()
        assert all((p.grad is None) == rests for p in method.network.student_head.last_layer.parameters())
    assert method.optimizer.param_groups[0]["weight_decay"] == pytest.approx(
        0.4 - 0.36 * 0.5 * (1 + math.cos(0.3 * math.pi))
    )


def test_block_masks_are_a_function_of_the_generator_and_leave_pythons_own_alone():
    settings = PretrainingConfig().dinov2
    random.seed(7)
    expected = random.random()
    random.seed(7)
    a, b, c = (dinov2.block_masks(16, 12, settings, generator(n)) for n in (1, 1, 2))
    assert random.random() == expected
    assert torch.equal(a, b) and not torch.equal(a, c)
    share = a.flatten(1).float().mean(1)
    assert (share > 0).sum() == 8 and share.max() <= 0.5


def test_batch_norm_in_the_head_tells_apart_vectors_that_hardly_differ(one_step):
    vectors = torch.ones(32, 192) + 1e-3 * torch.randn(32, 192, generator=generator(5))
    spread = {}
    for norm in ("false", "true"):
        method, *_ = one_step("dinov2", f"dinov2.batch_norm={norm}")
        with torch.no_grad():
            out = method.network.student_head(vectors)
        spread[norm] = float((out - out.mean(0)).square().mean() / out.square().mean())
    assert spread["false"] < 0.05 < 0.5 < spread["true"]


def plain_sinkhorn(logits: torch.Tensor, temperature: float, iterations: int) -> torch.Tensor:
    """Assignments (N, K) whose columns, then rows, are scaled to sums of N / K and 1 in turn."""
    p = (logits.double() / temperature).exp()
    for _ in range(iterations):
        p = p / p.sum(0) * len(p) / p.shape[1]
        p = p / p.sum(1, keepdim=True)
    return p


def test_sinkhorn_is_a_centre_with_which_all_prototypes_are_used_alike():
    logits = torch.randn(24, 16, generator=generator(2)) * 0.3 + torch.arange(16) / 8
    for iterations in (1, 3, 100):
        p = ((logits - dinov2.sinkhorn_centre(logits, 0.2, iterations)) / 0.2).softmax(-1)
        torch.testing.assert_close(p, plain_sinkhorn(logits, 0.2, iterations).float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(p.sum(0), torch.full((16,), 24 / 16), rtol=1e-3, atol=0)
    assert (logits / 0.2).softmax(-1).sum(0).max() > 10, "without, one takes most"
    assert dinov2.sinkhorn_centre(1000 * logits, 0.01).isfinite().all()


def test_sinkhorn_centres_with_the_batch_and_not_with_the_past(one_step):
    method, images, valid = one_step("dinov2", "dinov2.centring=sinkhorn")
    network, centres = method.network, []
    for _ in range(2):
        network.dino.center.fill_(7.0)
        method.before_step(0.5)
        loss, terms = method.loss(images, valid, generator(1), 0, 1)
        centres.append((loss.item(), network.dino.center.clone(), network.ibot.center.center.clone()))
    assert centres[0][0] == centres[1][0] and all(
        torch.equal(a, b) for a, b in zip(centres[0][1:], centres[1][1:], strict=True)
    )
    assert centres[0][1].abs().max() > 0 and centres[0][2].abs().max() > 0
    assert terms["mean_entropy"] > 0.98 * math.log(32) > terms["teacher_entropy"], (
        "all prototypes, not all for each crop"
    )


@pytest.mark.parametrize("norm", ["false", "true"])
def test_without_small_crops_or_masks_it_trains_too(one_step, norm):
    off = ["dinov2.local_crops.count=0", "dinov2.masked_crops=0.0", f"dinov2.batch_norm={norm}"]
    method, images, valid = one_step("dinov2", *off)
    assert method.views == 2 and method.small is None
    method.before_step(0.5)
    loss, terms = method.loss(images, valid, generator(1), 0, 1)
    loss.backward()
    assert loss.isfinite() and terms["ibot"] == 0 and method.network.ibot.center.center.abs().max() == 0


# ---- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", list(SMALL))
def test_the_loss_falls_on_images_seen_again(build, method):
    """25 steps on the same 8 images and the same crops; a loss whose sign or target is wrong does not fall."""
    settings = build(method, "stages.0.epochs=25", "stages.0.epoch_images=8", "dinov2.teacher_momentum=1.0")
    settings.stages[0].learning_rate = 0.03 if method != "dinov2" else 0.01
    trained = Trainer(settings, torch.device("cpu"), 0, 1)
    images, valid = trained.training[0].batch(np.arange(8))
    values = []
    for _ in range(25):
        trained.loop.epoch, trained.loop.step = 0, 6  # the same random numbers and the same rate
        values.append(trained.update((images, valid))["dino" if method == "dinov2" else "loss"])
    trained.folder.close()
    assert values[-1] < 0.97 * values[0], values[::8]


# ---- two processes ----------------------------------------------------------------------------------------------------


def _gradient(settings, rank, world_size):
    """Loss and averaged gradients of one step, batch norm by its running statistics."""
    torch.manual_seed(0)
    method = trainer.build_method(settings)
    method.optimizer = method.new_optimizer()
    method.network.eval()
    images = torch.randint(0, 256, (8, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    share = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    valid = torch.tensor([[0, 0, 48, 48]]).expand(8, 4)
    method.before_step(0.5)
    loss, _ = method.loss(images[share], valid[share], generator(1, 2, 3), rank, world_size)
    loss.backward()
    average_gradients(list(method.network.parameters()))
    return {"loss": loss.detach()} | {k: p.grad for k, p in method.network.named_parameters() if p.grad is not None}


def _one_of_two(rank, every, folder):
    os.environ |= {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(29500 + os.getppid() % 1000),
    }
    torch.set_num_threads(1)
    with processes("cpu") as (r, k):
        gradients = {s.method: _gradient(s, r, k) for s in every}
        torch.save(gradients | {"centre": dinov2.sinkhorn_centre(sinkhorn_logits()[r::2], 0.1)}, f"{folder}/rank{r}.pt")


def sinkhorn_logits() -> torch.Tensor:
    return torch.randn(20, 12, generator=generator(4))


def test_two_processes_train_as_one(build, tmp_path):
    """Bit for bit nearly, where the loss is a mean over images or gathers all; DINOv2's KoLeo and masks are a process's own."""
    every = [build(m) for m in SMALL]
    torch.multiprocessing.spawn(_one_of_two, (every, str(tmp_path)), nprocs=2)
    theirs = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for other in theirs:
        torch.testing.assert_close(other["centre"], dinov2.sinkhorn_centre(sinkhorn_logits(), 0.1))
    for settings in every:
        name = settings.method
        pair = [t[name] for t in theirs]
        assert all(v.isfinite().all() for t in pair for v in t.values())
        assert all(torch.equal(v, pair[1][k]) for k, v in pair[0].items() if k != "loss"), "all take the same step"
        if name == "dinov2":
            continue
        one = _gradient(settings, 0, 1)
        assert (pair[0]["loss"] + pair[1]["loss"]).item() / 2 == pytest.approx(one["loss"].item(), rel=1e-5)
        for key, value in one.items():
            if key != "loss":
                scale = max(value.abs().max().item(), 1e-3)
                torch.testing.assert_close(pair[0][key], value, rtol=1e-4, atol=1e-4 * scale, msg=f"{name} {key}")


# ---- configs ----------------------------------------------------------------------------------------------------------


def test_the_long_configs_see_the_same_92160_images():
    read = [config.load(PretrainingConfig, f) for f in sorted((ROOT / "configs/pretraining/long").glob("*.yaml"))]
    assert {c.method for c in read} == {"mae", "dinov2", "spatial_frequency"}
    for settings in read:
        trainer.check(settings)
        assert sum(s.epochs * s.epoch_images for s in settings.stages) == 92160 and settings.encoder.patch == 16
        assert [(s.name, s.data, s.epochs) for s in settings.stages] == [
            (s.name, s.data, s.epochs) for s in read[0].stages
        ]
    small = config.load(PretrainingConfig, ROOT / "configs/pretraining/small/emp_ssl.yaml")
    assert [s.data for s in read[0].stages] == [s.data for s in small.stages]


def test_the_small_configs_see_the_same_images_for_as_long():
    files = sorted((ROOT / "configs/pretraining/small").glob("*.yaml"))
    read = {f.stem: config.load(PretrainingConfig, f) for f in files}
    assert {c.method for c in read.values()} == set(METHODS) and len({c.name for c in read.values()}) == len(files) == 8

    def images(settings):
        assert all(s.epoch_images % settings.batch_size == 0 for s in settings.stages)
        return [(s.name, s.data, s.epochs, s.epoch_images, s.balance, s.replay) for s in settings.stages]

    first = images(read["emp_ssl"])
    assert all(images(c) == first and c.data.size == 128 for c in read.values())
    coarse, fine = read["emp_ssl"].stages
    assert (coarse.name, fine.name) == ("coarse", "fine") and coarse.epochs == fine.epochs
    assert coarse.epochs * coarse.epoch_images + fine.epochs * fine.epoch_images == 3840
    assert coarse.data == config.load(PretrainingConfig, ROOT / "configs/pretraining/open_sets.yaml").stages[0].data
    assert read["vfm4us"].emp_ssl.adversary.weight == 0.5 and read["vfm4us"].emp_ssl.masking.strategy == "adversarial"
    assert read["emp_ssl"].emp_ssl.adversary.weight == 0 and read["emp_ssl"].emp_ssl.masking.strategy == "none"
    for settings in read.values():
        trainer.check(settings)


def test_the_published_size_is_a_vit_b_at_224():
    for name in ("mae_75", "mae_50", "mae_25", "dinov2", "simclr", "usfm_like"):
        settings = config.load(PretrainingConfig, ROOT / f"configs/pretraining/{name}.yaml")
        trainer.check(settings)
        assert settings.encoder.name == "vit_base" and settings.encoder.patch == 16
        assert next(iter(trainer.crops_of(settings).values())).size == 224


def test_rows_of_pictures_show_hidden_tokens_in_colour(tmp_path):
    seen = torch.full((2, 8, 8), 0.5)
    seen[:, :4] = math.nan
    grey = plots.picture_rows(tmp_path / "grey.png", {"image": torch.full((2, 8, 8), 0.5)})
    coloured = plots.picture_rows(tmp_path / "seen.png", {"image": torch.full((2, 8, 8), 0.5), "seen": seen}, "title")

    def orange(picture):
        return ((picture[..., 0] > 200) & (picture[..., 2] < 60)).sum()

    assert orange(grey) == 0 < orange(coloured)
