"""Checkpoint files: atomic writes, and reads that run no code, take no more memory than the file and notice damage.

A checkpoint is a dict of tensors and plain types only (`torch.load(..., weights_only=True)` reads it). `state_dict` holds
`module.base_encoder.<torchvision or timm key>` and `module.projector.*`; beside it stand `encoder`, `stage`, `epoch`,
`step`, `config`, and under `resume` what only the continuing run needs.
"""

import collections
import concurrent.futures
import difflib
import errno
import hashlib
import io
import json
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import torch

from vfm4us.checkpoints import pickles
from vfm4us.runtime.files import unfinished

ENCODER_PREFIX = "module.base_encoder."
PROJECTOR_PREFIX = "module.projector."


def save(path: Path, state: dict) -> None:
    """Write `state` so that `path` is at every moment either the old file or the whole new one.

    Raises OSError that says what is left where the disk is full; the old file stays and no temporary file is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with unfinished(path) as beside, open(beside, "wb") as stream:
            torch.save(state, stream)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a failed write into a RuntimeError
        failed_write = isinstance(error, RuntimeError) and "inline_container" in str(error)
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error.__context__ or "")
        why = "no space left on the disk" if full or failed_write else _first_line(error)
        raise OSError(
            f"could not save {path}: {why}. The previous checkpoint is untouched: free some space and give the same "
            f"command again to continue from it."
        ) from error


def read(path: Path, sha256: str | None = None) -> dict:
    """The dict in a .pt, .pth or .safetensors file, read without running any code in it.

    What the file declares is checked before anything is made of it (`pickles.examine`), so memory and time are bounded by
    its size; the checksums of a zip-format file are verified, so that a flipped bit is noticed. `sha256` (hex) verifies the
    whole file instead, in any format. Configuration objects of training frameworks (argparse, yacs, omegaconf, ...) become
    inert stand-ins that keep plain values; any other class or function named in the file is a reason to refuse it.
    Raises FileNotFoundError, or ValueError for a file that is damaged, is no checkpoint, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        looked = "" if path.is_absolute() else f" (looked from {Path.cwd()})"
        remedy = nearest_file(path) or ": give a checkpoint file, or the folder of a run, as logs/NAME"
        raise FileNotFoundError(f"checkpoint {path} does not exist{looked}{remedy}")
    if sha256 is not None:
        verify_sha256(path, sha256)
    try:
        kind = _kind(path)
        if kind == "safetensors":
            state = _read_safetensors(path)
        else:
            foreign = _examine_zip(path) if kind == "zip" else _examine_legacy(path)
            with concurrent.futures.ThreadPoolExecutor(1) as beside:  # the checksums cost a third of the reading
                wrong = beside.submit(_wrong_entry, path) if kind == "zip" and sha256 is None else None
                with torch.serialization.safe_globals(pickles.stand_ins(foreign)):
                    state = torch.load(path, map_location="cpu", weights_only=True)
            if wrong is not None and wrong.result():
                raise ValueError(
                    f"damaged: {wrong.result()} does not match its checksum; fetch the file again (or give its sha256, "
                    "which is verified instead)"
                )
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        told = _first_line(error)
        if re.match(r"pickle exhausted|not enough data in stream|.* but only \d+ remain", told):  # pickletools' words
            told = f"it ends early, within its first part: {FETCH_AGAIN}"
        raise ValueError(f"{path} is refused: {told}") from error
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
        told = _last_line(error)
        if isinstance(error, zipfile.BadZipFile) and "not a zip" in told:
            told = f"it ends early, the list at its end is missing: {FETCH_AGAIN}"
        raise ValueError(f"{path} is damaged or no PyTorch checkpoint ({told})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a dict of tensors or one with 'state_dict'")
    return state


