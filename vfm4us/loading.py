"""Which published layout is this checkpoint, and which encoder does it fill: all of it, or an error that says why.

A checkpoint is flattened to one dict of tensors, so wrappers (`state_dict`, `model`, `teacher`, `module.`, `_orig_mod.`,
`encoder.`, in any order) become mere prefixes. A *root* is a prefix under which the tensors of a ResNet, a ViT or a BEiT
stand. The root is told by the keys themselves, the architecture by the tensors' shapes; nothing is guessed from file names.
"""

import copy
import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from vfm4us import checkpoints
from vfm4us.encoders import BEiT, Encoder, EncoderSpec, ResNet, ViT, family

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
BLOCKS = ResNet.sizes


@dataclass
class LoadReport:
    """What became of a file's tensors: `str(report)` is one line."""

    layout: str
    matched: int
    expected: int
    dropped: dict[str, int] = field(default_factory=dict)  # module -> tensors
    resized: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    encoder: str = ""
    root: str = ""  # what stands before the encoder's keys in the file

    def __str__(self) -> str:
        dropped = ", ".join(f"{name} ({count})" for name, count in self.dropped.items()) or "none"
        line = (
            f"layout {self.layout}, {self.matched}/{self.expected} tensors, dropped: {dropped}, "
            f"resized: {', '.join(self.resized) or 'none'}"
        )
        return "; ".join([line, *self.notes])


def load_encoder(
    source: str | Path | Mapping,
    in_channels: int = 3,
    *,
    prefix: str | None = None,
    image_size: int | None = None,
    allow_missing: tuple[str, ...] = (),
    sha256: str | None = None,
    mean: float | None = None,
    std: float | None = None,
) -> Encoder:
    """The encoder in a checkpoint, wholly loaded, in evaluation mode, with `encoder.report`.

    source:        .pt, .pth or .safetensors file, run folder (its latest checkpoint), or a dict already read
    in_channels:   3, or 1: the first convolution is summed over RGB, which is exact for grey images
    prefix:        what stands before the encoder's keys, where a file holds several encoders
    image_size:    side that a transformer's position embeddings are resampled to, px; by default they stay as they are
    allow_missing: beginnings of keys that may be missing ("layer4.", "norm"); those tensors stay random
    sha256:        refuse any other file
    mean, std:     of the input in [0, 1], equal for all channels; by default the file's own, or ImageNet's average

    Raises FileNotFoundError, or ValueError unless every tensor of the encoder is there in name and shape and finite.
    """
    if isinstance(source, Mapping):
        name, state = "the given dict", source
    else:
        path = Path(source)
        path = latest(path) if path.is_dir() else path
        name, state = str(path), checkpoints.read(path, sha256)
    candidate = recognise(state, name, prefix)
    given = {"in_channels": in_channels, "mean": mean, "std": std}
    spec = dataclasses.replace(candidate.spec, **{k: v for k, v in given.items() if v is not None})
    if image_size and family(spec.name).has_tokens:
        spec = _resize_positions(candidate, spec, image_size)
    # Random weights that would be overwritten are not drawn; a BEiT has index tables beside its weights, and is built whole.
    encoder = Encoder(spec) if allow_missing or spec.name in BEiT.sizes else copy.deepcopy(_skeleton(spec))
    encoder.report = fill(encoder, candidate, name, allow_missing, aliased=isinstance(source, Mapping))
    return encoder.eval()


@functools.lru_cache(maxsize=8)
def _skeleton(spec: EncoderSpec) -> Encoder:
    """The encoder without memory for its weights; a copy of it is made several times as fast as it is."""
    with torch.device("meta"):
        return Encoder(spec)


def latest(run_folder: Path) -> Path:
    """The newest checkpoint of a run folder."""
    path = Path(run_folder) / "checkpoints" / "last.pt"
    if not path.is_file():
        raise FileNotFoundError(f"{run_folder} holds no checkpoints/last.pt: is it the folder of a pretraining run?")
    return path


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


