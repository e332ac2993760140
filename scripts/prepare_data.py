"""Pack images once, so that every training run reads one memory-mapped file.

    python scripts/prepare_data.py folder --root DIR --dry-run           what is your folder understood to be? Nothing is packed
    python scripts/prepare_data.py folder --root DIR --out data/NAME     your images: a folder or a CSV manifest
    python scripts/prepare_data.py phantoms --out data/phantoms          synthetic ultrasound, made here
    python scripts/prepare_data.py leakage --pool data/A --protected data/B     is the test set in the training set?

A folder is a class per sub-folder; or images/ with masks/ of the same names; or low_quality/ with high_quality/; or it
holds a manifest.csv with the columns path, label, group, split, mask, target (all but path optional). docs/data.md shows them.
Where a folder can be read in two ways, the error names the key that decides: `--reading folders=classes`, or the same key in a
reading.yaml in the folder, which every script reads.
An interrupted command continues when it is repeated.
"""

import argparse
import re
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np

from vfm4us.command_line import Parser
from vfm4us.data import splits
from vfm4us.data.csv_files import write_rows
from vfm4us.data.dataset import PreparedDataset, is_prepared
from vfm4us.data.masks import mask_coding
from vfm4us.data.prepare import prepare
from vfm4us.data.reading import Reading, parse_readings, reading_of
from vfm4us.data.shares import PREPARED
from vfm4us.data.sources import source_root, understand
from vfm4us.phantoms.folders import write_phantoms

KEYS = [field.name for field in fields(Reading)]
FEW = 50  # test images, below which an interval is so wide that it is said


def main(arguments=None) -> int:
    """Run one of the commands and return its exit code: 0, 2 for an error a user can mend, 130 where it is interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] not in ("folder", "phantoms", "leakage") and Path(words[0]).exists():
        parser().error(
            f"what is to be done with {words[0]}? prepare_data.py folder --root {words[0]} --out data/NAME packs it"
        )
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror and error.filename is None else error
        print(f"error: {words}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command continues where this one stopped", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of the three commands; `run` of what it parses is the function that carries the command out."""
    top = Parser(__doc__)
    commands = top.add_subparsers(required=True, metavar="folder | phantoms | leakage")

    folder = commands.add_parser("folder", help="pack a folder of images or a CSV manifest")
    folder.add_argument("--root", type=Path, required=True, help="folder of images, or CSV manifest")
    folder.add_argument("--out", type=Path, help="folder of the prepared dataset, e.g. data/NAME")
    folder.add_argument("--dry-run", action="store_true", help="print what the source is understood to be, and stop")
    folder.add_argument(
        "--reading", action="append", default=[], metavar="KEY=VALUE", help=f"decides how it is read: {', '.join(KEYS)}"
    )
    folder.add_argument("--size", type=int, default=256, help="side of the packed images in pixels (default 256)")
    folder.add_argument(
        "--splits",
        default=",".join(map(str, PREPARED)),
        help="shares of train,val,test where the source has none (default 0.8,0.1,0.1)",
    )
    folder.add_argument("--seed", type=int, default=0, help="of the splits (default 0)")
    folder.add_argument("--workers", type=int, help="processes (default: one per core); the bytes do not depend on it")
    folder.set_defaults(run=pack_folder)

    synthetic = commands.add_parser(
        "phantoms", help="write synthetic ultrasound as image folders, with masks and pairs"
    )
    synthetic.add_argument("--out", type=Path, required=True, help="e.g. data/phantoms")
    synthetic.add_argument("--count", type=int, default=2000, help="images (default 2000)")
    synthetic.add_argument("--size", type=int, default=256, help="side in pixels (default 256)")
    synthetic.add_argument("--seed", type=int, default=0)
    synthetic.set_defaults(run=make_phantoms)

    leaks = commands.add_parser("leakage", help="find val and test images of some datasets among others' train images")
    leaks.add_argument("--pool", type=Path, nargs="+", required=True, help="prepared datasets to train on")
    leaks.add_argument("--protected", type=Path, nargs="+", required=True, help="prepared datasets to test on")
    leaks.add_argument("--csv", type=Path, help="write every pair here")
    leaks.set_defaults(run=report_leakage)
    return top


