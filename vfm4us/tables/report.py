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
from vfm4us.tables.plan import (
    AS_CONFIGURED,
    STAGES,
    Cell,
    Plan,
    Pretraining,
    TableConfig,
    TaskTableConfig,
    absences,
    arms_of,
)
from vfm4us.tasks import base

PUBLISHED = "assets/published.csv"
TITLES = {
    "classification": "Classification: top-1 accuracy",
    "segmentation": "Segmentation: Dice",
    "generation": "Generation: SSIM",
    "representation": "Representation: probes of the frozen encoder",
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
    """The finished cells of one task: figures, differences to the method that all are compared with, and contrasts."""

    def __init__(self, task: str, cells: list[Cell], settings: TableConfig, known: dict[str, tuple[str, str]]):
        against = tuple(settings.against)
        self.task, self.against, self.cells, self.bound = task, against, cells, settings.bound
        self.folds = settings.folds
        self.settings = list(dict.fromkeys(cell.setting for cell in cells))
        self.methods = list(dict.fromkeys(cell.method for cell in cells))
        self.stages = [s for s in ("", *STAGES, AS_CONFIGURED) if any(cell.stage == s for cell in cells)]
        table = config.from_dict(TaskTableConfig, settings.tasks[task], f"tasks.{task}")
        self.means = {name: list(map(str, of)) for name, of in table.means.items()}
        if len(self.settings) > 1:
            self.means = {"mean of all": self.settings} | self.means
        self.scores = cells[0].scores
        finished = [cell for cell in cells if cell.finished]
        self.at = {(cell.setting, cell.method, cell.stage): cell for cell in finished}
        self.metrics = {key: base.read_metrics(cell.folder) for key, cell in self.at.items()}
        self.outcomes = {key: read_outcomes(cell) for key, cell in self.at.items()}
        self.score = _remembered(finished[0].kind.figures.outcome_scores) if finished else None
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
            for setting, apart in self._apart(pairs).items():
                self.differences[setting, *arm] = apart
        self.contrasts: dict[str, dict[str, dict[str, dict]]] = {}  # name -> setting or mean -> score -> figure
        for a, b in settings.contrasts:
            if {a, b} <= known.keys():  # neither is left out
                sides = {s: [(s, *known[name]) for name in (a, b)] for s in self.settings}
                present = {s: keys for s, keys in sides.items() if {*keys} <= self.at.keys()}
                pairs = {s: tuple(self.outcomes[key] for key in keys) for s, keys in present.items()}
                self.contrasts[f"{a} - {b}"] = self._apart(pairs, settings.bound)

    def _apart(self, pairs: dict[str, tuple], bound: float = 0.0) -> dict[str, dict]:
        """The differences of pairs of outcomes, by setting, and their means where every setting of one is there."""
        of = {s: [s] for s in pairs} | {m: each for m, each in self.means.items() if set(each) <= pairs.keys()}
        return {
            name: statistics.differences(self.score, [pairs[s] for s in each], bound=bound) for name, each in of.items()
        }

    def figure(self, score: str, setting: str, method: str, stage: str) -> dict | None:
        """{mean, low, high} of one cell; {mean} over its settings for a mean, where every one is finished."""
        if setting not in self.means:
            return self.metrics.get((setting, method, stage), {"metrics": {}})["metrics"].get(score)
        each = [self.figure(score, s, method, stage) for s in self.means[setting]]
        return {"mean": float(np.mean([f["mean"] for f in each]))} if all(each) else None

    def rows(self) -> list[tuple[str, str]]:
        """(setting, method); then the means of settings of which each has data."""
        with_rows = {setting for setting, _, _ in self.at}
        settings = [*self.settings, *(name for name, of in self.means.items() if set(of) <= with_rows)]
        return [(setting, method) for setting in settings for method in self.methods]

    def table(self, score: str, published: list[dict]) -> str:
        """Rows are methods on a dataset, columns stages; then what the row's last stage has more than the one compared with."""
        name, to = _title(score), _arm(*self.against) if self.against else ""
        beside = {
            (c.setting, c.method): p
            for c in self.cells
            for p in published
            if (p["task"], p["metric"], p["method"], p["stage"]) == (self.task, score, c.method, c.stage)
            and p["dataset"] == c.dataset.lower()
            and c.finished
            and int(p["images"]) == _count_images(c)
        }
        # as configured, an arm is its method: one column for all
        stages: list[str | None] = [None] if set(self.stages) == {"", AS_CONFIGURED} else [*self.stages]
        heads = ["dataset", "method", *(name if s is None else f"{name}, {s or ALONE}" for s in stages)]
        heads += [f"minus {to}", "p"] if self.against else []
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
                for stage in (last[method] if s is None else s for s in stages)
            ]
            apart = apart_of[setting, method]
            if self.against:
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

    def table_of_contrasts(self, score: str) -> str:
        """Each contrast on the first mean or the one setting, p, whether it is none; then the others. '' without any."""
        names = [*self.means, *self.settings]
        contrasts = {name: of for name, of in self.contrasts.items() if score in of.get(names[0], {})}
        if not contrasts:
            return ""
        corrected = statistics.holm([of[names[0]][score]["p"] for of in contrasts.values()])
        heads = [
            f"{_title(score)}: contrast",
            names[0],
            "p",
            "p, Holm",
            "90 % interval",
            f"within +- {self.bound:g}",
            *names[1:],
        ]
        rows, seen = [], []
        for (name, of), p in zip(contrasts.items(), corrected, strict=True):
            first, *others = [of.get(n, {}).get(score) for n in names]
            none = first["equivalence"]
            row = [name, markdown.difference(first), f"{first['p']:.3f}", f"{p:.3f}"]
            row += [f"{none['low']:+.3f} to {none['high']:+.3f}", "yes" if none["equivalent"] else "not shown"]
            rows.append([*row, *map(markdown.difference, others)])
            seen += [f for f in (first, *others) if f]
        return f"{markdown.table(heads, rows)}\n\n{statistics.power_line(seen)}"

    def draw_contrasts(self, path: Path) -> None:
        """The first score: a line for each mean and setting, a colour for each contrast."""
        score, names = self.scores[0], [*self.means, *self.settings]
        whole = {c: of for c, of in self.contrasts.items() if all(score in of.get(n, {}) for n in names)}
        if whole:
            series = {
                c: [tuple(of[n][score][k] for k in ("mean", "low", "high")) for n in names] for c, of in whole.items()
            }
            title = f"difference in {_title(score)}, 95 % interval"
            plots.intervals(path, names, series, title, bound=self.bound)

    def shapes(self) -> str:
        """What the size and shape of the image files alone tell of the labels; '' for tasks that do not measure it."""
        name, told = "size and shape balanced_accuracy", []
        for setting in self.settings:
            each = (m["metrics"].get(name) for (s, _, _), m in self.metrics.items() if s == setting)
            told += [f"{setting} {markdown.cell(figure)}" for figure in [next(each, None)] if figure]
        return f"Balanced accuracy by the size and shape of the image files alone: {', '.join(told)}." if told else ""

    def sizes(self) -> str:
        """How many images each cell was trained and tested on."""
        about = {setting: m["protocol"] for (setting, _, _), m in self.metrics.items()}
        each = [
            [s, *(about[s].get(k, "-") for k in ("training_images", "test_images"))]
            for s in self.settings
            if s in about
        ]
        of = " of the first seed" if any("cross_fitting" in m["protocol"] for m in self.metrics.values()) else ""
        return f"Training and test images{of}: {'; '.join(f'{s} {training} and {test}' for s, training, test in each)}."

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
        title = f"{_title(score)} on {'held-out folds' if self.folds else 'test'}, 95 % interval"
        plots.method_panels(path, self.methods, panels, title)


