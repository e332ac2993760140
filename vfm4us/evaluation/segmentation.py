"""Figures of masks: overlap and distance between outlines, of each image and class, with the rule for empty masks."""

import numpy as np
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor

from vfm4us.evaluation import statistics

IGNORED = 255  # in a target: padding, and what a data set says to ignore; it counts nowhere
MEASURES = ("dice", "iou", "hd95", "asd")
RULES = {
    "resolution": "original size of each image; distances in its pixels",
    "foreground": "background is no class; a figure is taken per image and class, averaged over images, then over classes",
    "empty_masks": "of an image and class: truth and prediction empty: Dice and IoU 1, distances 0; one of them empty: Dice and "
    "IoU 0, distances the image's diagonal; both kinds are counted",
    "present": "only images in whose truth the class occurs",
    "hd95": "the larger of the two directions' 95th percentiles of the distance between outlines",
    "hd95_mm": "of the images whose pixel spacing is known; their number is images_with_spacing",
    "asd": "average symmetric distance between outlines",
    "ignored": "pixels of the ignore value are left out: neither truth nor prediction has them",
    "pooled_with_background": "pixels of all images and classes, background among them, thrown together (pixel accuracy): what "
    "some publications call Dice; not comparable with the others",
}


def compare(
    predicted: np.ndarray, truth: np.ndarray, classes: int, spacing: tuple[float, float] | None = None
) -> dict[str, np.ndarray]:
    """Dice, IoU, HD95 and ASD (K,) of two masks (H, W), by the rules in RULES; and the pixels behind them.

    spacing: distance of neighbouring rows and of neighbouring columns, mm; hd95_mm is NaN without it. truth_pixels and
    predicted_pixels (K,); right and pixels: scalars over all classes and background. Pixels IGNORED in `truth` are left out.
    """
    known = truth != IGNORED
    figures = {name: np.zeros(classes) for name in (*MEASURES, "hd95_mm")}
    sizes = {name: np.zeros(classes, np.int64) for name in ("truth_pixels", "predicted_pixels")}
    for k in range(classes):
        ours, wanted = (predicted == k + 1) & known, truth == k + 1
        here = {"predicted_pixels": int(ours.sum()), "truth_pixels": int(wanted.sum())}
        both, total = int((ours & wanted).sum()), sum(here.values())
        figures["dice"][k] = 2 * both / total if total else 1.0
        figures["iou"][k] = both / (total - both) if total else 1.0
        if all(here.values()):
            figures["hd95"][k], figures["asd"][k] = outline_distances(ours, wanted)
            figures["hd95_mm"][k] = outline_distances(ours, wanted, spacing)[0] if spacing else np.nan
        else:
            far = [np.hypot(*truth.shape), np.hypot(*np.multiply(truth.shape, spacing)) if spacing else np.nan]
            figures["hd95"][k], figures["hd95_mm"][k] = np.multiply(far, total > 0)
            figures["asd"][k] = figures["hd95"][k]
        for name, count in here.items():
            sizes[name][k] = count
    pixels = {"right": ((predicted == truth) & known).sum(), "pixels": known.sum()}
    return figures | sizes | {name: np.array(count, np.int64) for name, count in pixels.items()}


def outline_distances(
    predicted: np.ndarray, truth: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)
) -> tuple[float, float]:
    """HD95 and average symmetric distance between the outlines of two masks (H, W) of bool, neither of them empty.

    An outline is what one erosion by a cross takes away, with nothing beyond the image. Distances are exact, in units of `spacing`
    (rows, columns), by a transform of the smallest box that holds both masks.
    """
    rows, columns = ((predicted | truth).any(1 - axis).nonzero()[0] for axis in (0, 1))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    outlines = [mask & ~binary_erosion(mask) for mask in (predicted[box], truth[box])]
    forth, back = (distance_transform_edt(~outlines[1 - side], sampling=spacing)[outlines[side]] for side in (0, 1))
    return max(np.percentile(forth, 95), np.percentile(back, 95)), float(np.concatenate([forth, back]).mean())


def packed_dice(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Dice (N, K) of class numbers (N, S, S) by the rule for empty masks, padding left out."""
    inside = target != IGNORED
    rows = []
    for number in range(1, classes + 1):
        p, t = (predicted == number) & inside, target == number
        total = p.sum((1, 2)) + t.sum((1, 2))
        rows.append(torch.where(total > 0, 2 * (p & t).sum((1, 2)) / total.clamp(min=1), 1.0))
    return torch.stack(rows, dim=1)


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


def outcome_scores(outcome: statistics.Outcome, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Every figure (R,) of what one seed's model did, in each row of counts (R, N), how often an image occurs."""
    weight, present = counts.astype(np.float64), outcome["truth_pixels"] > 0  # (R, N), (N, K)
    names, result = outcome["classes"].tolist(), {}

    def mean(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # a resample may hold no such image
            return weight[:, rows] @ values[rows] / weight[:, rows].sum(1)

    every, occurring = np.ones(len(present), bool), [k for k in range(len(names)) if present[:, k].any()]
    for measure in MEASURES:
        result[measure] = np.mean([mean(outcome[measure][:, k], every) for k in range(len(names))], axis=0)
    for measure in MEASURES if occurring else ():
        each = {k: mean(outcome[measure][:, k], present[:, k]) for k in occurring}
        result[f"{measure}_present"] = np.mean(list(each.values()), axis=0)
        if len(names) > 1:
            result |= {f"{measure}_present {names[k]}": value for k, value in each.items()}
    if not present.all():
        left = (outcome["predicted_pixels"] == 0) & ~present
        with np.errstate(invalid="ignore"):
            result["absent_left_empty"] = weight @ left.sum(1) / (weight @ (~present).sum(1))
    result["pooled_with_background"] = weight @ outcome["right"] / (weight @ outcome["pixels"])
    if (known := images_with_spacing(outcome)).any():
        result["hd95_mm"] = np.mean([mean(values, known) for values in outcome["hd95_mm"].T], axis=0)
    return result


def images_with_spacing(outcome: statistics.Outcome) -> np.ndarray:
    """(N,) whether an image's pixel spacing is known, and so its distances in mm; of no image of an earlier run."""
    known = np.isfinite(outcome["hd95_mm"]).all(1) if "hd95_mm" in outcome else np.zeros(len(outcome["paths"]))
    return np.asarray(known, bool)


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
    if "hd95_mm" in names:
        counted = [int(images_with_spacing(o).sum()) for o in outcomes]
        result["images_with_spacing"] = {"mean": float(np.mean(counted)), "per_seed": counted}
    for name in ("val_dice_present", "val_dice"):
        if all(name in o for o in outcomes):
            values = [float(o[name]) for o in outcomes]
            result[name] = {"mean": float(np.mean(values)), "per_seed": values}
    return result
