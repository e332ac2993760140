"""DICOM: every photometric interpretation and compression that scanners write, only the B-mode region, nobody's name."""

import io

import numpy as np
import pytest
from making_formats import PLANTED, dicom_dataset, encapsulated, region, save_dicom, speckle
from PIL import Image

from vfm4us.data import dicom, dicom_pixels, frames, pseudonyms, sources

pydicom = pytest.importorskip("pydicom")
from pydicom import uid  # noqa: E402


@pytest.fixture(autouse=True)
def key(tmp_path, monkeypatch):
    monkeypatch.setenv(pseudonyms.KEY_FILE, str(tmp_path / "private" / "key"))


def only(path, numbers=(0,)):
    return [pixels for _, pixels in frames.read_frames(path, list(numbers))]


def colour(seed=0):
    return np.stack([speckle(seed), speckle(seed + 1), speckle(seed + 2)], axis=-1)


def luminance(rgb):
    return np.asarray(Image.fromarray(rgb).convert("L"))


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).mean()


# pixels


def test_grey_is_read_exactly_and_monochrome1_is_inverted(tmp_path):
    pixels = speckle()
    assert (only(save_dicom(tmp_path / "a.dcm", dicom_dataset(pixels)))[0] == pixels).all()
    assert (only(save_dicom(tmp_path / "b.dcm", dicom_dataset(pixels, "MONOCHROME1")))[0] == 255 - pixels).all()


def test_rgb_of_both_planar_configurations_becomes_luminance(tmp_path):
    rgb = colour()
    ds = dicom_dataset(rgb, "RGB")
    assert (only(save_dicom(tmp_path / "a.dcm", ds))[0] == luminance(rgb)).all()
    ds.PlanarConfiguration, ds.PixelData = 1, np.ascontiguousarray(rgb.transpose(2, 0, 1)).tobytes()
    assert (only(save_dicom(tmp_path / "b.dcm", ds))[0] == luminance(rgb)).all()


def test_ybr_full_and_422_are_turned_into_rgb_first(tmp_path):
    rgb = np.repeat(np.repeat(colour()[:, ::2], 2, axis=1), 1, axis=0)  # pairs of equal pixels: 4:2:2 loses nothing
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    assert difference(only(save_dicom(tmp_path / "a.dcm", dicom_dataset(ybr, "YBR_FULL")))[0], luminance(rgb)) < 1
    pairs = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], axis=-1)
    ds = dicom_dataset(ybr, "YBR_FULL_422")
    ds.PixelData = pairs.tobytes()
    assert difference(only(save_dicom(tmp_path / "b.dcm", ds))[0], luminance(rgb)) < 1


def test_a_palette_is_looked_up(tmp_path):
    rng = np.random.default_rng(0)
    indices, table = speckle(), rng.integers(0, 256, (256, 3)).astype(np.uint8)
    ds = dicom_dataset(indices, "PALETTE COLOR")
    for channel, name in enumerate(("Red", "Green", "Blue")):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        words = table[:, channel].astype("<u2") * 257
        setattr(ds, f"{name}PaletteColorLookupTableData", words.tobytes())
    assert difference(only(save_dicom(tmp_path / "a.dcm", ds))[0], luminance(table[indices])) < 1


def test_more_than_8_bits(tmp_path):
    pixels = speckle().astype(np.uint16)
    twelve = dicom_dataset(pixels * 16, bits=16, stored=12)
    assert difference(only(save_dicom(tmp_path / "a.dcm", twelve))[0], pixels) < 1
    sixteen = dicom_dataset(pixels * 257, bits=16)
    assert (only(save_dicom(tmp_path / "b.dcm", sixteen))[0] == pixels).all()
    unsaid = dicom_dataset(pixels * 16, bits=16)  # 12 bits in 16, not said
    assert difference(only(save_dicom(tmp_path / "c.dcm", unsaid))[0], pixels) < 1


def test_signed_pixels_that_use_few_of_their_bits_are_not_all_one_grey(tmp_path):
    signed = dicom_dataset(speckle().astype(np.int16), bits=16, PixelRepresentation=1)
    assert difference(only(save_dicom(tmp_path / "a.dcm", signed))[0], speckle()) < 1


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"PhotometricInterpretation": "YBR_FULL_422"}, "bytes of pixels, its header says"),
        ({"PhotometricInterpretation": "YBR_ICT"}, "none that is read of uncompressed pixels"),
        ({"PhotometricInterpretation": "HSV"}, "none that is read of uncompressed pixels"),
        ({"HighBit": 15, "BitsStored": 12, "BitsAllocated": 16}, "HighBit is 15 for 12 bits"),
        ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "RescaleSlope is 0"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:20],
)
def test_pixels_laid_down_otherwise_than_the_header_says_are_refused(tmp_path, keys, words):
    colours = "PhotometricInterpretation" in keys
    pixels = colour() if colours else speckle().astype(np.uint16) if "HighBit" in keys else speckle()
    ds = dicom_dataset(pixels, "RGB" if colours else "MONOCHROME2", **({"bits": 16} if "HighBit" in keys else {}))
    for name, value in keys.items():
        setattr(ds, name, value)
    with pytest.raises(ValueError, match=words):
        only(save_dicom(tmp_path / "a.dcm", ds))


