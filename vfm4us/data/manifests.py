"""A table that lists images: a CSV manifest with the columns path, label, group, split, mask, target, all but path optional."""

import difflib
import os
import re
from collections import Counter
from pathlib import Path

from vfm4us.data.csv_files import decoded_table, delimiter_of, shown, table_rows, table_text
from vfm4us.data.records import IMAGE_EXTENSIONS, Record, image_files, joined_paths, split_name, without_extension
from vfm4us.data.understanding import Understanding
from vfm4us.data.words import is_litter, same

# the first word that a table has is taken; the field's own spellings follow ours
COLUMNS = {
    "path": (
        "path image_path imagepath img_path filepath file_path filename file_name image_name image img file image_filename "
        "dateiname datei bild bilddatei fichier imagen archivo imagem arquivo immagine 文件名 图像 файл"
    ).split(),
    "label": (
        "label class class_name classname category diagnosis pathology classification class_label label_name diagnose befund "
        "klasse diagnostic diagnostico diagnóstico diagnosi clase classe étiquette etiqueta etichetta 类别 标签 诊断 "
        "диагноз класс choice"
    ).split(),
    "group": (
        "group group_id patient patient_id patientid patient_num patient_no patient_name pat_id mrn "
        "subject subject_id subjectid subj participant participant_id pid person person_id "
        "case case_id caseid exam exam_id study study_id studyid video video_id videoid clip clip_id patient_number caseno "
        "patientennummer patienten_id fallnummer paciente paciente_id id_paciente paziente id_paziente id_patient 患者 患者id 病人 "
        "пациент"
    ).split(),
    "split": "split subset partition set fold_name phase data_split dataset_split".split(),
    "mask": "mask mask_path maskpath mask_file masks segmentation segmentation_path annotation_path".split(),
    "target": "target target_path high_quality".split(),
}
NO_LABEL = frozenset(("", "nan", "<na>", "null", "#n/a", "n/a"))
MISSING = "is not there"  # why an image of a table is not read
MOST_MISSING = 0.5  # of the images a table names


class NamesOnDisk:
    """The files below a folder, found also where a table writes their names another way: case, Unicode form, folders before."""

    def __init__(self, root: Path):
        self.root = root
        self.by_name: dict[str, list[str]] | None = None

    def find(self, path: str) -> str:
        """The path as it is on disk, relative to the root, or "" where there is none, or more than one."""
        if not path or "\0" in path:
            return ""
        if _is_file(self.root / path):
            return path
        plain = re.sub(r"^[A-Za-z]:", "", path.replace("\\", "/")).lstrip("/")
        parts = [part for part in plain.split("/") if part not in ("", ".")]
        for begin in range(len(parts)):  # C:\study\imgs\3.png lies in imgs/ here
            tail = "/".join(parts[begin:])
            if _is_file(self.root / tail):
                return tail
        return self._another_spelling(parts)

    def _another_spelling(self, parts: list[str]) -> str:
        if not parts:
            return ""
        candidates = self._index().get(same(parts[-1]), [])
        best, most = [], -1
        for candidate in candidates:
            folders = candidate.split("/")[:-1]
            common = 0
            while common < min(len(folders), len(parts) - 1) and same(folders[-1 - common]) == same(parts[-2 - common]):
                common += 1
            if common < len(folders):  # a folder that the table does not name
                continue
            if common > most:
                best, most = [candidate], common
            elif common == most:
                best.append(candidate)
        return best[0] if len(best) == 1 else ""

    def nearest(self, path: str) -> str:
        """A hint at the file whose name is nearest."""
        name = path.replace("\\", "/").rsplit("/", 1)[-1]
        near = difflib.get_close_matches(same(name), list(self._index()), n=1, cutoff=0.5)
        return f" (nearest there: {shown(self._index()[near[0]][0])})" if near else ""

    def _index(self) -> dict[str, list[str]]:
        if self.by_name is None:
            self.by_name = {}
            for folder, folders, names in os.walk(self.root):
                folders[:] = [name for name in folders if not name.startswith(".")]
                prefix = Path(folder).relative_to(self.root).as_posix()
                for name in names:
                    self.by_name.setdefault(same(name), []).append(name if prefix == "." else f"{prefix}/{name}")
        return self.by_name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long for the disk
        return False


