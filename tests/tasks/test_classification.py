"""A classifier is trained, resumed, measured and used as a user would; its figures equal those worked out by hand."""

import copy
import csv
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

import vfm4us
from tests.conftest import ROOT, module_of
from tests.running import script, script_soon
from vfm4us import checkpoints, config
from vfm4us.checkpoints import seen
from vfm4us.data import prepare
from vfm4us.data.records import Record
from vfm4us.data.sources import find_source
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.evaluation import classification as figures
from vfm4us.runtime import signals
from vfm4us.runtime.signals import exit_code
from vfm4us.tasks import base, finetune
from vfm4us.tasks import classification as task
from vfm4us.tasks.trained_on import differences, seen_in_training, trained_on

TRAIN, EVALUATE = (ROOT / "Downstream" / "Classification" / name for name in ("train.py", "evaluate.py"))


def stripes(root, counts: dict[str, int], size=40, seed=0):
    """Class folders of noise with stripes whose direction is the class: a classifier can learn them."""
    rng = np.random.default_rng(seed)
    for k, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            y, x = np.mgrid[:size, :size]
            wave = np.sin((x if k % 2 else y) * (0.5 + 0.4 * (k // 2)) + rng.uniform(0, 6))
            picture = (90 + 60 * wave + rng.normal(0, 25, (size, size))).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(root / name / f"{name} ({i}).png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return stripes(tmp_path_factory.mktemp("stripes"), {"across": 40, "down": 40, "fine": 20})


@pytest.fixture
def build(folder, tmp_path):
    def settings(*overrides: str, path=None) -> task.ClassificationConfig:
        values = {
            "name": "t",
            "logs": str(tmp_path / "logs"),
            "seeds": [0],
            "device": "cpu",
            "head": {"hidden": 16},
            "data": {
                "path": str(path or folder),
                "size": 40,
                "cache": str(tmp_path / "cache"),
                "splits": [0.6, 0.2, 0.2],
            },
            "finetune": {"epochs": 3, "min_steps": 3, "batch_size": 16, "patience": 0},
        }
        for item in overrides:
            config.override(values, item)
        return config.from_dict(task.ClassificationConfig, values)

    return settings


def quiet(*_):
    pass


@pytest.mark.parametrize("mode", ["finetune", "linear", "knn"])
def test_every_mode_leaves_figures_pictures_and_a_classifier_that_predicts_the_same(build, mode, tmp_path):
    settings = build(
        f"mode={mode}", "seeds=[0,1]", "finetune.epochs=6", "finetune.min_steps=40", "finetune.learning_rate=0.003"
    )
    result = task.TASK.run_seeds(settings, quiet)
    assert result["balanced_accuracy"]["mean"] > 0.75, "stripes are easy"
    assert result["accuracy"]["low"] <= result["accuracy"]["mean"] <= result["accuracy"]["high"]
    both = [base.read_outcome(tmp_path / "logs" / "t" / f"seed-{seed}") for seed in (0, 1)]
    together = figures.scores(both[0]["labels"], (both[0]["probabilities"] + both[1]["probabilities"]) / 2)
    for name in figures.SCORES:
        assert len(result[name]["per_seed"]) == 2 and result[f"ensemble {name}"]["mean"] == pytest.approx(
            together[name][0]
        )
    val = [figures.scores(o["val_labels"], o["val_probabilities"])["auroc"][0] for o in both]
    assert result["val_auroc"]["per_seed"] == pytest.approx(val) and len(both[0]["val_labels"]) == 20
    seed = tmp_path / "logs" / "t" / "seed-0"
    pictures = {"confusion.png", "roc.png", "reliability.png", "tsne.png"} | (
        {"grad_cam.png"} if mode != "knn" else set()
    )
    for name in pictures | {
        "metrics.json",
        "predictions.csv",
        "duplicates.csv",
        "classifier.pt",
        "config.yaml",
        "run.json",
    }:
        assert (seed / name).is_file(), name
    written = json.loads((tmp_path / "logs" / "t" / "metrics.json").read_text())
    assert written["protocol"]["mode"] == mode and written["seeds"] == [0, 1]
    assert written["protocol"]["split_unit"] == "group (patient or near-duplicate cluster)"
    model, size = task.load_classifier(seed)
    with open(seed / "predictions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    paths = [f"{settings.data.path}/{row['path']}" for row in rows]
    probabilities = task.classify(model, paths, size)
    said = np.array([[float(row[f"p({c})"]) for c in model.classes] for row in rows])
    np.testing.assert_allclose(probabilities, said, atol=2e-3)
    dropped = vfm4us.load_encoder(seed / "classifier.pt").report.dropped
    assert dropped["head"] > 0 and "trained_on" not in dropped


def test_a_finished_seed_is_not_run_again_and_an_added_one_is(build, tmp_path, monkeypatch):
    task.TASK.run_seeds(build("mode=linear"), quiet)
    said = []
    two = task.TASK.run_seeds(build("mode=linear", "seeds=[0,1]"), said.append)
    assert sum("is finished" in line for line in said) == 1
    summary = json.loads((tmp_path / "logs/t/metrics.json").read_text())
    assert "clusters of near-duplicates" in summary["protocol"]["duplicates"] and summary["seeds"] == [0, 1]

    def loaded(*_):
        raise AssertionError("a finished seed needs neither data nor encoder")

    monkeypatch.setattr(task, "LabelledData", loaded)
    monkeypatch.setattr(base, "make_encoder", loaded)
    assert task.TASK.run_seeds(build("mode=linear", "seeds=[0,1]"), quiet) == two
    with pytest.raises(ValueError, match="smoothing: 0.1 -> 0.3"):
        task.TASK.run_seeds(build("mode=linear", "smoothing=0.3"), quiet)


def test_a_model_that_is_not_kept_leaves_the_figures(build, tmp_path):
    task.TASK.run_seeds(build("mode=linear", "keep_model=false"), quiet)
    assert not list((tmp_path / "logs").rglob("*.pt")) and (tmp_path / "logs/t/seed-0/test.npz").is_file()
    task.TASK.run_seeds(build("mode=linear"), quiet)  # finished whether it is kept or not
    assert not list((tmp_path / "logs").rglob("*.pt"))


def test_weights_that_are_missing_for_a_later_seed_are_said_before_the_first_is_run(build, tmp_path):
    (tmp_path / "encoder-0.pt").touch()
    with pytest.raises(FileNotFoundError, match="encoder-1.pt does not exist"):
        task.TASK.run_seeds(build("seeds=[0,1]", f"encoder.weights={tmp_path}/encoder-{{seed}}.pt"), quiet)
    assert not (tmp_path / "logs").exists()


def test_stopped_anywhere_and_continued_ends_in_the_same_weights(build, tmp_path, monkeypatch):
    settings = build("encoder.freeze_epochs=1", "augment.mixup=0.2")
    task.TASK.run_seeds(settings, quiet)
    whole = checkpoints.read(tmp_path / "logs/t/seed-0/classifier.pt")["state_dict"]

    stopped = copy.deepcopy(settings)
    stopped.name = "stopped"
    real = signals.StopSignal
    for after in (2, 7):  # steps: within the first epoch and later

        class Soon(real):
            count = 0

            @property
            def number(self):
                Soon.count += 1
                return 2 if Soon.count >= after else 0  # noqa: B023

            @number.setter
            def number(self, _):
                pass

        monkeypatch.setattr(signals, "StopSignal", Soon)
        with pytest.raises(signals.Stopped, match="same command goes on") as stop:
            task.TASK.run_seeds(stopped, quiet)
        assert stop.value.number == 2
    monkeypatch.setattr(signals, "StopSignal", real)
    task.TASK.run_seeds(stopped, quiet)
    parts = checkpoints.read(tmp_path / "logs/stopped/seed-0/classifier.pt")["state_dict"]
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_frozen_epochs_leave_the_encoder_as_it_was(build):
    settings = build("encoder.freeze_epochs=3", "finetune.average=0.0")
    before, _ = finetune.make_encoder(settings.encoder, 0)
    task.TASK.run_seeds(settings, quiet)
    after = vfm4us.load_encoder(f"{settings.logs}/t/seed-0/classifier.pt", in_channels=1)
    assert all(
        torch.equal(v, after.body.state_dict()[k]) for k, v in before.body.state_dict().items() if k != "conv1.weight"
    )


def test_pretrained_weights_are_wholly_loaded_and_said(build, tmp_path):
    encoder = Encoder(EncoderSpec())
    state = {"module.base_encoder." + k: v for k, v in encoder.published_state().items()}
    checkpoints.save(tmp_path / "e.pt", {"state_dict": state, "encoder": encoder.spec_dict()})
    said = []
    task.TASK.run_seeds(build("mode=linear", f"encoder.weights={tmp_path}/e.pt"), said.append)
    assert any("layout VFM4US, 120/120" in line for line in said)
    one_per_seed = finetune.InitialEncoderConfig(weights=f"{tmp_path}/{{seed}}.pt")
    (tmp_path / "e.pt").rename(tmp_path / "4.pt")
    read, _ = finetune.make_encoder(one_per_seed, 4)
    assert torch.equal(read.body.layer4[1].conv2.weight, encoder.body.layer4[1].conv2.weight)
    with pytest.raises(FileNotFoundError, match="5.pt"):
        finetune.make_encoder(one_per_seed, 5)
    torch.save({"module.wrong": torch.ones(2)}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="bad.pt holds no encoder"):
        task.TASK.run_seeds(build("mode=linear", "name=b", f"encoder.weights={tmp_path}/bad.pt"), quiet)


def test_imagenet_weights_that_cannot_be_fetched_say_where_to_put_them(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    from urllib.error import URLError

    def closed(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", closed)
    with pytest.raises(
        FileNotFoundError, match=f"resnet18-.*is not in {tmp_path}.*give its path in the place of imagenet"
    ):
        finetune.make_encoder(finetune.InitialEncoderConfig(weights="imagenet"), 0)


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_layer_wise_rates_fall_towards_the_stem():
    model = task.Classifier(Encoder(EncoderSpec()), task.make_head(512, 3, task.HeadConfig()), ["a", "b", "c"])
    groups = finetune.parameter_groups(model, finetune.FinetuneConfig(encoder_rate=0.5, layer_decay=0.5))
    names = {id(p): n for n, p in model.named_parameters()}
    scale = {names[id(p)]: g["scale"] for g in groups for p in g["params"]}
    assert len(scale) == len(list(model.parameters()))
    assert scale["encoder.body.conv1.weight"] == 0.5**5 and scale["encoder.body.layer4.1.conv2.weight"] == 0.5
    assert scale["encoder.body.layer3.0.bn1.bias"] == 0.25 and scale["head.0.weight"] == 1.0
    assert all(g["weight_decay"] == 0 for g in groups for p in g["params"] if p.ndim == 1)
    groups = finetune.parameter_groups(model, finetune.FinetuneConfig(encoder_rate=0.5, layer_decay=1, vector_rate=10))
    scale = {names[id(p)]: g["scale"] for g in groups for p in g["params"]}
    assert scale["encoder.body.layer1.0.bn1.weight"] == 5 and scale["head.0.bias"] == 10
    assert scale["encoder.body.layer1.0.conv1.weight"] == 0.5 and scale["head.0.weight"] == 1
    vit = task.Classifier(Encoder(EncoderSpec("vit_tiny")), torch.nn.Linear(192, 2), ["a", "b"])
    scale = {
        n: g["scale"]
        for g in finetune.parameter_groups(vit, finetune.FinetuneConfig(encoder_rate=1, layer_decay=0.5))
        for p in g["params"]
        for n, q in vit.named_parameters()
        if q is p
    }
    assert scale["encoder.body.blocks.11.norm1.weight"] == 1 and scale["encoder.body.blocks.0.norm1.weight"] == 0.5**11
    assert scale["encoder.body.cls_token"] == 0.5**12 and scale["encoder.body.norm.weight"] == 1


def test_balanced_batches_show_every_class_alike_and_every_image_before_it_repeats():
    parts, settings = [np.arange(30), np.arange(30, 36)], finetune.FinetuneConfig(batch_size=12, min_steps=1)
    lists = finetune.batches_of(parts, [1.0, 1.0], settings, seed=0, epoch=0)
    items = np.concatenate(lists)
    assert (
        [len(x) for x in lists] == [12, 12, 12]
        and (items < 30).sum() == 18
        and len(set(items[items < 30].tolist())) == 18
    )
    assert np.bincount(items[items >= 30] - 30).tolist() == [3] * 6
    few = finetune.batches_of([np.arange(3)], [1.0], finetune.FinetuneConfig(min_steps=100, epochs=10), 0, 0)
    assert len(few) == 10 and all(len(x) == 3 for x in few)
    many = finetune.FinetuneConfig(min_steps=50, max_steps=50, epochs=10, batch_size=32)
    first, second = (np.concatenate(finetune.batches_of([np.arange(5000)], [1.0], many, 0, epoch)) for epoch in (0, 1))
    assert len(first) == 5 * 32 and set(first.tolist()) != set(second.tolist())
    with pytest.raises(ValueError, match="max_steps 40 is below finetune.min_steps 50"):
        finetune.batches_of([np.arange(5000)], [1.0], finetune.FinetuneConfig(min_steps=50, max_steps=40), 0, 0)


@pytest.mark.parametrize("share", [1.0, 0.1, 0.001])
def test_few_labels_keep_the_shares_of_classes_and_at_least_one_image(share):
    codes = np.repeat([0, 1, 2], [500, 40, 3])
    kept = base.few_labels(np.arange(543), codes, share, seed=1)
    expected = {1.0: [500, 40, 3], 0.1: [50, 4, 1], 0.001: [1, 1, 1]}[share]
    assert np.bincount(codes[kept]).tolist() == expected
    assert np.array_equal(kept, base.few_labels(np.arange(543), codes, share, seed=1))


def test_scores_equal_those_of_a_small_table_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    p = np.array([[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.6, 0.2, 0.2], [0.3, 0.6, 0.1], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    measured = {k: v[0] for k, v in figures.scores(labels, p).items()}
    assert measured["accuracy"] == pytest.approx(4 / 6)
    assert measured["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert measured["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)  # F1: 2*2/(3+3), 2*1/(2+2), 1
    assert measured["auroc"] == pytest.approx(np.mean([roc_auc_score(labels == c, p[:, c]) for c in range(3)]))
    ties = p.round(0)
    area = np.mean([roc_auc_score(labels == c, ties[:, c]) for c in range(3)])
    assert figures.scores(labels, ties)["auroc"][0] == pytest.approx(area)
    repeated = np.repeat(np.arange(6), [1, 2, 0, 3, 1, 2])
    weighted = {k: v[1] for k, v in figures.scores(labels, p, np.array([[1] * 6, [1, 2, 0, 3, 1, 2]])).items()}
    assert weighted["auroc"] == pytest.approx(
        np.mean([roc_auc_score(labels[repeated] == c, p[repeated, c]) for c in range(3)])
    )
    assert weighted["macro_f1"] == pytest.approx(f1_score(labels[repeated], p[repeated].argmax(1), average="macro"))
    alone = figures.scores(np.zeros(3, int), p[:3])
    assert alone["accuracy"][0] == pytest.approx(2 / 3) and np.isnan(alone["auroc"][0])


def test_calibration_error_and_temperature():
    labels = np.array([0, 0, 1, 1])
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])  # 0.9 bin: 2 of 3 right; 0.8 bin: right
    assert figures.expected_calibration_error(labels, p) == pytest.approx(0.75 * abs(2 / 3 - 0.9) + 0.25 * 0.2)
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(4000, 3, generator=generator)
    truth = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0].numpy()
    assert task.fit_temperature(truth, 3 * honest) == pytest.approx(3, rel=0.1)
    before = figures.expected_calibration_error(truth, (3 * honest).softmax(1).numpy())
    assert figures.expected_calibration_error(truth, honest.softmax(1).numpy()) < 0.3 * before


def test_a_temperature_must_gain_more_than_chance_and_the_error_of_a_calibrated_model_is_not_zero():
    generator = torch.Generator().manual_seed(0)
    kept, floor, shown = [], [], []
    for i in range(200):
        honest = torch.randn(120, 3, generator=generator)
        p = honest.softmax(1)
        truth = torch.multinomial(p, 1, generator=generator)[:, 0].numpy()
        kept.append(task.fit_temperature(truth, honest) == 1.0)
        shown.append(figures.expected_calibration_error(truth, p.numpy()))
        if i < 10:
            floor.append(figures.calibrated_error(p.numpy(), repeats=20))
    assert 0.9 < np.mean(kept) < 1, "one in twenty is changed where nothing is wrong"
    assert np.mean(floor) == pytest.approx(np.mean(shown), rel=0.1) and np.mean(floor) > 0.05


@pytest.mark.parametrize("classes", [2, 3])
def test_the_linear_layer_is_the_logistic_regression(classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 3, 4, 5.0]) + 1
    codes = np.arange(60) % classes
    head = task.linear_head(x, codes, classes + 1, 0.1)  # and a class without an image
    scaler = StandardScaler().fit(x.numpy())
    model = LogisticRegression(C=0.1, max_iter=2000, class_weight="balanced").fit(scaler.transform(x.numpy()), codes)
    with torch.no_grad():
        p = head(x).softmax(1).numpy()
    np.testing.assert_allclose(p[:, :classes], model.predict_proba(scaler.transform(x.numpy())), atol=1e-4)
    assert p[:, classes].max() < 1e-6


def test_grad_cam_points_at_what_decides():
    encoder = Encoder(EncoderSpec("resnet18", 1)).eval()
    with torch.no_grad():  # a head on the channel that answers most to the bright corner
        x = torch.zeros(1, 1, 128, 128)
        x[:, :, :40, :40] = 1
        maps = encoder.pyramid(x)[-1]
        flat = encoder.pyramid(torch.zeros_like(x))[-1]
        channel = (maps - flat)[0, :, 0, 0].argmax()
        head = torch.nn.Linear(512, 2)
        head.weight.zero_()
        head.weight[1, channel] = 1
    heat = task.grad_cam(task.Classifier(encoder, head, ["a", "b"]), x, [1])
    expected = F.interpolate(maps[:, channel][None].relu(), (128, 128), mode="bilinear")[0, 0]
    np.testing.assert_allclose(heat[0], (expected / expected.max()).numpy(), atol=1e-4)
    vit = task.Classifier(Encoder(EncoderSpec("vit_tiny", 1, image=64)).eval(), torch.nn.Linear(192, 2), ["a", "b"])
    assert task.grad_cam(vit, torch.rand(2, 1, 64, 64), [0, 1]).shape == (2, 64, 64)


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def manifest(root, rows: list[tuple[str, str, str]]):
    lines = ["path,label,split"]
    for i, (label, split, name) in enumerate(rows):
        name = name or f"{i}.png"
        if not (root / name).exists():
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40), dtype=np.uint8)).save(root / name)
        lines.append(f"{name},{label},{split}")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", s, "") for s in ("train", "train", "val", "test")], r"have 1 class \(a\); classification needs two"),
        ([("", s, "") for s in ("train", "train", "val", "test")], r"have 0 class \(none\)"),
        ([("a", "train", ""), ("b", "train", ""), ("a", "val", ""), ("c", "test", "")], "test split has the label c"),
        ([("a", "train", ""), ("b", "train", ""), ("a", "val", "")], "no labelled test images"),
    ],
)
def test_data_that_cannot_be_classified_are_refused_with_the_reason(build, tmp_path, rows, message):
    (tmp_path / "m").mkdir()
    with pytest.raises(ValueError, match=message):
        task.TASK.run_seeds(build("mode=linear", path=manifest(tmp_path / "m", rows)), quiet)


