"""What frozen encoders are worth, in one table: linear probe and k-NN, by cross-fitting over groups or on a held-out split.

    tasks = {128: [open_task(text, roots, Path("data"), 128) for text in settings.TASKS]}
    rows = [Row("ours", ["logs/A", "logs/B"]), Row("random", [f"random:{s}" for s in range(6)])]
    table = measure(rows, tasks, [Setting()], FeatureCache(Path("data/features")), split="cv")

A task is a labelled data set, or two: the probe is then fitted on the first and tested on the second (another hospital). The
sources of a row are pooled: its figure is their mean, its interval covers both their spread and the choice of groups.
"""

import copy
import hashlib
import json
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from vfm4us import markdown
from vfm4us.data.csv_files import rows_text
from vfm4us.data.dataset import PreparedDataset
from vfm4us.data.prepare import open_or_prepare
from vfm4us.evaluation import statistics
from vfm4us.evaluation.anchors import LAST, Unavailable, layer_of, open_embedder
from vfm4us.evaluation.classification import scores
from vfm4us.evaluation.representation import CentralSquares, knn_votes
from vfm4us.evaluation.settings import SCALINGS
from vfm4us.runtime.device import device_name
from vfm4us.runtime.files import write_array, write_text

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression; the inner cross-validation takes one
METHODS = {"linear": "linear probe", "knn": "k-NN"}
MEASURES = {"auroc": "macro one-vs-rest AUROC", "balanced_accuracy": "balanced accuracy"}
OUTER, INNER = 5, 3  # folds
RESAMPLES = 1000
VECTORS, ANSWERS = "1 features", "2 probes"  # kinds in the cache: count up where one is computed otherwise


@dataclass(frozen=True)
class Setting:
    """How images become vectors; the same for every row that it is asked of."""

    sizes: tuple[int, ...] = (128,)  # sides to which images are packed, px; the vectors of several are joined
    patches: int = 0  # 0: the whole image; n: the mean of n patches
    layer: str = LAST
    scaling: str = (
        "raw"  # before k-NN (raw of a hand-made feature is standardise); the linear probe standardises in any case
    )
    square: bool = False  # only the central square of each image, which hides its shape
    precision: str = "float32"

    def words(self) -> str:
        """What differs from the default, for the name of a row."""
        parts = [" + ".join(map(str, self.sizes)) + " px"]
        parts += [f"{self.patches} patches"] * bool(self.patches) + [self.layer] * (self.layer != LAST)
        parts += [self.scaling] * (self.scaling != "raw") + ["squares"] * self.square
        return ", ".join(parts)


@dataclass(frozen=True)
class Row:
    """A line of the table; `sources` are encoder seeds, pooled (see `anchors.open_embedder`)."""

    name: str
    sources: list[str]
    optional: bool = False  # an anchor: where its weights are not to be had, the row says so and the table goes on


@dataclass
class Task:
    """A classification: probes are fitted on `fitted_on` and tested on `tested_on`, which may be the same data set."""

    name: str
    fitted_on: PreparedDataset
    tested_on: PreparedDataset
    classes: list[str]

    @property
    def across(self) -> bool:
        """Whether it is tested on another set than it is fitted on."""
        return self.fitted_on is not self.tested_on

    def rows(self, dataset: PreparedDataset, splits: list[str], limit: int = 0) -> np.ndarray:
        """The labelled images of these splits, in order; a fixed random choice of `limit` of them."""
        rows = np.flatnonzero(np.isin(dataset.splits, splits) & np.isin(dataset.labels, self.classes))
        if not len(rows):
            raise ValueError(f"{self.name}: {dataset.folder} has no image of {', '.join(self.classes)} in {splits}")
        if limit and limit < len(rows):
            rows = np.sort(np.random.default_rng(0).choice(rows, limit, replace=False))
        return rows

    def codes(self, dataset: PreparedDataset, rows: np.ndarray) -> np.ndarray:
        """Class numbers (n,) of the rows of a set."""
        return np.searchsorted(self.classes, np.asarray(dataset.labels)[rows])


