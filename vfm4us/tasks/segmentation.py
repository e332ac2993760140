"""Segmentation: an encoder, a DeepLabv3+ or U-Net decoder, and figures at the original size of every image.

    result = segmentation.run_seeds(config)        # one run folder per seed below logs/<name>, then one table of all

Trained on packed images of equal size, the epoch chosen by validation Dice at that size. Tested once, image by image: read from
its file, padded as in training, the logits cut to what is no padding, resized to the image's own size, and only then compared
with the mask as its file has it.
"""

import csv
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from vfm4us import checkpoints, plots
from vfm4us.augment import PatchConfig, PatchSampler, ViewConfig
from vfm4us.checkpoints import load_encoder
from vfm4us.config import option, section, to_dict
from vfm4us.data.dataset import is_prepared
from vfm4us.data.decode import read_record
from vfm4us.data.images import image_array, image_batch, image_records
from vfm4us.data.masks import CLASS_LIMIT, read_masks
from vfm4us.data.records import Record
from vfm4us.data.sources import source_root
from vfm4us.encoders import Encoder
from vfm4us.evaluation import statistics
from vfm4us.runtime.device import autocast, choose_device
from vfm4us.runtime.run import RunFolder
from vfm4us.tasks import base
from vfm4us.tasks.base import TaskConfig
from vfm4us.tasks.finetune import FinetuneConfig, Finetuner, batches_of, make_encoder

IGNORED = 255  # in a target: padding, which counts nowhere
MEASURES = ("dice", "iou", "hd95", "asd")
RULES = {
    "resolution": "original size of each image; distances in its pixels",
    "foreground": "background is no class; a figure is taken per image and class, averaged over images, then over classes",
    "empty_masks": "of an image and class: truth and prediction empty: Dice and IoU 1, distances 0; one of them empty: Dice and "
    "IoU 0, distances the image's diagonal; both kinds are counted",
    "present": "only images in whose truth the class occurs",
    "hd95": "the larger of the two directions' 95th percentiles of the distance between outlines",
    "asd": "average symmetric distance between outlines",
    "pooled_with_background": "pixels of all images and classes, background among them, thrown together (pixel accuracy): what "
    "some publications call Dice; not comparable with the others",
}


@dataclass
class DataConfig(base.DataConfig):
    classes: list[str] = option(
        [], "names of the masks' classes 1, 2, ...; empty: numbered as the training masks have them"
    )
    join: bool = option(False, "all classes of the masks as one")


@dataclass
class SegmentationConfig(TaskConfig):
    name: str = option("segmentation", "the runs lie in logs/<name>/seed-<n>")
    decoder: str = option("deeplabv3plus", "what turns features into masks", choices=["deeplabv3plus", "unet"])
    decoder_width: int = option(
        256,
        "its channels; of a U-Net those of the coarsest level, halved at each finer one down to 16",
        low=16,
        high=4096,
    )
    atrous_rates: list[int] = option([12, 24, 36], "three dilations of DeepLabv3+, px of a map at 1/16 of data.size")
    dice_weight: float = option(1.0, "of the soft Dice loss, beside a cross-entropy of weight 1", low=0.0)
    flips: bool = option(False, "average the prediction with that of the mirrored image when testing")
    data: DataConfig = section(DataConfig, "what is segmented")
    finetune: FinetuneConfig = section(FinetuneConfig, "the training loop", learning_rate=3e-3)
    augment: ViewConfig = section(
        ViewConfig,
        "of training images, and of their masks where it moves pixels",
        scale_low=0.5,
        scale_high=1.0,
        ratio=1.2,
        jitter=0.5,
        blur=0.1,
        speckle=0.0,
        depth_gain=0.1,
    )


# ---- model ----------------------------------------------------------------------------------------------------------


