"""How like two images, or two sets of images, are: SSIM, PSNR, local correlation, kernel inception distance.

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
    there = spread_b > 0
    if not there.any():
        return 0.0
    scale = np.sqrt(np.maximum(spread_a[there], 1).astype(np.float64)) * np.sqrt(spread_b[there].astype(np.float64))
    return float((covariance[there] / scale).mean())


def box_sums(x: np.ndarray, window: int) -> np.ndarray:
    """Sums (H - window + 1, W - window + 1) over every window."""
    total = np.pad(x.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return total[window:, window:] - total[:-window, window:] - total[window:, :-window] + total[:-window, :-window]


FIGURES = {"ssim": ssim, "psnr": psnr, "lncc": lncc}
MEASURES = tuple(FIGURES)
BLUR = 1.0  # px, of the original image: what is taken without any learning
RULES = {
    "resolution": "original size of each low-quality image, grey, 8 bit; a target of another scale is resized to it",
    "ssim": "Gaussian window of sigma 1.5, range 255 (scikit-image)",
    "psnr": "10 log10(255^2 / mean squared difference), dB; 100 where there is no difference",
    "lncc": f"local normalised cross-correlation in windows of {WINDOW} x {WINDOW} px, mean over those whose target is not flat",
    "input": "figures named _input are of the untouched low-quality image, _gain is ours minus that, image by image",
    "blurred": f"figures named _blurred are of the low-quality image after a Gaussian blur of {BLUR:g} px, which takes noise away",
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
        ours, untouched = ((counts @ outcome[n] / counts.sum(1)) for n in (name, f"{name}_input"))
        result |= {name: ours, f"{name}_input": untouched, f"{name}_gain": ours - untouched}
        if f"{name}_blurred" in outcome:  # runs before this figure do not have it
            result[f"{name}_blurred"] = counts @ outcome[f"{name}_blurred"] / counts.sum(1)
    return result


def evaluate(outcomes: list[statistics.Outcome]) -> dict[str, dict]:
    """Every figure of several seeds on the same images, with 95 % intervals.

    Those named val_ are of the validation images at the packed size, by which the epoch was chosen: for choosing settings.
    """
    signed = tuple(f"{m}_gain" for m in MEASURES) + ("lncc", "lncc_input", "lncc_blurred")
    result = statistics.figures(
        outcome_scores, outcomes, unbounded=("psnr", "psnr_input", "psnr_blurred"), signed=signed
    )
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
    if "ssim_blurred" in result:
        blurred = f"{result['ssim_blurred']['mean']:.3f} and {result['psnr_blurred']['mean']:.3f} dB"
        return f"{'; '.join(parts)}: the enhancer {said}. A Gaussian blur of {BLUR:g} px reads {blurred}."
    return f"{'; '.join(parts)}: the enhancer {said}."
