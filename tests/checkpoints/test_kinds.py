"""What people have is loaded by what it says of itself, or refused by its own name; two possible readings are both said."""

import argparse
import io
import json
import re
import sys
import types
import warnings

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

import vfm4us
from tests.checkpoints.test_hostile import other_tensors
from tests.checkpoints.test_loading import images, put, shaken, vit
from vfm4us.checkpoints import files_of, read
from vfm4us.encoders import MEAN, STD, Encoder, EncoderSpec


def without_head(model: nn.Module) -> dict:
    return {k: v for k, v in model.state_dict().items() if not k.startswith(("fc.", "head."))}


def vector_of(model: nn.Module, mean=MEAN, std=STD, size=64) -> torch.Tensor:
    with torch.no_grad():
        return model((images(size) - mean) / std)


# ---- heads ------------------------------------------------------------------------------------------------------------


def test_heads_that_nothing_tells_must_be_given():
    tensors = vit(heads=12).state_dict()
    with pytest.raises(ValueError, match=r"vit_tiny.*3 \(timm, DeiT\) or 12 \(TinyUSFM.*heads=3 or heads=12"):
        vfm4us.load_encoder(tensors)
    encoder = vfm4us.load_encoder(tensors, heads=12)
    assert encoder.spec.heads == 12 and "12 heads, as given" in str(encoder.report)
    torch.testing.assert_close(encoder(images()), vector_of(vit(heads=12)), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="7 heads .* do not divide the width 192"):
        vfm4us.load_encoder(tensors, heads=7)
    with pytest.raises(ValueError, match="heads=8 is for transformers"):
        vfm4us.load_encoder(resnet18().state_dict(), heads=8)
    with pytest.raises(ValueError, match=r"vit_small.*6 \(timm, DeiT, DINO\) or 12 \(MoCo v3\)"):
        vfm4us.load_encoder({"state_dict": put(vit(width=384).state_dict(), "module.base_encoder.")})


@pytest.mark.parametrize(
    ("words", "heads"),
    [
        ({"args": argparse.Namespace(model="vit_tiny_patch16_224")}, 3),
        ({"config": {"model": {"num_heads": 12}}}, 12),
        ({"hyper_parameters": {"backbone": {"num_attention_heads": 6}}}, 6),
        ({"arch": "deit_tiny_patch16_224"}, 3),
        ({"model_name": "TinyUSFM"}, 12),
    ],
)
def test_heads_come_from_the_files_own_words(tmp_path, words, heads):
    torch.save({"model": vit().state_dict()} | words, tmp_path / "a.pth")
    encoder = vfm4us.load_encoder(tmp_path / "a.pth")
    assert encoder.spec.heads == (0 if heads == 3 else heads) and f"{heads} heads, as" in str(encoder.report)


def test_words_that_name_another_size_or_two_numbers_decide_nothing():
    for words in (
        {"arch": "vit_base_patch16"},
        {"a": {"num_heads": 3}, "b": {"num_heads": 6}},
        {"config": {"decoder": {"num_heads": 6}, "seg_head": {"num_heads": 4}}},
        {"args": argparse.Namespace(model="mae_vit_tiny_patch16")},
    ):
        with pytest.raises(ValueError, match="heads=3 or heads=12"):
            vfm4us.load_encoder({"model": vit().state_dict()} | words)


# ---- Hugging Face -----------------------------------------------------------------------------------------------------

BACK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def as_hugging_face(model: nn.Module, dino: bool = False) -> dict:
    """A timm ViT's tensors by transformers' names, as its ViTModel and Dinov2Model define them."""
    out = {}
    for key, value in model.state_dict().items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias|gamma)", key)
        if block is None:
            names = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
            key = re.sub(r"^patch_embed\.proj", "embeddings.patch_embeddings.projection", names.get(key, key))
            out[re.sub(r"^norm\.", "layernorm.", key)] = value
            continue
        number, module, last = block.groups()
        before = f"encoder.layer.{number}."
        if module == "attn.qkv":
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[f"{before}attention.attention.{part}.{last}"] = piece.clone()
        elif module == "attn.proj":
            out[f"{before}attention.output.dense.{last}"] = value
        elif module in ("ls1", "ls2"):
            out[f"{before}layer_scale{module[-1]}.lambda1"] = value
        else:
            out[f"{before}{module if dino else BACK[module]}.{last}"] = value
    return out