def test_a_class_missing_in_val_and_test_one_image_per_class_and_an_unlabelled_or_corrupt_image(build, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "bad.png").write_bytes(b"\x89PNG")
    rows = [
        ("a", "train", ""),
        ("b", "train", ""),
        ("c", "train", ""),
        ("a", "val", ""),
        ("a", "test", ""),
        ("b", "test", ""),
        ("", "train", ""),
        ("a", "train", "bad.png"),
    ]
    said = []
    result = task.TASK.run_seeds(build("finetune.epochs=1", path=manifest(tmp_path / "m", rows)), said.append)
    assert "3 classes, 3 train, 1 val, 2 test, 1 without label" in "\n".join(said)
    assert re.search(r"WARNING: no val image of \w+, \w+", "\n".join(said)), "one val image, three classes"
    assert np.isfinite(result["auroc"]["mean"]) and set(k for k in result if k.startswith("recall")) == {
        "recall a",
        "recall b",
    }


def test_a_thousand_classes(build, tmp_path):
    (tmp_path / "m").mkdir()
    rows = [(f"class{i:04d}", split, "") for i in range(1000) for split in ("train", "test")] + [
        ("class0000", "val", "")
    ]
    result = task.TASK.run_seeds(build("mode=knn", "data.size=32", path=manifest(tmp_path / "m", rows)), quiet)
    assert 0 <= result["accuracy"]["mean"] <= 1


