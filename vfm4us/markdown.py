"""The one writer of Markdown tables: rows of text, and what stands in a cell."""

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. ValueError where a row is longer or shorter than the head."""
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for row in rows:
        if len(row) != len(heads):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(heads)} columns: {list(row)}")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def cell(figure: dict | None, sign: str = "") -> str:
    """`0.712 (0.65 to 0.78)`, with `sign` "+" for a difference; a dash where there is no such figure."""
    if figure is None:
        return "-"
    limits = f" ({figure['low']:{sign}.2f} to {figure['high']:{sign}.2f})" if "low" in figure else ""
    return f"{figure['mean']:{sign}.3f}{limits}"


def difference(figure: dict | None) -> str:
    """A difference, and where its interval holds 0 what could have been seen: `+0.010 (-0.02 to +0.04), not shown (+- 0.030)`."""
    if figure is None or "low" not in figure:
        return cell(figure, "+")
    seen = not figure["low"] <= 0 <= figure["high"]
    return cell(figure, "+") + ("" if seen else f", not shown (+- {(figure['high'] - figure['low']) / 2:.3f})")
