"""Config: types, ranges, overrides, and errors that name the key."""

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from tests.conftest import ROOT
from tests.faults.configs import KINDS
from vfm4us import config
from vfm4us.config import option, section
from vfm4us.pretraining.settings import PretrainingConfig
from vfm4us.tables.plan import TableConfig


@dataclass
class Inner:
    rate: float = option(0.1, "a rate", low=0.0)
    kind: str = option("a", "a kind", choices=["a", "bee"])


@dataclass
class Outer:
    count: int = option(3, "a count", low=1)
    on: bool = option(False, "a switch")
    inner: Inner = section(Inner, "nested")
    items: list[Inner] = field(default_factory=list)


@dataclass
class Part:
    MOVED: ClassVar = {"length": "size"}
    size: int = option(1, "a size")


def test_the_file_then_the_command_line(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("count: 5\ninner: {rate: 1e-4}\nitems: [{kind: bee}, {}]\n")
    read = config.load(Outer, file, ["inner.kind=bee", "items.1.rate=2", "on=true"])
    assert read == Outer(5, True, Inner(1e-4, "bee"), [Inner(0.1, "bee"), Inner(2.0, "a")])
    assert isinstance(read.inner.rate, float) and isinstance(read.items[1].rate, float)
    assert config.from_dict(Outer, yaml.safe_load(yaml.safe_dump(config.to_dict(read)))) == read


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cuont=3", "unknown config key 'cuont': did you mean 'count'"),
        ("inner.rat=3", "unknown config key 'inner.rat': did you mean 'rate'"),
        ("count=2.5", "count: expected a whole number, got 2.5"),
        ("count=true", "count: expected a whole number, got True"),
        ("count=many", "count: expected a whole number, got 'many'"),
        ("count=0", "count: 0 is below the least allowed value 1"),
        ("on=1", "on: expected true or false"),
        ("inner.rate=fast", "inner.rate: expected a number"),
        ("inner.rate=.nan", "inner.rate: nan is not a finite number"),
        ("inner.rate=.inf", "inner.rate: inf is not a finite number"),
        ("inner.kind=be", "did you mean 'bee'"),
        ("inner=3", "inner: expected keys and values"),
        ("items=3", "items: expected a list, e.g. items=\\[3\\], got 3"),
        ("items.0.rate=1", "items"),
        ("count", "section.key=value"),
    ],
)
def test_errors_name_key_and_remedy(override, message):
    with pytest.raises(ValueError, match=message):
        config.load(Outer, None, [override])


