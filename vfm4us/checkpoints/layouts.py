"""Which published layout is this checkpoint, and which encoder do its tensors make?

A checkpoint is flattened to one dict of tensors, so wrappers (`state_dict`, `model`, `teacher`, `module.`, `_orig_mod.`,
`encoder.`, in any order) become mere prefixes. A *root* is a prefix under which the tensors of a ResNet, a ViT or a BEiT
stand. The root is told by the keys themselves, the architecture by the tensors' shapes; nothing is guessed from file names.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vfm4us.checkpoints import huggingface, others, words
from vfm4us.checkpoints.files import ENCODER_PREFIX
from vfm4us.checkpoints.words import Words, words_of
from vfm4us.encoders import NAMES, BEiT, EncoderSpec, ResNet, ViT, family

# First parts of an encoder's own keys. What begins otherwise is another module of the checkpoint, and is dropped by name;
# what begins so must belong to the encoder, or the file holds another architecture.
RESNET_PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
TRANSFORMER_PARTS = ("cls_token", "pos_embed", "patch_embed", "blocks", "norm", "fc_norm", "reg_token")
SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}  # lightly
# Of two copies of the network that differ in this word, the first is what its authors evaluate.
PREFERRED = (
    ("teacher", "student"),
    ("base_encoder", "momentum_encoder"),
    ("encoder_q", "encoder_k"),
    ("online", "target"),
    ("state_dict", "state_dict_ema"),
    ("model", "model_ema"),
    ("backbone", "backbone_momentum"),
)
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module")
BLOCKS = ResNet.sizes
ENTRIES = 200_000  # of nested dicts
LONGEST_KEY = 500  # characters; those of real networks have at most 150
WINDOW = 40  # tokens on a side of a BEiT's window, 640 px: its index takes 20 MB for each block


@dataclass
class Candidate:
    """One encoder found in a checkpoint, its keys already in torchvision's or timm's form."""

    layout: str
    root: str
    spec: EncoderSpec
    tensors: dict[str, Tensor]
    dropped: dict[str, int]
    resized: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)  # of the file, for messages
    warnings: list[str] = field(default_factory=list)  # said aloud, as the features may be wrong
    ours: bool = False  # the file is ours, and says what its tensors do not show


def recognise(state: Mapping, name: str, prefix: str | None = None, heads: int | None = None) -> Candidate:
    """Find the one encoder in a checkpoint; ValueError names what was found instead.

    prefix: what stands before its keys, where there are several. heads: of a ViT's attention, where nothing says how many.
    """
    flat = flatten(state)
    if heads is not None and (not isinstance(heads, int) or isinstance(heads, bool) or not 0 <= heads <= 64):
        raise ValueError(f"heads={heads!r}: expected a whole number from 1 to 64")
    if long := [key for key in flat if len(key) > LONGEST_KEY]:
        raise ValueError(f"{name} holds a key of {len(long[0])} characters: it is no checkpoint of a network")
    if not flat:
        raise ValueError(
            f"{name} holds no tensors of a network; its keys are: {', '.join(map(str, list(state)[:8])) or 'none'}"
        )
    if (new := _of_another_family(state, flat, name)) is not None:
        return new
    flat, renamed = huggingface.renamed(flat)
    said = words_of(state)
    root, aside = _choose_root(flat, name, prefix, said)
    inside = {key[len(root) :]: value for key, value in flat.items() if key.startswith(root)}
    for key, value in inside.items():
        if value.is_nested or value.is_quantized or value.is_meta or value.layout != torch.strided:
            kind = "nested" if value.is_nested else "quantised" if value.is_quantized else "sparse"
            kind = "empty (device meta)" if value.is_meta else kind
            raise ValueError(
                f"{name}: {key} is {kind}, expected plain numbers: value.to_dense() or value.float().cpu()"
            )
    dropped: dict[str, int] = {}
    for key in flat:
        if not key.startswith(root):
            module = next((a for a in aside if key.startswith(a)), None) or _module_of(key, root)
            dropped[module.rstrip(".")] = dropped.get(module.rstrip("."), 0) + 1
    resnet = not _is_transformer(inside)
    variant = others.resnet_variant if resnet else others.transformer_variant
    if other := others.kind_of(inside) or variant(inside):
        raise ValueError(f"{name} holds {other}; this project knows ResNet, ViT and BEiT")
    if resnet and "0.weight" in inside and "conv1.weight" not in inside:
        inside = {_named(key): value for key, value in inside.items()}
    elif not resnet:
        inside = _timm_keys(inside)
    parts = RESNET_PARTS if resnet else TRANSFORMER_PARTS
    tensors = {}
    for key, value in inside.items():
        if key.split(".")[0] in parts:
            tensors[key] = value
        else:
            dropped[key.split(".")[0]] = dropped.get(key.split(".")[0], 0) + 1
    candidate = Candidate("", root, EncoderSpec(), tensors, dropped, keys=list(flat))
    candidate.layout = _layout(state, flat, root, inside, dropped) + (f", in {renamed} names" if renamed else "")
    spec = _resnet_spec(candidate, name) if resnet else _transformer_spec(candidate, name)
    ours = _own_words(state, root)
    if ours is not None:
        candidate.spec = _as_said(spec, words.own_spec(ours, name), name)
        candidate.ours = True
    else:
        candidate.spec = _normalised(spec, said, candidate, name)
        of_name = Words([("file", Path(name).name)]).differences()
        for different in dict.fromkeys(
            [*said.differences(), *of_name, *(others.computes_otherwise(flat) if resnet else ())]
        ):
            candidate.warnings.append(
                f"its words, its name or its other tensors say that it computes otherwise than the usual network ({different}): "
                "features may be wrong"
            )
    if not resnet:
        candidate.spec = _with_heads(candidate, said, name, heads)
    elif heads:
        raise ValueError(f"heads={heads} is for transformers, but {name} holds a {candidate.spec.name}")
    return candidate


PUBLISHED = (ResNet, ViT, BEiT)  # whose layouts are known; any other family is read from our own files alone


def _of_another_family(state: Mapping, flat: Mapping[str, Tensor], name: str) -> Candidate | None:
    """What our own file holds of a family that no published file is of: every tensor below its prefix."""
    said = state.get("encoder")
    stated = said.get("name") if isinstance(said, Mapping) else None
    if not isinstance(stated, str) or stated not in NAMES or family(stated) in PUBLISHED:
        return None
    spec = EncoderSpec(**words.own_spec(said, name))
    root = next((key.split(ENCODER_PREFIX)[0] + ENCODER_PREFIX for key in flat if ENCODER_PREFIX in key), "")
    tensors = {key[len(root) :]: value for key, value in flat.items() if key.startswith(root)}
    dropped: dict[str, int] = {}
    for key in flat:
        if not key.startswith(root):
            dropped[_module_of(key, root)] = dropped.get(_module_of(key, root), 0) + 1
    return Candidate("VFM4US", root, spec, tensors, dropped, keys=list(flat), ours=True)


def _own_words(state: Mapping, root: str) -> object:
    """What our own file says of its encoder; None where the file is not ours."""
    words = state.get("encoder")
    if isinstance(words, Mapping):
        if any(isinstance(v, Tensor | Mapping) for v in words.values()):
            return None  # another project's network of that name
        return words if root.endswith(ENCODER_PREFIX) or words.keys() >= {"name", "mean", "std"} else None
    return words if words is not None and root.endswith(ENCODER_PREFIX) else None


def _as_said(spec: EncoderSpec, said: dict, name: str) -> EncoderSpec:
    """The spec that a file states, where it agrees with what its tensors show."""
    if said["name"] != spec.name:
        raise ValueError(f"{name} says that it holds a {said['name']}, but its tensors are those of a {spec.name}")
    shown = {
        "patch": spec.patch,
        "registers": spec.registers,
        "layer_scale": spec.layer_scale,
        "positions": spec.positions,
    }
    if family(spec.name).has_tokens:
        both = {"token", "mean_of_norm"}
        shown["norm"] = said.get("norm") if {said.get("norm"), spec.norm} <= both else spec.norm
        if "image" in said and said["image"] // spec.patch == spec.image // spec.patch:
            shown["image"] = said["image"]
        else:
            shown["image"] = spec.image
        if spec.heads:
            shown["heads"] = spec.heads
        wrong = [f"{k} {said[k]}, its tensors {v}" for k, v in shown.items() if k in said and said[k] != v]
        if wrong:
            raise ValueError(f"{name}: its 'encoder' says {'; '.join(wrong)}: the file is damaged")
    return dataclasses.replace(spec, **said)


def _normalised(spec: EncoderSpec, said: Words, candidate: Candidate, name: str) -> EncoderSpec:
    """The spec with the mean and deviation that a folder's config files state, averaged over the channels."""
    stated = said.normalisation()
    if stated is None and {"logit_scale", "logit_bias"} & {key.split(".")[-1] for key in candidate.keys} == {
        "logit_scale"
    }:
        candidate.notes.append("input normalised by mean {}, deviation {}, as CLIP's networks are".format(*CLIP_INPUT))
        return dataclasses.replace(spec, mean=CLIP_INPUT[0], std=CLIP_INPUT[1])
    if stated is None:
        return spec
    mean, std = (round(sum(values) / len(values), 4) for values in stated)
    if not (0 <= mean <= 1 and 1e-3 <= std <= 10):
        raise ValueError(
            f"{name}: its config states a mean of {stated[0]} and a deviation of {stated[1]}: give mean= and std="
        )
    candidate.notes.append(f"input normalised by mean {mean}, deviation {std}, as its config says (mean over channels)")
    return dataclasses.replace(spec, mean=mean, std=std)


