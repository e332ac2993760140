"""Cross-fitted tables: each seed is tested on a fold that its encoder never saw; contrasts are paired; mistakes are named."""

import csv
import json

import numpy as np
import pytest
import yaml

from tests.conftest import ROOT, TINY
from tests.tables.test_tables import load
from vfm4us import config
from vfm4us.data import pools
from vfm4us.data.prepare import open_or_prepare
from vfm4us.pretraining.settings import PretrainingConfig
from vfm4us.tables import report
from vfm4us.tables.leakage import check_leakage
from vfm4us.tables.plan import TableConfig, list_cells, list_pretrainings, make_plan, merge
from vfm4us.tables.run import work
from vfm4us.tasks import base

C_THEN_F = "C->F - F"


@pytest.fixture
def write_folds(textures, tmp_path, monkeypatch):
    """A function that writes t.yaml: arms F and C->F (the pool switches at half time) and random, two folds; keys are laid over."""
    monkeypatch.chdir(tmp_path)
    data = {"size": 48, "root": str(textures), "splits": [0.6, 0.2, 0.2], "cache": str(textures / "cache")}
    plain = {"emp_ssl": TINY["emp_ssl"] | {"adversary": {"weight": 0.0}, "masking": {"strategy": "none"}}}
    stage = {"epoch_images": 16, "learning_rate": 0.3}
    both = [stage | {"name": n, "epochs": 1, "data": [{"path": p}]} for n, p in (("first", "two"), ("then", "one"))]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(TINY | plain | {"data": data, "schedule": "run", "stages": both}))
    alone = [stage | {"name": "fine", "epochs": 2, "data": [{"path": "one"}]}]

    def write(**more):
        shared = {"config": "two.yaml", "stages": ["as configured"]}
        keys = {
            "name": "t",
            "folds": 2,
            "pretraining_seeds": [0, 1],
            "against": ["random", ""],
            "contrasts": [["C->F", "F"]],
            "encoders": {"random": {}, "F": shared | {"keys": {"stages": alone}}, "C->F": dict(shared)},
            "tasks": {
                "representation": {
                    "scores": ["whole linear balanced_accuracy", "whole knn auroc"],
                    "cells": {
                        "seeds": [0, 1],
                        "embeddings": ["whole", "square", "patches"],
                        "data": {k: data[k] for k in ("size", "splits", "cache")} | {"with_test": True},
                    },
                    "axes": {"dataset": {"one": {"data": {"path": "{data}/one"}}}},
                }
            },
        }
        merge(keys, more)
        (tmp_path / "t.yaml").write_text(yaml.safe_dump(keys, sort_keys=False))
        return tmp_path / "t.yaml"

    return write