def understand_manifest(path: Path, understood: Understanding, whole: bool = True) -> None:
    """Fill in `found` from a CSV. Raises ValueError that names the file, the line and what to do.

    whole: look for names that are near to missing ones; an error where most images are not there
    """
    understood.layout = "a CSV manifest"
    text, encoding = decoded_table(path)
    if encoding == "Windows-1252":
        understood.notes.append(f"{path.name} is not in UTF-8: read as {encoding}")
    delimiter = delimiter_of(text, COLUMNS["path"])
    if delimiter is None:
        first_line = text.lstrip("\r\n").split("\n", 1)[0]
        raise ValueError(
            f"{path} has no column named path (its first line is {first_line.strip()[:80]!r}): "
            "the columns are path, label, group, split, mask, target; all but path are optional"
        )
    disk = NamesOnDisk(path.parent)
    header, places, records, line_of = None, {}, [], {}
    missing, respelled, unlabelled = [], [], 0
    try:
        table = list(table_rows(text, delimiter))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for line, row in table:
        if header is None:
            header = [name.strip().lower() for name in row]
            places = _columns(path, header, [cells for _, cells in table[1:]], understood)
            continue
        where = f"{path} line {line}"
        if len(row) > len(header):
            raise ValueError(
                f"{where} has {len(row)} cells for {len(header)} columns: quote values that contain {delimiter!r}"
            )
        cells = {column: row[place].strip() for column, place in places.items() if place < len(row)}
        written = cells.get("path", "")
        if not written:
            raise ValueError(f"{where} has an empty path: fill it in or delete the line")
        image = disk.find(row[places["path"]]) or disk.find(written)
        if not image:
            image = written.replace("\\", "/")
            missing.append(image)
        elif image != written.replace("\\", "/"):
            respelled.append((written, image))
        if image in line_of:
            raise ValueError(f"{where} lists {image} a second time (first on line {line_of[image]}): keep one")
        line_of[image] = line
        label = label_of(cells.get("label", ""))
        unlabelled += "label" in places and not label
        record = Record(
            id=without_extension(image),
            path=image,
            label=label,
            group=label_of(cells.get("group", "")),
            split=split_name(cells.get("split", ""), where),
            mask=joined_paths(_masks(disk, cells.get("mask", ""), understood)),
            target=_found(disk, cells.get("target", ""), "target", understood),
        )
        if whole and image in missing[-1:]:
            record.reason = MISSING + (disk.nearest(written) if len(missing) <= 20 else "")
        records.append(record)
    if not records:
        raise ValueError(f"{path} lists no images: it has a header line and nothing else")
    one_spelling_each(path, records)
    _tell(path, understood, places, records, missing, respelled, unlabelled)
    if whole and len(missing) > MOST_MISSING * len(records):
        raise ValueError(
            f"{path} names {len(records)} images, and {len(missing)} of them are not there, e.g. {shown(missing[0])}"
            f"{disk.nearest(missing[0])}: paths are relative to the folder of the CSV"
        )
    understood.records = records
    if whole and path.name == "manifest.csv":
        _beside_the_table(path.parent, understood)


def _beside_the_table(root: Path, understood: Understanding) -> None:
    """Count the images of a folder that its manifest does not name."""
    named = {path for r in understood.records for path in (r.path, *r.mask_paths, r.target)}
    others = [file for file in image_files(root) if file not in named and not is_litter(file)]
    if others:
        understood.add("passed over", "images that the table does not name", *others)


def places_of(path: Path, header: list[str], repeats: bool = True) -> dict[str, int]:
    """Where each of our columns stands in a header in small letters; ValueError where one is named twice.

    repeats: whether other columns that are named twice are an error, too
    """
    ours = {name for spellings in COLUMNS.values() for name in spellings}
    repeated = [name for name, count in Counter(header).items() if name and count > 1 and (repeats or name in ours)]
    if repeated:
        raise ValueError(f"{path} names the column {repeated[0]} twice: keep one")
    plain = [re.sub(r"[\s-]+", "_", name) for name in header]
    places, used = {}, set()
    for column, spellings in COLUMNS.items():
        for spelling in spellings:
            if spelling in plain and plain.index(spelling) not in used:
                places[column] = plain.index(spelling)
                used.add(places[column])
                break
    return places


def _columns(path: Path, header: list[str], rows: list[list[str]], understood: Understanding) -> dict[str, int]:
    """`places_of`, with what was taken for what and what is not used; a column `label` that names files is the mask."""
    places = places_of(path, header)
    label = places.get("label", -1)
    if label >= 0 and "mask" not in places and name_files([row[label].strip() for row in rows if label < len(row)]):
        places["mask"] = places.pop("label")
    for column, place in places.items():
        if header[place] != column:
            understood.notes.append(f"the column {header[place]!r} is taken for {column}")
    used = set(places.values())
    unknown = [name for place, name in enumerate(header) if name and place not in used]
    if unknown:
        understood.notes.append(f"columns not used: {', '.join(unknown[:12])}{' ...' if len(unknown) > 12 else ''}")
    return places


def name_files(cells: list[str]) -> bool:
    """Whether the cells of a column are names of images or arrays: no labels, but masks."""
    filled = [cell for cell in cells if cell]
    return bool(filled) and all(cell.lower().endswith((*IMAGE_EXTENSIONS, ".npy", ".nii.gz")) for cell in filled)


