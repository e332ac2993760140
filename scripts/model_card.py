"""The card of a released encoder, made from its run: what it has seen, what it cost, what it is worth, what it is not for.

    python scripts/model_card.py RUN_FOLDER --out weights [--probe results.csv] [--trained differences.csv] [--weights FILE]
        [data.root=DIR] [data.cache=DIR]

RUN_FOLDER is a pretraining run (config.yaml, run.json, checkpoints). Its pools are opened again, so the data must be there; keys
of the config that say where may be given anew. Writes into --out:
  README.md    the card
  pool.csv.gz  every image that was trained on: set, path, stages, the first 16 digits of the sha256 of the file and, where known,
               of the published original, perceptual hash (survives a change of format; data.splits.near_duplicates compares)
--probe is results.csv of scripts/probe.py --split test, whose reference row is this encoder. From it come the table and the gate:
which of the lines that were set beforehand the encoder passes. --trained is differences.csv of configs/tables/release.yaml: the
lines of the gate on outlines and on fine-tuning. Origins and licences are in sources.csv in --out; a set that is
not listed there is an error.
"""

import csv
import gzip
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path

from vfm4us import config
from vfm4us.command_line import Parser
from vfm4us.config import changed_keys
from vfm4us.data.pools import StagePool, stage_pools
from vfm4us.lazy import Lazy
from vfm4us.pretraining.settings import PretrainingConfig
from vfm4us.runtime.files import write_text
from vfm4us.runtime.signals import exit_code

checkpoints, anchors = Lazy("vfm4us.checkpoints"), Lazy("vfm4us.evaluation.anchors")

NOT_SHOWN = ("name", "logs", "data.root", "data.cache", "data.hint", "stages", "resume", "encoder.weights")
TEST_TASKS = (
    "busi",
    "gallbladder",
    "breast_busbra",
    "fetal_nt",
)  # liver's labels leak through the file's shape: no claim
ACROSS = ("busi-to-breast_busbra", "breast_busbra-to-busi")
THREE = ("busi", "liver", "gallbladder")
RANDOM, HANDMADE, IMAGENET = "random", "HOG + LBP + histogram", "ImageNet EfficientNet-Lite0"
KNN_AT_LEAST = 0.78
TRAINED = (("segmentation", "dice_present", "Dice"), ("classification", "auroc", "AUROC"))  # of differences.csv
DIGITS = 16  # of a sha256: enough to find a file among thousands, and a quarter of the bytes


def main() -> None:
    """Write the card README.md and the list of training images pool.csv.gz of a run to --out."""
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("overrides", nargs="*", default=[], metavar="data.root=DIR", help="where the data are now")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="folder of the card (default weights)")
    parser.add_argument("--probe", type=Path, help="results.csv of scripts/probe.py")
    parser.add_argument("--trained", type=Path, help="differences.csv of configs/tables/release.yaml")
    parser.add_argument("--weights", type=Path, help="the released file, for its size and sha256")
    arguments = parser.parse_intermixed_args()
    settings = config.load(PretrainingConfig, arguments.run / "config.yaml", arguments.overrides)
    origins = read_origins(arguments.out / "sources.csv")
    pools = stage_pools(settings.stages, settings.data.protected(), settings.data.locations(), settings.seed)
    images = trained_images(settings, pools, origins)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_pool(arguments.out / "pool.csv.gz", images)
    state = checkpoints.read(checkpoints.latest(arguments.run))
    parts = [
        head(settings, state, arguments.weights),
        data_part(images, pools, settings, origins),
        budget_part(arguments.run, settings, state),
        probe_part(arguments.probe) if arguments.probe else "## What it is worth\n\nNot measured yet.",
        *([trained_part(arguments.trained)] if arguments.trained else []),
        LIMITS,
    ]
    write_text(arguments.out / "README.md", "\n\n".join(parts) + "\n")
    print(f"{len(images):,} images; written: {arguments.out / 'README.md'}, {arguments.out / 'pool.csv.gz'}")


# ---- what it has seen -----------------------------------------------------------------------------------------------


