"""A segmentation model is trained, measured and used as a user would; its figures equal those by hand and by brute force."""

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import vfm4us
from tests.conftest import ROOT
from tests.running import script, script_soon
from vfm4us import checkpoints, config
from vfm4us.data.images import image_paths
from vfm4us.data.masks import read_mask, read_masks
from vfm4us.data.records import Record
from vfm4us.data.sources import find_source
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.evaluation import segmentation as figures
from vfm4us.evaluation import statistics
from vfm4us.runtime import signals
from vfm4us.tasks import base
from vfm4us.tasks import segmentation as task

TRAIN, EVALUATE = (ROOT / "Downstream" / "Segmentation" / name for name in ("train.py", "evaluate.py"))


def disc(height, width, radius, rng) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.hypot(y - rng.uniform(0.3, 0.7) * height, x - rng.uniform(0.3, 0.7) * width) < radius


def discs(root, count=40, size=(40, 56), classes=1, empty=5, seed=0):
    """images/ and masks/: dark discs in noise, of one or two grey levels; every `empty`-th image holds none."""
    rng = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        mask = np.zeros(size, np.uint8)
        if i % empty:
            for number in range(1, classes + 1):
                mask[disc(*size, size[0] * (0.28 - 0.1 * (number - 1)), rng)] = number
        picture = (150 - 90 * (mask == 1) + 90 * (mask == 2) + rng.normal(0, 12, size)).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(root / "images" / f"{i}.png")
        Image.fromarray(mask if classes > 1 else 255 * mask).save(root / "masks" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return discs(tmp_path_factory.mktemp("discs"))


@pytest.fixture
def build(folder, tmp_path):
    def settings(*overrides: str, path=None) -> task.SegmentationConfig:
        values = {
            "name": "t",
            "logs": str(tmp_path / "logs"),
            "seeds": [0],
            "device": "cpu",
            "decoder_width": 16,
            "atrous_rates": [1, 2, 3],
            "data": {
                "path": str(path or folder),
                "size": 48,
                "cache": str(tmp_path / "cache"),
                "splits": [0.5, 0.25, 0.25],
            },
            "finetune": {"epochs": 2, "min_steps": 4, "batch_size": 4, "patience": 0},
        }
        for item in overrides:
            config.override(values, item)
        return config.from_dict(task.SegmentationConfig, values)

    return settings


def quiet(*_):
    pass


class Threshold(torch.nn.Module):
    """What a perfect network would say of `discs`: dark is class 1, bright class 2."""

    def __init__(self, classes=1, join=False):
        super().__init__()
        self.classes, self.join = [f"c{k}" for k in range(classes)], join
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        x = x.mean(1, keepdim=True)
        outputs = [0 * x, 120 / 255 - x, x - 200 / 255][: 1 + len(self.classes)]
        return torch.cat(outputs, dim=1) * 100


# ---- figures --------------------------------------------------------------------------------------------------------


def brute_force(p: np.ndarray, t: np.ndarray) -> dict[str, float]:
    """Dice, IoU, HD95 and ASD of boolean masks by definition: counts, and the distances between all pairs of outline pixels."""
    if not p.any() or not t.any():
        same = p.any() == t.any()
        away = 0.0 if same else float(np.hypot(*t.shape))
        return {"dice": float(same), "iou": float(same), "hd95": away, "asd": away}

    def outline(mask):
        around = np.pad(mask, 1)
        inner = mask & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
        return np.argwhere(mask & ~inner).astype(np.float64)

    a, b = outline(p), outline(t)
    distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    to, back = distance.min(1), distance.min(0)
    return {
        "dice": 2 * (p & t).sum() / (p.sum() + t.sum()),
        "iou": (p & t).sum() / (p | t).sum(),
        "hd95": max(np.percentile(to, 95), np.percentile(back, 95)),
        "asd": np.concatenate([to, back]).mean(),
    }


def test_figures_equal_an_independent_implementation_on_random_masks():
    rng = np.random.default_rng(0)
    for case in range(40):
        shape = tuple(rng.integers(16, 60, 2))
        smooth = [ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.5, 4)) for _ in range(2)]
        p, t = (np.digitize(field, np.quantile(field, [0.6, 0.85])).astype(np.uint8) for field in smooth)
        if case % 5 == 0:
            p[p == 2] = 0
        if case % 7 == 0:
            t[:] = 0
        if case % 11 == 1:
            t[:] = 0
            t[3, 4] = 1  # one pixel
        measured = task.compare(p, t, 2)
        for k in (1, 2):
            for name, value in brute_force(p == k, t == k).items():
                assert measured[name][k - 1] == pytest.approx(value, rel=1e-6, abs=1e-6), (case, k, name)


