"""No test image of a table may lie in what its encoders were pretrained on.

said = check_leakage(plan)      # a line for each task; ValueError where a test image lies in a pretraining pool
"""

import json
from pathlib import Path

from vfm4us import checkpoints, config
from vfm4us.checkpoints import released
from vfm4us.data.pools import StagePool, kept_leakage, stage_pools
from vfm4us.data.prepare import open_or_prepare
from vfm4us.data.reading import frames_of
from vfm4us.tables.plan import Cell, Plan, Pretraining


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
    given = {
        c.method: c.config.encoder.weights
        for c in cells
        if c.method and not c.needs and c.config.encoder.weights not in ("none", "imagenet")
    }
    unknown = "".join(map(_not_compared, given, given.values()))
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
        lines[task] += unknown
    return lines


def _not_compared(method: str, weights: str) -> str:
    """What is said of a method whose encoder is given: its images are not at hand."""
    if weights in released.names():
        return f" {method} was pretrained on the sets of weights/sources.csv; their images were not compared."
    return f" What {method} was pretrained on is not known here."


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
                seen, held = source.records[part[leak.pool_index]], dataset.records[test[leak.protected_index]]
                how = "equals" if leak.kind == "identical" else "nearly equals"
                raise ValueError(
                    f"{pretraining.name} is pretrained on {seen.path} of {source.name}, which {how} {held.path}, a test image of "
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