def _write_methods(settings: TableConfig, plan: Plan, leakage: dict[str, str], out: Path) -> str:
    """tables.md, results.csv, differences.csv and <task>.png."""
    published = read_published()
    tasks = {task: [c for c in plan.cells if c.task == task] for task in dict.fromkeys(c.task for c in plan.cells)}
    results = {task: TaskResults(task, cells, settings, arms_of(plan.cells)) for task, cells in tasks.items()}
    parts = [f"# {settings.name}", _header(settings, plan, results)]
    for task, result in results.items():
        parts.append(f"## {TITLES[task]}")
        parts.append(leakage.get(task, "Leakage: not compared in this call."))
        if not result.at:
            parts.append("Nothing is finished yet.")
            continue
        parts.append(result.sizes())
        for score in result.scores:
            parts.append(f"{_title(score)}:\n\n{result.table(score, published)}")
            parts += filter(None, [result.table_of_contrasts(score)])
        parts += filter(None, [result.shapes()])
        result.draw(out / f"{task}.png")
        result.draw_contrasts(out / f"{task}_contrasts.png")
    if plan.pretrainings:
        parts += ["## Pretraining budgets", budgets(plan.pretrainings)]
    if missing := [cell.name for cell in plan.cells if not cell.finished and not cell.absent]:
        parts.append(f"Not run yet: {', '.join(missing)}.")
    parts += [f"{reason[0].upper()}{reason[1:]}." for reason in absences(plan.cells)]
    text = "\n\n".join(parts) + "\n"
    write_text(out / "tables.md", text)
    seeds = [
        [m, stage, task, result.at[s, m, stage].dataset, s, seed, name, value]
        for task, result in results.items()
        for (s, m, stage), metrics in result.metrics.items()
        for name, figure in metrics["metrics"].items()
        if len(figure.get("per_seed", [])) == len(metrics["seeds"])
        for seed, value in zip(metrics["seeds"], figure["per_seed"], strict=True)
    ]
    _write_csv(out / "results.csv", ["method", "stage", "task", "dataset", "setting", "seed", "metric", "value"], seeds)
    apart = [
        [m, stage, task, s, name, *(figure[k] for k in ("mean", "low", "high", "p"))]
        for task, result in results.items()
        for (s, m, stage), figures in result.differences.items()
        for name, figure in figures.items()
    ]
    heads = ["method", "stage", "task", "setting", "metric", f"minus {', '.join(settings.against)}", "low", "high", "p"]
    _write_csv(out / "differences.csv", heads, apart)
    write_text(out / "metrics.json", json.dumps(_whole(settings, plan, results), indent=1))
    return text


