"""How like two images, or two sets of images, are: SSIM, PSNR, local correlation, speckle, gradients, kernel inception distance.

Images are uint8 (H, W). The figures of a pair are in FIGURES; KID compares sets by the features of a network that `Features` names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vfm4us import checkpoints
from vfm4us.checkpoints import load_encoder
from vfm4us.data.images import image_batch
from vfm4us.evaluation import statistics

WINDOW = 9  # px, of LNCC
PATCH = 9  # px, side of the patches of even tissue
LEAST_FOR_KID = 50  # images on either side


def ssim(image: np.ndarray, target: np.ndarray) -> float:
    """Structural similarity (Wang 2004) of two uint8 images (H, W), Gaussian window of sigma 1.5; both sides at least 11 px."""
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            image, target, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
    )


def psnr(image: np.ndarray, target: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 images, dB; 100 where they are equal."""
    error = np.square(image.astype(np.float64) - target).mean()
    return float(min(100.0, 10 * np.log10(255**2 / max(error, 1e-10))))


def lncc(image: np.ndarray, target: np.ndarray, window: int = WINDOW) -> float:
    """Mean correlation of uint8 images within all windows that lie inside; one in which the target is flat is left out.

    A window in which the image alone is flat counts 0, so that flattening costs. 0 where the target is flat everywhere.
    """
    a, b, n = image.astype(np.int64), target.astype(np.int64), window**2
    sum_a, sum_b = box_sums(a, window), box_sums(b, window)
    covariance = n * box_sums(a * b, window) - sum_a * sum_b  # whole numbers: exact
    spread_a, spread_b = n * box_sums(a * a, window) - sum_a**2, n * box_sums(b * b, window) - sum_b**2
    varies = spread_b > 0
    if not varies.any():
        return 0.0
    scale = np.sqrt(np.maximum(spread_a[varies], 1).astype(np.float64)) * np.sqrt(spread_b[varies].astype(np.float64))
    return float((covariance[varies] / scale).mean())


