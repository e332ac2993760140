"""A small file cannot make the reader take much memory or time, whatever it declares; and it calls nothing but what it must."""

import argparse
import collections
import pickle
import resource
import struct
import time
import zipfile

import pytest
import torch

import vfm4us
from vfm4us import checkpoints
from vfm4us.checkpoints.words import words_of


@pytest.fixture
def cheap():
    """What is inside takes less than 300 MB of memory and 10 seconds."""
    memory, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000  # kB


def zipped(path, pickled: bytes, storage: bytes = bytes(4)):
    """A file in torch.save's format with this pickle and one storage."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {
            "data.pkl": pickled,
            "version": b"3\n",
            "byteorder": b"little",
            "data/0": storage,
        }.items():
            archive.writestr(f"x/{name}", content)
    return path


def integer(number: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)


def call(name: str, arguments: bytes) -> bytes:
    """A pickle of {"w": name(*arguments)}."""
    module, _, name = name.rpartition(".")
    return b"\x80\x02}X\x01\x00\x00\x00wc" + f"{module}\n{name}\n".encode() + b"(" + arguments + b"tRs."


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
HUGE = integer(10**10)


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("builtins.bytearray", HUGE, "make a bytearray of 10000000000 bytes"),
        ("__builtin__.bytearray", HUGE, "make a bytearray"),
        ("torch.FloatTensor", HUGE, "would call torch.FloatTensor"),
        ("torch.Tensor", HUGE, "would call torch.Tensor"),
        ("torch.storage.UntypedStorage", HUGE, "would call torch.storage.UntypedStorage"),
        ("_codecs.encode", b"X\x01\x00\x00\x00aX\x05\x00\x00\x00idna\n", "encoding"),
        (
            "torch._utils._rebuild_tensor_v2",
            STORAGE + b"K\x00" + HUGE + b"\x85K\x01\x85\x89N",
            "reaches beyond its storage",
        ),
        ("torch._utils._rebuild_tensor_v2", STORAGE + HUGE + b"K\x01\x85K\x01\x85\x89N", "reaches beyond its storage"),
        ("torch._utils._rebuild_tensor_v2", STORAGE + b"K\x00" + HUGE + b"\x85K\x00\x85\x89N", "repeat numbers"),
        ("torch._utils._rebuild_tensor_v2", STORAGE + b"K\x00" + integer(-5) + b"\x85K\x00\x85\x89N", "shape"),
        ("torch._utils._rebuild_tensor_v2", b"NK\x00K\x01\x85K\x00\x85\x89N", "no storage"),
    ],
)
def test_what_would_take_memory_is_refused_before_it_is_made(tmp_path, cheap, name, arguments, reason):
    path = zipped(tmp_path / "small.pt", call(name, arguments))
    assert path.stat().st_size < 1500
    with pytest.raises(ValueError, match=f"small.pt is refused: .*{reason}"):
        checkpoints.read(path)


def test_many_tensors_that_each_repeat_a_little_are_counted_together(tmp_path, cheap):
    one = torch.ones(1)
    torch.save({str(i): one.expand(2**20, 8) for i in range(100)}, tmp_path / "thin.pt")  # 32 MB each
    with pytest.raises(ValueError, match="repeat numbers"):
        checkpoints.read(tmp_path / "thin.pt")
    torch.save({str(i): one.expand(64, 8) for i in range(100)}, tmp_path / "few.pt")
    assert checkpoints.read(tmp_path / "few.pt")["7"].shape == (64, 8)


def other_tensors():
    dense = torch.eye(4)
    return {
        "sparse": (dense.to_sparse(), "a sparse tensor"),
        "csr": (dense.to_sparse_csr(), "a sparse tensor"),
        "meta": (torch.empty(10**6, device="meta"), "device meta"),
        "nested": (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested tensor"),
        "quantised": (torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8), "a quantised tensor"),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["sparse", "csr", "meta", "nested", "quantised"])
def test_tensors_of_other_kinds_are_refused_by_name(tmp_path, kind):
    value, said = other_tensors()[kind]
    torch.save({"conv1.weight": value}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"a.pt is refused: .*{said}"):
        checkpoints.read(tmp_path / "a.pt")


def test_a_thousand_foreign_names_are_found_in_one_pass(tmp_path, cheap):
    names = [f"yacs.made_up.Name{i}" for i in range(1000)]
    body = b"".join(
        b"X" + struct.pack("<I", len(n)) + n.encode() + b"c" + n.rpartition(".")[0].encode() + b"\n"
        + n.rpartition(".")[2].encode() + b"\n)R"
        for n in names
    )  # fmt: skip
    zipped(tmp_path / "names.pt", b"\x80\x02}(" + body + b"u.")
    assert len(checkpoints.read(tmp_path / "names.pt")) == 1000


def test_two_hundred_thousand_entries_are_refused_at_once(tmp_path, cheap):
    entry = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(entry % i for i in range(200_000)) + "}").encode()
    (tmp_path / "many.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="holds 200000 tensors"):
        checkpoints.read(tmp_path / "many.safetensors")
    (tmp_path / "header.safetensors").write_bytes(struct.pack("<Q", 2**25) + b"{" + bytes(2**25))
    with pytest.raises(ValueError, match="its header takes 33554432 bytes"):
        checkpoints.read(tmp_path / "header.safetensors")


def test_nesting_and_length_are_bounded(tmp_path, cheap):
    zipped(tmp_path / "deep.pt", b"\x80\x02" + b"(" * 5000 + b"t" * 5000 + b".")
    with pytest.raises(ValueError, match="nested too deeply"):
        checkpoints.read(tmp_path / "deep.pt")
    zipped(tmp_path / "long.pt", b"\x80\x02}X\x01\x00\x00\x00a(" + b"K\x01" * 3_000_000 + b"ts.")
    with pytest.raises(ValueError, match="more than 2000000 instructions"):
        checkpoints.read(tmp_path / "long.pt")


def test_dicts_that_hold_themselves_and_each_other_come_to_an_end(tmp_path, cheap):
    loop: dict = {"conv1.weight": torch.ones(1)}
    loop |= {f"again{i}": loop for i in range(300)}
    torch.save({"state_dict": loop}, tmp_path / "loop.pt")
    with pytest.raises(ValueError, match="holds itself"):
        vfm4us.load_encoder(tmp_path / "loop.pt")
    words: dict = {"arch": "resnet18"}
    words |= {f"again{i}": words for i in range(300)}
    assert len(words_of({"args": argparse.Namespace(**words)}).items) <= 20_000


def test_what_it_may_call_is_called_by_name_alone(tmp_path):
    """Neither a value that the file made nor a storage or a type is ever called."""
    for name, made in (("number", b"K\x01"), ("type", b"ctorch\nfloat32\n"), ("storage", b"ctorch\nFloatStorage\n")):
        zipped(tmp_path / f"{name}.pt", b"\x80\x02}X\x01\x00\x00\x00w" + made + b"(" + HUGE + b"tRs.")
        with pytest.raises(ValueError, match=f"{name}.pt is refused: .*(calls what it has made|would call)"):
            checkpoints.read(tmp_path / f"{name}.pt")


def test_other_protocols_and_plain_pickles_are_refused_by_name(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "four.pt", pickle_protocol=4)
    with pytest.raises(ValueError, match="its pickle uses the instruction"):
        checkpoints.read(tmp_path / "four.pt")
    for protocol, reason in ((2, "a plain pickle"), (5, "which torch.save does not write")):
        (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"w": [1.0, 2.0]}, protocol=protocol))
        with pytest.raises(ValueError, match=reason):
            checkpoints.read(tmp_path / "plain.pkl")
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"a whole model as an object .*torch.save\(model.state_dict\(\), FILE\)"):
        checkpoints.read(tmp_path / "whole.pth")


def test_what_a_good_file_may_hold_is_still_read(tmp_path):
    value = torch.arange(12.0).view(3, 4)
    state = {
        "whole": value,
        "part": value[1:, ::2],
        "turned": value.t(),
        "parameter": torch.nn.Parameter(value),
        "empty": torch.empty(0, 3),
        "number": torch.tensor(5),
        "kinds": [value.to(d) for d in (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool)],
        "small": value.to(torch.float8_e4m3fn),
        "unsigned": torch.ones(3, dtype=torch.uint8).to(torch.uint16),
        "complex": value.to(torch.complex64),
        "type": torch.float16,
        "shape": torch.Size([2, 3]),
        "ordered": collections.OrderedDict(a=1),
        "set": {1, 2},
        "bytes": b"abc",
        "args": argparse.Namespace(arch="vit_small", nested={"num_heads": 6}),
    }
    for legacy in (False, True):
        # torch's older format has no way to read the types that were added after it
        held = {k: v for k, v in state.items() if not (legacy and k in ("small", "unsigned"))}
        torch.save(held, tmp_path / "good.pt", _use_new_zipfile_serialization=not legacy)
        content = checkpoints.read(tmp_path / "good.pt")
        assert content.keys() == held.keys() and content["shape"] == (2, 3)
        assert legacy or content["small"].dtype == torch.float8_e4m3fn
        for key in ("whole", "part", "turned", "parameter", "empty", "number", "unsigned", "complex"):
            assert key not in held or torch.equal(content[key], state[key]), key
        assert content["args"].said == {"arch": "vit_small", "nested": {"num_heads": 6}}


def test_a_name_that_stands_twice_in_a_safetensors_header_is_refused(tmp_path):
    entry = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    header = f'{{"weight": {entry}, "weight": {entry}}}'.encode()
    (tmp_path / "twice.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(ValueError, match="'weight' twice"):
        checkpoints.read(tmp_path / "twice.safetensors")
