"""What a results table writes of its finished cells: Markdown, CSV, charts; intervals, paired differences, published numbers.

    text = write(settings, plan, leakage)      # below logs/<name>; returns the Markdown

Reads metrics.json of the cells and, for paired differences, what each seed did on each test image.
"""

import csv
import functools
import io
import json
from pathlib import Path

import numpy as np

from vfm4us import config, markdown, plots
from vfm4us.data.csv_files import rows_text
from vfm4us.data.prepare import open_or_prepare
from vfm4us.data.reading import frames_of
from vfm4us.evaluation import statistics
from vfm4us.runtime.files import write_text
from vfm4us.tables.plan import STAGES, Cell, Plan, Pretraining, TableConfig, absences
from vfm4us.tasks import base

PUBLISHED = "assets/published.csv"
TITLES = {
    "classification": "Classification: top-1 accuracy",
    "segmentation": "Segmentation: Dice",
    "generation": "Generation: SSIM",
}
HEADLINES = {"accuracy": "top-1", "dice_present": "Dice", "ssim": "SSIM"}
ALONE = "not pretrained here"  # column of random weights, ImageNet and the like


def write(settings: TableConfig, plan: Plan, leakage: dict[str, str] | None = None) -> str:
    """Write what is finished as Markdown, CSV and charts, and return the Markdown. `leakage` holds a line per task."""
    out = Path(settings.logs) / settings.name
    if not any(cell.finished for cell in plan.cells):
        return "Nothing is finished yet."
    write_own = _write_methods if settings.tasks else _write_single
    return f"{write_own(settings, plan, leakage or {}, out)}\nwritten to {out}"


def read_outcomes(cell: Cell) -> list[statistics.Outcome]:
    """What each seed did on the test images."""
    return [base.read_outcome(cell.folder / f"seed-{seed}") for seed in cell.config.seeds]


# ---- a table of methods ---------------------------------------------------------------------------------------------


