"""Segmentation: an encoder, a DeepLabv3+ or U-Net decoder, and figures at the original size of every image.

    result = segmentation.TASK.run_seeds(config)        # one run folder per seed below logs/<name>, then one table of all
    model, size = segmentation.load_segmenter(FILE)
    masks = segmentation.segment(model, images, size)

Trained on packed images of equal size, the epoch chosen by validation Dice at that size. Tested once, image by image: read from
its file, padded as in training, the logits cut to what is no padding, resized to the image's own size, and only then compared
with the mask as its file has it.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from vfm4us import log, plots
from vfm4us.augment import PatchSampler, moved
from vfm4us.config import to_dict
from vfm4us.data.codings import read_as_trained
from vfm4us.data.csv_files import write_rows
from vfm4us.data.decode import read_record
from vfm4us.data.images import given_images, image_array, image_batch
from vfm4us.data.masks import MaskCoding, read_masks
from vfm4us.data.records import Record
from vfm4us.encoders import Encoder
from vfm4us.evaluation import segmentation as figures
from vfm4us.evaluation import statistics
from vfm4us.evaluation.segmentation import IGNORED, MEASURES, compare, packed_dice, validation_score
from vfm4us.runtime.device import autocast
from vfm4us.runtime.run import RunFolder
from vfm4us.tasks import base
from vfm4us.tasks.base import Cases, Task
from vfm4us.tasks.decoders import Decoder
from vfm4us.tasks.finetune import Finetuner, batches_of
from vfm4us.tasks.sections import MaskedDataConfig, SegmentationConfig, SegmentConfig
from vfm4us.views import PatchConfig

# ---- model ----------------------------------------------------------------------------------------------------------


class Segmenter(nn.Module):
    """Encoder and decoder: images (N, 1 or 3, H, W) in [0, 1] -> logits (N, 1 + classes, H, W), the first of background.

    Decoders are those of segmentation-models-pytorch, fed by our encoder's pyramid, so that every encoder tensor is the loaded one.
    DeepLabv3+ lets the last stage of a ResNet work at stride 16, dilated; its tensors stay what they are.
    """

    mask_coding: dict | None = None  # what the values of the masks it was trained with mean (data.masks.MaskCoding)

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
    present = area > 0
    return entropy + dice_weight * ((1 - dice) * present).sum() / present.sum().clamp(min=1)


# ---- data -----------------------------------------------------------------------------------------------------------


class MaskedData:
    """A prepared dataset as a segmentation task: packed masks, the rows of each split, and where the files lie."""

    def __init__(self, config: MaskedDataConfig, seed: int):
        self.dataset = base.open_dataset(
            config,
            "a folder with images/ and masks/, a CSV manifest with a mask column, a published or a prepared dataset",
            seed,
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
        self.train = base.few_labels(used["train"], patterns, config.label_share, seed)
        self.val, self.test = used["val"], used["test"]
        self.root = base.files_of(d, config, self.test)

    def _presence(self, rows: np.ndarray) -> np.ndarray:
        """(N, IGNORED) whether a class occurs in an image's packed mask; False for images not in `rows`."""
        present = np.zeros((len(self.dataset), IGNORED), bool)
        for row in rows:
            mask = self._joined(self.dataset.masks[row])
            present[row] = np.bincount(mask.ravel(), minlength=IGNORED + 1)[:IGNORED] > 0
        return present

    def _joined(self, masks: np.ndarray) -> np.ndarray:
        """All classes as one where data.join says so; IGNORED stays."""
        return np.where(masks == IGNORED, masks, masks > 0).astype(np.uint8) if self.join else masks

    def _names(self, config: MaskedDataConfig, trained: np.ndarray, values: np.ndarray) -> list[str]:
        numbers = np.flatnonzero(trained[1:]) + 1
        if not len(numbers):
            raise ValueError(f"{config.path}: every training mask is empty")
        count = len(config.classes) or int(numbers.max())
        if absent := sorted(set(range(1, count + 1)) - set(numbers.tolist())):
            raise ValueError(
                f"{config.path}: no training mask holds class {absent[0]} (they hold {', '.join(map(str, numbers))}): name "
                "fewer classes in data.classes, renumber the masks, or data.join=true"
            )
        if (most := int(np.flatnonzero(values).max())) > count:
            raise ValueError(
                f"{config.path}: masks hold class {most}, but data.classes names {count}: name it, or data.join=true"
            )
        named = list(config.classes) or list((self.dataset.mask_coding or {}).get("names", ()))
        if len(named) == count and not self.join:
            return named
        return list(config.classes) or (
            ["foreground"] if count == 1 else [f"class {number}" for number in range(1, count + 1)]
        )

    def images(self, rows: np.ndarray) -> Tensor:
        """(N, S, S) uint8."""
        return torch.from_numpy(self.dataset.images[rows])

    def targets(self, rows: np.ndarray) -> Tensor:
        """(N, S, S) uint8 class numbers; IGNORED on padding, and where the data set says so."""
        masks = self.dataset.masks[rows]
        masks = self._joined(masks).copy()
        for mask, (top, left, height, width) in zip(masks, self.dataset.valid[rows], strict=True):
            mask[:top], mask[:, :left], mask[top + height :], mask[:, left + width :] = (IGNORED,) * 4
        return torch.from_numpy(masks)


