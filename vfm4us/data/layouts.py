"""Published ultrasound datasets as they lie on disk -> records with label, patient, split and masks; told by their own names.

`recognise(folder)` is asked by `sources.find_source` before it takes a folder for a plain tree of class folders. Each
layout fails with a message that names the file when the disk says otherwise than the publication.

    busi            Dataset_BUSI_with_GT/{benign,malignant,normal}/<class> (N).png with _mask, _mask_1 (Al-Dhabyani 2020)
    fetal_planes    FETAL_PLANES_DB_data.csv and Images/ (Burgos-Artizzu 2020): patients, official test split
    radimagenet     radiology_ai/US/<anatomy>/usn*.png (Mei 2022): 15 classes, no patients
    umtd            US-MTD120K: 28 class folders such as FetalBrain_CB or thyroid_node_0
    tn3k            tn3k/{trainval,test}-{image,mask}/NNNN.jpg and its folds (Gong 2022): thyroid nodules, official test split
    tg3k            tg3k/thyroid-{image,mask}/NNNN.jpg, of the same download: the thyroid, frames of 16 videos
    ddti            2_preprocessed_data/stage1/{p_image,p_mask}/*.PNG, of the same download: thyroid nodules
    nerve           Kaggle's Ultrasound Nerve Segmentation: train/<subject>_<k>.tif and _mask.tif
    fetal_abdomen   IMAGES/P####_IMG#.png and ARRAY_FORMAT/P####_IMG#.npy (Mendeley 4gcpm9dsc3): 4 structures, pregnancies
    c_trus          original/, labels/ and c-trus.csv (Leenings 2024): wall of the colon, patients
    hc18            {training,test}_set/NNN_HC.png with NNN_HC_Annotation.png (van den Heuvel 2018): fetal heads, subjects
    usenhance       train_datasets/<organ>/{low_quality,high_quality}/NNNN.png (USenhance 2023): pairs of low and high quality
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from vfm4us.data import published
from vfm4us.data.csv_files import table_text
from vfm4us.data.records import (
    LESION_MASK,
    Record,
    image_files,
    joined_paths,
    masks_beside,
    natural_key,
    without_extension,
)
from vfm4us.data.splits import assign

BUSI_CLASSES = ("benign", "malignant", "normal")
FETAL_CSV = "FETAL_PLANES_DB_data.csv"
FETAL_PLANES = ("Fetal abdomen", "Fetal femur", "Fetal thorax", "Maternal cervix", "Other")
BRAIN_PLANES = ("Trans-thalamic", "Trans-cerebellum", "Trans-ventricular")
USENHANCE = {  # first and last id of each organ
    "thyroid": (1, 416),
    "carotid": (417, 824),
    "liver": (825, 1037),
    "kidney": (1038, 1212),
    "breast": (1213, 1500),
}
USENHANCE_BLOCK = 10  # consecutive ids that stay together
UMTD_FAMILIES = {"FetalBrain": 3, "Liver": 13, "breast": 2, "thyroid": 8, "thyroid_node": 2}


def recognise(folder: Path) -> tuple[str, list[Record]] | None:
    """Name and records of a published dataset, or None where the folder is none; ValueError where it is one, but not whole."""
    for name, layout in LAYOUTS.items():
        records = layout(Path(folder))
        if records is not None:
            return name, records
    return None


def busi(folder: Path) -> list[Record] | None:
    """Three class folders, one below the folder or in it; further lesions' masks belong to one image. No patients."""
    root = _inside(folder, "Dataset_BUSI_with_GT")
    if not all((root / name).is_dir() for name in BUSI_CLASSES) or not any((root / "benign").glob("benign (*).png")):
        return None
    before = _prefix(folder, root)
    files = [f for f in image_files(root) if f.split("/")[0] in BUSI_CLASSES]
    images, masks = masks_beside(files)
    records = []
    for file in images:
        name = without_extension(file)
        mask = joined_paths(before + part for part in masks.get(name, []))
        # a mask whose image is missing is kept on record and used for nothing
        split = "exclude" if LESION_MASK.match(name) else ""
        records.append(Record(id=before + name, path=before + file, label=file.split("/")[0], split=split, mask=mask))
    return records


