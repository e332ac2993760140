"""Outlines and run lengths become the masks that they were drawn as."""

import base64
import io
import json
import zlib

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
    assert understood.layout == "images with outlines (via)" and [r.mask for r in understood.records] == [
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
    assert polygons.keys(path) == ["a.png"] and polygons.class_names(path) == {1: "cyst", 2: "nodule"}
    assert ((mask == 2) == square()).mean() > 0.98 and mask[45, 60] == 1 and abs(int((mask == 1).sum()) - 201) < 20


def test_names_of_images_that_are_numbers_are_text(tmp_path):
    region = {"shape_attributes": {"name": "polygon", "all_points_x": [1, 9, 9], "all_points_y": [1, 1, 9]}}
    (tmp_path / "via.json").write_text(json.dumps({"7": {"filename": 7, "size": 1, "regions": [region]}}))
    grey(tmp_path / "7.png", 0)
    assert polygons.keys(tmp_path / "via.json") == ["7"]
    assert {record.path for record in understand(tmp_path).records} == {"7", "7.png"}  # the first is missing


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


def grey(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH), np.uint8)
    Image.fromarray(np.roll(pixels, 7 * seed)).save(path)


def test_images_with_outlines_have_the_labels_patients_and_tables_of_their_folders(tmp_path):
    square_of = {"label": "lesion", "points": [[20, 10], [49, 10], [49, 29], [20, 29]], "shape_type": "polygon"}
    for k, name in enumerate(("benign/patient1/a", "benign/patient1/b", "malignant/patient2/c")):
        grey(tmp_path / f"{name}.png", k)
        labelme(tmp_path / f"{name}.json", [square_of], f"{name[-1]}.png")
    Image.fromarray(square() * 255).save(tmp_path / "benign/patient1/a_mask.png")
    (tmp_path / "splits.csv").write_text("file,split\na.png,train\nb.png,train\nc.png,test\n")
    understood = understand(tmp_path)
    assert [(r.label, r.group, r.split) for r in understood.records] == [
        ("benign", "benign/patient1", "train"),
        ("benign", "benign/patient1", "train"),
        ("malignant", "malignant/patient2", "test"),
    ]
    assert any(kind.what.startswith("masks as images") and len(kind.paths) == 1 for kind in understood.kinds)


def test_a_file_of_yolo_lies_beside_its_image(tmp_path):
    for k in range(2):
        grey(tmp_path / f"{k}.png", k)
        (tmp_path / f"{k}.txt").write_text("a note 1 2\n")
    (tmp_path / "classes.txt").write_text("nodule\n")
    assert not any(record.mask for record in understand(tmp_path).records)
    (tmp_path / "1.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.6\n")
    (tmp_path / "0.txt").unlink()
    assert [record.mask for record in understand(tmp_path).records] == ["", "1.txt::"]