def test_a_folder_of_transformers_loads_in_one_file_and_in_shards(tmp_path):
    model = vit(heads=6)
    tensors = put(as_hugging_face(model), "vit.") | {
        "vit.pooler.dense.weight": torch.ones(2),
        "classifier.bias": torch.ones(2),
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "num_attention_heads": 6}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    names = list(tensors)
    for i, part in enumerate((names[:70], names[70:])):
        save_file({k: tensors[k] for k in part}, tmp_path / f"model-{i}.safetensors")
    index = {"weight_map": {k: f"model-{int(i >= 70)}.safetensors" for i, k in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for source in (tmp_path, tmp_path / "model.safetensors.index.json"):
        encoder = vfm4us.load_encoder(source)
        assert encoder.report.dropped == {"pooler": 1, "classifier": 1} and "Hugging Face" in encoder.report.layout
        torch.testing.assert_close(encoder(images()), vector_of(model, 0.5, 0.25), atol=1e-5, rtol=1e-4)
        assert [p.name for p in files_of(source)] == sorted(p.name for p in tmp_path.iterdir())
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match="files that are not there: model-1.safetensors"):
        vfm4us.load_encoder(tmp_path)
    index["weight_map"]["x"] = "../model-0.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="a file outside its folder"):
        vfm4us.load_encoder(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    encoder = vfm4us.load_encoder(tmp_path / "pytorch_model.bin")  # what lies beside it says the heads
    assert encoder.spec.heads == 6 and encoder.spec.mean == 0.5


def test_dinov2_and_resnets_of_transformers_load(tmp_path):
    model = vit(patch=14, image=56, init_values=1.0)
    encoder = vfm4us.load_encoder(as_hugging_face(model, dino=True))
    assert encoder.spec.layer_scale and encoder.report.layout.startswith("DINOv2")
    with torch.no_grad():
        torch.testing.assert_close(encoder(images(56)), model((images(56) - MEAN) / STD), atol=1e-5, rtol=1e-4)
    for name in ("resnet18", "resnet50"):
        model = shaken(timm.create_model(name, num_classes=0))
        tensors = {}
        for key, value in model.state_dict().items():
            key = re.sub(r"^(conv|bn)1\.", lambda m: f"embedder.embedder.{KINDS[m[1]]}.", key)
            key = re.sub(r"downsample\.(\d)", lambda m: f"shortcut.{('convolution', 'normalization')[int(m[1])]}", key)
            key = re.sub(r"(conv|bn)(\d)\.(?=[a-z_]+$)", lambda m: f"layer.{int(m[2]) - 1}.{KINDS[m[1]]}.", key)
            tensors[re.sub(r"^layer(\d)\.(\d+)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.", key)] = (
                value
            )
        encoder = vfm4us.load_encoder(put(tensors, "resnet."))
        assert encoder.spec.name == name and encoder.report.matched == len(tensors)
        torch.testing.assert_close(encoder(images()), vector_of(model), atol=1e-5, rtol=1e-4)


KINDS = {"conv": "convolution", "bn": "normalization"}


# ---- refused by name ------------------------------------------------------------------------------------------------


def changed(tensors: dict, *pairs: tuple[str, str], **more) -> dict:
    for old, new in pairs:
        tensors = {re.sub(old, new, k): v for k, v in tensors.items()}
    return tensors | more


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: changed(t, **{"rope_embed.periods": torch.ones(16)}), "DINOv3 or EVA"),
        (lambda t: changed(t, **{"blocks.0.attn.rel_pos_h": torch.ones(27, 64)}), "SAM or MedSAM"),
        (lambda t: changed(t, dist_token=torch.ones(1, 1, 192)), "distilled DeiT"),
        (lambda t: changed(t, (r"qkv\.", "qkv.base_layer.")), r"LoRA .*merge_and_unload\(\)"),
        (lambda t: changed(t, (r"blocks\.", "layers."), ("norm1", "ln1")), "MMPretrain"),
        (lambda t: changed(t, (r"blocks\.", "layers.0.blocks.")), "Swin"),
        (lambda t: changed(t, (r"attn\.qkv", "attn.q_proj")), "EVA"),
        (lambda t: changed(t, **{"patch_embed.backbone.conv.weight": torch.ones(1)}), "behind a convolutional network"),
        (lambda t: changed(t, **{"pos_embed_window": torch.ones(1)}), "SAM 2"),
        (lambda t: changed(t, **{"blocks.1.proj.weight": torch.ones(1)}), "a Hiera"),
        (lambda t: changed(t, **{"blocks.0.attn.q_bias": torch.ones(192)}), "EVA or DINOv3 .*positions rotate"),
        (lambda t: changed(t, **{"blocks.0.gamma_1": torch.ones(192)}), "EVA or DINOv3 .*positions rotate"),
        (lambda t: changed(t, **{"blocks.0.attn.norm.weight": torch.ones(192)}), "BEiT-3"),
        (lambda t: changed(t, **{"blocks.0.attn.q_norm.weight": torch.ones(64)}), "normalises queries and keys"),
        (lambda t: changed(t, **{"blocks.0.attn.gating_param": torch.ones(3)}), "ConViT"),
        (lambda t: changed(t, **{"blocks.0.attn.rel_pos.mlp.fc1.weight": torch.ones(3)}), "relative positions"),
        (lambda t: changed(t, (r"blocks\.", "swinViT.layers1.0.blocks.")), "Swin"),
        (lambda t: changed(t, **{"patch_embed.proj3d.weight": torch.ones(1, 1, 1, 1, 1)}), "video or volumes"),
        (lambda t: {k: v for k, v in t.items() if k != "cls_token"}, "without a class token .I-JEPA"),
        (lambda t: changed(t, **{"norm_pre.weight": torch.ones(192)}), "CLIP"),
        (lambda t: changed(t, **{"attn_pool.latent": torch.ones(1, 1, 192)}), "by attention"),
        (lambda t: t | {"pos_embed": torch.ones(1, 1 + 14 * 28, 192)}, "no square .*images that are not square"),
        (lambda t: t | {"pos_embed": torch.ones(1, 64, 64, 192)}, "no position embedding"),
    ],
)
def test_other_transformers_are_refused_by_their_own_name(change, said):
    with pytest.raises(ValueError, match=said) as caught:
        vfm4us.load_encoder({"model": put(change(vit().state_dict()), "encoder.")}, heads=3)
    assert "allow_missing" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("seresnet50", "squeeze and excitation"),
        ("resnet18d", "stem of three convolutions"),
        ("resnext50_32x4d", "ResNeXt"),
        ("wide_resnet50_2", "a wide ResNet .128 channels"),
        ("efficientnet_b0", "an EfficientNet"),
        ("convnext_atto", "a ConvNeXt"),
        ("densenet121", "a DenseNet"),
        ("mobilenetv3_small_050", "a MobileNetV3"),
        ("resnet26", r"a ResNet with \[2, 2, 2, 2\] bottleneck blocks; this project knows"),
        ("skresnet18", "an SKNet"),
        ("hrnet_w18_small", "an HRNet"),
        ("edgenext_xx_small", "an EdgeNeXt"),
        ("regnety_002", "a RegNet"),
        ("torchvision:mobilenet_v3_small", "a MobileNetV3 of torchvision"),
        ("torchvision:efficientnet_b0", "an EfficientNet of torchvision"),
        ("torchvision:swin_t", "a Swin transformer"),
        ("torchvision:shufflenet_v2_x0_5", "a ShuffleNet"),
        ("torchvision:r3d_18", "video or volumes"),
        ("torchvision:vgg11", "a VGG"),
    ],
)
def test_other_convolutional_networks_are_refused_by_their_own_name(name, said):
    with torch.device("meta"):
        other = name.removeprefix("torchvision:")
        model = timm.create_model(name) if other == name else torchvision.models.get_model(other, weights=None)
        shapes = {k: (v.shape, v.dtype) for k, v in model.state_dict().items()}
    tensors = {k: torch.zeros((), dtype=d).expand(s) for k, (s, d) in shapes.items()}
    with pytest.raises(ValueError, match=said) as caught:
        vfm4us.load_encoder(tensors)
    assert "allow_missing" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (("state.0.exp_avg", "state.0.step"), "the state of an optimizer, not of a network: give the file"),
        (("state_dict._fsdp_wrapped_module._flat_param",), "FSDP has flattened: .*FULL_STATE_DICT"),
        (("visual.layer1.0.conv1.weight", "visual.attnpool.q_proj.weight"), "a ResNet of CLIP"),
        (("layer1.0.convs.0.weight", "layer1.0.conv1.weight"), "a Res2Net"),
        (("net.downsample_layers.0.0.weight", "net.stages.0.0.dwconv.weight"), "a ConvNeXt"),
        (("encoder.stages.0.layers.0.dwconv.weight",), "a ConvNeXt in Hugging Face"),
        (("patch_embedding.patch_embeddings.weight", "blocks.0.mlp.linear1.weight"), "a ViT of MONAI"),
        (("stem.0.weight", "stages.0.blocks.0.x.weight"), "holds no encoder that this project knows"),
    ],
)
def test_keys_of_other_things_are_named(keys, said):
    with pytest.raises(ValueError, match=said):
        vfm4us.load_encoder({key: torch.ones(2) for key in keys})


