"""What a source of images is understood to be: a published dataset, a CSV manifest, a folder that says it, or one image."""

import difflib
import os
import re
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

from vfm4us.data import annotations, frames, layouts, looks, polygons, table_files
from vfm4us.data.containers import Told, one_record_per_image
from vfm4us.data.csv_files import shown
from vfm4us.data.joined_tables import join_tables
from vfm4us.data.manifests import main_columns_of, names_masks, understand_manifest
from vfm4us.data.masks import CodingOfSet
from vfm4us.data.patients import BY_FIRST_FOLDER, settle
from vfm4us.data.reading import FILE as READING_FILE
from vfm4us.data.reading import Reading, reading_of
from vfm4us.data.records import (
    IMAGE_EXTENSIONS,
    READ_EXTENSIONS,
    Record,
    folders_below,
    is_read,
    joined_paths,
    natural_key,
    one_walk,
    with_unique_ids,
    without_extension,
)
from vfm4us.data.trees import understand_tree
from vfm4us.data.understanding import Understanding
from vfm4us.data.words import folder_of, is_litter, says_outlines

BEFORE_A_NUMBER = re.compile(r"([^\W\d_]+(?:[ _-][^\W\d_]+)*)[ _-]*[(\[]?\d")  # benign (12), non_tumour-3
FIRST_WORD = re.compile(r"([^\W\d_]+)[ _.(-]")
BEHIND_A_NUMBER = re.compile(r"\d[ _-]*([^\W\d_]+\d?)$")  # p12_clean, 000_label1
LAST_NUMBER = re.compile(r"^(.*[^\W_])[-_ .()]+\d+\)?$")  # 12_3, IMG_004_1
MOST_ALONE = 0.7  # of images may be groups of their own, where names hold two numbers
HALVED = 0.7  # of the images that are looked at
MOST_LABELS = 20  # different words that are taken for labels
TABLES = table_files.TEXTS
MOST_TABLES = 50  # beside images, of one ending: more are notes on single images
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
SHEETS = (".xlsx", ".xls", ".ods", ".numbers")
ARRAYS = (".npy",)
REMEDIES = {  # of what holds images and is not read
    **dict.fromkeys((".h5", ".hdf5", ".mat"), ", save its images as PNG"),
    ".npy": ", as arrays are masks alone: save images as PNG",
    **dict.fromkeys((".jp2", ".heic", ".avif", ".pgm", ".ppm", ".tga"), ", save it as PNG"),
    **dict.fromkeys((".hdr", ".img"), ", save the pair as .nii"),
    **dict.fromkeys((".flv", ".vob", ".ts", ".mts", ".m2ts", ".3gp", ".asf", ".ogv"), ", save it as .mp4"),
    ".vol": ", export it as DICOM or NRRD",
}
SIDECARS = (".json", ".xml", ".yaml", ".yml", ".md", ".pdf", ".docx", ".html", ".cfg")


def source_root(path) -> Path:
    """The folder that the paths of a source's records are relative to."""
    path = Path(path)
    return path.parent if path.is_file() else path


def find_source(path, reading: Reading | dict | None = None) -> list[Record]:
    """List the images of a source: the files of `list_source`, of those that hold several images one record per image taken.

    reading: which frames and regions those are, and what decides where a folder can be read in two ways
    """
    reading = reading_of(Path(path), reading)
    understood = _of_source(path, reading, whole=False)
    _images_of(source_root(path), reading, understood)
    return _with_coding(path, reading, understood).records


def list_source(path, reading: Reading | dict | None = None) -> list[Record]:
    """List the files of a source, in natural order of their paths for folders and in file order for a CSV manifest.

    Raises FileNotFoundError or ValueError as `understand` does.
    """
    return understand(path, reading, whole=False).records


@one_walk()
def understand(path, reading: Reading | dict | None = None, whole: bool = True) -> Understanding:
    """What a source is understood to be; nothing is packed.

    path:  a CSV file with the columns path, label, group, split, mask, target (all but path optional, paths relative to the CSV);
           one image; or a folder: with `manifest.csv`; a published dataset (`vfm4us.data.layouts`); or any tree of images
           (`vfm4us.data.trees`)
    whole: look into files that hold several images as well, and count every file that is not used
    Raises FileNotFoundError or ValueError naming the path, what was found and what to do.
    """
    reading = reading_of(Path(path), reading)
    understood = _of_source(path, reading, whole)
    if whole:
        _look_into_files(source_root(path), reading, understood)
        understood.labels = understood.labels or "by the file" * any(record.label for record in understood.records)
        understood.splits = understood.splits or "by the file" * any(record.split for record in understood.records)
    _say_counts(understood)
    return _with_coding(path, reading, understood)