def test_frames_beyond_their_number_are_refused(tmp_path):
    loop = np.stack([speckle(k) for k in range(3)])
    ds = dicom_dataset(loop)
    ds.NumberOfFrames = 2
    with pytest.raises(ValueError, match="bytes of pixels, its header says"):
        only(save_dicom(tmp_path / "a.dcm", ds))
    ds = encapsulated(dicom_dataset(loop), [jpeg(frame) for frame in loop], uid.JPEGBaseline8Bit)
    ds.NumberOfFrames = 2
    with pytest.raises(ValueError, match="holds 3 compressed frames, its header says 2"):
        only(save_dicom(tmp_path / "b.dcm", ds))


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.RLELossless])
def test_compressed_frames_whose_number_is_missing_are_all_read(tmp_path, syntax):
    loop = np.stack([speckle(k) for k in range(3)])
    ds = dicom_dataset(loop)
    if syntax == uid.RLELossless:
        ds.compress(syntax)
    else:
        encapsulated(ds, [jpeg(frame) for frame in loop], syntax)
    del ds.NumberOfFrames
    path = save_dicom(tmp_path / "a.dcm", ds)
    told = frames.contents_of(path)
    assert told.count == 3 and any("does not say how many frames" in note for note in told.notes)
    assert difference(only(path, [2])[0], loop[2]) < 3


@pytest.mark.parametrize("compressed", [True, False])
def test_of_a_loop_cut_short_the_whole_frames_are_read(tmp_path, compressed):
    loop = np.stack([speckle(k) for k in range(4)])
    ds = dicom_dataset(loop)
    if compressed:
        encapsulated(ds, [jpeg(frame) for frame in loop], uid.JPEGBaseline8Bit)
    path = save_dicom(tmp_path / "a.dcm", ds)
    path.write_bytes(path.read_bytes()[:-1000])
    told = frames.contents_of(path)
    assert told.count == 3 and any("fewer frames" in note for note in told.notes)
    assert len(only(path, range(4))) == 3


def test_frames_are_found_without_their_table_of_offsets(tmp_path):
    loop = np.stack([speckle(k) for k in range(3)])
    ds = dicom_dataset(loop)
    ds.compress(uid.JPEG2000Lossless)
    data = bytearray(ds.PixelData)
    size = int.from_bytes(data[4:8], "little")
    data[8 : 8 + size] = bytes(size)  # every frame begins at 0
    ds.PixelData = bytes(data)
    assert all((a == b).all() for a, b in zip(only(save_dicom(tmp_path / "a.dcm", ds), range(3)), loop, strict=True))


def test_pixels_that_are_not_square_are_told(tmp_path):
    for name, tags in (("a.dcm", {"PixelSpacing": ["0.2", "0.1"]}), ("b.dcm", {"PixelAspectRatio": ["1", "2"]})):
        told = frames.contents_of(save_dicom(tmp_path / name, dicom_dataset(speckle(), **tags)))
        assert frames.NOT_SQUARE in told.notes
    told = frames.contents_of(save_dicom(tmp_path / "c.dcm", dicom_dataset(speckle(), PixelSpacing=["0.1", "0.1"])))
    assert frames.NOT_SQUARE not in told.notes


# colours that are not what the header says


def tissue() -> np.ndarray:
    """RGB: grey but for two boxes, black around it, as a screen is."""
    rgb = np.repeat(speckle()[..., None], 3, axis=2)
    rgb[:12] = 0
    rgb[30:40, 30:50], rgb[45:55, 30:50] = (200, 40, 20), (20, 40, 220)
    return rgb


def with_marker(stream: bytes, marker: bytes) -> bytes:
    """A JPEG stream with another marker in the place of JFIF's."""
    stream = stream[:2] + marker + stream[20:]
    return stream + b"\0" * (len(stream) % 2)


def adobe(transform: int) -> bytes:
    return b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0" + bytes([transform])


@pytest.mark.parametrize(("said", "marker"), [("RGB", "jfif"), ("RGB", "adobe"), ("YBR_FULL_422", "adobe")])
def test_a_jpeg_that_says_luminance_and_chroma_is_read_so_whatever_the_header_says(tmp_path, said, marker):
    stream = jpeg(tissue(), subsampling=0)
    ds = dicom_dataset(tissue(), said)
    encapsulated(ds, [with_marker(stream, adobe(1)) if marker == "adobe" else stream], uid.JPEGBaseline8Bit)
    path = save_dicom(tmp_path / "a.dcm", ds)
    assert difference(only(path)[0], luminance(tissue())) < 1.5
    assert any("luminance and chroma" in note for note in frames.contents_of(path).notes) == (said == "RGB")


