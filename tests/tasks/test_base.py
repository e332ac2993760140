"""What every task shares: figures and differences equal what is worked out by hand, a finished seed is not repeated."""

import json

import numpy as np
import pytest
import torch

from vfm4us import checkpoints, markdown
from vfm4us.checkpoints import seen
from vfm4us.evaluation import statistics
from vfm4us.runtime.files import write_text
from vfm4us.runtime.run import RunFolder
from vfm4us.tasks import base, command_line


def mean_dice(outcome, counts):
    return {"dice": counts @ outcome["dice"] / counts.sum(1)}


def outcome_of(dice, groups=None, **more):
    paths = np.array([f"{i}.png" for i in range(len(dice))])
    return {
        "paths": paths,
        "groups": paths if groups is None else np.array(groups),
        "dice": np.array(dice, float),
    } | more


def test_a_figure_per_image_has_its_mean_and_an_interval_as_wide_as_its_groups_are_few():
    rng = np.random.default_rng(0)
    dice = rng.uniform(0.4, 1, 120)
    [single] = statistics.figures(mean_dice, [outcome_of(dice)]).values()
    assert single["mean"] == pytest.approx(dice.mean()) and single["per_seed"] == [pytest.approx(dice.mean())]
    half = 1.96 * dice.std() / 120**0.5
    assert (single["high"] - single["low"]) / 2 == pytest.approx(half, rel=0.08)
    patients = np.repeat(np.arange(12), 10)
    same = np.repeat(rng.uniform(0.4, 1, 12), 10)  # ten like images of a patient say no more than one
    [grouped] = statistics.figures(mean_dice, [outcome_of(same, patients)]).values()
    [apart] = statistics.figures(mean_dice, [outcome_of(same)]).values()
    assert grouped["high"] - grouped["low"] > 2.5 * (apart["high"] - apart["low"])


def test_shares_stay_within_0_and_1_and_what_is_unbounded_does_not():
    wide = outcome_of([0.0, 1.0, 1.0, 1.0])

    def score(outcome, counts):
        return mean_dice(outcome, counts) | {"hd95": 40 * mean_dice(outcome, counts)["dice"]}

    figures = statistics.figures(score, [wide], unbounded=("hd95",))
    assert figures["dice"]["high"] == 1.0 and figures["hd95"]["high"] > 40 and figures["hd95"]["low"] >= 0