def test_null_leaves_an_item_of_a_list_out(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("items: [{rate: 1.0}, {rate: 2.0}]")
    assert [i.rate for i in config.load(Outer, path, ["items.0=null", "items.1.rate=3.0"]).items] == [3.0]
    with pytest.raises(ValueError, match="itmes' is no section of the config in use: did you mean 'items'"):
        config.load(Outer, path, ["itmes.0=null"])


def test_null_for_a_mistyped_key_is_told_the_nearest():
    for item, near in (("tasks.generaton=null", "generation"), ("encoders.SimCRL=null", "SimCLR")):
        with pytest.raises(ValueError, match=f"to leave out: did you mean '{near}'"):
            config.load(TableConfig, ROOT / "configs/tables/small.yaml", ["data=DIR", item])
    left = config.load(TableConfig, ROOT / "configs/tables/small.yaml", ["data=DIR", "tasks.generation=null"])
    assert left.tasks["generation"] is None


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.yaml does not exist"):
        config.load(Outer, tmp_path / "nothing.yaml")
    (tmp_path / "b.yaml").write_text("a: [1, 2")
    with pytest.raises(ValueError, match="b.yaml is not valid YAML"):
        config.load(Outer, tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="c.yaml: expected keys"):
        config.load(Outer, tmp_path / "c.yaml")


def test_changed_keys_leave_out_the_free_ones():
    before = PretrainingConfig()
    after = config.from_dict(PretrainingConfig, {"device": "cpu", "num_workers": 3, "seed": 4, "patches": {"size": 64}})
    assert config.changed_keys(config.to_dict(before), after) == ["emp_ssl.patches.size: 96 -> 64", "seed: 0 -> 4"]
    older = config.to_dict(after)
    # keys that a later version brought
    del older["emp_ssl"]["patches"]["count"], older["emp_ssl"]["masking"], older["data"]["protect"]
    assert config.changed_keys(older, after) == []
    after.emp_ssl.masking.cell, after.emp_ssl.patches.count = 5, 7
    assert config.changed_keys(older, after) == ["emp_ssl.patches.count: 20 -> 7", "emp_ssl.masking.cell: 16 -> 5"]


def test_a_run_of_a_version_without_a_key_had_its_default():
    before = config.to_dict(PretrainingConfig())
    del before["method"], before["mae"], before["emp_ssl"]["patches"]["size"], before["stages"]
    assert config.changed_keys(before, PretrainingConfig()) == []
    stages = [{"name": "a", "data": [{"path": "x"}, {"path": "y"}]}]
    now = config.from_dict(PretrainingConfig, {"stages": stages})
    older = config.to_dict(now)
    del older["stages"][0]["data"][1]["share"]
    assert config.changed_keys(older, now) == []
    now.stages[0].data[1].share, now.stages[0].epochs = 0.5, 7
    changed = ["stages.0.data.1.share: 0.0 -> 0.5", "stages.0.epochs: 30 -> 7"]
    assert sorted(config.changed_keys(older, now)) == changed
    now.stages[0].data.pop()
    assert "stages.0.data: [{" in config.changed_keys(older, now)[0]
    after = config.from_dict(PretrainingConfig, {"method": "mae", "mae": {"mask_ratio": 0.5}, "patches": {"size": 64}})
    assert config.changed_keys(before, after) == [
        "emp_ssl.patches.size: 96 -> 64",
        "mae.mask_ratio: 0.75 -> 0.5",
        "method: 'emp_ssl' -> 'mae'",
    ]


def test_a_section_may_have_defaults_of_its_own():
    @dataclass
    class Other:
        inner: Inner = section(Inner, "nested", rate=0.7)

    assert config.load(Other) == Other(Inner(0.7, "a"))
    assert config.load(Other, overrides=["inner.kind=bee"]) == Other(Inner(0.7, "bee")), "what is left out keeps them"
    assert config.load(Other, overrides=["inner.rate=0.2"]).inner.rate == 0.2 and config.load(Outer).inner.rate == 0.1
    assert "inner.rate = 0.7" in config.describe(Other) and "inner.rate = 0.1" in config.describe(Outer)


def test_a_config_of_the_repository_is_found_from_elsewhere_and_a_file_here_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "configs/pretraining/folder.yaml"
    with pytest.raises(FileNotFoundError, match=f"Did you mean {name}"):
        config.load(PretrainingConfig, "configs/pretraining/foldr.yaml")
    assert config.find(name) == ROOT / name and config.find("nowhere.yaml") == Path("nowhere.yaml")
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("name: mine\n")
    assert config.load(PretrainingConfig, name).name == "mine"


PRETRAINING = [*sorted(ROOT.glob("configs/pretraining/**/*.yaml"))]
PRETRAINING += [ROOT / f"configs/smoke/{name}.yaml" for name in ("pretraining", "mae", "dinov2")]


@pytest.mark.parametrize("file", PRETRAINING, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_shipped_pretraining_config_parses_and_names_its_command(file):
    text, read = file.read_text(), config.load(PretrainingConfig, file)
    script = {"mae": "MAE/mae_main.py", "dinov2": "DINOv2/dinov2_main.py"}.get(read.method, "US-SSL/adv_main.py")
    assert text.startswith(f"# python Pretraining/{script}"), "begin with the command"
    assert (ROOT / "Pretraining" / script).is_file() and (
        f"--config {file.relative_to(ROOT)}" in text or "smoke" in str(file)
    )
    assert read.stages and all(s.data for s in read.stages)


def test_help_lists_every_key_with_its_meaning():
    text = config.describe(PretrainingConfig)
    for key in (
        "emp_ssl.patches.count = 20",
        "emp_ssl.adversary.epsilon = 0.009",
        "stages.0.data.0.path",
        "[none | random | adversarial]",
    ):
        assert key in text


@dataclass
class Moved:
    MOVED: ClassVar = {"rates": "inner", "many": "count"}
    count: int = option(3, "a count", low=1)
    inner: Inner = section(Inner, "nested")
    parts: list[Part] = option([], "a list of sections with moved keys")


def test_a_file_builds_on_another(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "under.yaml").write_text("count: 5\ninner: {rate: 2, kind: bee}\nitems: [{rate: 1}, {rate: 2}]\n")
    (tmp_path / "middle.yaml").write_text("base: under.yaml\ncount: 6\ninner: {rate: 3}\n")
    (tmp_path / "sub/top.yaml").write_text("base: ../middle.yaml\n'on': true\nitems: {1: {kind: bee}}\n")
    read = config.load(Outer, tmp_path / "sub/top.yaml", ["items.0.rate=4"])
    assert read == Outer(6, True, Inner(3.0, "bee"), [Inner(4.0, "a"), Inner(2.0, "bee")])
    (tmp_path / "list.yaml").write_text("base: under.yaml\nitems: [{rate: 9}]\ninner: null\n")
    read = config.load(Outer, tmp_path / "list.yaml")
    assert read == Outer(5, False, Inner(), [Inner(9.0)]), "a list is replaced, null is the default"
    (tmp_path / "from_configs.yaml").write_text("base: pretraining/us510k.yaml\nname: other\n")
    assert config.load(PretrainingConfig, tmp_path / "from_configs.yaml").stages[0].data[0].path == "US-510K/coarse"


def test_a_base_that_is_missing_or_leads_back_names_both_files(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"a\.yaml: its base b\.yaml does not exist"):
        config.load(Outer, tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ValueError, match=r"b\.yaml: its base a\.yaml leads back to itself .*a\.yaml -> .*b\.yaml -> "):
        config.load(Outer, tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("items: [{}]\n")
    (tmp_path / "a.yaml").write_text("base: b.yaml\nitems: {2: {rate: 1}}\n")
    with pytest.raises(ValueError, match="item 2 of a list is changed, and the base's list has 1"):
        config.load(Outer, tmp_path / "a.yaml")
    table = config.load(TableConfig, overrides=["base={a: 1}"])
    assert table.cells == {"a": 1}, "keys by their old name, where base is a mapping"


def test_moved_keys_work_by_their_old_names(tmp_path, capsys):
    (tmp_path / "old.yaml").write_text("many: 7\nrates: {rate: 2}\nparts: [{length: 4}]\n")
    expected = Moved(7, Inner(2.0, "bee"), [Part(5)])
    assert config.load(Moved, tmp_path / "old.yaml", ["rates.kind=bee", "parts.0.length=5"]) == expected
    said = capsys.readouterr().out
    assert f"{tmp_path}/old.yaml: rates is now inner, many is now count: the old name still works" in said
    assert "parts.0.length is now parts.0.size" in said
    (tmp_path / "new.yaml").write_text("base: old.yaml\ncount: 8\n")
    assert config.load(Moved, tmp_path / "new.yaml").count == 8
    old = {"many": 7, "rates": {"rate": 2.0, "kind": "bee"}, "parts": [{"length": 5}]}
    assert config.renamed(Moved, old) == config.to_dict(expected)
    assert config.changed_keys(old, expected) == []
    assert config.changed_keys(old | {"many": 6}, expected) == ["count: 6 -> 7"]
    with pytest.raises(ValueError, match="many is now count, and both are given, as 7 and 8: leave the old one out"):
        config.from_dict(Moved, {"many": 7, "count": 8})
    with pytest.raises(ValueError, match="unknown config key 'raets': did you mean 'rates', which is now 'inner'"):
        config.load(Moved, overrides=["raets.kind=bee"])
    capsys.readouterr()
    config.load(Moved, tmp_path / "old.yaml")
    assert capsys.readouterr().out == "", "said once"


def test_errors_name_the_file_or_the_item_that_gave_the_value(tmp_path):
    (tmp_path / "under.yaml").write_text("count: 0\ninner: {rate: fast}\n")
    (tmp_path / "top.yaml").write_text("base: under.yaml\ncount: 1\n")
    with pytest.raises(ValueError, match=r"^\S+under\.yaml: inner\.rate: expected a number"):
        config.load(Outer, tmp_path / "top.yaml")
    with pytest.raises(
        ValueError, match=r"^command line 'inner\.rate=quick': inner\.rate: expected a number, got 'quick'"
    ):
        config.load(Outer, tmp_path / "top.yaml", ["inner.rate=quick"])
    with pytest.raises(ValueError, match=r"^\S+top\.yaml: count: 1000000000000 is above"):
        (tmp_path / "top.yaml").write_text("base: under.yaml\ncount: 1000000000000\n")
        config.load(Outer, tmp_path / "top.yaml", ["inner.rate=1"])


def test_what_yaml_would_misread_in_silence(tmp_path):
    file = tmp_path / "c.yaml"
    for text in ("count: 5\ncount: 6\n", "inner: {rate: 1, rate: 2}\n"):
        file.write_text(text)
        with pytest.raises(
            ValueError, match=r"c\.yaml is not valid YAML: line \d, column \d+: the key '\w+' stands twice"
        ):
            config.load(Outer, file)
    file.write_text("kind: 1e3\n")
    assert config.load(Inner, overrides=["rate=1e3"]).rate == 1000.0
    for text in ("1e3", "007", "1.10", "2024-01-01", "1:30", "0x10", "1_000"):
        with pytest.raises(ValueError, match=f"kind: '{text}' is not one of"):
            config.load(Inner, overrides=[f"kind={text}"])
    with pytest.raises(ValueError, match="what follows # would be left out: put the value in quotes"):
        config.load(Inner, overrides=["kind=a #2"])
    with pytest.raises(ValueError, match="count: expected a whole number, got '010'"):
        config.load(Outer, overrides=["count=010"])


def test_limits_hold_for_each_item_of_a_list():
    @dataclass
    class Lists:
        seeds: list[int] = option([0], "seeds", low=0, high=9)
        shares: list[float] = option([0.5], "shares")

    for item, message in (("seeds=[1, -1]", "seeds.1: -1 is below"), ("seeds=[10]", "seeds.0: 10 is above")):
        with pytest.raises(ValueError, match=message):
            config.load(Lists, overrides=[item])
    with pytest.raises(ValueError, match="shares.1: nan is not a finite number"):
        config.load(Lists, overrides=["shares=[0.5, .nan]"])


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda k: k.__name__)
def test_no_whole_number_is_without_a_sensible_limit(kind):
    """10**30 is an error that names the key, for each key that holds a whole number; so is a negative seed."""
    for key, hint in whole_numbers(kind):
        with pytest.raises(
            ValueError, match=rf"{key}(\.0)?: \d+ is above the greatest allowed value|{key}: .* is not one of"
        ):
            config.load(kind, overrides=[f"{key}={10**30 if hint is int else [10**30]}"])
        if "seed" in key:
            with pytest.raises(ValueError, match=f"{key}.*-1 is below"):
                config.load(kind, overrides=[f"{key}={-1 if hint is int else [-1]}"])


def whole_numbers(cls, prefix=""):
    for key, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from whole_numbers(hint, f"{prefix}{key}.")
        elif hint in (int, list[int]):
            yield f"{prefix}{key}", hint


def test_a_network_that_fits_no_memory_is_refused():
    with pytest.raises(
        ValueError, match=r"projector\.hidden: 10000000000000 is above the greatest allowed value 65536"
    ):
        config.load(PretrainingConfig, overrides=["projector.hidden=10000000000000"])


@pytest.mark.parametrize("key", ["stages.{}", "{}s.a.b", "stages.{}.data.0.limit", "stages.0.data.{}.limit"])
def test_a_key_of_thousands_of_letters_is_cut_in_its_message(key):
    values = {"stages": [{"data": [{"path": "a"}]}]}
    with pytest.raises(ValueError, match="command line|unknown config key") as caught:
        config.override(values, key.replace("{}", "9" * 6000) + "=1")
        config.from_dict(PretrainingConfig, values)
    assert len(str(caught.value)) < 800


def test_an_item_that_is_not_there_is_told_from_those_that_are():
    with pytest.raises(ValueError, match=r"there is no item '1': the list has 1, counted from 0"):
        config._index("1", [{}], "command line")