class TaskResults:
    """The finished cells of one task: figures, and differences to the method that all are compared with."""

    def __init__(self, task: str, cells: list[Cell], against: tuple[str, str]):
        self.task, self.against, self.cells = task, against, cells
        self.settings = list(dict.fromkeys(cell.setting for cell in cells))
        self.methods = list(dict.fromkeys(cell.method for cell in cells))
        self.stages = [s for s in ("", *STAGES) if any(cell.stage == s for cell in cells)]
        self.scores = cells[0].scores
        finished = [cell for cell in cells if cell.finished]
        self.at = {(cell.setting, cell.method, cell.stage): cell for cell in finished}
        self.metrics = {key: base.read_metrics(cell.folder) for key, cell in self.at.items()}
        self.outcomes = {key: read_outcomes(cell) for key, cell in self.at.items()}
        score = _remembered(finished[0].kind.figures.outcome_scores) if finished else None
        arms = list(
            dict.fromkeys((cell.method, cell.stage) for cell in finished if (cell.method, cell.stage) != against)
        )
        self.differences = {}
        for arm in arms:
            pairs = {
                s: (self.outcomes[s, *arm], self.outcomes[s, *against])
                for s in self.settings
                if {(s, *arm), (s, *against)} <= self.at.keys()
            }
            for setting, pair in pairs.items():
                self.differences[setting, *arm] = statistics.differences(score, [pair])
            if len(pairs) == len(self.settings) > 1:
                self.differences["mean of all", *arm] = statistics.differences(score, list(pairs.values()))

    def figure(self, score: str, setting: str, method: str, stage: str) -> dict | None:
        """{mean, low, high} of one cell; {mean} over the settings for `mean of all`, where every one is finished."""
        if setting != "mean of all":
            return self.metrics.get((setting, method, stage), {"metrics": {}})["metrics"].get(score)
        each = [self.figure(score, s, method, stage) for s in self.settings]
        return {"mean": float(np.mean([f["mean"] for f in each]))} if all(each) else None

    def rows(self) -> list[tuple[str, str]]:
        """(setting, method); with more than one setting, none without data, their mean follows."""
        every = len(self.settings) > 1 and {setting for setting, _, _ in self.at} == set(self.settings)
        settings = [*self.settings, *(["mean of all"] if every else [])]
        return [(setting, method) for setting in settings for method in self.methods]

    def table(self, score: str, published: list[dict]) -> str:
        """Rows are methods on a dataset, columns stages; then what the row's last stage has more than the one compared with."""
        name, to = HEADLINES.get(score, score.replace("_", " ")), ", ".join(self.against)
        beside = {
            (c.setting, c.method): p
            for c in self.cells
            for p in published
            if (p["task"], p["metric"], p["method"], p["stage"]) == (self.task, score, c.method, c.stage)
            and p["dataset"] == c.dataset.lower()
            and c.finished
            and int(p["images"]) == _count_images(c)
        }
        heads = ["dataset", "method", *(f"{name}, {s or ALONE}" for s in self.stages), f"minus {to}", "p"]
        heads += ["published elsewhere"] if beside else []
        last = {cell.method: cell.stage for cell in self.cells}
        absent = {(cell.setting, cell.method, cell.stage) for cell in self.cells if cell.absent}
        apart_of = {row: self.differences.get((*row, last[row[1]]), {}).get(score) for row in self.rows()}
        compared = [row for row, apart in apart_of.items() if apart]
        corrected = dict(zip(compared, statistics.holm([apart_of[row]["p"] for row in compared]), strict=True))
        rows, seen = [], []
        for setting, method in self.rows():
            shown = [
                "absent"
                if (setting, method, stage) in absent
                else markdown.cell(self.figure(score, setting, method, stage))
                for stage in self.stages
            ]
            apart = apart_of[setting, method]
            shown += [markdown.difference(apart), f"{corrected[setting, method]:.3f}"] if apart else ["-", "-"]
            seen += [apart] if apart else []
            if beside:
                shown.append(
                    f"{float(beside[setting, method]['value']) / 100:.3f}" if (setting, method) in beside else "-"
                )
            rows.append([setting, method, *shown])
        lines = [markdown.table(heads, rows), "", statistics.power_line(seen)]
        lines += ["", *(f"Published elsewhere: {text}." for text in sorted({p["source"] for p in beside.values()}))]
        return "\n".join(lines).rstrip()

    def sizes(self) -> str:
        """How many images each cell was trained and tested on."""
        about = {setting: m["protocol"] for (setting, _, _), m in self.metrics.items()}
        each = [
            [s, *(about[s].get(k, "-") for k in ("training_images", "test_images"))]
            for s in self.settings
            if s in about
        ]
        return f"Training and test images: {'; '.join(f'{s} {training} and {test}' for s, training, test in each)}."

    def draw(self, path: Path) -> None:
        """The first score: a panel per setting, a line per method, a colour per stage."""
        score = self.scores[0]
        panels = {}
        for setting in self.settings:
            points = {(m, s): self.figure(score, setting, m, s) for m in self.methods for s in self.stages}
            panels[setting] = {
                s or ALONE: {
                    m: tuple(points[m, s][k] for k in ("mean", "low", "high"))
                    for m in self.methods
                    if points[m, s] and "low" in points[m, s]
                }
                for s in self.stages
            }
        plots.method_panels(path, self.methods, panels, f"{HEADLINES.get(score, score)} on test, 95 % interval")


def _write_methods(settings: TableConfig, plan: Plan, leakage: dict[str, str], out: Path) -> str:
    """tables.md, results.csv, differences.csv and <task>.png."""
    published = read_published()
    tasks = {task: [c for c in plan.cells if c.task == task] for task in dict.fromkeys(c.task for c in plan.cells)}
    found = {task: TaskResults(task, cells, tuple(settings.against)) for task, cells in tasks.items()}
    parts = [f"# {settings.name}", _header(settings, plan, found)]
    for task, result in found.items():
        parts.append(f"## {TITLES[task]}")
        parts.append(leakage.get(task, "Leakage: not compared in this call."))
        if not result.at:
            parts.append("Nothing is finished yet.")
            continue
        parts.append(result.sizes())
        parts += [f"{HEADLINES.get(s, s)}:\n\n{result.table(s, published)}" for s in result.scores]
        result.draw(out / f"{task}.png")
    if plan.pretrainings:
        parts += ["## Pretraining budgets", budgets(plan.pretrainings)]
    if missing := [cell.name for cell in plan.cells if not cell.finished and not cell.absent]:
        parts.append(f"Not run yet: {', '.join(missing)}.")
    parts += [f"{reason[0].upper()}{reason[1:]}." for reason in absences(plan.cells)]
    text = "\n\n".join(parts) + "\n"
    write_text(out / "tables.md", text)
    seeds = [
        [m, stage, task, result.at[s, m, stage].dataset, s, seed, name, value]
        for task, result in found.items()
        for (s, m, stage), metrics in result.metrics.items()
        for name, figure in metrics["metrics"].items()
        if len(figure.get("per_seed", [])) == len(metrics["seeds"])
        for seed, value in zip(metrics["seeds"], figure["per_seed"], strict=True)
    ]
    _write_csv(out / "results.csv", ["method", "stage", "task", "dataset", "setting", "seed", "metric", "value"], seeds)
    apart = [
        [m, stage, task, s, name, *(figure[k] for k in ("mean", "low", "high", "p"))]
        for task, result in found.items()
        for (s, m, stage), figures in result.differences.items()
        for name, figure in figures.items()
    ]
    heads = ["method", "stage", "task", "setting", "metric", f"minus {', '.join(settings.against)}", "low", "high", "p"]
    _write_csv(out / "differences.csv", heads, apart)
    return text


