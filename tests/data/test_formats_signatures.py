"""Files that are not what their ending says: read where their content tells, else refused by what they are."""

import gzip
import io

import numpy as np
import pytest
import tifffile
from making_formats import dicom_dataset, save_dicom, speckle
from PIL import Image

from vfm4us.data import frames, pseudonyms, sources
from vfm4us.data.decode import read_grey


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(speckle()).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.dcm", png(), "not a DICOM file: it is a PNG image: name it .png"),
        ("a.dcm", gzip.compress(b"x"), "it is compressed with gzip: unpack it"),
        ("a.avi", png(), "clip: cannot be opened: it is a PNG image"),
        ("a.nii", png(), "it is a PNG image"),
        ("a.png", b"\0" * 128 + b"DICM" + b"\0" * 400, "it is a DICOM file: name it .dcm"),
        ("a.png", b"<!DOCTYPE html><html></html>", "it is a web page, as of a download that was refused"),
        ("a.jpg", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("a.jpg", b"\0" * 4000, "it holds zeros alone"),
        ("a.png", b"\0\0\0\x20ftypisom" + b"\0" * 100, "it is an MP4 or MOV clip"),
        ("a.npz", png(), "it is a PNG image"),
        ("a.png", bytes(range(1, 200)), "or its header is damaged"),
    ],
)
def test_a_wrong_ending_is_named_with_what_to_do(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="cannot|not a|volume|array") as told:
        read_grey(tmp_path / name)
    assert words in str(told.value)


def test_an_animated_png_is_no_single_picture(tmp_path):
    first, second = (Image.fromarray(speckle(k)) for k in range(2))
    first.save(tmp_path / "a.png", save_all=True, append_images=[second], duration=40)
    with pytest.raises(ValueError, match="an animated PNG, of which one picture would be read"):
        read_grey(tmp_path / "a.png")


def test_a_tiff_that_pillow_does_not_read_is_no_damaged_file(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", speckle() / 255)
    with pytest.raises(ValueError, match="such as 64-bit fractions: save it in 8 or 16 bits"):
        read_grey(tmp_path / "a.tif")


def test_dicom_with_an_ending_of_its_own_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv(pseudonyms.KEY_FILE, str(tmp_path / "key"))
    for name in ("x.US", "x.001", "x.img1"):
        path = save_dicom(tmp_path / "set" / name, dicom_dataset(speckle()))
        assert frames.kind_of(path) == "DICOM" and (read_grey(path) == speckle()).all()
    (tmp_path / "set" / "x.dat").write_bytes(b"no DICOM")
    told = sources.understand(tmp_path / "set")
    assert len(told.records) == 3 and told.counts()["passed over"] == 1


def test_what_holds_images_and_is_not_read_has_its_remedy(tmp_path):
    np.save(tmp_path / "a.npy", speckle())
    (tmp_path / "b.h5").write_bytes(b"\x89HDF")
    with pytest.raises(ValueError, match=r"\.npy is not read, as arrays are masks alone: save images as PNG") as told:
        sources.understand(tmp_path)
    assert ".h5 is not read, save its images as PNG" in str(told.value)
    (tmp_path / "a.npy").unlink()
    Image.fromarray(speckle()).save(tmp_path / "c.png")
    assert any(".h5: not read, save its images as PNG" in kind.what for kind in sources.understand(tmp_path).kinds)
