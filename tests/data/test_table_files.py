"""Rows of tables that lie beside images, in files that are no CSV."""

import json
import zipfile

import pytest
from making_trees import plain

from vfm4us.data.reading import Reading
from vfm4us.data.records import COLUMNS, read_manifest
from vfm4us.data.sources import understand
from vfm4us.data.table_files import tables_of

MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
LINKS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def excel(path, *sheets, before="", merged=""):
    """An Excel file of sheets, each a list of rows; text goes to the shared strings, None leaves a cell out."""
    strings, parts = [], {}
    for number, rows in enumerate(sheets, start=1):
        lines = []
        for r, row in enumerate(rows, start=1):
            cells = []
            for c, value in enumerate(row):
                place = f'r="{chr(65 + c)}{r}"'
                if isinstance(value, str):
                    strings.append(value)
                    cells.append(f'<c {place} t="s"><v>{len(strings) - 1}</v></c>')
                elif value is not None:
                    cells.append(f"<c {place}><v>{value}</v></c>")
            lines.append(f'<row r="{r}">{"".join(cells)}</row>')
        parts[f"xl/worksheets/sheet{number}.xml"] = f"{before}<worksheet {MAIN}>{''.join(lines)}{merged}</worksheet>"
    numbers = range(1, len(sheets) + 1)
    parts["xl/workbook.xml"] = (
        f'<workbook {MAIN} xmlns:r="{LINKS}">' + "".join(f'<sheet r:id="r{k}"/>' for k in numbers) + "</workbook>"
    )
    parts["xl/_rels/workbook.xml.rels"] = (
        "<a>" + "".join(f'<b Id="r{k}" Target="worksheets/sheet{k}.xml"/>' for k in numbers) + "</a>"
    )
    parts["xl/sharedStrings.xml"] = (
        f"<sst {MAIN}>" + "".join(f"<si><t>{s[:1]}</t><r><t>{s[1:]}</t></r></si>" for s in strings) + "</sst>"
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, text)


def test_an_excel_file_beside_images_is_joined_by_the_sheet_that_names_them(tmp_path):
    plain("a.png", "b.png", "c.png")(tmp_path)
    rows = [
        ["File", "Befund", "Age", "Patient"],
        ["a.png", "Zyste", 40, 7.0],
        ["b.png", None, 50, "8.0"],
        ["c.png", "Tumor"],
    ]
    excel(tmp_path / "Liste.xlsx", [["notes", "of 2024"], ["x", "y"]], rows, [])
    (tmp_path / "~$Liste.xlsx").write_bytes(b"x")  # what Excel leaves while a file is open
    understood = understand(tmp_path)
    assert [(record.label, record.group) for record in understood.records] == [("Zyste", "7"), ("", "8"), ("Tumor", "")]
    [table] = [kind for kind in understood.kinds if kind.role == "table"]
    assert "'Befund' is the label; 'Patient' is the group; not used: Age" in table.what
    excel(tmp_path / "Liste.xlsx", rows, rows)
    with pytest.raises(ValueError, match="Liste.xlsx has 2 sheets that name images"):
        understand(tmp_path)


def test_merged_cells_of_excel_have_the_value_of_the_first(tmp_path):
    plain("a.png", "b.png", "c.png")(tmp_path)
    rows = [["Table 1"], ["file", "patient", "label"], ["a.png", "P1", "x"], ["b.png", None, "y"], ["c.png", "P2", "x"]]
    excel(tmp_path / "t.xlsx", rows, merged='<mergeCells><mergeCell ref="B3:B4"/><mergeCell ref="A1:C1"/></mergeCells>')
    assert [(r.group, r.label) for r in understand(tmp_path).records] == [("P1", "x"), ("P1", "y"), ("P2", "x")]