# ---- training --------------------------------------------------------------------------------------------------------


def _train(
    config: SegmentationConfig, data: MaskedData, model: Segmenter, folder: RunFolder, device
) -> tuple[Segmenter, dict]:
    """The model of the epoch that did best in validation, and what it did there."""
    size = data.dataset.size
    sampler = PatchSampler(PatchConfig(count=1, size=size, **to_dict(config.augment)))
    frame = torch.tensor([[0, 0, size, size]])

    def loss(network: nn.Module, rows: np.ndarray, draws: torch.Generator) -> Tensor:
        images, targets = moved(data.images(rows), device), moved(data.targets(rows), device)
        x, under = sampler(images, frame.expand(len(rows), 4), draws, masks=targets)
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


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, flips: bool = False) -> Tensor:
    """Logits (N, 1 + K, S, S), float32, of uint8 (N, S, S) or of (N, 1 or 3, S, S), in evaluation mode."""
    model.eval()
    x = images[:, None] if images.ndim == 3 else images
    x = x.float().div(255) if x.dtype == torch.uint8 else x.float()
    logits = model(x).float()
    return (logits + model(x.flip(-1)).float().flip(-1)) / 2 if flips else logits


# ---- at the original size -------------------------------------------------------------------------------------------


def segment(model: Segmenter, images, size: int, flips: bool = False, batch_size: int = 16) -> Iterator[np.ndarray]:
    """Class numbers uint8 (H, W), 0 is background, of each image at its own size, one after the other.

    images: a folder, a CSV manifest, an image, or a list of such, as `image_batch` takes. Each is resized and padded to `size` px
    as the training images were; the logits are cut to what is no padding and resized bilinearly.
    """
    images = list(given_images(images))
    device = next(model.parameters()).device
    for start in range(0, len(images), batch_size):
        arrays = [image_array(image) for image in images[start : start + batch_size]]
        batch, valid = image_batch(arrays, size, frame=True)
        logits = predict(model, batch.to(device), flips)
        for array, scores, (top, left, height, width) in zip(arrays, logits, valid.tolist(), strict=True):
            part = scores[None, :, top : top + height, left : left + width]
            part = F.interpolate(part, array.shape[:2], mode="bilinear", align_corners=False)
            yield part[0].argmax(0).to(torch.uint8).cpu().numpy()


def examine(
    model: Segmenter, root: Path, records: list[Record], size: int, out: Path, flips: bool = False, batch_size: int = 16
) -> Cases:
    """Segment the images of `records` from their files, write every mask below out/predicted, compare where there is a truth."""
    cases, taken = Cases(more={"classes": np.array(model.classes)}), set()

    def image_and_masks(record: Record) -> tuple[np.ndarray, np.ndarray | None]:
        image = read_record(root, record)
        return image, read_masks(root, record, image, size)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in tqdm(range(0, len(records), batch_size), unit="batch", desc="segmenting"):
            readable = list(cases.readable(records[start : start + batch_size], image_and_masks))
            pairs = []
            masks = segment(model, [image for _, (image, _) in readable], size, flips)
            for (record, (image, truth)), predicted in zip(readable, masks, strict=True):
                record.height, record.width = image.shape
                name = f"predicted/{base.file_name(record.id, taken)}.png"
                write_mask(out / name, predicted)
                if truth is None:
                    cases.without.append((record, name))
                    continue
                cases.records.append(record)
                truth = known_classes(truth, model, root / record.mask_paths[0])
                pairs.append((predicted, truth, len(model.classes), spacing_of(record)))
                cases.rows.append({"truth": record.mask, "predicted": name})
            rows = cases.rows[len(cases.rows) - len(pairs) :]
            for row, measured in zip(rows, pool.map(lambda pair: compare(*pair), pairs), strict=True):
                row.update(measured)
    return cases