def test_supervisely(tmp_path):
    hole = {
        "exterior": [[20, 10], [49, 10], [49, 29], [20, 29]],
        "interior": [[[30, 15], [35, 15], [35, 20], [30, 20]]],
    }
    stream = io.BytesIO()
    Image.fromarray(np.full((6, 8), True)).save(stream, "PNG")
    bitmap = {"data": base64.b64encode(zlib.compress(stream.getvalue())).decode(), "origin": [60, 40]}
    objects = [
        {"classTitle": "cyst", "geometryType": "bitmap", "bitmap": bitmap},
        {"classTitle": "node", "geometryType": "polygon", "points": hole},
    ]
    content = {"size": {"height": HEIGHT, "width": WIDTH}, "objects": objects, "tags": []}
    for k in range(2):
        grey(tmp_path / f"ds/img/{k}.png", k)
        (tmp_path / "ds/ann").mkdir(exist_ok=True)
        (tmp_path / f"ds/ann/{k}.png.json").write_text(json.dumps(content))
    records = understand(tmp_path).records
    assert [record.mask for record in records] == ["ds/ann/0.png.json::", "ds/ann/1.png.json::"]
    mask = read(tmp_path / "ds/ann/0.png.json", "")
    assert (mask[40:46, 60:68] == 1).all() and (mask == 1).sum() == 48
    assert mask[17, 32] == 0 and mask[12, 22] == 2 and ((mask == 2) == square()).mean() > 0.98
    with pytest.raises(ValueError, match="its bitmap reaches to 68 x 46 pixels"):
        read(tmp_path / "ds/ann/0.png.json", "", HEIGHT + 4)
    bitmap["data"] = base64.b64encode(b"x").decode()
    (tmp_path / "b.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="a bitmap is damaged"):
        read(tmp_path / "b.json", "")


def brush(mask):
    """Label Studio's run lengths of a mask (H, W), as runs alone: 4 values for each pixel, the mask in the last."""
    flat = np.repeat(mask.ravel() * 255, 4)
    bits = f"{len(flat):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    edges = np.flatnonzero(np.diff(flat)) + 1
    for begin, end in zip([0, *edges], [*edges, len(flat)], strict=True):
        bits += f"111{end - begin - 1:016b}{flat[begin]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


def test_label_studio(tmp_path):
    def mark(kind, **value):
        return {"type": kind, "original_width": WIDTH, "original_height": HEIGHT, "value": value}

    corner = [(x * 100 / WIDTH, y * 100 / HEIGHT) for x, y in np.array(corners()).reshape(-1, 2)]
    marks = [
        mark("polygonlabels", points=corner, polygonlabels=["node"]),
        mark("ellipselabels", x=75, y=75, radiusX=10, radiusY=10, ellipselabels=["cyst"]),
        mark("choices", choices=["malignant"]),
    ]
    painted = [
        mark("brushlabels", format="rle", rle=brush(square(40, 5, 8, 9)), brushlabels=["node"]),
        mark("choices", choices=["benign"]),
        mark("choices", choices=None),
    ]
    tasks = [
        {"id": 1, "data": {"image": "/data/upload/1/0a1b2c3d-a.png"}, "annotations": [{"result": marks}]},
        {"id": 2, "data": {"image": "/data/local-files/?d=set%2Fb.png"}, "annotations": [{"result": painted}]},
        {"id": 3, "data": {"image": "c.png"}, "annotations": [{"result": painted, "was_cancelled": True}]},
    ]
    for k, name in enumerate("abc"):
        grey(tmp_path / f"set/{name}.png", k)
    (tmp_path / "result.json").write_text(json.dumps(tasks))
    records = understand(tmp_path).records
    assert [(r.path, r.label) for r in records] == [
        ("set/a.png", "malignant"),
        ("set/b.png", "benign"),
        ("set/c.png", ""),
    ]
    masks = [read_masks(tmp_path, record, np.zeros((HEIGHT, WIDTH), np.uint8), 80) for record in records]
    assert polygons.class_names(tmp_path / "result.json") == {1: "cyst", 2: "node"}
    assert ((masks[0] == 2) == square()).all() and masks[0][45, 60] == 1 and abs((masks[0] == 1).sum() - 151) < 15
    assert (masks[1] == 2 * square(40, 5, 8, 9)).all() and not masks[2].any()
    painted[0]["value"]["rle"] = painted[0]["value"]["rle"][:12]
    (tmp_path / "result.json").write_text(json.dumps(tasks))
    with pytest.raises(ValueError, match="a brush is cut short"):
        read(tmp_path / "result.json", "set/b.png")
    twice = mark("polygonlabels", points=corner, polygonlabels=["node", "cyst"])
    (tmp_path / "result.json").write_text(json.dumps([tasks[0], {**tasks[1], "annotations": [{"result": [twice]}]}]))
    with pytest.raises(ValueError, match=r"result.json: .*has 2 labels, 'node' and 'cyst': keep one of each mark"):
        understand(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps([*tasks, {**tasks[0], "id": 4}]))
    with pytest.raises(
        ValueError, match=r"result.json: task 4 is of .*a.png, as an earlier one: keep one task of each"
    ):
        understand(tmp_path)
    tasks[0]["annotations"] *= 2
    (tmp_path / "result.json").write_text(json.dumps(tasks))
    with pytest.raises(ValueError, match=r"result.json: task 1 .* has 2 annotations: keep one of each task"):
        understand(tmp_path)


def test_cvat(tmp_path):
    points = ";".join(f"{x},{y}" for x, y in np.array(corners()).reshape(-1, 2))
    shapes = (
        f'<polygon label="node" points="{points}" z_order="1"/>'
        '<mask label="cyst" rle="2, 4, 2" left="60" top="40" width="4" height="2"/>'
        '<ellipse label="cyst" cx="30" cy="20" rx="40" ry="40" z_order="0"/><tag label="fine"/>'
    )
    path = tmp_path / "annotations.xml"
    path.write_text(
        f'<?xml version="1.0"?><annotations><image name="us/a.png">{shapes}</image><image name="b.png"/></annotations>'
    )
    for k, name in enumerate(("us/a.png", "b.png")):
        grey(tmp_path / name, k)
    assert [record.mask for record in understand(tmp_path).records] == [
        "annotations.xml::b.png",
        "annotations.xml::us/a.png",
    ]
    mask = read(path, "us/a.png")
    assert (
        polygons.class_names(path) == {1: "cyst", 2: "node"} and ((mask == 2) == square()).all() and mask[40, 20] == 1
    )
    path.write_text(f'<annotations><image name="a">{shapes.split("<ellipse")[0]}</image></annotations>')
    assert np.argwhere(read(path, "a") == 1).tolist() == [[40, 62], [40, 63], [41, 60], [41, 61]]
    path.write_text("<annotations><track/></annotations>")
    with pytest.raises(ValueError, match="holds tracks of a video"):
        read(path, "a")


def test_regions_of_via_that_are_boxes_are_no_masks_and_said(tmp_path):
    grey(tmp_path / "a.png")
    region = {"shape_attributes": {"name": "rect", "x": 1, "y": 1, "width": 5, "height": 5}, "region_attributes": {}}
    (tmp_path / "via.json").write_text(json.dumps({"a.png1": {"filename": "a.png", "size": 1, "regions": [region]}}))
    understood = understand(tmp_path)
    assert not understood.records[0].mask and any("boxes and points are no masks" in k.what for k in understood.kinds)


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
        ("c.csv", 'image,rle\nx,"' + "1 2 " * 40_000),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError):
            read(tmp_path / name, "x")
    assert polygons.split_reference("m/a.png") == ("m/a.png", None)
    assert polygons.split_reference(polygons.reference("m/a.json", "b::c.png")) == ("m/a.json", "b::c.png")