def _header(settings: TableConfig, plan: Plan, found: dict[str, TaskResults]) -> str:
    """How the figures were measured."""
    seeds = sorted({seed for cell in plan.cells for seed in cell.config.seeds})
    pretrained = ", ".join(map(str, settings.pretraining_seeds))
    if len(settings.pretraining_seeds) == 1:
        start = f"Pretraining seed {pretrained} for all runs, so that no interval holds what another pretraining would change"
    else:
        start = f"Pretraining seeds {pretrained}, one for each fine-tuning seed"
    text = (
        f"{start}; fine-tuning seed{'s'[: len(seeds) > 1]} {', '.join(map(str, seeds))}. Mean and interval: {statistics.INTERVAL}. "
        f"`minus {', '.join(settings.against)}`: the row's last stage, paired in the test images; p: a two-sided test by the same "
        "variances, corrected by Holm over the rows of a table. "
    )
    sizes = sorted({m["protocol"]["input_size"] for r in found.values() for m in r.metrics.values()})
    devices = sorted({m["protocol"]["device"] for r in found.values() for m in r.metrics.values()})
    code = code_of([job.folder for job in plan.jobs if job.finished])
    return text + f"Images of {', '.join(map(str, sizes))} px; {'; '.join(devices)}; {'; '.join(code)}."


def code_of(folders: list[Path]) -> list[str]:
    """The versions of torch and the commits that the runs in and below `folders` were made with, each once."""
    torches, commits = set(), set()
    for path in (path for folder in folders for path in folder.rglob("run.json")):
        for about in json.loads(path.read_text()):
            torches.add(f"torch {about['torch']}")
            if about["commit"]:
                commits.add(f"commit {about['commit'][:7]}{' with changes' if about['dirty'] else ''}")
    return sorted(torches) + sorted(commits)


def budgets(pretrainings: list[Pretraining]) -> str:
    """A table of what each pretraining saw and cost, and whether all saw equally many images."""
    heads = ["encoder", "architecture", "parameters", "images", "views", "GFLOPs", "seconds"]
    rows, images = [], set()
    for pretraining in pretrainings:
        spent = budget(pretraining)
        images.add(spent["images"])
        row = [pretraining.config.name, spent["encoder"]]
        row += [f"{spent[k]:,}" if k in spent else "-" for k in ("parameters", "images", "views")]
        row += [f"{spent['flops'] / 1e9:,.0f}" if "flops" in spent else "-"]
        row += [f"{spent['seconds']:,.0f}" if "seconds" in spent else "-"]
        rows.append(row)
    equal = (
        f"Every encoder sees {images.pop():,} images."
        if len(images) == 1
        else "The encoders do NOT see equally many images."
    )
    return equal + "\n\n" + markdown.table(heads, rows)