def test_merged_labels_and_their_mistakes(build, folder):
    data = task.LabelledData(build("data.merge=['fine > across']").data, 0)
    assert data.classes == ["across", "down"]
    with pytest.raises(ValueError, match="has no label 'fien'; it has: across, down, fine"):
        task.LabelledData(build("data.merge=['fien > across']").data, 0)
    with pytest.raises(ValueError, match="not of the form 'old > new'"):
        task.LabelledData(build("data.merge=['fine']").data, 0)


def test_duplicates_within_and_with_the_pretraining_set_are_listed(build, folder, tmp_path):
    mine, pool = tmp_path / "own", tmp_path / "pool"
    stripes(mine, {"across": 12, "down": 12})
    (mine / "across" / "copy.png").write_bytes((mine / "across" / "across (0).png").read_bytes())
    stripes(pool, {"x": 12})  # the same first class, drawn from the same seed
    data = task.LabelledData(build(path=mine).data, 0)
    text = base.report_duplicates(data.dataset, build(path=mine).data, tmp_path)
    assert text.startswith("1 clusters of near-duplicates with 2 images; 0 of them lie in two splits")
    settings = build(path=mine)
    settings.data.splits, settings.data.pretraining = [0.3, 0.1, 0.6], [str(pool)]
    text = base.report_duplicates(task.LabelledData(settings.data, 0).dataset, settings.data, tmp_path)
    assert "test images occur in the pretraining data" in text and "; 0 test images" not in text
    assert "pretraining" in (tmp_path / "duplicates.csv").read_text()


