"""Text, scales and calipers that are burnt into images: found by what stays at one place, never read.

A letter is a thin bright stroke. Speckle makes thin bright strokes as well, but never at the same place in many images. So a
place is called burnt in where strokes stand in most images of one geometry (the same native size and crop):

    fixed      the same pixels, stroke for stroke, in images of a group or of the set: a scale, the maker's name, a marker
    changing   strokes on black at the same place, whatever they say, in images of different groups: names, dates, depths

Places are found on the packed images, where training sees them. What stands over tissue in one image only (a caliper that is
set anew each time) stays unseen: nothing tells it from tissue for certain.
"""

import json
import os
import shutil
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image
from scipy.ndimage import (
    binary_closing,
    binary_dilation,
    binary_propagation,
    find_objects,
    gaussian_filter,
    label,
    maximum_filter,
    uniform_filter,
)

from vfm4us.runtime.files import write_text

STROKE, LINE = (
    5,
    9,
)  # pixels: a stroke is thinner than the first, and along a row shorter than the second, unlike fascia
BRIGHTER = 45  # grey levels above what lies around it
STEADY = 14.0  # grey levels: deviation of a pixel that stays the same but for its compression
BLACK, FLAT = (
    24.0,
    6.0,
)  # grey levels: mean around text on black, and deviation around text on a plain ground, both without it
BESIDE = 25.0  # grey levels: deviation around text on black, where tissue is near
DRAWN, EXACT = 160.0, 3.0  # grey levels: over tissue only what is this bright and stays this exactly the same is drawn
STILL = 0.4  # share of all strokes that may stay: where more do, the scene does not move, and nothing can be told
FIXED_SHARE, CHANGING_SHARE, EDGE_SHARE = 0.9, 0.5, 0.25  # of the images; the last where a place ends
FIXED_IMAGES, CHANGING_GROUPS = 5, 8  # at the least, to judge by
SAMPLE, GROUP_SAMPLE = 48, 8  # images that are looked at, of one geometry and of one group
SMALLEST = 6  # pixels of a place; less is noise
LARGEST = 0.25  # share of an image: what covers more is no text
ERRING = 0.3  # of the pixels of one place: strokes that an image must have there to carry it


REPORT, PLACES = "overlays.json", "filled.npz"
NOT_SEEN = "what is set anew in each image, such as calipers, and images whose size few others share"
MOST_PLACES = 100  # that are reported


@dataclass
class Places:
    """Where something is burnt in, for the images of one geometry or of one group of it.

    where:  bool (S, S), in packed pixels
    strokes: bool (S, S), the pixels that are bright in most images
    boxes:  top, left, height, width of each place
    images: indices that were asked about, and whether each carries it
    """

    geometry: tuple
    group: str
    where: np.ndarray
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    carried: list[bool] = field(default_factory=list)


def look(folder: Path, records, fill: bool) -> dict:
    """Look for what is burnt into the packed `images.npy` of a folder, report it, and fill it where `fill` says so.

    Writes `overlays.png` where anything was found and returns what understood.json says: how many images carry it, whether it was
    filled, and the places. A call that was interrupted can be repeated: `overlays.json` holds what the first one found.
    """
    report = folder / REPORT
    filled = {
        role: folder / f"{role}.filled.npy" for role in ("images", "targets") if (folder / f"{role}.npy").is_file()
    }
    if report.is_file():
        for role, file in filled.items():
            if file.is_file():
                os.replace(file, folder / f"{role}.npy")
        return json.loads(report.read_text(encoding="utf-8"))
    images = np.load(folder / "images.npy", mmap_mode="r")
    valid = np.array([(r.top, r.left, r.valid_height, r.valid_width) for r in records], np.int32).reshape(-1, 4)
    geometries = [(r.height, r.width, r.crop) for r in records]
    all_places = find(images, valid, geometries, [r.group for r in records], [r.sha256 for r in records])
    told = {
        "images": len(carrying(all_places)),
        "of": len(records),
        "filled": fill,
        "places": [],
        "not_looked_for": NOT_SEEN,
    }
    if all_places:
        told["places"] = describe(all_places, [r.id for r in records])[:MOST_PLACES]
        for role, file in filled.items() if fill else ():  # a target carries what its image carries
            shutil.copyfile(folder / f"{role}.npy", file)
            changed = open_memmap(file, mode="r+")
            blank_all(changed, valid, all_places)
            changed.flush()
            images = changed if role == "images" else images
        picture(folder / "overlays.png", images, all_places, fill)
    del images
    if fill:
        write_places(folder / PLACES, all_places, len(records))
    written = {role: file for role, file in filled.items() if file.is_file()}
    for file in written.values():
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
    write_text(report, json.dumps(told) + "\n")  # whole or not at all: the next call takes it at its word
    for role, file in written.items():
        os.replace(file, folder / f"{role}.npy")
    return told


