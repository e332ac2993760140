"""Which images a source holds: every layout, every way of writing the CSV, and refusals that say what to do."""

import numpy as np
import pytest
from PIL import Image

from vfm4us.data import records as records_module
from vfm4us.data.dataset import PreparedDataset
from vfm4us.data.prepare import prepare
from vfm4us.data.records import Record, joined_paths, read_manifest, write_manifest
from vfm4us.data.sources import find_source, understand


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(root / path)


def write_csv(root, text, name="manifest.csv", encoding="utf-8"):
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(text.encode(encoding))
    return root / name


def paths_of(records):
    return [record.path for record in records]


def test_tree_label_is_first_folder_and_order_is_natural(tmp_path):
    touch(tmp_path, "b/10.png", "b/2.PNG", "a/deep/1.jpeg", "loose.tif")
    records = find_source(tmp_path)
    assert paths_of(records) == ["a/deep/1.jpeg", "b/2.PNG", "b/10.png", "loose.tif"]
    assert [record.label for record in records] == ["a", "b", "b", ""]
    assert [record.id for record in records] == ["a/deep/1", "b/2", "b/10", "loose"]


def test_two_files_of_one_name_both_survive_under_different_ids(tmp_path):
    touch(tmp_path, "a/x.png", "a/x.jpg", "b/x.png")
    records = find_source(tmp_path)
    assert len(records) == 3 and len({record.id for record in records}) == 3
    assert {record.id for record in records} >= {"b/x"}


def test_busi_masks_are_masks_and_all_lesions_of_an_image_belong_to_it(tmp_path):
    touch(tmp_path, *(f"benign/benign (4){end}.png" for end in ("", "_mask", "_mask_1", "_mask_2")), "normal/n.png")
    benign, normal = find_source(tmp_path)
    assert [path.split("(4)")[1] for path in benign.mask_paths] == ["_mask.png", "_mask_1.png", "_mask_2.png"]
    assert normal.mask == "" and normal.label == "normal"


def test_a_mask_without_its_image_is_not_trained_on(tmp_path):
    touch(tmp_path, "a/1.png", "a/1_mask.png", "a/2_mask.png")
    assert paths_of(find_source(tmp_path)) == ["a/1.png"]
    assert [kind.paths for kind in understand(tmp_path).kinds if kind.role == "unmatched"] == [["a/2_mask.png"]]


def test_images_with_masks_of_the_same_name_in_any_format(tmp_path):
    touch(tmp_path, "images/liver/1.jpg", "images/liver/2.jpg", "masks/liver/1.png")
    first, second = find_source(tmp_path)
    assert (first.mask, first.label, second.mask) == ("masks/liver/1.png", "liver", "")


def test_low_and_high_quality_form_pairs(tmp_path):
    touch(tmp_path, "low_quality/1.png", "high_quality/1.png", "low_quality/kidney/2.png", "high_quality/kidney/2.png")
    records = find_source(tmp_path)
    assert [(record.path, record.target) for record in records] == [
        ("low_quality/1.png", "high_quality/1.png"),
        ("low_quality/kidney/2.png", "high_quality/kidney/2.png"),
    ]


def test_masks_that_fit_no_image_are_an_error_not_an_unmasked_dataset(tmp_path):
    touch(tmp_path, "images/1.png", "masks/7_seg.png")
    with pytest.raises(ValueError, match="rename"):
        find_source(tmp_path)


def test_nested_images_and_masks_are_refused_rather_than_packed_as_images(tmp_path):
    touch(tmp_path, "labelled/images/1.png", "labelled/masks/1.png", "unlabelled/1.png")
    with pytest.raises(ValueError, match="labelled"):
        find_source(tmp_path)


def test_first_folders_named_like_splits_are_splits(tmp_path):
    touch(tmp_path, "train/benign/1.png", "valid/benign/2.png", "test/malignant/3.png")
    records = {record.path: (record.split, record.label) for record in find_source(tmp_path)}
    assert records == {
        "train/benign/1.png": ("train", "benign"),
        "valid/benign/2.png": ("val", "benign"),
        "test/malignant/3.png": ("test", "malignant"),
    }


