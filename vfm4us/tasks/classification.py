"""Classification: an encoder, a 3-layer classifier, and figures with intervals, calibration and the cases behind them.

    results = classification.run_seeds(config)        # one run folder per seed below logs/<name>, then one table of all

`mode` finetune trains encoder and head (`finetune.py`); linear and knn leave the encoder as it is. The epoch (finetune), the
strength (linear) and the number of neighbours (knn) are chosen on the validation split; the test split is looked at once.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from vfm4us import checkpoints, plots
from vfm4us.augment import PatchConfig, PatchSampler, ViewConfig
from vfm4us.checkpoints import load_encoder
from vfm4us.config import option, section, to_dict
from vfm4us.data.images import image_batch
from vfm4us.encoders import Encoder
from vfm4us.evaluation import statistics
from vfm4us.evaluation.classification import balanced_accuracy
from vfm4us.runtime.device import autocast, choose_device
from vfm4us.runtime.run import RunFolder
from vfm4us.tasks import base
from vfm4us.tasks.base import TaskConfig
from vfm4us.tasks.finetune import FinetuneConfig, Finetuner, batches_of, make_encoder

SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)  # C of the logistic regression
NEIGHBOURS = (1, 5, 10, 20, 50)


@dataclass
class DataConfig(base.DataConfig):
    merge: list[str] = option([], "labels to join, each as 'old > new'")


@dataclass
class AugmentConfig(ViewConfig):
    mixup: float = option(0.0, "alpha of mixup; 0: none", low=0.0)


@dataclass
class HeadConfig:
    hidden: int = option(256, "width of the two hidden layers", low=1, high=65536)
    dropout: float = option(0.3, "after each of them", low=0.0, high=0.95)


@dataclass
class ClassificationConfig(TaskConfig):
    name: str = option("classification", "the runs lie in logs/<name>/seed-<n>")
    mode: str = option("finetune", "how the encoder is used", choices=["finetune", "linear", "knn"])
    balance: str = option("sampling", "against unequal classes", choices=["none", "sampling", "weights"])
    smoothing: float = option(0.1, "label smoothing", low=0.0, high=0.9)
    data: DataConfig = section(DataConfig, "what is classified")
    finetune: FinetuneConfig = section(FinetuneConfig, "the training loop")
    head: HeadConfig = section(HeadConfig, "Linear, BN, ReLU, dropout, twice; then Linear")
    augment: AugmentConfig = section(
        AugmentConfig,
        "of training images",
        scale_low=0.5,
        scale_high=1.0,
        ratio=1.2,
        jitter=0.5,
        blur=0.1,
        speckle=0.0,
        depth_gain=0.1,
    )


# ---- model ----------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """Encoder and head: images (N, 1 or 3, H, W) in [0, 1] -> logits (N, classes). `temperature` calibrates them."""

    def __init__(self, encoder: Encoder, head: nn.Module, classes: list[str]):
        super().__init__()
        self.encoder, self.head, self.classes = encoder, head, classes
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images).float())


class NeighbourHead(nn.Module):
    """Log of the weighted votes of the k nearest training images by cosine, T = 0.07 (Wu et al. 2018, arXiv 1805.01978)."""

    def __init__(self, reference: Tensor, codes: Tensor, classes: int, k: int):
        super().__init__()
        self.classes, self.k = classes, k
        self.register_buffer("reference", F.normalize(reference, dim=1))
        self.register_buffer("codes", codes)

    def forward(self, features: Tensor) -> Tensor:
        similarity = F.normalize(features, dim=1) @ self.reference.T
        nearest = similarity.topk(min(self.k, len(self.codes)), dim=1)
        weight = ((nearest.values - nearest.values[:, :1]) / 0.07).exp()
        votes = features.new_zeros(len(features), self.classes).scatter_add_(1, self.codes[nearest.indices], weight)
        return ((votes + 1e-3) / (votes + 1e-3).sum(1, keepdim=True)).log()


def make_head(width: int, classes: int, config: HeadConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in (width, config.hidden):
        layers += [
            nn.Linear(size, config.hidden),
            nn.BatchNorm1d(config.hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
        ]
    return nn.Sequential(*layers, nn.Linear(config.hidden, classes))


def linear_head(features: Tensor, codes: np.ndarray, classes: int, strength: float) -> nn.Linear:
    """Logistic regression (balanced, C = `strength`) on standardised features, as a layer on the features themselves.

    A class without a training image gets a bias of -30.
    """
    scaler = StandardScaler().fit(features.numpy())
    model = LogisticRegression(C=strength, max_iter=2000, class_weight="balanced")
    model.fit(scaler.transform(features.numpy()), codes)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    head = nn.Linear(features.shape[1], classes)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(-30.0)
        head.weight[model.classes_] = torch.from_numpy(weight / scaler.scale_).float()
        head.bias[model.classes_] = torch.from_numpy(bias - (weight / scaler.scale_) @ scaler.mean_).float()
    return head


# ---- data -----------------------------------------------------------------------------------------------------------


class LabelledData:
    """A prepared dataset as a classification task: class codes per image, and the rows of each split."""

    def __init__(self, config: DataConfig, seed: int):
        self.dataset = base.open_dataset(config, "a folder of class folders, a CSV manifest, or a prepared dataset")
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
        self.train = base.few_labels(used["train"], self.codes, config.labels, seed)
        self.val, self.test = used["val"], used["test"]
        if len(self.train) < 2:
            raise ValueError("data.labels leaves fewer than two training images")

    def images(self, rows: np.ndarray) -> Tensor:
        """(N, 1, S, S) in [0, 1]."""
        return torch.from_numpy(self.dataset.images[rows])[:, None].float().div_(255)


def pair(item: str) -> tuple[str, str]:
    old, sign, new = item.partition(">")
    if not sign or not old.strip() or not new.strip():
        raise ValueError(f"data.merge: {item!r} is not of the form 'old > new'")
    return old.strip(), new.strip()


# ---- one run --------------------------------------------------------------------------------------------------------


def run_seeds(config: ClassificationConfig, say=print) -> dict[str, dict]:
    """Every seed's run, then metrics.json and table.md of all of them and of their ensemble in logs/<name>."""
    folders = base.run_each_seed(config, lambda one, folder: run_seed(one, folder, say), say)
    outcomes = [base.read_outcome(folder) for folder in folders]
    result = evaluate(outcomes)
    if len(outcomes) > 1:
        together = outcomes[0] | {"probabilities": np.mean([o["probabilities"] for o in outcomes], axis=0)}
        result |= {f"ensemble {k}": v for k, v in evaluate([together]).items() if k in (*SCORES, "ece")}
    base.write_summary(folders, config.seeds, result)
    return result


