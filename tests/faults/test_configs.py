"""Nonsense in configs is one error that names file or item, soon, and never a traceback."""

import pytest

from tests.faults import configs


@pytest.mark.parametrize("count", (0, 150))
def test_no_config_crashes_or_hangs(count, tmp_path):
    """The hostile files (count 0), and some that are drawn; `scripts/soak.py` draws more."""
    faults = [(c, t) for c in configs.cases(count, seed=count) if (t := configs.examine(*c, tmp_path)[1])]
    lines = [f"{kind.__name__} {data and data[:80]!r} {items}: {said}" for (kind, data, items), said in faults]
    assert not lines, "\n".join(lines)
