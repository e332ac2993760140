"""The runs behind a results table: encoders to pretrain, cells to train and test.

    plan = make_plan(settings)         # every config is checked before the first of them runs

A job is the pretraining of one encoder or a cell: one method and stage on one dataset, with all its seeds. A job lies in its own
folder, is claimed by a lock there for as long as it runs, and is not run again when finished.
"""

import contextlib
import copy
import fcntl
import fnmatch
import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TextIO

from vfm4us import config
from vfm4us.config import option
from vfm4us.pretraining import settings as pretraining_settings
from vfm4us.pretraining.settings import PretrainingConfig
from vfm4us.runtime.files import write_text
from vfm4us.runtime.run import refuse_changed
from vfm4us.tasks.sections import TASKS
from vfm4us.tasks.settings import TaskConfig

if TYPE_CHECKING:
    from vfm4us.tasks.base import Task

STAGES = ("coarse", "fine", "coarse-to-fine")
AS_CONFIGURED = "as configured"  # all stages of a config, be it one, two or more, with what each of them says
ORIGINS = {  # what to get where a cell's data are absent; by the folder's name in lower case
    "busi": "BUSI, Breast ultrasound images (Al-Dhabyani 2020, CC0 / CC BY 4.0)",
    "liver": "AUL, liver (Xu 2023, Zenodo 7272660, CC BY 4.0)",
    "gallbladder": "gallbladder, biliary atresia (Zhou 2021, MIT)",
    "fetal_head": "HC18, fetal heads (van den Heuvel 2018, Zenodo 1327317, CC BY 4.0)",
    "fetal_brain": "part of FETAL_PLANES_DB (Burgos-Artizzu 2020, Zenodo 3904280, CC BY 4.0)",
    "fetal_planes": "FETAL_PLANES_DB (Burgos-Artizzu 2020, Zenodo 3904280, CC BY 4.0)",
    "nerve": "usgra-seg (2025, CC BY 4.0)",
    "muscle": "the TimTrack sets (CC0 / CC BY 4.0)",
    "tn3k": "TN3K, thyroid nodules",
    "c_trus": "C-TRUS, colon wall",
    "fetal_abdomen": "fetal abdominal structures (Mendeley 4gcpm9dsc3, CC BY 4.0)",
    "us-510k": "US-510K: the ultrasound part of RadImageNet (on request) and US-MTD120K (Zenodo 8367932)",
}


@dataclass
class MethodConfig:
    """One method of a table of methods: how its encoders are pretrained, or what its cells start from without pretraining."""

    config: str = option("", "pretraining config of two stages, coarse and fine; empty: nothing is pretrained")
    stages: list[str] = option(
        list(STAGES),
        "what is pretrained: coarse, fine, coarse-to-fine, each on as many images; or as configured, any stages that it has",
    )
    keys: dict = option({}, "keys laid over that config")
    encoder: dict = option(
        {}, "encoder keys of the cells where nothing is pretrained, say {weights: none, name: vit_tiny}"
    )


@dataclass
class TaskTableConfig:
    """One task of a table of methods: which cells it has and which of their figures are shown."""

    MOVED: ClassVar = {"base": "cells"}

    scores: list[str] = option([], "its figures, one part each, the first drawn")
    stages: list[str] = option([*STAGES, AS_CONFIGURED], "which of the methods' stages are tested")
    cells: dict = option({}, "keys of every cell")
    axes: dict = option({}, "axis: {value: keys that it adds}; every combination is tested")
    means: dict = option({}, "further means beside that of all: {name: [values of the axis]}")


