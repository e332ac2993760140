"""The masks of another set by the coding that a model was trained with: a class keeps its number, or nothing is compared.

A set that is read by itself decides what its values mean. A model of 85, 170 and 255 would then be compared with a folder that
holds only 170 as if that were its first class. So a model keeps its coding, and here the two are laid side by side.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vfm4us.data.masks import (
    FULL_SCALE,
    IGNORE,
    NEAR,
    CodingOfSet,
    MaskCoding,
    Seen,
    between,
    decide,
    look_at_masks,
    masks_on_raw_pixels,
    outline_names,
    palettes_as_colours,
)
from vfm4us.data.reading import Reading
from vfm4us.data.records import Record
from vfm4us.data.words import same

WHITE = (255, 255, 255)


def read_as_trained(
    records: list[Record], trained: MaskCoding, classes: Sequence[str], joined: bool = False
) -> list[str]:
    """Let the masks of these records be read by the coding of a model; returns what is to be said of it.

    classes: the model's, 1, 2, ...; joined: all classes of masks are one to it
    Raises ValueError that names both codings where a value would mean another class, or none.
    """
    said = []
    for shared in {id(r.coding): r.coding for r in records if isinstance(r.coding, CodingOfSet)}.values():
        root, members, reading, outlines = shared.of
        shared.coding = coding_as_trained(root, members, trained, classes, joined, reading, outlines)
        said += [words for words in shared.coding.said if words not in said]
    return said


def coding_as_trained(
    root,
    records: list[Record],
    trained: MaskCoding,
    classes: Sequence[str],
    joined: bool = False,
    reading: Reading | None = None,
    outlines: bool = False,
) -> MaskCoding:
    """The coding by which the masks of `records` mean what they mean to a model; arguments as of `read_as_trained`."""
    root, reading = Path(root), reading or Reading()
    if reading.threshold == Reading().threshold:
        reading = replace(reading, threshold=trained.threshold)
    records = [record for record in records if record.mask]
    known = known_names(trained, classes)
    names = outline_names(root, records)
    names = names if joined else _same_names(names, known, len(classes) == 1)
    seen = look_at_masks(root, records)
    if seen is None:
        return MaskCoding(kind="numbers", names=names)
    if len(classes) == 1 or joined:
        coding = _of_one_class(seen, trained, joined, reading, outlines)
    else:
        coding = _of_several(seen, trained, classes, reading, outlines)
    return replace(coding, names=names, raw=bool(masks_on_raw_pixels(root, records, reading)))


def known_names(trained: MaskCoding, classes: Sequence[str]) -> tuple[str, ...]:
    """The names of a model's classes, where they are more than numbers."""
    if len(trained.names) == len(classes):
        return trained.names
    numbered = [f"class {number}" for number in range(1, len(classes) + 1)]
    return () if list(classes) in (numbered, ["foreground"]) else tuple(classes)


def described(coding: MaskCoding) -> str:
    """A coding in words, for errors."""
    if coding.kind == "binary":
        text = "one class" + f" on a background of {coding.background}" * bool(coding.background)
    elif coding.kind == "numbers":
        text = "class numbers as they stand" + f" ({', '.join(coding.names)})" * bool(coding.names)
    else:
        text = ", ".join(f"{value} is class {number}" for number, value in enumerate(coding.values, start=1))
    return text + f", {coding.ignore} is ignored" * (coding.ignore is not None)


def _same_names(names: tuple[str, ...], known: tuple[str, ...], one: bool) -> tuple[str, ...]:
    """The names of outlines in the order of the model's classes, spelled as the files spell them."""
    if not names or not known or (one and len(names) == 1):
        return names
    place = {same(name): number for number, name in enumerate(known)}
    if strange := [name for name in names if same(name) not in place]:
        raise ValueError(
            f"the outlines are of the classes {', '.join(names)}; the model knows {', '.join(known)}: {strange[0]!r} is none of "
            "them. Name the classes alike in the file of outlines"
        )
    spelled = {same(name): name for name in names}
    return tuple(spelled.get(same(name), name) for name in known)


