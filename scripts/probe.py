"""Which of these encoders is better? k-NN and linear probe by 5-fold cross-validation over the train and val images.

    python scripts/probe.py random:0 logs/A logs/B/checkpoints/best.pt --data DIR [--tasks busi liver gallbladder] [--size 128]
        [--patches 0 4] [--limit 900] [--square] [--repeats 3] [--precision bfloat16] [--held-out val]

An encoder is a checkpoint, a run folder, or random weights: random:SEED (a ResNet18) or random:SEED:RUN_FOLDER (what that run
began with, but for the seed). No fold divides a patient or duplicate cluster, and the test split is not looked at: use this to
choose settings, and scripts/compare_initialisations.py for the last figure.
--patches 0 embeds whole images, n the bag of n patches; --square the central square of each image, which hides its shape;
--repeats averages over several divisions into folds. Prints balanced accuracy.
--held-out val predicts the val images from all train images instead, as is usual for k-NN, with 95 % intervals over groups of
images, and the difference to the first encoder, paired in the images.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

import vfm4us
from vfm4us import config
from vfm4us.data.store import open_or_prepare
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.evaluation import representation, statistics
from vfm4us.evaluation.classification import balanced_accuracy, weighted_balanced_accuracy
from vfm4us.pretraining.settings import PretrainingConfig
from vfm4us.pretraining.trainer import build_method
from vfm4us.runtime.signals import exit_code


def load(name: str) -> Encoder:
    if not name.startswith("random:"):
        return vfm4us.load_encoder(name, in_channels=1)
    _, seed, *like = name.split(":", 2)
    torch.manual_seed(int(seed))
    if not like:
        return Encoder(EncoderSpec(in_channels=1))
    return build_method(
        config.load(PretrainingConfig, Path(like[0]) / "config.yaml", ["encoder.weights="])
    ).network.base_encoder


def cross_validated(arguments, tasks: dict) -> None:
    """One row per encoder and number of patches."""
    wide = max(30, *map(len, arguments.encoders)) + 2
    columns = [f"{t} {m}" for t in tasks for m in representation.METHODS] + [
        "mean " + m for m in representation.METHODS
    ]
    print(f"{'encoder':<{wide}}{'patches':>8}" + "".join(f"{c:>20}" for c in columns))
    for name in arguments.encoders:
        for patches in arguments.patches:
            how = {"limit": arguments.limit, "repeats": arguments.repeats, "precision": arguments.precision}
            found = [representation.cross_validate(load(name), d, patches, **how) for d in tasks.values()]
            values = [f[m] for f in found for m in representation.METHODS]
            values += [np.mean([f[m] for f in found]) for m in representation.METHODS]
            print(f"{name:<{wide}}{patches:>8}" + "".join(f"{v:>20.3f}" for v in values), flush=True)


def held_out(arguments, tasks: dict) -> None:
    """One row per encoder, number of patches, task and probe; the first encoder is what the others are compared with."""
    wide = max(30, *map(len, arguments.encoders)) + 2
    print(
        f"{'encoder':<{wide}}{'patches':>8}  {'task':<14}{'probe':<8}{'balanced accuracy':<24}minus {arguments.encoders[0]}"
    )
    first: dict[tuple, tuple] = {}
    for number, name in enumerate(arguments.encoders):
        encoder = load(name)
        for patches in arguments.patches:
            for task, dataset in tasks.items():
                found = representation.probe(
                    encoder, dataset, arguments.held_out, patches, precision=arguments.precision
                )
                counts = statistics.bootstrap_counts(dataset.groups[found.rows])
                for method, predicted in found.predicted.items():
                    right = predicted == found.labels
                    value = np.array([balanced_accuracy(found.labels, predicted)])
                    moved = weighted_balanced_accuracy(found.labels, right, counts)
                    base, base_moved = first.setdefault((patches, task, method), (value, moved))
                    said = "{:.3f} ({:.2f} to {:.2f})".format(*statistics.interval(value, moved))
                    if number:
                        apart = statistics.interval(value - base, moved - base_moved)
                        said = f"{said:<24}" + "{:+.3f} ({:+.2f} to {:+.2f})".format(*apart)
                    print(f"{name:<{wide}}{patches:>8}  {task:<14}{method:<8}{said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="+", help="checkpoints, run folders, or random:SEED[:RUN_FOLDER]")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the tasks' folders")
    parser.add_argument("--tasks", nargs="+", default=["busi", "liver", "gallbladder"])
    parser.add_argument("--size", type=int, default=128, help="side to which plain folders are packed (default 128)")
    parser.add_argument("--cache", type=Path, default=Path("data"), help="where they are packed (default data)")
    parser.add_argument("--patches", nargs="+", type=int, default=[0], help="0: whole image; n: bag of n patches")
    parser.add_argument("--limit", type=int, default=900, help="images cross-validated per task (default 900; 0: all)")
    parser.add_argument("--square", action="store_true", help="see only the central square of each image")
    parser.add_argument("--repeats", type=int, default=1, help="divisions into folds to average over (default 1)")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"], help="of the encoder")
    parser.add_argument(
        "--held-out", nargs="+", default=[], choices=["val", "test"], help="predict these splits from train"
    )
    arguments = parser.parse_args()
    if arguments.held_out and (arguments.limit, arguments.repeats) != (
        parser.get_default("limit"),
        parser.get_default("repeats"),
    ):
        parser.error(
            "--limit and --repeats are of the cross-validation: leave them out with --held-out, which takes all images"
        )
    tasks = {t: open_or_prepare(arguments.data / t, arguments.cache, arguments.size) for t in arguments.tasks}
    if arguments.square:
        tasks = {t: representation.CentralSquares(d) for t, d in tasks.items()}
    (held_out if arguments.held_out else cross_validated)(arguments, tasks)


if __name__ == "__main__":
    sys.exit(exit_code(main))
