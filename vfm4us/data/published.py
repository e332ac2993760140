"""Published datasets of clips, volumes and outlines, and the common forms of annotation -> records; told by their own names.

camus           patient####/patient####_{2CH,4CH}_{ED,ES}.nii.gz (or .mhd) with _gt: chambers of the heart (Leclerc 2019)
echonet         Videos/*.avi, FileList.csv, VolumeTracings.csv: EchoNet-Dynamic (Ouyang 2020), the two traced frames of each
us4             US-4 of USCL (Chen 2021): a folder of frames per video, whose name begins with the class
ddti_original   <case>_<k>.jpg and <case>.xml: thyroid nodules, outlines and TI-RADS (Pedraza 2015)
nerve_runs      Kaggle's Ultrasound Nerve Segmentation with train_masks.csv where the mask images are missing
coco, via, yolo outlines in a JSON file, of the VGG annotator, or in one text file per image
labelme         outlines in one JSON file per image
"""

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from vfm4us.data import limits, polygons
from vfm4us.data.records import SPLIT_SYNONYMS, Record, image_files, joined_paths, natural_key, without_extension

US4 = {  # first letters of a video's folder
    **{f"Rb{k}": f"CLUST {k}" for k in range(1, 6)},
    **{f"F{k}_": f"liver fibrosis {k}" for k in range(5)},
    **{"Reg": "lung regular", "Cov": "lung COVID-19"},
    **{"Ali": "lung A-lines", "Bli": "lung B-lines", "Ple": "lung pleural effusion", "Oth": "lung other"},
}
LARGEST_JSON = 64 * 1024**2  # bytes that are looked into to see what a file is


def camus(folder: Path) -> list[Record] | None:
    """End-diastole and end-systole with their masks (1 ventricle, 2 myocardium, 3 atrium); label = view, group = patient.

    The half sequences hold the same frames without masks and are left out; database_split/ says train, val and test.
    """
    named = re.compile(r"(patient\d{4})_([24]CH)_(ED|ES)")
    files = (
        {without_extension(file): file for file in image_files(folder) if "patient" in file} if folder.is_dir() else {}
    )
    images = {stem: match for stem in files if (match := named.fullmatch(Path(stem).name))}
    if not any(f"{stem}_gt" in files for stem in images):
        return None
    split_of = {}
    for split, word in (("train", "training"), ("val", "validation"), ("test", "testing")):
        for table in sorted(folder.glob(f"**/subgroup_{word}.txt")):
            split_of |= {name.strip(): split for name in table.read_text(encoding="utf-8").split()}
    return [
        Record(
            id=stem,
            path=files[stem],
            label=match[2],
            group=match[1],
            split=split_of.get(match[1], ""),
            mask=joined_paths([files[f"{stem}_gt"]] * (f"{stem}_gt" in files)),
        )
        for stem, match in images.items()
    ]


def echonet(folder: Path) -> list[Record] | None:
    """The traced frames with the left ventricle as mask, of clips without tracings those that a rule takes; split as published."""
    table, clips = folder / "FileList.csv", folder / "Videos"
    if not (table.is_file() and clips.is_dir()):
        return None
    rows = _rows(table)
    if not rows or "FileName" not in rows[0]:
        raise ValueError(f"{table} has no column FileName")
    traced: dict[str, list[int]] = {}
    tracings = folder / "VolumeTracings.csv"
    if tracings.is_file():
        for key in polygons.keys(tracings):
            stem, _, number = key.rpartition("#")
            traced.setdefault(stem, []).append(int(number))
    records = []
    for row in rows:
        stem = re.sub(r"\.avi$", "", (row["FileName"] or "").strip(), flags=re.IGNORECASE)
        if not stem:
            continue
        path, split = f"Videos/{stem}.avi", _split(row.get("Split") or "")
        if stem not in traced:
            records.append(Record(id=f"Videos/{stem}", path=path, group=stem, split=split))
        for number in traced.get(stem, []):
            mask = joined_paths([polygons.reference(tracings.name, f"{stem}#{number}")])
            records.append(Record(id=f"Videos/{stem}", path=path, group=stem, split=split, frame=number, mask=mask))
    return records


def us4(folder: Path) -> list[Record] | None:
    """Frames of videos; label by the first letters of the video's folder, group = that folder."""
    if not folder.is_dir():
        return None
    records, videos = [], set()
    for file in image_files(folder):
        parts = file.split("/")
        if len(parts) < 2:
            return None
        label = US4.get(parts[-2][:3])
        if label is None or not Path(parts[-1]).stem.startswith(parts[-2][:3]):
            return None
        videos.add(parts[-2][:3])
        records.append(Record(id=without_extension(file), path=file, label=label, group="/".join(parts[:-1])))
    return records if len(videos) > 1 else None