def test_hidden_files_and_link_loops_are_passed_over(tmp_path):
    touch(tmp_path, "a/1.png", "a/._1.png", ".cache/2.png", "__MACOSX/3.png")
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    assert paths_of(find_source(tmp_path)) == ["a/1.png"]


@pytest.mark.parametrize(
    "text, encoding",
    [
        ("path,label,group,split\na.png,x,p1,train\nb.png,y,p2,Validation\n", "utf-8"),
        ("path,label,group,split\r\na.png,x,p1,train\r\nb.png,y,p2,dev\r\n", "utf-8-sig"),
        ("path;label;group;split\na.png;x;p1;train\nb.png;y;p2;val\n", "utf-8"),
        ("Path\tLabel\tGroup\tSplit\na.png\tx\tp1\ttrain\nb.png\ty\tp2\tvalid\n", "utf-16"),
        ("\n note ,path, label ,group,split\n,a.png, x ,p1,TRAIN\n\n,b.png,y,p2,val\n", "utf-8"),
    ],
)
def test_csv_dialects_say_the_same(tmp_path, text, encoding):
    path = write_csv(tmp_path, text, encoding=encoding)
    expected = [("a.png", "x", "p1", "train"), ("b.png", "y", "p2", "val")]
    for source in (path, tmp_path):
        assert [(r.path, r.label, r.group, r.split) for r in find_source(source)] == expected


def test_csv_with_only_paths_and_with_several_masks(tmp_path):
    assert find_source(write_csv(tmp_path / "1", "path\nsub/a.png\n"))[0] == Record(id="sub/a", path="sub/a.png")
    (record,) = find_source(write_csv(tmp_path / "2", "path,mask\na.png,m1.png;m2.png|m3.png\n"))
    assert record.mask_paths == ["m1.png", "m2.png", "m3.png"]


def test_csv_that_names_the_first_lesion_mask_gets_the_further_ones(tmp_path):
    touch(tmp_path, "x.png", "x_mask.png", "x_mask_1.png", "y.png", "y_mask.png")
    records = find_source(write_csv(tmp_path, "path,mask\nx.png,x_mask.png\ny.png,y_mask.png\n"))
    assert [record.mask_paths for record in records] == [["x_mask.png", "x_mask_1.png"], ["y_mask.png"]]


@pytest.mark.parametrize(
    "text, words",
    [
        ("picture,label\na.png,x\n", "no column named path"),
        ("path,label\n", "no images"),
        ("", "empty"),
        ("path,split\na.png,holdout\n", "line 2.*holdout.*train, val, test"),
        ("path,label\na.png,x,y\n", "line 2 has 3 cells"),
        ("path\na.png\na.png\n", "line 3 lists a.png a second time"),
        ("path,label\n,x\n", "empty path"),
        ("path,path\na.png,b.png\n", "twice"),
    ],
)
def test_csv_errors_name_the_file_and_the_fault(tmp_path, text, words):
    path = write_csv(tmp_path, text)
    with pytest.raises(ValueError, match=words) as error:
        find_source(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "label, encoding, read",
    [
        ("bösartig", "cp1252", True),
        ("Größe 3 cm²", "cp1252", True),
        ("à revoir", "cp1252", True),
        ("киста", "cp1251", False),
        ("良性", "gbk", False),
        ("żółty", "cp1250", False),
        ("bösartig", "mac_roman", False),
        ("bösartig", "cp850", False),
    ],
)
def test_a_table_in_another_encoding_is_read_where_it_is_plain_which_one_and_refused_elsewhere(
    tmp_path, label, encoding, read
):
    path = write_csv(tmp_path, f"path,label\na.png,{label}\n", encoding=encoding)
    if not read:
        with pytest.raises(ValueError, match="not plainly in Windows-1252: save it as UTF-8"):
            understand(path, whole=False)
        return
    understood = understand(path, whole=False)
    assert understood.records[0].label == label and any("Windows-1252" in note for note in understood.notes)