def _whole(settings: TableConfig, plan: Plan, results: dict[str, TaskResults]) -> dict:
    """What metrics.json of a table of methods holds: every figure, difference and contrast by its name."""
    metrics, protocols = {}, {}
    for task, result in results.items():
        for (setting, method, stage), measured in result.metrics.items():
            arm = f"{task}/{setting}/{_arm(method, stage)}"
            metrics |= {f"{arm}/{name}": figure for name, figure in measured["metrics"].items() if "mean" in figure}
            protocols[task] = measured["protocol"]
        for (setting, method, stage), figures in result.differences.items():
            arm = f"{task}/{setting}/{_arm(method, stage)} - {_arm(*settings.against)}"
            metrics |= {f"{arm}/{name}": figure for name, figure in figures.items()}
        for contrast, of in result.contrasts.items():
            for setting, figures in of.items():
                metrics |= {f"{task}/{setting}/{contrast}/{name}": figure for name, figure in figures.items()}
    split = f"{settings.folds} folds of train and val" if settings.folds else "test"
    return {
        "task": list(results),
        "dataset": sorted({cell.dataset for cell in plan.cells}),
        "split": split,
        "protocol": protocols,
        "seeds": sorted({seed for cell in plan.cells for seed in cell.config.seeds}),
        "missing": [cell.name for cell in plan.cells if not cell.finished],
        "metrics": metrics,
    }


def _title(score: str) -> str:
    return HEADLINES.get(score, score.replace("_", " "))


def _arm(method: str, stage: str) -> str:
    return method if stage in ("", AS_CONFIGURED) else f"{method}, {stage}"


