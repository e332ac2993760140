"""Checkpoint files: atomic writes, and reads that run no code, take no more memory than the file and notice damage.

A checkpoint is a dict of tensors and plain types only (`torch.load(..., weights_only=True)` reads it). `state_dict` holds
`module.base_encoder.<torchvision or timm key>` and `module.projector.*`; beside it stand `encoder`, `stage`, `epoch`,
`step`, `config`, and under `resume` what only the continuing run needs.
"""

import collections
import concurrent.futures
import contextlib
import difflib
import errno
import hashlib
import json
import os
import pickle
import pickletools
import re
import struct
import zipfile
from pathlib import Path

import torch

ENCODER_PREFIX = "module.base_encoder."
PROJECTOR_PREFIX = "module.projector."


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


def read(path: Path, sha256: str | None = None) -> dict:
    """The dict in a .pt, .pth or .safetensors file, read without running any code in it.

    Memory is bounded by the file's size, whatever it declares, and the checksums of a zip-format file are verified, so
    that a flipped bit is noticed. `sha256` (hex) verifies the whole file instead, in any format. Configuration objects of
    training frameworks (argparse, yacs, omegaconf, ...) become inert stand-ins; any other class or function named in the file
    is a reason to refuse it.
    Raises FileNotFoundError, or ValueError for a file that is damaged, is no checkpoint, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist" + _nearest_file(path))
    if sha256 is not None:
        verify_sha256(path, sha256)
    try:
        kind = _kind(path)
        if kind == "safetensors":
            state = _read_safetensors(path)
        else:
            _check_zip(path) if kind == "zip" else _check_legacy(path)
            with concurrent.futures.ThreadPoolExecutor(1) as beside:  # the checksums cost a third of the reading
                wrong = beside.submit(_wrong_entry, path) if kind == "zip" and sha256 is None else None
                state = _read_pickled(path)
            if wrong is not None and wrong.result():
                raise ValueError(
                    f"damaged: {wrong.result()} does not match its checksum; fetch the file again (or give its sha256, "
                    "which is verified instead)"
                )
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"{path} is refused: {_first_line(error)}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is refused: nested too deeply for a checkpoint") from error
    except (
        RuntimeError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        MemoryError,
        OverflowError,
        AssertionError,
        struct.error,
        pickle.PickleError,
        zipfile.BadZipFile,
        NotImplementedError,
    ) as error:
        raise ValueError(f"{path} is damaged or no PyTorch checkpoint ({_first_line(error)})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a dict of tensors or one with 'state_dict'")
    return state


def verify_sha256(path: Path, expected: str) -> None:
    """Raises ValueError unless the file has this sha256, in hex; at least 16 digits of it must be given."""
    with open(path, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if len(expected) < 16 or not found.startswith(expected.lower()):
        raise ValueError(
            f"{path} has sha256 {found}, expected {expected}: it is another file than was published, or damaged; "
            f"fetch it again"
        )


# ---- what kind of file, and whether it is what it says ------------------------------------------------------------


def _kind(path: Path) -> str:
    """`zip` (torch.save since 1.6), `legacy` (before) or `safetensors`, told by the first bytes; else ValueError."""
    with open(path, "rb") as stream:
        head = stream.read(512)
    size = path.stat().st_size
    if not head:
        raise ValueError("it is empty (0 bytes)")
    if head[:4] == b"PK\x03\x04":
        return "zip"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    if head[:6] == b"\x93NUMPY":
        raise ValueError("it is a NumPy array, not a checkpoint")
    if head[257:262] == b"ustar":
        raise ValueError("it is a tar archive: unpack it, and give the checkpoint inside")
    if head[:2] == b"\x1f\x8b":
        raise ValueError("it is compressed (gzip): unpack it, and give the checkpoint inside")
    if head[:18] == b"version https://gi":
        raise ValueError("it is a Git LFS pointer, not the file itself: fetch it with 'git lfs pull'")
    if head[:1] == b"<":
        raise ValueError("it is a web page, not a checkpoint: the download needs a login or another address")
    if head[:1] != b"\x80":
        raise ValueError("it is no checkpoint in PyTorch or safetensors format")
    return "legacy"


def _check_zip(path: Path) -> None:
    """Refuse an archive that torch.save did not write or that unpacks to more than its size."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if any(name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) for name in names):
            raise ValueError("its archive names files outside its own folder")
        folders = {name.split("/")[0] for name in names}
        if len(folders) != 1 or f"{names[0].split('/')[0]}/data.pkl" not in names or len(set(names)) < len(names):
            inside = ", ".join(names[:3])
            raise ValueError(f"it is a zip archive that torch.save did not write (it holds {inside}): unpack it first")
        if any("/code/" in name or name.endswith("constants.pkl") for name in names):
            raise ValueError("it is a TorchScript program, not a checkpoint: give the checkpoint it was made from")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its archive is compressed, as torch.save never does: unpack it first")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its archive declares more bytes than the file has")


