"""Burnt-in text is found where it stays at one place, tissue is not, and filling it leaves the rest as it was."""

import json
import os

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, white_tophat

from vfm4us.data import filling, overlays
from vfm4us.data.dataset import PreparedDataset
from vfm4us.data.decode import read_grey, read_record
from vfm4us.data.images import image_array, image_records
from vfm4us.data.prepare import prepare
from vfm4us.tasks import base
from vfm4us.tasks.generation import read_pair

SIZE = 128


def scan(seed, line=40):
    """Speckle in a rectangle on black, with a bright fascia that lies elsewhere in each image."""
    rng = np.random.default_rng(seed)
    image = np.zeros((SIZE, SIZE), np.float32)
    tissue = gaussian_filter(rng.rayleigh(60, (96, 90)), 0.7)
    tissue[line + seed % 20 : line + seed % 20 + 3] += 120
    image[20:116, 10:100] = tissue
    return image.clip(0, 255).astype(np.uint8)


def written(image, place, text, grey=230):
    picture = Image.fromarray(image)
    ImageDraw.Draw(picture).text(place, text, fill=grey)
    return np.asarray(picture).copy()


def look(images, groups=None, geometries=None):
    images = np.stack(images)
    count = len(images)
    valid = np.tile([0, 0, SIZE, SIZE], (count, 1))
    return (
        images,
        valid,
        overlays.find(images, valid, geometries or [0] * count, groups or [str(k) for k in range(count)]),
    )


def test_what_is_filled_in_packed_images_is_filled_wherever_their_files_are_read(tmp_path, monkeypatch):
    """At twice the packed size, by the prepared set, in an evaluation, in Python, and in the target of a pair."""
    source = tmp_path / "in"
    for part in ("low_quality", "high_quality"):
        (source / part).mkdir(parents=True)
        for k in range(12):
            image = written(scan(k, 30 if part[0] == "l" else 32), (104, 60), "12 Hz")
            Image.fromarray(image).resize((2 * SIZE, 2 * SIZE)).save(source / part / f"{k}.png")
    text = (slice(2 * 60, 2 * 72), slice(2 * 104, 2 * SIZE))
    prepared = prepare(source, tmp_path / "out", size=SIZE, progress=False, reading={"blank": True})
    assert prepared.images[:, 60:72, 104:].max() < 100 and prepared.targets[:, 60:72, 104:].max() < 100
    for record in prepared.records:
        low, high = read_pair(source, record, None)
        assert max(low[text].max(), high[text].max()) < 100
        whole = read_grey(source / record.path)
        assert whole[text].max() > 200 and (low[:200, :190] == whole[:200, :190]).all()
    (source / "reading.yaml").write_text("blank: true\n")
    monkeypatch.setattr(filling, "SIZE", SIZE)
    plain = base.source_records(source)
    assert all(read_record(source, record)[text].max() < 100 for record in plain)
    assert all(image_array(record)[text].max() < 100 for record in image_records(source))
    (source / "reading.yaml").unlink()  # a model that was trained on filled images asks for it by itself
    assert all(read_record(source, r)[text].max() > 200 for r in base.source_records(source))
    assert all(read_record(source, r)[text].max() < 100 for r in base.source_records(source, blank=True))
    (prepared.folder / "filled.npz").unlink()  # of an earlier version
    with pytest.raises(ValueError, match="was filled without keeping where: delete it and prepare it again"):
        read_record(source, PreparedDataset(prepared.folder).records[0])


def test_text_at_one_place_of_a_set_is_found_and_tissue_is_not():
    names = ["DOE JANE", "MILLER A", "SMITH BO", "GARCIA L", "CHEN WEI"]
    plain = [scan(seed) for seed in range(20)]
    assert look(plain)[2] == []
    images = [written(written(image, (4, 4), names[k % 5]), (104, 60), "12 Hz") for k, image in enumerate(plain)]
    _, _, places = look(images[:15] + plain[15:])
    assert len(places) == 1 and overlays.carrying(places) == list(range(15))
    assert places[0].where[5:13, 6:50].mean() > 0.8 and places[0].where[62:70, 106:124].mean() > 0.8
    assert not places[0].where[24:112, 14:96].any(), "tissue was taken for text"


def test_a_caliper_over_moving_tissue_of_one_clip_is_found():
    frames = [scan(seed) for seed in range(8)]
    for frame in frames:
        frame[60:67, 53], frame[63, 50:57] = 250, 250
    images, _, all_places = look(frames + [scan(100 + k) for k in range(3)], ["clip"] * 8 + ["other"] * 3)
    assert [places.group for places in all_places] == ["clip"] and overlays.carrying(all_places) == list(range(8))
    assert all_places[0].where[60:67, 53].all() and all_places[0].where.sum() < 250


def test_nothing_is_told_of_a_scene_that_does_not_move():
    still = np.clip(scan(3) * 1.8, 0, 255)
    noise = np.random.default_rng(0)
    frames = [np.clip(still + noise.normal(0, 1.0, still.shape), 0, 255).astype(np.uint8) for _ in range(8)]
    assert look(frames, ["clip"] * 8)[2] == []


