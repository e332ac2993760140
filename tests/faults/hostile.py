"""Damaged and malicious images and checkpoints, read in a process of its own: each is read or refused, soon and within bounds."""

import io
import os
import pickle
import random
import resource
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as safetensors_bytes

from tests.faults.configs import within
from tests.faults.kills import processes
from vfm4us import load_encoder
from vfm4us.data.decode import read_grey

SECONDS, MEGABYTES = 10, 1500  # of CPU and of memory that one file may take


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A copy with one to four accidents: bits turned, bytes changed, cut off, cut out, doubled; numbers made extreme."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if len(result) < 8:
            break
        start = rng.randrange(len(result)) if rng.random() < 0.5 else rng.randrange(min(len(result), 200))
        end = min(len(result), start + rng.choice((1, 2, 4, 8, 64)))
        kind = rng.randrange(6)
        if kind == 0:
            result[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            result[start:end] = rng.randbytes(end - start)
        elif kind == 2:
            del result[start:]
        elif kind == 3:
            del result[start:end]
        elif kind == 4:
            result[start:start] = result[start:end]
        else:
            result[start:end] = rng.choice((b"\0", b"\xff", b"\x7f"))[:1] * (end - start)
    return bytes(result)


def whole_images() -> dict[str, bytes]:
    """Small images in the usual formats and modes, by file name."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (48, 40)).astype(np.uint8)
    colour = rng.integers(0, 255, (40, 48, 3)).astype(np.uint8)
    pictures = {
        "grey.png": Image.fromarray(grey),
        "colour.png": Image.fromarray(colour),
        "deep.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "palette.png": Image.fromarray(colour).quantize(16),
        "alpha.png": Image.fromarray(colour).convert("RGBA"),
        "grey.jpg": Image.fromarray(grey),
        "colour.jpg": Image.fromarray(colour),
        "grey.bmp": Image.fromarray(grey),
        "grey.tif": Image.fromarray(grey),
        "deep.tif": Image.fromarray(grey.astype(np.uint16) * 257),
    }
    result = {}
    for name, picture in pictures.items():
        stream = io.BytesIO()
        picture.save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name[-3:].upper()))
        result[name] = stream.getvalue()
    return result


def bomb(width: int, height: int, bits: int = 8) -> bytes:
    """A PNG that says it is large, with the data of a few lines."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width & 0x7FFFFFFF, height & 0x7FFFFFFF, bits, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * min(10**7, (width + 1) * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def hostile_images(folder: Path) -> Iterator[Path]:
    """What is no image, or a very large one, by name."""
    files = {
        "empty.png": b"",
        "text.png": b"not an image",
        "wide.png": bomb(2**31 - 1, 1),
        "high.png": bomb(1, 2**31 - 1),
        "large.png": bomb(60000, 60000),
        "many.png": bomb(30000, 30000),
        "zero.png": bomb(0, 10),
        "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "zip.png": b"PK\x03\x04" + b"\0" * 100,
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
        yield folder / name
    for name, make in {
        "fifo.png": os.mkfifo,
        "loop.png": lambda p: os.symlink(p, p),
        "gone.png": lambda p: os.symlink("nowhere", p),
        "zeros.png": lambda p: os.symlink("/dev/zero", p),
        "folder.png": os.mkdir,
    }.items():
        make(folder / name)
        yield folder / name


def damaged_images(folder: Path, count: int, seed: int | str) -> Iterator[Path]:
    rng, whole = random.Random(seed), whole_images()
    for number in range(count):
        name = rng.choice(sorted(whole))
        path = folder / f"{number}-{name}"
        path.write_bytes(damaged(whole[name], rng))
        yield path


def whole_checkpoint() -> dict:
    """The form of our files, with small tensors under names that `load_encoder` knows."""
    weights = {
        f"module.base_encoder.layer{i}.{j}.conv1.weight": torch.zeros(2, 2, 3, 3) for i in range(1, 5) for j in range(2)
    }
    return {
        "state_dict": weights | {"module.base_encoder.conv1.weight": torch.ones(4, 3, 7, 7)},
        "encoder": {"name": "resnet18", "in_channels": 3, "mean": [0.2], "std": [0.2]},
        "stage": "coarse",
        "epoch": 3,
        "config": {"patches": {"size": 96}, "stages": [{"name": "coarse"}]},
    }


class _Runs:
    """Pickled, it asks the reader to run a command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def hostile_checkpoints(folder: Path, marker: Path) -> Iterator[Path]:
    """Files that would run code, or ask for far more memory than they hold; what they run leaves `marker`."""
    command = f"touch '{marker}'"
    torch.save({"state_dict": {"conv1.weight": torch.ones(3)}, "more": _Runs(command)}, folder / "runs.pt")
    torch.save(_Runs(command), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    (folder / "pickle.pt").write_bytes(pickle.dumps(_Runs(command)))
    (folder / "bytearray.pt").write_bytes(b"\x80\x02cbuiltins\nbytearray\nJ\x00\xca\x9a\x3b\x85R.")
    with zipfile.ZipFile(folder / "bytearray-zip.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02cbuiltins\nbytearray\nJ\x00\xca\x9a\x3b\x85R.")
        archive.writestr("archive/version", b"3\n")
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1).expand(40000, 40000)}}, folder / "strides.pt")
    torch.save({"state_dict": {"conv1.weight": torch.zeros(3, device="meta")}}, folder / "meta.pt")
    torch.save({"state_dict": {"conv1.weight": torch.eye(3).to_sparse()}}, folder / "sparse.pt")
    deep: dict = {}
    for _ in range(300):
        deep = {"a": deep}
    torch.save(deep, folder / "deep.pt")
    (folder / "long.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    header = b'{"a":{"dtype":"F32","shape":[1000000000,1000],"data_offsets":[0,4]}}'
    (folder / "shape.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    os.mkfifo(folder / "fifo.pt")
    yield from sorted(folder.iterdir())


def damaged_checkpoints(folder: Path, count: int, seed: int | str) -> Iterator[Path]:
    """Damaged files; half of the zip files have whole archives around a damaged pickle, so that it is reached."""
    rng, streams = random.Random(seed), {}
    for name, how in (("zip", {}), ("legacy", {"_use_new_zipfile_serialization": False})):
        stream = io.BytesIO()
        torch.save(whole_checkpoint(), stream, **how)
        streams[f"{name}.pt"] = stream.getvalue()
    streams["plain.safetensors"] = safetensors_bytes(whole_checkpoint()["state_dict"])
    for number in range(count):
        name = rng.choice(sorted(streams))
        path = folder / f"{number}-{name}"
        if name == "zip.pt" and rng.random() < 0.7:
            _write_zip(path, streams[name], rng)
        else:
            path.write_bytes(damaged(streams[name], rng))
        yield path


def _write_zip(path: Path, data: bytes, rng: random.Random) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as whole, zipfile.ZipFile(path, "w") as copy:
        for name in whole.namelist():
            content = whole.read(name)
            copy.writestr(name, damaged(content, rng) if name.endswith("data.pkl") or rng.random() < 0.05 else content)


READERS = {
    "image": read_grey,
    "checkpoint": load_encoder,
    "dying": lambda _: os.abort(),  # for the test of this file
    "puzzled": lambda _: {}["x"],
}


def _read_all(kind: str, files: list[Path], answers) -> None:
    """In a process of its own: send (file, what is wrong, whether it was read) for each, and before it (file, None, False)."""
    torch.set_num_threads(1)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    for file in files:
        answers.send((file, None, False))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wrong, read = "", False
        try:
            with within(SECONDS):
                READERS[kind](file)
            read = True
        except (ValueError, OSError) as error:
            wrong = (
                "" if str(error).strip() and not isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
            )
        except BaseException as error:  # whatever else comes is what is looked for
            wrong = f"{type(error).__name__}: {error}"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if grown > MEGABYTES:
            wrong = wrong or f"{grown:.0f} MB of memory"
        answers.send((file, wrong, read))
    answers.send(None)


def read_in_a_process(kind: str, files: list[Path]) -> tuple[int, list[tuple[Path, str]]]:
    """(how many were read, [(file, what is wrong)]) of files that one reader is given, in a process that may die of them."""
    read, faults, rest = 0, [], list(files)
    context = processes()
    while rest:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_read_all, args=(kind, rest, theirs))
        process.start()
        theirs.close()
        current = rest[0]
        try:
            while ours.poll(12 * SECONDS + 30) and (answer := ours.recv()):
                current, wrong, was_read = answer
                read += was_read
                if wrong:
                    faults.append((current, wrong))
                if wrong is not None:
                    rest.remove(current)
        except EOFError:
            pass
        if rest:  # it died of, or hangs in, the file it was at
            process.join(1)
            how = "hangs" if process.is_alive() else f"the process died ({process.exitcode})"
            faults.append((current, how))
            rest = [f for f in rest if f != current]
        process.kill()
        process.join()
    return read, faults