CLIP_INPUT = 0.4492, 0.2686  # mean and deviation over the channels; SigLIP, which has a logit_bias too, has others

# What published networks of a width have, where they differ; no tensor tells.
CONVENTIONS = {
    "vit_tiny": {3: "timm, DeiT", 12: "TinyUSFM, MAE-Lite"},
    "vit_small": {6: "timm, DeiT, DINO", 12: "MoCo v3"},
}


def _by_others(candidate: Candidate, said: Words) -> bool:
    """Whether a name like vit_tiny may mean another number of heads than timm's: in MoCo v3's and in MAE's successors."""
    return "base_encoder" in candidate.root or candidate.layout == "MAE" or any("mae" in text for text in said.names())


def _with_heads(candidate: Candidate, said: Words, name: str, given: int | None) -> EncoderSpec:
    """The spec with its number of attention heads, from the tensors, the caller, the file's words or the layout, in this order."""
    spec = candidate.spec
    width, _, usual = family(spec.name).sizes[spec.name]
    stated = {v for v in said.heads() if width % v == 0}
    if candidate.layout.startswith("BEiT"):
        heads, why = spec.heads or usual, ""  # a column of the table for each
        if given and given != heads:
            raise ValueError(f"heads={given}, but the tensors of {name} show {heads}")
    elif given:
        heads, why = given, "as given"
    elif candidate.ours:
        heads, why = spec.heads or usual, ""
    elif len(stated) == 1:
        heads, why = stated.pop(), "as the file says"
    elif candidate.layout == "MoCo v3" and spec.name == "vit_small":
        heads, why = 12, "as MoCo v3's ViT-S has"
    elif any("tinyusfm" in text for text in said.names()):
        heads, why = 12, "as TinyUSFM has"
    elif spec.name.removeprefix("vit_") in said.vit_size() and not (
        spec.name in CONVENTIONS and _by_others(candidate, said)
    ):
        heads, why = usual, "as the network that the file names has"
    elif candidate.layout.startswith(("DINOv2", "DINO ", "DeiT III")):
        heads, why = usual, f"as {'DeiT' if candidate.layout.startswith('DeiT') else 'DINO'}'s networks have"
    elif spec.name not in CONVENTIONS:
        heads, why = usual, "as every published network of this width has"
    else:
        choices = [f"{count} ({whose})" for count, whose in CONVENTIONS[spec.name].items()]
        words = " or ".join(f"heads={count}" for count in CONVENTIONS[spec.name])
        raise ValueError(
            f"{name} holds a {spec.name}, and neither its tensors nor its words tell the number of attention heads: "
            f"{' or '.join(choices)}. Say which: {words} (encoder.heads in a config, --heads for a script)"
        )
    if width % heads:
        raise ValueError(
            f"{name}: {heads} heads ({why or 'its own words'}) do not divide the width {width} of a {spec.name}"
        )
    if why:
        candidate.notes.append(f"{heads} heads, {why}")
    return dataclasses.replace(spec, heads=0 if heads == usual else heads)


