"""scripts/gpu_check.py runs on a CPU, finds what is wrong, and needs nothing that a bare GPU machine lacks."""

import json
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT, module_of

# Whatever pretraining with our method may import; what else a machine lacks must not matter.
LACKING = (
    "segmentation_models_pytorch",
    "monai",
    "lightly",
    "skimage",
    "onnx",
    "pydicom",
    "cv2",
    "matplotlib",
    "pandas",
)


def test_pretraining_needs_none_of_the_packages_of_the_tasks():
    code = f"""
import sys
for name in {LACKING}:
    sys.modules[name] = None
import importlib.util
spec = importlib.util.spec_from_file_location("gpu_check", {str(ROOT / "scripts/gpu_check.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from vfm4us.pretraining.settings import PretrainingConfig, check
from vfm4us.pretraining.trainer import build_method
build_method(PretrainingConfig())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_on_a_cpu_every_check_passes(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/gpu_check.py"), "--device", "cpu", "--tiny", "--out", "o"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "o" / "gpu_check.json").read_text())
    assert all(entry["passed"] for entry in report["checks"]) and len(report["checks"]) == 9
    steps = [entry for entry in report["speed"] if entry["name"] == "step"]
    assert len(steps) == 6 and all(entry["patches/s"] > 0 for entry in steps)
    assert "| patches are those of the cpu | passed |" in (tmp_path / "o" / "gpu_check.md").read_text()
    assert not (tmp_path / "o" / "work").exists()


def test_what_is_wrong_is_reported_and_the_rest_still_measured(tmp_path, monkeypatch):
    gpu_check = module_of(ROOT / "scripts/gpu_check.py")
    bench = gpu_check.Bench(torch.device("cpu"), True, tmp_path)

    def wrong(_):
        return gpu_check.require(False, "largest difference 0.5")

    def broken(_):
        raise KeyError("missing")

    monkeypatch.setattr(gpu_check, "CHECKS", [wrong, broken, gpu_check.coding_rate_is_that_of_float64])
    for name in ("step_speed", "loader_speed", "mae_speed", "cyclegan_speed", "compiled_is_as_it_is_not"):
        monkeypatch.setattr(gpu_check, name, lambda *_: {"what": "nothing"})
    results = gpu_check.run(bench, minutes=8)
    assert [entry.get("passed") for entry in results["checks"][:4]] == [True, False, False, True]
    assert "0.5" in results["checks"][1]["detail"] and "KeyError" in results["checks"][2]["detail"]
    text = gpu_check.markdown(results)
    assert "| wrong | FAILED | largest difference 0.5 |" in text
    left = gpu_check.run(gpu_check.Bench(torch.device("cpu"), True, tmp_path / "b"), minutes=0.0)
    assert all("left out" in entry for entry in left["checks"])
