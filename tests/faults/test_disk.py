"""A full disk is named, and costs no more than the time until there is room."""

import pytest

from tests.faults import disk, kills


@pytest.mark.skipif(not disk.allowed(), reason="only root may mount a small disk")
@pytest.mark.parametrize("name", ["checkpoint", "packing"])
def test_nothing_is_lost_by_a_full_disk(name, tmp_path):
    kills.make_source(tmp_path / "source")
    faults = [t for t, _ in zip(disk.trials([name], tmp_path / "source", tmp_path, seed=0), range(4), strict=False)]
    assert sum(trial.killed for trial in faults) >= 2, "the disks were large enough"
    assert not [trial.lost for trial in faults if trial.lost]


@pytest.mark.skipif(not disk.allowed(), reason="only root may mount a small disk")
def test_packing_goes_on_wherever_the_disk_was_full(tmp_path):
    kills.make_source(tmp_path / "source")
    subject = kills.SUBJECTS["packing"]
    expected, _, _ = kills.left_alone(subject, tmp_path / "source", tmp_path)
    needed = disk.size(tmp_path / "packing-alone")
    for kilobytes in range(4, needed, 8):
        trial = disk.try_once(subject, tmp_path / "source", tmp_path, kilobytes, expected)
        assert not trial.lost, f"{kilobytes} kB of {needed}: {trial.lost}"
