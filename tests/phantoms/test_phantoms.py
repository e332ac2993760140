"""The synthetic ultrasound is deterministic, physically plausible, labelled right, safe to write and to continue."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.metrics import structural_similarity
from skimage.morphology import convex_hull_image
from sklearn.linear_model import LogisticRegression

from tests.conftest import ROOT
from vfm4us.phantoms import folders, physics
from vfm4us.phantoms.folders import write_phantoms
from vfm4us.phantoms.make import IMAGES_PER_BLOCK, make_phantom
from vfm4us.phantoms.organs import ORGANS
from vfm4us.phantoms.physics import Probe, envelope

COUNT = 4 * IMAGES_PER_BLOCK


@pytest.fixture(scope="module")
def sample():
    """Eight patients of every organ in three planes, small."""
    return [make_phantom(index, size=96) for index in range(8 * IMAGES_PER_BLOCK)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms") / "p", COUNT, size=64, workers=1, progress=False)


def digest(phantom) -> str:
    return hashlib.sha256(phantom.image.tobytes() + phantom.low_quality.tobytes() + phantom.mask.tobytes()).hexdigest()


def lateral_correlation_width(image: np.ndarray) -> float:
    """Lag in pixels where the correlation of the speckle along the rows, at middle depth, falls to one half."""
    rows = np.flatnonzero(image.any(axis=1))
    image = image[rows[0] + len(rows) // 4 : rows[0] + len(rows) * 3 // 5, 8:-8].astype(float)
    detail = image - ndimage.gaussian_filter(image, 2)  # anatomy is larger than speckle
    power = np.mean(np.abs(np.fft.fft(detail, axis=1)) ** 2, axis=0)
    correlation = np.fft.ifft(power).real
    correlation /= correlation[0]
    lag = int(np.argmax(correlation < 0.5))
    return lag - 1 + (correlation[lag - 1] - 0.5) / (correlation[lag - 1] - correlation[lag])


# ---- one phantom


def test_same_arguments_same_bytes_in_another_process_and_other_seeds_differ():
    here = digest(make_phantom(5, seed=3, size=96))
    code = "import hashlib; from vfm4us.phantoms.make import make_phantom as m; p = m(5, seed=3, size=96); "
    code += "print(hashlib.sha256(p.image.tobytes() + p.low_quality.tobytes() + p.mask.tobytes()).hexdigest())"
    root = Path(folders.__file__).parents[2]
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert elsewhere.stdout.strip() == here
    assert digest(make_phantom(5, seed=4, size=96)) != here
    assert digest(make_phantom(5 + IMAGES_PER_BLOCK, seed=3, size=96)) != here


def test_one_block_holds_every_organ_and_plane_once(sample):
    seen = Counter((p.organ, p.plane) for p in sample[:IMAGES_PER_BLOCK])
    assert seen == Counter({(organ, plane): 1 for organ, planes in ORGANS.items() for plane in planes})


def test_shapes_types_and_wrong_names():
    phantom = make_phantom(0, size=80, organ="kidney", plane="coronal")
    assert (phantom.organ, phantom.plane) == ("kidney", "coronal")
    for array in (phantom.image, phantom.low_quality, phantom.mask):
        assert array.shape == (80, 80) and array.dtype == np.uint8
    with pytest.raises(ValueError, match="spleen"):
        make_phantom(0, organ="spleen")
    with pytest.raises(ValueError, match="coronal.*liver"):
        make_phantom(0, organ="liver", plane="coronal")


def test_mask_agrees_with_lesion_and_lies_in_the_picture(sample):
    values = {"none": {0}, "benign": {0, 1}, "malignant": {0, 2}}
    for phantom in sample:
        assert set(np.unique(phantom.mask)) == values[phantom.lesion]
        field = convex_hull_image(phantom.image > 0)
        assert not np.any(phantom.mask[~field])
    share = np.mean([p.lesion != "none" for p in sample if p.organ in ("breast", "liver", "thyroid", "kidney")])
    assert 0.25 < share < 0.6
    assert {p.lesion for p in sample} == set(values)


def test_benign_is_wider_than_tall_and_malignant_taller_than_wide(sample):
    ratio = defaultdict(list)
    for phantom in sample:
        if phantom.lesion != "none":
            rows, columns = np.nonzero(phantom.mask)
            ratio[phantom.lesion].append(np.ptp(columns) / max(np.ptp(rows), 1))
    assert np.median(ratio["benign"]) > 1.15 > 0.95 > np.median(ratio["malignant"])


def test_both_geometries_occur_in_every_organ(sample):
    for organ in ORGANS:
        assert {p.geometry for p in sample if p.organ == organ} == {"sector", "linear"}


def test_mean_grey_alone_does_not_tell_the_organ(sample):
    grey = np.array([[p.image.mean() / 255, (p.image.mean() / 255) ** 2] for p in sample])
    organ = np.array([p.organ for p in sample])
    train = np.arange(len(sample)) // IMAGES_PER_BLOCK % 2 == 0
    model = LogisticRegression(C=100.0, max_iter=2000).fit(grey[train], organ[train])
    assert model.score(grey[~train], organ[~train]) < 0.45


# ---- physics


def test_speckle_is_rayleigh_before_log_compression():
    probe = Probe(depth=40, frequency=10, f_number=3, focus=20)
    field = physics.complex_noise(np.random.default_rng(0), (320, 192))
    echo = envelope(field, probe, 0.2)[20:-20, 20:-20]
    assert echo.mean() / echo.std() == pytest.approx(1.91, abs=0.15)


def test_point_spread_widens_away_from_the_focus_and_with_wavelength():
    def width(probe: Probe, depth: float) -> float:  # mm, second moment of a point's echo across the beam
        field = np.zeros((400, 193), np.complex64)
        field[int(depth / probe.depth * 400), 96] = 1
        profile = (envelope(field, probe, 0.15) ** 2).sum(axis=0)
        return 0.15 * float(np.sqrt((profile * (np.arange(193) - 96) ** 2).sum() / profile.sum()))

    probe = Probe(depth=100, frequency=6, f_number=2.5, focus=50, side_lobe=0.0)
    assert width(probe, 10) > 1.3 * width(probe, 50) < width(probe, 90) / 1.3
    slow = Probe(depth=100, frequency=3, f_number=2.5, focus=50, side_lobe=0.0)
    assert width(slow, 50) > 1.5 * width(probe, 50)


def test_shadow_below_malignant_and_enhancement_below_benign():
    """The tissue below a lesion against the tissue at both sides of it, on average over patients."""
    change = defaultdict(list)
    for index in range(0, 60 * IMAGES_PER_BLOCK, IMAGES_PER_BLOCK):
        phantom = make_phantom(index, size=96, organ="breast", plane="radial")
        if phantom.lesion == "none" or phantom.geometry != "linear":
            continue
        rows, columns = np.nonzero(phantom.mask)
        middle, width = int(columns.mean()), max(1, np.ptp(columns) // 5)
        below = slice(rows.max() + 2, min(rows.max() + 16, np.flatnonzero(phantom.image.any(axis=1)).max()))
        behind = phantom.image[below, middle - width : middle + width + 1].mean()
        beside = [phantom.image[below, : max(1, columns.min() - 6)], phantom.image[below, columns.max() + 6 :]]
        beside = np.concatenate([b.ravel() for b in beside])
        change[phantom.lesion].append(behind - beside[beside > 0].mean())
    assert min(len(change["benign"]), len(change["malignant"])) >= 4
    assert np.mean(change["malignant"]) < -8
    assert np.mean(change["benign"]) > 4


def test_low_quality_is_the_same_anatomy_but_worse(sample):
    for phantom in sample[:IMAGES_PER_BLOCK]:
        high, low = phantom.image, phantom.low_quality
        smooth = [ndimage.gaussian_filter(image.astype(float), 2).ravel() for image in (high, low)]
        assert np.corrcoef(*smooth)[0, 1] > 0.6
        assert structural_similarity(high, low) < 0.95
        assert len(np.unique(low)) <= 40 < len(np.unique(high))
    uniform = [p for p in sample if p.geometry == "linear" and p.organ in ("liver", "gallbladder", "kidney", "thyroid")]
    widths = [[lateral_correlation_width(image) for image in (p.image, p.low_quality)] for p in uniform]
    high, low = np.mean(widths, axis=0)
    assert low > 1.25 * high


# ---- folders


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fingerprint(out: Path) -> dict[str, str]:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_folder_tables_name_existing_files_of_the_right_content(folder):
    fine = {f"{organ}_{plane}" for organ, planes in ORGANS.items() for plane in planes}
    labels, names = {"coarse": set(ORGANS), "fine": fine}, {}
    for part in ("coarse", "fine"):
        manifest, pairs = read(folder / part / "manifest.csv"), read(folder / part / "pairs.csv")
        assert len(manifest) == len(pairs) == COUNT // 2
        assert {row["label"] for row in manifest} == labels[part]
        for row, pair in zip(manifest, pairs, strict=True):
            assert pair["target"] == row["path"] and (pair["group"], pair["split"]) == (row["group"], row["split"])
            assert row["path"].split("/")[:2] == ["images", row["label"]]
            for path in (row["path"], row["mask"], pair["path"]):
                with Image.open(folder / part / path) as image:
                    assert image.size == (64, 64) and image.mode == "L"
        assert len(list((folder / part).rglob("*.png"))) == 3 * len(manifest)
        names[part] = {Path(row["path"]).name for row in manifest}
    assert not names["coarse"] & names["fine"]


def test_written_image_is_the_phantom_of_its_number(folder):
    row = read(folder / "fine" / "manifest.csv")[4]
    phantom = make_phantom(int(Path(row["path"]).stem), size=64)
    assert row["label"] == f"{phantom.organ}_{phantom.plane}"
    assert np.array_equal(np.asarray(Image.open(folder / "fine" / row["path"])), phantom.image)
    assert np.array_equal(np.asarray(Image.open(folder / "fine" / row["mask"])), phantom.mask)


def test_no_group_in_two_splits_and_no_empty_split(folder):
    splits = defaultdict(set)
    for part in ("coarse", "fine"):
        rows = read(folder / part / "manifest.csv")
        for row in rows:
            splits[row["group"]].add((part, row["split"]))
        assert {row["split"] for row in rows} == {"train", "val", "test"}
        assert {row["label"] for row in rows if row["split"] == "train"} == {row["label"] for row in rows}
    assert all(len(splits_of_group) == 1 for splits_of_group in splits.values())


def test_splits_are_70_10_20_for_every_organ():
    for organ in range(len(ORGANS)):
        counts = Counter(folders._split(block, organ) for block in range(50))
        assert counts == {"train": 35, "val": 5, "test": 10}


def test_second_call_does_nothing_and_other_arguments_raise(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_phantoms(folder, COUNT, size=64, workers=1, progress=False) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match="'seed': 0.*'seed': 1"):
        write_phantoms(folder, COUNT, size=64, seed=1, workers=1, progress=False)
    with pytest.raises(ValueError, match="at least"):
        write_phantoms(folder.with_name("few"), 10)


def test_interrupted_writing_continues_with_more_workers_to_the_same_files(folder, tmp_path, monkeypatch):
    made = []

    def interrupted(index, *arguments, **more):
        made.append(index)
        if len(made) > 25:
            raise KeyboardInterrupt
        return make_phantom(index, *arguments, **more)

    monkeypatch.setattr(folders, "make_phantom", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "p", COUNT, size=64, workers=1, progress=False)
    monkeypatch.undo()
    assert not (tmp_path / "p" / "phantoms.json").exists()
    kept = next((tmp_path / "p").rglob("images/*/*.png"))
    written = kept.stat().st_mtime_ns
    with pytest.raises(ValueError, match="holds phantoms"):
        write_phantoms(tmp_path / "p", COUNT, size=32, workers=1, progress=False)
    write_phantoms(tmp_path / "p", COUNT, size=64, workers=2, progress=False)
    assert kept.stat().st_mtime_ns == written
    assert fingerprint(tmp_path / "p") == fingerprint(folder)
    assert json.loads((folder / "phantoms.json").read_text())["count"] == COUNT


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "coarse").mkdir()
    with pytest.raises(ValueError, match="did not make"):
        write_phantoms(tmp_path, COUNT, progress=False)
    assert list(tmp_path.rglob("*")) == [tmp_path / "coarse"]


def test_an_interrupt_that_every_process_hears_ends_them_all(tmp_path):
    """Ctrl-C of a terminal reaches the workers too; one of them, interrupted with the pool's lock, kept all waiting for ever."""
    words = "import sys; from vfm4us.phantoms.folders import write_phantoms; write_phantoms(sys.argv[1], 2000, 96, workers=2)"
    command = [sys.executable, "-c", f"if __name__ == '__main__':\n    {words}", str(tmp_path / "set")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 60
        while not list(tmp_path.glob("set/*/images/*/*.png")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for worker in workers:
            os.kill(int(worker), signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None and all(Path(f"/proc/{worker}").exists() for worker in workers), (
            "theirs to ignore"
        )
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode != 0 and b"KeyboardInterrupt" in said
        end = time.monotonic() + 10
        with pytest.raises(ProcessLookupError):  # none is left of the group
            while time.monotonic() < end:
                os.killpg(process.pid, 0)
                time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
