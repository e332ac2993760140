"""Encoders that this project releases, by their names."""

import csv
import gzip
import json
from pathlib import Path

# Beside the package in the repository, or within it where it was installed.
FOLDERS = (Path(__file__).parents[2] / "weights", Path(__file__).parents[1] / "shipped" / "weights")
TABLE = "released.json"  # name -> {file, sha256}
POOL = "pool.csv.gz"  # every image that they were pretrained on


def table() -> dict[str, dict[str, str]]:
    """Every released encoder: the name of its file, and the file's sha256 ("" until it is made)."""
    for folder in FOLDERS:
        if (folder / TABLE).is_file():
            return json.loads((folder / TABLE).read_text())
    return {}


def names() -> list[str]:
    """What `load_encoder` and `encoder.weights` take beside files and folders."""
    return list(table())


def resolve(source: str | Path) -> tuple[Path, str | None]:
    """The path that `source` means, and the sha256 that its file must have; None where it is no released encoder's name.

    Raises FileNotFoundError where the file of a released encoder is not there, and ValueError where a path has its name.
    """
    entry = table().get(source) if isinstance(source, str) else None
    if entry is None:
        return Path(source).expanduser(), None
    if Path(source).exists():
        raise ValueError(
            f"{source!r} is the name of a released encoder, and of a path in {Path.cwd()}: give ./{source} for the path, or go to "
            "another folder for the encoder"
        )
    for folder in FOLDERS:
        path = folder / entry["file"]
        if path.is_file():
            if not entry["sha256"]:
                raise ValueError(
                    f"{folder / TABLE} has no sha256 of {entry['file']}, so it cannot be verified: enter it"
                )
            return path, entry["sha256"]
    raise FileNotFoundError(
        f"{source!r}: {entry['file']} is not in {FOLDERS[0]}. Fetch it from where this project is "
        f"published, or make it: {entry['made']}"
    )


def seen(source: str) -> set[str]:
    """First digits of the sha256 of every image that a released encoder, by its name or its file, was pretrained on; else none."""
    return {row[column] for row in _pool(source) for column in ("sha256", "original_sha256") if row[column]}


def hashes(source: str) -> set[int]:
    """The perceptual hashes of the same images."""
    return {int(row["phash"], 16) for row in _pool(source) if row["phash"]}


def _pool(source: str) -> list[dict[str, str]]:
    if source not in table() and Path(source).name not in {entry["file"] for entry in table().values()}:
        return []
    for folder in FOLDERS:
        file = folder / POOL
        if file.is_file():
            with gzip.open(file, "rt", encoding="utf-8", newline="") as stream:
                return list(csv.DictReader(stream))
    return []
