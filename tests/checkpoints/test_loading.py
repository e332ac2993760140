"""Every published layout fills its encoder wholly, with the features of the original network; anything less is refused.

The files are built from the original projects' key names, not from what this project saves: torchvision and timm make
theirs, and the names that MAE, DINOv2, MoCo v3, EMP-SSL and USFM write are listed here.
"""

import random
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import resnet18

import vfm4us
from tests.conftest import ROOT
from vfm4us import checkpoints
from vfm4us.encoders import MEAN, STD, Encoder, EncoderSpec
from vfm4us.pretraining.trainer import pretrain


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with every tensor random, batch-norm statistics and layer scales too, so that none may be forgotten."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                if (
                    "running_var" in key
                    or "norm" in key
                    and key.endswith("weight")
                    or "bn" in key
                    and key.endswith("weight")
                ):
                    value.copy_(1 + 0.1 * noise.tanh())
                else:
                    value.copy_(noise * (value[0].numel() ** -0.5 if value.ndim > 1 else 0.1))
    return module.eval()


def images(size: int = 64, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def resnet():
    """A torchvision ResNet18, its tensors without `fc`, and its features of `images()`."""
    model = shaken(resnet18())
    model.fc = nn.Identity()
    with torch.no_grad():
        features = model((images() - MEAN) / STD)
    return {k: v.clone() for k, v in model.state_dict().items()}, features


def put(tensors: dict, before: str, **more) -> dict:
    return {before + k: v for k, v in tensors.items()} | more


def resnet_files(r: dict) -> dict:
    """Layout -> the dict that this project's authors save, with the modules they save beside the encoder."""
    fc = {"fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)}
    mlp = {f"fc.{i}.weight": torch.ones(4, 4) for i in (0, 3)}
    children = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    sequential = {re.sub(r"^\w+", lambda m: str(children[m.group()]), k): v for k, v in r.items()}
    smp = {"decoder.p5.conv.weight": torch.ones(3), "segmentation_head.0.weight": torch.ones(2)}
    old = {k: v for k, v in r.items() if not k.endswith("num_batches_tracked")}
    return {
        "base_encoder": {"state_dict": put(r, "module.base_encoder.") | put(fc, "module.base_encoder."), "epoch": 100},
        "MoCo v3": {
            "arch": "resnet18",
            "optimizer": {"state": {0: {"mu": torch.ones(3)}}},
            "state_dict": put(r | mlp, "module.base_encoder.")
            | put({k: v * 2 for k, v in (r | mlp).items()}, "module.momentum_encoder.")
            | {"module.predictor.0.weight": torch.ones(4, 4)},
        },
        "EMP-SSL": put(r, "module.backbone.")
        | {"module.pre_feature.0.weight": torch.ones(8, 512), "module.projection.3.weight": torch.ones(4, 8)},
        "torchvision": r | fc,
        "before counters": old | fc,
        "compiled": {"model": put(r, "_orig_mod.module.encoder.")},
        "lightning": {"state_dict": put(r, "model.backbone."), "hyper_parameters": {"lr": 0.1}},
        "smp": put(r, "encoder.") | smp,
        "lightly": put(sequential, "backbone.") | {"projection_head.layers.0.weight": torch.ones(3)},
        "nested": {"model": {"teacher": {"module": {"encoder": r}}, "student": {"module": {"encoder": put(r, "")}}}},
    }


@pytest.mark.parametrize("layout", list(resnet_files({})))
def test_every_resnet_layout_gives_the_original_features(resnet, tmp_path, layout):
    tensors, features = resnet
    torch.save(resnet_files(tensors)[layout], tmp_path / "a.pth")
    encoder = vfm4us.load_encoder(tmp_path / "a.pth")
    report = encoder.report
    assert report.matched == report.expected == 120 and report.encoder == "resnet18" and not report.resized
    torch.testing.assert_close(encoder.embed(images()), features, atol=1e-5, rtol=1e-5)
    grey = images().mean(1, keepdim=True)
    one = vfm4us.load_encoder(tmp_path / "a.pth", in_channels=1)
    torch.testing.assert_close(one.embed(grey), encoder.embed(grey.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-4)
    dropped = {
        "base_encoder": {"fc": 2},
        "MoCo v3": {"fc": 2, "momentum_encoder": 122, "predictor": 1},
        "EMP-SSL": {"pre_feature": 1, "projection": 1},
        "torchvision": {"fc": 2},
        "before counters": {"fc": 2},
        "smp": {"decoder": 1, "segmentation_head": 1},
        "lightly": {"projection_head": 1},
    }.get(layout)
    if layout == "MoCo v3":  # what was set aside is named by its whole prefix
        assert report.dropped.pop("state_dict.module.momentum_encoder") == 122
        dropped.pop("momentum_encoder")
    if dropped:
        assert report.dropped == dropped


def test_timm_and_torchvision_files_and_other_depths(tmp_path):
    from safetensors.torch import save_file

    for name in ("resnet18", "resnet34", "resnet50"):
        model = shaken(timm.create_model(name, num_classes=7))
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
        encoder = vfm4us.load_encoder(tmp_path / f"{name}.safetensors")
        with torch.no_grad():
            expected = model.forward_head(model.forward_features((images() - MEAN) / STD), pre_logits=True)
        assert encoder.spec.name == name and encoder.report.layout == "ResNet (torchvision, timm)"
        torch.testing.assert_close(encoder.embed(images()), expected, atol=1e-5, rtol=1e-4)


# ---- transformers ---------------------------------------------------------------------------------------------------


def vit(heads=3, depth=12, width=192, patch=16, image=64, **options) -> VisionTransformer:
    model = VisionTransformer(
        img_size=image, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0, **options
    )
    return shaken(model)


# The names in the released files, read off the projects' model definitions; {i} counts blocks.
BLOCK = [
    "norm1.weight",
    "norm1.bias",
    "attn.qkv.weight",
    "attn.qkv.bias",
    "attn.proj.weight",
    "attn.proj.bias",
    "norm2.weight",
    "norm2.bias",
    "mlp.fc1.weight",
    "mlp.fc1.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
]
STEM = ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
MAE_KEYS = [
    *STEM,
    "mask_token",
    "decoder_pos_embed",
    *(f"blocks.{i}.{k}" for i in range(12) for k in BLOCK),
    "norm.weight",
    "norm.bias",
    "decoder_embed.weight",
    "decoder_embed.bias",
    *(f"decoder_blocks.{i}.{k}" for i in range(8) for k in BLOCK),
    "decoder_norm.weight",
    "decoder_norm.bias",
    "decoder_pred.weight",
    "decoder_pred.bias",
]
DINOV2_KEYS = [
    "cls_token",
    "pos_embed",
    "mask_token",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    *(f"blocks.{i}.{k}" for i in range(12) for k in [*BLOCK[:6], "ls1.gamma", *BLOCK[6:], "ls2.gamma"]),
    "norm.weight",
    "norm.bias",
]
USFM_BLOCK = [
    "gamma_1",
    "gamma_2",
    "norm1.weight",
    "norm1.bias",
    "attn.q_bias",
    "attn.v_bias",
    "attn.qkv.weight",
    "attn.proj.weight",
    "attn.proj.bias",
    "norm2.weight",
    "norm2.bias",
    "mlp.fc1.weight",
    "mlp.fc1.bias",
    "mlp.fc2.weight",
    "mlp.fc2.bias",
]


def file_of(keys: list[str], model: nn.Module) -> dict:
    """A state dict of exactly these keys: the model's tensors, and others of odd shapes for the modules it lacks."""
    state = model.state_dict()
    return {k: state.get(k, torch.ones(2, 3)) for k in keys}


def features_of(model, size=64, mean_of_patches=False):
    with torch.no_grad():
        tokens = model.forward_features((images(size) - MEAN) / STD)
    return tokens[:, 1:].mean(1) if mean_of_patches else tokens[:, 0]


def test_mae_with_and_without_last_norm(tmp_path):
    model = vit(class_token=True)
    content = file_of(MAE_KEYS, model)
    assert set(model.state_dict()) <= set(MAE_KEYS)
    torch.save({"model": content, "epoch": 5, "optimizer": {"state": {}}}, tmp_path / "mae.pth")
    encoder = vfm4us.load_encoder(tmp_path / "mae.pth", heads=3)
    assert encoder.report.layout == "MAE" and encoder.report.matched == encoder.report.expected == len(
        model.state_dict()
    )
    assert encoder.report.dropped == {
        "mask_token": 1,
        "decoder_pos_embed": 1,
        "decoder_embed": 2,
        "decoder_blocks": 96,
        "decoder_norm": 2,
        "decoder_pred": 2,
    }
    torch.testing.assert_close(encoder.embed(images()), features_of(model), atol=1e-5, rtol=1e-4)

    # fine-tuned with global pooling: fc_norm of the mean of the patch tokens instead of norm
    tuned = {k: v for k, v in model.state_dict().items() if not k.startswith("norm.")}
    norm = shaken(nn.LayerNorm(192, eps=1e-6), seed=3)
    model.norm = nn.Identity()
    torch.save(
        {"model": tuned | put(norm.state_dict(), "fc_norm.") | {"head.weight": torch.ones(3)}}, tmp_path / "tuned.pth"
    )
    encoder = vfm4us.load_encoder(tmp_path / "tuned.pth", heads=3)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.embed(images()), norm(features_of(model, mean_of_patches=True)), atol=1e-5, rtol=1e-4
        )
    torch.save({"model": tuned}, tmp_path / "none.pth")
    encoder = vfm4us.load_encoder(tmp_path / "none.pth", heads=3)
    assert "no last norm" in str(encoder.report)
    torch.testing.assert_close(encoder.embed(images()), features_of(model, mean_of_patches=True), atol=1e-5, rtol=1e-4)


def chunked(tensors: dict) -> dict:
    """DINOv2's block chunks of 3: the block number counts on over the chunks."""
    return {re.sub(r"^blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // 3}.{m[1]}.", k): v for k, v in tensors.items()}


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("chunks", [False, True])
def test_dinov2_teacher_with_layer_scale(tmp_path, patch, chunks):
    model = vit(patch=patch, image=4 * patch, init_values=1.0)
    content = file_of(DINOV2_KEYS, model)
    assert set(model.state_dict()) <= set(DINOV2_KEYS)
    content = chunked(content) if chunks else content
    heads = {"dino_head.mlp.0.weight": torch.ones(3), "ibot_head.mlp.0.weight": torch.ones(3)}
    both = {
        "teacher": put(content, "backbone.") | heads,
        "student": put({k: v + 1 for k, v in content.items()}, "backbone.") | heads,
    }
    for state, aside in (({"teacher": both["teacher"]}, 0), ({"model": both}, len(content)), (content, 0)):
        torch.save(state, tmp_path / "dino.pth")
        encoder = vfm4us.load_encoder(tmp_path / "dino.pth")
        assert encoder.report.layout == "DINOv2" and encoder.spec.layer_scale and encoder.spec.patch == patch
        assert sum(v for k, v in encoder.report.dropped.items() if "student.backbone" in k) == aside
        torch.testing.assert_close(
            encoder.embed(images(4 * patch)), features_of(model, 4 * patch), atol=1e-5, rtol=1e-4
        )


def test_dinov2_registers(tmp_path):
    model = vit(patch=14, image=56, init_values=1.0)
    registers = torch.randn(1, 4, 192, generator=torch.Generator().manual_seed(1))
    content = model.state_dict() | {"register_tokens": registers, "mask_token": torch.zeros(1, 192)}
    torch.save(content, tmp_path / "reg.pth")
    encoder = vfm4us.load_encoder(tmp_path / "reg.pth")
    assert encoder.spec.registers == 4 and encoder.report.matched == encoder.report.expected
    with torch.no_grad():  # DINOv2 adds positions to class and patch tokens, then puts the registers between them
        x = model.patch_embed((images(56) - MEAN) / STD)
        x = torch.cat([model.cls_token.expand(2, -1, -1), x], dim=1) + model.pos_embed
        x = torch.cat([x[:, :1], registers.expand(2, -1, -1), x[:, 1:]], dim=1)
        expected = model.norm(model.blocks(x))[:, 0]
    torch.testing.assert_close(encoder.embed(images(56)), expected, atol=1e-5, rtol=1e-4)


def test_swiglu_is_refused_with_the_reason(tmp_path):
    content = vit(init_values=1.0).state_dict()
    content = {k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for k, v in content.items()}
    with pytest.raises(ValueError, match="holds a DINOv2 with SwiGLU"):
        vfm4us.load_encoder(content)


def test_moco_v3_vit_small_has_twelve_heads(tmp_path):
    model = vit(width=384, heads=12)
    state = put(model.state_dict(), "module.base_encoder.") | {"module.base_encoder.head.0.weight": torch.ones(3)}
    state |= put({k: v + 1 for k, v in model.state_dict().items()}, "module.momentum_encoder.")
    torch.save({"arch": "vit_small", "state_dict": state}, tmp_path / "moco.pth.tar")
    encoder = vfm4us.load_encoder(tmp_path / "moco.pth.tar")
    assert encoder.spec.heads == 12 and "12 heads" in str(encoder.report)
    torch.testing.assert_close(encoder.embed(images()), features_of(model), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_usfm_fills_timms_beit(tmp_path, shared):
    model = shaken(
        timm.create_model("beit_base_patch16_224", num_classes=0, img_size=64, use_shared_rel_pos_bias=False), seed=2
    )
    state = model.state_dict()
    if shared:
        for i in range(1, 12):
            state[f"blocks.{i}.attn.relative_position_bias_table"].copy_(
                state["blocks.0.attn.relative_position_bias_table"]
            )
    keys = ["cls_token", "mask_token", *(f"patch_embed.proj.{k}" for k in ("weight", "bias"))]
    keys += [f"blocks.{i}.{k}" for i in range(12) for k in USFM_BLOCK] + [
        "fc_norm.weight",
        "fc_norm.bias",
        "head.weight",
    ]
    content = file_of(keys, model)
    if shared:
        content["rel_pos_bias.relative_position_bias_table"] = state["blocks.0.attn.relative_position_bias_table"]
        content["rel_pos_bias.relative_position_index"] = torch.zeros(17, 17, dtype=torch.long)
    else:
        for i in range(12):
            for k in ("relative_position_bias_table", "relative_position_index"):
                content[f"blocks.{i}.attn.{k}"] = state.get(
                    f"blocks.{i}.attn.{k}", torch.zeros(17, 17, dtype=torch.long)
                )
    torch.save({"model": content, "max_accuracy": 0.9, "epoch": 3}, tmp_path / "usfm.pth")
    encoder = vfm4us.load_encoder(tmp_path / "usfm.pth")
    assert encoder.report.layout == "BEiT (USFM)" and encoder.report.matched == encoder.report.expected == len(state)
    assert encoder.spec.name == "beit_base" and encoder.spec.image == 64
    with torch.no_grad():
        expected = model((images() - MEAN) / STD)
    torch.testing.assert_close(encoder.embed(images()), expected, atol=1e-5, rtol=1e-4)
    larger = vfm4us.load_encoder(tmp_path / "usfm.pth", image_size=96)
    assert larger.report.resized == ["relative positions 4x4 -> 6x6"] and larger.embed(images()).isfinite().all()


def test_positions_of_another_size_are_resampled_and_the_report_says_so(tmp_path):
    model = vit(image=64)
    torch.save({"model": model.state_dict()}, tmp_path / "vit.pth")
    same, other = (
        vfm4us.load_encoder(tmp_path / "vit.pth", heads=3),
        vfm4us.load_encoder(tmp_path / "vit.pth", image_size=96, heads=3),
    )
    assert same.report.resized == [] and other.report.resized == ["pos_embed 4x4 -> 6x6"]
    assert other.body.pos_embed.shape == (1, 37, 192)
    # resampled once or at every call: the same
    torch.testing.assert_close(other.embed(images(96)), same.embed(images(96)), atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="multiple of this encoder's patch of 16"):
        vfm4us.load_encoder(tmp_path / "vit.pth", image_size=100, heads=3)


# ---- our own files, and what is refused -----------------------------------------------------------------------------


def test_the_readme_snippet_loads_our_checkpoint_into_smp_word_for_word(tiny, tmp_path, monkeypatch):
    folder = pretrain(tiny("name=quickstart", "stages.0.epochs=1", "stages.1.epochs=1"))
    readme = (ROOT / "README.md").read_text()
    [snippet] = [block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "smp.DeepLabV3Plus" in block]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(snippet, names)
    model = names["model"]
    loaded = model.encoder.state_dict()
    ours = vfm4us.load_encoder(folder)
    assert len(loaded) == len(names["state_dict"]) == ours.report.matched == ours.report.expected == 120
    for key, value in ours.body.state_dict().items():
        assert torch.equal(value, loaded[key]), key
    x = torch.rand(2, 1, 64, 64)
    maps = model.eval().encoder(ours.normalize(x))
    for mine, theirs in zip(ours.eval().pyramid(x)[:4], maps[1:5], strict=True):  # DeepLab dilates the last stage
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    "spec",
    [
        EncoderSpec("resnet18", 1),
        EncoderSpec("vit_tiny", 1, patch=14, image=56, registers=4, layer_scale=True),
        EncoderSpec("vit_tiny", 3, mean=0.2, std=0.1, heads=6, norm="mean"),
    ],
)
def test_our_own_files_come_back_as_they_were(tmp_path, spec):
    encoder = shaken(Encoder(spec))
    state = put(encoder.published_state(), "module.base_encoder.") | {"module.projector.0.weight": torch.ones(3)}
    checkpoints.save(tmp_path / "a.pt", {"state_dict": state, "encoder": encoder.spec_dict()})
    x = torch.rand(2, 1, 64, 64)
    for channels in (1, 3):
        loaded = vfm4us.load_encoder(tmp_path / "a.pt", in_channels=channels)
        assert loaded.report.layout == "VFM4US" and loaded.report.dropped == {"projector": 1}
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), encoder(x), atol=1e-5, rtol=1e-4)
    if spec.name == "resnet18":
        assert str(loaded.report) == "layout VFM4US, 120/120 tensors, dropped: projector (1), resized: none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layer3.1.bn1.weight"), r"1 are missing .*layer3.1.bn1.weight((?!allow_missing).)*$"),
        (lambda t: t.__setitem__("layer1.7.conv1.weight", torch.ones(1)), "ResNet with .8, 2, 2, 2. basic blocks"),
        (lambda t: t.__setitem__("layer1.0.extra.weight", torch.ones(1)), "1 do not belong .*layer1.0.extra.weight"),
        (lambda t: t.__setitem__("layer1.0.se.fc.weight", torch.ones(1)), "a ResNet with squeeze and excitation"),
        (lambda t: t.__setitem__("bn1.weight", torch.ones(7)), r"bn1.weight \(7,\) instead of \(64,\)"),
        (
            lambda t: t.__setitem__("conv1.weight", torch.ones(64, 3, 3, 3)),
            r"\(64, 3, 3, 3\) instead of \(64, 3, 7, 7\)",
        ),
        (lambda t: t["bn1.bias"].fill_(float("nan")), "1 encoder tensors hold NaN or infinity, for example bn1.bias"),
        (lambda t: t["bn1.running_var"].fill_(-1), "variance below 0"),
        (lambda t: t.__setitem__("bn1.weight", torch.ones(64, dtype=torch.int8)), "int8, expected floating point"),
        (lambda t: [t.pop(k) for k in list(t) if "conv1" in k], "holds no encoder .*Prefixes found: state_dict.bn1"),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_anything_less_than_the_whole_encoder_is_refused(resnet, change, message):
    tensors = {k: v.clone() for k, v in resnet[0].items()}
    change(tensors)
    with pytest.raises(ValueError, match=message):
        vfm4us.load_encoder({"state_dict": tensors})