def flatten(state: Mapping, depth: int = 8) -> dict[str, Tensor]:
    """Every tensor in nested dicts, by its dotted path. Optimizer states and the resuming run's own are left out.

    Raises ValueError for more than `ENTRIES` entries: dicts that hold themselves, or each other, have no end.
    """
    flat: dict[str, Tensor] = {}
    seen = 0

    def walk(node: Mapping, prefix: str, level: int) -> None:
        nonlocal seen
        for key, value in node.items():
            seen += 1
            if seen > ENTRIES:
                raise ValueError(
                    f"a checkpoint of more than {ENTRIES} entries, or one that holds itself, is not understood"
                )
            if isinstance(value, Tensor):
                flat[f"{prefix}{key}"] = value
            elif (
                isinstance(value, Mapping)
                and level < depth
                and not (
                    level == 0
                    and key
                    in ("optimizer", "optimizers", "optim", "resume", "scaler", "lr_scheduler", "config", "trained_on")
                )
            ):
                walk(value, f"{prefix}{key}.", level + 1)

    walk(state, "", 0)
    return flat


# ---- roots ----------------------------------------------------------------------------------------------------------


def roots(flat: Mapping[str, Tensor]) -> list[str]:
    """Prefixes under which an encoder stands, in the order of the file."""
    prefixes = []
    blocks = {key[: place.start()] for key in flat if (place := re.search(r"(?:^|(?<=\.))blocks\.", key))}
    for key, value in flat.items():
        for last, also in (
            ("conv1.weight", "layer1.0.conv1.weight"),
            ("0.weight", "4.0.conv1.weight"),
            ("patch_embed.proj.weight", ""),
        ):
            root = key[: -len(last)]
            if (
                key.endswith(last)
                and value.ndim == 4
                and (not root or root[-1] == ".")
                and (f"{root}{also}" in flat if also else root in blocks)
            ):
                prefixes.append(root)
    return prefixes


