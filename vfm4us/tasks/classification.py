"""Classification: an encoder, a 3-layer classifier, and figures with intervals, calibration and the cases behind them.

    results = classification.run_seeds(config)        # one run folder per seed below logs/<name>, then one table of all

`mode` finetune trains encoder and head (`finetune.py`); linear and knn leave the encoder as it is. The epoch (finetune), the
strength (linear) and the number of neighbours (knn) are chosen on the validation split; the test split is looked at once.
"""

import csv
import json
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

from vfm4us import checkpoints, plots, probing, run
from vfm4us.config import option, section, to_dict
from vfm4us.data import splits as splitting
from vfm4us.data.images import image_batch
from vfm4us.data.store import open_or_prepare
from vfm4us.encoders import Encoder
from vfm4us.loading import load_encoder
from vfm4us.pretraining.patches import PatchConfig, PatchSampler
from vfm4us.tasks.finetune import EncoderConfig, FinetuneConfig, Finetuner, batches_of, make_encoder

SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)  # C of the logistic regression
NEIGHBOURS = (1, 5, 10, 20, 50)


@dataclass
class DataConfig:
    path: str = option("", "class folders, CSV manifest, published or prepared dataset")
    size: int = option(224, "longer side to which images are packed, px", low=32)
    splits: list[float] = option([0.7, 0.1, 0.2], "shares of train, val and test where the data have none")
    cache: str = option("data", "folder for what is packed from plain folders", free=True)
    labels: float = option(
        1.0, "share of the training labels that is used, per class, at least one image", low=0.0, high=1.0
    )
    merge: list[str] = option([], "labels to join, each as 'old > new'")
    pretraining: list[str] = option(
        [], "datasets the encoder was pretrained on: duplicates of test images are reported"
    )
    hint: str = option("", "where to get the data, for the error if they are missing", free=True)


@dataclass
class AugmentConfig:
    scale_low: float = option(0.5, "smallest share of the image in a training crop", low=0.01, high=1.0)
    ratio: float = option(1.2, "widest aspect ratio of a crop before it is resized to a square", low=1.0)
    flip: float = option(0.5, "probability of a left/right flip", low=0.0, high=1.0)
    jitter: float = option(0.5, "probability of each change of gain, contrast and gamma", low=0.0, high=1.0)
    gain: float = option(0.2, "gain factor within 1 +- this", low=0.0, high=0.95)
    contrast: float = option(0.2, "contrast factor within 1 +- this", low=0.0, high=0.95)
    gamma: float = option(0.15, "log of gamma within +- this", low=0.0, high=2.0)
    blur: float = option(0.1, "probability of a loss of sharpness", low=0.0, high=1.0)
    speckle: float = option(0.0, "probability of added multiplicative speckle", low=0.0, high=1.0)
    depth_gain: float = option(0.1, "probability of a gain slope over depth", low=0.0, high=1.0)
    mixup: float = option(0.0, "alpha of mixup; 0: none", low=0.0)


@dataclass
class HeadConfig:
    hidden: int = option(256, "width of the two hidden layers", low=1)
    dropout: float = option(0.3, "after each of them", low=0.0, high=0.95)


