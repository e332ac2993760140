"""Configs that nobody should write: mutated files, nonsense values, hostile YAML; and what must come of each."""

import functools
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.conftest import ROOT
from vfm4us import config
from vfm4us.pretraining.settings import PretrainingConfig
from vfm4us.tables.plan import TableConfig
from vfm4us.tasks.classification import ClassificationConfig
from vfm4us.tasks.generation import GenerationConfig
from vfm4us.tasks.segmentation import SegmentationConfig

KINDS = {
    "pretraining": PretrainingConfig,
    "classification": ClassificationConfig,
    "segmentation": SegmentationConfig,
    "generation": GenerationConfig,
    "tables": TableConfig,
}
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 12)
)
HOSTILE = (
    b"seed: !!timestamp foo", b"seed: !!float ''", b"seed: !!int x", b"name: !!binary AAAA", b"name: !!python/name:os.system",
    b"!!python/object/apply:os.system [echo]", b"name: !!set {a, b}", b"name: 2024-01-01", b"seed: 1:30", b"seed: 010",
    b"name: \xff\xfe", b"\xff\xfen\x00a\x00", b"name: \x00", b"name: \"\\0\"", b"name: \"\\ud800\"", b"name: a\x85b",
    b"name: &a [*a]", b"name: *missing", LAUGHS.encode(), b"[" * 5000, b"{" * 5000, b"{a: " * 5000, b"- " * 5000,
    b"? " * 5000, b"a:\n" + b" a:\n" * 5000, b"name: " + b"9" * 10000, b"seed: " + b"9" * 39, b"seed: -1",
    b"seed: 1e400", b"name: a\nname: b", b"? [1, 2]\n: 3", b"~: 3", b"- 1", b"3", b"text", b"",
    b"---\na: 1\n---\nb: 2", b"%YAML 9.9\n---\n",
    b"base: nowhere.yaml", b"base: .", b"base: 3", b"base: \"a\\0b\"", b"name: [1, 2", b"name: 'a", b"\tname: a",
    b"name: |\n a\n\tb",
    b"<<: 3", b"<<: [1]", b"name: {<<: {name: 2}}", b"stages: {0: {epochs: 1}}", b"stages: [3, null, {}]",
    b"stages: {a: 1}", b"patches: []",
    b"x" * 2**19, b"batch_size: 10000000000000", b"name: .nan", b"seed: .inf", b"on: off", b"true: false", b"1: 2", b"name: null",
)  # fmt: skip
VALUES = (
    "-1", "0", "10**30", "1" + "0" * 30, "10000000000000", "1e308", "1e400", "-1e-300", ".nan", "-.inf", "''", "~",
    "true", "off", "[]",
    "{}", "[[[]]]", "{a: {b: {c: 1}}}", "!!timestamp foo", "!!float ''", "2024-01-01", "1:30", "007", "0x10", "*x",
    "&x [*x]", "@", "%",
    "`", "a: b", "a #b", "#", "'", '"\\0"', "[1, 2", "../../..", "/dev/zero", "C:\\", "=", "x" * 300, "\u202e", "-",
    "?", "!", "|", ">", "[" * 400,
    "9" * 300, "nan", "None", "1_000", "1.10", "{0: 1}", "[null]", "!!python/name:os.system", "-0", "-0.0", "1.", ".5", "+5",
)  # fmt: skip


@contextmanager
def within(seconds: int):
    """Raise TimeoutError if the body takes more of the CPU, or 12 times as long; on the main thread only."""

    def late(number, _):
        raise TimeoutError(f"not done in {seconds} s of CPU" if number == signal.SIGPROF else "it waits for something")

    before = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(12 * seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A copy of a file with one to four accidents: bytes changed, cut out, doubled or moved, lines swapped."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not result:
            break
        start = rng.randrange(len(result))
        end = min(len(result), start + rng.choice((1, 1, 2, 5, 20)))
        kind = rng.randrange(5)
        if kind == 0:
            result[start:end] = bytes(rng.randrange(256) for _ in range(end - start))
        elif kind == 1:
            del result[start:end]
        elif kind == 2:
            result[start:start] = result[start:end] * rng.choice((1, 3, 40))
        elif kind == 3:
            result[start:start] = rng.choice(
                (b":", b"-", b"[", b"{", b"&a ", b"*a", b"!!int ", b"\t", b"\n", b"'", b'"', b"#", b"? ")
            )
        else:
            lines = bytes(result).split(b"\n")
            rng.shuffle(lines)
            result = bytearray(b"\n".join(lines))
    return bytes(result)


def dotted(values, prefix: str = "") -> Iterator[str]:
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in pairs:
        yield f"{prefix}{key}"
        yield from dotted(value, f"{prefix}{key}.")


@functools.cache
def whole(kind: type, file: Path) -> dict:
    """A config with all its keys."""
    return config.to_dict(config.load(kind, file))


def cases(count: int, seed: int | str) -> Iterator[tuple[type, bytes | None, list[str]]]:
    """(config class, bytes of a file or None, overrides): `count` drawn ones, or the hostile files where count is 0."""
    for data in () if count else HOSTILE:
        yield PretrainingConfig, data, []
    rng = random.Random(seed)
    files = sorted(f for kind in KINDS for f in ROOT.glob(f"configs/{kind}/**/*.yaml"))
    for _ in range(count):
        file = rng.choice(files)
        kind = KINDS[file.relative_to(ROOT).parts[1]]
        keys = list(dotted(whole(kind, file)))
        items = [f"{_key(rng.choice(keys), rng)}={rng.choice(VALUES)}" for _ in range(rng.randint(1, 2))]
        how = rng.randrange(3)
        if how == 0:
            yield kind, mutated(file.read_bytes(), rng), []
        elif how == 1:
            yield kind, file.read_bytes(), items
        else:
            text = yaml.safe_dump(whole(kind, file)).splitlines()
            place = rng.randrange(len(text))
            if ":" in text[place]:
                text[place] = text[place].split(":")[0] + ": " + rng.choice(VALUES)
            yield kind, "\n".join(text).encode(errors="surrogateescape"), []


def _key(key: str, rng: random.Random) -> str:
    """`key`, one time in four with a mistake."""
    if rng.randrange(4):
        return key
    place = rng.randrange(len(key) + 1)
    return key[:place] + rng.choice((".", "..", "x", "0", "-1", "²", " ", "", "=", "a." * 40, "9" * 5000)) + key[place:]


def examine(kind: type, data: bytes | None, items: list[str], folder: Path, seconds: int = 5) -> tuple[bool, str]:
    """(whether a config is refused, what is wrong with how it is taken): it is read, or refused in words that name file or item."""
    file = folder / "case.yaml"
    file.unlink(missing_ok=True)
    if data is not None:
        file.write_bytes(data)
    try:
        with within(seconds):
            config.load(kind, None if data is None else file, items)
    except (ValueError, FileNotFoundError) as error:
        said = str(error)
        if "case.yaml" not in said and "command line" not in said:
            return True, f"names neither file nor item: {said[:300]}"
        return True, f"a message of {len(said)} characters: {said[:300]}" if len(said) > 2000 else ""
    except Exception as error:
        return True, f"{type(error).__name__}: {error}"[:300]
    return False, ""