def ddti_original(folder: Path) -> list[Record] | None:
    """Label = TI-RADS of the case, group = case, masks from the outlines; an image without an outline has no mask."""
    cases = {f.stem: f for f in folder.glob("*.xml") if f.stem.isdigit()} if folder.is_dir() else {}
    files = {} if not cases else {Path(f).stem: f for f in image_files(folder) if "/" not in f}
    images = [stem for stem in files if re.fullmatch(r"\d+_\d+", stem) and stem.split("_")[0] in cases]
    if not images:
        return None
    records = []
    for stem in sorted(images, key=natural_key):
        case, number = stem.split("_")
        table = cases[case]
        try:
            outlined = number in polygons.keys(table)
        except (
            ValueError
        ):  # two published files are cut short: their images are refused with this reason when they are packed
            outlined = True
        mask = joined_paths([polygons.reference(table.name, number)] * bool(outlined))
        records.append(Record(id=stem, path=files[stem], label=_tirads(table), group=f"case {case}", mask=mask))
    return records


def _tirads(table: Path) -> str:
    text = limits.file_bytes(table)
    match = re.search(rb"<tirads>\s*([0-9][a-c]?)\s*</tirads>", text)
    return f"TI-RADS {match[1].decode()}" if match else ""


def nerve_runs(folder: Path) -> list[Record] | None:
    """Group = subject; masks from run lengths, most of them empty."""
    table, part = folder / "train_masks.csv", folder / "train"
    if not (table.is_file() and part.is_dir()):
        return None
    stems = sorted((f.stem for f in part.glob("*.tif") if re.fullmatch(r"\d+_\d+", f.stem)), key=natural_key)
    known = set(polygons.keys(table))
    return [
        Record(
            id=f"train/{stem}",
            path=f"train/{stem}.tif",
            group=f"subject {stem.split('_')[0]}",
            mask=joined_paths([polygons.reference(table.name, stem)] * (stem in known)),
        )
        for stem in stems
    ] or None


def coco(folder: Path) -> list[Record] | None:
    """Outlines in COCO's form; classes by category, splits where files or folders are named so."""
    return _annotated(folder, lambda content: isinstance(content, dict) and {"images", "annotations"} <= content.keys())


def via(folder: Path) -> list[Record] | None:
    """Outlines of the VGG Image Annotator, as JSON or CSV; classes by the attribute that differs."""
    return _annotated(folder, _is_via, with_tables=True)


def _is_via(content) -> bool:
    content = content.get("_via_img_metadata", content) if isinstance(content, dict) else content
    entries = list(content.values()) if isinstance(content, dict) else content
    first = entries[0] if isinstance(entries, list) and entries else None
    return isinstance(first, dict) and {"filename", "regions"} <= first.keys()


def _annotated(folder: Path, is_one: Callable, with_tables: bool = False) -> list[Record] | None:
    """Records of all images of a folder with JSON files of outlines, or VIA's tables, matched by path, else by name."""
    if not folder.is_dir():
        return None
    tables = []
    for path in sorted(folder.glob("**/*.json")):
        if (content := _json_of(path)) is not None and is_one(content):
            tables.append(path)
    for path in sorted(folder.glob("**/*.csv")) if with_tables else ():
        with open(path, "rb") as stream:
            tables += [path] * (b"region_shape_attributes" in stream.readline(4096))
    tables = [table for table in tables if polygons.has_outlines(table)]  # boxes are no masks: then it is a plain tree
    if not tables:
        return None
    images = image_files(folder)
    records = {image: Record(id=without_extension(image), path=image) for image in images}
    for table in tables:
        table_name = table.relative_to(folder).as_posix()
        split = next((named for part in reversed(_words(table_name)) if (named := _split(part))), "")
        for key in polygons.keys(table):
            matches = _matching(key, images, table_name)
            if len(matches) > 1:
                raise ValueError(f"{table}: {key} could be {matches[0]} or {matches[1]}: give their paths in file_name")
            path = matches[0] if matches else key  # a missing image is listed in rejected.csv when it is packed
            record = records.setdefault(path, Record(id=without_extension(path), path=path))
            if record.mask:
                raise ValueError(
                    f"{table}: {key} has outlines in {record.mask.split('::')[0]} too: keep one of the files"
                )
            record.mask, record.split = joined_paths([polygons.reference(table_name, key)]), split
    return list(records.values())


