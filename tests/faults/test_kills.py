"""Work that is killed, and goes on by the same call, ends as if nobody had killed it."""

import pytest

from tests.faults import kills

TRIALS = {"checkpoint": 12, "packing": 8, "pretraining": 1, "fine-tuning": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    kills.make_source(folder)
    return folder


@pytest.mark.parametrize(
    "name",
    ["checkpoint", "packing", *(pytest.param(n, marks=pytest.mark.slow) for n in ("pretraining", "fine-tuning"))],
)
def test_nothing_is_lost_by_kills(name, source, tmp_path):
    faults = []
    for trial, _ in zip(kills.trials([name], source, tmp_path, seed=0), range(TRIALS[name]), strict=False):
        faults.append(trial)
    # on a quick machine some work is done before the moment comes; the moments at calls do not depend on that
    assert sum(trial.killed for trial in faults) >= max(1, TRIALS[name] / 4)
    assert not [f"{', '.join(map(str, t.moments))}: {t.lost}" for t in faults if t.lost]


def test_a_dataset_that_was_killed_once_it_stood_is_tidied_up(source, tmp_path):
    subject = kills.SUBJECTS["packing"]
    expected, _, calls = kills.left_alone(subject, source, tmp_path)
    trial = kills.try_once(subject, source, tmp_path, [kills.Moment(calls - 3)], expected)
    assert trial.killed and not trial.lost and not trial.litter


def test_a_loss_is_seen(source, tmp_path):
    """A file that is written in place, and killed half-way, is reported."""
    subject = kills.FLAWED["in place"]
    expected, _, calls = kills.left_alone(subject, source, tmp_path)
    assert calls == 1 and not kills.try_once(subject, source, tmp_path, [], expected).lost
    trial = kills.try_once(subject, source, tmp_path, [kills.Moment(1)], expected)
    assert trial.killed == 1 and trial.lost.startswith("torn: number.json")
