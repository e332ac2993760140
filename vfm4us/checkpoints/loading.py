"""Fill an encoder from a checkpoint: all of it, with a report, or an error that says why not."""

import copy
import dataclasses
import difflib
import functools
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from vfm4us.checkpoints import huggingface, released
from vfm4us.checkpoints.files import CONVERT_DISTRIBUTED, nearest_file, read
from vfm4us.checkpoints.imagenet import imagenet_weights
from vfm4us.checkpoints.layouts import Candidate, prefixes_of, recognise
from vfm4us.checkpoints.words import normalisation_value
from vfm4us.encoders import NAMES, BEiT, Encoder, EncoderSpec, family


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
    heads: int | None = None,
    norm: str | None = None,
    image_size: int | None = None,
    allow_missing: tuple[str, ...] = (),
    sha256: str | None = None,
    mean: float | None = None,
    std: float | None = None,
) -> Encoder:
    """The encoder in a checkpoint, wholly loaded, in evaluation mode, with `encoder.report`.

    source:        .pt, .pth or .safetensors file, run folder (its latest checkpoint), a folder that transformers or timm
                   saved, the name of a released encoder ("open"), "imagenet" (torchvision's ResNet18), or a dict already read
    in_channels:   3, or 1: the first convolution is summed over RGB, which is exact for grey images
    prefix:        what stands before the encoder's keys, where a file holds several encoders
    heads:         of a ViT's attention, where neither its tensors nor its words tell how many
    norm:          vector of a ViT: "token" (its class token) or "mean_of_norm" (the mean of the others); by default as the
                   file's layout has it
    image_size:    side that a transformer's position embeddings are resampled to, px; by default they stay as they are
    allow_missing: beginnings of keys that may be missing ("layer4.", "norm"); those tensors stay random
    sha256:        refuse any other file
    mean, std:     of the input in [0, 1], equal for all channels; by default the file's own, or ImageNet's average

    Raises FileNotFoundError, or ValueError unless every tensor of the encoder is there in name and shape and finite.
    Warns (UserWarning) where the file says of itself that it computes otherwise than its tensors show.
    """
    allow_missing = (allow_missing,) if isinstance(allow_missing, str) else tuple(allow_missing)
    if image_size is not None and not 1 <= image_size <= 4096:
        raise ValueError(f"image_size={image_size}: expected a side from 1 to 4096 px")
    name, state = ("the given dict", source) if isinstance(source, Mapping) else open_checkpoint(source, sha256)
    given: dict[str, Any] = {"in_channels": in_channels, "mean": mean, "std": std}
    for key in ("mean", "std"):
        if given[key] is not None:
            given[key] = normalisation_value(key, given[key], functools.partial(_refuse_normalisation, key))
    candidate = recognise(state, name, prefix, heads)
    for warning in candidate.warnings:
        warnings.warn(f"{name}: {warning}", stacklevel=3)
    if norm is not None and norm != candidate.spec.norm:
        if not {norm, candidate.spec.norm} <= {"token", "mean_of_norm"} or not family(candidate.spec.name).has_tokens:
            raise ValueError(
                f"norm={norm!r}: {name} holds a {candidate.spec.name} with norm={candidate.spec.norm!r} alone"
            )
        candidate.spec = dataclasses.replace(candidate.spec, norm=norm)
    if candidate.spec.norm in VECTORS and family(candidate.spec.name).has_tokens and (norm or not candidate.ours):
        candidate.notes.append(f"vector: {VECTORS[candidate.spec.norm]}")
    spec = dataclasses.replace(candidate.spec, **{k: v for k, v in given.items() if v is not None})
    if image_size and family(spec.name).has_tokens:
        spec = _resize_positions(candidate, spec, image_size)
    # Random weights that would be overwritten are not drawn; a BEiT has index tables beside its weights, and is built whole.
    encoder = Encoder(spec) if allow_missing or spec.name in BEiT.sizes else copy.deepcopy(_skeleton(spec))
    encoder.report = fill(encoder, candidate, name, allow_missing, aliased=isinstance(source, Mapping))
    return encoder.eval()


VECTORS = {
    "token": "the class token",
    "mean": "the norm of the mean of the other tokens",
    "mean_of_norm": "the mean of the other tokens",
}


def _refuse_normalisation(key: str, value: object) -> None:
    raise ValueError(f"{key}={value!r}: expected one number for all channels, of images in [0, 1]")