def recognise(state: Mapping, name: str, prefix: str | None = None) -> Candidate:
    """Find the one encoder in a checkpoint; ValueError names what was found instead."""
    flat = flatten(state)
    if not flat:
        raise ValueError(f"{name} holds no tensors; its keys are: {', '.join(map(str, list(state)[:8])) or 'none'}")
    root, aside = _choose_root(flat, name, prefix)
    inside = {key[len(root) :]: value for key, value in flat.items() if key.startswith(root)}
    dropped: dict[str, int] = {}
    for key in flat:
        if not key.startswith(root):
            module = next((a for a in aside if key.startswith(a)), None) or _module_of(key, root)
            dropped[module.rstrip(".")] = dropped.get(module.rstrip("."), 0) + 1
    resnet = not _is_transformer(inside)
    if resnet and "0.weight" in inside and "conv1.weight" not in inside:
        inside = {_named(key): value for key, value in inside.items()}
    elif not resnet:
        inside = _timm_keys(inside, name)
    parts = RESNET_PARTS if resnet else TRANSFORMER_PARTS
    tensors = {}
    for key, value in inside.items():
        if key.split(".")[0] in parts:
            tensors[key] = value
        else:
            dropped[key.split(".")[0]] = dropped.get(key.split(".")[0], 0) + 1
    candidate = Candidate("", root, EncoderSpec(), tensors, dropped, keys=list(flat))
    candidate.layout = _layout(state, flat, root, inside, dropped)
    if resnet:
        candidate.spec = _resnet_spec(candidate, name)
    else:
        candidate.spec = _transformer_spec(candidate, name)
    own = state.get("encoder")
    if isinstance(own, Mapping) and isinstance(own.get("name"), str):  # our own file says it in words
        if own["name"] != candidate.spec.name:
            raise ValueError(
                f"{name} says that it holds a {own['name']}, but its tensors are those of a {candidate.spec.name}"
            )
        known = {f.name for f in fields(EncoderSpec)} - {"name", "in_channels"}
        said = {k: v[0] if isinstance(v, list) else v for k, v in own.items() if k in known}
        candidate.spec = dataclasses.replace(candidate.spec, **said)
    return candidate


def flatten(state: Mapping, depth: int = 8) -> dict[str, Tensor]:
    """Every tensor in nested dicts, by its dotted path. Optimizer states and the resuming run's own are left out."""
    flat: dict[str, Tensor] = {}

    def walk(node: Mapping, prefix: str, level: int) -> None:
        for key, value in node.items():
            if isinstance(value, Tensor):
                flat[f"{prefix}{key}"] = value
            elif (
                isinstance(value, Mapping)
                and level < depth
                and not (
                    level == 0
                    and key in ("optimizer", "optimizers", "optim", "resume", "scaler", "lr_scheduler", "config")
                )
            ):
                walk(value, f"{prefix}{key}.", level + 1)

    walk(state, "", 0)
    return flat