def fetal_planes(folder: Path) -> list[Record] | None:
    """The CSV's rows: label = plane, for the brain its standard plane where it has one; group = patient; test as published.

    The 8 published classes call the other brain planes Other, the official 6 join all of the brain: `data.merge` does either.
    The published training part gives a tenth of its patients to val.
    """
    table = folder / FETAL_CSV
    if not table.is_file():
        return None
    rows = list(csv.DictReader(table_text(table).splitlines(), delimiter=";"))
    rows = [{(k or "").strip(): (v or "").strip() for k, v in row.items() if not isinstance(v, list)} for row in rows]
    wanted = {"Image_name", "Patient_num", "Plane", "Brain_plane", "Train"}  # the published header says "Train "
    if not rows or (lacking := wanted - rows[0].keys()):
        columns = ", ".join(rows[0]) if rows else "no rows"
        raise ValueError(f"{table} lacks {', '.join(sorted(lacking)) if rows else 'rows'}; found: {columns}")
    by_stem = {Path(name).stem: name for name in image_files(folder)}
    records = []
    for number, row in enumerate(rows, start=2):
        plane, brain = row["Plane"], row["Brain_plane"]
        label = brain if plane == "Fetal brain" and brain in BRAIN_PLANES else plane
        if label not in (*FETAL_PLANES, "Fetal brain", *BRAIN_PLANES):
            raise ValueError(
                f"{table} line {number}: unknown Plane {plane!r}; known: {', '.join(FETAL_PLANES)}, Fetal brain"
            )
        if row["Train"] not in ("0", "1"):
            raise ValueError(f"{table} line {number}: Train is {row['Train']!r}, expected 0 or 1")
        name = row["Image_name"]
        path = by_stem.pop(name, f"Images/{name}.png")  # a missing image is listed in rejected.csv when it is packed
        records.append(
            Record(
                id=name,
                path=path,
                label=label,
                group=f"patient {row['Patient_num']}",
                split="train" if row["Train"] == "1" else "test",
            )
        )
    repeated = [name for name, count in Counter(r.id for r in records).items() if count > 1]
    if repeated:
        raise ValueError(f"{table} lists {repeated[0]} twice: keep one of its lines")
    if not any((folder / r.path).is_file() for r in records[:100]):
        raise ValueError(
            f"{table} names images such as {records[0].path}, but none of the first 100 is there: unpack Images/"
        )
    # images without a row have no label and no patient
    records += [Record(id=stem, path=path, split="exclude") for stem, path in sorted(by_stem.items())]
    training = [r for r in records if r.split == "train"]
    for record, split in zip(training, assign([r.group for r in training], (0.9, 0.1, 0.0)).tolist(), strict=True):
        record.split = split
    return records


def radimagenet(folder: Path) -> list[Record] | None:
    """The ultrasound part, wherever below `radiology_ai` the folder begins: label = anatomy."""
    root = next((folder / p for p in ("radiology_ai/US", "US") if (folder / p).is_dir()), folder)
    classes = [d for d in sorted(root.iterdir()) if d.is_dir()] if root.is_dir() else []
    if not classes or not any(next(d.glob("usn[0-9]*.png"), None) for d in classes):
        return None
    return _class_folders(folder, root)


def umtd(folder: Path) -> list[Record] | None:
    """28 class folders; a folder of this set by its names, even where some are missing."""
    if not folder.is_dir():
        return None
    names = [d.name for d in folder.iterdir() if d.is_dir()]
    known = [n for n in names if n.rsplit("_", 1)[0] in UMTD_FAMILIES and "_" in n]
    if len(known) < 3 or len(known) < len(names):
        return None
    return _class_folders(folder, folder)


