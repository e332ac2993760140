"""What a network saw, and who draws it: a method says what is to be shown, `draw` makes a picture of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor


@dataclass
class Rows:
    """Named rows of square pictures (n, P, P) in [0, 1], a column for each image; NaN is shown as hidden."""

    rows: dict[str, Tensor]
    about: str


@dataclass
class Sheet:
    """Images (b, S, S) uint8 with their patches (n, b, 1, P, P), the same attacked, and the masked cells of them."""

    images: Tensor
    patches: Tensor
    attacked: Tensor | None
    cells: Tensor | None
    epsilon: float
    about: str


Picture = Rows | Sheet


def draw(path: Path, picture: Picture, title: str) -> np.ndarray:
    """Write the picture to `path`; returned as (H, W, 3) uint8."""
    from vfm4us import plots  # matplotlib, which a bare GPU machine may lack

    title = f"{title}: {picture.about}"
    if isinstance(picture, Rows):
        return plots.picture_rows(path, picture.rows, title)
    p = picture
    return plots.contact_sheet(path, p.images, p.patches, p.attacked, p.cells, p.epsilon, title)
