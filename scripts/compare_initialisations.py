"""Is pretraining worth it, and coarse-to-fine more than either stage alone? Held-out figures at equal patches seen.

    python scripts/compare_initialisations.py --config configs/pretraining/open_sets.yaml data.root=DIR
        [--tasks busi liver gallbladder] [--seeds 0 1 2] [--out logs/comparison] [section.key=value ...]

For each seed: random, coarse only, fine only and coarse-to-fine, from one config with two stages. Coarse only and fine only
get the epochs of both stages, so every arm sees the same number of patches. Each is probed on every task's test split
(k-NN and linear probe on the train split's labels), whole images and bags of patches. Runs continue where they were
stopped. Writes results.csv, metrics.json, table.md and comparison.png; intervals are 95 % bootstraps over groups (patients,
duplicate clusters) and seeds; differences are paired. To choose settings use scripts/probe.py, which leaves test alone.
"""

import argparse
import copy
import csv
import json
import sys
from pathlib import Path

import numpy as np
import torch

import vfm4us
from vfm4us import config, plots, probing, run
from vfm4us.data.store import open_or_prepare
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.pretraining.stages import PretrainingConfig, Stopped, pretrain

ARMS = ("random", "coarse", "fine", "coarse-to-fine")
EMBEDDINGS = {"whole": 0, "patches": 4}  # patches per image; 0 is the whole image


def arm_config(base: PretrainingConfig, arm: str, seed: int, out: Path) -> PretrainingConfig:
    """The config of one arm and seed: the base's stages, or one of them for as long as both."""
    result = copy.deepcopy(base)
    result.name, result.seed, result.logs = f"{arm}-{seed}", seed, str(out)
    if arm != "coarse-to-fine":
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


def probe_arm(encoder: Encoder, tasks: dict, split: str, where: Path) -> dict[str, np.ndarray]:
    """`<task>/<embedding>/<method>` -> correct (M,) bool, kept in `where` so that a finished arm is not probed again."""
    if where.is_file():
        return dict(np.load(where))
    result = {}
    for task, dataset in tasks.items():
        for embedding, patches in EMBEDDINGS.items():
            found = probing.probe(encoder, dataset, split, patches)
            result |= {f"{task}/{embedding}/{m}": p == found.labels for m, p in found.predicted.items()}
    where.parent.mkdir(parents=True, exist_ok=True)
    np.savez(where.with_suffix(".part.npz"), **result)
    where.with_suffix(".part.npz").replace(where)
    return result


