"""Pretrain what is missing, run every cell of a results table, keep what is finished, and write the tables.

    python scripts/reproduce_tables.py                                                 built-in synthetic ultrasound
    python scripts/reproduce_tables.py --config configs/tables/small.yaml data=DIR workers=2
    python scripts/reproduce_tables.py --config configs/tables/classification.yaml data=DIR encoder=logs/open_sets
        [section.key=value ...]

A table of methods (`encoders` and `tasks`) pretrains each method coarse, fine and coarse-to-fine on equally many images, or as its
config says, and tests all of them on every task. With `folds` seed s holds a fold back from pretraining and is tested on it;
`contrasts` compares pairs of them. Writes logs/<name>/tables.md, results.csv, differences.csv, metrics.json and charts per task.
A table of one task (`task`, `cells`, `axes`) takes encoders as they are: a cell is a combination of one value of each axis. Writes
logs/<name>/table.md, metrics.json and table.png of what is there, after every cell. {data} and {encoder} stand for the keys of
that name. In both, cells lie in logs/<name>/<cell>/ as the task's train.py leaves them, intervals are over seeds and test groups,
and differences are paired in the test images.

The same command goes on where it was stopped. workers=N runs N processes here, one GPU each where there are GPUs; the same command
on another machine that shares the folder helps along (shard=1/2 and shard=2/2 where it shares no locks). A cell that fails or
whose data are absent does not stop the others: both are listed at the end, and a failure makes the exit code 1.
"""

import os
import socket
import sys
import time
from pathlib import Path

from vfm4us import config
from vfm4us.runtime.signals import exit_code
from vfm4us.tables.plan import TableConfig, absences, make_plan

BUILT_IN = Path("configs/smoke/tables.yaml")


def main() -> int:
    """Run what is missing of a table, write and print it; returns 1 where a run failed or was not reached, else 0."""
    said = (
        f"No --config: a table of built-in synthetic ultrasound ({BUILT_IN}), which shows the form and proves nothing."
    )
    settings, built_in = config.from_command_line(TableConfig, __doc__, BUILT_IN, said)
    from vfm4us.tables import report  # seconds that --help can do without
    from vfm4us.tables.leakage import check_leakage
    from vfm4us.tables.run import run_workers, work

    if built_in:
        from vfm4us.phantoms.folders import write_quickstart_phantoms

        write_quickstart_phantoms()
    plan, out = make_plan(settings), Path(settings.logs) / settings.name
    if settings.worker:
        invocation, device, parent = settings.worker.split()
        work(plan, invocation, device, int(parent))
        return 0
    leakage = check_leakage(plan) if settings.tasks else {}
    invocation = f"{socket.gethostname()}-{os.getpid()}-{time.time():.0f}"
    if settings.workers > 1:
        command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:]]
        run_workers(command, settings.workers, plan, out, invocation)
    elif settings.workers:
        work(plan, invocation, after=lambda: settings.tasks or report.write(settings, plan))
    text = report.write(settings, plan, leakage)
    print(f"\n{text}")
    failed = [job for job in plan.jobs if job.failed(invocation)]
    waiting = [cell.name for cell in plan.wanted if not (cell.finished or cell.absent or cell in failed)]
    for reason in absences(plan.cells):
        print(reason)
    for job in failed:
        print(f"FAILED: {job.name}: {job.error.read_text().splitlines()[-1]} (see {job.error})")
    if waiting and settings.workers:
        print(f"Not run: {', '.join(waiting)}")
    return 1 if settings.workers and (failed or waiting) else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