def test_a_partial_load_must_be_asked_for_by_name(resnet):
    tensors = {k: v for k, v in resnet[0].items() if not k.startswith("layer4.")}
    with pytest.raises(ValueError, match="allow_missing=.*layer4"):
        vfm4us.load_encoder(tensors)
    with pytest.raises(ValueError, match="30 are missing"):
        vfm4us.load_encoder(tensors, allow_missing=("layer3.",))
    encoder = vfm4us.load_encoder(tensors, allow_missing=("layer4.",))
    assert encoder.report.matched == 90 and "left random, as allow_missing says: layer4 (30)" in str(encoder.report)
    assert torch.equal(encoder.body.layer3[0].conv1.weight, tensors["layer3.0.conv1.weight"])
    assert encoder.body.layer4[0].conv1.weight.std() > 0


def test_several_encoders_in_one_file_need_a_word(resnet):
    tensors, features = resnet
    state = {"left": put(tensors, "net."), "right": put({k: v * 0 for k, v in tensors.items()}, "net.")}
    with pytest.raises(ValueError, match="2 encoders: say which by prefix='left.net.'"):
        vfm4us.load_encoder(state)
    torch.testing.assert_close(
        vfm4us.load_encoder(state, prefix="left.net").embed(images()), features, atol=1e-5, rtol=1e-4
    )
    with pytest.raises(ValueError, match="names no encoder"):
        vfm4us.load_encoder(state, prefix="middle")


