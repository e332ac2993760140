"""Damaged and malicious images and checkpoints are read or refused in words: no hang, no crash, no code, bounded memory."""

import pytest

from tests.faults import hostile


def wrong(kind, files):
    _, faults = hostile.read_in_a_process(kind, list(files))
    return [f"{file.name}: {what}" for file, what in faults]


def test_damaged_images(tmp_path):
    assert not wrong("image", hostile.damaged_images(tmp_path, 300, seed=0))


def test_whole_images_are_read(tmp_path):
    for name, data in hostile.whole_images().items():
        (tmp_path / name).write_bytes(data)
    assert hostile.read_in_a_process("image", sorted(tmp_path.iterdir())) == (len(hostile.whole_images()), [])


def test_hostile_images(tmp_path):
    assert not wrong("image", hostile.hostile_images(tmp_path))


def test_damaged_checkpoints(tmp_path):
    assert not wrong("checkpoint", hostile.damaged_checkpoints(tmp_path, 150, seed=0))


def test_hostile_checkpoints(tmp_path):
    marker, folder = tmp_path / "was-run", tmp_path / "files"
    folder.mkdir()
    assert not wrong("checkpoint", hostile.hostile_checkpoints(folder, marker))
    assert not marker.exists()


@pytest.mark.parametrize(("kind", "what"), [("dying", "the process died"), ("puzzled", "KeyError")])
def test_the_harness_sees_what_it_looks_for(kind, what, tmp_path):
    files = [tmp_path / "1.png", tmp_path / "2.png"]
    read, faults = hostile.read_in_a_process(kind, files)
    assert read == 0 and [f for f, _ in faults] == files and all(what in w for _, w in faults)