def test_a_jpeg_of_rgb_is_read_so_whatever_the_header_says(tmp_path):
    stream = jpeg(tissue(), keep_rgb=True, subsampling=0)
    ds = encapsulated(
        dicom_dataset(tissue(), "YBR_FULL_422"), [stream + b"\0" * (len(stream) % 2)], uid.JPEGBaseline8Bit
    )
    path = save_dicom(tmp_path / "a.dcm", ds)
    assert difference(only(path)[0], luminance(tissue())) < 1.5
    assert any("says YBR_FULL_422, but its pixels are RGB" in note for note in frames.contents_of(path).notes)


def test_colours_that_nothing_tells_are_the_headers_unless_their_grey_says_otherwise(tmp_path):
    bands = [Image.fromarray(tissue()[..., k]) for k in range(3)]
    file = io.BytesIO()
    Image.merge("YCbCr", bands).save(file, "JPEG", quality=95, subsampling=0)  # RGB, stored as it is
    ds = encapsulated(dicom_dataset(tissue(), "RGB"), [with_marker(file.getvalue(), b"")], uid.JPEGBaseline8Bit)
    assert difference(only(save_dicom(tmp_path / "a.dcm", ds))[0], luminance(tissue())) < 1.5
    ds = encapsulated(dicom_dataset(tissue(), "RGB"), [with_marker(jpeg(tissue()), b"")], uid.JPEGBaseline8Bit)
    with pytest.raises(ValueError, match="grey only as YBR_FULL: put PhotometricInterpretation right"):
        only(save_dicom(tmp_path / "b.dcm", ds))
    for name, syntax in (("c.dcm", uid.RLELossless), ("d.dcm", uid.JPEG2000Lossless)):
        ds = dicom_dataset(tissue(), "RGB")
        ds.compress(syntax)
        ds.PhotometricInterpretation = "YBR_FULL"
        with pytest.raises(ValueError, match="grey only as RGB: put PhotometricInterpretation right"):
            only(save_dicom(tmp_path / name, ds))


def test_much_colour_does_not_hide_what_colours_are(tmp_path):
    rgb = tissue()
    rgb[30:60, 10:50] = (200, 40, 20)  # a third of what is written
    path = save_dicom(tmp_path / "a.dcm", dicom_dataset(rgb, "YBR_FULL"))
    assert (only(path)[0] == luminance(rgb)).all()
    ds = dicom_dataset(rgb, "RGB")
    ds.compress(uid.RLELossless)
    ds.PhotometricInterpretation = "YBR_FULL"
    with pytest.raises(ValueError, match="grey only as RGB"):
        only(save_dicom(tmp_path / "b.dcm", ds))


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("held", ["RGB", "YBR_FULL"])
@pytest.mark.parametrize("said", ["RGB", "YBR_FULL"])
@pytest.mark.parametrize("planes_said", [False, True, None])
def test_uncompressed_colours_are_read_as_they_lie(tmp_path, planes, held, said, planes_said):
    rgb = tissue()
    values = rgb if held == "RGB" else np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    ds = dicom_dataset(np.ascontiguousarray(values), said)
    if planes:
        ds.PixelData = np.ascontiguousarray(values.transpose(2, 0, 1)).tobytes()
    if planes_said is None:
        del ds.PlanarConfiguration
    else:
        ds.PlanarConfiguration = int(planes_said)
    path = save_dicom(tmp_path / "a.dcm", ds)
    assert difference(only(path)[0], luminance(rgb)) < 1
    notes = " ".join(frames.contents_of(path).notes)
    assert ("read as what they are" in notes) == (held != said)
    assert ("PlanarConfiguration" in notes) == (planes != bool(planes_said))


