"""Several processes that train as one: their group, the mean of their gradients, and a watch over who is missing."""

import contextlib
import datetime
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

LONGEST = datetime.timedelta(hours=12)  # process 0 alone packs data, measures and draws while the others wait
SAY_AFTER = 60.0  # seconds of waiting for another process until it is named
BEAT = 2.0  # seconds between two signs of life

_cpu_group = None  # None: the only one there is
_watch: "Watch | None" = None


class LostProcess(ValueError):
    """Another process of the run has ended or does not answer; what is saved can be gone on with."""


@contextlib.contextmanager
def processes(device_type: str, wait_minutes: float = 30.0) -> Iterator[tuple[int, int]]:
    """(rank, world size) under torchrun, with the process group open; (0, 1) for a plain `python script`.

    wait_minutes: how long a step may wait for another process before this one ends. Raises LostProcess where another has ended.
    """
    global _cpu_group, _watch
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield 0, 1
        return
    store, rank, world_size = next(dist.rendezvous("env://", timeout=LONGEST))
    store.set_timeout(LONGEST)
    # A clone is a connection of its own: the watch must not wait for a call of the group.
    _watch = Watch(dist.PrefixStore("watch", store.clone()), rank, world_size, 60 * wait_minutes)
    backend = "nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", store), rank=rank, world_size=world_size, timeout=LONGEST
    )
    _cpu_group = dist.new_group(backend="gloo") if device_type == "cuda" else None
    try:
        yield rank, world_size
    except RuntimeError as error:  # what gloo and NCCL raise where the other end is gone
        if lost := _watch.silent():
            raise LostProcess(
                f"{lost} of this run has ended, and its own message says why; this one (rank {rank}) ends with it. "
                "The same command goes on from what is saved"
            ) from error
        raise
    finally:
        _watch.stop()
        _watch, alive = None, not isinstance(sys.exc_info()[1], LostProcess)
        if alive:
            dist.destroy_process_group()


class Watch(threading.Thread):
    """Tells the other processes what this one does, and says which of them is missing.

    Each process writes how often it has come to meet the others (in a collective call), and a sign of life. Where it waits at a
    meeting that another has not come to, that one is named after a minute, and after `longest` seconds it ends with code 1.
    A process that says that it is busy alone (packing, measuring) is waited for as long as it gives signs of life.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, longest: float):
        super().__init__(daemon=True)
        self.store, self.rank, self.world_size, self.longest = store, rank, world_size, longest
        self.place, self.busy, self.since = 0, "", time.monotonic()
        self.others: dict[int, tuple[str, float]] = {}  # rank -> what it wrote last, and when that was seen to change
        self.said, self.ended = False, threading.Event()
        self.who = f"process {os.getpid()} on {platform.node()}"
        self._write()
        self.start()

    def come(self) -> None:
        """This process comes to the next meeting."""
        self.place, self.since, self.said = self.place + 1, time.monotonic(), False

    def run(self) -> None:
        """Write this rank's sign of life and look for the others' until stopped."""
        while not self.ended.wait(BEAT):
            try:
                self._write()
                self._look()
            except RuntimeError:  # the store is gone, and with it the run
                return

    def stop(self) -> None:
        """The thread ends at its next beat."""
        self.ended.set()

    def silent(self) -> str:
        """The process that has given no sign of life for some seconds; '' where all do."""
        # It may have ended before it was first looked at, and this thread may be slow.
        until = time.monotonic() + 8 * BEAT
        while time.monotonic() < until:
            for rank, (text, changed) in sorted(self.others.items()):
                if time.monotonic() - changed > 3 * BEAT:
                    return f"rank {rank} ({text.split('|')[3]})"
            time.sleep(0.1)
        return ""

    def _write(self) -> None:
        self.store.set(str(self.rank), f"{self.place}|{self.busy}|{time.monotonic()}|{self.who}")

    def _look(self) -> None:
        missing = []
        for rank in range(self.world_size):
            if rank == self.rank or not self.store.check([str(rank)]):
                continue
            text, now = self.store.get(str(rank)).decode(), time.monotonic()
            if self.others.get(rank, ("", 0.0))[0] != text:
                self.others[rank] = (text, now)
            place, busy, _, who = text.split("|")
            dumb = now - self.others[rank][1] > SAY_AFTER
            if int(place) < self.place or dumb:
                missing.append((f"rank {rank} ({who})" + (f", {busy}" if busy and not dumb else ""), busy and not dumb))
        waited = time.monotonic() - self.since
        if not missing or self.busy or waited < SAY_AFTER:
            return
        names = "; ".join(name for name, _ in missing)
        # printed, not logged: no lock of a handler may keep this thread from ending the process
        if not self.said:
            self.said = True
            print(f"rank {self.rank} has waited {waited:.0f} s for {names}", file=sys.stderr, flush=True)
        if waited > self.longest and not all(busy for _, busy in missing):
            print(
                f"error: rank {self.rank} has waited {waited / 60:.1f} minutes for {names} and ends (wait_minutes). "
                "The same command goes on from what is saved",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)  # the main thread is held by a call that nobody can interrupt


def come_to_meeting() -> None:
    """To be called before each collective call: from here on this process waits for the others."""
    if _watch is not None:
        _watch.come()


def barrier() -> None:
    """Wait until all processes are here; nothing for one process."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        come_to_meeting()
        dist.barrier()


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """This process does `what` alone, while the others wait as long as it takes."""
    if _watch is None:
        yield
        return
    _watch.busy = what
    try:
        yield
    finally:
        _watch.busy = ""
        _watch.since = time.monotonic()


def agreed(value: str) -> str:
    """The value of process 0, for all."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        values = [value]
        come_to_meeting()
        dist.broadcast_object_list(values, 0)
        return values[0]
    return value


def cpu_group() -> dist.ProcessGroup | None:
    """The group of all processes whose messages lie in the memory of the CPU."""
    return _cpu_group


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes; one flat message."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    come_to_meeting()
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