def fill(
    encoder: Encoder, candidate: Candidate, name: str, allow_missing: tuple[str, ...] = (), aliased: bool = True
) -> LoadReport:
    """Put a candidate's tensors into `encoder`, all of them or ValueError; the report of it.

    An encoder on the meta device takes the tensors themselves (copies, where they are `aliased`: the caller keeps them), any
    other encoder their values.
    """
    spec, found, notes = encoder.spec, dict(candidate.tensors), list(candidate.notes)
    body = encoder.body.state_dict()
    expected = {k: tuple(v.shape) for k, v in body.items()}
    first = encoder.first_convolution
    expected[first] = (expected[first][0], 3, *expected[first][2:])
    if first in found and found[first].ndim == 4 and found[first].shape[1] == 1:  # saved by a grey network
        found[first] = (found[first] / 3).expand(-1, 3, -1, -1)
        notes.append("first convolution of one channel spread over three")
    counters = [k for k in expected if k.endswith("num_batches_tracked")]
    if counters and not any(
        k in found for k in counters
    ):  # files from before torch 0.4.1; the counters take no part in the result
        found |= {k: torch.zeros((), dtype=torch.long) for k in counters}
        notes.append(f"num_batches_tracked absent ({len(counters)}), set to 0")
    missing = [k for k in expected if k not in found]
    left = [k for k in missing if k.startswith(tuple(allow_missing))] if allow_missing else []
    missing = [k for k in missing if k not in left]
    extra = [k for k in found if k not in expected]
    wrong = [
        f"{k} {tuple(found[k].shape)} instead of {shape}"
        for k, shape in expected.items()
        if k in found and tuple(found[k].shape) != shape
    ]
    if missing or extra or wrong:
        raise ValueError(
            f"{name} ({candidate.layout}) does not hold a {spec.name}: of {len(expected)} encoder tensors {len(missing)} are "
            f"missing (for example {missing[:3]}), {len(wrong)} have another shape ({'; '.join(wrong[:3]) or 'none'}), "
            f"{len(extra)} do not belong ({extra[:3]}). {_prefixes(candidate.keys)} If a part may be missing, name it: "
            f"allow_missing={tuple(sorted({k.split('.')[0] for k in missing})) or ('...',)}"
        )
    for key in expected.keys() - set(left):
        value = found[key]
        if value.is_floating_point():
            # the sum is finite whenever all are, at a tenth of the cost; if not, look closer
            if not value.sum(dtype=torch.float32).isfinite() and not value.isfinite().all():
                bad = sum(not v.isfinite().all() for k, v in found.items() if k in expected and v.is_floating_point())
                raise ValueError(f"{name}: {bad} encoder tensors hold NaN or infinity, for example {key}")
            if key.endswith("running_var") and value.min() < 0:
                raise ValueError(f"{name}: {key} holds a variance below 0: the file is damaged")
        elif body[key].is_floating_point():
            raise ValueError(f"{name}: {key} holds {value.dtype}, expected floating point (a quantised checkpoint?)")
    if left:
        notes.append(
            f"left random, as allow_missing says: {', '.join(sorted({k.split('.')[0] for k in left}))} ({len(left)})"
        )
    if spec.in_channels == 1 and first not in left:
        found[first] = found[first].sum(1, keepdim=True)
    values = {k: body[k] if k in left else found[k].to(body[k].dtype).contiguous() for k in expected}
    take = any(v.is_meta for v in body.values())
    if take:  # a tensor that shares its memory with another, or is a piece of a larger one, is copied in any case
        memory = [v.untyped_storage() for v in values.values()]
        for (key, value), storage in zip(list(values.items()), memory, strict=True):
            shared = sum(other.data_ptr() == storage.data_ptr() for other in memory) > 1
            if aliased or shared or storage.nbytes() > value.nbytes:
                values[key] = value.clone()
    encoder.body.load_state_dict(values, assign=take)
    matched = len(expected) - len(left)
    return LoadReport(
        candidate.layout, matched, len(expected), candidate.dropped, candidate.resized, notes, spec.name, candidate.root
    )


# ---- roots ----------------------------------------------------------------------------------------------------------


def roots(flat: Mapping[str, Tensor]) -> list[str]:
    """Prefixes under which an encoder stands, in the order of the file."""
    found = []
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
                and root.endswith((".", ""))
                and (not root or root[-1] == ".")
                and (f"{root}{also}" in flat if also else any(k.startswith(f"{root}blocks.") for k in flat))
            ):
                found.append(root)
    return found


def _choose_root(flat: Mapping[str, Tensor], name: str, prefix: str | None) -> tuple[str, list[str]]:
    """The root to load from, and the roots set aside."""
    found = roots(flat)
    if not found:
        raise ValueError(
            f"{name} holds no encoder that this project knows (ResNet, ViT, BEiT). {_prefixes(list(flat))} "
            f"Keys, for example: {list(flat)[:3]}; expected, after any prefix, 'conv1.weight' and 'layer1.0.conv1.weight', "
            f"or 'patch_embed.proj.weight' and 'blocks.0.norm1.weight'"
        )
    if prefix is not None:
        wanted = [r for r in found if r.rstrip(".") == prefix.rstrip(".") or r.endswith(f".{prefix.rstrip('.')}.")]
        if len(wanted) != 1:
            raise ValueError(f"prefix {prefix!r} names no encoder of {name}; there are: {', '.join(map(repr, found))}")
        return wanted[0], [r for r in found if r != wanted[0]]
    kept = [r for r in found if not any(_less_preferred(r, other) for other in found)]
    if len(kept) > 1:
        raise ValueError(
            f"{name} holds {len(kept)} encoders: say which by prefix={kept[0]!r} or {', '.join(map(repr, kept[1:]))}"
        )
    return kept[0], [r for r in found if r != kept[0]]


def _less_preferred(root: str, other: str) -> bool:
    parts = root.split(".")
    return any(
        worse in parts and other.split(".") == [better if p == worse else p for p in parts]
        for better, worse in PREFERRED
    )


def _module_of(key: str, root: str) -> str:
    """The module a key outside the root belongs to: the first part in which it differs from the root."""
    parts, base = key.split("."), root.split(".")
    at = next((i for i, part in enumerate(parts) if i >= len(base) or part != base[i]), 0)
    return ".".join(parts[at : at + 1])


