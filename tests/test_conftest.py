"""Which tests are slow is measured."""

from tests.conftest import slow_ones, still_there


def test_the_quickest_that_fit_are_quick():
    durations = {"a": 1.0, "b": 5.0, "c": 2.0, "d": 0.5, "gone": 9.0}
    assert slow_ones(durations, ["a", "b", "c", "d", "new"], quick=4.0) == {"b"}
    assert slow_ones(durations, ["a", "b", "c", "d", "new"], quick=1.0) == {"a", "b", "c"}
    assert slow_ones({}, ["new"]) == set()


def test_a_test_that_is_gone_is_forgotten():
    here = "tests/test_conftest.py"
    assert still_there(f"{here}::test_a_test_that_is_gone_is_forgotten[any]")
    assert not still_there(f"{here}::test_of_nothing") and not still_there("tests/test_nothing.py::test_of_nothing")
