"""Use a trained enhancer: better images of any folder, figures where there are high-quality images to compare with.

    python Downstream/Generation/evaluate.py CHECKPOINT DATA [--split all|train|val|test] [--out DIR] [--degrade STRENGTH]
        [--tile PX] [--reference DIR] [--kid-encoder FILE]

CHECKPOINT is generator.pt or a run folder of train.py; DATA a folder of images, of low_quality/ and high_quality/, a CSV manifest
(path, target) or a published dataset. Writes enhanced/ at the original size of each image and comparison.png; where there are
targets also metrics.json and per_image.csv, beside the untouched input. --degrade takes the images for high quality and enhances
their degraded versions, so that any archive is a test. --reference is a set of high-quality images for KID. Images that cannot be
read are listed, not skipped in silence.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from vfm4us.data.decode import read_grey
from vfm4us.data.images import image_paths
from vfm4us.data.sources import source_root
from vfm4us.evaluation import likeness
from vfm4us.runtime.device import choose_device, device_name
from vfm4us.runtime.files import write_text
from vfm4us.runtime.signals import exit_code
from vfm4us.tasks import base, generation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--split", choices=["all", "train", "val", "test"], default="all", help="where the data have splits"
    )
    parser.add_argument("--out", type=Path, default=Path(), help="folder for what is written")
    parser.add_argument("--degrade", type=float, metavar="STRENGTH", help="enhance degraded versions of the images")
    parser.add_argument("--tile", type=int, help="side of the tiles of large images, px; as in training by default")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="high-quality images for KID, at least 50")
    parser.add_argument(
        "--kid-encoder", default="", metavar="FILE", help="features for KID where Inception is not at hand"
    )
    parser.add_argument("--device", default="auto")
    evaluate(parser.parse_args())


def evaluate(arguments) -> None:
    enhancer = generation.load_enhancer(arguments.checkpoint)
    model = enhancer.model.to(choose_device(arguments.device))
    if arguments.tile is not None:
        if arguments.tile < 64:
            raise ValueError(f"--tile {arguments.tile}: at least 64")
        enhancer.tile, enhancer.overlap = arguments.tile, min(enhancer.overlap, arguments.tile // 2)
    if arguments.degrade is not None and not arguments.degrade > 0:
        raise ValueError(f"--degrade {arguments.degrade}: give a strength above 0, e.g. 1.0")
    records = base.source_records(arguments.data, arguments.split)
    root, out = source_root(arguments.data), arguments.out
    base.refuse_output_within(root, out)
    reference, features = [], None
    if arguments.reference is not None:
        reference = [read_grey(path) for path in image_paths(arguments.reference)]
        features = likeness.Features.choose(arguments.kid_encoder)
    cases = generation.examine(model, root, records, *enhancer.settings, out, arguments.degrade, features)
    for path, reason in cases.unreadable:
        print(f"cannot be read: {path}: {reason}", file=sys.stderr)
    if not cases.records:
        raise ValueError(f"none of the {len(records)} images of {arguments.data} can be read")
    outcome = cases.outcome() | cases.kid(features, reference)
    generation.pictures(out, root, outcome, arguments.degrade)
    written = len(cases.records) + len(cases.without)
    print(f"{written} images, {len(cases.unreadable)} unreadable: {out / 'enhanced'}, {out / 'comparison.png'}")
    result = generation.evaluate([outcome])
    if cases.without:
        print(
            f"{len(cases.without)} images without a target are left out of the metrics (e.g. {cases.without[0].path})"
        )
    said = generation.verdict(result)
    if result:
        kid = (
            likeness.kid_rule(features, len(cases.records), len(reference))
            if reference
            else "not measured: no --reference"
        )
        about = {
            "task": "generation",
            "dataset": str(arguments.data),
            "split": arguments.split,
            "seeds": [],
            "protocol": generation.RULES
            | {
                "checkpoint": str(arguments.checkpoint),
                "input_size": enhancer.size,
                "tile": enhancer.tile,
                "pairs": "given" if arguments.degrade is None else f"degraded with strength {arguments.degrade:g}",
                "unreadable": len(cases.unreadable),
                "without_target": len(cases.without),
                "kid": kid,
                "verdict": said,
                "interval": "95 %, bootstrap over groups (single images where there are none)",
                "device": device_name(),
            },
            "metrics": result,
        }
        write_text(out / "metrics.json", json.dumps(about, indent=1))
        if "ssim" in outcome:
            generation.write_cases(out, outcome)
        print(f"\n{base.table(result, 1)}\n\nKID: {kid}")
    print(said)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(exit_code(main))
