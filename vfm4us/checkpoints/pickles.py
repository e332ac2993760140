"""What a pickle would do, found out without doing it: each name it calls, each tensor it makes.

torch's reader that runs no code still calls what it knows: `bytearray(10**10)` or a tensor of 10^10 numbers out of 500 bytes.
So a pickle is gone through first, instruction by instruction, on a stack that holds plain values and the shapes of the rest.
"""

import collections
import math
import pickletools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import torch

INSTRUCTIONS = 2_000_000  # a checkpoint with its optimizer has some 100,000
DEPTH = 200  # of marks within marks: containers in the making
NAMES = 2_000  # foreign classes
SPREAD = 512 * 2**20  # bytes that tensors may take in memory beyond the file's, by repeating numbers (stride 0)

# Everything a checkpoint of tensors calls, or names within a storage.
CALLED = {
    "collections.OrderedDict",
    "collections.Counter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
    "torch.Size",
    "torch.device",
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.set",
    "builtins.complex",
}
TENSORS_MADE = {name for name in CALLED if "_rebuild_tensor" in name}
OTHER_TENSORS = (  # in a name -> what it makes
    ("sparse", "a sparse tensor"),
    ("_get_layout", "a sparse tensor"),
    ("nested", "a nested tensor"),
    ("meta_tensor", "a tensor without numbers (device meta)"),
    ("qtensor", "a quantised tensor"),
    ("per_tensor_", "a quantised tensor"),
    ("per_channel_", "a quantised tensor"),
    ("wrapper_subclass", "a tensor of a special class"),
    ("DTensor", "a distributed tensor"),
    ("device_mesh", "a distributed tensor"),
    ("_rebuild_device_tensor", "a tensor of another device"),
    ("_rebuild_from_type", "a tensor with Python attributes"),
)
# What training frameworks leave in checkpoints: configurations, numbers and paths. Only their names count here, none of
# them is imported or called.
_DICTS = re.compile(
    r"(collections\.defaultdict|builtins\.dict|(yacs|ml_collections|easydict|addict|mmcv|mmengine)\..+"
    r"|(pytorch_lightning|lightning|lightning_fabric)\..*AttributeDict)$"
)
_OBJECTS = re.compile(
    r"(argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w+|datetime\.\w+|typing\.Any|copyreg\._reconstructor"
    r"|builtins\.(list|tuple|int|float|str|bool|bytes|object)"
    r"|(numpy|omegaconf|pytorch_lightning|lightning|lightning_fabric)\..+)$"
)
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg", "exceptions": "builtins"}


class Inert:
    """Stands for an object that a training framework left in a checkpoint: takes anything, does nothing, keeps plain values."""

    said: dict | None = None

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.said = state if isinstance(state, dict) else None


