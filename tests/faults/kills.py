"""Work that is killed at a moment of our choosing, done again, and compared with work that was left alone.

A trial runs in a process of its own, forked from one that has loaded the libraries. It is killed just before or just after
its n-th call that puts something on the disk for good (rename, replace, fsync, unlink), or at a random time. Networks are of a few
hundred numbers and pictures are empty files here, so that a trial takes tenths of a second.
"""

import csv
import faulthandler
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import torch
import torch.utils.tensorboard  # noqa: F401  (so that not every trial imports it anew)
import yaml
from torch import nn
from tqdm import tqdm

from tests.conftest import ROOT, TINY, write_textures
from vfm4us import checkpoints, config, encoders, plots
from vfm4us.data.prepare import prepare
from vfm4us.pretraining.settings import PretrainingConfig
from vfm4us.pretraining.trainer import pretrain
from vfm4us.tasks import classification

CALLS = ("replace", "rename", "fsync", "unlink")


def make_source(folder: Path) -> None:
    """What all subjects read."""
    write_textures(folder / "one", 24, seed=1, size=40)


def pack(source: Path, out: Path) -> None:
    prepare(source / "one", out / "packed", size=32, progress=False, workers=1)


def packed(out: Path) -> str:
    return _digest([out / "packed" / name for name in ("images.npy", "manifest.csv", "rejected.csv")])


def save_often(_: Path, out: Path) -> None:
    for number in range(12):
        checkpoints.save(out / "state.pt", {"number": number, "weights": torch.full((2000,), float(number))})


def saved(out: Path) -> str:
    state = checkpoints.read(out / "state.pt")
    assert (state["weights"] == state["number"]).all(), "numbers of two files in one"
    return str(state["number"])


def train(source: Path, out: Path) -> None:
    keys = {
        "logs": str(out),
        "save_minutes": 0.0,
        "emp_ssl": {"patches": {"count": 2, "size": 16}, "projector": {"hidden": 16, "out": 8}},
        "monitor": {"reference": 8, "held_out": 4, "patches": 0},
        "data": {"size": 32, "splits": [0.8, 0.2, 0.0], "cache": str(out / "data"), "root": str(source)},
        "stages": [{"name": "coarse", "epochs": 2, "epoch_images": 8, "learning_rate": 0.3, "data": [{"path": "one"}]}],
    }
    pretrain(config.from_dict(PretrainingConfig, TINY | keys))


def trained(out: Path) -> str:
    state = checkpoints.read(out / "tiny" / "checkpoints" / "last.pt")
    assert state["resume"]["finished"], "the run says that it is not finished"
    numbers = [v.float().numpy().tobytes() for v in state["state_dict"].values()]
    lines = (out / "tiny" / "metrics.jsonl").read_text().splitlines()
    kinds = [(json.loads(line)["kind"], json.loads(line)["step"]) for line in lines]
    return hashlib.sha256(b"".join(numbers)).hexdigest() + str(kinds)


def fit(source: Path, out: Path) -> None:
    values = {
        "name": "fit",
        "logs": str(out),
        "device": "cpu",
        "seeds": [0],
        "pictures": False,
        "data": {"path": str(source / "one"), "size": 32, "cache": str(out / "data"), "splits": [0.5, 0.25, 0.25]},
        "finetune": {"epochs": 2, "min_steps": 2, "batch_size": 8},
    }
    classification.TASK.run_seeds(config.from_dict(classification.ClassificationConfig, values))


def fitted(out: Path) -> str:
    return _digest([out / "fit/seed-0/predictions.csv"]) + str(
        json.loads((out / "fit/metrics.json").read_text())["metrics"]
    )


@dataclass(frozen=True)
class Subject:
    """A piece of work: how it is done in a folder, and what it leaves there, as text that can be compared."""

    name: str
    work: Callable[[Path, Path], None]
    outcome: Callable[[Path], str]


SUBJECTS = {
    s.name: s
    for s in (
        Subject("checkpoint", save_often, saved),
        Subject("packing", pack, packed),
        Subject("pretraining", train, trained),
        Subject("fine-tuning", fit, fitted),
    )
}


