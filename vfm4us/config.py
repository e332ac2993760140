"""Typed configuration: dataclass defaults, then a YAML file, then `section.key=value` on the command line.

The dataclass is the documentation: `option(default, "meaning, unit")` declares a key, its type, its default and its range.
An unknown key, a wrong type or a value out of range is a ValueError that names the key and the remedy.

A YAML file may build on another: `base: FILE` at its top, named from its own folder, else from configs/, else from the
repository. Sections are joined key by key, and the file goes before its base. A list replaces the list of the base;
`stages: {0: {epochs: 3}}` changes single items of it instead. `key: null` takes a key of the base back to its default.

A config class may say which of its keys have moved: `MOVED: ClassVar = {"old.key": "new.key"}`, keys or whole sections, as seen
from that class. The old name still works in files, on the command line and in run folders; one line says what it is now.
"""

import argparse
import contextlib
import copy
import dataclasses
import difflib
import functools
import math
import re
import reprlib
import types
import typing
from pathlib import Path

from vfm4us import plain_yaml
from vfm4us.command_line import Parser
from vfm4us.log import say

T = typing.TypeVar("T")
Number = int | float

PACKAGE = Path(__file__).resolve().parent
# The folder that holds configs/, scripts/ and the like: the checkout, or what the wheel brings of it.
REPOSITORY = PACKAGE / "shipped" if (PACKAGE / "shipped").is_dir() else PACKAGE.parent
GREATEST_INTEGER = 2**31 - 1  # of a key that names no greatest value
MOST_PARTS = 20  # of a dotted key


NUMBER = re.compile(r"[0-9]{1,6}")  # of an item of a list


class ConfigError(ValueError):
    """A value that a config class does not take; `key` is its dotted name."""

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key


def option(
    default: T,
    doc: str,
    *,
    low: Number | None = None,
    high: Number | None = None,
    choices: typing.Sequence | None = None,
    free: bool = False,
) -> T:
    """A dataclass field with its documentation and range; `free` keys may change when a run is continued."""
    metadata = {"doc": doc, "low": low, "high": high, "choices": choices, "free": free}
    if isinstance(default, (list, dict)) or dataclasses.is_dataclass(default):
        return typing.cast(T, dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata))
    return typing.cast(T, dataclasses.field(default=default, metadata=metadata))


def section(cls: type[T], doc: str, **defaults: typing.Any) -> T:
    """A nested dataclass with all its defaults, or with these instead."""
    made = dataclasses.field(default_factory=lambda: cls(**copy.deepcopy(defaults)), metadata={"doc": doc})
    return typing.cast(T, made)


def parser(doc: str | None, cls: type) -> argparse.ArgumentParser:
    """The command line of a script that is given a `cls`: [--config FILE] [section.key=value ...]; --help lists the keys."""
    result = Parser(doc, epilog="keys, defaults and meaning:\n" + describe(cls))
    result.add_argument("--config", type=Path, help="YAML file; also one of this repository from any working directory")
    result.add_argument("overrides", nargs="*", default=[], metavar="section.key=value")
    return result


def from_command_line(cls: type[T], doc: str | None, built_in: Path, said: str, unless: str = "") -> tuple[T, bool]:
    """The config of a script's command line, and whether it is that of the built-in run.

    Without --config it is the file `built_in`, which `said` announces once every key is known to be right; or the defaults, where
    the key `unless` is given.
    """
    arguments = parser(doc, cls).parse_args()
    alone = arguments.config is None and not (unless and any(o.startswith(f"{unless}=") for o in arguments.overrides))
    settings = load(cls, built_in if alone else arguments.config, arguments.overrides)
    if alone:
        say(said)
    return settings, alone