@dataclass
class Outcome:
    """What the probes of one row and task say: probabilities[method][seed][repeat] (M, C)."""

    labels: np.ndarray  # (M,) codes
    groups: np.ndarray  # (M,)
    dataset: str
    probabilities: dict[str, list[list[np.ndarray]]]
    strengths: list[float] = field(default_factory=list)


def row_of(text: str) -> Row:
    """[NAME=]SOURCE[,SOURCE ...], where random:0-5 stands for six sources."""
    name, equals, rest = text.rpartition("=")
    sources = []
    for source in rest.split(","):
        first, dash, last = source.removeprefix("random:").partition("-")
        if source.startswith("random:") and dash and first.isdigit() and last.isdigit():
            sources += [f"random:{seed}" for seed in range(int(first), int(last) + 1)]
        else:
            sources.append(source)
    if not all(sources) or len(set(sources)) < len(sources):
        raise ValueError(f"encoder {text}: a source is empty or stands there twice")
    return Row(name if equals else text.rstrip("/"), sources)


def sizes_of(text: str) -> tuple[int, ...]:
    """(128, 224) of "128+224"."""
    try:
        return tuple(int(part) for part in str(text).split("+"))
    except ValueError as error:
        raise ValueError(f"size {text!r}: write a number of pixels, or several as 128+224") from error


def folder_of(name: str, roots: list[Path]) -> Path:
    """The folder `name` below the first of `roots` that has one; FileNotFoundError lists what they hold."""
    folder = next((root / name for root in roots if (root / name).exists()), None)
    if folder is None:
        existing = sorted({p.name for root in roots if root.is_dir() for p in root.iterdir() if p.is_dir()})
        if missing := [str(root) for root in roots if not root.is_dir()]:
            raise FileNotFoundError(
                f"{', '.join(missing)} is no folder: --data names folders that hold the tasks' folders"
            )
        raise FileNotFoundError(
            f"no folder {name} below {', '.join(map(str, roots))}, which hold {', '.join(existing) or 'no folders'}: "
            "--data names the folder above, --tasks the folders in it"
            + (f". For {roots[0]} itself: --data {roots[0].parent} --tasks {roots[0].name}" if len(roots) == 1 else "")
        )
    return folder


def open_task(text: str, roots: list[Path], cache: Path, size: int, square: bool = False, opened=None) -> Task:
    """The task that `text` names: `busi`, `fetal_nt:standard,nonstandard`, `busi-to-breast_busbra:benign,malignant`.

    Its data sets are folders of that name below one of `roots`, packed at `size` px into `cache`. `opened` is a dict in which
    data sets are kept between calls. Raises FileNotFoundError or ValueError that says what there is.
    """
    opened = {} if opened is None else opened
    names, _, labels = text.partition(":")
    datasets = []
    for name in names.split("-to-"):
        key = (name, size, square)
        if key not in opened:
            dataset = open_or_prepare(folder_of(name, roots), cache, size)
            opened[key] = CentralSquares(dataset) if square else dataset
        datasets.append(opened[key])
    if len(datasets) > 2:
        raise ValueError(f"task {text}: one data set, or two with -to- between them")
    labels_of = [
        sorted({label for label, s in zip(d.labels, d.splits, strict=True) if s != "exclude"}) for d in datasets
    ]
    classes = sorted(labels.split(",")) if labels else labels_of[0]
    for dataset, names_ in zip(datasets, labels_of, strict=True):
        if missing := [c for c in classes if c not in names_]:
            raise ValueError(f"task {text}: {dataset.folder} has no label {missing[0]!r}; it has {', '.join(names_)}")
    if len(classes) < 2:
        raise ValueError(f"task {text}: {datasets[0].folder} has one label alone ({classes[0]})")
    return Task(text.partition(":")[0], datasets[0], datasets[-1], classes)


# ---- vectors --------------------------------------------------------------------------------------------------------


class FeatureCache:
    """Vectors kept in `folder`, named by what they depend on: encoder bytes, image bytes, setting."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def path(self, *parts: str) -> Path:
        """The file of what these words name."""
        return self.folder / f"{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:32]}.npz"

    def read(self, path: Path) -> dict[str, np.ndarray] | None:
        """The arrays of a file, None where there is none."""
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    def write(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        """Keep arrays in a file, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_array(path, np.savez, **arrays)