def write_in_place(_: Path, out: Path) -> None:
    with open(out / "number.json", "w") as stream:
        stream.write("[1, ")
        stream.flush()
        os.fsync(stream.fileno())
        stream.write("2]")


FLAWED = {
    "in place": Subject("in place", write_in_place, lambda out: (out / "number.json").read_text())
}  # to test this file


@dataclass(frozen=True)
class Moment:
    """When a trial is killed: at the n-th call that changes the disk, before or after it; or after some seconds."""

    call: int = 0
    after: bool = False
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} call {self.call}" if self.call else f"after {self.seconds:.3f} s"


class Narrow(nn.Module):
    """A ResNet's parts under their names, each a convolution to 4 channels."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, 4, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(4)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)
        for number in range(1, 5):
            block = nn.Sequential(OrderedDict(conv1=nn.Conv2d(4, 4, 3, stride=1 if number == 1 else 2, padding=1)))
            setattr(self, f"layer{number}", nn.Sequential(block))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


def make_cheap() -> None:
    """In this process resnet18 is `Narrow`, and a picture of a run is a file of a few bytes."""

    def build(encoder) -> nn.Module:
        encoder.channels, encoder.strides, encoder.width = (4,) * 5, (2, 4, 8, 16, 32), 4
        return Narrow(encoder.spec.in_channels)

    def picture(path: Path, *_, **__) -> np.ndarray:
        Path(path).write_bytes(b"a picture")
        return np.zeros((4, 4, 3), np.uint8)

    encoders.ResNet.build = build
    encoders.ResNet.sizes["resnet18"] = ("basic", 1, 1, 1, 1)  # by which its checkpoints are known again
    plots.contact_sheet = plots.training_curve = picture


def processes() -> multiprocessing.context.BaseContext:
    """Where trials are forked: from a process of one thread that has done all work once (`tests.faults.warm`)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.warm"])
    before = os.environ.copy()
    os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _do(name: str, source: Path, out: Path, call: int, after: bool, answer: Path, limit: float) -> None:
    """In the trial's process: do the work, and die at the call that is named; leave the number of calls in `answer`."""
    sink = os.open(out.parent / f"{out.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    faulthandler.dump_traceback_later(0.9 * limit)  # where it hangs, into the log
    torch.set_num_threads(1)
    tqdm.set_lock(
        threading.RLock()
    )  # that of the server is shared, and stays shut where a trial is killed while it prints
    make_cheap()
    os.chdir(out)
    made = 0

    def watched(function):
        def call_it(*arguments, **options):
            nonlocal made
            made += 1
            if made == call and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **options)
            if made == call and after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call_it

    before = {function: getattr(os, function) for function in CALLS}
    for function, original in before.items():
        setattr(os, function, watched(original))
    (SUBJECTS | FLAWED)[name].work(source, out)
    for function, original in before.items():
        setattr(os, function, original)
    answer.write_text(str(made))


def run(
    subject: Subject, source: Path, out: Path, moment: Moment | None = None, limit: float = 600
) -> tuple[bool, float, int]:
    """(whether it ended by itself and well, seconds, calls) of a trial in `out`. TimeoutError where it hangs."""
    answer = out.parent / f"{out.name}.calls"
    answer.unlink(missing_ok=True)
    where = moment or Moment()
    arguments = (subject.name, source, out, where.call, where.after, answer, limit)
    process = processes().Process(target=_do, args=arguments)
    start = time.monotonic()
    process.start()
    process.join(where.seconds or limit)
    if process.is_alive():
        process.kill()
        process.join()
        if not where.seconds:
            log = out.parent / f"{out.name}.log"
            raise TimeoutError(
                f"{subject.name} hangs: not done in {limit} s; {log.read_text(errors='replace')[-1500:]}"
            )
    spent = time.monotonic() - start
    told = answer.read_text() if answer.is_file() else ""
    calls = int(told) if told else 0  # a child that is killed while it writes leaves the file empty
    return process.exitcode == 0, spent, calls