def run_seed(config: ClassificationConfig, where: Path, say=print) -> None:
    """Train (or continue) and test the run of `config.seed` in the folder `where`."""
    device = choose_device(config.device)
    data = LabelledData(config.data, config.seed)
    encoder, report = make_encoder(config.encoder, config.seed)
    folder = RunFolder(where, config, config.resume)
    try:
        counts = ", ".join(
            f"{len(rows)} {name}" for name, rows in (("train", data.train), ("val", data.val), ("test", data.test))
        )
        say(
            f"{where}: {len(data.classes)} classes, {counts}"
            + (f", {data.unlabelled} without label left out" if data.unlabelled else "")
        )
        say(f"encoder: {report or 'random ' + config.encoder.name}")
        duplicates = base.report_duplicates(data.dataset, config.data, where)
        say(duplicates)
        torch.manual_seed(config.seed)
        if config.mode == "finetune":
            model = finetune_classifier(config, data, encoder, folder, device)
        else:
            model = _frozen(config, data, encoder.to(device))
        logits = {name: predict(model, data, rows) for name, rows in (("val", data.val), ("test", data.test))}
        model.temperature.fill_(fit_temperature(data.codes[data.val], logits["val"]))
        probabilities = (logits["test"] / model.temperature.cpu()).softmax(1).numpy()
        uncalibrated = logits["test"].softmax(1).numpy()
        labels, paths = data.codes[data.test], [data.dataset.records[i].path for i in data.test]
        outcome = {
            "paths": np.array(paths),
            "groups": np.asarray(data.dataset.groups)[data.test],
            "labels": labels,
            "classes": np.array(data.classes),
            "probabilities": probabilities,
            "uncalibrated": uncalibrated,
            "val_labels": data.codes[data.val],
            "val_probabilities": logits["val"].softmax(1).numpy(),
        }
        save_classifier(where / "classifier.pt", model, config, data.dataset.size)
        write_predictions(
            where / "predictions.csv", paths, probabilities, data.classes, [data.classes[c] for c in labels]
        )
        base.write_outcome(where, outcome)
        if config.pictures:
            _pictures(where, model, data, probabilities, uncalibrated)
        result = evaluate([outcome]) | {"temperature": {"mean": float(model.temperature)}}
        base.write_metrics(
            where,
            "classification",
            config,
            data.dataset,
            result,
            mode=config.mode,
            selection="validation balanced accuracy",
            training_images=len(data.train),
            test_images=len(data.test),
            duplicates=duplicates,
        )
    finally:
        folder.close()


