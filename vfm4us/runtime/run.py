"""The folder of a run: its config, its history, its log, its checkpoints."""

import contextlib
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import yaml

from vfm4us import __version__
from vfm4us.config import changed_keys, read_plain, to_dict
from vfm4us.log import say
from vfm4us.runtime.files import write_text


class RunFolder:
    """`logs/<name>/`: config.yaml, run.json, metrics.jsonl, TensorBoard events, checkpoints/.

    The same command continues; a changed config raises ValueError that lists the changed keys, unless `resume` is False,
    which moves the old folder aside (nothing is deleted). A folder without a checkpoint has nothing to continue.
    """

    def __init__(self, folder: Path, config: Any, resume: bool = True, main: bool = True):
        from vfm4us.runtime.processes import barrier  # it brings torch, which `refuse_changed` does without

        self.folder, self.main = Path(folder), main
        self.checkpoints = self.folder / "checkpoints"
        if main:
            self._open(config, resume)
        barrier()

    def _open(self, config: Any, resume: bool) -> None:
        described = self.folder / "config.yaml"
        self.lock = lock(self.folder)
        try:
            if described.is_file() and not resume:
                number = 1
                while (aside := self.folder.with_name(f"{self.folder.name}-old{number}")).exists():
                    number += 1
                self.folder.rename(aside)  # the lock goes with it
                old, self.lock = self.lock, lock(self.folder)
                (aside / ".lock").unlink()
                old.close()
                say(f"resume=false: the earlier run now lies in {aside}")
            elif (self.checkpoints / "last.pt").is_file() or (self.folder / "metrics.json").is_file():
                refuse_changed(self.folder, config)
        except (ValueError, OSError):
            unlock(self.lock)
            raise
        self.checkpoints.mkdir(exist_ok=True)
        for place in (self.folder, self.checkpoints):
            for rubbish in place.glob(".*.tmp"):  # of a process that was killed while writing
                rubbish.unlink()
        write_text(described, yaml.safe_dump(to_dict(config), sort_keys=False))
        history = self.folder / "run.json"
        try:
            starts = json.loads(history.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            starts = []
        write_text(history, json.dumps(starts + [describe_run()], indent=1))

    def kept(self, name: str, value: str, before: str) -> str:
        """What `name` was when this run was first started, from run.json: `value` if that is now, `before` if it did not say."""
        starts = json.loads((self.folder / "run.json").read_text())
        if len(starts) == 1 and name not in starts[0] and self.main:
            starts[0][name] = value
            write_text(self.folder / "run.json", json.dumps(starts, indent=1))
        return starts[0].get(name, before)

    def open_log(self, step: int, epoch_ended: bool = True) -> None:
        """Begin to log after `step`: lines of a run that was killed beyond that point are cut off.

        `epoch_ended` says whether what is measured at the end of an epoch was already measured at `step`.
        """
        if not self.main:
            return
        from torch.utils.tensorboard import SummaryWriter

        last = {"train": step}
        lines = [x for x in self.metrics() if x["step"] <= last.get(x["kind"], step if epoch_ended else step - 1)]
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        self.stream = open(self.folder / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115  (until the run is closed)
        self.tensorboard = SummaryWriter(str(self.folder), purge_step=step + 1)

    def log(self, kind: str, step: int, values: dict) -> None:
        """One line of metrics.jsonl and, for the numbers, TensorBoard scalars `kind/name`."""
        if not self.main:
            return
        self.stream.write(json.dumps({"kind": kind, "step": step} | values) + "\n")
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self.tensorboard.add_scalar(f"{kind}/{name}", value, step)

    def metrics(self) -> list[dict]:
        """All complete lines of metrics.jsonl."""
        path = self.folder / "metrics.jsonl"
        lines = []
        for line in path.read_text().splitlines() if path.is_file() else []:
            with contextlib.suppress(json.JSONDecodeError):  # the last line of a run that lost power may be cut short
                lines.append(json.loads(line))
        return lines

    def close(self) -> None:
        """Close the files of the run and let go of its lock."""
        if self.main and hasattr(self, "stream"):
            self.stream.close()
            self.tensorboard.close()
        if hasattr(self, "lock"):
            unlock(self.lock)


def lock(folder: Path) -> TextIO:
    """Hold `folder`, made if need be, against other processes until `unlock`. ValueError says who holds it."""
    path = folder / ".lock"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        stream = open(path, "a+")  # noqa: SIM115
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            stream.close()
            raise ValueError(
                f"{folder} is in use by another process ({holder}): wait for it, or give this run another name"
            ) from error
        held = os.fstat(stream.fileno())
        if path.exists() and os.path.samestat(held, path.stat()):
            break
        stream.close()  # it was unlocked, or moved aside, between opening and holding it
    stream.truncate(0)
    stream.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    stream.flush()
    return stream


def unlock(stream: TextIO) -> None:
    """Let go of a lock; its file is removed while it is still held, so that nobody else's is."""
    path = Path(stream.name)
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            path.unlink()
    stream.close()


def refuse_changed(folder: Path, config: Any) -> None:
    """Raise ValueError that lists the changed keys, where the run in `folder` was made with another config."""
    if changed := changed_keys(_read_config(folder / "config.yaml"), config):
        raise ValueError(
            f"{folder} holds a run with another config:\n  "
            + "\n  ".join(changed)
            + "\nGive the run another name (name=...), or resume=false to start afresh (the old one is moved aside)."
        )


def describe_run() -> dict:
    """What a reader needs to repeat a run: arguments, code, versions, machine, time."""
    import torch

    from vfm4us.runtime.device import device_name

    def git(*arguments: str) -> str:
        try:
            answer = subprocess.run(
                ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True
            )
        except OSError:
            return ""
        return answer.stdout.strip() if answer.returncode == 0 else ""

    return {
        "argv": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "vfm4us": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "world_size": int(os.environ.get("WORLD_SIZE", 1)),
    }


def _read_config(path: Path) -> dict:
    try:
        return read_plain(path)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"{path} cannot be read, so this run cannot be compared with it; restore it, or resume=false ({error})"
        ) from error
