"""Generation: low-quality ultrasound into high-quality, by an enhancer that carries our encoder.

    result = generation.TASK.run_seeds(config)        # one run folder per seed below logs/<name>, then one table of all
    enhancer = generation.load_enhancer(FILE)
    enhanced = generation.enhance_all(enhancer.model, images, *enhancer.settings)

Trained on crops of packed images; the pairs of a dataset are taken apart, low quality from one half of the training groups, high
from the other, unless paired=true. The epoch is chosen by SSIM on validation pairs. Tested once, on images read from their files
and enhanced at their original size, beside the untouched input and filters that learn nothing, whose strength is chosen on the
same validation pairs: an enhancer that does no better says so.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from vfm4us import log, plots
from vfm4us.checkpoints import load_encoder
from vfm4us.config import to_dict
from vfm4us.data import splits as splitting
from vfm4us.data.csv_files import write_rows
from vfm4us.data.dataset import RESAMPLING, Fingerprints, PreparedDataset, packed_size
from vfm4us.data.decode import read_grey, read_record
from vfm4us.data.images import given_images, image_array, image_batch, image_records
from vfm4us.data.masks import read_masks
from vfm4us.data.pools import epoch_order
from vfm4us.data.records import Record
from vfm4us.data.splits import assign
from vfm4us.encoders import Encoder
from vfm4us.evaluation import filters, statistics
from vfm4us.evaluation import likeness as figures
from vfm4us.evaluation import segmentation as overlap_figures
from vfm4us.evaluation.likeness import FIGURES, LEAST_FOR_KID, Features, kid, kid_rule, verdict
from vfm4us.phantoms import degradation
from vfm4us.runtime.device import autocast
from vfm4us.runtime.files import write_array
from vfm4us.runtime.run import RunFolder
from vfm4us.tasks import base, segmentation
from vfm4us.tasks.base import Cases, Task
from vfm4us.tasks.cyclegan import Networks, new_enhancer
from vfm4us.tasks.enhancers import METHODS
from vfm4us.tasks.finetune import refuse_missing
from vfm4us.tasks.sections import EnhanceConfig, GenerationConfig, GeneratorConfig, QualityDataConfig
from vfm4us.tasks.settings import TaskDataConfig

# ---- data -----------------------------------------------------------------------------------------------------------


class QualityData:
    """A prepared dataset as an enhancement task: rows and pixels of both domains, pairs to validate and test on.

    `low` and `high` are the training rows of either domain. Without paired=true they are of different groups, so that no image's
    other version is ever seen. Raises ValueError that says what is lacking.
    """

    def __init__(self, config: QualityDataConfig, paired: bool, seed: int):
        self.config, self.paired = config, paired
        self.known = 0  # images of data.high that are left out, since validation or test has them
        if config.degrade and config.high:
            raise ValueError(
                "data.degrade makes the low-quality images itself: leave data.high empty, or data.degrade=false"
            )
        if paired and config.high:
            raise ValueError("paired=true needs low and high quality of the same image; those of data.high are others")
        d = self.dataset = base.open_dataset(
            config,
            "low_quality/ with high_quality/, a CSV manifest with a target column, or any images and data.degrade=true",
        )
        if unknown := sorted(set(config.only) - set(d.labels)):
            labels = ", ".join(sorted(set(d.labels)))
            raise ValueError(f"data.only: {config.path} has no images labelled {unknown[0]!r}; it has: {labels}")
        used = np.isin(d.labels, config.only) if config.only else np.ones(len(d), bool)
        whole = np.array([config.degrade or bool(record.target) for record in d.records])  # the other version is there
        train, self.val, self.test = (rows[used[rows]] for rows in map(d.indices, ("train", "val", "test")))
        train = base.few_labels(train, np.zeros(len(d), int), config.label_share, seed)
        if config.high:
            other = base.open_dataset(TaskDataConfig(config.high, config.size, config.splits, config.cache), "images")
            self.low, self._high, self.valid_high = train, other.images, other.valid
            rows = other.indices("train")
            known = _known(d, np.concatenate([self.val, self.test]), other.fingerprints(rows))
            self.high, self.known = np.delete(rows, known), len(known)
            self.high_sha256 = [other.sha256[i] for i in self.high]
        elif not whole.any():
            raise ValueError(
                f"{config.path} has no high-quality images: give low_quality/ with high_quality/ of the same names, a CSV manifest "
                "with the columns path and target, high-quality images of their own with data.high=DIR, or data.degrade=true"
            )
        else:
            self._high, self.valid_high = (d.images if config.degrade else d.targets), d.valid
            self.low, self.high = (train[whole[train]],) * 2 if paired else _halves(d, train, whole)
            self.high_sha256 = [d.sha256[i] for i in self.high]
        for name, rows in (("low", self.low), ("high", self.high)):
            if not len(rows):
                raise ValueError(
                    f"the domain of {name}-quality training images is empty: {config.path} has {len(train)} training images in "
                    f"{len(set(d.groups[train].tolist()))} groups, and the two domains get different ones; give it more groups, "
                    "paired=true, or data.high=DIR"
                )
        self.val = self.val[whole[self.val]]
        self.paired_test = bool(whole[self.test].any())
        self.without = [d.records[i].path for i in self.test[~whole[self.test]]] if self.paired_test else []
        self.test = self.test[whole[self.test]] if self.paired_test else self.test
        if not len(self.test):
            raise ValueError(f"{config.path} has no test images: give it more groups, or a split column")
        self.root = base.files_of(d, config, self.test)
        self._low = d.images
        if config.degrade:
            needed = np.flatnonzero(np.isin(d.splits, ["train", "val"]) & used)
            self._low = degraded_images(d, self.root, needed, self.strength, Path(config.cache))

    @property
    def strength(self) -> float | None:
        """Of the degradation by which pairs are made; None where they are given."""
        if not self.config.degrade:
            return None
        return degradation.LEVELS.get(self.config.level, self.config.strength)

    def low_image(self, row: int) -> np.ndarray:
        """uint8 (h, w), without padding."""
        return _part(self._low, self.dataset.valid, row)

    def high_image(self, row: int) -> np.ndarray:
        """uint8 (h, w) of a row of the high-quality domain, or of a pair."""
        return _part(self._high, self.valid_high, row)


def _part(images: np.ndarray, valid: np.ndarray, row: int) -> np.ndarray:
    top, left, height, width = valid[row]
    return images[row, top : top + height, left : left + width]


def _known(dataset: PreparedDataset, rows: np.ndarray, high: Fingerprints) -> list[int]:
    """Which of the high-quality images (their indices in `high`) are the images or the targets of these rows, or nearly so."""
    shared = splitting.leakage(high, dataset.fingerprints(rows))
    if dataset.targets is not None:
        targets = [_part(dataset.targets, dataset.valid, row) for row in rows if dataset.records[row].target]
        shared += splitting.leakage(high, _Targets(targets))
    return sorted({leak.pool_index for leak in shared})


class _Targets:
    """What `splits.leakage` compares, of images at hand."""

    def __init__(self, images: list[np.ndarray]):
        self.images = images
        self.sha256 = [f"target {i}" for i in range(len(images))]  # packed ones have no file of their own
        self.phash = np.array([splitting.perceptual_hash(image) for image in images], dtype=np.uint64)

    def thumbnail_of(self, index: int) -> np.ndarray:
        return splitting.thumbnail(self.images[index])


def _halves(dataset: PreparedDataset, train: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training rows of the low and of the high domain: different groups, about as many of either and of each label."""
    if not len(train):
        return train, train
    side = assign(dataset.groups[train], (0.5, 0.5, 0.0), [dataset.labels[i] for i in train])
    low, high = train[side == "train"], train[side == "val"]
    return low, high[whole[high]]


