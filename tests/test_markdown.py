"""Cells of tables say what was not seen, and every row fits its head."""

import pytest

from vfm4us import markdown


def test_a_difference_that_is_not_seen_says_what_could_have_been():
    assert (
        markdown.difference({"mean": 0.01, "low": -0.02, "high": 0.04})
        == "+0.010 (-0.02 to +0.04), not shown (+- 0.030)"
    )
    assert markdown.difference({"mean": 0.03, "low": 0.01, "high": 0.05}) == "+0.030 (+0.01 to +0.05)"
    assert markdown.difference(None) == "-" and markdown.difference({"mean": -0.5}) == "-0.500"


def test_a_row_that_does_not_fit_is_an_error():
    assert markdown.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    with pytest.raises(ValueError, match="1 cells in a table of 2"):
        markdown.table(["a", "b"], [["1"]])
