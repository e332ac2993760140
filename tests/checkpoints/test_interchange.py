"""An encoder leaves for other libraries and comes back: exports, inspection, torch.hub, the notebook."""

import json
import os
import re

import nbformat
import numpy as np
import pytest
import timm
import torch
from nbclient import NotebookClient
from PIL import Image

import vfm4us
from tests.checkpoints.test_loading import put, shaken
from tests.conftest import ROOT, module_of, write_textures
from vfm4us import checkpoints
from vfm4us.data.images import image_batch, image_paths
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.runtime.signals import exit_code
from vfm4us.tasks import classification, cyclegan, generation, segmentation


def run_script(name: str, monkeypatch, *arguments) -> int:
    """Exit code of a script, in this process."""
    monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
    return exit_code(module_of(ROOT / "scripts" / f"{name}.py").main)


def saved(path, spec: EncoderSpec) -> Encoder:
    encoder = shaken(Encoder(spec))
    state = put(encoder.published_state(), "module.base_encoder.")
    checkpoints.save(path, {"state_dict": state, "encoder": encoder.spec_dict(), "stage": "fine", "epoch": 3})
    return encoder


@pytest.mark.parametrize("to", ["torchvision", "timm", "smp", "safetensors", "onnx", "torchscript"])
def test_a_resnet_is_exported_and_read_back_by_the_library_itself(tmp_path, monkeypatch, capsys, to):
    encoder = saved(tmp_path / "a.pt", EncoderSpec(mean=0.3, std=0.2))
    monkeypatch.chdir(tmp_path)
    assert run_script("export_encoder", monkeypatch, "a.pt", "--to", to, "--size", 64) == 0
    printed = capsys.readouterr().out
    [out] = [p for p in tmp_path.iterdir() if p.name != "a.pt"]
    assert f"wrote {out.name}" in printed
    assert float(re.search(r"largest difference of the features: (\S+)", printed)[1]) < 1e-4
    if to in ("torchvision", "timm", "smp", "safetensors"):
        assert "minus 0.3, divided by 0.2" in printed
        again = vfm4us.load_encoder(out)
        x = torch.rand(2, 1, 64, 64)
        if to == "safetensors":  # carries the mean and deviation along
            torch.testing.assert_close(again.embed(x), encoder.embed(x), atol=1e-5, rtol=1e-5)
        for key, value in encoder.body.state_dict().items():
            assert torch.equal(value, again.body.state_dict()[key])
    if to == "timm":  # word for word what the issue of every user is
        model = timm.create_model("resnet18", checkpoint_path=str(out)).eval()
        x = encoder.normalize(torch.rand(2, 3, 64, 64))
        torch.testing.assert_close(model.forward_head(model.forward_features(x), pre_logits=True), encoder.body(x))