def budget(pretraining: Pretraining) -> dict:
    """budget.json of a finished pretraining; before that, what its config says it will see."""
    own, path = pretraining.config, pretraining.folder / "budget.json"
    if path.is_file():
        return json.loads(path.read_text())
    images = sum(s.epochs * (s.epoch_images // own.batch_size) * own.batch_size for s in own.stages)
    return {"encoder": own.encoder.name, "images": images}


@functools.cache
def read_published() -> list[dict]:
    """Rows of assets/published.csv: dataset, images, task, metric, method, stage, value (%), source."""
    path = config.REPOSITORY / PUBLISHED
    return list(csv.DictReader(io.StringIO(path.read_text()))) if path.is_file() else []


def _count_images(cell: Cell) -> int:
    """Of the cell's dataset, those left out too: what calls itself BUSI and has another number is not the published one."""
    data = cell.config.data
    dataset = open_or_prepare(
        Path(data.path), Path(data.cache), data.size, tuple(data.splits), reading=frames_of(data.frames)
    )
    only = getattr(data, "only", [])
    return sum(not only or label in only for label in dataset.labels)


def _remembered(score: statistics.Score) -> statistics.Score:
    """`score`, computed once for each outcome: every method is compared with the same one."""
    kept: dict[tuple[int, int], dict] = {}

    def of(outcome: statistics.Outcome, counts: np.ndarray) -> dict[str, np.ndarray]:
        key = id(outcome), len(counts)
        if key not in kept:
            kept[key] = score(outcome, counts)
        return kept[key]

    return of


def _write_csv(path: Path, heads: list[str], rows: list[list]) -> None:
    write_text(path, rows_text(heads, rows))


# ---- a table of one task --------------------------------------------------------------------------------------------


def _write_single(settings: TableConfig, plan: Plan, _leakage: dict, out: Path) -> str:
    """table.md, metrics.json and table.png."""
    cells = plan.cells
    columns, score_of = list(map(str, list(settings.axes.values())[-1])), cells[0].kind.figures.outcome_scores
    found = {c.values: base.read_metrics(c.folder) for c in cells if c.finished}
    outcomes = {c.values: read_outcomes(c) for c in cells if c.finished}
    rows = list(dict.fromkeys(c.values[:-1] for c in cells))
    pairs = {
        (a, b): {r: (outcomes[*r, a], outcomes[*r, b]) for r in rows if {(*r, a), (*r, b)} <= outcomes.keys()}
        for a, b in settings.differences
    }
    apart = {
        pair: {row: statistics.differences(score_of, [both]) for row, both in of.items()} for pair, of in pairs.items()
    }
    for pair, of in pairs.items():
        if next(iter(settings.axes)) != "dataset":
            break
        for rest in dict.fromkeys(row[1:] for row in rows):
            same = [row for row in rows if row[1:] == rest]
            if len(same) > 1 and all(row in of for row in same):
                apart[pair]["mean of all", *rest] = statistics.differences(score_of, [of[row] for row in same])
    metrics = {
        "-".join(values) + f" {name}": f
        for values, m in found.items()
        for name, f in m["metrics"].items()
        if "mean" in f
    }
    metrics |= {
        f"{'-'.join(row)} {a} - {b} {name}": figure
        for (a, b), of in apart.items()
        for row, m in of.items()
        for name, figure in m.items()
    }
    first = next(iter(found.values()))
    missing = [c.name for c in cells if not c.finished]
    whole = {
        "task": settings.task,
        "dataset": sorted({m["dataset"] for m in found.values()}),
        "split": "test",
        "protocol": {
            k: first["protocol"].get(k) for k in ("split_unit", "selection", "input_size", "interval", "device")
        },
        "seeds": first["seeds"],
        "missing": missing,
        "metrics": metrics,
    }
    write_text(out / "metrics.json", json.dumps(whole, indent=1))
    names = list(settings.axes)[:-1]
    parts = []
    for score in settings.scores:
        heads = [*names, "training images", *columns, *(f"{a} - {b}" for a, b in settings.differences)]
        lines, seen = [], [m[score] for of in apart.values() for m in of.values() if score in m]
        for row in [*rows, *dict.fromkeys(row for of in apart.values() for row in of if row not in rows)]:
            here = [found.get((*row, column)) for column in columns]
            trained = next((str(m["protocol"]["training_images"]) for m in here if m), "")
            cells_of_row = [markdown.cell(m["metrics"].get(score)) if m else "" for m in here]
            cells_of_row += [
                markdown.difference(apart[a, b][row].get(score)) if row in apart[a, b] else ""
                for a, b in settings.differences
            ]
            lines.append([*row, trained, *cells_of_row])
        parts.append(f"{score.replace('_', ' ')}:\n\n{markdown.table(heads, lines)}")
        parts += filter(None, [statistics.power_line(seen)])
    if missing:
        parts.append(f"Not run yet: {', '.join(missing)}.")
    text = "\n\n".join(parts) + "\n"
    write_text(out / "table.md", text)
    _draw_single(out / "table.png", settings, found, rows, columns)
    return text


def _draw_single(path: Path, settings: TableConfig, found: dict, rows: list, columns: list[str]) -> None:
    """The first score of every row that is complete, one colour per column."""
    if not settings.scores:
        return
    score = settings.scores[0]
    whole = [
        r for r in rows if all("low" in found.get((*r, c), {"metrics": {}})["metrics"].get(score, {}) for c in columns)
    ]
    if whole:
        series = {
            c: [tuple(found[*r, c]["metrics"][score][k] for k in ("mean", "low", "high")) for r in whole]
            for c in columns
        }
        plots.intervals(
            path, [", ".join(r) for r in whole], series, f"{score.replace('_', ' ')} on test, 95 % interval"
        )
