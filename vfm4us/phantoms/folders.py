"""Folders of phantoms, with a manifest of labels, patients and splits."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from PIL import Image

from vfm4us.data.csv_files import rows_text
from vfm4us.phantoms.make import IMAGES_PER_BLOCK, VERSION, make_phantom
from vfm4us.phantoms.organs import ORGANS
from vfm4us.runtime.files import sweep, temporary, write_text
from vfm4us.runtime.progress import progress as progress_bar


def _save(array: np.ndarray, path: Path):
    unfinished = temporary(path)
    Image.fromarray(array).save(unfinished, format="PNG", compress_level=1)
    os.replace(unfinished, path)


def _split(block: int, organ_number: int) -> str:
    """70/10/20 by patient within each organ; the first three patients of an organ cover all three splits."""
    cycle = ["train", "val", "test", "train", "train", "test", "train", "train", "train", "train"]
    if organ_number % 2:
        cycle[1:3] = ["test", "val"]
    return cycle[block % 10]


def _write_images(out: Path, jobs: list[tuple[str, str, str, int]], size: int, seed: int) -> int:
    for part, label, name, index in jobs:
        paths = [out / part / tree / label / name for tree in ("masks", "low_quality", "images")]
        if not all(path.exists() for path in paths):
            phantom = make_phantom(index, seed, size)
            for path, array in zip(paths, (phantom.mask, phantom.low_quality, phantom.image), strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                _save(array, path)
    return len(jobs)


def write_quickstart_phantoms() -> Path:
    """The images of the built-in downstream runs (configs/smoke/), under the working directory; made once."""
    return write_phantoms(Path("data/phantoms-600-64"), 600, 64)


def write_phantoms(
    out: Path, count: int = 2000, size: int = 256, seed: int = 0, workers: int | None = None, progress: bool = True
) -> Path:
    """Write `count` phantoms, half labelled by organ (out/coarse), half by organ and plane (out/fine); returns out.

    Each half holds images/<label>/*.png, masks/, low_quality/, manifest.csv (path,label,group,split,mask,target; target
    is empty) and pairs.csv (path = low quality, target = image). A group is a virtual patient. A second call does
    nothing, an interrupted one continues. With workers > 1, call it from under `if __name__ == "__main__":`.
    Raises ValueError if `out` holds something else or `count` is too small for three splits.
    """
    out, least = Path(out), 4 * IMAGES_PER_BLOCK
    if count < least:
        raise ValueError(f"count={count}: at least {least}, so that every label is trained on and no split is empty")
    arguments = {"version": VERSION, "count": count, "size": size, "seed": seed}
    done, begun = out / "phantoms.json", out / ".phantoms.begun.json"
    for record in (done, begun):
        if record.exists() and (written := json.loads(record.read_text())) != arguments:
            raise ValueError(f"{out} holds phantoms of {written}, not {arguments}: use another folder or delete it")
    if done.exists():
        return out
    if not begun.exists() and ((out / "coarse").exists() or (out / "fine").exists()):
        raise ValueError(f"{out} holds coarse/ or fine/ that write_phantoms did not make: use another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(begun, json.dumps(arguments))

    names, jobs = list(ORGANS), []
    first_fine = -(-(count // 2) // IMAGES_PER_BLOCK) * IMAGES_PER_BLOCK  # no patient in both halves
    for part, first, number in (("coarse", 0, count // 2), ("fine", first_fine, count - count // 2)):
        manifest, pairs = [], []
        for index in range(first, first + number):
            organ = names[index % len(names)]
            plane = ORGANS[organ][index // len(names) % 3]
            label, name = organ if part == "coarse" else f"{organ}_{plane}", f"{index:06d}.png"
            block = index // IMAGES_PER_BLOCK
            group = f"patient_{organ}_{block:05d}"
            split = _split(block - first // IMAGES_PER_BLOCK, names.index(organ))
            image, low, mask = (f"{tree}/{label}/{name}" for tree in ("images", "low_quality", "masks"))
            manifest.append([image, label, group, split, mask, ""])
            pairs.append([low, image, label, group, split])
            jobs.append((part, label, name, index))
        (out / part).mkdir(exist_ok=True)
        header = ["path", "label", "group", "split", "mask", "target"]
        write_text(out / part / "manifest.csv", rows_text(header, manifest))
        write_text(out / part / "pairs.csv", rows_text(["path", "target", "label", "group", "split"], pairs))

    for tree in out.glob("*/*/*/"):  # an earlier call may have been killed
        sweep(tree)
    workers = workers or os.cpu_count() or 1
    chunks = [jobs[i : i + 16] for i in range(0, len(jobs), 16)]
    with progress_bar(count, "image", "phantoms", show=progress) as bar:
        if workers == 1:
            for chunk in chunks:
                bar.update(_write_images(out, chunk, size, seed))
        else:
            pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
            try:
                # Ctrl-C reaches every process of a terminal: one that is interrupted while it holds the pool's lock keeps the
                # others, and this one, waiting for ever. They are born with the signal blocked, and end when this one says so.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    writing = [pool.submit(_write_images, out, chunk, size, seed) for chunk in chunks]
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
                for future in as_completed(writing):
                    bar.update(future.result())
            finally:
                pool.shutdown(cancel_futures=True)
    os.replace(begun, done)
    return out
