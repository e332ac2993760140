"""What the values of masks mean is decided over a set, once; a file that does not fit is an error with its name."""

import json
from pathlib import Path

import numpy as np
import pytest
from making_trees import disc, speckle
from PIL import Image, ImageFilter

from vfm4us.data.decode import read_record
from vfm4us.data.masks import MaskCoding, mask_coding, read_masks, shrunk
from vfm4us.data.prepare import prepare
from vfm4us.data.reading import reading_of
from vfm4us.data.sources import find_source, understand

TWO = disc(x=18).astype(np.uint8) + 2 * disc(x=48).astype(np.uint8)
ONE = disc().astype(np.uint8)


def masked(root: Path, masks: list, ending: str = "png", folder: str = "masks", **options) -> Path:
    """images/i.png and masks/i.ENDING with these arrays or PIL images."""
    for i, mask in enumerate(masks):
        for part in ("images", folder):
            (root / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(speckle(i)).save(root / "images" / f"{i}.png")
        path = root / folder / f"{i}.{ending}"
        if ending == "npy":
            np.save(path, mask)
        else:
            (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(path, **options)
    return root


def read(root: Path, reading=None) -> tuple[MaskCoding, list[np.ndarray]]:
    understood = understand(root, reading)
    coding = mask_coding(root, understood.records, reading_of(root, reading), understood.fill_outlines)
    return coding, [read_masks(root, r, read_record(root, r), 64, coding) for r in understood.records if r.mask]


def ring(values) -> np.ndarray:
    return np.asarray(Image.fromarray((values > 0).astype(np.uint8) * 255).filter(ImageFilter.FIND_EDGES))


def soft(values) -> np.ndarray:
    blurred = Image.fromarray((values > 0).astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(1.5))
    return (np.asarray(blurred) / 255).astype(np.float32)


def coloured(values, *colours) -> np.ndarray:
    return np.array([(0, 0, 0), *colours], np.uint8)[values]


def with_strip(values, value) -> np.ndarray:
    values = values.copy()
    values[-6:] = value
    return values


RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.mark.parametrize("ending", ["png", "npy"])
@pytest.mark.parametrize(
    "masks, expected",
    [
        ([TWO, TWO], [TWO, TWO]),
        ([with_strip(TWO, 255), TWO], [with_strip(TWO, 255), TWO]),
        ([with_strip(ONE, 255), ONE], [with_strip(ONE, 255), ONE]),
        ([TWO * 20, TWO * 20], [TWO, TWO]),
        ([TWO * 85, TWO * 85], [TWO, TWO]),
        ([ONE * 128, ONE * 255], [ONE, ONE * 2]),
        ([ONE, ONE * 255], [ONE, ONE]),
        ([ONE.astype(np.uint16) * 65535, ONE.astype(np.uint16)], [ONE, ONE]),
        ([ONE * 0, ONE * 255], [ONE * 0, ONE]),
        ([ONE * 3, ONE * 5], [ONE * 3, ONE * 5]),
    ],
)
def test_values_mean_the_same_in_every_file_of_a_set(tmp_path, masks, expected, ending):
    _, values = read(masked(tmp_path, masks, ending))
    for colours, wanted in zip(values, expected, strict=True):
        np.testing.assert_array_equal(colours, wanted)


def test_one_colour_per_class_over_the_set_whichever_way_it_is_stored(tmp_path):
    masks = [coloured(ONE, RED), coloured(ONE, GREEN)]
    for name, ending, stored in (
        ("rgb", "png", masks),
        ("rgba", "png", [Image.fromarray(m).convert("RGBA") for m in masks]),
        ("palette", "png", [Image.fromarray(m).quantize(2) for m in masks]),  # black is index 1 here
        ("jpeg", "jpg", masks),
    ):
        coding, values = read(masked(tmp_path / name, stored, ending))
        assert coding.kind == "values" and len(coding.values) == 2, name
        assert [int(m.max()) for m in values] == [2, 1], name
        assert all(np.mean((m > 0) == (ONE > 0)) > 0.98 for m in values), name


def test_one_colour_in_palettes_whose_black_is_not_index_0_is_the_class_and_not_its_surroundings(tmp_path):
    masks = [Image.fromarray(coloured(ONE, RED)).quantize(2)] * 2
    assert masks[0].getpixel((0, 0)) == 1  # black
    for mask in read(masked(tmp_path, masks))[1]:
        np.testing.assert_array_equal(mask, ONE)


def test_a_file_by_itself_is_read_as_its_set_says_wherever_it_is_read(tmp_path):
    root = masked(tmp_path / "set", [coloured(ONE, RED), coloured(ONE, GREEN), coloured(ONE, RED)])
    first = find_source(root)[0]
    assert read_masks(root, first, read_record(root, first), 64).max() == 2  # alone, red would be class 1
    dataset = prepare(root, tmp_path / "out", size=64, progress=False)
    assert dataset.mask_classes == {"1": "0/255/0", "2": "255/0/0"} and sorted(dataset.masks.max((1, 2))) == [1, 2, 2]
    record = dataset.records[0]
    assert read_masks(root, record, read_record(root, record), 64).max() == 2


def test_ignored_pixels_stay_255_in_packed_masks_and_are_declared(tmp_path):
    root = masked(tmp_path / "set", [with_strip(TWO, 255)] * 3)
    dataset = prepare(root, tmp_path / "out", size=64, progress=False)
    assert dataset.ignore == 255 and (dataset.masks == 255).any() and set(np.unique(dataset.masks)) == {0, 1, 2, 255}
    assert json.loads((dataset.folder / "dataset.json").read_text())["ignore"] == 255
    root = masked(tmp_path / "seven", [with_strip(TWO, 7)] * 3)
    dataset = prepare(root, tmp_path / "declared", size=64, progress=False, reading={"ignore": 7})
    assert set(np.unique(dataset.masks)) == {0, 1, 2, 255}
    assert prepare(root, tmp_path / "plain", size=64, progress=False).ignore is None


def test_probabilities_are_cut_at_the_threshold_all_or_one_among_others(tmp_path):
    for name, masks in (("all", [soft(ONE), soft(ONE)]), ("one", [soft(ONE), (ONE * 255).astype(np.uint8)])):
        coding, values = read(masked(tmp_path / name, masks, "tif"))
        assert sum("probabilities" in words for words in coding.said) == 1
        assert all(abs(int(m.sum()) - int(ONE.sum())) < 20 and m.max() == 1 for m in values)
    smaller = read(tmp_path / "all", {"threshold": 0.9})[1]
    assert smaller[0].sum() < values[0].sum()


def test_outlines_are_filled_where_names_say_so_and_asked_for_elsewhere(tmp_path):
    _, values = read(masked(tmp_path / "a", [ring(ONE)] * 2, folder="annotations"))
    assert all(0.8 < m.sum() / ONE.sum() < 1.4 for m in values)
    root = masked(tmp_path / "b", [ring(ONE)] * 2)
    with pytest.raises(ValueError, match="reading.outlines=fill"):
        read(root)
    assert read(root, {"outlines": "keep"})[1][0].sum() < 0.5 * ONE.sum() < read(root, {"outlines": "fill"})[1][0].sum()


def test_a_mask_in_the_transparency_alone(tmp_path):
    layers = np.zeros((*ONE.shape, 4), np.uint8)
    layers[..., 3] = ONE * 255
    np.testing.assert_array_equal(read(masked(tmp_path, [layers, layers]))[1][0], ONE)


@pytest.mark.parametrize(
    "mask",
    [TWO * 85, np.where(TWO == 1, 2, TWO * 20).astype(np.uint8), coloured(TWO, RED, (0, 0, 90))],
    ids=["greys", "dark", "colours"],
)
def test_binary_values_take_every_value_above_0(tmp_path, mask):
    _, values = read(masked(tmp_path, [mask, mask]), {"values": "binary"})
    np.testing.assert_array_equal(values[0], TWO > 0)


@pytest.mark.parametrize(
    "mask, expected",
    [
        (255 - ONE * 255, ONE),
        (np.choose(TWO, [255, 0, 1]).astype(np.uint8), TWO),
        (np.array([(255, 255, 255), RED], np.uint8)[ONE], ONE),
    ],
    ids=["black", "numbers", "red"],
)
def test_masks_on_white_are_read_where_white_is_said_to_be_the_background(tmp_path, mask, expected):
    _, values = read(masked(tmp_path, [mask, mask]), {"background": 255})
    np.testing.assert_array_equal(values[0], expected)


@pytest.mark.parametrize(
    "masks, ending, words",
    [
        (
            [with_strip(TWO, 255), TWO * 85],
            "npy",
            "0.npy holds the values .*1.npy.*class numbers in one, greys in the other",
        ),
        ([ONE, TWO, ONE * 255], "png", "0.png|1.png.*holds class numbers.*2.png holds 255"),
        ([255 - ONE * 255] * 3, "png", "four corners.*reading.background=255"),
        ([ONE] * 3, "jpg", "0.jpg is a JPEG whose largest value is 1"),
        ([speckle(7), speckle(8)], "tif", "masks/ pairs with images and is named like masks"),
    ],
)
def test_what_can_be_read_in_two_ways_is_an_error_with_the_file(tmp_path, masks, ending, words):
    with pytest.raises(ValueError, match=words):
        read(masked(tmp_path, masks, ending))


@pytest.mark.parametrize(
    "values, words",
    [
        (np.where(ONE, np.nan, 0.0).astype(np.float32), "not finite"),
        (-ONE.astype(np.float32), "from -1 to 0"),
        (ONE * np.float32(1.5), "fractions from 0 to 1.5"),
        (ONE.astype(np.int64) * 70_000, "from 0 to 70000"),
    ],
)
def test_a_mask_of_nonsense_is_refused_with_its_name_and_the_others_are_packed(tmp_path, values, words):
    root = masked(tmp_path / "set", [ONE, ONE, values], "npy")
    dataset = prepare(root, tmp_path / "out", size=64, progress=False)
    told = (dataset.folder / "rejected.csv").read_text()
    assert len(dataset) == 2 and "masks/2.npy" in told and words in told


def test_a_value_that_only_lies_on_edges_is_an_edge_and_a_thin_class_is_a_class(tmp_path):
    edges = (ONE * 255).astype(np.uint8)
    edges[ring(ONE) > 0] = 128  # one pixel wide, all around
    coding, _ = read(masked(tmp_path / "edges", [edges] * 2))
    assert coding.kind == "binary" and "edges" in coding.said[0]
    wall = np.zeros_like(ONE)
    wall[:, 30] = 1
    wall[:, 50:56] = 2
    _, values = read(masked(tmp_path / "wall", [wall] * 2))
    np.testing.assert_array_equal(values[0], wall)


def test_thin_and_tiny_classes_survive_a_smaller_size():
    large = np.zeros((400, 400), np.uint8)
    large[:, 201] = 1  # one pixel of 400, sampled at every eighth
    large[100:103, 100:103] = 2
    large[200:300, 300:380] = 3
    small = shrunk(large, 50, 50)
    assert (small == 1).any(axis=1).all() and (small == 2).any() and abs((small == 3).sum() - 100 * 80 / 64) < 30
    assert shrunk(large, 400, 400) is large


def test_a_set_without_any_background_asks_for_it_and_a_rim_that_is_ignored_is_no_outline(tmp_path):
    for name, masks in (("full", [np.full_like(ONE, 255)] * 2), ("from 1", [ONE + 1] * 2)):
        with pytest.raises(ValueError, match="no mask holds 0, the background.*reading.background=0"):
            read(masked(tmp_path / name, masks))
    _, (mask, _) = read(tmp_path / "from 1", {"background": "1"})
    assert (mask > 0).sum() == ONE.sum()
    _, (mask, _) = read(tmp_path / "full", {"background": "0"})
    assert mask.all()
    rim = np.where(disc(radius=12) & ~disc(), 255, ONE).astype(np.uint8)
    coding, (mask, _) = read(masked(tmp_path / "rim", [rim] * 2))
    assert coding.ignore == 255 and sorted(np.unique(mask)) == [0, 1, 255]


def test_further_pages_of_a_mask_are_not_lost(tmp_path):
    pages = {"save_all": True, "append_images": [Image.fromarray(255 * ONE[::-1].copy())]}
    root = masked(tmp_path / "s", [255 * ONE] * 2, "tif", **pages)
    with pytest.raises(ValueError, match="has 2 pages, its image one: write one mask per image"):
        read(root)


@pytest.mark.parametrize("orientation", [3, 6])
def test_masks_of_turned_images(tmp_path, orientation):
    for i in range(2):
        exif = Image.Exif()
        exif[274] = orientation
        for part in ("images", "masks"):
            (tmp_path / part).mkdir(exist_ok=True)
        picture = speckle(i)
        picture[:20, :20] = 5
        Image.fromarray(picture).save(tmp_path / "images" / f"{i}.jpg", quality=95, exif=exif)
        corner = np.zeros_like(ONE)
        corner[:20, :20] = 255
        Image.fromarray(corner).save(tmp_path / "masks" / f"{i}.png")
    if orientation == 3:  # nothing tells
        with pytest.raises(ValueError, match="orientation=raw or reading.orientation=upright"):
            read(tmp_path)
    for reading, on_dark in (
        (({"orientation": "raw"}, True), (None, True))
        if orientation == 6
        else (
            ({"orientation": "raw"}, True),
            ({"orientation": "upright"}, False),
        )
    ):
        _, values = read(tmp_path, reading)
        grey = read_record(tmp_path, find_source(tmp_path)[0])
        assert (grey[values[0] > 0].mean() < 20) == on_dark