def test_test_images_that_the_encoder_was_pretrained_on_are_told_by_the_encoder_itself(build, tmp_path, monkeypatch):
    mine = tmp_path / "own"
    stripes(mine, {"across": 12, "down": 12})
    settings = build(path=mine)
    stated = {"data": {"root": str(tmp_path), "splits": [0.9, 0.1, 0.0]}, "stages": [{"data": [{"path": "own"}]}]}
    monkeypatch.setattr(base, "open_checkpoint", lambda _source: ("x", {"config": stated}))
    settings.encoder.weights = "none"
    assert base.shared_with_pretraining(settings) == []
    settings.encoder.weights = "run"
    shared = base.shared_with_pretraining(settings)
    assert shared == [((0.9, 0.1, 0.0), False, 0, 0)]
    data = task.LabelledData(settings.data, 0).dataset
    text = base.report_duplicates(data, settings.data, tmp_path, shared)
    assert "WARNING" in text and "prepare_data.py folder" in text
    # the prepared folder has its splits: nothing of its test was pretrained on
    settings.data.path = str(data.folder)
    stated["stages"][0]["data"][0]["path"] = str(data.folder)
    text = base.report_duplicates(data, settings.data, tmp_path, base.shared_with_pretraining(settings))
    assert "WARNING" not in text and "; 0 test images occur in the pretraining data" in text
    for odd in ({}, {"data": 3, "stages": []}, {"data": {}, "stages": [3, {"data": [None, {"path": 5}]}]}):
        monkeypatch.setattr(base, "open_checkpoint", lambda _source, odd=odd: ("x", {"config": odd}))
        assert base.shared_with_pretraining(settings) == []


