"""Is pretraining worth it, and coarse-to-fine more than either stage alone? Held-out figures at equal patches seen.

    python scripts/compare_initialisations.py --config configs/pretraining/open_sets.yaml data.root=DIR
        [--tasks busi liver gallbladder] [--seeds 0 1 2] [--out logs/comparison] [section.key=value ...]

For each seed: random, random with fitted batch-norm statistics (random-bn), coarse only, fine only and coarse-to-fine, from
one config with two stages. Coarse only and fine only get the epochs of both stages, so every pretrained arm sees the same
number of patches. Each is probed on every task's test split (k-NN and linear probe on the train split's labels), whole images
and bags of patches. Runs continue where they were stopped. Writes results.csv, metrics.json, table.md and comparison.png,
with 95 % intervals over seeds and test groups (patients, duplicate clusters); differences are paired in the images. To choose
settings use scripts/probe.py, which leaves test alone.
"""

import argparse
import copy
import csv
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

import vfm4us
from vfm4us import config, plots, probing, run
from vfm4us.data.store import open_or_prepare
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.pretraining.stages import PretrainingConfig, pretrain

ARMS = ("random", "random-bn", "coarse", "fine", "coarse-to-fine")
DIFFERENCES = (
    ("coarse", "random"), ("fine", "random"), ("coarse-to-fine", "random"), ("coarse-to-fine", "random-bn"),
    ("coarse-to-fine", "coarse"), ("coarse-to-fine", "fine"),
)  # fmt: skip
EMBEDDINGS = {"whole": 0, "patches": 4}  # patches per image; 0 is the whole image


def arm_config(base: PretrainingConfig, arm: str, seed: int, out: Path) -> PretrainingConfig:
    """The config of one arm and seed: the base's stages, or one of them for as long as both."""
    result = copy.deepcopy(base)
    result.name, result.seed, result.logs = f"{arm}-{seed}", seed, str(out)
    if arm in ("coarse", "fine"):
        coarse, fine = result.stages
        stage = coarse if arm == "coarse" else fine
        if (coarse.epoch_images or -1) != (fine.epoch_images or -2):
            raise ValueError(
                "stages.0.epoch_images and stages.1.epoch_images must be the same number above 0, "
                "so that the arms see equally many patches"
            )
        # a single stage always starts from random weights: at the full rate, with nothing to replay
        stage.epochs, stage.replay, stage.learning_rate = coarse.epochs + fine.epochs, 0.0, coarse.learning_rate
        stage.warmup = coarse.warmup
        result.stages = [stage]
    return result


def probe_arm(encoder: Encoder, tasks: dict, split: str) -> dict[str, np.ndarray]:
    """`<task>/<embedding>/<probe>` -> correct (M,) bool."""
    result = {}
    for task, dataset in tasks.items():
        for embedding, patches in EMBEDDINGS.items():
            found = probing.probe(encoder, dataset, split, patches)
            result |= {f"{task}/{embedding}/{m}": p == found.labels for m, p in found.predicted.items()}
    return result


def make_encoder(arm: str, seed: int, settings: PretrainingConfig, tasks: dict) -> Encoder:
    """The encoder of one arm and seed, pretrained (or its pretraining continued) where the arm asks for it."""
    if not arm.startswith("random"):
        return vfm4us.load_encoder(pretrain(settings), settings.encoder.in_channels)
    torch.manual_seed(seed)
    encoder = Encoder(EncoderSpec(settings.encoder.name, settings.encoder.in_channels))
    return encoder if arm == "random" else probing.fit_batch_norm(encoder, next(iter(tasks.values())))


