"""Masks that lie in NumPy files: class numbers, or pickled structures, read without running anything in the file.

A pickle is a program. `_Unpickler` knows a handful of names, all of them written here; no name of NumPy or of Python itself is
ever called on a file's behalf, and any other name is refused.
"""

import io
import pickle

import numpy as np

NPY_MAGIC, PICKLE_MAGIC = b"\x93NUMPY", b"\x80"
# Fetal abdominal structures (Mendeley 4gcpm9dsc3): class 1 to 4 in this order, painted in the order of PAINTED: where two
# overlap, which is rare, the smaller one lies on top.
STRUCTURES = ("artery", "liver", "stomach", "vein")
PAINTED = ("liver", "stomach", "vein", "artery")
MAXIMUM_ITEMS = 64_000_000  # of one array


def is_array_file(data: bytes) -> bool:
    """Whether the bytes begin as an .npy file or a pickle does; nothing of them is read further."""
    return data.startswith((NPY_MAGIC, PICKLE_MAGIC))


def array_of(data: bytes) -> np.ndarray:
    """The array (H, W) of an .npy file: whole numbers, fractions or booleans; class numbers of one-hot channels, and of a pickled
    dict of `structures`.

    Raises ValueError for a pickle that names anything but NumPy arrays, for another content, and for damaged files.
    """
    content = _content(data)
    if isinstance(content, dict):
        return _painted(content)
    if not isinstance(content, np.ndarray) or not content.size:
        raise ValueError("holds no array")
    content = (
        content.reshape([n for n in content.shape if n != 1]) if content.ndim == 3 and 1 in content.shape else content
    )
    if content.ndim == 3:
        content = _one_hot(content)
    if content.ndim != 2 or content.dtype.kind not in "biuf":
        raise ValueError(
            f"holds an array {content.dtype} {content.shape}; expected numbers (H, W), or one channel per class of which each "
            "pixel has exactly one"
        )
    return content


def _one_hot(content: np.ndarray) -> np.ndarray:
    """Class numbers (H, W) of one channel per class, first or last, of which each pixel has exactly one; else what was given."""
    if content.dtype.kind in "biuf" and ((content == 0) | (content == 1)).all():
        axes = [axis for axis in (0, 2) if content.shape[axis] < 256 and (content.sum(axis, dtype=float) == 1).all()]
        if len(axes) == 1:
            return content.argmax(axes[0]).astype(np.uint8)
    return content


def _content(data: bytes):
    try:
        if not data.startswith(NPY_MAGIC):
            return _plain(_Unpickler(io.BytesIO(data)).load())
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        if not read_header(stream)[2].hasobject:
            return np.load(io.BytesIO(data), allow_pickle=False)
        return _plain(_Unpickler(stream).load())
    except (MemoryError, RecursionError) as error:
        raise ValueError("is too large or too deep for a mask") from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise ValueError(
            f"no array can be read from it: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error


def _painted(content: dict) -> np.ndarray:
    structures = content.get("structures")
    if not isinstance(structures, dict) or not structures:
        raise ValueError(f"has no structures; its keys are {', '.join(map(str, content)) or 'none'}")
    if strange := sorted(str(name) for name in structures if name not in STRUCTURES):
        raise ValueError(f"unknown structure {strange[0]!r}; known: {', '.join(STRUCTURES)}")
    if wrong := [k for k, v in structures.items() if not isinstance(v, np.ndarray) or v.ndim != 2]:
        raise ValueError(f"structure {wrong[0]!r} is no array (H, W)")
    if len(shapes := {layer.shape for layer in structures.values()}) > 1 or 0 in next(iter(shapes)):
        raise ValueError(f"its structures have no shape in common: {', '.join(map(str, sorted(shapes)))}")
    mask = np.zeros(shapes.pop(), np.uint8)
    for name in PAINTED:
        if name in structures:
            mask[structures[name] > 0] = 1 + STRUCTURES.index(name)
    return mask


# ---- what a pickle may call ------------------------------------------------------------------------------------------


class _Dtype:
    """Stands for numpy.dtype: numbers and booleans of a fixed width, and the `O` of an array that holds a dict."""

    def __init__(self, name, *_):
        self.dtype = None if name in ("O", "O8", "|O") else np.dtype(str(name))
        if self.dtype is not None and self.dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"an array of {name}")

    def __setstate__(self, state):
        if self.dtype is not None and isinstance(state, tuple) and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray while it is unpickled; `value` is the array, or the one object of a 0-d object array."""

    value = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        if isinstance(data, list):  # of objects
            if len(data) != 1 or shape not in ((), (1,)):
                raise pickle.UnpicklingError("an array of several objects")
            self.value = data[0]
        else:
            self.value = _numbers(data, dtype, shape, "F" if fortran else "C")


def _numbers(data, dtype, shape, order) -> np.ndarray:
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Dtype) or dtype.dtype is None:
        raise pickle.UnpicklingError("an array that is not of numbers")
    if len(data) > MAXIMUM_ITEMS * dtype.dtype.itemsize:
        raise pickle.UnpicklingError(f"an array of more than {MAXIMUM_ITEMS} numbers")
    return np.frombuffer(bytes(data), dtype.dtype).reshape(shape, order=order)


def _reconstruct(*_):
    return _Array()


def _scalar(dtype, data):
    return _numbers(data, dtype, (1,), "C")[0].item()


def _encode(text, encoding):
    if encoding != "latin1" or not isinstance(text, str):  # how protocols 0 to 2 write bytes
        raise pickle.UnpicklingError(f"_codecs.encode with {encoding!r}")
    return text.encode("latin1")


ALLOWED = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype, ("_codecs", "encode"): _encode} | {
    (f"numpy.{core}.{module}", name): stand_in
    for core in ("core", "_core")
    for module, name, stand_in in (
        ("multiarray", "_reconstruct", _reconstruct),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _numbers),
    )
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which is no part of an array; the file is refused, nothing of it was run"
            ) from None


def _plain(value):
    """Arrays and dicts with the stand-ins taken out."""
    if isinstance(value, _Array):
        return _plain(value.value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, str | int | float | type(None)):
        return value
    raise pickle.UnpicklingError(f"a {type(value).__name__.lstrip('_')} instead of arrays")
