"""A mistyped flag is answered with the nearest one, in every script that takes flags."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vfm4us import config
from vfm4us.command_line import Parser
from vfm4us.tasks.settings import TaskConfig


def test_a_mistyped_flag_is_answered_with_the_nearest_and_none_is_cut_short(capsys):
    parser = Parser("help")
    parser.add_argument("--minutes", type=int)
    parser.add_argument("--device")
    for words, near in (
        (["--minuts", "3"], "--minuts: did you mean --minutes?"),
        (["--devic=cpu"], "did you mean --device?"),
    ):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(words)
        assert ended.value.code == 2 and near in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser.parse_args(["--nothing-like-it"])
    assert "did you mean" not in capsys.readouterr().err


def test_the_home_folder_is_written_out_where_no_shell_does(monkeypatch):
    monkeypatch.setenv("HOME", "/home/her")
    parser = Parser("help")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--encoder")
    parser.add_argument("--merge", nargs="*")
    values = parser.parse_args(["--out=~/results", "--encoder=~/a.pth", "--merge", "~ > b"])
    assert (values.out, values.encoder, values.merge) == (Path("/home/her/results"), "/home/her/a.pth", ["~ > b"])
    given = config.from_dict(TaskConfig, {"data": {"path": "~/busi"}, "logs": "~/logs", "name": "~a"})
    assert (given.data.path, given.logs, given.name) == ("/home/her/busi", "/home/her/logs", "~a")


def test_every_script_has_this_parser():
    files = [p for folder in ("scripts", "Pretraining", "Downstream", "vfm4us") for p in (ROOT / folder).rglob("*.py")]
    plain = [p.name for p in files if re.search(r"argparse\.ArgumentParser\(", p.read_text())]
    assert len(files) > 100 and plain == []