def test_a_network_that_is_not_known_is_named_as_the_file_names_it():
    with pytest.raises(ValueError, match=r"knows \(ResNet, ViT, BEiT\); it says of itself: xception71"):
        vfm4us.load_encoder({"state_dict": {"a.b": torch.ones(2)}, "args": argparse.Namespace(model="xception71")})


def test_torchvisions_vit_and_those_without_biases_load():
    model = torchvision.models.VisionTransformer(32, 16, 12, 3, 192, 768)
    shaken(model).heads = nn.Identity()
    encoder = vfm4us.load_encoder(
        {"model": put(model.state_dict(), "module.") | {"module.heads.head.bias": torch.ones(2)}}, heads=3
    )
    assert "in torchvision's names" in encoder.report.layout and encoder.report.dropped == {"heads": 1}
    torch.testing.assert_close(encoder(images(32)), vector_of(model, size=32), atol=1e-5, rtol=1e-4)
    model = vit(qkv_bias=False)
    encoder = vfm4us.load_encoder(model.state_dict(), heads=3)
    assert "no biases of queries" in str(encoder.report)
    torch.testing.assert_close(encoder(images()), vector_of(model), atol=1e-5, rtol=1e-4)


def test_the_teacher_is_taken_where_ddp_wraps_the_student_alone():
    tensors = without_head(resnet18())
    state = {"student": put(tensors, "module.backbone."), "teacher": put(tensors, "backbone.")}
    assert vfm4us.load_encoder(state).report.root == "teacher.backbone."


