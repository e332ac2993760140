"""Work on a disk that is too small, done again once there is room, and compared with work that had room from the start."""

import itertools
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults import kills


def mount(folder: Path, kilobytes: int, again: bool = False) -> bool:
    """A disk of this size in memory at `folder`; `again` changes the size of one that is there. False where that is not allowed."""
    options = f"{'remount,' if again else ''}size={kilobytes}k"
    if shutil.which("mount") is None or os.geteuid() != 0:
        return False
    return (
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True).returncode
        == 0
    )


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    folder.mkdir(parents=True, exist_ok=True)
    mounted = mount(folder, kilobytes)
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def allowed() -> bool:
    """Whether this process may mount."""
    with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder) / "disk", 64) as mounted:
        return mounted


def size(folder: Path) -> int:
    """Kilobytes that the files of a folder take."""
    return sum(-(-p.stat().st_size // 4096) * 4 for p in folder.rglob("*") if p.is_file())


def try_once(subject: kills.Subject, source: Path, folder: Path, kilobytes: int, expected: str) -> kills.Trial:
    """Do the work on a disk of this size, make room, do it again."""
    out, lost, filled, left = folder / subject.name, "", False, []
    shutil.rmtree(out, ignore_errors=True)
    with small_disk(out, kilobytes) as mounted:
        if not mounted:
            raise PermissionError("a disk in memory cannot be mounted here")
        log = folder / f"{subject.name}.log"
        log.unlink(missing_ok=True)
        try:
            ended, _, _ = kills.run(subject, source, out)
            filled = not ended
            said = log.read_text(errors="replace")
            if filled and not re.search("no space left|disk is full", said, re.IGNORECASE):
                lost = f"a full disk is called: {said[-300:]}"
            if broken := kills.torn(out):
                lost = lost or f"torn: {broken[0]}"
            mount(out, 1_000_000, again=True)
            if not kills.run(subject, source, out)[0]:
                lost = lost or f"the same call does not go on: {kills.last_line(log)}"
            elif (outcome := subject.outcome(out)) != expected:
                lost = lost or f"another outcome: {outcome[:80]} instead of {expected[:80]}"
        except (TimeoutError, AssertionError, ValueError, OSError) as error:
            lost = lost or f"{type(error).__name__}: {error}"
        left = kills.litter(out)
    return kills.Trial(subject.name, [], int(filled), lost, left)


def trials(names: list[str], source: Path, folder: Path, seed: int, first: int = 0) -> Iterator[kills.Trial]:
    """Without end, from number `first` on: each subject in turn, on disks of a share of what it needs."""
    known = {}
    for number in itertools.count(first):
        name = names[number % len(names)]
        subject = kills.SUBJECTS[name]
        if name not in known:
            expected, _, _ = kills.left_alone(subject, source, folder)
            known[name] = expected, size(folder / f"{name}-alone")
        expected, needed = known[name]
        share = random.Random(f"{seed} {number}").uniform(0.02, 0.98)
        yield try_once(subject, source, folder, max(8, int(needed * share)), expected)