def read_origins(path: Path) -> dict[str, dict[str, str]]:
    """Folder name of a set -> title, reference, origin, licence."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: it lists set,title,reference,origin,licence of every set in the pool"
        )
    with open(path, newline="", encoding="utf-8") as stream:
        return {row["set"]: row for row in csv.DictReader(stream)}


def trained_images(settings: PretrainingConfig, pools: list[StagePool], origins: dict) -> list[dict[str, str]]:
    """A row for each image of any stage's pool, in order of set and path."""
    images: dict[tuple[str, str], dict] = {}
    where = settings.data.locations()
    for stage, pool in zip(settings.stages, pools, strict=True):
        for source, dataset, part in zip(stage.data, pool.training.datasets, pool.training.parts, strict=True):
            folder = where.resolve(source.path)
            name = folder.name
            if name not in origins:
                raise ValueError(
                    f"{source.path} is in the pool and not in sources.csv: add a line {name},title,reference,..."
                )
            originals = read_originals(folder / "originals.csv")
            for i in part:
                record = dataset.records[i]
                row = {"set": name, "path": record.path, "stages": "", "sha256": record.sha256[:DIGITS]}
                row |= {"original_sha256": originals.get(record.path, "")[:DIGITS], "phash": record.phash}
                row = images.setdefault((name, record.path), row)
                row["stages"] = f"{row['stages']} {stage.name}".strip()
    return [images[key] for key in sorted(images)]


def read_originals(path: Path) -> dict[str, str]:
    """Path of an image -> sha256 of the file as it was published; {} where that was not written down."""
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as stream:
        return {row["path"]: row["sha256"] for row in csv.DictReader(stream)}


