"""Break it on purpose, for as long as is given: kills, full disks, damaged images and checkpoints, nonsense configs.

    python scripts/soak.py --minutes 10 [--seed 0] [--continue FILE] [--only kills disks images checkpoints configs]

Work (saving, packing, pretraining, fine-tuning; on small images made here) is killed around each of its calls that change the disk
and at random times, and run on disks that are too small (as root); then the same call must end as if nothing had happened.
Files and configs are mutated; each must be read, or refused in words, within seconds and bounded memory.
Prints a table of what was tried and what was lost; the exit code is 1 if anything was lost. The same seed tries the same things.
--continue keeps the counts in FILE: the same call goes on with what was not tried yet, and the table is the sum of all calls.
Where vfm4us/ or the harness has changed, it counts from nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the harness lies beside the tests

from vfm4us.command_line import Parser  # noqa: E402
from vfm4us.lazy import Lazy  # noqa: E402
from vfm4us.runtime import signals  # noqa: E402
from vfm4us.runtime.files import write_text  # noqa: E402

configs, disk, hostile, kills = (Lazy(f"tests.faults.{name}") for name in ("configs", "disk", "hostile", "kills"))

MIXTURE = ("checkpoint", "packing", "pretraining", "fine-tuning")
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
    read, outcome = hostile.read_in_a_process(kind, files)
    row.tried += len(files)
    row.hit += len(files) - read
    row.lost += [f"{file.name}: {what}" for file, what in outcome]


def soak(counts: Counts, minutes: float, seed: int, only: list[str]) -> None:
    """Rounds of everything until the time is over, one at the least, added to `counts` and saved after each."""
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(dir=memory()) as where:
        folder = Path(where)
        kills.make_source(folder / "source")
        streams = {}
        only = [sort for sort in only if sort != "disks" or disk.allowed()]
        for sort, trials in (("kills", kills.trials), ("disks", disk.trials)):
            first = counts.rounds.get(sort, 0) * len(MIXTURE)
            streams[sort] = trials(list(MIXTURE), folder / "source", folder / sort, seed, first)
        for number in itertools.count():
            for sort in only:
                if number and time.monotonic() > end:
                    return
                start, before = time.monotonic(), len(counts.lost())
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    one_round(sort, f"{seed} {counts.rounds.get(sort, 0)}", Path(scratch), counts.rows, streams)
                names = [name for name in counts.rows if name.startswith(sort)]
                for name in names:
                    counts.rows[name].seconds += (time.monotonic() - start) / len(names)
                counts.rounds[sort] = counts.rounds.get(sort, 0) + 1
                counts.save()
                if number == 0 or len(counts.lost()) > before:
                    tell(counts.rows, names)


def memory() -> str | None:
    """A disk in memory, where fsync costs nothing and a kill leaves the same files; None where there is none."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  (a fresh folder below it)


def one_round(sort: str, seed: str, scratch: Path, rows: dict[str, Row], streams: dict[str, Iterator]) -> None:
    """One round of one sort of fault, added to `rows`; `streams` holds the endless trials of kills and full disks."""
    if sort in streams:
        from_trials(streams[sort], len(MIXTURE), rows, sort)
    elif sort == "images":
        from_files("image", list(hostile.damaged_images(scratch, 400, seed)), rows.setdefault(sort, Row()))
    elif sort == "checkpoints":
        from_files("checkpoint", list(hostile.damaged_checkpoints(scratch, 50, seed)), rows.setdefault(sort, Row()))
    else:
        row = rows.setdefault(sort, Row())
        for kind, data, items in configs.cases(50, seed):
            row.tried += 1
            refused, said = configs.examine(kind, data, items, scratch)
            row.hit += refused
            if said:
                row.lost.append(f"seed {seed}: {items or (data or b'')[:80]!r}: {said}")


@dataclass
class Counts:
    """What all calls with one state file have tried of one state of the code, and how many rounds of each sort that was."""

    file: Path | None
    seed: int
    code: str
    rows: dict[str, Row] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)

    def load(self) -> None:
        """Go on from the file. ValueError where it holds another seed."""
        if self.file is None or not self.file.is_file():
            return
        plain = json.loads(self.file.read_text())
        if plain["seed"] != self.seed:
            raise ValueError(f"{self.file} counts what seed {plain['seed']} draws: give that --seed, or another file")
        if plain["code"] != self.code:
            print(f"{self.file} counts the code {plain['code'][:12]}, this is {self.code[:12]}: counted from nothing")
            return
        self.rows = {name: Row(**row) for name, row in plain["rows"].items()}
        self.rounds = plain["rounds"]

    def save(self) -> None:
        """Write what was tried and lost so far."""
        if self.file is not None:
            plain = {"seed": self.seed, "code": self.code, "rounds": self.rounds}
            rows = {name: asdict(row) for name, row in self.rows.items()}
            write_text(self.file, json.dumps(plain | {"rows": rows}, indent=1) + "\n")

    def lost(self) -> list[str]:
        """A sentence for each loss."""
        return [f"LOST {name}: {what}" for name, row in self.rows.items() for what in row.lost]


def code() -> str:
    """git's name for the content of vfm4us/ and tests/faults/, with changes that are not committed."""
    folders = ["vfm4us", "tests/faults"]

    def git(*words: str) -> bytes:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=True).stdout

    names = git("rev-parse", *(f"HEAD:{folder}" for folder in folders)).split()
    changed = git("diff", "HEAD", "--", *folders)
    return hashlib.sha1(b"".join(names) + changed, usedforsecurity=False).hexdigest()


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
    parser = Parser(__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="how long (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default 0)")
    parser.add_argument("--continue", dest="file", type=Path, metavar="FILE", help="counts to go on from, and to keep")
    parser.add_argument("--only", nargs="+", choices=SORTS, default=list(SORTS), help="sorts of faults (default: all)")
    arguments = parser.parse_args()
    if "disks" in arguments.only and not disk.allowed():
        print("full disks are left out: only root may mount a small one")
    counts = Counts(arguments.file, arguments.seed, code())
    counts.load()
    soak(counts, arguments.minutes, arguments.seed, arguments.only)
    print(f"\n{table(counts.rows)}")
    print(*counts.lost(), sep="\n")
    for name, row in counts.rows.items():
        for what in sorted(set(row.litter))[:5]:
            print(f"left {name}: {what}")
    return 1 if counts.lost() else 0


if __name__ == "__main__":
    sys.exit(signals.exit_code(main))
