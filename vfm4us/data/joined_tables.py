"""A table that lies beside images: joined where one of its columns names them one to one, and said; never in silence.

Its columns of label, group and split are taken by the rules of a manifest (`vfm4us.data.manifests`). What folders say stays,
unless `reading.table` names the table: where the two differ, that is an error.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vfm4us.data import table_files
from vfm4us.data.csv_files import shown
from vfm4us.data.manifests import COLUMNS, are_measurements, label_of, name_files, one_spelling_each, places_of
from vfm4us.data.reading import Reading
from vfm4us.data.records import SPLIT_SYNONYMS, SPLITS, Record, natural_key, split_name, without_extension
from vfm4us.data.trees import NO_LABELS
from vfm4us.data.understanding import Understanding
from vfm4us.data.words import SIDES, folder_of, is_patient_folder, same, split_within

ROLES = ("label", "group", "split")
FEWEST = 2  # images that a table must name
NAMED = 0.5  # share of the rows that must name one
PLACEHOLDERS = re.compile(r"(?i)sample[-_ ]?(?:sub|sol)|submission")
NO_CLASSES = SIDES | {"male", "female", "m", "f", "w", "yes", "no"}  # names of columns of 0 and 1
GROUP_HEADERS = frozenset(name.replace("_", end) for name in COLUMNS["group"] for end in ("_", " ", "-")) | {
    "id",
    "nr",
    "no",
}
LARGEST_CLASS = 20  # numbers up to it are taken for labels where there is no header
TITLE_ROWS = 4  # above the header, at most
NUMBERS_NAMED = 0.9  # share of rows and of images, where names are plain numbers: 7.png is the 7th row only if all are


@dataclass
class Joined:
    """A table and the images its rows name: `rows` by the record's place, `key` the column that names them.

    named:   rows that name an image, or a group of images where `by_group`
    headed:  whether its first row is a header
    one_hot: columns of 0 and 1 of which each row has one 1, which is its label
    """

    path: str
    header: list[str]
    key: int
    rows: dict[int, list[str]]
    count: int
    places: dict[str, int]
    named: int = 0
    by_group: bool = False
    headed: bool = True
    one_hot: tuple[int, ...] = ()


def join_tables(root: Path, tables: list[str], reading: Reading, understood: Understanding) -> None:
    """Give the records of a tree the labels, groups and splits of the tables beside it.

    ValueError where two readings are possible.
    """
    given_tables = [table for table in tables if table == reading.table or table.endswith(f"/{reading.table}")]
    if reading.table and reading.table != "none" and not given_tables:
        raise ValueError(
            f"reading: table={reading.table!r} is no table of {root}; there are: {', '.join(tables) or 'none'}"
        )
    if reading.table == "none" or not understood.records:
        return
    if not reading.table:
        placeholders = [table for table in tables if PLACEHOLDERS.search(_stem(table))]
        for table in placeholders:
            understood.add("passed over", "a form for submissions, whose labels are none", table)
        tables = [table for table in tables if table not in placeholders]
    tables = sorted(given_tables if reading.table else tables, key=natural_key)
    names = Names(understood.records)
    joined = [
        one for path in tables if (one := _joined(root, path, names, understood, bool(reading.table), reading.folders))
    ]
    _splits_by_name(root, joined, understood)
    for role in ROLES:
        with_role = [one for one in joined if role in one.places]
        given: dict[int, tuple[str, Joined]] = {}
        for one in with_role:
            for place, row in one.rows.items():
                value = _value(root, one, role, row)
                before = given.get(place)
                if value and before and before[0] != value:
                    raise ValueError(
                        f"{root}: {understood.records[place].path} has the {role} {before[0]!r} in {before[1].path} and {value!r} "
                        f"in {one.path}: say which table counts with reading.table={before[1].path}, or reading.table=none"
                    )
                if value:
                    given[place] = (value, one)
        if given:
            _take(root, role, {place: value for place, (value, _) in given.items()}, with_role, reading, understood)
    one_spelling_each(root, understood.records)
    for one in joined:
        _tell(one, understood)
    used = [one for one in joined if one.places]
    named = {place for one in used for place in one.rows}
    if used and (lacking := [record.path for place, record in enumerate(understood.records) if place not in named]):
        tables_told = ", ".join(one.path for one in used[:3]) + ", ..." * (len(used) > 3)
        understood.notes.append(
            f"{len(lacking)} of {len(understood.records)} images are not named by {tables_told}, e.g. {lacking[0]}"
        )


def _joined(
    root: Path, path: str, names: "Names", understood: Understanding, surely: bool, folders: str
) -> Joined | None:
    """The table with the column that names the images one to one; None where no column does, which is said."""
    try:
        tables = table_files.tables_of(root / path)
    except ValueError as error:
        if _names_any(root / path, names.below("")[0]):
            raise ValueError(
                f"{root / path} names images here and {_reason(root / path, error)}, or say reading.table=none"
            ) from error
        understood.add("passed over", f"table that cannot be read: {_reason(root / path, error)}", path)
        return None
    folder = path.rpartition("/")[0]
    known = [names.below(folder)] * bool(folder) + [names.below("")]
    repeated, found = "", []
    for rows in tables:
        one = None
        for named, count in known:
            one, again = _by_names(root, path, rows, named, count, surely)
            repeated = repeated or again
            if one or again:
                break
        found += [one] * (one is not None)
        if found and path.endswith((".txt", ".lst")):  # whole lines name images: words of them are not looked at
            break
    if not found and not repeated:
        found = [one for rows in tables if (one := _by_groups(root, path, rows, names.groups))]
        if not found and not folders:
            _check_classes_are_no_patients(root, path, tables, names.records)
    if len(found) > 1:
        raise ValueError(f"{root / path} has {len(found)} sheets that name images: save the one that counts as CSV")
    if not found and not repeated and (unclear := _unclear(tables, names.below("")[0])):
        understood.add(
            "passed over", f"table whose names stand for several images each (e.g. {unclear}): give their folders", path
        )
    if repeated and not found:
        understood.add("passed over", f"table whose column {repeated!r} names images several times: not joined", path)
    if found and (encoding := table_files.encoding_of(root / path)):
        understood.notes.append(f"{path} is not in UTF-8: read as {encoding}")
    return found[0] if found else None


def _unclear(tables: list[list[list[str]]], names: dict[str, int | None]) -> str:
    """A name with an ending that several images have, where most rows of a table hold such names; else nothing."""
    for rows in tables:
        for column in range(max(map(len, rows), default=0)):
            cells = [cell for cell in _cells(rows[1:], column) if without_extension(cell) != cell]
            several = [cell for cell in cells if names.get(same(cell), 0) is None]
            if len(several) >= FEWEST and len(several) >= NAMED * len(rows):
                return several[0]
    return ""


def _reason(path: Path, error: ValueError) -> str:
    return str(error).removeprefix(str(path)).strip()


def _names_any(path: Path, names: dict[str, int | None]) -> bool:
    """Whether a text in an encoding that is not read names images here."""
    if path.suffix.lower() not in table_files.TEXTS:
        return False
    cells = re.split(r"[,;\t|\r\n]", path.read_bytes()[:100_000].decode("latin-1"))
    hits = {
        place for cell in cells if not cell.strip().isdigit() and (place := _named(cell.strip(), names)) is not None
    }
    return len(hits) >= FEWEST


def _cells(rows: list[list[str]], column: int) -> list[str]:
    return [row[column].strip() if column < len(row) else "" for row in rows]


def _by_names(
    root: Path, path: str, rows: list[list[str]], names: dict, images: int, surely: bool
) -> tuple[Joined | None, str]:
    """The table by the column that names images, or a column that names them several times."""
    if not rows:
        return None, ""
    ended = [cell for cell in rows[0] if without_extension(cell.strip()) != cell.strip()]
    first_names = [
        cell for cell in (rows[0] if len(rows[0]) == 1 else ended) if _named(cell.strip(), names) is not None
    ]
    headed = not first_names or same(rows[0][0].strip()) in COLUMNS["path"]
    if headed and (titles := _titles(rows)):
        rows = rows[titles:]
    header = [name.strip() for name in rows[0]] if headed else [f"column {k}" for k in range(1, len(rows[0]) + 1)]
    rows = rows[headed:]
    fewest = 1 if _split_of(path) else FEWEST
    keys: dict[int, tuple[dict[int, list[str]], bool]] = {}
    repeated = ""
    for column in range(len(header)):
        cells = _cells(rows, column)
        hits = [
            (place, row) for cell, row in zip(cells, rows, strict=True) if (place := _named(cell, names)) is not None
        ]
        with_ending = all(without_extension(cell) != cell for cell in cells if cell)
        if len(hits) < fewest or len(hits) < NAMED * len(rows):
            continue
        numbers = all(cell.isdigit() for cell in cells if cell)
        if len({place for place, _ in hits}) < len(hits):
            if not _agree(root, path, header, column, hits):
                repeated = repeated or header[column] * (not numbers)
                continue
            hits = list({place: (place, row) for place, row in reversed(hits)}.values())
        listed = (
            len(header) == 1 and _split_of(path) and len(hits) == len(rows)
        )  # train.txt of a set whose names are numbers
        enough = listed or min(len(hits) / len(rows), len(hits) / images) >= NUMBERS_NAMED
        if not numbers or enough or surely:
            keys[column] = (dict(hits), with_ending)
    if not keys or (repeated and not any(with_ending for _, with_ending in keys.values())):
        return None, repeated
    surest = [column for column, (_, with_ending) in keys.items() if with_ending] or list(keys)
    first = surest[0]
    for other in surest[1:]:
        if any(keys[first][0].get(place) is not row for place, row in keys[other][0].items()):
            raise ValueError(
                f"{root / path} can be joined in two ways: its columns {header[first]!r} and {header[other]!r} name different "
                "images in a row. Write a manifest.csv with the column path, or say reading.table=none"
            )
    named = keys[first][0]
    counted = sum(_named(cell, names) is not None for cell in _cells(rows, first))
    one = Joined(path, header, first, named, len(rows), {}, counted, headed=headed)
    _roles(root, one, rows, keys)
    return one, ""


def _agree(root: Path, path: str, header: list[str], key: int, hits: list[tuple[int, list[str]]]) -> bool:
    """Whether several rows of one image, of its boxes, say the same label, group and split; False where they say none."""
    one = Joined(path, header, key, {}, len(hits), {})
    _roles(root, one, [row for _, row in hits], {key: None})
    told: dict[int, tuple] = {}
    for place, row in hits:
        said = tuple(row[k].strip() if k < len(row) else "" for k in one.places.values())
        if not said or told.setdefault(place, said) != said:
            return False
    return True


def _titles(rows: list[list[str]]) -> int:
    """How many rows stand above the header: those before the first row with two names of columns that are known."""
    known = {name for spellings in COLUMNS.values() for name in spellings}
    for count, row in enumerate(rows[: TITLE_ROWS + 1]):
        if len({same(cell.strip()) for cell in row} & known) > 1:
            return count
    return 0


def _check_classes_are_no_patients(root: Path, path: str, tables: list[list[list[str]]], records: list[Record]) -> None:
    """ValueError where every class that the folders say is a patient of a table."""
    classes = sorted({record.label for record in records if record.label}, key=natural_key)
    for rows in tables:
        for column, title in enumerate(rows[0] if len(classes) > 1 and rows else []):
            patients = {same(label_of(cell)) for cell in _cells(rows[1:], column)}
            if same(title.strip()) in GROUP_HEADERS and {same(name) for name in classes} <= patients:
                some = ", ".join(classes[:3]) + ", ..." * (len(classes) > 3)
                raise ValueError(
                    f"{root} can be read in two ways: {some} are classes, as folders are, or patients, as the column "
                    f"{title.strip()!r} of {path} says. Say reading.folders=patients or reading.folders=classes"
                )


def _by_groups(root: Path, path: str, rows: list[list[str]], of: dict[str, list[int]]) -> Joined | None:
    """The table by a column that names groups of images, `Names.groups`: a row for each patient."""
    headed = bool(rows) and not any(same(cell.strip()) in of for cell in rows[0])
    header = (
        [name.strip() for name in rows[0]]
        if headed
        else [f"column {k}" for k in range(1, len(rows[0]) + 1)]
        if rows
        else []
    )
    rows = rows[headed:]
    for column in range(len(header)):
        cells = [same(label_of(cell)) for cell in _cells(rows, column)]
        cells = [cell if cell in of or not cell.isdecimal() else str(int(cell)) for cell in cells]
        if all(cell.isdigit() for cell in cells) and same(header[column]) not in GROUP_HEADERS:
            continue  # an age, a running number
        hits = [(cell, row) for cell, row in zip(cells, rows, strict=True) if cell in of]
        if len(hits) < FEWEST or len(hits) < NAMED * len(rows) or len({name for name, _ in hits}) < len(hits):
            continue
        named = {place: row for name, row in hits for place in of[name]}
        one = Joined(path, header, column, named, len(rows), {}, len(hits), by_group=True, headed=headed)
        _roles(root, one, rows, {column: None})
        one.places.pop("group", None)
        return one
    return None


def _roles(root: Path, one: Joined, rows: list[list[str]], keys) -> None:
    """Which columns are label, group and split: by their header, by 0 and 1, without a header the only one that can be a label."""
    header = [same(name) if k not in keys else "" for k, name in enumerate(one.header)]
    if one.headed:
        places = places_of(root / one.path, header, repeats=False)
        one.places = {role: place for role, place in places.items() if role in ROLES}
    else:
        labels = [k for k in range(len(header)) if k not in keys and _may_be_labels(_cells(rows, k))]
        words = [k for k in labels if not all(cell.isdigit() for cell in _cells(rows, k))]
        if len(labels) == 1 and len(header) == 2 or len(words) == 1:
            one.places = {"label": (words or labels)[0]}
    if "label" in one.places:
        cells = _cells(rows, one.places["label"])
        if name_files(cells) or are_measurements(cells):  # the files of masks, or lengths
            del one.places["label"]
    if "split" in one.places and header[one.places["split"]] != "split":
        known = {"", *SPLITS, *SPLIT_SYNONYMS}
        if not {cell.lower() for cell in _cells(rows, one.places["split"])} <= known:
            del one.places["split"]  # a phase or a set of another kind
    if "label" not in one.places and one.headed:
        free = [k for k, name in enumerate(header) if name and k not in one.places.values()]
        binary = [k for k in free if set(map(label_of, _cells(rows, k))) <= {"0", "1"}]
        ones = [sum(label_of(row[k].strip()) == "1" for k in binary if k < len(row)) for row in rows]
        names = {header[k] for k in binary}
        if len(binary) > 1 and rows and set(ones) == {1} and not names <= NO_CLASSES:
            one.one_hot = tuple(binary)
            one.places["split" if names <= {*SPLITS, *SPLIT_SYNONYMS} else "label"] = binary[0]


def _may_be_labels(cells: list[str]) -> bool:
    values = set(cells) - {""}
    small = all(value.isdigit() and int(value) <= LARGEST_CLASS for value in values) and len(values) < len(cells)
    return bool(values) and (small or len(values) <= max(2, len(cells) / 2)) and not name_files(cells)


class Names:
    """Every way to name an image, among all of them or those below a folder, or a group of images."""

    def __init__(self, records: list[Record]):
        self.records = records
        self.known: dict[str, tuple[dict[str, int | None], int]] = {}

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """Folder -> the images in it and below; "" are all."""
        places: dict[str, list[int]] = defaultdict(list)
        for place, record in enumerate(self.records):
            folders = record.path.split("/")[:-1]
            for depth in range(len(folders) + 1):
                places["/".join(folders[:depth])].append(place)
        return places

    @cached_property
    def groups(self) -> dict[str, list[int]]:
        """The last part of a group's name, and the number of a patient -> the images; nothing where it could be several groups."""
        members: dict[str, list[int]] = defaultdict(list)
        for place, record in enumerate(self.records):
            if record.group:
                members[record.group].append(place)
        tail_of = {group: same(group.rsplit("/", 1)[-1]) for group in members}
        tails = Counter(tail_of.values())
        of = {tail: members[group] for group, tail in tail_of.items() if tails[tail] == 1}
        if all(is_patient_folder(tail) or tail.isdecimal() for tail in tails):  # patient_007 is the 7 or 007 of a table
            numbers = Counter(int(re.sub(r"\D", "", tail)) for tail in of)
            of |= {f"{n}": of[tail] for tail in list(of) if numbers[n := int(re.sub(r"\D", "", tail))] == 1}
        return of

    def below(self, folder: str) -> tuple[dict[str, int | None], int]:
        """Name -> the image's place, None where it could be several, and how many images lie below the folder."""
        if folder not in self.known:
            names: dict[str, int | None] = {}
            places = self.places.get(folder, [])
            for place in places:
                parts = self.records[place].path.split("/")
                for begin in range(len(parts)):
                    tail = same("/".join(parts[begin:]))
                    for name in {tail, without_extension(tail)}:
                        names[name] = None if name in names else place
            self.known[folder] = names, len(places)
        return self.known[folder]