@dataclass
class ClassificationConfig:
    name: str = option("classification", "the runs lie in logs/<name>/seed-<n>")
    logs: str = option("logs", "folder for runs", free=True)
    mode: str = option("finetune", "how the encoder is used", choices=["finetune", "linear", "knn"])
    seeds: list[int] = option([0, 1, 2], "one run each; a finished one is not run again", free=True)
    seed: int = option(0, "of one run; set from seeds", free=True)
    resume: bool = option(True, "false: move an earlier run of this name aside", free=True)
    device: str = option("auto", "auto, cpu, cuda or cuda:<n>", free=True)
    precision: str = option("auto", "of the network in training: auto is bfloat16 on a GPU, float32 on a CPU",
                            choices=["auto", "float32", "bfloat16"])  # fmt: skip
    balance: str = option("sampling", "against unequal classes", choices=["none", "sampling", "weights"])
    smoothing: float = option(0.1, "label smoothing", low=0.0, high=0.9)
    data: DataConfig = section(DataConfig, "what is classified")
    encoder: EncoderConfig = section(EncoderConfig, "where it starts from")
    head: HeadConfig = section(HeadConfig, "Linear, BN, ReLU, dropout, twice; then Linear")
    augment: AugmentConfig = section(AugmentConfig, "of training images")
    finetune: FinetuneConfig = section(FinetuneConfig, "the training loop")


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
        path = Path(config.path)
        if not config.path or not path.exists():
            raise FileNotFoundError(
                f"data.path: {config.path!r} does not exist (looked from {Path.cwd()}); give a folder of class folders, a CSV "
                f"manifest, or a prepared dataset with data.path=DIR" + (f"\n{config.hint}" if config.hint else "")
            )
        self.dataset = open_or_prepare(path, Path(config.cache), config.size, tuple(config.splits))
        renamed = dict(pair(item) for item in config.merge)
        if unknown := renamed.keys() - set(self.dataset.labels):
            raise ValueError(f"data.merge: {config.path} has no label {sorted(unknown)[0]!r}; it has: "
                             + ", ".join(sorted(set(self.dataset.labels))))  # fmt: skip
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
        self.train = few_labels(used["train"], self.codes, config.labels, seed)
        self.val, self.test = used["val"], used["test"]
        if len(self.train) < 2:
            raise ValueError("data.labels leaves fewer than two training images")

    def images(self, rows: np.ndarray) -> Tensor:
        """(N, 1, S, S) in [0, 1]."""
        return torch.from_numpy(self.dataset.images[rows])[:, None].float().div_(255)

    def duplicate_report(self, folder: Path, pretraining: list[str], cache: str) -> str:
        """Write duplicates.csv: clusters within the dataset, and test images that occur in what was pretrained on."""
        d, rows = self.dataset, []
        used = np.flatnonzero(d.splits != "exclude")
        # the perceptual clusters themselves, whatever groups the source came with
        clusters = splitting.duplicate_clusters(
            [d.sha256[i] for i in used], d.phash[used], thumbnail_of=lambda i: d.thumbnail_of(int(used[i]))
        )
        names, counts = np.unique(clusters, return_counts=True)
        several, divided = names[counts > 1], 0
        for name in several:
            members = used[clusters == name]
            split = sorted(set(d.splits[members]))
            divided += len(split) > 1
            rows += [["cluster", name, d.records[i].path, d.splits[i], ""] for i in members]
        seen = 0
        for path in pretraining:
            other = open_or_prepare(Path(path), Path(cache), d.size)
            for leak in splitting.leakage(other.fingerprints(other.indices("train")), d.fingerprints(self.test)):
                seen += 1
                row = int(self.test[leak.protected_index])
                rows.append(["pretraining", other.name, d.records[row].path, "test", leak.kind])
        with open(folder / "duplicates.csv", "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["kind", "cluster_or_dataset", "path", "split", "how"])
            writer.writerows(rows)
        images = int(counts[counts > 1].sum())
        text = f"{len(several)} clusters of near-duplicates with {images} images; {divided} of them lie in two splits"
        return text + (f"; {seen} pretraining images equal or nearly equal a test image" if pretraining else "")


def few_labels(rows: np.ndarray, codes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A seeded share of the training rows, per class, at least one image of each."""
    if share >= 1:
        return rows
    rng, kept = np.random.default_rng((seed, 11)), []
    for code in np.unique(codes[rows]):
        own = rows[codes[rows] == code]
        kept.append(rng.permutation(own)[: max(1, round(share * len(own)))])
    return np.sort(np.concatenate(kept))


def pair(item: str) -> tuple[str, str]:
    old, sign, new = item.partition(">")
    if not sign or not old.strip() or not new.strip():
        raise ValueError(f"data.merge: {item!r} is not of the form 'old > new'")
    return old.strip(), new.strip()


# ---- one run --------------------------------------------------------------------------------------------------------


def run_seed(config: ClassificationConfig, stop: run.StopSignal, say=print) -> Path | None:
    """Train (or continue, or find finished) the run of `config.seed`; its folder, or None where a signal stopped it."""
    where = Path(config.logs) / config.name / f"seed-{config.seed}"
    device = run.choose_device(config.device)
    data = LabelledData(config.data, config.seed)
    encoder, report = make_encoder(config.encoder, config.seed)
    folder = run.RunFolder(where, config, config.resume)
    try:
        if (where / "metrics.json").is_file() and (where / "classifier.pt").is_file():
            say(f"{where} is finished")
            return where
        counts = ", ".join(
            f"{len(rows)} {name}" for name, rows in (("train", data.train), ("val", data.val), ("test", data.test))
        )
        say(
            f"{where}: {len(data.classes)} classes, {counts}"
            + (f", {data.unlabelled} without label left out" if data.unlabelled else "")
        )
        say(f"encoder: {report or 'random ' + config.encoder.name}")
        duplicates = data.duplicate_report(where, config.data.pretraining, config.data.cache)
        say(duplicates)
        torch.manual_seed(config.seed)
        if config.mode == "finetune":
            model = _finetune(config, data, encoder, folder, device, stop)
            if model is None:
                return None
        else:
            model = _frozen(config, data, encoder.to(device))
        logits = {name: predict(model, data, rows) for name, rows in (("val", data.val), ("test", data.test))}
        before = expected_calibration_error(data.codes[data.test], logits["test"].softmax(1).numpy())
        model.temperature.fill_(fit_temperature(data.codes[data.val], logits["val"]))
        probabilities = (logits["test"] / model.temperature.cpu()).softmax(1).numpy()
        labels, groups = data.codes[data.test], np.asarray(data.dataset.groups)[data.test]
        save_classifier(where / "classifier.pt", model, config)
        write_predictions(where / "predictions.csv", [data.dataset.records[i].path for i in data.test], probabilities, data.classes,
                           [data.classes[c] for c in labels])  # fmt: skip
        np.savez(where / "test.npz", probabilities=probabilities, labels=labels, groups=groups, before=before)
        _pictures(where, model, data, probabilities, logits["test"].softmax(1).numpy())
        extra = {"ece_before_temperature": before, "temperature": float(model.temperature)}
        result = evaluate([probabilities], labels, groups, data.classes, extra)
        write_metrics(where / "metrics.json", result, config, data, [config.seed], duplicates)
    finally:
        folder.close()
    return where


def run_seeds(config: ClassificationConfig, say=print) -> dict | None:
    """Every seed's run, then metrics.json and table.md of all of them and of their ensemble in logs/<name>."""
    import copy

    if not config.seeds:
        raise ValueError("seeds is empty: give at least one, e.g. seeds=[0,1,2]")
    folders = []
    with run.StopSignal() as stop:
        for seed in config.seeds:
            one = copy.deepcopy(config)
            one.seed = seed
            folder = run_seed(one, stop, say)
            if folder is None:
                return None
            folders.append(folder)
    found = [np.load(folder / "test.npz") for folder in folders]
    if any(not np.array_equal(f["labels"], found[0]["labels"]) for f in found):
        raise ValueError(
            f"{folders[0].parent}: the seeds were tested on different images (the data changed): resume=false repeats them"
        )
    data = LabelledData(config.data, config.seeds[0])
    out = folders[0].parent
    extra = {"ece_before_temperature": float(np.mean([f["before"] for f in found]))}
    labels, groups = found[0]["labels"], found[0]["groups"]
    result = evaluate([f["probabilities"] for f in found], labels, groups, data.classes, extra)
    if len(found) > 1:
        ensemble = evaluate([np.mean([f["probabilities"] for f in found], axis=0)], labels, groups, data.classes, {})
        result |= {f"ensemble {name}": value for name, value in ensemble.items() if name in (*SCORES, "ece")}
    write_metrics(out / "metrics.json", result, config, data, config.seeds, "")
    (out / "table.md").write_text(table(result, config.seeds) + "\n")
    return result


def _finetune(config, data: LabelledData, encoder: Encoder, folder: run.RunFolder, device, stop) -> Classifier | None:
    codes, size = torch.from_numpy(data.codes), data.dataset.size
    model = Classifier(encoder, make_head(encoder.width, len(data.classes), config.head), data.classes)
    own = {k: v for k, v in to_dict(config.augment).items() if k != "mixup"}
    sampler = PatchSampler(PatchConfig(count=1, size=size, scale_high=1.0, **own))
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
        logits, truth = predict(network, data, data.val), data.codes[data.val]
        entropy = float(F.cross_entropy(logits, torch.from_numpy(truth)))
        accuracy = probing.balanced_accuracy(truth, logits.argmax(1).numpy())
        # ties of a small validation split are broken by the cross-entropy
        return {
            "score": accuracy - 1e-3 * min(entropy, 10.0),
            "val_balanced_accuracy": accuracy,
            "val_cross_entropy": entropy,
        }

    tuner = Finetuner(
        model, config.finetune, folder, device, config.seed, config.encoder.freeze_epochs, config.precision
    )
    return tuner.fit(lambda epoch: batches_of(parts, shares, config.finetune, config.seed, epoch), loss, validate, stop)


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
        score = probing.balanced_accuracy(truth, logits.argmax(1).numpy())
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
    classes that occur in `labels`; AUROC needs two of them and is NaN otherwise. Equal to scikit-learn's with sample_weight,
    and a hundred times as fast for many resamples.
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
        area = np.full(len(weight), np.nan)
        if len(present) > 1:
            area = np.mean([_area(labels == c, probabilities[:, c], weight) for c in present], axis=0)
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


def fit_temperature(labels: np.ndarray, logits: Tensor) -> float:
    """The temperature, from 0.05 to 20, that gives the least cross-entropy on these (validation) images."""
    target = torch.from_numpy(np.asarray(labels))

    def entropy(log_t: float) -> float:
        return float(F.cross_entropy(logits.double() / np.exp(log_t), target))

    return float(np.exp(minimize_scalar(entropy, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def evaluate(
    runs: list[np.ndarray], labels, groups, classes: list[str], extra: dict, repeats: int = 2000
) -> dict[str, dict]:
    """Every score of several seeds' probabilities on the same images, with 95 % intervals over seeds and groups."""
    counts = probing.bootstrap_counts(groups, repeats)
    # a resample without any image of a class cannot say anything of that class
    whole = np.all([counts[:, labels == c].sum(1) > 0 for c in np.unique(labels)], axis=0)
    counts = counts[whole] if whole.any() else np.ones((1, len(labels)))
    single = [{k: float(v[0]) for k, v in scores(labels, p).items()} for p in runs]
    resampled = [scores(labels, p, counts) for p in runs]
    result = {}
    for name in SCORES:
        result[name] = _figure(np.array([s[name] for s in single]), np.mean([r[name] for r in resampled], axis=0))
    errors = [expected_calibration_error(labels, p) for p in runs]
    result["ece"] = {"mean": float(np.mean(errors)), "per_seed": errors}
    for code in np.unique(labels):
        right = np.array([(p.argmax(1) == code)[labels == code].mean() for p in runs])
        result[f"recall {classes[code]}"] = {"mean": float(right.mean()), "per_seed": right.tolist()}
    confusion = sum(sk.confusion_matrix(labels, p.argmax(1), labels=range(len(classes))) for p in runs)
    result["confusion"] = {"classes": classes, "rows_true_columns_predicted": confusion.tolist()}
    return result | {name: {"mean": value} for name, value in extra.items()}


def _figure(seeds: np.ndarray, resamples: np.ndarray) -> dict:
    if len(resamples) < 2 or not np.isfinite(resamples).all():
        return {"mean": float(np.mean(seeds)), "per_seed": seeds.tolist()}
    mean, low, high = probing.interval(seeds, resamples)
    return {"mean": mean, "low": max(0.0, low), "high": min(1.0, high), "per_seed": seeds.tolist()}


def table(result: dict[str, dict], seeds: list[int]) -> str:
    """A Markdown table of the scores; recalls of more than a dozen classes stay in metrics.json."""
    many = sum(name.startswith("recall ") for name in result) > 12
    lines = [
        f"| figure | mean of {len(seeds)} seed{'s'[: len(seeds) > 1]} | 95 % interval | each |",
        "| --- " * 4 + "|",
    ]
    for name, m in result.items():
        if "mean" in m and not (many and name.startswith("recall ")):
            limits = f"{m['low']:.3f} to {m['high']:.3f}" if "low" in m else ""
            lines.append(
                f"| {name} | {m['mean']:.3f} | {limits} | {', '.join(f'{v:.3f}' for v in m.get('per_seed', []))} |"
            )
    return "\n".join(lines)


def write_metrics(
    path: Path, result: dict, config: ClassificationConfig, data: LabelledData, seeds, duplicates: str
) -> None:
    """metrics.json: the figures with the protocol they were measured by."""
    protocol = {
        "split_unit": "group (patient or near-duplicate cluster)", "selection": "validation balanced accuracy",
        "input_size": config.data.size, "initialisation": config.encoder.weights, "mode": config.mode,
        "labels": config.data.labels, "training_images": len(data.train), "test_images": len(data.test),
        "interval": "95 %, Student's t over seeds plus bootstrap over test groups", "duplicates": duplicates,
        "device": run.device_name(),
    }  # fmt: skip
    whole = {"task": "classification", "dataset": config.data.path, "split": "test", "protocol": protocol, "seeds": list(seeds),
             "metrics": result}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.tmp")
    part.write_text(json.dumps(whole, indent=1))
    part.replace(path)


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

    On the last stage of a ResNet, and on what enters the last block of a transformer.
    """
    body, kept = model.encoder.body, {}
    if hasattr(body, "layer4"):
        handle = body.layer4.register_forward_hook(lambda _m, _i, out: kept.update(map=out))
    else:
        handle = body.blocks[-1].register_forward_pre_hook(lambda _m, inputs: kept.update(map=inputs[0]))
    model.eval()
    try:
        with torch.enable_grad():
            x = images.to(model.temperature.device).detach().clone().requires_grad_()
            logits = model(x)
            chosen = logits[torch.arange(len(x)), torch.as_tensor(np.asarray(targets), device=logits.device)].sum()
            gradient = torch.autograd.grad(chosen, kept["map"])[0]
    finally:
        handle.remove()
    activation, gradient = kept["map"].detach(), gradient.detach()
    if activation.ndim == 3:  # tokens: those of patches, as a square
        side = int((activation.shape[1] - 1) ** 0.5)
        activation, gradient = (
            t[:, -side * side :].transpose(1, 2).unflatten(2, (side, side)) for t in (activation, gradient)
        )
    heat = (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return (heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu().numpy()


# ---- a trained classifier as a file ---------------------------------------------------------------------------------


def save_classifier(path: Path, model: Classifier, config: ClassificationConfig) -> None:
    """`module.base_encoder.*` as in every checkpoint of this project, beside it the head and the classes."""
    tensors = {checkpoints.ENCODER_PREFIX + k: v for k, v in model.encoder.published_state().items()}
    tensors |= {f"module.head.{k}": v.detach().cpu() for k, v in model.head.state_dict().items()}
    checkpoints.save(path, {
        "state_dict": tensors, "encoder": model.encoder.spec_dict(), "task": "classification", "classes": model.classes,
        "mode": config.mode, "head": to_dict(config.head) | {"k": getattr(model.head, "k", 0)}, "size": config.data.size,
        "in_channels": model.encoder.spec.in_channels, "temperature": float(model.temperature), "config": to_dict(config),
    })  # fmt: skip


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