def test_figures_of_squares_by_hand():
    truth, predicted = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8)
    truth[5:15, 5:15], predicted[5:15, 9:19] = 1, 1  # 100 pixels each, moved by 4: 60 in common
    measured = task.compare(predicted, truth, 1)
    assert measured["dice"] == pytest.approx([0.6]) and measured["iou"] == pytest.approx([60 / 140])
    assert measured["hd95"] == pytest.approx([4.0], abs=1e-6)
    assert measured["right"] == 1200 - 80 and measured["pixels"] == 1200 and measured["truth_pixels"] == [100]
    nothing = np.zeros_like(truth)
    both, missed, invented = (
        task.compare(*pair, 1) for pair in ((nothing, nothing), (nothing, truth), (truth, nothing))
    )
    assert [both[m][0] for m in task.MEASURES] == [1, 1, 0, 0]
    for one in (missed, invented):
        assert [one[m][0] for m in task.MEASURES] == [0, 0, 50, 50], "the diagonal of 30 x 40"
    assert task.compare(truth, truth, 1)["hd95"] == [0]


def outcome(dice, truth_pixels, predicted_pixels, right, pixels, groups=None) -> statistics.Outcome:
    dice, truth, predicted = (
        np.array(v, dtype=float).reshape(len(dice), -1) for v in (dice, truth_pixels, predicted_pixels)
    )
    count, classes = dice.shape
    same = {name: dice for name in task.MEASURES}
    return same | {
        "paths": np.arange(count).astype(str),
        "groups": np.array(groups or [str(i) for i in range(count)]),
        "classes": np.array([f"c{k}" for k in range(classes)]),
        "truth_pixels": truth.astype(int),
        "predicted_pixels": predicted.astype(int),
        "right": np.array(right),
        "pixels": np.array(pixels),
    }


def test_averages_keep_empty_masks_apart_and_the_pooled_figure_counts_background():
    o = outcome([0.8, 0.6, 1.0, 0.0], [10, 20, 0, 0], [10, 10, 0, 7], [98, 95, 100, 93], [100] * 4)
    scores = {k: float(v[0]) for k, v in figures.outcome_scores(o, np.ones((1, 4))).items()}
    assert scores["dice"] == pytest.approx(0.6) and scores["dice_present"] == pytest.approx(0.7)
    assert scores["absent_left_empty"] == 0.5 and scores["pooled_with_background"] == pytest.approx(386 / 400)
    again = figures.outcome_scores(o, np.array([[1, 1, 1, 1], [2, 0, 1, 1]]))
    assert again["dice_present"][1] == pytest.approx(0.8) and again["dice"][1] == pytest.approx((1.6 + 1) / 4)
    result = figures.evaluate([o, o | {"hd95": o["hd95"] * 100}])
    assert [result[n]["mean"] for n in ("both_empty", "only_truth_empty", "only_prediction_empty")] == [1, 1, 0]
    assert result["hd95"]["high"] > result["hd95"]["mean"] > 1, "a distance has no bound at 1"
    assert result["dice"]["low"] < 0.6 < result["dice"]["high"] and result["dice"]["per_seed"] == pytest.approx(
        [0.6, 0.6]
    )


def test_classes_are_averaged_alike_however_often_they_occur():
    o = outcome(
        [[0.9, 1.0], [0.7, 1.0], [0.8, 0.2]], [[5, 0], [5, 0], [5, 5]], [[5, 0], [5, 0], [5, 5]], [9, 9, 9], [10] * 3
    )
    scores = {k: float(v[0]) for k, v in figures.outcome_scores(o, np.ones((1, 3))).items()}
    assert scores["dice_present"] == pytest.approx((0.8 + 0.2) / 2) and scores["dice_present c1"] == pytest.approx(0.2)
    assert scores["dice"] == pytest.approx((0.8 + 2.2 / 3) / 2)


# ---- the original size ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (90, 200), (200, 90), (61, 47), (33, 120)])
@pytest.mark.parametrize("size", [48, 64, 100])
def test_the_letterbox_is_undone(shape, size):
    """An oracle's mask of a padded and resized image lies where the image's own dark part does, to half a packed pixel."""
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 4 : shape[0] // 2, shape[1] // 8 : shape[1] // 2] = 1
    image = np.where(mask, 60, 180).astype(np.uint8)
    [predicted] = task.segment(Threshold(), [image], size)
    assert predicted.shape == shape
    scale = max(1.0, max(shape) / size)
    assert task.compare(predicted, mask, 1)["hd95"][0] <= 0.5 * scale + 0.5


def test_mirrored_prediction_is_mirrored_back():
    class Left(Threshold):
        def forward(self, x):  # left of the middle, wherever that lies
            ramp = torch.linspace(1, -1, x.shape[-1]).expand_as(x)
            return torch.cat([0 * x, ramp], dim=1)

    image = np.full((32, 32), 9, np.uint8)
    [once], [both] = task.segment(Left(), [image], 32), task.segment(Left(), [image], 32, flips=True)
    assert once[:, :16].all() and not once[:, 16:].any() and not both.any(), "left and right average out"
    oracle = np.where(disc(32, 32, 8, np.random.default_rng(0)), 60, 180).astype(np.uint8)
    np.testing.assert_array_equal(*(next(task.segment(Threshold(), [oracle], 32, flips=f)) for f in (False, True)))


