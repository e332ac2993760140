"""Run every cell of a results table, keep what is finished, and write the table with paired differences.

    python scripts/reproduce_tables.py                                                 built-in synthetic ultrasound
    python scripts/reproduce_tables.py --config configs/tables/classification.yaml data=DIR encoder=logs/open_sets
        [section.key=value ...]

A cell is one run of a downstream task: a combination of one value of each axis, with the seeds of the config. `base` holds the
keys all cells share, an axis the keys each of its values adds; {data} and {encoder} in them stand for the keys of that name. The
same command goes on where it was stopped. Writes logs/<name>/<cell>/ (as the task's train.py does) and, after every cell,
logs/<name>/table.md, metrics.json and table.png of what is there: mean of the seeds with a 95 % interval over seeds and test
groups; differences are paired in the test images.
"""

import copy
import fnmatch
import importlib
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from vfm4us import config, plots, run
from vfm4us.config import option
from vfm4us.tasks import protocol

BUILT_IN = Path("configs/smoke/tables.yaml")


@dataclass
class TableConfig:
    name: str = option("tables", "the cells lie in logs/<name>/<cell>")
    logs: str = option("logs", "folder for runs")
    task: str = option("classification", "module of vfm4us.tasks", choices=["classification", "segmentation", "generation"])
    data: str = option("", "folder of the datasets, {data} in the cells")
    encoder: str = option("", "checkpoint or run folder, {encoder} in the cells; {seed} in it: another for each seed")
    only: list[str] = option([], "cells to run now, as patterns such as 'busi-*'; empty: all")
    scores: list[str] = option([], "figures of the table, one part each")
    base: dict = option({}, "keys of every cell")
    axes: dict = option(
        {}, "axis: {value: keys that it adds}; the last becomes the columns, differences are averaged over one named dataset"
    )
    differences: list[list[str]] = option([], "pairs of values of the last axis, first minus second")


@dataclass
class Cell:
    values: tuple[str, ...]  # one of each axis
    config: protocol.TaskConfig
    folder: Path

    @property
    def finished(self) -> bool:
        return (self.folder / "metrics.json").is_file()


def main() -> None:
    arguments = config.parser(__doc__, TableConfig).parse_args()
    if not arguments.config:
        from vfm4us.data.phantoms import write_phantoms

        print(f"No --config: the table of built-in synthetic ultrasound ({BUILT_IN}).")
        write_phantoms(Path("data/phantoms-600-64"), 600, 64)
    settings = config.load(TableConfig, arguments.config or BUILT_IN, arguments.overrides)
    task = importlib.import_module(f"vfm4us.tasks.{settings.task}")
    cells = list_cells(settings, task)
    wanted = [c for c in cells if not settings.only or any(fnmatch.fnmatch(c.folder.name, p) for p in settings.only)]
    if not wanted:
        raise ValueError(f"only: {settings.only} matches no cell; they are: {', '.join(c.folder.name for c in cells)}")
    for number, cell in enumerate(wanted, 1):
        print(f"\n=== {cell.folder.name}, cell {number} of {len(wanted)}", flush=True)
        task.run_seeds(cell.config)
        write_table(settings, task, cells)
    print(f"\n{(Path(settings.logs) / settings.name / 'table.md').read_text()}")


def list_cells(settings: TableConfig, task) -> list[Cell]:
    """Every combination of the axes, its config checked before the first of them runs."""
    if not settings.axes or any(not isinstance(axis, dict) or not axis for axis in settings.axes.values()):
        raise ValueError("axes: give at least one axis, each as {value: {keys it adds}}, see configs/tables/")
    last = list(list(settings.axes.values())[-1])
    if wrong := [v for pair in settings.differences for v in pair if v not in last]:
        raise ValueError(f"differences: {wrong[0]!r} is no value of the last axis, which has: {', '.join(map(str, last))}")
    kind, words = getattr(task, f"{settings.task.capitalize()}Config"), {"data": settings.data, "encoder": settings.encoder}
    cells = []
    for values in itertools.product(*settings.axes.values()):
        keys = copy.deepcopy(settings.base)
        for axis, value in zip(settings.axes.values(), values, strict=True):
            merge(keys, axis[value] or {})
        folder = Path(settings.logs) / settings.name / "-".join(map(str, values))
        keys |= {"name": folder.name, "logs": str(folder.parent)}
        try:
            cells.append(Cell(tuple(map(str, values)), config.from_dict(kind, filled(keys, words)), folder))
        except ValueError as error:
            raise ValueError(f"cell {folder.name}: {error}") from error
    return cells


