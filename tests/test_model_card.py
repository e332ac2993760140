"""The card of a released encoder says what its run says."""

import csv
import gzip
import json
import sys

import pytest
import yaml

from tests.conftest import ROOT, module_of
from vfm4us import checkpoints, config
from vfm4us.data.splits import near_duplicates
from vfm4us.encoders import Encoder

CARD = module_of(ROOT / "scripts" / "model_card.py")


@pytest.fixture
def run(tiny, tmp_path):
    """A run folder without a training: what the card reads of it."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(tiny("batch_size=4"))))
    start = {
        "argv": ["x", "data.root=/secret"],
        "started": "2026-01-02T03:04:05+0000",
        "commit": "abcdef" * 7,
        "dirty": False,
    }
    start |= {"torch": "2.9", "device": "a machine"}
    (folder / "run.json").write_text(json.dumps([start, start | {"commit": "123456" * 7}]))
    state = {"encoder": Encoder().spec_dict(), "stage": "coarse", "epoch": 1, "step": 3}
    checkpoints.save(folder / "checkpoints" / "last.pt", state)
    out = tmp_path / "out"
    out.mkdir()
    (out / "sources.csv").write_text(
        "set,title,reference,origin,licence\none,First,A 2020,https://x.org,CC0\ntwo,Second,,,MIT\n"
    )
    return folder, out


def write_probe(folder, ours: float, handmade: float, split: str = "test", setting: str = ""):
    heads = ["row", "seeds", "task", "images", "probe", "measure", "mean", "low", "high", "seed_low", "seed_high"]
    rows = []
    for name, value in (("ours", ours), ("random", 0.6), ("HOG + LBP + histogram", handmade), (CARD.IMAGENET, 0.8)):
        for task in (*CARD.TEST_TASKS, "liver", *CARD.ACROSS):
            for probe in ("linear", "knn"):
                rows.append([name + setting, 1, task, 9, probe, "auroc", value, value - 0.1, value + 0.1, value, value])
    folder.mkdir()
    with open(folder / "results.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([heads, *rows])
    (folder / "metrics.json").write_text(
        json.dumps({"split": split, "protocol": {"split": split, "absent": {"X": "gone"}}})
    )
    return folder / "results.csv"


def test_the_card_lists_what_was_trained_on_and_no_path_of_the_machine(run, tmp_path, monkeypatch):
    folder, out = run
    probe = write_probe(tmp_path / "probe", 0.85, 0.7)
    monkeypatch.setattr(sys, "argv", ["model_card.py", str(folder), "--out", str(out), "--probe", str(probe)])
    CARD.main()
    card = (out / "README.md").read_text()
    assert "Not for diagnosis" in card and "[First, A 2020](https://x.org)" in card and "| MIT |" in card
    assert "abcdefabcdef" in card and "123456123456" in card and "2 times" in card and "epoch 1, step 3" in card
    assert "batch_size: 100 -> 4" in card and "/secret" not in card and str(tmp_path) not in card
    assert "X could not be measured: gone." in card
    with gzip.open(out / "pool.csv.gz", "rt") as stream:
        images = list(csv.DictReader(stream))
    assert {i["set"] for i in images} == {"one", "two"} and {i["stages"] for i in images} == {"coarse", "fine"}
    assert f"{len(images):,} images of 2 public sets" in card
    hashes = [int(i["phash"], 16) for i in images]
    assert len(near_duplicates(hashes[:1], hashes, 0)) >= 1


def test_a_set_whose_licence_is_not_written_down_is_refused(run, textures):
    folder, out = run
    (out / "sources.csv").write_text("set,title,reference,origin,licence\none,First,,,CC0\n")
    settings = config.load(CARD.PretrainingConfig, folder / "config.yaml", [])
    pools = CARD.stage_pools(settings.stages, [], settings.data.locations(), 0)
    with pytest.raises(ValueError, match="two is in the pool and not in sources.csv"):
        CARD.trained_images(settings, pools, CARD.read_origins(out / "sources.csv"))


def test_the_gate_says_by_how_much_a_line_fails(tmp_path):
    text = CARD.probe_part(write_probe(tmp_path / "a", 0.75, 0.79))
    assert "| busi: linear probe ahead of each of six random seeds | 0.750 against 0.600 | yes |" in text
    assert "| busi: linear probe ahead of HOG + LBP + histogram | 0.750 against 0.790 | no, by 0.040 |" in text
    assert "k-NN, mean of busi, liver, gallbladder: 0.78 | 0.750 against 0.780 | no, by 0.030 |" in text
    several = CARD.probe_part(write_probe(tmp_path / "c", 0.75, 0.79, setting=" (224 px, half-whiten)"))
    assert several.count("| yes |") == text.count("| yes |") > 0
    assert "gate" not in CARD.probe_part(write_probe(tmp_path / "b", 0.75, 0.79, split="cv"))
    alone = write_probe(tmp_path / "d", 0.75, 0.79)
    (alone.parent / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match="metrics.json is not there"):  # never a card that lacks its gate unsaid
        CARD.probe_part(alone)


def test_what_a_trained_task_gains_is_a_line_of_the_gate(tmp_path):
    heads = 'method,stage,task,setting,metric,"minus random, ",low,high,p\n'
    rows = (
        "a,,segmentation,busi,dice_present,0.05,0.01,0.09,0.01\na,,segmentation,ddti,dice_present,0.05,-0.01,0.11,0.1\n"
    )
    (tmp_path / "d.csv").write_text(heads + rows)
    assert "| classification: AUROC | not measured | - |" in CARD.trained_part(tmp_path / "d.csv")
    more = (
        "a,,classification,busi,auroc,-0.01,-0.02,0.01,0.5\na,,classification,mean of all,auroc,0.02,-0.01,0.05,0.2\n"
    )
    (tmp_path / "d.csv").write_text(heads + rows + more)
    text = CARD.trained_part(tmp_path / "d.csv")
    assert "| busi: Dice | +0.050 (+0.01 to +0.09) | yes |" in text
    assert "| ddti: Dice | +0.050 (-0.01 to +0.11) | no |" in text
    assert "| busi: AUROC | -0.010 (-0.02 to +0.01) | - |" in text
    assert "| mean of all: AUROC | +0.020 (-0.01 to +0.05) | yes |" in text
    (tmp_path / "d.csv").write_text(heads.replace("random, ", "VFM4US, fine") + rows)
    with pytest.raises(ValueError, match="no column `minus random`"):
        CARD.trained_part(tmp_path / "d.csv")