def verify_sha256(path: Path, expected: str) -> None:
    """Raises ValueError unless the file has this sha256, in hex; at least 16 digits of it must be given."""
    with open(path, "rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if len(expected) < 16 or not actual.startswith(expected.lower()):
        raise ValueError(
            f"{path} has sha256 {actual}, expected {expected}: it is another file than was published, or damaged; "
            f"fetch it again"
        )


# ---- what kind of file, and whether it is what it says ------------------------------------------------------------

TENSORS = 20_000  # in a file; the largest network here has 600, and an optimizer has three of each
ENTRIES = 50_000  # in a zip archive
HEADER = 16 * 2**20  # bytes of a safetensors header, and of the keys and numbers of a pickle

# First bytes of what people have in the place of a checkpoint, and what they should do.
BEGINNINGS = (
    (
        b"\x89HDF",
        "it is an HDF5 file (Keras): this project reads PyTorch weights, which most authors publish beside them",
    ),
    (b"\x93NUMPY", "it is a NumPy array, not a checkpoint"),
    (b"\x1f\x8b", "it is compressed (gzip): unpack it, and give the checkpoint inside"),
    (b"BZh", "it is compressed (bzip2): unpack it, and give the checkpoint inside"),
    (b"\xfd7zXZ", "it is compressed (xz): unpack it, and give the checkpoint inside"),
    (b"7z\xbc\xaf", "it is a 7-zip archive: unpack it, and give the checkpoint inside"),
    (b"Rar!", "it is a RAR archive: unpack it, and give the checkpoint inside"),
    (b"version https://gi", "it is a Git LFS pointer, not the file itself: fetch it with 'git lfs pull'"),
    (b"GGUF", "it is a GGUF file of a language model, not an image encoder's checkpoint"),
    (b"MATLAB", "it is a MATLAB file: export the weights to PyTorch"),
    (b"%PDF", "it is a PDF document, not a checkpoint"),
    (b"\x89PNG", "it is a picture (PNG), not a checkpoint"),
    (b"\xff\xd8\xff", "it is a picture (JPEG), not a checkpoint"),
    (b"model_checkpoint_path:", "it is a file of TensorFlow: this project reads weights of PyTorch"),
    (b"<?xml", "it is XML (a program of OpenVINO, or the error of a server), not a checkpoint"),
    (b"<", "it is a web page, not a checkpoint: the download needs a login or another address"),
    (b"{", "it is a text file (JSON), not a checkpoint: give the weights beside it, or their folder"),
)


PROGRAMS = {  # ending of a file that is not known by its first bytes -> whose it is
    ".pb": "TensorFlow",
    ".index": "TensorFlow",
    ".meta": "TensorFlow",
    ".msgpack": "Flax",
    ".caffemodel": "Caffe",
    ".params": "MXNet",
    ".mlmodel": "Core ML",
    ".engine": "TensorRT",
    ".trt": "TensorRT",
    ".weights": "Darknet",
    ".mat": "MATLAB",
    ".rknn": "RKNN",
}


def _kind(path: Path) -> str:
    """`zip` (torch.save since 1.6), `legacy` (before) or `safetensors`, told by the first bytes; else ValueError."""
    with open(path, "rb") as stream:
        head = stream.read(512)
    size = path.stat().st_size
    if not head:
        raise ValueError("it is empty (0 bytes)")
    if path.name == ".metadata" or path.suffix == ".distcp":
        raise ValueError(f"it is a part of a distributed checkpoint: {CONVERT_DISTRIBUTED.format(path.parent)}")
    if head[:4] == b"PK\x03\x04":
        return "zip"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= HEADER:
        raise ValueError(f"it is a safetensors file that ends early: {FETCH_AGAIN}")
    if not head.strip(b"\0"):
        raise ValueError(f"it begins with zeros, as what was copied or downloaded in part does: {FETCH_AGAIN}")
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()  # web servers write a mark of UTF-8 and empty lines first
    for beginning, reason in BEGINNINGS:
        if head.startswith(beginning) or begin.startswith(beginning):
            raise ValueError(reason)
    if head[257:262] == b"ustar":
        raise ValueError("it is a tar archive: unpack it, and give the checkpoint inside")
    if head[4:8] == b"TFL3":
        raise ValueError("it is a TensorFlow Lite program, not a checkpoint: give PyTorch weights")
    if head[:1] == b"\x08" and (path.suffix.lower() == ".onnx" or b"pytorch" in head[:64]):
        raise ValueError("it is an ONNX program, not a checkpoint: give the checkpoint it was made from")
    if head[:1] != b"\x80":
        program = PROGRAMS.get(path.suffix.lower()) or ("TensorFlow" if ".data-0" in path.name else None)
        if program:
            raise ValueError(f"it is a file of {program}: this project reads weights of PyTorch")
        if head[:1] == b"\x08":
            raise ValueError(
                "it is a program in protobuf (ONNX or TensorFlow), not a checkpoint: give weights of PyTorch"
            )
        if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
            raise ValueError(f"it is a text, not a checkpoint; it begins {head[:60].decode().strip()!r}: {FETCH_AGAIN}")
        raise ValueError("it is no checkpoint in PyTorch or safetensors format")
    return "legacy"


FETCH_AGAIN = "fetch it again"
CONVERT_DISTRIBUTED = "convert it with: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {} weights.pt"


def _examine_zip(path: Path) -> set[str]:
    """Classes named in the file that need a stand-in; ValueError for what torch.save did not write or unpacks to more."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if any(name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) for name in names):
            raise ValueError("its archive names files outside its own folder")
        if len(names) > ENTRIES:
            raise ValueError(f"its archive holds {len(names)} files; a checkpoint has at most {ENTRIES}")
        if any("/code/" in name or name.endswith("constants.pkl") for name in names):
            raise ValueError("it is a TorchScript program, not a checkpoint: give the checkpoint it was made from")
        if any(name.endswith((".npy", ".npz")) for name in names[:50]):
            raise ValueError(
                "it is an archive of NumPy arrays (npz, as JAX projects publish): convert it to PyTorch first"
            )
        if any(name.endswith(("archive_format", ".h5")) for name in names[:50]):
            kind = (
                "a Keras file" if any(name.endswith(".h5") for name in names) else "an exported program (torch.export)"
            )
            raise ValueError(f"it is {kind}, not a checkpoint: give the PyTorch weights it was made from")
        folders = {name.split("/")[0] for name in names}
        if len(folders) != 1 or f"{names[0].split('/')[0]}/data.pkl" not in names or len(set(names)) < len(names):
            inside = ", ".join(names[:3])
            raise ValueError(f"it is a zip archive that torch.save did not write (it holds {inside}): unpack it first")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its archive is compressed, as torch.save never does: unpack it first")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its archive declares more bytes than the file has")
        pickled = next(entry for entry in entries if entry.filename.endswith("/data.pkl"))
        if pickled.file_size > HEADER:
            raise ValueError(
                f"its keys and numbers take {pickled.file_size} bytes; a checkpoint's take at most {HEADER} "
                "(arrays of NumPy lie among them: save tensors, torch.from_numpy)"
            )
        return pickles.examine(io.BytesIO(archive.read(pickled))).foreign


def _wrong_entry(path: Path) -> str | None:
    """Name of the first entry of a zip file whose bytes do not match their CRC-32."""
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _examine_legacy(path: Path) -> set[str]:
    """The same of a file of the format before torch 1.6, which must not declare more numbers than it has bytes."""
    size, foreign = path.stat().st_size, set[str]()
    declared: dict[str, int] = {}
    with open(path, "rb") as stream:
        for part in range(5):  # magic number, protocol, machine, the object, the storages' names; storages follow
            examined = pickles.examine(stream, HEADER)
            foreign |= examined.foreign
            declared |= examined.storages
            if part == 0 and examined.value != LEGACY_MAGIC:
                raise ValueError(
                    "it is a plain pickle, which torch.save did not write (Detectron2 and Paddle publish such files): "
                    "read it where it comes from, and save its tensors with torch.save"
                )
    if sum(declared.values()) > size:
        raise ValueError(
            f"it declares {sum(declared.values())} bytes of numbers, but has {size} bytes: it ends early, {FETCH_AGAIN}"
        )
    return foreign


LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization's


def _read_safetensors(path: Path) -> dict:
    """Tensors of a safetensors file, and what its text header says."""
    from safetensors import SafetensorError, safe_open

    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > HEADER:
            raise ValueError(f"its header takes {length} bytes; that of a checkpoint takes at most {HEADER}")
        header = json.loads(stream.read(length), object_pairs_hook=_once)
    if len(header) > TENSORS:
        raise ValueError(f"it holds {len(header)} tensors; a checkpoint has at most {TENSORS}")
    try:
        with safe_open(path, framework="pt") as stream:
            # copied: what is handed out lies in the file, which may change
            state = {key: stream.get_tensor(key).clone() for key in stream.keys()}
            metadata = stream.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"damaged safetensors file ({_first_line(error)}): {FETCH_AGAIN}") from error
    if metadata.get("encoder", "").startswith("{"):  # our own: what a checkpoint says of its encoder, as JSON
        try:
            metadata["encoder"] = json.loads(metadata["encoder"])
        except json.JSONDecodeError as error:
            raise ValueError(f"the header's 'encoder' is no JSON ({error})") from error
    return state | {k: v for k, v in metadata.items() if k not in state}


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object as a dict; ValueError where a key stands twice, of which readers would keep the last in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = collections.Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"damaged safetensors file (its header has {twice[:60]!r} twice)")
    return found


def keep_last(folder: Path, pattern: str, count: int) -> None:
    """Remove all but the newest `count` files that match `pattern`; their names sort by age."""
    for path in sorted(Path(folder).glob(pattern))[: -count or None]:
        path.unlink()


def nearest_file(path: Path) -> str:
    """`, did you mean ...` where a file beside it has nearly this name."""
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
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
    return (lines or [type(error).__name__])[-1].removeprefix("WeightsUnpickler error: ")[:400]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:1000]