def torn(out: Path) -> list[str]:
    """Files that stand under their own names and are not whole."""
    torn_files = []
    for file in sorted(p for p in out.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.parts)):
        if any(".partial" in part for part in file.parts):
            continue
        try:
            if file.suffix == ".pt":
                checkpoints.read(file)
            elif file.suffix == ".json":
                json.loads(file.read_text())
            elif file.suffix == ".yaml":
                yaml.safe_load(file.read_text())
            elif file.suffix == ".csv":
                rows = list(csv.reader(file.open(newline="")))
                assert rows and all(len(row) == len(rows[0]) for row in rows), "rows of different length"
        except (ValueError, AssertionError) as error:
            torn_files.append(f"{file.relative_to(out)}: {error}")
    return torn_files


NOTES = ("journal.jsonl", "plan.json", "coding.json", ".lock", ".claim")  # what is kept until the work is done


def litter(out: Path) -> list[str]:
    """What a finished piece of work should not leave: temporary files, unfinished folders, notes and locks."""
    names = [p.relative_to(out).as_posix() for p in out.rglob("*")]
    return [n for n in names if n.endswith((".tmp", ".partial", ".replaced", *NOTES)) or ".tmp." in n]


@dataclass
class Trial:
    """What one piece of work went through, and what was lost by it ("" for nothing)."""

    subject: str
    moments: list[Moment]
    killed: int
    lost: str
    litter: list[str]


def try_once(subject: Subject, source: Path, folder: Path, moments: list[Moment], expected: str) -> Trial:
    """Kill the work at each of `moments` in turn, then let it end; what it left must be `expected`."""
    out = folder / subject.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (folder / f"{out.name}.log").unlink(missing_ok=True)
    killed, lost = 0, ""
    try:
        for moment in moments:
            ended, _, _ = run(subject, source, out, moment)
            killed += not ended
            if broken := torn(out):
                lost = f"torn: {broken[0]}"
        ended, _, _ = run(subject, source, out)
        if not ended:
            lost = lost or f"the same call does not go on: {last_line(folder / f'{out.name}.log')}"
        elif (outcome := subject.outcome(out)) != expected:
            lost = lost or f"another outcome: {outcome[:80]} instead of {expected[:80]}"
    except (TimeoutError, AssertionError, ValueError, OSError) as error:
        lost = lost or f"{type(error).__name__}: {error}"
    return Trial(subject.name, moments, killed, lost, litter(out))


def left_alone(subject: Subject, source: Path, folder: Path) -> tuple[str, float, int]:
    """(outcome, seconds, calls) of the work that nobody kills."""
    out = folder / f"{subject.name}-alone"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    ended, seconds, calls = run(subject, source, out)
    if not ended:
        raise RuntimeError(f"{subject.name} fails without any kill: {last_line(folder / f'{out.name}.log')}")
    return subject.outcome(out), seconds, calls


def trials(names: list[str], source: Path, folder: Path, seed: int, first: int = 0) -> Iterator[Trial]:
    """Without end, from number `first` on: each subject in turn, killed at its calls one after the other in a shuffled order.

    Up to three more kills, at calls or at random times, come before or after that one. A number always means the same trial.
    """
    known, places = {}, {}
    for number in itertools.count(first):
        name = names[number % len(names)]
        subject = SUBJECTS[name]
        if name not in known:
            known[name] = left_alone(subject, source, folder)
            places[name] = [Moment(n, after) for n in range(1, known[name][2] + 1) for after in (False, True)]
            random.Random(f"{seed} {name}").shuffle(places[name])
        expected, seconds, calls = known[name]
        earlier = number // len(names) * names.count(name) + names[: number % len(names)].count(name)
        moments, rng = [places[name][earlier % len(places[name])]], random.Random(f"{seed} {number}")
        for _ in range(rng.randrange(4)):
            at_call = Moment(rng.randint(1, calls), rng.random() < 0.5)
            moments.append(at_call if rng.random() < 0.5 else Moment(seconds=rng.uniform(0.02, max(0.1, seconds))))
        rng.shuffle(moments)
        yield try_once(subject, source, folder, moments, expected)


def _digest(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def last_line(log: Path) -> str:
    """The last thing that a trial's process said."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1] if lines else "it says nothing"
