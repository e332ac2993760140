"""From reflectors on the beam grid to the log-compressed picture of a scanner."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import fft, ndimage

if TYPE_CHECKING:
    from vfm4us.phantoms.scene import Scene


TISSUE_ALPHA = 0.5  # dB/cm/MHz, what the time-gain compensation expects


@dataclass(frozen=True)
class Probe:
    """What decides the point spread, the noise and the grey scale of one scan; lengths in mm along the beam."""

    depth: float
    frequency: float  # MHz
    f_number: float
    focus: float
    cycles: float = 1.8  # pulse length in wavelengths
    side_lobe: float = 0.01  # amplitude of the lateral pedestal
    noise_margin: float = 22.0  # dB from tissue to electronic noise at full depth
    dynamic_range: float = 60.0  # dB
    levels: int = 256
    smoothing: float = 0.0  # samples, the speckle reduction of a good scanner

    @property
    def wavelength(self) -> float:
        """mm, at 1540 m/s."""
        return 1.54 / self.frequency  # mm at 1540 m/s

    def axial_sigma(self) -> float:
        """Standard deviation of the pulse along the beam, mm."""
        return 0.425 * self.cycles * self.wavelength / 2

    def lateral_sigma(self, depth: np.ndarray) -> np.ndarray:
        """Standard deviation of the beam across it at each depth, mm."""
        field_depth = 7 * self.wavelength * self.f_number**2
        return 0.425 * self.wavelength * self.f_number * np.sqrt(1 + ((depth - self.focus) / field_depth) ** 2)


def lateral_blur(field: np.ndarray, sigma: np.ndarray, pedestal: float = 0.0) -> np.ndarray:
    """Blur each row (rows, columns) by its own Gaussian (sigma in columns) so that white noise keeps its energy."""
    pad = 24
    k = fft.fftfreq(field.shape[1] + 2 * pad)[None, :].astype(np.float32)
    sigma = np.maximum(sigma, 0.45).astype(np.float32)[:, None]
    transfer = np.exp(-2 * (np.pi * sigma * k) ** 2)
    if pedestal:
        transfer += pedestal * 6 * np.exp(-2 * (np.pi * 6 * sigma * k) ** 2)
    transfer /= np.sqrt(np.mean(transfer**2, axis=1, keepdims=True))
    padded = np.pad(field, ((0, 0), (pad, pad)), mode="reflect")
    return fft.ifft(fft.fft(padded, axis=1) * transfer, axis=1)[:, pad:-pad]


def envelope(reflectors: np.ndarray, probe: Probe, pitch: np.ndarray | float) -> np.ndarray:
    """Envelope of complex reflectors (depth samples, lines); `pitch` is the line distance in mm, per row or one."""
    rows = reflectors.shape[0]
    step = probe.depth / rows
    sigma = max(probe.axial_sigma() / step, 0.6)
    gain = math.sqrt(2 * math.sqrt(math.pi) * sigma)  # keeps the energy of white noise, like the lateral blur
    axial = [ndimage.gaussian_filter1d(part, sigma, axis=0, truncate=3) for part in (reflectors.real, reflectors.imag)]
    depth = (np.arange(rows) + 0.5) * step
    return np.abs(lateral_blur((axial[0] + 1j * axial[1]) * gain, probe.lateral_sigma(depth) / pitch, probe.side_lobe))


def complex_noise(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Complex Gaussian noise of the shape, complex64, with mean squared magnitude 1."""
    parts = rng.standard_normal((2, *shape), dtype=np.float32) * np.float32(np.sqrt(0.5))
    return parts[0] + 1j * parts[1]


def scan(scene: Scene, probe: Probe, scatterers: np.ndarray, specular: np.ndarray, rng: np.random.Generator, sliders):
    """Log-compressed beam image, dB relative to tissue, (depth samples, lines) float32."""
    step_cm = probe.depth / scene.rows / 10
    loss = 2 * probe.frequency * step_cm * scene.path + scene.contact  # dB, both ways
    depth_cm = (np.arange(scene.rows, dtype=np.float32) + 0.5)[:, None] * step_cm
    compensation = 2 * probe.frequency * TISSUE_ALPHA * depth_cm
    noise = 10 ** ((-float(compensation[-1, 0]) - probe.noise_margin) / 20)
    # Compensation is linear, so reflectors and noise are amplified before the blur: same picture, no second pass.
    gain = 10 ** ((compensation + sliders) / 20)
    amplified = (scatterers + specular) * (gain * 10 ** (loss / -20))
    clean = envelope(amplified.astype(np.complex64), probe, scene.pitch * probe.depth)
    floor = np.abs(complex_noise(rng, clean.shape)) * (noise * gain)
    decibel = 10 * np.log10(clean**2 + floor**2 + 1e-12)
    return ndimage.gaussian_filter(decibel, probe.smoothing, truncate=2.5) if probe.smoothing else decibel