class Segmenter(nn.Module):
    """Encoder and decoder: images (N, 1 or 3, H, W) in [0, 1] -> logits (N, 1 + classes, H, W), the first of background.

    Decoders are those of segmentation-models-pytorch, fed by our encoder's pyramid, so that every encoder tensor is the loaded one.
    DeepLabv3+ lets the last stage of a ResNet work at stride 16, dilated; its tensors stay what they are.
    """

    def __init__(
        self, encoder: Encoder, classes: list[str], decoder: str, width: int, rates: list[int], join: bool = False
    ):
        super().__init__()
        if len(rates) != 3 or min(rates) < 1:
            raise ValueError(f"atrous_rates: {rates} are not three positive numbers, e.g. [12, 24, 36]")
        self.encoder, self.classes, self.join = encoder, classes, join  # join: all classes of the masks are one here
        if decoder == "deeplabv3plus":
            encoder.dilate()
        self.head = Decoder(encoder, 1 + len(classes), decoder, width, rates)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % 32, 0, -height % 32))  # the coarsest stride
        return self.head(padded, self.encoder.pyramid(padded))[..., :height, :width]


class Decoder(nn.Module):
    """(x, feature maps from fine to coarse) -> logits at the size of x."""

    def __init__(self, encoder: Encoder, outputs: int, kind: str, width: int, rates: list[int]):
        super().__init__()
        from segmentation_models_pytorch.base import SegmentationHead, initialization
        from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        full = encoder.width
        if len(encoder.channels) > 1:
            self.neck, channels = None, list(encoder.channels)  # strides 2 to 32
        elif kind == "unet":
            self.neck = FeaturePyramid(full, steps=3)
            channels = self.neck.channels  # strides 2 to 16
        else:
            self.neck = FeaturePyramid(full, steps=2)
            channels = [0, *self.neck.channels]  # this decoder does not look at stride 2
        channels = [encoder.spec.in_channels, *channels]
        depth = len(channels) - 1
        if kind == "unet":
            widths = [max(16, width >> level) for level in range(depth)]
            self.decoder = UnetDecoder(channels, widths, n_blocks=depth)
            self.segmentation_head = SegmentationHead(widths[-1], outputs)
        else:
            self.decoder = DeepLabV3PlusDecoder(
                channels, depth, width, rates, 16, aspp_separable=True, aspp_dropout=0.5
            )
            self.segmentation_head = SegmentationHead(width, outputs, kernel_size=1, upsampling=4)
        initialization.initialize_decoder(self.decoder)
        initialization.initialize_head(self.segmentation_head)

    def forward(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        if self.neck is not None:
            maps = self.neck(maps[-1])
            maps = maps if len(maps) == 4 else [maps[0], *maps]
        logits = self.segmentation_head(self.decoder([x, *maps]))
        if logits.shape[-2:] != x.shape[-2:]:  # tokens of 14 px, or an encoder that resamples its input
            logits = F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)
        return logits


