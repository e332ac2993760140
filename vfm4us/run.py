"""A run: its folder, its device, its processes, its random numbers, its log, and how it stops and continues."""

import contextlib
import datetime
import fcntl
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import yaml

from vfm4us import __version__
from vfm4us.config import changed_keys, to_dict


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is this process's GPU where there is one, else the CPU. Raises ValueError for a GPU that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: {name!r} is no device; use auto, cpu, cuda or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: {name!r} is not supported; use auto, cpu or cuda")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device={name}: PyTorch sees no GPU here; use device=cpu or device=auto")
        index, count = int(os.environ.get("LOCAL_RANK", device.index or 0)), torch.cuda.device_count()
        if index >= count:
            raise ValueError(
                f"device: GPU {index} was asked for, there are {count}; lower --nproc_per_node or change device"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return device


def autocast(device: torch.device, precision: str = "auto"):
    """bf16 autocast where `precision` asks for it; `auto` is bf16 on a GPU and float32 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(device, precision))


def in_bfloat16(device: torch.device, precision: str) -> bool:
    return precision == "bfloat16" or (precision == "auto" and device.type == "cuda")


def choose_attention(network: torch.nn.Module, device: torch.device, precision: str) -> None:
    """timm's attention written out where the fused kernel is slower: on a CPU in bf16 (`benchmark.py attention` has the ratio)."""
    if device.type == "cpu" and in_bfloat16(device, precision):
        for module in network.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False


@contextlib.contextmanager
def processes(device_type: str):
    """(rank, world size) under torchrun, with the process group open; (0, 1) for a plain `python script`."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield 0, 1
        return
    # Process 0 alone packs data, measures and draws while the others wait, for longer than the default 10 minutes.
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=datetime.timedelta(hours=12))
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes; one flat message."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator that is a function of (seed, stage, step, ...) alone, so that resuming needs no saved state."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def cosine_with_warmup(step: int, steps: int, warmup: float, peak: float) -> float:
    """Learning rate at `step` of `steps`: linear from 0 over the first share `warmup`, then a half cosine to 0."""
    rising = int(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return 0.5 * peak * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


class Stopped(Exception):
    """Asked to stop by signal `number`; everything is saved in `folder`."""

    def __init__(self, number: int, folder: Path):
        super().__init__(f"saved in {folder}; the same command goes on from here")
        self.number = number


def exit_code(main: Callable[[], int | None]) -> int:
    """Run a script's `main` and return its exit code; what a user can cause becomes one line instead of a traceback.

    ValueError, OSError, FloatingPointError: `error: ...` and 2. Stopped: 128 + the signal, so 130 (SIGINT) or 143 (SIGTERM).
    KeyboardInterrupt: 130.
    """
    try:
        return main() or 0
    except Stopped as stopped:
        print(stopped)
        return 128 + stopped.number
    except KeyboardInterrupt:
        print("left at once; the same command goes on from what is saved, if there is anything yet", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, OSError, FloatingPointError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror and error.filename is None else error
        print(f"error: {words}", file=sys.stderr)
        return 2


class StopSignal:
    """Remembers the first SIGINT or SIGTERM, so that the loop can save and leave; a second one leaves at once."""

    def __init__(self):
        self.number = 0

    def __enter__(self):
        self.before = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number, _frame):
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        print(f"\n{signal.Signals(number).name}: saving after this step; once more leaves at once", file=sys.stderr)

    def seen_by_any(self, world_size: int, device: torch.device) -> bool:
        """Whether any process has been asked to stop; all of them agree."""
        if world_size == 1:
            return self.number != 0
        flag = torch.tensor([float(self.number != 0)], device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return flag.item() > 0


class RunFolder:
    """`logs/<name>/`: config.yaml, run.json, metrics.jsonl, TensorBoard events, checkpoints/.

    The same command continues; a changed config raises ValueError that lists the changed keys, unless `resume` is False,
    which moves the old folder aside (nothing is deleted). A folder without a checkpoint has nothing to continue.
    """

    def __init__(self, folder: Path, config, resume: bool = True, main: bool = True):
        self.folder, self.main = Path(folder), main
        self.checkpoints = self.folder / "checkpoints"
        if main:
            self._open(config, resume)
        if dist.is_available() and dist.is_initialized():
            dist.barrier()

    def _open(self, config, resume: bool) -> None:
        described = self.folder / "config.yaml"
        if described.is_file() and not resume:
            number = 1
            while (aside := self.folder.with_name(f"{self.folder.name}-old{number}")).exists():
                number += 1
            self.folder.rename(aside)
            print(f"resume=false: the earlier run now lies in {aside}")
        elif (self.checkpoints / "last.pt").is_file() or (self.folder / "metrics.json").is_file():
            refuse_changed(self.folder, config)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.folder / ".lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"{self.folder} is in use by another process; wait for it, or give this run another name"
            ) from error
        for rubbish in self.checkpoints.glob(".*.tmp"):  # of a process that was killed while saving
            rubbish.unlink()
        write_text(described, yaml.safe_dump(to_dict(config), sort_keys=False))
        history = self.folder / "run.json"
        try:
            starts = json.loads(history.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            starts = []
        write_text(history, json.dumps(starts + [describe_run()], indent=1))

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
        self.stream = open(self.folder / "metrics.jsonl", "a", buffering=1)
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
        if self.main and hasattr(self, "stream"):
            self.stream.close()
            self.tensorboard.close()
        if hasattr(self, "lock"):
            self.lock.close()


def refuse_changed(folder: Path, config) -> None:
    """Raise ValueError that lists the changed keys, where the run in `folder` was made with another config."""
    if changed := changed_keys(_read_config(folder / "config.yaml"), config):
        raise ValueError(
            f"{folder} holds a run with another config:\n  "
            + "\n  ".join(changed)
            + "\nGive the run another name (name=...), or resume=false to start afresh (the old one is moved aside)."
        )


def describe_run() -> dict:
    """What a reader needs to repeat a run: arguments, code, versions, machine, time."""

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


def device_name() -> str:
    """The GPU's name, else the CPU's with the number of threads in use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def _read_config(path: Path) -> dict:
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, FileNotFoundError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"{path} cannot be read, so this run cannot be compared with it; restore it, or resume=false")
    return values


def write_text(path: Path, text: str) -> None:
    """Write `text` whole or not at all: a temporary file beside it, then a rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
