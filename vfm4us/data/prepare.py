"""Packed pixels: every image of a source decoded once, checked, and laid down as one memory-mapped array.

A prepared dataset is a folder: `images.npy` uint8 (N, S, S), perhaps `masks.npy` and `targets.npy` of the same shape,
`manifest.csv`, `rejected.csv`, `dataset.json`. It appears whole, by a rename, or not at all.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from vfm4us import log
from vfm4us.data import frames, overlays, polygons, shares, volumes
from vfm4us.data import splits as splitting
from vfm4us.data.csv_files import write_rows
from vfm4us.data.dataset import (
    RESAMPLING,
    PreparedDataset,
    beside,
    check_same_shape,
    in_frame,
    is_prepared,
    packed_size,
    valid_part,
)
from vfm4us.data.decode import held_grey, read_grey
from vfm4us.data.limits import MINIMUM_SIDE, check_size, file_bytes
from vfm4us.data.masks import IGNORE, MaskCoding, mask_coding, read_masks, shrunk
from vfm4us.data.reading import Reading, reading_of
from vfm4us.data.records import COLUMNS, Record, natural_key, read_manifest, write_manifest
from vfm4us.data.sheet import write_sheet
from vfm4us.data.sources import is_table, list_source, source_root, understand
from vfm4us.data.understanding import Understanding
from vfm4us.data.workers import WorkerDied, in_processes
from vfm4us.runtime.progress import progress as progress_bar

try:
    import fcntl
except ImportError:  # Windows: no file locks, so two processes must not prepare the same folder at once
    fcntl = None


VERSION = 2  # of the packed format: a dataset of another version is prepared anew
NPY_HEADER = 128  # bytes, for any N and S
LONGEST_RUN = 64  # frames of one file that are decoded in one go
DARK = 32  # grey levels: an image without a brighter pixel shows nothing
NEAR_IDENTICAL = "near-identical to the frame before it"
MOST_GROUPS = 5  # that one picture joins; LARGEST_JOINED: share of the images that joined groups may hold
LARGEST_JOINED = 0.5
SAVE_EVERY = 3.0  # seconds of work that an interruption may cost
FIRST_SECONDS, WORTH_IT = (
    0.5,
    3.0,
)  # seconds packed here before processes are thought of, and left to do that are worth them
BATCH, BATCH_BYTES, AHEAD_BYTES = (
    16,
    2**20,
    2**29,
)  # records and bytes that a process is given at a time; bytes under way


def open_or_prepare(
    path,
    cache: Path,
    size: int,
    splits=shares.PREPARED,
    seed: int = 0,
    reading: Reading | dict | None = None,
    fewest: int = 0,
) -> PreparedDataset:
    """Open a prepared folder as it is, or prepare a plain folder or CSV once into `cache` and open it from there.

    The folder in `cache` is named by the source's name, the size and a fingerprint of its files (paths, sizes, times),
    so a changed source is prepared anew. Where the source says the splits, the shares are no part of it, so that one packing
    serves every script. Two processes may ask at once: one prepares, the other waits. ValueError, before anything is packed, where
    the source lists fewer than `fewest` images.
    """
    path = Path(path)
    if is_prepared(path) or (not path.exists() and beside(path, ".partial").exists()):
        return PreparedDataset(path)
    reading = reading_of(path, reading)
    records = list_source(path, reading)
    told = reading.plan()
    shares = _shares(path, records, splits, seed)
    key = f"{path.resolve()} {_source_fingerprint(source_root(path), records)} {VERSION} {shares}" + f" {told}" * bool(
        told
    )
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:8]
    folder = Path(cache) / f"{_source_name(path)}-{size}-{digest}"
    if is_prepared(folder):
        _tidy(folder)
        return PreparedDataset(folder)
    if len(records) < fewest and not any(frames.kind_of(source_root(path) / record.path) for record in records):
        raise ValueError(
            f"{path} lists {len(records)} images, fewer than batch_size {fewest}: lower batch_size or add data"
        )
    return prepare(path, folder, size=size, splits=splits, seed=seed, reading=reading)


def prepare(
    source,
    out,
    size: int = 256,
    splits=shares.PREPARED,
    seed: int = 0,
    progress: bool = True,
    workers: int | None = None,
    reading: Reading | dict | None = None,
    understood: Understanding | None = None,
) -> PreparedDataset:
    """Pack a source (see `sources.understand`) into the folder `out` and open it; the same call continues an interrupted one.

    Images are packed in the order of the source, the longer side resized to `size` pixels, padded with zeros at the
    bottom and right; bad ones are listed with a reason in rejected.csv. Groups the source leaves out are duplicate
    clusters, splits it leaves out are assigned by group in the shares `splits`. The work lies in `<out>.partial` until
    it is complete; an earlier dataset in `out` stays untouched until then. The bytes do not depend on `workers`
    (processes, by default one per core, up to 16; a set of a few seconds' work is packed here). What the source is understood
    to be is printed with `progress` and lies in understood.json, with eight of its images in understood.png; `understood` is
    given where it was printed already.
    Raises FileNotFoundError and ValueError (source, options, everything rejected, a group in two splits, `out` holds another
    source) and OSError (disk full).
    """
    source, out = Path(source), Path(os.path.abspath(out))
    splits = splitting.check_fractions(splits)
    if not isinstance(size, int) or not MINIMUM_SIDE <= size <= 4096:
        raise ValueError(f"size={size}: give the side of the packed images in pixels, {MINIMUM_SIDE} to 4096")
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: give 1 or more")
    if out.exists() and not is_prepared(out) and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is no prepared dataset: choose another folder, nothing is overwritten")
    reading = reading_of(source, reading)
    records = list_source(source, reading)
    _check_groups(records)
    root = source_root(source)
    plan = {
        "version": VERSION,
        "size": size,
        **_shares(source, records, splits, seed),
        "source": str(source.resolve()),
        "fingerprint": _source_fingerprint(root, records),
        **reading.plan(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(beside(out, ".lock"), progress):
        if _is_of_plan(out, plan):
            _remove_notes(out)
            return PreparedDataset(out)
        _check_source(out, plan)
        if understood is None:
            understood = understand(source, reading)
            if progress:
                log.note("\n".join(understood.lines()))
        records = understood.records
        _check_groups(records)
        partial = beside(out, ".partial")
        try:
            _begin(partial, plan)
            coding = _mask_coding(root, records, reading, understood, partial, workers, progress)
            _pack_all(root, records, partial, plan, progress, workers, coding)
            _finish(records, partial, out, plan, understood, coding, progress)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            layers = 1 + any(record.mask for record in records) + any(record.target for record in records)
            needed = layers * len(records) * size * size / 1e6
            raise OSError(
                error.errno,
                f"the disk is full while preparing {out} (about {needed:.0f} MB in all): free some space and repeat "
                f"the same call, it goes on from {partial.name}",
            ) from error
    return PreparedDataset(out)


def _runs(records: list[Record]):
    """Ranges of consecutive records that lie in one file and are decoded in one go; a plain image is a range of its own."""
    begin = 0
    while begin < len(records):
        end = begin + 1
        while end < len(records) and end - begin < LONGEST_RUN and records[end].path == records[begin].path:
            end += 1
        yield range(begin, end)
        begin = end


@dataclass
class Work:
    """Records that are decoded in one go: the consecutive ones of a file, and the one before them where it is of the same file.

    skip: how many of the first are packed already
    """

    records: list[Record]
    before: list[Record]
    skip: int = 0


def _works(records: list[Record], done: int) -> Iterator[Work]:
    """What is to be done. Whole runs, even where half of one is done: which frames are near-identical must not depend on that."""
    for run in _runs(records):
        if run.stop > done:
            # to tell near-identical frames at the seam of two runs, the frame before is decoded again
            seam = run.start and records[run.start - 1].path == records[run.start].path
            of_run = [replace(records[i], coding=None) for i in run]
            yield Work(of_run, [replace(records[run.start - 1], coding=None)] if seam else [], max(0, done - run.start))


@dataclass
class Packed:
    """A line of the journal for each record, and the rows of those that are packed, uint8 (K, S, S), of each role."""

    lines: list[bytes]
    rows: dict[str, np.ndarray]


def _packed(work: Work, root: Path, size: int, keep_all: bool, coding: MaskCoding | None, roles: list[str]) -> Packed:
    """Read, check and pack."""
    lines, rows = [], {role: [] for role in roles}
    for result in _prepare_run(root, work, size, keep_all, coding)[work.skip :]:
        if isinstance(result, str):
            lines.append(_reason_line(result))
            continue
        record, *layers = result
        for role, layer in zip(("images", "masks", "targets"), layers, strict=True):
            if role in rows:
                rows[role].append(layer if layer is not None else np.zeros((size, size), np.uint8))
        entry: dict = {"record": {name: getattr(record, name) for name in COLUMNS}}
        if layers[0].max() < DARK:
            entry["dark"] = True
        lines.append(json.dumps(entry).encode() + b"\n")
    return Packed(lines, {role: np.stack(arrays) for role, arrays in rows.items() if arrays})


def _reason_line(reason: str) -> bytes:
    return json.dumps({"reason": reason}).encode() + b"\n"


def _given_up(work: Work, died: WorkerDied) -> Packed:
    """What becomes of a file that ended a process twice: a decoder's fault is a reason, want of memory an error."""
    path = work.records[0].path
    if not died.crashed:
        raise ChildProcessError(
            f"the process that packs {path} was ended from outside twice ({died}), the second time with no other large image "
            "beside it: free some memory, or take the file away, and repeat the same call; what is packed is kept"
        )
    return Packed([_reason_line(f"its decoder crashed ({died})") for _ in work.records[work.skip :]], {})


def _prepare_run(root: Path, work: Work, size: int, keep_all: bool, coding=None) -> list:
    """The results of `_prepare_one` for the records of a run, in order."""
    records, before = work.records, work.before
    first = records[0]
    try:
        several = not first.reason and (len(records) > 1 or frames.is_container(root / first.path))
    except ValueError as error:
        return [str(error) for _ in records]
    if not several:
        return [_prepare_one(root, record, size, coding) for record in records]
    results: dict[int, object] = {}
    last: dict[str, np.ndarray] = {}
    by_frame: dict[int, list[int]] = {}
    for place, record in enumerate(records):
        by_frame.setdefault(record.frame, []).append(place)
    numbers = sorted({record.frame for record in (*before, *records)})
    failed = f"ends before its frame {first.frame}"
    try:
        for number, whole in frames.read_frames(root / first.path, numbers):
            for record in before:
                if record.frame == number:
                    last[record.crop] = frames.cropped(whole, record.crop)
            for place in by_frame.get(number, []):
                record = records[place]
                grey = frames.cropped(whole, record.crop)
                same = not keep_all and not record.mask and not record.target and not record.path.endswith(".npz")
                if same and frames.near_identical(last.get(record.crop), grey):
                    results[place] = NEAR_IDENTICAL
                    continue
                last[record.crop] = grey
                digest = pixels_sha256(grey)
                results[place] = _pack_grey(root, record, grey, digest, size, coding)
    except ValueError as error:
        failed = str(error)
    return [results.get(place, failed) for place in range(len(records))]


def pixels_sha256(grey: np.ndarray) -> str:
    """sha256 by which an image that is no file of its own is known, of its native pixels (H, W)."""
    return hashlib.sha256(f"{grey.shape}".encode() + grey.tobytes()).hexdigest()


def _prepare_one(root: Path, record: Record, size: int, coding: MaskCoding | None = None):
    """Read, check and pack one record: (record, image, mask or None, target or None), or the reason for refusing it."""
    if record.reason:
        return record.reason
    try:
        data = file_bytes(root / record.path)
        with held_grey(data) as grey:
            digest = hashlib.sha256(data).hexdigest()
            return _pack_grey(root, record, frames.cropped(grey, record.crop), digest, size, coding)
    except ValueError as error:
        return str(error)


def _pack_grey(root: Path, record: Record, grey: np.ndarray, digest: str, size: int, coding: MaskCoding | None = None):
    """As `_prepare_one`, of an image whose native pixels (H, W) are there already."""
    try:
        check_size(grey.shape[1], grey.shape[0])
        height, width = packed_size(*grey.shape, size)
        target = None
        mask = read_masks(root, record, grey, size, coding)
        if mask is not None:
            mask = in_frame(shrunk(mask, height, width), height, width, size, Image.Resampling.NEAREST)
        if record.target:
            try:
                target = read_grey(root / record.target)
            except ValueError as error:
                raise ValueError(f"its target {record.target}: {error}") from error
            check_same_shape(f"its target {record.target}", target, grey, size)
            target = in_frame(target, height, width, size, RESAMPLING)
    except ValueError as error:
        return str(error)
    done = replace(
        record,
        height=grey.shape[0],
        width=grey.shape[1],
        valid_height=height,
        valid_width=width,
        sha256=digest,
        phash=f"{int(splitting.perceptual_hash(grey)):016x}",
    )
    return done, in_frame(grey, height, width, size, RESAMPLING), mask, target


def _shares(source: Path, records: list[Record], splits, seed: int) -> dict:
    """The part of a plan that makes splits: nothing where the source says them all."""
    given = {record.split for record in records}
    if "" not in given and (not {"train", "test"} <= given or "val" in given or is_table(source)):
        return {"fractions": None, "seed": None}
    return {"fractions": list(splits), "seed": seed}


def _begin(partial: Path, plan: dict) -> None:
    """Go on in the partial folder of the same plan, or begin it anew."""
    plan_file = partial / "plan.json"
    if not (plan_file.is_file() and _read_json(plan_file) == plan):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_json(plan_file, plan)


def _mask_coding(root, records, reading, understood, partial, workers, progress) -> MaskCoding | None:
    """The coding of all masks, decided once: a call that goes on finds it where the first one left it."""
    file = partial / "coding.json"
    if file.is_file() and (plain := _read_json(file)):
        return MaskCoding.from_plain(plain)
    coding = mask_coding(root, records, reading, understood.fill_outlines, _processes(workers))
    if coding is not None:
        _write_json(file, coding.to_plain())
        if progress and coding.said:
            log.note("\n".join(f"  masks    {words}" for words in coding.said))
    return coding


def _pack_all(
    root: Path,
    records: list[Record],
    partial: Path,
    plan: dict,
    progress: bool,
    workers: int | None,
    coding: MaskCoding | None,
) -> None:
    """Fill the partial folder: pixel rows at the end of images.npy and its like, one line per record in a journal.

    A journal line is written after the rows it stands for are on the disk, so what the journal says is always there;
    rows beyond it are written again. Plain writes, no memory map: on a full disk those raise, a map kills the process.
    """
    size, journal = plan["size"], partial / "journal.jsonl"
    done, packed = _read_journal(journal)
    roles = ["images"] + ["masks"] * any(r.mask for r in records) + ["targets"] * any(r.target for r in records)
    with contextlib.ExitStack() as stack:
        rows = {}
        for role in roles:
            path = partial / f"{role}.npy"
            rows[role] = stack.enter_context(open(path, "r+b" if path.exists() else "w+b"))
            rows[role].truncate(NPY_HEADER + packed * size * size)
            rows[role].seek(0, os.SEEK_END)
            if rows[role].tell() < NPY_HEADER + packed * size * size:
                raise ValueError(f"{partial} is damaged: delete it and start again")
            rows[role].seek(NPY_HEADER + packed * size * size)
        file = stack.enter_context(open(journal, "ab"))
        if done and progress:
            log.note(f"{len(done)} of {len(records)} images are kept from the call before")
        bar = stack.enter_context(progress_bar(len(records), "image", "packing", initial=len(done), show=progress))
        lines, begun = [], time.monotonic()
        saved = begun

        def save():
            for pixels in rows.values():
                pixels.flush()
                os.fsync(pixels.fileno())
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
            lines.clear()

        common = (root, size, plan.get("frames") == "all", coding, roles)
        works = _works(records, len(done))
        longest = max(map(len, _runs(records)), default=1)
        packing = _in_order(works, len(records) - len(done), longest, common, workers)
        results = stack.enter_context(contextlib.closing(packing))
        for result in results:
            for role, pixels in result.rows.items():
                rows[role].write(pixels)
            lines += result.lines
            bar.update(len(result.lines))
            if time.monotonic() - saved > SAVE_EVERY:
                save()
                saved = time.monotonic()
        save()
    spent, count = time.monotonic() - begun, len(records) - len(done)
    if progress and spent > 1:
        log.note(f"packed {count} images in {spent:.0f} s, {count / spent:.0f} a second")


def _in_order(works: Iterator[Work], left: int, longest: int, common: tuple, workers: int | None) -> Iterator[Packed]:
    """What `_packed` makes of each work, in order: here, and by processes where enough is left that they are worth their start.

    left, longest: records that are to be packed, and those of the longest run
    """
    count, begun, done = _processes(workers), time.monotonic(), 0
    for work in works:
        spent = time.monotonic() - begun
        if count > 1 and sys.executable and done and spent >= FIRST_SECONDS and spent / done * (left - done) > WORTH_IT:
            break
        yield _packed(work, *common)
        done += len(work.records)
    else:
        return
    layer = common[1] ** 2 * len(common[-1])
    batch = max(1, min(BATCH, BATCH_BYTES // layer))
    ahead = max(count + 1, min(4 * count, AHEAD_BYTES // (max(batch, longest) * layer)))
    batches = _batches(itertools.chain([work], works), batch)
    with contextlib.closing(in_processes(_packed, common, batches, count, ahead, _given_up)) as results:
        for packed in results:
            yield from packed


def _batches(works: Iterable[Work], count: int) -> Iterator[list[Work]]:
    """Works, with about `count` records together."""
    batch: list[Work] = []
    for work in works:
        batch.append(work)
        if sum(len(one.records) for one in batch) >= count:
            yield batch
            batch = []
    if batch:
        yield batch


def _processes(workers: int | None) -> int:
    return workers or min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _read_journal(path: Path) -> tuple[list[dict], int]:
    """The entries of a journal and how many of them are packed; a last line cut off by a crash is cut away."""
    if not path.exists():
        return [], 0
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with open(path, "r+b") as file:
            file.truncate(len(whole))
    entries = [json.loads(line) for line in whole.splitlines()]
    return entries, sum("record" in entry for entry in entries)


def _finish(sources, partial: Path, out: Path, plan: dict, understood: Understanding, coding, progress: bool) -> None:
    """Write what is known only at the end, then let the dataset appear by one rename."""
    size = plan["size"]
    entries, count = _read_journal(partial / "journal.jsonl")
    rejected = [(_place(r), e["reason"]) for r, e in zip(sources, entries, strict=True) if "reason" in e]
    if not count:
        first = "; ".join(f"{path}: {reason}" for path, reason in rejected[:3])
        shutil.rmtree(partial)
        raise ValueError(f"none of the {len(rejected)} images of {plan['source']} can be used: {first}")
    records = [Record(**entry["record"]) for entry in entries if "record" in entry]
    present = {"images": True, "masks": any(r.mask for r in records), "targets": any(r.target for r in records)}
    for role, wanted in present.items():
        path = partial / f"{role}.npy"
        if wanted:
            with open(path, "r+b") as file:
                file.write(_npy_header(count, size))
                file.flush()
                os.fsync(file.fileno())
        else:
            path.unlink(missing_ok=True)
    images = np.load(partial / "images.npy", mmap_mode="r")
    grouped, drawn = [bool(record.group) for record in records], [not record.split for record in records]
    crossing, hidden = _complete_groups_and_splits(records, images, plan, is_table(Path(plan["source"])))
    hidden += (
        _two_labels(records)
        + hidden_groups(records, grouped)
        + _moved([r for r, is_open in zip(records, drawn, strict=True) if is_open], out, plan)
    )
    if dark := [entry["record"]["id"] for entry in entries if entry.get("dark")]:
        hidden.append(
            f"{len(dark)} of {len(records)} images are nearly black, no pixel above {DARK} of 255 (e.g. {dark[0]}): the range of "
            "their numbers, or the window of their DICOM file, may be wrong"
        )
    understood.warnings += hidden
    if progress and hidden:
        log.note("\n".join(f"  warning  {words}" for words in hidden), logging.WARNING)
    del images  # the file may be replaced
    understood.burnt_in = overlays.look(partial, records, plan.get("blank", False))
    burnt_in = overlays.sentence(understood.burnt_in)
    understood.notes.append(burnt_in)
    if progress:
        log.note(f"  note     {burnt_in}")
    images = np.load(partial / "images.npy", mmap_mode="r")
    write_manifest(partial / "manifest.csv", records)
    write_rows(partial / "rejected.csv", ["path", "reason"], rejected)
    understood.write(partial / "understood.json", coding.to_plain() if coding else None)
    layers = [
        np.load(partial / f"{role}.npy", mmap_mode="r") if present[role] else None for role in ("masks", "targets")
    ]
    write_sheet(partial / "understood.png", records, images, *layers)
    for name in ("manifest.csv", "rejected.csv"):
        with open(partial / name, "rb") as file:
            os.fsync(file.fileno())
    description = {
        "name": out.name,
        **plan,
        "count": count,
        "rejected": sum(reason != NEAR_IDENTICAL for _, reason in rejected),
        "near_identical": sum(reason == NEAR_IDENTICAL for _, reason in rejected),
        "labels": dict(sorted(Counter(r.label for r in records).items())),
        "splits": dict(sorted(Counter(r.split for r in records).items())),
        "groups": len({r.group for r in records}),
        "masks": sum(bool(r.mask) for r in records),
        "targets": sum(bool(r.target) for r in records),
        "groups_in_two_splits": crossing,
        "ignore": IGNORE if coding is not None and coding.ignore is not None else None,
        "mask_coding": coding.to_plain() if coding is not None else None,
        "mask_classes": coding.class_values() if coding is not None else {},
        "warnings": understood.warnings,
        "complete": True,
    }
    _write_json(partial / "dataset.json", description)
    replaced = beside(out, ".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        os.rename(out, replaced)
    os.rename(partial, out)
    _sync_folder(out.parent)
    _remove_notes(out)


def _check_source(out: Path, plan: dict) -> None:
    """ValueError where `out` holds another source, which this one would replace; a folder that was moved is the same source."""
    if not is_prepared(out):
        return
    earlier = _read_json(out / "dataset.json")
    same = earlier.get("fingerprint") == plan["fingerprint"]
    if not same and (source := earlier.get("source", plan["source"])) != plan["source"]:
        raise ValueError(
            f"{out} holds images of {source}, and not of {plan['source']}: choose another folder, or delete it first"
        )


def _two_labels(records: list[Record]) -> list[str]:
    """A warning where one file, byte for byte, stands under two labels."""
    first: dict[str, Record] = {}
    both = [
        (other, record)
        for record in records
        if record.label and (other := first.setdefault(record.sha256, record)).label != record.label
    ]
    if not both:
        return []
    one, other = both[0]
    return [
        f"{len(both)} images stand under two labels, e.g. {one.path} ({one.label}) and {other.path} ({other.label}), which are the "
        "same file: take one away"
    ]


def _moved(records: list[Record], out: Path, plan: dict) -> list[str]:
    """A warning where images whose splits are drawn are in another one than in an earlier packing of the same source."""
    if plan["fractions"] is None:
        return []
    told = ("source", "fractions", "seed")
    earlier = [
        folder
        for folder in (out, *sorted(out.parent.iterdir()))
        if (folder / "dataset.json").is_file()
        and all((description := _read_json(folder / "dataset.json")).get(key) == plan[key] for key in told)
        and description.get("complete")
    ]
    if not earlier:
        return []
    latest = max(earlier, key=lambda folder: (folder / "dataset.json").stat().st_mtime_ns)
    try:
        before = {
            (record.path, record.frame, record.crop): record.split for record in read_manifest(latest / "manifest.csv")
        }
    except (OSError, ValueError):  # a damaged one has nothing to compare
        return []
    moves = Counter(
        (was, record.split)
        for record in records
        if (was := before.get((record.path, record.frame, record.crop), record.split)) != record.split
    )
    if not moves:
        return []
    words = ", ".join(f"{count} from {was} to {now}" for (was, now), count in moves.most_common())
    keep = f"copy {latest / 'manifest.csv'} into the folder of images as splits.csv"
    if is_table(Path(plan["source"])):
        keep = f"take the column split of {latest / 'manifest.csv'} into the table"
    return [
        f"the source has changed since {latest.name} was packed, and {sum(moves.values())} of its {len(before)} images are in "
        f"another split now ({words}): do not measure a model of then on the test of now. To keep the splits, {keep}"
    ]


def _remove_notes(out: Path) -> None:
    """What let a call that was killed before the rename go on, and what it replaced; in a whole dataset it is done."""
    shutil.rmtree(beside(out, ".replaced"), ignore_errors=True)
    for name in (
        "journal.jsonl",
        "coding.json",
        overlays.REPORT,
        "plan.json",
    ):  # plan.json says that there may be others
        (out / name).unlink(missing_ok=True)


def _tidy(out: Path) -> None:
    """Remove what a call that was killed just after the rename has left."""
    left = [out / "plan.json", beside(out, ".replaced"), beside(out, ".lock")]
    if any(path.exists() for path in left) and os.access(out, os.W_OK) and os.access(out.parent, os.W_OK):
        with _locked(beside(out, ".lock"), False):
            _remove_notes(out)


def _place(record: Record) -> str:
    """The path of a record, with the frame where it is one of several."""
    return f"{record.path} frame {record.frame}" if record.frame else record.path


def _complete_groups_and_splits(
    records: list[Record], images: np.ndarray, plan: dict, table: bool
) -> tuple[list[str], list[str]]:
    """Fill in empty groups and splits, join groups that share a picture.

    Returns duplicate clusters that the source's own splits divide, and warnings.
    """
    clusters = splitting.duplicate_clusters(
        [record.sha256 for record in records],
        np.array([int(record.phash, 16) for record in records], dtype=np.uint64),
        thumbnail_of=lambda i: splitting.thumbnail(valid_part(images, records[i], i)),
    ).tolist()
    told = _join_groups(records, clusters) + _labels_that_disagree(records, clusters)
    names, members = {}, Counter(clusters)
    for record, cluster in zip(records, clusters, strict=True):
        if record.group:
            names.setdefault(cluster, record.group)
    for record, cluster in zip(records, clusters, strict=True):
        if not record.group:
            fallback = f"dup{cluster:06d}" if members[cluster] > 1 else record.id
            record.group = names.setdefault(cluster, fallback)
    given = {record.group: record.split for record in records if record.split not in ("", "exclude")}
    for record in records:
        if not record.split:
            record.split = given.get(record.group, "")
    splits = {record.split for record in records}
    if not table and {"train", "test"} <= splits and "val" not in splits:  # a table is taken at its word
        _val_from_train(records, plan)
    if not (open_ := [record for record in records if not record.split]):
        return _groups_in_two_splits(records), told
    drawn = splitting.assign([r.group for r in open_], plan["fractions"], [r.label for r in open_], plan["seed"])
    for record, name in zip(open_, drawn.tolist(), strict=True):
        record.split = name
    return _groups_in_two_splits(records), told


def _labels_that_disagree(records: list[Record], clusters: list[int]) -> list[str]:
    """What is to be said where near-identical pictures have different labels."""
    labelled: dict[int, dict[str, Record]] = {}
    for record, cluster in zip(records, clusters, strict=True):
        if record.label:
            labelled.setdefault(cluster, {}).setdefault(record.label, record)
    doubtful = [list(by_label.values()) for by_label in labelled.values() if len(by_label) > 1]
    if not doubtful:
        return []
    said = " and ".join(f"{record.path} ({record.label})" for record in doubtful[0][:2])
    return [f"near-identical pictures have different labels, e.g. {said}; {len(doubtful)} such pictures: look at them"]


def _join_groups(records: list[Record], clusters: list[int]) -> list[str]:
    """Give named groups that share a near-identical picture one name, so that no split divides them; returns what is to be said.

    Not where the source puts them into two splits, nor where a picture is in many groups (a title, a test image).
    """
    alike: dict[int, list[Record]] = {}
    for record, cluster in zip(records, clusters, strict=True):
        alike.setdefault(cluster, []).append(record)
    joined: dict[str, str] = {}

    def first(group: str) -> str:
        while group in joined:
            group = joined[group]
        return group

    told, pairs, divided, everywhere = [], [], [], []
    for members in alike.values():
        of_split = {record.split: record for record in members if record.split not in ("", "exclude")}
        if len(of_split) > 1:
            divided.append(list(of_split.values())[:2])
        of_group = {record.group: record for record in members if record.group}
        if len(of_group) > MOST_GROUPS:
            everywhere.append((members[0], len(of_group)))
        elif len(of_group) > 1 and len({record.split for record in of_group.values()}) == 1:
            pairs.append(list(of_group.values()))
            names = sorted({first(group) for group in of_group}, key=natural_key)
            joined.update(dict.fromkeys(names[1:], names[0]))
    largest = Counter(first(record.group) for record in records if record.group).most_common(1)
    before = Counter(record.group for record in records if record.group).most_common(1)
    if pairs and largest[0][1] > max(before[0][1], LARGEST_JOINED * len(records)):
        told.append(
            f"near-identical pictures link groups with {largest[0][1]} of {len(records)} images, e.g. {pairs[0][0].path} and "
            f"{pairs[0][1].path}: too many to be of one patient, so that the groups stay as they are; look at duplicates"
        )
    elif pairs:
        for record in records:
            record.group = first(record.group)
        one, other = pairs[0][:2]
        told.append(
            f"{len(joined)} groups are joined to another, as they share a near-identical picture (e.g. {one.path} and "
            f"{other.path}, now {one.group}): one patient under two names, or a copy; no split divides them"
        )
    if everywhere:
        told.append(
            f"{everywhere[0][0].path} is in {everywhere[0][1]} groups ({len(everywhere)} such pictures): a title or a test image? "
            "The groups stay apart, and the picture may lie in two splits"
        )
    if divided:
        one, other = divided[0]
        told.append(
            f"{len(divided)} clusters of near-identical pictures lie in two splits of the source, e.g. {one.path} ({one.split}) "
            f"and {other.path} ({other.split}): the test is not independent; mark one side as exclude"
        )
    return told


def _val_from_train(records: list[Record], plan: dict) -> None:
    """Where folders are train and test and no val, and no table says it, the share of val is taken from train, by groups."""
    training = [record for record in records if record.split == "train"]
    train, val, _ = plan["fractions"] or (1.0, 0.0, 0.0)
    if not val or any(not record.split for record in records):
        return
    shares = (train / (train + val), val / (train + val), 0.0)
    names = splitting.assign([r.group for r in training], shares, [r.label for r in training], plan["seed"])
    for record, name in zip(training, names.tolist(), strict=True):
        record.split = name


def hidden_groups(records: list[Record], grouped: list[bool]) -> list[str]:
    """Warnings where images without a group that follow each other by name are more alike, or share labels more, than by chance."""
    by_folder: dict[str, list[Record]] = {}
    for record, neighbours in zip(records, grouped, strict=True):
        if not neighbours:
            by_folder.setdefault(record.path.rpartition("/")[0], []).append(record)
    distance, chance, same, expected, pairs = [], [], 0, 0.0, 0
    rng = np.random.default_rng(0)
    for neighbours in by_folder.values():
        if len(neighbours) < 8:
            continue
        neighbours = sorted(neighbours, key=lambda record: natural_key(record.path))
        bits = np.array([int(record.phash, 16) for record in neighbours], dtype=np.uint64)
        other = bits[rng.permutation(len(bits))]
        distance += np.bitwise_count(bits[1:] ^ bits[:-1]).tolist()
        chance += np.bitwise_count(bits[1:] ^ other[1:])[bits[1:] != other[1:]].tolist()
        labels = Counter(record.label for record in neighbours)
        if len(labels) > 1:
            pairs += len(neighbours) - 1
            same += sum(a.label == b.label for a, b in zip(neighbours[1:], neighbours[:-1], strict=True))
            expected += (len(neighbours) - 1) * sum((count / len(neighbours)) ** 2 for count in labels.values())
    told = []
    if len(distance) >= 30 and len(chance) >= 30:
        near, far = float(np.mean(distance)), float(np.mean(chance))
        error = float(np.hypot(np.std(distance) / len(distance) ** 0.5, np.std(chance) / len(chance) ** 0.5))
        if near < 0.85 * far and far - near > 5 * error:
            told.append(
                f"neighbours in the order of names are alike ({near:.0f} of 64 bits differ, {far:.0f} at random): "
                "patients or clips may "
                "hide in running numbers, and lie in two splits; name them in the group column of a manifest.csv"
            )
    if pairs >= 30 and same - expected > 5 * max(1.0, (expected * (1 - expected / pairs)) ** 0.5):
        told.append(
            f"neighbours in the order of names share their label in {same / pairs:.0%} of cases, {expected / pairs:.0%} "
            "at random: patients "
            "may hide in running numbers; name them in the group column of a manifest.csv"
        )
    return told


def _groups_in_two_splits(records: list[Record]) -> list[str]:
    seen: dict[str, set] = {}
    for record in records:
        if record.group and record.split not in ("", "exclude"):
            seen.setdefault(record.group, set()).add(record.split)
    return sorted(group for group, splits in seen.items() if len(splits) > 1)


def _check_groups(records: list[Record]) -> None:
    divided = _groups_in_two_splits(records)
    if divided:
        where = sorted({r.split for r in records if r.group == divided[0]} - {"", "exclude"})
        raise ValueError(
            f"group {divided[0]!r} lies in the splits {' and '.join(where)} ({len(divided)} such groups): put each "
            "group into one split, or leave the split column empty"
        )


# files


def _npy_header(count: int, size: int) -> bytes:
    """An NPY 1.0 header of NPY_HEADER bytes whatever N is, so that rows can be written before N is known."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, {size}, {size}), }}"
    prefix = b"\x93NUMPY\x01\x00" + (NPY_HEADER - 10).to_bytes(2, "little")
    return prefix + text.encode().ljust(NPY_HEADER - 11) + b"\n"


def _source_fingerprint(root: Path, records: list[Record]) -> str:
    """A cheap fingerprint of what a source says and of its files' sizes and times; no file but a volume's header is opened."""
    digest = hashlib.sha256()
    for record in records:
        told = (record.id, record.path, record.label, record.group, record.split, record.mask, record.target)
        for path in filter(None, (record.path, *record.mask_paths, record.target)):
            with contextlib.suppress(OSError, ValueError):  # a missing file is refused when it is read
                file = root / polygons.split_reference(path)[0]
                status = os.stat(file)
                told += (status.st_size, status.st_mtime_ns)
                if file.suffix.lower() in (".mhd", ".nhdr") and (pixels := volumes.data_file(file)):
                    status = os.stat(pixels)
                    told += (status.st_size, status.st_mtime_ns)
        digest.update(repr(told).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _source_name(path: Path) -> str:
    path = path.resolve()
    named_by_folder = path.is_file() and path.stem == "manifest"
    return (path.parent.name if named_by_folder else path.stem if path.is_file() else path.name) or "images"


def _is_of_plan(out: Path, plan: dict) -> bool:
    if not is_prepared(out):
        return False
    description = _read_json(out / "dataset.json")
    return bool(description.get("complete")) and all(description.get(key) == value for key, value in plan.items())


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # cut off by a crash: the same as absent
        return {}


def _write_json(path: Path, content: dict) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _locked(path: Path, progress: bool):
    """Hold a lock file alone; a process that dies lets go of it by itself."""
    if fcntl is None:
        yield
        return
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                log.say(f"another process is preparing {path.stem}: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        # the holder before us deletes the file: what we then hold is a name nobody else will find
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == os.stat(path).st_ino:
                break
        os.close(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