@dataclass
class TableConfig:
    """What a results table is made of: its cells, the encoders behind them, and who runs which of them."""

    MOVED: ClassVar = {"base": "cells"}  # `base: FILE` is the file that a config builds on

    name: str = option("tables", "the cells lie in logs/<name>/<cell>")
    logs: str = option("logs", "folder for runs")
    data: str = option("", "folder of the datasets, {data} in the cells")
    encoder: str = option("", "checkpoint or run folder, {encoder} in the cells; {seed} in it: another for each seed")
    only: list[str] = option([], "cells to run now, as patterns such as 'busi-*'; empty: all")
    workers: int = option(
        1, "processes side by side on this machine; 0: write the tables of what is finished", low=0, high=256
    )
    shard: str = option("1/1", "this machine's part of the cells, say 2/4, where machines do not share locks")
    worker: str = option("", "set by the script: which of its processes this is")

    task: str = option("classification", "of a table of one task: module of vfm4us.tasks", choices=[*TASKS])
    scores: list[str] = option([], "of a table of one task: its figures, one part each")
    cells: dict = option({}, "of a table of one task: keys of every cell")
    axes: dict = option(
        {},
        "of a table of one task: axis: {value: keys that it adds}; the last becomes the columns, differences are "
        "averaged over one named dataset",
    )
    differences: list[list[str]] = option(
        [], "of a table of one task: pairs of values of the last axis, first minus second"
    )

    encoders: dict = option({}, "of a table of methods: {name: {config: FILE, stages: [...], keys: {...}}}")
    pretraining: dict = option({}, "of a table of methods: keys laid over every pretraining config")
    pretraining_seeds: list[int] = option(
        [0], "of a table of methods: one for all runs, or one for each seed of the cells", low=0, high=2**32 - 1
    )
    folds: int = option(
        0,
        "of a table of methods: cross-fitting; seed s pretrains without part s modulo folds of each tested dataset's train and val "
        "(nor what nearly equals it) and is tested on that part; 0: tested on the test splits",
        low=0,
        high=1000,
    )
    tasks: dict = option({}, "of a table of methods: {task: {scores: [...], stages: [...], cells: {...}, axes: {...}}}")
    against: list[str] = option(
        ["VFM4US", "coarse-to-fine"], "method and stage that the others are compared with; []: none"
    )
    contrasts: list[list[str]] = option(
        [],
        "of a table of methods: pairs of arms, first minus second, by 'method' or 'method, stage'; corrected for their number "
        "(Holm) and tested for equivalence",
    )
    bound: float = option(0.015, "of a contrast: what lies within +- this counts as no difference", low=1e-6, high=1.0)


class Job:
    """What pretrainings and cells share: their claim, and the record of a failure."""

    folder: Path

    @property
    def finished(self) -> bool:
        """Whether what it makes is there."""
        raise NotImplementedError

    @property
    def error(self) -> Path:
        """The file that says why the job failed."""
        return self.folder / "error.txt"

    def failed(self, invocation: str) -> bool:
        """Whether it failed in this invocation, in this process or another."""
        return self.error.is_file() and self.error.read_text().splitlines()[:1] == [invocation]

    def fail(self, invocation: str, text: str) -> None:
        """Record that it failed in this invocation, and why."""
        write_text(self.error, f"{invocation}\n{text}")

    @contextlib.contextmanager
    def claim(self) -> Iterator[TextIO | None]:
        """A file that only one process holds, on any machine that shares the folder's locks; None where another has it.

        The kernel gives it back when its holder ends, however that happens.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".claim", "a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield None
                return
            try:
                yield stream
            finally:
                if self.finished:  # nobody works on it again, so nobody is misled by a new file of that name
                    Path(stream.name).unlink(missing_ok=True)


@dataclass
class Pretraining(Job):
    """An encoder to be pretrained."""

    method: str
    stage: str
    config: PretrainingConfig
    absent: str = ""  # why it cannot be run here

    @property
    def folder(self) -> Path:  # type: ignore[override]
        """The run folder."""
        return Path(self.config.logs) / self.config.name

    @property
    def name(self) -> str:
        """How progress calls it."""
        return f"encoders/{self.config.name}"

    @property
    def encoder(self) -> Path:
        """The file of the encoder, once it is finished."""
        return self.folder / "encoder.pt"

    @property
    def finished(self) -> bool:
        return self.encoder.is_file()

    def refuse_changed(self) -> None:
        """ValueError where the folder holds a run of another config."""
        refuse_changed(self.folder, self.config)

    def run(self) -> None:
        """Pretrain, or go on where it was stopped."""
        from vfm4us.pretraining.trainer import pretrain

        pretrain(self.config)


@dataclass
class Cell(Job):
    """A downstream run of all its seeds."""

    task: str
    values: tuple[str, ...]  # one of each axis
    config: TaskConfig
    folder: Path
    method: str = ""
    stage: str = ""  # empty: nothing was pretrained for this table
    needs: list[Pretraining] = field(default_factory=list)
    scores: list[str] = field(default_factory=list)  # that are tabulated
    absent: str = ""  # why it cannot be run here

    @property
    def name(self) -> str:
        """How progress and `only` call it: its folder."""
        return self.folder.name

    @property
    def setting(self) -> str:
        """The values of the axes, in words."""
        return ", ".join(self.values)

    @property
    def dataset(self) -> str:
        """The folder's name, and the labels that are used where it is some of them: usenhance_thyroid."""
        return "_".join([Path(self.config.data.path).name, *getattr(self.config.data, "only", [])])

    @property
    def kind(self) -> "Task":
        """The task that is run."""
        from vfm4us.tasks.base import task_named

        return task_named(self.task)

    @property
    def finished(self) -> bool:
        path = self.folder / "metrics.json"
        return path.is_file() and json.loads(path.read_text())["seeds"] == self.config.seeds

    def refuse_changed(self) -> None:
        """ValueError where a seed's folder holds a run of another config."""
        for seed in self.config.seeds:
            one = copy.deepcopy(self.config)
            one.seed = seed
            refuse_changed(self.folder / f"seed-{seed}", one)

    def run(self) -> None:
        """Train and test every seed that is not finished."""
        self.kind.run_seeds(self.config)


