"""One image is the same image however it is held, and what is in no known range is refused."""

import warnings

import numpy as np
import pytest
import torch
from making_formats import dicom_dataset, save_dicom, speckle, write_clip
from PIL import Image

from vfm4us.data import pseudonyms
from vfm4us.data.images import image_array, image_batch, image_paths


def same(*ways, size=64):
    batches = [image_batch(way, size) for way in ways]
    for pixels, valid in batches[1:]:
        assert pixels.shape == batches[0][0].shape and (valid == batches[0][1]).all()
        assert (pixels.float() - batches[0][0].float()).abs().max() <= 1
    return batches[0]


@pytest.mark.parametrize("kind", ["grey", "colour", "16 bit", "palette", "alpha", "1 bit"])
def test_a_path_a_pil_image_and_an_array_are_one_image(tmp_path, kind):
    colour = np.stack([speckle(0), speckle(1), speckle(2)], axis=-1)
    picture = {
        "grey": Image.fromarray(speckle()),
        "colour": Image.fromarray(colour),
        "16 bit": Image.fromarray(speckle().astype(np.uint16) * 16),
        "palette": Image.fromarray(colour).quantize(32),
        "alpha": Image.fromarray(np.dstack([colour, speckle(3)])),
        "1 bit": Image.fromarray(speckle() > 90),
    }[kind]
    picture.save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ways = [tmp_path / "x.png", str(tmp_path / "x.png"), opened, [opened]]
        if kind in ("grey", "colour", "16 bit", "1 bit"):
            ways += [np.asarray(opened), torch.from_numpy(np.asarray(opened).copy()), [np.asarray(opened)]]
        pixels, valid = same(*ways)
    assert pixels.shape == (1, 1, 64, 64) and pixels.dtype == torch.uint8 and valid.tolist() == [[0, 0, 51, 64]]


def test_an_orientation_is_followed_in_both(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(speckle()).save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as opened:
        _, valid = same(tmp_path / "x.png", opened)
    assert valid.tolist() == [[0, 0, 64, 51]]


def test_kinds_of_numbers_that_mean_the_same():
    grey = speckle()
    expected = image_array(grey)
    for array in (grey.astype(np.int64), grey.astype(np.uint16), torch.from_numpy(grey.astype(np.int32))):
        assert (image_array(array) == expected).all()
    for array in (grey / 255, grey / np.float32(255), torch.from_numpy(grey / 255), (grey / 255).astype(np.float16)):
        assert np.abs(image_array(array) * 255 - expected).max() < 0.2
    assert (image_array(grey > 90) == (grey > 90) * np.uint8(255)).all()
    with pytest.warns(UserWarning, match="uint16 are divided by 4095, the full range of their bits"):
        assert np.abs(image_array(grey.astype(np.uint16) * 16).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (speckle().astype(np.float32), r"values from 1 to 255, but floats must lie in \[0, 1\]: divide by 255"),
        (speckle() / 127.5 - 1, r"floats must lie in \[0, 1\]"),
        (np.full((20, 20), np.nan), "NaN or infinity"),
        (speckle().astype(np.int64) - 5, "whole numbers must lie in 0 to 65535"),
        (np.full((20, 20), 70000), "whole numbers must lie in 0 to 65535"),
        (np.full((20, 20), 1j), "complex128 is not understood"),
    ],
)
def test_what_is_in_no_known_range_is_refused(array, message):
    for held in (array, [array], array[None], torch.from_numpy(array)[None, None]):
        with pytest.raises(ValueError, match=message):
            image_batch(held)


def test_a_batch_keeps_its_size_and_its_colours():
    batch = np.stack([speckle(k) for k in range(4)])
    pixels, valid = image_batch(batch)
    assert valid is None and (pixels[:, 0].numpy() == batch).all()
    assert image_batch(np.repeat(batch[..., None], 3, 3))[0].shape == (4, 3, 64, 80)
    wide = np.stack([batch[0].astype(np.uint16) * 16, batch[1].astype(np.uint16)])  # each by its own range
    with pytest.warns(UserWarning, match="divided by 4095"):
        assert (image_batch(wide)[0][:, 0].numpy().astype(int) - batch[:2] <= 1).all()
    assert image_batch(batch[:0])[0].shape == (0, 1, 64, 80)
    with pytest.warns(UserWarning, match="taken for three grey images"):
        assert image_batch(batch[:3])[0].shape == (3, 1, 64, 80)


def test_an_array_with_one_or_four_channels_is_one_image_or_refused():
    grey = speckle()
    assert (image_batch(grey[..., None], 80)[0] == image_batch(grey, 80)[0]).all()
    with pytest.raises(ValueError, match=r"an image of shape \(64, 80, 4\) is not understood"):
        image_batch(np.repeat(grey[..., None], 4, 2), 80)


def test_dicom_and_clips_are_taken_like_images(tmp_path, monkeypatch):
    pytest.importorskip("pydicom"), pytest.importorskip("av")
    monkeypatch.setenv(pseudonyms.KEY_FILE, str(tmp_path / "key"))
    save_dicom(tmp_path / "in" / "a", dicom_dataset(speckle()))
    write_clip(tmp_path / "in" / "b.mp4", [np.roll(speckle(1), 5 * k, axis=1) for k in range(25)], rate=10)
    same(tmp_path / "in" / "a", speckle())
    assert image_batch(tmp_path / "in" / "b.mp4", 64)[0].shape == (3, 1, 64, 64)
    assert image_batch(tmp_path / "in", 64)[0].shape == (4, 1, 64, 64) and len(image_paths(tmp_path / "in")) == 4