@pytest.mark.parametrize("planes", [False, True])
def test_flat_and_smooth_colours_are_what_the_header_says(tmp_path, planes):
    rgb = np.repeat((np.arange(64 * 80).reshape(64, 80) // 2 % 200)[..., None], 3, axis=2).astype(np.uint8)
    rgb[..., 2] //= 2  # a tint that rises slowly
    rgb[20:50, 10:70] = (255, 255, 0)
    ds = dicom_dataset(rgb, "RGB", PlanarConfiguration=int(planes))
    if planes:
        ds.PixelData = np.ascontiguousarray(rgb.transpose(2, 0, 1)).tobytes()
    path = save_dicom(tmp_path / "a.dcm", ds)
    assert (only(path)[0] == luminance(rgb)).all()
    assert not any("read as" in note for note in frames.contents_of(path).notes)


def test_an_empty_first_frame_says_nothing_of_colours(tmp_path):
    ybr = np.asarray(Image.fromarray(tissue()).convert("YCbCr"))
    loop = np.stack([np.zeros_like(ybr), ybr])
    path = save_dicom(tmp_path / "a.dcm", dicom_dataset(loop, "YBR_FULL"))
    assert difference(only(path, [1])[0], luminance(tissue())) < 1 and not only(path, [0])[0].any()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("SC_rgb_jpeg_dcmtk.dcm", "YBR_FULL"),
        ("SC_rgb_jpeg.dcm", "RGB"),  # written without the types of its elements, which its syntax has
        ("SC_jpeg_no_color_transform.dcm", "RGB"),
        ("examples_ybr_color.dcm", "YBR_FULL_422"),
        ("GDCMJ2K_TextGBR.dcm", "YBR_RCT"),
        ("SC_rgb_jls_lossy_sample.dcm", "RGB"),
        ("ExplVR_BigEnd.dcm", "RGB"),  # nearly all of it one yellow, plane by plane
    ],
)
def test_files_of_other_writers_look_as_pydicom_shows_them(name, kind):
    from pydicom.data import get_testdata_file

    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip("comes with another version of pydicom")
    header, begin = dicom._header(path)
    found = dicom_pixels.find(path, header, begin)
    assert found.kind == kind and not found.notes
    whole = pydicom.dcmread(path).pixel_array
    shown = np.asarray(Image.fromarray(whole[0] if whole.ndim == 4 else whole).convert("L"))
    assert difference(next(dicom_pixels.read(found, [0]))[1], shown) < 0.5


# reasons


