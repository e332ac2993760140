"""Published datasets are read from trees of their own shape, with their traps; where the disk says otherwise, it is said."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vfm4us.data import layouts
from vfm4us.data.manifest import find_source
from vfm4us.data.store import prepare


def picture(path, seed=0, size=(40, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)).save(path)


def busi_tree(root):
    for k, name in enumerate(("benign", "malignant", "normal")):
        for i in range(1, 5):
            picture(root / name / f"{name} ({i}).png", seed=10 * k + i)
            Image.fromarray(np.full((40, 32), 255 * (i % 2), np.uint8)).convert("1").save(
                root / name / f"{name} ({i})_mask.png"
            )
    Image.new("RGB", (32, 40), "white").save(root / "benign" / "benign (2)_mask_1.png")


@pytest.mark.parametrize("depth", ["Dataset_BUSI_with_GT", "."])
def test_busi_joins_the_masks_of_one_image_and_finds_no_class_called_after_the_folder(tmp_path, depth):
    busi_tree(tmp_path / depth)
    records = find_source(tmp_path)
    assert Counter(r.label for r in records) == {"benign": 4, "malignant": 4, "normal": 4}
    assert all((tmp_path / r.path).is_file() and all((tmp_path / m).is_file() for m in r.mask_paths) for r in records)
    [second] = [r for r in records if r.path.endswith("benign (2).png")]
    assert [m.rsplit("/", 1)[1] for m in second.mask_paths] == ["benign (2)_mask.png", "benign (2)_mask_1.png"]
    dataset = prepare(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", size=32, progress=False)
    assert len(dataset) == 12 and dataset.masks[dataset.ids.index(second.id)].any()


HEADER = "Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train "


def fetal_tree(root, rows, header=HEADER):
    for i, row in enumerate(rows):
        picture(root / "Images" / f"{row.split(';')[0]}.png", seed=i)
    (root / layouts.FETAL_CSV).write_text("\n".join([header, *rows]) + "\n")


def fetal_rows():
    planes = [
        ("Fetal abdomen", "Not A Brain"),
        ("Fetal brain", "Trans-thalamic"),
        ("Fetal brain", "Other"),
        ("Other", "Not A Brain"),
    ]
    return [f"Patient{p:05d}_Plane{k}_1_of_1;{p};{plane};{brain};Op. 1;Voluson E6;{int(p <= 20)}"
            for p in range(1, 31) for k, (plane, brain) in enumerate(planes)]  # fmt: skip


def test_fetal_planes_has_planes_patients_and_the_official_test_split(tmp_path):
    fetal_tree(tmp_path, fetal_rows())
    picture(tmp_path / "Images" / "without_row.png")
    (tmp_path / "Images" / "Patient00003_Plane0_1_of_1.png").unlink()
    records = find_source(tmp_path)
    assert Counter(r.label for r in records if r.split != "exclude") == {
        "Fetal abdomen": 30, "Trans-thalamic": 30, "Fetal brain": 30, "Other": 30
    }  # fmt: skip
    assert {r.group for r in records if r.split == "test"} == {f"patient {p}" for p in range(21, 31)}
    assert {r.split for r in records} == {"train", "val", "test", "exclude"}
    by_group = {}
    for r in records:
        by_group.setdefault(r.group, set()).add(r.split)
    assert all(len(s) == 1 for g, s in by_group.items() if g)
    dataset = prepare(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", size=32, progress=False)
    assert len(dataset) == 120 and "Patient00003_Plane0" in (dataset.folder / "rejected.csv").read_text()


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (fetal_rows(), HEADER.replace(";", ","), "lacks .*Brain_plane"),
        (["a;1;Fetal elbow;Not A Brain;Op;M;1"], HEADER, "line 2: unknown Plane 'Fetal elbow'"),
        (["a;1;Other;Not A Brain;Op;M;yes"], HEADER, "line 2: Train is 'yes'"),
        (["a;1;Other;Not A Brain;Op;M;1", "a;1;Other;Not A Brain;Op;M;1"], HEADER, "lists a twice"),
    ],
)
def test_another_fetal_table_than_the_published_one_is_named(tmp_path, rows, header, message):
    fetal_tree(tmp_path, rows, header)
    with pytest.raises(ValueError, match=f"{layouts.FETAL_CSV}.*{message}"):
        find_source(tmp_path)


def test_fetal_planes_without_its_images_says_so(tmp_path):
    (tmp_path / layouts.FETAL_CSV).write_text(f"{HEADER}\na;1;Other;Not A Brain;Op;M;1\n")
    with pytest.raises(ValueError, match="none of the first 100 is there: unpack Images"):
        find_source(tmp_path)


@pytest.mark.parametrize("start", [".", "radiology_ai", "radiology_ai/US"])
def test_radimagenet_begins_anywhere_above_its_class_folders(tmp_path, start):
    for k, name in enumerate(("liver", "kidney", "thyroid_nodule")):
        for i in range(3):
            picture(tmp_path / "radiology_ai" / "US" / name / f"usn{k}{i:05d}.png", seed=10 * k + i)
    records = find_source(tmp_path / start)
    assert Counter(r.label for r in records) == {"liver": 3, "kidney": 3, "thyroid_nodule": 3}
    assert all((tmp_path / start / r.path).is_file() for r in records)


def test_umtd_class_folders_keep_their_whole_name(tmp_path):
    names = ["FetalBrain_CB", "Liver_67OLS", "breast_benign", "thyroid_0TPTI", "thyroid_node_0", "thyroid_node_1"]
    for k, name in enumerate(names):
        picture(tmp_path / name / "1 (2).png", seed=k)
    assert layouts.umtd(tmp_path) is not None
    assert [r.label for r in find_source(tmp_path)] == sorted(names, key=str)
    (tmp_path / "another").mkdir()
    assert layouts.umtd(tmp_path) is None  # then a plain tree of class folders, with the same labels


def test_real_busi_in_its_published_layout(real_data):
    records = layouts.busi(real_data / "busi")
    assert Counter(r.label for r in records) == {"benign": 437, "malignant": 210, "normal": 133}
    assert sum(len(r.mask_paths) > 1 for r in records) == 17
