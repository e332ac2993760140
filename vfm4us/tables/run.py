"""Who runs which job of a table: one process, several, or several machines; each job is claimed by one of them.

work(plan, invocation)             # or run_workers(...): several processes, also of several machines
"""

import os
import subprocess
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import torch

from vfm4us import log
from vfm4us.runtime import signals
from vfm4us.tables.plan import Cell, Plan, Pretraining


def work(
    plan: Plan, invocation: str, device: str = "auto", parent: int = 0, after: Callable = lambda: None, say=log.say
) -> None:
    """Run every job that is not finished and that no other process has, until none is left; a failure is recorded and passed by.

    device: for jobs whose config leaves it open; parent: the process without which a worker goes no further; after() follows each.
    """
    jobs = plan.jobs
    for job in jobs:
        if job.finished:
            say(f"{job.folder} is finished")
        elif job.config.device == "auto":
            job.config.device = device
    while True:
        progress = waiting = False
        left = [job for job in jobs if not job.finished and not job.failed(invocation)]
        for job in left:
            needs = job.needs if isinstance(job, Cell) else []
            if any(p.failed(invocation) for p in needs):
                continue
            if not all(p.finished for p in needs):
                waiting = True
                continue
            with job.claim() as stream:
                if stream is None:
                    waiting = True
                elif not job.finished and not job.failed(invocation):
                    say(f"\n=== {job.name}, {sum(j.finished for j in jobs) + 1} of {len(jobs)}")
                    _run_claimed(job, stream, invocation, say)
                    after()
                    progress = True
            if parent and os.getppid() != parent:
                return
        if not waiting:
            return
        if not progress:
            time.sleep(1)


def _run_claimed(job: Pretraining | Cell, stream: TextIO, invocation: str, say) -> None:
    stream.seek(0)
    if stream.read() == invocation:  # held by a process that ended without a word
        return job.fail(invocation, "The process that ran this was killed, perhaps for want of memory.\n")
    stream.truncate(0)
    stream.write(invocation)
    stream.flush()
    try:
        job.run()
        job.error.unlink(missing_ok=True)
    except signals.Stopped:
        raise
    except Exception as error:
        job.fail(invocation, traceback.format_exc())
        say(f"FAILED: {job.name}: {error} ({job.error})")
    finally:
        stream.truncate(0)


def run_workers(command: list[str], count: int, plan: Plan, out: Path, invocation: str, say=log.say) -> None:
    """`count` processes of `command` side by side; each works as `work` does and writes worker-<k>.log.

    A signal to stop is passed on, and signals.Stopped raised when all have saved and left.
    """
    out.mkdir(parents=True, exist_ok=True)
    gpus = torch.cuda.device_count()
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // count))
    say(f"{count} workers of {threads} threads; what they say is in {out}/worker-*.log")
    processes, done, forwarded = [], {job.name for job in plan.jobs if job.finished}, False
    with signals.StopSignal() as stop:
        try:
            for k in range(count):
                device = f"cuda:{k % gpus}" if gpus else "auto"
                with open(out / f"worker-{k}.log", "w") as log:
                    processes.append(
                        subprocess.Popen(
                            [*command, f"worker={invocation} {device} {os.getpid()}"],
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            env=os.environ | {"OMP_NUM_THREADS": threads},
                            start_new_session=True,
                        )
                    )
            while any(p.poll() is None for p in processes):
                if stop.number and not forwarded:
                    forwarded = True
                    for process in processes:
                        process.send_signal(stop.number)
                time.sleep(0.5)
                done |= _report(plan, done, invocation, say)
        finally:
            for process in processes:  # left by an exception, or by a second signal
                if process.poll() is None:
                    process.kill()
                    process.wait()
    _report(plan, done, invocation, say)
    if stop.number:
        raise signals.Stopped(stop.number, out)
    for k, process in enumerate(processes):
        if process.returncode:
            say(f"worker {k} ended with {process.returncode}: {out}/worker-{k}.log")


def _report(plan: Plan, done: set[str], invocation: str, say) -> set[str]:
    jobs = plan.jobs
    new = [job for job in jobs if job.name not in done and (job.finished or job.failed(invocation))]
    for number, job in enumerate(new, len(done) + 1):
        say(f"{job.name} {'is finished' if job.finished else 'FAILED'}, {number} of {len(jobs)}")
    return {job.name for job in new}