def test_segment_takes_what_people_have(folder):
    paths = image_paths(folder / "images")[:3]
    arrays = [np.asarray(Image.open(path)) for path in paths]
    expected = list(task.segment(Threshold(), paths, 48))
    for form in (
        arrays,
        [Image.open(path) for path in paths],
        [np.repeat(a[..., None], 3, 2) for a in arrays],
        np.stack(arrays)[:, None],
        iter(arrays),
    ):
        for a, b in zip(task.segment(Threshold(), form, 48), expected, strict=True):
            assert a.dtype == np.uint8 and task.compare(a, b, 1)["dice"][0] > 0.97
    assert sum(1 for _ in task.segment(Threshold(), folder / "images", 48)) == 40
    for one in (paths[0], Image.open(paths[0]), arrays[0]):
        np.testing.assert_array_equal(next(task.segment(Threshold(), one, 48)), expected[0])


ODD_MASKS = {
    "0 and 1": lambda m, path: Image.fromarray(m).save(path),
    "0 and 255": lambda m, path: Image.fromarray(255 * m).save(path),
    "1 bit": lambda m, path: Image.fromarray(255 * m).convert("1").save(path),
    "RGB": lambda m, path: Image.fromarray(np.stack([255 * m, 0 * m, 0 * m], axis=2)).save(path),
    "RGBA": lambda m, path: Image.fromarray(255 * m).convert("RGBA").save(path),
    "JPEG noise": lambda m, path: Image.fromarray(255 * m).save(path.with_suffix(".jpg"), quality=50),
    "twice as large": lambda m, path: Image.fromarray(255 * np.kron(m, np.ones((2, 2), np.uint8))).save(path),
    "an array": lambda m, path: np.save(path.with_suffix(".npy"), m.astype(np.int64)),
}


@pytest.mark.parametrize("kind", ODD_MASKS)
def test_masks_of_every_kind_give_the_same_figures(tmp_path, kind):
    rng = np.random.default_rng(3)
    mask = disc(48, 64, 12, rng).astype(np.uint8)
    Image.fromarray(np.where(mask, 60, 180).astype(np.uint8)).save(tmp_path / "i.png")
    ODD_MASKS[kind](mask, tmp_path / "m.png")
    [name] = [p.name for p in tmp_path.iterdir() if p.stem == "m"]
    cases = task.examine(Threshold(), tmp_path, [Record(id="i", path="i.png", mask=name)], 64, tmp_path / "out")
    assert not cases.unreadable and cases.rows[0]["dice"][0] > (0.97 if kind == "JPEG noise" else 0.999)
    again = next(task.segment(Threshold(), [tmp_path / "i.png"], 64))
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / cases.rows[0]["predicted"]), again)


def test_several_masks_one_pixel_an_empty_a_missing_and_an_unfit_mask(tmp_path):
    rng = np.random.default_rng(3)
    first, second = disc(48, 64, 8, rng), disc(48, 64, 8, rng)
    pixel, nothing = np.zeros((48, 64), bool), np.zeros((48, 64), bool)
    pixel[20, 30] = True
    for name, mask in (
        ("a", first),
        ("b", second),
        ("pixel", pixel),
        ("nothing", nothing),
        ("high", np.ones((64, 48), bool)),
    ):
        Image.fromarray(255 * mask.astype(np.uint8)).save(tmp_path / f"{name}_m.png")
    Image.fromarray(np.where(first | second, 60, 180).astype(np.uint8)).save(tmp_path / "i.png")
    Image.fromarray(np.full((48, 64), 180, np.uint8)).save(tmp_path / "plain.png")
    masks = ["a_m.png;b_m.png", "pixel_m.png", "nothing_m.png", "gone.png", "high_m.png", ""]
    records = [Record(id=f"../{k}", path="i.png" if k == 0 else "plain.png", mask=m) for k, m in enumerate(masks)]
    cases = task.examine(Threshold(), tmp_path, records, 64, tmp_path / "out")
    assert [row["dice"][0] for row in cases.rows] == [pytest.approx(1, abs=1e-3), 0, 1]
    assert cases.rows[1]["hd95"] == [80] and cases.rows[1]["truth_pixels"] == [1], "one pixel, missed: the diagonal"
    assert [reason for _, reason in cases.unreadable] == [
        "its mask gone.png: cannot be read: No such file or directory",
        "its mask high_m.png has 48 x 64 pixels, its image 64 x 48: the shapes differ",
    ]
    written = sorted(p.name for p in (tmp_path / "out/predicted").iterdir())
    assert len(cases.without) == 1 and written == ["0.png", "1.png", "2.png", "5.png"]


def test_predicted_masks_are_read_back_as_they_were_and_never_leave_their_folder(tmp_path):
    for classes in (0, 1, 3, 16):
        mask = np.random.default_rng(0).integers(0, classes + 1, (20, 30)).astype(np.uint8)
        task.write_mask(tmp_path / "m.png", mask)
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask)
    taken: set[str] = set()
    names = [base.file_name(name, taken) for name in ("../../a", "/a", "A", "b/../c", "..", "b/c")]
    assert names == ["a", "a#2", "A#3", "b/c", "image", "b/c#2"]


