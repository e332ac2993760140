"""Masks of another set are read by the coding a model was trained with, or refused with both codings."""

import json

import numpy as np
import pytest
from making_trees import disc, image, save

from vfm4us.data.codings import coding_as_trained, read_as_trained
from vfm4us.data.masks import MaskCoding, mask_coding, read_masks
from vfm4us.data.reading import Reading
from vfm4us.data.sources import find_source, understand

PLACES = ((14, 16), (30, 48), (34, 14))
TRAINED = {
    "greys": (85, 170, 255),
    "numbers": (1, 2, 3),
    "large": (20, 40),
    "colours": ((0, 200, 0), (200, 0, 0)),
    "binary": (255,),
}


def mask_of(path, values):
    """A disc of each value that is not None, each at a place of its own."""
    colours = any(isinstance(value, tuple) for value in values)
    pixels = np.zeros((48, 64, 3) if colours else (48, 64), np.uint8)
    for value, (y, x) in zip(values, PLACES, strict=False):
        if value is not None:
            pixels[disc(y, x, 7)] = value
    save(pixels, path)


def folder_of(root, *files):
    for number, values in enumerate(files):
        image(root / "images" / f"{number}.png", number)
        mask_of(root / "masks" / f"{number}.png", values)
    return root


def trained_with(root, kind, ignore=None):
    values = TRAINED[kind]
    files = [values, values[:1], values[-1:], values] if ignore is None else [(*values[:2], ignore), values[:1], values]
    return mask_coding(folder_of(root, *files), find_source(root))


def classes_in(root, trained, count, **keys):
    records = find_source(root)
    reading = Reading(**keys)
    coding = coding_as_trained(root, records, trained, [f"class {k + 1}" for k in range(count)], reading=reading)
    blank = np.zeros((48, 64), np.uint8)
    return [sorted(set(np.unique(read_masks(root, r, blank, 64, coding)).tolist()) - {0}) for r in records]


@pytest.mark.parametrize(
    ("kind", "files", "expected"),
    [
        ("greys", [(170,), (85, 170)], [[2], [1, 2]]),
        ("greys", [(170,)], [[2]]),  # by itself it would be one class
        ("greys", [(85,), (255,)], [[1], [3]]),
        ("numbers", [(2,), (2, 3)], [[2], [2, 3]]),
        ("numbers", [(1, 2, 255)], [[1, 2, 255]]),  # ignored, though no training mask held it
        ("large", [(40,), (40,)], [[2], [2]]),
        ("colours", [((200, 0, 0),), ((200, 0, 0),)], [[2], [2]]),
        ("binary", [(1,), (1,)], [[1], [1]]),
    ],
)
def test_a_class_keeps_its_number(tmp_path, kind, files, expected):
    trained = trained_with(tmp_path / "a", kind)
    assert classes_in(folder_of(tmp_path / "b", *files), trained, len(TRAINED[kind])) == expected


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        (
            "greys",
            [(1, 2, 3), (1,)],
            r"holds 1, to which the model gives no class.*85 is class 1.*read by themselves they are class numbers",
        ),
        ("greys", [(128,), (128,)], "holds 128, to which the model gives no class"),
        ("greys", [(255,), (255,)], "hold 255 and the background alone.*that is class 3.*reading.values=classes"),
        ("numbers", [(255,), (255,)], "holds 255, to which the model gives no class"),
        ("numbers", [(1, 2, 4)], "holds 4, to which the model gives no class"),
        ("large", [(20, 40, 60)], "holds 60, to which the model gives no class"),
        ("colours", [((0, 0, 200),), ((200, 0, 0),)], "holds 0/0/200, to which the model gives no class"),
        ("colours", [(255,), (255,)], "holds 255, to which the model gives no class"),
        ("binary", [(1, 2), (1,)], "trained with masks of one class; these hold the values 1, 2"),
        ("binary", [(85, 170), (85,)], "trained with masks of one class; these hold the values 85, 170"),
    ],
)
def test_another_coding_is_an_error_with_both(tmp_path, kind, files, message):
    trained = trained_with(tmp_path / "a", kind)
    with pytest.raises(ValueError, match=message):
        classes_in(folder_of(tmp_path / "b", *files), trained, len(TRAINED[kind]))


def test_the_key_of_an_error_decides(tmp_path):
    trained = trained_with(tmp_path / "a", "greys")
    assert classes_in(folder_of(tmp_path / "b", (255,), (255,)), trained, 3, values="classes") == [[3], [3]]


def test_what_is_ignored_is_ignored_elsewhere_and_a_set_of_it_alone_is_an_error(tmp_path):
    trained = trained_with(tmp_path / "a", "numbers", ignore=255)
    assert trained.ignore == 255
    assert classes_in(folder_of(tmp_path / "b", (2, 255)), trained, 3) == [[2, 255]]
    with pytest.raises(ValueError, match="255 and the background alone.*that is what is ignored"):
        classes_in(folder_of(tmp_path / "c", (255,)), trained, 3)
    one = mask_coding(folder_of(tmp_path / "d", (1, 255), (1,)), find_source(tmp_path / "d"))
    assert classes_in(folder_of(tmp_path / "e", (1, 255), (255,)), one, 1) == [[1, 255], [255]]
    with pytest.raises(
        ValueError, match="which the model was trained to ignore.*say reading.ignore=255 or reading.ignore=none"
    ):
        classes_in(folder_of(tmp_path / "f", (255,)), one, 1)