def test_a_manifest_whose_labels_are_measurements_is_warned_of(tmp_path):
    rows = [f"{k}.png,{label}" for k, label in enumerate(("44.25", "51", "60.5", "nan"))]
    [warning] = [
        w
        for w in understand(write_csv(tmp_path, "path,label\n" + "\n".join(rows)), whole=False).warnings
        if "labels" in w
    ]
    assert "numbers that nearly all differ, e.g. 44.25" in warning
    rows = [f"{k}.png,{label}" for k, label in enumerate(("1", "2.0", "3", "4"))]
    path = write_csv(tmp_path, "path,label\n" + "\n".join(rows))
    assert not any("labels" in words for words in understand(path, whole=False).warnings)


def test_missing_and_empty_folders_say_what_to_do(tmp_path):
    (tmp_path / "images_here").mkdir()
    (tmp_path / "images_here" / "scan.txt").touch()
    with pytest.raises(FileNotFoundError, match="did you mean .*images_here"):
        find_source(tmp_path / "image_here")
    with pytest.raises(ValueError, match=r"looked for \.png .*found 1 \.txt"):
        find_source(tmp_path / "images_here")


def test_prepared_manifest_comes_back_unchanged(tmp_path):
    odd = 'a, "b"\nc;d \udcff'  # comma, quote, line break, a byte that is not UTF-8
    record = Record(odd, odd + ".png", "x", "g", "train", "m1.png;m2.png", "", 3, 4, 0, 0, 5, 6, "ab", "0" * 16)
    write_manifest(tmp_path / "manifest.csv", [record, Record("2", "2.png")])
    assert read_manifest(tmp_path / "manifest.csv") == [record, Record("2", "2.png")]


def test_a_source_manifest_is_not_taken_for_a_prepared_one(tmp_path):
    with pytest.raises(ValueError, match="lacks"):
        read_manifest(write_csv(tmp_path, "path,label\na.png,x\n"))


def test_names_that_break_csv_files_are_packed_and_opened_again_and_no_cell_is_a_formula(tmp_path):
    odd = ["line\rbreak", "=1+1", "-rf", "@sum", "+x", "'=y", "a;b", "back\\slash", "umlaut_\udcff", 'comma,quote"end']
    for name in odd:
        touch(tmp_path / "set", f"images/{name}.png")
        mask = np.zeros((20, 20), np.uint8)
        mask[5:12, 5:12] = 255
        (tmp_path / "set" / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "set" / "masks" / f"{name}.png")
    first = prepare(tmp_path / "set", tmp_path / "out", size=32, progress=False)
    opened = PreparedDataset(first.folder)
    assert {record.path for record in opened.records} == {f"images/{name}.png" for name in odd}
    assert all(record.mask_paths == [record.path.replace("images", "masks")] for record in opened.records)
    assert opened.masks.any(axis=(1, 2)).all()
    records = [Record("=1", "=1.png", label="+a", mask=joined_paths(["-b;c.png", "@d\\e.png"]))]
    write_manifest(tmp_path / "m.csv", records)
    assert read_manifest(tmp_path / "m.csv") == records
    cells = (tmp_path / "m.csv").read_text().split("\n")[1].split(",")
    assert not any(cell.strip('"').startswith(tuple("=+-@")) for cell in cells)


def test_a_folder_is_gone_through_once_while_it_is_understood_and_anew_the_next_time(tmp_path, monkeypatch):
    walks = []
    walk = records_module._walk
    monkeypatch.setattr(records_module, "_walk", lambda root: walks.append(root) or walk(root))
    for name in ("a.png", "b.png"):
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 255, (40, 40), np.uint8)).save(tmp_path / name)
    assert len(understand(tmp_path).records) == 2 and walks == [tmp_path]
    (tmp_path / "a.png").unlink()
    assert len(understand(tmp_path).records) == 1 and walks == [tmp_path] * 2