def _choose_root(flat: Mapping[str, Tensor], name: str, prefix: str | None, words: Words) -> tuple[str, list[str]]:
    """The root to load from, and the roots set aside."""
    candidates = roots(flat)
    if not candidates and (kind := others.kind_of(flat)):
        raise ValueError(f"{name} holds {kind}; this project knows ResNet, ViT and BEiT")
    if len(candidates) > 50:
        raise ValueError(f"{name} holds {len(candidates)} encoders: it is no checkpoint of one training")
    if not candidates:
        named = list(dict.fromkeys(words.names()))[:3]
        said = f"; it says of itself: {', '.join(named)}" if named else ""
        raise ValueError(
            f"{name} holds no encoder that this project knows (ResNet, ViT, BEiT){said}. {prefixes_of(list(flat))} "
            f"Keys, for example: {list(flat)[:3]}; expected, after any prefix, 'conv1.weight' and 'layer1.0.conv1.weight', "
            f"or 'patch_embed.proj.weight' and 'blocks.0.norm1.weight'"
        )
    if prefix is not None:
        wanted = [r for r in candidates if r.rstrip(".") == prefix.rstrip(".") or r.endswith(f".{prefix.rstrip('.')}.")]
        if len(wanted) != 1:
            raise ValueError(
                f"prefix {prefix!r} names no encoder of {name}; there are: {', '.join(map(repr, candidates))}"
            )
        return wanted[0], [r for r in candidates if r != wanted[0]]
    kept = [r for r in candidates if not any(_less_preferred(r, other) for other in candidates)]
    if len(kept) > 1:
        raise ValueError(
            f"{name} holds {len(kept)} encoders: say which by prefix={kept[0]!r} or {', '.join(map(repr, kept[1:]))}"
        )
    return kept[0], [r for r in candidates if r != kept[0]]


def _less_preferred(root: str, other: str) -> bool:
    # of DINO's and iBOT's two networks DDP wraps the student alone
    parts, of_other = ([p for p in name.split(".") if p not in WRAPPERS] for name in (root, other))
    return any(
        worse in parts and of_other == [better if p == worse else p for p in parts] for better, worse in PREFERRED
    )


def _module_of(key: str, root: str) -> str:
    """The module a key outside the root belongs to: the first part in which it differs from the root."""
    parts, base = key.split("."), root.split(".")
    at = next((i for i, part in enumerate(parts) if i >= len(base) or part != base[i]), 0)
    return ".".join(parts[at : at + 1])


def prefixes_of(keys: list[str]) -> str:
    """A sentence for error messages with the first prefixes of the keys, two levels deep and at most six."""
    prefixes = sorted({".".join(k.split(".")[:-1][:2]) or k for k in keys})
    return f"Prefixes found: {', '.join(prefixes[:6])}{', ...' if len(prefixes) > 6 else ''}."


