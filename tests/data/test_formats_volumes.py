"""NIfTI, MetaImage, NRRD: rows stay rows, frames are frames, and a header cannot ask for more than its file holds."""

import os

import numpy as np
import pytest
from making_formats import speckle

from vfm4us.data import frames, volumes
from vfm4us.data.frames import frame_rule

sitk = pytest.importorskip("SimpleITK")
KINDS = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd")


def write(path, pixels, spacing=None, colour=False):
    image = sitk.GetImageFromArray(pixels, isVector=colour)
    if spacing:
        image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("ending", KINDS)
def test_an_image_a_volume_and_a_clip(tmp_path, ending):
    flat, stack = speckle(), np.stack([speckle(k) for k in range(5)])
    path = write(tmp_path / f"flat{ending}", flat, (0.2, 0.1))
    told = frames.contents_of(path)
    assert (told.count, told.spacing_mm) == (1, "0.1 0.2")
    assert (dict(frames.read_frames(path, [0]))[0] == flat).all()
    path = write(tmp_path / f"stack{ending}", stack, (0.2, 0.1, 2.0))
    told = frames.contents_of(path)
    assert (told.count, told.rate) == (5, 0) and frame_rule("per second").chosen(told) == [0, 1, 2, 3, 4]
    assert all((pixels == stack[number]).all() for number, pixels in frames.read_frames(path, [1, 4]))
    path = write(tmp_path / f"loop{ending}", stack[:, None], (0.2, 0.1, 1.0, 0.04))
    told = frames.contents_of(path)
    assert told.count == 5 and told.rate != 0
    assert all((pixels == stack[number]).all() for number, pixels in frames.read_frames(path, [0, 3]))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_colour_and_wide_numbers_become_grey_of_one_range(tmp_path, ending):
    rgb = np.stack([speckle(0), speckle(1), speckle(2)], axis=-1)
    path = write(tmp_path / f"rgb{ending}", rgb, colour=True)
    grey = dict(frames.read_frames(path, [0]))[0]
    assert np.abs(grey - rgb @ np.array([0.299, 0.587, 0.114])).max() < 2
    stack = np.stack([speckle(k).astype(np.float32) * 3 - 100 for k in range(3)])
    stack[0] /= 2  # a darker slice stays darker
    path = write(tmp_path / f"float{ending}", stack)
    got = dict(frames.read_frames(path, [0, 2]))
    low, high = stack.min(), stack.max()
    assert all(np.abs(got[k] - (stack[k] - low) / (high - low) * 255).max() < 1 for k in (0, 2))


def test_labels_keep_their_values(tmp_path):
    values = (np.arange(3 * 64 * 80) % 5).reshape(3, 64, 80).astype(np.int16)
    path = write(tmp_path / "gt.nii.gz", values)
    assert all((volumes.read_label(path, number) == values[number]).all() for number in (0, 2, 1))
    with pytest.raises(ValueError, match="has 3 slices"):
        volumes.read_label(path, 3)


def test_damaged_and_boastful_headers_are_refused(tmp_path):
    whole = write(tmp_path / "a.nii", speckle()).read_bytes()
    boast = bytearray(whole)
    boast[40:56] = np.array([3, 8000, 8000, 4, 1, 1, 1, 1], "<i2").tobytes()  # 256 million voxels in 5 kB
    for data in (b"x" * 400, whole[:200], whole[:1000], bytes(boast), b""):
        (tmp_path / "b.nii").write_bytes(data)
        with pytest.raises(ValueError, match="volume|empty"):
            frames.contents_of(tmp_path / "b.nii")
            list(frames.read_frames(tmp_path / "b.nii", [0]))
    for ending in KINDS:
        whole = write(tmp_path / f"c{ending}", speckle()).read_bytes()
        damaged = tmp_path / (f"c{ending}" if ending != ".mhd" else "c.raw")
        damaged.write_bytes(damaged.read_bytes()[:-900])
        with pytest.raises(ValueError, match="truncated"):
            list(frames.read_frames(tmp_path / f"c{ending}", [0]))
    whole = (tmp_path / "a.nii").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, 352, 5):
            data[place] = rng.integers(256)
        (tmp_path / "b.nii").write_bytes(data)
        try:
            frames.contents_of(tmp_path / "b.nii")
            list(frames.read_frames(tmp_path / "b.nii", [0]))
        except ValueError:
            pass


@pytest.mark.parametrize("named", ["/etc/passwd", "../secret.raw", "pipe", "LIST", "x%d.raw 1 2 1"])
def test_a_header_may_name_only_a_file_beside_it(tmp_path, named):
    os.mkfifo(tmp_path / "pipe")
    header = write(tmp_path / "a.mhd", speckle()).read_text()
    (tmp_path / "a.mhd").write_text(header.replace("a.raw", named))
    with pytest.raises(ValueError, match="must lie in one file beside|not a regular file"):
        frames.contents_of(tmp_path / "a.mhd")


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch):
    import sys

    path = write(tmp_path / "a.nii", speckle())
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(ValueError, match=r"needs the package SimpleITK: pip install -e \.\[volumes\]"):
        frames.contents_of(path)