def write_pool(path: Path, images: list[dict[str, str]]) -> None:
    """The same bytes for the same images: no time of writing is kept."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(images[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(images)
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def data_part(images: list[dict], pools: list[StagePool], settings: PretrainingConfig, origins: dict) -> str:
    """The card's part on training data: images of each set and stage, with origin and licence."""
    counts = Counter(image["set"] for image in images)
    stages = {name: Counter(i["set"] for i in images if name in i["stages"].split()) for name in _stage_names(settings)}
    lines = ["## What it has seen", ""]
    lines += [
        f"{len(images):,} images of {len(counts)} public sets, the train splits alone, without labels. **Do not test on them.** "
        "[pool.csv.gz](pool.csv.gz) has the first 16 digits of the sha256 and a perceptual hash of each. Val and test images were "
        "left out, and so was "
        "what equals or nearly equals one of them "
        f"({', '.join(f'{p.removed} images in stage {s.name}' for s, p in zip(settings.stages, pools, strict=True))}).",
        "",
        "| set | images | " + " | ".join(f"in {name}" for name in stages) + " | origin | licence |",
        "| --- " * (4 + len(stages)) + "|",
    ]
    for name, count in sorted(counts.items()):
        about = origins[name]
        title = ", ".join(part for part in (about["title"], about["reference"]) if part)
        linked = f"[{title}]({about['origin']})" if about["origin"] else title
        cells = [name, f"{count:,}", *(f"{c[name]:,}" for c in stages.values()), linked, about["licence"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _stage_names(settings: PretrainingConfig) -> list[str]:
    return [stage.name for stage in settings.stages]


# ---- what it is and what it cost ------------------------------------------------------------------------------------


def head(settings: PretrainingConfig, state: dict, weights: Path | None) -> str:
    """The card's beginning: what the encoder is, how it is loaded, its input, and the size and sha256 of `weights` if given."""
    about = state["encoder"]
    lines = [
        "# A ResNet18 for ultrasound" if about["name"] == "resnet18" else f"# A {about['name']} for ultrasound",
        "",
        "Pretrained without labels on open ultrasound images by this project. For research; **not for diagnosis**.",
        "",
        "```python",
        "import vfm4us",
        "",
        'encoder = vfm4us.load_encoder("open")  # weights are verified by their sha256',
        "features = encoder.embed(images)  # whatever you hold images in; normalised inside",
        "```",
        "",
    ]
    normalise = f"images in [0, 1], minus {about['mean'][0]}, divided by {about['std'][0]}, the same on every channel"
    lines.append(
        f"- Network: {about['name']}, {settings.method}. Input: {normalise}; grey images, longer side 128 to 224 px."
    )
    if weights:
        lines.append(
            f"- File: `{weights.name}`, {weights.stat().st_size / 1e6:.1f} MB, sha256 `{anchors.file_sha256(weights)}`."
        )
    return "\n".join(lines)


def budget_part(folder: Path, settings: PretrainingConfig, state: dict) -> str:
    """The card's part on how the run was made: stages, budget, code and device; says so where the run is not finished."""
    starts = json.loads((folder / "run.json").read_text())
    done = folder / "budget.json"
    lines = ["## How it was made", ""]
    plan = [
        f"{s.name}: {s.epochs} epochs of {s.epoch_images or 'all'} images at rate {s.learning_rate:g}"
        for s in settings.stages
    ]
    lines.append(f"- Stages: {'; '.join(plan)}; batches of {settings.batch_size}; seed {settings.seed}.")
    if done.is_file():
        spent = json.loads(done.read_text())
        told = (
            [f"{spent['images']:,} images, {spent['views']:,} patches"]
            if "views" in spent
            else [f"{spent['images']:,} images"]
        )
        told += [f"{spent['flops'] / 1e15:.2f} PFLOP"] if "flops" in spent else []
        told += [f"{spent['seconds'] / 3600:.1f} hours"] if "seconds" in spent else []
        lines.append(f"- Budget: {', '.join(told)}.")
    else:
        lines.append(
            f"- **The run is not finished**: this is stage {state['stage']}, epoch {state['epoch']}, step {state.get('step', 0)}."
        )
    first, last = starts[0], starts[-1]
    commits = sorted({s["commit"][:12] + (" with local changes" if s["dirty"] else "") for s in starts if s["commit"]})
    lines.append(f"- Code: commit {', '.join(commits) or 'not recorded'}; torch {last['torch']}; {last['device']}.")
    times = "once" if len(starts) == 1 else f"{len(starts)} times; the same command went on each time"
    lines.append(f"- Begun {first['started'][:10]}, started {times}.")
    changed = [line for line in changed_keys({}, settings) if not line.startswith(NOT_SHOWN)]
    if changed:
        lines += ["", "Settings that differ from the defaults:", "", "```", *sorted(changed), "```"]
    return "\n".join(lines)


# ---- what it is worth -----------------------------------------------------------------------------------------------


def probe_part(path: Path) -> str:
    """The card's part on what the encoder is worth: tables from results.csv of scripts/probe.py, and the gate on test splits.

    Raises FileNotFoundError without metrics.json beside it, ValueError for a file without rows, and for test figures
    from which no line of the gate can be decided.
    """
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        raise ValueError(f"{path} holds no rows: is it results.csv of scripts/probe.py?")
    table = {(r["row"], r["task"], r["probe"], r["measure"]): r for r in rows}
    names, tasks = (list(dict.fromkeys(r[key] for r in rows)) for key in ("row", "task"))
    ours = names[0]
    beside = path.parent / "metrics.json"
    if not beside.is_file():  # it says which split the figures are of, and so whether there is a gate
        raise FileNotFoundError(f"{beside} is not there: leave {path.name} in the folder that scripts/probe.py wrote")
    about = json.loads(beside.read_text())
    split = about.get("protocol", {}).get("split", "")
    how = f"Frozen features{f', {split}' if split else ''}; macro AUROC, 95 % interval over groups and seeds."
    parts = [f"## What it is worth\n\n{how}"]
    for probe, words in (("linear", "Linear probe"), ("knn", "k-NN")):
        lines = [f"**{words}**", "", "| | " + " | ".join(tasks) + " |", "| --- " * (len(tasks) + 1) + "|"]
        for name in names:
            cells = [_cell(table.get((name, task, probe, "auroc"))) for task in tasks]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    for name, reason in about.get("protocol", {}).get("absent", {}).items():
        parts.append(f"{name} could not be measured: {reason.rstrip('.')}.")
    if about.get("split") == "test":
        lines = gate(table, ours)
        if not lines:
            raise ValueError(
                f"{path}: no line of the gate can be decided; measure with --anchors, and give this encoder first"
            )
        parts.append(
            "**The gate**, set before the run:\n\n| line | measured | passed |\n| --- | --- | --- |\n"
            + "\n".join(lines)
        )
    return "\n\n".join(parts)


def gate(table: dict, ours: str) -> list[str]:
    """A table row for each line of the gate that the probe table can decide."""

    def value(row: str, task: str, probe: str = "linear", column: str = "mean") -> float | None:
        figure = table.get((row, task, probe, "auroc"))
        return float(figure[column]) if figure else None

    # with several settings in one table, a row's own stands behind its name: "random (224 px)"
    setting = match[0] if (match := re.search(r" \([^()]*\)$", ours)) else ""
    random, handmade, imagenet = (name + setting for name in (RANDOM, HANDMADE, IMAGENET))
    lines = []

    def line(words: str, left: float | None, right: float | None) -> None:
        if left is not None and right is not None:
            passed = "yes" if left > right else f"no, by {right - left:.3f}"
            lines.append(f"| {words} | {left:.3f} against {right:.3f} | {passed} |")

    def mean(row: str, tasks: tuple[str, ...], probe: str = "linear") -> float | None:
        figures = [value(row, task, probe) for task in tasks]
        return None if None in figures else sum(figures) / len(figures)

    for task in (*TEST_TASKS, *ACROSS):
        line(
            f"{task}: linear probe ahead of each of six random seeds",
            value(ours, task),
            value(random, task, column="seed_high"),
        )
        line(f"{task}: linear probe ahead of HOG + LBP + histogram", value(ours, task), value(handmade, task))
    line("mean of busi, liver, gallbladder: at least ImageNet's", mean(ours, THREE), mean(imagenet, THREE))
    line("mean across hospitals: at least ImageNet's", mean(ours, ACROSS), mean(imagenet, ACROSS))
    line(f"k-NN, mean of busi, liver, gallbladder: {KNN_AT_LEAST}", mean(ours, THREE, "knn"), KNN_AT_LEAST)
    return lines


def trained_part(path: Path) -> str:
    """The card's part on tasks trained from the encoder, minus random weights: from differences.csv of a table of methods.

    The gate: Dice with a frozen encoder, each interval above 0; AUROC after fine-tuning, ahead on the mean. What the table has not
    finished is said. Raises ValueError for a file that compares with something else.
    """
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    minus = next((key for key in (rows[0] if rows else {}) if key.startswith("minus ")), "")
    if not minus.startswith("minus random"):
        raise ValueError(f"{path}: no column `minus random`: is it differences.csv of configs/tables/release.yaml?")
    lines = []
    for task, metric, words in TRAINED:
        these = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
        if not these:
            lines.append(f"| {task}: {words} | not measured | - |")
        for row in these:
            mean, low, high = (float(row[key]) for key in (minus, "low", "high"))
            shown = f"{mean:+.3f} ({low:+.2f} to {high:+.2f})"
            decides = task == "segmentation" or row["setting"] == "mean of all"
            passed = ("yes" if (low if task == "segmentation" else mean) > 0 else "no") if decides else "-"
            lines.append(f"| {row['setting']}: {words} | {shown} | {passed} |")
    return (
        "**Trained with a tenth of the labels**, minus random weights, test images, 95 % interval over groups and seeds "
        "(`configs/tables/release.yaml`):\n\n| line | difference | passed |\n| --- | --- | --- |\n" + "\n".join(lines)
    )


def _cell(row: dict | None) -> str:
    if row is None:
        return "-"
    text = f"{float(row['mean']):.3f} ({float(row['low']):.2f} to {float(row['high']):.2f})"
    if int(row["seeds"]) > 1:
        text += f" [{float(row['seed_low']):.3f}, {float(row['seed_high']):.3f}]"
    return text


LIMITS = """## What it is for, and what not

For research: search, sorting and near-duplicates (`scripts/embed.py`), frozen probes, a start for fine-tuning with few labels.

- **Not for diagnosis** and not for any clinical use. It is no medical device and was tested as none.
- It has seen small 8-bit grey copies of the sets above and nothing else. Organs and views that are not among them, colour
  Doppler and raw data are new to it.
- Its features know the scanner, the institution and what is burnt into an image. A difference between two groups of images
  may be one of those.
- Public sets repeat patients and pictures. Look up your test images in pool.csv.gz before you believe a figure.
- Ages, sexes and origins of the patients are not known for most sets, so nothing can be said about fairness.
- The sets keep their licences (table above); who needs certainty about the weights should read them."""


if __name__ == "__main__":
    sys.exit(exit_code(main))