@one_walk()
def _of_source(path, reading: Reading, whole: bool) -> Understanding:
    """What the files of a source are by their places, their names and tables; none that holds several images is looked into."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a folder of images or a CSV manifest{nearest(path)}")
    if (path / "dataset.json").is_file() and (path / "images.npy").is_file():
        raise ValueError(f"{path} is already a prepared dataset: open it with PreparedDataset, or give its source")
    understood = Understanding(source=str(path), layout="", reading=reading.plan())
    manifest = path if path.is_file() else path / "manifest.csv"
    if path.is_file() and not _is_table(path):
        _one_file(path, understood)
    elif manifest.is_file():
        understand_manifest(manifest, understood, whole)
        _groups_in_names(reading, understood)
    else:
        _folder(path, reading, understood)
    _labels_in_names(reading, understood)
    _two_numbers(reading, understood)
    if reading.groups == "none":
        for record in understood.records:
            record.group = ""
        understood.groups = ""
    understood.records = with_unique_ids(understood.records)
    understood.fill_outlines = understood.fill_outlines or any(
        says_outlines(mask) for record in understood.records for mask in record.mask_paths
    )
    if not understood.labels and any(record.label for record in understood.records):
        understood.labels = BY_FIRST_FOLDER if not understood.layout.startswith("published") else "as published"
    return understood


def _with_coding(path, reading: Reading, understood: Understanding) -> Understanding:
    shared = CodingOfSet(source_root(path), understood.records, reading, understood.fill_outlines)
    for record in understood.records:
        record.coding = shared if record.mask else None
    return understood


def _groups_in_names(reading: Reading, understood: Understanding) -> None:
    """Take what stands before the last number of a name as the group, where that is asked for."""
    if reading.groups != "names":
        return
    for record in understood.records:
        if not (name := LAST_NUMBER.match(frames.stem_of(record.path))):
            raise ValueError(f"reading: groups=names: {record.path} has no number behind something else")
        record.group = name[1]
    understood.groups = "by the names of files before their last number"


def _two_numbers(reading: Reading, understood: Understanding) -> None:
    """Say where a number before the last one of each name could be a patient's."""
    names = [LAST_NUMBER.match(frames.stem_of(record.path)) for record in understood.records]
    if any(record.group for record in understood.records) or reading.groups or not names or not all(names):
        return
    groups = Counter(name[1] for name in names)
    if MOST_ALONE * len(names) > len(groups) > 1 and all(
        re.search(r"\d", group.rsplit("/", 1)[-1]) for group in groups
    ):
        pairs = zip(understood.records, names, strict=True)
        example = next(record.path for record, name in pairs if groups[name[1]] > 1)
        understood.notes.append(
            f"names hold two numbers, e.g. {example}: if the first is the patient ({len(groups)} of them), say reading.groups=names"
        )


def _labels_in_names(reading: Reading, understood: Understanding) -> None:
    """Take the words before the number of a file's name as labels where that is asked for; say so where it could be meant."""
    words = [BEFORE_A_NUMBER.match(Path(record.path).name) for record in understood.records]
    if not all(words):  # Cov-Atlas-1, Reg-Butterfly-2: the first word alone
        words = [FIRST_WORD.match(Path(record.path).name) for record in understood.records]
    endings = [BEHIND_A_NUMBER.search(frames.stem_of(Path(record.path).name)) for record in understood.records]
    if reading.labels:
        words = words if reading.labels == "names" else endings
        if strange := [record.path for record, word in zip(understood.records, words, strict=True) if not word]:
            where = "begin with a word before" if reading.labels == "names" else "end with a word behind"
            raise ValueError(f"reading: labels={reading.labels}: {strange[0]} does not {where} a number")
        for record, word in zip(understood.records, words, strict=True):
            record.label = word[1]
        understood.labels = "by the names of files"
        return
    if any(record.label or record.target for record in understood.records):
        return
    if told := _different(words):
        understood.notes.append(
            f"names begin with different words ({told}): if these are labels, say reading.labels=names "
            "(prepare_data.py --reading labels=names, or `labels: names` in a reading.yaml in the folder)"
        )
    if told := _different(endings):
        understood.notes.append(
            f"names end with different words ({told}), which are not used: if the one is the target of the other, "
            "say reading.targets=ENDING; if these are labels, reading.labels=endings"
        )


