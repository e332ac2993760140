"""NIfTI, MetaImage, NRRD: rows stay rows, frames are frames, and a header cannot ask for more than its file holds."""

import os

import numpy as np
import pytest
from making_formats import speckle
from PIL import Image

from vfm4us.data import frames, sources, volumes
from vfm4us.data.frames import frame_rule
from vfm4us.data.masks import mask_coding, read_masks

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


def masked(folder, mask, image_direction=None, mask_direction=None, **where):
    """Three volumes of 2 slices with masks of that array, and the first mask's values on its image, or why there are none."""
    for k in range(3):
        for role, pixels in (("images", np.stack([speckle(k), speckle(k + 1)])), ("masks", mask)):
            image = sitk.GetImageFromArray(pixels)
            image.SetSpacing((0.2, 0.1, 1))
            direction = image_direction if role == "images" else mask_direction
            image.SetDirection(direction or image.GetDirection())
            for name, value in where.items() if role == "masks" else ():
                getattr(image, f"Set{name}")(value)
            (folder / role).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(folder / role / f"p{k}.nii.gz"))
    record = sources.understand(folder).records[0]
    try:
        return read_masks(folder, record, speckle(0), 64)
    except ValueError as error:
        return str(error)


def test_masks_lie_on_their_volumes_by_what_both_headers_say(tmp_path):
    stack = np.stack([speckle(5), speckle(6)])
    mask = (stack > 90).astype(np.uint8)
    flipped = (-1.0, 0, 0, 0, 1, 0, 0, 0, 1)
    assert (masked(tmp_path / "same", mask) == mask[0]).all()
    assert (masked(tmp_path / "both", mask, flipped, flipped) == mask[0]).all()
    assert "lies otherwise than its image by their headers" in masked(tmp_path / "other", mask, None, flipped)
    unsaid = masked(tmp_path / "unsaid", mask, flipped, (-1.0, 0, 0, 0, -1, 0, 0, 0, 1), Spacing=(1, 1, 1))
    assert (unsaid == mask[0]).all()  # what is written where nothing is known
    part = np.ascontiguousarray(mask[:, :32, :40])
    assert "of another place" in masked(tmp_path / "part", part)
    half = masked(tmp_path / "half", mask[:, ::2, ::2].copy(), Spacing=(0.4, 0.2, 1), Origin=(0.1, 0.05, 0))
    assert half.shape == (64, 80)  # the same place at another scale
    assert "has 1 slices, its image 2" in masked(tmp_path / "fewer", mask[:1].copy())


def test_values_that_are_no_colour_are_refused(tmp_path):
    two = np.stack([speckle(0), speckle(1)], axis=-1)
    signed = np.stack([speckle(k) for k in range(3)], axis=-1).astype(np.float32) - 100
    for name, pixels, words in (("a.mha", two, "no colour"), ("b.mha", signed, "no colours in 8 or 16 bits")):
        with pytest.raises(ValueError, match=words):
            frames.contents_of(write(tmp_path / name, pixels, colour=True))
    header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 80 64 3\nencoding: raw\nkinds: domain domain {}\n\n"
    for kind in ("list", "time"):
        path = tmp_path / f"{kind}.nrrd"
        path.write_bytes(header.format(kind).encode() + np.stack([speckle(k) for k in range(3)]).tobytes())
    with pytest.raises(ValueError, match="no colour"):
        frames.contents_of(tmp_path / "list.nrrd")
    assert frames.contents_of(tmp_path / "time.nrrd").count == 3


def test_reasons_say_what_to_do(tmp_path):
    path = write(tmp_path / "a.nii.gz", np.stack([speckle(0), speckle(1)]))
    os.rename(path, tmp_path / "b.nii")
    with pytest.raises(ValueError, match=r"is compressed: name it \.nii\.gz"):
        frames.contents_of(tmp_path / "b.nii")
    os.rename(write(tmp_path / "c.nii", speckle(0)), tmp_path / "c.nii.gz")
    with pytest.raises(ValueError, match=r"is not compressed: name it \.nii"):
        frames.contents_of(tmp_path / "c.nii.gz")
    with pytest.raises(ValueError, match="1 x 80 x 64: write it with the axis of 1 last"):
        frames.contents_of(write(tmp_path / "d.nii", speckle(0)[:, :, None].copy()))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({1: "Nodule"}, ""),
        ({2: "cyst"}, ""),
        ({1: "cyst"}, "1 is 'nodule' in one, 1 is 'cyst' in the other"),
        ({2: "nodule"}, "2 is"),
    ],
)
def test_segments_of_slicer_that_files_number_differently_are_refused(tmp_path, other, words):
    for k, names in enumerate(({1: "nodule"}, other)):
        stack = np.stack([speckle(k), speckle(k + 1)])
        write(tmp_path / f"p{k}.nrrd", stack)
        segments = "".join(
            f"Segment{j}_LabelValue:={n}\nSegment{j}_Name:={name}\n" for j, (n, name) in enumerate(names.items())
        )
        head = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 80 64 2\nencoding: raw\n" + segments + "\n"
        mask = (stack > 90).astype(np.uint8) * max(names)
        (tmp_path / f"p{k}.seg.nrrd").write_bytes(head.encode() + mask.tobytes())
    records = sources.understand(tmp_path).records
    assert all(record.mask.endswith(".seg.nrrd") for record in records)
    if words:
        with pytest.raises(ValueError, match=words):
            mask_coding(tmp_path, records)
    else:
        assert mask_coding(tmp_path, records) is not None


def test_masks_in_nifti_over_plain_images_are_told(tmp_path):
    for k in range(2):
        for role in ("images", "masks"):
            (tmp_path / role).mkdir(exist_ok=True)
        Image.fromarray(speckle(k)).save(tmp_path / "images" / f"{k}.png")
        write(tmp_path / "masks" / f"{k}.nii", (speckle(k) > 90).astype(np.uint8))
    assert any("their first axis is taken for the columns" in note for note in sources.understand(tmp_path).notes)