def known_classes(truth: np.ndarray, model: Segmenter, path: Path) -> np.ndarray:
    """A mask (H, W) as the model's classes, IGNORED where it is; ValueError that names the file where it holds others."""
    foreground = np.where(truth == IGNORED, 0, truth)
    if model.join:
        return np.where(truth == IGNORED, truth, foreground > 0).astype(np.uint8)
    if foreground.max() > len(model.classes):
        raise ValueError(
            f"{path} holds class {foreground.max()}; the model knows {len(model.classes)} "
            f"({', '.join(model.classes)}): name it in data.classes, or join all classes"
        )
    return truth


def spacing_of(record: Record) -> tuple[float, float] | None:
    """Row and column distance of the pixels of a record's image, mm; None where it is not known."""
    row, _, column = record.spacing_mm.partition(" ")
    return (float(row), float(column)) if column else None


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Class numbers as a PNG with a palette: a picture to look at, and a mask that this project reads back as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    image.putpalette([0, 0, 0, *(value for colour in plots.CLASS_COLOURS for value in colour)])
    image.save(path, optimize=True)


# ---- what is written -------------------------------------------------------------------------------------------------


def write_cases(out: Path, outcome: statistics.Outcome) -> None:
    """per_image.csv: a row per image and class."""
    names = outcome["classes"].tolist()
    about = ["height", "width", "truth_pixels", "predicted_pixels", "truth_empty", "prediction_empty", "predicted"]
    rows = []
    for i, path in enumerate(outcome["paths"]):
        for k, name in enumerate(names):
            pixels = [int(outcome[side][i, k]) for side in ("truth_pixels", "predicted_pixels")]
            measured = [f"{outcome[measure][i, k]:.6f}" for measure in MEASURES]
            empty = [int(count == 0) for count in pixels]
            sizes = outcome["sizes"][i].tolist()
            rows.append([path, outcome["groups"][i], name, *measured, *sizes, *pixels, *empty, outcome["predicted"][i]])
    write_rows(out / "per_image.csv", ["path", "group", "class", *MEASURES, *about], rows)


def pictures(out: Path, root: Path, cases: Cases, size: int, join: bool = False) -> None:
    """overlays.png: the best, middle and worst three; dice.png: Dice as a histogram and against the structure's size."""
    outcome = cases.outcome()
    present, names, area = outcome["truth_pixels"] > 0, outcome["classes"].tolist(), outcome["sizes"].prod(1)
    plots.dice_by_size(
        out / "dice.png",
        {
            name: (outcome["dice"][present[:, k], k], (outcome["truth_pixels"][:, k] / area)[present[:, k]])
            for k, name in enumerate(names)
        },
    )
    overlap = np.where(present, outcome["dice"], 0).sum(1) / present.sum(1).clip(1)  # of an image's own classes
    order = sorted(np.flatnonzero(present.any(1)).tolist(), key=lambda i: -overlap[i])
    middle = len(order) // 2 - 1
    chosen = [("", i) for i in order]
    if len(order) > 9:
        places = (("best", 0), ("middle", middle), ("worst", len(order) - 3))
        chosen = [(word, i) for word, first in places for i in order[first : first + 3]]
    images, truths, predictions, titles = [], [], [], []
    for word, i in chosen:
        record = cases.records[i]
        images.append(read_record(root, record))
        truth = read_masks(root, record, images[-1], size)
        truths.append(np.where(truth == IGNORED, 0, np.minimum(truth, 1) if join else truth))
        predictions.append(np.where(truth == IGNORED, 0, np.asarray(Image.open(out / str(outcome["predicted"][i])))))
        titles.append(f"{word} Dice {overlap[i]:.3f}   {Path(record.path).stem}".strip())
    if chosen:
        plots.overlays(out / "overlays.png", images, predictions, titles, names, truths)


# ---- the task -------------------------------------------------------------------------------------------------------


