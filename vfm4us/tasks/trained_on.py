"""What a model was trained on, in a few numbers that its file keeps, and where other images differ from it."""

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vfm4us.checkpoints import seen
from vfm4us.data.dataset import PreparedDataset, valid_part
from vfm4us.data.decode import read_record, read_records
from vfm4us.data.frames import is_container
from vfm4us.data.limits import file_bytes
from vfm4us.data.looks import sample
from vfm4us.data.prepare import pixels_sha256
from vfm4us.data.records import Record

LOOKED_AT = 256, 32  # images of the training set, and of another one
QUANTILES = (0.05, 0.5, 0.95)
LIGHTER = 20  # grey levels above nearly all training images: what a negative is at the least
RARELY = 0.1  # share of images that may look like negatives and be none
LARGER = 2.0  # times: sides that differ by less are nothing to tell


def trained_on(dataset: PreparedDataset) -> dict[str, Any]:
    """Quantiles (5, 50 and 95 %) of the training images' mean grey and native longer side, px; and whether text was filled."""
    rows = sample(dataset.indices("train").tolist(), LOOKED_AT[0])
    greys = [float(valid_part(dataset.images, dataset.records[row], row).mean()) for row in rows]
    sides = [float(max(dataset.records[row].height, dataset.records[row].width)) for row in rows]
    return {
        "mean_grey": np.quantile(greys, QUANTILES).round(2).tolist() if rows else [],
        "longer_side": np.quantile(sides, QUANTILES).round(1).tolist() if rows else [],
        "blank": bool(dataset.description.get("blank", False)),
    }


def digests_of(root: Path, records: list[Record]) -> np.ndarray:
    """The digests of images by which a prepared dataset would know them, of their files or of their frames' own pixels.

    int64 (n,), 0 for what cannot be read.
    """
    found, several = np.zeros(len(records), np.int64), {}
    for path in dict.fromkeys(record.path for record in records):
        with contextlib.suppress(ValueError):  # what cannot be read is named where the images are read
            several[path] = is_container(root / path)
    rows = [i for i, record in enumerate(records) if several.get(record.path)]
    unfilled = (replace(records[i], filled=None) for i in rows)  # burnt-in text is filled after an image got its number
    with tqdm(total=len(records), unit="image", desc="comparing with the training images", delay=1, leave=False) as bar:
        for i, record in enumerate(records):
            if several.get(record.path) is False:
                with contextlib.suppress(ValueError):
                    found[i] = seen.digests([hashlib.sha256(file_bytes(root / record.path)).hexdigest()])[0]
                bar.update()
        for i, grey in zip(rows, read_records(root, unfilled), strict=True):
            if isinstance(grey, np.ndarray):
                found[i] = seen.digests([pixels_sha256(grey)])[0]
            bar.update()
    return found


def seen_in_training(state: Mapping[str, Any], root: Path, records: list[Record]) -> list[str]:
    """Warnings where images are among those that a model, or its encoder before it, was trained on, as far as its file says."""
    known = {
        "digests": "this model was trained on or chosen by",
        "pretraining_digests": "its encoder was pretrained on",
    }
    lists = {words: seen.stated(state, key) for key, words in known.items()}
    if not any(map(len, lists.values())):
        return []
    given, told = digests_of(root, records), []
    for words, digests in lists.items():
        among = np.flatnonzero(np.isin(given, digests) & (given != 0))
        if len(among):
            told.append(
                f"{len(among)} of {len(records)} images are among those that {words} (e.g. {records[among[0]].path}): figures "
                "with them flatter it; give others, or --split test"
            )
    return told


def differences(known: Mapping[str, Any], root: Path, records: list[Record]) -> list[str]:
    """Warnings where images are negatives of what a model knows, or of quite another size; `known` is of `trained_on`."""
    if not known.get("mean_grey"):
        return []
    negatives, sides = [], []
    looked_at = sample(records, LOOKED_AT[1])
    for record in looked_at:
        try:
            image = read_record(root, record)
        except ValueError:
            continue  # it is named where the images are read
        _, middle, high = known["mean_grey"]
        grey = float(image.mean())
        sides.append(max(image.shape))
        if grey > high + LIGHTER and abs(255 - grey - middle) < abs(grey - middle) / 2:
            negatives.append(record.path)
    told = []
    if len(negatives) > RARELY * len(looked_at):  # one light picture among many is none
        told.append(
            f"{len(negatives)} of {len(looked_at)} images that were looked at are light where the training images are dark (e.g. "
            f"{negatives[0]}): negatives (MONOCHROME1 saved as it was)? Invert them, or the figures mean nothing"
        )
    low, _, high = known["longer_side"]
    side = float(np.median(sides)) if sides else low
    if side * LARGER < low or side > high * LARGER:
        told.append(
            f"the longer side is {side:.0f} px, of the training images {low:.0f} to {high:.0f} px: all are brought to one size, so "
            "what is seen has another scale if these are cut out of a larger image"
        )
    return told
