"""What the package says is seen by default, and is a logger's."""

import logging

from vfm4us import log


def test_lines_are_shown_and_can_be_taken_over(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(log, "LOGGER", logger := logging.getLogger(f"vfm4us-{tmp_path.name}"))
    log.say("one\ntwo")
    assert capsys.readouterr().out == "one\ntwo\n" and not logger.propagate
    logger.setLevel("WARNING")
    log.say("unheard")
    log.say("heard", logging.WARNING)
    assert capsys.readouterr().out == "heard\n"


def test_notes_stay_out_of_standard_output(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(log, "LOGGER", logger := logging.getLogger(f"vfm4us-{tmp_path.name}"))
    log.note("one\ntwo")
    log.say("said")
    shown = capsys.readouterr()
    assert shown.err == "one\ntwo\n" and shown.out == "said\n"
    logger.setLevel("WARNING")
    log.note("unheard")
    log.note("heard", logging.WARNING)
    shown = capsys.readouterr()
    assert shown.err == "heard\n" and not shown.out


def test_a_handler_of_somebody_else_is_left_alone(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(log, "LOGGER", logger := logging.getLogger(f"vfm4us-{tmp_path.name}"))
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logger.addHandler(handler)
    log.say("100 %")
    assert seen == ["100 %"] and capsys.readouterr().out == ""
