"""From files to images: a record per file becomes a record per frame, slice or region that is taken.

Only headers are read here. What is left out, assumed or refused is counted in `Told`, for the understanding of a source.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from vfm4us.data import frames
from vfm4us.data.frames import Contents, FrameRule, frame_rule
from vfm4us.data.polygons import split_reference
from vfm4us.data.reading import Reading
from vfm4us.data.records import Record

FILES = {"DICOM": "DICOM files", "clip": "clips", "pages": "files with pages", "volume": "volumes", "arrays": "arrays"}


@dataclass
class Told:
    """What was found in files that hold several images.

    files:    kind of file -> how many
    frames:   kind of file -> how many frames, slices or pages they hold
    taken:    kind of file -> how many images are taken
    notes:    sentence -> how many files it is true of
    examples: sentence -> the first of them
    refused:  path -> reason
    patients: path of a DICOM file -> its patient, or its study where it names none
    alike:    what spellings of one patient's ID have in common -> patient -> the first file that spells it so
    """

    files: Counter = field(default_factory=Counter)
    frames: Counter = field(default_factory=Counter)
    taken: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)
    examples: dict = field(default_factory=dict)
    refused: dict = field(default_factory=dict)
    patients: dict = field(default_factory=dict)
    alike: dict = field(default_factory=dict)

    def note(self, sentence: str, path: str) -> None:
        """Count a sentence about one more file, and keep the first as its example."""
        self.notes[sentence] += 1
        self.examples.setdefault(sentence, path)

    def lines(self) -> list[str]:
        """The same in words, one line each."""
        lines = [
            f"{count} {FILES[kind]} with {self.frames[kind]} frames: {self.taken[kind]} images are taken"
            for kind, count in self.files.items()
        ]
        lines += [f"{count} files: {note} (e.g. {self.examples[note]})" for note, count in self.notes.most_common()]
        if self.refused:
            path, reason = next(iter(self.refused.items()))
            lines.append(f"{len(self.refused)} files are refused, e.g. {path}: {reason}")
        return lines


def one_record_per_image(root, records: list[Record], reading: Reading, told: Told | None = None) -> list[Record]:
    """The records of plain images as they are, of each other file one per frame and region; unreadable ones with a `reason`.

    A record that names its frame already (`frame` above 0, or a crop) stays one record.
    """
    told = Told() if told is None else told
    rule = frame_rule(reading.frames)
    expanded = []
    for record in records:
        path = Path(root) / record.path
        if not frames.kind_of(path) or record.reason:
            expanded.append(record)
            continue
        try:
            contents = frames.contents_of(path, reading.regions)
        except ValueError as error:
            told.refused[record.path] = str(error)
            expanded.append(replace(record, reason=str(error)))
            if path.name.upper() == "DICOMDIR":
                expanded += _missing(Path(root), record, told)
            continue
        if contents is None:  # a TIFF with one page
            expanded.append(record)
            continue
        images = _of_file(record, contents, rule)
        if reason := _one_mask_for_many(record, contents, rule, Path(root)):
            told.refused[record.path] = reason
            expanded += [replace(record, reason=reason)]
            continue
        expanded += images
        told.files[contents.kind] += 1
        told.frames[contents.kind] += contents.count
        told.taken[contents.kind] += len(images)
        if contents.kind == "DICOM" and contents.group:
            told.patients[record.path] = contents.group
            if contents.alike:
                told.alike.setdefault(contents.alike, {}).setdefault(contents.group, record.path)
        for sentence in (*contents.notes, *(f"left out: {what}" for what in sorted(set(contents.left_out)))):
            told.note(sentence, record.path)
        if contents.rate is None and contents.count > 1 and rule.kind == "per second":
            told.note(f"no rate is known, {frames.ASSUMED_RATE:g} frames a second are assumed", record.path)
    return expanded


def _missing(root: Path, directory: Record, told: Told) -> list[Record]:
    """Records, refused, of the files that a DICOMDIR names and that are not there."""
    from vfm4us.data import dicom

    folder, missing = (root / directory.path).parent, []
    try:
        named = dicom.directory_files(root / directory.path)
    except ValueError:  # its reason stands with the DICOMDIR itself
        return []
    existing = {file.relative_to(folder).as_posix().lower() for file in folder.rglob("*") if file.is_file()}
    for name in named:
        if name.lower() not in existing:
            path = (Path(directory.path).parent / name).as_posix()
            told.refused[path] = "named by DICOMDIR, but not there"
            missing.append(Record(id=path, path=path, reason=told.refused[path]))
    return missing


def _one_mask_for_many(record: Record, contents: Contents, rule: FrameRule, root: Path) -> str:
    """Why one mask cannot be that of all frames taken of a file; "" where there is none, or it has frames as well."""
    if not record.mask or contents.count < 2 or rule.kind == "first" or _is_named(record):
        return ""
    for mask in record.mask_paths:
        try:
            if split_reference(mask)[1] is not None or not frames.is_container(root / mask):
                return (
                    f"has {contents.count} frames and one mask, {mask}, which does not say of which: give the frame as an image, "
                    "or frames: first if it is the first"
                )
        except ValueError:  # the mask's own reason is told when it is read
            continue
    return ""


def _is_named(record: Record) -> bool:
    """Whether a record is of one frame or part of its file already; a traced frame is named by its mask."""
    return bool(record.frame or record.crop) or record.mask.endswith(f"#{record.frame}")


def _of_file(record: Record, contents: Contents, rule: FrameRule) -> list[Record]:
    named = _is_named(record)
    numbers = [record.frame] if named else rule.chosen(contents)
    crops = [record.crop] if record.crop else contents.crops
    group = record.group or contents.group
    if not group and contents.count > 1 and contents.kind != "arrays":
        group = frames.stem_of(record.path)  # one group per clip
    stem = frames.stem_of(record.id)
    digits = max(4, len(str(contents.count - 1)))
    made = []
    for number in numbers:  # frame by frame, so that each is decoded once for all of its regions
        for place, crop in enumerate(crops, start=1):
            region = f"_region{place}" if len(crops) > 1 else ""
            frame = f"_frame{number:0{digits}d}" if contents.count > 1 else ""
            spacing = record.spacing_mm or contents.spacing_mm
            image = replace(record, id=stem + region + frame, frame=number, crop=crop, group=group, spacing_mm=spacing)
            image.label = record.label or (contents.labels[number] if number < len(contents.labels) else "")
            image.split = record.split or (contents.splits[number] if number < len(contents.splits) else "")
            made.append(image)
    return made