def are_measurements(cells: list[str]) -> bool:
    """Whether the cells of a column are numbers with fractions, most of which differ: lengths or shares, and no classes."""
    filled = [cell.replace(",", ".") for cell in cells if cell and label_of(cell)]
    if len(filled) < 3 or not all(re.fullmatch(r"[+-]?\d*\.?\d+(?:[eE][+-]?\d+)?", cell) for cell in filled):
        return False
    return any(not label_of(cell).lstrip("+-").isdigit() for cell in filled) and len(set(filled)) > len(filled) / 2


def label_of(text: str) -> str:
    """A label as it is compared: 1, 1.0 and 1.00 are one class, NaN is no label."""
    if text.strip().lower() in NO_LABEL:
        return ""
    if re.fullmatch(r"[+-]?\d+\.0*", text):
        return str(int(float(text)))
    return text


def one_spelling_each(path: Path, records: list[Record]) -> None:
    """ValueError where two labels, or groups, differ only in case, Unicode form or leading zeros; `path` is named in it."""
    for role, one in (("label", "class"), ("group", "group")):
        spellings: dict[str, str] = {}
        for value in dict.fromkeys(getattr(record, role) for record in records):
            plain = same(value).strip()
            first = spellings.setdefault(str(int(plain)) if plain.isdecimal() else plain, value)
            if first != value:
                raise ValueError(
                    f"{path} has the {role}s {first!r} and {value!r}, which differ only in case, Unicode form or leading zeros: "
                    f"one {one}, or two? Spell them alike, or name them apart"
                )


def _masks(disk: NamesOnDisk, cell: str, understood: Understanding) -> list[str]:
    if not cell:
        return []
    if whole := disk.find(cell):  # a name may hold the separator
        return _with_further_lesions(disk.root, [whole])
    # as in our own manifests, a separator behind a backslash is a part of the name
    parts = [re.sub(r"\\([;|])", r"\1", part).strip() for part in re.split(r"(?<!\\)[;|]", cell) if part.strip()]
    return _with_further_lesions(disk.root, [_found(disk, part, "mask", understood) for part in parts])


def _found(disk: NamesOnDisk, path: str, role: str, understood: Understanding) -> str:
    if not path:
        return ""
    file, separator, key = path.partition("::")  # one image of a file of outlines
    existing = disk.find(path) or (disk.find(file) + separator + key if separator and disk.find(file) else "")
    if not existing:
        existing = path.replace("\\", "/")
        understood.add("unmatched", f"a {role} that the table names and that is not there", existing)
    return existing


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


def _tell(path, understood, places, records, missing, respelled, unlabelled) -> None:
    understood.add("table", "lists the images", path.name)
    for record in records:
        if not record.reason:
            understood.add("image", "with a mask" if record.mask else "named in the table", record.path)
        for mask in record.mask_paths:
            understood.add("mask", "named in the table", mask)
        if record.target:
            understood.add("target", "named in the table", record.target)
    for record in records:
        if record.reason:
            nearest = record.reason.removeprefix(MISSING)
            understood.add("unmatched", f"named in the table, and {MISSING}", record.path + nearest)
    if missing:
        understood.warnings.append(f"{len(missing)} of {len(records)} images of the table are not there")
    if respelled:
        written, existing = respelled[0]
        understood.notes.append(
            f"{len(respelled)} paths are spelled otherwise on the disk, e.g. {written!r} is {existing!r}"
        )
    if are_measurements([record.label for record in records]):
        understood.warnings.append(
            f"the labels of {path.name} are numbers that nearly all differ, e.g. {records[0].label}: measurements are no classes, "
            "and each would be one"
        )
    if "label" in places:
        understood.labels = "by the table"
        if unlabelled:
            understood.notes.append(f"{unlabelled} images have no label (empty or NaN)")
    if "group" in places:
        understood.groups = "by the table"
    if "split" in places and any(record.split for record in records):
        understood.splits = "by the table"


def names_masks(path: Path) -> bool:
    """Whether a table would do as a manifest of images and masks: by its header, and by cells that name files."""
    try:
        text = table_text(path)
        delimiter = delimiter_of(text, COLUMNS["path"]) if path.suffix.lower() in (".csv", ".tsv", ".txt") else None
        rows = [row for _, row in table_rows(text, delimiter)] if delimiter else []
        places = places_of(path, [name.strip().lower() for name in rows[0]]) if rows else {}
    except (ValueError, OSError):
        return False
    place = places.get("mask", places.get("label", -1))
    return "path" in places and place >= 0 and name_files([row[place].strip() for row in rows[1:] if place < len(row)])


def main_columns_of(path: Path) -> list[str]:
    """The first line of some other table, for what is said of tables that are not used."""
    try:
        text = table_text(path)
    except (ValueError, OSError):
        return []
    line = text.lstrip("\r\n").split("\n", 1)[0]
    return [name.strip().strip('"') for name in re.split(r"[;,\t]", line)][:8]