def test_reasons_say_what_is_wrong_not_that_a_file_is_truncated(tmp_path):
    def reason(name, ds):
        path = save_dicom(tmp_path / name, ds)
        with pytest.raises(ValueError, match="DICOM") as told:
            only(path)
        assert "truncated" not in str(told.value)
        return str(told.value)

    stream = jpeg(speckle())
    ds = encapsulated(dicom_dataset(speckle()), [jpeg(tissue())], uid.JPEGBaseline8Bit)
    assert "hold 3 values a pixel, its header says 1" in reason("a.dcm", ds)
    ds = encapsulated(dicom_dataset(speckle()), [stream], uid.JPEGLSLossless)
    assert "compressed as JPEG, its header says JPEG-LS" in reason("b.dcm", ds)
    ds = dicom_dataset(speckle())
    ds.PixelData = stream + b"\0" * (len(stream) % 2)
    assert "says that its pixels are not compressed, but they are" in reason("c.dcm", ds)
    plain = save_dicom(tmp_path / "e.dcm", dicom_dataset(speckle())).read_bytes()
    (tmp_path / "e.dcm").write_bytes(plain.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0", 1))
    with pytest.raises(ValueError, match="but its pixels are not compressed"):
        only(tmp_path / "e.dcm")
    for lacking, words in (("PixelData", "holds no pixels"), ("PhotometricInterpretation", "lacks Photometric")):
        ds = dicom_dataset(speckle())
        delattr(ds, lacking)
        assert words in reason(f"{lacking}.dcm", ds)
    ds = dicom_dataset(speckle())
    ds.SamplesPerPixel = 2
    assert "SamplesPerPixel is 2" in reason("f.dcm", ds)


def test_sixteen_bits_have_one_range_over_all_frames(tmp_path):
    loop = np.stack([speckle(0) // 8, speckle(1)])
    path = save_dicom(tmp_path / "a.dcm", dicom_dataset(loop.astype(np.uint16) * 16, bits=16))
    assert all(difference(*pair) < 1 for pair in zip(only(path, [0, 1]), loop, strict=True))


def test_a_dark_frame_of_a_palette_stays_dark(tmp_path):
    ds = dicom_dataset(np.zeros((64, 80), np.uint8), "PALETTE COLOR")
    words = np.arange(256, dtype="<u2") * 257
    words[0] = 200
    for name in ("Red", "Green", "Blue"):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(ds, f"{name}PaletteColorLookupTableData", words.tobytes())
    assert not only(save_dicom(tmp_path / "a.dcm", ds))[0].any()


def test_a_window_is_applied_as_a_viewer_does(tmp_path):
    pixels = (speckle().astype(np.uint16) + 100) * 4
    windowed = dicom_dataset(pixels, bits=16, stored=12, WindowCenter="910", WindowWidth="1020")
    got = only(save_dicom(tmp_path / "a.dcm", windowed))[0]
    assert difference(got, speckle()) < 1.5
    identity = dicom_dataset(speckle(), WindowCenter="128", WindowWidth="256")
    assert (only(save_dicom(tmp_path / "b.dcm", identity))[0] == speckle()).all()


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless])
@pytest.mark.parametrize("kind", ["grey", "rgb", "frames"])
def test_lossless_compressions_change_nothing(tmp_path, syntax, kind):
    pixels = {"grey": speckle(), "rgb": colour(), "frames": np.stack([speckle(k) for k in range(3)])}[kind]
    ds = dicom_dataset(pixels, "RGB" if kind == "rgb" else "MONOCHROME2")
    ds.compress(syntax)
    path = save_dicom(tmp_path / "a", ds)
    expected = [luminance(pixels)] if kind == "rgb" else [pixels] if kind == "grey" else list(pixels)
    got = only(path, range(len(expected)))
    assert len(got) == len(expected) and all((a == b).all() for a, b in zip(got, expected, strict=True))


def jpeg(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def test_baseline_jpeg_grey_and_ybr_422(tmp_path):
    rgb = np.asarray(Image.fromarray(colour()).resize((80, 64)))
    ds = encapsulated(dicom_dataset(speckle()), [jpeg(speckle())], uid.JPEGBaseline8Bit)
    assert difference(only(save_dicom(tmp_path / "a.dcm", ds))[0], speckle()) < 3
    smooth = np.asarray(Image.fromarray(rgb).resize((10, 8)).resize((80, 64), Image.Resampling.BICUBIC))
    ds = dicom_dataset(smooth, "YBR_FULL_422")
    ds = encapsulated(ds, [jpeg(smooth, subsampling="4:2:2")], uid.JPEGBaseline8Bit)
    assert difference(only(save_dicom(tmp_path / "b.dcm", ds))[0], luminance(smooth)) < 3


def lossless_jpeg(pixels) -> bytes:
    """ITU-T T.81 process 14, predictor 1 (the pixel to the left), every difference category coded in 5 bits."""
    height, width = pixels.shape
    x = pixels.astype(int)
    predicted = np.empty_like(x)
    predicted[:, 1:], predicted[1:, 0], predicted[0, 0] = x[:, :-1], x[:-1, 0], 128
    bits = []
    for d in (x - predicted).ravel().tolist():
        category = abs(d).bit_length()
        bits.append(f"{category:05b}")
        if category:
            bits.append(f"{d if d > 0 else d + (1 << category) - 1:0{category}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    data = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")

    def segment(marker, body):
        return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body

    frame = bytes([8]) + height.to_bytes(2, "big") + width.to_bytes(2, "big") + bytes([1, 1, 0x11, 0])
    table = bytes([0]) + bytes([0, 0, 0, 0, 17] + [0] * 11) + bytes(range(17))
    scan = bytes([1, 1, 0, 1, 0, 0])
    return b"\xff\xd8" + segment(0xC3, frame) + segment(0xC4, table) + segment(0xDA, scan) + data + b"\xff\xd9"


def test_lossless_jpeg(tmp_path):
    stream = lossless_jpeg(speckle())
    ds = encapsulated(dicom_dataset(speckle()), [stream], uid.JPEGLosslessSV1)
    assert (only(save_dicom(tmp_path / "a.dcm", ds))[0] == speckle()).all()


def test_video_in_a_dicom_file(tmp_path):
    pytest.importorskip("av")
    from making_formats import write_clip

    moving = [np.roll(speckle(1), 5 * k, axis=1) for k in range(6)]
    stream = write_clip(tmp_path / "a.mp4", moving, codec="libx264").read_bytes()
    ds = encapsulated(dicom_dataset(np.stack(moving)), [stream + b"\0" * (len(stream) % 2)], uid.MPEG4HP41)
    got = only(save_dicom(tmp_path / "a.dcm", ds), [0, 4])
    assert [int(np.argmin([difference(grey, other) for other in moving])) for grey in got] == [0, 4]


def test_frames_are_read_one_by_one(tmp_path):
    loop = np.stack([speckle(k) for k in range(6)])
    path = save_dicom(tmp_path / "a.dcm", dicom_dataset(loop, FrameTime="40"))
    told = frames.contents_of(path)
    assert (told.count, told.rate) == (6, 25)
    assert all((a == b).all() for a, b in zip(only(path, [1, 4]), loop[[1, 4]], strict=True))


# regions


def scanned(tmp_path, *regions, name="a.dcm"):
    return save_dicom(tmp_path / name, dicom_dataset(speckle(), SequenceOfUltrasoundRegions=list(regions)))


def test_only_the_b_mode_region_is_taken_with_its_spacing(tmp_path):
    told = frames.contents_of(scanned(tmp_path, region(4, 6, 40, 50, spacing_cm=0.02), region(45, 0, 18, 80, form=3)))
    assert told.crops == ["4 6 40 50"] and told.spacing_mm == "0.2 0.2" and told.left_out == ["spectral region"]
    assert (frames.cropped(speckle(), told.crops[0]) == speckle()[4:44, 6:56]).all()


def test_a_dual_image_is_two_images_and_a_region_named_twice_is_one(tmp_path):
    left, right = region(0, 0, 60, 40), region(0, 40, 60, 40)
    assert frames.contents_of(scanned(tmp_path, left, right, left)).crops == ["0 0 60 40", "0 40 60 40"]


def test_colour_over_the_image_is_left_out_unless_asked(tmp_path):
    path = scanned(tmp_path, region(0, 0, 60, 80), region(10, 10, 20, 20, data=2))
    with pytest.raises(ValueError, match="b-mode region under colour Doppler, colour region"):
        frames.contents_of(path)
    assert frames.contents_of(path, regions=("b-mode", "colour")).crops == ["0 0 60 80"]
    beside = scanned(tmp_path, region(0, 0, 60, 40), region(0, 40, 60, 40, data=2), name="b.dcm")
    assert frames.contents_of(beside).crops == ["0 0 60 40"]


def test_without_regions_the_whole_frame_is_taken_and_said(tmp_path):
    told = frames.contents_of(save_dicom(tmp_path / "a.dcm", dicom_dataset(speckle(), PixelSpacing=["0.1", "0.2"])))
    assert told.crops == [""] and told.spacing_mm == "0.1 0.2" and "whole frame" in told.notes[0]


def test_regions_of_a_picture_that_was_resized_are_not_used(tmp_path):
    for name, reaching in (("a.dcm", region(0, 0, 700, 900)), ("b.dcm", region(20, 30, 60, 60))):
        pixels = dicom_dataset(speckle(), SequenceOfUltrasoundRegions=[reaching], PixelSpacing=["0.1", "0.1"])
        told = frames.contents_of(save_dicom(tmp_path / name, pixels))
        assert told.crops == [""] and told.spacing_mm == ""
        assert any("reaches beyond the picture" in note and "whole frame" in note for note in told.notes)
    by_one = frames.contents_of(scanned(tmp_path, region(0, 0, 65, 81), name="c.dcm"))
    assert by_one.crops == [""] and by_one.spacing_mm == "0.2 0.2"
    told = frames.contents_of(scanned(tmp_path, region(0, 0, 4, 4), name="d.dcm"))
    assert any("incomplete or tiny: the whole frame" in note for note in told.notes)


def test_of_an_enhanced_volume_all_slices_are_taken_and_none_of_flow(tmp_path):
    def item(**keys):
        made = pydicom.Dataset()
        for name, value in keys.items():
            setattr(made, name, value)
        return made

    def volume(name, *meanings):
        measures = item(PixelSpacing=["0.3", "0.4"])
        codes = [item(CodeValue=meaning[:3], CodeMeaning=meaning) for meaning in meanings]
        kinds = [item(ImageDataTypeSequence=[item(ImageDataTypeCodeSequence=[code])]) for code in codes]
        ds = dicom_dataset(np.stack([speckle(k) for k in range(3)]), SOPClassUID=dicom.VOLUME_CLASS)
        window = item(WindowCenter="64", WindowWidth="128")
        shared = item(PixelMeasuresSequence=[measures], FrameVOILUTSequence=[window])
        ds.SharedFunctionalGroupsSequence = [shared]
        ds.PerFrameFunctionalGroupsSequence = kinds
        return save_dicom(tmp_path / name, ds)

    told = frames.contents_of(volume("a.dcm", "Tissue Intensity"))
    assert frames.frame_rule("per second").chosen(told) == [0, 1, 2] and told.spacing_mm == "0.3 0.4"
    bright = np.minimum(speckle(1).astype(int) * 2, 255)
    assert difference(only(tmp_path / "a.dcm", [1])[0], bright) < 1.5
    for name, kinds in (("b.dcm", ["Tissue Intensity", "Other"]), ("c.dcm", ["Flow Velocity"])):
        with pytest.raises(ValueError, match="other data than tissue"):
            frames.contents_of(volume(name, *kinds))


def test_a_frame_time_in_seconds_is_no_rate(tmp_path):
    loop = np.stack([speckle(k) for k in range(3)])
    told = frames.contents_of(save_dicom(tmp_path / "a.dcm", dicom_dataset(loop, FrameTime="0.04")))
    assert told.rate is None
    told = frames.contents_of(save_dicom(tmp_path / "b.dcm", dicom_dataset(loop, FrameTime="0.04", CineRate="30")))
    assert told.rate == 30


# what is no ultrasound image


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"SOPClassUID": uid.SecondaryCaptureImageStorage}, "secondary capture"),
        ({"SOPClassUID": uid.BasicTextSRStorage}, "structured report"),
        ({"Modality": "CT"}, "modality CT"),
        ({"SOPClassUID": uid.EncapsulatedPDFStorage}, "document"),
    ],
)
def test_other_objects_are_refused_with_their_reason(tmp_path, tags, reason):
    path = save_dicom(tmp_path / "a.dcm", dicom_dataset(speckle(), **tags))
    with pytest.raises(ValueError, match=reason):
        frames.contents_of(path)


