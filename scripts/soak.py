"""Break it on purpose, for as long as is given: kills, full disks, damaged images and checkpoints, nonsense configs.

    python scripts/soak.py --minutes 10 [--seed 0] [--only kills disks images checkpoints configs]

Work (saving, packing, pretraining, fine-tuning; on small images made here) is killed around each of its calls that change the disk
and at random times, and run on disks that are too small (as root); then the same call must end as if nothing had happened.
Files and configs are mutated; each must be read, or refused in words, within seconds and bounded memory.
Prints a table of what was tried and what was lost; the exit code is 1 if anything was lost. The same seed tries the same things.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the harness lies beside the tests

from tests.faults import configs, disk, hostile, kills  # noqa: E402

MIXTURE = ("checkpoint", "packing", "pretraining", "checkpoint", "packing", "fine-tuning")  # the cheap ones twice
SORTS = ("kills", "disks", "images", "checkpoints", "configs")


@dataclass
class Row:
    """What was tried of one sort: how often, how often it came to a kill, a full disk or a refusal, and what was lost."""

    tried: int = 0
    hit: int = 0
    lost: list[str] = field(default_factory=list)
    litter: list[str] = field(default_factory=list)
    seconds: float = 0.0


def from_trials(trials: Iterator[kills.Trial], count: int, rows: dict[str, Row], sort: str) -> None:
    """Take the next `count` trials and add each to the row of its subject."""
    for trial in itertools.islice(trials, count):
        row = rows.setdefault(f"{sort}: {trial.subject}", Row())
        row.tried += max(1, len(trial.moments))
        row.hit += trial.killed
        row.litter += trial.litter
        if trial.lost:
            row.lost.append(f"{', '.join(map(str, trial.moments))} {trial.lost}".strip())


def from_files(kind: str, files: list[Path], row: Row) -> None:
    """Read the damaged files in a process of its own and add to the row how many were refused and what went wrong."""
    read, found = hostile.read_in_a_process(kind, files)
    row.tried += len(files)
    row.hit += len(files) - read
    row.lost += [f"{file.name}: {what}" for file, what in found]


def soak(minutes: float, seed: int, only: list[str]) -> dict[str, Row]:
    """Rounds of everything until the time is over; one round at the least."""
    rows: dict[str, Row] = {}
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        kills.make_source(folder / "source")
        killing = kills.trials(list(MIXTURE), folder / "source", folder / "kills", seed)
        filling = disk.trials(list(MIXTURE), folder / "source", folder / "disks", seed)
        only = [sort for sort in only if sort != "disks" or disk.allowed()]
        for number in itertools.count():
            for sort in only:
                start, before = time.monotonic(), set(rows)
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    one_round(sort, seed + number, Path(scratch), rows, killing, filling)
                names = [name for name in rows if name.startswith(sort)] if sort in ("kills", "disks") else [sort]
                for name in names:
                    rows[name].seconds += (time.monotonic() - start) / len(names)
                if set(rows) - before or any(rows[name].lost for name in names):
                    tell(rows, names)
                if number and time.monotonic() > end:
                    return rows
            if time.monotonic() > end:
                return rows
    return rows


def one_round(sort: str, seed: int, scratch: Path, rows: dict[str, Row], killing, filling) -> None:
    """One round of one sort of fault, added to `rows`; `killing` and `filling` are the endless trials of kills and full disks."""
    if sort == "kills":
        from_trials(killing, len(MIXTURE), rows, sort)
    elif sort == "disks":
        from_trials(filling, len(MIXTURE), rows, sort)
    elif sort == "images":
        from_files("image", list(hostile.damaged_images(scratch, 400, seed)), rows.setdefault(sort, Row()))
    elif sort == "checkpoints":
        from_files("checkpoint", list(hostile.damaged_checkpoints(scratch, 200, seed)), rows.setdefault(sort, Row()))
    else:
        row = rows.setdefault(sort, Row())
        for kind, data, items in configs.cases(100, seed):
            row.tried += 1
            refused, said = configs.examine(kind, data, items, scratch)
            row.hit += refused
            if said:
                row.lost.append(f"seed {seed}: {items or (data or b'')[:80]!r}: {said}")


def tell(rows: dict[str, Row], names: list[str]) -> None:
    """Print how the named rows stand, with the last three losses of each."""
    for name in names:
        row = rows[name]
        print(
            f"{name}: {row.tried} tried, {row.hit} hit, {len(row.lost)} lost", *row.lost[-3:], sep="\n    ", flush=True
        )


def table(rows: dict[str, Row]) -> str:
    """Markdown: what was tried, how often it was killed, full or refused, and what was lost."""
    lines = [
        "| what | tried | killed, full or refused | lost | temporary files left | minutes |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row.tried:,} | {row.hit:,} | {len(row.lost)} | {len(row.litter)} | {row.seconds / 60:.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Break things for --minutes, print the table and every loss, and return 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how long (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default 0)")
    parser.add_argument("--only", nargs="+", choices=SORTS, default=list(SORTS), help="sorts of faults (default: all)")
    arguments = parser.parse_args()
    if "disks" in arguments.only and not disk.allowed():
        print("full disks are left out: only root may mount a small one")
    rows = soak(arguments.minutes, arguments.seed, arguments.only)
    print(f"\n{table(rows)}")
    for name, row in rows.items():
        for what in row.lost:
            print(f"LOST {name}: {what}")
        for what in sorted(set(row.litter))[:5]:
            print(f"left {name}: {what}")
    return 1 if any(row.lost for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
