"""A cheap scanner's version of any ultrasound image, for sets without pairs of low and high quality.

    low = degraded(image, strength=1.0)      # uint8 (H, W); the same image gives the same answer

The physics of the phantoms applied to a finished picture. The grey of a log-compressed image is turned back into echo amplitude,
and then it loses what a cheaper scanner loses:

- a lower frequency widens the point spread along the beam and across it;
- fewer elements widen it across the beam, the more the further from the focus, and add side lobes (a wide, weak pedestal);
- scatterers interfere within the wider point spread: multiplicative speckle of its size;
- electronic noise, which time-gain compensation raises with depth;
- a narrower dynamic range and fewer bits.

Black borders, which are no tissue, stay black. Strength 0 gives the image back; LEVELS are the strengths that have a name.
"""

import hashlib

import numpy as np
from scipy import fft, ndimage

VERSION = 1  # raise it whenever the pixels change: degraded copies are kept
LEVELS = {"mild": 0.5, "middle": 0.75, "strong": 1.0}
DYNAMIC_RANGE = 60.0  # dB between black and white of the given image
PEDESTAL = 0.03  # amplitude of the side lobes, at strength 1
PEDESTAL_WIDTH = 6.0  # of the main lobe's


def strength_of(word: str) -> float:
    """A strength from the name of a level or a number as text. ValueError for what is neither, or not above 0."""
    try:
        strength = LEVELS[word] if word in LEVELS else float(word)
    except ValueError:
        strength = 0.0
    if not 0 < strength < np.inf:
        raise ValueError(f"{word!r}: give a strength above 0, or {', '.join(LEVELS)}")
    return strength


def degraded(image: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """`degrade` with a seed that is a function of the image's own pixels, so that a test set is the same everywhere."""
    seed = hashlib.sha256(image.tobytes() + str(image.shape).encode()).digest()
    return degrade(image, int.from_bytes(seed[:8], "big"), strength)


def degrade(image: np.ndarray, rng_or_seed: np.random.Generator | int, strength: float = 1.0) -> np.ndarray:
    """uint8 (H, W) -> uint8 (H, W), seeded; widths scale with the longer side. Raises ValueError for another kind of image."""
    if image.ndim != 2 or image.dtype != np.uint8:
        raise ValueError(f"image: expected uint8 of shape (H, W), got {image.dtype} {image.shape}")
    if not strength >= 0:
        raise ValueError(f"strength={strength}: at least 0")
    if strength == 0:
        return image.copy()
    rng = np.random.default_rng(rng_or_seed)
    height, scale = image.shape[0], max(image.shape) / 256  # pixels per pixel of a 256 picture
    depth = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    lateral = strength * scale * rng.uniform(1.2, 1.8) * np.sqrt(1 + (2 * (depth - rng.uniform(0.3, 0.6))) ** 2)
    axial = strength * scale * rng.uniform(0.5, 0.8)
    support = ndimage.binary_closing(image > 0, iterations=3) | (image > 0)

    def spread(field: np.ndarray) -> np.ndarray:
        return lateral_spread(ndimage.gaussian_filter1d(field, axial, axis=0), lateral, PEDESTAL * min(strength, 2.0))

    grey_levels = np.arange(256, dtype=np.float32)
    amplitude = (10 ** (DYNAMIC_RANGE * (grey_levels / 255 - 1) / 20))[image]
    speckle = spread(rng.standard_normal(image.shape, dtype=np.float32))
    speckle = 1 + 0.3 * min(strength, 2.0) * speckle / (speckle.std() + 1e-6)
    echo = np.maximum(spread(amplitude), 0) * np.maximum(speckle, 0.05)
    noise = 0.7 * np.sqrt(2 * rng.standard_exponential(image.shape, dtype=np.float32))  # Rayleigh
    floor = 10 ** ((-50 + 12 * strength * depth) / 20) * noise
    decibel = 20 * np.log10(np.hypot(echo, floor * min(strength, 1.0)) + 1e-6)
    narrow = DYNAMIC_RANGE / (1 + 0.3 * strength)
    grey = np.clip(1 + (decibel + 4) / narrow, 0, 1) * support
    levels = max(8, round(256 / (1 + 7 * strength)))
    return np.round(np.round(grey * (levels - 1)) * (255 / (levels - 1))).astype(np.uint8)


def lateral_spread(field: np.ndarray, sigma: np.ndarray, pedestal: float) -> np.ndarray:
    """Each row of (H, W) blurred by its own Gaussian, sigma (H, 1) in pixels, and side lobes; unit gain, edges reflected."""
    width = field.shape[1]
    margin = int(np.ceil(3 * PEDESTAL_WIDTH * sigma.max())) if pedestal else int(np.ceil(4 * sigma.max()))
    padded = np.pad(field, ((0, 0), (margin, margin)), mode="symmetric")
    length = fft.next_fast_len(padded.shape[1], real=True)
    k = fft.rfftfreq(length)[None, :].astype(np.float32)
    exponent = -2 * (np.pi * sigma.astype(np.float32) * k) ** 2
    lobes = PEDESTAL_WIDTH * pedestal
    transfer = (np.exp(exponent) + lobes * np.exp(PEDESTAL_WIDTH**2 * exponent)) / (1 + lobes)
    return fft.irfft(fft.rfft(padded, length) * transfer, length)[:, margin : margin + width]