@dataclass
class Plan:
    """All runs behind a table, and which of them are wanted now."""

    pretrainings: list[Pretraining]
    cells: list[Cell]  # all of the table
    wanted: list[Cell]  # those of settings.only and settings.shard

    @property
    def jobs(self) -> list[Pretraining | Cell]:
        """What is to be there in the end, encoders first."""
        needed = {id(p) for cell in self.wanted if not cell.absent for p in cell.needs}
        return [p for p in self.pretrainings if id(p) in needed] + [cell for cell in self.wanted if not cell.absent]


# ---- what there is to run -------------------------------------------------------------------------------------------


def make_plan(settings: TableConfig) -> Plan:
    """Every encoder and cell of the table, all configs checked. ValueError names the encoder or cell, the key and the remedy."""
    if not settings.tasks and settings.encoders:
        raise ValueError(
            "encoders: a table of methods needs tasks: {classification: {...}, ...}, see configs/tables/small.yaml"
        )
    pretrainings = list_pretrainings(settings) if settings.encoders else []
    cells = list_cells(settings, pretrainings)
    _check_arms(settings, cells)
    if settings.against and len(settings.against) != 2:
        raise ValueError(
            f"against: {settings.against}; give a method and its stage, '' where nothing was pretrained, or []"
        )
    if settings.folds:
        _check_folds(settings, cells)
        for pretraining in pretrainings:
            _hold_back(settings.folds, pretraining.config, cells)
    names = [cell.name for cell in cells]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"two cells would lie in the folder {twice[0]}: give methods and axes names that differ in their letters"
        )
    part, parts = _shard(settings.shard)
    wanted = [c for c in cells if not settings.only or any(fnmatch.fnmatch(c.name, p) for p in settings.only)]
    if not wanted:
        raise ValueError(f"only: {settings.only} matches no cell; they are: {', '.join(names)}")
    # the cells of one encoder stay on one machine, which pretrains it
    keys = list(dict.fromkeys((c.method, c.stage) if c.method else c.name for c in wanted))
    wanted = [c for c in wanted if keys.index((c.method, c.stage) if c.method else c.name) % parts == part - 1]
    plan = Plan(pretrainings, cells, wanted)
    if wanted and all(cell.absent for cell in wanted):
        raise FileNotFoundError("no cell can be run:\n" + "\n".join(f"  {text}" for text in absences(wanted)))
    for job in plan.jobs:
        if job.finished:
            job.refuse_changed()
        elif isinstance(job, Cell) and not job.needs:
            from vfm4us.tasks.finetune import refuse_missing_weights

            for seed in job.config.seeds:
                refuse_missing_weights(job.config.encoder, seed)
    return plan


