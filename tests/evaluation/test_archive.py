"""An archive as vectors: embedded in pieces, continued, searched; and the command that does it all."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT, module_of, write_textures
from vfm4us import checkpoints
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.evaluation import archive as archives


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder(EncoderSpec(in_channels=1)).eval()


def test_vectors_are_those_of_the_encoder_and_a_stopped_run_ends_in_the_same(textures, tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(archives, "CHUNK", 16)
    whole = archives.embed_archive(textures / "one", encoder, tmp_path / "whole", size=48)
    expected = encoder.embed(textures / "one", size=48).numpy()
    assert np.allclose(whole.features, expected, atol=1e-4) and len(whole) == 60

    embed, calls = encoder.embed, []

    def dies(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(*arguments, **options)

    monkeypatch.setattr(encoder, "embed", dies)
    with pytest.raises(KeyboardInterrupt):
        archives.embed_archive(textures / "one", encoder, tmp_path / "stopped", size=48)
    assert len((tmp_path / "stopped" / "journal.jsonl").read_text().splitlines()) == 32
    again = archives.embed_archive(textures / "one", encoder, tmp_path / "stopped", size=48)
    assert len(calls) == 3 + 2 and np.array_equal(again.features, whole.features)
    assert np.array_equal(again.thumbnails, whole.thumbnails) and again.sha256 == whole.sha256


def test_a_folder_with_vectors_of_something_else_is_refused(textures, tmp_path, encoder):
    archives.embed_archive(textures / "one", encoder, tmp_path / "out", size=48)
    with pytest.raises(ValueError, match="another size"):
        archives.embed_archive(textures / "one", encoder, tmp_path / "out", size=64)
    with torch.no_grad():
        encoder.body.conv1.weight += 1
    with pytest.raises(ValueError, match="another encoder"):
        archives.embed_archive(textures / "one", encoder, tmp_path / "out", size=48)


def test_images_that_cannot_be_read_are_listed_and_the_rest_goes_on(tmp_path, encoder):
    write_textures(tmp_path / "in", 6, seed=0)
    (tmp_path / "in" / "fine" / "003.png").write_bytes(b"no image")
    archive = archives.embed_archive(tmp_path / "in", encoder, tmp_path / "out", size=48)
    assert len(archive) == len(archive.features) == 5 and [path for path, _ in archive.rejected] == ["fine/003.png"]
    assert np.allclose(
        archive.features, encoder.embed([tmp_path / "in" / r.path for r in archive.records], size=48), atol=1e-4
    )


def test_neighbours_are_those_of_one_big_product(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (50, 8)).astype(np.float32) * np.arange(1, 9, dtype=np.float32)
    monkeypatch.setattr(archives, "BLOCK", 7)
    monkeypatch.setattr(archives, "blocks", lambda n, size=7: (slice(s, min(n, s + 7)) for s in range(0, n, 7)))
    white = archives.whitening(x)
    z = (x - white[0]) @ white[1]
    assert np.allclose((z.T @ z / 50 - np.diag(np.diag(z.T @ z / 50))), 0, atol=1e-3)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    cosines = z @ z.T
    np.fill_diagonal(cosines, -2)
    places, likeness = archives.nearest(x, white, k=3, progress=False)
    assert np.array_equal(places, np.argsort(-cosines, axis=1)[:, :3])
    assert np.allclose(likeness, -np.sort(-cosines, axis=1)[:, :3], atol=1e-5)


def test_a_stranger_is_far_from_its_neighbours():
    x = np.random.default_rng(1).normal(0, 1, (200, 16)).astype(np.float32)
    x[17] *= 5
    places, _ = archives.nearest(x, archives.whitening(x), k=5, progress=False)
    distances = archives.strangeness(x, places)
    assert distances.argmax() == 17 and distances[17] > 2 and np.median(distances) == pytest.approx(1)


def test_the_command_finds_the_duplicate_and_writes_all_it_says(tmp_path):
    write_textures(tmp_path / "in", 30, seed=3)
    Image.open(tmp_path / "in" / "fine" / "001.png").save(tmp_path / "in" / "fine" / "copy.bmp")
    torch.manual_seed(0)
    state = {f"module.base_encoder.{k}": v for k, v in Encoder().published_state().items()}
    checkpoints.save(tmp_path / "w.pt", {"state_dict": state})
    command = [sys.executable, str(ROOT / "scripts" / "embed.py"), "in", f"encoder.weights={tmp_path / 'w.pt'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--size", "48"], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "logs" / "embed-in"
    with open(out / "index.csv") as stream:
        rows = {row["path"]: row for row in csv.DictReader(stream)}
    assert rows["fine/copy.bmp"]["nearest"] == "fine/001.png"
    assert rows["fine/copy.bmp"]["duplicate_cluster"] == rows["fine/001.png"]["duplicate_cluster"]
    assert np.median([float(row["strangeness"]) for row in rows.values()]) == pytest.approx(1, abs=0.01)
    with np.load(out / "features.npz") as arrays:
        assert arrays["features"].shape == (31, 512) and arrays["paths"].tolist() == list(rows)
        assert set(arrays["labels"]) == {"fine", "rough"}
    assert all((out / name).is_file() for name in ("neighbours.png", "duplicates.png", "strangest.png"))
    tables = list((out / "projector").rglob("metadata.tsv")) + list((out / "projector").rglob("sprite.png"))
    assert len(tables) == 2 and len(tables[0].read_text().splitlines()) == 32


def test_an_archive_is_not_written_into_itself(textures, monkeypatch):
    module = module_of(ROOT / "scripts" / "embed.py")
    monkeypatch.setattr(sys, "argv", ["embed.py", str(textures), "--out", str(textures / "out")])
    with pytest.raises(ValueError, match="lies in the archive"):
        module.main()
    monkeypatch.setattr(sys, "argv", ["embed.py", str(textures), "encoder.name=x"])
    with pytest.raises(ValueError, match="encoder.weights=FILE"):
        module.main()
