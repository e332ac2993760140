"""Pages of TIFF files: frames, slices, thumbnails, or something that a reader of pages would take for another thing."""

import numpy as np
import pytest
import tifffile
from making_formats import speckle

from vfm4us.data import frames, sources
from vfm4us.data.decode import read_grey


def stack(count: int) -> np.ndarray:
    return np.stack([speckle(k) for k in range(count)])


def only(path, *numbers):
    return [grey for _, grey in frames.read_frames(path, list(numbers))]


def test_pages_of_more_than_8_bits_have_one_range(tmp_path):
    dark, light = speckle(0).astype(np.uint16) * 3, speckle(1).astype(np.uint16) * 16
    tifffile.imwrite(tmp_path / "a.tif", np.stack([dark, light]), photometric="minisblack")
    alone, (one, other) = only(tmp_path / "a.tif", 0)[0], only(tmp_path / "a.tif", 0, 1)
    assert (alone == one).all() and abs(one.mean() - dark.mean() / 4095 * 255) < 1
    assert abs(other.mean() - light.mean() / 4095 * 255) < 1
    fractions = np.stack([speckle(0) / 1000, speckle(1) / 255]).astype(np.float32)
    tifffile.imwrite(tmp_path / "b.tif", fractions, photometric="minisblack")
    assert abs(only(tmp_path / "b.tif", 0)[0].mean() - fractions[0].mean() * 255) < 1


@pytest.mark.parametrize(
    ("axes", "more", "rate"),
    [
        ("ZYX", {}, 0),  # slices: all are taken
        ("TYX", {"finterval": 0.1}, 10),
        ("TYX", {}, None),
        ("ZYX", {"fps": 5}, 5),  # a clip that ImageJ calls slices
    ],
)
def test_what_imagej_says_of_its_pages_is_heard(tmp_path, axes, more, rate):
    tifffile.imwrite(tmp_path / "a.tif", stack(4), imagej=True, metadata={"axes": axes, **more})
    told = frames.contents_of(tmp_path / "a.tif")
    assert told.count == 4 and told.rate == (None if rate is None else pytest.approx(rate))


def test_what_ome_says_of_its_pages_is_heard(tmp_path):
    tifffile.imwrite(tmp_path / "z.ome.tif", stack(4), metadata={"axes": "ZYX"})
    assert frames.contents_of(tmp_path / "z.ome.tif").rate == 0
    clip = {"axes": "TYX", "TimeIncrement": 0.5, "TimeIncrementUnit": "s"}
    tifffile.imwrite(tmp_path / "t.ome.tif", stack(4), metadata=clip)
    assert frames.contents_of(tmp_path / "t.ome.tif").rate == 2
    tifffile.imwrite(tmp_path / "c.ome.tif", np.repeat(speckle()[..., None], 3, 2), metadata={"axes": "YXS"})
    assert frames.contents_of(tmp_path / "c.ome.tif") is None


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("imagej in one page", "names 4 images, but it holds 1 pages"),
        ("tifffile in one page", "names 4 images, but it holds 1 pages"),
        ("channels", "holds 2 channels of each image as pages"),
        ("ome channels", "holds 2 channels of each image as pages"),
        ("volume", "a volume in one page"),
        ("thumbnail first", "thumbnails or masks before its images"),
    ],
)
def test_pages_that_are_not_what_they_seem_are_refused(tmp_path, kind, words):
    path, pixels = tmp_path / "a.tif", stack(4)
    if kind == "imagej in one page":
        tifffile.imwrite(path, pixels, imagej=True, truncate=True, metadata={"axes": "TYX"})
    elif kind == "tifffile in one page":
        tifffile.imwrite(path, pixels, photometric="minisblack", truncate=True)
    elif kind == "channels":
        tifffile.imwrite(path, pixels.reshape(2, 2, 64, 80), imagej=True, metadata={"axes": "TCYX"})
    elif kind == "ome channels":
        tifffile.imwrite(path, pixels.reshape(2, 2, 64, 80), ome=True, metadata={"axes": "ZCYX"})
    elif kind == "volume":
        tifffile.imwrite(path, stack(16), volumetric=True, photometric="minisblack", tile=(16, 16, 16))
    else:
        with tifffile.TiffWriter(path) as file:
            file.write(pixels[0, ::2, ::2], subfiletype=1, photometric="minisblack")
            file.write(pixels[0], photometric="minisblack")
    told = sources.understand(tmp_path)
    assert words in told.records[0].reason
    with pytest.raises(ValueError, match=words):
        read_grey(path)


def test_pages_are_upright(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", stack(2), photometric="minisblack", extratags=[(274, 3, 1, 6, False)])
    one, other = only(tmp_path / "a.tif", 0, 1)
    assert (one == np.rot90(speckle(0), -1)).all() and (other == np.rot90(speckle(1), -1)).all()


def test_smaller_copies_are_no_frames(tmp_path):
    for name, images in (("a.tif", 1), ("b.tif", 2)):
        with tifffile.TiffWriter(tmp_path / name) as file:
            for k in range(images):
                file.write(speckle(k), photometric="minisblack")
            file.write(speckle(0)[::2, ::2], subfiletype=1, photometric="minisblack")
    assert frames.contents_of(tmp_path / "a.tif") is None and (read_grey(tmp_path / "a.tif") == speckle(0)).all()
    told = frames.contents_of(tmp_path / "b.tif")
    assert told.count == 2 and any("smaller copies" in note for note in told.notes)
