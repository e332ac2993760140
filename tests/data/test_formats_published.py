"""Published sets of clips, volumes and outlines, as they lie on disk: images, masks, groups, splits."""

import json
import zipfile

import numpy as np
import pytest
from making_formats import speckle, write_clip
from PIL import Image

from vfm4us.data import annotations, layouts, prepare, published
from vfm4us.data.masks import read_masks
from vfm4us.data.sources import find_source, understand

SQUARE = [[20, 10], [50, 10], [50, 30], [20, 30]]


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(speckle(seed)).save(path)


def packed(root, out):
    return prepare.prepare(root, out, size=80, progress=False)


def square():
    mask = np.zeros((64, 80), np.uint8)
    mask[10:30, 20:50] = 1
    return mask


def alike(a, b):
    return (a[:64, :80] == b).mean() > 0.98


def test_camus(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    root = tmp_path / "CAMUS"
    for patient in ("patient0001", "patient0002"):
        for moment in ("ED", "ES"):
            for ending, pixels in (("", speckle(1)), ("_gt", 2 * square())):
                path = root / "database_nifti" / patient / f"{patient}_2CH_{moment}{ending}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = sitk.GetImageFromArray(pixels)
                image.SetSpacing((0.3, 0.15))
                sitk.WriteImage(image, str(path))
        sitk.WriteImage(image, str(path.with_name(f"{patient}_2CH_half_sequence.nii.gz")))
    (root / "database_split").mkdir()
    (root / "database_split" / "subgroup_testing.txt").write_text("patient0002\n")
    dataset = packed(root, tmp_path / "out")
    assert len(dataset) == 4 and set(dataset.labels) == {"2CH"}
    assert [r.group for r in dataset.records] == ["patient0001"] * 2 + ["patient0002"] * 2
    assert dataset.splits[2:].tolist() == ["test", "test"] and dataset.records[0].spacing_mm == "0.15 0.3"
    assert (dataset.masks[0, :64, :80] == 2 * square()).all()


def test_echonet_dynamic(tmp_path):
    pytest.importorskip("av")
    moving = [np.roll(speckle(1), 3 * k, axis=1) for k in range(6)]
    for name in ("0X1", "0X2"):
        write_clip(tmp_path / "e" / "Videos" / f"{name}.avi", moving, codec="mjpeg")
    (tmp_path / "e" / "FileList.csv").write_text("FileName,EF,Split\n0X1,55.1,TRAIN\n0X2,60.2,TEST\n")
    lines = ["FileName,X1,Y1,X2,Y2,Frame"]
    for frame in (1, 4):
        lines += [f"0X1.avi,35,10,35,29,{frame}"] + [f"0X1.avi,20,{y},49,{y},{frame}" for y in range(10, 30)]
    (tmp_path / "e" / "VolumeTracings.csv").write_text("\n".join(lines) + "\n")
    dataset = packed(tmp_path / "e", tmp_path / "out")
    assert [(r.frame, r.group, r.split, bool(r.mask)) for r in dataset.records] == [
        (1, "0X1", "train", True),
        (4, "0X1", "train", True),
        (0, "0X2", "test", False),
    ]
    assert alike(dataset.masks[0], square()) and dataset.ids[:2] == ["Videos/0X1_frame0001", "Videos/0X1_frame0004"]


def test_echonet_pediatric(tmp_path):
    root = tmp_path / "A4C"
    for name in ("C0", "C1"):
        write_clip(root / "Videos" / f"{name}.avi", [speckle(k) for k in range(4)], codec="mjpeg")
    (root / "FileList.csv").write_text("FileName,EF,Split\nC0.avi,60,0\nC1.avi,55,1\n")
    points = "".join(
        f"{name}.avi,{x},{y},0\n" for name in ("C0", "C1") for x, y in ((20, 10), (49, 10), (49, 29), (20, 29))
    )
    (root / "VolumeTracings.csv").write_text(f"FileName,X,Y,Frame\n{points}C1.avi,1,1,No Systolic\n")
    records = understand(root).records
    assert [(record.frame, record.mask) for record in records] == [
        (0, "VolumeTracings.csv::C0#0"),
        (0, "VolumeTracings.csv::C1#0"),
    ]
    assert read_masks(root, records[0], speckle(0), 64).sum() == 600


def test_one_mask_for_all_frames_of_a_clip_is_refused(tmp_path):
    for k in range(3):
        write_clip(
            tmp_path / f"x{k}.avi", [np.roll(speckle(k), 9 * j, axis=1) for j in range(3)], rate=1, codec="mjpeg"
        )
        mask = np.zeros((64, 80), np.uint8)
        mask[20:40, 20:40] = 255
        Image.fromarray(mask).save(tmp_path / f"x{k}_mask.png")
    assert all("has 3 frames and one mask" in record.reason for record in understand(tmp_path).records)
    first = understand(tmp_path, {"frames": "first"}).records
    assert len(first) == 3 and not any(record.reason for record in first)


def test_us4(tmp_path):
    for video in ("Cov-a_mp4", "Reg-b_mp4", "F3_7"):
        for k in range(3):
            save(tmp_path / "Video" / video / f"{video}_frame{k}.jpg", k)
    records = find_source(tmp_path)
    assert {r.label for r in records} == {"lung COVID-19", "lung regular", "liver fibrosis 3"}
    assert {r.group for r in records} == {"Video/Cov-a_mp4", "Video/Reg-b_mp4", "Video/F3_7"}
    save(tmp_path / "Video" / "my_own" / "x.png")
    assert published.us4(tmp_path) is None


def test_ddti_original(tmp_path):
    svg = json.dumps([{"points": [{"x": x, "y": y} for x, y in SQUARE], "annotation": {}, "regionType": "freehand"}])
    for case, tirads in (("1", "4a"), ("2", "")):
        for k in (1, 2):
            save(tmp_path / "d" / f"{case}_{k}.jpg", k)
        mark = f"<mark><image>1</image><svg>{svg}</svg></mark>"
        (tmp_path / "d" / f"{case}.xml").write_text(
            f"<case><number>{case}</number><tirads>{tirads}</tirads>{mark}</case>"
        )
    records = layouts.LAYOUTS["ddti_original"](tmp_path / "d")
    assert [(r.label, r.group, r.mask) for r in records] == [
        ("TI-RADS 4a", "case 1", "1.xml::1"),
        ("TI-RADS 4a", "case 1", ""),
        ("", "case 2", "2.xml::1"),
        ("", "case 2", ""),
    ]
    around = find_source(tmp_path)  # a folder around the published one
    assert [(r.path, r.group, r.mask) for r in around[:1]] == [("d/1_1.jpg", "case 1", "d/1.xml::1")]
    assert alike(packed(tmp_path / "d", tmp_path / "out").masks[0], square())


def test_nerve_with_run_lengths(tmp_path):
    for k in (1, 2):
        save(tmp_path / "n" / "train" / f"3_{k}.tif", k)
    runs = " ".join(f"{column * 64 + 11} 20" for column in range(20, 50))
    (tmp_path / "n" / "train_masks.csv").write_text(f"subject,img,pixels\n3,1,{runs}\n3,2,\n")
    dataset = packed(tmp_path / "n", tmp_path / "out")
    assert (dataset.masks[0, :64, :80] == square()).all() and not dataset.masks[1].any()
    assert set(dataset.groups) == {"subject 3"}


@pytest.mark.parametrize("tree", ["one", "roboflow", "instances"])
def test_coco_trees(tmp_path, tree):
    root = tmp_path / "c"
    parts = {"one": [("images", "labels.json", "")], "roboflow": [], "instances": []}[tree]
    if tree == "roboflow":
        parts = [
            (part, f"{part}/_annotations.coco.json", split) for part, split in (("train", "train"), ("valid", "val"))
        ]
    if tree == "instances":
        parts = [(f"images/{s}", f"annotations/instances_{s}2017.json", s) for s in ("train", "val")]
    for folder, table, _ in parts:
        for k in range(3):
            save(root / folder / f"{k}.png", k)
        content = {
            "images": [{"id": k, "file_name": f"{k}.png"} for k in range(2)],
            "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "segmentation": [np.ravel(SQUARE).tolist()]}],
            "categories": [{"id": 1, "name": "lesion"}],
        }
        (root / table).parent.mkdir(parents=True, exist_ok=True)
        (root / table).write_text(json.dumps(content))
    dataset = packed(root, tmp_path / "out")
    for folder, table, split in parts:
        by_name = {r.path.split("/")[-1]: r for r in dataset.records if r.path.startswith(f"{folder}/")}
        assert by_name["0.png"].mask == f"{table}::0.png" and by_name["1.png"].mask and not by_name["2.png"].mask
        assert not split or by_name["0.png"].split == split
    assert alike(dataset.masks[0], square()) and not dataset.masks[1].any()


def test_via_beside_the_images(tmp_path):
    shape = {"name": "polygon", "all_points_x": [20, 49, 49, 20], "all_points_y": [10, 10, 29, 29]}
    save(tmp_path / "v" / "a;b.png")  # names may hold what separates masks
    entry = {"filename": "a;b.png", "size": 1, "regions": [{"shape_attributes": shape, "region_attributes": {}}]}
    (tmp_path / "v" / "via_region_data.json").write_text(json.dumps({"a;b.png1": entry}))
    assert alike(packed(tmp_path / "v", tmp_path / "out").masks[0], square())


@pytest.mark.parametrize("order", ["images/train", "train/images"])
def test_yolo(tmp_path, order):
    root = tmp_path / "y"
    for k in range(2):
        save(root / order / f"{k}.png", k)
    label = root / order.replace("images", "labels") / "0.txt"
    label.parent.mkdir(parents=True)
    label.write_text("0 " + " ".join(f"{x / 80} {y / 64}" for x, y in SQUARE) + "\n")
    dataset = packed(root, tmp_path / "out")
    assert alike(dataset.masks[0], square()) and not dataset.records[1].mask
    assert [r.split for r in dataset.records] == ["train", "train"]


def test_medmnist(tmp_path):
    arrays = {}
    for part, count in (("train", 5), ("val", 2), ("test", 3)):
        arrays[f"{part}_images"] = np.stack([speckle(k + count, 28, 28) for k in range(count)])
        arrays[f"{part}_labels"] = np.arange(count)[:, None] % 2
    (tmp_path / "m").mkdir()
    np.savez(tmp_path / "m" / "breastmnist.npz", **arrays)
    dataset = packed(tmp_path / "m", tmp_path / "out")
    assert len(dataset) == 10 and dataset.splits.tolist() == ["train"] * 5 + ["val"] * 2 + ["test"] * 3
    assert dataset.labels[:2] == ["malignant", "normal or benign"]
    with Image.fromarray(arrays["val_images"][1]) as image:
        assert (dataset.images[6] == np.asarray(image.resize((80, 80), Image.Resampling.LANCZOS))).all()


def test_labels_of_npz_in_one_axis_or_as_fractions_and_wide_images_of_one_range(tmp_path):
    from vfm4us.data import frames

    dark, light = speckle(0).astype(np.uint16) * 3, speckle(1).astype(np.uint16) * 16
    labels = np.array([0.0, 1.0])
    np.savez(tmp_path / "a.npz", train_images=np.stack([dark, light]), train_labels=labels)
    assert frames.contents_of(tmp_path / "a.npz").labels == ["0", "1"]
    (_, grey), *_ = frames.read_frames(tmp_path / "a.npz", [0])
    assert abs(grey.mean() - dark.mean() / 4095 * 255) < 1
    np.savez(tmp_path / "b.npz", train_images=np.stack([dark, light]), train_labels=np.eye(2))
    told = frames.contents_of(tmp_path / "b.npz")
    assert told.labels == ["", ""] and told.notes == ["has several labels per image, which are not used"]


def test_npz_that_boast_or_hold_other_things_are_refused(tmp_path):
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 1000, 1000), }"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("train_images.npy", header + text.ljust(117) + b"\n" + bytes(50))
    np.savez(tmp_path / "b.npz", x=np.zeros(3))
    np.savez(tmp_path / "c.npz", train_images=np.array([{}], dtype=object))
    (tmp_path / "d.npz").write_bytes(b"PK\3\4 no zip")
    from vfm4us.data import frames

    for name in "abcd":
        with pytest.raises(ValueError, match="that the file can hold|not of MedMNIST|shape|no array can be read"):
            frames.contents_of(tmp_path / f"{name}.npz")


def test_boxes_leave_a_plain_tree(tmp_path):
    save(tmp_path / "images" / "0.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4]}
    content = {"images": [{"id": 0, "file_name": "0.png"}], "annotations": [box], "categories": []}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    assert annotations.recognise(tmp_path) is None