def merge(keys: dict, more: dict) -> None:
    """Lay nested `more` over `keys`."""
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(keys.get(key), dict):
            merge(keys[key], value)
        else:
            keys[key] = copy.deepcopy(value)


def filled(value, words: dict[str, str]):
    """`value` with {data} and {encoder} replaced in every text; ValueError where one is wanted and was not given."""
    if isinstance(value, dict):
        return {k: filled(v, words) for k, v in value.items()}
    if isinstance(value, list):
        return [filled(v, words) for v in value]
    if isinstance(value, str):
        for name, text in words.items():
            if f"{{{name}}}" in value and not text:
                raise ValueError(f"{value!r} needs {name}=...")
            value = value.replace(f"{{{name}}}", text)
    return value


def write_table(settings: TableConfig, task, cells: list[Cell]) -> None:
    """table.md, metrics.json and table.png of the finished cells."""
    out, columns = Path(settings.logs) / settings.name, list(map(str, list(settings.axes.values())[-1]))
    found = {c.values: protocol.read_metrics(c.folder) for c in cells if c.finished}
    outcomes = {
        c.values: [protocol.read_outcome(c.folder / f"seed-{seed}") for seed in found[c.values]["seeds"]]
        for c in cells
        if c.finished
    }
    rows = list(dict.fromkeys(c.values[:-1] for c in cells))
    pairs = {(a, b): {r: (outcomes[*r, a], outcomes[*r, b]) for r in rows if {(*r, a), (*r, b)} <= outcomes.keys()}
             for a, b in settings.differences}  # fmt: skip
    apart = {pair: {row: protocol.differences(task.outcome_scores, [both]) for row, both in of.items()}
             for pair, of in pairs.items()}  # fmt: skip
    for pair, of in pairs.items():
        if next(iter(settings.axes)) != "dataset":
            break
        for rest in dict.fromkeys(row[1:] for row in rows):
            same = [row for row in rows if row[1:] == rest]
            if len(same) > 1 and all(row in of for row in same):
                apart[pair]["mean of all", *rest] = protocol.differences(task.outcome_scores, [of[row] for row in same])
    metrics = {"-".join(values) + f" {name}": f for values, m in found.items() for name, f in m["metrics"].items() if "mean" in f}
    metrics |= {f"{'-'.join(row)} {a} - {b} {name}": figure for (a, b), of in apart.items() for row, m in of.items()
                for name, figure in m.items()}  # fmt: skip
    first = next(iter(found.values()))
    missing = [c.folder.name for c in cells if not c.finished]
    whole = {"task": settings.task, "dataset": sorted({m["dataset"] for m in found.values()}), "split": "test",
             "protocol": {k: first["protocol"].get(k) for k in ("split_unit", "selection", "input_size", "interval", "device")},
             "seeds": first["seeds"], "missing": missing, "metrics": metrics}  # fmt: skip
    run.write_text(out / "metrics.json", json.dumps(whole, indent=1))
    names = list(settings.axes)[:-1]
    parts = []
    for score in settings.scores:
        heads = [*names, "training images", *columns, *(f"{a} - {b}" for a, b in settings.differences)]
        lines = [f"{score.replace('_', ' ')}:", "", "| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
        for row in [*rows, *dict.fromkeys(row for of in apart.values() for row in of if row not in rows)]:
            here = [found.get((*row, column)) for column in columns]
            trained = next((str(m["protocol"]["training_images"]) for m in here if m), "")
            cells_of_row = [protocol.cell(m["metrics"].get(score)) if m else "" for m in here]
            cells_of_row += [protocol.cell(apart[a, b][row].get(score), "+") if row in apart[a, b] else ""
                             for a, b in settings.differences]  # fmt: skip
            lines.append("| " + " | ".join([*row, trained, *cells_of_row]) + " |")
        parts.append("\n".join(lines))
    if missing:
        parts.append(f"Not run yet: {', '.join(missing)}.")
    run.write_text(out / "table.md", "\n\n".join(parts) + "\n")
    draw(out / "table.png", settings, found, rows, columns)


def draw(path: Path, settings: TableConfig, found: dict, rows: list, columns: list[str]) -> None:
    """The first score of every row that is complete, one colour per column."""
    if not settings.scores:
        return
    score = settings.scores[0]
    whole = [r for r in rows if all("low" in found.get((*r, c), {"metrics": {}})["metrics"].get(score, {}) for c in columns)]
    if whole:
        series = {
            c: [tuple(found[*r, c]["metrics"][score][k] for k in ("mean", "low", "high")) for r in whole] for c in columns
        }
        plots.intervals(path, [", ".join(r) for r in whole], series, f"{score.replace('_', ' ')} on test, 95 % interval")


if __name__ == "__main__":
    sys.exit(run.exit_code(main))
