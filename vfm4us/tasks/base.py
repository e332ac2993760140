"""What the downstream tasks share: their data, few labels, a run per seed, figures with intervals, metrics.json, tables.

    folders = run_each_seed(config, run_seed)      # logs/<name>/seed-<n>; a finished seed is not run again
    result = figures(score, [read_outcome(folder) for folder in folders])
    write_summary(folders, config.seeds, result)

An outcome (see evaluation/statistics.py) is what one seed's model did on the test images; it is kept in test.npz.
"""

import copy
import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vfm4us.config import option, section
from vfm4us.data import splits as splitting
from vfm4us.data.dataset import PreparedDataset
from vfm4us.data.prepare import open_or_prepare
from vfm4us.data.reading import frames_of
from vfm4us.data.records import Record
from vfm4us.data.sources import find_source
from vfm4us.evaluation.statistics import INTERVAL, Outcome
from vfm4us.runtime.device import device_name
from vfm4us.runtime.files import write_text
from vfm4us.runtime.rng import numpy_stream
from vfm4us.runtime.run import refuse_changed
from vfm4us.tasks.finetune import EncoderConfig, refuse_missing_weights


@dataclass
class DataConfig:
    path: str = option("", "folder of images as the task wants them, CSV manifest, published or prepared dataset")
    size: int = option(224, "longer side to which images are packed, px", low=32, high=4096)
    splits: list[float] = option([0.7, 0.1, 0.2], "shares of train, val and test where the data have none")
    cache: str = option("data", "folder for what is packed from plain folders", free=True)
    frames: str = option(
        "", "of clips: first, all, every N, per second, N per second; empty: as a reading.yaml says, else per second"
    )
    labels: float = option(
        1.0, "share of the labelled training images that is used, of each class, at least one", low=0.0, high=1.0
    )
    pretraining: list[str] = option(
        [], "datasets the encoder was pretrained on: duplicates of test images are reported"
    )
    hint: str = option("", "where to get the data, for the error if they are missing", free=True)


@dataclass
class TaskConfig:
    name: str = option("task", "the runs lie in logs/<name>/seed-<n>")
    logs: str = option("logs", "folder for runs", free=True)
    seeds: list[int] = option(
        [0, 1, 2], "one run each; a finished one is not run again", free=True, low=0, high=2**32 - 1
    )
    seed: int = option(0, "of one run; set from seeds", free=True, low=0, high=2**32 - 1)
    resume: bool = option(True, "false: move an earlier run of this name aside", free=True)
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>", free=True)
    precision: str = option(
        "auto",
        "of the network in training: auto is bfloat16 on a GPU, float32 on a CPU",
        choices=["auto", "float32", "bfloat16"],
    )
    pictures: bool = option(True, "false: figures alone, for tables of hundreds of runs", free=True)
    keep_model: bool = option(True, "false: without the trained model of each seed, 50 to 100 MB", free=True)
    data: DataConfig = section(DataConfig, "what is trained and tested on")
    encoder: EncoderConfig = section(EncoderConfig, "where it starts from")


# ---- data -----------------------------------------------------------------------------------------------------------


def open_dataset(config: DataConfig, wanted: str) -> PreparedDataset:
    """The dataset of a task, packed if need be. `wanted` says in the error what may be given."""
    path = Path(config.path)
    if not config.path or not path.exists():
        raise FileNotFoundError(
            f"data.path: {config.path!r} does not exist (looked from {Path.cwd()}); give {wanted} with data.path=DIR"
            + (f"\n{config.hint}" if config.hint else "")
        )
    reading = frames_of(config.frames)
    return open_or_prepare(path, Path(config.cache), config.size, tuple(config.splits), reading=reading)


def source_records(data: Path, split: str = "all") -> list[Record]:
    """What an evaluation is asked to look at: the images of a folder, manifest or published dataset, or of one `split` of it."""
    records = [r for r in find_source(data) if r.split != "exclude" and split in ("all", r.split)]
    if not records and split != "all":
        raise ValueError(f"{data} has no images in split {split}: use --split all")
    return records


def file_name(name: str, taken: set[str]) -> str:
    """A relative path that stays below its folder, from an id that may hold `..` or begin with `/`; each is given once."""
    clean = "/".join(part for part in name.split("/") if part not in ("", ".", "..")) or "image"
    unique, number = clean, 2
    while unique.lower() in taken:
        unique, number = f"{clean}#{number}", number + 1
    taken.add(unique.lower())
    return unique


def refuse_output_within(root: Path, out: Path) -> None:
    """ValueError where the folder `out` of an evaluation lies in its data, whose next reading would find what is written."""
    if root.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(
            f"--out {out} lies in the data {root}, where the next reading would find it: give another folder"
        )