def images_key(dataset, rows: np.ndarray, square: bool = False) -> str:
    """What the pixels of these images depend on."""
    digest = hashlib.sha256("".join(dataset.sha256[i] for i in rows).encode())
    return f"{digest.hexdigest()} size {dataset.size} square {square}"


def vectors(embedder, dataset, rows: np.ndarray, cache: FeatureCache, square: bool = False, words: str = "") -> dict:
    """{layer: (len(rows), d)} of some images, computed once."""
    path = cache.path(VECTORS, embedder.key, images_key(dataset, rows, square))
    if (features := cache.read(path)) is None:
        with tqdm(total=len(rows), unit="image", desc=words, leave=False) as bar:
            records = [dataset.records[i] for i in rows]
            features = embedder.embed(dataset.images[rows], dataset.valid[rows], records, bar.update)
        cache.write(path, features)
    return features


def joined(
    embedder, datasets: list, rows: np.ndarray, setting: Setting, cache: FeatureCache, words: str = ""
) -> np.ndarray:
    """(len(rows), d): the setting's layer of the same images at each size, side by side, brought to the same mean length.

    datasets: one and the same packed at `setting.sizes`. ValueError where they do not hold the same images.
    """
    if any([d.ids[i] for i in rows] != [datasets[0].ids[i] for i in rows] for d in datasets[1:]):
        raise ValueError(
            f"{datasets[0].folder} and {datasets[-1].folder} do not hold the same images: prepare them again"
        )
    parts = [layer_of(vectors(embedder, d, rows, cache, setting.square, words), setting.layer) for d in datasets]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([p / max(1e-12, np.linalg.norm(p, axis=1).mean()) for p in parts], axis=1)


def scaled(reference: np.ndarray, others: np.ndarray, scaling: str) -> tuple[np.ndarray, np.ndarray]:
    """Both sets of vectors moved and stretched by what the reference alone says.

    centre: minus the mean. standardise: then each feature to deviation 1. whiten: then each principal direction to deviation 1.
    half-whiten: then each principal direction divided by the root of its deviation, half way between the two, so that the few
    directions with most of the variance do not decide alone, nor does the noise of the many. Directions below a thousandth of the
    largest variance are left out of both.
    """
    if scaling == "raw":
        return reference, others
    mean = reference.mean(0)
    a, b = reference - mean, others - mean
    if scaling == "centre":
        return a, b
    deviation = a.std(0)
    deviation[deviation < 1e-6 * max(1e-12, deviation.max())] = 1.0  # a feature that never varies stays 0
    a, b = a / deviation, b / deviation
    if scaling == "standardise":
        return a, b
    if scaling not in SCALINGS:
        raise ValueError(f"scaling {scaling!r} is not one of {', '.join(SCALINGS)}")
    _, values, directions = np.linalg.svd(a, full_matrices=False)
    deviations = values / np.sqrt(len(a))
    kept = deviations**2 > 1e-3 * deviations[0] ** 2
    turn = directions[kept].T / deviations[kept] ** (0.5 if scaling == "half-whiten" else 1.0)
    return a @ turn, b @ turn


# ---- probes ---------------------------------------------------------------------------------------------------------


def linear_path(
    reference: np.ndarray, codes: np.ndarray, queries: np.ndarray, classes: int, strengths: tuple[float, ...]
) -> list[np.ndarray]:
    """Probabilities (M, classes) of logistic regression with balanced classes, for each C of `strengths`, in their order.

    Features are standardised by the reference. Each fit starts from the one before.
    """
    a, b = scaled(reference, queries, "standardise")
    model = LogisticRegression(max_iter=1000, class_weight="balanced", warm_start=True)
    result = []
    for strength in strengths:
        model.C = strength
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a weak penalty: the choice of strength judges it
            model.fit(a, codes)
        probabilities = np.zeros((len(b), classes))
        probabilities[:, model.classes_] = model.predict_proba(b)
        result.append(probabilities)
    return result