def test_deit_3_has_its_own_name():
    report = str(vfm4us.load_encoder(vit(width=384, heads=6, init_values=1.0, no_embed_class=True).state_dict()).report)
    assert report.startswith("layout DeiT III") and "6 heads, as DeiT's networks have" in report


def test_the_image_side_of_clip_has_clip_s_input(tmp_path):
    tensors = put(vit(width=384).state_dict(), "visual.trunk.") | {"logit_scale": torch.ones(())}
    encoder = vfm4us.load_encoder(tensors, heads=6)
    assert (encoder.spec.mean, encoder.spec.std) == (0.4492, 0.2686) and "as CLIP's networks are" in str(encoder.report)
    save_file({k: v.clone() for k, v in tensors.items()}, tmp_path / "open_clip_model.safetensors")
    words = {
        "model_cfg": {"vision_cfg": {"timm_model_name": "vit_small_patch16_224"}, "text_cfg": {"heads": 8}},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(words))
    encoder = vfm4us.load_encoder(tmp_path)
    assert (encoder.spec.mean, encoder.spec.std, encoder.spec.heads) == (0.5, 0.25, 0)


def test_folders_and_files_of_other_programs_are_refused_by_name(tmp_path):
    (tmp_path / "dcp" / "100").mkdir(parents=True)
    (tmp_path / "dcp" / "100" / ".metadata").write_bytes(b"\x80\x04}.")
    for source in (tmp_path / "dcp", tmp_path / "dcp" / "100", tmp_path / "dcp" / "100" / ".metadata"):
        with pytest.raises(ValueError, match=r"distributed checkpoint.*dcp_to_torch \S+100 weights.pt"):
            vfm4us.load_encoder(source)
    for name, content, said in (
        ("weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "Keras"),
        ("model.onnx", b"\x08\x07\x12\x07pytorch" + bytes(99), "ONNX"),
        ("weights.tflite", b"\x1c\0\0\0TFL3" + bytes(99), "TensorFlow Lite"),
        ("config.yaml.json", b'{"a": 1}', "JSON"),
        ("flax_model.msgpack", b"\x82\xa6params" + bytes(99), "Flax"),
        ("model.caffemodel", b"\x0a\x07" + bytes(99), "Caffe"),
        ("weights.7z", b"7z\xbc\xaf\x27\x1c" + bytes(99), "7-zip"),
        ("model.ckpt-9.meta", b"\x0a\x02" + bytes(99), "TensorFlow"),
        ("checkpoint", b'model_checkpoint_path: "model.ckpt-9"', "TensorFlow"),
        ("renamed.pth", b"\x08\x0e:3\n" + bytes(99), "a program in protobuf .ONNX or TensorFlow"),
        ("picture.pth", b"\x89PNG\r\n\x1a\n" + bytes(99), "picture"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is refused: .*{said}"):
            vfm4us.load_encoder(tmp_path / name)
    for name, said in (("adapter_config.json", "LoRA adapters without"), ("saved_model.pb", "TensorFlow")):
        (tmp_path / said).mkdir()
        (tmp_path / said / name).write_text("{}")
        with pytest.raises(ValueError, match=said):
            vfm4us.load_encoder(tmp_path / said)
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "keras" / "tf_model.h5").touch()
    with pytest.raises(FileNotFoundError, match=r"no weights of PyTorch .*only config.json, tf_model.h5"):
        vfm4us.load_encoder(tmp_path / "keras")
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "best.pth").touch()
    with pytest.raises(FileNotFoundError, match="give one of its files: best.pth"):
        vfm4us.load_encoder(tmp_path / "trained")


def test_a_class_of_another_project_is_refused_with_the_remedy(tmp_path, monkeypatch):
    module = types.ModuleType("clinic_project")
    module.Settings = type("Settings", (), {"__module__": "clinic_project", "__qualname__": "Settings"})
    monkeypatch.setitem(sys.modules, "clinic_project", module)
    torch.save({"state_dict": without_head(resnet18()), "hyper_parameters": module.Settings()}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"would call clinic_project.Settings.*torch.save\(\{'state_dict'"):
        read(tmp_path / "last.ckpt")


# ---- what a file says of itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        {"meta": {"style": "caffe"}},
        {"meta": {"cfg": "backbone=dict(type='ResNet', depth=50, style='caffe')"}},
        {"arch": "resnetblur50"},
        {"args": argparse.Namespace(replace_stride_with_dilation=[False, False, True])},
        {"config.json": {"model_type": "resnet", "hidden_act": "silu"}},
        {"classifier": {"0.convs.0.0.weight": torch.ones(2)}},  # DeepLab's, whose last stages are dilated
        {"aux_classifier": {"0.weight": torch.ones(2)}},
    ],
)
def test_a_file_that_says_it_computes_otherwise_is_warned_about(words):
    with pytest.warns(UserWarning, match="computes otherwise than the usual network"):
        encoder = vfm4us.load_encoder({"state_dict": without_head(resnet18())} | words)
    assert "WARNING" in str(encoder.report)


