"""Is pretraining worth it, and coarse-to-fine more than either stage alone? Held-out figures at equal patches seen.

    python scripts/compare_initialisations.py --config configs/pretraining/open_sets.yaml data.root=DIR
        [--arms random coarse fine coarse-to-fine ...] [--tasks busi liver gallbladder] [--seeds 0 1 2] [--folds 3]
        [--out logs/comparison] [section.key=value ...]

For each seed: random, coarse only, fine only and coarse-to-fine, from one config with two stages. Coarse only and fine only
get the epochs of both stages, so every pretrained arm sees the same number of patches; `coarse-to-fine-adversary` and
`coarse-to-fine-masking` add what their names say. Each is probed (k-NN and linear probe on the labels of train) on images that
neither it nor its probe has seen: whole images, central squares (which hide the shape of the file) and bags of patches.

Held out are each task's test split and, by cross-fitting, a fold of its train and val images: seed s holds back fold
s modulo --folds, so that over the seeds every image is tested, by encoders that never saw it. --folds 0 leaves that out: then
test alone. Runs continue where they were stopped. Writes results.csv, metrics.json, table.md and comparison.png, with 95 %
intervals over seeds and groups (patients, duplicate clusters); differences are paired in seeds and images. To choose settings
use scripts/probe.py, which leaves test alone.
"""

import argparse
import copy
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

import vfm4us
from vfm4us import config, markdown, plots
from vfm4us.data.csv_files import write_rows
from vfm4us.data.dataset import PreparedDataset
from vfm4us.data.prepare import open_or_prepare
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.evaluation import representation, statistics
from vfm4us.evaluation.classification import weighted_balanced_accuracy
from vfm4us.pretraining.settings import PretrainingConfig, check_comparable, single_stage
from vfm4us.pretraining.trainer import pretrain
from vfm4us.runtime.device import choose_device, device_name
from vfm4us.runtime.signals import exit_code

ARMS = ("random", "coarse", "fine", "coarse-to-fine")
VARIANTS = {  # of coarse-to-fine, off by default
    "coarse-to-fine-adversary": ("adversary", "weight", 0.5),
    "coarse-to-fine-masking": ("masking", "strategy", "random"),
}
EMBEDDINGS = {"whole": 0, "square": 0, "patches": 4}  # patches per image; 0 is the image at once
NAMES = ("mean", "low", "high")


def arm_config(
    base: PretrainingConfig, arm: str, seed: int, folds: int, tasks: list[str], out: Path
) -> PretrainingConfig:
    """The config of one arm and seed: the base's stages, or one of them for as long as both."""
    result = single_stage(base, ("coarse", "fine").index(arm)) if arm in ("coarse", "fine") else copy.deepcopy(base)
    result.name, result.seed, result.logs = f"{arm}-{seed}", seed, str(out)
    for source in (source for stage in result.stages for source in stage.data if source.path in tasks and folds):
        source.folds, source.fold = folds, seed % folds
    if arm in VARIANTS:
        name, key, value = VARIANTS[arm]
        setattr(getattr(result, name), key, value)
    return result


def make_encoder(arm: str, seed: int, settings: PretrainingConfig) -> Encoder:
    """The encoder of one arm and seed, pretrained (or its pretraining continued) where the arm asks for it."""
    if arm != "random":
        return vfm4us.load_encoder(pretrain(settings), settings.encoder.in_channels)
    torch.manual_seed(seed)
    return Encoder(EncoderSpec(settings.encoder.name, settings.encoder.in_channels))


def probe_arm(encoder: Encoder, tasks: dict[str, PreparedDataset], precision: str) -> dict[str, np.ndarray]:
    """`<task>/rows` -> places of the held-out images (M,); `<task>/<embedding>/<probe>` -> whether each is right (M,)."""
    result, encoder = {}, encoder.to(choose_device("auto"))
    for task, dataset in tasks.items():
        squares = representation.CentralSquares(dataset)
        shapeless = all(height == width for _, _, height, width in dataset.valid)
        for embedding, patches in EMBEDDINGS.items():
            if embedding == "square" and shapeless:  # the same pixels once more
                result |= {f"{task}/square/{m}": result[f"{task}/whole/{m}"] for m in representation.METHODS}
                continue
            seen = squares if embedding == "square" else dataset
            found = representation.probe(encoder, seen, ("val", "test"), patches, precision=precision)
            result[f"{task}/rows"] = found.rows
            result |= {f"{task}/{embedding}/{m}": p == found.labels for m, p in found.predicted.items()}
    return result


