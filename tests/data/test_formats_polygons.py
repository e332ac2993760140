"""Outlines and run lengths become the masks that they were drawn as."""

import json

import numpy as np
import pytest
from PIL import Image

from vfm4us.data import polygons
from vfm4us.data.masks import read_masks
from vfm4us.data.prepare import prepare
from vfm4us.data.sources import list_source, understand

HEIGHT, WIDTH = 60, 80


def square(top=10, left=20, height=20, width=30):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def corners(top=10, left=20, height=20, width=30):
    """Of the pixels' outer edges."""
    return [left, top, left + width, top, left + width, top + height, left, top + height]


def runs(mask):
    """COCO's and Kaggle's order: column by column."""
    flat = np.concatenate([[0], mask.T.ravel() > 0, [0]]).astype(int)
    starts, ends = np.flatnonzero(np.diff(flat) == 1), np.flatnonzero(np.diff(flat) == -1)
    return np.stack([starts, ends - starts], axis=1)


def read(path, key, height=HEIGHT, width=WIDTH):
    return polygons.read_mask(path, key, height, width)


def coco(tmp_path, segmentation, categories=((7, "lesion"),), category=7):
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [{"id": 5, "image_id": 1, "category_id": category, "segmentation": segmentation}],
        "categories": [{"id": identity, "name": name} for identity, name in categories],
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))
    return path


def test_an_empty_file_of_yolo_is_an_image_without_a_finding(tmp_path):
    for k, text in enumerate(("", "0 0.1 0.1 0.5 0.1 0.5 0.6\n")):
        for part in ("images", "labels"):
            (tmp_path / part).mkdir(exist_ok=True)
        Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "images" / f"{k}.png")
        (tmp_path / "labels" / f"{k}.txt").write_text(text)
    records = understand(tmp_path).records
    sums = [int(read_masks(tmp_path, r, np.zeros((40, 60), np.uint8), 64).sum()) for r in records]
    assert sums[0] == 0 < sums[1]


def test_a_table_of_via_beside_images_is_read(tmp_path):
    shape = '"{""name"":""circle"",""cx"":30,""cy"":20,""r"":8}","{""k"":""x""}"'
    for k in range(2):
        Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / f"{k}.png")
    lines = ["filename,region_shape_attributes,region_attributes", *(f"{k}.png,{shape}" for k in range(2))]
    (tmp_path / "via.csv").write_text("\n".join(lines))
    understood = understand(tmp_path)
    assert understood.layout == "published dataset via" and [r.mask for r in understood.records] == [
        "via.csv::0.png",
        "via.csv::1.png",
    ]


def test_coco_polygons_and_run_lengths(tmp_path):
    path = coco(tmp_path, [corners()])
    assert (read(path, "a.png") == square()).all() and not read(path, "b.png").any()
    assert polygons.keys(path) == ["a.png", "b.png"] and polygons.class_names(path) == {1: "lesion"}
    pairs = runs(square())
    ends = pairs.sum(1)
    counts = np.stack([pairs[:, 0] - np.concatenate([[0], ends[:-1]]), pairs[:, 1]], axis=1).ravel().tolist()
    counts.append(HEIGHT * WIDTH - int(ends[-1]))
    path = coco(tmp_path, {"size": [HEIGHT, WIDTH], "counts": counts}, ((3, "a"), (9, "b")), 9)
    assert (read(path, "a.png") == 2 * square()).all()
    with pytest.raises(ValueError, match="run lengths are for 80 x 60 pixels, not 80 x 61"):
        read(path, "a.png", HEIGHT + 1)


def test_coco_compressed_run_lengths(tmp_path):
    """A 2 x 3 image whose compressed form is known: counts 1, 2, 3 are the characters 1, 2, 3; 40 is `X1`."""
    path = coco(tmp_path, {"size": [2, 3], "counts": "123"})
    assert read(path, "a.png", 2, 3).T.ravel().tolist() == [0, 1, 1, 0, 0, 0]
    assert polygons._uncompressed("X1") == [40] and polygons._uncompressed("5553") == [5, 5, 5, 8]


def test_boxes_are_no_masks(tmp_path):
    with pytest.raises(ValueError, match="is a box, no outline"):
        read(coco(tmp_path, []), "a.png")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(ValueError, match="line 1 is a box, no outline"):
        read(tmp_path / "a.txt", "")


def test_yolo(tmp_path):
    points = (np.array(corners()).reshape(-1, 2) / (WIDTH, HEIGHT)).ravel()
    (tmp_path / "a.txt").write_text("2 " + " ".join(f"{p:.6f}" for p in points) + "\n")
    assert (read(tmp_path / "a.txt", "") == 3 * square()).all()
    (tmp_path / "b.txt").write_text("1 10 10 20 20 30 10\n")
    with pytest.raises(ValueError, match="between 0 and 1"):
        read(tmp_path / "b.txt", "")


@pytest.mark.parametrize("form", ["list", "dict", "project", "csv"])
def test_via(tmp_path, form):
    shape = {"name": "polygon", "all_points_x": [20, 49, 49, 20], "all_points_y": [10, 10, 29, 29]}
    circle = {"name": "circle", "cx": 60, "cy": 45, "r": 8}
    regions = [
        {"shape_attributes": shape, "region_attributes": {"kind": "nodule"}},
        {"shape_attributes": circle, "region_attributes": {"kind": "cyst"}},
    ]
    if form == "csv":
        rows = [",".join(["filename", "region_shape_attributes", "region_attributes"])]
        quoted = lambda value: '"' + json.dumps(value).replace('"', '""') + '"'  # noqa: E731
        rows += [f"a.png,{quoted(r['shape_attributes'])},{quoted(r['region_attributes'])}" for r in regions]
        path = tmp_path / "via.csv"
        path.write_text("\n".join(rows) + "\n")
    else:
        if form == "dict":
            regions = {str(k): region for k, region in enumerate(regions)}
        content = {"a.png123": {"filename": "a.png", "size": 123, "regions": regions}}
        path = tmp_path / "via.json"
        path.write_text(json.dumps({"_via_img_metadata": content} if form == "project" else content))
    mask = read(path, "a.png")
    assert polygons.class_names(path) == {1: "cyst", 2: "nodule"}
    assert ((mask == 2) == square()).mean() > 0.98 and mask[45, 60] == 1 and abs(int((mask == 1).sum()) - 201) < 20