def test_a_file_that_says_another_architecture_than_it_holds_is_refused(resnet):
    state = {
        "state_dict": put(resnet[0], "module.base_encoder."),
        "encoder": {"name": "resnet50", "mean": [0.4], "std": [0.2]},
    }
    with pytest.raises(ValueError, match="says that it holds a resnet50"):
        vfm4us.load_encoder(state)
    with pytest.raises(ValueError, match="width 100"):
        content = vit().state_dict()
        vfm4us.load_encoder(content | {"patch_embed.proj.weight": torch.ones(100, 3, 16, 16)})


def test_half_precision_and_changed_layout_in_memory_load_as_float32(resnet, tmp_path):
    tensors, features = resnet
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}, tmp_path / "half.pth")
    encoder = vfm4us.load_encoder(tmp_path / "half.pth")
    assert encoder.body.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(encoder.embed(images()), features, atol=0.1, rtol=0.05)
    last = {k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in tensors.items()}
    torch.testing.assert_close(vfm4us.load_encoder(last).embed(images()), features, atol=1e-5, rtol=1e-4)


def test_what_was_loaded_hangs_neither_on_the_file_nor_on_the_dict(resnet, tmp_path):
    from safetensors.torch import save_file

    torch.save(resnet[0], tmp_path / "a.pth")
    save_file(resnet[0], tmp_path / "a.safetensors")
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        encoder = vfm4us.load_encoder(path)
        path.write_bytes(bytes(path.stat().st_size))
        torch.testing.assert_close(encoder.embed(images()), resnet[1], atol=1e-5, rtol=1e-4)
    given = {k: v.clone() for k, v in resnet[0].items()}
    given["layer1.1.bn2.weight"] = given["layer1.1.bn1.weight"]  # one tensor twice, as tied weights are saved
    encoder = vfm4us.load_encoder(given)
    block = encoder.body.layer1[1]
    with torch.no_grad():
        block.bn1.weight.zero_()
    assert block.bn2.weight.abs().sum() > 0 and given["layer1.1.bn1.weight"].abs().sum() > 0
    assert all(p.requires_grad and not p.is_meta for p in encoder.parameters()) and not encoder.training


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_thousand_damaged_files_are_refused_or_load_what_was_saved(tmp_path, count):
    """Bytes changed, cut off, repeated or swapped, in all three formats; the half-precision vit_tiny keeps files small."""
    from safetensors.torch import save_file

    tensors = {k: v.half() for k, v in vit().state_dict().items()}
    torch.save(tensors, tmp_path / "zip.pt")
    torch.save(tensors, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(tensors, tmp_path / "s.safetensors")
    good = {p: p.read_bytes() for p in (tmp_path / "zip.pt", tmp_path / "legacy.pt", tmp_path / "s.safetensors")}
    rng, outcomes = random.Random(0), {"refused": 0, "loaded": 0}
    for i in range(count):
        path = rng.choice(list(good))
        content = bytearray(good[path])
        # half of the damage where it hurts: in the headers at the beginning, or the zip directory at the end
        places = (rng.randrange(len(content)), rng.randrange(20_000), len(content) - 1 - rng.randrange(20_000))
        at = places[rng.randrange(3)]
        kind = rng.randrange(4)
        if kind == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            content[at : at + 64] = bytes(rng.randrange(256) for _ in range(len(content[at : at + 64])))
        else:
            other = rng.randrange(len(content) - 256)
            content[at : at + 256] = content[other : other + len(content[at : at + 256])]
        bad = tmp_path / f"damaged{path.suffix}"
        bad.write_bytes(content)
        try:
            encoder = vfm4us.load_encoder(bad, heads=3)
        except ValueError as error:
            assert bad.name in str(error), f"damage {i}: {error}"
            outcomes["refused"] += 1
            continue
        outcomes["loaded"] += 1
        if path.name == "zip.pt":  # the checksums leave nothing that could change a weight
            for key, value in encoder.body.state_dict().items():
                assert torch.equal(value, tensors[key].float()), f"damage {i}: {key} changed without a word"
    assert outcomes["refused"] > count // 2, outcomes


def test_a_quick_look_at_every_key_is_enough_to_flatten_anything():
    loop: dict = {"a": torch.ones(1)}
    loop["again"] = loop
    assert len(checkpoints.flatten(loop)) < 20
    assert checkpoints.flatten({"x": {"y": [torch.ones(1)], 3: {"z": torch.ones(2)}}}).keys() == {"x.3.z"}


def test_normalised_vectors_of_two_layouts_agree(resnet, tmp_path):
    files = resnet_files(resnet[0])
    vectors = [F.normalize(vfm4us.load_encoder(files[k]).embed(images()), dim=-1) for k in ("EMP-SSL", "lightly")]
    torch.testing.assert_close(*vectors)