def _header(settings: TableConfig, plan: Plan, results: dict[str, TaskResults]) -> str:
    """How the figures were measured."""
    seeds = sorted({seed for cell in plan.cells for seed in cell.config.seeds})
    pretrained = ", ".join(map(str, settings.pretraining_seeds))
    if len(settings.pretraining_seeds) == 1:
        start = f"Pretraining seed {pretrained} for all runs, so that no interval holds what another pretraining would change"
    else:
        start = f"Pretraining seeds {pretrained}, one for each fine-tuning seed"
    text = f"{start}; fine-tuning seed{'s'[: len(seeds) > 1]} {', '.join(map(str, seeds))}. "
    text += f"Mean and interval: {statistics.INTERVAL}. "
    paired = "the test images"
    if settings.folds:
        paired = "seeds, folds and test images"
        text += (
            f"Cross-fitted: seed s is tested on part s modulo {settings.folds} of each dataset's train and val images, which "
            "neither its encoder nor its probe or head has seen. "
        )
    if settings.against:
        text += (
            f"`minus {_arm(*settings.against)}`: the row's last stage, paired in {paired}; p: a two-sided test by the same "
            "variances, corrected by Holm over the rows of a table. "
        )
    if settings.contrasts:
        text += (
            f"Contrasts are paired in {paired}; `p, Holm` is corrected for their number, and `within` says where the 90 % interval "
            f"lies within +- {settings.bound:g}. "
        )
    sizes = sorted({m["protocol"]["input_size"] for r in results.values() for m in r.metrics.values()})
    devices = sorted({m["protocol"]["device"] for r in results.values() for m in r.metrics.values()})
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
    costs = [spent["flops"] for spent in map(budget, pretrainings) if "flops" in spent]
    if len(costs) > 1 and max(costs) > 0:
        equal += f" The cheapest of those that are finished took {100 * min(costs) / max(costs):.0f} % of the FLOPs of the dearest."
    return equal + "\n\n" + markdown.table(heads, rows)


def budget(pretraining: Pretraining) -> dict:
    """budget.json of a finished pretraining; before that, what its config says it will see."""
    run, path = pretraining.config, pretraining.folder / "budget.json"
    if path.is_file():
        return json.loads(path.read_text())
    images = sum(s.epochs * (s.epoch_images // run.batch_size) * run.batch_size for s in run.stages)
    return {"encoder": run.encoder.name, "images": images}


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
        key = id(outcome), len(counts)  # the resamples of an outcome are always the same: see statistics.differences
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
    metrics_of = {c.values: base.read_metrics(c.folder) for c in cells if c.finished}
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
        for values, m in metrics_of.items()
        for name, f in m["metrics"].items()
        if "mean" in f
    }
    metrics |= {
        f"{'-'.join(row)} {a} - {b} {name}": figure
        for (a, b), of in apart.items()
        for row, m in of.items()
        for name, figure in m.items()
    }
    first = next(iter(metrics_of.values()))
    missing = [c.name for c in cells if not c.finished]
    whole = {
        "task": settings.task,
        "dataset": sorted({m["dataset"] for m in metrics_of.values()}),
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
            here = [metrics_of.get((*row, column)) for column in columns]
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
    _draw_single(out / "table.png", settings, metrics_of, rows, columns)
    return text


def _draw_single(path: Path, settings: TableConfig, metrics_of: dict, rows: list, columns: list[str]) -> None:
    """The first score of every row that is complete, one colour per column."""
    if not settings.scores:
        return
    score = settings.scores[0]
    whole = [
        r
        for r in rows
        if all("low" in metrics_of.get((*r, c), {"metrics": {}})["metrics"].get(score, {}) for c in columns)
    ]
    if whole:
        series = {
            c: [tuple(metrics_of[*r, c]["metrics"][score][k] for k in ("mean", "low", "high")) for r in whole]
            for c in columns
        }
        plots.intervals(
            path, [", ".join(r) for r in whole], series, f"{score.replace('_', ' ')} on test, 95 % interval"
        )