# ---- models and loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("decoder", ["deeplabv3plus", "unet"])
def test_the_network_is_that_of_smp_with_our_encoder_loaded_as_the_readme_says(tmp_path, decoder, name):
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec(name, in_channels=1))
    state = {"module.base_encoder." + k: v for k, v in encoder.published_state().items()}
    checkpoints.save(tmp_path / "e.pt", {"state_dict": state, "encoder": encoder.spec_dict()})
    ours = task.Segmenter(vfm4us.load_encoder(tmp_path / "e.pt", in_channels=1), ["a"], decoder, 32, [2, 4, 6]).eval()
    if decoder == "unet":
        theirs = smp.Unet(name, encoder_weights=None, classes=2, decoder_channels=(32, 16, 16, 16, 16)).eval()
    else:
        theirs = smp.DeepLabV3Plus(
            name, encoder_weights=None, classes=2, decoder_channels=32, decoder_atrous_rates=(2, 4, 6)
        ).eval()
    loaded = {k.removeprefix("module.base_encoder."): v for k, v in state.items() if ".fc" not in k}
    theirs.encoder.load_state_dict(dict(loaded))
    theirs.decoder.load_state_dict(ours.head.decoder.state_dict())
    theirs.segmentation_head.load_state_dict(ours.head.segmentation_head.state_dict())
    for key, value in ours.encoder.published_state().items():
        torch.testing.assert_close(value, loaded[key], rtol=1e-6, atol=1e-7)
    x = torch.rand(2, 1, 64, 96)
    with torch.no_grad():
        logits, expected = ours(x), theirs(((x - encoder.spec.mean) / encoder.spec.std).expand(-1, 3, -1, -1))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("decoder", ["deeplabv3plus", "unet"])
@pytest.mark.parametrize(
    "spec",
    [
        EncoderSpec("resnet18", 1),
        EncoderSpec("vit_tiny", 1),
        EncoderSpec("vit_tiny", 3, patch=14, registers=4, layer_scale=True),
        EncoderSpec("beit_base", 1, image=64, positions="relative", norm="mean"),
    ],
    ids=["resnet18", "vit", "dinov2", "beit"],
)
def test_every_encoder_gets_a_decoder_that_fits_and_is_trained_through_it(spec, decoder):
    model = task.Segmenter(Encoder(spec), ["a", "b"], decoder, 16, [1, 2, 3])
    for size in ((64, 64), (70, 45)):
        assert model(torch.rand(2, 1, *size)).shape == (2, 3, *size)
    target = torch.randint(0, 3, (2, 64, 64))
    task.overlap_loss(model(torch.rand(2, 1, 64, 64)), target).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None and "head" in n]
    assert not without and model.encoder.body.get_parameter(model.encoder.first_convolution).grad.abs().sum() > 0


def test_wrong_rates_are_refused():
    with pytest.raises(ValueError, match=r"atrous_rates: \[1, 2\] are not three positive numbers"):
        task.Segmenter(Encoder(), ["a"], "unet", 16, [1, 2])


def test_the_loss_by_hand_and_what_counts_in_it():
    target = torch.tensor([[[1, 0], [0, task.IGNORED]]])
    even = task.overlap_loss(torch.zeros(1, 2, 2, 2), target)
    dice = (2 * 0.5 + 1) / (1.5 + 1 + 1)  # p = 0.5 on three pixels
    assert float(even) == pytest.approx(np.log(2) + 1 - dice)
    logits = torch.zeros(2, 3, 8, 8, requires_grad=True)
    target = torch.zeros(2, 8, 8, dtype=torch.long)
    target[0, :4], target[:, :, 6:] = 2, task.IGNORED
    task.overlap_loss(logits, target).backward()
    assert logits.grad[..., 6:].abs().sum() == 0 and logits.grad[..., :6].abs().min() > 0, "padding teaches nothing"
    sure = 20 * torch.nn.functional.one_hot(target * (target != task.IGNORED), 3).movedim(-1, 1).float()
    assert task.overlap_loss(sure, target) < 1e-3 < task.overlap_loss(-sure, target)
    empty = torch.zeros(3, 8, 8, dtype=torch.long)
    assert float(task.overlap_loss(torch.zeros(3, 2, 8, 8), empty)) == pytest.approx(np.log(2)), (
        "no Dice of what is not there"
    )
    assert float(task.overlap_loss(torch.zeros(1, 2, 8, 8), torch.full((1, 8, 8), task.IGNORED))) == 0


def test_packed_dice_is_that_of_the_test_without_padding():
    rng = np.random.default_rng(0)
    p, t = (rng.integers(0, 3, (4, 20, 30)).astype(np.uint8) for _ in range(2))
    t[1] = 0
    p[2][p[2] == 2], t[2][t[2] == 2] = 0, 0
    padded = [np.pad(a, ((0, 0), (0, 12), (0, 2)), constant_values=fill) for a, fill in ((p, 1), (t, task.IGNORED))]
    measured = task.packed_dice(*(torch.from_numpy(a) for a in padded), 2)
    expected = np.stack([task.compare(a, b, 2)["dice"] for a, b in zip(p, t, strict=True)])
    np.testing.assert_allclose(measured.numpy(), expected, atol=1e-6)