def _wrong_entry(path: Path) -> str | None:
    """Name of the first entry of a zip file whose bytes do not match their CRC-32."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _check_legacy(path: Path) -> None:
    """Refuse a file of the format before torch 1.6 that declares more elements than it has bytes."""
    declared, size = {}, path.stat().st_size
    with open(path, "rb") as stream:
        for _ in range(4):  # magic number, protocol, machine, the object; storages follow
            last_integer, texts = 0, []
            for opcode, value, _ in pickletools.genops(stream):
                if isinstance(value, int) and not isinstance(value, bool) and "PUT" not in opcode.name:
                    last_integer = value if "GET" not in opcode.name else last_integer
                elif isinstance(value, str):
                    texts = texts[-3:] + [value]
                if opcode.name == "BINPERSID":  # ('storage', type, key, device, number of elements, view)
                    declared["".join(texts[-2:])] = last_integer
            if stream.tell() >= size:
                break
    if sum(declared.values()) > size or any(v < 0 for v in declared.values()):
        raise ValueError(f"it declares {sum(declared.values())} numbers, but has {size} bytes")


# ---- reading --------------------------------------------------------------------------------------------------------


class _Inert:
    """Stands for an object that a training framework left in a checkpoint: takes anything, does nothing."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass


class _InertDict:
    """The same for a kind of dict, as torch fills no other types with items."""

    def __new__(cls, *_, **__):
        return collections.OrderedDict()


# What training frameworks leave in checkpoints: configurations, numbers and paths. Only their names count here, none of
# them is imported or called.
_DICTS = re.compile(
    r"(collections\.defaultdict|builtins\.dict|(yacs|ml_collections|easydict|addict|mmcv|mmengine)\..+)$"
)
_OBJECTS = re.compile(
    r"(argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w+|datetime\.\w+|_codecs\.encode|typing\.Any|copyreg\._reconstructor"
    r"|builtins\.(list|tuple|set|int|float|str|bool|bytes|object)"
    r"|(numpy|omegaconf|pytorch_lightning|lightning|lightning_fabric)\..+)$"
)


def _read_pickled(path: Path):
    """torch.load, with an inert stand-in for each harmless class it does not know."""
    stand_ins: list = []
    while True:
        try:
            with torch.serialization.safe_globals(stand_ins):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            name = found.group(1) if found else _foreign_name(path)
            if not name:
                raise ValueError(f"it is damaged or no plain checkpoint of tensors ({_last_line(error)})") from error
            full = name if "." in name else f"builtins.{name}"  # torch leaves "builtins" out of its message
            kind = _InertDict if _DICTS.match(full) else _Inert if _OBJECTS.match(full) else None
            if kind is None:
                raise ValueError(
                    f"reading it would call {name}, which a checkpoint of tensors has no need of"
                ) from error
            if any(known == full for _, known in stand_ins):
                raise ValueError(
                    f"it holds a {full} in a form that cannot be left out ({_last_line(error)})"
                ) from error
            stand_ins.append((type("StandIn", (kind,), {}), full))


def _foreign_name(path: Path) -> str:
    """The first class or function in the file's pickle that is none of torch's own; '' where there is none."""
    content = path.read_bytes()
    if content[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            content = archive.read(next(n for n in archive.namelist() if n.endswith("/data.pkl")))
    texts: list[str] = []
    with contextlib.suppress(Exception):  # it only serves a message: a pickle cut short names what it names until there
        for opcode, value, _ in pickletools.genops(content):
            if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                name = value.replace(" ", ".") if opcode.name == "GLOBAL" else ".".join(texts[-2:])
                if not name.startswith(("torch.", "collections.OrderedDict")):
                    return name
            elif isinstance(value, str):
                texts.append(value)
    return ""


def _read_safetensors(path: Path) -> dict:
    """Tensors of a safetensors file, and what its text header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            # copied: what is handed out lies in the file, which may change
            state = {key: stream.get_tensor(key).clone() for key in stream.keys()}
            metadata = stream.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"damaged safetensors file ({_first_line(error)})") from error
    if "encoder" in metadata:  # our own: what a checkpoint says of its encoder, as JSON
        try:
            metadata["encoder"] = json.loads(metadata["encoder"])
        except json.JSONDecodeError as error:
            raise ValueError(f"the header's 'encoder' is no JSON ({error})") from error
    return state | {k: v for k, v in metadata.items() if k not in state}


def keep_last(folder: Path, pattern: str, count: int) -> None:
    """Remove all but the newest `count` files that match `pattern`; their names sort by age."""
    for path in sorted(Path(folder).glob(pattern))[: -count or None]:
        path.unlink()


def _nearest_file(path: Path) -> str:
    """`, did you mean ...` where a file beside it has nearly this name."""
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f": did you mean {path.parent / near[0]}?" if near else ""


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _last_line(error: Exception) -> str:
    """torch puts its advice first; what happened stands in the last line but for a pointer to the documentation."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "pytorch.org" not in line]
    return (lines or [type(error).__name__])[-1].removeprefix("WeightsUnpickler error: ")[:200]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