def from_flags(cls: type[T], doc: str | None, positional: typing.Sequence[str] = ()) -> T:
    """The config of a command line whose keys are flags: `--kid-encoder FILE` is kid_encoder; those in `positional` go without.

    A bool is switched on by its flag; a list takes several words.
    """
    result = Parser(doc)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(typing.cast(typing.Any, cls)):
        hint, about = hints[field.name], {"help": field.metadata["doc"], "choices": field.metadata["choices"]}
        if field.name in positional:
            result.add_argument(field.name, **about)
            continue
        if hint is bool:
            about = {"help": about["help"], "action": "store_true"}
        elif typing.get_origin(hint) is list:
            about |= {"nargs": "*", "type": typing.get_args(hint)[0]}
        else:
            about["type"] = typing.get_args(hint)[0] if typing.get_origin(hint) is types.UnionType else hint
        result.add_argument(f"--{field.name.replace('_', '-')}", default=argparse.SUPPRESS, **about)
    return from_dict(cls, vars(result.parse_args()))


def load(cls: type[T], file: str | Path | None = None, overrides: typing.Sequence[str] = ()) -> T:
    """Build `cls` from its defaults, `file` (YAML, see `find`) and `overrides` such as `stages.0.epochs=3`; the last one counts.

    Raises ValueError that names the file or the item of the command line, and the key.
    """
    values, origins = ({}, {}) if file is None else _read(file, cls)
    for item in overrides:
        key, sign, text = item.partition("=")
        key = _renamed_key(cls, key)
        _override(values, key, sign, text, item)
        origins[key] = f"command line {_shown(item)}"
    try:
        return from_dict(cls, values)
    except ConfigError as error:
        if origin := _origin(error.key, origins):
            raise ConfigError(error.key, f"{origin}: {error}") from error
        raise


def read(file: str | Path, cls: type | None = None) -> dict:
    """The keys and values of a YAML file (see `find`) laid over those of its base, not yet checked.

    With `cls`, each file's moved keys are renamed first, so that a file may use the new name of what its base calls by the old.
    """
    return plain_yaml.plain(_read(file, cls)[0])


def read_plain(file: Path) -> dict:
    """The keys and values of one YAML file as they stand in it, such as the config of a run folder."""
    return plain_yaml.plain(_read_one(file))


def _read(file: str | Path, cls: type | None) -> tuple[dict, dict[str, str]]:
    """The values of a file and its bases, and which file each dotted key comes from."""
    chain, values = [find(file)], []
    while True:
        values.append(_read_one(chain[-1]))
        base = values[-1].get("base")
        if not isinstance(base, str):  # a mapping is a key of that name
            break
        del values[-1]["base"]
        chain.append(_find_base(base, chain))
    result: dict = {}
    origins: dict[str, str] = {}
    for name, keys in zip(reversed(chain), reversed(values), strict=True):
        keys = keys if cls is None else _renamed(cls, keys, f"{name}: ")
        try:
            result = _laid_over(result, keys)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        origins |= dict.fromkeys(_dotted(keys), str(name))
    return result, origins


def _dotted(values: typing.Any, prefix: str = "") -> typing.Iterator[str]:
    """The dotted names of all that `values` hold."""
    if prefix:
        yield prefix
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in pairs:
        yield from _dotted(value, f"{prefix}.{key}" if prefix else str(key))


def _origin(key: str, origins: dict[str, str]) -> str:
    """Where the value of `key` was given: the last of those that name it, a part of it, or what it is part of."""
    part = key
    while part:
        if part in origins:
            return origins[part]
        part = part.rpartition(".")[0]
    return next((o for k, o in reversed(origins.items()) if k.startswith(f"{key}.") or not key), "")