def few_labels(rows: np.ndarray, codes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A seeded share of the training rows, of each class, at least one image of each; codes (all images,) name the class."""
    if share >= 1:
        return rows
    rng, kept = numpy_stream("share of labels", seed), []
    for code in np.unique(codes[rows]):
        own = rows[codes[rows] == code]
        kept.append(rng.permutation(own)[: max(1, round(share * len(own)))])
    return np.sort(np.concatenate(kept)) if kept else rows


def report_duplicates(dataset: PreparedDataset, config: DataConfig, folder: Path) -> str:
    """Write duplicates.csv: clusters within the dataset, and test images that occur in what was pretrained on."""
    rows = []
    used = np.flatnonzero(dataset.splits != "exclude")
    # the perceptual clusters themselves, whatever groups the source came with
    clusters = splitting.duplicate_clusters(
        [dataset.sha256[i] for i in used],
        dataset.phash[used],
        thumbnail_of=lambda i: dataset.thumbnail_of(int(used[i])),
    )
    names, counts = np.unique(clusters, return_counts=True)
    several, divided = names[counts > 1], 0
    for name in several:
        members = used[clusters == name]
        divided += len(set(dataset.splits[members])) > 1
        rows += [["cluster", name, dataset.records[i].path, dataset.splits[i], ""] for i in members]
    test, seen = dataset.indices("test"), set()
    for path in config.pretraining:
        if not Path(path).exists():
            raise FileNotFoundError(f"data.pretraining: {path!r} does not exist (looked from {Path.cwd()})")
        other = open_or_prepare(Path(path), Path(config.cache), dataset.size)
        for leak in splitting.leakage(other.fingerprints(other.indices("train")), dataset.fingerprints(test)):
            row = int(test[leak.protected_index])
            seen.add(row)
            rows.append(["pretraining", other.name, dataset.records[row].path, "test", leak.kind])
    with open(folder / "duplicates.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["kind", "cluster_or_dataset", "path", "split", "how"])
        writer.writerows(rows)
    images = int(counts[counts > 1].sum())
    text = f"{len(several)} clusters of near-duplicates with {images} images; {divided} of them lie in two splits"
    return text + (f"; {len(seen)} test images occur in the pretraining data" if config.pretraining else "")


# ---- a run per seed -------------------------------------------------------------------------------------------------


def run_each_seed(config: TaskConfig, run_seed: Callable[[TaskConfig, Path], None], say=print) -> list[Path]:
    """The folder of each of `config.seeds`; run_seed(config, folder) trains the missing ones and writes metrics.json last.

    A finished seed costs nothing: no data, no encoder. It is refused where its config was another.
    """
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        what = "is empty" if not config.seeds else f"names a seed twice: {config.seeds}"
        raise ValueError(f"seeds {what}; give at least one, e.g. seeds=[0,1,2]")
    folders = []
    for seed in config.seeds:
        if not (config.resume and (Path(config.logs) / config.name / f"seed-{seed}" / "metrics.json").is_file()):
            refuse_missing_weights(config.encoder, seed)
    for seed in config.seeds:
        one = copy.deepcopy(config)
        one.seed = seed
        folder = Path(config.logs) / config.name / f"seed-{seed}"
        if config.resume and (folder / "metrics.json").is_file():
            refuse_changed(folder, one)
            say(f"{folder} is finished")
        else:
            run_seed(one, folder)
            for model in () if config.keep_model else folder.glob("*.pt"):
                model.unlink()
        # optimizer and all: only a stopped run needs it
        (folder / "checkpoints" / "last.pt").unlink(missing_ok=True)
        folders.append(folder)
    return folders


def write_outcome(folder: Path, outcome: Outcome) -> None:
    np.savez(folder / "test.npz", **outcome)


def read_outcome(folder: Path) -> Outcome:
    """What a finished seed's model did on the test images."""
    path = folder / "test.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: is {folder} the folder of one seed of a finished run?")
    with np.load(path) as found:
        return dict(found)


# ---- what is written ------------------------------------------------------------------------------------------------


def write_metrics(
    folder: Path, task: str, config: TaskConfig, dataset: PreparedDataset, result: dict, **protocol
) -> None:
    """metrics.json of one seed: the figures with the protocol they were measured by, to which the task adds its own lines."""
    common = {
        "split_unit": "group (patient or near-duplicate cluster)",
        "input_size": dataset.size,
        "initialisation": config.encoder.weights,
        "labels": config.data.labels,
        "interval": INTERVAL,
        "device": device_name(),
    }
    whole = {
        "task": task,
        "dataset": config.data.path,
        "split": "test",
        "protocol": common | protocol,
        "seeds": [config.seed],
        "metrics": result,
    }
    write_text(folder / "metrics.json", json.dumps(whole, indent=1))


def write_summary(folders: list[Path], seeds: list[int], result: dict) -> None:
    """metrics.json and table.md of all seeds beside their folders, by the protocol of the first."""
    whole = read_metrics(folders[0]) | {"seeds": list(seeds), "metrics": result}
    out = folders[0].parent
    write_text(out / "table.md", table(result, len(seeds)) + "\n")
    write_text(out / "metrics.json", json.dumps(whole, indent=1))


def read_metrics(folder: Path) -> dict:
    path = folder / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: is {folder} the folder of a finished run?")
    return json.loads(path.read_text())


def table(result: dict[str, dict], seeds: int) -> str:
    """A Markdown table of the figures; a figure for each of more than a dozen classes stays in metrics.json."""
    kinds = Counter(name.split(" ")[0] for name in result)
    lines = [f"| figure | mean of {seeds} seed{'s'[: seeds > 1]} | 95 % interval | each |", "| --- " * 4 + "|"]
    for name, m in result.items():
        if "mean" in m and kinds[name.split(" ")[0]] <= 12:
            limits = f"{m['low']:.3f} to {m['high']:.3f}" if "low" in m else ""
            each = ", ".join(f"{v:.3f}" for v in m.get("per_seed", []))
            lines.append(f"| {name} | {m['mean']:.3f} | {limits} | {each} |")
    return "\n".join(lines)


def cell(figure: dict | None, sign: str = "") -> str:
    """`0.712 (0.65 to 0.78)`, with `sign` "+" for a difference; a dash where there is no such figure."""
    if figure is None:
        return "-"
    limits = f" ({figure['low']:{sign}.2f} to {figure['high']:{sign}.2f})" if "low" in figure else ""
    return f"{figure['mean']:{sign}.3f}{limits}"
