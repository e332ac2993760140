"""DICOM, clips and volumes packed from a folder: the right frames, one group per patient or clip, no name of anybody."""

import csv
import json
from dataclasses import fields

import numpy as np
import pytest
from making_formats import PLANTED, dicom_dataset, region, save_dicom, speckle, write_clip
from PIL import Image

from vfm4us.data import decode, prepare, pseudonyms
from vfm4us.data.containers import Reading, Told, one_record_per_image
from vfm4us.data.images import image_batch, image_records
from vfm4us.data.sources import find_source, list_source

pytest.importorskip("pydicom")
pytest.importorskip("av")


@pytest.fixture(autouse=True)
def key(tmp_path, monkeypatch):
    monkeypatch.setenv(pseudonyms.KEY_FILE, str(tmp_path / "private" / "key"))


def rejected_in(folder):
    with open(folder / "rejected.csv", newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def archive(root):
    """Three patients: a still with two regions, a loop of 3 s at 10 frames a second, a file without ending; and a report."""
    dual = dicom_dataset(speckle(0), SequenceOfUltrasoundRegions=[region(0, 0, 60, 36), region(0, 40, 60, 40)])
    save_dicom(root / "a" / "still.dcm", dual)
    loop = np.stack([speckle(10 + k) for k in range(30)])
    loop[10] = loop[0]  # frozen
    save_dicom(root / "a" / "loop.dcm", dicom_dataset(loop, FrameTime="100", PatientID="PID-2"))
    save_dicom(root / "b" / "IM0001", dicom_dataset(speckle(1), "MONOCHROME1", PatientID="PID-3"))
    save_dicom(root / "b" / "report.dcm", dicom_dataset(speckle(2), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"))
    Image.fromarray(speckle(3)).save(root / "b" / "plain.png")
    return root


def test_an_archive_is_packed_and_names_nobody(tmp_path):
    dataset = prepare.prepare(archive(tmp_path / "archive"), tmp_path / "out", size=64, progress=False)
    assert dataset.ids == [
        *("a/loop_frame0000", "a/loop_frame0020", "a/still_region1", "a/still_region2", "b/IM0001", "b/plain"),
    ]
    assert dataset.labels == ["a", "a", "a", "a", "b", "b"]
    groups = dataset.groups.tolist()
    assert groups[0] == groups[1] and groups[2] == groups[3] and len({groups[0], groups[2], groups[4]}) == 3
    assert dataset.records[2].crop == "0 0 60 36" and dataset.records[2].spacing_mm == "0.2 0.2"
    assert rejected_in(tmp_path / "out") == {
        "a/loop.dcm frame 10": "near-identical to the frame before it",
        "b/report.dcm": "DICOM: a structured report, no image",
    }
    assert (dataset.description["rejected"], dataset.description["near_identical"]) == (1, 1)
    assert dataset.records[4].height == 64
    for file in (tmp_path / "out").iterdir():
        data = file.read_bytes()
        for name in PLANTED:
            assert name.encode() not in data, f"{name} stands in {file.name}"
    for record in dataset.records:
        assert not any(name in str(getattr(record, f.name)) for name in PLANTED for f in fields(record))


def test_the_grep_for_names_would_find_one(tmp_path):
    root = tmp_path / "archive"
    save_dicom(root / PLANTED[2] / "x.dcm", dicom_dataset(speckle(0)))  # in the path it stays, and a note says so
    told = Told()
    records = one_record_per_image(root, list_source(root), Reading(), told)
    assert PLANTED[2] in records[0].path and any("rename it" in note for note in told.notes)


def test_clips_by_each_rule_with_one_group(tmp_path):
    root = tmp_path / "clips"
    moving = [np.roll(speckle(5), 4 * k, axis=1) for k in range(20)]
    write_clip(root / "x" / "one.mp4", moving, rate=10)
    write_clip(root / "y" / "two.avi", [speckle(6)] * 20, rate=10, codec="mjpeg")
    for rule, expected in (("first", [0]), ("per second", [0, 10]), ("every 5", [0, 5, 10, 15]), ("all", range(20))):
        dataset = prepare.prepare(root, tmp_path / rule, size=64, progress=False, reading=Reading(frames=rule))
        one = [r for r in dataset.records if r.path == "x/one.mp4"]
        assert [r.frame for r in one] == list(expected) and {r.group for r in one} == {"x/one"}
        two = [r for r in dataset.records if r.path == "y/two.avi"]
        assert len(two) == (20 if rule == "all" else 1), "of a frozen clip one frame is enough"
    assert one[3].id == "x/one_frame0003" and one[0].label == "x"


def test_how_many_workers_and_interruptions_change_nothing(tmp_path, monkeypatch):
    root = tmp_path / "clips"
    slow = [np.roll(speckle(5), (k // 3) * 4, axis=1) for k in range(30)]
    write_clip(root / "one.mp4", slow, rate=10, codec="libx264")
    monkeypatch.setattr(prepare, "LONGEST_RUN", 8)
    reading = Reading(frames="every 2")
    whole = prepare.prepare(root, tmp_path / "whole", size=64, progress=False, workers=3, reading=reading)
    monkeypatch.setattr(prepare, "SAVE_EVERY", 0.0)
    real, calls = prepare._prepare_run, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(prepare, "_prepare_run", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(root, tmp_path / "again", size=64, progress=False, workers=1, reading=reading)
    lines = (tmp_path / "again.partial" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "again.partial" / "journal.jsonl").write_bytes(b"".join(lines[:3]))  # in the middle of a run
    again = prepare.prepare(root, tmp_path / "again", size=64, progress=False, workers=1, reading=reading)
    assert again.ids == whole.ids and (again.images[:] == whole.images[:]).all()
    assert rejected_in(tmp_path / "again") == rejected_in(tmp_path / "whole")
    assert 5 <= len(whole.ids) < 15


def test_frames_of_one_file_are_decoded_in_one_go_and_are_the_same(tmp_path, monkeypatch):
    pages = [Image.fromarray(speckle(k)) for k in range(6)]
    pages[0].save(tmp_path / "clip.tif", save_all=True, append_images=pages[1:])
    (tmp_path / "broken.tif").write_bytes((tmp_path / "clip.tif").read_bytes()[:100])
    records = find_source(tmp_path, {"frames": "all"})
    opened, read_frames = [], decode.frames.read_frames
    monkeypatch.setattr(decode.frames, "read_frames", lambda path, n: opened.append(len(n)) or read_frames(path, n))
    together = list(decode.read_records(tmp_path, records))
    assert opened == [6] and len(together) == 7 and isinstance(together[0], ValueError)
    for record, image in zip(records[1:], together[1:], strict=True):
        assert (image == decode.read_record(tmp_path, record)).all()
    opened.clear()
    backwards = list(decode.read_records(tmp_path, records[:0:-1]))  # in an order that no file gives
    assert opened == [1] * 6 and all((a == b).all() for a, b in zip(backwards, together[:0:-1], strict=True))
    opened.clear()
    (tmp_path / "broken.tif").unlink()
    batch, _ = image_batch(image_records(tmp_path), 64)
    assert len(batch) > 0 and len(opened) == 1


def test_records_are_read_one_by_one_as_they_are_packed(tmp_path):
    root = archive(tmp_path / "archive")
    records = find_source(root)
    still = [r for r in records if r.path == "a/still.dcm"]
    assert [decode.read_record(root, r).shape for r in still] == [(60, 36), (60, 40)]
    loop = next(r for r in records if r.frame == 20)
    assert (decode.read_record(root, loop) == speckle(30)).all()
    assert (decode.read_grey(root / "b" / "IM0001") == 255 - speckle(1)).all()
    report = next(r for r in records if "report" in r.path)
    with pytest.raises(ValueError, match="structured report"):
        decode.read_record(root, report)


def test_the_reading_is_checked():
    with pytest.raises(ValueError, match="frames='last' is not understood"):
        Reading(frames="last")
    with pytest.raises(ValueError, match="regions="):
        Reading(regions=("liver",))
    assert Reading(frames="2 per_second").plan() == {"frames": "2 per second"} and Reading().plan() == {}


def test_what_was_found_is_told(tmp_path):
    root = archive(tmp_path / "archive")
    told = Told()
    one_record_per_image(root, list_source(root), Reading(), told)
    lines = "\n".join(told.lines())
    assert "3 DICOM files with 32 frames: 6 images are taken" in lines
    assert "2 files: names no region" in lines and "1 files are refused, e.g. b/report.dcm" in lines


def test_masks_of_volumes_and_outlines_lie_on_their_frames(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    stack = np.stack([speckle(k) for k in range(4)])
    labels = np.zeros_like(stack)
    for k in range(4):
        labels[k, 10 : 20 + 5 * k, 30:50] = 1 + k % 2
    (tmp_path / "s").mkdir()
    for name, pixels in (("v.nii.gz", stack), ("v_gt.nii.gz", labels.astype(np.float32))):
        sitk.WriteImage(sitk.GetImageFromArray(pixels), str(tmp_path / "s" / name))
    Image.fromarray(speckle(9)).save(tmp_path / "s" / "p.png")
    line = "0 " + " ".join(f"{x} {y}" for x, y in ((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)))
    (tmp_path / "s" / "p.txt").write_text(line + "\n")
    (tmp_path / "s" / "manifest.csv").write_text("path,mask\nv.nii.gz,v_gt.nii.gz\np.png,p.txt::\n")
    dataset = prepare.prepare(tmp_path / "s", tmp_path / "out", size=80, progress=False)
    assert [r.frame for r in dataset.records] == [0, 1, 2, 3, 0]
    assert all((dataset.masks[k, :64, :80] == labels[k]).all() for k in range(4))
    square = np.zeros((64, 80), np.uint8)
    square[16:48, 20:60] = 1
    assert (dataset.masks[4, :64, :80] == square).all()


def test_a_volume_whose_pixels_beside_its_header_changed_is_packed_anew(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    for seed in (0, 1):
        stack = sitk.GetImageFromArray(np.stack([speckle(seed + k) for k in range(2)]))
        sitk.WriteImage(stack, str(tmp_path / "s.mhd") if seed == 0 else str(tmp_path / "other.mhd"))
    (tmp_path / "s").mkdir()
    for name in ("s.mhd", "s.raw"):
        (tmp_path / name).rename(tmp_path / "s" / name)
    first = prepare.open_or_prepare(tmp_path / "s", tmp_path / "cache", 64)
    (tmp_path / "s" / "s.raw").write_bytes((tmp_path / "other.raw").read_bytes())
    second = prepare.open_or_prepare(tmp_path / "s", tmp_path / "cache", 64)
    assert first.folder != second.folder and not np.array_equal(first.images, second.images)


def test_a_volume_of_masks_that_is_not_there_costs_its_image_alone(tmp_path):
    for k in range(2):
        Image.fromarray(speckle(k)).save(tmp_path / f"{k}.png")
    (tmp_path / "manifest.csv").write_text("path,mask\n0.png,\n1.png,gone.nii.gz\n")
    dataset = prepare.prepare(tmp_path, tmp_path.with_name("out"), size=64, progress=False)
    assert len(dataset) == 1 and "1.png,its mask gone.nii.gz" in (dataset.folder / "rejected.csv").read_text()


def test_large_images_do_not_multiply_their_memory(tmp_path):
    """Eight threads with 16-megapixel files in 16 bits: 400 MB within the budget, 670 MB without it."""
    import subprocess
    import sys

    root = tmp_path / "large"
    root.mkdir()
    wide = np.zeros((4000, 4000), np.uint16)
    wide[:2000] = 40000
    for k in range(8):
        Image.fromarray(wide).save(root / f"{k}.tif", compression="tiff_deflate")
    code = (
        "import resource, sys; from vfm4us.data import prepare;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "prepare.prepare(sys.argv[1], sys.argv[2], size=64, progress=False, workers=8);"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, root, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 530, f"{done.stdout} MB"


def test_a_medium_with_a_dicomdir(tmp_path):
    from pydicom.fileset import FileSet

    medium = FileSet()
    series = {"StudyID": "1", "StudyTime": "1200", "SeriesNumber": 1, "SeriesInstanceUID": "1.2.3"}
    for seed in range(3):
        medium.add(dicom_dataset(speckle(seed), InstanceNumber=seed, **series))
    root = tmp_path / "medium"
    medium.write(root)
    images = sorted(file for file in root.rglob("*") if file.is_file() and file.name != "DICOMDIR")
    images[1].unlink()
    dataset = prepare.prepare(root, tmp_path / "out", size=64, progress=False)
    gone = images[1].relative_to(root).as_posix()
    assert len(dataset) == 2 and len(set(dataset.groups)) == 1
    reasons = rejected_in(tmp_path / "out")
    assert reasons.pop(gone) == "named by DICOMDIR, but not there"
    assert list(reasons.values()) == ["DICOM: the directory of a medium, no image: its folder is the source"]


def test_configs_name_the_rule(tmp_path):
    from vfm4us import config
    from vfm4us.data.pools import SourceConfig, open_sources
    from vfm4us.pretraining.settings import PretrainingConfig
    from vfm4us.tasks.base import TaskDataConfig, open_dataset

    moving = [np.roll(speckle(5), 4 * k, axis=1) for k in range(20)]
    write_clip(tmp_path / "in" / "one.mp4", moving, rate=10)
    write_clip(tmp_path / "in" / "two.mp4", moving[::-1], rate=10)
    settings = config.from_dict(
        PretrainingConfig, {"data": {"frames": "every 5", "cache": str(tmp_path / "c"), "size": 64}}
    )
    pool = open_sources([SourceConfig(path=str(tmp_path / "in"))], "stages.0.data", settings.data.locations())
    assert len(pool[0]) == 8
    assert len(open_dataset(TaskDataConfig(str(tmp_path / "in"), 64, cache=str(tmp_path / "c")), "a folder")) == 4
    with pytest.raises(ValueError, match="frames='last' is not understood"):
        open_dataset(TaskDataConfig(str(tmp_path / "in"), 64, cache=str(tmp_path / "c"), frames="last"), "a folder")


def test_what_was_used_as_group_is_said(tmp_path):
    from vfm4us.data.sources import understand

    lines = "\n".join(understand(archive(tmp_path / "archive")).lines())
    assert "groups   3 (of DICOM files the patient, as a keyed hash)" in lines
    assert (
        "2  image       label b: b/IM0001, b/plain.png" in lines
        and "1  unreadable  DICOM: a structured report" in lines
    )
    for k in range(3):
        save_dicom(tmp_path / "alike" / f"{k}.dcm", dicom_dataset(speckle(k), PatientID="ANON"))
    assert "all 3 DICOM files name one patient" in "\n".join(understand(tmp_path / "alike").lines())


def test_what_is_not_looked_for_and_what_shows_nothing_is_said(tmp_path):
    for k in range(3):
        pixels = speckle(k) // 10 if k == 1 else speckle(k)
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{k}.png")
    told = prepare.prepare(tmp_path / "in", tmp_path / "out", size=48, progress=False).description
    assert any("1 of 3 images are nearly black" in warning and "(e.g. 1)" in warning for warning in told["warnings"])
    notes = json.loads((tmp_path / "out" / "understood.json").read_text())["notes"]
    assert any("no text or marks that stay" in note and "calipers" in note for note in notes)
