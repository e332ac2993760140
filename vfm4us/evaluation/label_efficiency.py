"""How many labels an encoder saves: AUROC against the number of labelled images, over many draws of them.

    points = Points(Path("logs/labels"))                  # everything measured so far, in points.csv
    curves = curves_of(points.rows, mode="linear")        # {arm: [(images, mean, low, high)]}
    labels_needed(curves["ours"], curves["random"])       # what the other needs for the same score

A point is one draw: so many images, of every class, by a seeded choice; the arm's encoder of that seed; its score on images that
have nothing to do with the draw. Points are kept as they come, so a curve can be measured in parts.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from scipy import stats

from vfm4us.data.csv_files import read_rows, rows_text
from vfm4us.evaluation.probe_table import Setting, Task, choose_strength, images_key, linear_path, macro_auroc
from vfm4us.runtime.files import write_text


@dataclass(frozen=True)
class Point:
    """One draw and its score. `key` says what it depends on beside the first five: encoder, data, split."""

    mode: str  # linear or finetune
    arm: str
    labels: int  # asked for; 0: all
    seed: int
    key: str
    images: int  # that were drawn
    auroc: float


class Points:
    """points.csv in a folder: read whole, written whole after every point."""

    def __init__(self, folder: Path):
        self.path = Path(folder) / "points.csv"
        self.rows: list[Point] = []
        if self.path.is_file():
            for _, row in read_rows(self.path)[1]:
                try:
                    numbers = {k: int(row[k]) for k in ("labels", "seed", "images")}
                    point = Point(row["mode"], row["arm"], key=row["key"], auroc=float(row["auroc"]), **numbers)
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(f"{self.path} is damaged ({error}): delete it and measure again") from error
                self.rows.append(point)

    def find(self, mode: str, arm: str, labels: int, seed: int, key: str) -> Point | None:
        """The point, if it was measured with the same encoder and data."""
        wanted = (mode, arm, labels, seed, key)
        return next((p for p in self.rows if (p.mode, p.arm, p.labels, p.seed, p.key) == wanted), None)

    def add(self, point: Point) -> None:
        """Keep it, in place of one of the same draw by an earlier encoder or of earlier data."""
        same = (point.mode, point.arm, point.labels, point.seed)
        self.rows = [p for p in self.rows if (p.mode, p.arm, p.labels, p.seed) != same] + [point]
        names = [f.name for f in fields(Point)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, rows_text(names, ([getattr(p, name) for name in names] for p in self.rows)))

    def of(self, keys: dict[str, set[str]]) -> list[Point]:
        """The points of these keys, for each arm; those of an arm's earlier encoders or data stay in the file alone.

        Arms that are not in `keys` are taken as they are.
        """
        return [p for p in self.rows if p.arm not in keys or p.key in keys[p.arm]]


def draw(codes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Sorted places of `count` images, each class about as often as in `codes` (N,) and at least once; 0 or N and more: all.

    ValueError where there are fewer than the classes.
    """
    if not count or count >= len(codes):
        return np.arange(len(codes))
    classes, sizes = np.unique(codes, return_counts=True)
    if count < len(classes):
        raise ValueError(f"{count} labelled images cannot show {len(classes)} classes: ask for {len(classes)} or more")
    exact = sizes / len(codes) * count
    quota = np.maximum(1, np.floor(exact).astype(int))
    while quota.sum() < count:
        quota[np.argmax(exact - quota)] += 1
    while quota.sum() > count:  # small classes were rounded up to one
        quota[np.argmax(np.where(quota > 1, quota - exact, -np.inf))] -= 1
    rng = np.random.default_rng((seed, count))
    chosen = [rng.permutation(np.flatnonzero(codes == c))[:q] for c, q in zip(classes, quota, strict=True)]
    return np.sort(np.concatenate(chosen))


def rows_of(task: Task, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images to draw from and images to test on: train and val (`split` val), or train with val, and test."""
    first = ["train"] if split == "val" else ["train", "val"]
    return task.rows(task.fitted_on, first), task.rows(task.tested_on, [split])


def linear_point(task: Task, split: str, reference: np.ndarray, queries: np.ndarray, labels: int, seed: int) -> tuple:
    """(images drawn, macro AUROC) of a linear probe on the vectors of `rows_of`; C by inner cross-validation where possible."""
    fitted, tested = rows_of(task, split)
    codes, truth, classes = task.codes(task.fitted_on, fitted), task.codes(task.tested_on, tested), len(task.classes)
    chosen = draw(codes, labels, seed)
    a, groups = reference[chosen], task.fitted_on.groups[fitted][chosen]
    strength = choose_strength(a, codes[chosen], groups, classes)
    return len(chosen), macro_auroc(truth, linear_path(a, codes[chosen], queries, classes, (strength,))[0])


def curves_of(points: list[Point], mode: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """{arm: [(images, mean AUROC, low, high), ...]} by number of images; 95 % limits of the mean over draws and encoder seeds."""
    by_arm: dict[str, dict[int, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        if point.mode == mode:
            by_arm[point.arm][point.labels].append(point)
    curves = {}
    for arm, by_labels in by_arm.items():
        curve = []
        for several in by_labels.values():
            scores = np.array([p.auroc for p in several])
            half = 0.0
            if len(scores) > 1:
                half = float(stats.t.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / math.sqrt(len(scores)))
            mean = float(scores.mean())
            curve.append((float(np.mean([p.images for p in several])), mean, mean - half, mean + half))
        curves[arm] = sorted(curve)
    return curves


def labels_needed(ours: list[tuple], theirs: list[tuple]) -> list[tuple[float, float, float]]:
    """(images, our mean AUROC, images that the others need for it) for each of our points, between points by log images.

    Infinity where they do not reach it with all they have, their fewest where they begin above it.
    """
    images = np.log([point[0] for point in theirs])
    scores = np.maximum.accumulate(
        [point[1] for point in theirs]
    )  # a curve that dips for a moment needs no fewer labels
    result = []
    for count, score, *_ in ours:
        if score > scores[-1]:
            needed = math.inf
        elif score <= scores[0]:
            needed = float(np.exp(images[0]))
        else:
            k = int(np.searchsorted(scores, score))
            share = (score - scores[k - 1]) / (scores[k] - scores[k - 1])
            needed = float(np.exp(images[k - 1] + share * (images[k] - images[k - 1])))
        result.append((count, score, needed))
    return result


def point_key(tasks: list[Task], split: str, setting: Setting, embedder_key: str) -> str:
    """What a linear point depends on, of one task packed at each of the setting's sizes."""
    parts = [
        images_key(dataset, rows)
        for task in tasks
        for dataset, rows in zip((task.fitted_on, task.tested_on), rows_of(task, split), strict=True)
    ]
    return f"{embedder_key} {' '.join(parts)} {setting.layer} {','.join(tasks[0].classes)}"
