"""An enhancer is trained, measured and used as a user would; its figures equal direct computations."""

import csv
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

import vfm4us
from tests.conftest import ROOT
from tests.running import script, script_soon
from vfm4us import checkpoints, config
from vfm4us.data.records import Record
from vfm4us.data.sources import find_source
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.evaluation import likeness
from vfm4us.phantoms.degradation import LEVELS, degraded
from vfm4us.runtime import signals
from vfm4us.runtime.rng import generator
from vfm4us.runtime.run import RunFolder
from vfm4us.tables import report
from vfm4us.tables.plan import TableConfig, make_plan
from vfm4us.tasks import cyclegan, enhancers, fitted_degradation, segmentation
from vfm4us.tasks import generation as task

TRAIN, EVALUATE = (ROOT / "Downstream" / "Generation" / name for name in ("train.py", "evaluate.py"))
TINY = cyclegan.GeneratorConfig(width=4, blocks=1, discriminator_width=4)


def pairs(root, count=24, size=(44, 60), seed=0):
    """low_quality/ and high_quality/: textures, and the same darker and blurred."""
    rng = np.random.default_rng(seed)
    for part in ("low_quality", "high_quality"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        high = gaussian_filter(rng.normal(size=size), 1.5)
        high = (128 + 60 * high / high.std()).clip(30, 255)
        low = 0.6 * gaussian_filter(high, 0.7)
        for part, image in (("high_quality", high), ("low_quality", low)):
            Image.fromarray(image.astype(np.uint8)).save(root / part / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def build(folder, tmp_path):
    def settings(*overrides: str, path=None) -> task.GenerationConfig:
        values = {
            "name": "t",
            "logs": str(tmp_path / "logs"),
            "seeds": [0],
            "device": "cpu",
            "data": {
                "path": str(path or folder),
                "size": 60,
                "cache": str(tmp_path / "cache"),
                "splits": [0.5, 0.25, 0.25],
            },
            "network": {"width": 4, "blocks": 1, "discriminator_width": 4},
            "training": {"epochs": 1, "decay_epochs": 1, "steps": 2, "crop": 64, "batch_size": 2, "pool": 3},
        }
        for item in overrides:
            config.override(values, item)
        return config.from_dict(task.GenerationConfig, values)

    return settings


def quiet(*_):
    pass


class Same(torch.nn.Module):
    """What leaves an image as it is."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x


# ---- figures --------------------------------------------------------------------------------------------------------


def noisy_pair(rng, shape=(40, 53)):
    image = gaussian_filter(rng.normal(size=shape), 2)
    image = (128 + 50 * image / image.std()).clip(0, 255)
    return tuple(x.clip(0, 255).astype(np.uint8) for x in (image, image + rng.normal(0, 20, shape)))


def ssim_by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """Wang 2004, equation 13, with 11 x 11 Gaussian weights that sum to 1, over all windows inside."""
    x = np.arange(-5, 6)
    line = np.exp(-(x**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = (m[i : i + 11, j : j + 11].astype(np.float64) for m in (a, b))
            mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
            var_p, var_q = (weights * (p - mean_p) ** 2).sum(), (weights * (q - mean_q) ** 2).sum()
            cov = (weights * (p - mean_p) * (q - mean_q)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append(
                (2 * mean_p * mean_q + c1) * (2 * cov + c2) / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2))
            )
    return float(np.mean(values))


def test_ssim_psnr_and_local_correlation_equal_their_definitions():
    rng = np.random.default_rng(0)
    for shape in ((40, 53), (16, 90), (17, 16)):
        a, b = noisy_pair(rng, shape)
        b[:12, :12], a[-10:, -12:] = 9, 9  # flat in the target, flat in the image
        assert likeness.ssim(a, b) == pytest.approx(ssim_by_definition(a, b), abs=1e-6)
        assert likeness.psnr(a, b) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=255), abs=1e-6)
        figures = []
        for i in range(shape[0] - 8):
            for j in range(shape[1] - 8):
                p, q = (m[i : i + 9, j : j + 9].astype(np.float64).ravel() for m in (a, b))
                if q.std() > 0:
                    figures.append(np.corrcoef(p, q)[0, 1] if p.std() > 0 else 0.0)
        assert likeness.lncc(a, b) == pytest.approx(np.mean(figures), abs=1e-6)
    assert likeness.ssim(a, a) == 1 and likeness.psnr(a, a) == 100 and likeness.lncc(b, b) == pytest.approx(1)
    assert likeness.lncc(a, np.full_like(a, 7)) == 0 and likeness.lncc(255 - b, b) == pytest.approx(-1)


def test_kid_equals_a_direct_computation_and_is_unbiased():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(13, 7)).astype(np.float32), rng.normal(0.5, 1.3, size=(9, 7)).astype(np.float32)

    def k(a, b):
        return (sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) / 7 + 1) ** 3

    expected = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (13 * 12)
    expected += sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / (9 * 8)
    expected -= 2 * sum(k(a, b) for a in x for b in y) / (13 * 9)
    assert likeness.kid(x, y) == pytest.approx(expected, abs=1e-6)
    same = [likeness.kid(*rng.normal(size=(2, 60, 5))) for _ in range(300)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 300**0.5 + 1e-9 and min(same) < 0, (
        "of one distribution it is 0 on average"
    )
    assert likeness.kid(rng.normal(size=(60, 5)), rng.normal(1, 1, size=(60, 5))) > 5 * np.std(same)


def test_kid_says_what_it_is_taken_on_and_when_it_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert likeness.Features.choose("") is None
    assert "no kid_encoder was given" in likeness.kid_rule(None, 99, 99)
    encoder = Encoder(EncoderSpec("vit_tiny", image=32))
    state = {checkpoints.ENCODER_PREFIX + k: v for k, v in encoder.published_state().items()}
    checkpoints.save(tmp_path / "e.pt", {"state_dict": state, "encoder": encoder.spec_dict()})
    features = likeness.Features.choose(str(tmp_path / "e.pt"))
    images = [np.random.default_rng(i).integers(0, 255, (30, 40 + i), dtype=np.uint8) for i in range(3)]
    assert "ultrasound encoder" in features.name and features.of(images).shape == (3, 192)
    np.testing.assert_allclose(features.of(images[1:2])[0], features.of(images)[1], atol=1e-4)
    assert "it takes 50 of each" in likeness.kid_rule(features, 49, 60) and features.name in likeness.kid_rule(
        features, 50, 60
    )
    cases = task.EnhancedCases(
        features={"kid": [features.of(images)] * 17, "kid_input": [features.of(images[:1])] * 17}
    )
    assert cases.kid(features, images * 17) == {}, "17 are too few"
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        likeness.Features.choose("nowhere.pt")


def test_kid_takes_inception_where_its_weights_lie_in_the_cache(tmp_path, monkeypatch):
    from torchvision.models import inception_v3

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    network = inception_v3(weights=None, init_weights=False)
    torch.save(network.state_dict(), tmp_path / "checkpoints/inception_v3_google-0cc3c7bd.pth")
    features = likeness.Features.choose("ignored.pt")
    assert features.name.startswith("torchvision's Inception v3")
    vectors = features.of([np.zeros((30, 40), np.uint8), np.full((60, 40), 200, np.uint8)])
    assert vectors.shape == (2, 2048) and np.isfinite(vectors).all()


def outcome(ours, untouched):
    n = len(ours)
    same = {m: np.array(ours) for m in likeness.FIGURES} | {f"{m}_input": np.array(untouched) for m in likeness.FIGURES}
    return {"paths": np.arange(n).astype(str), "groups": np.arange(n).astype(str)} | same


def test_gains_are_paired_in_the_images_may_be_negative_and_the_verdict_follows_them():
    rng = np.random.default_rng(0)
    untouched = rng.uniform(0.2, 0.8, 60)
    better, worse, no_different = (outcome(untouched + d, untouched) for d in (0.05, -0.05, rng.normal(0, 0.05, 60)))
    result = likeness.evaluate([better])
    assert (
        result["ssim_gain"]["mean"] == pytest.approx(0.05)
        and result["ssim_gain"]["high"] - result["ssim_gain"]["low"] < 1e-6
    )
    assert "beats the untouched input in both" in task.verdict(result)
    lost = likeness.evaluate([worse])
    assert lost["ssim_gain"]["high"] < 0 and lost["psnr_gain"]["low"] < 0
    for figures in (lost, likeness.evaluate([no_different])):
        assert "does NOT beat the untouched input in SSIM nor in PSNR" in task.verdict(figures)
    assert "not known" in task.verdict({})
    scores = likeness.outcome_scores(better, np.array([[1.0] * 60, [2.0] + [0.0] * 59]))
    assert scores["ssim_input"][1] == pytest.approx(untouched[0]) and scores["ssim_gain"] == pytest.approx([0.05, 0.05])


# ---- at the original size -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (65, 64), (200, 70), (70, 333), (16, 500)])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 0), (64, 16), (100, 63)])
def test_a_tiled_identity_is_the_identity(shape, tile, overlap):
    x = torch.rand(1, 1, *shape)
    sizes = []
    enhanced = task.tiled(lambda part: (sizes.append(part.shape[-2:]), part)[1], x, tile, overlap)
    torch.testing.assert_close(enhanced, x, atol=1e-6, rtol=0)
    assert all(side <= tile for size in sizes for side in size)


def test_tiles_that_differ_are_blended_without_seams():
    calls = []

    def uneven(part):
        calls.append(part)
        return torch.full_like(part, float(len(calls) % 2))

    enhanced = task.tiled(uneven, torch.zeros(1, 1, 150, 230), 100, 32)[0, 0]
    assert len(calls) == 2 * 3 and enhanced.min() == 0 and enhanced.max() == 1
    steps = [enhanced.diff(dim=axis).abs().max() for axis in (0, 1)]
    assert max(steps) <= 1 / 32, "from one tile to the next over the whole overlap"


@pytest.mark.parametrize("shape", [(60, 44), (61, 47), (33, 120), (17, 16), (200, 90)])
@pytest.mark.parametrize("size", [60, 100])
def test_what_changes_nothing_gives_the_image_back_at_its_own_size(shape, size):
    """A residual generator begins as the identity: at any size and shape nothing is lost on the way."""
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    settings = cyclegan.GeneratorConfig(width=4, blocks=1, residual=True)
    model = cyclegan.Generator(settings, Encoder(EncoderSpec("resnet18", 1))).eval()
    np.testing.assert_array_equal(task.enhance(model, image, size, tile=64, overlap=16), image)
    smooth = (120 + 60 * np.sin(np.add.outer(np.arange(shape[0]), np.arange(shape[1])) / 25)).astype(np.uint8)
    plain = task.enhance(Same(), smooth, size)
    assert plain.shape == shape and likeness.psnr(plain, smooth) > (34 if max(shape) <= 2 * size else 28)


def test_enhance_takes_what_people_have(folder, tmp_path):
    path = folder / "low_quality" / "00.png"
    grey = np.asarray(Image.open(path))
    unit = torch.from_numpy(grey / np.float32(255))
    for form in ([path], [grey], [np.repeat(grey[..., None], 3, 2)], [Image.open(path)], [unit], path):
        [enhanced] = task.enhance_all(Same(), form, 60)
        assert np.abs(enhanced.astype(int) - grey).max() <= 1
    assert sum(1 for _ in task.enhance_all(Same(), folder / "low_quality", 60)) == 24
    one = Record(id="a", path="low_quality/00.png", target="high_quality/00.png")
    others = [Record(id="b", path="low_quality/01.png"), Record(id="c", path="gone.png")]
    cases = task.examine(Same(), folder, [one, *others], 60, 512, 64, tmp_path)
    assert len(cases.rows) == 1 and len(cases.without) == 1 and len(cases.unreadable) == 1
    assert cases.rows[0]["ssim"] == cases.rows[0]["ssim_input"] < 1
    assert sorted(p.name for p in (tmp_path / "enhanced").iterdir()) == ["a.png", "b.png"]


def test_targets_of_another_scale_are_resized_and_of_another_shape_refused(folder, tmp_path):
    (tmp_path / "low.png").write_bytes((folder / "low_quality/00.png").read_bytes())
    for name, size in (("twice", (120, 88)), ("square", (60, 60))):
        Image.open(folder / "high_quality/00.png").resize(size).save(tmp_path / f"{name}.png")
    low, high = task.read_pair(tmp_path, Record(id="", path="low.png", target="twice.png"), None)
    assert low.shape == high.shape == (44, 60)
    for target, message in (("square.png", "another shape"), ("gone.png", "its target gone.png: cannot be read")):
        with pytest.raises(ValueError, match=message):
            task.read_pair(tmp_path, Record(id="", path="low.png", target=target), None)
    made, given = task.read_pair(tmp_path, Record(id="", path="twice.png"), 1.0)
    assert np.array_equal(made, degraded(given)) and given.shape == (88, 120)


# ---- networks -------------------------------------------------------------------------------------------------------


SPECS = [
    EncoderSpec("resnet18", 1),
    EncoderSpec("vit_tiny", 1),
    EncoderSpec("vit_tiny", 3, patch=14, registers=4, layer_scale=True),
    EncoderSpec("beit_base", 1, image=64, positions="relative", norm="mean"),
]


@pytest.mark.parametrize(
    ("spec", "residual"),
    [*((spec, False) for spec in SPECS), (SPECS[0], True)],
    ids=["resnet18", "vit", "dinov2", "beit", "resnet18, residual"],
)
def test_every_encoder_gets_a_branch_that_is_trained_and_changes_the_output(spec, residual):
    torch.manual_seed(0)
    settings = cyclegan.GeneratorConfig(width=4, blocks=1, residual=residual)
    model = cyclegan.Generator(settings, Encoder(spec))
    x = torch.rand(2, 1, 64, 96) * 2 - 1
    assert torch.equal(model(x), x) if residual else model(x).abs().max() <= 1
    torch.nn.init.normal_(model.last[-1].weight, 0, 0.02)
    for size in ((64, 64), (70, 45), (16, 100)):
        assert model(torch.rand(1, 1, *size)).shape == (1, 1, *size)
    before = model(x)
    before.square().mean().backward()
    assert model.branch.encoder.body.get_parameter(model.branch.encoder.first_convolution).grad.abs().sum() > 0
    with torch.no_grad():
        model.branch.encoder.body.get_parameter(model.branch.encoder.first_convolution).mul_(-1)
    assert (model(x) - before).abs().max() > 1e-5


def test_statistics_of_the_encoder_never_come_from_a_crop():
    model = cyclegan.Generator(TINY, Encoder(EncoderSpec("resnet18", 1))).train()
    before = {k: v.clone() for k, v in model.branch.encoder.state_dict().items() if "running" in k}
    model(torch.rand(1, 1, 64, 64))
    assert (
        all(torch.equal(v, model.branch.encoder.state_dict()[k]) for k, v in before.items()) and model.blocks.training
    )


def test_a_verdict_is_on_70_pixels():
    network = cyclegan.Discriminator(4)
    for module in network:
        if isinstance(module, torch.nn.InstanceNorm2d):
            module.forward = lambda x: x  # its mean reaches everywhere
    x = torch.rand(1, 1, 160, 160, requires_grad=True)
    y = network(x)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    rows = np.flatnonzero(x.grad[0, 0].abs().sum(1))
    assert rows[-1] - rows[0] + 1 == 70 and len(rows) == 70


def test_the_pool_returns_new_and_earlier_images_about_alike_often():
    pool, draw = cyclegan.ImagePool(5), generator(0)
    given = [int(pool.exchange(torch.full((1, 1, 1, 1), float(i)), draw)[0]) for i in range(400)]
    assert given[:5] == [0, 1, 2, 3, 4] and len(pool.images) == 5
    new = np.mean([g == i for i, g in enumerate(given[5:], 5)])
    assert 0.4 < new < 0.6 and all(g <= i for i, g in enumerate(given))
    drawn = pool.draw(torch.zeros(40, 1, 1, 1), draw)
    assert len(drawn) == 40 and set(drawn.flatten().tolist()) == {float(i[0]) for i in pool.images}
    none = cyclegan.ImagePool(0)
    assert none.draw(torch.ones(2, 1, 1, 1), draw).tolist() == torch.ones(2, 1, 1, 1).tolist()
    assert all(int(none.exchange(torch.full((1, 1, 1, 1), float(i)), draw)[0]) == i for i in range(20))


def test_the_rate_is_constant_and_then_falls_to_0_one_epoch_after_the_last():
    settings = cyclegan.TrainingConfig(epochs=3, decay_epochs=4, learning_rate=1.0)
    assert [cyclegan.learning_rate(e, settings) for e in range(8)] == pytest.approx([1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0])


# ---- data -----------------------------------------------------------------------------------------------------------


def test_the_two_domains_are_different_images_unless_paired(build):
    data = task.QualityData(build().data, False, 0)
    assert len(data.low) == len(data.high) == 6 and not set(data.low) & set(data.high)
    assert len(data.val) == len(data.test) == 6 and data.strength is None
    row = data.high[0]
    assert np.abs(data.high_image(row).astype(int).mean() - 0.6**-1 * data.low_image(row).mean()) < 3
    both = task.QualityData(build().data, True, 0)
    assert np.array_equal(both.low, both.high) and len(both.low) == 12
    few = task.QualityData(build("data.label_share=0.5").data, False, 0)
    assert len(few.low) + len(few.high) == 6 and np.array_equal(few.test, data.test)


def test_groups_are_not_divided_between_the_domains(folder, build, tmp_path):
    rows = [f"{folder}/low_quality/{i:02d}.png,{folder}/high_quality/{i:02d}.png,p{i // 4}" for i in range(24)]
    table = tmp_path / "m.csv"
    table.write_text("\n".join(["path,target,group", *rows]) + "\n")
    data = task.QualityData(build("data.splits=[0.67,0.17,0.16]", path=table).data, False, 0)
    groups = [set(data.dataset.groups[rows].tolist()) for rows in (data.low, data.high)]
    assert not groups[0] & groups[1] and all(groups)


def test_any_images_become_pairs_by_the_degradation_and_are_made_once(folder, build, monkeypatch):
    settings = build("data.degrade=true", path=folder / "high_quality")
    data = task.QualityData(settings.data, False, 0)
    row = int(data.val[0])
    image = np.asarray(Image.open(folder / "high_quality" / data.dataset.records[row].path))
    np.testing.assert_array_equal(data.high_image(row), image)
    np.testing.assert_array_equal(data.low_image(row), degraded(image, 1.0))
    assert len(list(Path(settings.data.cache).glob("*degraded*.npy"))) == 1
    monkeypatch.setattr(task.degradation, "degraded", None)  # a second call would fail
    np.testing.assert_array_equal(task.QualityData(settings.data, False, 1).low_image(row), data.low_image(row))
    monkeypatch.undo()
    other = task.QualityData(
        build("data.degrade=true", "data.strength=0.5", path=folder / "high_quality").data, False, 0
    )
    assert not np.array_equal(other.low_image(row), data.low_image(row))


def test_two_sets_that_have_nothing_to_do_with_each_other(folder, build, tmp_path):
    pairs(tmp_path / "more", count=40, size=(50, 50), seed=9)
    settings = build(f"data.high={tmp_path / 'more/high_quality'}", path=folder / "low_quality")
    said = []
    result = task.TASK.run_seeds(settings, said.append)
    assert (
        "12 low-quality and 20 high-quality training images, 0 val pairs, 6 test images without a target"
        in "\n".join(said)
    )
    assert result == {} and "not known" in said[-1]
    about = json.loads((tmp_path / "logs/t/metrics.json").read_text())
    assert about["protocol"]["selection"].startswith("last epoch") and about["protocol"]["chosen_epoch"] == 2
    assert len(list((tmp_path / "logs/t/seed-0/enhanced").rglob("*.png"))) == 6
    for keys, message in ((["paired=true"], "others"), (["data.degrade=true"], "leave data.high empty")):
        wrong = build(f"data.high={tmp_path / 'more/high_quality'}", *keys, path=folder / "low_quality")
        with pytest.raises(ValueError, match=message):
            task.QualityData(wrong.data, wrong.paired, 0)


def test_data_that_cannot_serve_are_refused(folder, build, tmp_path):
    def lone(count):
        root = tmp_path / f"lone{count}"
        root.mkdir()
        rows = [
            "path,target,split",
            *(f"{i}.png,h{i}.png,{s}" for i, s in enumerate(["train"] * count + ["val", "test"])),
        ]
        for i in range(count + 2):
            for name in (f"{i}.png", f"h{i}.png"):
                part = "low_quality" if name[0] != "h" else "high_quality"
                (root / name).write_bytes((folder / part / f"{i:02d}.png").read_bytes())
        (root / "manifest.csv").write_text("\n".join(rows) + "\n")
        return root

    with pytest.raises(
        ValueError, match="domain of high-quality training images is empty: .* 1 training images in 1 groups"
    ):
        task.QualityData(build(path=lone(1)).data, False, 0)
    assert len(task.QualityData(build(path=tmp_path / "lone1").data, True, 0).low) == 1, "paired, one will do"
    with pytest.raises(ValueError, match="domain of low-quality training images is empty"):
        task.QualityData(build(path=lone(0)).data, False, 0)
    with pytest.raises(
        ValueError, match=r"has no high-quality images: give low_quality/ with high_quality/.*data.degrade=true"
    ):
        task.QualityData(build(path=folder / "low_quality").data, False, 0)
    with pytest.raises(ValueError, match="data.only: .* has no images labelled 'liver'"):
        task.QualityData(build("data.only=[liver]").data, False, 0)
    with pytest.raises(FileNotFoundError, match="data.path: 'nowhere' does not exist"):
        task.QualityData(build(path="nowhere").data, False, 0)
    with pytest.raises(ValueError, match="both 0: nothing would be trained"):
        task.TASK.run_seeds(build("training.epochs=0", "training.decay_epochs=0"), quiet)
    with pytest.raises(ValueError, match="overlap 512 must be smaller"):
        task.TASK.run_seeds(build("overlap=512"), quiet)


@pytest.mark.parametrize("shape", [(100, 80), (64, 64), (30, 200), (17, 16)])
def test_crops_lie_inside_or_are_reflected_and_pairs_stay_aligned(shape):
    image = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
    for place in ((0.0, 0.0), (0.999, 0.999), (0.3, 0.8)):
        window = task.crop(image, 64, place, False)
        assert window.shape == (1, 64, 64) and window.min() > -1 and window.max() <= 1, "no padding in it"
        torch.testing.assert_close(task.crop(image, 64, place, True), window.flip(-1))
    if min(shape) >= 64:
        np.testing.assert_array_equal(task.to_uint8(task.crop(image, 64, (0, 0), False)[0]), image[:64, :64])


def test_a_crop_of_packed_images_which_are_read_only_is_taken_without_a_warning():
    image = np.zeros((64, 64), np.uint8)
    image.flags.writeable = False
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert task.crop(image, 64, (0, 0), False).min() == -1
    finally:
        torch.set_warn_always(False)


def test_a_degradation_has_names_which_give_way_to_no_number(build, folder):
    settings = build("data.degrade=true", "data.level=middle", path=folder / "high_quality")
    assert task.QualityData(settings.data, False, 0).strength == LEVELS["middle"]
    with pytest.raises(ValueError, match=r"data.level=mild and data.strength=0.3 both say"):
        task.TASK.run_seeds(build("data.degrade=true", "data.level=mild", "data.strength=0.3"), quiet)


def test_high_quality_images_that_are_targets_of_validation_or_test_are_left_out(folder, build, tmp_path):
    high = tmp_path / "more"
    pairs(high, count=12, size=(50, 50), seed=9)
    high = high / "high_quality"
    before = task.QualityData(build(f"data.high={high}").data, False, 0)
    assert before.known == 0
    row = int(before.test[0])
    leaked = Image.open(folder / before.dataset.records[row].target)
    leaked.save(high / "other_name.png")
    leaked.resize((90, 66)).save(high / "other_size.png")
    splits = {before.dataset.records[i].path: s for s in ("train", "val", "test") for i in getattr(before, s, [])}
    lines = [f"{folder / r.path},{folder / r.target},{splits.get(r.path, 'train')}" for r in find_source(folder)]
    (tmp_path / "m.csv").write_text("\n".join(["path,target,split", *lines]) + "\n")
    (tmp_path / "high.csv").write_text(
        "\n".join(["path,split", *(f"{p},train" for p in sorted(high.iterdir()))]) + "\n"
    )
    settings = build(f"data.high={tmp_path / 'high.csv'}", path=tmp_path / "m.csv")
    data = task.QualityData(settings.data, False, 0)
    assert data.known == 2 and len(data.high) == 12
    assert "2 images of data.high left out" in task.TASK.describe(data)


# ---- networks and terms of the other methods -------------------------------------------------------------------------


def test_a_unet_begins_as_the_identity_at_any_size_and_every_part_learns():
    torch.manual_seed(0)
    settings = cyclegan.GeneratorConfig(width=4, kind="unet")
    model = cyclegan.new_enhancer(settings, Encoder(EncoderSpec("resnet18", 1)))
    for size in ((64, 64), (70, 45), (16, 100)):
        x = torch.rand(1, 1, *size) * 2 - 1
        assert torch.equal(model(x), x)
    torch.nn.init.normal_(model.last.weight, 0, 0.1)
    model(torch.rand(1, 1, 64, 64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "encoder" not in n)


def test_the_distance_is_l1_and_ssim_and_features_where_the_config_says_so():
    rng = np.random.default_rng(0)
    a, b = noisy_pair(rng, (40, 52))
    x, y = (torch.from_numpy(i)[None, None].float() / 127.5 - 1 for i in (a, b))
    plain = cyclegan.Distance(cyclegan.TrainingConfig())
    assert torch.equal(plain(x, y), torch.nn.functional.l1_loss(x, y))
    assert float(cyclegan.structural_similarity(x, y)) == pytest.approx(ssim_by_definition(a, b), abs=1e-4)
    with_ssim = cyclegan.Distance(cyclegan.TrainingConfig(ssim_weight=2.0))
    assert float(with_ssim(x, y) - plain(x, y)) == pytest.approx(2 * (1 - ssim_by_definition(a, b)), abs=1e-3)
    encoder = Encoder(EncoderSpec("resnet18", 1))
    perceptual = cyclegan.Distance(cyclegan.TrainingConfig(perceptual_weight=1.0), encoder)
    assert perceptual(x, x) == 0 < perceptual(x, y) - plain(x, y)
    x.requires_grad_()
    perceptual(x, y).backward()
    assert x.grad.abs().sum() > 0 and not any(p.requires_grad for p in perceptual.encoder.parameters())


def test_features_of_random_weights_are_no_measure(build):
    with pytest.raises(ValueError, match="those of random weights say little: give training.perceptual_encoder=FILE"):
        task.TASK.run_seeds(build("training.perceptual_weight=1"), quiet)
    with pytest.raises(FileNotFoundError, match="training.perceptual_encoder: gone.pt does not exist"):
        task.TASK.run_seeds(build("training.perceptual_weight=1", "training.perceptual_encoder=gone.pt"), quiet)
    with pytest.raises(ValueError, match="method=one-sided compares maps of residual blocks: give network.kind=blocks"):
        task.TASK.run_seeds(build("method=one-sided", "network.kind=unet"), quiet)


def test_patches_are_told_apart_by_their_own_place():
    k = torch.randn(2, 30, 16, generator=generator(0))
    assert enhancers.patch_contrast(k, k) < 0.01
    assert enhancers.patch_contrast(k.roll(1, dims=1), k) > 5
    assert float(enhancers.patch_contrast(torch.ones(2, 30, 16), torch.ones(2, 30, 16))) == pytest.approx(
        np.log(30), abs=1e-4
    )


def test_content_is_what_another_brightness_and_contrast_do_not_change():
    x = torch.rand(3, 1, 16, 16, generator=generator(0)) * 2 - 1
    assert float(enhancers.correlation(0.5 * x - 0.2, x)) == pytest.approx(1, abs=0.01)
    assert enhancers.correlation(x.flip(-1), x) < 0.5 and float(enhancers.correlation(-x, x)) < -0.9
    assert enhancers.correlation(torch.full_like(x, -1), torch.full_like(x, -1)) == 1


def trained_by(method, settings, tmp_path):
    folder = RunFolder(tmp_path / method, TINY)
    encoder = Encoder(EncoderSpec("resnet18", 1))
    network = cyclegan.GeneratorConfig(width=4, blocks=1, discriminator_width=4, residual=True)
    return enhancers.METHODS[method](encoder, network, settings, folder, torch.device("cpu"), 0, frozen=True)


def test_the_enhancer_and_the_learnt_degradation_do_not_agree_on_a_code(tmp_path):
    gan = trained_by("learned-degradation", cyclegan.TrainingConfig(crop=64), tmp_path)
    low, high = torch.rand(2, 2, 1, 64, 64, generator=generator(0)) * 2 - 1
    torch.nn.init.normal_(gan.generators["degrader"].last[-1].weight, 0, 0.02)
    parts, _ = gan.terms(low, high, generator(1))
    parts["pair"].backward()
    assert all(p.grad is None for p in gan.generators["degrader"].parameters())
    assert gan.generators["enhancer"].last[-1].weight.grad.abs().sum() > 0
    fitted = trained_by("fitted-degradation", cyclegan.TrainingConfig(crop=64), tmp_path)
    fitted.terms(low, high, generator(1))[0]["pair"].backward()
    assert all(p.grad is None for p in fitted.generators["degrader"].parameters())
    one, other = (gan.generators["degrader"](high, torch.randn(high.shape, generator=generator(n))) for n in (2, 3))
    assert (one - other).abs().mean() > 1e-3, "one image has many low-quality versions"


def test_patches_of_the_same_kind_are_near_and_of_another_far():
    x = torch.rand(12, 1, 64, 64, generator=generator(0)) * 2 - 1
    a, b = x[:6], x[6:].requires_grad_()
    near = fitted_degradation.patch_distance(a, b, generator(1))
    smooth = torch.nn.functional.avg_pool2d(b, 3, 1, 1)
    assert near < 0.05 < fitted_degradation.patch_distance(a, smooth, generator(1)), "other neighbours"
    assert near < 0.05 < fitted_degradation.patch_distance(a, b * 0.8 + 0.2, generator(1)), "another brightness"
    fitted_degradation.patch_distance(a, smooth, generator(1)).backward()
    assert b.grad.abs().sum() > 0


def test_a_degradation_is_fitted_to_images_that_show_something_else():
    """Known speckle, point spread and curve are found again from other images than those that they made worse."""

    def scenes(seed):
        coarse = torch.rand(16, 1, 8, 8, generator=generator(seed)) * 2 - 1
        return torch.nn.functional.interpolate(coarse, (64, 64), mode="nearest")

    def curve(model):
        return model._curve(torch.linspace(0.25, 1, 4)).detach()

    known, fitted = fitted_degradation.Degradation(), fitted_degradation.Degradation()
    with torch.no_grad():
        known.log_speckle.fill_(np.log(0.4))
        known.point_spread.mul_(0.25)
        known.start.fill_(0.1)
        known.slopes.sub_(0.5)
        low = known(scenes(0), known.noise(scenes(0), generator(1)))
    optimizer = torch.optim.Adam(fitted.parameters(), lr=0.05)
    draw, high = generator(2), scenes(3)
    for _ in range(60):
        loss = fitted_degradation.patch_distance(fitted(high, fitted.noise(high, draw)), low, draw, patches=1024)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert fitted.log_speckle.exp().item() == pytest.approx(0.4, abs=0.08)
    begun = (curve(fitted_degradation.Degradation()) - curve(known)).abs().mean()
    assert (curve(fitted) - curve(known)).abs().mean() < begun / 2
    black = torch.full((1, 1, 64, 64), -1.0)
    black[..., 40:] = 0.5
    made = fitted(black)
    assert (made[..., :30] == -1).all() and (made[..., 40:] > -1).all(), "a border stays black"
    assert not torch.equal(fitted(high[:1], fitted.noise(high[:1], generator(5))), fitted(high[:1]))


# ---- whole runs -----------------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_figures_images_pictures_and_a_model_that_does_the_same(build, folder, tmp_path):
    settings = build(
        "paired=true",
        "network.residual=true",
        "training.steps=15",
        "training.learning_rate=0.004",
        "training.average=0.8",
        "seeds=[0,1]",
    )
    said = []
    result = task.TASK.run_seeds(settings, said.append)
    assert result["psnr_gain"]["mean"] > 3 and result["ssim_gain"]["mean"] > 0, "brighter is easy"
    assert result["psnr_gain"]["low"] < result["psnr_gain"]["mean"] < result["psnr_gain"]["high"]
    assert any("beats the untouched input" in line for line in said)
    seed = tmp_path / "logs/t/seed-0"
    pictures = {"comparison.png", "curve.png", "grids/epoch-0001.png", "grids/epoch-0002.png"}
    for name in pictures | {
        "metrics.json",
        "per_image.csv",
        "generator.pt",
        "duplicates.csv",
        "config.yaml",
        "run.json",
    }:
        assert (seed / name).is_file(), name
    about = json.loads((tmp_path / "logs/t/metrics.json").read_text())
    assert about["task"] == "generation" and about["seeds"] == [0, 1] and about["protocol"]["kind"] == "paired"
    assert (
        about["protocol"]["selection"] == "validation SSIM on 6 pairs at 60 px"
        and "not measured" in about["protocol"]["kid"]
    )
    log = [json.loads(line) for line in (seed / "metrics.jsonl").read_text().splitlines()]
    best = max((line for line in log if line["kind"] == "monitor"), key=lambda line: line["score"])
    assert about["metrics"]["val_ssim"]["per_seed"][0] == best["val_ssim"] > best["val_ssim_input"]
    with open(seed / "per_image.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6
    enhancer = task.load_enhancer(seed)
    made = task.enhance_all(enhancer.model, [folder / row["path"] for row in rows], *enhancer.settings)
    for row, again in zip(rows, made, strict=True):
        files = seed / row["enhanced"], folder / row["path"], folder / row["target"]
        kept, low, high = (np.asarray(Image.open(file)) for file in files)
        assert kept.shape == (44, 60) and np.abs(kept.astype(int) - again).max() <= 1
        assert float(row["ssim"]) == pytest.approx(likeness.ssim(kept, high), abs=1e-6)
        assert float(row["ssim_input"]) == pytest.approx(likeness.ssim(low, high), abs=1e-6)
    assert vfm4us.load_encoder(seed / "generator.pt").report.dropped["head"] > 0
    assert not (seed / "checkpoints/last.pt").exists(), "optimizers and all: only a stopped run needs it"
    task.TASK.run_seeds(settings, said.append)
    assert sum("is finished" in line for line in said) == 2


def state_of(tmp_path, name):
    return checkpoints.read(tmp_path / f"logs/{name}/seed-0/generator.pt")["state_dict"]


@pytest.mark.parametrize("when", [1, 2, 3])
def test_stopped_and_continued_ends_in_the_same_weights(build, tmp_path, monkeypatch, when):
    """Two epochs of two steps: stopped within the first, at its end, and within the second; the pool is in use by then."""
    keys = ["training.average=0.5", "training.pool=1", "training.discriminator_steps=2"]
    task.TASK.run_seeds(build(*keys), quiet)
    real, made = signals.StopSignal, []

    class Soon(real):
        def __init__(self):
            super().__init__()
            made.append(self)

    real_update = cyclegan.CycleGAN._update
    steps = []

    def counted(self, *arguments):
        steps.append(1)
        if len(steps) == when:
            made[-1].number = 2
        return real_update(self, *arguments)

    monkeypatch.setattr(signals, "StopSignal", Soon)
    monkeypatch.setattr(cyclegan.CycleGAN, "_update", counted)
    stopped = build("name=stopped", *keys)
    with pytest.raises(signals.Stopped):
        task.TASK.run_seeds(stopped, quiet)
    assert not (tmp_path / "logs/stopped/seed-0/metrics.json").exists()
    task.TASK.run_seeds(stopped, quiet)
    assert len(steps) == 4, "no step was made twice"
    whole, parts = state_of(tmp_path, "t"), state_of(tmp_path, "stopped")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    assert any(k.startswith("module.degrader.") for k in whole)


@pytest.mark.parametrize("method", ["supervised", "one-sided", "learned-degradation", "fitted-degradation"])
def test_every_method_is_stopped_continued_saved_and_used(build, folder, tmp_path, monkeypatch, method):
    keys = [f"method={method}", "encoder.freeze=true", "network.residual=true", "training.average=0.5"]
    keys += ["training.pool=1", "training.ssim_weight=0.5", "network.discriminator_norm=none"]
    keys += ["network.kind=unet"] if method == "supervised" else []
    keys += ["training.discriminator_steps=2"] if method == "fitted-degradation" else []
    task.TASK.run_seeds(build(*keys), quiet)
    real, steps = enhancers.METHODS[method]._update, []

    def counted(self, *arguments):
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(enhancers.METHODS[method], "_update", counted)
    stopped = build("name=stopped", *keys, "training.steps=1")
    task_whole = build("name=whole", *keys, "training.steps=1")
    with pytest.raises(KeyboardInterrupt):
        task.TASK.run_seeds(stopped, quiet)
    monkeypatch.setattr(enhancers.METHODS[method], "_update", real)
    for settings in (stopped, task_whole):
        task.TASK.run_seeds(settings, quiet)
    whole, parts = state_of(tmp_path, "whole"), state_of(tmp_path, "stopped")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    assert any(k.startswith("module.degrader.") for k in whole) == method.endswith("degradation")
    about = json.loads((tmp_path / "logs/t/metrics.json").read_text())
    assert about["protocol"]["method"] == method and about["protocol"]["output"] == "residual"
    assert about["protocol"]["kind"] == ("paired" if method == "supervised" else "unpaired")
    assert "the best SSIM on validation pairs" in about["protocol"]["nlm"]
    sides = ("", "_input", "_gain", "_blur", "_median", "_nlm", "_over_filters")
    assert {m + side for m in ("ssim", "psnr", "lncc", "speckle", "gradient") for side in sides} <= about[
        "metrics"
    ].keys()
    model, facts = task.TASK.load(tmp_path / "logs/t")
    assert set(facts["filters"]) == {"blur", "median", "nlm"}
    image = np.asarray(Image.open(folder / "low_quality/00.png"))
    assert task.enhance(model, image, 60).shape == image.shape


def test_a_segmentation_model_reads_every_version_of_the_images(folder, tmp_path):
    masked = tmp_path / "masked"
    (masked / "images").mkdir(parents=True)
    (masked / "masks").mkdir()
    for i in range(3):
        image = Image.open(folder / "high_quality" / f"{i:02d}.png")
        image.save(masked / "images" / f"{i}.png")
        Image.fromarray((np.asarray(image) > 128).astype(np.uint8) * 255).save(masked / "masks" / f"{i}.png")
    encoder = Encoder(EncoderSpec("resnet18", 1))
    settings = segmentation.SegmentationConfig(decoder_width=16)
    model = segmentation.Segmenter(encoder, ["a"], settings.decoder, 16, settings.atrous_rates)
    segmentation.TASK.save(tmp_path / "segmenter.pt", model, settings, size=64)
    small = cyclegan.GeneratorConfig(width=4, blocks=1, residual=True)
    networks = cyclegan.Networks({"enhancer": cyclegan.Generator(small, encoder)})
    task.TASK.save(tmp_path / "generator.pt", networks, task.GenerationConfig(network=small), size=60)
    asked = dict(checkpoint=str(tmp_path / "generator.pt"), data=str(masked), out=str(tmp_path / "o"), degrade="mild")
    result = task.TASK.evaluate_files(task.EnhanceConfig(**asked, segmenter=str(tmp_path / "segmenter.pt")), quiet)
    assert result["dice"]["mean"] == result["dice_input"]["mean"], "an enhancer that is the identity"
    assert {"dice_gain", "dice_target", "dice_blur", "dice_over_filters"} <= result.keys()
    masks = segmentation.segment(model, [masked / "images" / f"{i}.png" for i in range(3)], 64)
    truth = [np.asarray(Image.open(masked / "masks" / f"{i}.png")) > 0 for i in range(3)]
    dice = [
        2 * (m.astype(bool) & t).sum() / (m.astype(bool).sum() + t.sum()) for m, t in zip(masks, truth, strict=True)
    ]
    assert result["dice_target"]["mean"] == pytest.approx(np.mean(dice), abs=1e-6)
    asked |= {"data": str(folder / "high_quality"), "segmenter": str(tmp_path / "segmenter.pt")}
    with pytest.raises(ValueError, match="has no mask, and --segmenter compares with masks"):
        task.TASK.evaluate_files(task.EnhanceConfig(**asked), quiet)


def test_a_frozen_encoder_stays_what_was_loaded_and_a_free_one_does_not(build, tmp_path):
    torch.manual_seed(5)
    encoder = Encoder(EncoderSpec("resnet18", 1))
    state = {checkpoints.ENCODER_PREFIX + k: v for k, v in encoder.published_state().items()}
    checkpoints.save(tmp_path / "e.pt", {"state_dict": state, "encoder": encoder.spec_dict()})
    for name, freeze in (("frozen", "true"), ("free", "false")):
        task.TASK.run_seeds(
            build(f"name={name}", f"encoder.freeze={freeze}", f"encoder.weights={tmp_path / 'e.pt'}"), quiet
        )
    key = checkpoints.ENCODER_PREFIX + "layer1.0.conv1.weight"
    frozen, free = (state_of(tmp_path, name)[key] for name in ("frozen", "free"))
    torch.testing.assert_close(frozen, state[key], rtol=0, atol=0)
    assert not torch.equal(free, state[key])
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        task.TASK.run_seeds(build("name=wrong", "encoder.weights=nowhere.pt"), quiet)
    checkpoints.save(
        tmp_path / "half.pt", {"state_dict": dict(list(state.items())[:40]), "encoder": encoder.spec_dict()}
    )
    with pytest.raises(ValueError, match="missing"):
        task.TASK.run_seeds(build("name=wrong", f"encoder.weights={tmp_path / 'half.pt'}"), quiet)


def test_a_discriminator_that_wins_and_what_is_not_finite_stop_with_a_diagnosis(build, tmp_path, monkeypatch):
    with pytest.raises(
        FloatingPointError, match=r"discriminator of .*-quality images has won at step 1: .*Nothing had been saved"
    ):
        task.TASK.run_seeds(build("training.won=100"), quiet)
    real = cyclegan.CycleGAN._update

    def spoilt(self, low, high, generator, at):
        return real(self, low * float("nan") if at == 3 else low, high, generator, at)

    monkeypatch.setattr(cyclegan.CycleGAN, "_update", spoilt)
    with pytest.raises(
        FloatingPointError, match=r"failed at step 4: .*cycle_low is nan.*holds the last good state \(epoch 1,"
    ):
        task.TASK.run_seeds(build("name=nan"), quiet)
    kept = checkpoints.read(tmp_path / "logs/nan/seed-0/checkpoints/last.pt")
    assert all(torch.isfinite(v).all() for v in kept["generators"].values()) and kept["epoch"] == 1


def test_a_table_of_two_encoders_has_paired_differences(build, folder, tmp_path):
    values = config.to_dict(build("data.label_share=0.5"))
    base = {k: values[k] for k in ("seeds", "device", "data", "network", "training")}
    file = tmp_path / "table.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "table",
                "task": "generation",
                "logs": str(tmp_path / "logs"),
                "scores": ["ssim", "ssim_gain"],
                "base": base,
                "axes": {"initialisation": {"frozen": {"encoder": {"freeze": True}}, "trained": {}}},
                "differences": [["trained", "frozen"]],
            }
        )
    )
    settings = config.load(TableConfig, file)
    plan = make_plan(settings)
    for cell in plan.cells:
        task.TASK.run_seeds(cell.config, quiet)
    report.write(settings, plan)
    about = json.loads((tmp_path / "logs/table/metrics.json").read_text())
    assert {"frozen ssim_gain", "trained psnr_input"} <= about["metrics"].keys()
    difference = about["metrics"][" trained - frozen ssim"]
    means = [about["metrics"][f"{name} ssim"]["mean"] for name in ("trained", "frozen")]
    assert difference["mean"] == pytest.approx(means[0] - means[1])
    assert about["metrics"][" trained - frozen ssim_input"]["mean"] == 0


def test_train_and_evaluate_from_another_folder(folder, tmp_path):
    keys = [
        "name=s",
        "seeds=[0]",
        "data.size=60",
        "device=cpu",
        "generator={width: 4, blocks: 1, discriminator_width: 4}",
        "training={epochs: 1, decay_epochs: 0, steps: 1, crop: 64}",
        "data.splits=[0.5,0.25,0.25]",
    ]
    done = script(TRAIN, f"data.path={folder}", *keys, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "| ssim_gain |" in done.stdout
        and "the untouched input" in done.stdout
        and (tmp_path / "logs/s/table.md").is_file()
    )
    manifest = [*csv.DictReader(open(next((tmp_path / "data").glob("*/manifest.csv")), newline=""))]
    lines = ["path,target,split", *(f"{row['path']},{row['target']},{row['split']}" for row in manifest)]
    (folder / "again.csv").write_text("\n".join(lines) + "\n")
    done = script(EVALUATE, "logs/s", folder / "again.csv", "--split", "test", "--out", "o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    here, evaluated = (
        json.loads((tmp_path / f).read_text())["metrics"] for f in ("o/metrics.json", "logs/s/metrics.json")
    )
    for name in ("ssim", "psnr_input", "lncc_gain"):
        assert here[name]["mean"] == pytest.approx(evaluated[name]["mean"], abs=1e-3)
    assert "does NOT beat the untouched input" in done.stdout, "after one step of a plain generator"

    (tmp_path / "plain").mkdir()
    for i in range(3):
        (tmp_path / "plain" / f"{i}.png").write_bytes((folder / "low_quality" / f"{i:02d}.png").read_bytes())
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)).save(
        tmp_path / "plain/rgb.png"
    )
    (tmp_path / "plain" / "bad.png").write_bytes(b"hello")
    done = script_soon(EVALUATE, "logs/s/seed-0/generator.pt", "plain", "--out", "o2", "--tile", "64", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "4 images, 1 unreadable" in done.stdout
        and "No targets to compare with" in done.stdout
        and "bad.png" in done.stderr
    )
    assert not (tmp_path / "o2/metrics.json").exists()
    sizes = [Image.open(tmp_path / "o2/enhanced" / f"{name}.png").size for name in (0, 1, 2, "rgb")]
    assert sizes == [(60, 44)] * 3 + [(200, 300)]
    further = ["--out", "o3", "--degrade", "1", "--reference", folder / "high_quality"]
    done = script_soon(EVALUATE, "logs/s", "plain", *further, cwd=tmp_path)
    assert done.returncode == 0 and "| ssim_input |" in done.stdout and "KID: not measured" in done.stdout, done.stderr
    for arguments, message in (
        (["logs/nowhere", folder], "does not exist"),
        (["logs/s", "nowhere"], "nowhere does not exist"),
        (["logs/s", "plain", "--split", "val"], "no images in split val"),
        (["logs/s", "plain", "--out", "plain/o"], "--out plain/o lies in the data plain"),
        (["logs/s", "plain", "--degrade=-1"], "'-1': give a strength above 0, or mild, middle, strong"),
        (["logs/s", "plain", "--tile", "8"], "tile: 8 is below"),
    ):
        done = script_soon(EVALUATE, *arguments, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config", "configs/generation/usenhance.yaml"],
            r"data.path: 'data/USenhance' does not exist.*\nUSenhance 2023",
        ),
        (["data.path=.", "netwrok.width=4"], "did you mean 'network'"),
        (["data.path=.", "finetune.epochs=4"], "unknown config key 'finetune'"),
        (["data.path=.", "training.crop=8"], "training.crop: 8 is below"),
    ],
)
def test_mistakes_are_one_error(tmp_path, arguments, message):
    done = script_soon(TRAIN, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "logs").exists()


def test_another_kind_of_checkpoint_is_refused(tmp_path):
    checkpoints.save(tmp_path / "e.pt", {"state_dict": {}, "task": "segmentation"})
    with pytest.raises(ValueError, match="is no enhancer"):
        task.load_enhancer(tmp_path / "e.pt")


def test_real_images_of_two_organs_make_pairs_whose_domains_share_no_group(real_data, build, monkeypatch):
    monkeypatch.setattr(task, "degraded_images", lambda dataset, *_: dataset.images)  # 100 ms each
    for name in ("busi", "liver"):
        data = task.QualityData(build("data.degrade=true", "data.size=64", path=real_data / name).data, False, 0)
        groups = [set(data.dataset.groups[rows].tolist()) for rows in (data.low, data.high, data.val, data.test)]
        assert sum(map(len, groups)) == len(set.union(*groups)), "no group on two sides"
        assert abs(len(data.low) - len(data.high)) < 0.1 * len(data.low)
        tests = {r.path for r in find_source(real_data / name) if r.split == "test"}
        assert {data.dataset.records[i].path for i in data.test} == tests


CONFIGS = [*sorted((ROOT / "configs" / "generation").glob("*.yaml")), ROOT / "configs" / "smoke" / "generation.yaml"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_is_understood(path):
    settings = config.load(task.GenerationConfig, path)
    assert path.read_text().startswith("# python Downstream/Generation/train.py")
    assert settings.name == path.stem or path.parent.name == "smoke"
