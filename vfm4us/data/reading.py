"""The keys that decide how a source is read where it can be read in two ways.

They stand in a `reading.yaml` in the source's folder, for every script, or behind `prepare_data.py folder --reading KEY=VALUE`.
"""

import difflib
from dataclasses import dataclass, fields
from pathlib import Path

from vfm4us import plain_yaml
from vfm4us.data.frames import frame_rule

FILE = "reading.yaml"
CHOICES = {
    "folders": ("", "classes", "splits", "patients", "below", "both"),
    "labels": ("", "names", "endings"),
    "values": ("", "binary", "classes"),
    "outlines": ("", "fill", "keep"),
    "orientation": ("", "upright", "raw"),
}


@dataclass(frozen=True)
class Reading:
    """How a source is read; empty means: as it is found to be, or an error where that is open.

    frames:      which frames of a clip: first, all, every N, per second, N per second
    regions:     which regions of DICOM files: of b-mode, colour, m-mode, spectral, other
    blank:       fill burnt-in text and calipers with their neighbourhood
    images:      folders of images
    masks:       folders of masks, or endings of their names such as _tumor
    targets:     folders or endings of the images of high quality that belong to the others, which are of low quality
    passed_over: folders or endings that are not used
    folders:     what the first folders are: classes, splits or patients; below: the folders below them are the classes;
                 both: a class is a folder with one below it
    table:       a table beside the images that is joined to them, over what folders say; "none": no table is
    labels:      "names": the words with which the names of files begin, before a number, are the labels; "endings": the
                 words with which they end, behind a number
    groups:      "none": splits go by image and duplicate cluster, whatever names and folders say; "names": the name of a file
                 before its last number is the group
    ignore:      pixel value of masks that counts nowhere; "none": no value does
    values:      what several values in masks are: binary (all above 0 are one class) or classes
    background:  pixel value of masks that is no class
    threshold:   of soft masks in [0, 1]
    outlines:    fill or keep masks that are closed lines
    orientation: whether masks lie on the upright image or on its raw pixels, where its EXIF orientation turns it
    """

    frames: str = "per second"
    regions: tuple[str, ...] = ("b-mode",)
    blank: bool = False
    images: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()
    folders: str = ""
    table: str = ""
    labels: str = ""
    groups: str = ""
    ignore: str = ""
    values: str = ""
    background: str = ""
    threshold: float = 0.5
    outlines: str = ""
    orientation: str = ""

    def __post_init__(self):
        from vfm4us.data.dicom import REGIONS

        object.__setattr__(self, "frames", str(frame_rule(self.frames)))
        for name in ("regions", "images", "masks", "targets", "passed_over"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(str(item) for item in value))
        for name in (
            "ignore",
            "background",
            "labels",
            "groups",
            "table",
            "folders",
            "values",
            "outlines",
            "orientation",
        ):
            object.__setattr__(self, name, str(getattr(self, name)))
        if unknown := [region for region in self.regions if region not in REGIONS] or not self.regions:
            raise ValueError(f"regions={unknown or 'none'}: use some of {', '.join(REGIONS)}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"reading: {name}={getattr(self, name)!r}: use one of {', '.join(choices[1:])}")
        if self.groups not in ("", "none", "names"):
            raise ValueError(f"reading: groups={self.groups!r}: use none, or names, or name groups in a manifest.csv")
        for name in ("ignore", "background"):
            value = getattr(self, name)
            if value not in ("", "none") and not value.isdigit():
                raise ValueError(f"reading: {name}={value!r}: give a pixel value" + ", or none" * (name == "ignore"))
        if (
            isinstance(self.threshold, bool)
            or not isinstance(self.threshold, int | float)
            or not 0 < self.threshold < 1
        ):
            raise ValueError(f"reading: threshold={self.threshold!r}: give a number between 0 and 1")
        if not isinstance(self.blank, bool):
            raise ValueError(f"reading: blank={self.blank!r}: use true or false")

    def plan(self) -> dict:
        """What differs from the defaults, for the plan of a prepared dataset: of plain images nothing is written."""
        told = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                told[field.name] = list(value) if isinstance(value, tuple) else value
        return told


def reading_of(source: Path, given: Reading | dict | None = None) -> Reading:
    """The reading of a source: what was given, over what the reading.yaml in its folder says. ValueError names file and key."""
    if isinstance(given, Reading):
        given = given.plan()
    file = (source.parent if source.is_file() else source) / FILE
    written = {}
    if file.is_file():
        written = plain_yaml.plain(plain_yaml.parse(file.read_bytes(), str(file))) or {}
        if not isinstance(written, dict):
            raise ValueError(f"{file} holds no keys: write e.g. `folders: classes`")
        _check_keys(written, str(file))
    values = {**written, **(given or {})}
    _check_keys(values, "reading")
    try:
        return Reading(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}" if written else str(error)) from error


def frames_of(rule: str) -> dict:
    """The reading of a config's `frames` key: nothing where it is empty."""
    return {"frames": rule} if rule else {}


def parse_readings(items: list[str]) -> dict:
    """`KEY=VALUE` of the command line as a dict; lists are written [a, b]."""
    values = {}
    for item in items:
        key, sign, text = item.partition("=")
        if not sign:
            raise ValueError(f"--reading {item}: write KEY=VALUE, e.g. folders=classes")
        values[key.removeprefix("reading.")] = plain_yaml.plain(
            plain_yaml.parse(text, f"--reading {item}", comments=False)
        )
    _check_keys(values, "--reading")
    return values


def _check_keys(values: dict, where: str) -> None:
    names = [field.name for field in fields(Reading)]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            raise ValueError(
                f"{where}: unknown key {key!r}"
                + (f", did you mean {near[0]}?" if near else f"; use {', '.join(names)}")
            )
