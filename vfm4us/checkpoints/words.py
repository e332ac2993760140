"""What a checkpoint says of its encoder in words: our own `encoder`, or names and numbers in a framework's settings."""

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

from torch import Tensor

from vfm4us.checkpoints.pickles import Inert
from vfm4us.encoders import NAMES, EncoderSpec

HEAD_KEYS = ("num_heads", "num_attention_heads", "n_heads", "heads", "encoder_num_heads", "encoder_heads", "vit_heads")
NAME_KEYS: tuple[str, ...] = ("arch", "architecture", "architectures", "model", "model_name", "model_type", "backbone")
NAME_KEYS += ("encoder_name", "timm_model", "timm_model_name", "vit", "base_model", "backbone_name", "_name_or_path")
INPUT_KEYS = ("pretrained_cfg", "preprocess_cfg")  # timm's and open_clip's words on the input
# Words that say another computation than the same tensors have in torchvision.
DIFFERENT = (
    (
        r"(?i)caffe(?!2)",
        "style caffe: the stride stands in another convolution, and the input is BGR with its own mean",
    ),
    (r"(?i)resnet_?blur|blur_?pool|resnetaa", "anti-aliased pooling (blur)"),
    (r"replace_stride_with_dilation.*True|dilations?: [\[(][^\])]*[2-9]|output_stride: (8|16)$", "dilated stages"),
    (r"(?i)resnet\d+_?(gn|groupnorm)", "group norm"),
    (r"^(quick_gelu: True|hidden_act: (?!gelu$|relu$))", "another activation"),
    (r"(?i)resnet_?v2|preact", "another order of its layers"),
    (r"downsample_in_bottleneck: True|downsample_in_first_stage: True", "a stride in another convolution"),
)
BESIDE = r"(?i)decoder|predictor|projector|prompt|text|language|neck|(^|_)(head|mask|cls)(s|$)"
_SIZES = {"ti": "tiny", "t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge"}


class Words(NamedTuple):
    """Plain values within a checkpoint, each with its key."""

    items: list[tuple[str, Any]]

    def heads(self) -> set[int]:
        """Every number of attention heads that it states."""
        counts = [value for key, value in self.items if key in HEAD_KEYS]
        return {v for v in counts if isinstance(v, int) and not isinstance(v, bool) and 0 < v <= 64}

    def names(self) -> list[str]:
        """Names of networks, in small letters."""
        texts = [str(value).lower() for key, value in self.items if key in NAME_KEYS and isinstance(value, str)]
        return [text for text in texts if len(text) < 200]

    def vit_size(self) -> set[str]:
        """tiny, small, ... of the ViTs that it names, as `vit_small_patch16_224`, `dinov2_vits14`, `ViT-B/16` do."""
        sizes = set()
        for text in self.names():
            sizes |= set(re.findall(r"(?:vit|deit3?)[_-]?(tiny|small|base|large|huge)", text))
            sizes |= {_SIZES[s] for s in re.findall(r"(?:vit|deit)[_-]?(ti|t|s|b|l|h)(?:[_/-]?\d+|$)", text)}
        return sizes

    def differences(self) -> list[str]:
        """What it says of itself that the tensors do not show."""
        differences = []
        for key, value in self.items:
            if isinstance(value, str | bool | int) or (isinstance(value, tuple | list) and len(value) < 20):
                text = f"{key}: {value if isinstance(value, str) else str(value)[:200]}"[:50_000]
                differences += [said for pattern, said in DIFFERENT if re.search(pattern, text)]
                if key == "to_rgb" and value is False:
                    differences.append("its input is BGR, not RGB")
        return list(dict.fromkeys(differences))

    def normalisation(self) -> tuple[list[float], list[float]] | None:
        """Mean and deviation of the input in [0, 1] that a folder of transformers, timm or open_clip states, for each channel."""
        said = dict(self.items)
        for mean, std in (("image_mean", "image_std"), *((f"{name}.mean", f"{name}.std") for name in INPUT_KEYS)):
            values: Any = said.get(mean), said.get(std)
            if all(
                isinstance(v, list) and len(v) in (1, 3) and all(isinstance(x, float | int) for x in v) for v in values
            ):
                return values
        return None


