"""A released encoder is known by its name, verified by its sha256, half the size on disk; prefix and heads reach configs."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open

import vfm4us
from tests.checkpoints.test_interchange import run_script, saved
from tests.checkpoints.test_loading import images, put, vit
from vfm4us import config
from vfm4us.checkpoints import released
from vfm4us.checkpoints.imagenet import imagenet_file
from vfm4us.encoders import EncoderSpec
from vfm4us.pretraining.settings import PretrainingConfig
from vfm4us.pretraining.trainer import build_encoder
from vfm4us.tasks.finetune import InitialEncoderConfig, make_encoder, refuse_missing_weights


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty folder in the place of weights/, with the repository's own table."""
    folder = tmp_path / "weights"
    folder.mkdir()
    table = released.table()
    monkeypatch.setattr(released, "FOLDERS", (folder,))
    (folder / "released.json").write_text(json.dumps(table))
    monkeypatch.chdir(tmp_path)
    return folder, table


def test_a_released_encoder_that_is_not_there_is_an_error_that_says_how_to_make_it(shelf):
    for call in (
        lambda: vfm4us.load_encoder("open"),
        lambda: refuse_missing_weights(InitialEncoderConfig(weights="open"), 0),
        lambda: make_encoder(InitialEncoderConfig(weights="open"), 0),
    ):
        with pytest.raises(FileNotFoundError, match="'open': vfm4us_resnet18_open.safetensors is not in .*adv_main.py"):
            call()


def test_a_released_encoder_loads_by_its_name_and_is_verified(shelf, monkeypatch, capsys):
    folder, table = shelf
    encoder, file = saved(folder.parent / "a.pt", EncoderSpec("resnet18", 1)), folder / table["open"]["file"]
    assert (
        run_script(
            "export_encoder", monkeypatch, folder.parent / "a.pt", "--to", "safetensors", "--half", "--out", file
        )
        == 0
    )
    printed, sha256 = capsys.readouterr().out, hashlib.sha256(file.read_bytes()).hexdigest()
    assert sha256 in printed and "kernels in float16: features differ by at most" in printed
    assert file.stat().st_size < 0.52 * (folder.parent / "a.pt").stat().st_size
    with pytest.raises(ValueError, match="has no sha256"):
        released_entry(folder, table, "")
        vfm4us.load_encoder("open")
    released_entry(folder, table, sha256)
    loaded = vfm4us.load_encoder("open", in_channels=1)
    assert all(v.dtype in (torch.float32, torch.int64) for v in loaded.state_dict().values())
    x = images().mean(1, keepdim=True)
    assert torch.nn.functional.cosine_similarity(loaded(x), encoder(x)).min() > 0.9999
    made, report = make_encoder(InitialEncoderConfig(weights="open"), 0)
    assert report.matched == 120
    torch.testing.assert_close(made(x), loaded(x))
    with safe_open(file, framework="pt") as stream:
        kinds = {key: stream.get_tensor(key).dtype for key in stream.keys()}
        assert json.loads(stream.metadata()["encoder"])["name"] == "resnet18"
    assert kinds["conv1.weight"] == torch.float16 and kinds["bn1.weight"] == kinds["bn1.running_var"] == torch.float32
    released_entry(folder, table, "0" * 64)
    with pytest.raises(ValueError, match="expected 0000"):
        vfm4us.load_encoder("open")
    (folder.parent / "open").mkdir()
    with pytest.raises(ValueError, match="the name of a released encoder, and of a path"):
        vfm4us.load_encoder("open")


def released_entry(folder, table: dict, sha256: str) -> None:
    (folder / "released.json").write_text(json.dumps({"open": table["open"] | {"sha256": sha256}}))


def test_prefix_and_heads_reach_what_reads_encoder_weights(tmp_path):
    small = vit(heads=12, image=64)
    both = {
        "left": put(small.state_dict(), "net."),
        "right": put({k: v * 0 for k, v in small.state_dict().items()}, "net."),
    }
    torch.save(both, tmp_path / "two.pt")
    keys = {"weights": str(tmp_path / "two.pt"), "in_channels": 3}
    with pytest.raises(ValueError, match="2 encoders: say which by prefix"):
        make_encoder(InitialEncoderConfig(**keys), 0)
    with pytest.raises(ValueError, match="heads=3 or heads=12"):
        make_encoder(InitialEncoderConfig(**keys, prefix="left.net"), 0)
    with torch.no_grad():
        expected = vfm4us.load_encoder(both, prefix="left.net", heads=12)(images())
        encoder, report = make_encoder(InitialEncoderConfig(**keys, prefix="left.net", heads=12), 0)
        torch.testing.assert_close(encoder(images()), expected)
        assert report.root == "left.net."
        keys = {"name": "vit_tiny", "weights": keys["weights"], "prefix": "left.net", "heads": 12, "in_channels": 3}
        settings = config.from_dict(
            PretrainingConfig, {"encoder": keys, "method": "simclr", "simclr": {"crops": {"size": 64}}}
        )
        torch.testing.assert_close(build_encoder(settings)(images()), expected)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("oepn", "did you mean 'open'"),
        ("ImageNet", "did you mean 'imagenet'"),
        ("nothing", "give 'open', 'imagenet', a checkpoint file, or the folder of a run"),
        ("timm:resnet18", r"timm.create_model\('resnet18', pretrained=True\).state_dict\(\)"),
        ("vit_small", r"random weights are vfm4us.encoders.Encoder\(EncoderSpec\('vit_small'\)\)"),
        ("random", "random weights are"),
        ("google/vit-base", r"huggingface_hub.snapshot_download\('google/vit-base'\)"),
        ("https://example.org/a.pth", "is not fetched: download it"),
        ("~/no/a.pth", "/no/a.pth|~/no/a.pth does not exist"),
    ],
)
def test_what_cannot_be_loaded_is_answered_with_what_can(tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=said):
        vfm4us.load_encoder(given)


def test_imagenet_is_torchvision_s_resnet18_from_its_cache(tmp_path, monkeypatch):
    from torchvision.models import resnet18

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    url, file = imagenet_file("resnet18")
    file.parent.mkdir(parents=True)
    torch.save(resnet18().state_dict(), file)
    for given in ("imagenet", f"~/{file.relative_to(tmp_path)}"):
        assert vfm4us.load_encoder(given).report.matched == 120
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(ValueError, match="'imagenet' is the name of torchvision's ResNet18, and of a path in"):
        vfm4us.load_encoder("imagenet")
