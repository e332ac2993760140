"""Small image folders and configs that the tests share."""

import copy
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vfm4us import config
from vfm4us.pretraining.settings import PretrainingConfig

ROOT = Path(__file__).resolve().parents[1]


def module_of(path: Path):
    """A script as a module, which cannot be imported by name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of open ultrasound sets; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("VFM4US_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real images are not at {folder}; set VFM4US_REAL_DATA to their folder")
    return folder


def write_textures(folder: Path, count: int, seed: int, size: int = 56) -> None:
    """`count` different grey PNGs in two class folders: noise of two grain sizes."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        grain = 4 if i % 2 else 8
        coarse = rng.integers(20, 255, (size // grain + 1, size // grain + 1)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((size, size - 8 * (i % 3)), Image.Resampling.BICUBIC)
        path = folder / ("fine" if i % 2 else "rough") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


@pytest.fixture(scope="session")
def textures(tmp_path_factory) -> Path:
    """Two plain image folders, `one` and `two`, of 60 images each."""
    root = tmp_path_factory.mktemp("textures")
    write_textures(root / "one", 60, seed=1)
    write_textures(root / "two", 60, seed=2)
    return root


TINY = {
    "name": "tiny",
    "device": "cpu",
    "precision": "float32",
    "batch_size": 8,
    "log_every": 1,
    "save_minutes": 60.0,
    "emp_ssl": {
        "projector": {"hidden": 32, "out": 16},
        "patches": {"count": 3, "size": 16},
        "adversary": {"weight": 0.5},
        "masking": {"strategy": "adversarial", "cell": 4},
    },
    "monitor": {"reference": 20, "held_out": 12, "patches": 2},
}


@pytest.fixture
def tiny(textures, tmp_path):
    """A function that builds a two-stage config over `textures`, run folder below tmp_path; keys override."""

    def build(*overrides: str, **sections) -> PretrainingConfig:
        values = (
            copy.deepcopy(TINY)
            | {
                "logs": str(tmp_path / "logs"),
                "data": {
                    "size": 48,
                    "splits": [0.8, 0.1, 0.1],
                    "cache": str(textures / "cache"),
                    "root": str(textures),
                },
                "stages": [
                    {"name": "coarse", "epochs": 2, "learning_rate": 0.5, "data": [{"path": "one"}]},
                    {"name": "fine", "epochs": 2, "learning_rate": 0.3, "replay": 0.25, "data": [{"path": "two"}]},
                ],
            }
            | sections
        )
        for item in overrides:
            config.override(values, item)
        return config.from_dict(PretrainingConfig, values)

    return build