def test_onnx_takes_other_batches_and_sizes_and_one_channel(tmp_path, monkeypatch):
    import onnxruntime

    encoder = saved(tmp_path / "a.pt", EncoderSpec())
    monkeypatch.chdir(tmp_path)
    assert run_script("export_encoder", monkeypatch, "a.pt", "--to", "onnx", "--channels", 1, "--out", "grey.onnx") == 0
    session = onnxruntime.InferenceSession("grey.onnx", providers=["CPUExecutionProvider"])
    x = torch.rand(3, 1, 96, 72)
    features = session.run(None, {"images": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(features), encoder.embed(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("spec", "to"),
    [
        (EncoderSpec("vit_small", image=64), "timm"),
        (EncoderSpec("vit_small", patch=14, image=56, layer_scale=True), "timm"),
        (EncoderSpec("vit_tiny", image=64), "onnx"),
        (EncoderSpec("vit_tiny", image=64), "torchscript"),
    ],
)
def test_a_vit_is_exported(tmp_path, monkeypatch, capsys, spec, to):
    saved(tmp_path / "a.pt", spec)
    monkeypatch.chdir(tmp_path)
    assert run_script("export_encoder", monkeypatch, "a.pt", "--to", to, "--size", spec.image) == 0, capsys.readouterr()


def test_what_cannot_be_exported_says_what_can(tmp_path, monkeypatch, capsys):
    saved(tmp_path / "a.pt", EncoderSpec("vit_tiny", heads=6))
    monkeypatch.chdir(tmp_path)
    assert run_script("export_encoder", monkeypatch, "a.pt", "--to", "smp") == 2
    assert "smp has no encoder for a vit_tiny: use --to timm or --to safetensors" in capsys.readouterr().err
    assert run_script("export_encoder", monkeypatch, "a.pt", "--to", "timm") == 2
    assert "use --to safetensors" in capsys.readouterr().err
    assert run_script("export_encoder", monkeypatch, "b.pt", "--to", "timm") == 2
    assert "did you mean a.pt" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_inspection_says_what_is_inside_and_what_it_fills(tmp_path, monkeypatch, capsys):
    encoder = saved(tmp_path / "good.pt", EncoderSpec())
    state = encoder.published_state()
    torch.save({"a": state, "b": state | {"bn1.bias": torch.full((64,), float("nan"))}}, tmp_path / "two.pt")
    (tmp_path / "bad.pt").write_bytes(b"hello")
    assert run_script("inspect_checkpoint", monkeypatch, tmp_path / "good.pt", "--keys") == 0
    printed = capsys.readouterr().out
    for text in ("layout VFM4US, 120/120", "stage fine, epoch 3", "sha256 ", "NaN or infinity: none", "timm resnet18"):
        assert text in printed, text
    assert "state_dict.module.base_encoder.conv1.weight (64, 3, 7, 7) float32" in printed
    assert (
        run_script("inspect_checkpoint", monkeypatch, tmp_path / "good.pt", tmp_path / "two.pt", tmp_path / "bad.pt")
        == 1
    )
    printed = capsys.readouterr().out
    assert (
        "prefix='a.'" in printed
        and "1, e.g. b.bn1.bias" in printed
        and "does not load: the given dict: 1 encoder" in printed
    )
    assert "refused     it is a text, not a checkpoint" in printed


def test_torch_hub_loads_from_this_folder(tmp_path):
    saved(tmp_path / "a.pt", EncoderSpec())
    encoder = torch.hub.load(str(ROOT), "vfm4us_resnet18", weights=str(tmp_path / "a.pt"), source="local")
    assert encoder.report.matched == 120
    saved(tmp_path / "vit.pt", EncoderSpec("vit_tiny"))
    with pytest.raises(ValueError, match="holds a vit_tiny: use the entry point vfm4us_encoder"):
        torch.hub.load(str(ROOT), "vfm4us_resnet18", weights=str(tmp_path / "vit.pt"), source="local")
    assert torch.hub.load(str(ROOT), "vfm4us_encoder", weights=str(tmp_path / "vit.pt"), source="local").width == 192


def test_the_notebook_runs_and_is_kept_without_outputs(tmp_path):
    encoder = saved(tmp_path / "a.pt", EncoderSpec())
    model = classification.Classifier(encoder, torch.nn.Linear(512, 2), ["fine", "rough"])
    settings = classification.ClassificationConfig(mode="linear")
    classification.TASK.save(tmp_path / "c" / "classifier.pt", model, settings, size=48)
    settings = segmentation.SegmentationConfig(decoder_width=16)
    model = segmentation.Segmenter(encoder, ["a"], settings.decoder, 16, settings.atrous_rates)
    segmentation.TASK.save(tmp_path / "s" / "segmenter.pt", model, settings, size=48)
    small = cyclegan.GeneratorConfig(width=4, blocks=1, discriminator_width=4)
    model = torch.nn.ModuleDict({"enhancer": cyclegan.Generator(small, encoder), "degrader": cyclegan.Generator(small)})
    generation.TASK.save(tmp_path / "g" / "generator.pt", model, generation.GenerationConfig(network=small), size=48)
    write_textures(tmp_path / "images", 12, seed=0)
    notebook = nbformat.read(ROOT / "Downstream" / "load_checkpoint.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    for cell in code:
        cell.source = re.sub('CLASSIFIER = ".*?"', f'CLASSIFIER = "{tmp_path}/c"', cell.source)
        cell.source = re.sub('SEGMENTER = ".*?"', f'SEGMENTER = "{tmp_path}/s"', cell.source)
        cell.source = re.sub('ENHANCER = ".*?"', f'ENHANCER = "{tmp_path}/g"', cell.source)
    code[0].source = re.sub('WEIGHTS = ".*?"', f'WEIGHTS = "{tmp_path}/a.pt"', code[0].source)
    code[0].source = re.sub('IMAGES = ".*?"', f'IMAGES = "{tmp_path}/images"', code[0].source)
    environment = dict(os.environ)
    try:
        os.environ |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "OMP_NUM_THREADS": "1"}
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    finally:
        os.environ.clear()
        os.environ.update(environment)
    printed = json.dumps([cell.outputs for cell in code])
    assert "120/120 tensors" in printed and "torch.Size([12, 512])" in printed and printed.count("image/png") == 5


def test_the_notebook_runs_as_it_is_in_a_fresh_clone(tmp_path, monkeypatch, capsys):
    (tmp_path / "Downstream").mkdir()
    monkeypatch.chdir(tmp_path / "Downstream")
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict = {}
    for cell in json.loads((ROOT / "Downstream" / "load_checkpoint.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":  # as it is, but for fewer images
            exec("".join(cell["source"]).replace("600, 64", "84, 64").replace("[:300]", "[:8]"), names)
    names["plt"].close("all")
    assert names["features"].shape == (8, 512)
    missing = [
        line.split(" is not there")[0] for line in capsys.readouterr().out.splitlines() if "is not there" in line
    ]
    assert missing == [names["CLASSIFIER"]] * 2 + [names["SEGMENTER"], names["ENHANCER"]]


# ---- what embed takes -----------------------------------------------------------------------------------------------


def test_embed_takes_pil_lists_files_and_folders(tmp_path):
    encoder = shaken(Encoder(EncoderSpec()))
    write_textures(tmp_path / "images", 6, seed=0)
    paths = image_paths(tmp_path / "images")
    vectors = encoder.embed(tmp_path / "images", size=64)
    assert vectors.shape == (6, 512) and len(paths) == 6
    torch.testing.assert_close(encoder.embed([str(p) for p in paths], size=64), vectors)
    torch.testing.assert_close(encoder.embed(paths[2], size=64), vectors[2:3], atol=1e-5, rtol=1e-4)
    with Image.open(paths[0]) as picture:
        grey = np.asarray(picture)
        one = encoder.embed(picture)
    torch.testing.assert_close(encoder.embed(grey), one)
    torch.testing.assert_close(encoder.embed(np.repeat(grey[..., None], 3, axis=2)), one, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.embed([grey, grey / np.float32(255)]), one.expand(2, -1), atol=1e-4, rtol=1e-3)


def test_images_of_different_sizes_are_padded_not_squashed():
    wide, tall = np.full((20, 40), 200, np.uint8), np.full((60, 30, 3), 0.5, np.float32)
    batch, valid = image_batch([wide, tall], size=32)
    assert batch.shape == (2, 1, 32, 32) and valid.tolist() == [[0, 0, 16, 32], [0, 0, 32, 16]]
    assert (batch[0, :, :16] == 200).all() and (batch[0, :, 16:] == 0).all()
    assert (batch[1, :, :, :16].int() - 128).abs().max() <= 1 and (batch[1, :, :, 16:] == 0).all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 5, 8, 8)), r"shape \(2, 5, 8, 8\) are not understood"),
        ([np.zeros((4, 4, 7))], r"shape \(4, 4, 7\) is not understood"),
        ([], "no images"),
        (np.zeros(7), "not understood"),
    ],
)
def test_what_is_no_image_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        image_batch(images)


def test_a_damaged_image_in_a_folder_is_named(tmp_path):
    write_textures(tmp_path / "images", 2, seed=0)
    (tmp_path / "images" / "fine" / "bad.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match="bad.png: "):
        image_batch(tmp_path / "images")
