"""No test image of a table may lie in what its encoders were pretrained on.

said = check_leakage(plan)      # a line for each task; ValueError where a test image lies in a pretraining pool
"""

import json
from pathlib import Path

import numpy as np

from vfm4us import checkpoints, config
from vfm4us.checkpoints import released, seen
from vfm4us.data.pools import StagePool, kept_leakage, stage_pools
from vfm4us.data.prepare import open_or_prepare
from vfm4us.data.reading import frames_of
from vfm4us.tables.plan import Cell, Plan, Pretraining
from vfm4us.tasks.finetune import weights_of


def check_leakage(plan: Plan) -> dict[str, str]:
    """For each task a line on how many test images were compared with how many pretraining images, and that none was found.

    The pools are made anew from each pretraining config, and are those of the finished encoders by the fingerprint in their
    checkpoints. Compared are sha256 and perceptual hash (confirmed on thumbnails). ValueError names the image that was found.
    """
    cells = [cell for cell in plan.wanted if not cell.absent]
    opened: dict[str, list[StagePool]] = {}
    sizes: dict[str, dict[str, set[str]]] = {task: {} for task in dict.fromkeys(cell.task for cell in cells)}
    for pretraining in (job for job in plan.jobs if isinstance(job, Pretraining)):
        run = pretraining.config
        sources = [source for stage in run.stages for source in stage.data]
        drawn = (
            run.seed if any(source.limit for source in sources) else 0
        )  # the seed chooses among the images of a source
        key = json.dumps(
            [config.to_dict(run.data), [config.to_dict(s)["data"] for s in run.stages], drawn], default=str
        )
        first = key not in opened
        if first:
            if run.data.phantoms:
                from vfm4us.phantoms.folders import write_phantoms

                write_phantoms(run.data.locations().phantoms, run.data.phantoms, run.data.size)
            opened[key] = stage_pools(run.stages, run.data.protected(), run.data.locations(), run.seed)
        _check_fingerprints(pretraining, opened[key])
        tested = {(c.task, c.config.data.path, tuple(c.config.data.splits)): c for c in cells} if first else {}
        for cell in tested.values():
            sizes[cell.task].setdefault(cell.dataset, set()).update(_compare(pretraining, opened[key], cell))
    pools = [pool for stages in opened.values() for pool in stages]
    images = len({digest for pool in pools for digest in _digests(pool)})
    given: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.method and not cell.needs and cell.config.encoder.weights not in ("none", "imagenet"):
            given.setdefault(cell.method, []).append(cell)
    of_given = "".join(_of_given(method, of) for method, of in given.items())
    lines = {}
    for task, of in sizes.items():
        tested = ", ".join(f"{len(ids)} of {name}" for name, ids in of.items())
        lines[task] = (
            (
                f"Leakage: none of the test images ({tested}) equals or nearly equals (sha256, perceptual hash) one of the "
                f"{images} images that encoders were pretrained on."
            )
            if of
            else "Leakage: nothing was pretrained for these cells, so nothing was compared."
        )
        lines[task] += of_given
    return lines


def _of_given(method: str, cells: list[Cell]) -> str:
    """What is said of a method whose encoder is given: how many test images its file says that it has seen, if it says any."""
    config = cells[0].config
    sources = {weights_of(config.encoder, seed) for seed in config.seeds}
    known = np.concatenate([seen.seen(weights) for weights in sorted(sources)])
    if not len(known):
        return f" What {method} was pretrained on is not known here."
    tested: set[str] = set()
    for data in {(c.config.data.path, tuple(c.config.data.splits)): c.config.data for c in cells}.values():
        dataset = open_or_prepare(
            Path(data.path), Path(data.cache), data.size, tuple(data.splits), reading=frames_of(data.frames)
        )
        splits = {"test"} if not data.folds else {"train", "val"} | ({"test"} if data.with_test else set())
        tested |= {dataset.sha256[i] for split in splits for i in dataset.indices(split)}
    sets = " on the sets of weights/sources.csv" if config.encoder.weights in released.names() else ""
    return (
        f" {method} was pretrained{sets}, without labels; {seen.among(tested, known).sum()} of these {len(tested)} test images "
        "are among its images (sha256)."
    )


def _compare(pretraining: Pretraining, stages: list[StagePool], cell: Cell) -> list[str]:
    """The ids of the cell's test images, of the fold that goes with this seed; ValueError where one of them is in a pool."""
    settings = pretraining.config.data
    dataset = open_or_prepare(
        Path(cell.config.data.path),
        Path(settings.cache),
        settings.size,
        tuple(cell.config.data.splits),
        reading=frames_of(cell.config.data.frames),
    )
    if folds := cell.config.data.folds:
        dataset = dataset.test_on_fold(folds, pretraining.config.seed % folds, cell.config.data.with_test)
    test = dataset.indices("test")
    for stage in stages:
        for source, part in zip(stage.training.datasets, stage.training.parts, strict=True):
            for leak in kept_leakage(source, part, dataset, test):
                had, held = source.records[part[leak.pool_index]], dataset.records[test[leak.protected_index]]
                how = "equals" if leak.kind == "identical" else "nearly equals"
                raise ValueError(
                    f"{pretraining.name} is pretrained on {had.path} of {source.name}, which {how} {held.path}, a test image of "
                    f"{cell.config.data.path} ({cell.task}): name that dataset in pretraining.data.protect, or give both the same "
                    "splits, and give the table another name"
                )
    return [dataset.ids[i] for i in test]


def _check_fingerprints(pretraining: Pretraining, stages: list[StagePool]) -> None:
    path = pretraining.folder / "checkpoints" / "last.pt"
    if pretraining.finished and path.is_file():
        before = checkpoints.read(path)["resume"]["data"]
        if before != [stage.training.fingerprint() for stage in stages]:
            raise ValueError(
                f"{pretraining.name} was pretrained on other images than its config gives now: put them back, or "
                "give the table another name"
            )


def _digests(pool: StagePool) -> list[str]:
    return [d.sha256[i] for d, part in zip(pool.training.datasets, pool.training.parts, strict=True) for i in part]
