"""Draws of labelled images, curves, labels saved, and the command in parts."""

import math
import sys

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, module_of
from vfm4us import checkpoints
from vfm4us.encoders import Encoder
from vfm4us.evaluation import label_efficiency
from vfm4us.evaluation.label_efficiency import Point, Points, curves_of, draw, labels_needed


def test_a_draw_has_every_class_in_its_share_and_depends_on_the_seed_alone():
    codes = np.array([0] * 70 + [1] * 28 + [2] * 2)
    for count in (3, 5, 10, 50, 99):
        chosen = draw(codes, count, seed=1)
        assert len(chosen) == len(set(chosen)) == count and set(codes[chosen]) == {0, 1, 2}
    assert np.bincount(codes[draw(codes, 50, 1)]).tolist() == [35, 14, 1]
    assert np.array_equal(draw(codes, 10, 1), draw(codes, 10, 1))
    assert not np.array_equal(draw(codes, 10, 1), draw(codes, 10, 2))
    assert len(draw(codes, 0, 1)) == len(draw(codes, 500, 1)) == 100
    with pytest.raises(ValueError, match="3 classes"):
        draw(codes, 2, 1)


def test_points_are_kept_as_they_come_and_an_earlier_encoders_are_replaced(tmp_path):
    points = Points(tmp_path)
    points.add(Point("linear", "ours", 5, 0, "a", 5, 0.6))
    points.add(Point("linear", "ours", 5, 1, "a", 5, 0.7))
    again = Points(tmp_path)
    assert again.rows == points.rows and again.find("linear", "ours", 5, 1, "a").auroc == 0.7
    assert again.find("linear", "ours", 5, 1, "b") is None
    again.add(Point("linear", "ours", 5, 1, "b", 5, 0.8))
    assert sorted(p.auroc for p in Points(tmp_path).rows) == [0.6, 0.8]
    again.add(Point("linear", "random", 5, 0, "c", 5, 0.5))
    assert [p.auroc for p in again.of({"ours": {"b"}})] == [0.8, 0.5]  # no curve of two encoders
    (tmp_path / "points.csv").write_text("mode,arm\nlinear,ours\n")
    with pytest.raises(ValueError, match="damaged"):
        Points(tmp_path)


def test_a_curve_is_the_mean_over_draws_with_its_interval():
    points = [Point("linear", "ours", n, s, "k", n, 0.5 + n / 100 + s / 10) for n in (10, 5) for s in (0, 1)]
    points.append(Point("finetune", "ours", 5, 0, "k", 5, 0.1))
    [(n, mean, low, high), second] = curves_of(points, "linear")["ours"]
    assert n == 5 and mean == pytest.approx(0.6) and second[0] == 10
    assert high - mean == pytest.approx(mean - low) == pytest.approx(12.706 * 0.0707 / math.sqrt(2), rel=1e-3)


def test_labels_needed_lie_between_points_by_their_logarithm():
    theirs = [(10, 0.6, 0, 1), (100, 0.8, 0, 1)]
    ours = [(5, 0.55, 0, 1), (10, 0.7, 0, 1), (100, 0.9, 0, 1)]
    labels = [needed for _, _, needed in labels_needed(ours, theirs)]
    assert labels[0] == pytest.approx(10) and labels[1] == pytest.approx(math.sqrt(1000)) and labels[2] == math.inf


@pytest.fixture
def command(textures, tmp_path, monkeypatch):
    """Runs scripts/label_efficiency.py in tmp_path on one folder of textures, with further arguments."""
    monkeypatch.chdir(tmp_path)
    script = module_of(ROOT / "scripts" / "label_efficiency.py")

    def run(*arguments: str) -> None:
        common = ["--task", "one", "--data", str(textures), "--size", "48", "--out", "out"]
        monkeypatch.setattr(sys, "argv", ["label_efficiency.py", *common, *arguments])
        script.main()

    return run


def test_the_command_goes_on_where_it_stopped(command, tmp_path):
    torch.manual_seed(5)
    state = {f"module.base_encoder.{k}": v for k, v in Encoder().published_state().items()}
    checkpoints.save(tmp_path / "w.pt", {"state_dict": state})
    for labels in (["5"], ["5", "20", "0"]):
        command("--encoders", "ours=w.pt", "shape=file_shape", "--seeds", "2", "--labels", *labels)
    rows = Points(tmp_path / "out").rows
    known = [(p.arm, p.labels, p.seed) for p in rows[:4]]
    assert known == [("ours", 5, 0), ("ours", 5, 1), ("shape", 5, 0), ("shape", 5, 1)]
    assert len(rows) == 2 * (2 + 2 + 1) and (tmp_path / "out" / "curve-linear.png").is_file()
    assert max(p.auroc for p in rows if p.arm == "ours" and p.labels == 0) > 0.8
    assert "labels that shape needs" in (tmp_path / "out" / "saved-linear.md").read_text()
    command("--encoders", "shape=file_shape", "--seeds", "2", "--labels", "5", "--out", "again", "--beside", "out")
    assert (tmp_path / "again" / "curve-linear.png").is_file()
    with pytest.raises(FileNotFoundError, match="beside"):
        command("--encoders", "shape=file_shape", "--seeds", "2", "--labels", "5", "--beside", "nowhere")


def test_finetuned_points_come_from_runs_that_choose_no_epoch(command, tmp_path):
    how = ["--mode", "finetune", "--steps", "3", "--split", "test", "--labels", "8", "--seeds", "1"]
    command("--encoders", "random=random:0", *how, "--set", "finetune.batch_size=8", "finetune.learning_rate=1e-3")
    [point] = Points(tmp_path / "out").rows
    assert (point.mode, point.arm, point.images) == ("finetune", "random", 8) and 0 <= point.auroc <= 1
    lines = (tmp_path / "out" / "runs" / "random-8" / "seed-0" / "metrics.jsonl").read_text().splitlines()
    assert sum('"train"' in line for line in lines) == 3 and sum('"monitor"' in line for line in lines) == 1
    with pytest.raises(ValueError, match="split test"):
        command("--encoders", "random=random:0", "--mode", "finetune", "--seeds", "1")


def test_what_is_drawn_from_and_what_is_tested_on_share_no_group(textures, tmp_path):
    from vfm4us.evaluation import probe_table

    task = probe_table.open_task("one", [textures], tmp_path, 48)
    for split in ("val", "test"):
        fitted, tested = label_efficiency.rows_of(task, split)
        assert not set(task.fitted_on.groups[fitted]) & set(task.tested_on.groups[tested]) and len(tested)