def write_places(path: Path, all_places: list[Places], count: int) -> None:
    """Keep where images are filled, for those who read the files: places (K, S, S) as bits, and who carries each (K, N)."""
    carried = np.zeros((len(all_places), count), bool)
    for number, places in enumerate(all_places):
        carried[number, places.indices] = places.carried
    where = np.array([places.where for places in all_places], bool)
    np.savez_compressed(path, places=np.packbits(where, axis=-1), carried=carried, shape=np.array(where.shape))


def read_places(path: Path) -> tuple[list[np.ndarray], list[list[int]]]:
    """What `write_places` kept: places bool (S, S), and the indices of the images that carry each."""
    with np.load(path, allow_pickle=False) as kept:
        if not len(kept["carried"]):
            return [], []
        where = np.unpackbits(kept["places"], axis=-1, count=int(kept["shape"][-1])).astype(bool)
        return list(where), [np.flatnonzero(row).tolist() for row in kept["carried"]]


def sentence(told: dict) -> str:
    """What `look` found, and what it does not look for, in words."""
    unseen = f"not looked for: {told['not_looked_for']}"
    if not told["images"]:
        return f"no text or marks that stay at one place were found; {unseen}"
    does = "it is filled with its neighbourhood" if told["filled"] else "blank: true of the reading fills it"
    where = f"burnt into {told['images']} of {told['of']} images (overlays.png)"
    return f"text, scales or marks are {where}; {does}; {unseen}"