def degraded_images(dataset: PreparedDataset, root: Path, rows: np.ndarray, strength: float, cache: Path) -> np.ndarray:
    """uint8 (N, S, S), memory-mapped: the rows' degraded versions, made at the original size, packed; made once for all runs."""
    about = f"{[dataset.sha256[i] for i in rows]} {dataset.size} {strength} {degradation.VERSION}"
    about += " filled" * bool(dataset.description.get("blank"))
    path = cache / f"{dataset.folder.name}-degraded-{hashlib.sha256(about.encode()).hexdigest()[:8]}.npy"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        frames = np.zeros((len(dataset), dataset.size, dataset.size), np.uint8)
        for row in tqdm(rows, unit="image", desc="degrading"):
            image = read_record(root, dataset.records[row])
            frames[row] = image_batch([degradation.degraded(image, strength)], dataset.size, frame=True)[0][
                0, 0
            ].numpy()
        write_array(path, np.save, frames)
    return np.load(path, mmap_mode="r")


def read_pair(root: Path, record: Record, strength: float | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Low and high quality of a record, uint8 (H, W) of one size; high is None where there is none. ValueError for a bad file.

    With a strength the record's image is the high-quality one, and is degraded.
    """
    image = read_record(root, record)
    if strength is not None:
        return degradation.degraded(image, strength), image
    if not record.target:
        return image, None
    try:
        target = read_grey(root / record.target)
    except ValueError as error:
        raise ValueError(f"its target {record.target}: {error}") from error
    if record.filled is not None:
        target = record.filled.on(target)
    if target.shape != image.shape:
        ratio = (target.shape[0] / image.shape[0]) / (target.shape[1] / image.shape[1])
        if not 0.98 < ratio < 1.02:
            raise ValueError(f"its target {record.target} has another shape: {target.shape} against {image.shape}")
        target = np.asarray(Image.fromarray(target).resize(image.shape[::-1], RESAMPLING))
    return image, target


def crop(image: np.ndarray, size: int, place: tuple[float, float], flip: bool) -> Tensor:
    """A window (1, size, size) in [-1, 1] of uint8 (h, w), at `place` in [0, 1) of what is free; a smaller image is reflected."""
    lacking = [max(0, size - side) for side in image.shape]
    if any(lacking):
        image = np.pad(image, [(n // 2, n - n // 2) for n in lacking], mode="reflect")
    top, left = (int(p * (side - size + 1)) for p, side in zip(place, image.shape, strict=True))
    view = image[top : top + size, left : left + size][:, :: -1 if flip else 1]
    window = np.array(view, order="C")  # a copy always: packed images are read-only, of which torch warns
    return torch.from_numpy(window)[None].float() / 127.5 - 1


# ---- training --------------------------------------------------------------------------------------------------------


def _train(config: GenerationConfig, data: QualityData, encoder, folder: RunFolder, device) -> tuple[Networks, dict]:
    """The generators of the epoch that did best on the validation pairs, and what they did there."""
    training, size = config.training, data.dataset.size
    steps = training.steps or max(1, round(len(data.low) / training.batch_size))
    count = steps * training.batch_size * training.discriminator_steps

    def batches(epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
        low = data.low[epoch_order([len(data.low)], [1.0], count, (config.seed, epoch))]
        high = (
            low
            if config.with_pairs
            else data.high[epoch_order([len(data.high)], [1.0], count, (config.seed, epoch, 1))]
        )
        return list(zip(np.split(low, steps), np.split(high, steps), strict=True))

    def crops(low: np.ndarray, high: np.ndarray, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        places = torch.rand(2, len(low), 3, generator=draws).tolist()
        if config.with_pairs:
            places[1] = places[0]
        return tuple(
            torch.stack(
                [crop(image(row), training.crop, (y, x), f < 0.5) for row, (y, x, f) in zip(rows, of, strict=True)]
            )
            for image, rows, of in ((data.low_image, low, places[0]), (data.high_image, high, places[1]))
        )

    spread = np.linspace(0, len(data.val) - 1, min(len(data.val), training.validation_images)).round().astype(int)
    pairs = [(data.low_image(row), data.high_image(row)) for row in data.val[spread]] if len(data.val) else []
    untouched = (
        {f"val_{m}_input": float(np.mean([FIGURES[m](*p) for p in pairs])) for m in ("ssim", "psnr")} if pairs else {}
    )
    shown = [
        torch.stack([crop(image(row), training.crop, (0.5, 0.5), False) for row in rows[:4]]).to(device)
        for image, rows in ((data.low_image, data.low), (data.high_image, data.high))
    ]

    def validate(generators: nn.ModuleDict, epoch: int) -> dict[str, float]:
        generators.eval()
        with torch.no_grad(), autocast(device, config.precision):
            draw_grid(folder.folder / "grids" / f"epoch-{epoch:04d}.png", generators, *shown, f"epoch {epoch}")
            enhanced = [enhance(generators["enhancer"], low, size, config.tile, config.overlap) for low, _ in pairs]
        generators.train()
        if not pairs:
            return {"score": float(epoch)}
        validated = {
            f"val_{m}": float(np.mean([FIGURES[m](e, high) for e, (_, high) in zip(enhanced, pairs, strict=True)]))
            for m in ("ssim", "psnr")
        }
        return {"score": validated["val_ssim"]} | validated | untouched

    gan = METHODS[config.method](
        encoder,
        config.network,
        training,
        folder,
        device,
        config.seed,
        config.encoder.freeze,
        config.encoder.freeze_epochs,
        config.precision,
        config.paired,
        _compared_on(config, encoder),
    )
    model = gan.fit(batches, crops, validate)
    plots.cycle_curve(folder.folder / "curve.png", folder.metrics(), gan.loop.best["epoch"] * steps)
    model.filters = filters.choose(
        read_pair(data.root, data.dataset.records[row], data.strength) for row in data.val[spread]
    )
    return model, gan.loop.best


def _compared_on(config: GenerationConfig, encoder: Encoder) -> Encoder | None:
    """The encoder whose features the perceptual term compares; None without that term."""
    if not config.training.perceptual_weight:
        return None
    name = config.training.perceptual_encoder
    return load_encoder(name, config.encoder.in_channels) if name else encoder


def draw_grid(path: Path, generators: nn.ModuleDict, low: Tensor, high: Tensor, title: str) -> None:
    """Real, fake and, where there is a way back, reconstructed crops of both domains, a row each."""
    enhancer = generators["enhancer"]
    enhanced = enhancer(low)
    columns = {"low": low, "enhanced": enhanced}
    if "degrader" in generators:
        degrader = generators["degrader"]
        back = degrader(high)
        columns |= {"and back": degrader(enhanced), "high": high, "degraded": back, "and back ": enhancer(back)}
    else:
        columns["high"] = high
    plots.picture_grid(path, {name: to_uint8(x[:, 0]) for name, x in columns.items()}, title)


# ---- at the original size -------------------------------------------------------------------------------------------


def enhance_all(model: nn.Module, images, size: int, tile: int = 512, overlap: int = 64) -> Iterator[np.ndarray]:
    """The enhanced version, uint8 (H, W), of each image at its own size, one after the other.

    images: a folder, a CSV manifest, an image, or a list of such, as `image_batch` takes; RGB becomes grey.
    """
    for image in given_images(images):
        array = image_array(image)
        if array.dtype != np.uint8:
            array = (array * 255).round().clip(0, 255).astype(np.uint8)
        yield enhance(model, np.asarray(Image.fromarray(array).convert("L")), size, tile, overlap)


@torch.no_grad()
def enhance(model: nn.Module, image: np.ndarray, size: int, tile: int = 512, overlap: int = 64) -> np.ndarray:
    """uint8 (H, W) -> uint8 (H, W). The network works on the image resized as in training, its longer side `size` px.

    What comes back is resized to the image's own size. Of a residual generator that is the change alone, which is added to the
    image as it was, so that no detail is lost on the way.
    """
    device = next(model.parameters()).device
    height, width = packed_size(*image.shape, size)
    resized = (
        image
        if (height, width) == image.shape
        else np.asarray(Image.fromarray(image).resize((width, height), RESAMPLING))
    )
    x = torch.tensor(resized, device=device)[None, None].float() / 127.5 - 1
    y = tiled(model, x, tile, overlap)
    if (height, width) == image.shape:
        return to_uint8(y[0, 0])
    residual = getattr(model, "residual", False)
    y = F.interpolate(y - x if residual else y, image.shape, mode="bicubic", align_corners=False)
    before = torch.tensor(image, device=device).float() / 127.5 - 1 if residual else 0
    return to_uint8(y[0, 0] + before)


def tiled(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int) -> Tensor:
    """function(x) for (1, C, H, W), in tiles of at most `tile` px that overlap by at least `overlap`, blended linearly."""
    if max(x.shape[-2:]) <= tile:
        return function(x).float()
    starts, ramps = [], []
    for side in x.shape[-2:]:
        length = min(tile, side)
        count = 1 if side <= tile else math.ceil((side - overlap) / (tile - overlap))
        starts.append([round(float(s)) for s in np.linspace(0, side - length, count)])
        ahead = torch.arange(1, length + 1, device=x.device, dtype=torch.float32)
        ramps.append(torch.minimum(ahead, ahead.flip(0)).clamp(max=overlap + 1))
    weight = ramps[0][:, None] * ramps[1][None, :]
    total, weights = torch.zeros_like(x), torch.zeros_like(x)
    for top in starts[0]:
        for left in starts[1]:
            at = (..., slice(top, top + weight.shape[0]), slice(left, left + weight.shape[1]))
            total[at] += weight * function(x[at]).float()
            weights[at] += weight
    return total / weights


def to_uint8(x: Tensor) -> np.ndarray:
    """[-1, 1] -> uint8."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


# ---- figures --------------------------------------------------------------------------------------------------------


@dataclass
class EnhancedCases(Cases):
    """As of every task; beside them the features of each image, for KID."""

    features: dict[str, list[np.ndarray]] = field(default_factory=lambda: {"kid": [], "kid_input": []})
    rule: str = "not measured: no --reference"  # of KID

    def kid(self, features: Features | None, reference: list[np.ndarray]) -> dict[str, np.ndarray]:
        """`kid` and `kid_input` against the reference images; nothing where there are too few of either."""
        if features is None or min(len(self.features["kid"]), len(reference)) < LEAST_FOR_KID:
            return {}
        of_reference = features.of(reference)
        return {name: np.array(kid(np.concatenate(each), of_reference)) for name, each in self.features.items()}


@dataclass
class Reader:
    """A segmentation model that was trained on high quality: how well it reads an image says what enhancing it is worth."""

    model: segmentation.Segmenter
    size: int  # of its images, px

    def dice(self, root: Path, record: Record, sides: dict[str, np.ndarray]) -> dict[str, float]:
        """`dice` with each side's name behind it: mean over classes against the record's masks. ValueError where it has none."""
        truth = read_masks(root, record, next(iter(sides.values())), self.size)
        if truth is None:
            raise ValueError(f"{root / record.path} has no mask, and --segmenter compares with masks: leave it out")
        classes = self.model.classes
        truth = segmentation.known_classes(truth, self.model, root / record.mask_paths[0])
        read = segmentation.segment(self.model, list(sides.values()), self.size)
        return {
            f"dice{side}": float(overlap_figures.compare(mask, truth, len(classes))["dice"].mean())
            for side, mask in zip(sides, read, strict=True)
        }


def examine(
    model: nn.Module,
    root: Path,
    records: list[Record],
    size: int,
    tile: int,
    overlap: int,
    out: Path,
    strength: float | None = None,
    features: Features | None = None,
    strengths: dict[str, float] = filters.USUAL,
    reader: Reader | None = None,
) -> EnhancedCases:
    """Enhance the images of `records` from their files, write each below out/enhanced, compare where there are targets.

    With a strength the files are of high quality, and their degraded versions are enhanced. `features` are taken for KID,
    `strengths` are those of the filters beside us, `reader` reads every version of the image. Where no image has a target, all are
    records, without figures.
    """
    some = strength is not None or any(record.target for record in records)
    cases, taken = EnhancedCases(), set()
    shown = tqdm(records, unit="image", desc="enhancing")
    for record, (low, high) in cases.readable(shown, lambda record: read_pair(root, record, strength)):
        record.height, record.width = low.shape
        name = f"enhanced/{base.file_name(record.id, taken)}.png"
        made = enhance(model, low, size, tile, overlap)
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made).save(out / name)
        if some and high is None:
            cases.without.append((record, name))
            continue
        row = {"targets": record.target, "enhanced": name}
        sides = {"": made, "_input": low}
        if high is not None:
            sides |= {f"_{f}": filters.apply(f, low, s) for f, s in strengths.items()}
            row |= {m + side: figure(image, high) for m, figure in FIGURES.items() for side, image in sides.items()}
            sides |= {"_target": high}
        if reader is not None:
            row |= reader.dice(root, record, sides)
        cases.records.append(record)
        cases.rows.append(row)
        if features is not None and len(records) >= LEAST_FOR_KID:
            cases.features["kid"].append(features.of([made]))
            cases.features["kid_input"].append(features.of([low]))
    return cases