def box_sums(x: np.ndarray, window: int) -> np.ndarray:
    """Sums (H - window + 1, W - window + 1) over every window."""
    total = np.pad(x.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return total[window:, window:] - total[:-window, window:] - total[window:, :-window] + total[:-window, :-window]


def speckle(image: np.ndarray, target: np.ndarray) -> float:
    """How near the speckle of an image is to its target's, 1 for as strong: min(r, 1 / r) of r = `speckle_ratio`."""
    return _near(speckle_ratio(image, target))


def gradient(image: np.ndarray, target: np.ndarray) -> float:
    """How near the gradients of an image are to its target's, 1 for as steep: min(r, 1 / r) of r = `gradient_ratio`."""
    return _near(gradient_ratio(image, target))


def speckle_ratio(image: np.ndarray, target: np.ndarray) -> float:
    """Speckle contrast (deviation / mean, the inverse of speckle SNR) of an image over that of its target; below 1: too smooth.

    Median over patches of the target that show even tissue: windows of 9 px that do not overlap, no grey below 8 or above 247,
    and of those the half whose mean greys in four quarters differ least. nan where there is no such patch.
    """
    a, b = (_patches(x) for x in (image, target))
    usable = (b.min((1, 2)) >= 8) & (b.max((1, 2)) <= 247)
    if not usable.any():
        return float("nan")
    a, b = a[usable], b[usable]
    h = PATCH // 2
    quarters = np.stack(
        [b[:, y, x].mean((1, 2)) for y in (slice(h), slice(-h, None)) for x in (slice(h), slice(-h, None))]
    )
    even = np.argsort(np.ptp(quarters, axis=0) / b.mean((1, 2)), kind="stable")[: (len(b) + 1) // 2]
    contrast = [np.median(x[even].std((1, 2)) / np.maximum(x[even].mean((1, 2)), 1)) for x in (a, b)]
    return float(contrast[0] / contrast[1]) if contrast[1] else float("nan")


def gradient_ratio(image: np.ndarray, target: np.ndarray) -> float:
    """Mean length of an image's grey gradient over that of its target; below 1: too smooth. nan where the target is flat."""
    lengths = [np.hypot(*np.gradient(x.astype(np.float64))).mean() for x in (image, target)]
    return float(lengths[0] / lengths[1]) if lengths[1] else float("nan")


def _near(ratio: float) -> float:
    """1 for a ratio of 1 and where there is nothing to compare, towards 0 both ways."""
    return 1.0 if np.isnan(ratio) else min(ratio, 1 / ratio) if ratio else 0.0


def _patches(x: np.ndarray) -> np.ndarray:
    """(H, W) -> (N, PATCH, PATCH), side by side from the top left corner."""
    rows, columns = (side // PATCH for side in x.shape)
    cut = x[: rows * PATCH, : columns * PATCH].astype(np.float64)
    return cut.reshape(rows, PATCH, columns, PATCH).swapaxes(1, 2).reshape(-1, PATCH, PATCH)


FIGURES = {"ssim": ssim, "psnr": psnr, "lncc": lncc, "speckle": speckle, "gradient": gradient}
MEASURES = (*FIGURES, "dice")
FILTERS = ("blur", "median", "nlm")  # see filters.py
SIDES = ("input", *FILTERS, "blurred", "target")  # beside ours; blurred: of older runs, a blur of 1 px
RULES = {
    "resolution": "original size of each low-quality image, grey, 8 bit; a target of another scale is resized to it",
    "ssim": "Gaussian window of sigma 1.5, range 255 (scikit-image)",
    "psnr": "10 log10(255^2 / mean squared difference), dB; 100 where there is no difference",
    "lncc": f"local normalised cross-correlation in windows of {WINDOW} x {WINDOW} px, mean over those whose target is not flat",
    "speckle": f"contrast (deviation / mean) in {PATCH} x {PATCH} px patches of even tissue over the target's: min(r, 1/r), 1 is "
    "best, and stands where the target has no such patch",
    "gradient": "mean length of the grey gradient against the target's: min(r, 1/r), 1 is best",
    "input": "figures named _input are of the untouched low-quality image, _gain is ours minus that, image by image",
    "filters": "figures named _blur, _median, _nlm are of the low-quality image after that filter; _over_filters is ours minus the "
    "best of the three, found for each figure by itself, in favour of the filters",
}


def kid(features: np.ndarray, reference: np.ndarray) -> float:
    """Kernel inception distance (Binkowski 2018, arXiv 1801.01401) of features (n, d) and (m, d), in float64.

    The unbiased estimate of the squared maximum mean discrepancy with the kernel (x y / d + 1)^3; it may be below 0.
    """
    x, y = np.asarray(features, np.float64), np.asarray(reference, np.float64)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: np.ndarray) -> float:
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


@dataclass
class Features:
    """What KID is taken on: `of(images)` gives (N, d) float32 for uint8 images (H, W) of any sizes, by the network `name`."""

    name: str
    of: Callable[[list[np.ndarray]], np.ndarray]

    @classmethod
    def choose(cls, kid_encoder: str) -> "Features | None":
        """Inception where torchvision's weights lie in its cache, else the named encoder, else None."""
        from torchvision.models import Inception_V3_Weights, inception_v3

        path = Path(torch.hub.get_dir()) / "checkpoints" / Inception_V3_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
        if path.is_file():
            network = inception_v3(weights=None, init_weights=False)
            network.load_state_dict(checkpoints.read(path))
            network.fc = nn.Identity()
            network.eval()

            @torch.no_grad()
            def of(images: list[np.ndarray]) -> np.ndarray:
                batches = [image_batch(images[i : i + 16], 299, frame=True)[0] for i in range(0, len(images), 16)]
                return np.concatenate([network(b.expand(-1, 3, -1, -1) / 127.5 - 1).numpy() for b in batches])

            return cls(f"torchvision's Inception v3 ({path.name}), 2048 features", of)
        if kid_encoder:
            encoder = load_encoder(kid_encoder)

            def of(images: list[np.ndarray]) -> np.ndarray:
                return np.concatenate(
                    [
                        encoder.embed(image_batch(images[i : i + 16], 224, frame=True)[0]).numpy()
                        for i in range(0, len(images), 16)
                    ]
                )

            return cls(
                f"ultrasound encoder {kid_encoder} ({encoder.spec.name}), {encoder.width} features; no FID-Inception",
                of,
            )
        return None


def kid_rule(features: Features | None, images: int, reference: int) -> str:
    """How KID was measured, or why it was not."""
    if features is None:
        return "not measured: torchvision's Inception weights are not in its cache, and no kid_encoder was given"
    if min(images, reference) < LEAST_FOR_KID:
        return f"not measured: {images} images and {reference} reference images; it takes {LEAST_FOR_KID} of each"
    return (
        f"unbiased, polynomial kernel; {images} images against {reference} of high quality; features: {features.name}"
    )


# ---- of many images --------------------------------------------------------------------------------------------------


def outcome_scores(outcome: statistics.Outcome, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Every figure (R,) of what one seed's model did, in each row of counts (R, N), how often an image occurs."""
    result = {}
    for name in (m for m in MEASURES if m in outcome):
        sides = {s: counts @ outcome[f"{name}_{s}"] / counts.sum(1) for s in SIDES if f"{name}_{s}" in outcome}
        ours = counts @ outcome[name] / counts.sum(1)
        result |= {name: ours} | {f"{name}_{side}": value for side, value in sides.items()}
        result[f"{name}_gain"] = ours - sides["input"]
        if filtered := [sides[f] for f in FILTERS if f in sides]:
            result[f"{name}_over_filters"] = ours - np.max(filtered, axis=0)
    return result


def evaluate(outcomes: list[statistics.Outcome]) -> dict[str, dict]:
    """Every figure of several seeds on the same images, with 95 % intervals.

    Those named val_ are of the validation images at the packed size, by which the epoch was chosen: for choosing settings.
    """
    differences = [f"{m}_{of}" for m in MEASURES for of in ("gain", "over_filters")]
    lncc_, psnr_ = ([m, *(f"{m}_{side}" for side in SIDES)] for m in ("lncc", "psnr"))
    result = statistics.figures(outcome_scores, outcomes, unbounded=tuple(psnr_), signed=(*differences, *lncc_))
    for name in ("kid", "kid_input", "val_ssim", "val_ssim_input", "val_psnr", "val_psnr_input"):
        if all(name in o for o in outcomes):
            values = [float(o[name]) for o in outcomes]
            result[name] = {"mean": float(np.mean(values)), "per_seed": values}
    return result


def verdict(result: dict[str, dict]) -> str:
    """One sentence: whether the enhanced images are nearer to their targets than the untouched ones."""
    if "ssim_gain" not in result:
        return (
            "No targets to compare with: whether the enhanced images are better than the untouched input is not known."
        )
    parts, lost = [], []
    for name, unit in (("ssim", ""), ("psnr", " dB")):
        gain = result[f"{name}_gain"]
        interval = f" ({gain['low']:+.3f} to {gain['high']:+.3f})" if "low" in gain else ""
        ours, untouched = (f"{result[n]['mean']:.3f}{unit}" for n in (name, f"{name}_input"))
        parts.append(f"{name.upper()} {ours} against {untouched} untouched, {gain['mean']:+.3f}{interval}")
        if gain.get("low", gain["mean"]) <= 0:
            lost.append(name.upper())
    said = (
        "beats the untouched input in both"
        if not lost
        else f"does NOT beat the untouched input in {' nor in '.join(lost)}"
    )
    said = f"{'; '.join(parts)}: the enhancer {said}."
    if "ssim_over_filters" in result:
        said += f" {against_filters(result)}"
    return said


def against_filters(result: dict[str, dict]) -> str:
    """One sentence: whether the enhanced images are nearer to their targets than those of the best filter, and as lively."""
    parts, lost = [], []
    for name, unit in (("ssim", ""), ("psnr", " dB")):
        over = result[f"{name}_over_filters"]
        best = max(FILTERS, key=lambda f: result[f"{name}_{f}"]["mean"])
        interval = f" ({over['low']:+.3f} to {over['high']:+.3f})" if "low" in over else ""
        parts.append(
            f"{name.upper()} {result[f'{name}_{best}']['mean']:.3f}{unit} ({best}), {over['mean']:+.3f}{interval}"
        )
        if over.get("low", over["mean"]) <= 0:
            lost.append(name.upper())
    said = "is beaten in both" if not lost else f"is NOT beaten in {' nor in '.join(lost)}"
    kept = ", ".join(
        f"{name} {result[name]['mean']:.2f} against {max(result[f'{name}_{f}']['mean'] for f in FILTERS):.2f}"
        for name in ("speckle", "gradient")
        if f"{name}_over_filters" in result
    )
    return f"The best filter reads {'; '.join(parts)}: it {said}" + (f"; likeness of {kept}." if kept else ".")