def test_a_name_that_says_so_is_warned_about(tmp_path):
    torch.save(without_head(resnet18()), tmp_path / "resnetblur18.pth")
    with pytest.warns(UserWarning, match="anti-aliased pooling"):
        vfm4us.load_encoder(tmp_path / "resnetblur18.pth")


def test_a_usual_file_is_not_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = {
            "arch": "resnet18",
            "meta": {"style": "pytorch", "dilations": (1, 1, 1, 1)},
            "args": {"dilation": False},
            "config.json": {"hidden_act": "relu", "text_config": {"hidden_act": "quick_gelu"}},
        }
        vfm4us.load_encoder({"state_dict": without_head(resnet18())} | said)


OWN = {"name": "resnet18", "in_channels": 3, "mean": [0.4] * 3, "std": [0.2] * 3}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"std": [0.0] * 3}, "std: .*expected a number from 0.001 to 10"),
        ({"std": [float("nan")] * 3}, "std"),
        ({"std": "0.2"}, "std"),
        ({"std": []}, "std"),
        ({"mean": [0.485, 0.456, 0.406]}, "mean: .*the same for all channels"),
        ({"mean": [[0.4]]}, "mean"),
        ({"name": "resnet19"}, "name: 'resnet19', expected one of resnet18"),
        ({"name": ["resnet18"]}, "name"),
        ({"patch": 0}, "patch: '0', expected a whole number from 1 to 64"),
        ({"patch": 16.0}, "patch"),
        ({"image": 10**9}, "image"),
        ({"registers": -1}, "registers"),
        ({"layer_scale": 1}, "layer_scale"),
        ({"norm": ["token"]}, "norm"),
        ({"positions": "rotary"}, "positions"),
        ({"heads": True}, "heads"),
    ],
)
def test_what_a_file_says_of_its_encoder_is_checked_in_type_and_range(tmp_path, change, said):
    state = put(without_head(resnet18()), "module.base_encoder.")
    torch.save({"state_dict": state, "encoder": OWN | change}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"a.pt: its 'encoder' says {said}"):
        vfm4us.load_encoder(tmp_path / "a.pt")


