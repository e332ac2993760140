"""Other names for a ViT, a DINOv2 and a ResNet, and the folders that transformers, timm and open_clip save."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vfm4us.checkpoints.files import read

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
WORDS = ("config", "preprocessor_config", "open_clip_config")  # of JSON files
INDEXES = tuple(f"{name}.index.json" for name in WEIGHTS)

_STEM = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_BLOCK = {
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
}


def is_folder(path: Path) -> bool:
    """Whether transformers, timm or open_clip saved a model here."""
    return any((path / name).is_file() for name in (*WEIGHTS, *INDEXES))


def read_folder(path: Path, sha256: str | None = None) -> dict:
    """The tensors of a folder, in one file or in shards, and beside them what its config files say."""
    index = next((path / name for name in INDEXES if (path / name).is_file()), None)
    if index is None:
        files = [next(path / name for name in WEIGHTS if (path / name).is_file())]
    else:
        places = _json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise ValueError(f"{index} has no 'weight_map' of tensors and file names: fetch the folder again")
        names = sorted(set(places.values()))
        outside = [name for name in names if Path(name).name != name]
        missing = [name for name in names if not (path / name).is_file()]
        if outside or missing:
            raise ValueError(
                f"{index} names {'a file outside its folder: ' + outside[0] if outside else 'files that are not there: '}"
                + ", ".join([] if outside else missing[:3])
            )
        files = [path / name for name in names]
    if sha256 is not None and len(files) > 1:
        raise ValueError(f"sha256 is of one file, but {path} holds {len(files)} parts")
    state: dict = {}
    for file in files:
        part = read(file, sha256)
        twice = [key for key in part if key in state and isinstance(part[key], Tensor)]
        if twice:
            raise ValueError(f"{file} holds {twice[0]}, as another part does")
        state |= part
    return state | words_beside(path)


def words_beside(folder: Path) -> dict:
    """What the config files of a folder say, where they are those of a model."""
    words = {}
    for name in WORDS:
        file = folder / f"{name}.json"
        if file.is_file() and file.stat().st_size < 2**20:
            content = _json(file)
            if {"model_type", "architecture", "architectures", "image_mean", "model_cfg"} & content.keys():
                words[f"{name}.json"] = content
    return words


def _json(file: Path) -> dict:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected an object")
    return content


def renamed(flat: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors with timm's or torchvision's names of a ViT or a ResNet, and whose names they had: "" where they had these."""
    for last, convert, whose in (
        ("embeddings.patch_embeddings.projection.weight", _vit, "Hugging Face's"),
        ("embedder.embedder.convolution.weight", _resnet, "Hugging Face's"),
        ("conv_proj.weight", _torchvision_vit, "torchvision's"),
    ):
        roots = [key[: -len(last)] for key in flat if key.endswith(last)]
        if len(roots) == 1 and (not roots[0] or roots[0].endswith(".")):
            return convert(flat, roots[0]), whose
    return dict(flat), ""


def _vit(flat: Mapping[str, Tensor], root: str) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in flat.items():
        inner = key.removeprefix(root) if key.startswith(root) else None
        if inner in _STEM:
            out[root + _STEM[inner]] = value
            continue
        match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias|lambda1)", inner or "")
        if not match:
            out[key] = value
            continue
        block, module, last = match.groups()
        if part := re.fullmatch(r"attention\.attention\.(query|key|value)", module):
            parts.setdefault(f"{root}blocks.{block}.attn.qkv.{last}", {})[part[1]] = value
        elif scale := re.fullmatch(r"layer_scale([12])", module):
            out[f"{root}blocks.{block}.ls{scale[1]}.gamma"] = value
        elif module in _BLOCK:
            out[f"{root}blocks.{block}.{_BLOCK[module]}.{last}"] = value
        else:
            out[key] = value
    for key, three in parts.items():
        if three.keys() == {"query", "key", "value"}:
            out[key] = torch.cat([three["query"], three["key"], three["value"]])
    return out


def _resnet(flat: Mapping[str, Tensor], root: str) -> dict[str, Tensor]:
    out = {}
    for key, value in flat.items():
        inner = key.removeprefix(root) if key.startswith(root) else ""
        if match := re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", inner):
            key = f"{root}{'conv1' if match[1] == 'convolution' else 'bn1'}.{match[2]}"
        elif match := re.fullmatch(
            r"encoder\.stages\.(\d)\.layers\.(\d+)\.(?:layer\.(\d)|(shortcut))\.(convolution|normalization)\.(\w+)",
            inner,
        ):
            stage, block, place, shortcut, kind, last = match.groups()
            if shortcut:
                module = f"downsample.{0 if kind == 'convolution' else 1}"
            else:
                module = f"{'conv' if kind == 'convolution' else 'bn'}{int(place) + 1}"
            key = f"{root}layer{int(stage) + 1}.{block}.{module}.{last}"
        out[key] = value
    return out


_OF_TORCHVISION = (  # what its VisionTransformer calls them
    (r"class_token", "cls_token"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"conv_proj\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.ln\.(\w+)", r"norm.\1"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
)


def _torchvision_vit(flat: Mapping[str, Tensor], root: str) -> dict[str, Tensor]:
    out = {}
    for key, value in flat.items():
        inner = key.removeprefix(root) if key.startswith(root) else ""
        fits = (match.expand(name) for pattern, name in _OF_TORCHVISION if (match := re.fullmatch(pattern, inner)))
        out[root + new if (new := next(fits, None)) else key] = value
    return out