def _named(cell: str, names: dict[str, int | None]) -> int | None:
    """The place of the image that a cell names: by its path or the end of it, with or without folders and ending."""
    plain = same(cell.replace("\\", "/"))
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    for begin in range(len(parts)):
        tail = "/".join(parts[begin:])
        for name in (tail, without_extension(tail)):
            if name in names:
                return names[name]
    return None


def _value(root: Path, one: Joined, role: str, row: list[str]) -> str:
    place = one.places[role]
    if place < 0:  # the table's name says the split
        return _split_of(one.path)
    if one.one_hot and place == one.one_hot[0]:
        name = next(one.header[k] for k in one.one_hot if label_of(row[k].strip()) == "1")
        return split_name(name, f"{root / one.path}") if role == "split" else name
    cell = label_of(row[place].strip() if place < len(row) else "")
    return split_name(cell, f"{root / one.path}") if role == "split" else cell


def _stem(path: str) -> str:
    """train_labels.csv -> train_labels."""
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _split_of(path: str) -> str:
    """The split that the name of a table says: train.csv, test_list.txt, test_fold1.txt."""
    stem = re.sub(r"[-_ ]*(?:fold|cv)?[-_ ]*\d+$", "", _stem(path))
    return folder_of(stem).split or split_within(stem)[1]


