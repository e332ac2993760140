"""What a source of images holds: a CSV manifest, or a folder whose layout says it, as a list of records."""

import csv
import difflib
import io
import os
import re
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
SPLITS = ("train", "val", "test", "exclude")
SPLIT_SYNONYMS = {
    "training": "train",
    "tr": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
    "excluded": "exclude",
}
PATH_SEPARATOR = ";"  # between several masks of one image
LESION_MASK = re.compile(r"^(?P<image>.+)_mask(?:_\d+)?$")  # BUSI: `x_mask.png`, `x_mask_1.png` belong to `x.png`


@dataclass
class Record:
    """One image: where it lies, what is known of it, and where its pixels stand in the packed S x S frame.

    `path`, `mask` and `target` stand as in the source; several masks are joined by ";". `height` and `width` are the
    native size in pixels, the valid rectangle is in pixels of the packed frame, `phash` is 16 hex digits.
    `split` is one of train, val, test, exclude, or "" while not yet decided.
    """

    id: str
    path: str
    label: str = ""
    group: str = ""
    split: str = ""
    mask: str = ""
    target: str = ""
    height: int = 0
    width: int = 0
    top: int = 0
    left: int = 0
    valid_height: int = 0
    valid_width: int = 0
    sha256: str = ""
    phash: str = ""

    @property
    def mask_paths(self) -> list[str]:
        return [part for part in self.mask.split(PATH_SEPARATOR) if part]


COLUMNS = tuple(field.name for field in fields(Record))
INTEGER_COLUMNS = tuple(field.name for field in fields(Record) if field.type is int)


def natural_key(text: str) -> tuple:
    """Sorting key that puts `image 2` before `image 10`; ties are broken by the text itself."""
    parts = re.split(r"(\d+)", text)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], text


def source_root(path) -> Path:
    """The folder that the paths of a source's records are relative to."""
    path = Path(path)
    return path.parent if path.is_file() else path


def find_source(path) -> list[Record]:
    """List the images of a source, in natural order of their ids for folders and in file order for a CSV manifest.

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
    from vfm4us.data import layouts  # they build on this module

    published = layouts.recognise(path)
    if published is not None:
        return _with_unique_ids(sorted(published, key=lambda record: natural_key(record.path)))
    files = _image_files(path)
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
    return _with_unique_ids(records)


def read_manifest(path) -> list[Record]:
    """Read the manifest.csv of a prepared dataset."""
    path = Path(path)
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} is not the manifest of a prepared dataset: it lacks {', '.join(missing)}")
        records = []
        for row in reader:
            try:
                values = {name: int(row[name]) if name in INTEGER_COLUMNS else row[name] for name in COLUMNS}
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path} line {reader.line_num} is damaged ({error}): prepare it again") from error
            records.append(Record(**values))
    return records


def write_manifest(path, records: list[Record]) -> None:
    """Write records as manifest.csv (UTF-8, comma, one line per image)."""
    # surrogateescape: a file name that is not UTF-8 comes back as the same bytes
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([getattr(record, name) for name in COLUMNS] for record in records)


def split_name(text: str, where: str) -> str:
    """The split that a source's word stands for; raises ValueError listing the allowed words."""
    word = text.strip().lower()
    word = SPLIT_SYNONYMS.get(word, word)
    if word and word not in SPLITS:
        allowed = ", ".join(SPLITS + tuple(SPLIT_SYNONYMS))
        raise ValueError(f"{where}: unknown split {text!r}; use one of {allowed}, or leave it empty")
    return word


# CSV manifests


def _from_csv(path: Path) -> list[Record]:
    text = _decoded(path)
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
                id=_without_extension(image),
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
    return _with_unique_ids(records)


def _decoded(path: Path) -> str:
    """The text of a CSV: UTF-8 with or without a byte-order mark, or UTF-16 with one (what spreadsheets write)."""
    data = path.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        place = f"{error.reason} at byte {error.start}"
        raise ValueError(f"{path} is not a CSV in UTF-8 ({place}): save it as UTF-8") from error
    if "\0" in text or not text.strip():
        raise ValueError(f"{path} is {'empty' if not text.strip() else 'not text'}: give a CSV manifest or a folder")
    return text


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


def _image_files(root: Path) -> list[str]:
    """Image files below `root` as relative POSIX paths; symbolic links are followed, each folder once."""
    files, seen = [], set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_raise):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above would go round for ever
            folders.clear()
            continue
        seen.add(real)
        # hidden files include macOS's `._x.png`, which hold no image
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        prefix = Path(folder).relative_to(root).as_posix()
        for name in names:
            if not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS):
                files.append(name if prefix == "." else f"{prefix}/{name}")
    return files


def _paired(files: list[str], images: str, partners: str, role: str) -> list[Record]:
    """Records of `images/...`, each with the file of the same relative name below `partners/` as mask or target."""
    partner_of = {}
    for file in files:
        if file.startswith(partners + "/"):
            partner_of.setdefault(_without_extension(file[len(partners) + 1 :]), []).append(file)
    records, used = [], 0
    for file in files:
        if not file.startswith(images + "/"):
            continue
        name = file[len(images) + 1 :]
        found = sorted(partner_of.get(_without_extension(name), []))
        exact = [partner for partner in found if partner[len(partners) + 1 :] == name]
        label = name.split("/")[0] if "/" in name else ""
        record = Record(id=_without_extension(file), path=file, label=label)
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
    names = {_without_extension(file) for file in files}
    masks, images = {}, []
    for file in files:
        match = LESION_MASK.match(_without_extension(file))
        if match and match["image"] in names:
            masks.setdefault(match["image"], []).append(file)
        else:
            images.append(file)
    first_folders = {file.split("/")[0] for file in images if "/" in file}
    split_folders = {name for name in first_folders if _split_or_none(name)}
    # train/ and val/ as first folders are splits; a single class called "test" is a class
    by_split = len(split_folders) > 1 and split_folders == first_folders
    records = []
    for file in images:
        parts = file.split("/")
        split = _split_or_none(parts[0]) if by_split and len(parts) > 1 else ""
        folders = parts[1:-1] if split else parts[:-1]
        name = _without_extension(file)
        record = Record(id=name, path=file, label=folders[0] if folders else "", split=split)
        record.mask = PATH_SEPARATOR.join(sorted(masks.get(name, []), key=natural_key))
        if masks and LESION_MASK.match(name):
            record.split = "exclude"  # a mask whose image is missing: kept on record, used for nothing
        records.append(record)
    return records


def _with_unique_ids(records: list[Record]) -> list[Record]:
    counts = Counter(record.id for record in records)
    taken = {record.id for record in records if counts[record.id] == 1}
    for record in records:
        if counts[record.id] > 1:  # x.png and x.jpg: the extension tells them apart
            name, number = record.path, 2
            while name in taken:
                name, number = f"{record.path}#{number}", number + 1
            record.id = name
            taken.add(name)
    return records


def _split_or_none(name: str) -> str:
    word = SPLIT_SYNONYMS.get(name.lower(), name.lower())
    return word if word in ("train", "val", "test") else ""


def _without_extension(path: str) -> str:
    stem, extension = os.path.splitext(path)
    return stem if extension.lower() in IMAGE_EXTENSIONS else path


def _posix(path: str) -> str:
    return path.replace("\\", "/")


def _raise(error: OSError):
    raise error


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
