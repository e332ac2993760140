"""How many labels does an encoder save? Labelled images, 5 to all, against AUROC, for several encoders.

    python scripts/label_efficiency.py --encoders ours=FILE random=random:0-5 ImageNet=efficientnet_lite0 --task busi --data DIR ...
        [--mode linear finetune] [--labels 5 10 20 50 100 0] [--seeds 12] [--split val|test] [--size 128] [--out logs/labels-busi]
        [--set finetune.learning_rate=3e-4 ...] [--beside logs/labels-other ...]

Encoders are written as for scripts/probe.py. A seed draws so many images of every class (0: all there are) and takes the arm's
encoder of that seed, in turn where there are fewer. mode linear fits a probe on frozen vectors, its strength by cross-validation
within the draw; mode finetune trains encoder and head for --steps steps without choosing an epoch, and takes any key of
Downstream/Classification/train.py. --split val (for choosing) draws from train and tests on val; --split test draws from train
and val (finetune: train) and tests on test, for the last figure.

Every point is kept in points.csv as it comes: stop it, go on, measure arms or numbers of labels in parts, in one --out. Writes
curve-MODE.png, curve-MODE.csv and saved-MODE.md (how many labels the first arm saves against each other). --beside draws the
curves of earlier calls as further panels of the picture.
"""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from vfm4us import config
from vfm4us.command_line import Parser
from vfm4us.data.csv_files import read_rows, write_rows
from vfm4us.evaluation.settings import LABELS
from vfm4us.lazy import Lazy
from vfm4us.runtime.files import write_text
from vfm4us.runtime.signals import exit_code

if TYPE_CHECKING:
    from vfm4us.evaluation.label_efficiency import Point, Points
    from vfm4us.evaluation.probe_table import Row, Setting, Task

plots, anchors = Lazy("vfm4us.plots"), Lazy("vfm4us.evaluation.anchors")
probe_table, label_efficiency = Lazy("vfm4us.evaluation.probe_table"), Lazy("vfm4us.evaluation.label_efficiency")

POINT = ("images", "auroc", "low", "high")


def main() -> None:
    """Measure every point asked for that is not there yet, draw a curve for each mode, and write both to --out."""
    parser = Parser(__doc__)
    parser.add_argument("--encoders", nargs="+", required=True, metavar="NAME=SOURCE[,SOURCE ...]")
    parser.add_argument("--task", required=True, help="FOLDER, FOLDER:LABEL,LABEL or A-to-B:LABEL,LABEL")
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="folders that hold the task's folder")
    parser.add_argument("--mode", nargs="+", default=["linear"], choices=["linear", "finetune"])
    parser.add_argument("--labels", nargs="+", type=int, default=[*LABELS, 0], help=f"default {LABELS} and 0: all")
    parser.add_argument("--seeds", type=int, default=12, help="draws (default 12)")
    parser.add_argument("--split", default="val", choices=["val", "test"], help="default val")
    parser.add_argument("--size", default="128", help="side to which images are packed, px; 128+224: both, joined")
    parser.add_argument(
        "--layer", default="last", help="of linear probes: last, stage1 to stage4, or several joined by +"
    )
    parser.add_argument("--steps", type=int, default=120, help="of fine-tuning (default 120)")
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value", help="of fine-tuning")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"], help="of the networks")
    parser.add_argument("--cache", type=Path, default=Path("data"), help="for packed images and vectors")
    parser.add_argument("--out", type=Path, help="default logs/labels-TASK-SPLIT")
    parser.add_argument("--beside", nargs="+", type=Path, default=[], help="--out of earlier calls, drawn beside")
    arguments = parser.parse_args()
    arms = [probe_table.row_of(text) for text in arguments.encoders]
    out = arguments.out or Path("logs") / f"labels-{arguments.task.partition(':')[0]}-{arguments.split}"
    setting = probe_table.Setting(
        probe_table.sizes_of(arguments.size), layer=arguments.layer, precision=arguments.precision
    )
    tasks = [probe_table.open_task(arguments.task, arguments.data, arguments.cache, size) for size in setting.sizes]
    points = label_efficiency.Points(out)
    for mode in arguments.mode:
        now: dict[str, set[str]] = {}  # arm -> keys of the encoders and data that were asked for
        for arm in arms:
            if mode == "linear":
                now[arm.name] = linear(arguments, tasks, arm, setting, points)
            else:
                now[arm.name] = finetune(arguments, tasks[0], arm, out, points)
        draw_curve(arguments, [arm.name for arm in arms], out, points.of(now), mode)
    print(f"written to {out}")


def draws(arguments, task: Task, arm: Row) -> list[tuple[int, int]]:
    """(labels, seed) of every point asked for; with all labels there is nothing to draw, only the encoder's seed."""
    images = len(label_efficiency.rows_of(task, arguments.split)[0])
    wanted = dict.fromkeys(0 if n >= images else n for n in arguments.labels)
    return [
        (n, seed) for n in wanted for seed in range(arguments.seeds if n else min(arguments.seeds, len(arm.sources)))
    ]