def fingerprint(settings: PretrainingConfig, tasks: dict[str, PreparedDataset]) -> str:
    """Of all that a probe's answer depends on, so that a kept answer is never taken for another question's."""
    about = config.to_dict(settings) | dict.fromkeys(("logs", "device", "num_workers", "compile", "log_every"))
    data = {t: [*zip(d.ids, d.sha256, d.splits.tolist(), d.labels, strict=True)] for t, d in tasks.items()}
    return hashlib.sha256(json.dumps([about, data, EMBEDDINGS], default=str).encode()).hexdigest()


def main() -> None:
    """Read the command line and compare the arms; raises ValueError for arms, tasks or folds that cannot be compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=[*ARMS, *VARIANTS])
    parser.add_argument("--tasks", nargs="+", default=["busi", "liver", "gallbladder"], help="datasets under data.root")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folds", type=int, default=3, help="of cross-fitting; 0: the test splits alone (default 3)")
    parser.add_argument("--out", type=Path, default=Path("logs/comparison"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    # several flags take lists: keys with "=" may stand anywhere
    values = sys.argv[1:]
    arguments = parser.parse_args([v for v in values if "=" not in v or v.startswith("--")])
    overrides = [v for v in values if "=" in v and not v.startswith("--")]
    compare(arguments, config.load(PretrainingConfig, arguments.config, overrides))


def check(arguments, base: PretrainingConfig) -> None:
    """ValueError for a comparison that would not be one."""
    check_comparable(base, arguments.config)
    folds, missing = (
        arguments.folds,
        set(range(arguments.folds)) - {s % max(1, arguments.folds) for s in arguments.seeds},
    )
    if folds < 0 or folds == 1 or missing:
        raise ValueError(
            f"--folds {folds} with --seeds {arguments.seeds}: seed s holds back fold s modulo --folds, and every fold needs a "
            "seed; give such seeds, or --folds 0 for the test splits alone"
        )


def compare(arguments, base: PretrainingConfig) -> None:
    """Pretrain every arm for every seed, probe it on the tasks, and write and print the comparison.

    Answers of an arm are kept in --out and used again. Raises ValueError for a task without test images and for kept answers
    of another config or other data.
    """
    check(arguments, base)
    out, root, splits = arguments.out, Path(base.data.root), tuple(base.data.splits)
    published = {t: open_or_prepare(root / t, Path(base.data.cache), base.data.size, splits) for t in arguments.tasks}
    for name, dataset in published.items():
        if not len(dataset.indices("test")):
            raise ValueError(f"task {name} has no test images: give it a split column, or change data.splits")
    sources = {source.path for stage in base.stages for source in stage.data}
    base.data.protect = base.data.protect + [t for t in arguments.tasks if t not in sources]
    answers: dict[str, list[dict]] = {arm: [] for arm in arguments.arms}
    for seed in arguments.seeds:
        tasks = published
        if arguments.folds:
            tasks = {t: d.hold_back(arguments.folds, seed % arguments.folds) for t, d in published.items()}
        for arm in arguments.arms:
            settings = arm_config(base, arm, seed, arguments.folds, arguments.tasks, out)
            where, mark = out / f"probe-{settings.name}.npz", fingerprint(settings, tasks)
            kept = dict(np.load(where)) if where.is_file() else {}
            if kept and str(kept.pop("fingerprint")) != mark:
                raise ValueError(f"{where} answers for another config or other data: choose another --out")
            if not kept:
                print(f"\n=== {arm}, seed {seed}", flush=True)
                kept = probe_arm(make_encoder(arm, seed, settings), tasks, base.precision)
                out.mkdir(parents=True, exist_ok=True)
                part = out / f".{settings.name}.npz"
                np.savez(part, fingerprint=mark, **kept)
                part.replace(where)
            answers[arm].append(kept)
    report(answers, published, arguments, base)


def differences(arms: list[str]) -> list[tuple[str, str]]:
    """Which arms are compared: everything with random, coarse-to-fine with each stage, the variants with coarse-to-fine."""
    pairs = [(arm, "random") for arm in arms if arm in ARMS[1:]]
    pairs += [("coarse-to-fine", "coarse"), ("coarse-to-fine", "fine"), *((v, "coarse-to-fine") for v in VARIANTS)]
    return [(a, b) for a, b in pairs if a in arms and b in arms]


def report(
    answers: dict[str, list[dict]], tasks: dict[str, PreparedDataset], arguments, base: PretrainingConfig
) -> None:
    """results.csv, metrics.json, table.md and comparison.png of all arms and seeds."""
    out, arms = arguments.out, arguments.arms
    kinds = [f"{e}/{m}" for e in EMBEDDINGS for m in representation.METHODS]
    scopes = {"test": ("test",)} | ({"cross-fitted": ("train", "val", "test")} if arguments.folds else {})
    metrics, sizes, score = {}, {}, weighted_balanced_accuracy
    for scope, splits in scopes.items():
        per_seed, resamples = {}, {}
        drawn: dict[tuple, int] = {}  # the images of a task -> the seed of its resamples: other images, other chance
        for task, dataset in tasks.items():
            rows = representation.rows_of(dataset, splits)
            chance = drawn.setdefault(tuple(dataset.sha256[i] for i in rows), len(drawn))
            counts = statistics.bootstrap_counts(dataset.groups[rows], seed=chance)
            labels = np.asarray(dataset.labels)[rows]
            sizes[scope, task] = len(rows)
            for arm in arms:
                place = [np.flatnonzero(np.isin(a[f"{task}/rows"], rows)) for a in answers[arm]]
                for kind in kinds:
                    right = np.full((len(place), len(rows)), np.nan)  # of each seed, where it held the image back
                    for i, (answer, p) in enumerate(zip(answers[arm], place, strict=True)):
                        right[i, np.searchsorted(rows, answer[f"{task}/rows"][p])] = answer[f"{task}/{kind}"][p]
                    seen = ~np.isnan(right)
                    per_seed[task, kind, arm] = np.array(
                        [score(labels[s], r[s], np.ones((1, s.sum())))[0] for r, s in zip(right, seen, strict=True)]
                    )
                    resamples[task, kind, arm] = score(labels, np.nanmean(right, axis=0), counts)
                    limits = statistics.interval(per_seed[task, kind, arm], resamples[task, kind, arm])
                    name = f"{scope}/{task}/{kind}/{arm}"
                    metrics[name] = dict(zip(NAMES, limits, strict=True)) | {
                        "per_seed": per_seed[task, kind, arm].tolist()
                    }
        for a, b in differences(arms):
            for kind in kinds:
                for group, chosen in ({"mean of all": list(tasks)} | {t: [t] for t in tasks}).items():
                    apart, moved = (
                        np.mean([of[t, kind, a] - of[t, kind, b] for t in chosen], axis=0)
                        for of in (per_seed, resamples)
                    )
                    metrics[f"{scope}/{group}/{kind}/{a} - {b}"] = {
                        **dict(zip(NAMES, statistics.interval(apart, moved), strict=True)),
                        "p": statistics.p_value(apart, moved),
                        "equivalence": statistics.equivalence(apart, moved),
                        "per_seed": apart.tolist(),
                    }
    shape = {t: representation.shape_baseline(d) for t, d in tasks.items()}
    metrics |= {f"test/{t}/size and shape alone": {"mean": v} for t, v in shape.items()}
    text = "\n\n".join(tables_of(metrics, scope, kinds, arms, {t: sizes[scope, t] for t in tasks}) for scope in scopes)
    text += (
        "\n\nSize and shape of the image file alone, test: " + ", ".join(f"{t} {v:.3f}" for t, v in shape.items()) + "."
    )
    protocol = {
        "split_unit": "group (patient or near-duplicate cluster)",
        "selection": "none: the last epoch of every run",
        "input_size": base.data.size,
        "initialisation": arms,
        "embedding": EMBEDDINGS,
        "folds": arguments.folds,
        "probe": "k-NN k = 20, T = 0.07; logistic regression, C = 0.01, balanced; trained on the train split",
        "scope": {
            "test": "published test split",
            "cross-fitted": "each image by encoders and probes that held back its fold",
        },
        "budget": "every arm the same number of patches; one stage alone runs as long as both, with one cosine",
        "interval": "95 %, Student's t over seeds plus bootstrap over groups",
        "device": device_name(),
    }
    result = {
        "task": "representation",
        "dataset": list(tasks),
        "split": list(scopes),
        "protocol": protocol,
        "seeds": arguments.seeds,
        "metrics": metrics,
    }
    (out / "metrics.json").write_text(json.dumps(result, indent=1, default=float))
    (out / "table.md").write_text(text + "\n")
    rows = [[k, m["mean"], m.get("low"), m.get("high"), *m.get("per_seed", [])] for k, m in metrics.items()]
    write_rows(out / "results.csv", ["figure", *NAMES, *(f"seed {s}" for s in arguments.seeds)], rows)
    scope = list(scopes)[-1]
    shown = [f"{t}/{k}" for t in tasks for k in kinds if "patches" not in k]
    series = {arm: [tuple(metrics[f"{scope}/{k}/{arm}"][m] for m in NAMES) for k in shown] for arm in arms}
    title = f"balanced accuracy on held-out images ({scope}), {len(arguments.seeds)} seeds, 95 % interval"
    plots.intervals(out / "comparison.png", [k.replace("/", ", ") for k in shown], series, title)
    print(f"\nbalanced accuracy, {len(arguments.seeds)} seeds, {device_name()}\n\n{text}\n\nwritten to {out}")


def tables_of(metrics: dict, scope: str, kinds: list[str], arms: list[str], sizes: dict[str, int]) -> str:
    """Two tables of one scope: each arm on each task, and the paired differences with what they could have seen."""
    heads = [f"{scope}: task (images)", "embedding, probe", *arms]
    rows = [
        [f"{task} ({sizes[task]})", kind.replace("/", ", ")]
        + [markdown.cell(metrics[f"{scope}/{task}/{kind}/{arm}"]) for arm in arms]
        for task in sizes
        for kind in kinds
    ]
    names = [(a, b, group) for a, b in differences(arms) for group in ("mean of all", *sizes)]
    apart = [[metrics[f"{scope}/{group}/{kind}/{a} - {b}"] for kind in kinds] for a, b, group in names]
    further = [
        [f"{a} - {b}", group, *map(markdown.difference, figures)]
        for (a, b, group), figures in zip(names, apart, strict=True)
    ]
    parts = [markdown.table(heads, rows)]
    if further:
        parts.append(
            markdown.table([f"{scope}: difference", "tasks", *(kind.replace("/", ", ") for kind in kinds)], further)
        )
        parts.append(statistics.power_line(f for of in apart for f in of))
        parts.append(contrasts(metrics, scope, arms))
    return "\n\n".join(parts)


def contrasts(metrics: dict, scope: str, arms: list[str]) -> str:
    """The linear probe of whole images, mean of all tasks: each difference with a corrected p, and whether it is none."""
    pairs = differences(arms)
    found = [metrics[f"{scope}/mean of all/whole/linear/{a} - {b}"] for a, b in pairs]
    heads = [f"{scope}: whole, linear", "mean of all", "p, Holm", "90 % interval", "within +- 0.015"]
    corrected = statistics.holm([f["p"] for f in found])
    rows = [
        [f"{a} - {b}", markdown.difference(f), f"{p:.3f}"]
        + [f"{f['equivalence']['low']:+.3f} to {f['equivalence']['high']:+.3f}"]
        + ["yes" if f["equivalence"]["equivalent"] else "not shown"]
        for (a, b), f, p in zip(pairs, found, corrected, strict=True)
    ]
    return markdown.table(heads, rows)


if __name__ == "__main__":
    sys.exit(exit_code(main))