def test_an_epoch_that_predicts_nothing_is_not_chosen_for_its_many_empty_masks():
    present = torch.zeros(20, 2, dtype=torch.bool)
    present[:3, 0], present[:1, 1] = True, True
    nothing = torch.where(present, 0.0, 1.0)  # right on every empty mask
    some = torch.where(present, 0.4, 0.5)
    measured = [task.validation_score(dice, present, 1.0) for dice in (nothing, some)]
    assert measured[0]["val_dice"] > measured[1]["val_dice"] and measured[0]["score"] < measured[1]["score"]
    assert measured[1]["val_dice_present"] == pytest.approx(0.4)
    better = task.validation_score(some, present, 0.9)
    assert better["score"] > measured[1]["score"], "ties go to the smaller loss"
    empty = task.validation_score(torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.bool), 1.0)
    assert empty["val_dice_present"] == 1


# ---- data -----------------------------------------------------------------------------------------------------------


def test_few_labels_keep_images_with_and_without_foreground(build):
    whole = task.MaskedData(build("data.splits=[0.8,0.1,0.1]").data, 0)
    few = [task.MaskedData(build("data.splits=[0.8,0.1,0.1]", "data.label_share=0.1").data, seed) for seed in (0, 0, 1)]
    present = [data.present[data.train].any(1) for data in (whole, *few)]
    assert (present[1].sum(), (~present[1]).sum()) == (round(0.1 * present[0].sum()), 1)
    assert np.array_equal(few[0].train, few[1].train) and not np.array_equal(few[0].train, few[2].train)
    assert np.array_equal(few[0].test, whole.test)


def test_padding_is_marked_in_targets(build):
    data = task.MaskedData(build().data, 0)
    target = data.targets(data.train)
    height = round(48 * 40 / 56)
    assert (target[:, height:] == task.IGNORED).all() and (target[:, :height] <= 1).all() and target[:, :height].any()


def two_classes(root, *numbers):
    """Masks whose classes 1 and 2 carry other numbers."""
    discs(root, count=24, classes=2)
    for path in (root / "masks").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.array([0, *numbers], dtype=np.uint8)[mask]).save(path)
    return root


@pytest.mark.parametrize(
    ("numbers", "keys", "message"),
    [
        ((1, 3), [], r"no training mask holds class 2 \(they hold 1, 3\)"),
        ((1, 2), ["data.classes=[a]"], "masks hold class 2, but data.classes names 1"),
        ((1, 2), ["data.classes=[a,b,c]"], "no training mask holds class 3"),
        ((0, 0), [], "every training mask is empty"),
    ],
)
def test_masks_that_do_not_fit_their_classes_are_refused(build, tmp_path, numbers, keys, message):
    with pytest.raises(ValueError, match=message):
        task.MaskedData(build(*keys, path=two_classes(tmp_path / "d", *numbers)).data, 0)


def test_classes_are_named_numbered_or_joined(build, tmp_path):
    path = two_classes(tmp_path / "d", 1, 2)
    assert task.MaskedData(build(path=path).data, 0).classes == ["class 1", "class 2"]
    assert task.MaskedData(build("data.classes=[liver,mass]", path=path).data, 0).classes == ["liver", "mass"]
    joined = task.MaskedData(build("data.join=true", path=path).data, 0)
    assert joined.classes == ["foreground"] and set(np.unique(joined.targets(joined.train))) == {0, 1, task.IGNORED}


def test_images_without_a_mask_are_left_out_and_said(build, tmp_path):
    path = discs(tmp_path / "d", count=24)
    for i in (3, 7):
        (path / "masks" / f"{i}.png").unlink()
    said = []
    task.TASK.run_seeds(build("finetune.epochs=1", path=path), said.append)
    assert "2 without a mask left out (e.g. images/3.png)" in "\n".join(said)
    for mask in (path / "masks").iterdir():
        mask.unlink()
    with pytest.raises(ValueError, match="has no masks: give images/ with masks/"):
        task.MaskedData(build(path=path).data, 0)


def test_a_prepared_dataset_whose_source_is_gone_says_what_is_missing(build, tmp_path):
    data = task.MaskedData(build(path=discs(tmp_path / "d", count=24)).data, 0)
    (tmp_path / "d").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="tests are made at the original size.*give their folder as data.path"):
        task.MaskedData(build(path=data.dataset.folder).data, 0)