@pytest.mark.parametrize("entry", ["resnet18", [1], 5, {}, {"mean": [0.4]}])
def test_an_encoder_entry_that_is_no_dict_of_ours_is_refused(entry):
    with pytest.raises(ValueError, match="its 'encoder' says"):
        vfm4us.load_encoder({"state_dict": put(without_head(resnet18()), "module.base_encoder."), "encoder": entry})


def test_what_a_file_says_must_agree_with_its_tensors():
    encoder = Encoder(EncoderSpec("vit_tiny", heads=12, patch=8, image=32))
    state = put(encoder.published_state(), "module.base_encoder.")
    assert vfm4us.load_encoder({"state_dict": state, "encoder": encoder.spec_dict()}).spec.heads == 12
    for wrong in ({"patch": 16}, {"image": 64}, {"registers": 4}, {"layer_scale": True}, {"norm": "none"}):
        with pytest.raises(ValueError, match=f"its 'encoder' says {next(iter(wrong))} .*its tensors"):
            vfm4us.load_encoder({"state_dict": state, "encoder": encoder.spec_dict() | wrong})
    with pytest.raises(ValueError, match="7 heads"):
        vfm4us.load_encoder({"state_dict": state, "encoder": encoder.spec_dict() | {"heads": 7}})
    with pytest.raises(ValueError, match="std=0"):
        vfm4us.load_encoder({"state_dict": state, "encoder": encoder.spec_dict()}, std=0)


# ---- kinds of numbers, and sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2])
def test_other_precisions_become_float32(kind):
    tensors = {k: v.to(kind) if v.is_floating_point() else v for k, v in without_head(shaken(resnet18())).items()}
    encoder = vfm4us.load_encoder(tensors)
    assert encoder.body.conv1.weight.dtype == torch.float32
    assert torch.equal(encoder.body.conv1.weight, tensors["conv1.weight"].to(torch.float32))
    assert ("8-bit" in str(encoder.report)) == ("float8" in str(kind))


def test_numbers_beyond_float32_and_complex_ones_are_refused():
    tensors = without_head(resnet18())
    with pytest.raises(ValueError, match="bn1.bias holds torch.float64 beyond the range of float32"):
        vfm4us.load_encoder(tensors | {"bn1.bias": torch.full((64,), 1e300, dtype=torch.float64)})
    with pytest.raises(ValueError, match="bn1.bias holds torch.complex64, expected real"):
        vfm4us.load_encoder(tensors | {"bn1.bias": torch.ones(64, dtype=torch.complex64)})
    with pytest.raises(ValueError, match="float8_e4m3fn beyond the range of float32, or NaN"):
        vfm4us.load_encoder(tensors | {"bn1.bias": torch.full((64,), float("nan"), dtype=torch.float8_e4m3fn)})


