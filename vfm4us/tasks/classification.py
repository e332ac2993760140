"""Classification: an encoder, a 3-layer classifier, and figures with intervals, calibration and the cases behind them.

    results = classification.TASK.run_seeds(config)      # one run folder per seed below logs/<name>, then one table of all
    model, size = classification.load_classifier(FILE)
    probabilities = classification.classify(model, images, size)

`mode` finetune trains encoder and head (`finetune.py`); linear and knn leave the encoder as it is. The epoch (finetune), the
strength (linear) and the number of neighbours (knn) are chosen on the validation split; the test split is looked at once.
"""

import difflib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn import metrics as sk
from torch import Tensor, nn
from tqdm import tqdm

from vfm4us import log, plots
from vfm4us.augment import PatchSampler, moved
from vfm4us.config import to_dict
from vfm4us.data.csv_files import write_rows
from vfm4us.data.decode import read_record
from vfm4us.data.images import image_batch
from vfm4us.data.records import Record
from vfm4us.data.words import same
from vfm4us.encoders import Encoder
from vfm4us.evaluation import classification as figures
from vfm4us.evaluation.classification import balanced_accuracy, fit_temperature
from vfm4us.runtime.device import autocast
from vfm4us.runtime.run import RunFolder
from vfm4us.tasks import base
from vfm4us.tasks.base import Cases, Task
from vfm4us.tasks.finetune import Finetuner, batches_of
from vfm4us.tasks.heads import NeighbourHead, linear_head, make_head
from vfm4us.tasks.sections import ClassificationConfig, ClassifyConfig, HeadConfig, LabelledDataConfig
from vfm4us.views import PatchConfig

STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)  # C of the logistic regression
NEIGHBOURS = (1, 5, 10, 20, 50)


# ---- model ----------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """Encoder and head: images (N, 1 or 3, H, W) in [0, 1] -> logits (N, classes). `temperature` calibrates them."""

    def __init__(self, encoder: Encoder, head: nn.Module, classes: list[str]):
        super().__init__()
        self.encoder, self.head, self.classes = encoder, head, classes
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images).float())


# ---- data -----------------------------------------------------------------------------------------------------------


class LabelledData:
    """A prepared dataset as a classification task: class codes per image, and the rows of each split."""

    def __init__(self, config: LabelledDataConfig, seed: int):
        wanted = "a folder of class folders, a CSV manifest, or a prepared dataset"
        self.dataset = base.open_dataset(config, wanted, seed)
        renamed = dict(pair(item) for item in config.merge)
        if unknown := renamed.keys() - set(self.dataset.labels):
            raise ValueError(
                f"data.merge: {config.path} has no label {sorted(unknown)[0]!r}; it has: "
                + ", ".join(sorted(set(self.dataset.labels)))
            )
        labels = np.array([renamed.get(label, label) for label in self.dataset.labels], dtype=str)
        labelled = labels != ""
        used = {s: self.dataset.indices(s)[labelled[self.dataset.indices(s)]] for s in ("train", "val", "test")}
        self.unlabelled = int((~labelled & (self.dataset.splits != "exclude")).sum())
        self.classes = sorted(set(labels[used["train"]].tolist()))
        if len(self.classes) < 2:
            raise ValueError(
                f"{config.path}: the training images have {len(self.classes)} class "
                f"({', '.join(self.classes) or 'none'}); classification needs two: class folders, or a label column in the manifest"
            )
        code = {label: i for i, label in enumerate(self.classes)}
        self.codes = np.array([code.get(label, -1) for label in labels])
        for split in ("val", "test"):
            strange = sorted(set(labels[used[split]].tolist()) - set(self.classes))
            if strange:
                raise ValueError(
                    f"{config.path}: the {split} split has the label {', '.join(strange[:5])}, of which there is "
                    "no training image: add some, merge the label into another (data.merge), or mark those images as exclude"
                )
            if not len(used[split]):
                raise ValueError(
                    f"{config.path} has no labelled {split} images: give it more groups, or a split column"
                )
        self.train = base.few_labels(used["train"], self.codes, config.label_share, seed)
        self.val, self.test = used["val"], used["test"]
        if len(self.train) < 2:
            raise ValueError("data.label_share leaves fewer than two training images")

    def images(self, rows: np.ndarray) -> Tensor:
        """(N, 1, S, S) in [0, 1]."""
        return torch.from_numpy(self.dataset.images[rows])[:, None].float().div_(255)


