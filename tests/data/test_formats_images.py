"""One image is the same image however it is held, and what is in no known range is refused."""

import io
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
    with pytest.raises(
        ValueError, match=r"one image in colour or three grey ones: give images\[None\] .* images\[:, None\]"
    ):
        image_batch(batch[:3])
    assert image_batch(batch[:3][None])[0].shape == (1, 3, 64, 80)
    assert image_batch(batch[:3][:, None])[0].shape == image_batch(batch[:3, ..., None])[0].shape == (3, 1, 64, 80)


def test_an_array_with_one_or_four_channels_is_one_image_or_refused():
    grey = speckle()
    assert (image_batch(grey[..., None], 80)[0] == image_batch(grey, 80)[0]).all()
    with pytest.raises(ValueError, match=r"an image of shape \(64, 80, 4\) is not understood"):
        image_batch(np.repeat(grey[..., None], 4, 2), 80)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "'' is no path"),
        ([" "], "' ' is no path"),
        ("a\0b", "is no path"),
        ("https://example.org/a.png", "is an address, which is not fetched"),
        (["file:///a.png"], "is an address"),
        (b"a.png", "string of bytes is no image: give the file's path"),
        ([b"\x89PNG"], "string of bytes"),
        (io.BytesIO(b"\x89PNG"), r"open file is no image: .*PIL.Image.open\(file\)"),
        ({"image": 1}, "a dict is no image"),
        ({"a.png"}, "a set is no image: it has no order"),
        (None, "None is no image: give a path"),
        ([None], "None is no image"),
        (lambda: 1, "a function is no image"),
        ([[speckle(), speckle()]], "a batch is given by itself, not in a list"),
        (np.ma.masked_greater(speckle(), 200), r"masked array hides \d+ of its numbers: .*images.filled\(0\)"),
        (np.stack([speckle()] * 2, -1), "of one with transparency"),
        (np.zeros((2, 0, 40)), "too small"),
        (np.zeros((3, 40, 3)), "too small"),
        (np.zeros((17, 400)), "too narrow"),
        (np.zeros((20, 20), [("a", "u1")]), "is not understood"),
        (np.full((20, 20), 1j), "a signal.*logarithm of its envelope"),
        (Image.new("L", (0, 20)), "0 x 20 pixels is too small"),
        (torch.empty(2, 1, 20, 20, device="meta"), "device meta has no numbers"),
        (torch.eye(20).to_sparse(), r"images.to_dense\(\)"),
        ([torch.zeros(20, 20, dtype=torch.float4_e2m1fn_x2)], "float4_e2m1fn_x2 is not understood"),
    ],
)
def test_what_is_no_image_is_refused_with_what_to_give(given, message):
    with pytest.raises(ValueError, match=message):
        image_batch(given)


def test_paths_that_are_not_there_are_answered_with_what_is(tmp_path, monkeypatch):
    Image.fromarray(speckle()).save(tmp_path / "scan.png")
    np.save(tmp_path / "scan.npy", speckle())
    monkeypatch.chdir(tmp_path)
    for given in ("scam.png", ["scam.png"]):
        with pytest.raises(FileNotFoundError, match=r"scam.png does not exist \(looked from .*did you mean scan.png"):
            image_batch(given)
    with pytest.raises(FileNotFoundError, match=r"give sorted\(glob.glob\('\*.png'\)\)"):
        image_batch("*.png")
    with pytest.raises(ValueError, match=r"np.load\('scan.npy'\)"):
        image_batch("scan.npy")
    with pytest.raises(ValueError, match="a folder is given by itself"):
        image_batch(["."])
    monkeypatch.setenv("HOME", str(tmp_path))
    same("scan.png", "~/scan.png", ["~/scan.png"], (name for name in ["scan.png"]), np.array(["scan.png"]))


def test_tensors_of_any_kind_and_place_in_memory_are_the_same_image():
    grey, half = speckle(), torch.from_numpy(speckle() / 256)  # exact in 8 bits of fraction
    same(
        half.float(),
        half.bfloat16().requires_grad_(),
        half.half(),
        half.double(),
        half.T.contiguous().T,
        half.numpy()[::-1][::-1],
    )
    assert image_batch(half.to(torch.float8_e4m3fn))[0].dtype == torch.float32
    same(grey, np.asfortranarray(grey), grey.astype(">u2"), np.ma.masked_array(grey), iter([grey]))


def test_frames_that_are_left_out_and_ranges_that_are_guessed_are_told(tmp_path, capsys):
    pages = [Image.fromarray(speckle(k)) for k in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match="pages.tif: 1 of 3 frames are taken.*frames: all"):
        image_batch(tmp_path / "pages.tif")
    with pytest.warns(UserWarning, match="pages.tif has 3 frames: in a list the first alone"):
        image_batch([tmp_path / "pages.tif"])
    with Image.open(tmp_path / "pages.tif") as opened, pytest.warns(UserWarning, match="this is the first alone"):
        image_batch(opened)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.warns(UserWarning, match="1 of 3 frames are taken, else .frames: all. in its reading.yaml"):
        image_batch(tmp_path)
    assert "1 images; beside them 1 passed over" in capsys.readouterr().err
    (tmp_path / "reading.yaml").write_text("frames: first")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(image_batch(tmp_path)[0]) == 1
    below = Image.fromarray(speckle().astype(np.int32) - 100)
    below.save(tmp_path / "below.tif")
    for given in (below, tmp_path / "below.tif"):
        with pytest.warns(UserWarning, match="numbers below 0, .* is stretched"):
            image_batch(given)
    for black in (speckle() // 200, speckle() / 255**2):
        with pytest.warns(UserWarning, match="which is black"):
            image_batch(black)


def test_dicom_and_clips_are_taken_like_images(tmp_path, monkeypatch):
    pytest.importorskip("pydicom"), pytest.importorskip("av")
    monkeypatch.setenv(pseudonyms.KEY_FILE, str(tmp_path / "key"))
    save_dicom(tmp_path / "in" / "a", dicom_dataset(speckle()))
    write_clip(tmp_path / "in" / "b.mp4", [np.roll(speckle(1), 5 * k, axis=1) for k in range(25)], rate=10)
    same(tmp_path / "in" / "a", speckle())
    assert image_batch(tmp_path / "in" / "b.mp4", 64)[0].shape == (3, 1, 64, 64)
    assert image_batch(tmp_path / "in", 64)[0].shape == (4, 1, 64, 64) and len(image_paths(tmp_path / "in")) == 4
