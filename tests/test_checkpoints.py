"""Checkpoints load elsewhere word for word, or are refused with a reason; saving never leaves half a file."""

import errno
import io
import pickle
import re

import pytest
import torch

import vfm4us
from tests.conftest import ROOT
from vfm4us import checkpoints
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.pretraining.stages import pretrain


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("resnet18", in_channels=1))
    tensors = {"module.base_encoder." + k: v for k, v in encoder.published_state().items()}
    tensors["module.projector.0.weight"] = torch.zeros(3)
    return {"state_dict": tensors, "encoder": encoder.spec_dict()}, encoder


def test_the_readme_snippet_loads_our_checkpoint_into_smp_word_for_word(tiny, tmp_path, monkeypatch):
    folder = pretrain(tiny("name=quickstart", "stages.0.epochs=1", "stages.1.epochs=1"))
    readme = (ROOT / "README.md").read_text()
    [snippet] = [block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "smp.DeepLabV3Plus" in block]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(snippet, names)
    model = names["model"]
    loaded = model.encoder.state_dict()
    ours = vfm4us.load_encoder(folder)
    assert len(loaded) == len(names["state_dict"]) == ours.report.matched == ours.report.expected == 120
    for key, value in ours.body.state_dict().items():
        assert torch.equal(value, loaded[key]), key
    x = torch.rand(2, 1, 64, 64)
    maps = model.eval().encoder(ours.normalize(x))
    for mine, theirs in zip(ours.eval().pyramid(x)[:4], maps[1:5], strict=True):  # DeepLab dilates the last stage
        torch.testing.assert_close(mine, theirs)


def test_one_and_three_channels_give_the_same_features(state, tmp_path):
    content, encoder = state
    checkpoints.save(tmp_path / "a.pt", content)
    x = torch.rand(2, 1, 64, 64)
    for channels in (1, 3):
        loaded = vfm4us.load_encoder(tmp_path / "a.pt", in_channels=channels)
        for image in (x, x.expand(-1, 3, -1, -1)):
            torch.testing.assert_close(loaded.eval()(image), encoder.eval()(x), atol=1e-5, rtol=1e-4)
    assert str(loaded.report) == "layout VFM4US, 120/120 tensors, dropped: projector (1), resized: none"


def broken(content, change):
    tensors = dict(content["state_dict"])
    change(tensors)
    return content | {"state_dict": tensors}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("module.base_encoder.bn1.weight"), "1 of 120 encoder tensors are missing"),
        (
            lambda t: [t.__setitem__(k.replace("base_encoder", "backbone"), t.pop(k)) for k in list(t)],
            "module.backbone",
        ),
        (lambda t: t.__setitem__("module.base_encoder.extra", torch.ones(1)), "1 do not belong"),
        (
            lambda t: t.__setitem__("module.base_encoder.bn1.weight", torch.ones(7)),
            r"bn1.weight \(7,\) instead of \(64,\)",
        ),
        (lambda t: t.__setitem__("module.base_encoder.bn1.bias", torch.full((64,), float("nan"))), "NaN or infinity"),
    ],
)
def test_anything_less_than_the_whole_encoder_is_refused(state, tmp_path, change, message):
    checkpoints.save(tmp_path / "a.pt", broken(state[0], change))
    with pytest.raises(ValueError, match=message):
        vfm4us.load_encoder(tmp_path / "a.pt")


def test_another_architecture_is_refused(state, tmp_path):
    checkpoints.save(tmp_path / "a.pt", state[0] | {"encoder": state[0]["encoder"] | {"name": "resnet50"}})
    with pytest.raises(ValueError, match="does not hold a resnet50"):
        vfm4us.load_encoder(tmp_path / "a.pt")


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