def pair(item: str) -> tuple[str, str]:
    """An item 'old > new' of data.merge as (old, new); raises ValueError for any other form."""
    old, sign, new = item.partition(">")
    if not sign or not old.strip() or not new.strip():
        raise ValueError(f"data.merge: {item!r} is not of the form 'old > new'")
    return old.strip(), new.strip()


# ---- training --------------------------------------------------------------------------------------------------------


def finetune_classifier(
    config: ClassificationConfig, data: LabelledData, encoder: Encoder, folder: RunFolder, device: torch.device
) -> Classifier:
    """Encoder and a new head, trained on data.train; the epoch is the best on data.val by balanced accuracy."""
    codes, size = torch.from_numpy(data.codes), data.dataset.size
    model = Classifier(encoder, make_head(encoder.width, len(data.classes), config.head), data.classes)
    views = {k: v for k, v in to_dict(config.augment).items() if k != "mixup"}
    sampler = PatchSampler(PatchConfig(count=1, size=size, **views))
    parts = [data.train[data.codes[data.train] == c] for c in range(len(data.classes))]
    parts = [part for part in parts if len(part)]
    shares = [1.0] * len(parts) if config.balance == "sampling" else [float(len(p)) for p in parts]
    weight = None
    if config.balance == "weights":
        counts = np.bincount(data.codes[data.train], minlength=len(data.classes)).clip(1)
        weight = torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32, device=device)
    frame = torch.tensor([[0, 0, size, size]])

    def loss(network: nn.Module, rows: np.ndarray, draws: torch.Generator) -> Tensor:
        images = moved(torch.from_numpy(data.dataset.images[rows]), device)
        x = sampler(images, frame.expand(len(rows), 4), draws)[0]
        target = moved(F.one_hot(codes[rows], len(data.classes)).float(), device)
        if config.augment.mixup:
            rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=draws)))
            share, partner = float(rng.beta(config.augment.mixup, config.augment.mixup)), rng.permutation(len(rows))
            x, target = (share * v + (1 - share) * v[partner] for v in (x, target))
        return F.cross_entropy(network(x), target, weight=weight, label_smoothing=config.smoothing)

    def validate(network: nn.Module) -> dict[str, float]:
        with autocast(device, config.precision):
            logits, truth = predict(network, data, data.val), data.codes[data.val]
        entropy = float(F.cross_entropy(logits, torch.from_numpy(truth)))
        accuracy = balanced_accuracy(truth, logits.argmax(1).numpy())
        # ties of a small validation split are broken by the cross-entropy
        return {
            "score": accuracy - 1e-3 * min(entropy, 10.0),
            "val_balanced_accuracy": accuracy,
            "val_cross_entropy": entropy,
        }

    tuner = Finetuner(
        model, config.finetune, folder, device, config.seed, config.encoder.freeze_epochs, config.precision
    )
    return tuner.fit(lambda epoch: batches_of(parts, shares, config.finetune, config.seed, epoch), loss, validate)


def _frozen(config: ClassificationConfig, data: LabelledData, encoder: Encoder) -> Classifier:
    """A linear or k-NN head on the encoder as it is; its one setting is the best on the validation split."""
    train, val = (
        encoder.embed(torch.from_numpy(data.dataset.images[rows])[:, None]) for rows in (data.train, data.val)
    )
    codes, truth, best = data.codes[data.train], data.codes[data.val], None
    for setting in STRENGTHS if config.mode == "linear" else NEIGHBOURS:
        if config.mode == "linear":
            head: nn.Module = linear_head(train, codes, len(data.classes), setting)
        else:
            head = NeighbourHead(train, torch.from_numpy(codes), len(data.classes), setting)
        with torch.no_grad():
            logits = head(val)
        score = balanced_accuracy(truth, logits.argmax(1).numpy())
        score -= 1e-3 * min(10.0, float(F.cross_entropy(logits, torch.from_numpy(truth))))
        if best is None or score > best[0]:
            best = score, head
    device = next(encoder.parameters()).device
    return Classifier(encoder, best[1], data.classes).to(device).eval()


