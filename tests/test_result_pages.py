"""The tables of docs/results/*.md and the CSV beside each hold the same figures; run as a script, it writes the CSVs anew.

python tests/test_result_pages.py
"""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES = sorted(
    page for page in RESULTS.glob("*.md") if page.stem != "speed"
)  # which its benchmark writes, with speed.json
HEADS = ["section", "table", "row", "column", "value", "low", "high"]
NUMBER = r"[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
INTERVAL = re.compile(rf"({NUMBER})\s*\(\s*({NUMBER}) to ({NUMBER})\)")
HALF = re.compile(rf"({NUMBER})\s*\((?:\+-|±) ({NUMBER})\)")
ALONE = re.compile(rf"^({NUMBER})(?: dB| px| s| %)?$")


def cells(line: str) -> list[str]:
    """The cells of a row of a Markdown table, without emphasis."""
    return [cell.replace("*", "").replace("`", "").strip() for cell in line.strip().strip("|").split("|")]


def number(text: str) -> float:
    """A figure as written: 1,268 and -0.02 with a minus of either kind."""
    return float(text.replace(",", "").replace("−", "-"))


def figure(cell: str) -> tuple[float, ...] | None:
    """(value,) or (value, low, high) of a cell that holds one figure; None of any other."""
    if match := INTERVAL.search(cell):
        return tuple(number(text) for text in match.groups())
    if match := HALF.search(cell):
        value, half = number(match[1]), number(match[2])
        return value, round(value - half, 6), round(value + half, 6)
    return (number(match[1]),) if (match := ALONE.match(cell)) else None


def figures(page: str) -> list[list[str]]:
    """Every figure of a page's tables: section, number of the table, row, column, value, low, high.

    A row is named by its cells before the first figure with decimals or an interval; whole numbers before it are names too.
    """
    rows: list[list[str]] = []
    section, count = "", 0
    lines = page.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("#"):
            section = line.lstrip("# ").strip()
        if not re.fullmatch(r"\|(?:\s*:?-+:?\s*\|)+", line.strip()) or not i:
            continue
        count += 1
        heads = cells(lines[i - 1])
        for row in lines[i + 1 :]:
            if not row.startswith("|"):
                break
            values = cells(row)
            read = [figure(value) for value in values]
            names = next((k for k, v in enumerate(read) if v and (len(v) > 1 or "." in values[k])), len(values))
            name = ", ".join(value for value in values[: max(names, 1)] if value)
            for head, match in list(zip(heads, read, strict=False))[max(names, 1) :]:
                if match:
                    low_high = [f"{v:.12g}" for v in match[1:]] or ["", ""]
                    rows.append([section, str(count), name, head, f"{match[0]:.12g}", *low_high])
    return rows


def as_csv(rows: list[list[str]]) -> str:
    """Rows of figures as the text of a CSV file."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([HEADS, *rows])
    return out.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_csv_beside_a_page_holds_its_figures(page):
    rows = figures(page.read_text(encoding="utf-8"))
    assert len(rows) >= 4
    assert page.with_suffix(".csv").read_text(encoding="utf-8") == as_csv(rows), (
        f"{page.name} and its CSV differ; if the page is right: python tests/test_result_pages.py"
    )


def test_the_page_of_the_released_encoder_repeats_what_was_measured():
    keys = [("mean", "low", "high"), ("minus ours", "minus_low", "minus_high")]
    measured: list[tuple[float, ...]] = []
    for name in ("probe_open_test.csv", "probe_open_cv.csv"):  # as scripts/probe.py wrote them
        with open(RESULTS / name, newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                measured += [tuple(float(row[k]) for k in three) for three in keys if row[three[0]]]
    page = [
        row for row in figures((RESULTS / "probe.md").read_text(encoding="utf-8")) if row[0] == "The released encoder"
    ]
    page = [row for row in page if row[5]]
    allowed = (0.00051, 0.0061, 0.0061)  # the page rounds to three and two digits, and half of an interval to two
    apart = np.abs(np.array([row[4:] for row in page], float)[:, None] - np.array(measured))
    assert (
        len(page) > 100
        and [row for row, near in zip(page, apart, strict=True) if not (near < allowed).all(1).any()] == []
    )


def test_a_changed_figure_is_seen():
    page = "# A\n\n| set | n | ours | gain |\n| --- | --- | --- | --- |\n"
    page += "| busi | 46 | 0.722 (0.67 to 0.78) | not shown: +0.025 (+- 0.042) |\n"
    (first, second) = figures(page)
    assert first == ["A", "1", "busi, 46", "ours", "0.722", "0.67", "0.78"]
    assert second == ["A", "1", "busi, 46", "gain", "0.025", "-0.017", "0.067"]
    assert figures(page.replace("0.722", "0.723"))[0] != first


if __name__ == "__main__":
    for path in PAGES:
        path.with_suffix(".csv").write_text(as_csv(figures(path.read_text(encoding="utf-8"))), encoding="utf-8")
        print(path.with_suffix(".csv").relative_to(ROOT))