def _splits_by_name(root: Path, joined: list[Joined], understood: Understanding) -> None:
    """train.csv and test.csv that name different images: their names say the splits."""
    named = [one for one in joined if _split_of(one.path)]
    if len(named) < 2 or any("split" in one.places for one in joined):
        return
    first: dict[int, Joined] = {}
    for one in named:
        for place in one.rows:
            other = first.setdefault(place, one)
            if other is one:
                continue
            if any(re.search(r"\d", _stem(each.path)) for each in (one, other)):
                understood.notes.append(
                    f"{other.path}, {one.path} and the like name the same images: folds, which are not used (write a manifest.csv "
                    "with the column split for one of them)"
                )
                return
            if _split_of(other.path) != _split_of(one.path):
                raise ValueError(
                    f"{root}: {understood.records[place].path} is in {other.path} and in {one.path}: keep it in one, or say "
                    "reading.table=none"
                )
    for one in named:
        one.places["split"] = -1


def _take(
    root: Path, role: str, given: dict[int, str], of_role: list[Joined], reading: Reading, understood: Understanding
) -> None:
    records, tables = understood.records, ", ".join(one.path for one in of_role)
    before = {place: getattr(records[place], role) for place in given if getattr(records[place], role)}
    if role == "label" and len({record.label for record in records}) == 1:
        before = {}  # one folder around all images says nothing
    if role != "group" and not reading.table:
        differing = [place for place, value in before.items() if same(value) != same(given[place])]
        if differing:
            place = differing[0]
            raise ValueError(
                f"{root} can be read in two ways: {records[place].path} has the {role} {before[place]!r} by its folder and "
                f"{given[place]!r} by {tables}. Say reading.table={_all_named(of_role)} to go by the table, or reading.table=none"
            )
        given = {place: value for place, value in given.items() if place not in before}
    if role == "label":
        _check_numbers(root, records, given, of_role)
    if role == "group":
        divided = _divided(before, given)
        if divided:
            understood.notes.append(
                f"groups are those of {tables}, which divides {divided[0]!r}, a group by names or folders ({len(divided)} such)"
            )
    for place, value in given.items():
        setattr(records[place], role, value)
    if given:
        if role == "label":
            understood.notes = [note for note in understood.notes if note != NO_LABELS]
        where = f"by {tables}"
        setattr(understood, {"label": "labels", "group": "groups", "split": "splits"}[role], where)