def test_images_that_weights_were_trained_on_are_known_again_wherever_they_lie(build, folder, tmp_path, monkeypatch):
    settings = build()
    data = task.LabelledData(settings.data, 0).dataset
    had = [*data.indices("test")[:2], *data.indices("val")[:1], *data.indices("train")]
    known = seen.digests(data.sha256[i] for i in had)
    text = base.report_duplicates(data, settings.data, tmp_path, (), "logs/mine", known)
    counts = [len(data.indices(split)) for split in ("test", "val")]
    assert (
        f"WARNING: 2 of {counts[0]} test images and 1 of {counts[1]} val images are among those that 'logs/mine' was"
        in text
    )
    assert (tmp_path / "duplicates.csv").read_text().count("pretraining,logs/mine,") == 3
    assert "WARNING" not in base.report_duplicates(data, settings.data, tmp_path, (), "logs/mine", known[3:])
    # pictures that the released encoder has seen, saved anew: two bits of the hash differ, of another one three
    near, far = (int(data.phash[i]) for i in data.indices("test")[:2])
    monkeypatch.setattr(
        seen.released, "hashes", lambda weights: {near ^ 0b11, far ^ 0b111} if weights == "open" else set()
    )
    text = base.report_duplicates(data, settings.data, tmp_path, (), "open")
    assert (
        f"WARNING: {seen.looks_like(data.phash[data.indices('test')], 'open').sum()} of {counts[0]} test images" in text
    )
    assert (tmp_path / "duplicates.csv").read_text().count(",test,the same picture") >= 1
    assert "give these the split train" in text and "prepare the folder once" not in text
    assert seen.looks_like(data.phash[data.indices("test")[:1]], "open").all()
    assert not seen.looks_like(np.array([far ^ 0b111000], dtype=np.uint64), "open").any()
    # the files of the same images, elsewhere and under other names
    (tmp_path / "elsewhere").mkdir()
    for k, i in enumerate(had[:4]):
        (tmp_path / "elsewhere" / f"{k}.png").write_bytes((folder / data.records[i].path).read_bytes())
    (tmp_path / "elsewhere" / "bad.png").write_bytes(b"hello")
    frames = [Image.fromarray(np.full((40, 40), 60 + 40 * k, np.uint8)) for k in range(3)]
    frames[0].save(tmp_path / "elsewhere" / "clip.gif", save_all=True, append_images=frames[1:])
    records = [*find_source(tmp_path / "elsewhere", {"frames": "all"}), Record("gone", "gone.tif")]
    packed = prepare.open_or_prepare(tmp_path / "elsewhere", tmp_path / "cache", 40, reading={"frames": "all"})
    state = {
        "trained_on": {
            "digests": seen.kept(known[:3]),
            "pretraining_digests": seen.kept(seen.digests(packed.sha256[-3:])),
        }
    }
    told = seen_in_training(state, tmp_path / "elsewhere", records)
    assert told[0].startswith("3 of 9 images are among those that this model was trained on or chosen by (e.g. 0.png)")
    assert told[1].startswith("3 of 9 images are among those that its encoder was pretrained on (e.g. clip.gif)")
    assert seen_in_training({}, tmp_path / "elsewhere", records) == []  # a model of before


