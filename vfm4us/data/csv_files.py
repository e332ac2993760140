"""CSV files that spreadsheets open without harm and that come back as they were written.

A name may hold anything: line breaks, bytes that are not UTF-8, a leading `=`, which a spreadsheet would run as a formula.
"""

import contextlib
import csv
import gc
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from vfm4us.runtime.files import unfinished

FORMULA = re.compile(r"'*[=+\-@\t\r]")  # what a spreadsheet would take for a formula, or what we have marked before
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
MARKED = re.compile(r"'+[=+\-@\t\r]")
MARKED_CELL = re.compile(r"(?:^|[,\"\n])'+[=+\-@\t\r]")  # somewhere in a text
DELIMITERS = (",", ";", "\t", "|")
SEPARATOR_LINE = re.compile(r"\A\s*sep=.\r?\n", re.IGNORECASE)  # what spreadsheets write before the header
WESTERN = frozenset(map(chr, range(0xC0, 0x100))) - set("×÷") | set("\xa0°µ±²³€§«»–—‘’“”„…")


def write_rows(path, header, rows) -> None:
    """Write a CSV in UTF-8 with commas, whole or not at all.

    Text that begins with = + - @ gets a leading ', which `read_rows` takes away.
    """
    # surrogateescape: a file name that is not UTF-8 comes back as the same bytes
    with (
        unfinished(path) as beside,
        open(beside, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        _write(file, header, rows)


def rows_text(header, rows) -> str:
    """What `write_rows` would write."""
    stream = io.StringIO()
    _write(stream, header, rows)
    return stream.getvalue()


def _write(file, header, rows) -> None:
    plain = csv.writer(file, lineterminator="\n")
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in [list(header), *rows]:
        cells = [marked(cell) for cell in row]
        # a carriage return is not quoted by itself, and would end the line when it is read
        (quoted if any(isinstance(cell, str) and "\r" in cell for cell in cells) else plain).writerow(cells)


def read_rows(path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Header, and (line number, {column: cell}) of each row, of a CSV that `write_rows` wrote."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        cells = ((reader.line_num, [unmarked(cell) for cell in row]) for row in reader)
        return header, [(line, dict(zip(header, row, strict=False))) for line, row in cells]


def read_cells(path) -> Iterator[list[str]]:
    """The rows, the header first, of a CSV that `write_rows` wrote; for files of many rows."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        text = file.read()
    rows = csv.reader(io.StringIO(text, newline=""))
    return ([unmarked(cell) for cell in row] for row in rows) if "'" in text and MARKED_CELL.search(text) else rows


@contextlib.contextmanager
def without_collection():
    """No search for garbage while many objects are made that all stay: it would go through all of them again and again."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def marked(cell):
    """A cell that no spreadsheet runs; numbers stay numbers."""
    if isinstance(cell, str) and FORMULA.match(cell) and not NUMBER.fullmatch(cell):
        return "'" + cell
    return cell


def unmarked(cell: str) -> str:
    """What `marked` was given."""
    return cell[1:] if MARKED.match(cell) else cell


def table_text(path: Path) -> str:
    """The text of a CSV: UTF-8 with or without a byte-order mark, UTF-16 with one, or Windows-1252 (what spreadsheets write)."""
    return decoded_table(path)[0]


def decoded_table(path: Path) -> tuple[str, str]:
    """The text of a CSV and its encoding: Windows-1252 where it is not UTF-8 and every other reading would be nonsense."""
    data = path.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16" or (text := _western(data)) is None:
            place = f"{error.reason} at byte {error.start}"
            raise ValueError(
                f"{path} is not a CSV in UTF-8 ({place}) and not plainly in Windows-1252: save it as UTF-8"
            ) from error
        encoding = "Windows-1252"
    if "\0" in text or not text.strip():
        raise ValueError(f"{path} is {'empty' if not text.strip() else 'not text'}: give a CSV manifest or a folder")
    return SEPARATOR_LINE.sub("", text), encoding


def _western(data: bytes) -> str | None:
    """The text of bytes in Windows-1252; None where its letters do not stand as in words of Western Europe."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    for run in re.finditer(r"[^\x00-\x7f]+", text):
        around = text[max(0, run.start() - 1) : run.start()], text[run.end() : run.end() + 1]
        letters = [bool(re.fullmatch("[A-Za-z]", side)) for side in around]
        if not set(run[0]) <= WESTERN or len(run[0]) > 2 or (len(run[0]) == 2 and not any(letters)):
            return None  # Cyrillic and Chinese letters stand side by side
        if all(letters) and not all(c.isalpha() or c == "’" for c in run[0]):
            return None  # a letter of another code page
    return text


def delimiter_of(text: str, columns) -> str | None:
    """The separator with which the first line names one of `columns` (small letters); None where none does."""
    first_line = text.lstrip("\r\n").split("\n", 1)[0]
    for delimiter in DELIMITERS:
        names = {name.strip().strip('"').lower() for name in first_line.split(delimiter)}
        if names & set(columns):
            return delimiter
    return None


def guessed_delimiter(text: str) -> str | None:
    """The separator that divides the first lines into the same number of cells, two or more; None where none does."""
    best, most = None, 1
    for delimiter in DELIMITERS:
        rows = [row for _, row in itertools.islice(table_rows(text, delimiter), 20)]
        widths = {len(row) for row in rows}
        if len(widths) == 1 and (width := widths.pop()) > most:
            best, most = delimiter, width
    return best


def table_rows(text: str, delimiter: str):
    """(line number, cells) of the rows that hold anything, the header first. ValueError where a row has no end."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    begin = 1
    try:
        for row in reader:
            begin = reader.line_num + 1
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"the row of line {begin} has no end ({error}): close its quotation mark") from error


def shown(text: str) -> str:
    """A name as it can be printed on any terminal: control characters and bytes that are not UTF-8 as escapes."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