def _all_named(tables: list[Joined]) -> str:
    """What reading.table must say to mean these tables: their file name, where it is one in several folders."""
    names = {one.path.rsplit("/", 1)[-1] for one in tables}
    return names.pop() if len(names) == 1 < len(tables) else tables[0].path


def _check_numbers(root: Path, records: list[Record], given: dict[int, str], of_role: list[Joined]) -> None:
    """ValueError where a table writes numbers for classes that folders call by name."""
    named = sorted({record.label for place, record in enumerate(records) if place not in given and record.label})
    numbers = sorted({value for value in given.values() if value.isdigit()})
    if (
        len(named) > 1
        and numbers
        and not any(label.isdigit() for label in named)
        and len(numbers) == len(set(given.values()))
    ):
        raise ValueError(
            f"{root}: {of_role[0].path} has the labels {', '.join(numbers[:4])} and the folders are called {', '.join(named[:4])}: "
            "write the names of the folders into the table, or say reading.table=none"
        )


def _divided(before: dict[int, str], given: dict[int, str]) -> list[str]:
    """Groups by names whose images have several groups in the table."""
    seen: dict[str, set[str]] = {}
    for place, group in before.items():
        seen.setdefault(group, set()).add(given[place])
    return sorted(group for group, several in seen.items() if len(several) > 1)