def test_the_window_of_a_beit_is_bounded():
    with torch.device("meta"):
        model = timm.create_model("beit_base_patch16_224", num_classes=0)
    tensors = {k: torch.zeros(1).expand(v.shape) for k, v in model.state_dict().items() if "index" not in k}
    for window in (120, 200):
        table = torch.zeros(1).expand((2 * window - 1) ** 2 + 3, 12)
        with pytest.raises(ValueError, match=f"window of {window} x {window} tokens.*up to 40 x 40"):
            vfm4us.load_encoder({k: table if "table" in k else v for k, v in tensors.items()})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["sparse", "csr", "meta", "nested", "quantised"])
def test_tensors_of_other_kinds_in_a_dict_are_refused(kind):
    tensors, (small, _) = without_head(resnet18()), other_tensors()[kind]
    value = tensors["layer1.0.conv1.weight"]
    same_shape = {"sparse": value.to_sparse(), "meta": value.to("meta")}.get(kind, small)
    with pytest.raises(ValueError, match="layer1.0.conv1.weight is .*expected plain numbers"):
        vfm4us.load_encoder(tensors | {"layer1.0.conv1.weight": same_shape})


@pytest.mark.parametrize(
    "change",
    [
        {"patch_embed.proj.weight": torch.ones(192, 3, 0, 0)},
        {"patch_embed.proj.weight": torch.ones(192, 3, 16, 8)},
        {"reg_token": torch.ones(1, 100, 192)},
        {
            "blocks.123456789012.norm1.weight": torch.ones(192),
            "rel_pos_bias.relative_position_bias_table": torch.ones(4, 3),
        },
        {"x" * 10_000: torch.ones(1)},
        {"pos_embed": torch.ones(1, 1 + 300**2, 1).expand(-1, -1, 192)},
    ],
)
def test_tensors_of_absurd_shapes_and_names_are_refused(change):
    with pytest.raises(ValueError):
        vfm4us.load_encoder(vit().state_dict() | change, heads=3)


def test_arguments_of_the_wrong_kind_are_refused():
    tensors = without_head(resnet18())
    for arguments, said in (
        ({"source": None}, "not as NoneType"),
        ({"source": nn.Linear(2, 2)}, r"not as Linear: give model.state_dict\(\)"),
        ({"source": io.BytesIO()}, "not as BytesIO: give its path"),
        ({"source": ""}, "'' is no path: give 'open', 'imagenet'"),
        ({"source": tensors, "heads": -3}, "heads=-3"),
        ({"source": tensors, "image_size": -16}, "image_size=-16"),
        ({"source": tensors, "mean": [0.4, 0.5, 0.6]}, "one number for all channels"),
        (
            {"source": {k: v for k, v in tensors.items() if "layer4" not in k}, "allow_missing": "layer3."},
            "are missing",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            vfm4us.load_encoder(**arguments)


def test_another_projects_settings_named_encoder_are_no_words_of_ours(tmp_path):
    tensors = without_head(resnet18())
    for other in ({"name": "tu-resnet18", "depth": 5}, "resnet18", None, 3):
        assert vfm4us.load_encoder({"state_dict": put(tensors, "encoder."), "encoder": other}).report.matched == 120
    save_file(tensors, tmp_path / "a.safetensors", metadata={"encoder": "resnet18"})
    assert vfm4us.load_encoder(tmp_path / "a.safetensors").report.matched == 120
    save_file(tensors, tmp_path / "a.safetensors", metadata={"encoder": json.dumps(OWN | {"std": [0.0] * 3})})
    with pytest.raises(ValueError, match="its 'encoder' says std"):
        vfm4us.load_encoder(tmp_path / "a.safetensors")


def test_the_vector_of_a_vit_stands_in_the_report_and_can_be_chosen():
    model = vit()
    token = vfm4us.load_encoder(model.state_dict(), heads=3)
    mean = vfm4us.load_encoder(model.state_dict(), heads=3, norm="mean_of_norm")
    assert "vector: the class token" in str(token.report) and "vector: the mean of the other tokens" in str(mean.report)
    with torch.no_grad():
        tokens = model.forward_features((images() - MEAN) / STD)
        torch.testing.assert_close(token(images()), tokens[:, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(mean(images()), tokens[:, 1:].mean(1), atol=1e-5, rtol=1e-4)
    for wrong in ("mean", "none", "x"):
        with pytest.raises(ValueError, match="norm="):
            vfm4us.load_encoder(model.state_dict(), heads=3, norm=wrong)
