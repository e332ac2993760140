"""The rows of a table that lies beside images, in whatever file: CSV, a list of names, JSON, JSON lines, a sheet of Excel.

Only what is flat is a table: names with a label, names with several fields, lists of names per split or label. What a JSON file
holds else (outlines, settings) is none.
"""

import json
import re
import zipfile
import zlib
from pathlib import Path
from xml.etree import ElementTree

from vfm4us.data.csv_files import decoded_table, guessed_delimiter, table_rows
from vfm4us.data.frames import extension_of
from vfm4us.data.limits import file_bytes
from vfm4us.data.records import SPLIT_SYNONYMS, SPLITS

TEXTS = (".csv", ".tsv", ".txt", ".lst")
OTHERS = (".json", ".jsonl", ".ndjson", ".xlsx")
LARGEST = 64 * 1024**2  # bytes of a file, and of a part of one
WRAPPERS = ("data", "images", "items", "samples", "records", "files")  # keys under which JSON files put their rows
MOST_LISTS = 50  # of a JSON file: more keys with lists are no splits or labels
SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, KeyError, IndexError, ElementTree.ParseError)
RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"


def tables_of(path: Path) -> list[list[list[str]]]:
    """The tables of a file, each a list of rows; a list of names may be read in two ways, which are both given.

    Raises ValueError for a file that cannot be read as what its ending says.
    """
    ending = extension_of(path)
    if ending == ".xlsx":
        return _sheets(path)
    if ending in OTHERS:
        rows = _flat(_json(path, ending))
        return [rows] if len(rows) > 1 else []
    text, _ = decoded_table(path)
    if delimiter := guessed_delimiter(text):
        return [[row for _, row in table_rows(text, delimiter)]]
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    words = [line.rsplit(None, 1) for line in lines]
    return [[[line] for line in lines]] + [words] * all(len(row) == 2 for row in words)


def encoding_of(path: Path) -> str:
    """The encoding of a text that is not in UTF-8, to be said; else nothing."""
    encoding = decoded_table(path)[1] if extension_of(path) in TEXTS else ""
    return encoding if encoding == "Windows-1252" else ""


def _json(path: Path, ending: str):
    if path.stat().st_size > LARGEST:
        return None
    try:
        text = file_bytes(path).decode("utf-8-sig")
        return json.loads(text) if ending == ".json" else [json.loads(line) for line in text.splitlines() if line]
    except (ValueError, RecursionError):
        return None


def _flat(content) -> list[list[str]]:
    """Rows with a header, of JSON; nothing where it is no table."""
    if isinstance(content, dict):
        if inner := [content[key] for key in WRAPPERS if isinstance(content.get(key), list)]:
            return _flat(inner[0])
        if isinstance(content.get("labels"), list):  # [["00000/a.png", 3], ...]
            content = content["labels"]
        elif lists := {str(key): value for key, value in content.items() if isinstance(value, list) and value}:
            if len(lists) > MOST_LISTS or not all(map(_name, (item for value in lists.values() for item in value))):
                return []
            return _pairs([[_name(item), key] for key, value in lists.items() for item in value])
        elif content and all(isinstance(value, dict) for value in content.values()):
            return _fields([{"file": key, **value} for key, value in content.items()])
        else:
            content = list(content.items())
    if not isinstance(content, list) or not content:
        return []
    if all(isinstance(entry, dict) for entry in content):
        return _fields(content)
    if all(isinstance(entry, list | tuple) and len(entry) == 2 and all(map(_plain, entry)) for entry in content):
        return _pairs([list(map(_cell, entry)) for entry in content])
    return []


def _pairs(rows: list[list[str]]) -> list[list[str]]:
    """Names with a value each under a header: what repeats is a split or a label."""
    values = {value.strip().lower() for _, value in rows}
    if values <= {*SPLITS, *SPLIT_SYNONYMS}:
        return [["file", "split"], *rows]
    return [["file", "label" if len(values) <= max(2, len(rows) / 2) else "value"], *rows]


def _fields(entries: list[dict]) -> list[list[str]]:
    """Rows of dicts by those of their keys that hold no lists and dicts."""
    header = list(dict.fromkeys(str(key) for entry in entries for key, value in entry.items() if _plain(value)))
    rows = [[_cell(entry.get(key)) if _plain(entry.get(key)) else "" for key in header] for entry in entries]
    return [header, *rows] if len(header) > 1 else []


