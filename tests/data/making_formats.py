"""Synthetic DICOM files, clips and volumes for the tests: speckle, made here, of nobody."""

import numpy as np
from PIL import Image

PLANTED = ("Doe^Jane", "Jane", "PID-4711", "19560703", "St Elsewhere", "Dr^Who", "ACC-9981", "1.2.826.0.1.9999.77")


def speckle(seed=0, height=64, width=80) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray((rng.random((6, 8)) * 200 + 30).astype(np.uint8))
    field = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return np.clip(field * rng.rayleigh(0.7, (height, width)), 0, 255).astype(np.uint8)


def dicom_dataset(pixels, photometric="MONOCHROME2", bits=8, stored=None, patient=True, **tags):
    """A dataset of (H, W), (H, W, 3) or (N, H, W[, 3]) with personal tags planted; pixels native, explicit little endian."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    samples = 3 if pixels.shape[-1] == 3 else 1
    frames = pixels.shape[0] if pixels.ndim - (samples == 3) == 3 else 0
    height, width = pixels.shape[-3:-1] if samples == 3 else pixels.shape[-2:]
    meta = FileMetaDataset()
    kind = "1.2.840.10008.5.1.4.1.1.3.1" if frames else "1.2.840.10008.5.1.4.1.1.6.1"
    meta.MediaStorageSOPClassUID = tags.get("SOPClassUID", kind)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.Modality = "US"
    if patient:
        ds.PatientName, ds.PatientID, ds.PatientBirthDate = PLANTED[0], PLANTED[2], PLANTED[3]
        ds.InstitutionName, ds.ReferringPhysicianName, ds.AccessionNumber = PLANTED[4], PLANTED[5], PLANTED[6]
        ds.StudyInstanceUID, ds.StudyDate, ds.ContentDate = PLANTED[7], PLANTED[3], PLANTED[3]
        ds.ImageComments, ds.PatientComments = f"{PLANTED[0]} {PLANTED[3]}", PLANTED[0]
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = height, width, samples, photometric
    if samples == 3:
        ds.PlanarConfiguration = 0
    if frames:
        ds.NumberOfFrames = frames
    ds.BitsAllocated, ds.BitsStored = bits, stored or bits
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, 0
    ds.PixelData = np.ascontiguousarray(pixels).tobytes()
    if len(ds.PixelData) % 2:
        ds.PixelData += b"\0"
    ds["PixelData"].VR = "OW" if bits > 8 else "OB"
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    assert isinstance(ds, pydicom.Dataset)
    return ds


def region(top, left, height, width, form=1, data=1, spacing_cm=0.02):
    """An item of SequenceOfUltrasoundRegions: form 1 2-D, 2 M-mode, 3 spectral; data 1 tissue, 2 colour."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = form, data, 0
    item.RegionLocationMinX0, item.RegionLocationMinY0 = left, top
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = left + width - 1, top + height - 1
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaX, item.PhysicalDeltaY = spacing_cm, spacing_cm
    return item


def save_dicom(path, dataset):
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def encapsulated(dataset, streams, syntax):
    """The dataset with compressed frames."""
    from pydicom.encaps import encapsulate

    dataset.PixelData = encapsulate(streams)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def write_clip(path, frames, rate=10, codec="mpeg4", options=None):
    """An encoded clip of grey frames (H, W), even sides."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 4_000_000
        for frame in frames:
            colour = av.VideoFrame.from_ndarray(np.repeat(frame[..., None], 3, 2), format="rgb24")
            container.mux(stream.encode(colour))
        container.mux(stream.encode())
    return path