def _different(words: list) -> str:
    """A few different words that every name has, each twice at least, with their numbers; else nothing."""
    if not words or not all(words):
        return ""
    counts = Counter(word[1] for word in words)
    if all(folder_of(word).split for word in counts):  # what is a split already
        return ""
    if not (1 < len(counts) <= MOST_LABELS and min(counts.values()) > 1):
        return ""
    return ", ".join(f"{word} {count}" for word, count in sorted(counts.items()))


def is_table(source: Path) -> bool:
    """Whether a table says what the source holds: a CSV, or a folder with a manifest.csv."""
    return (source / "manifest.csv").is_file() or (source.is_file() and _is_table(source))


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLES or (path.suffix == "" and not is_read(path) and not zipfile.is_zipfile(path))


def _one_file(path: Path, understood: Understanding) -> None:
    """One image is a set of one; an archive or a spreadsheet is told what it is."""
    ending = path.suffix.lower()
    if ending in SHEETS:
        raise ValueError(f"{path} is a spreadsheet: save the sheet as CSV (UTF-8) and give that")
    if (
        ending in ARCHIVES
        and frames.extension_of(path) != ".nii.gz"
        or (not is_read(path) and zipfile.is_zipfile(path))
    ):
        raise ValueError(f"{path} is an archive: unpack it and give the folder")
    if not is_read(path):
        remedy = REMEDIES.get(ending, "").lstrip(", ") or f"the endings that are read are {' '.join(READ_EXTENSIONS)}"
        raise ValueError(f"{path} is no image, no CSV and no folder: {remedy}")
    understood.layout = "one file"
    understood.records = [Record(id=without_extension(path.name), path=path.name)]
    understood.add("image", "given by itself", path.name)


def _folder(path: Path, reading: Reading, understood: Understanding) -> None:
    files, empty = _all_files(path)
    litter = [file for file in files if is_litter(file)]
    for file in litter:
        understood.add("passed over", "hidden files and thumbnails of systems and file servers", file)
    files = [file for file in files if not is_litter(file)]
    known = set(files)
    places = [file.removesuffix("dataset.json") for file in files if file.endswith("/dataset.json")]
    prepared = tuple(place for place in places if f"{place}images.npy" in known)
    if inside := [file for file in files if prepared and file.startswith(prepared)]:
        understood.add("passed over", "a prepared dataset within the folder", *inside)
        files = [file for file in files if not file.startswith(prepared)]
    images = [file for file in files if is_read(path / file)]
    told = reading.plan().keys() & {"images", "masks", "targets", "passed_over", "folders"}
    published = None if told else _published(path, files)
    annotated = None if published or told - {"folders"} else annotations.recognise(path)
    if published is not None:
        name, records = published
        doc = layouts.LAYOUTS[name].__doc__
        _as_published(f"published dataset {name}", doc, records, understood)
        understood.groups = "as published" if any(record.group for record in records) else ""
        understood.splits = "as published" if any(record.split for record in records) else ""
        _groups_in_names(reading, understood)
    elif annotated is not None:
        name, records = annotated
        records = _said_by_folders(path, images, records, reading, understood)
        _as_published(f"images with outlines ({name})", annotations.FORMS[name].__doc__, records, understood)
        _groups_in_names(reading, understood)
        used = annotations.files_of(records)
        join_tables(
            path, [file for file in _tables_among(path, files, understood) if file not in used], reading, understood
        )
    else:
        arrays = [file for file in files if file.lower().endswith(ARRAYS)]
        if not images:
            raise ValueError(f"{path} holds no images{_looked_for(files)}")
        try:
            understand_tree(path, images, arrays, reading, understood)
        except ValueError as error:
            tables = [table for table in _tables_among(path, files, understood) if names_masks(path / table)]
            if not tables or "mask" not in str(error):
                raise
            raise ValueError(
                f"{error}; or give {path / tables[0]} as the source, which names images and masks"
            ) from error
        _lost_masks(path, files, understood)
        understood.records.sort(key=lambda record: natural_key(record.path))
        _empty_classes(path, understood, files, empty)
        _groups_in_names(reading, understood)
        join_tables(path, _tables_among(path, files, understood), reading, understood)
    _remaining(path, files, understood)