def pack_folder(options) -> None:
    """Print what the source is understood to be, and pack it, but with --dry-run.

    Raises ValueError for --splits that are not three shares, and without --out and --dry-run.
    """
    try:
        shares = tuple(float(share) for share in options.splits.split(","))
    except ValueError:
        raise ValueError(f"--splits {options.splits}: give three shares, e.g. 0.8,0.1,0.1") from None
    if not options.out and not options.dry_run:
        raise ValueError("give --out DIR, the folder of the prepared dataset, or --dry-run")
    reading = reading_of(options.root, parse_readings(options.reading))
    understood = understand(options.root, reading)
    print("\n".join(understood.lines()), flush=True)
    if options.dry_run:
        coding = mask_coding(source_root(options.root), understood.records, reading, understood.fill_outlines)
        print(
            "\n".join(f"  masks    {words}" for words in (coding.said or ("0 and above 0",)))
            if coding
            else "  masks    none"
        )
        return
    dataset = prepare(
        options.root,
        options.out,
        size=options.size,
        splits=shares,
        seed=options.seed,
        workers=options.workers,
        reading=reading,
        understood=understood,
    )
    print(summary(dataset))
    drawn, tested = understood.splits.startswith("none"), len(dataset.indices("test"))
    if drawn and tested < FEW and len(dataset.description["labels"]) > 1:
        print(
            f"  note: {tested} test images: intervals over them are wide. Before you train, --splits 0.6,0.1,0.3 gives more"
        )


def make_phantoms(options) -> None:
    """Write synthetic images to --out and print how many there are."""
    folder = write_phantoms(options.out, count=options.count, size=options.size, seed=options.seed)
    if is_prepared(folder):
        print(summary(PreparedDataset(folder)))
    else:
        print(f"phantoms: {options.count} images in {folder}")


def summary(dataset: PreparedDataset) -> str:
    """What was packed, in words: counts per label and split, what was rejected, the size on disk."""
    told = dataset.description
    lines = [f"{dataset.name}: {len(dataset)} images of {dataset.size} x {dataset.size} in {dataset.folder}"]
    names = [name for name in ("train", "val", "test", "exclude") if name in told["splits"]]
    labels = list(told["labels"])
    width = max(len(label) for label in [*labels, "label", "(none)"])
    lines.append("  " + "label".ljust(width) + "".join(name.rjust(9) for name in names) + "total".rjust(9))
    for label in [*labels[:40], None] if len(labels) > 1 else [None]:
        of_label = np.array([label is None or its_label == label for its_label in dataset.labels])
        counts = [int((of_label & (dataset.splits == name)).sum()) for name in names]
        row = "all" if label is None else label or "(none)"
        lines.append("  " + row.ljust(width) + "".join(f"{count:9d}" for count in [*counts, sum(counts)]))
    if len(labels) > 40:
        lines.append(f"  ({len(labels) - 40} more labels are in the row 'all' only)")
    have = [f"{told[role]} with a {role[:-1]}" for role in ("masks", "targets") if told[role]]
    groups = f"{told['groups']} groups"
    if all(record.group == record.id or re.fullmatch(r"dup\d+", record.group) for record in dataset.records):
        groups += " (single images, and clusters of near-duplicates)"
    lines.append("  " + ", ".join([groups, *have]))
    crossing = told["groups_in_two_splits"]
    if crossing:
        lines.append(f"  warning: the source's splits divide {len(crossing)} duplicate clusters, e.g. {crossing[0]}")
    lines += [f"  warning: {words}" for words in told.get("warnings", [])]
    if told.get("near_identical"):
        lines.append(
            f"  {told['near_identical']} frames left out as near-identical to the one before, see rejected.csv"
        )
    if told["rejected"]:
        lines.append(f"  {told['rejected']} rejected, see {dataset.folder / 'rejected.csv'}")
    else:
        lines.append("  none rejected")
    lines.append(f"  look at {dataset.folder / 'understood.png'}: eight of the images as they were understood")
    size = sum(file.stat().st_size for file in dataset.folder.iterdir())
    lines.append(f"  {size / 1e6:.1f} MB on disk")
    return "\n".join(lines)


def report_leakage(options) -> None:
    """Print how many train images of the pools equal or nearly equal val and test images of the protected datasets.

    With --csv, all pairs are written.
    """
    rows, compared = [], 0
    for pool in map(PreparedDataset, options.pool):
        train = pool.fingerprints(pool.indices("train"))
        compared += len(train.ids)
        for dataset in map(PreparedDataset, options.protected):
            held_out = np.concatenate([dataset.indices("val"), dataset.indices("test")])
            protected = dataset.fingerprints(held_out)
            for leak in splits.leakage(train, protected):
                names = train.ids[leak.pool_index], protected.ids[leak.protected_index]
                rows.append((pool.name, names[0], dataset.name, names[1], leak.kind, leak.distance))
    identical = sum(row[4] == "identical" for row in rows)
    images = len({row[:2] for row in rows})
    print(f"{images} of {compared} train images are also held out: {identical} identical, {len(rows) - identical} near")
    for row in rows[:10]:
        print(f"  {row[0]}/{row[1]}  {row[4]} (distance {row[5]})  {row[2]}/{row[3]}")
    if len(rows) > 10:
        print(f"  and {len(rows) - 10} more")
    if options.csv:
        write_rows(options.csv, ["pool", "pool_id", "protected", "protected_id", "kind", "distance"], rows)


if __name__ == "__main__":
    sys.exit(main())