def _name(item) -> str:
    """The image that an entry of a list names: itself, or the value of its key `image` or the like."""
    if isinstance(item, dict):
        item = next((item[key] for key in ("image", "file_name", "filename", "file", "path", "img") if key in item), "")
    return item if isinstance(item, str) else ""


def _plain(value) -> bool:
    return value is None or isinstance(value, str | int | float)


def _cell(value) -> str:
    return "" if value is None else str(value)


def _sheets(path: Path) -> list[list[list[str]]]:
    """The sheets of an Excel file that hold two rows or more, as its cells are stored; formulas count with their last value."""
    try:
        with zipfile.ZipFile(path) as archive:
            strings = []
            if "xl/sharedStrings.xml" in archive.namelist():
                strings = [_text_of(item) for item in _xml(archive, "xl/sharedStrings.xml").iter(f"{SHEET}si")]
            targets = {
                link.get("Id"): str(link.get("Target")).lstrip("/").removeprefix("xl/")
                for link in _xml(archive, "xl/_rels/workbook.xml.rels")
            }
            places = [
                targets.get(sheet.get(RELATION)) for sheet in _xml(archive, "xl/workbook.xml").iter(f"{SHEET}sheet")
            ]
            sheets = [_rows(_xml(archive, f"xl/{place}"), strings) for place in places if place]
    except (OSError, *DAMAGES) as error:
        raise ValueError(f"is no Excel file that can be read ({error}): save the sheet as CSV (UTF-8)") from error
    return [rows for rows in sheets if len(rows) > 1]


def _xml(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    if archive.getinfo(name).file_size > LARGEST:
        raise ValueError(f"its part {name} is over the limit of {LARGEST} bytes: save the sheet as CSV (UTF-8)")
    data = archive.read(name)
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError("names entities, which no sheet needs: save it as CSV (UTF-8)")
    return ElementTree.fromstring(data)  # noqa: S314  (entities are refused above)


def _text_of(item: ElementTree.Element) -> str:
    """The text of a cell's string, without the reading aids of Japanese."""
    runs = [item, *item.findall(f"{SHEET}r")]
    return "".join(part.text or "" for run in runs for part in run.findall(f"{SHEET}t"))


def _rows(sheet: ElementTree.Element, strings: list[str]) -> list[list[str]]:
    """The cells of a sheet; those that are merged all have the value of the first."""
    cells: dict[tuple[int, int], str] = {}
    number = 0
    for row in sheet.iter(f"{SHEET}row"):
        number = int(row.get("r") or number + 1)
        for count, cell in enumerate(row.iter(f"{SHEET}c")):
            letters = re.match("[A-Z]{1,3}", cell.get("r") or "")
            value = cell.findtext(f"{SHEET}v") or ""
            if cell.get("t") == "s":
                value = strings[int(value)]
            elif cell.get("t") == "inlineStr":
                value = "".join(_text_of(inline) for inline in cell.iter(f"{SHEET}is"))
            elif re.fullmatch(r"-?\d+\.0+", value):
                value = value.split(".")[0]
            cells[number, _column(letters[0]) if letters else count] = value.strip()
    for merged in sheet.iter(f"{SHEET}mergeCell"):
        ends = re.fullmatch(r"([A-Z]{1,3})(\d+):([A-Z]{1,3})(\d+)", merged.get("ref") or "")
        if ends and (value := cells.get((int(ends[2]), _column(ends[1])))) and int(ends[4]) <= number:
            for line in range(int(ends[2]), int(ends[4]) + 1):
                for column in range(_column(ends[1]), _column(ends[3]) + 1):
                    cells[line, column] = value
    rows: dict[int, dict[int, str]] = {}
    for (line, column), value in cells.items():
        if value:
            rows.setdefault(line, {})[column] = value
    return [[row.get(column, "") for column in range(max(row) + 1)] for _, row in sorted(rows.items())]


def _column(letters: str) -> int:
    """A -> 0, Z -> 25, AA -> 26."""
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - 64
    return number - 1