def open_checkpoint(source: str | Path, sha256: str | None = None) -> tuple[str, Mapping]:
    """The path and the content of a checkpoint file, a run folder, a folder of transformers or timm, or a released encoder."""
    if not isinstance(source, str | Path):
        kind = type(source).__name__
        remedy = ": give model.state_dict()" if isinstance(source, torch.nn.Module) else ""
        remedy = ": give its path, or torch.load(FILE, weights_only=True)" if hasattr(source, "read") else remedy
        raise ValueError(f"a checkpoint is given as a path or as a dict that was read, not as {kind}{remedy}")
    if not str(source).strip():
        raise ValueError(f"{source!r} is no path: give {loadable()}; the working folder is '.'")
    path, expected = released.resolve(source)
    if source == IMAGENET:
        if path.exists():
            raise ValueError(
                f"'imagenet' is the name of torchvision's ResNet18, and of a path in {Path.cwd()}: give ./imagenet for the path, "
                "or go to another folder for the encoder"
            )
        path = imagenet_weights()
    elif not path.exists():
        _refuse_missing(str(source), path)
    path, sha256 = _place_of(path), sha256 or expected
    if path.is_dir():
        return str(path), huggingface.read_folder(path, sha256)
    words = huggingface.words_beside(path.parent) if path.name in huggingface.WEIGHTS else {}
    return str(path), read(path, sha256) | words


IMAGENET = "imagenet"


def loadable() -> str:
    """What can be given to `load_encoder`, in words."""
    named = ", ".join(repr(name) for name in [*released.names(), IMAGENET])
    return f"{named}, a checkpoint file, or the folder of a run (logs/NAME) or of Hugging Face"


def _refuse_missing(source: str, path: Path) -> NoReturn:
    """FileNotFoundError that says what was meant, as far as that can be told."""
    looked = "" if path.is_absolute() else f" (looked from {Path.cwd()})"
    near = difflib.get_close_matches(source.lower(), [*released.names(), IMAGENET], n=1)
    if "://" in source:
        told = ", which is not fetched: download it and give the file"
    elif source.startswith("timm:"):
        told = (
            ": timm:NAME is for scripts/probe.py alone; here give the tensors, timm.create_model"
            f"({source.removeprefix('timm:')!r}, pretrained=True).state_dict(), with mean= and std= of its input"
        )
    elif source in ("none", "random") or source in NAMES:
        spec = f"EncoderSpec({source!r})" if source in NAMES else ""
        told = f": random weights are vfm4us.encoders.Encoder({spec}); to load some, give {loadable()}"
    elif near:
        told = f": did you mean {near[0]!r}? Give {loadable()}"
    elif similar := nearest_file(path):
        told = similar
    else:
        told = f": give {loadable()}"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not Path(source).suffix:
            told += f"; a model of a hub is downloaded first, huggingface_hub.snapshot_download({source!r})"
    raise FileNotFoundError(f"{source} does not exist{looked}{told}")


def _place_of(path: Path) -> Path:
    """The file that holds the tensors, or the folder that transformers or timm saved."""
    if path.is_file():
        return path.parent if path.name == "config.json" or path.name in huggingface.INDEXES else path
    saved_by_others = not (path / "checkpoints" / "last.pt").is_file() and huggingface.is_folder(path)
    return latest(path) if path.is_dir() and not saved_by_others else path


def files_of(source: str | Path) -> list[Path]:
    """The files that decide what `load_encoder(source)` gives: of a folder of transformers or timm its parts and its words.

    Raises FileNotFoundError where there is none.
    """
    path = _place_of(released.resolve(source)[0])
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist (looked from {Path.cwd()})")
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in (".json", ".safetensors", ".bin"))
    words = [path.with_name(f"{name}.json") for name in huggingface.WORDS] if path.name in huggingface.WEIGHTS else []
    return sorted([path, *(file for file in words if file.is_file())])


@functools.lru_cache(maxsize=8)
def _skeleton(spec: EncoderSpec) -> Encoder:
    """The encoder without memory for its weights; a copy of it is made several times as fast as it is."""
    with torch.device("meta"):
        return Encoder(spec)


def latest(run_folder: Path) -> Path:
    """The newest checkpoint of a run folder."""
    folder = Path(run_folder)
    path = folder / "checkpoints" / "last.pt"
    if path.is_file():
        return path
    if folder.is_dir():
        for pattern in (".metadata", "*/.metadata", "*.distcp"):
            part = next(folder.glob(pattern), None)
            if part is not None:
                raise ValueError(
                    f"{folder} holds a distributed checkpoint (torch.distributed.checkpoint): "
                    + CONVERT_DISTRIBUTED.format(part.parent)
                )
        if (folder / "zero_to_fp32.py").is_file():
            raise ValueError(
                f"{folder} holds DeepSpeed's parts of a checkpoint: join them with its own script, "
                f"python {folder / 'zero_to_fp32.py'} {folder} weights.pt"
            )
        if (folder / "adapter_config.json").is_file():
            raise ValueError(
                f"{folder} holds LoRA adapters without their network (peft): merge them where they were made, "
                "model.merge_and_unload(), and save that"
            )
        if (folder / "saved_model.pb").is_file():
            raise ValueError(f"{folder} holds a model of TensorFlow: this project reads weights of PyTorch")
        inside = sorted(
            p.name for p in folder.iterdir() if p.suffix in (".pt", ".pth", ".safetensors", ".bin", ".ckpt")
        )
        if inside:
            raise FileNotFoundError(
                f"{folder} holds no checkpoints/last.pt; give one of its files: {', '.join(inside[:5])}"
            )
        if (folder / "config.json").is_file():
            there = sorted(p.name for p in folder.iterdir() if p.is_file())
            raise FileNotFoundError(
                f"{folder} holds a config.json, but no weights of PyTorch ({' or '.join(huggingface.WEIGHTS[:2])}), only "
                f"{', '.join(there[:5])}: fetch them too"
            )
    raise FileNotFoundError(
        f"{folder} holds no checkpoints/last.pt: is it the folder of a pretraining run? Else give {loadable()}"
    )