def finetune_classifier(
    config: ClassificationConfig, data: LabelledData, encoder: Encoder, folder: RunFolder, device: torch.device
) -> Classifier:
    """Encoder and a new head, trained on data.train; the epoch is the best on data.val by balanced accuracy."""
    codes, size = torch.from_numpy(data.codes), data.dataset.size
    model = Classifier(encoder, make_head(encoder.width, len(data.classes), config.head), data.classes)
    own = {k: v for k, v in to_dict(config.augment).items() if k != "mixup"}
    sampler = PatchSampler(PatchConfig(count=1, size=size, **own))
    parts = [data.train[data.codes[data.train] == c] for c in range(len(data.classes))]
    parts = [part for part in parts if len(part)]
    shares = [1.0] * len(parts) if config.balance == "sampling" else [float(len(p)) for p in parts]
    weight = None
    if config.balance == "weights":
        counts = np.bincount(data.codes[data.train], minlength=len(data.classes)).clip(1)
        weight = torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32, device=device)
    frame = torch.tensor([[0, 0, size, size]])

    def loss(network: nn.Module, rows: np.ndarray, generator: torch.Generator) -> Tensor:
        images = torch.from_numpy(data.dataset.images[rows]).to(device)
        x = sampler(images, frame.expand(len(rows), 4), generator)[0]
        target = F.one_hot(codes[rows], len(data.classes)).float().to(device)
        if config.augment.mixup:
            rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
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
    train, val = (encoder.embed(torch.from_numpy(data.dataset.images[rows])) for rows in (data.train, data.val))
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


# ---- figures --------------------------------------------------------------------------------------------------------


def scores(labels: np.ndarray, probabilities: np.ndarray, counts: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Accuracy, balanced accuracy, macro-F1 and macro one-vs-rest AUROC, each (R,), of (N,) codes and (N, C) probabilities.

    counts (R, N) says how often each image occurs in each of R resamples; by default once, in one. Averages go over the
    classes that occur in `labels`; AUROC needs two of them, all in the resample, and is NaN otherwise. Equal to
    scikit-learn's with sample_weight, and a hundred times as fast for many resamples.
    """
    weight = np.ones((1, len(labels))) if counts is None else counts.astype(np.float64)
    present, predicted = np.unique(labels), probabilities.argmax(1)
    total = weight.sum(1)
    right = weight * (labels == predicted)
    with np.errstate(invalid="ignore", divide="ignore"):
        true = np.stack([weight[:, labels == c].sum(1) for c in present])  # (classes, R)
        hit = np.stack([right[:, labels == c].sum(1) for c in present])
        called = np.stack([weight[:, predicted == c].sum(1) for c in present])
        f1 = np.where(true + called > 0, 2 * hit / np.maximum(true + called, 1e-12), 0.0)
        area, whole = np.full(len(weight), np.nan), (true > 0).all(0)  # a pair needs an image of each side
        if len(present) > 1 and whole.any():
            area[whole] = np.mean([_area(labels == c, probabilities[:, c], weight[whole]) for c in present], axis=0)
        return {
            "accuracy": right.sum(1) / total,
            "balanced_accuracy": (hit / true).mean(0),
            "macro_f1": f1.mean(0),
            "auroc": area,
        }


def _area(positive: np.ndarray, score: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Area under the ROC curve (R,): the weighted share of pairs in which the positive scores higher, ties counting half."""
    order = np.argsort(score, kind="stable")
    _, first = np.unique(score[order], return_index=True)  # images of one score together
    up = np.add.reduceat(weight[:, order] * positive[order], first, axis=1)
    down = np.add.reduceat(weight[:, order] * ~positive[order], first, axis=1)
    below = np.cumsum(down, axis=1) - down
    return (up * (below + down / 2)).sum(1) / (up.sum(1) * down.sum(1))


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equally wide bins of confidence (Guo et al. 2017, arXiv 1706.04599)."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(right[place == b].mean() - confidence[place == b].mean()) * (place == b).mean() for b in np.unique(place)
    ]
    return float(np.sum(gaps))


