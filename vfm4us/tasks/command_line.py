"""What the two scripts of a task do. The command line is read before the task is imported, which takes seconds."""

from pathlib import Path

from vfm4us import config, log
from vfm4us.tasks.sections import TASKS


def train(task: str, doc: str | None) -> None:
    """What the train.py of the task does: --config FILE and section.key=value; without either, the built-in phantoms."""
    kind, file = TASKS[task], Path(f"configs/smoke/{task}.yaml")
    said = f"No --config and no data.path: {kind.doing} of built-in synthetic ultrasound ({file})."
    settings, built_in = config.from_command_line(kind, doc, file, said, unless="data.path")
    from vfm4us.tasks.base import table, task_named

    if built_in:
        from vfm4us.phantoms.folders import write_quickstart_phantoms

        write_quickstart_phantoms()
    trained = task_named(task)
    result = trained.run_seeds(settings)
    said = trained.conclusion(result) if len(settings.seeds) > 1 else ""  # one seed has said its own
    where = Path(settings.logs) / settings.name
    log.say("\n".join(["", table(result, len(settings.seeds)), "", *trained.below(said), f"written to {where}"]))


def evaluate(task: str, doc: str | None) -> None:
    """What the evaluate.py of the task does: CHECKPOINT DATA and the flags of its evaluation config."""
    options = config.from_flags(TASKS[task].evaluation, doc, ("checkpoint", "data"))
    from vfm4us.tasks.base import task_named

    task_named(task).evaluate_files(options)