def fingerprint(settings: PretrainingConfig, tasks: dict, split: str) -> str:
    """Of all that a probe's answer depends on, so that a kept answer is never taken for another question's."""
    about = config.to_dict(settings) | dict.fromkeys(("logs", "device", "num_workers", "compile", "log_every"))
    data = {t: [(r.id, r.sha256, r.split, r.label) for r in d.records] for t, d in tasks.items()}
    return hashlib.sha256(json.dumps([about, data, split, EMBEDDINGS], default=str).encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["busi", "liver", "gallbladder"], help="datasets under data.root")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--random-seeds", nargs="*", type=int, default=[], help="further seeds of the untrained network, which "
                        "varies most and costs least")  # fmt: skip
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--out", type=Path, default=Path("logs/comparison"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    # several flags take lists: keys with "=" may stand anywhere
    values = sys.argv[1:]
    arguments = parser.parse_args([v for v in values if "=" not in v or v.startswith("--")])
    overrides = [v for v in values if "=" in v and not v.startswith("--")]
    compare(arguments, config.load(PretrainingConfig, arguments.config, overrides))


def compare(arguments, base: PretrainingConfig) -> None:
    if len(base.stages) != 2:
        raise ValueError(
            f"{arguments.config}: a comparison needs two stages, coarse and fine, found {len(base.stages)}"
        )
    out, root, splits = arguments.out, Path(base.data.root), tuple(base.data.splits)
    tasks = {t: open_or_prepare(root / t, Path(base.data.cache), base.data.size, splits) for t in arguments.tasks}
    for name, dataset in tasks.items():
        if not len(dataset.indices(arguments.split)):
            raise ValueError(
                f"task {name} has no {arguments.split} images: give it a split column, or change data.splits"
            )
    sources = {source.path for stage in base.stages for source in stage.data}
    base.data.protect = base.data.protect + [t for t in arguments.tasks if t not in sources]
    correct: dict[str, list[dict]] = {arm: [] for arm in ARMS}
    wanted = [(seed, arm) for seed in arguments.seeds for arm in ARMS]
    for seed, arm in wanted + [(seed, "random") for seed in arguments.random_seeds if seed not in arguments.seeds]:
        settings = arm_config(base, arm, seed, out)
        where, mark = (
            out / f"probe-{arguments.split}-{settings.name}.npz",
            fingerprint(settings, tasks, arguments.split),
        )
        kept = dict(np.load(where)) if where.is_file() else {}
        if kept and str(kept.pop("fingerprint")) != mark:
            raise ValueError(f"{where} answers for another config or other data: choose another --out")
        if not kept:
            print(f"\n=== {arm}, seed {seed}", flush=True)
            kept = probe_arm(make_encoder(arm, seed, settings, tasks), tasks, arguments.split)
            out.mkdir(parents=True, exist_ok=True)
            np.savez(out / ".part.npz", fingerprint=mark, **kept)
            (out / ".part.npz").replace(where)
        correct[arm].append(kept)
    report(correct, tasks, arguments, base)