def calibrated_error(probabilities: np.ndarray, repeats: int = 200, bins: int = 15) -> float:
    """What `expected_calibration_error` shows on average, on as many images, where the probabilities (N, C) are exactly right.

    Each bin's accuracy is a mean over few images, so the estimate is never 0: on 193 images it is about 0.08. Labels are drawn
    from the probabilities themselves.
    """
    rng, steps = np.random.default_rng(0), probabilities.cumsum(1)
    drawn = [(steps < rng.random((len(steps), 1)) * steps[:, -1:]).sum(1) for _ in range(repeats)]
    return float(np.mean([expected_calibration_error(labels, probabilities, bins) for labels in drawn]))


def fit_temperature(labels: np.ndarray, logits: Tensor) -> float:
    """The temperature, from 0.05 to 20, with the least cross-entropy on these (validation) images; 1 if it is hardly less.

    A temperature fitted to 100 images varies by some 15 % even where 1 is right, and then does harm: it must gain more than a
    likelihood-ratio test at 5 % asks of one parameter (twice the log-likelihood, 3.84).
    """
    target = torch.from_numpy(np.asarray(labels))

    def entropy(log_t: float) -> float:
        return float(F.cross_entropy(logits.double() / np.exp(log_t), target))

    found = minimize_scalar(entropy, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x)) if 2 * len(target) * (entropy(0.0) - found.fun) > 3.84 else 1.0


def outcome_scores(outcome: statistics.Outcome, counts: np.ndarray) -> dict[str, np.ndarray]:
    """`scores` of what one seed's model said of the test images."""
    return scores(outcome["labels"], outcome["probabilities"], counts)


def evaluate(outcomes: list[statistics.Outcome]) -> dict[str, dict]:
    """Every figure of several seeds on the same images, the scores with 95 % intervals over seeds and groups.

    Those named val_ are of the validation images: for choosing between settings, since the test split is not for that; the
    epoch or strength was chosen on the same images, so they flatter.
    """
    result = statistics.figures(outcome_scores, outcomes)
    labels, classes = outcomes[0]["labels"], outcomes[0]["classes"].tolist()

    def each(values) -> dict:
        return {"mean": float(np.mean(values)), "per_seed": [float(v) for v in values]}

    for kind, after in (("probabilities", ""), ("uncalibrated", " before temperature")):
        if all(kind in o for o in outcomes):
            result["ece" + after] = each([expected_calibration_error(labels, o[kind]) for o in outcomes])
            sure = [np.log(o[kind][np.arange(len(labels)), labels].clip(1e-12)) for o in outcomes]
            result["cross_entropy" + after] = each([-s.mean() for s in sure])
    result["ece if calibrated"] = each([calibrated_error(o["probabilities"]) for o in outcomes])
    for code in np.unique(labels):
        right = [(o["probabilities"].argmax(1) == code)[labels == code].mean() for o in outcomes]
        result[f"recall {classes[code]}"] = each(right)
    if all("val_labels" in o for o in outcomes):
        chosen = [scores(o["val_labels"], o["val_probabilities"]) for o in outcomes]
        for name in SCORES:
            if all(np.isfinite(c[name][0]) for c in chosen):
                result[f"val_{name}"] = each([c[name][0] for c in chosen])
    confusion = sum(
        sk.confusion_matrix(labels, o["probabilities"].argmax(1), labels=range(len(classes))) for o in outcomes
    )
    result["confusion"] = {"classes": classes, "rows_true_columns_predicted": confusion.tolist()}
    return result