class Segmentation(Task):
    """The segmentation task: trains, tests and applies a segmenter on an encoder."""

    name, config = "segmentation", SegmentationConfig
    figures, file, model = figures, "segmenter.pt", "segmenter"
    truth = "mask"
    explained = "Downstream/Segmentation/README.md"

    def read(self, config: SegmentationConfig) -> MaskedData:
        return MaskedData(config.data, config.seed)

    def describe(self, data: MaskedData) -> str:
        counts = ", ".join(f"{len(getattr(data, split))} {split}" for split in ("train", "val", "test"))
        without = f", {len(data.without)} without a mask left out (e.g. {data.without[0]})" if data.without else ""
        return f"{', '.join(data.classes)}; {counts}{without}"

    def train(self, config: SegmentationConfig, data: MaskedData, encoder, folder, device):
        model, best = _train(config, data, make_segmenter(encoder, data.classes, config), folder, device)
        model.mask_coding = data.dataset.mask_coding
        return model, {name: np.array(best[name]) for name in ("val_dice_present", "val_dice")}

    def test(self, config: SegmentationConfig, data: MaskedData, model: Segmenter, where: Path, validated):
        records, size = [data.dataset.records[i] for i in data.test], data.dataset.size
        cases = examine(model, data.root, records, size, where, config.flips)
        cases.refuse_unreadable(data.root)
        outcome = cases.outcome()
        write_cases(where, outcome)
        if config.pictures:
            pictures(where, data.root, cases, size, model.join)
        return outcome

    def protocol(self, config: SegmentationConfig, data: MaskedData, outcome, result):
        return figures.RULES | {
            "decoder": config.decoder,
            "classes": data.classes,
            "flips": config.flips,
            "training_images": len(data.train),
            "test_images": len(data.test),
            "selection": f"validation Dice where a class is there, at {data.dataset.size} px",
        }

    def facts(self, model: Segmenter, config: SegmentationConfig):
        return {
            "classes": model.classes,
            "decoder": {"kind": config.decoder, "width": config.decoder_width, "rates": config.atrous_rates},
            "join": config.data.join,
            "mask_coding": {**model.mask_coding, "said": []} if model.mask_coding else None,  # said: names of files
        }

    def build(self, about, encoder: Encoder, head) -> Segmenter:
        kind, width, rates = (about["decoder"][key] for key in ("kind", "width", "rates"))
        model = Segmenter(encoder, about["classes"], kind, width, rates, about["join"])
        model.mask_coding = about.get("mask_coding")  # files of 0.2.0 and earlier lack it
        model.head.load_state_dict(head)
        return model

    def use(self, model: Segmenter, about, root: Path, records, options: SegmentConfig) -> Cases:
        masks_as_trained(model, records, options.checkpoint, options.data)
        return examine(model, root, records, about["size"], Path(options.out), options.flips)

    def report(self, model: Segmenter, about, root: Path, cases: Cases, options: SegmentConfig) -> None:
        """overlays/ of every image; per_image.csv and pictures where there are masks."""
        out, size = Path(options.out), about["size"]
        compared = [(record, row["predicted"]) for record, row in zip(cases.records, cases.rows, strict=True)]
        for record, name in compared + cases.without:
            image = read_record(root, record)
            picture = plots.outlined(image, np.asarray(Image.open(out / name)), read_masks(root, record, image, size))
            target = out / "overlays" / Path(name).relative_to("predicted")
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(target)
        count = len(compared) + len(cases.without)
        log.say(f"{count} images, {len(cases.unreadable)} unreadable: {out / 'predicted'}, {out / 'overlays'}")
        if cases.records:
            write_cases(out, cases.outcome())
            pictures(out, root, cases, size, model.join)

    def evaluation_protocol(self, model: Segmenter, about, cases: Cases, options: SegmentConfig):
        return figures.RULES | {"classes": model.classes, "flips": options.flips}

    def conclusion(self, result) -> str:
        if "pooled_with_background" not in result:
            return ""
        said = f"pooled_with_background: {figures.RULES['pooled_with_background']}"
        if "dice_present" in result and result["dice_present"]["mean"] == 0:
            said += (
                "\nWARNING: no predicted pixel lies in a true mask, in any image. dice counts an image without the class as 1 "
                "where nothing is predicted, so it says nothing here. Train longer, or check that masks and classes fit."
            )
        return said


TASK = Segmentation()


def make_segmenter(encoder: Encoder, classes: list[str], config: SegmentationConfig) -> Segmenter:
    """An encoder with an untrained decoder for these classes, as the config says."""
    return Segmenter(encoder, classes, config.decoder, config.decoder_width, config.atrous_rates, config.data.join)


def masks_as_trained(model: Segmenter, records: list[Record], checkpoint: str, data: str) -> None:
    """Have the masks of `records` read by the coding of the model's training masks; ValueError where they are of another."""
    if not any(record.mask for record in records):
        return
    if not model.mask_coding:
        log.note(
            f"{checkpoint} does not say what values its training masks had: those of {data} are read by themselves"
        )
        return
    for words in read_as_trained(records, MaskCoding.from_plain(model.mask_coding), model.classes, model.join):
        log.say(words)


def load_segmenter(path: str | Path) -> tuple[Segmenter, int]:
    """A segmenter from its file or run folder, ready to predict, and the side of the images it was trained on, px."""
    model, about = TASK.load(path)
    return model, about["size"]
