"""The loop: stopped, killed or broken anywhere, a training loses nothing and ends in the same weights."""

import json
import signal
from dataclasses import dataclass

import pytest
import torch

from vfm4us import checkpoints
from vfm4us.runtime import loop, signals
from vfm4us.runtime import run as run_module
from vfm4us.runtime.rng import stream
from vfm4us.runtime.run import RunFolder


class Sum(loop.Training):
    """A vector to which each step adds a random one; the score falls and rises; two stages, 3 epochs of 2 steps and 2 of 1."""

    def __init__(self, folder, seed=0):
        self.folder, self.seed = folder, seed
        self.weight, self.kept, self.hooks = torch.zeros(3), torch.zeros(3), []

    def note(self, hook):
        """Subclasses break or stop here."""
        self.hooks.append(hook)

    def begin(self):
        self.note("begin")

    def begin_stage(self):
        self.note("begin_stage")

    def batches(self):
        return range(self.loop.step, self.loop.per_epoch)

    def update(self, batch):
        self.note("update")
        self.weight = self.weight + torch.rand(3, generator=stream("sum", self.seed, self.loop.total))
        return {"loss": self.weight.sum(), "batch": batch}

    def measure(self):
        self.note("measure")
        figures = {"score": -abs(self.loop.epoch - 1.0)}
        self.folder.log("monitor", self.loop.total, figures)
        return figures

    def remember(self):
        self.kept = self.weight.clone()

    def after_epoch(self, improved, again=False):
        file = self.folder.folder / f"{self.loop.stage}-{self.loop.epoch}.json"
        if not (again and file.is_file()):
            self.note("after_epoch")
            file.write_text(json.dumps([improved, self.weight.tolist()]))

    def state(self):
        self.note("state")
        return self.loop.place() | {"weight": self.weight, "kept": self.kept}

    def restore(self, state):
        self.weight, self.kept = state["weight"], state["kept"]
        return {name: state[name] for name in loop.PLACE}


@dataclass
class Config:
    seed: int = 0


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "describe_run", dict)  # asks git three times

    def run(name, kind=Sum, **options):
        folder = RunFolder(tmp_path / name, Config())
        training = kind(folder)
        options = {"save_every": 1e9} | options
        try:
            loop.Loop(training, folder, [(3, 2), (2, 1)], torch.device("cpu"), **options).run()
        finally:
            folder.close()
        return training

    return run


def files(training):
    folder = training.folder.folder
    return {p.name: p.read_text() for p in [*folder.glob("*-*.json"), folder / "metrics.jsonl"]}


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("each_epoch", "save_every"), [(True, 1e9), (False, 0.0)])
@pytest.mark.parametrize("how", ["killed", "signal"])
def test_ended_at_any_hook_and_continued_it_ends_in_the_same_bits(train, how, save_every, each_epoch):
    whole = train("whole", each_epoch=each_epoch, save_every=save_every)
    assert whole.loop.finished and whole.loop.best["epoch"] == 2
    count = len(whole.hooks)
    for at in range(count):

        class Broken(Sum):
            def note(self, hook):
                super().note(hook)
                if len(self.hooks) == at + 1:  # noqa: B023
                    if how == "killed":
                        raise Killed
                    signal.raise_signal(signal.SIGTERM)

        name = f"{how}-{at}"
        try:
            train(name, Broken, each_epoch=each_epoch, save_every=save_every)
        except Killed:
            pass
        except signals.Stopped as stopped:
            assert stopped.number == signal.SIGTERM
        again = train(name, each_epoch=each_epoch, save_every=save_every)
        assert torch.equal(again.weight, whole.weight) and torch.equal(again.kept, whole.kept), whole.hooks[at]
        assert files(again) == files(whole), whole.hooks[at]
        if how == "signal":
            assert "update" not in again.hooks or again.hooks.count("update") <= 8 - whole.hooks[:at].count("update")


def test_what_an_epoch_leaves_is_made_after_last_pt(train):
    class Full(Sum):
        def after_epoch(self, improved, again=False):
            at = checkpoints.read(self.folder.checkpoints / "last.pt")
            assert (at["epoch"], at["step"], at["improved"]) == (self.loop.epoch, 0, improved)
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        train("full", Full)
    again = train("full")
    assert again.hooks.count("update") == 6 and (again.folder.folder / "0-1.json").is_file()


class Spoilt(Sum):
    """Not finite from the 5th step on; the 4th ends the second epoch."""

    wrong = "loss"

    def update(self, batch):
        values = super().update(batch)
        if self.loop.total >= 4:
            if self.wrong == "loss":
                return values | {"loss": torch.tensor(float("nan"))}
            self.weight = self.weight * float("inf")
            return values | {"loss": torch.tensor(1.0)}
        return values


@pytest.mark.parametrize("fetch_every", [1, 10])
def test_a_loss_that_is_not_finite_is_never_saved(train, tmp_path, fetch_every):
    with pytest.raises(
        FloatingPointError,
        match=r"failed at step 5: loss is nan. .*last.pt holds the last good state \(epoch 2, step 0\)",
    ):
        train("spoilt", Spoilt, fetch_every=fetch_every)
    state = checkpoints.read(tmp_path / "spoilt/checkpoints/last.pt")
    assert state["epoch"] == 2 and state["weight"].isfinite().all()


def test_weights_that_are_not_finite_are_never_saved_and_an_earlier_checkpoint_is_not_invented(train, tmp_path):
    class Weights(Spoilt):
        wrong = "weight"

    with pytest.raises(
        FloatingPointError, match=r"weight is not finite. .*last.pt holds .*epoch 2.*Lower the learning"
    ):
        train("weights", Weights)
    assert checkpoints.read(tmp_path / "weights/checkpoints/last.pt")["epoch"] == 2

    with pytest.raises(FloatingPointError, match=r"failed at step 5: weight is not finite. Nothing had been saved yet"):

        class Early(Weights):
            def update(self, batch):
                loss = super().update(batch)
                self.loop.save_every = 0.0 if self.loop.total >= 4 else 1e9
                return loss

        train("early", Early, each_epoch=False)
    assert not (tmp_path / "early/checkpoints/last.pt").exists()


def test_values_are_fetched_in_one_go_and_logged_when_it_is_their_turn(train):
    one = train("one", log_every=2)
    ten = train("ten", log_every=2, fetch_every=10)
    assert files(one) == files(ten)
    steps = [x["step"] for x in one.folder.metrics() if x["kind"] == "train"]
    assert steps == [2, 4, 6, 8]


def test_stop_after_leaves_and_goes_on(train, capsys):
    for _ in range(3):
        training = train("parts", stop_after=2)
    assert training.loop.finished and torch.equal(training.weight, train("whole").weight)
    assert "stopped after 2 epochs as asked" in capsys.readouterr().out
    assert train("parts").hooks == []


def test_the_first_value_that_is_not_finite_is_named():
    state = {"a": torch.ones(2), "b": [torch.ones(1), {"c": torch.tensor([1.0, float("inf")])}], "d": float("inf")}
    assert loop.not_finite(state) == "b.1.c" and loop.not_finite({"n": torch.tensor([1])}) == ""
