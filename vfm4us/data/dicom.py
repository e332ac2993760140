"""Ultrasound images in DICOM files: grey frames, cut to the B-mode region, of patients that nobody can name.

Only the tags in `TAGS` are read, and of those that say who the patient is nothing is passed on but a keyed hash
(`vfm4us.data.pseudonyms`). Reasons for refusing a file are written here and never quote a value of the file's text tags.
Read with pydicom, compressed frames with the plugins of pylibjpeg: pip install -e .[dicom].
"""

from collections.abc import Iterator

import numpy as np

from vfm4us.data import dicom_pixels, limits
from vfm4us.data.dicom_pixels import number_of, numbers_of
from vfm4us.data.frames import NOT_SQUARE, Contents, MissingPackage, tell_shape_of_pixels
from vfm4us.data.pseudonyms import pseudonym
from vfm4us.data.signatures import what_file_is

REGIONS = ("b-mode", "colour", "m-mode", "spectral", "other")
ULTRASOUND = ("US", "IVUS")  # modalities
STORAGE = "1.2.840.10008.5.1.4.1.1."
ULTRASOUND_CLASSES = ("6", "6.1", "6.2", "3", "3.1")  # single, multi-frame and volume; 6 and 3 are retired
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
NAMED_CLASSES = {  # SOP classes, by how they begin after STORAGE, that have no ultrasound image in them
    "7": "a secondary capture, a picture of a screen or a report: save it as PNG if it is a scan, or a mask",
    "88": "a structured report, no image",
    "104": "an encapsulated document, no image",
    "11": "a presentation state, no image",
    "9": "waveforms, no image",
    "66": "a segmentation or registration object, no ultrasound image: save masks as PNG or NIfTI",
}
FIRST_ELEMENTS = tuple(b"\x08\0" + bytes([element, 0]) for element in (0x00, 0x01, 0x05, 0x08, 0x16))
DEFLATED = "1.2.840.10008.1.2.1.99"
PHYSICAL_CM = 3  # of PhysicalUnitsXDirection
MAXIMUM_FRAMES = 1_000_000
MINIMUM_REGION = 16  # pixels
BEYOND_BY = 0.02  # of its size, by which a region may reach beyond the picture
BEYOND = "names a region that reaches beyond the picture, which was cut or resized after the scan"
NOBODY = (  # what is written into PatientID in the place of an ID, its letters and digits in capitals
    "",
    *"ANON ANONYM ANONYMOUS ANONYMIZED ANONYMISED ANONYMOUSPATIENT DEIDENTIFIED REMOVED NONE UNKNOWN UNNAMED NOID".split(),
    *"NONAME NA NULL NAN PATIENT PATIENTID NAME ID TEST DEFAULT".split(),
)
MAXIMUM_RATE = 1000  # frames a second; what says more has another unit
VOLUME_CLASS = STORAGE + "6.2"
FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
NO_TISSUE = ("flow", "velocity", "variance", "power", "doppler", "elasti")
OVERLAP = 0.01  # share of a B-mode region that colour Doppler may cover
_PALETTE = [f"{c}PaletteColorLookupTable{what}" for c in ("Red", "Green", "Blue") for what in ("Descriptor", "Data")]
_SEGMENTED = [f"Segmented{c}PaletteColorLookupTableData" for c in ("Red", "Green", "Blue")]
TAGS = [
    *("SOPClassUID", "Modality", "PatientID", "IssuerOfPatientID", "PatientName", "StudyInstanceUID"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("PixelSpacing", "PixelAspectRatio", "SequenceOfUltrasoundRegions", "UltrasoundColorDataPresent"),
    *FUNCTIONAL_GROUPS,
    *("FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate"),
    *_PALETTE,
    *_SEGMENTED,
]


def is_dicom(path) -> bool:
    """Whether a file says in its first 132 bytes that it is DICOM; what cannot be read is not."""
    try:
        return limits.first_bytes(path, 132)[128:] == b"DICM"
    except ValueError:
        return False


def begins_like_dicom(path) -> bool:
    """`is_dicom`, or the first element of a file without a preamble, as old archives have them: of the group 0008."""
    try:
        beginning = limits.first_bytes(path, 132)
    except ValueError:
        return False
    if beginning[128:] == b"DICM":
        return True
    typed, length = beginning[4:6] in (b"UL", b"CS", b"UI", b"SH"), int.from_bytes(beginning[4:8], "little")
    return beginning[:4] in FIRST_ELEMENTS and (typed or 0 < length <= 64)


def contents(path, regions=("b-mode",)) -> Contents:
    """What a DICOM file holds. Raises ValueError with the reason for a file that is no ultrasound image.

    regions: kinds of `REGIONS` that are taken. Without SequenceOfUltrasoundRegions the whole frame is, and a note says so.
    """
    header, begin = _header(path)
    _refuse_others(header)
    count = number_of(header, "NumberOfFrames", 1)
    if not 1 <= count <= MAXIMUM_FRAMES:
        raise ValueError(f"DICOM: NumberOfFrames is {count:.0f}")
    pixels = dicom_pixels.find(path, header, begin)
    told = Contents("DICOM", count=pixels.count, rate=_rate(header), notes=pixels.notes)
    _tell_patient(header, told)
    height, width = pixels.height, pixels.width
    described, unusable = _regions(header, height, width)
    if header.get("SOPClassUID") == VOLUME_CLASS:
        _volume(header, told)
    if described:
        told.crops, told.spacing_mm, told.left_out = _taken(described, regions, height, width)
    else:
        spacing = [] if unusable == BEYOND else numbers_of(header, "PixelSpacing")
        told.spacing_mm = told.spacing_mm or (_spacing(spacing[0], spacing[1]) if len(spacing) == 2 else "")
        told.notes.append(
            f"{unusable or 'names no region'}: the whole frame is taken, with whatever is written beside the image"
        )
        if number_of(header, "UltrasoundColorDataPresent", 0) == 1:
            told.notes.append("says that it holds colour Doppler, not where: its colours become grey")
    tell_shape_of_pixels(told)
    aspect = numbers_of(header, "PixelAspectRatio")
    if not told.spacing_mm and len(aspect) == 2 and aspect[0] != aspect[1]:
        told.notes.append(NOT_SQUARE)
    if _names_the_patient(path, header):
        told.notes.append("its path holds the patient's ID or name, and manifest.csv repeats paths: rename it")
    return told


def read_frames(path, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, grey uint8 (H, W)) of the frames asked for, as a viewer shows them: windowed, inverted, colours as luminance."""
    header, begin = _header(path)
    _refuse_others(header)
    yield from dicom_pixels.read(dicom_pixels.find(path, header, begin), numbers)


def directory_files(path) -> list[str]:
    """The files that a DICOMDIR names, relative to its folder. Raises ValueError where it cannot be read."""
    header, _ = _header(path, extra=["DirectoryRecordSequence"])
    files = []
    for record in header.get("DirectoryRecordSequence") or []:
        parts = record.get("ReferencedFileID")
        if parts:
            files.append("/".join([parts] if isinstance(parts, str) else [str(part) for part in parts]))
    return files


def _header(path, extra=()):
    """The dataset without its pixels, only with TAGS; and the byte at which the pixels' element begins."""
    try:
        import pydicom
        from pydicom.filereader import read_file_meta_info
    except ImportError:
        raise MissingPackage("a DICOM file", "dicom") from None
    limits.refuse_special(path)
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its warnings quote the values of tags
    named = is_dicom(path)
    try:
        deflated = named and str(read_file_meta_info(path).get("TransferSyntaxUID", "")) == DEFLATED
        header, begin = None, 0
        if not deflated:
            with limits.open_regular(path) as file:
                header = pydicom.dcmread(file, force=not named, stop_before_pixels=True, specific_tags=[*TAGS, *extra])
                begin = file.tell()
        _convert(header or ())
        _convert(getattr(header, "file_meta", ()))
    except MemoryError:
        raise
    except Exception as error:  # a damaged header raises almost anything; its words may quote the file
        if not named and (told := what_file_is(path)):
            raise ValueError(f"not a DICOM file{told}") from None
        raise ValueError(f"DICOM: its header is damaged ({type(error).__name__})") from None
    if deflated:
        raise ValueError("DICOM: deflated as a whole, which is not read here: convert it, e.g. with dcmconv +te")
    if str(header.get("SOPClassUID")) == VOLUME_CLASS:
        _lift_shared(header)
    if not named and "Rows" not in header and "SOPClassUID" not in header:
        raise ValueError("not a DICOM file" + (what_file_is(path) or ", or its header is damaged"))
    return header, begin


def _lift_shared(header) -> None:
    """Let what an enhanced file says of all frames in groups stand where other files say it."""
    for group in header.get("SharedFunctionalGroupsSequence") or []:
        for sequence in ("PixelMeasuresSequence", "FrameVOILUTSequence", "PixelValueTransformationSequence"):
            for item in group.get(sequence) or []:
                for element in item:
                    if element.keyword in TAGS and element.keyword not in header:
                        header[element.tag] = element


def _convert(dataset) -> None:
    """Turn every element from bytes into its value now, while what damaged ones raise is caught."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                _convert(item)


def _refuse_others(header) -> None:
    """ValueError with the reason where a file holds no ultrasound image."""
    kind = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", ""))
    modality = str(header.get("Modality") or "").strip().upper()
    if kind == DIRECTORY_CLASS:
        raise ValueError("DICOM: the directory of a medium, no image: its folder is the source")
    short = kind.removeprefix(STORAGE)
    if kind.startswith(STORAGE) and short not in ULTRASOUND_CLASSES:
        for begin, what in NAMED_CLASSES.items():
            if short == begin or short.startswith(begin + "."):
                raise ValueError(f"DICOM: {what}")
    if modality and modality not in ULTRASOUND:
        shown = modality if len(modality) <= 4 and modality.isalnum() else "unknown"
        raise ValueError(f"DICOM: modality {shown}, not ultrasound (US)")
    if "Rows" not in header or "Columns" not in header:
        raise ValueError("DICOM: holds no image")
    stored = number_of(header, "BitsStored", 0)
    if stored and number_of(header, "HighBit", stored - 1) != stored - 1:
        raise ValueError(
            f"DICOM: HighBit is {number_of(header, 'HighBit', 0):.0f} for {stored:.0f} bits: pixels that begin above the lowest "
            "bit are not read here"
        )
    if number_of(header, "RescaleSlope", 1) == 0:
        raise ValueError("DICOM: RescaleSlope is 0, which makes every pixel the same")


def _patient_id(header) -> str:
    """The PatientID without spaces and in capitals, as scanners write one ID in several ways; "" where it names nobody."""
    identity = "".join(str(header.get("PatientID") or "").upper().split())
    bare = "".join(letter for letter in identity if letter.isalnum())
    return "" if bare in NOBODY or len(set(bare)) <= 1 and not bare.strip("0X") else identity


def _tell_patient(header, told: Contents) -> None:
    identity, issuer = _patient_id(header), str(header.get("IssuerOfPatientID") or "")
    study = str(header.get("StudyInstanceUID") or "").strip()
    if identity:
        told.group = pseudonym("PatientID", identity, issuer)
        told.alike = pseudonym("alike", "".join(letter for letter in identity if letter.isalnum()).lstrip("0"))
    elif study:
        told.group = pseudonym("StudyInstanceUID", study, issuer)
        told.notes.append("its PatientID names nobody: its study is the group, and a patient may have several")
    else:
        told.notes.append("names neither patient nor study: its frames are a group of their own")


def _names_the_patient(path, header) -> bool:
    path = str(path).lower()
    words = str(header.get("PatientName") or "").lower().replace("^", " ").replace("=", " ").split()
    words.append(str(header.get("PatientID") or "").strip().lower())
    return any(len(word) > 3 and word in path for word in words if word.upper() not in NOBODY)


def _rate(header) -> float | None:
    time = number_of(header, "FrameTime", 0)
    steps = [step for step in numbers_of(header, "FrameTimeVector")[1:] if step > 0]
    if not time and steps:
        time = sum(steps) / len(steps)
    rates = [1000 / time if time > 0 else 0, number_of(header, "CineRate", 0)]
    rates.append(number_of(header, "RecommendedDisplayFrameRate", 0))
    return next((rate for rate in rates if 0 < rate <= MAXIMUM_RATE), None)


def _volume(header, told: Contents) -> None:
    """Slices follow each other in space. ValueError where frames hold anything but tissue."""
    groups = [item for keyword in FUNCTIONAL_GROUPS for item in header.get(keyword) or []]
    kinds = {
        (str(code.get("CodeValue")), str(code.get("CodeMeaning")).lower())
        for group in groups
        for kind in group.get("ImageDataTypeSequence") or []
        for code in kind.get("ImageDataTypeCodeSequence") or []
    }
    if len({value for value, _ in kinds}) > 1 or any(word in meaning for _, meaning in kinds for word in NO_TISSUE):
        raise ValueError("DICOM: a volume that holds other data than tissue, such as flow: export the tissue alone")
    told.rate = 0
    frames = header.get(FUNCTIONAL_GROUPS[1]) or []
    if any(group.get(name) for group in frames for name in ("FrameVOILUTSequence", "PixelValueTransformationSequence")):
        told.notes.append("its frames have windows of their own, which are not applied")


# regions


def _regions(header, height: int, width: int) -> tuple[list[tuple], str]:
    """(kind, top, left, bottom, right, spacing) of each region of the frame, bottom and right exclusive; why none can be used."""
    regions, unusable = [], ""
    try:
        items = list(header.get("SequenceOfUltrasoundRegions") or [])
    except TypeError:
        raise ValueError("DICOM: SequenceOfUltrasoundRegions is damaged") from None
    for item in items:
        corner = [number_of(item, f"RegionLocation{name}", -1) for name in ("MinY0", "MinX0", "MaxY1", "MaxX1")]
        top, left, bottom, right = (int(value) for value in corner)
        if bottom > height * (1 + BEYOND_BY) or right > width * (1 + BEYOND_BY):
            return [], BEYOND
        bottom, right = min(bottom + 1, height), min(right + 1, width)
        if min(top, left) < 0 or bottom - top < MINIMUM_REGION or right - left < MINIMUM_REGION:
            unusable = "names a region that is incomplete or tiny"
            continue
        form, data = number_of(item, "RegionSpatialFormat", 0), number_of(item, "RegionDataType", 0)
        kind = {1: "b-mode", 2: "m-mode", 3: "spectral"}.get(int(form), "other")
        if kind == "b-mode" and data not in (0, 1):  # 2-D, but no tissue
            kind = "colour" if data == 2 else "other"
        units = [number_of(item, f"PhysicalUnits{axis}Direction", 0) for axis in "YX"]
        steps = [abs(number_of(item, f"PhysicalDelta{axis}", 0)) for axis in "YX"]
        spacing = _spacing(10 * steps[0], 10 * steps[1]) if units == [PHYSICAL_CM, PHYSICAL_CM] else ""
        regions.append((kind, top, left, bottom, right, spacing))
    return regions, unusable


def _taken(described: list[tuple], wanted, height: int, width: int) -> tuple[list[str], str, list[str]]:
    """Crops and spacing of the regions of the wanted kinds, and in words what is left out."""
    left_out, taken = [], []
    colour = [region for region in described if region[0] == "colour"]
    for region in sorted(described, key=_area, reverse=True):
        if region[0] not in wanted:
            left_out.append(f"{region[0]} region")
        elif any(_shared(region, other) > 0.5 * _area(region) for other in taken):
            continue  # named twice, or a part of one that is taken
        elif (
            region[0] == "b-mode"
            and "colour" not in wanted
            and any(_shared(region, other) > OVERLAP * _area(region) for other in colour)
        ):
            left_out.append("b-mode region under colour Doppler")
        else:
            taken.append(region)
    if not taken:
        raise ValueError(
            f"DICOM: holds no region of the kinds {', '.join(wanted)}, but {', '.join(sorted(set(left_out)))}: the option "
            "regions takes others"
        )
    taken.sort(key=lambda region: region[1:3])
    crops = [f"{top} {left} {bottom - top} {right - left}" for _, top, left, bottom, right, _ in taken]
    whole = f"0 0 {height} {width}"
    spacings = {region[5] for region in taken}
    # dual images of two depths have two spacings: then none is given rather than a wrong one
    return ["" if crop == whole else crop for crop in crops], spacings.pop() if len(spacings) == 1 else "", left_out


def _area(region: tuple) -> int:
    return (region[3] - region[1]) * (region[4] - region[2])


def _shared(a: tuple, b: tuple) -> int:
    return max(0, min(a[3], b[3]) - max(a[1], b[1])) * max(0, min(a[4], b[4]) - max(a[2], b[2]))


def _spacing(row: float, column: float) -> str:
    return f"{row:.6g} {column:.6g}" if 0 < row < 1000 and 0 < column < 1000 else ""