def _lost_masks(root: Path, files: list[str], understood: Understanding) -> None:
    """Warn where a folder of masks holds nothing that is read, and where masks lie in one half of their images."""
    if any(record.mask or record.target for record in understood.records):
        return
    strange = [
        file
        for file in files
        if any(folder_of(part).role == "mask" for part in file.split("/")[:-1])
        and not is_read(root / file)
        and frames.extension_of(file) not in (*TABLES, *SIDECARS, *ARRAYS)
    ]
    if strange:
        understood.warnings.append(
            f"{len(strange)} files in folders of masks are not read, e.g. {strange[0]}: the set has no masks"
        )
    wide = looks.sample(sorted(record.path for record in understood.records))
    halved = [
        file for file in wide if frames.extension_of(file) in IMAGE_EXTENSIONS and looks.mask_in_a_half(root / file)
    ]
    if len(halved) > HALVED * len(wide):
        understood.warnings.append(
            f"{len(halved)} of {len(wide)} images looked at have one half that looks like a mask, e.g. {halved[0]}: image "
            "and mask side by side? They are read as one image: cut them apart"
        )


def _published(root: Path, files: list[str]) -> tuple[str, list[Record]] | None:
    """Name and records of a published dataset, also where folders lie around it."""
    around = ""
    while True:
        if (found := layouts.recognise(root / around)) is not None:
            break
        inner = {file[len(around) :].split("/")[0] for file in files if "/" in file[len(around) :]}
        loose = any("/" not in file[len(around) :] and is_read(root / file) for file in files)
        if len(inner) != 1 or loose:
            return None
        around += f"{inner.pop()}/"
    for record in found[1] if around else ():
        record.id, record.path = around + record.id, around + record.path
        record.mask = joined_paths(around + mask for mask in record.mask_paths)
        record.target = around + record.target if record.target else ""
    return found


def _as_published(layout: str, doc: str | None, records: list[Record], understood: Understanding) -> None:
    """Fill in the layout and its records, with their masks and targets."""
    understood.layout, understood.said = layout, (doc or "").strip().split("\n")[0]
    understood.records = sorted(records, key=lambda record: natural_key(record.path))
    for record in understood.records:
        partner = "mask" if record.mask else "target" if record.target else ""
        what = (
            f"with a {partner}" if partner else "as published" if layout.startswith("published") else "without outlines"
        )
        understood.add("image", what, record.path)
        for mask in record.mask_paths:
            understood.add("mask", "as published" if layout.startswith("published") else "outlines", mask)
        if record.target:
            understood.add("target", "as published", record.target)


def _said_by_folders(
    root: Path, images: list[str], records: list[Record], reading: Reading, understood: Understanding
) -> list[Record]:
    """Records with outlines, with the labels, groups and splits of their folders; masks among the images are left out."""
    tree = Understanding(source=understood.source, layout="")
    understand_tree(root, images, [], reading, tree)
    by_path = {record.path: record for record in tree.records}
    several = len({record.label for record in tree.records if record.label}) > 1
    understood.labels = "as annotated" * any(record.label for record in records)
    for record in records:
        said = by_path.get(record.path, Record("", ""))
        record.label = record.label or said.label * several
        record.group, record.split = said.group, record.split or said.split
    for kind in tree.kinds:
        if kind.role != "image":
            role = "passed over" if kind.role in ("mask", "target") else kind.role
            what = "masks as images: the outlines count" if kind.role == "mask" else kind.what
            understood.add(role, what, *kind.paths)
    understood.groups, understood.splits = tree.groups, tree.splits or "as annotated" * any(r.split for r in records)
    understood.notes += tree.notes
    understood.warnings += tree.warnings
    return [record for record in records if record.mask or record.path in by_path]


def _tables_among(root: Path, files: list[str], understood: Understanding) -> list[str]:
    """Files that may be tables of images: not those of the name of one image, nor many JSON files, nor those of boxes."""
    stems = {without_extension(record.path.rsplit("/", 1)[-1]) for record in understood.records}
    by_ending: dict[str, list[str]] = defaultdict(list)
    for file in files:
        name = file.rsplit("/", 1)[-1]
        ending = os.path.splitext(name)[1].lower()
        if ending in (*TABLES, *table_files.OTHERS) and not name.startswith("~$"):
            by_ending[ending].append(file)
    return [
        file
        for ending, several in by_ending.items()
        for file in several
        if (len(several) <= MOST_TABLES or ending in (".csv", ".tsv"))
        and not (
            (ending in (".txt", ".json") or len(several) > MOST_TABLES)
            and file.rsplit("/", 1)[-1][: -len(ending)] in stems
        )
        and not (ending == ".json" and annotations.is_annotation(root / file))
    ]