def test_masks_the_other_way_round_and_soft_ones_are_those_of_the_model(tmp_path):
    inverted = MaskCoding(background=255)
    for name, light in (("b", True), ("c", False)):
        image(tmp_path / name / "images" / "0.png", 0)
        save((255 * (disc() ^ light)).astype(np.uint8), tmp_path / name / "masks" / "0.png")
        records = find_source(tmp_path / name)
        coding = coding_as_trained(tmp_path / name, records, inverted, ["foreground"])
        assert read_masks(tmp_path / name, records[0], np.zeros((48, 64), np.uint8), 64, coding).sum() == disc().sum()
    np.save(tmp_path / "b" / "masks" / "0.npy", (0.4 * disc()).astype(np.float32))
    (tmp_path / "b" / "masks" / "0.png").unlink()
    records = find_source(tmp_path / "b")
    for threshold, pixels in ((0.3, disc().sum()), (0.5, 0)):
        coding = coding_as_trained(tmp_path / "b", records, MaskCoding(threshold=threshold), ["foreground"])
        assert read_masks(tmp_path / "b", records[0], np.zeros((48, 64), np.uint8), 64, coding).sum() == pixels
    with pytest.raises(ValueError, match="0.npy is a mask of one class, soft or compressed"):
        coding_as_trained(tmp_path / "b", records, trained_with(tmp_path / "a", "greys"), ["a", "b", "c"])


def coco(root, name, categories, boxes, folder="images"):
    """A COCO file: {identity: name}, and for each image (category, left)."""
    annotations = [
        {"id": k, "image_id": k, "category_id": c, "segmentation": [[x, 10, x + 12, 10, x + 12, 30, x, 30]]}
        for k, (c, x) in enumerate(boxes)
    ]
    content = {
        "images": [{"id": k, "file_name": f"{name}{k}.png", "height": 48, "width": 64} for k in range(len(boxes))],
        "annotations": annotations,
        "categories": [{"id": identity, "name": word} for identity, word in categories.items()],
    }
    for k in range(len(boxes)):
        image(root / folder / f"{name}{k}.png", k)
    (root / f"{name}.json").write_text(json.dumps(content))
    return root


def test_outlines_of_one_name_are_one_class_over_files_and_models(tmp_path):
    root = coco(tmp_path / "a", "train", {1: "cyst", 2: "nodule"}, [(1, 5), (2, 40)])
    coco(root, "test", {7: "nodule"}, [(7, 20)])  # this file alone would call its nodules class 1
    records = find_source(root)
    coding = mask_coding(root, records)
    blank = np.zeros((48, 64), np.uint8)
    values = {r.path: int(read_masks(root, r, blank, 64, coding).max()) for r in records}
    assert coding.names == ("cyst", "nodule")
    assert values == {"images/train0.png": 1, "images/train1.png": 2, "images/test0.png": 2}
    other = coco(tmp_path / "b", "x", {1: "Nodule", 2: "cyst"}, [(1, 5), (2, 40)])
    records = find_source(other)
    said = read_as_trained(records, coding, ["cyst", "nodule"])
    assert [int(read_masks(other, r, blank, 64).max()) for r in records] == [2, 1] and not said
    other = coco(tmp_path / "c", "x", {1: "nodule", 2: "vessel"}, [(1, 5), (2, 40)])
    with pytest.raises(
        ValueError, match="of the classes nodule, vessel; the model knows cyst, nodule: 'vessel' is none"
    ):
        read_as_trained(find_source(other), coding, ["cyst", "nodule"])


def test_a_file_of_outlines_without_names_beside_one_with_several_is_an_error(tmp_path):
    region = {"shape_attributes": {"name": "circle", "cx": 30, "cy": 24, "r": 8}, "region_attributes": {}}
    for name, words in (("a", ("benign", "malignant")), ("b", ("", ""))):
        entries = {}
        for k, word in enumerate(words):
            image(tmp_path / f"{name}{k}.png", k)
            chosen = {**region, "region_attributes": {"kind": word} if word else {}}
            entries[f"{name}{k}"] = {"filename": f"{name}{k}.png", "regions": [chosen]}
        (tmp_path / f"{name}.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match="a.json names the classes benign, malignant, and b.json names none"):
        mask_coding(tmp_path, understand(tmp_path).records)
    entries["b0"]["regions"] = [{**region, "region_attributes": {"kind": "malignant"}}]
    entries["b1"]["regions"] = []
    (tmp_path / "b.json").write_text(json.dumps(entries))  # one class alone still has its name
    records = understand(tmp_path).records
    coding = mask_coding(tmp_path, records)
    chosen = next(r for r in records if r.path == "b0.png")
    assert int(read_masks(tmp_path, chosen, np.zeros((48, 64), np.uint8), 64, coding).max()) == 2
