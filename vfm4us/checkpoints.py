"""Checkpoints: atomic writes, safe reads, and an encoder that is either wholly loaded or refused.

A checkpoint is a dict of tensors and plain types only (`torch.load(..., weights_only=True)` reads it). `state_dict` holds
`module.base_encoder.<torchvision or timm key>` and `module.projector.*`; beside it stand `encoder`, `stage`, `epoch`,
`step`, `config`, and under `resume` what only the continuing run needs.
"""

import difflib
import errno
import os
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vfm4us.encoders import Encoder, EncoderSpec

ENCODER_PREFIX = "module.base_encoder."
PROJECTOR_PREFIX = "module.projector."


@dataclass
class LoadReport:
    """What became of a file's tensors: `str(report)` is one line."""

    layout: str
    matched: int
    expected: int
    dropped: dict[str, int] = field(default_factory=dict)
    resized: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        dropped = ", ".join(f"{name} ({count})" for name, count in self.dropped.items()) or "none"
        return (
            f"layout {self.layout}, {self.matched}/{self.expected} tensors, dropped: {dropped}, "
            f"resized: {', '.join(self.resized) or 'none'}"
        )


def save(path: Path, state: dict) -> None:
    """Write `state` so that `path` is at every moment either the old file or the whole new one.

    Raises OSError that says what is left where the disk is full; the old file stays and no temporary file is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a failed write into a RuntimeError
        failed_write = isinstance(error, RuntimeError) and "inline_container" in str(error)
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error.__context__ or "")
        why = "no space left on the disk" if full or failed_write else _first_line(error)
        raise OSError(
            f"could not save {path}: {why}. The previous checkpoint is untouched: free some space and give the same "
            f"command again to continue from it."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> dict:
    """The dict in `path`, read without running any code in it.

    Raises FileNotFoundError, or ValueError for a file that is damaged, is no checkpoint, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is refused: it is no plain checkpoint of tensors ({_first_line(error)})") from error
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no PyTorch checkpoint ({_first_line(error)})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a dict with 'state_dict'")
    return state


def keep_last(folder: Path, pattern: str, count: int) -> None:
    """Remove all but the newest `count` files that match `pattern`; their names sort by age."""
    for path in sorted(Path(folder).glob(pattern))[: -count or None]:
        path.unlink()


def load_encoder(path: str | Path, in_channels: int = 3) -> Encoder:
    """The encoder in a VFM4US checkpoint, or in a run folder (its latest checkpoint), with `encoder.report`.

    Raises ValueError unless every tensor of the encoder is there, of the right shape and finite.
    """
    path = Path(path)
    if path.is_dir():
        path = latest(path)
    state = read(path)
    tensors, about = state.get("state_dict"), state.get("encoder")
    if not isinstance(tensors, dict) or not isinstance(about, dict):
        raise ValueError(
            f"{path} has no 'state_dict' and 'encoder'; its keys are: {', '.join(map(str, list(state)[:8]))}"
        )
    mean, std = (v[0] if isinstance(v := about[k], list) else v for k in ("mean", "std"))
    encoder = Encoder(EncoderSpec(about["name"], in_channels, mean, std))
    encoder.report = fill_encoder(encoder, tensors, str(path))
    return encoder


def latest(run_folder: Path) -> Path:
    """The newest checkpoint of a run folder."""
    path = Path(run_folder) / "checkpoints" / "last.pt"
    if not path.is_file():
        raise FileNotFoundError(f"{run_folder} holds no checkpoints/last.pt: is it the folder of a pretraining run?")
    return path


def fill_encoder(encoder: Encoder, tensors: dict[str, Tensor], source: str) -> LoadReport:
    """Copy `module.base_encoder.*` of `tensors` into `encoder`, all of it or ValueError."""
    found = {k[len(ENCODER_PREFIX) :]: v for k, v in tensors.items() if k.startswith(ENCODER_PREFIX)}
    found = {k: v for k, v in found.items() if not k.startswith(("fc.", "head."))}
    expected = encoder.published_state()
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        prefixes = sorted({".".join(k.split(".")[:2]) for k in tensors})
        near = difflib.get_close_matches(missing[0], list(tensors), n=1, cutoff=0.3) if missing else []
        raise ValueError(
            f"{source} does not hold a {encoder.spec.name}: {len(missing)} of {len(expected)} encoder tensors are missing "
            f"and {len(extra)} do not belong. Missing, for example: {missing[:3]}; there but unknown: {extra[:3]}; "
            f"prefixes found: {prefixes[:6]}" + (f"; nearest key: {near[0]!r}" if near else "")
        )
    wrong = [
        f"{k} {tuple(found[k].shape)} instead of {tuple(v.shape)}"
        for k, v in expected.items()
        if found[k].shape != v.shape
    ]
    if wrong:
        raise ValueError(f"{source} does not hold a {encoder.spec.name}: {len(wrong)} shapes differ, e.g. {wrong[:3]}")
    bad = [k for k, v in found.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise ValueError(f"{source}: {len(bad)} encoder tensors hold NaN or infinity, e.g. {bad[:3]}")
    encoder.load_published_state(found)
    dropped: dict[str, int] = {}
    for key in tensors:
        if not key.startswith(ENCODER_PREFIX):
            name = key.removeprefix("module.").split(".")[0]
            dropped[name] = dropped.get(name, 0) + 1
    return LoadReport("VFM4US", len(found), len(expected), dropped)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