def _all_files(root: Path) -> tuple[list[str], list[str]]:
    """Every file below `root` as a relative POSIX path, and the folders without any; links are followed, each folder once."""
    files, empty = [], []
    for prefix, folders, names in folders_below(root):
        files += [name if prefix == "." else f"{prefix}/{name}" for name in names]
        if not names and not folders and prefix != ".":
            empty.append(prefix)
    return files, empty


def _empty_classes(root: Path, understood: Understanding, files: list[str], empty: list[str]) -> None:
    """A folder beside class folders that gives no image: a class that would be missing without a word."""
    parents = set()
    for record in understood.records:
        folders = record.path.split("/")[:-1]
        if record.label in folders:
            parents.add("/".join(folders[: folders.index(record.label)]))
    used = {file for kind in understood.kinds for file in kind.paths}
    below = defaultdict(list)
    for file in files:
        folders = file.split("/")[:-1]
        for depth in range(len(folders)):
            if "/".join(folders[:depth]) in parents:
                below["/".join(folders[: depth + 1])].append(file)
    for folder in empty:
        if not is_litter(folder) and folder.rpartition("/")[0] in parents:
            below.setdefault(folder, [])
    for folder, kinds in sorted(below.items()):
        if not any(file in used for file in kinds):
            endings = Counter(frames.extension_of(file) or "no ending" for file in kinds)
            holds = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(3)) or "nothing"
            raise ValueError(
                f"{root / folder} lies beside class folders and gives no image (it holds {holds}): fill it, move it "
                "elsewhere, or name it in reading.passed_over"
            )


def _remaining(root: Path, files: list[str], understood: Understanding) -> None:
    """Count every file that has no role yet, by its kind."""
    used = {polygons.split_reference(file)[0] for kind in understood.kinds for file in kind.paths}
    archives: list[str] = []
    sheets: list[str] = []
    for file in files:
        if file in used or file == READING_FILE:
            continue
        ending = frames.extension_of(file)
        if understood.layout.startswith("published") and ending in (*TABLES, ".json", ".xml"):
            understood.add("table", "of the layout, read as far as it says what an image is", file)
        elif ending in TABLES:
            columns = main_columns_of(root / file)
            said = f" with {', '.join(columns)}" if len(columns) > 1 else ""
            understood.add(
                "passed over",
                f"table{said}: not used, a manifest.csv with the columns path, label, group would be",
                file,
            )
        elif ending == ".json" and annotations.is_annotation(root / file):
            understood.add("passed over", "annotations without outlines: boxes and points are no masks", file)
        elif ending in SIDECARS:
            understood.add("passed over", f"{ending}: not used", file)
        elif is_read(root / file):
            understood.add("passed over", "images that the layout does not name", file)
        elif ending in (*ARCHIVES, *SHEETS):
            understood.add("passed over", f"{ending} files: unpack archives, save sheets as CSV", file)
            archives += [file] * (ending in ARCHIVES)
            sheets += [file] * (ending in SHEETS and not file.rsplit("/", 1)[-1].startswith("~$"))
        else:
            understood.add("passed over", f"{ending or 'no ending'}: not read{REMEDIES.get(ending, '')}", file)
    if sheets:
        understood.warnings.append(
            f"{len(sheets)} spreadsheets are not used, e.g. {sheets[0]}: save what names the images as CSV (UTF-8)"
        )
    if archives:
        understood.warnings.append(
            f"{len(archives)} archives beside the images are not unpacked, e.g. {archives[0]}: do so if they belong to the set"
        )


