"""Training pools: which images of which prepared datasets a stage sees, in which order, and which it must never see."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vfm4us.config import option
from vfm4us.data.csv_files import write_rows
from vfm4us.data.dataset import PreparedDataset
from vfm4us.data.prepare import open_or_prepare
from vfm4us.data.reading import frames_of
from vfm4us.data.splits import HASH_DISTANCE, SAME_PICTURE, Leak, leakage
from vfm4us.runtime.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

MOST_KEPT = 128  # comparisons of a dataset with others that are kept


@dataclass
class SourceConfig:
    """One source of images of a stage, and which part of it is trained on."""

    path: str = option("", "folder of images, CSV manifest, or prepared dataset")
    split: str = option(
        "train", "its train split, or all of it: then nothing of it is held out", choices=["train", "all"]
    )
    label: str = option("", "one label for all its images (a body part), for measuring; empty: the source's own")
    limit: int = option(0, "at most this many images, a seeded choice; 0: all", low=0)
    share: float = option(
        0.0,
        "of the images that the stage draws, the share from this source; 0: what the shares leave, by size (see balance)",
        low=0.0,
        high=1.0,
    )
    folds: int = option(
        0, "cross-fitting: divide train and val anew into so many folds; 0: as they are", low=0, high=1000
    )
    fold: int = option(0, "of these the one that is held back as val, from 0", low=0)


class Pool:
    """Images of several sources under one running index: `pool.batch(items)` -> (b, S, S) uint8 and valid (b, 4)."""

    def __init__(self, datasets: list[PreparedDataset], parts: list[np.ndarray], labels: list[list[str]]):
        sizes = {d.name: d.size for d in datasets}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"datasets packed at different sizes cannot share a pool: {sizes}; prepare them again with "
                "one size (data.size, or --size of prepare_data.py)"
            )
        self.datasets, self.parts, self.part_labels = datasets, parts, labels
        self.source = np.concatenate([np.full(len(p), i) for i, p in enumerate(parts)])
        self.index = np.concatenate(parts)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> list[str]:
        """The label of each image."""
        return [label for part in self.part_labels for label in part]

    @property
    def sizes(self) -> list[int]:
        """How many images each source gives."""
        return [len(p) for p in self.parts]

    def batch(self, items: np.ndarray) -> "tuple[Tensor, Tensor]":
        """Images (B, S, S) uint8 and valid rectangles (B, 4) of these places in the pool."""
        import torch  # which the check of a config does without

        images = np.stack([self.datasets[self.source[i]].images[self.index[i]] for i in items])
        valid = np.stack([self.datasets[self.source[i]].valid[self.index[i]] for i in items])
        return torch.from_numpy(images), torch.from_numpy(valid)

    __getitems__ = batch  # what a DataLoader calls with the whole list of a batch

    def fingerprint(self) -> str:
        """Changes when an image comes, goes or moves."""
        digest = hashlib.sha256()
        for dataset, part in zip(self.datasets, self.parts, strict=True):
            digest.update("".join([dataset.sha256[i] for i in part.tolist()]).encode())
        return digest.hexdigest()[:16]

    def take(self, limit: int, seed: int = 0) -> np.ndarray:
        """At most `limit` items, a seeded choice, in order; 0 for all."""
        if not limit or limit >= len(self):
            return np.arange(len(self))
        return np.sort(np.random.default_rng(seed).choice(len(self), limit, replace=False))


def concatenate(pools: list[Pool]) -> Pool:
    """One pool of several, their items one after the other."""
    return Pool(
        [d for p in pools for d in p.datasets],
        [i for p in pools for i in p.parts],
        [labels for p in pools for labels in p.part_labels],
    )


@dataclass
class Locations:
    """Where sources lie and how plain folders are packed."""

    cache: Path
    size: int
    splits: tuple[float, ...]
    root: str = ""
    phantoms: Path = Path()
    hint: str = ""
    frames: str = ""

    def resolve(self, path: str) -> Path:
        """`phantoms:coarse` is part of the built-in set; a relative path starts from `root`."""
        kind, colon, rest = path.partition(":")
        return self.phantoms / rest if colon and kind == "phantoms" else Path(self.root) / path


def open_sources(sources: list[SourceConfig], key: str, where: Locations, fewest: int = 0) -> list[PreparedDataset]:
    """Each source's dataset, packed once where it is a plain folder; FileNotFoundError names `key` and the remedy.

    A source that stands alone and lists fewer than `fewest` images is refused before it is packed.
    """
    if not sources:
        raise ValueError(f"{key} lists no data: give it at least one source with a path")
    opened = []
    for i, source in enumerate(sources):
        path = where.resolve(source.path)
        if not source.path or not path.exists():
            raise FileNotFoundError(
                f"{key}.{i}.path: {str(path)!r} does not exist (looked from {Path.cwd()}). Point it at a folder of images "
                f"with {key}.{i}.path=DIR, or all relative paths elsewhere with data.root=DIR."
                + (f"\n{where.hint}" if where.hint else "")
            )
        reading, least = frames_of(where.frames), fewest * (len(sources) == 1)
        dataset = open_or_prepare(path, where.cache, where.size, where.splits, reading=reading, fewest=least)
        opened.append(dataset.hold_back(source.folds, source.fold) if source.folds else dataset)
    return opened


def build_pool(sources: list[SourceConfig], datasets: list[PreparedDataset], seed: int = 0) -> Pool | None:
    """The images to train on; None where there are none."""
    parts, labels = [], []
    for source, dataset in zip(sources, datasets, strict=True):
        part = dataset.indices(None if source.split == "all" else "train", limit=source.limit or None, seed=seed)
        parts.append(part)
        labels.append([source.label or dataset.labels[i] for i in part.tolist()])
    return Pool(datasets, parts, labels) if sum(map(len, parts)) else None


def build_held_out(sources: list[SourceConfig], datasets: list[PreparedDataset]) -> Pool | None:
    """The val images of the sources that hold any out; None where there are none."""
    kept = [(s, d) for s, d in zip(sources, datasets, strict=True) if s.split == "train"]
    parts = [d.indices("val") for _, d in kept]
    labels = [[s.label or d.labels[i] for i in part.tolist()] for (s, d), part in zip(kept, parts, strict=True)]
    return Pool([d for _, d in kept], parts, labels) if sum(map(len, parts)) else None


def kept_leakage(pool: PreparedDataset, part, protected: PreparedDataset, held_out) -> list[Leak]:
    """`leakage` of these images, kept in leakage.json of the pool's folder: a run that goes on need not compare them again."""
    digest = hashlib.sha256(f"{HASH_DISTANCE} {SAME_PICTURE}".encode())
    for dataset, indices in ((pool, part), (protected, held_out)):
        digest.update("\n".join([dataset.sha256[i] for i in indices.tolist()]).encode() + b"\0")
        digest.update(dataset.phash[indices].tobytes())
    key, file = digest.hexdigest(), pool.folder / "leakage.json"
    kept: dict = {}
    with contextlib.suppress(OSError, ValueError):  # absent, or cut off: it is compared again
        kept = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(kept, dict) and isinstance(listed := kept.get(key), list):
        return [Leak(*leak) for leak in listed]
    leaks = leakage(pool.fingerprints(part), protected.fingerprints(held_out))
    kept = {**dict(list(kept.items())[-MOST_KEPT:]), key: [dataclasses.astuple(leak) for leak in leaks]}
    with contextlib.suppress(OSError):  # a folder that may only be read, or a full disk: nothing is lost but time
        write_text(file, json.dumps(kept))
    return leaks