def broken_off(path):
    """An Excel file whose compressed workbook holds other bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/_rels/workbook.xml.rels", "<a>" + "".join(map(str, range(3000))) + "</a>")
    data = path.read_bytes()
    path.write_bytes(data[:60] + bytes(byte ^ 0x5A for byte in data[60:90]) + data[90:])


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda path: path.write_bytes(b"PK no zip"), "no Excel file that can be read"),
        (lambda path: excel(path, [["a"], ["b"]], before="<!DOCTYPE x>"), "names entities"),
        (broken_off, "no Excel file that can be read"),
    ],
)
def test_a_damaged_excel_file_is_said(tmp_path, damage, words):
    plain("a.png", "b.png")(tmp_path)
    damage(tmp_path / "t.xlsx")
    [kind] = [kind for kind in understand(tmp_path).kinds if kind.role == "passed over"]
    assert words in kind.what and kind.paths == ["t.xlsx"]


@pytest.mark.parametrize(
    "content, rows",
    [
        ({"a.png": "x", "b.png": "x"}, [["file", "label"], ["a.png", "x"], ["b.png", "x"]]),
        (
            {"a.png": 41.5, "b.png": 3, "c.png": 5},
            [["file", "value"], ["a.png", "41.5"], ["b.png", "3"], ["c.png", "5"]],
        ),
        ({"labels": [["a.png", 0], ["b.png", 0]]}, [["file", "label"], ["a.png", "0"], ["b.png", "0"]]),
        ({"train": ["a"], "val": ["b"]}, [["file", "split"], ["a", "train"], ["b", "val"]]),
        ({"images": [{"file": "a", "n": None, "box": [1]}]}, [["file", "n"], ["a", ""]]),
        ({"shapes": [{"points": [[1, 2]]}], "imagePath": "a.png"}, None),
        ([1, 2, 3], None),
        ("text", None),
    ],
)
def test_json_is_a_table_where_it_is_flat(tmp_path, content, rows):
    (tmp_path / "t.json").write_text(json.dumps(content))
    assert tables_of(tmp_path / "t.json") == ([rows] if rows else [])


def test_a_quotation_mark_without_an_end_is_said(tmp_path):
    plain("a.png", "b.png")(tmp_path)
    text = 'path,label\na.png,"x\n' + "b.png,y\n" * 20_000
    (tmp_path / "notes.txt").write_text(text.replace("png", "PDF"))
    [kind] = [kind for kind in understand(tmp_path).kinds if kind.role == "passed over"]
    assert "the row of line 2 has no end" in kind.what and kind.paths == ["notes.txt"]
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(ValueError, match=r"manifest.csv: the row of line 2 has no end .* close its quotation mark"):
        understand(tmp_path)
    (tmp_path / "manifest.csv").write_text(",".join(COLUMNS) + text[10:])
    with pytest.raises(ValueError, match="manifest.csv is damaged"):
        read_manifest(tmp_path / "manifest.csv")


@pytest.mark.parametrize(
    "folder, cell", [("patient_{:03d}", "{:03d}"), ("patient_{:03d}", "{}"), ("Patient {}", "{:03d}")]
)
def test_patients_of_a_table_are_those_of_the_folders_whatever_their_zeros(tmp_path, folder, cell):
    plain(*(f"{folder.format(k)}/{name}.png" for k in (1, 2, 13) for name in "ab"))(tmp_path)
    rows = [f"{cell.format(k)},{label}" for k, label in ((1, "x"), (2, "y"), (13, "x"))]
    (tmp_path / "patients.csv").write_text("\n".join(["patient,label", *rows]))
    assert [record.label for record in understand(tmp_path).records] == ["x", "x", "y", "y", "x", "x"]


def test_folders_that_a_table_calls_patients_are_not_taken_for_classes_unasked(tmp_path):
    plain(*(f"p{k}/{name}.png" for k in (1, 2, 13) for name in "ab"))(tmp_path)
    (tmp_path / "patients.csv").write_text("patient,label\np1,x\np2,y\np13,x\n")
    with pytest.raises(
        ValueError, match=r"p1, p2, p13 are classes, .* 'patient' of patients.csv says. Say reading.fol"
    ):
        understand(tmp_path)
    as_patients = understand(tmp_path, Reading(folders="patients")).records
    assert [(record.group, record.label) for record in as_patients[:3]] == [("p1", "x"), ("p1", "x"), ("p2", "y")]
    as_classes = understand(tmp_path, Reading(folders="classes")).records
    assert {record.label for record in as_classes} == {"p1", "p2", "p13"}
    (tmp_path / "patients.csv").write_text("patient,label\nQ1,x\nQ2,y\nQ3,x\n")
    assert {record.label for record in understand(tmp_path).records} == {"p1", "p2", "p13"}, "of others"
