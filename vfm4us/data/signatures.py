"""What a file is by its first bytes, for those that are not what their ending says: the reason then names it, and what to do."""

from vfm4us.data import limits

LOOKED_AT = 512  # bytes
BEGINNINGS = (  # place, bytes, what it is, what to do
    (128, b"DICM", "a DICOM file", "name it .dcm"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image", "name it .png"),
    (0, b"\xff\xd8\xff", "a JPEG image", "name it .jpg"),
    (0, b"GIF8", "a GIF image", "name it .gif"),
    (0, b"BM", "a BMP image", "name it .bmp"),
    (0, b"II*\0", "a TIFF of a kind that is not read, such as 64-bit fractions", "save it in 8 or 16 bits"),
    (0, b"MM\0*", "a TIFF of a kind that is not read, such as 64-bit fractions", "save it in 8 or 16 bits"),
    (0, b"II+\0", "a TIFF of a kind that is not read, such as 64-bit fractions", "save it in 8 or 16 bits"),
    (8, b"WEBP", "a WebP image", "name it .webp"),
    (8, b"AVI ", "an AVI clip", "name it .avi"),
    (4, b"ftypheic", "a photograph in HEIC", "save it as PNG"),
    (4, b"ftypmif1", "a photograph in HEIC", "save it as PNG"),
    (4, b"ftypavif", "a photograph in AVIF", "save it as PNG"),
    (4, b"ftyp", "an MP4 or MOV clip", "name it .mp4"),
    (0, b"\x1aE\xdf\xa3", "an MKV or WebM clip", "name it .mkv"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "a WMV clip", "name it .wmv"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000", "save it as PNG"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000", "save it as PNG"),
    (0, b"\x89HDF", "an HDF5 file", "save its images as PNG, e.g. with h5py"),
    (0, b"MATLAB 5", "a MATLAB file", "save its images as PNG, e.g. with scipy.io.loadmat"),
    (0, b"\x93NUMPY", "a NumPy array", "save it as PNG"),
    (344, b"n+1\0", "a NIfTI volume", "name it .nii"),
    (0, b"NRRD", "an NRRD volume", "name it .nrrd"),
    (0, b"ObjectType", "a MetaImage volume", "name it .mha or .mhd"),
    (0, b"KRETZFILE", "a file of a GE scanner", "export it as DICOM or NRRD"),
    (0, b"%PDF", "a PDF", "save its images as PNG"),
    (0, b"PK\x03\x04", "a ZIP archive", "unpack it"),
    (0, b"\x1f\x8b", "compressed with gzip", "unpack it"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "fetch it with git lfs pull"),
)
TEXT = bytes({*range(32, 127), 9, 10, 13})


def what_it_is(beginning: bytes, but: str = "") -> str:
    """`: it is a DICOM file, name it .dcm` by the first bytes of a file, "" where they say nothing.

    but: what the file is known not to be, a part of a name in BEGINNINGS
    """
    for place, mark, name, remedy in BEGINNINGS:
        if beginning[place : place + len(mark)] == mark and not (but and but in name):
            return f": it is {name}: {remedy}"
    if not beginning.strip(b"\0"):
        return ": it holds zeros alone, as of a copy that was broken off: copy it again"
    if beginning.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return ": it is a web page, as of a download that was refused: download it again"
    if not beginning.translate(None, TEXT):
        return ": it is a text"
    return ""


def what_file_is(path, but: str = "") -> str:
    """`what_it_is` of a file; "" of one that cannot be read."""
    try:
        return what_it_is(limits.first_bytes(path, LOOKED_AT), but)
    except ValueError:
        return ""