def remove_leaks(pool: Pool, protected: list[PreparedDataset]) -> tuple[Pool, list[list], int]:
    """`pool` without the images that equal or nearly equal one of a val or test split of `protected`.

    Compared are sha256 and perceptual hash. Returns the pool, a row for each removed image and the image it resembles
    (see `write_leaks`), and the number of protected images that were compared.
    """
    drop, rows, checked = set(), [], 0
    for dataset in protected:
        held_out = np.flatnonzero(np.isin(dataset.splits, ["val", "test"]))
        checked += len(held_out)
        offset = 0
        for other, part in zip(pool.datasets, pool.parts, strict=True):
            for leak in kept_leakage(other, part, dataset, held_out):
                inside = other.records[part[leak.pool_index]]
                outside = dataset.records[held_out[leak.protected_index]]
                drop.add(offset + leak.pool_index)
                rows.append(
                    [other.name, inside.path, dataset.name, outside.path, outside.split, leak.kind, leak.distance]
                )
            offset += len(part)
    keep = np.setdiff1d(np.arange(len(pool)), sorted(drop))
    all_labels = pool.labels
    mine = [keep[pool.source[keep] == i] for i in range(len(pool.parts))]
    kept = Pool(pool.datasets, [pool.index[m] for m in mine], [[all_labels[j] for j in m.tolist()] for m in mine])
    return kept, rows, checked