def labelme(path, shapes, image="a.png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"version": "5.5", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None})
    )
    return path


def test_labelme(tmp_path):
    nodule = {"label": "nodule", "points": [[20, 10], [49, 10], [49, 29], [20, 29]], "shape_type": "polygon"}
    cyst = {"label": "cyst", "points": [[60, 45], [68, 45]], "shape_type": "circle"}
    path = labelme(tmp_path / "a.json", [nodule, cyst])
    mask = read(path, "a.png")
    assert polygons.class_names(path) == {1: "cyst", 2: "nodule"}
    assert ((mask == 2) == square()).mean() > 0.98 and mask[45, 60] == 1 and abs(int((mask == 1).sum()) - 201) < 20
    with pytest.raises(ValueError, match="a rectangle of 'nodule' is a box, no outline"):
        read(labelme(tmp_path / "b.json", [nodule | {"shape_type": "rectangle", "points": [[1, 1], [9, 9]]}]), "a.png")
    with pytest.raises(ValueError, match="a shape of the kind 'linestrip' is no outline: polygon and circle are read"):
        read(labelme(tmp_path / "c.json", [nodule | {"shape_type": "linestrip"}]), "a.png")
    assert not read(labelme(tmp_path / "d.json", []), "a.png").any()


def test_a_tree_with_labelme_s_files_numbers_its_classes_over_the_whole_set(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH), np.uint8)
    for k, label in enumerate(["nodule", "cyst", "nodule", ""]):
        (tmp_path / "images/train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(grey, 7 * k)).save(tmp_path / f"images/train/{k}.png")
        shape = {"label": label, "points": [[20, 10], [49, 10], [49, 29], [20, 29]], "shape_type": "polygon"}
        labelme(tmp_path / f"marks/{k}.json", [shape] * bool(label), f"..\\images\\train\\{k}.png")
    (tmp_path / "settings.json").write_text('{"shapes": 3, "imagePath": 1}')
    records = list_source(tmp_path)
    assert [(r.path, r.split) for r in records] == [(f"images/train/{k}.png", "train") for k in range(4)]
    dataset = prepare(tmp_path, tmp_path.parent / "packed", size=WIDTH, splits=(1, 0, 0), progress=False)
    assert [np.unique(mask).tolist() for mask in dataset.masks] == [[0, 1], [0, 2], [0, 1], [0]]
    labelme(tmp_path / "again/0.json", [], "0.png")
    with pytest.raises(ValueError, match=r"0.png has outlines in .*0.json too: keep one of the files"):
        list_source(tmp_path)


def test_run_lengths_of_a_table(tmp_path):
    text = " ".join(f"{start + 1} {length}" for start, length in runs(square()))
    path = tmp_path / "train_masks.csv"
    path.write_text(f"subject,img,pixels\n1,3,{text}\n1,4,\n")
    assert (read(path, "1_3") == square()).all() and not read(path, "1_4").any()
    with pytest.raises(ValueError, match="does not know the image '2_1'"):
        read(path, "2_1")
    with pytest.raises(ValueError, match="reach beyond the image"):
        read(path, "1_3", 20, 20)


def test_ddti(tmp_path):
    points = [{"x": x, "y": y} for x, y in ((20, 10), (49, 10), (49, 29), (20, 29))]
    svg = json.dumps([{"points": points, "annotation": {}, "regionType": "freehand"}])
    path = tmp_path / "1.xml"
    path.write_text(f"<case><number>1</number><tirads>4a</tirads><mark><image>2</image><svg>{svg}</svg></mark></case>")
    assert (read(path, "2") == square()).mean() > 0.98 and polygons.keys(path) == ["2"]
    path.write_text(f"<case><mark><image>2</image><svg>{svg[:-40]}</svg></mark></case>  ")
    with pytest.raises(ValueError, match="outlines of image 2 are cut short"):
        read(path, "2")
    path.write_text('<!DOCTYPE x [<!ENTITY a "b">]><case>&a;</case>')
    with pytest.raises(ValueError, match="names entities"):
        read(path, "2")


def test_tracings_of_echonet(tmp_path):
    lines = ["FileName,X1,Y1,X2,Y2,Frame", "0X1.avi,35,10,35,29,46"]
    lines += [f"0X1.avi,20,{y},49,{y},46" for y in range(10, 30)]
    path = tmp_path / "VolumeTracings.csv"
    path.write_text("\n".join(lines) + "\n")
    assert polygons.keys(path) == ["0X1#46"] and (read(path, "0X1#46") == square()).mean() > 0.98


def test_damaged_files_say_so(tmp_path):
    for name, text in (
        ("a.json", "{"),
        ("a.json", "[]"),
        ("b.json", '{"images": 3, "annotations": []}'),
        ("c.csv", "a,b\n1,2\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError):
            read(tmp_path / name, "x")
    assert polygons.split_reference("m/a.png") == ("m/a.png", None)
    assert polygons.split_reference(polygons.reference("m/a.json", "b::c.png")) == ("m/a.json", "b::c.png")