def tn3k(folder: Path) -> list[Record] | None:
    """Test as published; val is that of fold 0. No patients: the folds go by the number of the image."""
    root = _thyroid(folder, "tn3k", "trainval-image")
    if root is None:
        return None
    table = root / "tn3k-trainval-fold0.json"
    try:
        fold = json.loads(table.read_text())
        split_of = {f"trainval/{number:04d}": split for split in ("train", "val") for number in fold[split]}
    except FileNotFoundError as error:
        raise ValueError(
            f"{root} lacks {table.name}, which says what is validated on: unpack the whole download"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{table} is not of the form {{"train": [numbers], "val": [numbers]}}') from error
    records = []
    for part in ("trainval", "test"):
        for record in _beside_each_other(folder, root, f"{part}-image", f"{part}-mask"):
            record.split = "test" if part == "test" else split_of.get(f"trainval/{Path(record.path).stem}", "")
            if not record.split:
                raise ValueError(f"{table} does not say whether {record.path} is for training or validation")
            records.append(record)
    return records


def tg3k(folder: Path) -> list[Record] | None:
    """The thyroid in frames of videos. The published split cuts through a video, so that it is not used here.

    Which frames are one video is not published: runs of numbers in which all frames have one size are a group.
    """
    root = _thyroid(folder, "tg3k", "thyroid-image")
    if root is None:
        return None
    records = _beside_each_other(folder, root, "thyroid-image", "thyroid-mask")
    before, run = None, 0
    for record in records:
        try:
            with Image.open(folder / record.path) as image:
                size = image.size
        except OSError:  # it is refused with a reason when it is packed
            size = before
        run += size != before
        before, record.group = size, f"video {run}"
    return records


def ddti(folder: Path) -> list[Record] | None:
    """The preprocessed form that comes with TN3K; no patients, no splits."""
    root = _thyroid(folder, "DDTI", "2_preprocessed_data/stage1/p_image")
    return _beside_each_other(folder, root / "2_preprocessed_data" / "stage1", "p_image", "p_mask") if root else None


def _thyroid(folder: Path, name: str, within: str) -> Path | None:
    """The root of one of the three sets that are downloaded together, where `folder` is it or holds it alone."""
    if (folder / within).is_dir():
        return folder
    if not (folder / name / within).is_dir():
        return None
    others = [other for other in ("tn3k", "tg3k", "DDTI") if (folder / other).is_dir()]
    if len(others) > 1:
        raise ValueError(f"{folder} holds {', '.join(others)}: give one of them, e.g. {folder / others[0]}")
    return folder / name


def nerve(folder: Path) -> list[Record] | None:
    """Brachial plexus: group = subject; most masks are empty. The published test part has no masks and is left out."""
    root = folder / "train" if (folder / "train").is_dir() else folder
    stems = {f.stem for f in root.glob("*_*.tif") if re.fullmatch(r"\d+_\d+(_mask)?", f.stem)}
    images = sorted((stem for stem in stems if not stem.endswith("_mask")), key=natural_key)
    if not any(f"{stem}_mask" in stems for stem in images):
        return None
    records = []
    for stem in images:
        path = _prefix(folder, root) + stem
        records.append(
            Record(id=path, path=f"{path}.tif", group=f"subject {stem.split('_')[0]}", mask=f"{path}_mask.tif")
        )
    return records


def fetal_abdomen(folder: Path) -> list[Record] | None:
    """Artery 1, liver 2, stomach 3, vein 4, from pickled arrays (`vfm4us.data.arrays`); group = pregnancy."""
    if not ((folder / "IMAGES").is_dir() and (folder / "ARRAY_FORMAT").is_dir()):
        return None
    records = []
    for file in image_files(folder / "IMAGES"):
        stem = Path(file).stem
        match = re.fullmatch(r"(P\d+)_IMG\d+", stem)
        if not match:
            raise ValueError(f"{folder / 'IMAGES' / file} is not named P<pregnancy>_IMG<number>: move it elsewhere")
        path, mask = f"IMAGES/{file}", f"ARRAY_FORMAT/{stem}.npy"  # a missing array is listed when the image is packed
        records.append(Record(id=f"IMAGES/{stem}", path=path, group=match[1], mask=mask))
    return records


def c_trus(folder: Path) -> list[Record] | None:
    """Group = patient, whom the published folds divide, so that they are not used here; label = quality of the annotation."""
    root = _inside(folder, "c-trus-main")
    table = root / "c-trus.csv"
    if not table.is_file():
        return None
    rows = list(csv.DictReader(table_text(table).splitlines()))
    if not rows or (lacking := {"file", "patient"} - rows[0].keys()):
        raise ValueError(f"{table} lacks {', '.join(sorted(lacking)) if rows else 'rows'}")
    patients = {Path(row["file"]).stem: row for row in rows}
    records = _beside_each_other(folder, root, "original", "labels")
    for record in records:
        row = patients.get(Path(record.path).stem)
        if row is None or not (row["patient"] or "").strip():
            raise ValueError(f"{table} does not say whose image {record.path} is")
        record.group, record.label = f"patient {row['patient'].strip()}", (row.get("quality_name") or "").strip()
    return records


def usenhance(folder: Path) -> list[Record] | None:
    """Label = organ, target = the high-quality image of the same name; the whole set or the folder of one organ.

    No patients are published, but neighbouring ids look alike: each organ is cut into contiguous stretches, the first 70 % of its
    blocks of ids for training, the next 10 % for validation, the rest for the test.
    """
    root = _inside(folder, "train_datasets")
    organs = [root / name for name in USENHANCE if (root / name / "low_quality").is_dir()]
    if not organs and root.name in USENHANCE and (root / "low_quality").is_dir():
        organs = [root]
    records = []
    for organ in organs:
        before, (first, last) = _prefix(folder, organ), USENHANCE[organ.name]
        files = {Path(f).stem: f for f in image_files(organ / "low_quality") if re.fullmatch(r"\d{4}", Path(f).stem)}
        if not files:
            return None  # somebody's own pairs of this organ
        if not (organ / "high_quality").is_dir():
            raise ValueError(f"{organ} has low_quality/ and no high_quality/: unpack the whole download")
        if outside := [stem for stem in sorted(files) if not first <= int(stem) <= last]:
            where = organ / "low_quality" / files[outside[0]]
            raise ValueError(f"{where}: the ids of {organ.name} are {first:04d} to {last:04d}; move it elsewhere")
        targets = {Path(f).stem: f for f in image_files(organ / "high_quality")}
        blocks = sorted({(int(stem) - first) // USENHANCE_BLOCK for stem in files})
        training = max(1, round(0.7 * len(blocks)))
        tested = max(training + 1, round(0.8 * len(blocks)))
        for stem, file in sorted(files.items()):
            block = (int(stem) - first) // USENHANCE_BLOCK
            place = blocks.index(block)
            path, target = (
                f"{before}low_quality/{file}",
                targets.get(stem, file),
            )  # a missing one is listed when it is packed
            records.append(
                Record(
                    id=without_extension(path),
                    path=path,
                    target=f"{before}high_quality/{target}",
                    label=organ.name,
                    group=f"{organ.name} block {block}",
                    split="train" if place < training else "val" if place < tested else "test",
                )
            )
    return records or None


def _beside_each_other(folder: Path, root: Path, images: str, masks: str) -> list[Record]:
    """Records of root/images, each with the file of the same name in root/masks, in the order of their names."""
    before = _prefix(folder, root)
    mask_of = {Path(file).stem: file for file in image_files(root / masks)} if (root / masks).is_dir() else {}
    if not mask_of:
        raise ValueError(f"{root / masks} holds no masks: unpack the whole download")
    records = []
    for file in sorted(image_files(root / images), key=natural_key):
        path = f"{before}{images}/{file}"
        mask = mask_of.get(Path(file).stem, file)  # a missing mask is listed when the image is packed
        records.append(Record(id=without_extension(path), path=path, mask=joined_paths([f"{before}{masks}/{mask}"])))
    return records


def _class_folders(folder: Path, root: Path) -> list[Record]:
    """One record per image below `root`: label = its first folder there. No patients, no splits."""
    before = _prefix(folder, root)
    files = [file for file in image_files(root) if "/" in file]
    return [Record(id=without_extension(before + f), path=before + f, label=f.split("/")[0]) for f in files]


def _prefix(folder: Path, root: Path) -> str:
    return "" if root == folder else f"{root.relative_to(folder).as_posix()}/"


def _inside(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else folder


def hc18(folder: Path) -> list[Record] | None:
    """Fetal heads: masks from the outlines NNN_HC_Annotation.png, test part without masks; group = the subject's number."""
    parts = [folder / "training_set", folder / "test_set"] if (folder / "training_set").is_dir() else [folder]
    named = re.compile(r"(\d+)_\d*HC")  # 010_HC, 010_2HC: a second image of the same subject
    records = []
    for part in parts:
        files = {without_extension(file): file for file in image_files(part)} if part.is_dir() else {}
        if part == parts[0] and not any(named.fullmatch(name) and f"{name}_Annotation" in files for name in files):
            return None
        split = "test" if part.name == "test_set" else ""
        for name, file in files.items():
            if not (number := named.fullmatch(name)):
                continue
            before, outline = _prefix(folder, part), files.get(f"{name}_Annotation", "")
            records.append(
                Record(
                    id=before + name,
                    path=before + file,
                    group=f"subject {'test ' * (split == 'test')}{number[1]}",
                    split=split or "train",
                    mask=joined_paths([before + outline] * bool(outline)),
                )
            )
    return records or None


LAYOUTS: dict[str, Callable[[Path], list[Record] | None]] = {
    "busi": busi,
    "fetal_planes": fetal_planes,
    "radimagenet": radimagenet,
    "umtd": umtd,
    "tn3k": tn3k,
    "tg3k": tg3k,
    "ddti": ddti,
    "nerve": nerve,
    "fetal_abdomen": fetal_abdomen,
    "c_trus": c_trus,
    "usenhance": usenhance,
    **published.LAYOUTS,
    "hc18": hc18,
}