def _look_into_files(root: Path, reading: Reading, understood: Understanding) -> None:
    """Of files that hold several images one record per image; what their headers say is noted."""
    told = _images_of(root, reading, understood)
    nifti = [
        record.path
        for record in understood.records
        if record.mask and ".nii" in record.mask.lower() and frames.kind_of(record.path) != "volume"
    ]
    if nifti:
        understood.notes.append(
            f"masks in NIfTI lie over images that are none (e.g. {nifti[0]}): their first axis is taken for the columns; those "
            "written from arrays of rows and columns are transposed, which understood.png shows"
        )
    for kind in understood.kinds:
        if kind.role == "image":
            kind.paths = [path for path in kind.paths if path not in told.refused]
    understood.kinds = [kind for kind in understood.kinds if kind.paths]
    for file, reason in told.refused.items():
        understood.add("unreadable", reason, file)
    if told.files:
        clips = any(count for kind, count in told.files.items() if kind != "volume")
        if not understood.groups and any(record.group for record in understood.records):
            understood.groups = "one per file that holds several images" if clips else "one per volume"


def _images_of(root: Path, reading: Reading, understood: Understanding) -> Told:
    told = Told()
    understood.records = one_record_per_image(root, understood.records, reading, told)
    understood.notes += told.lines()
    settle(understood, told, reading)
    return told


def _say_counts(understood: Understanding) -> None:
    records = [record for record in understood.records if record.split != "exclude" and not record.reason]
    labels = Counter(record.label for record in records)
    named = {label: count for label, count in labels.items() if label}
    if named:
        shares = ", ".join(f"{shown(label)} {count}" for label, count in sorted(named.items())[:12])
        rest = f", and {len(named) - 12} more" if len(named) > 12 else ""
        none = f"; {labels['']} without a label" if labels[""] else ""
        understood.labels = f"{len(named)} ({understood.labels}): {shares}{rest}{none}"
    else:
        understood.labels = ""
    groups = {record.group for record in records if record.group}
    if groups:
        ungrouped = sum(not record.group for record in records)
        understood.groups = (
            f"{len(groups)} ({understood.groups or 'by the source'})"
            + f"; {ungrouped} images without" * bool(ungrouped)
        )
    else:
        understood.groups = (
            "none found: splits are by image and duplicate cluster, so one patient may lie in two splits"
        )
    splits = Counter(record.split for record in records if record.split)
    lies_in = defaultdict(set)
    for record in records:
        if record.group and record.split:
            lies_in[record.group].add(record.split)
    if divided := sorted(group for group, names in lies_in.items() if len(names) > 1):
        understood.warnings.append(
            f"{len(divided)} groups lie in two splits, e.g. {divided[0]} in {' and '.join(sorted(lies_in[divided[0]]))}: packing "
            "refuses that, so put each into one split, or leave the splits out"
        )
    if splits:
        counts = ", ".join(f"{split} {splits[split]}" for split in ("train", "val", "test") if splits[split])
        open_ = sum(not record.split for record in records)
        understood.splits = f"{counts} ({understood.splits})" + f"; {open_} images without" * bool(open_)
        for split in ("val", "test"):
            of_split = [record for record in records if record.split == split]
            if of_split and named and not any(record.label for record in of_split):
                understood.warnings.append(f"the {split} images have no labels: nothing can be measured on them")
        if not splits["val"] and splits["train"] and splits["test"] and understood.layout != "a CSV manifest":
            understood.notes.append(
                "there is no val split: the share that splits gives val is taken from train, by groups"
            )
        if not splits["train"] and not open_:
            understood.notes.append("there is no train split: nothing can be learned from it")
        lacking = [split for split in ("val", "test") if not splits[split]]
        if lacking and splits["train"] and not open_ and (not splits["test"] or understood.layout == "a CSV manifest"):
            understood.notes.append(
                f"there is no {' and no '.join(lacking)} split: nothing can be chosen or measured on it"
            )
    else:
        understood.splits = "none: made by groups"


def nearest(path: Path) -> str:
    """A hint at the entry of the parent folder whose name is nearest to a mistyped one."""
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f" (did you mean {path.parent / near[0]}?)" if near else ""


def _looked_for(files: list[str]) -> str:
    endings = Counter(os.path.splitext(name)[1].lower() or "no extension" for name in files)
    holds = ", ".join(f"{count} {extension}" for extension, count in endings.most_common(5))
    hint = "; unpack archives first" if any(os.path.splitext(name)[1].lower() in ARCHIVES for name in files) else ""
    hint += "".join(
        f"; {ending} is not read{REMEDIES[ending]}" for ending, _ in endings.most_common(5) if ending in REMEDIES
    )
    return f": looked for {' '.join(READ_EXTENSIONS)}, found {holds or 'no files at all'}{hint}"
