"""Published datasets of clips, volumes and outlines -> records; told by their own names.

camus           patient####/patient####_{2CH,4CH}_{ED,ES}.nii.gz (or .mhd) with _gt: chambers of the heart (Leclerc 2019)
echonet         Videos/*.avi, FileList.csv, VolumeTracings.csv: EchoNet-Dynamic (Ouyang 2020), the two traced frames of each
                and a view's folder of EchoNet-Pediatric (Reddy 2023)
us4             US-4 of USCL (Chen 2021): a folder of frames per video, whose name begins with the class
ddti_original   <case>_<k>.jpg and <case>.xml: thyroid nodules, outlines and TI-RADS (Pedraza 2015)
nerve_runs      Kaggle's Ultrasound Nerve Segmentation with train_masks.csv where the mask images are missing
"""

import csv
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


def _rows(table: Path) -> list[dict]:
    return list(csv.DictReader(limits.file_bytes(table).decode("utf-8-sig").splitlines()))


def _split(word: str) -> str:
    word = SPLIT_SYNONYMS.get(word.strip().lower(), word.strip().lower())
    return word if word in ("train", "val", "test") else ""


LAYOUTS: dict[str, Callable[[Path], list[Record] | None]] = {
    "camus": camus,
    "echonet": echonet,
    "us4": us4,
    "ddti_original": ddti_original,
    "nerve_runs": nerve_runs,
}
