"""Small image folders and configs that the tests share."""

import copy
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vfm4us import config
from vfm4us.pretraining.settings import PretrainingConfig

ROOT = Path(__file__).resolve().parents[1]
DURATIONS = ROOT / "tests" / "durations.json"  # seconds of CPU of each test, measured: --write-durations
QUICK = 150.0  # seconds of CPU that all tests without the mark `slow` may take together: under two minutes on two cores


def pytest_addoption(parser):
    parser.addoption("--write-durations", action="store_true", help=f"measure the tests anew for {DURATIONS.name}")


def slow_ones(durations: dict[str, float], names: list[str], quick: float = QUICK) -> set[str]:
    """The names to be marked slow: all but the quickest that together take `quick` seconds; what was never measured is quick."""
    total, result = 0.0, set()
    for name in sorted(names, key=lambda n: durations.get(n, 0.0)):
        total += durations.get(name, 0.0)
        if total > quick:
            result.add(name)
    return result


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config, items):
    durations = json.loads(DURATIONS.read_text()) if DURATIONS.is_file() else {}
    # of all that was measured, so that the choice does not depend on which tests are asked for
    slow = slow_ones(durations, list(durations))
    for item in items:
        if item.nodeid in slow:
            item.add_marker("slow")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    before = os.times()
    yield
    spent = sum(os.times()[:4]) - sum(before[:4])  # its own and that of the processes it started
    item.user_properties.append(("cpu", spent))


def pytest_runtest_logreport(report):
    """In the one process that reports, under xdist too."""
    if report.when == "call" and report.passed:
        _measured[report.nodeid] = round(dict(report.user_properties)["cpu"], 2)


def pytest_sessionfinish(session):
    if session.config.getoption("--write-durations") and not hasattr(session.config, "workerinput"):
        before = json.loads(DURATIONS.read_text()) if DURATIONS.is_file() else {}
        kept = {name: value for name, value in before.items() if still_there(name)}
        DURATIONS.write_text(json.dumps(dict(sorted((kept | _measured).items())), indent=0) + "\n")


def still_there(name: str) -> bool:
    """Whether the function of a test's name is in its file; parameters are not looked at."""
    file, *_, function = name.split("::")
    return (ROOT / file).is_file() and f"def {function.split('[')[0]}(" in (ROOT / file).read_text()


_measured: dict[str, float] = {}


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