# ---- keys and architectures -----------------------------------------------------------------------------------------


def _is_transformer(inside: Mapping[str, Tensor]) -> bool:
    return "patch_embed.proj.weight" in inside


def _named(key: str) -> str:
    """torchvision's name for a key of `nn.Sequential(*resnet.children())`; other numbers belong to no encoder."""
    head, _, rest = key.partition(".")
    return f"{SEQUENTIAL[head]}.{rest}" if head in SEQUENTIAL else key


def _timm_keys(inside: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names and shapes for the keys of a ViT or BEiT as DINOv2, MAE, MoCo v3, BEiT and USFM write them."""
    # chunked for FSDP: blocks.<chunk>.<block>., where <block> counts over all chunks
    if any(re.match(r"blocks\.\d+\.\d+\.", k) for k in inside):
        inside = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", k): v for k, v in inside.items()}
    inside = {k: v for k, v in inside.items() if not k.endswith(("relative_position_index", "attn.k_bias"))}
    shared = inside.pop("rel_pos_bias.relative_position_bias_table", None)
    if shared is not None:
        depth = _depth(inside)
        inside |= {f"blocks.{i}.attn.relative_position_bias_table": shared for i in range(depth)}
    if "register_tokens" in inside:
        inside["reg_token"] = inside.pop("register_tokens")
        positions, cls = inside.get("pos_embed"), inside.get("cls_token")
        if positions is not None and cls is not None and positions.ndim == 3 and _square(positions.shape[1] - 1):
            inside["cls_token"] = cls + positions[:, :1]  # timm adds no position to class and register tokens
            inside["pos_embed"] = positions[:, 1:]
    return inside


def _layout(state: Mapping, flat: Mapping, root: str, inside: Mapping, dropped: Mapping) -> str:
    """The published layout's name."""
    siblings = {k[len(root.rsplit(".", 2)[0]) + 1 :].split(".")[0] for k in flat if root.count(".") > 1}
    siblings |= {k.split(".")[0] for k in flat}
    if isinstance(state.get("encoder"), Mapping) and root.endswith(ENCODER_PREFIX):
        return "VFM4US"
    if root.endswith("base_encoder."):
        return "MoCo v3" if any("momentum_encoder." in k for k in flat) else "base_encoder (VFM4US README, MoCo v3)"
    if root.endswith("backbone.") and {"pre_feature", "projection"} & siblings:
        return "EMP-SSL"
    if any(k.startswith("decoder_") for k in inside):
        return "MAE"
    if "rel_pos_bias" in dropped or any("relative_position_bias_table" in k for k in inside):
        return "BEiT (USFM)"
    if any(".ls1.gamma" in k for k in inside):
        positions = inside.get("pos_embed")
        alone = (
            positions is not None and positions.ndim == 3 and _square(positions.shape[1]) and "reg_token" not in inside
        )
        return "DeiT III" if alone else "DINOv2"
    if _is_transformer(inside):
        return "DINO (ViT)" if {"teacher", "student"} & set(root.split(".")) else "ViT (timm, MAE)"
    if f"{root}0.weight" in flat and f"{root}conv1.weight" not in flat:
        return "Sequential of children (lightly)"
    if root.endswith("encoder.") and {"decoder", "segmentation_head"} & siblings:
        return "segmentation_models_pytorch"
    return "ResNet (torchvision, timm)"


def _resnet_spec(candidate: Candidate, name: str) -> EncoderSpec:
    tensors = candidate.tensors
    kind = "bottleneck" if "layer1.0.conv3.weight" in tensors else "basic"
    counts = [
        1 + max((int(m.group(1)) for k in tensors if (m := re.match(rf"layer{i}\.(\d{{1,3}})\.", k))), default=-1)
        for i in (1, 2, 3, 4)
    ]
    known = next((n for n, blocks in BLOCKS.items() if blocks == (kind, *counts)), None)
    if known is None:
        near = min(
            (n for n in BLOCKS if BLOCKS[n][0] == kind),
            key=lambda n: sum(abs(a - b) for a, b in zip(BLOCKS[n][1:], counts, strict=True)),
        )
        more = any(count > usual for count, usual in zip(counts, BLOCKS[near][1:], strict=True))
        if more or (
            all(counts)
            and all(f"layer{i}.{k}.conv1.weight" in tensors for i, n in enumerate(counts, 1) for k in range(n))
        ):
            raise ValueError(
                f"{name} holds a ResNet with {counts} {kind} blocks; this project knows {', '.join(BLOCKS)}"
            )
        known = near  # tensors are missing: the comparison with this one will name them
    return EncoderSpec(known)


def _transformer_spec(candidate: Candidate, name: str) -> EncoderSpec:
    tensors = candidate.tensors
    kernel = tensors["patch_embed.proj.weight"]
    width, patch, depth = kernel.shape[0], kernel.shape[-1], _depth(tensors)
    if kernel.ndim != 4 or kernel.shape[-2] != patch or not 1 <= patch <= 64:
        raise ValueError(
            f"{name}: patch_embed.proj.weight of shape {tuple(kernel.shape)} belongs to no square patch of 1 to 64 px"
        )
    table = tensors.get("blocks.0.attn.relative_position_bias_table")
    sizes = ViT.sizes if table is None else BEiT.sizes
    known = next((n for n, (w, d, _) in sizes.items() if w == width and (d == depth or depth == 0)), None)
    if known is None:
        raise ValueError(
            f"{name} holds a transformer of width {width} with {depth} blocks; this project knows "
            + ", ".join(f"{n} ({w} x {d})" for n, (w, d, _) in sizes.items())
        )
    options: dict = {"patch": patch}
    positions = tensors.get("pos_embed")
    if table is not None:
        side = math.isqrt(table.shape[0] - 3)
        if side * side + 3 != table.shape[0] or side % 2 == 0:
            raise ValueError(f"{name}: a relative position table of {table.shape[0]} rows belongs to no square window")
        if side > 2 * WINDOW - 1:
            raise ValueError(
                f"{name}: its relative positions are of a window of {(side + 1) // 2} x {(side + 1) // 2} tokens; an index of all "
                f"pairs is kept for each block, so this project builds windows of up to {WINDOW} x {WINDOW}"
            )
        options |= {"image": (side + 1) // 2 * patch, "positions": "absolute" if positions is not None else "relative"}
        if table.shape[1] != sizes[known][2]:
            options["heads"] = table.shape[1]
    elif positions is None or positions.ndim != 3:
        raise ValueError(
            f"{name} ({candidate.layout}) has no position embedding 'pos_embed' of shape (1, tokens, width)"
        )
    else:
        registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
        count = positions.shape[1]
        if not registers and _square(count):  # embedded without class token: as if its position were 0
            tensors["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
            candidate.notes.append("no position embedding of the class token: taken as 0")
            count += 1
        grid = count - (0 if registers else 1)
        if not _square(grid):
            raise ValueError(
                f"{name}: pos_embed of {positions.shape[1]} tokens is no square of patches and a class token: was it trained on "
                "images that are not square? This project's position embeddings are square"
            )
        if registers > 64 or math.isqrt(grid) * patch > 4096:
            raise ValueError(
                f"{name}: {registers} register tokens and {grid} positions belong to no network that was published"
            )
        options |= {"image": math.isqrt(grid) * patch, "registers": registers}
        options["layer_scale"] = "blocks.0.ls1.gamma" in tensors
    if table is None and not any(
        key.endswith("attn.qkv.bias") for key in tensors
    ):  # trained without, which is a bias of 0
        tensors |= {f"blocks.{k}.attn.qkv.bias": torch.zeros(3 * width) for k in range(depth)}
        candidate.notes.append("no biases of queries, keys and values: taken as 0")
    if "norm.weight" in tensors and "fc_norm.weight" in tensors:
        for key in ("fc_norm.weight", "fc_norm.bias"):
            tensors.pop(key, None)
        candidate.dropped["fc_norm"] = 2
    if "norm.weight" in tensors:
        options["norm"] = "token" if table is None else "mean_of_norm"
    elif "fc_norm.weight" in tensors:
        options["norm"] = "mean"
    else:
        options["norm"] = "none"
        candidate.notes.append("no last norm in the file: vectors are the mean of the last block's tokens")
    return EncoderSpec(known, **options)


def _depth(tensors: Mapping[str, Tensor]) -> int:
    """Number of blocks, by the highest one; those of three digits and more belong to no network that was published."""
    return 1 + max((int(m.group(1)) for k in tensors if (m := re.match(r"blocks\.(\d{1,2})\.", k))), default=-1)


def _square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number
