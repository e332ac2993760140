"""Packing: right pixels, no bad image without a reason, nothing half written, the same bytes however it was made."""

import csv
import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from making_trees import plain, speckle
from PIL import Image
from scipy.ndimage import gaussian_filter

from vfm4us.data import prepare as preparing
from vfm4us.data.dataset import PreparedDataset, packed_size
from vfm4us.data.decode import read_grey
from vfm4us.data.images import image_array
from vfm4us.data.masks import read_mask
from vfm4us.data.prepare import open_or_prepare, prepare

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "prepare_data.py"
REAL = Path(os.environ.get("VFM4US_REAL_DATA", ROOT.parent / "shared" / "data"))


def picture(seed=0, height=60, width=80):
    blobs = gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), 5)
    return ((blobs - blobs.min()) / np.ptp(blobs) * 255).astype(np.uint8)


def save(array, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def small_source(root, count=12):
    for number in range(count):
        save(picture(number), root / "ab"[number % 2] / f"{number}.png")
    return root


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != "dataset.json"}


def rejected_in(folder):
    with open(folder / "rejected.csv", newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def png_header_only(width, height):
    """A PNG whose header announces width x height pixels and whose data holds none of them."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def run(*arguments, **options):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


# pixels


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.tif", "x.tiff"])
def test_grey_images_are_read_exactly(tmp_path, name):
    assert (read_grey(save(picture(), tmp_path / name)) == picture()).all()


def test_jpeg_is_read_closely_and_a_wrong_extension_does_not_matter(tmp_path):
    path = save(picture(), tmp_path / "x.jpg", quality=95)
    assert np.abs(read_grey(path).astype(int) - picture()).max() <= 6
    path.rename(tmp_path / "x.png")
    assert np.abs(read_grey(tmp_path / "x.png").astype(int) - picture()).max() <= 6


def constant(mode, value):
    return Image.new(mode, (20, 30), value)


@pytest.mark.parametrize(
    "image, expected",
    [
        (constant("RGB", (77, 77, 77)), 77),
        (constant("RGB", (255, 0, 0)), 76),  # luminance: 0.299, 0.587, 0.114
        (constant("RGB", (0, 255, 0)), 150),
        (constant("1", 1), 255),
        (constant("LA", (200, 0)), 0),  # transparent: black
        (constant("RGBA", (200, 200, 200, 128)), 100),
        (constant("RGBA", (200, 200, 200, 255)), 200),
        (constant("P", 3), None),  # filled in below: palette entry 3 is grey 90
        (constant("I;16", 200), 200),  # 8-bit data in a 16-bit file
        (constant("I;16", 4095), 255),  # 12-bit data
        (constant("I;16", 2048), 128),
        (constant("I;16", 32768), 128),
        (constant("I;16", 65535), 255),
    ],
    ids=lambda value: getattr(value, "mode", value),
)
def test_every_png_mode_gives_the_expected_grey(tmp_path, image, expected):
    if image.mode == "P":
        image.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2, 90, 90, 90])
        expected = 90
    image.save(tmp_path / "x.png")
    assert np.unique(read_grey(tmp_path / "x.png")).tolist() == [expected]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tiff_in_which_0_is_white_is_turned_round_whatever_its_bits(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")  # comes with scikit-image
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    top = 1.0 if dtype is np.float32 else np.iinfo(dtype).max
    held = ((255 - grey) / 255 * top).astype(dtype)
    tifffile.imwrite(tmp_path / "x.tif", held, photometric="miniswhite")
    assert (read_grey(tmp_path / "x.tif") == grey).all()
    with Image.open(tmp_path / "x.tif") as image:  # as given in Python
        assert (image_array(image) == grey).all()


def test_png_colour_key_transparency_is_black(tmp_path):
    constant("L", 200).save(tmp_path / "x.png", transparency=200)
    assert read_grey(tmp_path / "x.png").max() == 0


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),  # [0, 1]
        ([0.0, 10.4, 200.0], [0, 10, 200]),  # [0, 255]
        ([-1.0, 0.0, 1.0], [0, 128, 255]),  # stretched
        ([7.0, 7.0, 7.0], [7, 7, 7]),
    ],
)
def test_float_tiff_scales_by_its_documented_rule(tmp_path, values, expected):
    pixels = np.repeat(np.array(values, np.float32), 20)[:, None].repeat(20, 1)
    assert read_grey(save(pixels, tmp_path / "x.tif"))[::20, 0].tolist() == expected


def test_float_tiff_with_nan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not finite"):
        read_grey(save(np.full((20, 20), np.nan, np.float32), tmp_path / "x.tif"))


@pytest.mark.parametrize("extension", ["jpg", "png", "tif"])
def test_exif_orientation_is_respected(tmp_path, extension):
    image = Image.new("L", (40, 20))
    image.paste(255, (0, 0, 10, 20))  # bright left edge
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise: the left edge becomes the top
    image.save(tmp_path / f"x.{extension}", exif=exif)
    grey = read_grey(tmp_path / f"x.{extension}")
    assert grey.shape == (40, 20) and grey[:8].min() > 200 and grey[14:].max() < 50


def test_first_frame_of_a_multi_frame_tiff(tmp_path):
    frames = [Image.new("L", (20, 20), value) for value in (10, 200)]
    frames[0].save(tmp_path / "x.tif", save_all=True, append_images=frames[1:])
    assert np.unique(read_grey(tmp_path / "x.tif")).tolist() == [10]


# refusals


def test_header_bomb_is_refused_before_decoding(tmp_path):
    for side in (9_000, 20_000):
        (tmp_path / "x.png").write_bytes(png_header_only(side, side))
        start = time.perf_counter()
        with pytest.raises(ValueError, match="64 megapixels"):
            read_grey(tmp_path / "x.png")
        assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "extension, options",
    [
        ("png", {}),
        ("jpg", {}),
        ("jpg", {"progressive": True}),
        ("bmp", {}),
        ("tif", {}),
        ("tif", {"compression": "tiff_lzw"}),
    ],
)
def test_truncated_files_are_never_half_decoded(tmp_path, extension, options):
    whole = save(picture(), tmp_path / f"x.{extension}", **options).read_bytes()
    expected = read_grey(tmp_path / f"x.{extension}")
    refused = 0
    for share in np.linspace(0.02, 0.999, 40):
        (tmp_path / f"cut.{extension}").write_bytes(whole[: int(len(whole) * share)])
        try:
            # a cut behind the last pixel loses nothing
            assert (read_grey(tmp_path / f"cut.{extension}") == expected).all(), share
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused >= 30


def test_damaged_bytes_give_a_reason_or_pixels_and_never_another_error(tmp_path):
    rng = np.random.default_rng(0)
    for name, options in (("x.png", {}), ("x.tif", {"compression": "tiff_lzw"}), ("x.jpg", {}), ("x.bmp", {})):
        whole = bytearray(save(picture(), tmp_path / name, **options).read_bytes())
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(0, min(len(whole), 400), 6):
                damaged[place] = rng.integers(256)
            (tmp_path / name).write_bytes(damaged)
            try:
                assert read_grey(tmp_path / name).dtype == np.uint8
            except ValueError as error:
                assert str(error) and "\n" not in str(error)


def test_unreadable_file_is_a_reason(tmp_path, monkeypatch):
    path = save(picture(), tmp_path / "x.png")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")  # tests may run as root, whom no mode bits stop

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ValueError, match="Permission denied"):
        read_grey(path)


def test_every_bad_file_is_listed_with_its_reason_and_the_good_ones_survive(tmp_path):
    root = small_source(tmp_path / "source")
    png = (root / "a" / "0.png").read_bytes()
    bad = {
        "a/bomb.png": (png_header_only(20_000, 20_000), "megapixels"),
        "a/cut.png": (png[: len(png) // 2], "truncated"),
        "a/text.png": (b"not an image at all", "not an image"),
        "b/empty.jpg": (b"", "0 bytes"),
    }
    for path, (data, _) in bad.items():
        (root / path).write_bytes(data)
    save(np.zeros((1, 1), np.uint8), root / "a" / "dot.png")
    save(np.zeros((16, 400), np.uint8), root / "a" / "strip.png")
    (root / "b" / "folder.png").mkdir()  # a folder with the name of an image is no image
    (root / "b" / "gone.png").symlink_to(tmp_path / "nowhere")
    reasons = {path: words for path, (_, words) in bad.items()}
    reasons |= {"a/dot.png": "too small", "a/strip.png": "too narrow", "b/gone.png": "cannot be read"}
    dataset = prepare(root, tmp_path / "out", size=32, progress=False)
    assert len(dataset) == 12
    rejected = rejected_in(tmp_path / "out")
    assert rejected.keys() == reasons.keys()
    assert all(reasons[path] in reason and "\n" not in reason for path, reason in rejected.items())
    for record, image in zip(dataset.records, dataset.images, strict=True):
        assert image[:24, :32].std() > 10, record.path  # its own pixels, not a neighbour's hole


def test_a_bad_mask_or_target_rejects_its_image_by_name(tmp_path):
    root = tmp_path / "source"
    for number in range(4):
        save(picture(number), root / "images" / f"{number}.png")
        save(np.uint8(picture(number) > 128) * 255, root / "masks" / f"{number}.png")
    (root / "masks" / "1.png").write_bytes(b"nonsense")
    save(np.zeros((80, 60), np.uint8), root / "masks" / "2.png")  # lies across
    save(np.uint8(picture(3, 120, 160) > 128), root / "masks" / "3.png")  # twice as fine: fits
    dataset = prepare(root, tmp_path / "out", size=40, progress=False)
    assert dataset.ids == ["images/0", "images/3"]
    rejected = rejected_in(tmp_path / "out")
    assert "masks/1.png: not an image" in rejected["images/1.png"] and "shapes differ" in rejected["images/2.png"]


def test_all_rejected_is_an_error_with_the_first_reasons(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "x.png").write_bytes(b"text")
    with pytest.raises(ValueError, match="none of the 1 images.*x.png: not an image"):
        prepare(tmp_path / "source", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


# what is packed


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (200, 301), (16, 256), (64, 64), (17, 23)])
def test_longer_side_fills_the_frame_and_padding_is_zero(tmp_path, shape):
    save(np.full(shape, 200, np.uint8), tmp_path / "source" / "x.png")
    dataset = prepare(tmp_path / "source", tmp_path / "out", size=64, progress=False)
    top, left, height, width = dataset.valid[0].tolist()
    assert (top, left) == (0, 0) and max(height, width) == 64
    assert abs(height / width - shape[0] / shape[1]) < 0.5 / min(height, width) * max(1, shape[0] / shape[1])
    image = dataset.images[0]
    assert (image[:height, :width] == 200).all() and image.sum() == 200 * height * width
    assert (dataset.records[0].height, dataset.records[0].width) == shape


def test_an_image_of_the_right_size_is_not_touched(tmp_path):
    save(picture(0, 64, 48), tmp_path / "source" / "x.png")
    dataset = prepare(tmp_path / "source", tmp_path / "out", size=64, progress=False)
    assert (dataset.images[0, :, :48] == picture(0, 64, 48)).all()


def test_masks_are_joined_and_stay_over_their_lesions(tmp_path):
    root = tmp_path / "source"
    left, right = np.zeros((2, 60, 80), np.uint8)
    left[:30, :40] = right[30:, 40:] = 255
    save(picture(), root / "a" / "x.png")
    Image.fromarray(left).convert("1").save(root / "a" / "x_mask.png")
    Image.fromarray(right).convert("RGB").save(root / "a" / "x_mask_1.png")
    save(picture(1), root / "a" / "y.png")
    dataset = prepare(root, tmp_path / "out", size=40, progress=False)
    expected = np.zeros((40, 40), np.uint8)
    expected[:15, :20] = expected[15:30, 20:] = 1
    assert (dataset.masks[0] == expected).all()
    assert dataset.masks[1].max() == 0 and dataset.records[1].mask == ""
    assert dataset.targets is None and dataset.description["masks"] == 1


def mask_file(path, values, mode="L", **options):
    image = Image.fromarray(np.array(values, np.uint8).repeat(20)[:, None].repeat(20, 1))
    if mode == "P":
        image = image.copy()
        image.putpalette(options.pop("palette"))
    image.convert(mode).save(path, **options)
    return path


def test_masks_keep_classes_and_threshold_grey(tmp_path):
    def values(path):
        return read_mask(path)[10::20, 0].tolist()

    assert values(mask_file(tmp_path / "x.png", [0, 1, 2])) == [0, 1, 2]
    assert values(mask_file(tmp_path / "x.png", [0, 128])) == [0, 1]
    with pytest.raises(ValueError, match="do not survive JPEG"):
        read_mask(mask_file(tmp_path / "x.jpg", [0, 3, 2], quality=100))
    colours = [0, 0, 0, 128, 0, 0, 0, 128, 0]
    assert values(mask_file(tmp_path / "x.png", [0, 1, 2], "P", palette=colours)) == [0, 1, 2]
    inverted = [255, 255, 255, 0, 0, 0]
    assert values(mask_file(tmp_path / "x.png", [0, 1], "P", palette=inverted)) == [1, 0]
    Image.new("RGB", (20, 20), (255, 0, 0)).save(tmp_path / "red.png")
    assert read_mask(tmp_path / "red.png").min() == 1  # luminance 76 would be lost at a threshold of 127


def test_soft_edges_of_a_mask_are_cut_at_the_middle(tmp_path):
    disc = np.hypot(*np.mgrid[-40:40, -40:40]) < 25
    for name, factor in (("a.png", 4), ("a.jpg", 1)):
        soft = Image.fromarray(np.uint8(disc) * 255).resize((80 * factor, 80 * factor), Image.Resampling.BILINEAR)
        soft.save(tmp_path / name)
        assert abs(read_mask(tmp_path / name).sum() / factor**2 - disc.sum()) < 30


@pytest.mark.parametrize(
    "levels, classes",
    [
        ([0, 127, 255], [0, 1, 2]),
        ([0, 100], [0, 1]),
        ([0, 255, 180], [0, 2, 1]),
        ([(0, 0, 0), (255, 0, 0), (0, 255, 0)], [0, 2, 1]),
    ],
)
@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_classes_written_as_greys_or_colours_are_classes_or_an_error_and_never_merged(tmp_path, levels, classes, name):
    rows = np.array(levels, np.uint8).repeat(20, 0)
    Image.fromarray(np.repeat(rows[:, None], 20, 1)).save(tmp_path / name)
    if name == "x.jpg" and isinstance(levels[0], int):  # an edge between 0 and 255 would pass for the class 127
        with pytest.raises(ValueError, match="write class numbers"):
            read_mask(tmp_path / name)
    else:
        assert read_mask(tmp_path / name)[10::20, 10].tolist() == classes


def test_targets_are_packed_beside_their_images(tmp_path):
    root = tmp_path / "source"
    for number in range(3):
        save(picture(number), root / "low_quality" / f"{number}.png")
        save(255 - picture(number), root / "high_quality" / f"{number}.png")
    dataset = prepare(root, tmp_path / "out", size=80, progress=False)
    assert (dataset.targets[:, :60] == 255 - np.array(dataset.images[:, :60])).all() and dataset.masks is None


def test_two_files_of_one_name_are_two_images(tmp_path):
    save(picture(0), tmp_path / "source" / "x.png")
    save(picture(1), tmp_path / "source" / "x.bmp")
    dataset = prepare(tmp_path / "source", tmp_path / "out", size=80, progress=False)
    assert len(set(dataset.ids)) == 2 and (dataset.images[0] != dataset.images[1]).any()


def test_duplicates_share_a_group_and_a_split(tmp_path):
    root = small_source(tmp_path / "source", 20)
    for number in range(0, 20, 2):
        image = Image.open(root / "a" / f"{number}.png")
        image.resize((57, 43)).save(root / "b" / f"copy{number}.jpg", quality=70)
    dataset = prepare(root, tmp_path / "out", size=64, splits=(0.4, 0.3, 0.3), progress=False)
    place = {name: index for index, name in enumerate(dataset.ids)}
    for number in range(0, 20, 2):
        one, two = place[f"a/{number}"], place[f"b/copy{number}"]
        assert dataset.groups[one] == dataset.groups[two] and dataset.splits[one] == dataset.splits[two]
    assert len(set(dataset.groups.tolist())) == 20 and set(dataset.splits.tolist()) == {"train", "val", "test"}


def manifest_source(root, rows, header="path,group,split"):
    for number in range(len(rows)):
        save(picture(number), root / f"{number}.png")
    (root / "manifest.csv").write_text(header + "\n" + "".join(f"{n}.png,{row}\n" for n, row in enumerate(rows)))
    return root


def test_groups_and_splits_of_the_source_are_kept_and_completed(tmp_path):
    rows = ["p,train", "p,", "q,test", "q,exclude", ",val", "r,"]
    dataset = prepare(manifest_source(tmp_path / "s", rows), tmp_path / "out", size=32, progress=False)
    assert dataset.splits.tolist()[:5] == ["train", "train", "test", "exclude", "val"]
    assert dataset.groups.tolist() == ["p", "p", "q", "q", "4", "r"]
    assert dataset.splits[5] in ("train", "val", "test")


def test_a_group_in_two_splits_is_an_error_that_names_it(tmp_path):
    root = manifest_source(tmp_path / "s", ["p,train", "q,val", "p,test"])
    with pytest.raises(ValueError, match="'p' lies in the splits test and train"):
        prepare(root, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_duplicates_divided_by_the_sources_own_splits_are_reported(tmp_path):
    root = manifest_source(tmp_path / "s", ["train", "val", "test"], "path,split")
    save(picture(0), root / "2.png")
    dataset = prepare(root, tmp_path / "out", size=32, progress=False)
    assert dataset.description["groups_in_two_splits"] == [dataset.groups[0]] and dataset.groups[0] == dataset.groups[2]


def test_patients_that_share_a_picture_are_one_group_and_said(tmp_path):
    root = manifest_source(tmp_path / "s", [f"p{k // 2}," for k in range(20)])
    save(picture(0), root / "19.png")  # of p0 and of p9
    dataset = prepare(root, tmp_path / "out", size=32, progress=False)
    assert dataset.groups[19] == dataset.groups[18] == "p0" and len(set(dataset.groups)) == 9
    assert len(set(dataset.splits[[0, 1, 18, 19]])) == 1
    assert "1 groups are joined to another" in dataset.description["warnings"][0]
    assert "0.png and 19.png, now p0" in dataset.description["warnings"][0]


def test_a_picture_of_two_patients_in_two_splits_is_warned_of_and_one_of_many_patients_joins_none(tmp_path):
    rows = [f"p{k // 2},{('train', 'train', 'val', 'test')[k // 2 % 4]}" for k in range(20)]
    root = manifest_source(tmp_path / "s", rows)
    save(picture(0), root / "7.png")  # of p0 in train and of p3 in test
    dataset = prepare(root, tmp_path / "out", size=32, progress=False)
    assert len(set(dataset.groups)) == 10
    assert "0.png (train) and 7.png (test): the test is not independent" in dataset.description["warnings"][0]
    root = manifest_source(tmp_path / "t", [f"p{k // 2}," for k in range(20)])
    for k in range(0, 20, 2):
        save(picture(0), root / f"{k}.png")
    dataset = prepare(root, tmp_path / "many", size=32, progress=False)
    assert len(set(dataset.groups)) == 10 and "0.png is in 10 groups" in dataset.description["warnings"][0]


def test_a_folder_is_not_packed_anew_because_a_file_came_that_is_none_of_its_images(tmp_path):
    root = manifest_source(tmp_path / "s", ["p,train", "q,val", "r,test"])
    first = open_or_prepare(root, tmp_path / "cache", 32).folder
    (root / "notes.md").write_text("x")
    os.utime(root, (1, 1))
    assert open_or_prepare(root, tmp_path / "cache", 32).folder == first
    with pytest.raises(ValueError, match="lists 3 images, fewer than batch_size 100: lower batch_size or add data"):
        open_or_prepare(root, tmp_path / "other", 32, fewest=100)
    assert not (tmp_path / "other").exists()


def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path):
    root = small_source(tmp_path / "source", 40)
    (root / "a" / "bad.png").write_bytes(b"text")
    folders = [prepare(root, tmp_path / str(k), size=48, workers=k, progress=False).folder for k in (1, 2, 5)]
    assert contents(folders[0]) == contents(folders[1]) == contents(folders[2])


# interruption


PREPARE_SLOWLY = """
import sys, time
from vfm4us.data import prepare as preparing
plain = preparing._prepare_one
def slow(*arguments):
    time.sleep(0.02)
    return plain(*arguments)
preparing._prepare_one, preparing.SAVE_EVERY = slow, 0.05
preparing.prepare(sys.argv[1], sys.argv[2], size=48, workers=2, progress=False)
"""


def test_killed_at_any_moment_and_continued_gives_the_same_bytes(tmp_path):
    root = small_source(tmp_path / "source", 60)
    (root / "a" / "00bad.png").write_bytes(b"text")
    whole = prepare(root, tmp_path / "whole", size=48, progress=False)
    journal = tmp_path / "out.partial" / "journal.jsonl"
    counts = [0]
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", PREPARE_SLOWLY, str(root), str(tmp_path / "out")],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        deadline = time.monotonic() + 30
        while not journal.exists() or journal.read_bytes().count(b"\n") < counts[-1] + 8:
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        counts.append(journal.read_bytes().count(b"\n"))
        assert not (tmp_path / "out").exists()
        with pytest.raises(FileNotFoundError, match="not finished"):
            PreparedDataset(tmp_path / "out")
    assert 8 <= counts[1] < counts[2] < 61  # the second run went on where the first had been
    with open(journal, "ab") as file:
        file.write(b'{"record": {"id": "torn')  # a line cut off by the crash
    dataset = prepare(root, tmp_path / "out", size=48, progress=False)
    assert contents(dataset.folder) == contents(whole.folder)
    assert not (tmp_path / "out.partial").exists() and not (tmp_path / "out.lock").exists()


def test_what_a_kill_after_the_rename_leaves_is_removed_by_the_next_that_opens_it(tmp_path):
    root = small_source(tmp_path / "source")
    folder = open_or_prepare(root, tmp_path / "cache", 32).folder
    names = {p.name for p in folder.iterdir()}
    for name in ("plan.json", "journal.jsonl", "coding.json"):
        (folder / name).write_text("{}")
    folder.with_name(f"{folder.name}.lock").touch()
    folder.with_name(f"{folder.name}.replaced").mkdir()
    open_or_prepare(root, tmp_path / "cache", 32)
    assert {p.name for p in folder.iterdir()} == names and list(folder.parent.iterdir()) == [folder]
    folder.with_name(f"{folder.name}.replaced").mkdir()
    prepare(root, folder, size=32, progress=False)
    assert list(folder.parent.iterdir()) == [folder]


def test_continuing_does_not_decode_what_is_done(tmp_path, monkeypatch):
    root, plain, seen = small_source(tmp_path / "source"), preparing._prepare_one, []

    def stop_at_seven(*arguments):
        seen.append(arguments[1].path)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(preparing, "_prepare_one", stop_at_seven)
    monkeypatch.setattr(preparing, "SAVE_EVERY", 0)
    with pytest.raises(KeyboardInterrupt):
        prepare(root, tmp_path / "out", size=32, workers=1, progress=False)
    seen.clear()
    monkeypatch.setattr(preparing, "_prepare_one", lambda *a: seen.append(a[1].path) or plain(*a))
    dataset = prepare(root, tmp_path / "out", size=32, workers=1, progress=False)
    assert len(dataset) == 12 and len(seen) == 6


def test_a_changed_source_or_size_starts_afresh(tmp_path):
    root = small_source(tmp_path / "source")
    first = prepare(root, tmp_path / "out", size=32, progress=False)
    assert prepare(root, tmp_path / "out", size=32, progress=False).description == first.description
    save(picture(99), root / "a" / "0.png")
    assert (prepare(root, tmp_path / "out", size=80, progress=False).images[0, :60] == picture(99)).all()


def test_full_disk_is_a_clear_error_and_the_earlier_dataset_stays(tmp_path, monkeypatch):
    root = small_source(tmp_path / "source")
    before = contents(prepare(root, tmp_path / "out", size=32, progress=False).folder)
    plain = os.fsync

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(preparing.os, "fsync", full)
    with pytest.raises(OSError, match="disk is full.*goes on") as error:
        prepare(root, tmp_path / "out", size=48, progress=False)
    assert error.value.errno == errno.ENOSPC
    monkeypatch.setattr(preparing.os, "fsync", plain)
    assert contents(PreparedDataset(tmp_path / "out").folder) == before
    assert prepare(root, tmp_path / "out", size=48, progress=False).size == 48


def test_nothing_of_the_users_is_overwritten(tmp_path):
    root = small_source(tmp_path / "source")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="nothing is overwritten"):
        prepare(root, tmp_path / "notes", progress=False)
    with pytest.raises(ValueError, match="nothing is overwritten"):
        prepare(root, root, progress=False)


# opening


def test_opening_a_missing_or_damaged_folder_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare_data.py"):
        PreparedDataset(tmp_path / "nowhere")
    folder = prepare(small_source(tmp_path / "source"), tmp_path / "out", size=32, progress=False).folder
    with open(folder / "images.npy", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(ValueError, match="damaged"):
        PreparedDataset(folder)
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**description, "complete": False}))
    with pytest.raises(ValueError, match="not complete"):
        PreparedDataset(folder)


def test_indices_by_split_and_a_limit_that_spreads_over_groups(tmp_path):
    rows = [f"p{number // 5},train" for number in range(20)] + ["q,val", "x,exclude"]
    dataset = prepare(manifest_source(tmp_path / "s", rows), tmp_path / "out", size=32, progress=False)
    assert dataset.indices("train").tolist() == list(range(20)) and dataset.indices("val").tolist() == [20]
    assert dataset.indices().tolist() == list(range(21))  # all but the excluded one
    for seed in range(5):
        few = dataset.indices("train", limit=4, seed=seed)
        assert len({dataset.groups[i] for i in few}) == 4 and few.tolist() == sorted(few.tolist())
    assert dataset.indices("train", 9, 1).tolist() == dataset.indices("train", 9, 1).tolist()
    assert len({tuple(dataset.indices("train", 4, seed)) for seed in range(5)}) > 1
    assert len(dataset.indices("train", limit=99)) == 20
    assert dataset.indices("train").dtype == np.int64 and dataset.valid.dtype == np.int32
    with pytest.raises(ValueError, match="use train, val, test"):
        dataset.indices("trian")
    with pytest.raises(ValueError, match="read-only"):
        dataset.images[0, 0, 0] = 1


def test_open_or_prepare_opens_prepared_and_packs_plain_folders_once(tmp_path, monkeypatch):
    root = small_source(tmp_path / "scans")
    first = open_or_prepare(root, tmp_path / "cache", 32)
    assert first.folder.parent == tmp_path / "cache" and first.folder.name.startswith("scans-32-")
    monkeypatch.setattr(preparing, "_prepare_one", None)  # a second packing would fail
    assert open_or_prepare(root, tmp_path / "cache", 32).folder == first.folder
    assert open_or_prepare(first.folder, tmp_path / "cache", 64).size == 32  # prepared is prepared
    monkeypatch.undo()
    save(picture(50), root / "a" / "new.png")
    changed = open_or_prepare(root, tmp_path / "cache", 32)
    assert changed.folder != first.folder and len(changed) == 13


def test_two_processes_may_ask_at_once(tmp_path):
    root = small_source(tmp_path / "source", 40)
    command = [sys.executable, "-c", PREPARE_SLOWLY, str(root), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    children = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [child.wait(60) for child in children] == [0, 0]
    alone = prepare(root, tmp_path / "alone", size=48, progress=False)
    assert contents(tmp_path / "out") == contents(alone.folder)


def test_threads_of_one_process_may_ask_at_once(tmp_path):
    root, datasets = small_source(tmp_path / "source"), []
    threads = [
        threading.Thread(target=lambda: datasets.append(open_or_prepare(root, tmp_path / "c", 32))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(datasets) == 3 and len({dataset.folder for dataset in datasets}) == 1


# the script


def test_script_from_another_folder_packs_and_tells(tmp_path):
    small_source(tmp_path / "source")
    (tmp_path / "source" / "a" / "bad.png").write_bytes(b"text")
    (tmp_path / "source" / "b" / "12.png").write_bytes((tmp_path / "source" / "a" / "0.png").read_bytes())
    result = run("folder", "--root", "source", "--out", "data/mine", "--size", "32", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "13 images of 32 x 32" in result.stdout and "1 rejected" in result.stdout and "MB on disk" in result.stdout
    assert "12 groups (single images, and clusters of near-duplicates)" in result.stdout
    assert "different labels, e.g. a/0.png (a) and b/12.png (b); 1 such pictures" in result.stdout
    assert "1 test images: intervals over them are wide" in result.stdout
    assert len(PreparedDataset(tmp_path / "data" / "mine")) == 13
    leaks = run("leakage", "--pool", "data/mine", "--protected", "data/mine", "--csv", "leaks.csv", cwd=tmp_path)
    assert leaks.returncode == 0 and "0 identical, 0 near" in leaks.stdout and (tmp_path / "leaks.csv").is_file()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--root", "sorce"], "did you mean source"),
        (["--root", "source", "--splits", "0.8,0.3,0.1"], "summing to 1"),
        (["--root", "source", "--splits", "most"], "three shares"),
        (["--root", "source", "--size", "3"], "size=3"),
        (["--root", "source", "--workers", "0"], "workers=0"),
    ],
)
def test_script_errors_are_one_line_and_exit_code_2(tmp_path, arguments, words):
    small_source(tmp_path / "source", 2)
    result = run("folder", *arguments, "--out", "out", cwd=tmp_path)
    assert result.returncode == 2 and not (tmp_path / "out").exists()
    assert result.stderr.startswith("error: ") and words in result.stderr and result.stderr.count("\n") == 1


def test_script_interrupted_by_ctrl_c_says_how_to_go_on(tmp_path):
    small_source(tmp_path / "source", 60)
    patch = (  # a job started in the background inherits an ignored SIGINT: the terminal's default is set first
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import runpy, sys, time\nfrom vfm4us.data import prepare as preparing\n"
        + PREPARE_SLOWLY.split("\n", 3)[3].rsplit("\n", 2)[0]
    )
    patch += "\nsys.argv = ['prepare_data.py', 'folder', '--root', 'source', '--out', 'out', '--size', '48']\n"
    patch += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", patch], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    journal, deadline = tmp_path / "out.partial" / "journal.jsonl", time.monotonic() + 30
    while not journal.exists() or not journal.read_bytes():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=30)
    assert child.returncode == 130 and "same command continues" in told and "Traceback" not in told


@pytest.mark.skipif(not (REAL / "liver" / "manifest.csv").is_file(), reason=f"the real liver set is not in {REAL}")
def test_real_set_with_class_masks_is_packed_whole(tmp_path):
    dataset = prepare(REAL / "liver", tmp_path / "liver", size=64, progress=False)
    assert len(dataset) == 735 and rejected_in(dataset.folder) == {}
    assert np.unique(dataset.masks).tolist() == [0, 1, 2]
    assert dataset.description["labels"] == {"benign": 200, "malignant": 435, "normal": 100}
    for record, rectangle in zip(dataset.records, dataset.valid.tolist(), strict=True):
        assert rectangle == [0, 0, *packed_size(record.height, record.width, 64)]


def test_no_val_is_taken_from_the_train_of_a_table_that_leaves_an_image_to_its_group(tmp_path):
    root = tmp_path / "s"
    root.mkdir()
    rows = ["path,group,split"]
    for i in range(20):
        Image.fromarray(speckle(i)).save(root / f"{i}.png")
        rows.append(f"{i}.png,g{max(i, 1)},{'test' if i > 15 else 'train' if i else ''}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    dataset = prepare(root, tmp_path / "out", size=64, progress=False)
    assert sorted(set(dataset.splits.tolist())) == ["test", "train"] and dataset.records[0].split == "train"


def test_images_that_move_to_another_split_as_the_source_grows_are_warned_of_and_the_old_manifest_keeps_them(
    tmp_path,
):
    root = tmp_path / "set"
    plain(*(f"{c}/{c}{k}.png" for c in "ab" for k in range(15)))(root)
    first = open_or_prepare(root, tmp_path / "cache", 32)
    assert not any("another split" in words for words in first.description["warnings"])
    plain(*(f"{c}/{c}{k}.png" for c in "ab" for k in range(15, 22)), first=300)(root)
    second = open_or_prepare(root, tmp_path / "cache", 32)
    before = dict(zip(first.ids, first.splits.tolist(), strict=True))

    def moved(dataset):
        return sum(before.get(i, split) != split for i, split in zip(dataset.ids, dataset.splits.tolist(), strict=True))

    [warning] = [words for words in second.description["warnings"] if "another split" in words]
    assert moved(second) and f"{moved(second)} of its 30 images are in another split now" in warning
    shutil.copy(first.folder / "manifest.csv", root / "splits.csv")  # as the warning says
    third = open_or_prepare(root, tmp_path / "cache", 32)
    assert len(third) == 44 and moved(third) == 0 and set(third.splits) == {"train", "val", "test"}


def test_another_source_does_not_replace_a_prepared_dataset_and_a_moved_one_is_the_same(tmp_path):
    plain("a/1.png", "b/2.png")(tmp_path / "one")
    plain("a/3.png", "b/4.png")(tmp_path / "two")
    prepare(tmp_path / "one", tmp_path / "out", size=32, progress=False)
    with pytest.raises(ValueError, match=r"out holds images of .*one, and not of .*two: choose another folder"):
        prepare(tmp_path / "two", tmp_path / "out", size=32, progress=False)
    (tmp_path / "one").rename(tmp_path / "three")
    assert len(prepare(tmp_path / "three", tmp_path / "out", size=48, progress=False)) == 2
    plain("a/5.png")(tmp_path / "three")  # the same source, changed: packed anew
    assert len(prepare(tmp_path / "three", tmp_path / "out", size=48, progress=False)) == 3


def test_one_file_under_two_labels_and_archives_beside_are_warned_of(tmp_path):
    plain("set/a/1.png", "set/a/2.png", "set/b/3.png")(tmp_path)
    shutil.copy(tmp_path / "set/a/1.png", tmp_path / "set/b/4.png")
    for name in ("more.zip", "~$t.xlsx", "t.xls"):
        (tmp_path / "set" / name).write_bytes(b"PK")
    warnings = " ".join(prepare(tmp_path / "set", tmp_path / "out", size=32, progress=False).description["warnings"])
    assert "1 images stand under two labels, e.g. a/1.png (a) and b/4.png (b)" in warnings
    assert "1 archives beside the images are not unpacked, e.g. more.zip" in warnings
    assert "1 spreadsheets are not used, e.g. t.xls" in warnings
