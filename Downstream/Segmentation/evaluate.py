"""Use a trained segmentation model: masks and overlays of any folder of images, metrics where there are masks to compare with.

    python Downstream/Segmentation/evaluate.py CHECKPOINT DATA [--split all|train|val|test] [--out DIR] [--flips]

CHECKPOINT is segmenter.pt or a run folder of train.py; DATA a folder of images, of images/ and masks/, a CSV manifest or a
published dataset. Writes predicted/ (masks) and overlays/ at the original size of each image and, where there are masks to compare
with, metrics.json, per_image.csv and pictures. Images that cannot be read are listed, not skipped in silence.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vfm4us import plots
from vfm4us.data.decode import read_record
from vfm4us.data.masks import read_masks
from vfm4us.data.sources import source_root
from vfm4us.runtime.device import choose_device, device_name
from vfm4us.runtime.files import write_text
from vfm4us.runtime.signals import exit_code
from vfm4us.tasks import base, segmentation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--split", choices=["all", "train", "val", "test"], default="all", help="where the data have splits"
    )
    parser.add_argument("--out", type=Path, default=Path(), help="folder for what is written")
    parser.add_argument("--flips", action="store_true", help="average with the prediction for the mirrored image")
    parser.add_argument("--device", default="auto")
    evaluate(parser.parse_args())


def evaluate(arguments) -> None:
    model, size = segmentation.load_segmenter(arguments.checkpoint)
    model = model.to(choose_device(arguments.device))
    records = base.source_records(arguments.data, arguments.split)
    root, out = source_root(arguments.data), arguments.out
    base.refuse_output_within(root, out)
    cases = segmentation.examine(model, root, records, size, out, arguments.flips)
    for path, reason in cases.unreadable:
        print(f"cannot be read: {path}: {reason}", file=sys.stderr)
    done = [*zip(cases.records, cases.predicted, strict=True), *cases.without]
    if not done:
        raise ValueError(f"none of the {len(records)} images of {arguments.data} can be read")
    for record, name in done:
        image = read_record(root, record)
        picture = plots.outlined(image, np.asarray(Image.open(out / name)), read_masks(root, record, image, size))
        target = out / "overlays" / Path(name).relative_to("predicted")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(target)
    print(f"{len(done)} images, {len(cases.unreadable)} unreadable: {out / 'predicted'}, {out / 'overlays'}")
    if not cases.records:
        print("no masks to compare with: no metrics")
        return
    if cases.without:
        print(
            f"{len(cases.without)} images without a mask are left out of the metrics (e.g. {cases.without[0][0].path})"
        )
    outcome = cases.outcome(model.classes)
    segmentation.write_cases(out, outcome)
    segmentation.pictures(out, root, outcome, size, model.join)
    result = segmentation.evaluate([outcome])
    about = {
        "task": "segmentation",
        "dataset": str(arguments.data),
        "split": arguments.split,
        "seeds": [],
        "protocol": segmentation.RULES
        | {
            "checkpoint": str(arguments.checkpoint),
            "input_size": size,
            "classes": model.classes,
            "flips": arguments.flips,
            "unreadable": len(cases.unreadable),
            "without_mask": len(cases.without),
            "interval": "95 %, bootstrap over groups (single images where there are none)",
            "device": device_name(),
        },
        "metrics": result,
    }
    write_text(out / "metrics.json", json.dumps(about, indent=1))
    print(f"\n{base.table(result, 1)}\n\npooled_with_background: {segmentation.RULES['pooled_with_background']}")
    print(f"written to {out / 'metrics.json'}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(exit_code(main))
