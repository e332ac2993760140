"""A Markdown table of classification runs, from what they wrote: one row per run, and differences to a run it is compared with.

    python scripts/tabulate_runs.py logs/A logs/B ... [--against logs/A=logs/B ...] [--scores macro_f1 auroc accuracy]

A run is the folder logs/<name> of Downstream/Classification/train.py. --against X=Y adds a row X - Y: paired in the test images,
which must be the same, with a 95 % interval over each run's seeds and over test groups.
"""

import sys
from pathlib import Path

from vfm4us import markdown
from vfm4us.command_line import Parser
from vfm4us.lazy import Lazy
from vfm4us.runtime.signals import exit_code

statistics, base = Lazy("vfm4us.evaluation.statistics"), Lazy("vfm4us.tasks.base")


def main() -> None:
    """Print a Markdown table of the runs, and of the differences asked for; raises ValueError for an --against without two runs."""
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--against", nargs="*", default=[], metavar="RUN=OTHER")
    parser.add_argument("--scores", nargs="+", default=["macro_f1", "auroc", "accuracy"])
    arguments = parser.parse_args()
    if wrong := [item for item in arguments.against if "=" not in item]:
        raise ValueError(f"--against {wrong[0]}: give two runs as RUN=OTHER")
    pairs = [tuple(Path(p) for p in item.split("=", 1)) for item in arguments.against]
    rows = [row_of(folder, arguments.scores) for folder in arguments.runs]
    rows += [difference(a, b, arguments.scores) for a, b in pairs]
    heads = ["run", "mode", "labels", "initialisation", "seeds", *(name.replace("_", " ") for name in arguments.scores)]
    print(markdown.table(heads, rows))


def row_of(folder: Path, wanted: list[str]) -> list[str]:
    """The cells of one finished run: name, mode, labels, initialisation, seeds and the wanted scores.

    Raises FileNotFoundError for a run that is not finished and ValueError for a score it does not have.
    """
    result = base.read_metrics(folder)
    about, metrics = result["protocol"], result["metrics"]
    if unknown := [name for name in wanted if name not in metrics]:
        raise ValueError(f"{folder} has no figure {unknown[0]!r}; it has: {', '.join(metrics)}")
    start = "random" if about["initialisation"] == "none" else Path(about["initialisation"]).parent.name
    labels = f"{100 * about.get('label_share', about.get('labels')):g} % ({about['training_images']})"
    cells = [markdown.cell(metrics[name]) for name in wanted]
    return [folder.name, about.get("mode", ""), labels, start, str(len(result["seeds"])), *cells]


def difference(a: Path, b: Path, wanted: list[str]) -> list[str]:
    """The row a - b, from what both runs' seeds did on the same test images."""
    ours, theirs = ({"folder": folder} | base.read_metrics(folder) for folder in (a, b))
    if ours["task"] != theirs["task"]:
        raise ValueError(f"{a} is a run of {ours['task']}, {b} of {theirs['task']}: they have no difference")
    score = base.task_named(ours["task"]).figures.outcome_scores
    outcomes = [[base.read_outcome(x["folder"] / f"seed-{seed}") for seed in x["seeds"]] for x in (ours, theirs)]
    apart = statistics.differences(score, [outcomes])
    return [f"{a.name} - {b.name}", "", "", "", "", *(markdown.difference(apart.get(name)) for name in wanted)]


if __name__ == "__main__":
    sys.exit(exit_code(main))