def _find_base(base: str, chain: list[Path]) -> Path:
    """The file that the last of `chain` calls its base. Raises where there is none, or where it is in `chain` already."""
    places = [chain[-1].parent / base, REPOSITORY / "configs" / base, REPOSITORY / base]
    file = None if "\0" in base else next((p for p in places if p.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"config file {chain[-1]}: its base {base} does not exist; looked for {', '.join(map(str, places))}"
        )
    if file.resolve() in [f.resolve() for f in chain]:
        raise ValueError(
            f"config file {chain[-1]}: its base {base} leads back to itself ({' -> '.join(map(str, [*chain, file]))})"
        )
    return file


def _laid_over(under: typing.Any, over: typing.Any) -> typing.Any:
    """`over`, completed by what `under` says: mappings key by key, items of a list by their number, all else replaced."""
    if isinstance(under, dict) and isinstance(over, dict):
        return under | {k: _laid_over(under[k], v) if k in under else v for k, v in over.items()}
    if isinstance(under, list) and isinstance(over, dict) and over and all(NUMBER.fullmatch(str(k)) for k in over):
        result = list(under)
        for place, value in over.items():
            if int(place) >= len(under):
                raise ValueError(
                    f"item {place} of a list is changed, and the base's list has {len(under)}: {_shown(over)}"
                )
            result[int(place)] = _laid_over(under[int(place)], value)
        return result
    return over


def _read_one(file: Path) -> dict:
    if file.exists() and not file.is_file():
        raise ValueError(f"config file {file} is a {'folder' if file.is_dir() else 'device or pipe'}, not a file")
    if not file.exists():
        known = [p.relative_to(REPOSITORY).as_posix() for p in sorted(REPOSITORY.glob("configs/**/*.yaml"))]
        near = difflib.get_close_matches(file.as_posix(), known, n=1) or known
        hint = f" Did you mean {near[0]}?" if len(near) == 1 else f" Configs here: {', '.join(near)}" if near else ""
        raise FileNotFoundError(f"config file {file} does not exist.{hint}")
    if file.stat().st_size > plain_yaml.MOST_BYTES:  # without reading it
        raise ValueError(
            f"{file} is no config: {file.stat().st_size:,} bytes, at most {plain_yaml.MOST_BYTES:,} are read"
        )
    values = plain_yaml.parse(file.read_bytes(), str(file))
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected keys and values at the top level, found {_shown(values)}")
    return values


def find(file: str | Path) -> Path:
    """`file` as it is named, or else below the repository, so that its configs can be named from any working directory."""
    inside = REPOSITORY / file
    return inside if not Path(file).exists() and inside.exists() else Path(file)


def from_dict(cls: type[T], values: dict, where: str = "", defaults: T | None = None) -> T:
    """Build dataclass `cls` from nested plain `values`, checking every key, type and range; moved keys by their old names too.

    What `values` leave out is taken from `defaults`, an instance, where there is one.
    """
    return _built(cls, _renamed(cls, values, f"{where}: " if where else ""), where, defaults)


def _built(cls: type, values: typing.Any, where: str = "", defaults: typing.Any = None) -> typing.Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise ConfigError(where, f"{where or 'config'}: expected keys and values, got {_shown(values)}")
    arguments = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in fields:
            moved = getattr(cls, "MOVED", {})
            near = difflib.get_close_matches(str(key), [*fields, *moved], n=1)
            now = f", which is now {moved[near[0]]!r}" if near and near[0] in moved else ""
            hint = f"did you mean {near[0]!r}{now}?" if near else f"known keys: {', '.join(fields)}"
            raise ConfigError(name, f"unknown config key {_shown(name)}: {hint}")
        default = _own_default(fields[key]) if dataclasses.is_dataclass(hints[key]) else None
        arguments[key] = _convert(value, hints[key], name, default)
        _check_range(arguments[key], fields[key].metadata, name)
    try:
        return dataclasses.replace(defaults, **arguments) if defaults is not None else cls(**arguments)
    except TypeError as error:  # a key without default is missing
        raise ConfigError(where, f"{where or 'config'}: {error}") from error


def _own_default(field: dataclasses.Field) -> typing.Any:
    """A new instance of a section, as its field makes it; None for one that must be given."""
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def to_dict(config: typing.Any) -> dict:
    """Nested plain types of a dataclass, fit for YAML, JSON and checkpoints."""
    return dataclasses.asdict(config)


def changed_keys(old: dict, new: typing.Any, prefix: str = "", defaults: typing.Any = None) -> list[str]:
    """`key: old -> new` for each key of dataclass `new` that differs from plain `old`, leaving out the free ones.

    A key that `old` does not have, because its run is older than the key, had the default; a moved one is known by its old name.
    """
    kind: type = type(new)
    if not prefix:
        old = _renamed(kind, old, "the earlier run: ")
    rows, defaults = [], defaults or kind()
    for field in dataclasses.fields(new):
        name, value, free = prefix + field.name, getattr(new, field.name), field.metadata.get("free", False)
        default = getattr(defaults, field.name)
        before = old.get(field.name, _plain(default))
        if dataclasses.is_dataclass(value) and isinstance(before, dict):
            rows += changed_keys(before, value, name + ".", default)
        elif not free and field.name in _sections(kind) and len(value) == len(before):
            for place, (item, its_own) in enumerate(zip(before, value, strict=True)):
                rows += changed_keys(item, its_own, f"{name}.{place}.", type(its_own)())
        elif not free and before != (now := _plain(value)):
            rows.append(f"{name}: {before!r} -> {now!r}")
    return rows


def describe(cls: type, prefix: str = "", defaults: typing.Any = None) -> str:
    """One line per key: name, default, meaning; the text that --help prints. Sections come last."""
    lines = []
    for field in sorted(dataclasses.fields(cls), key=lambda f: "low" not in f.metadata):  # a section has no range
        hint: typing.Any = typing.get_type_hints(cls)[field.name]
        doc = field.metadata.get("doc", "")
        if dataclasses.is_dataclass(hint):
            standard = _own_default(field)
            lines += [
                f"\n  {prefix}{field.name}: {doc}",
                describe(typing.cast(type, hint), f"{prefix}{field.name}.", standard),
            ]
        elif typing.get_origin(hint) is list and dataclasses.is_dataclass(typing.get_args(hint)[0]):
            lines += [f"\n  {prefix}{field.name}: list; {doc}"]
            lines += [describe(typing.get_args(hint)[0], f"{prefix}{field.name}.0.")]
        else:
            default = "(required)" if field.default is dataclasses.MISSING else repr(field.default)
            if field.default_factory is not dataclasses.MISSING:
                default = repr(field.default_factory())
            if defaults is not None:
                default = repr(getattr(defaults, field.name))
            choices = field.metadata.get("choices")
            doc += f" [{' | '.join(map(str, choices))}]" if choices else ""
            lines.append(f"    {prefix + field.name + ' = ' + default:<44} {doc}")
    return "\n".join(lines)


def renamed(cls: type, values: dict) -> dict:
    """`values` with every moved key of `cls` and of its sections under its new name; says which, once per program."""
    return _renamed(cls, values)


def _renamed(cls: type, values: typing.Any, where: str = "", prefix: str = "") -> typing.Any:
    if not isinstance(values, dict):
        return values
    values, said = dict(values), []
    for old, new in getattr(cls, "MOVED", {}).items():
        if (value := _taken(values, old.split("."))) is not _ABSENT:
            _put(values, new.split("."), value, f"{where}{prefix}{old} is now {prefix}{new}")
            said.append(f"{prefix}{old} is now {prefix}{new}")
    if said and (line := f"{where}{', '.join(said)}: the old name still works") not in _said:
        _said.add(line)
        say(line)
    for key, inner in _sections(cls).items():
        if isinstance(values.get(key), dict):
            values[key] = _renamed(inner, values[key], where, f"{prefix}{key}.")
        elif isinstance(values.get(key), list):
            values[key] = [_renamed(inner, v, where, f"{prefix}{key}.{i}.") for i, v in enumerate(values[key])]
    return values


_ABSENT = object()
_said: set[str] = set()


@functools.cache
def _sections(cls: type) -> dict[str, type]:
    """The keys of a config class that hold a config class, or a list of one."""
    result: dict[str, type] = {}
    for key, hint in typing.get_type_hints(cls).items():
        inner = typing.get_args(hint)[0] if typing.get_origin(hint) is list else hint
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            result[key] = inner
    return result


def _renamed_key(cls: type, key: str) -> str:
    """`key` of the command line, or what it is called now."""
    for old, new in getattr(cls, "MOVED", {}).items():
        if key == old or key.startswith(f"{old}."):
            if (line := f"{old} is now {new}: the old name still works") not in _said:
                _said.add(line)
                say(line)
            return _renamed_key(cls, new + key[len(old) :])
    first, dot, rest = key.partition(".")
    number, second, after = rest.partition(".")
    inner = _sections(cls).get(first)
    if inner is None or not rest:
        return key
    if number.isdigit():
        return f"{first}.{number}{second}{_renamed_key(inner, after)}" if after else key
    return f"{first}.{_renamed_key(inner, rest)}"


def _taken(values: dict, parts: list[str]) -> typing.Any:
    """What `values` hold under `parts`, taken out of them, or _ABSENT; a section that is left empty goes too."""
    first, *rest = parts
    if first not in values:
        return _ABSENT
    if not rest:
        return values.pop(first)
    if not isinstance(values[first], dict):
        return _ABSENT
    values[first] = dict(values[first])
    inner = _taken(values[first], rest)
    if inner is not _ABSENT and not values[first]:
        del values[first]
    return inner


def _put(values: dict, parts: list[str], value: typing.Any, moved: str) -> None:
    """Write `value` under `parts`; sections are joined. ValueError, beginning with `moved`, where another value is there."""
    first, *rest = parts
    present = values.get(first, _ABSENT)
    if rest:
        values[first] = dict(present) if isinstance(present, dict) else {}
        _put(values[first], rest, value, moved)
    elif isinstance(present, dict) and isinstance(value, dict):
        values[first] = dict(present)
        for key, inner in value.items():
            _put(values[first], [key], inner, moved)
    elif present is _ABSENT or present == value:
        values[first] = value
    else:
        raise ValueError(
            f"{moved}, and both are given, as {_shown(value)} and {_shown(present)}: leave the old one out"
        )


def override(values: dict, item: str) -> None:
    """Write `section.key=value` of a command line into `values`."""
    _override(values, *item.partition("="), item)


def _override(values: dict, key: str, sign: str, text: str, item: str) -> None:
    shown = f"command line {_shown(item)}"
    if not sign or not key:
        raise ValueError(f"{shown} is not of the form section.key=value")
    value = plain_yaml.parse(text, shown, comments=False) if text else ""
    node: typing.Any = values
    parts = key.split(".")
    if len(parts) > MOST_PARTS:
        raise ValueError(f"{shown}: a key of {len(parts)} parts; none has more than {MOST_PARTS}")
    for depth, part in enumerate(parts[:-1]):
        if isinstance(node, list):
            node = node[_index(part, node, shown)]
        elif isinstance(node, dict) and isinstance(node.get(part), (dict, list)):
            node = node[part]
        elif isinstance(node, dict) and node.get(part) is None and not parts[depth + 1].isdigit():
            node[part] = node = {}
        else:
            near = difflib.get_close_matches(part, map(str, node), n=1) if isinstance(node, dict) else []
            raise ValueError(
                f"{shown}: {_shown('.'.join(parts[: depth + 1]))} is no section of the config in use"
                + (f": did you mean {near[0]!r}?" if near and near[0] != part else "")
            )
    if isinstance(node, list):
        node[_index(parts[-1], node, shown)] = value
    elif isinstance(node, dict):
        near = difflib.get_close_matches(parts[-1], map(str, node), n=1)
        if value is None and near and parts[-1] not in node:  # in a free dict nobody else would notice
            raise ValueError(f"{shown}: there is no {_shown(parts[-1])} to leave out: did you mean {near[0]!r}?")
        node[parts[-1]] = value
    else:
        raise ValueError(f"{shown}: {_shown('.'.join(parts[:-1]))} is no section of the config in use")


def _index(part: str, items: list, shown: str) -> int:
    if not items:
        raise ValueError(f"{shown}: {_shown(part)} would be an item of a list that is empty: give the whole list")
    if not NUMBER.fullmatch(part) or len(part) > 9 or int(part) >= len(items):
        raise ValueError(
            f"{shown}: there is no item {_shown(part)}: the list has {len(items)}, counted from 0; to add one give it whole"
        )
    return int(part)


def _convert(value: typing.Any, hint: typing.Any, name: str, defaults: typing.Any = None) -> typing.Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return _built(typing.cast(type, hint), {} if value is None else value, name, defaults)
    if origin is list:
        if not isinstance(value, list):
            raise ConfigError(name, f"{name}: expected a list, e.g. {name}=[{_shown(value)}], got {_shown(value)}")
        item = typing.get_args(hint)[0]
        kept = [
            (i, v) for i, v in enumerate(value) if v is not None or not dataclasses.is_dataclass(item)
        ]  # null leaves it out
        return [_convert(v, item, f"{name}.{i}") for i, v in kept]
    if origin is types.UnionType:
        return None if value is None else _convert(value, typing.get_args(hint)[0], name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and (number or isinstance(value, str)):  # text: 1e-4 of a file that was written by other means
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    elif hint is str and number:
        return plain_yaml.written(value)  # a folder may be called 2024, a dataset 1.10
    elif hint is int and number and isinstance(value, int):
        return int(value)
    elif hint is str and isinstance(value, str):
        if control := re.search(r"[\0-\x08\x0b-\x1f\x7f\ud800-\udfff]", value):
            raise ConfigError(name, f"{name}: {_shown(value)} holds a character that no name has: {control[0]!r}")
        # a shell writes the home folder out behind a space, not behind data.path= or in a file
        return str(Path(value).expanduser()) if value.startswith("~/") else value
    elif type(value) is hint:
        return plain_yaml.plain(value)
    raise ConfigError(
        name, f"{name}: expected {_WANTED.get(hint, hint.__name__)}, got {_shown(value)} ({_kind(value)})"
    )


def _kind(value: typing.Any) -> str:
    return "nothing" if value is None else next(t for t in (*type(value).mro(),) if t in _KINDS).__name__


_WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_KINDS = (bool, int, float, str, list, dict, object)


def _shown(value: typing.Any) -> str:
    """`value` as Python writes it, shortened to a line."""
    return _short.repr(plain_yaml.plain(value))


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 160
_short.maxlist = _short.maxdict = 8
_short.maxlevel = 3


def _check_range(value: typing.Any, metadata: typing.Mapping, name: str) -> None:
    """The limits of a key hold for each item of a list."""
    low, high, choices = (metadata.get(k) for k in ("low", "high", "choices"))
    if isinstance(value, list):
        for place, item in enumerate(value):
            _check_range(item, metadata, f"{name}.{place}")
        return
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            name, f"{name}: {_shown(value)} is not one of {', '.join(str(c) or repr(c) for c in choices)}{hint}"
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(name, f"{name}: {value} is not a finite number")
    if isinstance(value, int) and high is None:
        high = GREATEST_INTEGER
        low = -high if low is None else low
    if low is not None and value < low:
        raise ConfigError(name, f"{name}: {_shown(value)} is below the least allowed value {low!r}")
    if high is not None and value > high:
        raise ConfigError(name, f"{name}: {_shown(value)} is above the greatest allowed value {high!r}")


def _plain(value: typing.Any) -> typing.Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(v) for v in value] if isinstance(value, list) else value