def test_every_image_is_tested_by_an_encoder_and_a_probe_that_never_saw_it(write_folds, textures, tmp_path):
    settings = load(write_folds(), f"data={textures}")
    plan = make_plan(settings)
    line = check_leakage(plan)["representation"]
    dataset = open_or_prepare(textures / "one", textures / "cache", 48, (0.6, 0.2, 0.2))
    used = int((dataset.splits != "exclude").sum())
    assert f"none of the test images ({used} of one)" in line, "those of both folds and the test split"
    for job in plan.pretrainings:
        run = job.config
        assert (run.data.protect, run.data.protect_folds, run.data.protect_fold) == (["one"], 2, run.seed)
        assert [(s.folds, s.fold) for stage in run.stages for s in stage.data if s.path == "one"] == [(2, run.seed)]
    work(plan, "now", say=str)
    assert all(job.finished for job in plan.jobs), [job.error.read_text() for job in plan.jobs if job.error.is_file()]
    steps = {
        job.name: json.loads((job.folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        for job in plan.pretrainings
    }
    assert steps == dict.fromkeys(["encoders/f-0", "encoders/f-1", "encoders/c-f-0", "encoders/c-f-1"], 4)
    times = {path: 0 for path in (r.path for r in dataset.records)}
    for seed in (0, 1):
        outcome = base.read_outcome(tmp_path / f"logs/t/representation-one-c-f/seed-{seed}")
        assert outcome["fold"].tolist() == [seed, 2] and np.allclose(outcome["patches linear"].sum(1), 1)
        for path in outcome["paths"].tolist():
            times[path] += 1
        seen = pools.open_sources(
            [pools.SourceConfig("one", folds=2, fold=seed)], "data", plan.pretrainings[0].config.data.locations()
        )[0]
        assert not set(seen.groups[seen.indices("train")]) & set(outcome["groups"])
    splits = dict(zip((r.path for r in dataset.records), dataset.splits, strict=True))
    assert {splits[p]: n for p, n in times.items()} == {"train": 1, "val": 1, "test": 2}

    text = report.write(settings, plan, {"representation": line})
    assert "| dataset | method | whole linear balanced accuracy | minus random | p |" in text
    assert "| whole linear balanced accuracy: contrast | one | p | p, Holm | 90 % interval | within +- 0.015 |" in text
    assert f"| {C_THEN_F} | " in text and "The 95 % interval of a difference here is" in text
    assert "part s modulo 2" in text and "paired in seeds, folds and test images" in text
    assert "size and shape of the image files alone: one 0." in text and "Every encoder sees 32 images." in text
    metrics = json.loads((tmp_path / "logs/t/metrics.json").read_text())
    figure = metrics["metrics"][f"representation/one/{C_THEN_F}/whole linear auroc"]
    assert len(figure["per_seed"]) == 2 and {"mean", "low", "high", "p", "equivalence"} <= figure.keys()
    assert "representation/one/F/test square knn balanced_accuracy" in metrics["metrics"] and not metrics["missing"]
    rows = list(csv.DictReader((tmp_path / "logs/t/results.csv").open()))
    assert {r["method"] for r in rows} == {"random", "F", "C->F"} and {r["seed"] for r in rows} == {"0", "1"}
    for name in ("representation.png", "representation_contrasts.png"):
        assert (tmp_path / "logs/t" / name).stat().st_size > 0


def test_an_encoder_that_saw_its_fold_is_found(write_folds, textures):
    plan = make_plan(load(write_folds(), f"data={textures}", "encoders.C->F=null"))
    for job in plan.pretrainings:
        job.config.stages[0].data[0].split = "all"
    assert "none of the test images" in check_leakage(plan)["representation"], "the pool leaves out what is protected"
    for job in plan.pretrainings:
        job.config.data.protect = []
    with pytest.raises(
        ValueError, match=r"encoders/f-0 is pretrained on (\S+) of one\S*, which equals \1, a test image"
    ):
        check_leakage(plan)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("folds=3", r"folds 3 with tasks.representation.cells.seeds \[0, 1\]: .*fold 2 has no seed"),
        ("pretraining_seeds=[1,0]", r"pretraining_seeds \[1, 0\]: "),
        ("contrasts=[[C->F, G]]", "contrasts: 'G' is no arm of this table; its arms are: random; F; C->F"),
        ("contrasts=[[F, F]]", "are not two different arms"),
        ("against=[random]", "against: .*give a method and its stage"),
        (
            "tasks.representation.means={all: [tow]}",
            "tasks.representation.means.all: 'tow' is no setting of this task: one",
        ),
        ("tasks.representation.cells.embeddings=[hole]", "embeddings.0: 'hole' is not one of whole, square, patches"),
        ("encoders.F.stages=[as confgured]", "encoders.F.stages: 'as confgured' is not one of coarse.* as configured"),
    ],
)
def test_mistakes_name_the_key(write_folds, textures, override, message):
    with pytest.raises(ValueError, match=message):
        make_plan(load(write_folds(), f"data={textures}", override))


def test_a_task_that_cannot_be_cross_fitted_says_so(textures, tmp_path):
    data = base.TaskDataConfig(str(textures / "one"), 48, cache=str(tmp_path), folds=2)
    with pytest.raises(ValueError, match="data.folds: 2, but this task cannot be cross-fitted"):
        base.open_dataset(data, "images")
    assert set(base.open_dataset(data, "images", seed=1).splits) == {"train", "val", "test", "exclude"}


def planned(name: str) -> dict[str, PretrainingConfig]:
    settings = config.load(TableConfig, ROOT / "configs/tables" / name, ["data=DIR"])
    pretrainings = list_pretrainings(settings)
    assert list_cells(settings, pretrainings)
    return {p.method: p.config for p in pretrainings if p.config.seed == 0}


def doses(run: PretrainingConfig) -> dict[str, int]:
    """Images of each source that a run draws, by its own shares: the sizes of the sources play no part."""
    drawn: dict[str, int] = {}
    for stage in run.stages:
        shares = pools.source_shares([1000] * len(stage.data), stage.balance, [s.share for s in stage.data])
        for epoch in range(stage.epochs):
            order = pools.epoch_order([1000] * len(stage.data), shares, stage.epoch_images, (0, epoch))
            for source, count in zip(stage.data, np.bincount(order // 1000, minlength=len(stage.data)), strict=True):
                drawn[source.path] = drawn.get(source.path, 0) + int(count)
    return drawn


def test_the_protocols_arms_see_what_it_says():
    arms = planned("coarse_to_fine.yaml")
    assert list(arms) == ["C", "F", "M", "C->F", "F->C"]
    seen = {name: doses(run) for name, run in arms.items()}
    assert seen["M"] == seen["C->F"] == seen["F->C"], "exactly the doses of C->F"
    assert not set(seen["C"]) & set(seen["F"]) and set(seen["M"]) == set(seen["C"]) | set(seen["F"])
    assert {name: sum(of.values()) for name, of in seen.items()} == dict.fromkeys(arms, sum(seen["C"].values()))
    for run in arms.values():
        assert sum(doses(run).values()) * run.emp_ssl.patches.count >= 120_000 and run.schedule == "run"
        assert len({(s.learning_rate, s.warmup, s.projector, s.replay) for s in run.stages}) == 1
    order = {name: [stage.data[0].path for stage in run.stages] for name, run in arms.items()}
    assert order["C->F"] == order["F->C"][::-1]
    targets = {"data/busi", "data/liver", "data/gallbladder", "pool/breast_busbra"}
    assert set(seen["F"]) == targets and not [p for p in seen["C"] if "breast" in p or "busi" in p]