def test_a_figure_that_is_not_defined_is_left_out_and_a_resample_that_misses_a_class_too():
    def score(outcome, counts):
        rare = counts[:, 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            return mean_dice(outcome, counts) | {"rare": rare / rare, "never": np.full(len(counts), np.nan)}

    figures = statistics.figures(score, [outcome_of(np.linspace(0, 1, 20))])
    assert set(figures) == {"dice", "rare"} and figures["rare"]["mean"] == 1.0


def test_a_perfect_score_of_few_images_is_not_certain():
    """Every resample of it says the same: the limits are those of 5 right of 5, from a table of Clopper and Pearson's."""
    perfect = statistics.figures(mean_dice, [outcome_of(np.ones(5))])["dice"]
    assert perfect["mean"] == perfect["high"] == 1.0 and perfect["low"] == pytest.approx(0.4782, abs=1e-4)
    none = statistics.figures(mean_dice, [outcome_of(np.zeros(20))])["dice"]
    assert none["mean"] == none["low"] == 0.0 and none["high"] == pytest.approx(0.1684, abs=1e-4)
    assert statistics.share_limits(0.5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    flat = statistics.figures(mean_dice, [outcome_of(np.full(20, 3.0))], unbounded=("dice",))["dice"]
    assert flat["mean"] == 3.0 and "low" not in flat, "of a distance nothing of the kind is known"
    assert "of 5 groups" in statistics.few_groups([outcome_of(np.ones(5))])
    assert statistics.few_groups([outcome_of(np.ones(20))]) == ""


def test_differences_are_paired_in_the_images_and_averaged_over_datasets():
    rng = np.random.default_rng(0)
    hard = rng.uniform(0, 0.8, 100)
    ours, theirs = [outcome_of(hard + 0.1)], [outcome_of(hard)]
    [figures] = statistics.differences(mean_dice, [(ours, theirs)]).values()
    assert figures["mean"] == pytest.approx(0.1) and figures["high"] - figures["low"] < 1e-6, (
        "every image gains the same"
    )
    [none] = statistics.differences(mean_dice, [(ours, ours)]).values()
    assert none == {"mean": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    other = [outcome_of(rng.uniform(0, 1, 40))]
    [both] = statistics.differences(mean_dice, [(ours, theirs), (other, other)]).values()
    assert both["mean"] == pytest.approx(0.05)
    noisy = [outcome_of(np.clip(hard + rng.normal(0.1, 0.1, 100), 0, 1)) for _ in range(3)]
    [spread] = statistics.differences(mean_dice, [(noisy, theirs)]).values()
    assert spread["low"] < spread["mean"] < spread["high"] and spread["low"] > 0 and 0 < spread["p"] < 0.05
    close = [outcome_of(np.clip(hard + rng.normal(0.005, 0.1, 100), 0, 1)) for _ in range(3)]
    [hardly] = statistics.differences(mean_dice, [(close, theirs)]).values()
    assert (hardly["p"] > 0.05) == (hardly["low"] < 0 < hardly["high"]), "the test and the interval agree"
    with pytest.raises(ValueError, match="tested on different images"):
        statistics.differences(mean_dice, [(ours, other)])


def test_seeds_are_run_once_refused_when_changed_and_summed_up_by_the_protocol_of_the_first(tmp_path):
    settings = base.TaskConfig(name="t", logs=str(tmp_path), seeds=[3, 5])
    ran = []

    def train(config, folder):
        RunFolder(folder, config, config.resume).close()
        ran.append((config.seed, folder.name))
        base.write_outcome(folder, outcome_of([0.5, 0.7]))
        write_text(folder / "metrics.json", json.dumps({"protocol": {"duplicates": "none"}, "seeds": [config.seed]}))

    folders = base.run_each_seed(settings, train, str)
    assert ran == [(3, "seed-3"), (5, "seed-5")]
    said = []
    assert base.run_each_seed(settings, train, said.append) == folders
    assert len(ran) == 2 and len(said) == 2 and all("is finished" in line for line in said)
    result = statistics.figures(mean_dice, [base.read_outcome(folder) for folder in folders])
    base.write_summary(folders, settings.seeds, result)
    whole = base.read_metrics(tmp_path / "t")
    assert whole["protocol"] == {"duplicates": "none"} and whole["seeds"] == [3, 5]
    assert whole["metrics"]["dice"]["per_seed"] == [pytest.approx(0.6)] * 2
    assert "| dice | 0.600 |" in (tmp_path / "t" / "table.md").read_text()
    settings.precision = "bfloat16"
    with pytest.raises(ValueError, match="precision: 'auto' -> 'bfloat16'"):
        base.run_each_seed(settings, train, str)
    settings.resume = False
    base.run_each_seed(settings, train, str)
    assert len(ran) == 4
    for seeds, message in (([], "seeds is empty"), ([1, 1], "names a seed twice")):
        settings.seeds = seeds
        with pytest.raises(ValueError, match=message):
            base.run_each_seed(settings, train, str)
    with pytest.raises(FileNotFoundError, match="one seed of a finished run"):
        base.read_outcome(tmp_path)


def test_a_table_shows_a_dozen_classes_and_leaves_a_thousand_to_the_file():
    few = {"dice": {"mean": 0.5, "low": 0.4, "high": 0.6}} | {f"recall {i}": {"mean": 0.1} for i in range(12)}
    assert base.table(few, 1).count("| recall ") == 12 and "| dice | 0.500 | 0.400 to 0.600 |" in base.table(few, 1)
    assert "recall" not in base.table(few | {"recall 12": {"mean": 0.1}}, 1)
    assert markdown.cell({"mean": 0.1, "low": -0.02, "high": 0.2}, "+") == "+0.100 (-0.02 to +0.20)"
    assert markdown.cell(None) == "-"


@pytest.mark.parametrize("seeds", ["[3]", "[0,1]"])
def test_the_conclusion_is_said_once(monkeypatch, seeds):
    class Trained(base.Task):
        def run_seeds(self, settings):
            if len(settings.seeds) == 1:
                said.append(self.conclusion({}))  # as run_seed says it of each seed
            return {}

        def conclusion(self, result):
            return "it was worth it"

    said: list[str] = []
    monkeypatch.setattr(base, "task_named", lambda name: Trained())
    monkeypatch.setattr(base, "table", lambda result, seeds: "a table")
    monkeypatch.setattr("vfm4us.log.say", said.append)
    monkeypatch.setattr("sys.argv", ["train.py", "data.path=DIR", f"seeds={seeds}"])
    command_line.train("classification", "doc")
    assert "\n".join(said).count("it was worth it") == 1


def test_what_weights_have_seen_is_listed_or_stated(tmp_path, monkeypatch):
    known = seen.seen("open")
    assert len(known) > 7_000 and (seen.seen("a/vfm4us_resnet18_open.safetensors") == known).all()
    some = [f"{k:064x}" for k in range(3)] + ["f" * 64]
    assert seen.digests(["f" * 64, "0" * 15 + "1"]).tolist() == [-1, 1]
    checkpoints.save(
        tmp_path / "new.pt", {"trained_on": {"digests": seen.kept(seen.digests(some), seen.digests(some))}}
    )
    assert seen.among([*some, "e" * 64], seen.seen(str(tmp_path / "new.pt"))).tolist() == [True] * 4 + [False]
    for older in ({}, {"trained_on": {"mean_grey": []}}, {"trained_on": {"digests": torch.ones(2)}}, {"trained_on": 3}):
        checkpoints.save(tmp_path / "old.pt", older)
        assert len(seen.seen(str(tmp_path / "old.pt"))) == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").mkdir()  # somebody's images
    assert len(seen.seen("imagenet")) == len(seen.seen("none")) == len(seen.seen("timm:resnet18")) == 0
