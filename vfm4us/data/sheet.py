"""A contact sheet of what was packed: people see a wrong reading at once."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vfm4us.data.csv_files import shown
from vfm4us.data.records import Record

COUNT, COLUMNS, TILE, CAPTION = 8, 4, 240, 46  # images, in a row, pixels, pixels
WIDTH = 36  # letters of a line below an image
COLOURS = np.array(
    [(230, 60, 60), (60, 200, 80), (70, 120, 255), (240, 200, 40), (200, 80, 220), (60, 210, 210)], np.float32
)
IGNORED = np.array((150, 150, 150), np.float32)


def write_sheet(path, records: list[Record], images, masks=None, targets=None, seed: int = 0) -> None:
    """Write a PNG of eight random images (N, S, S) with masks in colour, targets beside, labels, splits and groups below.

    Where some images have masks and others none, up to two of the eight are of those without.
    """
    chosen = _chosen(records, masks is not None, seed)
    pictures = [_picture(records[i], images[i], None if masks is None else masks[i], targets, i) for i in chosen]
    pictures = [ImageOps.contain(picture, (TILE - 6, TILE - 6)) for picture in pictures]
    rows = [range(first, min(first + COLUMNS, len(chosen))) for first in range(0, len(chosen), COLUMNS)]
    heights = [max(pictures[place].height for place in row) + 6 for row in rows]  # no gap under a row of flat pictures
    sheet = Image.new("RGB", (COLUMNS * TILE, sum(heights) + len(rows) * CAPTION), (24, 24, 24))
    draw, top = ImageDraw.Draw(sheet), 0
    font = _font()
    for row, height in zip(rows, heights, strict=True):
        for column, place in enumerate(row):
            left = column * TILE
            sheet.paste(pictures[place], (left + 3, top + 3))
            for line, text in enumerate(_caption(records[chosen[place]])):
                draw.text((left + 5, top + height + 14 * line), text, fill=(235, 235, 235), font=font)
        top += height + CAPTION
    temporary = f"{path}.tmp"
    sheet.save(temporary, format="PNG")
    os.replace(temporary, path)


def _font():
    """A font that knows more than Latin letters, where matplotlib, which brings it, is installed."""
    try:
        import matplotlib
    except ImportError:  # a machine that only pretrains may lack it
        return ImageFont.load_default()
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 10)


def _chosen(records: list[Record], masked: bool, seed: int) -> list[int]:
    order = np.random.default_rng(seed).permutation(len(records)).tolist()
    if not masked:
        return sorted(order[:COUNT])
    having = [i for i in order if records[i].mask]
    without = [i for i in order if not records[i].mask]
    few = min(len(without), COUNT // 4)
    return sorted((having[: COUNT - few] + without)[:COUNT])


def _picture(record: Record, image, mask, targets, index: int) -> Image.Image:
    valid = slice(record.top, record.top + record.valid_height), slice(record.left, record.left + record.valid_width)
    grey = np.asarray(image[valid])
    colour = np.repeat(grey[..., None].astype(np.float32), 3, axis=2)
    if mask is not None:
        classes = np.asarray(mask[valid])
        inside = classes > 0
        tint = np.where((classes == 255)[..., None], IGNORED, COLOURS[(classes.astype(int) - 1) % len(COLOURS)])
        colour[inside] = 0.55 * colour[inside] + 0.45 * tint[inside]
    if targets is not None and record.target:
        target = np.repeat(np.asarray(targets[index][valid])[..., None].astype(np.float32), 3, axis=2)
        colour = np.concatenate([colour, target], axis=1)
    return Image.fromarray(colour.round().astype(np.uint8))


def _caption(record: Record) -> list[str]:
    first = " ".join(part for part in (record.split, record.label and f"label {record.label}") if part) or "no label"
    name, group = shown(record.id), shown(f"group {record.group}")
    return [f"…{name[1 - WIDTH :]}" if len(name) > WIDTH else name, shown(first)[:WIDTH], group[:WIDTH]]