def list_pretrainings(settings: TableConfig) -> list[Pretraining]:
    """An encoder for each method that is pretrained, stage and pretraining seed; all of a seed, then the next seed."""
    pretrainings = []
    for method, about in _methods(settings).items():
        if not about.config:
            continue
        if wrong := [s for s in about.stages if s not in (*STAGES, AS_CONFIGURED)]:
            known = ", ".join((*STAGES, AS_CONFIGURED))
            raise ValueError(f"encoders.{method}.stages: {wrong[0]!r} is not one of {known}")
        keys = config.read(about.config, PretrainingConfig)
        for further in (settings.pretraining, about.keys):
            merge(keys, config.renamed(PretrainingConfig, filled(further, _words(settings))))
        try:
            base = config.from_dict(PretrainingConfig, keys)
            pretraining_settings.check(base)
            if set(about.stages) & set(STAGES):
                pretraining_settings.check_comparable(base, about.config)
        except ValueError as error:
            raise ValueError(f"encoders.{method}: {error}") from error
        for stage, seed in itertools.product(about.stages, settings.pretraining_seeds):
            run = copy.deepcopy(base)
            if stage in ("coarse", "fine"):
                run = pretraining_settings.single_stage(base, STAGES.index(stage))
            run.name, run.seed = f"{_arm_folder(plain(method), stage)}-{seed}", seed
            run.logs = str(Path(settings.logs) / settings.name / "encoders")
            pretrainings.append(Pretraining(method, stage, run, _absent_sources(run)))
    # a table that is stopped half-way has whole seeds of every method, not one method alone
    return sorted(pretrainings, key=lambda p: settings.pretraining_seeds.index(p.config.seed))


def list_cells(settings: TableConfig, pretrainings: list[Pretraining]) -> list[Cell]:
    """Every combination of the axes, of a table of methods with every method and stage."""
    if not settings.tasks:
        table = TaskTableConfig(settings.scores, [], settings.cells, settings.axes)
        _check_axes(table, "axes", settings.differences)
        return [
            _cell(settings, settings.task, table, values, "-".join(map(str, values))) for values in _combinations(table)
        ]
    cells = []
    for task, values in settings.tasks.items():
        if values is None:  # tasks.<task>=null leaves it out
            continue
        if task not in TASKS:
            raise ValueError(f"tasks.{task[:80]}: known tasks are {', '.join(TASKS)}")
        table = config.from_dict(TaskTableConfig, values, f"tasks.{task}")
        _check_axes(table, f"tasks.{task}.axes")
        for combination, (method, about) in itertools.product(_combinations(table), _methods(settings).items()):
            name = plain("-".join([task, *map(str, combination), method]))
            if not about.config:
                start = {"encoder": {"weights": "none"} | about.encoder}
                cells.append(_cell(settings, task, table, combination, name, start, method))
                continue
            for stage in (s for s in about.stages if s in table.stages):
                needs = [p for p in pretrainings if (p.method, p.stage) == (method, stage)]
                weights = needs[0].encoder.as_posix()
                if len(needs) > 1:
                    weights = weights.replace(f"-{needs[0].config.seed}/encoder.pt", "-{seed}/encoder.pt")
                start = {"encoder": {"weights": weights}}
                cell = _cell(settings, task, table, combination, _arm_folder(name, stage), start, method)
                if len(needs) > 1 and cell.config.seeds != settings.pretraining_seeds:
                    raise ValueError(
                        f"pretraining_seeds {settings.pretraining_seeds}: give one for all runs, or the cells' own seeds, "
                        f"{cell.config.seeds}"
                    )
                cell.stage, cell.needs = stage, needs
                cell.absent = cell.absent or next((p.absent for p in needs if p.absent), "")
                cells.append(cell)
    return cells