def test_a_file_without_ending_is_known_by_its_content(tmp_path):
    for name in ("IM0001", "1.2.840.113619.2.1"):
        assert frames.kind_of(save_dicom(tmp_path / name, dicom_dataset(speckle()))) == "DICOM"
    (tmp_path / "README").write_text("words")
    assert frames.kind_of(tmp_path / "README") == ""


def test_a_file_without_preamble_is_read(tmp_path):
    ds = dicom_dataset(speckle())
    ds.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    ds["PixelData"].VR = "OW"
    for name in ("a.dcm", "IM0001", "IM0002.US"):
        with open(tmp_path / name, "wb") as file:
            pydicom.filewriter.write_dataset(pydicom.filebase.DicomFileLike(file), bare(ds))
        assert frames.kind_of(tmp_path / name) == "DICOM" and (only(tmp_path / name)[0] == speckle()).all()


def bare(ds):
    plain = pydicom.Dataset({tag: ds[tag] for tag in ds.keys()})
    plain.set_original_encoding(True, True)
    return plain


def test_damaged_and_boastful_files_are_refused_and_quote_no_tag(tmp_path):
    whole = save_dicom(tmp_path / "a.dcm", dicom_dataset(speckle())).read_bytes()
    rng = np.random.default_rng(0)
    for number in range(60):
        data = bytearray(whole[: len(whole) - 2000] if number % 3 == 0 else whole)
        for place in rng.integers(132, 1200, 6):
            data[place] = rng.integers(256)
        path = tmp_path / "b.dcm"
        path.write_bytes(data)
        try:
            frames.contents_of(path)
            only(path)
        except ValueError as error:
            assert not any(word in str(error) for word in PLANTED), error
    path.write_bytes(whole.replace(b"\x02\0\x02\0UI", b"\x02\0\x02\0U\x7f", 1))  # no type of an element
    with pytest.raises(ValueError, match="its header is damaged"):
        frames.contents_of(path)
    huge = dicom_dataset(speckle())
    huge.Rows = huge.Columns = 60000
    with pytest.raises(ValueError, match="over the limit"):
        frames.contents_of(save_dicom(tmp_path / "c.dcm", huge))