def resampled(correct: list[dict], key: str, labels: np.ndarray, counts: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Balanced accuracy in each bootstrap resample of groups and of seeds, (R,)."""
    per_seed = np.stack([probing.weighted_balanced_accuracy(labels, c[key].astype(float), counts) for c in correct])
    return np.stack([per_seed[s, np.arange(counts.shape[0])] for s in seeds.T]).mean(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["busi", "liver", "gallbladder"], help="datasets under data.root")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--out", type=Path, default=Path("logs/comparison"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    # several flags take lists: keys with "=" may stand anywhere
    values = sys.argv[1:]
    arguments = parser.parse_args([v for v in values if "=" not in v or v.startswith("--")])
    overrides = [v for v in values if "=" in v and not v.startswith("--")]
    try:
        compare(arguments, config.load(PretrainingConfig, arguments.config, overrides))
    except Stopped as stopped:
        print(stopped)
        return 128 + stopped.number
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(arguments, base: PretrainingConfig) -> None:
    if len(base.stages) != 2:
        raise ValueError(
            f"{arguments.config}: a comparison needs two stages, coarse and fine, found {len(base.stages)}"
        )
    out, split = arguments.out, arguments.split
    tasks = {
        t: open_or_prepare(Path(base.data.root) / t, Path(base.data.cache), base.data.size) for t in arguments.tasks
    }
    correct: dict[str, list[dict]] = {arm: [] for arm in ARMS}
    for seed in arguments.seeds:
        for arm in ARMS:
            where = out / f"probe-{split}-{arm}-{seed}.npz"
            if where.is_file():
                encoder = None
            elif arm == "random":
                torch.manual_seed(seed)
                encoder = Encoder(EncoderSpec(base.encoder.name, base.encoder.in_channels))
            else:
                print(f"\n=== {arm}, seed {seed}", flush=True)
                encoder = vfm4us.load_encoder(pretrain(arm_config(base, arm, seed, out)), base.encoder.in_channels)
            correct[arm].append(probe_arm(encoder, tasks, split, where))
    report(correct, tasks, arguments, base)


def report(correct: dict[str, list[dict]], tasks: dict, arguments, base: PretrainingConfig) -> None:
    out, split, count = arguments.out, arguments.split, len(arguments.seeds)
    rng = np.random.default_rng(0)
    repeats = 2000
    seeds = rng.integers(0, count, size=(repeats, count))
    held = {t: d.indices(split) for t, d in tasks.items()}
    labels = {t: np.asarray(d.labels)[held[t]] for t, d in tasks.items()}
    counts = {
        t: probing.bootstrap_counts(np.asarray(d.groups)[held[t]], repeats, seed=k)
        for k, (t, d) in enumerate(tasks.items())
    }
    keys = [f"{t}/{e}/{m}" for t in tasks for e in EMBEDDINGS for m in probing.METHODS]
    rows, metrics, spread = [], {}, {}
    for key in keys:
        task = key.split("/")[0]
        ones = np.ones((1, len(labels[task])))
        for arm in ARMS:
            per_seed = [
                float(probing.weighted_balanced_accuracy(labels[task], c[key].astype(float), ones)[0])
                for c in correct[arm]
            ]
            spread[arm, key] = resampled(correct[arm], key, labels[task], counts[task], seeds)
            low, high = np.percentile(spread[arm, key], [2.5, 97.5])
            metrics[f"{key}/{arm}"] = {"mean": float(np.mean(per_seed)), "low": low, "high": high, "per_seed": per_seed}
            rows.append([*key.split("/"), arm, np.mean(per_seed), low, high, *per_seed])
    lines = ["| task (test images) | embedding | probe | " + " | ".join(ARMS) + " |", "| --- " * (3 + len(ARMS)) + "|"]
    for key in keys:
        task, embedding, method = key.split("/")
        cells = [f"{m['mean']:.3f} ({m['low']:.2f}-{m['high']:.2f})" for m in (metrics[f"{key}/{arm}"] for arm in ARMS)]
        lines.append(f"| {task} ({len(labels[task])}) | {embedding} | {method} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| paired difference, pooled over tasks and seeds | "
        + " | ".join(f"{e}, {m}" for e in EMBEDDINGS for m in probing.METHODS)
        + " |",
        "| --- " * (1 + len(EMBEDDINGS) * len(probing.METHODS)) + "|",
    ]
    for a, b in (
        ("coarse", "random"),
        ("fine", "random"),
        ("coarse-to-fine", "random"),
        ("coarse-to-fine", "coarse"),
        ("coarse-to-fine", "fine"),
    ):
        cells = []
        for embedding in EMBEDDINGS:
            for method in probing.METHODS:
                of = [f"{t}/{embedding}/{method}" for t in tasks]
                mean = np.mean([metrics[f"{k}/{a}"]["mean"] - metrics[f"{k}/{b}"]["mean"] for k in of])
                low, high = np.percentile(np.mean([spread[a, k] - spread[b, k] for k in of], axis=0), [2.5, 97.5])
                metrics[f"difference/{a} - {b}/{embedding}/{method}"] = {"mean": mean, "low": low, "high": high}
                cells.append(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})")
        lines.append(f"| {a} - {b} | " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    protocol = {
        "split_unit": "group (patient or near-duplicate cluster)", "selection": "none: last epoch, settings chosen on train+val",
        "input_size": base.data.size, "initialisation": list(ARMS), "probe": "k-NN k = 20, T = 0.07; logistic regression, C = 0.01",
        "interval": "95 % bootstrap over groups and seeds", "device": run.device_name(),
    }  # fmt: skip
    result = {
        "task": "representation",
        "dataset": list(tasks),
        "split": split,
        "protocol": protocol,
        "seeds": arguments.seeds,
        "metrics": metrics,
    }
    (out / "metrics.json").write_text(json.dumps(result, indent=1, default=float))
    (out / "table.md").write_text(table + "\n")
    with open(out / "results.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["task", "embedding", "probe", "initialisation", "mean", "low", "high", *map(str, arguments.seeds)]
        )
        writer.writerows(rows)
    names = [f"{task}, {embedding}, {method}" for task, embedding, method in (k.split("/") for k in keys)]
    found = {arm: [tuple(metrics[f"{k}/{arm}"][m] for m in ("mean", "low", "high")) for k in keys] for arm in ARMS}
    plots.intervals(out / "comparison.png", names, found, f"balanced accuracy on {split}, {count} seeds, 95 % interval")
    print(f"\nbalanced accuracy on {split}, {count} seeds, {run.device_name()}\n\n{table}\n\nwritten to {out}")


if __name__ == "__main__":
    sys.exit(main())
