"""What trees of files are understood to be: each as people have it, and an error with both readings where two are possible."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from making_trees import PAGE, TREES, disc, image, plain, save, speckle, with_trees
from PIL import Image

from vfm4us.data.prepare import hidden_groups, open_or_prepare, prepare
from vfm4us.data.reading import Reading, parse_readings, reading_of
from vfm4us.data.records import Record
from vfm4us.data.sources import find_source, understand
from vfm4us.data.understanding import MOST_KINDS, Understanding


@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_understood_or_refused(tmp_path, name):
    tree = TREES[name]
    root = tree.make(tmp_path / "set")
    if tree.error:
        with pytest.raises(ValueError, match=tree.error):
            understand(root, tree.reading)
        return
    understood = understand(root, tree.reading)
    records, counts = understood.records, understood.counts()
    assert len(records) == tree.images
    assert sum(bool(record.mask) for record in records) == tree.masks
    assert sum(bool(record.target) for record in records) == tree.targets
    assert sorted({record.label for record in records} - {""}) == list(tree.labels)
    assert len({record.group for record in records} - {""}) == tree.groups
    assert dict(Counter(record.split for record in records if record.split)) == tree.splits
    assert (counts.get("passed over", 0), counts.get("unmatched", 0)) == (tree.passed_over, tree.unmatched)
    # every file has a role, and only one
    paths = [path for kind in understood.kinds for path in kind.paths]
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert len(paths) == len(set(paths)) and set(paths) == files
    for record in records:  # a mask belongs to the image of its number
        numbers = [
            re.findall(r"\d+", path.rsplit("/", 2)[-1] if "patient" not in path else path) for path in record.mask_paths
        ]
        known = set(re.findall(r"\d+", record.path))
        assert all(known >= set(digits[-1:]) or known >= set(digits[:1]) for digits in numbers)  # 2_1 is the first of 2


def test_every_shown_tree_stands_in_the_page_as_it_is_read_today():
    page = PAGE.read_text(encoding="utf-8")
    assert with_trees(page) == page, "draw docs/data.md anew: python tests/data/making_trees.py"


def test_understanding_is_written_beside_the_manifest_and_printed_where_a_script_packs(tmp_path, capsys):
    root = TREES["overlays"].make(tmp_path / "set")
    dataset = open_or_prepare(root, tmp_path / "cache", size=32)
    told = json.loads((dataset.folder / "understood.json").read_text())
    assert {(entry["role"], entry["count"]) for entry in told["files"]} == {
        ("image", 3),
        ("mask", 3),
        ("passed over", 3),
    }
    assert "overlays/0.png" in json.dumps(told)
    printed = capsys.readouterr().err
    assert "3  passed over" in printed and "none found: splits are by image" in printed
    assert (dataset.folder / "understood.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    open_or_prepare(root, tmp_path / "cache", size=32)
    assert not capsys.readouterr().err  # nothing is packed a second time


def test_one_packing_serves_every_share_where_the_source_says_the_splits(tmp_path):
    root = TREES["splits"].make(tmp_path / "set")
    folders = {
        open_or_prepare(root, tmp_path / "cache", 32, splits).folder for splits in ((0.8, 0.1, 0.1), (0.6, 0.2, 0.2))
    }
    assert len(folders) == 1
    root = TREES["classes"].make(tmp_path / "open")
    folders = {
        open_or_prepare(root, tmp_path / "cache", 32, splits).folder for splits in ((0.8, 0.1, 0.1), (0.6, 0.2, 0.2))
    }
    assert len(folders) == 2


def test_val_is_taken_from_train_by_groups_where_only_train_and_test_are_given(tmp_path):
    root = tmp_path / "set"
    plain(
        *(f"train/a/patient{p}_{i}.png" for p in range(10) for i in range(2)),
        *(f"test/a/patient{p}_0.png" for p in range(20, 23)),
    )(root)
    dataset = prepare(root, tmp_path / "out", size=32, splits=(0.7, 0.3, 0.0), progress=False)
    counts = Counter(dataset.splits.tolist())
    assert counts["test"] == 3 and counts["val"] == 6 and counts["train"] == 14
    assert not {g for g, s in zip(dataset.groups, dataset.splits, strict=True) if s == "val"} & {
        g for g, s in zip(dataset.groups, dataset.splits, strict=True) if s == "train"
    }


def test_labels_that_are_numbers_are_one_class_however_they_are_written(tmp_path):
    rows = ["path,label"]
    for i, label in enumerate(["1", "1.0", "0.0", "0", "nan", "", "NaN"]):
        image(tmp_path / f"{i}.png", i)
        rows.append(f"{i}.png,{label}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    assert [record.label for record in find_source(tmp_path)] == ["1", "1", "0", "0", "", "", ""]
    (tmp_path / "manifest.csv").write_text("path,label\n0.png,Benign\n1.png,benign\n")
    with pytest.raises(ValueError, match="differ only in case"):
        find_source(tmp_path)


def test_a_table_names_masks_whose_names_hold_its_separator(tmp_path):
    for name in ("x.png", "y.png", "a;b.png"):
        image(tmp_path / name, 1)
    (tmp_path / "o.csv").write_text("")
    (tmp_path / "manifest.csv").write_text("path,mask\nx.png,o.csv::p\\;q;a\\;b.png\n")
    [record] = understand(tmp_path, whole=False).records
    assert record.mask_paths == ["o.csv::p;q", "a;b.png"]


def test_a_missing_image_of_a_table_is_named_with_the_nearest_name(tmp_path):
    for i in range(3):
        image(tmp_path / f"scan_{i}.png", i)
    (tmp_path / "manifest.csv").write_text("path,colour\nscan_0.png,x\nscan_1.png,x\nscn_2.png,x\n")
    understood = understand(tmp_path)
    [lost] = [kind for kind in understood.kinds if kind.role == "unmatched"]
    assert "scn_2.png" in lost.paths[0] and "scan_2.png" in lost.paths[0]
    assert any("colour" in note for note in understood.notes)
    dataset = prepare(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", size=32, progress=False)
    assert len(dataset) == 2 and "scan_2.png" in (dataset.folder / "rejected.csv").read_text()
    (tmp_path / "manifest.csv").write_text("path\nscan_0.png\nscn_1.png\nscn_2.png\n")
    with pytest.raises(ValueError, match=r"2 of them are not there, e.g. scn_1.png \(nearest there: scan_1.png\)"):
        understand(tmp_path)


@pytest.mark.parametrize(
    "name, words",
    [
        ("x.zip", "an archive: unpack"),
        ("x.xlsx", "a spreadsheet: save the sheet as CSV"),
        ("x.docx", "no image, no CSV"),
    ],
)
def test_what_is_no_source_says_what_it_is(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match=words):
        find_source(tmp_path / name)


def test_labels_in_names_are_told_and_taken_where_that_is_asked_for(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (40, 48), np.uint8)
    for k in range(3):
        for j, name in enumerate((f"benign ({k}).png", f"malignant_{k:02d}.png")):
            Image.fromarray(np.roll(grey, 9 * k + 5 * j)).save(tmp_path / name)
    understood = understand(tmp_path)
    assert not understood.labels and any(
        "benign 3, malignant 3" in note and "labels=names" in note for note in understood.notes
    )
    understood = understand(tmp_path, {"labels": "names"})
    assert (
        Counter(r.label for r in understood.records) == {"benign": 3, "malignant": 3} and "names" in understood.labels
    )
    Image.fromarray(grey).save(tmp_path / "7.png")
    assert not any("labels=names" in note for note in understand(tmp_path).notes)
    with pytest.raises(ValueError, match="labels=names: 7.png does not begin with a word"):
        understand(tmp_path, {"labels": "names"})


def test_patients_of_one_name_below_two_classes_are_told(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (40, 48), np.uint8)
    for k, folder in enumerate(("benign/Pat1", "benign/Pat2", "malignant/Pat1", "malignant/Pat3")):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(np.roll(grey, 9 * k)).save(tmp_path / folder / "a.png")
    found = understand(tmp_path)
    assert any(note.startswith("1 names of folders stand below several classes (e.g. Pat1/)") for note in found.notes)


def test_words_at_the_end_of_names_are_told(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (40, 48), np.uint8)
    for k in range(3):
        for j, word in enumerate(("clean", "noisy")):
            Image.fromarray(np.roll(grey, 9 * k + 5 * j)).save(tmp_path / f"p{k}_{word}.png")
    assert any("clean 3, noisy 3), which are not used" in note for note in understand(tmp_path).notes)


def test_masks_that_are_lost_are_warned_of(tmp_path):
    for k in range(3):
        save(np.concatenate([speckle(k), (disc(20 + k) * 255).astype(np.uint8)], axis=1), tmp_path / f"joined/{k}.png")
        image(tmp_path / f"mat/images/{k}.png", k)
        image(tmp_path / f"two_screens/{k}.png", k)
        save(np.concatenate([speckle(k), speckle(k + 9)], axis=1), tmp_path / f"two_screens/{k}_.png")
    (tmp_path / "mat/masks").mkdir()
    (tmp_path / "mat/masks/0.mat").write_bytes(b"x")
    warnings = {name: understand(tmp_path / name).warnings for name in ("joined", "mat", "two_screens")}
    assert "3 of 3 images looked at have one half that looks like a mask" in warnings["joined"][0]
    assert "1 files in folders of masks are not read, e.g. masks/0.mat" in warnings["mat"][0]
    assert not warnings["two_screens"]


def test_one_image_is_a_set_of_one(tmp_path):
    image(tmp_path / "one.png", 1)
    assert [(record.id, record.path) for record in find_source(tmp_path / "one.png")] == [("one", "one.png")]


def test_reading_keys_come_from_a_file_and_from_the_command_line_and_nonsense_is_named(tmp_path):
    (tmp_path / "reading.yaml").write_text("folders: classes\nignore: 7\n")
    assert reading_of(tmp_path).folders == "classes" and reading_of(tmp_path, {"ignore": "none"}).ignore == "none"
    assert parse_readings(["masks=[a, b]", "threshold=0.3"]) == {"masks": ["a", "b"], "threshold": 0.3}
    for items, words in ((["folder=x"], "did you mean folders"), (["folders"], "KEY=VALUE")):
        with pytest.raises(ValueError, match=words):
            parse_readings(items)
    with pytest.raises(ValueError, match="use one of classes, splits, patients"):
        Reading(folders="mixed")
    (tmp_path / "reading.yaml").write_text("folders: mixed\n")
    with pytest.raises(ValueError, match="reading.yaml"):
        reading_of(tmp_path)


def test_patients_hidden_in_running_numbers_are_warned_of_and_plain_images_are_not():
    rng = np.random.default_rng(0)

    def records(repeats: int, labels) -> list[Record]:
        hashes = rng.integers(0, 2**63, 240 // repeats, dtype=np.uint64).repeat(repeats)
        flips = np.uint64(1) << rng.integers(0, 60, 240).astype(np.uint64)
        return [
            Record(id=str(i), path=f"x/{i}.png", phash=f"{int(h ^ f):016x}", label=labels[i])
            for i, (h, f) in enumerate(zip(hashes, flips, strict=True))
        ]

    mixed = rng.choice(["a", "b"], 240).tolist()
    assert not hidden_groups(records(1, mixed), [False] * 240)
    assert "are alike" in hidden_groups(records(4, mixed), [False] * 240)[0]
    assert "share their label" in hidden_groups(records(1, np.repeat(["a", "b"] * 30, 4).tolist()), [False] * 240)[0]
    assert not hidden_groups(records(4, mixed), [True] * 240)  # whose they are is known


def test_a_file_that_reading_does_not_pass_over_has_one_role(tmp_path):
    plain("1.png", "2.png", "1_mask.png")(tmp_path)
    save(disc(), tmp_path / "mask_2.png")
    understood = understand(tmp_path, {"passed_over": "mask"})
    assert [record.mask for record in understood.records] == ["", "mask_2.png"]
    assert [kind.role for kind in understood.kinds if "mask_2.png" in kind.paths] == ["mask"]


def test_many_reasons_fill_no_screen():
    understood = Understanding("set", "a folder of images")
    for k in range(60):
        understood.add("unreadable", f"holds {k} bytes", *(f"{k}-{i}.dcm" for i in range(1 + (k == 59))))
    understood.add("image", "without a label", "a.png")
    lines = understood.lines()
    assert len(lines) == 1 + 1 + MOST_KINDS + 1 + 3
    assert lines[2].split() == ["2", "unreadable", "holds", "59", "bytes:", "59-0.dcm,", "59-1.dcm"]
    assert (
        lines[2 + MOST_KINDS].split()
        == f"{60 - MOST_KINDS} unreadable {60 - MOST_KINDS} further kinds, not larger than these".split()
    )
    assert len(understood.to_plain()["files"]) == 61