def write_cases(out: Path, outcome: statistics.Outcome) -> None:
    """per_image.csv: a row per image."""
    sides = ("", *(f"_{side}" for side in figures.SIDES))
    names = [m + side for m in figures.MEASURES for side in sides if m + side in outcome]
    rows = []
    for i, path in enumerate(outcome["paths"]):
        measured = [f"{outcome[n][i]:.6f}" for n in names]
        files = outcome["targets"][i], outcome["enhanced"][i]
        rows.append([path, outcome["groups"][i], *measured, *outcome["sizes"][i].tolist(), *files])
    write_rows(out / "per_image.csv", ["path", "group", *names, "height", "width", "target", "enhanced"], rows)


def pictures(
    out: Path, root: Path, cases: Cases, strength: float | None = None, strengths: dict[str, float] = filters.USUAL
) -> None:
    """comparison.png: input, best filter, enhanced, target and what is left of the difference; best, median and worst by SSIM.

    Where there are no targets: the first three, before and after.
    """
    outcome = cases.outcome()
    paths, compared = outcome["paths"], "ssim" in outcome
    if compared:
        order = np.argsort(-outcome["ssim"], kind="stable")
        chosen = dict(zip(("best", "median", "worst"), order[[0, (len(order) - 1) // 2, -1]].tolist(), strict=True))
        best = max(strengths, key=lambda f: outcome[f"ssim_{f}"].mean())
    else:
        chosen = {f"image {i + 1}": i for i in range(min(3, len(paths)))}
    rows = []
    for word, i in chosen.items():
        low, high = read_pair(root, cases.records[i], strength)
        shown = {f"{word}: {Path(str(paths[i])).stem}, input": low}
        made = np.asarray(Image.open(out / str(outcome["enhanced"][i])))
        if high is not None and compared:
            shown = {f"{word}: {Path(str(paths[i])).stem}, input, SSIM {outcome['ssim_input'][i]:.3f}": low}
            shown[f"{filters.NAMES[best]}, SSIM {outcome[f'ssim_{best}'][i]:.3f}"] = filters.apply(
                best, low, strengths[best]
            )
            shown[f"enhanced, SSIM {outcome['ssim'][i]:.3f}"] = made
            rows.append((shown | {"target": high}, made.astype(int) - high))
        else:
            rows.append((shown | {"enhanced": made}, None))
    plots.before_and_after(out / "comparison.png", rows)


# ---- the task -------------------------------------------------------------------------------------------------------


class Generation(Task):
    """The generation task: trains, tests and applies an enhancer of low-quality images."""

    name, config = "generation", GenerationConfig
    figures, file, model = figures, "generator.pt", "enhancer"
    truth = "target"
    explained = "docs/enhancement.md"

    def check(self, config: GenerationConfig) -> None:
        if not config.training.epochs + config.training.decay_epochs:
            raise ValueError("training.epochs and training.decay_epochs are both 0: nothing would be trained")
        if config.overlap >= config.tile:
            raise ValueError(f"overlap {config.overlap} must be smaller than tile {config.tile}")
        if config.method == "one-sided" and config.network.kind == "unet":
            raise ValueError("method=one-sided compares maps of residual blocks: give network.kind=blocks")
        perceptual = config.training.perceptual_weight and not config.training.perceptual_encoder
        if perceptual and config.encoder.weights == "none":
            raise ValueError(
                "training.perceptual_weight compares features, and those of random weights say little: give "
                "training.perceptual_encoder=FILE or encoder.weights=FILE, or training.perceptual_weight=0"
            )
        if config.training.perceptual_encoder:
            refuse_missing(config.training.perceptual_encoder, "training.perceptual_encoder")
        if config.data.level and config.data.strength != QualityDataConfig().strength:
            raise ValueError(
                f"data.level={config.data.level} and data.strength={config.data.strength:g} both say how strong the "
                "degradation is: leave one out"
            )
        Features.choose(config.kid_encoder)

    def learnt_from(self, data: QualityData) -> list[str]:
        return [data.dataset.sha256[i] for i in (*data.low, *data.val)] + data.high_sha256

    def read(self, config: GenerationConfig) -> QualityData:
        return QualityData(config.data, config.with_pairs, config.seed)

    def describe(self, data: QualityData) -> str:
        tested = "pairs" if data.paired_test else "images without a target"
        said = (
            f"{'paired' if data.paired else 'unpaired'}, {len(data.low)} low-quality and {len(data.high)} high-quality "
            f"training images, {len(data.val)} val pairs, {len(data.test)} test {tested}"
        )
        if data.known:
            said += f"; {data.known} images of data.high left out, since validation or test has them"
        return said + (f"; {len(data.without)} test images without a target left out" if data.without else "")

    def train(self, config: GenerationConfig, data: QualityData, encoder, folder, device):
        model, best = _train(config, data, encoder, folder, device)
        return model, {k: np.array(v) for k, v in best.items() if k.startswith("val_")} | {
            "chosen_epoch": np.array(best["epoch"])
        }

    def test(self, config: GenerationConfig, data: QualityData, model: Networks, where: Path, validated):
        records, size = [data.dataset.records[i] for i in data.test], data.dataset.size
        features, enhancer = Features.choose(config.kid_encoder), model["enhancer"]
        strengths = model.filters or filters.USUAL
        how = data.strength, features, strengths
        cases = examine(enhancer, data.root, records, size, config.tile, config.overlap, where, *how)
        cases.refuse_unreadable(data.root)
        outcome = cases.outcome() | cases.kid(features, [data.high_image(row) for row in data.high])
        write_cases(where, outcome)
        pictures(where, data.root, cases, data.strength, strengths)
        return outcome | {f"filter_{name}": np.array(s) for name, s in model.filters.items()}

    def protocol(self, config: GenerationConfig, data: QualityData, outcome, result):
        used = {name: float(outcome[f"filter_{name}"]) for name in filters.GRIDS if f"filter_{name}" in outcome}
        pairs = f"{min(len(data.val), config.training.validation_images)} pairs at {data.dataset.size} px"
        return (
            figures.RULES
            | {
                "method": config.method,
                "kind": "paired" if config.with_pairs else "unpaired",
                "encoder_in": "enhancer (low to high) only",
                "encoder_frozen": config.encoder.freeze,
                "output": "residual" if config.network.residual or config.network.kind == "unet" else "plain",
                "pairs": "given" if data.strength is None else f"degraded with strength {data.strength:g}",
                "training_images": len(data.low) if config.with_pairs else len(data.low) + len(data.high),
                "low_images": len(data.low),
                "high_images": len(data.high),
                "high_images_left_out": data.known,
                "test_images": len(data.test),
                "selection": f"validation SSIM on {pairs}"
                if len(data.val)
                else "last epoch, there are no validation pairs",
                "chosen_epoch": int(outcome["chosen_epoch"]),
                "kid": kid_rule(Features.choose(config.kid_encoder), len(data.test), len(data.high)),
                "verdict": verdict(result),
            }
            | filters.rule(used or filters.USUAL, bool(used))
        )

    def conclusion(self, result) -> str:
        return verdict(result)

    def encoder_of(self, model) -> Encoder:
        return model["enhancer"].branch.encoder

    def head_of(self, model):
        """The rest of the enhancer, and the way back where there is one, `module.degrader.*`."""
        rest = {k: v for k, v in model["enhancer"].state_dict().items() if not k.startswith(INSIDE)}
        back = model["degrader"].state_dict() if "degrader" in model else {}
        return {f"head.{k}": v for k, v in rest.items()} | {f"degrader.{k}": v for k, v in back.items()}

    def facts(self, model, config: GenerationConfig):
        about = {"generator": to_dict(config.network), "tile": config.tile, "overlap": config.overlap}
        return about | {"filters": getattr(model, "filters", {})}

    def build(self, about, encoder: Encoder, head) -> nn.Module:
        model = new_enhancer(GeneratorConfig(**about["generator"]), encoder)
        model.load_state_dict(head | {f"{INSIDE}{k}": v for k, v in encoder.state_dict().items()})
        return model

    def use(self, model: nn.Module, about, root: Path, records, options: EnhanceConfig) -> EnhancedCases:
        tile = options.tile or about["tile"]
        overlap = min(about["overlap"], tile // 2) if options.tile else about["overlap"]
        features = Features.choose(options.kid_encoder) if options.reference else None
        reference = [image_array(record) for record in image_records(options.reference)] if options.reference else []
        out = Path(options.out)
        reader = Reader(*segmentation.load_segmenter(options.segmenter)) if options.segmenter else None
        if reader is not None:
            segmentation.masks_as_trained(reader.model, records, options.segmenter, options.data)
        how = _strength(options), features, _filters(about), reader
        cases = examine(model, root, records, about["size"], tile, overlap, out, *how)
        cases.more = cases.kid(features, reference)
        if reference:
            cases.rule = kid_rule(features, len(cases.records), len(reference))
        return cases

    def report(self, model: nn.Module, about, root: Path, cases: Cases, options: EnhanceConfig) -> None:
        out, count = Path(options.out), len(cases.records) + len(cases.without)
        pictures(out, root, cases, _strength(options), _filters(about))
        log.say(f"{count} images, {len(cases.unreadable)} unreadable: {out / 'enhanced'}, {out / 'comparison.png'}")
        log.say(f"KID: {cases.rule}")
        if "ssim" in cases.rows[0]:
            write_cases(out, cases.outcome())

    def evaluation_protocol(self, model: nn.Module, about, cases: Cases, options: EnhanceConfig):
        strength = _strength(options)
        return (
            figures.RULES
            | filters.rule(_filters(about), bool(about.get("filters")))
            | {
                "tile": options.tile or about["tile"],
                "pairs": "given" if strength is None else f"degraded with strength {strength:g}",
                "kid": cases.rule,
                "segmenter": options.segmenter or "none",
                "verdict": verdict(figures.evaluate([cases.outcome()])),
            }
        )


def _strength(options: EnhanceConfig) -> float | None:
    """Of the degradation an evaluation asks for; None without one."""
    return degradation.strength_of(options.degrade) if options.degrade else None


def _filters(about: dict) -> dict[str, float]:
    """Strengths of the filters that were chosen in training; the usual ones where a file says none."""
    return about.get("filters") or filters.USUAL


TASK = Generation()
INSIDE = "branch.encoder."  # our encoder, among an enhancer's tensors


@dataclass
class Enhancer:
    """A trained generator and how it is used; the further arguments of `enhance` and `enhance_all`."""

    model: nn.Module
    size: int  # longer side at which the network works, px
    tile: int
    overlap: int

    @property
    def settings(self) -> tuple[int, int, int]:
        """Packed size, tile and overlap, px."""
        return self.size, self.tile, self.overlap


def load_enhancer(path: str | Path) -> Enhancer:
    """An enhancer (low to high quality) from its file or run folder, ready to use."""
    model, about = TASK.load(path)
    return Enhancer(model, about["size"], about["tile"], about["overlap"])
