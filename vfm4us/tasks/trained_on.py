"""What a model was trained on, in a few numbers that its file keeps, and where other images differ from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vfm4us.data.dataset import PreparedDataset, valid_part
from vfm4us.data.decode import read_record
from vfm4us.data.looks import sample
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