class FeaturePyramid(nn.Module):
    """One map of a transformer's tokens (N, C, h, w) -> 1 + steps, from 2^steps times its size down to its own.

    The simple feature pyramid of ViTDet (Li et al. 2022, arXiv 2203.16527), its transposed convolutions in a chain.
    """

    def __init__(self, width: int, steps: int):
        super().__init__()
        self.channels = [64, 128, 256, width][-1 - steps :]
        self.steps = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(coarse, fine, 2, stride=2, bias=False), nn.BatchNorm2d(fine), nn.GELU())
            for fine, coarse in zip(self.channels[-2::-1], self.channels[:0:-1], strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [x]
        for step in self.steps:
            maps.append(step(maps[-1]))
        return maps[::-1]


def overlap_loss(logits: Tensor, target: Tensor, dice_weight: float = 1.0) -> Tensor:
    """Cross-entropy over pixels plus 1 - soft Dice, of each image and foreground class that it holds; padding counts in neither.

    logits (N, 1 + K, H, W), target (N, H, W) class numbers or IGNORED. Soft Dice: (2 sum p t + 1) / (sum p + sum t + 1), sums over
    pixels. Where a class is absent only the cross-entropy speaks: with a Dice term of their own many empty masks teach to predict
    nothing at all.
    """
    logits, target = logits.float(), target.long()
    inside = target != IGNORED
    entropy = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum") / inside.sum().clamp(min=1)
    truth = F.one_hot(target * inside, logits.shape[1]).movedim(-1, 1)[:, 1:] * inside[:, None]
    predicted = logits.softmax(1)[:, 1:] * inside[:, None]
    both, area = (predicted * truth).sum((2, 3)), truth.sum((2, 3))  # (N, K)
    dice = (2 * both + 1) / (predicted.sum((2, 3)) + area + 1)
    there = area > 0
    return entropy + dice_weight * ((1 - dice) * there).sum() / there.sum().clamp(min=1)


# ---- data -----------------------------------------------------------------------------------------------------------


class MaskedData:
    """A prepared dataset as a segmentation task: packed masks, the rows of each split, and where the files lie."""

    def __init__(self, config: DataConfig, seed: int):
        self.dataset = base.open_dataset(
            config,
            "a folder with images/ and masks/, a CSV manifest with a mask column, a published or a prepared dataset",
        )
        d, self.join = self.dataset, config.join
        if d.masks is None:
            raise ValueError(
                f"{config.path} has no masks: give images/ with masks/ of the same names, or a CSV manifest with "
                "the columns path and mask"
            )
        masked = np.array([bool(record.mask) for record in d.records])
        self.without = [
            record.path for record, m in zip(d.records, masked, strict=True) if not m and record.split != "exclude"
        ]
        used = {split: d.indices(split)[masked[d.indices(split)]] for split in ("train", "val", "test")}
        for split, rows in used.items():
            if not len(rows):
                raise ValueError(
                    f"{config.path} has no {split} images with masks: give it more groups, or a split column"
                )
        present = self._presence(np.concatenate(list(used.values())))
        self.classes = self._names(config, present[used["train"]].any(0), present.any(0))
        self.present = present[:, 1 : 1 + len(self.classes)]  # (N, K), in the packed masks
        patterns = np.unique(self.present, axis=0, return_inverse=True)[1].reshape(-1)
        self.train = base.few_labels(used["train"], patterns, config.labels, seed)
        self.val, self.test = used["val"], used["test"]
        source = Path(d.description["source"] if is_prepared(config.path) else config.path)
        self.root = source_root(source)
        first = d.records[self.test[0]]
        if not (self.root / first.path).is_file():
            raise FileNotFoundError(
                f"{self.root / first.path} is not there: tests are made at the original size, from the files that "
                f"{config.path} was packed from; give their folder as data.path"
            )

    def _presence(self, rows: np.ndarray) -> np.ndarray:
        """(N, CLASS_LIMIT + 1) whether a class occurs in an image's packed mask; False for images not in `rows`."""
        present = np.zeros((len(self.dataset), CLASS_LIMIT + 1), bool)
        for row in rows:
            mask = self.dataset.masks[row]
            present[row] = np.bincount((mask > 0).ravel() if self.join else mask.ravel(), minlength=CLASS_LIMIT + 1) > 0
        return present

    def _names(self, config: DataConfig, trained: np.ndarray, found: np.ndarray) -> list[str]:
        numbers = np.flatnonzero(trained[1:]) + 1
        if not len(numbers):
            raise ValueError(f"{config.path}: every training mask is empty")
        count = len(config.classes) or int(numbers.max())
        if absent := sorted(set(range(1, count + 1)) - set(numbers.tolist())):
            raise ValueError(
                f"{config.path}: no training mask holds class {absent[0]} (they hold {', '.join(map(str, numbers))}): name "
                "fewer classes in data.classes, renumber the masks, or data.join=true"
            )
        if (most := int(np.flatnonzero(found).max())) > count:
            raise ValueError(
                f"{config.path}: masks hold class {most}, but data.classes names {count}: name it, or data.join=true"
            )
        return list(config.classes) or (
            ["foreground"] if count == 1 else [f"class {number}" for number in range(1, count + 1)]
        )

    def images(self, rows: np.ndarray) -> Tensor:
        """(N, S, S) uint8."""
        return torch.from_numpy(self.dataset.images[rows])

    def targets(self, rows: np.ndarray) -> Tensor:
        """(N, S, S) uint8 class numbers; IGNORED on padding."""
        masks = self.dataset.masks[rows]
        masks = (masks > 0).astype(np.uint8) if self.join else masks.copy()
        for mask, (top, left, height, width) in zip(masks, self.dataset.valid[rows], strict=True):
            mask[:top], mask[:, :left], mask[top + height :], mask[:, left + width :] = (IGNORED,) * 4
        return torch.from_numpy(masks)


# ---- one run --------------------------------------------------------------------------------------------------------


def run_seeds(config: SegmentationConfig, say=print) -> dict[str, dict]:
    """Every seed's run, then metrics.json and table.md of all of them in logs/<name>."""
    folders = base.run_each_seed(config, lambda one, folder: run_seed(one, folder, say), say)
    result = evaluate([base.read_outcome(folder) for folder in folders])
    base.write_summary(folders, config.seeds, result)
    return result


def run_seed(config: SegmentationConfig, where: Path, say=print) -> None:
    """Train (or continue) and test the run of `config.seed` in the folder `where`."""
    device = choose_device(config.device)
    data = MaskedData(config.data, config.seed)
    encoder, report = make_encoder(config.encoder, config.seed)
    folder = RunFolder(where, config, config.resume)
    try:
        counts = ", ".join(
            f"{len(rows)} {name}" for name, rows in (("train", data.train), ("val", data.val), ("test", data.test))
        )
        without = f", {len(data.without)} without a mask left out (e.g. {data.without[0]})" if data.without else ""
        say(f"{where}: {', '.join(data.classes)}; {counts}{without}")
        say(f"encoder: {report or 'random ' + config.encoder.name}")
        duplicates = base.report_duplicates(data.dataset, config.data, where)
        say(duplicates)
        torch.manual_seed(config.seed)
        model = Segmenter(
            encoder, data.classes, config.decoder, config.decoder_width, config.atrous_rates, config.data.join
        )
        model, chosen = _train(config, data, model, folder, device)
        save_segmenter(where / "segmenter.pt", model, config, data.dataset.size)
        records = [data.dataset.records[i] for i in data.test]
        cases = examine(model, data.root, records, data.dataset.size, where, config.flips)
        if cases.unreadable:
            path, reason = cases.unreadable[0]
            raise ValueError(f"{data.root / path}: {reason}; it was readable when it was packed")
        outcome = cases.outcome(model.classes) | {k: np.array(chosen[k]) for k in ("val_dice_present", "val_dice")}
        write_cases(where, outcome)
        base.write_outcome(where, outcome)
        if config.pictures:
            pictures(where, data.root, outcome, data.dataset.size, model.join)
        base.write_metrics(
            where,
            "segmentation",
            config,
            data.dataset,
            evaluate([outcome]),
            **RULES,
            decoder=config.decoder,
            classes=data.classes,
            flips=config.flips,
            duplicates=duplicates,
            training_images=len(data.train),
            test_images=len(data.test),
            selection=f"validation Dice where a class is there, at {data.dataset.size} px",
        )
    finally:
        folder.close()


def _train(
    config: SegmentationConfig, data: MaskedData, model: Segmenter, folder: RunFolder, device
) -> tuple[Segmenter, dict]:
    """The model of the epoch that did best in validation, and what it did there."""
    size = data.dataset.size
    sampler = PatchSampler(PatchConfig(count=1, size=size, **to_dict(config.augment)))
    frame = torch.tensor([[0, 0, size, size]])

    def loss(network: nn.Module, rows: np.ndarray, generator: torch.Generator) -> Tensor:
        images, targets = data.images(rows).to(device), data.targets(rows).to(device)
        x, under = sampler(images, frame.expand(len(rows), 4), generator, masks=targets)
        return overlap_loss(network(x[0]), under[0], config.dice_weight)

    def validate(network: nn.Module) -> dict[str, float]:
        overlap, losses = [], []
        for part in np.array_split(data.val, max(1, len(data.val) // 32)):
            target = data.targets(part).to(device)
            with autocast(device, config.precision):
                logits = predict(network, data.images(part).to(device), config.flips)
            overlap.append(packed_dice(logits.argmax(1), target, len(data.classes)).cpu())
            losses.append(float(overlap_loss(logits, target, config.dice_weight)) * len(part))
        return validation_score(
            torch.cat(overlap), torch.from_numpy(data.present[data.val]), sum(losses) / len(data.val)
        )

    tuner = Finetuner(
        model, config.finetune, folder, device, config.seed, config.encoder.freeze_epochs, config.precision
    )
    model = tuner.fit(
        lambda epoch: batches_of([data.train], [1.0], config.finetune, config.seed, epoch), loss, validate
    )
    lines = folder.metrics()
    best = max((line for line in lines if line["kind"] == "monitor"), key=lambda line: line["score"])
    plots.finetuning_curve(folder.folder / "curve.png", lines, "val_dice_present", best["step"])
    return model, best


def validation_score(dice: Tensor, present: Tensor, loss: float) -> dict[str, float]:
    """What an epoch is chosen by: Dice (N, K) where the class is present (N, K), averaged as in the test; ties go to the loss.

    Over all images, among many empty masks, a model that predicts nothing would be the best.
    """
    everywhere = float(dice.mean())
    each = (dice * present).sum(0) / present.sum(0).clamp(min=1)
    where = float(each[present.any(0)].mean()) if present.any() else everywhere
    return {
        "score": where - 1e-3 * min(loss, 10.0),
        "val_dice_present": where,
        "val_dice": everywhere,
        "val_loss": loss,
    }


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, flips: bool = False) -> Tensor:
    """Logits (N, 1 + K, S, S), float32, of uint8 (N, S, S) or of (N, 1 or 3, S, S), in evaluation mode."""
    model.eval()
    x = images[:, None] if images.ndim == 3 else images
    x = x.float().div(255) if x.dtype == torch.uint8 else x.float()
    logits = model(x).float()
    return (logits + model(x.flip(-1)).float().flip(-1)) / 2 if flips else logits


def packed_dice(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Dice (N, K) of class numbers (N, S, S) by the rule for empty masks, padding left out."""
    inside = target != IGNORED
    rows = []
    for number in range(1, classes + 1):
        p, t = (predicted == number) & inside, target == number
        total = p.sum((1, 2)) + t.sum((1, 2))
        rows.append(torch.where(total > 0, 2 * (p & t).sum((1, 2)) / total.clamp(min=1), 1.0))
    return torch.stack(rows, dim=1)


# ---- at the original size -------------------------------------------------------------------------------------------


def segment(model: Segmenter, images, size: int, flips: bool = False, batch_size: int = 16) -> Iterator[np.ndarray]:
    """Class numbers uint8 (H, W), 0 is background, of each image at its own size, one after the other.

    images: a folder, a CSV manifest, a file, or a list of what `image_batch` takes: paths, PIL images, arrays. Each is resized
    and padded to `size` px as the training images were; the logits are cut to what is no padding and resized bilinearly.
    """
    if isinstance(images, str | Path):
        images = image_records(images)
    images = list(images)
    device = next(model.parameters()).device
    for start in range(0, len(images), batch_size):
        arrays = [image_array(image) for image in images[start : start + batch_size]]
        batch, valid = image_batch(arrays, size, frame=True)
        logits = predict(model, batch.to(device), flips)
        for array, own, (top, left, height, width) in zip(arrays, logits, valid.tolist(), strict=True):
            part = own[None, :, top : top + height, left : left + width]
            part = F.interpolate(part, array.shape[:2], mode="bilinear", align_corners=False)
            yield part[0].argmax(0).to(torch.uint8).cpu().numpy()


def compare(predicted: np.ndarray, truth: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """Dice, IoU, HD95 and ASD (K,) of two masks (H, W), by the rules in RULES; and the pixels behind them.

    Measured by MONAI. truth_pixels and predicted_pixels (K,); right and pixels: scalars over all classes and background.
    """
    from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance, compute_iou

    numbers = torch.arange(1, classes + 1).view(1, -1, 1, 1)
    p, t = (torch.tensor(mask)[None, None] == numbers for mask in (predicted, truth))  # (1, K, H, W)
    sizes = {"truth_pixels": t.sum((0, 2, 3)).numpy(), "predicted_pixels": p.sum((0, 2, 3)).numpy()}
    found = {
        "dice": compute_dice(p.float(), t.float(), ignore_empty=False)[0].double().numpy(),
        "iou": compute_iou(p.float(), t.float(), ignore_empty=False)[0].double().numpy(),
    }
    some = [(sizes[name] > 0) for name in ("truth_pixels", "predicted_pixels")]
    both, one = some[0] & some[1], some[0] ^ some[1]
    for name in ("hd95", "asd"):
        found[name] = np.where(one, float(np.hypot(*truth.shape)), 0.0)
    if both.any():
        pair = p[:, both].float(), t[:, both].float()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI warns of an argument that it gives itself
            far = compute_hausdorff_distance(*pair, include_background=True, percentile=95)
            mean = compute_average_surface_distance(*pair, include_background=True, symmetric=True)
        found["hd95"][both], found["asd"][both] = far[0].double().numpy(), mean[0].double().numpy()
    return found | sizes | {"right": np.int64((predicted == truth).sum()), "pixels": np.int64(truth.size)}


@dataclass
class Cases:
    """What `examine` found: one row of `compare` per image with a mask, its record, and what could not be read."""

    records: list[Record] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)
    predicted: list[str] = field(default_factory=list)  # masks, below the output folder
    without: list[tuple[Record, str]] = field(default_factory=list)  # images without a mask, and what was predicted
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def outcome(self, classes: list[str]) -> statistics.Outcome:
        """Arrays over images (N,) and classes (N, K), for test.npz."""
        records = self.records
        return {
            "paths": np.array([r.path for r in records]),
            "groups": np.array([r.group or r.id for r in records]),
            "truth": np.array([r.mask for r in records]),
            "predicted": np.array(self.predicted),
            "classes": np.array(classes),
            "sizes": np.array([(r.height, r.width) for r in records]),
        } | {name: np.array([row[name] for row in self.rows]) for name in self.rows[0]}


def examine(
    model: Segmenter, root: Path, records: list[Record], size: int, out: Path, flips: bool = False, batch_size: int = 16
) -> Cases:
    """Segment the images of `records` from their files, write every mask below out/predicted, compare where there is a truth."""
    cases, classes, taken = Cases(), len(model.classes), set()
    for start in tqdm(range(0, len(records), batch_size), unit="batch", desc="segmenting"):
        good = []
        for record in records[start : start + batch_size]:
            try:
                image = read_record(root, record)
                good.append((record, image, read_masks(root, record, image, size)))
            except ValueError as error:
                cases.unreadable.append((record.path, str(error)))
        masks = segment(model, [image for _, image, _ in good], size, flips)
        for (record, image, truth), predicted in zip(good, masks, strict=True):
            record.height, record.width = image.shape
            name = f"predicted/{base.file_name(record.id, taken)}.png"
            write_mask(out / name, predicted)
            if truth is None:
                cases.without.append((record, name))
                continue
            truth = (truth > 0).astype(np.uint8) if model.join else truth
            if truth.max() > classes:
                raise ValueError(
                    f"{root / record.mask_paths[0]} holds class {truth.max()}; the model knows {classes} "
                    f"({', '.join(model.classes)}): name it in data.classes, or join all classes"
                )
            cases.records.append(record)
            cases.rows.append(compare(predicted, truth, classes))
            cases.predicted.append(name)
    return cases


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Class numbers as a PNG with a palette: a picture to look at, and a mask that this project reads back as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    image.putpalette([0, 0, 0, *(value for colour in plots.CLASS_COLOURS for value in colour)])
    image.save(path, optimize=True)


# ---- figures --------------------------------------------------------------------------------------------------------


def outcome_scores(outcome: statistics.Outcome, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Every figure (R,) of what one seed's model did, in each row of counts (R, N), how often an image occurs."""
    weight, there = counts.astype(np.float64), outcome["truth_pixels"] > 0  # (R, N), (N, K)
    names, result = outcome["classes"].tolist(), {}

    def mean(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # a resample may hold no such image
            return weight[:, rows] @ values[rows] / weight[:, rows].sum(1)

    every, occurring = np.ones(len(there), bool), [k for k in range(len(names)) if there[:, k].any()]
    for measure in MEASURES:
        result[measure] = np.mean([mean(outcome[measure][:, k], every) for k in range(len(names))], axis=0)
    for measure in MEASURES if occurring else ():
        each = {k: mean(outcome[measure][:, k], there[:, k]) for k in occurring}
        result[f"{measure}_present"] = np.mean(list(each.values()), axis=0)
        if len(names) > 1:
            result |= {f"{measure}_present {names[k]}": value for k, value in each.items()}
    if not there.all():
        left = (outcome["predicted_pixels"] == 0) & ~there
        with np.errstate(invalid="ignore"):
            result["absent_left_empty"] = weight @ left.sum(1) / (weight @ (~there).sum(1))
    result["pooled_with_background"] = weight @ outcome["right"] / (weight @ outcome["pixels"])
    return result


def evaluate(outcomes: list[statistics.Outcome]) -> dict[str, dict]:
    """Every figure of several seeds on the same images, with 95 % intervals, and how often masks were empty.

    Those named val_ are of the validation images at the packed size: for choosing between settings, since the test split is not
    for that; the epoch was chosen on the same images, so they flatter.
    """
    names = outcome_scores(outcomes[0], np.ones((1, len(outcomes[0]["paths"]))))
    distances = tuple(name for name in names if name.startswith(("hd95", "asd")))
    result = statistics.figures(outcome_scores, outcomes, unbounded=distances)
    empty = [(o["truth_pixels"] == 0, o["predicted_pixels"] == 0) for o in outcomes]
    for name, cases in (
        ("both_empty", [int((t & p).sum()) for t, p in empty]),
        ("only_truth_empty", [int((t & ~p).sum()) for t, p in empty]),
        ("only_prediction_empty", [int((~t & p).sum()) for t, p in empty]),
    ):
        result[name] = {"mean": float(np.mean(cases)), "per_seed": cases}
    for name in ("val_dice_present", "val_dice"):
        if all(name in o for o in outcomes):
            values = [float(o[name]) for o in outcomes]
            result[name] = {"mean": float(np.mean(values)), "per_seed": values}
    return result


def write_cases(out: Path, outcome: statistics.Outcome) -> None:
    """per_image.csv: a row per image and class."""
    names = outcome["classes"].tolist()
    with open(out / "per_image.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            [
                "path",
                "group",
                "class",
                *MEASURES,
                "height",
                "width",
                "truth_pixels",
                "predicted_pixels",
                "truth_empty",
                "prediction_empty",
                "predicted",
            ]
        )
        for i, path in enumerate(outcome["paths"]):
            for k, name in enumerate(names):
                pixels = [int(outcome[side][i, k]) for side in ("truth_pixels", "predicted_pixels")]
                measured = [f"{outcome[measure][i, k]:.6f}" for measure in MEASURES]
                writer.writerow(
                    [
                        path,
                        outcome["groups"][i],
                        name,
                        *measured,
                        *outcome["sizes"][i].tolist(),
                        *pixels,
                        *(int(count == 0) for count in pixels),
                        outcome["predicted"][i],
                    ]
                )


# ---- pictures -------------------------------------------------------------------------------------------------------


def pictures(out: Path, root: Path, outcome: statistics.Outcome, size: int, join: bool = False) -> None:
    """overlays.png: the best, middle and worst three; dice.png: Dice as a histogram and against the structure's size."""
    there, names, area = outcome["truth_pixels"] > 0, outcome["classes"].tolist(), outcome["sizes"].prod(1)
    plots.dice_by_size(
        out / "dice.png",
        {
            name: (outcome["dice"][there[:, k], k], (outcome["truth_pixels"][:, k] / area)[there[:, k]])
            for k, name in enumerate(names)
        },
    )
    overlap = np.where(there, outcome["dice"], 0).sum(1) / there.sum(1).clip(1)  # of an image's own classes
    order = sorted(np.flatnonzero(there.any(1)).tolist(), key=lambda i: -overlap[i])
    middle = len(order) // 2 - 1
    chosen = [("", i) for i in order]
    if len(order) > 9:
        places = (("best", 0), ("middle", middle), ("worst", len(order) - 3))
        chosen = [(word, i) for word, first in places for i in order[first : first + 3]]
    images, truths, predictions, titles = [], [], [], []
    for word, i in chosen:
        record = Record(id="", path=str(outcome["paths"][i]), mask=str(outcome["truth"][i]))
        images.append(read_record(root, record))
        truth = read_masks(root, record, images[-1], size)
        truths.append((truth > 0).astype(np.uint8) if join else truth)
        predictions.append(np.asarray(Image.open(out / str(outcome["predicted"][i]))))
        titles.append(f"{word} {overlap[i]:.3f}   {Path(record.path).stem}".strip())
    if chosen:
        plots.overlays(out / "overlays.png", images, predictions, titles, names, truths)


# ---- a trained segmenter as a file ----------------------------------------------------------------------------------


def save_segmenter(path: Path, model: Segmenter, config: SegmentationConfig, size: int) -> None:
    """`module.base_encoder.*` as in every checkpoint, beside it the decoder, the classes and the `size` of training images, px."""
    tensors = {checkpoints.ENCODER_PREFIX + k: v for k, v in model.encoder.published_state().items()}
    tensors |= {f"module.head.{k}": v.detach().cpu().contiguous() for k, v in model.head.state_dict().items()}
    checkpoints.save(
        path,
        {
            "state_dict": tensors,
            "encoder": model.encoder.spec_dict(),
            "task": "segmentation",
            "classes": model.classes,
            "decoder": {"kind": config.decoder, "width": config.decoder_width, "rates": config.atrous_rates},
            "size": size,
            "in_channels": model.encoder.spec.in_channels,
            "join": config.data.join,
            "config": to_dict(config),
        },
    )


def load_segmenter(path: str | Path) -> tuple[Segmenter, int]:
    """A segmenter from its file or run folder, ready to predict, and the side of the images it was trained on, px."""
    path = Path(path)
    if path.is_dir():
        inside = [path / "segmenter.pt", *sorted(path.glob("seed-*/segmenter.pt"))]
        path = next((p for p in inside if p.is_file()), inside[0])
    state = checkpoints.read(path)
    if state.get("task") != "segmentation":
        raise ValueError(
            f"{path} is no segmenter (Downstream/Segmentation/train.py writes segmenter.pt into its run folder)"
        )
    decoder = state["decoder"]
    encoder = load_encoder(state, state["in_channels"])
    model = Segmenter(encoder, state["classes"], decoder["kind"], decoder["width"], decoder["rates"], state["join"])
    tensors = {
        k.removeprefix("module.head."): v for k, v in state["state_dict"].items() if k.startswith("module.head.")
    }
    model.head.load_state_dict(tensors)
    return model.eval(), state["size"]
