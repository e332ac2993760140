"""A checkpoint file is read without running code, within its own size, whole or with a reason; saving leaves no half file."""

import argparse
import collections
import errno
import hashlib
import io
import pickle
import resource
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import vfm4us
from vfm4us import checkpoints


def test_files_that_are_no_checkpoint(tmp_path):
    class Exploit:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    good = io.BytesIO()
    torch.save({"state_dict": {}}, good)
    files = {
        "text.pt": b"hello",
        "empty.pt": b"",
        "cut.pt": good.getvalue()[:200],
        "exploit.pt": pickle.dumps(Exploit()),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            checkpoints.read(tmp_path / name)
    assert not (tmp_path / "executed").exists()
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        checkpoints.read(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        checkpoints.read(tmp_path / "nowhere.pt")
    with pytest.raises(FileNotFoundError, match="last.pt"):
        vfm4us.load_encoder(tmp_path)


def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoints.save(path, {"step": 1})

    class FullDisk(io.FileIO):
        written = 0

        def write(self, data):
            self.written += len(data)
            if self.written > 5000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    real_open = open
    monkeypatch.setattr(
        "builtins.open", lambda p, mode="r", *a, **k: FullDisk(p, "w") if mode == "wb" else real_open(p, mode, *a, **k)
    )
    with pytest.raises(OSError, match="no space left on the disk.*previous checkpoint is untouched"):
        checkpoints.save(path, {"step": 2, "tensor": torch.zeros(100_000)})
    monkeypatch.undo()
    assert checkpoints.read(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoints.save(path, {"step": 1})

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(path, {"step": 2})
    monkeypatch.undo()
    assert checkpoints.read(path) == {"step": 1} and len(list(tmp_path.iterdir())) == 1


def test_keep_last_removes_the_oldest(tmp_path):
    for i in range(5):
        (tmp_path / f"coarse_{i:04d}.pt").touch()
    (tmp_path / "last.pt").touch()
    checkpoints.keep_last(tmp_path, "coarse_*.pt", 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["coarse_0003.pt", "coarse_0004.pt", "last.pt"]
    checkpoints.keep_last(tmp_path, "coarse_*.pt", 0)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def torch_zip(folder, pickled: bytes, name="x.pt", **entries: bytes):
    """A file in torch.save's format with this pickle, as an attacker would write it."""
    with zipfile.ZipFile(folder / name, "w") as archive:
        for inside, content in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little", **entries}.items():
            archive.writestr(f"x/{inside}", content)
    return folder / name


class Exploit:
    """Unpickling this runs a command; `touch` leaves a trace of it."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        import os

        return (os.system, (f"touch {self.trace}",))


@pytest.mark.parametrize("form", ["legacy.pt", "zip.pth", "nested.pth", "array.npy", "zip_inside.pt", "legacy.bin"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path, form):
    trace, path = tmp_path / "executed", tmp_path / form
    bad = Exploit(trace)
    if form.startswith("legacy"):
        path.write_bytes(pickle.dumps(bad))
    elif form == "zip.pth":
        torch_zip(tmp_path, pickle.dumps(bad), form)
    elif form == "nested.pth":
        torch.save({"state_dict": {"conv1.weight": torch.ones(2)}, "args": [argparse.Namespace(x=bad)]}, path)
    elif form == "array.npy":
        np.save(path, np.array([bad], dtype=object), allow_pickle=True)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights.pth", pickle.dumps(bad))
    with pytest.raises(ValueError, match=form.replace(".", r"\.")) as caught:
        checkpoints.read(path)
    assert not trace.exists()
    if "zip_inside" not in form and "array" not in form:
        assert "would call posix.system" in str(caught.value)
    pickle.loads(pickle.dumps(bad))  # and the exploit is a real one
    assert trace.exists()


def test_what_training_frameworks_leave_in_a_checkpoint_does_not_stand_in_the_way(tmp_path):
    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    import sys
    import types

    for name in ("yacs", "yacs.config"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["yacs.config"].CfgNode = CfgNode
    try:
        torch.save(
            {
                "model": {"w": torch.ones(3)},
                "args": argparse.Namespace(lr=0.1, path=tmp_path),
                "config": CfgNode(a=CfgNode(b=1)),
                "best": np.float64(0.5),
                "history": collections.defaultdict(list, {"loss": [1.0]}),
                "state": np.random.RandomState(0).get_state(),
            },
            tmp_path / "a.pth",
        )
    finally:
        for name in ("yacs", "yacs.config"):
            del sys.modules[name]
    assert torch.equal(checkpoints.read(tmp_path / "a.pth")["model"]["w"], torch.ones(3))


def declaring(count: int, legacy: bool, folder, own_bytes: int = 4) -> str:
    """A file of about a kilobyte that declares a tensor of `count` numbers."""
    path = folder / f"huge_{legacy}.pt"
    torch.save({"w": torch.zeros(own_bytes // 4)}, path, _use_new_zipfile_serialization=not legacy)
    if legacy:
        content = path.read_bytes()
        one, huge = b"K\x01", b"\x8a\x08" + struct.pack("<q", count)
        path.write_bytes(content.replace(b"cpuq", b"cpuq", 1).replace(one, huge))
    else:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                if name.endswith("data.pkl"):
                    content = content.replace(b"K\x01", b"\x8a\x08" + struct.pack("<q", count))
                archive.writestr(name, content)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_memory_is_bounded_by_the_file_whatever_it_declares(tmp_path, legacy):
    path = declaring(10 * 2**30 // 4, legacy, tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="huge"):
        checkpoints.read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_archives_that_reach_outside_or_unpack_to_more_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "slip.pt", "w") as archive:
        archive.writestr("../../escaped/data.pkl", b"")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10**7))
    with tarfile.open(tmp_path / "old.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("../storages"), io.BytesIO())
    script = torch.jit.script(torch.nn.Linear(2, 2))
    script.save(str(tmp_path / "program.pt"))
    for name, reason in (
        ("slip", "outside its own folder"),
        ("bomb", "compressed"),
        ("old", "tar archive"),
        ("program", "TorchScript"),
    ):
        with pytest.raises(ValueError, match=f"{name}.pt is refused: .*{reason}"):
            checkpoints.read(tmp_path / f"{name}.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bomb.pt", "old.pt", "program.pt", "slip.pt"]


def test_a_flipped_bit_is_noticed_by_the_checksum_and_any_change_by_sha256(tmp_path):
    path = tmp_path / "a.pt"
    checkpoints.save(path, {"state_dict": {"w": torch.arange(1000.0)}})
    good = path.read_bytes()
    sha256 = hashlib.sha256(good).hexdigest()
    assert checkpoints.read(path, sha256)["state_dict"]["w"][7] == 7
    place = good.index(struct.pack("<ff", 500.0, 501.0))
    path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    with pytest.raises(ValueError, match="does not match its checksum"):
        checkpoints.read(path)
    with pytest.raises(ValueError, match=f"expected {sha256}"):
        checkpoints.read(path, sha256)
    with pytest.raises(ValueError, match="expected abc"):
        checkpoints.read(path, "abc")


def test_what_people_get_instead_of_a_checkpoint_is_named(tmp_path):
    for content, reason in (
        (b"", "empty"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\xef\xbb\xbf\n <html>", "web page"),
        (b"Access Denied\n", "it is a text, not a checkpoint; it begins 'Access Denied': fetch it again"),
        (bytes(600), "it begins with zeros"),
        ((600).to_bytes(8, "little") + b'{"a":' + bytes(90), "safetensors file that ends early"),
        (b"PK\x03\x04" + bytes(600), "it ends early, the list at its end is missing"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M", "it ends early, within its first part"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x1f\x8b\x08" + bytes(30), "gzip"),
        (b"hel\xfflo", "no checkpoint"),
    ):
        (tmp_path / "weights.pth").write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            checkpoints.read(tmp_path / "weights.pth")
    with pytest.raises(FileNotFoundError, match="did you mean .*weights.pth"):
        checkpoints.read(tmp_path / "weigths.pth")


def test_a_file_that_is_not_there_says_what_to_give(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"absent.pt does not exist \(looked from .*\): give a checkpoint file, or the"
    ):
        checkpoints.read(Path("absent.pt"))
    (tmp_path / "encoder.pt").touch()
    with pytest.raises(FileNotFoundError, match="did you mean encoder.pt"):
        checkpoints.read(Path("encodr.pt"))
