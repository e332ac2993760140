"""A Markdown table of classification runs, from what they wrote: one row per run, and differences to a run it is compared with.

    python scripts/tabulate_runs.py logs/A logs/B ... [--against logs/A=logs/B ...] [--scores macro_f1 auroc accuracy]

A run is the folder logs/<name> of Downstream/Classification/train.py. --against X=Y adds a row X - Y: paired in the test images,
which must be the same, with a 95 % interval over each run's seeds and over test groups.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from vfm4us import probing
from vfm4us.tasks.classification import SCORES, scores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--against", nargs="*", default=[], metavar="RUN=OTHER")
    parser.add_argument("--scores", nargs="+", choices=SCORES, default=["macro_f1", "auroc", "accuracy"])
    arguments = parser.parse_args()
    try:
        pairs = [tuple(Path(p) for p in item.split("=", 1)) for item in arguments.against]
        if wrong := [item for item in arguments.against if "=" not in item]:
            raise ValueError(f"--against {wrong[0]}: give two runs as RUN=OTHER")
        rows = [row_of(run, arguments.scores) for run in arguments.runs]
        rows += [difference(a, b, arguments.scores) for a, b in pairs]
    except (ValueError, OSError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    heads = ["run", "mode", "labels", "initialisation", "seeds", *(name.replace("_", " ") for name in arguments.scores)]
    print("| " + " | ".join(heads) + " |\n" + "| --- " * len(heads) + "|")
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    return 0


def row_of(run: Path, wanted: list[str]) -> list[str]:
    found = read(run)
    protocol, metrics = found["protocol"], found["metrics"]
    start = "random" if protocol["initialisation"] == "none" else Path(protocol["initialisation"]).parent.name
    labels = f"{100 * protocol['labels']:g} % ({protocol['training_images']})"
    return [run.name, protocol["mode"], labels, start, str(len(found["seeds"])), *(cell(metrics[name]) for name in wanted)]


def difference(a: Path, b: Path, wanted: list[str]) -> list[str]:
    """The row a - b, from both runs' probabilities on the same test images."""
    sides = [[np.load(run / f"seed-{seed}" / "test.npz") for seed in read(run)["seeds"]] for run in (a, b)]
    labels, groups = sides[0][0]["labels"], sides[0][0]["groups"]
    if any(not np.array_equal(s["labels"], labels) or not np.array_equal(s["groups"], groups) for side in sides for s in side):
        raise ValueError(f"{a} and {b} were tested on different images: their difference would mean nothing")
    counts = probing.bootstrap_counts(groups)
    counts = counts[np.all([counts[:, labels == c].sum(1) > 0 for c in np.unique(labels)], axis=0)]
    each = [[scores(labels, s["probabilities"]) for s in side] for side in sides]
    again = [[scores(labels, s["probabilities"], counts) for s in side] for side in sides]
    cells = []
    for name in wanted:
        seeds = [np.array([float(v[name][0]) for v in side]) for side in each]
        resamples = np.mean([v[name] for v in again[0]], axis=0) - np.mean([v[name] for v in again[1]], axis=0)
        mean, low, high = probing.interval(seeds[0], resamples, seeds[1])
        cells.append(cell({"mean": mean, "low": low, "high": high}, "+"))
    return [f"{a.name} - {b.name}", "", "", "", "", *cells]


def read(run: Path) -> dict:
    path = run / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: is {run} the folder of a finished run, with seed-* in it?")
    return json.loads(path.read_text())


def cell(m: dict, sign: str = "") -> str:
    limits = f" ({m['low']:{sign}.2f} to {m['high']:{sign}.2f})" if "low" in m else ""
    return f"{m['mean']:{sign}.3f}{limits}"


if __name__ == "__main__":
    sys.exit(main())
