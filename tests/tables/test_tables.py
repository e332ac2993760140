"""Tables of methods: pretrained once, kept, continued, by one process or several; nothing seen that is tested; honest columns."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from tests.conftest import ROOT, TINY
from tests.running import script_soon
from vfm4us import checkpoints, config
from vfm4us.checkpoints import seen
from vfm4us.data.prepare import open_or_prepare
from vfm4us.runtime.signals import exit_code
from vfm4us.tables import report
from vfm4us.tables.leakage import _of_given, check_leakage
from vfm4us.tables.plan import STAGES, TASKS, Pretraining, TableConfig, make_plan, merge
from vfm4us.tables.run import work
from vfm4us.tasks.finetune import InitialEncoderConfig, make_encoder
from vfm4us.tasks.settings import TaskDataConfig

SCRIPT = ROOT / "scripts" / "reproduce_tables.py"


@pytest.fixture
def write_table(textures, tmp_path, monkeypatch):
    """A function that writes t.yaml, a table of two methods and k-NN on `one`, in a fresh working directory; keys are laid over."""
    monkeypatch.chdir(tmp_path)
    stages = [
        {"name": n, "epochs": 1, "epoch_images": 16, "learning_rate": 0.3, "data": [{"path": p}]}
        for n, p in (("coarse", "one"), ("fine", "two"))
    ]
    data = {"size": 48, "root": str(textures), "splits": [0.6, 0.2, 0.2], "cache": str(textures / "cache")}
    plain = {"emp_ssl": TINY["emp_ssl"] | {"adversary": {"weight": 0.0}, "masking": {"strategy": "none"}}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(TINY | plain | {"data": data, "stages": stages}))
    shared = {k: data[k] for k in ("size", "splits", "cache")}

    def write(**more) -> Path:
        keys = {
            "name": "t",
            "encoders": {"random": {}, "VFM4US": {"config": "two.yaml"}},
            "tasks": {
                "classification": {
                    "scores": ["accuracy"],
                    "cells": {"seeds": [0, 1], "mode": "knn", "pictures": False, "data": dict(shared)},
                    "axes": {"dataset": {"one": {"data": {"path": "{data}/one"}}}},
                }
            },
        }
        merge(keys, more)
        (tmp_path / "t.yaml").write_text(yaml.safe_dump(keys, sort_keys=False))
        return tmp_path / "t.yaml"

    return write


def load(file: Path, *overrides: str) -> TableConfig:
    return config.load(TableConfig, file, overrides)


def command(*arguments: str, folder: Path, start=subprocess.run, **more):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = [sys.executable, str(SCRIPT), "--config", "t.yaml", *arguments]
    return start(whole, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def contents(folder: Path) -> dict[str, str]:
    """What was found, without what differs from run to run: the times and folders."""
    return {name: (folder / "logs/t" / name).read_text() for name in ("results.csv", "differences.csv")}


def test_one_process_and_two_that_were_stopped_write_the_same_and_keep_what_is_finished(
    write_table, textures, tmp_path
):
    file = write_table()
    done = command(f"data={textures}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    once, out = contents(tmp_path), tmp_path / "logs/t"
    steps = {
        p.parent.name: json.loads(p.read_text().splitlines()[-1])["step"] for p in out.glob("encoders/*/metrics.jsonl")
    }
    assert steps == dict.fromkeys([f"vfm4us-{s}-0" for s in STAGES], 4), "each stage alone as many images as both"
    text = (out / "tables.md").read_text()
    assert (
        "| dataset | method | top-1, not pretrained here | top-1, coarse | top-1, fine | top-1, coarse-to-fine |"
        in text
    )
    assert re.search(r"Leakage: none of the test images \(\d+ of one\) equals or nearly equals", text)
    assert (
        "Every encoder sees 32 images." in text
        and "published" not in text
        and "Pretraining seed 0 for all runs" in text
    )
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert {(r["method"], r["stage"]) for r in rows} == {("random", ""), *(("VFM4US", s) for s in STAGES)}
    mean = [
        float(r["value"])
        for r in rows
        if r["method"] == "random" and r["setting"] == "one" and r["metric"] == "accuracy"
    ]
    assert len(mean) == 2 and f"| one | random | {sum(mean) / 2:.3f} (" in text
    assert (out / "classification.png").is_file()

    record = out / "encoders/vfm4us-coarse-0/run.json"
    starts = json.loads(record.read_text())
    record.write_text(
        json.dumps([starts[0] | {"commit": "0123456789", "dirty": True}])
    )  # made with other code than the rest

    before = {p: p.stat().st_mtime_ns for p in [*out.glob("**/encoder.pt"), *out.glob("*/**/metrics.json")]}
    again = script_soon(SCRIPT, "--config", "t.yaml", f"data={textures}", "workers=0", cwd=tmp_path)
    assert again.returncode == 0 and contents(tmp_path) == once
    text = (out / "tables.md").read_text()
    assert "commit 0123456 with changes" in text and f"; torch {torch.__version__}; " in text
    assert not starts[0]["commit"] or f"commit {starts[0]['commit'][:7]}" in text
    assert {p: p.stat().st_mtime_ns for p in before} == before and len(before) == 3 + 4 + 8

    other = tmp_path / "other"
    other.mkdir()
    for name in ("t.yaml", "two.yaml"):
        (other / name).write_text((tmp_path / name).read_text())
    child = command(f"data={textures}", "workers=2", folder=other, start=subprocess.Popen)
    limit = time.monotonic() + 300
    while not list(other.glob("logs/t/encoders/*/encoder.pt")):
        assert child.poll() is None and time.monotonic() < limit, child.communicate()
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    said, errors = child.communicate(timeout=120)
    assert child.returncode == 130 and "the same command goes on" in said, errors
    assert not (other / "logs/t/results.csv").exists()
    done = command(f"data={textures}", "workers=2", folder=other)
    assert done.returncode == 0 and contents(other) == once, done.stderr
    assert file.is_file()


def test_a_cell_that_fails_and_one_without_data_are_named_and_the_others_run(
    write_table, textures, tmp_path, monkeypatch, capsys
):
    from tests.conftest import module_of

    data = {"gone": {"data": {"path": "{data}/BUSI"}}, "broken": {"data": {"path": "{data}/one/fine"}}}
    write_table(
        encoders={"VFM4US": None}, tasks={"classification": {"axes": {"dataset": data}, "cells": {"seeds": [0]}}}
    )
    monkeypatch.setattr(sys, "argv", ["reproduce_tables.py", "--config", "t.yaml", f"data={textures}"])
    assert exit_code(module_of(SCRIPT).main) == 1
    said = capsys.readouterr().out
    assert "| gone | random | absent | - | - |" in said and "data absent: " in said
    assert "get BUSI, Breast ultrasound images (Al-Dhabyani 2020" in said
    error = tmp_path / "logs/t/classification-broken-random/error.txt"
    [line] = [x for x in said.splitlines() if x.startswith("FAILED: ") and "(see " in x]
    assert "classification-broken-random: ValueError: " in line and f"(see {error.relative_to(tmp_path)})" in line
    assert "Traceback" in error.read_text() and "classification needs two" in error.read_text()
    assert (tmp_path / "logs/t/classification-one-random/metrics.json").is_file()
    monkeypatch.setattr(sys, "argv", ["reproduce_tables.py", "--config", "t.yaml", "data=nowhere"])
    assert exit_code(module_of(SCRIPT).main) == 2 and "no cell can be run" in capsys.readouterr().err


def test_a_test_image_in_a_pretraining_pool_is_an_error_that_names_it(write_table, textures):
    plan = make_plan(load(write_table(), f"data={textures}"))
    assert "none of the test images" in check_leakage(plan)["classification"]
    seen = {"stages": {0: {"data": {0: {"split": "all"}}}}}
    leaky = make_plan(load(write_table(pretraining=seen), f"data={textures}"))
    with pytest.raises(
        ValueError, match=r"vfm4us-coarse-0 is pretrained on (\S+) of one\S*, which equals \1, a test image"
    ):
        check_leakage(leaky)
    guarded = load(write_table(pretraining=seen | {"data": {"protect": ["one"]}}), f"data={textures}")
    assert "none of the test images" in check_leakage(make_plan(guarded))["classification"]


def test_a_held_claim_is_respected_and_a_job_whose_holder_was_killed_is_a_failure(write_table, textures):
    plan = make_plan(load(write_table(), f"data={textures}", "only=['*one-random']"))
    [cell] = plan.jobs
    with cell.claim() as ours, cell.claim() as theirs:
        assert ours is not None and theirs is None
    (cell.folder / ".claim").write_text("now")
    work(plan, "now", say=str)
    assert cell.failed("now") and not cell.failed("later") and not cell.finished and "killed" in cell.error.read_text()
    work(plan, "later", say=str)
    assert cell.finished and not cell.error.exists(), "another call tries it again"
    assert not (cell.folder / ".claim").exists()


def test_shards_share_the_cells_and_keep_those_of_an_encoder_together(write_table, textures):
    file = write_table()
    whole = make_plan(load(file, f"data={textures}"))
    parts = [make_plan(load(file, f"data={textures}", f"shard={k}/3")) for k in (1, 2, 3)]
    assert sorted(c.name for p in parts for c in p.wanted) == sorted(c.name for c in whole.cells)
    encoders = [job.name for part in parts for job in part.jobs if isinstance(job, Pretraining)]
    assert sorted(encoders) == sorted(p.name for p in whole.pretrainings)
    for wrong in ("3/2", "0/2", "half"):
        with pytest.raises(ValueError, match="shard: "):
            make_plan(load(file, f"data={textures}", f"shard={wrong}"))


def test_several_pretraining_seeds_go_with_the_seeds_of_the_cells(write_table, textures):
    plan = make_plan(load(write_table(), f"data={textures}", "pretraining_seeds=[0,1]"))
    assert [p.config.seed for p in plan.pretrainings] == [0, 0, 0, 1, 1, 1]  # whole seeds, if it is stopped half-way
    cell = next(c for c in plan.cells if c.stage == "fine")
    assert cell.config.encoder.weights == "logs/t/encoders/vfm4us-fine-{seed}/encoder.pt" and len(cell.needs) == 2
    with pytest.raises(ValueError, match="give one for all runs, or the cells' own seeds"):
        make_plan(load(write_table(), f"data={textures}", "pretraining_seeds=[0,5]"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoders.VFM4US.stages=[corse]", "encoders.VFM4US.stages: 'corse' is not one of coarse, fine"),
        ("encoders.VFM4US.confg=x", "unknown config key 'encoders.VFM4US.confg': did you mean 'config'"),
        (
            "encoders.VFM4US.keys.pathces.size=8",
            "encoders.VFM4US: unknown config key 'pathces'",
        ),
        ("encoders.VFM4US.config=configs/pretraining/folder.yaml", "encoders.VFM4US: .*a comparison needs two stages"),
        ("tasks.clasification={}", "tasks.clasification: known tasks are classification"),
        ("tasks.classification.cells.mdoe=knn", "cell classification-one-random: unknown config key 'mdoe'"),
        ("tasks.classification.axes={}", "tasks.classification.axes: give at least one axis"),
        ("only=[nothing]", "only: .* matches no cell; they are: classification-one-random"),
    ],
)
def test_mistakes_name_the_encoder_or_cell_and_the_key(write_table, textures, override, message):
    with pytest.raises(ValueError, match=message):
        make_plan(load(write_table(), f"data={textures}", override))


def test_keys_of_a_method_by_their_old_names_are_laid_over_a_config_of_the_new_ones(write_table, textures):
    file = write_table(pretraining={"masking": {"strategy": "random"}})
    plan = make_plan(load(file, f"data={textures}", "encoders.VFM4US.keys={adversary: {weight: 0.2}}"))
    assert {p.config.emp_ssl.adversary.weight for p in plan.pretrainings} == {0.2}
    assert {p.config.emp_ssl.masking.strategy for p in plan.pretrainings} == {"random"}


def test_published_numbers_stand_beside_the_published_dataset_alone(write_table, textures, monkeypatch):
    axes = {"dataset": {"two": {"data": {"path": "{data}/two"}}}}
    file = write_table(tasks={"classification": {"axes": axes, "cells": {"seeds": [0]}}})
    settings = load(file, f"data={textures}", "encoders={VFM4US: {}}", "against=[VFM4US,'']")
    plan = make_plan(settings)
    work(plan, "now", say=str)
    row = {
        "dataset": "one",
        "images": "60",
        "task": "classification",
        "metric": "accuracy",
        "method": "VFM4US",
        "stage": "",
        "value": "86.47",
        "source": "a paper",
    }
    monkeypatch.setattr(report, "read_published", lambda: [row])
    text = report.write(settings, plan)
    lines = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert (
        lines["| one"].endswith("| 0.865 |")
        and lines["| two"].endswith("| - |")
        and "Published elsewhere: a paper." in text
    )
    for key, value in (
        ("images", "780"),
        ("dataset", "busi"),
        ("method", "USFM"),
        ("metric", "auroc"),
        ("task", "segmentation"),
    ):
        monkeypatch.setattr(report, "read_published", lambda key=key, value=value: [row | {key: value}])
        assert "ublished" not in report.write(settings, plan), f"another {key}"


def test_the_published_rows_are_complete():
    rows = report.read_published.__wrapped__()
    assert len(rows) > 50 and all(all(row.values()) and 0 < float(row["value"]) < 100 for row in rows)
    assert {row["task"] for row in rows} == set(TASKS) - {"representation"}
    assert [
        r["value"] for r in rows if (r["dataset"], r["task"], r["method"]) == ("busi", "classification", "VFM4US")
    ] == ["86.47"]


def test_random_weights_of_a_transformer_depend_on_the_seed_and_give_the_vector_that_is_asked_for():
    keys = {"name": "vit_tiny", "patch": 8}
    same, again, other = (make_encoder(InitialEncoderConfig(**keys), seed)[0] for seed in (3, 3, 4))
    x = torch.rand(2, 1, 32, 32)
    assert same.spec.patch == 8 and torch.equal(same(x), again(x)) and not torch.equal(same(x), other(x))
    mean = make_encoder(InitialEncoderConfig(**keys, norm="mean_of_norm"), 3)[0]
    assert not torch.allclose(mean(x), same(x)) and mean(x).shape == (2, 192)
    with pytest.raises(ValueError, match="encoder.weights=imagenet: for resnet18"):
        make_encoder(InitialEncoderConfig(**keys, weights="imagenet"), 3)


def test_tables_of_older_runs_keep_their_cells(write_table, textures):
    """A cell that was run before `encoder.patch` was a key is finished, not another config's; `cells` were `base`."""
    file = write_table(
        encoders={"VFM4US": None}, tasks={"classification": {"base": {"seeds": [0]}, "cells": {"seeds": [0]}}}
    )
    plan = make_plan(load(file, f"data={textures}", "only=['*one-*']"))
    work(plan, "now", say=str)
    for path in plan.jobs[0].folder.glob("seed-*/config.yaml"):
        old = yaml.safe_load(path.read_text())
        del old["encoder"]["patch"]
        path.write_text(yaml.safe_dump(old))
    assert all(job.finished for job in make_plan(load(file, f"data={textures}", "only=['*one-*']")).jobs)
    with pytest.raises(ValueError, match="mode: 'knn' -> 'linear'"):
        make_plan(load(file, f"data={textures}", "only=['*one-*']", "tasks.classification.cells.mode=linear"))


def test_of_a_given_encoder_it_is_said_how_many_test_images_it_has_seen(textures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = InitialEncoderConfig(weights="open")
    data = TaskDataConfig(path=str(textures / "one"), size=48, cache=str(tmp_path / "cache"))
    cell = SimpleNamespace(config=SimpleNamespace(encoder=encoder, data=data, seeds=[0, 1]))
    assert re.search(
        r" ours was pretrained on the sets of weights/sources.csv, .*; 0 of these \d+ test", _of_given("ours", [cell])
    )
    packed = open_or_prepare(textures / "one", tmp_path / "cache", 48, tuple(data.splits))
    had = [packed.sha256[i] for i in packed.indices("test")]
    for seed in (0, 1):
        checkpoints.save(
            tmp_path / f"{seed}.pt", {"trained_on": {"digests": seen.kept(seen.digests(had[seed : seed + 1]))}}
        )
    encoder.weights = "{seed}.pt"
    assert f"2 of these {len(had)} test images are among its images" in _of_given("theirs", [cell])
    encoder.weights = "theirs.pth"
    assert _of_given("theirs", [cell]) == " What theirs was pretrained on is not known here."