def write_predictions(path: Path, paths: list[str], probabilities: np.ndarray, classes: list[str], truth=None) -> None:
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", *(["label"] if truth else []), "predicted", *(f"p({c})" for c in classes)])
        for i, p in enumerate(probabilities):
            writer.writerow([paths[i], *([truth[i]] if truth else []), classes[p.argmax()], *(f"{v:.4f}" for v in p)])


# ---- pictures -------------------------------------------------------------------------------------------------------


def _pictures(
    where: Path, model: Classifier, data: LabelledData, probabilities: np.ndarray, uncalibrated: np.ndarray
) -> None:
    labels = data.codes[data.test]
    classes = data.classes
    confusion = sk.confusion_matrix(labels, probabilities.argmax(1), labels=range(len(classes)))
    plots.confusion_matrix(where / "confusion.png", confusion, classes)
    plots.roc_curves(where / "roc.png", labels, probabilities, classes)
    plots.reliability(where / "reliability.png", labels, {"before temperature": uncalibrated, "after": probabilities})
    features = model.encoder.embed(torch.from_numpy(data.dataset.images[data.test]))
    plots.tsne(where / "tsne.png", features.numpy(), [classes[c] for c in labels])
    if not isinstance(model.head, NeighbourHead):  # votes have no useful gradient
        sure = probabilities[np.arange(len(labels)), labels]
        order = np.argsort(sure)
        chosen = np.concatenate([order[::-1][:4], order[:4]])  # the best four, then the worst four
        images = data.images(data.test[chosen])
        maps = grad_cam(model, images, probabilities[chosen].argmax(1))
        titles = [
            f"{classes[labels[i]]}\nas {classes[probabilities[i].argmax()]}, p(true) {sure[i]:.2f}" for i in chosen
        ]
        plots.heat_maps(where / "grad_cam.png", images[:, 0].numpy(), maps, titles)


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


# ---- a trained classifier as a file ---------------------------------------------------------------------------------


def save_classifier(path: Path, model: Classifier, config: ClassificationConfig, size: int) -> None:
    """`module.base_encoder.*` as in every checkpoint, beside it the head, the classes and the `size` of training images, px."""
    tensors = {checkpoints.ENCODER_PREFIX + k: v for k, v in model.encoder.published_state().items()}
    tensors |= {f"module.head.{k}": v.detach().cpu() for k, v in model.head.state_dict().items()}
    checkpoints.save(
        path,
        {
            "state_dict": tensors,
            "encoder": model.encoder.spec_dict(),
            "task": "classification",
            "classes": model.classes,
            "mode": config.mode,
            "head": to_dict(config.head) | {"k": getattr(model.head, "k", 0)},
            "size": size,
            "in_channels": model.encoder.spec.in_channels,
            "temperature": float(model.temperature),
            "config": to_dict(config),
        },
    )


def load_classifier(path: str | Path) -> tuple[Classifier, int]:
    """A classifier from its file or run folder, ready to predict, and the side of the images it was trained on, px."""
    path = Path(path)
    if path.is_dir():
        inside = [path / "classifier.pt", *sorted(path.glob("seed-*/classifier.pt"))]
        path = next((p for p in inside if p.is_file()), inside[0])
    state = checkpoints.read(path)
    if state.get("task") != "classification":
        raise ValueError(
            f"{path} is no classifier (Downstream/Classification/train.py writes classifier.pt into its run folder)"
        )
    encoder, classes = load_encoder(state, state["in_channels"]), state["classes"]
    tensors = {
        k.removeprefix("module.head."): v for k, v in state["state_dict"].items() if k.startswith("module.head.")
    }
    if state["mode"] == "finetune":
        own = {k: v for k, v in state["head"].items() if k != "k"}
        head: nn.Module = make_head(encoder.width, len(classes), HeadConfig(**own))
    elif state["mode"] == "linear":
        head = nn.Linear(encoder.width, len(classes))
    else:
        head = NeighbourHead(
            torch.zeros_like(tensors["reference"]), torch.zeros_like(tensors["codes"]), len(classes), state["head"]["k"]
        )
    head.load_state_dict(tensors)
    model = Classifier(encoder, head, classes)
    model.temperature.fill_(state["temperature"])
    return model.eval(), state["size"]


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
