"""The snippets that load weights run as they are printed, and the layouts that the page names load."""

import re

import numpy as np
import pytest
import torch
from torchvision.models import resnet18, resnet50

import vfm4us
from tests.checkpoints.test_interchange import saved
from tests.checkpoints.test_loading import shaken
from tests.conftest import ROOT
from vfm4us.encoders import EncoderSpec

CHILDREN = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}


@pytest.mark.parametrize("page", ["README.md", "docs/checkpoints.md"])
def test_the_snippets_that_load_weights_run(page, tmp_path, monkeypatch):
    snippets = [s for s in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S) if "load_encoder" in s]
    assert snippets
    saved(tmp_path / "logs" / "quickstart" / "checkpoints" / "last.pt", EncoderSpec("resnet18", 1))
    monkeypatch.chdir(tmp_path)
    for snippet in snippets:
        names = {"images": np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)}
        exec(snippet, names)
        assert names["features"].shape == (5, 512) and names["encoder"].report.matched == 120


@pytest.mark.parametrize(
    ("project", "model", "before", "beside"),
    [("USCL", resnet18, "features.", "linear.weight"), ("RadImageNet", resnet50, "backbone.", "classifier.weight")],
)
def test_children_by_number_load(project, model, before, beside):
    assert project in (ROOT / "docs/checkpoints.md").read_text()
    network = shaken(model())
    tensors = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    state = {before + re.sub(r"^\w+", lambda m: str(CHILDREN[m.group()]), k): v for k, v in tensors.items()}
    encoder = vfm4us.load_encoder(state | {beside: torch.ones(3)})
    assert encoder.report.matched == len(tensors) and encoder.report.dropped == {beside.split(".")[0]: 1}
    x = torch.rand(2, 3, 64, 64)
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), network(encoder.normalize(x)), atol=1e-5, rtol=1e-4)
