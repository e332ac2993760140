"""Which tests are slow is measured."""

from tests.conftest import slow_ones


def test_the_quickest_that_fit_are_quick():
    durations = {"a": 1.0, "b": 5.0, "c": 2.0, "d": 0.5, "gone": 9.0}
    assert slow_ones(durations, ["a", "b", "c", "d", "new"], quick=4.0) == {"b"}
    assert slow_ones(durations, ["a", "b", "c", "d", "new"], quick=1.0) == {"a", "b", "c"}
    assert slow_ones({}, ["new"]) == set()