def _tell(one: Joined, understood: Understanding) -> None:
    """The table among the files, with the columns that were taken for what and those that were not."""
    key = shown(one.header[one.key])
    what = "groups" if one.by_group else "images"
    taken = [
        "its name is the split"
        if place < 0
        else f"the one of {', '.join(one.header[k] for k in one.one_hot)} that is 1 is the {role}"
        if place in one.one_hot
        else f"{one.header[place]!r} is the {role}"
        for role, place in one.places.items()
    ]
    used = {one.key, *one.places.values(), *one.one_hot}
    unused = [name for k, name in enumerate(one.header) if name and k not in used]
    left = f"; not used: {', '.join(unused[:8])}{' ...' * (len(unused) > 8)}" * bool(unused)
    if unused and "label" not in one.places and one.headed and not any(record.label for record in understood.records):
        understood.notes.append(
            f"no image has a label, and no column of {one.path} is called label: if one of {', '.join(unused[:8])} is, call it so"
        )
    if not taken:
        understood.add(
            "passed over",
            f"table that names {what} by {key!r}: no column is a label, a group or a split{left}",
            one.path,
        )
        return
    of_groups = ", which names groups" * one.by_group
    understood.add("table", f"joined by its column {key!r}{of_groups}: {'; '.join(taken)}{left}", one.path)
    if one.count > one.named:
        understood.notes.append(
            f"{one.count - one.named} of {one.count} rows of {one.path} name no image that is there"
        )