@torch.no_grad()
def predict(model: Classifier, data: LabelledData, rows: np.ndarray, batch_size: int = 64) -> Tensor:
    """Logits (len(rows), classes) on the CPU, in evaluation mode, before calibration."""
    model.eval()
    device = model.temperature.device
    parts = [
        model(data.images(rows[i : i + batch_size]).to(device)).float().cpu() for i in range(0, len(rows), batch_size)
    ]
    return torch.cat(parts) if parts else torch.empty(0, len(model.classes))


def write_predictions(path: Path, paths: list[str], probabilities: np.ndarray, classes: list[str], truth=None) -> None:
    """Write a CSV file of one row per image: path, true label where `truth` has it, predicted class, and each class's probability.

    `probabilities`: (N, classes).
    """
    write_rows(
        path,
        ["path", *(["label"] if truth else []), "predicted", *(f"p({c})" for c in classes)],
        (
            [paths[i], *([truth[i]] if truth else []), classes[p.argmax()], *(f"{v:.4f}" for v in p)]
            for i, p in enumerate(probabilities)
        ),
    )


# ---- pictures -------------------------------------------------------------------------------------------------------


def _pictures(
    where: Path, model: Classifier, data: LabelledData, probabilities: np.ndarray, uncalibrated: np.ndarray
) -> None:
    labels = data.codes[data.test]
    classes = data.classes
    confusion = sk.confusion_matrix(labels, probabilities.argmax(1), labels=range(len(classes)))
    plots.confusion_matrix(where / "confusion.png", confusion, classes)
    plots.roc_curves(where / "roc.png", labels, probabilities, classes)
    series = {"before temperature": uncalibrated, "after": probabilities}
    if np.array_equal(uncalibrated, probabilities):
        series = {"no temperature was fitted": probabilities}
    plots.reliability(where / "reliability.png", labels, series)
    features = model.encoder.embed(torch.from_numpy(data.dataset.images[data.test])[:, None])
    plots.tsne(where / "tsne.png", features.numpy(), [classes[c] for c in labels])
    if not isinstance(model.head, NeighbourHead):  # votes have no useful gradient
        sure = probabilities[np.arange(len(labels)), labels]
        order = np.argsort(sure)
        rows = {"most convincing: the true class is given the most": order[::-1][:4]}
        rows |= {"least convincing: the true class is given the least": order[:4]}
        chosen = np.concatenate(list(rows.values()))
        images = data.images(data.test[chosen])
        maps = grad_cam(model, images, probabilities[chosen].argmax(1))
        titles = [
            f"{classes[labels[i]]}\nas {classes[probabilities[i].argmax()]}, p(true) {sure[i]:.2f}" for i in chosen
        ]
        plots.heat_maps(where / "grad_cam.png", images[:, 0].numpy(), maps, titles, list(rows))