def outlines_of(tmp_path, kind, height, width):
    """A file of outlines of `square` for an image of that size, of which it covers the same part."""
    points = np.array(corners(), float).reshape(-1, 2) * (width / WIDTH, height / HEIGHT)
    if kind == "coco":
        path = coco(tmp_path, [points.ravel().tolist()])
        content = json.loads(path.read_text())
        content["images"][0] |= {"height": height, "width": width}
    elif kind == "labelme":
        shape = {"label": "x", "points": (points - 0.5).tolist(), "shape_type": "polygon"}
        path = tmp_path / "labelme.json"
        content = {"shapes": [shape], "imagePath": "a.png", "imageHeight": height, "imageWidth": width}
    else:
        path, text = tmp_path / "cvat.xml", ";".join(f"{x},{y}" for x, y in points)
        polygon = f'<polygon label="x" points="{text}"/>'
        path.write_text(
            f'<annotations><image name="a.png" width="{width}" height="{height}">{polygon}</image></annotations>'
        )
        return path
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("kind", ["coco", "labelme", "cvat"])
def test_outlines_for_a_copy_of_another_size_are_scaled_and_for_another_shape_refused(tmp_path, kind):
    same = read(outlines_of(tmp_path, kind, HEIGHT, WIDTH), "a.png")
    assert (read(outlines_of(tmp_path, kind, HEIGHT // 2, WIDTH // 2), "a.png") == same).all() and same.any()
    with pytest.raises(ValueError, match=f"are for {HEIGHT} x {WIDTH} pixels, the image has {WIDTH} x {HEIGHT}"):
        read(outlines_of(tmp_path, kind, WIDTH, HEIGHT), "a.png")
    with pytest.raises(ValueError, match="annotation 5 is of the category 9, which the file does not list"):
        read(coco(tmp_path, [corners()], category=9), "a.png")