def test_only_images_of_one_geometry_are_compared():
    images = [written(scan(k), (4, 4), "SCANNER") for k in range(12)]
    assert overlays.carrying(look(images)[2]) == list(range(12))
    assert look(images, geometries=list(range(12)))[2] == []


def test_copies_of_one_image_say_nothing():
    image = written(scan(1), (4, 4), "SCANNER")
    images, valid, groups = np.stack([image] * 12), np.tile([0, 0, SIZE, SIZE], (12, 1)), [str(k) for k in range(12)]
    assert overlays.find(images, valid, [0] * 12, groups, ["same"] * 12) == []
    assert overlays.find(images, valid, [0] * 12, groups, groups) != []


def test_filling_takes_the_text_and_nothing_else_and_twice_is_once():
    images = [written(scan(k), (4, 4), "SCANNER") for k in range(10)]
    images, valid, places = look(images)
    before = images.copy()
    assert overlays.blank_all(images, valid, places) == 10
    where = places[0].where
    assert (images[:, ~where] == before[:, ~where]).all()
    assert images[:, 4:16, 4:50].max() < 30 < before[:, 4:16, 4:50].max()
    again = images.copy()
    overlays.blank_all(again, valid, places)
    assert (again == images).all()
    over_tissue = np.zeros((SIZE, SIZE), bool)
    over_tissue[60:68, 40:60] = True
    filled = overlays.blank(before[0], over_tissue, valid[0])
    around = before[0][50:80, 30:70]
    assert abs(float(filled[over_tissue].mean()) - float(around.mean())) < 25, "filled from somewhere else"


def test_padding_stays_black():
    image = scan(0)
    image[100:] = 0
    where = np.zeros_like(image, bool)
    where[90:] = True
    filled = overlays.blank(image, where, (0, 0, 100, SIZE))
    assert filled[100:].max() == 0 < filled[90:100, 30:80].min()


def test_the_report_and_its_picture(tmp_path):
    images, _, places = look([written(scan(k), (4, 4), "SCANNER") for k in range(10)])
    told = overlays.describe(places, [f"id{k}" for k in range(10)])
    assert told[0]["images"] == 10 and told[0]["example"] == "id0"
    top, left, height, width = told[0]["boxes_top_left_height_width"][0]
    assert top <= 6 and left <= 6 and 8 <= height <= 20 and 30 <= width <= 60
    overlays.picture(tmp_path / "overlays.png", images, places, blanked=False)
    sheet = np.asarray(Image.open(tmp_path / "overlays.png"))
    assert (sheet == (255, 40, 40)).all(axis=2).sum() > 100


def test_packing_reports_and_fills(tmp_path, monkeypatch, capsys):
    source, rows = tmp_path / "in", ["path,group"]
    source.mkdir()
    for k in range(12):
        Image.fromarray(written(scan(k), (4, 4), "SCANNER")).save(source / f"{k}.png")
        rows.append(f"{k}.png,patient {k}")
    (source / "manifest.csv").write_text("\n".join(rows) + "\n")
    seen = prepare(source, tmp_path / "seen", size=SIZE)
    printed = capsys.readouterr().err
    assert "burnt into 12 of 12 images (overlays.png); blank: true" in printed
    assert "not looked for: what is set anew in each image, such as calipers" in printed
    told = json.loads((tmp_path / "seen" / "understood.json").read_text())["burnt_in"]
    assert (told["images"], told["of"], told["filled"]) == (12, 12, False) and told["places"][0]["example"] == "0"
    assert (tmp_path / "seen" / "overlays.png").is_file()
    whole = prepare(source, tmp_path / "filled", size=SIZE, progress=False, reading={"blank": True})
    assert whole.images[:, 4:16, 4:50].max() < 30 < seen.images[:, 4:16, 4:50].max()
    replace = os.replace

    def dies(*arguments):
        if "filled" in str(arguments[0]) or "images.npy" in str(arguments[0]):
            raise KeyboardInterrupt
        return replace(*arguments)

    for broken in ("shutil.copyfile", "os.replace"):  # interrupted before it is filled, and before the last step
        out = tmp_path / broken
        with monkeypatch.context() as patch:
            patch.setattr(f"vfm4us.data.overlays.{broken}", dies)
            with pytest.raises(KeyboardInterrupt):
                prepare(source, out, size=SIZE, progress=False, reading={"blank": True})
        again = prepare(source, out, size=SIZE, progress=False, reading={"blank": True})
        assert (again.images[:] == whole.images[:]).all()
        assert json.loads((out / "understood.json").read_text())["burnt_in"]["images"] == 12
        assert not list(out.glob("overlays.json")) and not list(out.glob("images.filled*"))


def test_strokes_are_what_scipys_top_hat_finds():
    rng = np.random.default_rng(0)
    for shape in ((128, 128), (40, 9), (5, 70), (1, 1)):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        for size in ((5, 5), (1, 9)):
            assert np.array_equal(overlays._above_surroundings(pixels, size), white_tophat(pixels, size=size))
