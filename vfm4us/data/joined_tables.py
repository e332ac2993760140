"""A table that lies beside images: joined where one of its columns names them one to one, and said; never in silence.

Its columns of label, group and split are taken by the rules of a manifest (`vfm4us.data.manifests`). What folders say stays,
unless `reading.table` names the table: where the two differ, that is an error.
"""

from dataclasses import dataclass
from pathlib import Path

from vfm4us.data.csv_files import guessed_delimiter, shown, table_rows, table_text
from vfm4us.data.manifests import label_of, one_spelling_each, places_of
from vfm4us.data.reading import Reading
from vfm4us.data.records import Record, natural_key, split_name, without_extension
from vfm4us.data.understanding import Understanding
from vfm4us.data.words import folder_of, same

ROLES = ("label", "group", "split")
FEWEST = 2  # images that a table must name
NAMED = 0.5  # share of the rows that must name one
NUMBERS_NAMED = 0.9  # share of rows and of images, where names are plain numbers: 7.png is the 7th row only if all are


@dataclass
class Joined:
    """A table and the images its rows name: `rows` by the record's place, `key` the column that names them."""

    path: str
    header: list[str]
    key: int
    rows: dict[int, list[str]]
    count: int
    places: dict[str, int]


def join_tables(root: Path, tables: list[str], reading: Reading, understood: Understanding) -> None:
    """Give the records of a tree the labels, groups and splits of the tables beside it.

    ValueError where two readings are possible.
    """
    if reading.table and reading.table != "none" and reading.table not in tables:
        raise ValueError(
            f"reading: table={reading.table!r} is no table of {root}; there are: {', '.join(tables) or 'none'}"
        )
    if reading.table == "none" or not understood.records:
        return
    tables = [reading.table] if reading.table else sorted(tables, key=natural_key)
    joined = [one for path in tables if (one := _joined(root, path, understood, bool(reading.table)))]
    _splits_by_name(joined, understood)
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


def _joined(root: Path, path: str, understood: Understanding, surely: bool) -> Joined | None:
    """The table with the column that names the images one to one; None where no column does, which is said."""
    try:
        text = table_text(root / path)
        delimiter = guessed_delimiter(text)
        rows = [row for _, row in table_rows(text, delimiter)] if delimiter else []
    except ValueError as error:
        understood.add(
            "passed over", f"table that cannot be read: {str(error).removeprefix(str(root / path)).strip()}", path
        )
        return None
    if len(rows) < 2:
        return None
    header, rows = [name.strip() for name in rows[0]], rows[1:]
    names = _names(understood.records)
    keys: dict[int, tuple[dict[int, list[str]], bool]] = {}
    for column in range(len(header)):
        cells = [row[column].strip() if column < len(row) else "" for row in rows]
        hits = [
            (place, row) for cell, row in zip(cells, rows, strict=True) if (place := _named(cell, names)) is not None
        ]
        with_ending = all(without_extension(cell) != cell for cell in cells if cell)
        if len(hits) < FEWEST or len(hits) < NAMED * len(rows):
            continue
        if len({place for place, _ in hits}) < len(hits):
            if not keys:
                understood.add(
                    "passed over", f"table whose column {header[column]!r} names images several times: not joined", path
                )
            return None
        numbers = all(cell.isdigit() for cell in cells if cell)
        enough = min(len(hits) / len(rows), len(hits) / len(understood.records)) >= NUMBERS_NAMED
        if not numbers or enough or surely:
            keys[column] = (dict(hits), with_ending)
    if not keys:
        return None
    surest = [column for column, (_, with_ending) in keys.items() if with_ending] or list(keys)
    first = surest[0]
    for other in surest[1:]:
        if any(keys[first][0].get(place) is not row for place, row in keys[other][0].items()):
            raise ValueError(
                f"{root / path} can be joined in two ways: its columns {header[first]!r} and {header[other]!r} name different "
                "images in a row. Write a manifest.csv with the column path, or say reading.table=none"
            )
    places = places_of(root / path, [name.lower() if k not in keys else "" for k, name in enumerate(header)])
    places = {role: place for role, place in places.items() if role in ROLES}
    return Joined(path, header, first, keys[first][0], len(rows), places)


def _names(records: list[Record]) -> dict[str, int | None]:
    """Every way to name an image -> its place; None where it could be several."""
    names: dict[str, int | None] = {}
    for place, record in enumerate(records):
        parts = record.path.split("/")
        for begin in range(len(parts)):
            tail = same("/".join(parts[begin:]))
            for name in {tail, without_extension(tail)}:
                names[name] = None if name in names else place
    return names


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
        return folder_of(_stem(one.path)).split
    cell = label_of(row[place].strip() if place < len(row) else "")
    return split_name(cell, f"{root / one.path}") if role == "split" else cell


def _stem(path: str) -> str:
    """train_labels.csv -> train_labels."""
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _splits_by_name(joined: list[Joined], understood: Understanding) -> None:
    """train.csv and test.csv that name different images: their names say the splits."""
    named = [one for one in joined if folder_of(_stem(one.path)).split]
    places = [place for one in named for place in one.rows]
    if len(named) < 2 or any("split" in one.places for one in joined) or len(set(places)) < len(places):
        return
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
                f"{given[place]!r} by {tables}. Say reading.table={of_role[0].path} to go by the table, or reading.table=none"
            )
        given = {place: value for place, value in given.items() if place not in before}
    if role == "group":
        divided = _divided(before, given)
        if divided:
            understood.notes.append(
                f"groups are those of {tables}, which divides {divided[0]!r}, a group by names or folders ({len(divided)} such)"
            )
    for place, value in given.items():
        setattr(records[place], role, value)
    if given:
        where = f"by {tables}"
        setattr(understood, {"label": "labels", "group": "groups", "split": "splits"}[role], where)


def _divided(before: dict[int, str], given: dict[int, str]) -> list[str]:
    """Groups by names whose images have several groups in the table."""
    seen: dict[str, set[str]] = {}
    for place, group in before.items():
        seen.setdefault(group, set()).add(given[place])
    return sorted(group for group, several in seen.items() if len(several) > 1)


def _tell(one: Joined, understood: Understanding) -> None:
    """The table among the files, with the columns that were taken for what and those that were not."""
    key = shown(one.header[one.key])
    taken = [
        f"{one.header[place]!r} is the {role}" if place >= 0 else "its name is the split"
        for role, place in one.places.items()
    ]
    unused = [name for k, name in enumerate(one.header) if name and k != one.key and k not in one.places.values()]
    left = f"; not used: {', '.join(unused[:8])}{' ...' * (len(unused) > 8)}" * bool(unused)
    if unused and "label" not in one.places and not any(record.label for record in understood.records):
        understood.notes.append(
            f"no image has a label, and no column of {one.path} is called label: if one of {', '.join(unused[:8])} is, call it so"
        )
    if not taken:
        understood.add(
            "passed over",
            f"table that names images by {key!r}: no column is a label, a group or a split{left}",
            one.path,
        )
        return
    understood.add("table", f"joined by its column {key!r}: {'; '.join(taken)}{left}", one.path)
    lacking = len(understood.records) - len(one.rows)
    if lacking:
        first = next(record.path for place, record in enumerate(understood.records) if place not in one.rows)
        understood.notes.append(f"{one.path} does not name {lacking} of {len(understood.records)} images, e.g. {first}")
    if one.count > len(one.rows):
        understood.notes.append(
            f"{one.count - len(one.rows)} of {one.count} rows of {one.path} name no image that is there"
        )
