"""Figures of masks: overlap and distance between outlines, of each image and class, with the rule for empty masks."""

import warnings

import numpy as np
import torch
from torch import Tensor

from vfm4us.evaluation import statistics

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
