"""Use a trained classifier: metrics where there are labels, predictions.csv for any folder of images.

    python Downstream/Classification/evaluate.py CHECKPOINT DATA [--split all|train|val|test] [--out DIR] [--merge 'old > new' ...]

CHECKPOINT is classifier.pt or a run folder of train.py; DATA a folder of images, class folders or a CSV manifest. Probabilities are
calibrated. Images that cannot be read are listed, not skipped in silence. Writes predictions.csv and, with labels, metrics.json.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vfm4us.data.decode import read_record
from vfm4us.data.sources import source_root
from vfm4us.runtime.device import choose_device, device_name
from vfm4us.runtime.files import write_text
from vfm4us.runtime.signals import exit_code
from vfm4us.tasks import base, classification


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--split", choices=["all", "train", "val", "test"], default="all", help="where the data have splits"
    )
    parser.add_argument("--out", type=Path, default=Path(), help="folder for predictions.csv and metrics.json")
    parser.add_argument("--merge", nargs="*", default=[], help="labels to join, each as 'old > new'")
    parser.add_argument("--device", default="auto")
    evaluate(parser.parse_args())


def evaluate(arguments) -> None:
    model, size = classification.load_classifier(arguments.checkpoint)
    model = model.to(choose_device(arguments.device))
    records = base.source_records(arguments.data, arguments.split)
    root, rows, kept, bad = source_root(arguments.data), [], [], []
    for start in tqdm(range(0, len(records), 32), unit="batch", desc="classify"):
        good = []
        for record in records[start : start + 32]:
            try:
                good.append((record, read_record(root, record)))
            except ValueError as error:
                bad.append((record.path, str(error)))
        if good:
            rows.append(classification.classify(model, [image for _, image in good], size))
            kept += [record for record, _ in good]
    for path, reason in bad:
        print(f"cannot be read: {path}: {reason}", file=sys.stderr)
    if not kept:
        raise ValueError(f"none of the {len(records)} images of {arguments.data} can be read")
    probabilities = np.concatenate(rows)
    renamed = dict(classification.pair(item) for item in arguments.merge)
    labels = [renamed.get(r.label, r.label) for r in kept]
    arguments.out.mkdir(parents=True, exist_ok=True)
    truth = labels if any(labels) else None
    classification.write_predictions(
        arguments.out / "predictions.csv", [r.path for r in kept], probabilities, model.classes, truth
    )
    print(f"{len(kept)} images, {len(bad)} unreadable: {arguments.out / 'predictions.csv'}")
    known = np.array([label in model.classes for label in labels])
    if strange := sorted({label for label in labels if label and label not in model.classes}):
        print(
            f"labels this classifier does not know, left out of the metrics: {', '.join(strange[:8])} (it knows "
            f"{', '.join(model.classes)}; --merge joins labels)"
        )
    if not known.any():
        print("no labels to compare with: no metrics")
        return
    measured = [r for r, k in zip(kept, known, strict=True) if k]
    outcome = {
        "paths": np.array([r.path for r in measured]),
        "groups": np.array([r.group or r.id for r in measured]),
        "labels": np.array([model.classes.index(label) for label, k in zip(labels, known, strict=True) if k]),
        "classes": np.array(model.classes),
        "probabilities": probabilities[known],
    }
    result = classification.evaluate([outcome])
    about = {
        "task": "classification",
        "dataset": str(arguments.data),
        "split": arguments.split,
        "seeds": [],
        "protocol": {
            "checkpoint": str(arguments.checkpoint),
            "input_size": size,
            "unreadable": len(bad),
            "interval": "95 %, bootstrap over groups (single images where there are none)",
            "device": device_name(),
        },
        "metrics": result,
    }
    write_text(arguments.out / "metrics.json", json.dumps(about, indent=1))
    print(f"\n{base.table(result, 1)}\n\nwritten to {arguments.out / 'metrics.json'}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(exit_code(main))