def test_a_compressed_frame_larger_than_the_header_says_is_not_decoded(tmp_path):
    large = encapsulated(dicom_dataset(speckle()), [jpeg(speckle(0, 640, 800))], uid.JPEGBaseline8Bit)
    with pytest.raises(ValueError, match="has 800 x 640, its header says 80 x 64"):
        only(save_dicom(tmp_path / "a.dcm", large))


# patients


def test_the_group_is_a_keyed_hash_of_the_patient(tmp_path, monkeypatch):
    def group(name, **tags):
        return frames.contents_of(save_dicom(tmp_path / name, dicom_dataset(speckle(), **tags))).group

    same, other = group("a.dcm"), group("b.dcm", PatientID="PID-4712")
    assert same == group("c.dcm", StudyInstanceUID="1.2.3") and same != other
    assert same.startswith("patient-") and not any(word in same for word in PLANTED)
    assert pseudonyms.key_file().stat().st_mode & 0o077 == 0
    monkeypatch.setenv(pseudonyms.KEY_FILE, str(tmp_path / "another"))
    assert group("a.dcm") != same
    nobody = dicom_dataset(speckle(), patient=False)
    assert frames.contents_of(save_dicom(tmp_path / "d.dcm", nobody)).group == ""


def test_an_id_is_one_however_its_letters_are_written_and_none_where_it_names_nobody(tmp_path):
    def told(name, identity, **tags):
        return frames.contents_of(save_dicom(tmp_path / name, dicom_dataset(speckle(), PatientID=identity, **tags)))

    groups = [told(f"{k}.dcm", identity).group for k, identity in enumerate(("ab 12", "AB12 ", "Ab12"))]
    assert len(set(groups)) == 1
    anonymous = told("4.dcm", "ANONYMOUS", StudyInstanceUID="1.2.3")
    assert anonymous.group != told("5.dcm", "Anonymous", StudyInstanceUID="1.2.4").group
    assert any("names nobody: its study is the group" in note for note in anonymous.notes)
    assert told("6.dcm", "0000", StudyInstanceUID="1.2.3").group == anonymous.group


def archive(root, **patients):
    """Two files of each patient, in a folder by its name: folder -> PatientID."""
    for seed, (folder, identity) in enumerate(patients.items()):
        for number in range(2):
            path = root / folder.replace("__", "/") / f"IM{number}"
            save_dicom(path, dicom_dataset(speckle(10 * seed + number), PatientID=identity))
    return sources.understand(root)