@dataclass
class StagePool:
    """The images of one stage, and what was left out of them."""

    training: Pool
    held_out: Pool | None  # val images of its sources; None where they hold none out
    leaks: list[list]  # see write_leaks
    removed: int  # images left out because they equal or nearly equal one of `checked` val and test images
    checked: int


def stage_pools(stages, protect: list[SourceConfig], where: Locations, seed: int, fewest: int = 0) -> list[StagePool]:
    """A pool for each of `stages` (which have `data`, a list of sources), without what is held out of any of their sources.

    Also without the val and test images of the datasets `protect`. fewest: images of a batch, see `open_sources`.
    """
    datasets = [open_sources(s.data, f"stages.{i}.data", where, fewest) for i, s in enumerate(stages)]
    sources = [source for stage in stages for source in stage.data]
    held = [d for s, d in zip(sources, sum(datasets, []), strict=True) if s.split == "train"]
    for k, source in enumerate(protect):
        held += open_sources([source], f"data.protect.{k}", where)
    # the folds of one dataset hold out other images each
    protected = list({(d.folder, d.splits.tobytes()): d for d in held}.values())
    result = []
    for i, (stage, opened) in enumerate(zip(stages, datasets, strict=True)):
        pool = build_pool(stage.data, opened, seed=seed)
        if pool is None:
            raise ValueError(
                f"stages.{i}.data: no image has the split asked for; see the split column of the manifests"
            )
        before = len(pool)
        pool, leaks, checked = remove_leaks(pool, protected)
        for j, (source, size) in enumerate(zip(stage.data, pool.sizes, strict=True)):
            if source.share and not size:
                raise ValueError(f"stages.{i}.data.{j}.share: {source.path} has no image to train on: leave it out")
        result.append(StagePool(pool, build_held_out(stage.data, opened), leaks, before - len(pool), checked))
    return result


def write_leaks(path: Path, rows: list[list]) -> None:
    """The leakage report: a CSV row for each image that was left out of a pool, with the held-out image it resembles."""
    write_rows(path, ["pool", "removed_image", "dataset", "held_out_image", "split", "kind", "hash_distance"], rows)


def epoch_order(sizes: list[int], shares: list[float], count: int, seed: tuple[int, ...]) -> np.ndarray:
    """`count` indices into the concatenation of parts of these `sizes`, part i taking its share, shuffled.

    A part is gone through whole before an image of it comes again. A function of its arguments alone.
    """
    rng = np.random.default_rng(seed)
    exact = np.array(shares, dtype=float) / sum(shares) * count
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: count - quota.sum()]] += 1
    start, order = 0, []
    for size, wanted in zip(sizes, quota, strict=True):
        passes = [rng.permutation(size) for _ in range(-(-int(wanted) // size))] if size and wanted else []
        order.append(start + np.concatenate(passes)[:wanted] if passes else np.empty(0, int))
        start += size
    return rng.permutation(np.concatenate(order)).astype(np.int64)


def source_shares(sizes: list[int], balance: float, given: Sequence[float] = ()) -> list[float]:
    """Share of each source in an epoch: its own of `given` where that is above 0.

    The rest is divided by the number of images to the power 1 - balance (0 natural, 1 equal).
    """
    shares = np.array(given or [0.0] * len(sizes))
    weights = np.array([s ** (1 - balance) if s and not g else 0.0 for s, g in zip(sizes, shares, strict=True)])
    return list(shares + (1 - shares.sum()) * weights / weights.sum() if weights.any() else shares / shares.sum())
