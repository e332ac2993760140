"""What a source of images holds: a CSV manifest, or a folder whose layout says it, as a list of records."""

import csv
import difflib
import io
import os
import re
from collections import Counter
from pathlib import Path

from vfm4us.data import layouts
from vfm4us.data.containers import Reading, one_record_per_image
from vfm4us.data.records import (
    IMAGE_EXTENSIONS,
    LESION_MASK,
    PATH_SEPARATOR,
    SPLIT_SYNONYMS,
    Record,
    image_files,
    masks_beside,
    natural_key,
    split_name,
    table_text,
    with_unique_ids,
    without_extension,
)


def source_root(path) -> Path:
    """The folder that the paths of a source's records are relative to."""
    path = Path(path)
    return path.parent if path.is_file() else path


def find_source(path, reading: Reading | None = None) -> list[Record]:
    """List the images of a source: the files of `list_source`, of those that hold several images one record per image taken.

    reading: which frames and regions those are
    """
    return one_record_per_image(source_root(path), list_source(path), reading or Reading())


def list_source(path) -> list[Record]:
    """List the files of a source, in natural order of their ids for folders and in file order for a CSV manifest.

    `path` is a CSV file with the columns path, label, group, split, mask, target (all but path optional, further
    columns ignored, paths relative to the CSV), or a folder: with `manifest.csv`; with `images/` and perhaps `masks/`;
    with `low_quality/` and `high_quality/`; a published dataset (`vfm4us.data.layouts`); or any tree of images, where the
    first sub-folder is the label, first sub-folders named like splits (train/, val/, test/) are splits, and BUSI's
    `x_mask.png` is the mask of `x.png`.
    Hidden files are passed over. Raises FileNotFoundError or ValueError naming the path and what to do.
    """
    path = Path(path)
    if path.is_file():
        return _from_csv(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a folder of images or a CSV manifest{_nearest(path)}")
    if (path / "dataset.json").is_file() and (path / "images.npy").is_file():
        raise ValueError(f"{path} is already a prepared dataset: open it with PreparedDataset, or give its source")
    if (path / "manifest.csv").is_file():
        return _from_csv(path / "manifest.csv")
    published = layouts.recognise(path)
    if published is not None:
        return with_unique_ids(sorted(published, key=lambda record: natural_key(record.path)))
    files = image_files(path)
    tops = {file.split("/")[0] for file in files if "/" in file}
    if "low_quality" in tops and (path / "high_quality").is_dir():
        records = _paired(files, "low_quality", "high_quality", "target")
    elif "images" in tops and (tops <= {"images", "masks"}):
        records = _paired(files, "images", "masks", "mask")
    else:
        records = _from_tree(path, files)
    if not records:
        raise ValueError(f"{path} holds no images{_looked_for(path)}")
    records.sort(key=lambda record: natural_key(record.path))
    return with_unique_ids(records)


# CSV manifests


def _from_csv(path: Path) -> list[Record]:
    text = table_text(path)
    first_line = text.lstrip("\r\n").split("\n", 1)[0]
    for delimiter in (",", ";", "\t"):
        names = [name.strip().strip('"').lower() for name in first_line.split(delimiter)]
        if "path" in names:
            break
    else:
        raise ValueError(
            f"{path} has no column named path (its first line is {first_line.strip()[:80]!r}): "
            "the columns are path, label, group, split, mask, target; all but path are optional"
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header, records, line_of = None, [], {}
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = [name.strip().lower() for name in row]
            repeated = [name for name, count in Counter(header).items() if name and count > 1]
            if repeated:
                raise ValueError(f"{path} names the column {repeated[0]} twice: keep one")
            continue
        where = f"{path} line {reader.line_num}"
        if len(row) > len(header):
            raise ValueError(
                f"{where} has {len(row)} cells for {len(header)} columns: quote values that contain {delimiter!r}"
            )
        cells = dict(zip(header, (cell.strip() for cell in row), strict=False))
        image = _posix(cells.get("path", ""))
        if not image:
            raise ValueError(f"{where} has an empty path: fill it in or delete the line")
        if image in line_of:
            raise ValueError(f"{where} lists {image} a second time (first on line {line_of[image]}): keep one")
        line_of[image] = reader.line_num
        masks = [_posix(part.strip()) for part in re.split(r"[;|]", cells.get("mask", "")) if part.strip()]
        records.append(
            Record(
                id=without_extension(image),
                path=image,
                label=cells.get("label", ""),
                group=cells.get("group", ""),
                split=split_name(cells.get("split", ""), where),
                mask=PATH_SEPARATOR.join(_with_further_lesions(path.parent, masks)),
                target=_posix(cells.get("target", "")),
            )
        )
    if not records:
        raise ValueError(f"{path} lists no images: it has a header line and nothing else")
    return with_unique_ids(records)


def _with_further_lesions(root: Path, masks: list[str]) -> list[str]:
    """Add BUSI's `x_mask_1.png`, `x_mask_2.png` where a manifest names only `x_mask.png`.

    17 images of BUSI have several lesions in several files; a manifest that names the first alone would call the
    others background.
    """
    if len(masks) != 1 or not Path(masks[0]).stem.endswith("_mask"):
        return masks
    first = Path(masks[0])
    further = []
    while (root / (name := first.with_name(f"{first.stem}_{len(further) + 1}{first.suffix}"))).is_file():
        further.append(name.as_posix())
    return masks + further


# folders


def _paired(files: list[str], images: str, partners: str, role: str) -> list[Record]:
    """Records of `images/...`, each with the file of the same relative name below `partners/` as mask or target."""
    partner_of = {}
    for file in files:
        if file.startswith(partners + "/"):
            partner_of.setdefault(without_extension(file[len(partners) + 1 :]), []).append(file)
    records, used = [], 0
    for file in files:
        if not file.startswith(images + "/"):
            continue
        name = file[len(images) + 1 :]
        found = sorted(partner_of.get(without_extension(name), []))
        exact = [partner for partner in found if partner[len(partners) + 1 :] == name]
        label = name.split("/")[0] if "/" in name else ""
        record = Record(id=without_extension(file), path=file, label=label)
        setattr(record, role, (exact or found or [""])[0])
        used += bool(found)
        records.append(record)
    if records and partner_of and not used:
        raise ValueError(
            f"no file below {images}/ has a partner of the same name below {partners}/ "
            f"(e.g. {sorted(partner_of)[0]}): rename them alike, or write a CSV with the columns path,{role}"
        )
    return records


def _from_tree(root: Path, files: list[str]) -> list[Record]:
    for first, second in (("images", "masks"), ("low_quality", "high_quality")):
        folders = {str(Path(file).parent.parent) for file in files if Path(file).parent.name == first}
        both = [folder for folder in sorted(folders) if (root / folder / second).is_dir()]
        if both:  # packing masks or targets as if they were images would spoil the data without a word
            inner = (root / both[0]).as_posix()
            raise ValueError(
                f"{root} holds {first}/ and {second}/ beside or below other folders: prepare {inner} on its own, or "
                "write a manifest.csv with the columns path,label,group,split,mask,target"
            )
    images, masks = masks_beside(files)
    first_folders = {file.split("/")[0] for file in images if "/" in file}
    split_folders = {name for name in first_folders if _split_or_none(name)}
    # train/ and val/ as first folders are splits; a single class called "test" is a class
    by_split = len(split_folders) > 1 and split_folders == first_folders
    records = []
    for file in images:
        parts = file.split("/")
        split = _split_or_none(parts[0]) if by_split and len(parts) > 1 else ""
        folders = parts[1:-1] if split else parts[:-1]
        name = without_extension(file)
        record = Record(id=name, path=file, label=folders[0] if folders else "", split=split)
        record.mask = PATH_SEPARATOR.join(masks.get(name, []))
        if masks and LESION_MASK.match(name):
            record.split = "exclude"  # a mask whose image is missing: kept on record, used for nothing
        records.append(record)
    return records


def _split_or_none(name: str) -> str:
    word = SPLIT_SYNONYMS.get(name.lower(), name.lower())
    return word if word in ("train", "val", "test") else ""


def _posix(path: str) -> str:
    return path.replace("\\", "/")


def _nearest(path: Path) -> str:
    """A hint at the entry of the parent folder whose name is nearest to a mistyped one."""
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" (did you mean {path.parent / near[0]}?)" if near else ""


def _looked_for(root: Path) -> str:
    found = Counter()
    for _, _, names in os.walk(root):
        found.update(os.path.splitext(name)[1].lower() or "no extension" for name in names)
    there = ", ".join(f"{count} {extension}" for extension, count in found.most_common(5))
    return f": looked for {' '.join(IMAGE_EXTENSIONS)}, found {there or 'no files at all'}"