def find(images, valid, geometries, groups, digests=None) -> list[Places]:
    """Places in a set of packed images.

    images:     uint8 (N, S, S), a memory map is read piece by piece
    valid:      int (N, 4) top, left, height, width of what is no padding
    geometries: N hashable descriptions; only images with equal ones are compared
    groups:     N names
    digests:    N names of their pixels: of images that are the same only one is looked at, as all of it stays at one place
    """
    members: dict[tuple, list[int]] = defaultdict(list)
    for index, geometry in enumerate(geometries):
        members[geometry].append(index)
    all_places = []
    for geometry, indices in members.items():
        of_group: dict[str, list[int]] = defaultdict(list)
        for index in indices:
            of_group[groups[index]].append(index)
        apart, seen = {}, set()
        for group, of_one in of_group.items():
            middle = of_one[len(of_one) // 2]
            if digests is None or digests[middle] not in seen:
                apart[group] = middle
                seen.add(digests[middle] if digests is not None else middle)
        whole = _of_set(images, valid, list(apart.values()))
        if whole is not None and whole.any():
            all_places.append(_told(images, Places(geometry, "", whole), indices))
        for group, of_one in of_group.items():
            if digests is not None:
                of_one = list({digests[index]: index for index in of_one}.values())
            if len(of_one) < FIXED_IMAGES:
                continue
            fixed = _fixed(_strokes_of(images, valid, _spread(of_one, GROUP_SAMPLE)))
            if whole is not None:
                fixed &= ~whole
            fixed = _tidy(fixed)
            if fixed.any():
                all_places.append(_told(images, Places(geometry, group, fixed), of_group[group]))
    return [places for places in all_places if sum(places.carried) >= max(2, EDGE_SHARE * len(places.carried))]


def carrying(all_places: list[Places]) -> list[int]:
    """Indices of the images that carry anything, in order."""
    return sorted(
        {i for places in all_places for i, carries in zip(places.indices, places.carried, strict=True) if carries}
    )


def blank(image: np.ndarray, where: np.ndarray, valid, scale: float = 1.0) -> np.ndarray:
    """The image with the pixels `where` filled from their neighbourhood: a mean of those around, weighted by their distance.

    What is filled depends on nothing under it, so that filling twice changes nothing. Padding stays 0. scale: of the image to the
    packed one, on which places are found.
    """
    top, left, height, width = (int(v) for v in valid)
    inside = np.zeros(image.shape, bool)
    inside[top : top + height, left : left + width] = True
    hole = where & inside
    known = (inside & ~hole).astype(np.float32)
    filled, missing = image.copy(), hole.copy()
    for sigma in (1.5, 4.0, 12.0, 40.0):  # wider where nothing near is known
        weight = gaussian_filter(known, sigma * scale)
        near = missing & (weight > 0.02)
        if near.any():
            mean = gaussian_filter(image * known, sigma * scale)
            filled[near] = np.floor(mean[near] / weight[near] + 0.5).clip(0, 255)
            missing &= ~near
        if not missing.any():
            break
    filled[missing] = 0
    return filled


def blank_all(images: np.ndarray, valid, all_places: list[Places]) -> int:
    """Blank the places in a writable array of all images, in place; returns how many images were changed."""
    changed = set()
    for places in all_places:
        for index, carries in zip(places.indices, places.carried, strict=True):
            if carries:
                images[index] = blank(np.asarray(images[index]), places.where, valid[index])
                changed.add(index)
    return len(changed)


def describe(all_places: list[Places], ids) -> list[dict]:
    """For understood.json: per place set its boxes (packed pixels), how many images carry it and one of them."""
    told = []
    for places in sorted(all_places, key=lambda places: -sum(places.carried)):
        first = next(i for i, carries in zip(places.indices, places.carried, strict=True) if carries)
        told.append(
            {
                "group": places.group,
                "images": int(sum(places.carried)),
                "boxes_top_left_height_width": [list(box) for box in places.boxes],
                "example": ids[first],
            }
        )
    return told


def picture(path, images, all_places: list[Places], blanked: bool, columns: int = 4, rows: int = 2) -> None:
    """A PNG of up to eight images with their places in red, those that most images carry first; filled ones below them."""
    shown = []
    for places in sorted(all_places, key=lambda places: -sum(places.carried)):
        carrying = [i for i, carries in zip(places.indices, places.carried, strict=True) if carries]
        shown += [(i, places) for i in _spread(carrying, 4 if len(all_places) == 1 else 2)]
    shown = shown[: columns * rows]
    size = images.shape[1]
    sheet = np.zeros((-(-len(shown) // columns) * size, columns * size, 3), np.uint8)
    for k, (index, places) in enumerate(shown):
        tile = np.repeat(np.asarray(images[index])[..., None], 3, axis=2)
        edge = binary_dilation(places.where, iterations=2) & ~binary_dilation(places.where)
        tile[edge] = (255, 40, 40) if not blanked else (40, 200, 255)
        y, x = k // columns * size, k % columns * size
        sheet[y : y + size, x : x + size] = tile
    Image.fromarray(sheet).save(Path(path), format="PNG", optimize=True)


# how places are found


def _strokes_of(images, valid, indices) -> list[tuple[np.ndarray, np.ndarray]]:
    """(pixels float32, strokes bool) of some images; strokes are thin, bright and inside the valid rectangle."""
    pairs = []
    for index in indices:
        pixels = np.asarray(images[index])
        strokes = _strokes(pixels)
        top, left, height, width = (int(v) for v in valid[index])
        strokes[:top], strokes[top + height :] = False, False
        strokes[:, :left], strokes[:, left + width :] = False, False
        pairs.append((pixels.astype(np.float32), strokes))
    return pairs


def _strokes(pixels: np.ndarray) -> np.ndarray:
    thin = _above_surroundings(pixels, (STROKE, STROKE)) >= BRIGHTER
    return thin & (_above_surroundings(pixels, (1, LINE)) >= BRIGHTER)


def _above_surroundings(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The white top-hat of uint8 (H, W) by a rectangle of odd sides: scipy's, in a tenth of its time."""
    opened = pixels
    for extreme in (np.minimum, np.maximum):
        for axis, side in enumerate(size):
            opened = _extreme(extreme, opened, side, axis)
    return pixels - opened


def _extreme(extreme, pixels: np.ndarray, side: int, axis: int) -> np.ndarray:
    """The smallest or largest of `side` neighbours along an axis; beyond the edge there is nothing."""
    if side == 1:
        return pixels
    half, count = side // 2, pixels.shape[axis]
    margin = ((half, half), (0, 0)) if axis == 0 else ((0, 0), (half, half))
    wide = np.pad(pixels, margin, mode="edge")  # changes nothing, as the edge is among the neighbours
    parts = [wide[k : k + count] if axis == 0 else wide[:, k : k + count] for k in range(side)]
    result = parts[0].copy()
    for part in parts[1:]:
        extreme(result, part, out=result)
    return result


def _fixed(looked_at) -> np.ndarray:
    """Strokes that stand in nearly all images, pixel for pixel as bright, on a plain ground or drawn over what moves."""
    share = np.mean([strokes for _, strokes in looked_at], axis=0)
    steady = share >= FIXED_SHARE
    steady_pixels = np.stack([pixels[steady] for pixels, _ in looked_at])
    deviation = np.full(share.shape, np.inf)
    # the median deviation, as one frame may lack the text
    deviation[steady] = 1.5 * np.median(np.abs(steady_pixels - np.median(steady_pixels, axis=0)), axis=0)
    steady &= deviation <= STEADY
    moving = np.mean([strokes for _, strokes in looked_at]) * STILL
    if not steady.any() or steady.mean() > moving:
        return np.zeros_like(steady)
    middle = np.median(np.stack([pixels for pixels, _ in looked_at]), axis=0)
    mean, spread = _around(middle, share >= 0.5)
    return steady & (
        ((mean < BLACK) & (spread < BESIDE)) | (spread < FLAT) | ((middle >= DRAWN) & (deviation <= EXACT))
    )


def _around(pixels: np.ndarray, strokes: np.ndarray, side: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the pixels in a square around each, those of strokes and next to them left out."""
    ground = maximum_filter(strokes.view(np.uint8), 3) == 0
    weight = np.maximum(uniform_filter(ground.astype(np.float32), side), 1e-3)
    mean = uniform_filter(np.where(ground, pixels, 0).astype(np.float32), side) / weight
    square = uniform_filter(np.where(ground, pixels * pixels, 0).astype(np.float32), side) / weight
    return mean, np.sqrt(np.maximum(square - mean * mean, 0))


def _of_set(images, valid, firsts: list[int]) -> np.ndarray | None:
    """Places that many groups share, by one image of each; None where there are too few groups to tell."""
    if len(firsts) < CHANGING_GROUPS:
        return None
    looked_at = _strokes_of(images, valid, _spread(firsts, SAMPLE))
    if np.mean([_line(strokes) for _, strokes in looked_at], axis=0).max() < CHANGING_SHARE:
        return _tidy(_fixed(looked_at))  # wherever they stand, on black or not, they are too few
    lines = np.zeros(looked_at[0][0].shape, np.float32)
    for pixels, strokes in looked_at:
        mean, spread = _around(pixels, strokes)
        lines += _line(strokes & (mean < BLACK) & (spread < BESIDE))
    lines /= len(looked_at)
    changing = binary_propagation(lines >= CHANGING_SHARE, mask=lines >= EDGE_SHARE)
    return _tidy(_fixed(looked_at) | changing)


def _line(strokes: np.ndarray) -> np.ndarray:
    """uint8 (H, W): letters that stand beside each other become a line."""
    return _extreme(np.maximum, _extreme(np.maximum, strokes.view(np.uint8), 3, 0), 7, 1)


def _tidy(where: np.ndarray) -> np.ndarray:
    """Places as regions: strokes that stand together, with a margin; specks and what covers much of the image left out."""
    joined = binary_closing(np.pad(where, 4), np.ones((3, 7), bool))[4:-4, 4:-4] | where
    numbered, count = label(joined, np.ones((3, 3), bool))
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)
    keep = sizes >= SMALLEST
    keep[0] = False
    kept = keep[numbered]
    if kept.mean() > LARGEST:
        return np.zeros_like(where)
    return binary_dilation(kept, np.ones((3, 3), bool), iterations=2)


def _told(images, places: Places, indices: list[int]) -> Places:
    """The places with their boxes, and for each image whether it has strokes there."""
    numbered, count = label(places.where, np.ones((3, 3), bool))
    places.boxes = [
        (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        for rows, columns in find_objects(numbered)
    ]
    places.indices = list(indices)
    for index in indices:
        pixels = np.asarray(images[index])
        carries = False
        for number, (rows, columns) in enumerate(find_objects(numbered), start=1):
            # a margin, so that a stroke at the edge has something around it
            window = (
                slice(max(rows.start - LINE, 0), rows.stop + LINE),
                slice(max(columns.start - LINE, 0), columns.stop + LINE),
            )
            strokes = _strokes(pixels[window])
            of_region = numbered[window] == number
            carries = carries or strokes[of_region].sum() >= max(3, ERRING * 0.2 * of_region.sum())
        places.carried.append(bool(carries))
    return places


def _spread(indices: list[int], count: int) -> list[int]:
    """At most `count` of some indices, evenly spread."""
    if len(indices) <= count:
        return list(indices)
    return [indices[int(k * len(indices) / count)] for k in range(count)]