def report(correct: dict[str, list[dict]], tasks: dict, arguments, base: PretrainingConfig) -> None:
    """results.csv, metrics.json, table.md and comparison.png of all arms and seeds."""
    out, split, count = arguments.out, arguments.split, len(arguments.seeds)
    rows = {t: d.indices(split) for t, d in tasks.items()}
    labels = {t: np.asarray(d.labels)[rows[t]] for t, d in tasks.items()}
    counts = {t: probing.bootstrap_counts(np.asarray(d.groups)[rows[t]]) for t, d in tasks.items()}
    keys = [f"{t}/{e}/{m}" for t in tasks for e in EMBEDDINGS for m in probing.METHODS]
    per_seed, resamples = {}, {}
    for key in keys:
        task = key.split("/")[0]
        once = np.ones((1, len(labels[task])))
        for arm in ARMS:
            right = np.stack([c[key].astype(float) for c in correct[arm]])
            score = probing.weighted_balanced_accuracy
            per_seed[arm, key] = np.array([score(labels[task], r, once)[0] for r in right])
            resamples[arm, key] = score(labels[task], right.mean(0), counts[task])

    metrics, names = {}, ("mean", "low", "high")
    for arm, key in per_seed:
        limits = probing.interval(per_seed[arm, key], resamples[arm, key])
        metrics[f"{key}/{arm}"] = dict(zip(names, limits, strict=True)) | {"per_seed": list(per_seed[arm, key])}
    kinds = [f"{e}/{m}" for e in EMBEDDINGS for m in probing.METHODS]
    for a, b in DIFFERENCES:
        for kind in kinds:  # the same resampled images on both sides; seeds are each arm's own
            for scope, chosen in ({"": list(tasks)} | {f"{t}/": [t] for t in tasks}).items():
                mine, theirs = (np.mean([per_seed[x, f"{t}/{kind}"] for t in chosen], axis=0) for x in (a, b))
                apart = np.mean([resamples[a, f"{t}/{kind}"] - resamples[b, f"{t}/{kind}"] for t in chosen], axis=0)
                limits = probing.interval(mine, apart, theirs)
                found = dict(zip(names, limits, strict=True))
                metrics[f"{scope}{kind}/{a} - {b}"] = found
    shape = {t: probing.shape_baseline(d, split) for t, d in tasks.items()}
    metrics |= {f"{t}/size and shape alone": {"mean": v} for t, v in shape.items()}

    table = markdown(metrics, keys, kinds, {t: len(r) for t, r in rows.items()}, shape)
    protocol = {
        "split_unit": "group (patient or near-duplicate cluster)", "selection": "none: the last epoch of every run",
        "input_size": base.data.size, "initialisation": list(ARMS), "embedding": EMBEDDINGS,
        "probe": "k-NN k = 20, T = 0.07; logistic regression, C = 0.01, balanced; trained on the train split",
        "budget": "every arm the same number of patches; one stage alone runs as long as both, with one cosine",
        "interval": "95 %, Student's t over seeds plus bootstrap over test groups", "device": run.device_name(),
    }  # fmt: skip
    result = {"task": "representation", "dataset": list(tasks), "split": split, "protocol": protocol,
              "seeds": arguments.seeds, "metrics": metrics}  # fmt: skip
    (out / "metrics.json").write_text(json.dumps(result, indent=1, default=float))
    (out / "table.md").write_text(table + "\n")
    with open(out / "results.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["figure", *names, *(f"seed {s}" for s in arguments.seeds)])
        writer.writerows(
            [k, m["mean"], m.get("low"), m.get("high"), *m.get("per_seed", [])] for k, m in metrics.items()
        )
    found = {arm: [tuple(metrics[f"{k}/{arm}"][m] for m in names) for k in keys] for arm in ARMS}
    title = f"balanced accuracy on {split}, {count} seeds, 95 % interval"
    plots.intervals(out / "comparison.png", [k.replace("/", ", ") for k in keys], found, title)
    print(f"\nbalanced accuracy on {split}, {count} seeds, {run.device_name()}\n\n{table}\n\nwritten to {out}")


def markdown(metrics: dict, keys: list[str], kinds: list[str], sizes: dict[str, int], shape: dict[str, float]) -> str:
    """Two tables: each arm on each task, and the paired differences."""

    def cell(m: dict, sign: str = "") -> str:
        return f"{m['mean']:{sign}.3f} ({m['low']:{sign}.2f} to {m['high']:{sign}.2f})"

    lines = ["| task (images) | embedding, probe | " + " | ".join(ARMS) + " |", "| --- " * (2 + len(ARMS)) + "|"]
    for key in keys:
        task, kind = key.split("/", 1)
        cells = [cell(metrics[f"{key}/{arm}"]) for arm in ARMS]
        lines.append(f"| {task} ({sizes[task]}) | {kind.replace('/', ', ')} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Size and shape of the image file alone: " + ", ".join(f"{t} {v:.3f}" for t, v in shape.items()) + ".",
    ]
    lines += ["", "| paired difference | tasks | " + " | ".join(k.replace("/", ", ") for k in kinds) + " |"]
    lines.append("| --- " * (2 + len(kinds)) + "|")
    scopes = [(*pair, "") for pair in DIFFERENCES] + [(*pair, t) for pair in DIFFERENCES[:3] for t in sizes]
    for a, b, task in scopes:
        before = f"{task}/" if task else ""
        cells = [cell(metrics[f"{before}{k}/{a} - {b}"], "+") for k in kinds]
        lines.append(f"| {a} - {b} | {task or 'mean of all'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run.exit_code(main))