def grad_cam(model: Classifier, images: Tensor, targets) -> np.ndarray:
    """Where the evidence for class `targets` (N,) lies: (N, H, W) in [0, 1] (Selvaraju et al. 2017, arXiv 1610.02391).

    On the map of the encoder's deepest stage (`Encoder.watching`).
    """
    model.eval()
    with model.encoder.watching() as seen, torch.enable_grad():
        x = images.to(model.temperature.device).detach().clone().requires_grad_()
        logits = model(x)
        chosen = logits[torch.arange(len(x)), torch.as_tensor(np.asarray(targets), device=logits.device)].sum()
        gradient = torch.autograd.grad(chosen, seen.tensor)[0]
    activation, gradient = (model.encoder.as_map(t.detach()) for t in (seen.tensor, gradient))
    heat = (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return (heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu().numpy()


# ---- a trained classifier in use ---------------------------------------------------------------------------------


@torch.no_grad()
def classify(model: Classifier, images, size: int, batch_size: int = 64) -> np.ndarray:
    """Calibrated probabilities (N, classes) of anything `image_batch` takes: a folder, files, PIL images, arrays.

    Every image is resized and padded to `size` px as the training images were.
    """
    x, _ = image_batch(images, size, frame=True)
    rows = []
    for start in range(0, len(x), batch_size):
        part = x[start : start + batch_size].to(model.temperature.device)
        part = part.float().div(255) if part.dtype == torch.uint8 else part.float()
        rows.append((model(part) / model.temperature).softmax(1).cpu())
    return torch.cat(rows).numpy()


def labels_as_trained(
    records: list[Record], classes: list[str], options: ClassifyConfig, merged: tuple[str, ...] = ()
) -> list[str]:
    """Give each record the model's own spelling of its label, "" where it is left out; returns what is to be said.

    merged: data.merge of its training
    ValueError where labels are unknown to the model while classes of it are missing, as one may be the other.
    """
    given, renamed = {record.label for record in records if record.label}, dict(map(pair, options.merge))
    if given and (unknown := sorted((renamed.keys() | set(options.leave_out)) - given)):
        raise ValueError(
            f"{options.data} has no label {unknown[0]!r} to merge or leave out; it has: {', '.join(sorted(given))}"
        )
    renamed = dict(map(pair, merged)) | renamed
    own_of, said = {plain_label(name): name for name in classes}, []
    spelled = {}
    for label in sorted(given):
        name = renamed.get(label, label)
        near = own_of.get(plain_label(name), "") if len(own_of) == len(classes) else ""
        spelled[label] = name if name in classes else near or name
        if label in options.leave_out:
            spelled[label] = "" if spelled[label] in classes else name
        elif near and near != name:
            said.append(f"the label {name!r} is taken for the class {near!r}")
    for record in records:
        record.label = spelled.get(record.label, record.label)
    labels = {record.label for record in records if record.label}
    strange, missing = sorted(labels - {*classes, *options.leave_out}), [name for name in classes if name not in labels]
    if strange and missing:
        near = (*difflib.get_close_matches(strange[0], missing, n=1), "CLASS")[0]  # no suggestion without likeness
        raise ValueError(
            f"{options.data} has the labels {', '.join(sorted(labels))}; the model knows {', '.join(classes)}. Is {strange[0]!r} "
            f"one of {', '.join(missing)} by another name (--merge '{strange[0]} > {near}'), or is it to be left out "
            f"(--leave-out '{strange[0]}')?"
        )
    if labels and missing:
        said.append(f"no image of the class {', '.join(missing)}: averages go over the other classes")
    return said


def plain_label(name: str) -> str:
    """A label as it is compared with a model's classes: without case, spaces, hyphens and underscores."""
    return "".join(character for character in same(name) if character not in " -_") or same(name)


# ---- the task -------------------------------------------------------------------------------------------------------


class Classification(Task):
    """The classification task: trains, tests and applies a classifier on an encoder."""

    name, config = "classification", ClassificationConfig
    figures, file, model = figures, "classifier.pt", "classifier"
    truth = "label"
    explained = "Downstream/Classification/README.md"
    writes_images = False

    def read(self, config: ClassificationConfig) -> LabelledData:
        return LabelledData(config.data, config.seed)

    def describe(self, data: LabelledData) -> str:
        counts = ", ".join(f"{len(getattr(data, split))} {split}" for split in ("train", "val", "test"))
        without = f", {data.unlabelled} without label left out" if data.unlabelled else ""
        lacking = {
            split: [name for k, name in enumerate(data.classes) if not (data.codes[getattr(data, split)] == k).any()]
            for split in ("val", "test")
        }
        told = "".join(
            f"; WARNING: no {split} image of {', '.join(names)}" for split, names in lacking.items() if names
        )
        return f"{len(data.classes)} classes, {counts}{without}{told}"

    def train(self, config: ClassificationConfig, data: LabelledData, encoder, folder, device):
        """A classifier by `mode`, calibrated on the validation images, and what it says of them."""
        if config.mode == "finetune":
            model = finetune_classifier(config, data, encoder, folder, device)
        else:
            model = _frozen(config, data, encoder.to(device))
        logits, labels = predict(model, data, data.val), data.codes[data.val]
        model.temperature.fill_(fit_temperature(labels, logits))
        return model, {"val_labels": labels, "val_probabilities": logits.softmax(1).numpy()}

    def test(self, config: ClassificationConfig, data: LabelledData, model: Classifier, where: Path, validated):
        logits, labels = predict(model, data, data.test), data.codes[data.test]
        outcome = {
            "paths": np.array([data.dataset.records[i].path for i in data.test]),
            "groups": np.asarray(data.dataset.groups)[data.test],
            "labels": labels,
            "classes": np.array(data.classes),
            "probabilities": (logits / model.temperature.cpu()).softmax(1).numpy(),
            "uncalibrated": logits.softmax(1).numpy(),
        }
        truth = [data.classes[c] for c in labels]
        write_predictions(where / "predictions.csv", outcome["paths"], outcome["probabilities"], data.classes, truth)
        if config.pictures:
            _pictures(where, model, data, outcome["probabilities"], outcome["uncalibrated"])
        return outcome

    def protocol(self, config: ClassificationConfig, data: LabelledData, outcome, result):
        return {
            "mode": config.mode,
            "selection": "validation balanced accuracy",
            "training_images": len(data.train),
            "test_images": len(data.test),
        }

    def ensemble(self, outcomes):
        together = outcomes[0] | {"probabilities": np.mean([o["probabilities"] for o in outcomes], axis=0)}
        of_all = figures.evaluate([together])
        return {f"ensemble {k}": v for k, v in of_all.items() if k in (*figures.SCORES, "ece")}

    def facts(self, model: Classifier, config: ClassificationConfig):
        return {
            "classes": model.classes,
            "mode": config.mode,
            "head": to_dict(config.head) | {"k": getattr(model.head, "k", 0)},
            "temperature": float(model.temperature),
        }

    def build(self, about, encoder: Encoder, head) -> Classifier:
        classes = about["classes"]
        if about["mode"] == "finetune":
            layers = HeadConfig(**{k: v for k, v in about["head"].items() if k != "k"})
            network: nn.Module = make_head(encoder.width, len(classes), layers)
        elif about["mode"] == "linear":
            network = nn.Linear(encoder.width, len(classes))
        else:
            empty = torch.zeros_like(head["reference"]), torch.zeros_like(head["codes"])
            network = NeighbourHead(*empty, len(classes), about["head"]["k"])
        network.load_state_dict(head)
        model = Classifier(encoder, network, classes)
        model.temperature.fill_(about["temperature"])
        return model

    def use(self, model: Classifier, about, root: Path, records, options: ClassifyConfig) -> Cases:
        """Writes predictions.csv; images without a label that the classifier knows are not compared."""
        cases, done = Cases(more={"classes": np.array(model.classes)}), []
        merged = tuple(about["config"]["data"].get("merge", ()))
        for words in labels_as_trained(records, model.classes, options, merged):
            log.say(words)
        for start in tqdm(range(0, len(records), 32), unit="batch", desc="classifying"):
            readable = list(cases.readable(records[start : start + 32], lambda record: read_record(root, record)))
            if not readable:
                continue
            for (record, image), p in zip(
                readable, classify(model, [image for _, image in readable], about["size"]), strict=True
            ):
                record.height, record.width = image.shape
                done.append((record, p))
                if record.label in model.classes:
                    cases.records.append(record)
                    cases.rows.append({"labels": model.classes.index(record.label), "probabilities": p})
                else:
                    cases.without.append((record, ""))
        if done:
            labels = [record.label for record, _ in done]
            write_predictions(
                Path(options.out) / "predictions.csv",
                [record.path for record, _ in done],
                np.array([p for _, p in done]),
                model.classes,
                labels if any(labels) else None,
            )
        return cases

    def report(self, model: Classifier, about, root: Path, cases: Cases, options: ClassifyConfig) -> None:
        count = len(cases.records) + len(cases.without)
        log.say(f"{count} images, {len(cases.unreadable)} unreadable: {Path(options.out) / 'predictions.csv'}")
        if strange := sorted({record.label for record, _ in cases.without if record.label}):
            log.say(
                f"labels this classifier does not know, left out of the metrics: {', '.join(strange[:8])} (it knows "
                f"{', '.join(model.classes)}; --merge joins labels)"
            )


TASK = Classification()


def load_classifier(path: str | Path) -> tuple[Classifier, int]:
    """A classifier from its file or run folder, ready to predict, and the side of the images it was trained on, px."""
    model, about = TASK.load(path)
    return model, about["size"]