def test_real_lesions_in_several_files_are_one_truth_at_the_original_size(real_data):
    records = [r for r in find_source(real_data / "busi") if len(r.mask_paths) > 1][:3]
    for record in records:
        image = np.asarray(Image.open(real_data / "busi" / record.path).convert("L"))
        whole = read_masks(real_data / "busi", record, image, 128)
        parts = [np.asarray(Image.open(real_data / "busi" / path)) > 0 for path in record.mask_paths]
        assert whole.shape == image.shape and np.array_equal(whole > 0, np.any(parts, axis=0))
        assert max(part.sum() for part in parts) < whole.sum()


# ---- whole runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["deeplabv3plus", "unet"])
def test_a_run_learns_and_leaves_figures_masks_pictures_and_a_model_that_predicts_the_same(
    build, folder, decoder, tmp_path
):
    seeds = [0, 1] if decoder == "unet" else [0]
    settings = build(
        f"decoder={decoder}",
        f"seeds={seeds}",
        "finetune.epochs=4",
        "finetune.min_steps=32",
        "finetune.batch_size=8",
        "finetune.learning_rate=0.005",
        "finetune.encoder_rate=1.0",
        "finetune.average=0.8",
    )
    result = task.TASK.run_seeds(settings, quiet)
    assert result["dice_present"]["mean"] > 0.6, "dark discs are easy"
    assert result["dice_present"]["low"] <= result["dice_present"]["mean"] <= result["dice_present"]["high"]
    seed = tmp_path / "logs/t/seed-0"
    pictures = {"overlays.png", "dice.png", "curve.png"}
    for name in pictures | {
        "metrics.json",
        "per_image.csv",
        "segmenter.pt",
        "duplicates.csv",
        "config.yaml",
        "run.json",
    }:
        assert (seed / name).is_file(), name
    about = json.loads((tmp_path / "logs/t/metrics.json").read_text())
    assert about["task"] == "segmentation" and about["seeds"] == seeds and about["protocol"]["decoder"] == decoder
    log = [json.loads(line) for line in (seed / "metrics.jsonl").read_text().splitlines()]
    best = max((line for line in log if line["kind"] == "monitor"), key=lambda line: line["score"])
    assert about["metrics"]["val_dice_present"]["per_seed"][0] == best["val_dice_present"]
    assert (
        about["protocol"]["empty_masks"] == figures.RULES["empty_masks"]
        and "original size" in about["protocol"]["resolution"]
    )
    with open(seed / "per_image.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == about["protocol"]["test_images"]
    by_hand = np.mean([float(row["dice"]) for row in rows if row["truth_empty"] == "0"])
    assert by_hand == pytest.approx(result["dice_present"]["per_seed"][0], abs=1e-6)
    model, size = task.load_segmenter(seed)
    masks = task.segment(model, [folder / row["path"] for row in rows], size)
    for row, again in zip(rows, masks, strict=True):
        kept = read_mask(seed / row["predicted"])
        assert kept.shape == (int(row["height"]), int(row["width"])) == (40, 56)
        assert (kept != again).mean() < 1e-3
    assert vfm4us.load_encoder(seed / "segmenter.pt").report.dropped["head"] > 0
    assert not (seed / "checkpoints/last.pt").exists(), "some 200 MB that only a stopped run needs"
    said = []
    task.TASK.run_seeds(settings, said.append)
    assert sum("is finished" in line for line in said) == len(seeds)


def test_what_is_to_be_ignored_counts_in_no_loss_no_choice_and_no_figure(build, tmp_path, monkeypatch):
    """Masks of 0, 1 and 255 in files, from packing to the figures; another disc lies under what is ignored."""
    root, rng = discs(tmp_path / "d", count=24), np.random.default_rng(5)
    for path in (root / "masks").iterdir():
        mask = (np.asarray(Image.open(path)) > 0).astype(np.uint8)
        ignored = disc(*mask.shape, 9, rng)
        mask[ignored] = 255
        Image.fromarray(mask).save(path)
    seen = []

    def watched(logits, target, weight):
        loss = overlap_loss(logits, target, weight)
        if logits.requires_grad:
            gradient = torch.autograd.grad(loss, logits, retain_graph=True)[0].abs().sum(1)
            seen.append((int((target == 255).sum()), float(gradient[target == 255].max()), float(gradient.max())))
        else:  # in validation: whatever is predicted there, the loss is the same
            logits = logits + 100 * (target == 255)[:, None] * torch.randn(logits.shape[:2])[..., None, None]
            assert overlap_loss(logits, target, weight) == loss
        return loss

    overlap_loss = task.overlap_loss
    monkeypatch.setattr(task, "overlap_loss", watched)
    task.TASK.run_seeds(build(path=root), quiet)
    assert seen and all(ignored > 100 and under == 0 and elsewhere > 0 for ignored, under, elsewhere in seen)

    data = task.MaskedData(build(path=root).data, 0)
    assert data.classes == ["foreground"] and data.dataset.ignore == 255
    run = tmp_path / "logs" / "t" / "seed-0"
    outcome = base.read_outcome(run)
    for i, path in enumerate(outcome["paths"]):
        truth = np.asarray(Image.open(root / "masks" / path.split("/")[1]))
        predicted = np.asarray(Image.open(run / str(outcome["predicted"][i])))
        known = truth != 255
        a, b = (predicted == 1) & known, (truth == 1) & known
        total = a.sum() + b.sum()
        assert outcome["dice"][i, 0] == (2 * (a & b).sum() / total if total else 1)
        assert outcome["truth_pixels"][i, 0] == b.sum() and outcome["pixels"][i] == known.sum() < truth.size
    # the same in another folder: the model's file says what 255 is
    model, about = task.TASK.load(run)
    assert model.mask_coding["ignore"] == 255 and "said" in about["mask_coding"] and not about["mask_coding"]["said"]


def test_a_model_reads_masks_as_those_it_was_trained_with_or_refuses_them(build, tmp_path, capsys):
    trained = two_classes(tmp_path / "d", 85, 170)
    task.TASK.run_seeds(build("finetune.epochs=1", path=trained), quiet)
    options = {"checkpoint": str(tmp_path / "logs" / "t"), "out": str(tmp_path / "out"), "device": "cpu"}
    other = two_classes(tmp_path / "e", 0, 170)  # only its second class: by itself the first
    task.TASK.evaluate_files(task.SegmentConfig(**options, data=str(other)), quiet)
    assert (
        "masks are read as those the model was trained with: 85 is class 1, 170 is class 2" in capsys.readouterr().out
    )
    with open(tmp_path / "out" / "per_image.csv", newline="") as file:
        pixels = {name: 0 for name in ("class 1", "class 2")}
        for row in csv.DictReader(file):
            pixels[row["class"]] += int(row["truth_pixels"])
    assert pixels["class 1"] == 0 < pixels["class 2"]
    for numbers, message in (((1, 2), "holds 1, to which.*85 is class 1.*class numbers"), ((85, 255), "holds 255, to")):
        strange = two_classes(tmp_path / f"s{numbers[1]}", *numbers)
        with pytest.raises(ValueError, match=message):
            task.TASK.evaluate_files(task.SegmentConfig(**options, data=str(strange)), quiet)


def test_stopped_and_continued_ends_in_the_same_weights(build, tmp_path, monkeypatch):
    settings = build()
    task.TASK.run_seeds(settings, quiet)
    whole = checkpoints.read(tmp_path / "logs/t/seed-0/segmenter.pt")["state_dict"]
    real = signals.StopSignal

    class Soon(real):
        count = 0

        @property
        def number(self):
            Soon.count += 1
            return 2 if Soon.count >= 3 else 0

        @number.setter
        def number(self, _):
            pass

    monkeypatch.setattr(signals, "StopSignal", Soon)
    stopped = build("name=stopped")
    with pytest.raises(signals.Stopped):
        task.TASK.run_seeds(stopped, quiet)
    assert not (tmp_path / "logs/stopped/seed-0/metrics.json").exists()
    monkeypatch.setattr(signals, "StopSignal", real)
    task.TASK.run_seeds(stopped, quiet)
    parts = checkpoints.read(tmp_path / "logs/stopped/seed-0/segmenter.pt")["state_dict"]
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_train_and_evaluate_from_another_folder(folder, tmp_path):
    keys = [
        "name=s",
        "seeds=[0]",
        "data.size=48",
        "device=cpu",
        "decoder_width=16",
        "finetune={epochs: 1, min_steps: 2}",
    ]
    done = script(TRAIN, f"data.path={folder}", *keys, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| dice_present |" in done.stdout and (tmp_path / "logs/s/table.md").is_file()
    manifest = [*csv.DictReader(open(next((tmp_path / "data").glob("*/manifest.csv")), newline=""))]
    split = {row["path"]: row["split"] for row in manifest}
    lines = ["path,mask,split", *(f"{p},masks/{p.split('/')[1]},{s}" for p, s in split.items())]
    (folder / "again.csv").write_text("\n".join(lines) + "\n")
    done = script(EVALUATE, "logs/s", folder / "again.csv", "--split", "test", "--out", "o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    here, evaluated = (
        json.loads((tmp_path / f).read_text())["metrics"] for f in ("o/metrics.json", "logs/s/metrics.json")
    )
    for name in ("dice", "dice_present", "pooled_with_background"):
        assert here[name]["mean"] == pytest.approx(evaluated[name]["mean"], abs=1e-3)
    assert "pooled_with_background: pixels of all images and classes, background among them" in done.stdout

    (tmp_path / "plain").mkdir()
    for i in range(3):
        (tmp_path / "plain" / f"{i}.png").write_bytes((folder / "images" / f"{i}.png").read_bytes())
    (tmp_path / "plain" / "bad.png").write_bytes(b"hello")
    done = script_soon(EVALUATE, "logs/s/seed-0/segmenter.pt", "plain", "--out", "o2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 images, 1 unreadable" in done.stdout and "no metrics" in done.stdout and "bad.png" in done.stderr
    assert not (tmp_path / "o2/metrics.json").exists()
    for part in ("predicted", "overlays"):
        assert [Image.open(tmp_path / "o2" / part / f"{i}.png").size for i in range(3)] == [(56, 40)] * 3
    for arguments, message in (
        (["logs/nowhere", folder], "does not exist"),
        (["logs/s", "nowhere"], "nowhere does not exist"),
        (["logs/s", "plain", "--split", "val"], "no images in split val"),
        (["logs/s", "plain", "--out", "plain/o"], "--out plain/o lies in the data plain"),
    ):
        done = script_soon(EVALUATE, *arguments, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config", "configs/segmentation/busi.yaml"],
            r"data.path: 'data/BUSI' does not exist.*\nBUSI \(Al-Dhabyani",
        ),
        (["data.path=nowhere"], "data.path: 'nowhere' does not exist"),
        (["data.path=.", "decodr=unet"], "did you mean 'decoder'"),
        (["data.path=.", "decoder=fpn"], "'fpn' is not one of deeplabv3plus, unet"),
    ],
)
def test_mistakes_are_one_error(tmp_path, arguments, message):
    done = script_soon(TRAIN, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "logs").exists()


def test_another_kind_of_checkpoint_is_refused(tmp_path):
    checkpoints.save(tmp_path / "e.pt", {"state_dict": {}, "task": "classification"})
    with pytest.raises(ValueError, match="is no segmenter"):
        task.load_segmenter(tmp_path / "e.pt")


def test_a_run_folder_of_another_task_is_named_as_such(tmp_path):
    (tmp_path / "run" / "seed-0").mkdir(parents=True)
    (tmp_path / "run" / "seed-0" / "classifier.pt").touch()
    with pytest.raises(FileNotFoundError, match="holds no segmenter.pt.*it holds classifier.pt, of another task"):
        task.load_segmenter(tmp_path / "run")


def test_a_run_that_is_not_finished_is_named_as_such(tmp_path):
    (tmp_path / "run" / "seed-0" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="holds no segmenter.pt yet: .*seed-0 is not finished"):
        task.load_segmenter(tmp_path / "run")


def test_each_model_and_data_have_a_folder_of_evaluation_of_their_own(tmp_path):
    (tmp_path / "logs" / "mine" / "seed-1").mkdir(parents=True)
    (tmp_path / "logs" / "mine" / "seed-1" / "segmenter.pt").touch()
    for model, wanted in (("logs/mine", "mine-on-scans"), ("logs/mine/seed-1/segmenter.pt", "mine-seed-1-on-scans")):
        options = SimpleNamespace(checkpoint=str(tmp_path / model), data="data/scans/", out="")
        assert base.out_of(options) == Path("evaluation") / wanted
    assert base.out_of(SimpleNamespace(out="o")) == Path("o")


def test_a_model_that_finds_nothing_is_said_to():
    row = {"pooled_with_background": {"mean": 0.99}, "dice": {"mean": 0.84}}
    assert "WARNING: no predicted pixel" in task.TASK.conclusion(row | {"dice_present": {"mean": 0.0}})
    assert "WARNING" not in task.TASK.conclusion(row | {"dice_present": {"mean": 0.01}})
    assert "WARNING" not in task.TASK.conclusion(row), "no image has a class: there is nothing to find"


CONFIGS = [
    *sorted((ROOT / "configs" / "segmentation").glob("*.yaml")),
    ROOT / "configs" / "smoke" / "segmentation.yaml",
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_is_understood(path):
    settings = config.load(task.SegmentationConfig, path)
    assert path.read_text().startswith("# python Downstream/Segmentation/train.py")
    assert settings.name == path.stem or path.parent.name == "smoke"


def test_pictures_show_the_frame_that_was_measured_with_the_mask_of_the_whole_set(tmp_path, monkeypatch):
    """A frame of a file with pages, and masks whose greys only the set explains."""
    rng, size = np.random.default_rng(0), (40, 56)
    for part in ("images", "masks"):
        (tmp_path / "s" / part).mkdir(parents=True)
    masks = np.zeros((3, *size), np.uint8)
    for number, (low, high) in enumerate(((85, 170), (170, 170), (0, 170))):
        masks[number, 5:15, 10:20], masks[number, 20:32, 30:45] = low, high
    for part, pages in (("images", rng.integers(0, 255, (3, *size), dtype=np.uint8)), ("masks", masks)):
        first, *others = map(Image.fromarray, pages)
        first.save(tmp_path / "s" / part / "0.tif", save_all=True, append_images=others)
    records = find_source(tmp_path / "s", {"frames": "all"})
    torch.manual_seed(0)
    model = task.Segmenter(Encoder(EncoderSpec(in_channels=1)), ["a", "b"], "unet", 16, [1, 2, 3]).eval()
    cases = task.examine(model, tmp_path / "s", records, 48, tmp_path / "out")
    shown = {}
    monkeypatch.setattr(
        task.plots, "overlays", lambda path, images, made, titles, names, truths: shown.update(t=truths)
    )
    task.pictures(tmp_path / "out", tmp_path / "s", cases, 48)
    values = sorted(tuple(np.unique(truth).tolist()) for truth in shown["t"])
    assert values == [(0, 1, 2), (0, 2), (0, 2)]
