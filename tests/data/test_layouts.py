"""Published datasets are read from trees of their own shape, with their traps; where the disk says otherwise, it is said."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vfm4us.data import layouts
from vfm4us.data.prepare import prepare
from vfm4us.data.sources import find_source


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
    return [
        f"Patient{p:05d}_Plane{k}_1_of_1;{p};{plane};{brain};Op. 1;Voluson E6;{int(p <= 20)}"
        for p in range(1, 31)
        for k, (plane, brain) in enumerate(planes)
    ]


def test_fetal_planes_has_planes_patients_and_the_official_test_split(tmp_path):
    fetal_tree(tmp_path, fetal_rows())
    picture(tmp_path / "Images" / "without_row.png")
    (tmp_path / "Images" / "Patient00003_Plane0_1_of_1.png").unlink()
    records = find_source(tmp_path)
    assert Counter(r.label for r in records if r.split != "exclude") == {
        "Fetal abdomen": 30,
        "Trans-thalamic": 30,
        "Fetal brain": 30,
        "Other": 30,
    }
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


# ---- with masks -----------------------------------------------------------------------------------------------------


def mask_picture(path, mask, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path, **options)


def square(value=255, size=(40, 32)):
    mask = np.zeros(size, np.uint8)
    mask[10:30, 8:24] = value
    return mask


def packed(root, size=40):
    return prepare(root, root.parent / f"{root.name}-out", size=size, progress=False)


def thyroid_tree(root):
    numbers = {"trainval": range(6), "test": range(3)}
    for part, those in numbers.items():
        for i in those:
            picture(root / "tn3k" / f"{part}-image" / f"{i:04d}.jpg", seed=10 * len(part) + i)
            mask_picture(root / "tn3k" / f"{part}-mask" / f"{i:04d}.jpg", square(), quality=60)
    (root / "tn3k" / "tn3k-trainval-fold0.json").write_text('{"train": [0, 1, 2, 3], "val": [4, 5]}')


@pytest.mark.parametrize("start", [".", "tn3k"])
def test_tn3k_has_the_published_test_split_and_equal_numbers_in_both_parts_stay_apart(tmp_path, start):
    thyroid_tree(tmp_path)
    records = find_source(tmp_path / start)
    assert Counter(r.split for r in records) == {"train": 4, "val": 2, "test": 3}
    assert len({r.id for r in records}) == 9
    assert all(Path(r.mask).stem == Path(r.path).stem and r.mask != r.path for r in records)
    assert set(np.unique(packed(tmp_path / start).masks)) == {0, 1}, "JPEG noise is no class"


def test_tn3k_whose_fold_is_missing_or_of_another_kind_says_so(tmp_path):
    thyroid_tree(tmp_path)
    fold = tmp_path / "tn3k" / "tn3k-trainval-fold0.json"
    fold.write_text('{"train": [0, 1, 2, 3], "val": [4]}')
    with pytest.raises(ValueError, match="does not say whether .*0005.jpg is for training"):
        find_source(tmp_path)
    fold.write_text("[1, 2]")
    with pytest.raises(ValueError, match="fold0.json is not of the form"):
        find_source(tmp_path)
    fold.unlink()
    with pytest.raises(ValueError, match="lacks tn3k-trainval-fold0.json"):
        find_source(tmp_path)


def test_tg3k_groups_the_frames_of_a_video_and_does_not_use_the_published_split(tmp_path):
    for i in range(12):
        size = (40, 32) if i < 5 else (44, 32) if i < 9 else (40, 32)
        picture(tmp_path / "thyroid-image" / f"{i:04d}.jpg", seed=i, size=size)
        mask_picture(tmp_path / "thyroid-mask" / f"{i:04d}.jpg", square(size=size))
    (tmp_path / "tg3k-trainval.json").write_text('{"train": [0, 1, 2], "val": [3, 4, 5]}')
    records = find_source(tmp_path)
    assert Counter(r.group for r in records) == {"video 1": 5, "video 2": 4, "video 3": 3}
    splits = {}
    for r in packed(tmp_path).records:
        splits.setdefault(r.group, set()).add(r.split)
    assert all(len(s) == 1 for s in splits.values()) and set.union(*splits.values()) == {"train", "val", "test"}


def test_the_three_sets_of_the_thyroid_download_are_told_apart(tmp_path):
    thyroid_tree(tmp_path)
    for i in range(3):
        picture(tmp_path / "DDTI/2_preprocessed_data/stage1/p_image" / f"{i}.PNG", seed=i)
        mask_picture(tmp_path / "DDTI/2_preprocessed_data/stage1/p_mask" / f"{i}.PNG", square())
    with pytest.raises(ValueError, match="holds tn3k, DDTI: give one of them"):
        find_source(tmp_path)
    records = find_source(tmp_path / "DDTI")
    assert len(records) == 3 and all((tmp_path / "DDTI" / r.mask).is_file() and "p_mask" in r.mask for r in records)


def test_nerve_groups_by_subject_and_keeps_empty_masks_as_masks(tmp_path):
    for subject in range(1, 11):
        for k in range(1, 4):
            picture(tmp_path / "train" / f"{subject}_{k}.tif", seed=10 * subject + k)
            mask_picture(tmp_path / "train" / f"{subject}_{k}_mask.tif", square(255 * (k == 1)))
    picture(tmp_path / "test" / "1.tif")
    (tmp_path / "train" / "3_2_mask.tif").unlink()
    records = find_source(tmp_path)
    assert len(records) == 30 and Counter(r.group for r in records)["subject 10"] == 3
    dataset = packed(tmp_path)
    assert len(dataset) == 29 and "3_2.tif" in (dataset.folder / "rejected.csv").read_text(), (
        "no mask is not an empty mask"
    )
    assert (dataset.masks.max((1, 2)) == 1).sum() == 10


def test_fetal_abdomen_paints_pickled_structures_and_groups_by_pregnancy(tmp_path):
    (tmp_path / "ARRAY_FORMAT").mkdir()
    for p in range(1, 7):
        for k in (1, 2):
            picture(tmp_path / "IMAGES" / f"P{p:04d}_IMG{k}.png", seed=10 * p + k)
            liver, vein = square(1), np.zeros((40, 32), np.uint8)
            vein[12:16, 10:14] = 1  # within the liver
            layers = {"artery": np.zeros_like(vein), "liver": liver, "stomach": np.zeros_like(vein), "vein": vein}
            content = {"image": square(), "structures": layers}
            np.save(tmp_path / "ARRAY_FORMAT" / f"P{p:04d}_IMG{k}.npy", content, allow_pickle=True)
    (tmp_path / "ARRAY_FORMAT" / "P0002_IMG1.npy").unlink()
    records = find_source(tmp_path)
    assert Counter(r.group for r in records) == {f"P{p:04d}": 2 for p in range(1, 7)}
    dataset = packed(tmp_path)
    mask = dataset.masks[dataset.ids.index("IMAGES/P0001_IMG1")]
    assert mask[13, 11] == 4 and mask[20, 20] == 2 and set(np.unique(mask)) == {0, 2, 4}
    assert len(dataset) == 11 and "P0002_IMG1" in (dataset.folder / "rejected.csv").read_text()
    picture(tmp_path / "IMAGES" / "overview.png")
    with pytest.raises(ValueError, match="overview.png is not named P<pregnancy>_IMG<number>"):
        find_source(tmp_path)


@pytest.mark.parametrize("depth", ["c-trus-main", "."])
def test_c_trus_groups_by_patient_and_not_by_fold_and_keeps_the_grey_wall(tmp_path, depth):
    root, rows = tmp_path / depth, ["file,quality,quality_name,patient,testitem_in_fold"]
    for i in range(12):
        picture(root / "original" / f"{i}.jpg", seed=i)
        mask_picture(root / "labels" / f"{i}.jpg", square(220))
        rows.append(f"{i}.jpg,2,good,{i // 3},{i % 5}")
    (root / "c-trus.csv").write_text("\n".join(rows) + "\n")
    records = find_source(tmp_path)
    assert Counter(r.group for r in records) == {f"patient {p}": 3 for p in range(4)} and {
        r.label for r in records
    } == {"good"}
    assert all(m.any() for m in packed(tmp_path).masks), "220 is wall, too"
    (root / "c-trus.csv").write_text("\n".join(rows[:-1]) + "\n")
    with pytest.raises(ValueError, match="c-trus.csv does not say whose image .*11.jpg is"):
        find_source(tmp_path)


def usenhance_tree(root, organs):
    for organ, ids in organs.items():
        for number in ids:
            for part in ("low_quality", "high_quality"):
                picture(root / organ / part / f"{number:04d}.png", seed=number)


@pytest.mark.parametrize("depth", ["train_datasets", "."])
def test_usenhance_pairs_equal_names_and_splits_each_organ_by_contiguous_blocks_of_ids(tmp_path, depth):
    usenhance_tree(tmp_path / depth, {"thyroid": range(1, 61), "liver": [*range(825, 860), *range(870, 900)]})
    picture(tmp_path / depth / "thyroid" / "low_quality" / "notes.png")
    records = find_source(tmp_path)
    assert Counter(r.label for r in records) == {"thyroid": 60, "liver": 65}
    assert all((tmp_path / r.target).is_file() and Path(r.target).name == Path(r.path).name for r in records)
    assert all("high_quality" in r.target and "low_quality" in r.path for r in records)
    for organ in ("thyroid", "liver"):
        of_organ = [r for r in records if r.label == organ]
        order = [r.split for r in of_organ]
        assert order == sorted(order, key=["train", "val", "test"].index) and len(set(order)) == 3, (
            "contiguous stretches"
        )
        assert all(len({r.split for r in of_organ if r.group == group}) == 1 for group in {r.group for r in of_organ})
        assert max(Counter(r.group for r in of_organ).values()) == 10
    dataset = prepare(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", size=32, progress=False)
    assert len(dataset) == 125 and dataset.targets.any(axis=(1, 2)).all()


def test_usenhance_takes_one_organ_lists_what_lacks_a_partner_and_refuses_ids_that_are_not_its_own(tmp_path):
    usenhance_tree(tmp_path, {"kidney": range(1038, 1078)})
    (tmp_path / "kidney/high_quality/1040.png").unlink()
    records = find_source(tmp_path / "kidney")
    assert {r.label for r in records} == {"kidney"} and len(records) == 40 and len({r.group for r in records}) == 4
    dataset = prepare(tmp_path / "kidney", tmp_path / "out", size=32, progress=False)
    assert len(dataset) == 39 and "1040.png" in (tmp_path / "out/rejected.csv").read_text()
    picture(tmp_path / "kidney/low_quality/0001.png")
    with pytest.raises(ValueError, match="0001.png: the ids of kidney are 1038 to 1212"):
        find_source(tmp_path / "kidney")
    usenhance_tree(tmp_path / "own", {"kidney": []})
    for part in ("low_quality", "high_quality"):
        picture(tmp_path / "own/kidney" / part / "a.png")
    [record] = find_source(tmp_path / "own/kidney")
    assert record.label == "" and record.target == "high_quality/a.png", "somebody's own pairs"
    (tmp_path / "broken/breast/low_quality").mkdir(parents=True)
    picture(tmp_path / "broken/breast/low_quality/1213.png")
    with pytest.raises(ValueError, match="has low_quality/ and no high_quality/: unpack"):
        find_source(tmp_path / "broken")