def choose_strength(reference: np.ndarray, codes: np.ndarray, groups: np.ndarray, classes: int) -> float:
    """The C of `STRENGTHS` with the best macro AUROC by cross-validation over the groups of the reference."""
    folds = min(INNER, len(set(groups)), int(np.bincount(codes, minlength=classes).min()))
    if folds < 2:
        return 1e-2  # too few images to choose by
    probabilities = np.zeros((len(STRENGTHS), len(codes), classes))
    for fit, held in StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(codes, codes, groups):
        if len(np.unique(codes[fit])) < classes:
            return 1e-2
        probabilities[:, held] = linear_path(reference[fit], codes[fit], reference[held], classes, STRENGTHS)
    return STRENGTHS[int(np.argmax([macro_auroc(codes, p) for p in probabilities]))]


def macro_auroc(codes: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over the classes of the area under the one-vs-rest ROC curve."""
    return float(np.mean([roc_auc_score(codes == c, probabilities[:, c]) for c in np.unique(codes)]))


def predict(
    reference: np.ndarray, codes: np.ndarray, groups: np.ndarray, queries: np.ndarray, classes: int, scaling: str
) -> tuple[dict[str, np.ndarray], float]:
    """What each probe says of the queries, {method: (M, classes)}, and the strength that was chosen. `scaling` is of k-NN."""
    strength = choose_strength(reference, codes, groups, classes)
    lower = tuple(c for c in STRENGTHS if c <= strength) or (strength,)
    a, b = (torch.from_numpy(np.ascontiguousarray(x)) for x in scaled(reference, queries, scaling))
    return {
        "linear": linear_path(reference, codes, queries, classes, lower)[-1],
        "knn": knn_votes(a, codes, b, classes),
    }, strength


def outcome_of(
    row: Row,
    tasks: list[Task],
    setting: Setting,
    split: str,
    cache: FeatureCache,
    limit: int = 0,
    repeats: int = 1,
    words="",
) -> Outcome:
    """The probes' answers for every source of a row, on one task packed at each of the setting's sizes.

    `split`: cv, val or test (see `measure`).
    """
    task = tasks[0]
    fitted, tested = task.fitted_on, task.tested_on
    development = ["train", "val"]
    reference = task.rows(fitted, ["train"] if split == "val" else development, limit)
    queries = task.rows(tested, development if split == "cv" else [split], limit if split == "cv" else 0)
    fold = split == "cv" and not task.across
    classes = len(task.classes)
    codes, groups = task.codes(fitted, reference), fitted.groups[reference]
    truth = task.codes(tested, queries)
    repeats = repeats if fold else 1
    probabilities: dict[str, list] = {method: [] for method in METHODS}
    strengths = []
    for source in row.sources:
        embedder = open_embedder(source, setting.patches, setting.precision)
        sides = (reference, [t.fitted_on for t in tasks]), (queries, [t.tested_on for t in tasks])
        keys = [images_key(dataset, rows, setting.square) for rows, datasets in sides for dataset in datasets]
        how = json.dumps(
            [setting.layer, setting.scaling, fold, repeats, codes.tolist(), truth.tolist(), groups.tolist()]
        )
        path = cache.path(ANSWERS, embedder.key, *keys, hashlib.sha256(how.encode()).hexdigest())
        if (answers := cache.read(path)) is None:
            scaling = setting.scaling
            if embedder.units and scaling in ("raw", "centre"):
                scaling = "standardise"  # a cosine of pixels, shares and counts together means nothing
            a = joined(embedder, sides[0][1], reference, setting, cache, words)
            if fold:
                answers = _cross_fitted(a, codes, groups, classes, scaling, repeats)
            else:
                b = joined(embedder, sides[1][1], queries, setting, cache, words)
                said, strength = predict(a, codes, groups, b, classes, scaling)
                answers = {m: p[None] for m, p in said.items()} | {"strengths": np.array([strength])}
            cache.write(path, answers)
        for method in METHODS:
            probabilities[method].append(list(answers[method]))
        strengths += answers["strengths"].tolist()
    return Outcome(truth, tested.groups[queries], str(tested.name), probabilities, strengths)


def _cross_fitted(a: np.ndarray, codes, groups, classes: int, scaling: str, repeats: int) -> dict[str, np.ndarray]:
    """Each image's probabilities by probes that saw neither it nor its group: {method: (repeats, N, classes)}."""
    probabilities = {method: np.zeros((repeats, len(a), classes)) for method in METHODS}
    strengths = []
    for repeat in range(repeats):
        folds = StratifiedGroupKFold(OUTER, shuffle=True, random_state=repeat)
        for fit, held in folds.split(a, codes, groups):
            said, strength = predict(a[fit], codes[fit], groups[fit], a[held], classes, scaling)
            strengths.append(strength)
            for method, p in said.items():
                probabilities[method][repeat, held] = p
    return probabilities | {"strengths": np.array(strengths)}


# ---- figures --------------------------------------------------------------------------------------------------------


@dataclass
class Figure:
    """A score of one row and task: of each seed, and in each resample of `groups` groups its mean over seeds."""

    per_seed: np.ndarray
    resamples: np.ndarray
    groups: int

    def interval(self) -> tuple[float, float, float]:
        """Mean over seeds, and the 95 % interval over seeds and groups; of all right or all wrong that of a share of the groups."""
        mean, low, high = statistics.interval(self.per_seed, self.resamples[np.isfinite(self.resamples)])
        if low == high and mean in (0.0, 1.0):
            low, high = statistics.share_limits(mean, self.groups)
        return mean, low, high

    def minus(self, other: "Figure") -> dict[str, float]:
        """Mean, 95 % limits and p of the difference, paired in the images."""
        apart = self.resamples - other.resamples
        apart = apart[np.isfinite(apart)]
        about = self.per_seed, apart, other.per_seed
        mean, low, high = statistics.interval(*about)
        return {"mean": mean, "low": low, "high": high, "p": statistics.p_value(*about)}

    def summary(self) -> dict:
        """Mean, low, high (within 0 and 1) and each seed's figure, as metrics.json holds them."""
        mean, low, high = self.interval()
        return {"mean": mean, "low": max(0.0, low), "high": min(1.0, high), "per_seed": self.per_seed.tolist()}


def mean_of(figures: list[Figure]) -> Figure:
    """The mean over tasks of one row; it counts as many groups as the smallest of them."""
    per_seed, resamples = (np.mean([getattr(f, name) for f in figures], axis=0) for name in ("per_seed", "resamples"))
    return Figure(per_seed, resamples, min(f.groups for f in figures))


def figures_of(outcome: Outcome, resamples: int = RESAMPLES) -> dict[str, dict[str, Figure]]:
    """{method: {measure: Figure}}. Tasks that share a data set's groups are resampled alike, so their mean is right too."""
    seed = int(hashlib.sha256(outcome.dataset.rsplit("-", 2)[0].encode()).hexdigest()[:8], 16)
    counts = statistics.bootstrap_counts(outcome.groups, resamples, seed)
    once = np.ones((1, len(outcome.labels)))
    result: dict[str, dict[str, Figure]] = {}
    for method, seeds in outcome.probabilities.items():
        single, several = [], []
        for repeats in seeds:
            single.append([scores(outcome.labels, p, once) for p in repeats])
            several.append([scores(outcome.labels, p, counts) for p in repeats])
        result[method] = {
            measure: Figure(
                np.array([np.mean([s[measure][0] for s in seed]) for seed in single]),
                np.mean([np.mean([s[measure] for s in seed], axis=0) for seed in several], axis=0),
                len(np.unique(outcome.groups)),
            )
            for measure in MEASURES
        }
    return result


# ---- the table ------------------------------------------------------------------------------------------------------


@dataclass
class Table:
    """figures[row][task][method][measure]; rows that could not be measured are in `absent` with the reason."""

    split: str
    tasks: list[Task]
    images: dict[str, int]
    figures: dict[str, dict[str, dict[str, dict[str, Figure]]]]
    absent: dict[str, str]
    settings: dict[str, Setting]
    seeds: dict[str, int]
    limit: int = 0
    repeats: int = 1


def line_name(row: Row, setting: Setting, settings: list[Setting]) -> str:
    """The row's name; where there are several settings, with what is its own."""
    return row.name if len(settings) == 1 else f"{row.name} ({setting.words()})"


def measure(
    rows: list[Row],
    tasks: dict[int, list[Task]],
    settings: list[Setting],
    cache: FeatureCache,
    split: str = "cv",
    limit: int = 0,
    repeats: int = 1,
    say=lambda line: None,
) -> Table:
    """Every row under every setting on every task.

    tasks:  {size: tasks packed at that size}, the same tasks in each
    split:  cv: cross-fitted over the groups of train and val, for choosing (across data sets: fitted on one's train and val,
            tested on the other's). val: fitted on train, tested on val. test: fitted on train and val, tested on test; for the
            last figure alone.
    limit:  at most so many images of train and val per data set, a fixed choice; 0: all
    say:    is called with a line as each row is done
    """
    first = tasks[settings[0].sizes[0]]
    table = Table(split, first, {}, {}, {}, {}, {}, limit, repeats)
    total = len(rows) * len(settings) * len(first)
    with tqdm(total=total, unit="probe", desc="probing") as bar:
        for row in rows:
            for setting in settings:
                name = line_name(row, setting, settings)
                measured: dict[str, dict] = {}
                try:
                    for task, *others in zip(*(tasks[size] for size in setting.sizes), strict=True):
                        words = f"{row.name}, {task.name}"
                        bar.set_postfix_str(words)
                        outcome = outcome_of(row, [task, *others], setting, split, cache, limit, repeats, words)
                        table.images[task.name] = len(outcome.labels)
                        measured[task.name] = figures_of(outcome)
                        bar.update()
                except Unavailable as error:
                    if not row.optional:
                        raise ValueError(str(error)) from error
                    bar.update(len(first) - len(measured))
                    table.absent[name] = str(error)
                    continue
                inside = [t.name for t in first if not t.across]
                outside = [t.name for t in first if t.across]
                for label, names in (("mean", inside), ("mean across", outside)):
                    if len(names) > 1:
                        measured[label] = {
                            m: {k: mean_of([measured[t][m][k] for t in names]) for k in MEASURES} for m in METHODS
                        }
                table.figures[name], table.settings[name] = measured, copy.copy(setting)
                table.seeds[name] = len(row.sources)
                shown = measured.get("mean", measured[first[0].name])
                say(
                    f"{name}: mean AUROC linear {shown['linear']['auroc'].interval()[0]:.3f}, "
                    f"k-NN {shown['knn']['auroc'].interval()[0]:.3f}"
                )
    return table


def columns_of(table: Table) -> list[str]:
    """Tasks and means, in the order of the tasks."""
    known = next(iter(table.figures.values()))
    inside = [t.name for t in table.tasks if not t.across] + ["mean"] * ("mean" in known)
    return inside + [t.name for t in table.tasks if t.across] + ["mean across"] * ("mean across" in known)


SPLIT_WORDS = {
    "cv": "cross-fitted over the groups of train and val (for choosing; no test image is looked at)",
    "val": "fitted on train, tested on val",
    "test": "fitted on train and val, tested on the test split",
}


def described(table: Table, reference: str, methods=tuple(METHODS), measures=tuple(MEASURES)) -> str:
    """A table of figures for each probe and measure, and one of the differences to `reference`."""
    columns = columns_of(table)
    parts = [
        f"Frozen encoders, {SPLIT_WORDS[table.split]}. Linear probe: logistic regression, balanced, C of {STRENGTHS[0]:g} to "
        f"{STRENGTHS[-1]:g} by inner cross-validation over groups. k-NN: k = 20, T = 0.07. In brackets the 95 % interval over "
        "groups and encoder seeds; where a row has several seeds, the lowest and the highest of them behind it. Images: "
        + ", ".join(f"{name} {count:,}" for name, count in table.images.items())
        + "."
        + (f" At most {table.limit} images of train and val." if table.limit else "")
        + few_groups(table.figures)
    ]
    for method in methods:
        for key in measures:
            rows = [
                [_row_name(table, name), *(_cell(measured[c][method][key]) for c in columns)]
                for name, measured in table.figures.items()
            ]
            rows += [[name, *["not measured"] * len(columns)] for name in table.absent]
            parts.append(f"**{METHODS[method]}, {MEASURES[key]}**\n\n{markdown.table(['', *columns], rows)}")
    if reference in table.figures and len(table.figures) > 1:
        for method in methods:
            parts.append(_differences(table, reference, columns, method))
    if table.absent:
        parts.append("\n".join(f"- {name} could not be measured: {reason}" for name, reason in table.absent.items()))
    return "\n\n".join(parts) + "\n"


def few_groups(figures: dict[str, dict]) -> str:
    """What is to be said of tasks whose test images are of so few groups that a bootstrap over them is too narrow; else nothing."""
    measured = next(iter(figures.values()), {})
    few = {
        name: methods["knn"]["auroc"].groups
        for name, methods in measured.items()
        if name not in ("mean", "mean across")
    }
    few = {name: count for name, count in few.items() if count < statistics.FEW_GROUPS}
    told = ", ".join(f"{name} {count}" for name, count in few.items())
    return f" Of fewer than {statistics.FEW_GROUPS} groups, so that intervals are too narrow: {told}." if few else ""


def _differences(table: Table, reference: str, columns: list[str], method: str) -> str:
    base, seen, rows = table.figures[reference], [], []
    for name, measured in table.figures.items():
        if name != reference:
            apart = [measured[c][method]["auroc"].minus(base[c][method]["auroc"]) for c in columns]
            seen += apart
            rows.append([_row_name(table, name), *map(markdown.difference, apart)])
    title = f"**{METHODS[method]}, AUROC minus that of {reference}** (paired in the images)"
    return "\n\n".join([title, markdown.table(["", *columns], rows), statistics.power_line(seen)])


def _row_name(table: Table, name: str) -> str:
    return f"{name}, {table.seeds[name]} seeds" if table.seeds[name] > 1 else name


def _cell(figure: Figure) -> str:
    text = markdown.cell(figure.summary())
    if len(figure.per_seed) > 1:
        text += f" [{figure.per_seed.min():.3f}, {figure.per_seed.max():.3f}]"
    return text


def write(table: Table, reference: str, out: Path) -> str:
    """table.md, results.csv and metrics.json in `out`; returns the Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    text = described(table, reference)
    write_text(out / "table.md", text)
    heads = ["row", "seeds", "task", "images", "probe", "measure", "mean", "low", "high", "seed_low", "seed_high"]
    heads += [f"minus {reference}", "minus_low", "minus_high", "p"]
    rows = []
    metrics: dict[str, dict] = {}
    for name, measured in table.figures.items():
        for column, methods in measured.items():
            for method, measures in methods.items():
                for key, figure in measures.items():
                    s = figure.summary()
                    line = [name, table.seeds[name], column, table.images.get(column, ""), method, key]
                    line += [
                        f"{v:.6f}" for v in (s["mean"], s["low"], s["high"], min(s["per_seed"]), max(s["per_seed"]))
                    ]
                    metrics[f"{name}/{column}/{method}/{key}"] = s
                    if reference in table.figures and name != reference:
                        d = figure.minus(table.figures[reference][column][method][key])
                        line += [f"{d[k]:.6f}" for k in ("mean", "low", "high")] + [f"{d['p']:.4g}"]
                        metrics[f"{name} - {reference}/{column}/{method}/{key}"] = d
                    rows.append(line)
    write_text(out / "results.csv", rows_text(heads, rows))
    whole = {
        "task": "representation",
        "dataset": [t.name for t in table.tasks],
        "split": table.split,
        "protocol": {
            "split_unit": "group (patient or near-duplicate cluster)",
            "selection": "strength of the linear probe by inner cross-validation over groups; nothing else is chosen",
            "split": SPLIT_WORDS[table.split],
            "settings": {name: asdict(setting) for name, setting in table.settings.items()},
            "probe": f"logistic regression, balanced, C of {list(STRENGTHS)}; k-NN k = 20, T = 0.07",
            "interval": "95 %, Student's t over encoder seeds plus bootstrap over groups",
            "limit": table.limit,
            "repeats": table.repeats,
            "absent": table.absent,
            "device": device_name(),
        },
        "seeds": table.seeds,
        "images": table.images,
        "metrics": metrics,
    }
    write_text(out / "metrics.json", json.dumps(whole, indent=1))
    return text