def words_of(state: Mapping, depth: int = 6, limit: int = 20_000) -> Words:
    """Every plain value in nested dicts and in the stand-ins of settings objects, but for the optimizer's."""

    left = 10 * limit  # entries looked at; dicts that hold each other have no end

    def walk(node: Any, key: str, level: int) -> Iterator[tuple[str, Any]]:
        nonlocal left
        if isinstance(node, argparse.Namespace | SimpleNamespace):  # of a dict that the caller has read
            node = vars(node)
        if isinstance(node, Inert):
            node = node.said or {}
            node = node.get("_val", node.get("_content", node))  # omegaconf's
        if isinstance(node, Mapping) and level < depth:
            for inner, value in node.items():
                left -= 1
                if left < 0:
                    return
                if not isinstance(value, Tensor) and inner not in ("optimizer", "state_dict", "optimizer_states"):
                    inside = walk(value, str(inner), level + 1)
                    # what a decoder or a text network has is not said of the encoder
                    yield from ((f"{key}.{k}", v) for k, v in inside) if re.search(BESIDE, key) else inside
                    if key in INPUT_KEYS:
                        yield f"{key}.{inner}", value
        elif isinstance(node, str | int | float | bool | list | tuple):
            if isinstance(node, list | tuple) and node and isinstance(node[0], str):
                yield from ((key, text) for text in node[:20] if isinstance(text, str))
            else:
                yield key, node

    items = []
    for item in walk(state, "", 0):
        items.append(item)
        if len(items) >= limit:
            break
    return Words(items)


# ---- our own dict -----------------------------------------------------------------------------------------------------

_RANGES = {"patch": (1, 64), "image": (8, 4096), "heads": (0, 64), "registers": (0, 64)}
_CHOICES = {"norm": ("token", "mean", "mean_of_norm", "none"), "positions": ("absolute", "relative")}


def own_spec(words: Any, name: str) -> dict[str, Any]:
    """The fields of an EncoderSpec that a file's `encoder` states, of the right types and in range; else ValueError.

    `in_channels` is left out: the file holds the published, 3-channel form.
    """

    def refuse(key: str, value: Any, expected: str) -> NoReturn:
        raise ValueError(
            f"{name}: its 'encoder' says {key}: {str(value)[:60]!r}, expected {expected}; the file is damaged"
        )

    if not isinstance(words, Mapping):
        refuse("", words, "a dict")
    known = {f.name for f in fields(EncoderSpec)}
    said: dict[str, Any] = {}
    for key, value in words.items():
        if key not in known:
            continue  # of a later version
        if key == "name":
            if value not in NAMES:
                refuse(key, value, f"one of {', '.join(NAMES)}")
        elif key in ("mean", "std"):
            value = normalisation_value(key, value, lambda v, key=key: refuse(key, v, _EXPECTED[key]))
        elif key in _CHOICES:
            if value not in _CHOICES[key]:
                refuse(key, value, f"one of {', '.join(_CHOICES[key])}")
        elif key == "layer_scale":
            if not isinstance(value, bool):
                refuse(key, value, "true or false")
        elif key in _RANGES:
            low, high = _RANGES[key]
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                refuse(key, value, f"a whole number from {low} to {high}")
        said[key] = value
    if "name" not in said:
        refuse("name", None, f"one of {', '.join(NAMES)}")
    said.pop("in_channels", None)
    return said


_EXPECTED = {
    "mean": "a number from 0 to 1, the same for all channels",
    "std": "a number from 0.001 to 10, the same for all channels",
}


def normalisation_value(key: str, value: Any, refuse: Any) -> float:
    """One number of one, or of three equal ones; `refuse(value)` is called for anything else."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    low, high = (0.0, 1.0) if key == "mean" else (1e-3, 10.0)
    good = all(isinstance(v, int | float) and not isinstance(v, bool) and low <= v <= high for v in values)
    if len(values) not in (1, 3) or not good or len(set(values)) > 1:
        refuse(value)
    return float(values[0])