def _cell(
    settings: TableConfig,
    task: str,
    table: TaskTableConfig,
    values: tuple,
    name: str,
    more: dict | None = None,
    method: str = "",
) -> Cell:
    keys = copy.deepcopy(table.cells)
    for axis, value in zip(table.axes.values(), values, strict=True):
        merge(keys, axis[value] or {})
    merge(keys, more or {})
    if settings.folds:
        merge(keys, {"data": {"folds": settings.folds}})
    folder = Path(settings.logs) / settings.name / name
    keys |= {"name": folder.name, "logs": str(folder.parent)}
    try:
        own_config = config.from_dict(TASKS[task], filled(keys, _words(settings)))
    except ValueError as error:
        raise ValueError(f"cell {folder.name}: {error}") from error
    if not own_config.data.path:
        raise ValueError(f"cell {folder.name}: data.path is empty: give it in the cells or in each value of an axis")
    cell = Cell(task, tuple(map(str, values)), own_config, folder, method, scores=table.scores)
    data, encoder = Path(own_config.data.path), own_config.encoder
    if not data.exists():
        cell.absent = _absence(data, own_config.data.hint)
    elif encoder.weights == "imagenet":
        from vfm4us.checkpoints.imagenet import imagenet_file

        url, file = imagenet_file(encoder.name)
        if not file.is_file():
            cell.absent = f"weights absent: ImageNet's are not at {file}; get {url}"
    return cell


def _arm_folder(name: str, stage: str) -> str:
    return name if stage == AS_CONFIGURED else f"{name}-{stage}"


def _check_arms(settings: TableConfig, cells: list[Cell]) -> None:
    """ValueError where a contrast, or one of a task's means, names what the table does not have."""
    known = arms_of(cells)
    left_out = {name for name, values in settings.encoders.items() if values is None}
    for pair in settings.contrasts:
        if wrong := [name for name in pair if name not in known and name.partition(", ")[0] not in left_out]:
            raise ValueError(f"contrasts: {wrong[0]!r} is no arm of this table; its arms are: {'; '.join(known)}")
        if len(pair) != 2 or pair[0] == pair[1]:
            raise ValueError(f"contrasts: {pair} are not two different arms, first minus second")
    for task, values in settings.tasks.items():
        settings_of_task = {cell.setting for cell in cells if cell.task == task}
        for name, of in (values or {}).get("means", {}).items():
            if wrong := [str(v) for v in of if str(v) not in settings_of_task]:
                raise ValueError(
                    f"tasks.{task}.means.{name}: {wrong[0]!r} is no setting of this task: {', '.join(sorted(settings_of_task))}"
                )


def arms_of(cells: list[Cell]) -> dict[str, tuple[str, str]]:
    """{name: (method, stage)} of the arms of a table of methods: `method, stage`, or `method` alone where it has one stage."""
    arms = list(dict.fromkeys((cell.method, cell.stage) for cell in cells))
    methods = [method for method, _ in arms]
    return {method if methods.count(method) == 1 else f"{method}, {stage}": (method, stage) for method, stage in arms}


def _check_folds(settings: TableConfig, cells: list[Cell]) -> None:
    """ValueError where a fold would be tested by none, or by an encoder that saw it."""
    if not settings.tasks:
        raise ValueError("folds: of a table of methods; in a table of one task give cells.data.folds")
    for cell in cells:
        if missing := set(range(settings.folds)) - {seed % settings.folds for seed in cell.config.seeds}:
            raise ValueError(
                f"folds {settings.folds} with tasks.{cell.task}.cells.seeds {cell.config.seeds}: seed s is tested on fold s modulo "
                f"folds, and fold {min(missing)} has no seed; give such seeds, or folds=0 for the test splits"
            )
        if cell.needs and cell.config.seeds != settings.pretraining_seeds:
            raise ValueError(
                f"pretraining_seeds {settings.pretraining_seeds}: with folds each seed of the cells has an encoder that held back "
                f"its fold; give the cells' own seeds, {cell.config.seeds}"
            )