def fill(
    encoder: Encoder, candidate: Candidate, name: str, allow_missing: tuple[str, ...] = (), aliased: bool = True
) -> LoadReport:
    """Put a candidate's tensors into `encoder`, all of them or ValueError; the report of it.

    An encoder on the meta device takes the tensors themselves (copies, where they are `aliased`: the caller keeps them), any
    other encoder their values.
    """
    spec, tensors = encoder.spec, dict(candidate.tensors)
    notes = [*candidate.notes, *(f"WARNING: {text}" for text in candidate.warnings)]
    body = encoder.body.state_dict()
    expected = {k: tuple(v.shape) for k, v in body.items()}
    first = encoder.first_convolution
    expected[first] = (expected[first][0], 3, *expected[first][2:])
    if first in tensors and tensors[first].ndim == 4 and tensors[first].shape[1] == 1:  # saved by a grey network
        tensors[first] = (tensors[first] / 3).expand(-1, 3, -1, -1)
        notes.append("first convolution of one channel spread over three")
    counters = [k for k in expected if k.endswith("num_batches_tracked")]
    if counters and not any(
        k in tensors for k in counters
    ):  # files from before torch 0.4.1; the counters take no part in the result
        tensors |= {k: torch.zeros((), dtype=torch.long) for k in counters}
        notes.append(f"num_batches_tracked absent ({len(counters)}), set to 0")
    missing = [k for k in expected if k not in tensors]
    left = [k for k in missing if k.startswith(tuple(allow_missing))] if allow_missing else []
    missing = [k for k in missing if k not in left]
    extra = [k for k in tensors if k not in expected]
    wrong = [
        f"{k} {tuple(tensors[k].shape)} instead of {shape}"
        for k, shape in expected.items()
        if k in tensors and tuple(tensors[k].shape) != shape
    ]
    if missing or extra or wrong:
        parts = {k.split(".")[0] for k in missing}
        whole = all(k in missing for k in expected if k.split(".")[0] in parts)
        advice = ""
        if missing and whole and not extra and not wrong and parts <= {"layer3", "layer4", "norm", "fc_norm"}:
            advice = f" If it was saved without them, they can be left random: allow_missing={tuple(sorted(parts))}"
        raise ValueError(
            f"{name} ({candidate.layout}) does not hold a {spec.name}: of {len(expected)} encoder tensors {len(missing)} are "
            f"missing (for example {missing[:3]}), {len(wrong)} have another shape ({'; '.join(wrong[:3]) or 'none'}), "
            f"{len(extra)} do not belong ({extra[:3]}). {prefixes_of(candidate.keys)}{advice}"
        )
    spread = [k for k in expected if k in tensors and tensors[k].numel() > 1 and 0 in tensors[k].stride()]
    if spread:
        notes.append(f"{len(spread)} tensors repeat numbers (stride 0)")
    small = [k for k in expected if k in tensors and "float8" in str(tensors[k].dtype)]
    if small:
        notes.append(f"{len(small)} tensors of 8-bit floating point converted")
    for key in expected.keys() & tensors.keys():
        kind = tensors[key].dtype
        if kind.is_complex or "float4" in str(kind):
            raise ValueError(f"{name}: {key} holds {kind}, expected real floating point: save it as float32")
        if kind.is_floating_point and kind not in (torch.float16, torch.bfloat16, torch.float32):
            whole = bool(tensors[key].isfinite().all()) if kind == torch.float64 else True
            tensors[key] = tensors[key].to(torch.float32)
            if whole and not tensors[key].isfinite().all():
                raise ValueError(f"{name}: {key} holds {kind} beyond the range of float32, or NaN: the file is damaged")
    for key in expected.keys() - set(left):
        value = tensors[key]
        if value.is_floating_point():
            # the sum is finite whenever all are, at a tenth of the cost; if not, look closer
            if not value.sum(dtype=torch.float32).isfinite() and not value.isfinite().all():
                bad = sum(not v.isfinite().all() for k, v in tensors.items() if k in expected and v.is_floating_point())
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
        tensors[first] = tensors[first].sum(1, keepdim=True)
    values = {k: body[k] if k in left else tensors[k].to(body[k].dtype).contiguous() for k in expected}
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