class InertDict:
    """The same for a kind of dict, as torch fills no other types with items."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return collections.OrderedDict()


def stand_ins(foreign: Iterable[str]) -> list[tuple[type, str]]:
    """For `torch.serialization.safe_globals`: what stands for each of these names."""
    return [(InertDict if _DICTS.match(name) else Inert, name) for name in sorted(foreign)]


class _Named(NamedTuple):
    name: str


class _Storage(NamedTuple):
    key: str
    bytes: int
    width: int  # bytes of a number


_TENSOR = object()  # stands for a tensor on the stack
_WIDTHS = {  # bytes of a number, by the name of its storage
    f"{module}{name}Storage": width
    for module in ("torch.", "torch.cuda.")
    for width, kinds in {
        1: ("Byte", "Char", "Bool", "Untyped"),
        2: ("Half", "BFloat16", "Short"),
        4: ("Float", "Int"),
        8: ("Double", "Long", "ComplexFloat"),
        16: ("ComplexDouble",),
    }.items()
    for name in kinds
} | {"torch.storage.UntypedStorage": 1}


def _dtype(name: str) -> torch.dtype | None:
    kind = getattr(torch, name.removeprefix("torch."), None) if name.count(".") == 1 else None
    return kind if isinstance(kind, torch.dtype) else None


@dataclass
class Findings:
    """What a pickle holds: the classes that need a stand-in, the bytes of each storage, and the value if it is a plain one."""

    foreign: set[str] = field(default_factory=set)
    storages: dict[str, int] = field(default_factory=dict)
    value: Any = None


def examine(stream: BinaryIO, limit: int | None = None) -> Findings:
    """Go through one pickle; ValueError for what a checkpoint of tensors has no need of, and for more than the file warrants."""
    return _Machine().run(stream, limit)


class _Machine:
    """The stack of the reader, with `None` for every value that does not matter."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.findings = Findings()
        self.spread = 0

    def run(self, stream: BinaryIO, limit: int | None) -> Findings:
        begin, instructions = stream.tell(), pickletools.genops(stream)
        for count, (code, value, place) in enumerate(instructions):
            if count > INSTRUCTIONS or (limit and place is not None and place - begin > limit):
                raise ValueError(
                    f"its keys and numbers take more than {INSTRUCTIONS} instructions: it is no checkpoint"
                )
            if code.name in _PLAIN:
                self.stack.append(value)
            elif code.name in _MADE:
                self.stack.append(_MADE[code.name])
            elif code.name in _STEPS:
                _STEPS[code.name](self, value)
            elif code.name not in ("PROTO", "STOP"):
                self._refuse_protocol(code.name, instructions)
        self.findings.value = self.stack[-1] if self.stack else None
        return self.findings

    def _refuse_protocol(self, first: str, instructions: Iterable) -> None:
        """ValueError for an instruction that torch.save does not write, or for a name that the rest of the pickle calls."""
        texts: list[str] = []
        for code, value, _ in instructions:
            if code.name in ("GLOBAL", "INST"):
                self._global(value)
            elif code.name == "STACK_GLOBAL" and len(texts) > 1:
                self._name(".".join(texts[-2:]))
            elif isinstance(value, str):
                texts = [*texts[-1:], value]
        raise ValueError(
            f"its pickle uses the instruction {first}, which torch.save does not write: save its tensors again where it was "
            "made, torch.save(state, FILE)"
        )

    # ---- names and calls -----------------------------------------------------------------------------------------

    def _global(self, value: str) -> None:
        module, _, name = value.partition(" ")
        self._name(f"{_PYTHON_2.get(module, module)}.{name}")

    def _name(self, name: str) -> None:
        self.stack.append(_Named(name))
        if name in CALLED or name in _WIDTHS or _dtype(name):
            return
        for part, kind in OTHER_TENSORS:
            if name.startswith("torch") and part in name:
                raise ValueError(
                    f"it holds {kind} ({name}): save plain tensors, value.to_dense() or value.float().cpu()"
                )
        if _DICTS.match(name) or _OBJECTS.match(name):
            self.findings.foreign.add(name)
            if len(self.findings.foreign) > NAMES:
                raise ValueError(f"it names more than {NAMES} classes: it is no checkpoint of tensors")
            return
        if name.startswith(("torch.nn.", "torchvision.", "timm.", "segmentation_models_pytorch.", "monai.")):
            raise ValueError(
                f"it holds a whole model as an object ({name}), and reading that would call its code: save its tensors where "
                "it was made, torch.save(model.state_dict(), FILE)"
            )
        raise ValueError(
            f"reading it would call {name}, which a checkpoint of tensors has no need of. If you trust the file, save the "
            "tensors alone where it was made: torch.save({'state_dict': model.state_dict()}, FILE)"
        )

    def _reduce(self, _: Any) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        self.stack.append(self._call(called, arguments))

    def _call(self, called: Any, arguments: Any) -> Any:
        if not isinstance(called, _Named):
            raise ValueError("its pickle calls what it has made itself")
        if called.name in self.findings.foreign:
            return None
        if called.name not in CALLED:
            raise ValueError(f"reading it would call {called.name}, which a checkpoint of tensors has no need of")
        arguments = arguments if isinstance(arguments, tuple) else ()
        if called.name in TENSORS_MADE:
            self._tensor(arguments)
            return _TENSOR
        if "_rebuild_parameter" in called.name or called.name.endswith("Parameter"):
            return _TENSOR
        if called.name == "builtins.bytearray" and any(isinstance(a, int) for a in arguments):
            raise ValueError(f"reading it would make a bytearray of {arguments[0]} bytes")
        if called.name == "_codecs.encode" and (len(arguments) < 2 or arguments[1] not in ("latin1", "latin-1")):
            raise ValueError(f"it holds a text in the encoding {arguments[1:2]}, which torch.save does not write")
        return None

    def _build(self, _: Any) -> None:
        self.stack.pop()
        if self.stack[-1] is _TENSOR:
            raise ValueError("it changes a tensor after making it, as torch.save does not")

    # ---- storages and tensors ------------------------------------------------------------------------------------

    def _persistent(self, _: Any) -> None:
        value = self.stack.pop()
        if isinstance(value, tuple) and len(value) >= 5 and isinstance(value[1], _Named):
            _, kind, key, _, count = value[:5]
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ValueError(f"it declares a storage of {count} numbers")
            width = _WIDTHS.get(kind.name, 1)
            storage = _Storage(str(key), count * width, width)
            self.findings.storages[storage.key] = max(storage.bytes, self.findings.storages.get(storage.key, 0))
            value = storage
        self.stack.append(value)

    def _tensor(self, arguments: tuple) -> None:
        """A tensor must lie within its storage, and only a bounded part of all may repeat numbers."""
        storage, offset, size, stride = (*arguments, None, None, None, None)[:4]
        if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise ValueError("it makes a tensor of something that is no storage")
        if (
            not all(isinstance(n, int) and 0 <= n < 2**48 for n in (offset, *size, *stride))
            or len(size) != len(stride)
            or len(size) > 16
        ):
            raise ValueError(f"it declares a tensor of shape {size} and strides {stride}")
        kinds = [kind for a in arguments if isinstance(a, _Named) and (kind := _dtype(a.name))]
        width = kinds[0].itemsize if kinds else storage.width
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if count else 0
        if last * width > storage.bytes:
            raise ValueError(
                f"it declares a tensor of shape {size} that reaches beyond its storage of {storage.bytes} bytes"
            )
        self.spread += max(0, count * width - storage.bytes)
        if self.spread > SPREAD:
            raise ValueError(
                f"its tensors repeat numbers (stride 0), and would take {self.spread / 2**20:.0f} MB more in memory than in "
                "the file: save them with value.contiguous()"
            )

    # ---- containers ----------------------------------------------------------------------------------------------

    def _mark(self, _: Any) -> None:
        if len(self.marks) >= DEPTH:
            raise ValueError("it is nested too deeply for a checkpoint")
        self.marks.append(self.stack)
        self.stack = []

    def _to_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _tuple(self, _: Any) -> None:
        items = self._to_mark()
        self.stack.append(tuple(items))

    def _fill(self, _: Any) -> None:
        self._to_mark()

    def _append(self, _: Any) -> None:
        self.stack.pop()

    def _set(self, _: Any) -> None:
        del self.stack[-2:]

    def _tuple1(self, _: Any) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _put(self, value: int) -> None:
        self.memo[value] = self.stack[-1]

    def _get(self, value: int) -> None:
        self.stack.append(self.memo[value])


_PLAIN = {"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"}
_MADE = {
    "NONE": None,
    "NEWFALSE": False,
    "NEWTRUE": True,
    "EMPTY_TUPLE": (),
    "EMPTY_LIST": None,
    "EMPTY_DICT": None,
    "EMPTY_SET": None,
}
_STEPS: dict[str, Any] = {
    "GLOBAL": _Machine._global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._reduce,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
    "MARK": _Machine._mark,
    "TUPLE": _Machine._tuple,
    "TUPLE1": _Machine._tuple1,
    "TUPLE2": _Machine._tuple2,
    "TUPLE3": _Machine._tuple3,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._fill,
    "SETITEM": _Machine._set,
    "SETITEMS": _Machine._fill,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
}
