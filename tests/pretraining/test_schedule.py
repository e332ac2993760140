"""One schedule over all stages, and sources that are drawn in given shares."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest

from tests.pretraining.test_trainer import assert_same_weights, last
from vfm4us.data import pools
from vfm4us.pretraining import settings, trainer
from vfm4us.pretraining.trainer import pretrain
from vfm4us.runtime.run import RunFolder

PLAIN = ("emp_ssl.adversary.weight=0", "emp_ssl.masking.strategy=none", "monitor.patches=0")


def stages(*sources: str, epochs: int = 1, **more) -> list[dict]:
    """Stages of two steps an epoch, one on each of the sources."""
    about = {"epochs": epochs, "epoch_images": 16, "learning_rate": 0.5, "warmup": 0.25} | more
    return [{"name": f"{'abcd'[i]}", "data": [{"path": path}]} | about for i, path in enumerate(sources)]


def rates(folder) -> list[float]:
    return [x["learning_rate"] for x in RunFolder(folder, None, main=False).metrics() if x["kind"] == "train"]


def test_two_stages_of_one_pool_under_one_schedule_are_one_stage_bit_for_bit(tiny):
    whole = pretrain(tiny(*PLAIN, "name=whole", stages=stages("one", epochs=2)))
    halves = pretrain(tiny(*PLAIN, "name=halves", "schedule=run", stages=stages("one", "one")))
    assert_same_weights(last(whole), last(halves))
    assert rates(whole) == rates(halves) and rates(whole)[0] > rates(whole)[-1] > 0
    apart = pretrain(tiny(*PLAIN, "name=apart", stages=stages("one", "one")))
    assert rates(apart) != rates(whole) and rates(apart)[:2] == rates(apart)[2:], "by default each stage has its own"


class Killed(Exception):
    pass


def killed_at(step: int, config, monkeypatch) -> None:
    """Run `config` until `step` steps are done in all, and no further: last.pt is as the last of them left it."""
    real = trainer.Trainer.update

    def update(self, batch):
        if self.loop.total == step:
            raise Killed
        return real(self, batch)

    monkeypatch.setattr(trainer.Trainer, "update", update)
    with pytest.raises(Killed):
        pretrain(config)
    monkeypatch.setattr(trainer.Trainer, "update", real)


def test_a_run_killed_on_either_side_of_the_switch_goes_on_bit_for_bit(tiny, monkeypatch):
    keys = (*PLAIN, "schedule=run", "save_minutes=0")
    whole = pretrain(tiny(*keys, "name=whole", stages=stages("one", "two")))
    config = tiny(*keys, "name=killed", stages=stages("one", "two"))
    for step in (1, 2, 3):  # the pool switches after two steps
        killed_at(step, config, monkeypatch)
    folder = pretrain(config)
    assert_same_weights(last(whole), last(folder))
    logs = [RunFolder(f, config, main=False).metrics() for f in (whole, folder)]
    assert logs[0] == logs[1] and len(rates(folder)) == 4
    momentum = [last(f)["resume"]["optimizer"]["state"][0]["momentum_buffer"] for f in (whole, folder)]
    assert (momentum[0] == momentum[1]).all()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages.1.learning_rate=0.25",
            "stages.1.learning_rate is 0.25 and stages.0.learning_rate is 0.5: with schedule=run",
        ),
        ("stages.1.warmup=0.5", "stages.1.warmup is 0.5"),
        ("stages.1.projector=reset", "stages.1.projector is reset: with schedule=run it is kept"),
        ("schedule=runs", "schedule: 'runs' is not one of stage, run; did you mean 'run'"),
        (
            "stages.0.data=[{path: one, share: 0.5}, {path: two, share: 0.4}]",
            "stages.0.data: the shares .* add up to 0.9",
        ),
        (
            "stages.0.data=[{path: one, share: 0.7}, {path: two, share: 0.7}]",
            "stages.0.data: the shares .* add up to 1.4",
        ),
        ("stages.0.data=[{path: one, share: 1.0}, {path: two}]", "stages.0.data.1.share: the other sources take all"),
    ],
)
def test_mistakes_name_the_key(tiny, override, message):
    with pytest.raises(ValueError, match=message):
        settings.check(tiny(*PLAIN, "schedule=run", override, stages=stages("one", "two")))


def test_a_replay_of_sources_with_shares_is_refused(tiny):
    with pytest.raises(ValueError, match="stages.1.replay draws from the earlier stages by size"):
        settings.check(tiny(*PLAIN, "stages.0.data.0.share=1.0"))


def test_a_source_gets_its_share_and_the_rest_goes_by_size():
    assert pools.source_shares([100, 300, 50], 0.0, [0.0, 0.0, 0.2]) == pytest.approx([0.2, 0.6, 0.2])
    assert pools.source_shares([100, 300], 1.0, [0.25, 0.75]) == [0.25, 0.75]
    assert pools.source_shares([100, 300], 0.0, [0.0, 0.0]) == pools.source_shares([100, 300], 0.0) == [0.25, 0.75]


def test_a_share_of_a_source_without_images_is_an_error(textures, tmp_path, monkeypatch):
    where = pools.Locations(tmp_path, 48, (0.8, 0.1, 0.1), root=str(textures))
    sources = [pools.SourceConfig("one", share=0.5), pools.SourceConfig("two", share=0.5)]
    real = pools.build_pool

    def without_the_first(*arguments, **more):
        pool = real(*arguments, **more)
        return pools.Pool(pool.datasets, [pool.parts[0][:0], pool.parts[1]], [[], pool.part_labels[1]])

    monkeypatch.setattr(pools, "build_pool", without_the_first)
    with pytest.raises(ValueError, match=r"stages.0.data.0.share: one has no image to train on"):
        pools.stage_pools([SimpleNamespace(data=sources)], [], where, 0)


def test_the_fold_of_a_protected_set_is_kept_out_of_the_pool(textures, tmp_path):
    """The same folder stands in for near-duplicates: what the fold holds back must go, what it does not may stay."""
    where = pools.Locations(tmp_path, 48, (0.6, 0.2, 0.2), root=str(textures))
    config = settings.DataConfig(protect=["one"], protect_folds=3, protect_fold=1)
    stage = SimpleNamespace(data=[pools.SourceConfig("one", split="all"), pools.SourceConfig("two")])
    [pool] = pools.stage_pools([stage], config.protected(), where, 0)
    [dataset] = pools.open_sources([pools.SourceConfig("one", folds=3, fold=1)], "data", where)
    held = np.flatnonzero(np.isin(dataset.splits, ["val", "test"]))
    seen = {pool.training.datasets[0].sha256[i] for i in pool.training.parts[0]}
    assert seen and not seen & {dataset.sha256[i] for i in held}
    [other] = pools.stage_pools([copy.copy(stage)], settings.DataConfig(protect=["one"]).protected(), where, 0)
    assert seen != {other.training.datasets[0].sha256[i] for i in other.training.parts[0]}
