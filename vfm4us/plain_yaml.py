"""YAML text to plain values: mappings, lists, text, numbers, booleans, null; anything else is an error that names its line.

Stricter than YAML 1.1 where that misreads in silence: a key that stands twice is an error, dates and `1:30` and `007` stay text,
`1e-4` is a number, `on` as a key is text. Bounded: size, depth and the number of values with all aliases written out.
"""

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import yaml

MOST_BYTES, MOST_DEPTH, MOST_VALUES, MOST_DIGITS = 2**18, 30, 20_000, 40
TAG = "tag:yaml.org,2002:"
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)")
NUMBER = re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
SPECIAL = re.compile(r"([-+]?)\.(inf|nan)", re.IGNORECASE)
WORDS = {
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
    **dict.fromkeys(("null", "~", ""), None),
}


PLAIN = "plain"  # a scalar without quotes and without a tag


class _Loader(yaml.SafeLoader):
    """Guesses no types: what a scalar without quotes is, `_plain_scalar` says."""

    yaml_implicit_resolvers: ClassVar[dict[str, list]] = {}  # type: ignore[misc]

    def resolve(self, kind: type, value: str | None, implicit: Any) -> str:
        return PLAIN if kind is yaml.ScalarNode and implicit[0] else super().resolve(kind, value, implicit)


class WrittenInt(int):
    """A whole number, and how it was written where that is not how Python writes it: 1_000, 0x10."""

    text: str


class WrittenFloat(float):
    """A number, and how it was written where that is not how Python writes it: 1e3, 1.10."""

    text: str


def parse(text: str | bytes, name: str, *, comments: bool = True) -> Any:
    """The value of one YAML document. Raises ValueError that begins with `name` and gives the line.

    Without `comments`, what would be one is an error: on a command line `data.path=set #2` means all of it.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"{name} is no config: {len(text):,} bytes, and at most {MOST_BYTES:,} are read")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name} is not text in UTF-8 (byte {error.start}: 0x{text[error.start]:02x}); save it as UTF-8"
            ) from error
    try:
        _check_size(text)
        node = yaml.compose(text, _Loader)
        if not comments and text[node.end_mark.index if node else 0 :].strip():
            raise yaml.MarkedYAMLError(problem="what follows # would be left out: put the value in quotes")
        return None if node is None else _value(node, [0], [])
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        why = ", ".join(s for s in (error.context, error.problem) if s)
        raise ValueError(f"{name} is not valid YAML: {line}{why}") from error
    except yaml.YAMLError as error:  # a character that no text file holds
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error


def written(value: Any) -> str:
    """A number as it stands in the file."""
    return getattr(value, "text", None) or str(value)


def plain(value: Any) -> Any:
    """`value` without the memory of how its numbers were written."""
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return int(value) if isinstance(value, WrittenInt) else float(value) if isinstance(value, WrittenFloat) else value


def _check_size(text: str) -> None:
    depth = 0
    for number, event in enumerate(yaml.parse(text, _Loader)):  # a loop, not a recursion
        if number > 2 * MOST_VALUES:
            raise _problem(f"more than {MOST_VALUES:,} values", event)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise _problem(f"more than {MOST_DEPTH} values within one another", event)


def _problem(why: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=why, problem_mark=at.start_mark)


def _value(node: yaml.Node, count: list[int], around: list[yaml.Node]) -> Any:
    """The plain value of `node`; `count` counts the values so far, aliases written out; `around` are the nodes it lies in."""
    count[0] += 1
    if count[0] > MOST_VALUES:
        raise _problem(f"more than {MOST_VALUES:,} values, aliases written out", node)
    if node in around:
        raise _problem("an alias that holds itself", node)
    if len(around) > MOST_DEPTH:
        raise _problem(f"more than {MOST_DEPTH} values within one another", node)
    kind, inside = node.tag.removeprefix(TAG), [*around, node]
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_value(item, count, inside) for item in node.value]
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _mapping(node, count, inside)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, kind)
    raise _problem(f"the tag {_shown(node.tag)} is not one for configs", node)


def _shown(tag: str) -> str:
    return f"!!{tag.removeprefix(TAG)}" if tag.startswith(TAG) else tag


def _mapping(node: yaml.MappingNode, count: list[int], inside: list[yaml.Node]) -> dict:
    result: dict[Any, Any] = {}
    lines: dict[Any, int] = {}
    merged: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        if key_node.tag == PLAIN and key_node.value == "<<":
            for part in _merged(value_node, count, inside):
                merged = part | merged
            continue
        if not isinstance(key_node, yaml.ScalarNode):
            raise _problem("a key must be a word or a number", key_node)
        key = plain(_scalar(key_node, key_node.tag.removeprefix(TAG)))
        if isinstance(key, bool):  # a key called on, off, yes or no
            key = key_node.value
        if key is None:
            raise _problem("a key is empty; write null in quotes if it is a word", key_node)
        if key in lines:
            raise _problem(f"the key {key!r} stands twice, first in line {lines[key]}", key_node)
        lines[key] = key_node.start_mark.line + 1
        result[key] = _value(value_node, count, inside)
    return merged | result


def _merged(node: yaml.Node, count: list[int], inside: list[yaml.Node]) -> Iterator[dict]:
    for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if not isinstance(part, yaml.MappingNode):
            raise _problem("<< needs keys and values, or a list of such", part)
        yield _value(part, count, inside)


def _scalar(node: yaml.ScalarNode, kind: str) -> str | int | float | bool | None:
    if node.tag == PLAIN or kind == "str":
        return _plain_scalar(node.value) if node.tag == PLAIN else node.value
    value = _plain_scalar(node.value)
    types: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "null": type(None)}
    if kind not in types:
        raise _problem(f"the tag {_shown(node.tag)} is not one for configs", node)
    if not isinstance(value, types[kind]) or (isinstance(value, bool) and kind != "bool"):
        raise _problem(f"{node.value!r} is no {_shown(node.tag)}", node)
    return float(value) if kind == "float" else value


def _plain_scalar(text: str) -> str | int | float | bool | None:
    """A scalar without quotes: null, true, false, a number, or text."""
    if len(text) < 6 and text.lower() in WORDS:
        return WORDS[text.lower()]
    bare = text.replace("_", "")
    if special := SPECIAL.fullmatch(text):
        return float(f"{special[1]}{special[2]}")
    if len(text) <= MOST_DIGITS and INTEGER.fullmatch(text):
        return _as_written(WrittenInt, int(bare, 16 if "x" in bare else 10), text)
    if len(text) <= MOST_DIGITS and NUMBER.fullmatch(text):
        return _as_written(WrittenFloat, float(bare), text)
    return text


def _as_written(kind: type, value: Any, text: str) -> Any:
    if str(value) == text:
        return value
    result = kind(value)
    result.text = text
    return result
