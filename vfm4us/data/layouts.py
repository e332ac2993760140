"""Published ultrasound datasets as they lie on disk -> records with label, patient and split; told by their own names.

`recognise(folder)` is asked by `manifest.find_source` before it takes a folder for a plain tree of class folders. Each
layout fails with a message that names the file when the disk says otherwise than the publication.

    busi            Dataset_BUSI_with_GT/{benign,malignant,normal}/<class> (N).png with _mask, _mask_1 (Al-Dhabyani 2020)
    fetal_planes    FETAL_PLANES_DB_data.csv and Images/ (Burgos-Artizzu 2020): patients, official test split
    radimagenet     radiology_ai/US/<anatomy>/usn*.png (Mei 2022): 15 classes, no patients
    umtd            US-MTD120K: 28 class folders such as FetalBrain_CB or thyroid_node_0
"""

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from vfm4us.data import manifest
from vfm4us.data.manifest import Record
from vfm4us.data.splits import assign

BUSI_CLASSES = ("benign", "malignant", "normal")
FETAL_CSV = "FETAL_PLANES_DB_data.csv"
FETAL_PLANES = ("Fetal abdomen", "Fetal femur", "Fetal thorax", "Maternal cervix", "Other")
BRAIN_PLANES = ("Trans-thalamic", "Trans-cerebellum", "Trans-ventricular")
UMTD_FAMILIES = {"FetalBrain": 3, "Liver": 13, "breast": 2, "thyroid": 8, "thyroid_node": 2}


def recognise(folder: Path) -> list[Record] | None:
    """The records of a published dataset, or None where the folder is none; ValueError where it is one, but not whole."""
    for layout in LAYOUTS.values():
        records = layout(Path(folder))
        if records is not None:
            return records
    return None


def busi(folder: Path) -> list[Record] | None:
    """Three class folders, one below the folder or in it; further lesions' masks belong to one image. No patients."""
    root = _inside(folder, "Dataset_BUSI_with_GT")
    if not all((root / name).is_dir() for name in BUSI_CLASSES) or not any((root / "benign").glob("benign (*).png")):
        return None
    before = "" if root == folder else f"{root.relative_to(folder).as_posix()}/"
    files = [f for f in manifest._image_files(root) if f.split("/")[0] in BUSI_CLASSES]
    records = manifest._from_tree(root, files)
    for record in records:
        record.id, record.path = before + record.id, before + record.path
        record.mask = manifest.PATH_SEPARATOR.join(before + part for part in record.mask_paths)
    return records


def fetal_planes(folder: Path) -> list[Record] | None:
    """The CSV's rows: label = plane, for the brain its standard plane where it has one; group = patient; test as published.

    The 8 published classes call the other brain planes Other, the official 6 join all of the brain: `data.merge` does either.
    The published training part gives a tenth of its patients to val.
    """
    table = folder / FETAL_CSV
    if not table.is_file():
        return None
    rows = list(csv.DictReader(manifest._decoded(table).splitlines(), delimiter=";"))
    rows = [{(k or "").strip(): (v or "").strip() for k, v in row.items() if not isinstance(v, list)} for row in rows]
    wanted = {"Image_name", "Patient_num", "Plane", "Brain_plane", "Train"}  # the published header says "Train "
    if not rows or (lacking := wanted - rows[0].keys()):
        found = ", ".join(rows[0]) if rows else "no rows"
        raise ValueError(f"{table} lacks {', '.join(sorted(lacking)) if rows else 'rows'}; found: {found}")
    there = {Path(name).stem: name for name in manifest._image_files(folder)}
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
        path = there.pop(name, f"Images/{name}.png")  # a missing image is listed in rejected.csv when it is packed
        records.append(Record(
            id=name, path=path, label=label, group=f"patient {row['Patient_num']}", split="train" if row["Train"] == "1" else "test"
        ))  # fmt: skip
    repeated = [name for name, count in Counter(r.id for r in records).items() if count > 1]
    if repeated:
        raise ValueError(f"{table} lists {repeated[0]} twice: keep one of its lines")
    if not any((folder / r.path).is_file() for r in records[:100]):
        raise ValueError(
            f"{table} names images such as {records[0].path}, but none of the first 100 is there: unpack Images/"
        )
    # images without a row have no label and no patient
    records += [Record(id=stem, path=path, split="exclude") for stem, path in sorted(there.items())]
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


def _class_folders(folder: Path, root: Path) -> list[Record]:
    """One record per image below `root`: label = its first folder there. No patients, no splits."""
    before = "" if root == folder else f"{root.relative_to(folder).as_posix()}/"
    files = [file for file in manifest._image_files(root) if "/" in file]
    return [Record(id=manifest._without_extension(before + f), path=before + f, label=f.split("/")[0]) for f in files]


def _inside(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else folder


LAYOUTS: dict[str, Callable[[Path], list[Record] | None]] = {
    "busi": busi, "fetal_planes": fetal_planes, "radimagenet": radimagenet, "umtd": umtd,
}  # fmt: skip
