"""Arrays come out of NumPy files and pickles as they went in; a pickle that asks for anything else is refused before it runs."""

import io
import os
import pickle

import numpy as np
import pytest

from vfm4us.data import arrays
from vfm4us.data.masks import read_mask


def saved(content) -> bytes:
    stream = io.BytesIO()
    np.save(stream, content, allow_pickle=True)
    return stream.getvalue()


def structures(dtype=np.uint8, order="C"):
    rng = np.random.default_rng(0)
    return {name: np.asarray(rng.integers(0, 2, (12, 9)), dtype, order=order) for name in arrays.STRUCTURES}


def painted(layers) -> np.ndarray:
    mask = np.zeros((12, 9), np.uint8)
    for name, number in (("liver", 2), ("stomach", 3), ("vein", 4), ("artery", 1)):
        mask[np.asarray(layers[name]) > 0] = number
    return mask


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", ["npy", 0, 2, 3, 4, 5])
def test_structures_are_painted_from_every_way_of_writing_them(dtype, order, protocol):
    layers = structures(dtype, order)
    content = {"image": np.zeros((12, 9)), "structures": layers, "note": "x", "spacing": np.float64(0.3)}
    data = saved(content) if protocol == "npy" else pickle.dumps(content, protocol)
    if protocol == 0:
        data = b"\x80\x02" + data  # protocol 0 has no mark of its own
    np.testing.assert_array_equal(arrays.array_of(data), painted(layers))


def test_plain_arrays_are_class_numbers(tmp_path):
    mask = np.random.default_rng(0).integers(0, 4, (20, 30))
    np.save(tmp_path / "m.npy", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.npy"), mask)
    np.save(tmp_path / "b.npy", 255 * (mask > 1))
    np.testing.assert_array_equal(read_mask(tmp_path / "b.npy"), mask > 1)


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("wrap", [saved, pickle.dumps])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (lambda path: Call(os.system, f"touch {path}"), "system"),
        (lambda path: {"structures": {"liver": Call(os.mkdir, str(path))}}, "mkdir"),
        (lambda path: Call(eval, f"open({str(path)!r}, 'w')"), "eval"),
        (lambda path: Call(np.save, str(path), 0), "save"),
        (lambda path: Call(np.memmap, str(path), np.uint8, "w+", 0, (4,)), "memmap"),
        (lambda path: Call(getattr, np.zeros(2), "tofile"), "getattr"),
    ],
)
def test_a_malicious_pickle_is_refused_and_nothing_of_it_is_run(tmp_path, content, named, wrap):
    path = tmp_path / "run"
    data = wrap(content(path))
    with pytest.raises(ValueError, match=rf"names \S*{named}, which is no part of an array; the file is refused"):
        arrays.array_of(data)
    assert not path.exists()
    (tmp_path / "m.npy").write_bytes(data)
    with pytest.raises(ValueError, match="refused"):
        read_mask(tmp_path / "m.npy")
    assert not path.exists()
    pickle.loads(data) if wrap is pickle.dumps and named == "system" else None  # noqa: S301
    assert path.exists() == (wrap is pickle.dumps and named == "system"), "this pickle does run elsewhere"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (saved({"image": np.zeros((3, 3))}), "has no structures; its keys are image"),
        (saved({"structures": {"heart": np.zeros((3, 3))}}), "unknown structure 'heart'"),
        (saved({"structures": {"liver": np.zeros((3, 3)), "vein": np.zeros((3, 4))}}), "no shape in common"),
        (saved({"structures": {"liver": "x"}}), "'liver' is no array"),
        (saved(np.zeros((3, 3, 3), np.uint8)), r"holds an array uint8 \(3, 3, 3\)"),
        (saved(np.zeros((0, 3), np.uint8)), "holds no array"),
        (saved(np.zeros((3, 3), complex)), "holds an array complex128"),
        (saved(np.array([{}, {}], dtype=object)), "several objects"),
        (saved({"structures": structures()})[:-9], "no array can be read"),
        (pickle.dumps([1, 2]), "a list instead of arrays"),
        (b"\x80\x04garbage", "no array can be read"),
        (b"\x93NUMPY\x01\x00", "no array can be read"),
    ],
)
def test_what_is_no_mask_says_why(data, message):
    with pytest.raises(ValueError, match=message):
        arrays.array_of(data)


@pytest.mark.parametrize("axis", [0, 2])
def test_one_hot_channels_become_class_numbers_and_others_are_refused(tmp_path, axis):
    classes = np.random.default_rng(0).integers(0, 3, (20, 24))
    channels = np.moveaxis(np.eye(3, dtype=np.float32)[classes], 2, axis)
    np.save(tmp_path / "m.npy", channels)
    assert (read_mask(tmp_path / "m.npy") == classes).all()
    np.save(tmp_path / "m.npy", np.minimum(channels + np.roll(channels, 1, axis), 1))  # two classes a pixel
    with pytest.raises(ValueError, match="one channel per class of which each pixel has exactly one"):
        read_mask(tmp_path / "m.npy")