def linear(arguments, tasks: list[Task], arm: Row, setting: Setting, points: Points) -> set[str]:
    """Add the missing points of an arm's linear probe: AUROC with n labels for each draw; vectors are made once per encoder.

    The keys of the points that were asked for.
    """
    task, cache = tasks[0], probe_table.FeatureCache(arguments.cache / "features")
    fitted, tested = label_efficiency.rows_of(task, arguments.split)
    vectors: dict[str, tuple] = {}
    keys = set()
    for n, seed in tqdm(draws(arguments, task, arm), desc=f"{arm.name}, linear", unit="draw"):
        source = arm.sources[seed % len(arm.sources)]
        embedder = anchors.open_embedder(source, precision=setting.precision)
        key = _digest(label_efficiency.point_key(tasks, arguments.split, setting, embedder.key))
        keys.add(key)
        if points.find("linear", arm.name, n, seed, key):
            continue
        if source not in vectors:
            vectors[source] = tuple(
                probe_table.joined(embedder, datasets, rows, setting, cache, arm.name)
                for datasets, rows in (([t.fitted_on for t in tasks], fitted), ([t.tested_on for t in tasks], tested))
            )
        images, auroc = label_efficiency.linear_point(task, arguments.split, *vectors[source], n, seed)
        points.add(label_efficiency.Point("linear", arm.name, n, seed, key, images, auroc))
    return keys


def finetune(arguments, task: Task, arm: Row, out: Path, points: Points) -> set[str]:
    """Add the missing points of an arm's fine-tuning: AUROC with n labels, a training run for each draw; their keys.

    An encoder that is not of this project is named and left out. Raises ValueError for a task or a split it cannot be measured on.
    """
    from vfm4us.tasks import base, classification

    name, _, labels = arguments.task.partition(":")
    if task.across or labels or arguments.split == "val":
        raise ValueError("--mode finetune is for a whole data set and --split test: its val images watch the training")
    if foreign := [s for s in arm.sources if s.startswith("timm:") or s in (*anchors.HANDMADE, "efficientnet_lite0")]:
        print(f"{arm.name}: {foreign[0]} is no encoder of this project, so it is not fine-tuned")
        return set()
    available, keys = int((task.fitted_on.splits == "train").sum()), set()
    for n, seed in tqdm(draws(arguments, task, arm), desc=f"{arm.name}, fine-tuning", unit="run"):
        if n >= available:
            continue
        source = arm.sources[seed % len(arm.sources)]
        settings = config.load(
            classification.ClassificationConfig,
            None,
            [
                f"name={arm.name}-{n or 'all'}", f"logs={out / 'runs'}", f"seeds=[{seed}]",
                "pictures=false", "keep_model=false",
                f"data.path={probe_table.folder_of(name, arguments.data)}", f"data.cache={arguments.cache}",
                f"data.size={task.fitted_on.size}", f"data.label_share={n / available if n else 1.0}",
                f"encoder.weights={'none' if source.startswith('random:') else source}",
                "finetune.epochs=1", f"finetune.min_steps={arguments.steps}", f"finetune.max_steps={arguments.steps}",
                "finetune.patience=0", f"precision={arguments.precision}", *arguments.set,
            ],
        )  # fmt: skip
        key = _digest(
            f"{anchors.open_embedder(source).key} {arguments.steps} {sorted(arguments.set)} {task.fitted_on.size}"
        )
        keys.add(key)
        if points.find("finetune", arm.name, n, seed, key):
            continue
        one = Path(settings.logs) / settings.name / f"seed-{seed}"
        settings.seed = seed
        classification.TASK.run_seed(settings, one, say=tqdm.write)
        outcome, about = base.read_outcome(one), base.read_metrics(one)
        auroc = probe_table.macro_auroc(outcome["labels"], outcome["probabilities"])
        points.add(
            label_efficiency.Point("finetune", arm.name, n, seed, key, about["protocol"]["training_images"], auroc)
        )
    return keys


def draw_curve(arguments, names: list[str], out: Path, points: list[Point], mode: str) -> None:
    """The picture, its numbers, and what the first arm saves."""
    curves = label_efficiency.curves_of(points, mode)
    names = [name for name in names if name in curves] + [name for name in curves if name not in names]
    curves = {name: curves[name] for name in names}
    how = "a linear probe" if mode == "linear" else f"{arguments.steps} steps of fine-tuning"
    title = f"{arguments.task}: {how}, {arguments.split} images"
    beside = [read_curves(folder / f"curve-{mode}.csv") for folder in arguments.beside]
    plots.label_curves(out / f"curve-{mode}.png", {**dict(beside), title: curves})
    rows = [[title, name, *point] for name, curve in curves.items() for point in curve]
    write_rows(out / f"curve-{mode}.csv", ["curve", "arm", *POINT], rows)
    lines = []
    for other in names[1:]:
        lines += [f"**{names[0]} against {other}**, {how}", ""]
        lines += [
            f"| labelled images | AUROC of {names[0]} | labels that {other} needs for it |",
            "| --- | --- | --- |",
        ]
        for count, score, needed in label_efficiency.labels_needed(curves[names[0]], curves[other]):
            said = f"more than {curves[other][-1][0]:,.0f}" if math.isinf(needed) else f"{needed:,.0f}"
            lines.append(f"| {count:,.0f} | {score:.3f} | {said} |")
        lines.append("")
    write_text(out / f"saved-{mode}.md", "\n".join(lines))
    print("\n".join(lines))


def read_curves(path: Path) -> tuple[str, dict[str, list[tuple]]]:
    """Title and {arm: [(images, mean, low, high)]} of a curve-MODE.csv; FileNotFoundError, ValueError where it is none."""
    if not path.is_file():
        raise FileNotFoundError(f"--beside: {path} does not exist; give --out of an earlier call with the same --mode")
    rows = [row for _, row in read_rows(path)[1]]
    try:
        title = rows[0]["curve"]
        return title, {
            name: [tuple(float(row[key]) for key in POINT) for row in rows if row["arm"] == name]
            for name in dict.fromkeys(row["arm"] for row in rows)
        }
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or of an earlier version ({error}): measure it again") from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(exit_code(main))
