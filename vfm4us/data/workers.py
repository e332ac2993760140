"""Processes that do the same work on many items, in order, within one budget of pixels, whatever becomes of one of them.

Each is a fresh interpreter that imports nothing of the caller's main module: no main guard in a notebook, no torch in a worker. A
thread feeds each and reads its answers. A worker that dies takes nothing with it: what it had is done again, item by item and
alone, in a fresh one. Workers end with their parent, however it ends, as their input ends then.
"""

import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vfm4us.data import limits

CRASHES = {
    getattr(signal, name) for name in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT") if hasattr(signal, name)
}
OWN_SHARE = 4  # the part of the budget that all workers together may use without asking is one in so many
ENDING = 10.0  # seconds that a killed worker may take to be gone
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerDied(Exception):
    """A worker has ended without an answer; `code` as `subprocess` gives it."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code

    @property
    def crashed(self) -> bool:
        """Whether the work itself ended it, as a fault in a decoder does; a kill from outside may be for want of memory."""
        return -self.code in CRASHES or self.code >= 0x80000000  # the second are exceptions of Windows

    def __str__(self) -> str:
        if self.code < 0:
            return signal.Signals(-self.code).name
        return f"exit code {self.code}"


def in_processes(
    work: Callable,
    common: tuple,
    batches: Iterable[list],
    count: int,
    ahead: int,
    given_up: Callable[[Any, WorkerDied], Any],
) -> Iterator[list]:
    """[work(item, *common) for item in batch] for every batch, in order, by `count` processes.

    work:     a function of a module, not of the main one; it, `common`, items and results are pickled
    ahead:    batches that are under way at once
    given_up: result of an item that ended its worker twice, the second time alone; or what it raises
    What `work` raises is raised here. Close the generator, and all processes have ended.
    """
    pool = _Pool(work, common, count, given_up)
    under_way: deque[Future] = deque()
    with ThreadPoolExecutor(count) as threads:
        try:
            for batch in batches:
                under_way.append(threads.submit(pool.results, batch))
                if len(under_way) >= ahead:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.close()  # first of all: a thread that waits for an answer goes on when its worker is gone
            threads.shutdown(cancel_futures=True)


class _Pool:
    """One worker for each thread that asks, and what they share."""

    def __init__(self, work: Callable, common: tuple, count: int, given_up: Callable):
        self.allowance = limits.MAXIMUM_PIXELS // (OWN_SHARE * count)
        self.budget = limits.PixelBudget(limits.MAXIMUM_PIXELS - count * self.allowance)
        self.beginning = work, common, self.allowance
        self.given_up = given_up
        self.of_thread = threading.local()
        self.lock, self.closed = threading.Lock(), False
        self.processes: list[subprocess.Popen] = []

    def results(self, batch: list) -> list:
        try:
            return self._ask(batch)
        except WorkerDied as died:
            if self.closed or died.code > 0 and not died.crashed:  # it could not begin, or ended itself: it would again
                raise ChildProcessError(f"a process that packs ended with {died}") from died
        return [self._alone(item) for item in batch]

    def _alone(self, item) -> Any:
        """The result of an item whose batch ended a worker, while no other large image is under way."""
        with self.budget.hold(limits.MAXIMUM_PIXELS):
            try:
                return self._ask([item])[0]
            except WorkerDied as died:
                if self.closed:
                    raise
                return self.given_up(item, died)

    def _ask(self, batch: list) -> list:
        process = getattr(self.of_thread, "process", None) or self._started()
        try:
            _send(process.stdin, batch)
            with contextlib.ExitStack() as held:
                while True:
                    kind, content = _receive(process.stdout)
                    if kind == "hold":
                        held.enter_context(self.budget.hold(content))
                        _send(process.stdin, "go")
                    elif kind == "release":
                        held.close()
                    elif kind == "raised":
                        raise content
                    else:
                        return content
        except (EOFError, BrokenPipeError) as error:
            self.of_thread.process = None
            try:
                code = process.wait(ENDING)
            except subprocess.TimeoutExpired:  # it answers no more, and does not end
                process.kill()
                code = process.wait(ENDING)
            raise WorkerDied(code) from error

    def _started(self) -> subprocess.Popen:
        """A new worker of this thread."""
        path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
        with self.lock:
            if self.closed:
                raise WorkerDied(-signal.SIGTERM)
            process = subprocess.Popen(
                [sys.executable, "-c", "from vfm4us.data.workers import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path, **dict.fromkeys(ONE_THREAD, "1")},
                process_group=0 if os.name == "posix" else None,  # Ctrl-C is the parent's, which ends them
            )
            self.processes.append(process)
        self.of_thread.process = process
        with contextlib.suppress(BrokenPipeError):  # the answer that does not come tells it
            _send(process.stdin, self.beginning)
        return process

    def close(self) -> None:
        """End all workers."""
        with self.lock:
            self.closed = True
            for process in self.processes:
                process.kill()
        for process in self.processes:
            process.wait(ENDING)


class _AskingBudget:
    """The budget of a worker: more than its own allowance is asked of the parent."""

    def __init__(self, inward, outward, allowance: int):
        self.inward, self.outward, self.allowance, self.holds = inward, outward, allowance, False

    @contextlib.contextmanager
    def hold(self, pixels: int):
        if self.holds:
            yield
            return
        asks = pixels > self.allowance
        if asks:
            _send(self.outward, ("hold", pixels))
            _receive(self.inward)
        self.holds = True
        try:
            yield
        finally:
            self.holds = False
            if asks:
                _send(self.outward, ("release", None))


def serve() -> None:
    """What a worker does until its input ends: take a batch, answer with its results."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    inward, outward = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    with contextlib.suppress(EOFError, BrokenPipeError):
        work, common, allowance = _receive(inward)
        limits.share_budget(_AskingBudget(inward, outward, allowance))
        while True:
            batch = _receive(inward)
            try:
                answer = ("done", [work(item, *common) for item in batch])
            except (EOFError, BrokenPipeError):
                raise
            except Exception as error:
                answer = ("raised", _picklable(error))
            _send(outward, answer)
    os._exit(0)  # nothing is left to tidy, and nobody listens


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  (its own words)
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _send(stream, content) -> None:
    """One message: large buffers lie behind the rest, so that they are not copied into it."""
    buffers: list[pickle.PickleBuffer] = []
    parts = [pickle.dumps(content, protocol=5, buffer_callback=buffers.append)]
    parts += [buffer.raw() for buffer in buffers]
    stream.write(struct.pack(f"<{len(parts) + 1}Q", len(parts), *(len(part) for part in parts)))
    for part in parts:
        stream.write(part)
    stream.flush()


def _receive(stream) -> Any:
    """The next message; EOFError where there is none, or only a part."""
    (count,) = struct.unpack("<Q", _exactly(stream, 8))
    sizes = struct.unpack(f"<{count}Q", _exactly(stream, 8 * count))
    first, *buffers = [_exactly(stream, size) for size in sizes]
    return pickle.loads(first, buffers=buffers)  # noqa: S301  (from a process of our own, by a pipe nobody else has)


def _exactly(stream, size: int) -> bytearray:
    data = bytearray(size)
    view, place = memoryview(data), 0
    while place < size:
        if not (read := stream.readinto(view[place:])):
            raise EOFError
        place += read
    return data