def labelme(folder: Path) -> list[Record] | None:
    """Outlines in LabelMe's form, one JSON file for each image; classes by their names, splits where folders are named so."""
    tables = {}
    for file in sorted(folder.glob("**/*.json")) if folder.is_dir() else ():
        if polygons.is_labelme(content := _json_of(file)):
            tables[file] = str(content["imagePath"])
    if not any(map(_outlines, tables)):  # boxes are no masks
        return None
    images = image_files(folder)
    by_name: dict[str, list[str]] = {}
    for image in images:
        by_name.setdefault(Path(image).name, []).append(image)
    records = {image: Record(id=without_extension(image), path=image) for image in images}
    for file, key in tables.items():
        table = file.relative_to(folder).as_posix()
        named = os.path.normpath((Path(table).parent / key.replace("\\", "/")).as_posix())
        matches = [named] if named in records else by_name.get(Path(named).name, [])
        if len(matches) > 1:
            raise ValueError(
                f"{file}: {key} could be {matches[0]} or {matches[1]}: give its path from there in imagePath"
            )
        path = matches[0] if matches else named  # a missing image is listed in rejected.csv when it is packed
        record = records.setdefault(path, Record(id=without_extension(path), path=path))
        if record.mask:
            raise ValueError(f"{file}: {key} has outlines in {record.mask.split('::')[0]} too: keep one of the files")
        record.mask = joined_paths([polygons.reference(table, key)])
        record.split = next((split for part in reversed(_words(path)[:-1]) if (split := _split(part))), "")
    return list(records.values())


def _json_of(file: Path):
    """The content of a JSON file, None of what is none or too large to be one of outlines."""
    try:
        if file.is_file() and file.stat().st_size <= LARGEST_JSON:
            return json.loads(limits.file_bytes(file))
    except (ValueError, RecursionError):
        pass
    return None


def _outlines(file: Path) -> bool:
    try:
        return polygons.has_outlines(file)
    except ValueError:  # a damaged one: its image is refused when it is packed
        return True


def _matching(key: str, images: list[str], table: str) -> list[str]:
    """The images that a name in a table means: the nearest folder of the table first."""
    key = key.replace("\\", "/").lstrip("./")
    matches = [image for image in images if image == key or image.endswith("/" + key)]
    if not matches:
        matches = [image for image in images if Path(image).name == Path(key).name]
    parts = table.split("/")[:-1]
    while parts and len(matches) > 1:
        near = [image for image in matches if image.startswith("/".join(parts) + "/")]
        matches = near or matches
        parts.pop()
    if len(matches) > 1:  # annotations/instances_train.json and images/train/
        near = [
            image
            for image in matches
            if set(filter(None, map(_split, _words(image)))) & set(map(_split, _words(table)))
        ]
        matches = near or matches
    return matches


def yolo(folder: Path) -> list[Record] | None:
    """Outlines in text files below labels/, in shares of width and height; the images lie below images/ in the same order."""
    if not folder.is_dir():
        return None
    images = [image for image in image_files(folder) if "images" in image.split("/")[:-1]]
    records, outlined = [], 0
    for image in images:
        parts = image.split("/")
        place = len(parts) - 1 - parts[::-1].index("images")
        label = "/".join([*parts[:place], "labels", *parts[place + 1 : -1], Path(parts[-1]).stem + ".txt"])
        exists = (folder / label).is_file()
        if exists and not outlined and not polygons.has_outlines(folder / label):
            return None  # boxes are no masks
        outlined += exists
        split = next((named for part in parts[:-1] if (named := _split(part))), "")
        mask = joined_paths([polygons.reference(label, "")] * bool(exists))
        records.append(Record(id=without_extension(image), path=image, mask=mask, split=split))
    return records if outlined else None


def _rows(table: Path) -> list[dict]:
    return list(csv.DictReader(limits.file_bytes(table).decode("utf-8-sig").splitlines()))


def _words(path: str) -> list[str]:
    """Folders and the words of the name: annotations/instances_train2017.json -> annotations, instances, train."""
    return [word for part in path.split("/") for word in re.split(r"[^A-Za-z]+", part) if word]


def _split(word: str) -> str:
    word = SPLIT_SYNONYMS.get(word.strip().lower(), word.strip().lower())
    return word if word in ("train", "val", "test") else ""


LAYOUTS: dict[str, Callable[[Path], list[Record] | None]] = {
    "camus": camus,
    "echonet": echonet,
    "us4": us4,
    "ddti_original": ddti_original,
    "nerve_runs": nerve_runs,
    "coco": coco,
    "via": via,
    "yolo": yolo,
    "labelme": labelme,
}
