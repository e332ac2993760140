"""Families of networks are known in two places, and a new one is a file and a line."""

import re
import shutil
import subprocess
import sys

from tests.conftest import ROOT

FAMILY = '''
from torch import Tensor, nn

from vfm4us.encoders.base import Encoder


class Small(Encoder):
    """Two convolutions, and the mean over the image."""

    sizes = {"small_8": (8,), "small_16": (16,)}
    first_convolution, head = "0.weight", "head"
    stages = ("stem", "second")

    def build(self) -> nn.Module:
        (self.width,) = self.sizes[self.spec.name]
        self.channels, self.strides = (self.width,), (16,)
        first = nn.Conv2d(self.spec.in_channels, 4, 4, 4)
        second = nn.Conv2d(4, self.width, 4, 4)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def pyramid(self, x: Tensor) -> list[Tensor]:
        return [self.body[:4](self.normalize(x))]

    def stage_of(self, name: str) -> int:
        return int(name.startswith("2."))
'''
USE = """
import torch
import vfm4us
from vfm4us import checkpoints, config
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.pretraining.settings import PretrainingConfig
from vfm4us.pretraining.trainer import build_encoder
from vfm4us.tasks.finetune import FinetuneConfig, InitialEncoderConfig, make_encoder, parameter_groups
from vfm4us.tasks.segmentation import Segmenter

encoder = build_encoder(config.from_dict(PretrainingConfig, {"encoder": {"name": "small_8"}})).eval()
encoder.spec_dict()
state = {"module.base_encoder." + k: v for k, v in encoder.published_state().items()}
state["module.projector.0.weight"] = torch.ones(2)
checkpoints.save("small.pt", {"state_dict": state, "encoder": encoder.spec_dict()})
x = torch.rand(2, 1, 32, 32)
loaded = vfm4us.load_encoder("small.pt", in_channels=1)
print(loaded.report)
torch.testing.assert_close(loaded(x), encoder(x))
torch.testing.assert_close(loaded.embed(x), encoder(x).detach())
made, _ = make_encoder(InitialEncoderConfig(weights="small.pt"), 0)
assert [m.shape[1:] for m in made.pyramid(x)] == [(8, 2, 2)] and made.tokens is None
model = torch.nn.ModuleDict({"encoder": made, "head": torch.nn.Linear(8, 2)})
assert {g["scale"] for g in parameter_groups(model, FinetuneConfig(layer_decay=0.5))} == {0.5, 1.0}
print(Segmenter(made, ["a"], "unet", 16, [1, 2, 3])(torch.rand(2, 1, 64, 64)).shape)
"""


KNOWING = r"(?<!self)\.body\b|\b(RESNETS|VITS|BEITS)\b|layer4|patch_embed|isinstance\(.*(ResNet|ViT|BEiT)\b"


def test_only_encoders_and_checkpoints_know_families_or_touch_the_body():
    offenders = []
    for place in ("vfm4us", "scripts", "Pretraining", "Downstream", "hubconf.py"):
        for path in [ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"):
            if {"encoders", "checkpoints"} & set(path.relative_to(ROOT).parts[1:2]):
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if re.search(
                    r"(?<!self)\.body\b|\b(RESNETS|VITS|BEITS)\b|layer4|patch_embed|isinstance\(.*(ResNet|ViT|BEiT)\b",
                    line,
                ):
                    offenders.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not offenders, "\n".join(offenders)


def test_a_new_family_is_one_file_and_one_line(tmp_path):
    shutil.copytree(ROOT / "vfm4us", tmp_path / "vfm4us", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "vfm4us" / "encoders" / "small.py").write_text(FAMILY)
    line = "FAMILIES = (\n"
    families = tmp_path / "vfm4us" / "encoders" / "families.py"
    assert line in families.read_text()
    families.write_text(families.read_text().replace(line, line + '    Family("small", ("small_8", "small_16")),\n'))
    ran = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "layout VFM4US, 4/4 tensors, dropped: projector (1)" in ran.stdout
    assert "torch.Size([2, 2, 64, 64])" in ran.stdout