def test_folders_of_one_patient_each_are_no_classes(tmp_path):
    told = archive(tmp_path / "a", berta="P1", carla="P2", dora="P3")
    assert not any(record.label for record in told.records) and len({record.group for record in told.records}) == 3
    assert any("3 first folders holds the files of one patient" in note for note in told.notes)
    assert [kind.what for kind in told.kinds if kind.role == "image"] == ["without a label"]
    Image.fromarray(speckle(9)).save(tmp_path / "a" / "dora" / "still.png")
    told = sources.understand(tmp_path / "a")
    assert len({record.group for record in told.records}) == 3 and len(told.records) == 7
    named = sources.find_source(tmp_path / "a")  # what scripts that pack nothing read
    assert [(r.label, r.group) for r in named] == [(r.label, r.group) for r in told.records]
    for number in range(12):
        Image.fromarray(speckle(20 + number)).save(
            tmp_path / "a" / ("berta", "carla", "dora")[number % 3] / f"{number}.png"
        )
    assert {record.label for record in sources.understand(tmp_path / "a").records} == {"berta", "carla", "dora"}
    told = archive(tmp_path / "b", benign__1="P1", benign__2="P2", malignant__3="P3", malignant__4="P4")
    assert {record.label for record in told.records} == {"benign", "malignant"}
    told = sources.understand(tmp_path / "a", {"folders": "classes"})
    assert {record.label for record in told.records} == {"berta", "carla", "dora"}


def test_a_patient_in_several_folders_is_one_group(tmp_path):
    told = archive(
        tmp_path / "a", benign__study_1="P1", benign__study_2="P1", malignant__study_3="P2", malignant__study_4="P3"
    )
    assert len({record.group for record in told.records}) == 3
    assert any("1 patients lie in several of these folders" in note for note in told.notes)
    for folder in ("study_1", "study_2"):  # a still of the same patient
        Image.fromarray(speckle(9)).save(tmp_path / "a" / "benign" / folder / "still.png")
    told = sources.understand(tmp_path / "a")
    assert len({record.group for record in told.records}) == 3 and len(told.records) == 10
    same = dict.fromkeys(("benign__study_1", "benign__study_2", "malignant__study_3", "malignant__study_4"), "P1")
    told = archive(tmp_path / "b", **same)
    assert len({record.group for record in told.records}) == 4
    assert any("name one patient" in warning for warning in told.warnings)


def test_a_patient_in_two_splits_and_patients_above_classes_are_told(tmp_path):
    told = archive(tmp_path / "a", train__x="P1", train__y="P2", test__x="P2", test__y="P3")
    assert any("1 groups lie in two splits" in warning and "test and train" in warning for warning in told.warnings)
    above = {f"{name}__{kind}": name for name in ("anna", "berta") for kind in ("benign", "malignant")}
    with pytest.raises(ValueError, match="reading.folders=patients where the first are patients"):
        archive(tmp_path / "b", **above)
    told = sources.understand(tmp_path / "b", {"folders": "patients"})
    assert {record.label for record in told.records} == {"benign", "malignant"}
    assert len({record.group for record in told.records}) == 2


def test_ids_that_are_nearly_the_same_are_told(tmp_path):
    told = archive(tmp_path / "a", a="00471-1", b="4711", c="9")
    assert any("1 IDs of patients are written in several ways" in warning for warning in told.warnings)
    assert not archive(tmp_path / "b", a="471", b="4711").warnings


def test_a_path_that_names_the_patient_is_told(tmp_path):
    told = frames.contents_of(save_dicom(tmp_path / "doe_1" / "PID-4711.dcm", dicom_dataset(speckle())))
    assert any("rename it" in note for note in told.notes)


def test_a_dicomdir_is_no_image_and_its_files_are_known(tmp_path):
    from pydicom.fileset import FileSet

    medium = FileSet()
    for seed in range(2):
        series = {"StudyID": "1", "StudyTime": "1200", "SeriesNumber": 1, "SeriesInstanceUID": "1.2.3"}
        medium.add(dicom_dataset(speckle(seed), InstanceNumber=seed, **series))
    medium.write(tmp_path / "medium")
    with pytest.raises(ValueError, match="directory of a medium"):
        frames.contents_of(tmp_path / "medium" / "DICOMDIR")
    named = dicom.directory_files(tmp_path / "medium" / "DICOMDIR")
    assert len(named) == 2 and all((tmp_path / "medium" / name).is_file() for name in named)


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch):
    import sys

    path = save_dicom(tmp_path / "a.dcm", dicom_dataset(speckle()))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match=r"needs the package pydicom: pip install -e \.\[dicom\]"):
        frames.contents_of(path)