# ---- the scripts ----------------------------------------------------------------------------------------------------


def records_of(*labels):
    return [Record(id=str(k), path=f"{k}.png", label=label) for k, label in enumerate(labels)]


def test_labels_of_another_set_are_the_model_s_own_or_an_error_with_both():
    options, classes = task.ClassifyConfig(data="there"), ["Trans-ventricular", "normal"]
    records = records_of("NORMAL", "trans ventricular", "normal", "")
    said = task.labels_as_trained(records, classes, options)
    assert [r.label for r in records] == ["normal", "Trans-ventricular", "normal", ""]
    assert said == [
        "the label 'NORMAL' is taken for the class 'normal'",
        "the label 'trans ventricular' is taken for the class 'Trans-ventricular'",
    ]
    with pytest.raises(ValueError, match=r"'malign' one of malignant by another name \(--merge 'malign > malignant'\)"):
        task.labels_as_trained(records_of("benign", "malign"), ["benign", "malignant"], options)
    with pytest.raises(
        ValueError, match=r"there has the labels 0, 1; the model knows benign, malignant.*--merge '0 > CLASS'"
    ):
        task.labels_as_trained(records_of("0", "1"), ["benign", "malignant"], options)
    options = task.ClassifyConfig(data="there", merge=["malign > malignant"])
    records = records_of("benign", "malign")
    assert task.labels_as_trained(records, ["benign", "malignant"], options) == []
    assert [r.label for r in records] == ["benign", "malignant"]
    # a further class beside all that are known is left out; a class without images is said
    said = task.labels_as_trained(records_of("a", "b", "c"), ["a", "b"], task.ClassifyConfig())
    said += task.labels_as_trained(records_of("a", "a"), ["a", "b"], task.ClassifyConfig())
    assert said == ["no image of the class b: averages go over the other classes"]
    # what was joined in training is joined here
    records = records_of("low", "high", "none")
    task.labels_as_trained(records, ["none", "some"], task.ClassifyConfig(), ("low > some", "high > some"))
    assert [r.label for r in records] == ["some", "some", "none"]
    with pytest.raises(ValueError, match="there has no label 'x' to merge or leave out; it has: a"):
        task.labels_as_trained(records_of("a"), ["a", "b"], task.ClassifyConfig(data="there", leave_out=["x"]))