def _hold_back(folds: int, run: PretrainingConfig, cells: list[Cell]) -> None:
    """Leave the fold of this seed of every tested dataset out of a pretraining, and its near-duplicates out of all sources."""
    where, fold = run.data.locations(), run.seed % folds
    tested = {Path(cell.config.data.path).resolve(): cell.config.data.path for cell in cells}
    for source in (source for stage in run.stages for source in stage.data):
        if where.resolve(source.path).resolve() in tested:
            source.folds, source.fold = folds, fold
    named = {where.resolve(path).resolve() for path in run.data.protect}
    run.data.protect = run.data.protect + [
        os.path.relpath(path, run.data.root or ".") for whole, path in tested.items() if whole not in named
    ]
    run.data.protect_folds, run.data.protect_fold = folds, fold


def _absence(path: Path, hint: str = "") -> str:
    origin = ORIGINS.get(path.name.lower()) or " ".join(hint.split())
    return f"data absent: {path}" + (f"; get {origin}" if origin else " does not exist")


def _absent_sources(run: PretrainingConfig) -> str:
    """What is missing of the images of a pretraining."""
    where = run.data.locations()
    if run.data.phantoms:  # made when it begins
        return ""
    paths = [where.resolve(source.path) for stage in run.stages for source in stage.data]
    return next((_absence(path, run.data.hint) for path in paths if not path.exists()), "")


def _methods(settings: TableConfig) -> dict[str, MethodConfig]:
    """encoders.<name>=null leaves one out."""
    return {
        name: config.from_dict(MethodConfig, values, f"encoders.{name}")
        for name, values in settings.encoders.items()
        if values is not None
    }


def _check_axes(table: TaskTableConfig, key: str, differences=()) -> None:
    if not table.axes or any(not isinstance(axis, dict) or not axis for axis in table.axes.values()):
        raise ValueError(f"{key}: give at least one axis, each as {{value: {{keys it adds}}}}, see configs/tables/")
    last = list(list(table.axes.values())[-1])
    if wrong := [v for pair in differences for v in pair if v not in last]:
        raise ValueError(
            f"differences: {wrong[0]!r} is no value of the last axis, which has: {', '.join(map(str, last))}"
        )


def _combinations(table: TaskTableConfig) -> Iterator[tuple]:
    return itertools.product(*table.axes.values())


def _words(settings: TableConfig) -> dict[str, str]:
    return {"data": settings.data, "encoder": settings.encoder}


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise ValueError(f"shard: {text!r} is not of the form 2/4, the second of four parts")
    return part, parts


def plain(name: str) -> str:
    """A folder name: `MAE (75 %)` -> `mae-75`."""
    return re.sub(r"[^\w.]+", "-", name).strip("-").lower()


def merge(keys: dict, more: dict) -> None:
    """Lay nested `more` over `keys`; {0: ...} goes to the first item of a list, {0: null} leaves it out."""
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(keys.get(key), dict):
            merge(keys[key], value)
        elif isinstance(value, dict) and isinstance(keys.get(key), list):
            for place, inner in value.items():
                if inner is None:
                    keys[key][int(place)] = None
                else:
                    merge(keys[key][int(place)], inner)
        else:
            keys[key] = copy.deepcopy(value)


def filled(value, words: dict[str, str]):
    """`value` with {data} and {encoder} replaced in every text; ValueError where one is wanted and was not given."""
    if isinstance(value, dict):
        return {k: filled(v, words) for k, v in value.items()}
    if isinstance(value, list):
        return [filled(v, words) for v in value]
    if isinstance(value, str):
        for name, text in words.items():
            if f"{{{name}}}" in value and not text:
                raise ValueError(f"{value!r} needs {name}=...: add it to the command")
            value = value.replace(f"{{{name}}}", text)
    return value


def absences(cells: list[Cell]) -> list[str]:
    """Each reason for which cells cannot be run, with their number."""
    reasons = list(dict.fromkeys(cell.absent for cell in cells if cell.absent))
    counts = [sum(cell.absent == reason for cell in cells) for reason in reasons]
    return [f"{reason} ({n} cell{'s'[: n > 1]})" for reason, n in zip(reasons, counts, strict=True)]