def _of_one_class(seen: list[Seen], trained: MaskCoding, joined: bool, reading: Reading, outlines: bool) -> MaskCoding:
    """A set of one class by itself: whatever value stands for it. Its background and what it ignores must be the model's."""
    corners = {one.corner[0] if isinstance(one.corner, tuple) else one.corner for one in seen}
    if trained.background and trained.background in corners and not reading.background:
        if 0 in corners:
            raise ValueError(
                f"the model was trained with masks of {described(trained)}; some of these are light in their corners and some "
                f"are dark: say reading.background={trained.background} or reading.background=0"
            )
        reading = replace(reading, background=str(trained.background))
    held = next((one for one in seen if one.values and trained.ignore in one.values), None)
    if trained.ignore is not None and held and not reading.ignore:
        values = {value for one in seen for value in one.values or ()} - {trained.ignore, int(reading.background or 0)}
        if not values:
            raise ValueError(
                f"{held.path} holds {trained.ignore}, which the model was trained to ignore ({described(trained)}), and no mask "
                f"here holds a class beside it: say reading.ignore={trained.ignore} or reading.ignore=none"
            )
        reading = replace(reading, ignore=str(trained.ignore))
    coding = decide(seen, reading, outlines)
    numbers = {value for one in seen for value in one.values or ()} - {0, coding.ignore, coding.background}
    if not joined and (coding.kind == "values" or (coding.kind == "numbers" and max(numbers, default=0) > 1)):
        raise ValueError(
            f"the model was trained with masks of {described(trained)}; these hold the values "
            f"{', '.join(map(_word, sorted(numbers)))}, by themselves {described(coding)}. Write masks of one class, or say "
            "reading.values=binary"
        )
    return coding


def _of_several(
    seen: list[Seen], trained: MaskCoding, classes: Sequence[str], reading: Reading, outlines: bool
) -> MaskCoding:
    """The model's coding, where it gives every value of the set a class; the set's own, where both say the same."""
    colours = trained.kind == "values" and isinstance(trained.values[0], str)
    if colours or trained.as_colours:
        palettes_as_colours(seen, surely=True)
    chosen, reason = None, ""
    try:
        chosen = decide(seen, reading, outlines)
    except ValueError as error:
        reason = str(error)
    by_itself = f"read by themselves they are {described(chosen)}" if chosen else reason
    if one := next((one for one in seen if one.soft or (one.values is None and not colours)), None):
        raise ValueError(
            f"{one.path} is a mask of one class, soft or compressed; the model was trained with {described(trained)}: write these "
            "masks in the same values"
        )
    file_of: dict[object, str] = {}
    for one in seen:
        for value in one.values or [tuple(round(v) for v in (a if len(a) == 3 else a * 3)) for a in one.areas]:
            file_of.setdefault(value, one.path)
    ignore = (
        trained.ignore if trained.ignore is not None else chosen.ignore if chosen and chosen.kind != "binary" else None
    )
    if reading.ignore:
        ignore = None if reading.ignore == "none" else int(reading.ignore)
    coding = replace(trained, ignore=ignore)
    meant = {value: _class_of(value, coding, len(classes)) for value in file_of}
    if strange := [value for value, number in meant.items() if number is None]:
        raise ValueError(
            f"{file_of[strange[0]]} holds {_word(strange[0])}, to which the model gives no class: it was trained with masks of "
            f"{described(trained)}; {by_itself}. Write these masks in the values of the training masks"
        )
    if colours:
        _apart_from_edges(seen, file_of, coding)
    numbers = {number for number in meant.values() if number}
    single = [value for value, number in meant.items() if number]
    full = len(single) == 1 and (single[0] in FULL_SCALE or single[0] == WHITE)
    if full and numbers != {1} and reading.values != "classes" and not reading.ignore:
        what = "what is ignored" if numbers == {IGNORE} else f"class {next(iter(numbers))}"
        raise ValueError(
            f"these masks hold {_word(single[0])} and the background alone (e.g. {file_of[single[0]]}): to the model that is "
            f"{what} ({described(trained)}); {by_itself}. Say reading.values=classes if they are written as the training masks were"
        )
    return replace(coding, said=(f"masks are read as those the model was trained with: {described(coding)}",))


def _class_of(value, coding: MaskCoding, count: int) -> int | None:
    """The class of a value or colour; 0 for the background, IGNORE for what is ignored, None for what has none."""
    if value == coding.ignore:
        return IGNORE
    if value in (coding.background, (coding.background,) * 3):
        return 0
    if coding.kind == "numbers":
        return value if isinstance(value, int) and value <= count else None
    if isinstance(coding.values[0], str):
        colour = value if isinstance(value, tuple) else (value,) * 3
        far = [max(abs(a - int(b)) for a, b in zip(colour, name.split("/"), strict=True)) for name in coding.values]
        return far.index(min(far)) + 1 if min(far) <= NEAR // 4 else None
    return coding.values.index(value) + 1 if value in coding.values else None


def _apart_from_edges(seen: list[Seen], file_of: dict, coding: MaskCoding) -> None:
    """ValueError where what a blurred edge looks like is a colour of the model."""
    blurred = next((one for one in seen if one.values is None), None)
    colours = [tuple(int(v) for v in name.split("/")) for name in coding.values]
    ends = [*colours, (coding.background,) * 3]
    for middle in colours if blurred else ():
        others = [c for c in ends if c != middle]
        if any(between(middle, a, b) for k, a in enumerate(others) for b in others[k + 1 :]):
            raise ValueError(
                f"{blurred.path} is compressed or blurred, and {_word(middle)}, a class of the model, is also what edges between "
                "its other colours look like: write PNG"
            )


def _word(value) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