def test_negatives_and_images_of_another_size_are_told(build, folder, tmp_path):
    data = task.LabelledData(build().data, 0)
    known = trained_on(data.dataset)
    assert known["longer_side"] == [40.0, 40.0, 40.0] and known["blank"] is False
    dark = {**known, "mean_grey": [30.0, 40.0, 60.0]}
    records = find_source(folder)
    assert differences(known, folder, records) == []
    (tmp_path / "other").mkdir()
    for i in range(8):
        Image.fromarray(np.full((400, 300), 200 if i % 2 else 35, np.uint8)).save(tmp_path / "other" / f"{i}.png")
    told = differences(dark, tmp_path / "other", find_source(tmp_path / "other"))
    assert "4 of 8 images that were looked at are light where the training images are dark (e.g. 1.png)" in told[0]
    assert "the longer side is 400 px, of the training images 40 to 40 px" in told[1]
    assert differences({}, folder, records) == []  # a model of before


def test_train_and_evaluate_from_another_folder(folder, tmp_path):
    keys = ["mode=linear", "name=s", "seeds=[0]", "data.size=40", "device=cpu"]
    done = script(TRAIN, f"data.path={folder}", *keys, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| balanced_accuracy |" in done.stdout and (tmp_path / "logs/s/table.md").is_file()
    (tmp_path / "plain").mkdir()
    for i, path in enumerate(sorted((folder / "down").iterdir())[:3]):
        (tmp_path / "plain" / f"{i}.png").write_bytes(path.read_bytes())
    (tmp_path / "plain" / "bad.png").write_bytes(b"hello")
    assert "what each figure means: Downstream/Classification/README.md" in done.stdout
    done = script(EVALUATE, "logs/s", "plain", "--out", "o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 images, 1 unreadable" in done.stdout and "no labels" in done.stdout and "bad.png" in done.stderr
    assert (
        len((tmp_path / "o/predictions.csv").read_text().splitlines()) == 4
        and not (tmp_path / "o/metrics.json").exists()
    )
    assert "3 of 4 images are among those that this model was trained on or chosen by" in done.stderr
    done = script_soon(EVALUATE, "logs/s", folder, "--out", "o2", cwd=tmp_path)
    assert json.loads((tmp_path / "o2/metrics.json").read_text())["metrics"]["balanced_accuracy"]["mean"] > 0.7
    strange = manifest(
        tmp_path / "plain", [("down", "test", "0.png"), ("upward", "test", "1.png"), ("down", "test", "bad.png")]
    )
    done = script_soon(EVALUATE, "logs/s", strange, "--out", "o3", cwd=tmp_path)
    assert (
        done.returncode == 2
        and "--merge 'upward > " in done.stderr
        and "the model knows across, down, fine" in done.stderr
    )
    done = script_soon(EVALUATE, "logs/s", strange, "--out", "o3", "--leave-out", "upward", cwd=tmp_path)
    assert "does not know, left out of the metrics: upward" in done.stdout and "bad.png" in done.stderr
    measured = json.loads((tmp_path / "o3/metrics.json").read_text())
    assert measured["protocol"]["unreadable"] == 1 and "recall down" in measured["metrics"]
    assert "auroc" not in measured["metrics"], "one class alone has none"
    for arguments, message in (
        (["logs/nowhere", folder], "does not exist"),
        (["logs/s", "nowhere"], "nowhere does not exist"),
        (["logs/s/seed-0/test.npz", folder], "refused"),
    ):
        done = script_soon(EVALUATE, *arguments, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_goes_on(folder, tmp_path, number, code):
    keys = [
        f"data.path={folder}",
        "name=s",
        "seeds=[0]",
        "data.size=40",
        "device=cpu",
        "head.hidden=16",
        "finetune.epochs=400",
        "finetune.patience=0",
    ]
    log = tmp_path / "logs/s/seed-0/metrics.jsonl"
    child = subprocess.Popen(
        [sys.executable, str(TRAIN), *keys],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not log.exists() or log.read_text().count("\n") < 3:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(number)
    said, _ = child.communicate(timeout=60)
    assert child.returncode == code and "the same command goes on" in said
    state = checkpoints.read(tmp_path / "logs/s/seed-0/checkpoints/last.pt")
    assert not state["finished"] and state["epoch"] + state["step"] > 0


def test_a_table_of_cells_is_run_once_and_goes_on(folder, tmp_path, monkeypatch, capsys):
    cells = {
        "name": "c",
        "task": "classification",
        "scores": ["macro_f1"],
        "differences": [["linear", "knn"]],
        "base": {"seeds": [0], "data": {"path": "{data}", "size": 40}},
        "axes": {
            "dataset": {"one": {}, "two": {"data": {"splits": [0.5, 0.2, 0.3]}}},
            "mode": {"linear": {"mode": "linear"}, "knn": {"mode": "knn"}},
        },
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(cells, sort_keys=False))
    path = ROOT / "scripts" / "reproduce_tables.py"
    done = script(path, "--config", "c.yaml", f"data={folder}", "only=[one-*]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Not run yet: two-linear, two-knn" in done.stdout and "mean of all" not in done.stdout
    done = script_soon(path, "--config", "c.yaml", f"data={folder}", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count("is finished") == 2 and "Not run yet" not in done.stdout
    text = (tmp_path / "logs/c/table.md").read_text()
    assert "| dataset | training images | linear | knn | linear - knn |" in text
    rows = [line for line in text.splitlines() if line.startswith(("| one", "| two", "| mean of all"))]
    measured = json.loads((tmp_path / "logs/c/metrics.json").read_text())["metrics"]
    apart = [measured[f"{d} linear - knn macro_f1"]["mean"] for d in ("one", "two", "mean of all")]
    assert apart[0] == pytest.approx(measured["one-linear macro_f1"]["mean"] - measured["one-knn macro_f1"]["mean"])
    assert len(rows) == 3 and apart[2] == pytest.approx((apart[0] + apart[1]) / 2)
    for arguments, message in (
        ([], "needs data=..."),
        ([f"data={folder}", "base.smothing=0.1"], "cell one-linear: unknown config key 'smothing'"),
        ([f"data={folder}", "only=[three]"], "matches no cell; they are: one-linear"),
        ([f"data={folder}", "differences=[[linear, kn]]"], "'kn' is no value of the last axis"),
    ):
        monkeypatch.setattr(sys, "argv", ["reproduce_tables.py", "--config", str(tmp_path / "c.yaml"), *arguments])
        assert exit_code(module_of(path).main) == 2 and message in capsys.readouterr().err


def test_settings_are_compared_by_cross_validation(folder, tmp_path, monkeypatch, capsys):
    module = module_of(ROOT / "scripts" / "cross_validate.py")
    monkeypatch.chdir(tmp_path)

    def printed(*arguments) -> str:
        keys = [
            f"data.path={folder}",
            "data.size=40",
            "data.splits=[0.6,0.2,0.2]",
            "head.hidden=16",
            "device=cpu",
            "finetune.batch_size=16",
        ]
        monkeypatch.setattr(sys, "argv", ["cross_validate.py", *keys, *arguments])
        code = exit_code(module.main)
        output = capsys.readouterr()
        return output.out if code == 0 else f"{code} {output.err}"

    long = printed("name=long", "finetune.min_steps=30", "finetune.learning_rate=0.003")
    assert float(long.split("auroc ")[1].split(",")[0]) > 0.85, "stripes are easy"
    with np.load("logs/long/cross_validation.npz") as kept:
        data = task.LabelledData(
            config.load(
                task.ClassificationConfig, None, [f"data.path={folder}", "data.size=40", "data.splits=[0.6,0.2,0.2]"]
            ).data,
            0,
        )
        assert len(kept["paths"]) == len(data.train) + len(data.val), "the test images are left alone"
        assert not set(kept["paths"]) & {data.dataset.records[i].path for i in data.test}
    against = ["--against", "logs/long/cross_validation.npz"]
    short = printed("name=short", "finetune.min_steps=2", "finetune.learning_rate=0", *against)
    assert "difference: " in short and "auroc -" in short
    few = printed("name=few", "finetune.min_steps=2", "few=true", "folds=4")
    assert few.startswith("few: ") and not (tmp_path / "logs/few/cross_validation.npz").exists()
    assert printed("few=true", *against).startswith("2 error: --against needs few=false")


def test_runs_are_tabulated_with_their_paired_difference(build, tmp_path):
    for name, mode in (("a", "linear"), ("b", "knn")):
        task.TASK.run_seeds(build(f"name={name}", f"mode={mode}", "seeds=[0,1]"), quiet)
    path = ROOT / "scripts" / "tabulate_runs.py"
    done = script(path, "logs/a", "logs/b", "--against", "logs/a=logs/b", "logs/a=logs/a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2].startswith("| a | linear | 100 % (") and "| a - b |" in lines[4]
    assert lines[5].count("+0.000 (") == 3, "a run differs from itself by nothing"
    done = script_soon(path, "logs/c", cwd=tmp_path)
    assert done.returncode == 2 and "metrics.json does not exist" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config", "configs/classification/busi.yaml"],
            r"data.path: 'data/BUSI' does not exist.*\nBUSI \(Al-Dhabyani",
        ),
        (["data.path=nowhere"], "data.path: 'nowhere' does not exist"),
        (["data.path=.", "mdoe=linear"], "did you mean 'mode'"),
        (["data.path=.", "seeds=[]"], "seeds is empty"),
    ],
)
def test_mistakes_are_one_error(tmp_path, arguments, message):
    import re

    done = script_soon(TRAIN, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "logs").exists()


CONFIGS = [
    *sorted((ROOT / "configs" / "classification").glob("*.yaml")),
    ROOT / "configs" / "smoke" / "classification.yaml",
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_is_understood(path):
    config.load(task.ClassificationConfig, path)
    assert path.read_text().startswith("# python Downstream/Classification/train.py")
