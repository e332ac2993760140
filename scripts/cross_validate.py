"""Which settings fine-tune better? Cross-validation over the train and val images; the test split is not looked at.

    python scripts/cross_validate.py --config configs/classification/busi.yaml data.path=DIR folds=2 finetune.min_steps=120
        [encoder.weights=FILE] [few=true] [unit=image] [section.key=value ...]

Any key of Downstream/Classification/train.py. No fold divides a patient or duplicate cluster, but with unit=image, which shows
what an image-level split gains by its duplicates. `few` trains on one fold and tests on the others, for three folds: a twelfth
of the labels with folds=12. There is one epoch of finetune.min_steps and nothing is chosen on the held-out fold. Prints the
scores, with `few` their mean over the three; otherwise logs/<name>/cross_validation.npz keeps the answers, and --against another
such file gives the paired difference with a 95 % interval over groups.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vfm4us import config, markdown
from vfm4us.config import option
from vfm4us.lazy import Lazy
from vfm4us.runtime.run import RunFolder
from vfm4us.runtime.signals import exit_code
from vfm4us.tasks.sections import ClassificationConfig

if TYPE_CHECKING:
    from vfm4us.evaluation import statistics
    from vfm4us.tasks import classification

torch, model_selection, devices = Lazy("torch"), Lazy("sklearn.model_selection"), Lazy("vfm4us.runtime.device")
figures, statistics = Lazy("vfm4us.evaluation.classification"), Lazy("vfm4us.evaluation.statistics")  # noqa: F811
classification, finetune = Lazy("vfm4us.tasks.classification"), Lazy("vfm4us.tasks.finetune")  # noqa: F811


@dataclass
class CrossValidationConfig(ClassificationConfig):
    """The classification config, and how its train and val images are divided into folds."""

    folds: int = option(2, "parts of the train and val images", low=2)
    few: bool = option(False, "train on one part, test on the others, for three parts")
    unit: str = option("group", "what no fold divides", choices=["group", "image"])
    limit: int = option(900, "images, a fixed choice; 0: all", low=0)


def main() -> None:
    """Cross-validate one setting, print its mean scores, and with --against the differences to another setting with intervals.

    Outcomes go to cross_validation.npz in the run folder, but not with few=true, for which --against raises ValueError.
    """
    parser = config.parser(__doc__, CrossValidationConfig)
    parser.add_argument("--against", type=Path, help="cross_validation.npz of another setting on the same images")
    arguments = parser.parse_args()
    settings = config.load(CrossValidationConfig, arguments.config, arguments.overrides)
    settings.mode, settings.finetune.epochs = "finetune", 1
    settings.finetune.min_steps = settings.finetune.max_steps or settings.finetune.min_steps
    if settings.few and arguments.against:
        raise ValueError("--against needs few=false: with it, the folds are tested on images that overlap")
    outcomes = cross_validate(settings)
    measured = [figures.scores(o["labels"], o["probabilities"]) for o in outcomes]
    for outcome, values in zip(outcomes, measured, strict=True):
        right = outcome["probabilities"][np.arange(len(outcome["labels"])), outcome["labels"]]
        values["cross_entropy"] = np.array([-np.log(right.clip(1e-12)).mean()])
    print(f"{settings.name}: " + ", ".join(f"{k} {np.mean([v[k][0] for v in measured]):.3f}" for k in measured[0]))
    if not settings.few:
        np.savez(Path(settings.logs) / settings.name / "cross_validation.npz", **outcomes[0])
    if arguments.against:
        with np.load(arguments.against) as theirs:
            apart = statistics.differences(figures.outcome_scores, [(outcomes, [dict(theirs)])])
        print("difference: " + ", ".join(f"{k} {markdown.cell(v, '+')}" for k, v in apart.items()))


def cross_validate(settings: CrossValidationConfig) -> "list[statistics.Outcome]":
    """What was said of the held-out images: all folds in one outcome, or with `few` one for each of three."""
    data = classification.LabelledData(settings.data, 0)
    rows = np.sort(np.concatenate([data.train, data.val]))
    if 0 < settings.limit < len(rows):
        rows = np.sort(np.random.default_rng(0).choice(rows, settings.limit, replace=False))
    groups = np.asarray(data.dataset.groups)[rows]
    unit = groups if settings.unit == "group" else np.arange(len(rows))
    logits, outcomes = torch.zeros(len(rows), len(data.classes)), []
    folding = model_selection.StratifiedGroupKFold(settings.folds, shuffle=True, random_state=0)
    for fold, (used, held_out) in enumerate(folding.split(rows, data.codes[rows], unit)):
        if settings.few:
            used, held_out = held_out, used
            if fold == 3:
                break
        data.train, data.val, settings.seed = rows[used], rows[held_out], fold
        folder = RunFolder(Path(settings.logs) / settings.name / f"fold-{fold}", settings, settings.resume)
        try:
            encoder, _ = finetune.make_encoder(settings.encoder, fold)
            torch.manual_seed(fold)
            model = classification.finetune_classifier(
                settings, data, encoder, folder, devices.choose_device(settings.device)
            )
        finally:
            folder.close()
        logits[held_out] = classification.predict(model, data, rows[held_out])
        if settings.few:
            outcomes.append(outcome_of(data, rows[held_out], groups[held_out], logits[held_out]))
    return outcomes or [outcome_of(data, rows, groups, logits)]


def outcome_of(
    data: "classification.LabelledData", rows: np.ndarray, groups: np.ndarray, logits
) -> "statistics.Outcome":
    """The outcome of the images `rows`, in that order: paths, groups, true classes (N,) and probabilities (N, classes)."""
    paths = np.array([data.dataset.records[i].path for i in rows])
    return {"paths": paths, "groups": groups, "labels": data.codes[rows], "probabilities": logits.softmax(1).numpy()}


if __name__ == "__main__":
    sys.exit(exit_code(main))
