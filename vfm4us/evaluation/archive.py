"""An archive of images as vectors: embedded in batches onto the disk, its near-duplicates, neighbours and strangest images.

    archive = embed_archive("DIR", encoder, out)      # resumable; 100,000 images take no more memory than 100
    near, cosines = nearest(archive.features, whitening(archive.features), k=10)

Nothing here holds all vectors in memory: they lie in a file that is read in blocks.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from PIL import Image
from tqdm import tqdm

from vfm4us.data import splits as splitting
from vfm4us.data.decode import read_records
from vfm4us.data.filling import fill_unpacked
from vfm4us.data.images import image_batch
from vfm4us.data.reading import reading_of
from vfm4us.data.records import Record
from vfm4us.data.sources import find_source, source_root
from vfm4us.encoders import Encoder
from vfm4us.runtime.device import autocast
from vfm4us.runtime.files import write_text

THUMBNAIL = 64  # px, of the pictures and the projector
CHUNK = 64  # images between two savings
BLOCK = 8192  # vectors in memory at once
PLAN, JOURNAL = "plan.json", "journal.jsonl"


@dataclass
class Archive:
    """What was embedded: N images, in the order of the source without those that could not be read."""

    root: Path
    records: list[Record]
    features: np.ndarray  # (N, d) float32, memory-mapped
    thumbnails: np.ndarray  # (N, 64, 64) uint8, memory-mapped, padded at the bottom and right
    shapes: np.ndarray  # (N, 2) height and width of what is no padding in a thumbnail
    phash: np.ndarray  # (N,) uint64
    sha256: list[str]
    rejected: list[tuple[str, str]]  # path, reason

    def __len__(self) -> int:
        return len(self.records)

    def thumbnail(self, index: int) -> np.ndarray:
        """uint8 (h, w), without padding."""
        height, width = self.shapes[index]
        return np.asarray(self.thumbnails[index][:height, :width])


def embed_archive(
    source, encoder: Encoder, out: Path, size: int = 224, patches: int = 0, precision: str = "auto"
) -> Archive:
    """Embed every image of a folder or manifest into files below `out`; the same call continues an interrupted one.

    A journal line is written after the vectors that it stands for, so what the journal says is there. An image that cannot be read
    is kept with its reason and the others go on. Raises ValueError where `out` holds the vectors of something else, or where no
    image can be read.
    """
    source, out = Path(source), Path(out)
    root, records = source_root(source), find_source(source)
    if reading_of(Path(source)).blank:
        fill_unpacked(root, records)
    plan = {
        "source": str(source.resolve()),
        "files": _fingerprint(root, records),
        "encoder": encoder_sha256(encoder),
        "size": size,
        "patches": patches,
    }
    out.mkdir(parents=True, exist_ok=True)
    plan_file = out / PLAN
    if plan_file.is_file():
        before = json.loads(plan_file.read_text())
        if changed := [key for key in plan if before.get(key) != plan[key]]:
            raise ValueError(
                f"{out} holds vectors of another {' and '.join(changed)}: give another --out, or delete that folder"
            )
    else:
        write_text(plan_file, json.dumps(plan, indent=1))
    entries = _read_journal(out / JOURNAL)
    shape = {"features.npy": (len(records), encoder.width), "thumbnails.npy": (len(records), THUMBNAIL, THUMBNAIL)}
    kinds = {"features.npy": np.float32, "thumbnails.npy": np.uint8}
    mode = "r+" if entries else "w+"
    arrays = {
        name: open_memmap(
            out / name, mode, dtype=None if entries else kinds[name], shape=None if entries else shape[name]
        )
        for name in shape
    }
    for name in arrays:  # on a full disk a memory map kills the process, an allocation is an error
        with open(out / name, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    features, thumbnails = arrays["features.npy"], arrays["thumbnails.npy"]
    row = sum("reason" not in entry for entry in entries)
    device = next(encoder.parameters()).device
    with (
        open(out / JOURNAL, "a", encoding="utf-8") as journal,
        tqdm(total=len(records), initial=len(entries), unit="image", desc="embedding") as bar,
    ):
        for chunk in _read_ahead(root, records[len(entries) :], size):
            good = [item for item in chunk if "reason" not in item]
            if good:
                pixels = torch.cat([item.pop("pixels") for item in good])
                valid = np.array([[0, 0, *item.pop("valid")] for item in good])
                with autocast(device, precision):
                    z = encoder.embed(pixels, patches=patches, valid=valid, batch_size=CHUNK)
                features[row : row + len(good)] = z.numpy()
                thumbnails[row : row + len(good)] = np.stack([item.pop("thumbnail") for item in good])
                features.flush()
                thumbnails.flush()
                row += len(good)
            journal.writelines(json.dumps(item) + "\n" for item in chunk)
            journal.flush()
            os.fsync(journal.fileno())
            entries += chunk
            bar.update(len(chunk))
    rejected = [(r.path, e["reason"]) for r, e in zip(records, entries, strict=True) if "reason" in e]
    kept = [(r, e) for r, e in zip(records, entries, strict=True) if "reason" not in e]
    if not kept:
        raise ValueError(
            f"none of the {len(rejected)} images of {source} can be read; the first: {': '.join(rejected[0])}"
        )
    return Archive(
        root,
        [r for r, _ in kept],
        np.load(out / "features.npy", mmap_mode="r")[:row],
        np.load(out / "thumbnails.npy", mmap_mode="r")[:row],
        np.array([e["shape"] for _, e in kept]),
        np.array([int(e["phash"], 16) for _, e in kept], dtype=np.uint64),
        [e["sha256"] for _, e in kept],
        rejected,
    )


def encoder_sha256(encoder: Encoder) -> str:
    """Of all tensors of the network, in hex."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _fingerprint(root: Path, records: list[Record]) -> str:
    """Changes when a file comes, goes or changes its size or time; no file is opened."""
    digest = hashlib.sha256()
    for record in records:
        path = root / record.path
        status = path.stat() if path.is_file() else None
        told = (
            record.id,
            record.path,
            record.label,
            record.group,
            record.split,
            status and (status.st_size, status.st_mtime_ns),
        )
        digest.update(repr(told).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _read_run(root: Path, run: list[Record], size: int) -> list[dict]:
    """`_read_one` of records of one file, which is opened once for all of its frames."""
    try:
        with open(root / run[0].path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
    except OSError as error:
        return [{"reason": " ".join(str(error).split())} for _ in run]
    images = read_records(root, run)
    return [_read_one(root, record, size, image, digest.copy()) for record, image in zip(run, images, strict=True)]


def _read_one(root: Path, record: Record, size: int, image: np.ndarray | ValueError, digest) -> dict:
    """Pixels (1, 1, S, S) and what the journal says of an image, or the reason why it cannot be read; `digest` is of its file."""
    try:
        if isinstance(image, ValueError):
            raise image
        pixels, valid = image_batch([image], size, frame=True)
    except ValueError as error:
        return {"reason": " ".join(str(error).removeprefix(f"{root / record.path}: ").split())}
    if record.frame or record.crop:  # one of several images of its file
        digest.update(f"{record.frame} {record.crop}".encode())
    height, width = (int(v) for v in valid[0, 2:])
    grey = pixels[0, 0, :height, :width].numpy()
    scale = THUMBNAIL / max(height, width)
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    thumbnail = np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)
    thumbnail[:h, :w] = np.asarray(Image.fromarray(grey).resize((w, h), Image.Resampling.LANCZOS))
    return {
        "pixels": pixels,
        "valid": (height, width),
        "thumbnail": thumbnail,
        "shape": (h, w),
        "phash": f"{int(splitting.perceptual_hash(grey)):016x}",
        "sha256": digest.hexdigest(),
    }


def _read_ahead(root: Path, records: list[Record], size: int) -> Iterator[list[dict]]:
    """Chunks of what `_read_run` says; the next is being read while the network sees this one."""
    remaining = iter(records)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:

        def begin() -> list:
            files = groupby(islice(remaining, CHUNK), key=lambda record: record.path)
            return [pool.submit(_read_run, root, list(run), size) for _, run in files]

        under_way = begin()
        while under_way:
            following = begin()
            yield [entry for future in under_way for entry in future.result()]
            under_way = following


def _read_journal(path: Path) -> list[dict]:
    """All whole lines; one that a crash cut off is cut away."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


# ---- what the vectors say -------------------------------------------------------------------------------------------


def blocks(count: int, size: int = BLOCK) -> Iterator[slice]:
    """Slices of at most `size` rows that cover `count` rows in order, so that large arrays are gone through piece by piece."""
    return (slice(start, min(count, start + size)) for start in range(0, count, size))


def whitening(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and matrix (d, k) that half-whiten vectors (see `probe_table.scaled`), from two passes in blocks.

    A few directions hold most of an encoder's variance, and plain cosines see nothing else.
    """
    count, width = features.shape
    mean = sum(np.asarray(features[b], np.float64).sum(0) for b in blocks(count)) / count
    covariance = np.zeros((width, width))
    for b in blocks(count):
        x = np.asarray(features[b], np.float64) - mean
        covariance += x.T @ x / count
    deviation = np.sqrt(np.diag(covariance))
    deviation[deviation < 1e-6 * max(1e-12, deviation.max())] = 1.0
    values, directions = np.linalg.eigh(covariance / np.outer(deviation, deviation))
    kept = values > 1e-3 * values[-1]
    turn = (directions[:, kept] / values[kept] ** 0.25) / deviation[:, None]
    return mean.astype(np.float32), turn.astype(np.float32)


def nearest(
    features: np.ndarray,
    white: tuple[np.ndarray, np.ndarray],
    k: int = 10,
    rows: np.ndarray | None = None,
    progress=True,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest other images of each of `rows` (all by default), nearest first, and the cosines: two arrays (M, k).

    Cosines are of the vectors moved and turned by `white`. k is at most N - 1.
    """
    count = len(features)
    rows = np.arange(count) if rows is None else np.asarray(rows)
    k = min(k, count - 1)
    places, cosines = np.zeros((len(rows), k), np.int64), np.zeros((len(rows), k), np.float32)

    def unit(part) -> torch.Tensor:
        x = (np.asarray(features[part], np.float32) - white[0]) @ white[1]
        return torch.nn.functional.normalize(torch.from_numpy(x), dim=1)

    for mine in tqdm(list(blocks(len(rows), 4096)), desc="neighbours", unit="block", disable=not progress):
        queries = unit(rows[mine])
        best, where = torch.full((len(queries), k), -2.0), torch.zeros(len(queries), k, dtype=torch.long)
        for b in blocks(count):
            similarity = queries @ unit(b).T
            itself = torch.from_numpy(rows[mine] - b.start)
            inside = (itself >= 0) & (itself < similarity.shape[1])
            similarity[torch.arange(len(itself))[inside], itself[inside]] = -2.0  # not its own neighbour
            best_here, where_here = similarity.topk(min(k, similarity.shape[1]), dim=1)
            both, both_where = torch.cat([best, best_here], 1), torch.cat([where, where_here + b.start], 1)
            best, order = both.topk(k, dim=1)
            where = both_where.gather(1, order)
        places[mine], cosines[mine] = where.numpy(), best.numpy()
    return places, cosines


def strangeness(features: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Mean distance (N,) of each image to its neighbours `places` (N, k), as a multiple of the median image's.

    Of the vectors as they are: whitening would take from a stranger the very direction in which it is one.
    """
    distances = np.zeros(len(features), np.float32)
    for b in blocks(len(features), 1024):
        vectors, near = np.asarray(features[b], np.float32), np.asarray(features[places[b].ravel()], np.float32)
        distances[b] = np.linalg.norm(vectors[:, None] - near.reshape(len(vectors), -1, near.shape[1]), axis=2).mean(1)
    return distances / max(1e-12, float(np.median(distances)))


def duplicates(archive: Archive) -> np.ndarray:
    """Cluster number (N,) of each image: those that are the same picture share one (`splits.duplicate_clusters`)."""
    return splitting.duplicate_clusters(
        archive.sha256, archive.phash, thumbnail_of=lambda i: splitting.thumbnail(archive.thumbnail(i))
    )