def _prefixes(keys: list[str]) -> str:
    prefixes = sorted({".".join(k.split(".")[:-1][:2]) or k for k in keys})
    return f"Prefixes found: {', '.join(prefixes[:6])}{', ...' if len(prefixes) > 6 else ''}."


# ---- keys and architectures -----------------------------------------------------------------------------------------


def _is_transformer(inside: Mapping[str, Tensor]) -> bool:
    return "patch_embed.proj.weight" in inside


def _named(key: str) -> str:
    """torchvision's name for a key of `nn.Sequential(*resnet.children())`; other numbers belong to no encoder."""
    head, _, rest = key.partition(".")
    return f"{SEQUENTIAL[head]}.{rest}" if head in SEQUENTIAL else key


def _timm_keys(inside: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """timm's names and shapes for the keys of a ViT or BEiT as DINOv2, MAE, MoCo v3, BEiT and USFM write them."""
    if any(".mlp.w12." in k for k in inside):
        raise ValueError(f"{name} holds a DINOv2 with SwiGLU (ViT-g): this project has no encoder of that kind or size")
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


def _layout(state, flat: Mapping, root: str, inside: Mapping, dropped: Mapping) -> str:
    """The published layout's name."""
    siblings = {k[len(root.rsplit(".", 2)[0]) + 1 :].split(".")[0] for k in flat if root.count(".") > 1}
    siblings |= {k.split(".")[0] for k in flat}
    if isinstance(state.get("encoder"), Mapping) and root.endswith(checkpoints.ENCODER_PREFIX):
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
        return "DINOv2"
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
        1 + max((int(m.group(1)) for k in tensors if (m := re.match(rf"layer{i}\.(\d+)\.", k))), default=-1)
        for i in (1, 2, 3, 4)
    ]
    known = next((n for n, blocks in BLOCKS.items() if blocks == (kind, *counts)), None)
    if known is None:
        near = min(
            (n for n in BLOCKS if BLOCKS[n][0] == kind),
            key=lambda n: sum(abs(a - b) for a, b in zip(BLOCKS[n][1:], counts, strict=True)),
        )
        if any(count > usual for count, usual in zip(counts, BLOCKS[near][1:], strict=True)):
            raise ValueError(
                f"{name} holds a ResNet with {counts} {kind} blocks; this project knows {', '.join(BLOCKS)}"
            )
        known = near  # tensors are missing: the comparison with this one will name them
    return EncoderSpec(known)


def _transformer_spec(candidate: Candidate, name: str) -> EncoderSpec:
    tensors = candidate.tensors
    kernel = tensors["patch_embed.proj.weight"]
    width, patch, depth = kernel.shape[0], kernel.shape[-1], _depth(tensors)
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
                f"{name}: pos_embed of {positions.shape[1]} tokens is no square of patches and a class token"
            )
        options |= {"image": math.isqrt(grid) * patch, "registers": registers}
        options["layer_scale"] = "blocks.0.ls1.gamma" in tensors
    if known == "vit_small" and candidate.layout == "MoCo v3":
        options["heads"] = 12
        candidate.notes.append("12 heads, as MoCo v3's ViT-S has")
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


def _resize_positions(candidate: Candidate, spec: EncoderSpec, image: int) -> EncoderSpec:
    """Resample position embeddings to images of `image` px, in place; says so in the candidate."""
    from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table

    if image % spec.patch:
        raise ValueError(f"image_size {image} is not a multiple of this encoder's patch of {spec.patch} px")
    old, new = spec.image // spec.patch, image // spec.patch
    if old == new:
        return spec
    tensors = candidate.tensors
    for key in [k for k in tensors if k == "pos_embed" or k.endswith("relative_position_bias_table")]:
        if key == "pos_embed":
            prefix = 0 if spec.registers else 1
            tensors[key] = resample_abs_pos_embed(tensors[key].float(), [new, new], num_prefix_tokens=prefix)
        else:
            shape = ((2 * new - 1) ** 2 + 3, tensors[key].shape[1])
            tensors[key] = resize_rel_pos_bias_table(tensors[key].float(), (new, new), shape)
    what = "relative positions" if spec.name in BEiT.sizes else "pos_embed"
    candidate.resized.append(f"{what} {old}x{old} -> {new}x{new}")
    return dataclasses.replace(spec, image=image)


def _depth(tensors: Mapping[str, Tensor]) -> int:
    return 1 + max((int(m.group(1)) for k in tensors if (m := re.match(r"blocks\.(\d+)\.", k))), default=-1)


def _square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number
