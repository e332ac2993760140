"""Synthetic ultrasound with known answers: seven organs, three planes each, lesions with masks, low/high quality.

Lets every script run without a download, and tests what a network learns where the truth is known. It simulates how a
scanner makes a picture. Depth d runs along the beam, x across it:

1. Anatomy is drawn on the beam grid as backscatter (dB), attenuation (dB/cm/MHz) and impedance, from random ellipses,
   tubes, layers and fibres. A virtual patient shares its parameters over three planes.
2. Scatterers: circular complex Gaussian times 10^(backscatter/20), i.e. fully developed speckle, whose envelope is
   Rayleigh with mean/std = 1.91 (Burckhardt 1978; Wagner 1983). Specular echoes: |grad impedance| * cos^3 of the angle
   between beam and interface normal.
3. Attenuation on both ways, A(d) = 2 f * integral of alpha (dB), f in MHz (Szabo, Diagnostic Ultrasound Imaging):
   stone, bone or dense tumour leave a shadow, fluid an enhancement, as the time-gain compensation expects tissue.
4. Point spread, Gaussian to first order: axial sigma = 0.425 * cycles * lambda / 2; lateral
   sigma(d) = 0.425 * lambda * F * sqrt(1 + ((d - focus) / (7 lambda F^2))^2), lambda = 1.54 / f mm, F the f-number,
   7 lambda F^2 the depth of field (Cobbold, Foundations of Biomedical Ultrasound), plus a side-lobe pedestal.
5. Electronic noise before the compensation, so it rises with depth; envelope; log compression
   grey = 255 * (1 + 20 log10(envelope / reference) / dynamic range); scan conversion to a sector or a rectangle.
The low-quality image has the same scatterers, a lower frequency, a larger f-number, more clutter and noise, fewer bits.
"""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import fft, ndimage
from tqdm import tqdm

VERSION = 2  # raise it whenever the pixels change
ORGANS: dict[str, tuple[str, str, str]] = {
    "breast": ("radial", "antiradial", "axillary"),
    "liver": ("subcostal_oblique", "intercostal", "hepatorenal"),
    "thyroid": ("transverse_isthmus", "transverse_lobe", "longitudinal_lobe"),
    "kidney": ("longitudinal", "transverse", "coronal"),
    "fetal_head": ("transthalamic", "transventricular", "transcerebellar"),
    "muscle": ("gastrocnemius_longitudinal", "rectus_femoris_transverse", "forearm_transverse"),
    "gallbladder": ("longitudinal", "transverse", "porta_hepatis"),
}
DEPTH_MM = dict(zip(ORGANS, (40, 140, 40, 115, 115, 45, 100), strict=True))  # imaged depth, before the zoom
IMAGES_PER_BLOCK = 3 * len(ORGANS)  # one virtual patient per organ, each seen in three planes
TISSUE_ALPHA = 0.5  # dB/cm/MHz, what the time-gain compensation expects


@dataclass(frozen=True)
class Phantom:
    image: np.ndarray  # uint8 (S, S), high quality
    low_quality: np.ndarray  # uint8 (S, S), same anatomy and scatterers
    mask: np.ndarray  # uint8 (S, S): 0 none, 1 benign, 2 malignant
    organ: str
    plane: str
    lesion: str  # none, benign, malignant
    geometry: str  # sector, linear


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
        return 1.54 / self.frequency  # mm at 1540 m/s

    def axial_sigma(self) -> float:
        return 0.425 * self.cycles * self.wavelength / 2

    def lateral_sigma(self, depth: np.ndarray) -> np.ndarray:
        field_depth = 7 * self.wavelength * self.f_number**2
        return 0.425 * self.wavelength * self.f_number * np.sqrt(1 + ((depth - self.focus) / field_depth) ** 2)


# ---------------------------------------------------------------- physics: reflectors on the beam grid -> envelope


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


# ---------------------------------------------------------------- drawing: signed distances and tissues


def stretch(field: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Every fourth sample back to `size` samples along an axis, linearly."""
    at = np.minimum(np.arange(size, dtype=np.float32) / 4, field.shape[axis] - 1)
    low = np.minimum(at.astype(np.int32), field.shape[axis] - 2)
    weight = np.expand_dims(at - low, 1 - axis)
    return field.take(low, axis) * (1 - weight) + field.take(low + 1, axis) * weight


class Scene:
    """Tissue maps on the beam grid; x, z, d in units of the imaged depth times `zoom`, z down, d along the beam."""

    def __init__(self, x, z, d, pitch, patient: np.random.Generator, view: np.random.Generator):
        self.patient, self.view, self.pitch = patient, view, pitch
        self.rows = x.shape[0]
        self.edge = 1.2 * float(d[1, 0] - d[0, 0])  # softness of a boundary, about one sample
        self.x, self.z, self.d = x, z, d
        bend = 0.02 * view.uniform(0.4, 1.3)  # nothing in a body is an exact ellipse
        self.x, self.z = x + bend * self.noise(0.3, 0.3), z + bend * self.noise(0.35, 0.25)
        self.echo = np.zeros_like(x)  # backscatter, dB
        self.alpha = np.full_like(x, TISSUE_ALPHA)  # dB/cm/MHz
        self.impedance = np.zeros_like(x)  # relative to soft tissue, only differences count
        self.label = np.zeros(x.shape, np.uint8)
        self.lesion = "none"

    def pick(self, low: float, high: float) -> float:
        """A parameter of the patient, a little different in each view."""
        value = self.patient.uniform(low, high) + 0.12 * (high - low) * self.view.standard_normal()
        return float(np.clip(value, low, high))

    def noise(self, width: float, height: float, angle: float = 0.0) -> np.ndarray:
        """Smooth noise about N(0, 0.6) whose grains are width x height, turned by angle (radian)."""
        table = self.view.standard_normal((64, 64), dtype=np.float32)
        right, below = np.roll(table, -1, 1) - table, np.roll(table, -1, 0) - table
        corners = np.stack([table, right, below, np.roll(right, -1, 0) - right], axis=-1).reshape(-1, 4)
        coarse = 4 if min(width, height) > 10 * self.edge else 1  # wide grains need few samples
        x, z = self.x[::coarse, ::coarse], self.z[::coarse, ::coarse]
        cos, sin = math.cos(angle), math.sin(angle)  # Python floats keep the maps float32
        u = x * (cos / width) + z * (sin / width) + 640.3
        v = z * (cos / height) - x * (sin / height) + 640.7
        i, j = u.astype(np.int32), v.astype(np.int32)
        u -= i
        v -= j
        u *= u * (3 - 2 * u)
        v *= v * (3 - 2 * v)
        value, du, dv, both = np.moveaxis(corners[((j & 63) << 6) + (i & 63)], -1, 0)
        noise = value + u * du + v * (dv + u * both)
        return noise if coarse == 1 else stretch(stretch(noise, self.x.shape[0], 0), self.x.shape[1], 1)

    def septa(self, base: float, bright: float, length: float, spacing: float, angle=0.0) -> np.ndarray:
        """Backscatter in dB of lobules, about length x spacing, with thin bright walls (where noise crosses 0)."""
        noise = self.noise(length, spacing, angle)
        return base + 2.5 * noise + bright * np.exp(-((noise / 0.16) ** 2))

    def streaks(self, base: float, bright: float, share: float, length: float, spacing: float, angle=0.0) -> np.ndarray:
        """Backscatter in dB of fibres or septa: `bright` dB over `base`, over about `share` of the area."""
        ridge = np.maximum(1.6 * self.noise(length, spacing, angle) + 1.6 * share - 0.8, 0)
        return base + 1.7 * bright * ridge / (1 + ridge)

    def ellipse(self, cx, cz, rx, rz, angle=0.0) -> np.ndarray:
        """Signed distance to an ellipse, negative inside (first order)."""
        cos, sin = math.cos(angle), math.sin(angle)
        cx, cz, rx, rz = float(cx), float(cz), float(rx), float(rz)
        u, v = (self.x - cx) * cos + (self.z - cz) * sin, (self.z - cz) * cos - (self.x - cx) * sin
        rho = np.sqrt((u / rx) ** 2 + (v / rz) ** 2) + 1e-6
        return (rho - 1) * np.sqrt(u**2 + v**2 + 1e-9) / rho

    def tube(self, start, end, width, end_width=None, bend=0.0) -> np.ndarray:
        """Signed distance to a bent, tapering tube from start to end (x, z); widths are radii."""
        x0, z0, x1, z1, width, bend = map(float, (*start, *end, width, bend))
        length = math.hypot(x1 - x0, z1 - z0)
        ux, uz = (x1 - x0) / length, (z1 - z0) / length
        t = ((self.x - x0) * ux + (self.z - z0) * uz) / length
        inside = np.clip(t, 0, 1)
        n = (self.z - z0) * ux - (self.x - x0) * uz - 4 * bend * inside * (1 - inside)
        return np.hypot(n, (t - inside) * length) - (width + ((end_width or width) - width) * inside)

    def layer(self, top, bottom, wave=0.02, along="z") -> np.ndarray:
        """Signed distance to a wavy layer; along="d" follows the probe surface, "z" lies horizontal."""
        depth = (self.d if along == "d" else self.z) + wave * self.noise(0.35, 3.0)
        return np.abs(depth - (top + bottom) / 2) - (bottom - top) / 2

    def paint(self, distance, echo=None, alpha=None, impedance=None, wall=0.0, soft=1.0) -> np.ndarray:
        """Fill where distance < 0; echo in dB (number or map), wall a thin specular capsule. Returns the weight."""
        weight = np.clip(0.5 - distance / (self.edge * soft), 0, 1)
        if echo is not None:
            self.echo += weight * (echo - self.echo)
        if alpha is not None:
            self.alpha += weight * (alpha - self.alpha)
        if impedance is not None:
            self.impedance += weight * (impedance - self.impedance)
        if wall:
            self.impedance += wall * np.exp(-((distance / (1.3 * self.edge)) ** 2))
        return weight

    def fluid(self, distance, wall=0.0):
        self.paint(distance, echo=-45.0, alpha=0.02, impedance=-0.15, wall=wall)

    def bone(self, distance):
        self.paint(distance, echo=4.0, alpha=14.0, impedance=3.0)

    def body_wall(self, low: float, high: float) -> float:
        """Skin, fat with septa and a muscle layer under the probe; returns the depth where they end."""
        end = self.pick(low, high)
        skin, fat = 0.02 * self.pick(0.7, 1.6), self.pick(0.35, 0.75)
        self.paint(self.layer(-0.2, end * fat, 0.01, "d"), self.septa(-10, 14, 0.2, 0.035, self.pick(-0.1, 0.1)))
        muscle = self.streaks(-9, 16, 0.4, 0.3, 0.012, self.pick(-0.08, 0.08))
        self.paint(self.layer(end * fat, end, 0.012, "d"), muscle, wall=self.pick(0.2, 0.7))
        self.paint(self.layer(-0.2, skin, 0.002, "d"), echo=6.0, wall=0.5)
        return end

    def add_lesion(self, cx: float, cz: float, radius: float, probe: Probe, chance: float = 0.45):
        """Benign (oval, smooth, wider than tall, enhancing) or malignant (spiculated, taller, shadowing), or none."""
        fate, kind = self.patient.random(), self.patient.random()
        if fate > chance or self.view.random() > 0.93:
            return
        radius *= self.pick(0.65, 1.1)
        cx, cz = cx + self.view.normal(0, 0.03), cz + self.view.normal(0, 0.02)
        if kind < 0.5:
            self.lesion, ratio = "benign", self.pick(1.25, 1.9)
            distance = self.ellipse(cx, cz, radius * np.sqrt(ratio), radius / np.sqrt(ratio), self.view.normal(0, 0.12))
            if kind < 0.25:
                self.fluid(distance, wall=0.4)
            else:
                self.paint(distance, self.pick(-13, -8) + 0.5 * self.noise(0.05, 0.05), alpha=0.18, wall=0.25)
        else:
            self.lesion, ratio = "malignant", self.pick(0.6, 0.85)
            angle = np.arctan2((self.z - cz) * ratio, self.x - cx)
            outline = np.zeros_like(self.x)
            for order, size in ((2, 0.1), (3, 0.1), (5, 0.08), (8, 0.06)):
                outline += size * np.cos(order * angle + self.view.uniform(0, 2 * np.pi))
            phase, drift = self.view.uniform(0, 6, 2)
            spikes = np.clip(np.cos(9 * angle + 20 * outline + phase), 0, 1) ** 6
            spikes *= 0.6 + 0.6 * np.cos(2 * angle + drift)  # longer on two sides
            scale = 1 + outline + self.pick(0.15, 0.4) * spikes
            rho = np.hypot((self.x - cx) / np.sqrt(ratio), (self.z - cz) * np.sqrt(ratio)) / radius
            distance = (rho / scale - 1) * radius
            height_cm = 2 * radius / np.sqrt(ratio) * probe.depth / 10
            alpha = TISSUE_ALPHA + self.pick(9, 18) / (2 * probe.frequency * height_cm)  # shadow of 9 to 18 dB
            self.paint(distance - 0.25 * radius, self.echo + 3, soft=0.3 * radius / self.edge)  # echogenic halo
            texture = self.pick(-12, -7) + 4 * self.noise(0.035, 0.03) + 3 * self.noise(0.1, 0.08)
            self.paint(distance, texture, alpha=alpha, soft=3.0)
            for _ in range(int(self.view.integers(0, 5))):  # microcalcifications
                at = self.view.normal(0, 0.35, 2) * radius
                self.paint(self.ellipse(cx + at[0], cz + at[1], 0.006, 0.006), echo=14.0)
        self.label[distance < 0] = 1 if self.lesion == "benign" else 2


# ---------------------------------------------------------------- organs


def breast(s: Scene, plane: str, probe: Probe):
    fat, muscle = s.pick(0.12, 0.3), s.pick(0.36, 0.5) if plane == "axillary" else s.pick(0.66, 0.88)
    s.echo += s.septa(-13, 17, 0.22, 0.05, s.pick(-0.25, 0.25))  # fat with septa
    gland = s.streaks(-7, 13, 0.5, 0.12, 0.014, s.pick(-0.25, 0.25)) + 4 * s.noise(0.2, 0.08)
    if plane != "axillary":
        s.paint(s.layer(fat, muscle - 0.06, 0.08), gland, soft=8)
    for _ in range(s.view.integers(2, 6)):  # fat lobules between Cooper's ligaments
        lobule = s.ellipse(*s.view.uniform((-0.6, 0.05), (0.6, 0.5)), s.pick(0.08, 0.18), s.pick(0.03, 0.07))
        s.paint(lobule, -12 + 2 * s.noise(0.04, 0.02), wall=0.2, soft=2)
    s.paint(s.layer(muscle, muscle + 0.2), s.streaks(-11, 20, 0.4, 0.3, 0.014, s.pick(-0.2, 0.2)), wall=0.6)
    s.paint(s.layer(muscle + 0.2, 2), s.streaks(-13, 12, 0.3, 0.2, 0.03), alpha=1.0, wall=0.5)  # chest wall
    if plane == "radial":  # ducts run along the picture, converging on the nipple
        side, depth = s.view.choice((-1, 1)), s.pick(0.3, 0.42)
        for k in range(3):
            end = (0.6 * side, depth + 0.13 * (k - 1))
            s.paint(s.tube((-0.5 * side, depth), end, 0.02, 0.009, s.view.normal(0, 0.03)), -26.0, wall=0.3)
    elif plane == "antiradial":  # the same ducts cut across
        for cx in np.linspace(-0.5, 0.5, 7) + s.view.normal(0, 0.03, 7):
            s.paint(s.ellipse(cx, s.pick(0.3, 0.55), 0.024, 0.018), -22.0, wall=0.3)
    else:  # lymph node with a bright hilum, axillary vein
        cx, cz, tilt = s.pick(-0.2, 0.2), s.pick(0.24, 0.36), s.pick(-0.3, 0.3)
        s.paint(s.ellipse(cx, cz, 0.15, 0.075, tilt), -14.0, wall=0.3)
        s.paint(s.ellipse(cx, cz + 0.01, 0.09, 0.03, tilt), 6.0, soft=4)
        s.fluid(s.ellipse(-cx - 0.25, s.pick(0.55, 0.75), 0.09, 0.06), wall=0.4)
    if s.patient.random() < 0.4:
        s.bone(s.ellipse(s.pick(-0.4, 0.4), muscle + 0.22, 0.14, 0.05))
    s.add_lesion(s.pick(-0.22, 0.22), s.pick(0.32, 0.5), s.pick(0.11, 0.18), probe)
    s.paint(s.layer(-0.2, s.pick(0.025, 0.05), 0.002, "d"), echo=5.0, wall=0.4)


def liver_tissue(s: Scene):
    s.echo += 2 * s.noise(0.25, 0.2) + 2.5 * s.noise(0.03, 0.015)
    for _ in range(8):  # small vessels
        cx, cz = s.view.uniform((-0.5, 0.2), (0.5, 0.8))
        turn, size = s.view.uniform(0, np.pi), s.view.uniform(0.02, 0.09)
        end = (cx + size * np.cos(turn), cz + size * np.sin(turn))
        s.paint(s.tube((cx, cz), end, s.view.uniform(0.006, 0.016), 0.006), -24.0, wall=s.view.uniform(0, 0.3))


def diaphragm(s: Scene, side: int, depth: float):
    """Bright arc, aerated lung behind it."""
    lung = -s.ellipse(-0.1 * side, depth - 0.62, 0.75, 0.62, 0.35 * side)
    s.paint(lung, s.streaks(-14, 10, 0.4, 0.2, 0.04), alpha=1.4, wall=1.6, soft=2)


def liver(s: Scene, plane: str, probe: Probe):
    side = int(s.view.choice((-1, 1)))
    liver_tissue(s)
    diaphragm(s, side, s.pick(0.86, 1.05))
    if plane == "subcostal_oblique":  # three hepatic veins meet in the vena cava
        cava = (0.1 * side + s.view.normal(0, 0.03), s.pick(0.68, 0.8))
        for turn in (-0.85, -0.1, 0.65):
            turn += s.view.normal(0, 0.1)
            reach = s.pick(0.32, 0.45)
            end = (cava[0] + reach * np.sin(turn), cava[1] - reach * np.cos(turn))
            s.fluid(s.tube(cava, end, s.pick(0.018, 0.03), 0.008, s.view.normal(0, 0.02)))
        s.fluid(s.ellipse(*cava, 0.07, 0.045, 0.3 * side))
    elif plane == "intercostal":  # portal vein with bright walls, ribs at the sides
        start, fork = (-0.38 * side, s.pick(0.58, 0.68)), (0.05 * side, s.pick(0.45, 0.52))
        s.fluid(s.tube(start, fork, 0.04, 0.03, 0.02), wall=0.9)
        s.fluid(s.tube(fork, (0.36 * side, fork[1] - 0.14), 0.024, 0.012, 0.02), wall=0.9)
        s.fluid(s.tube(fork, (0.34 * side, fork[1] + 0.14), 0.024, 0.012, -0.02), wall=0.9)
    else:  # right kidney below the liver
        small_kidney = (0.22 * side, s.pick(0.62, 0.72))
        s.paint(s.ellipse(*small_kidney, 0.25, 0.12, 0.35 * side), -6.0, wall=0.9)
        s.paint(s.ellipse(*small_kidney, 0.15, 0.045, 0.35 * side), 7 + 3 * s.noise(0.04, 0.03), soft=6)
    s.add_lesion(s.pick(-0.18, 0.18), s.pick(0.35, 0.52), s.pick(0.07, 0.13), probe)
    end = s.body_wall(0.08, 0.2)
    if plane == "intercostal":
        for edge in (-1, 1):
            s.bone(s.ellipse(edge * s.pick(0.36, 0.46), end * 0.8, 0.09, 0.03))


def thyroid(s: Scene, plane: str, probe: Probe):
    s.echo += s.septa(-14, 18, 0.3, 0.045, s.pick(-0.15, 0.15))  # muscles of the neck
    gland, side = 1 + 2 * s.noise(0.06, 0.05) + 2 * s.noise(0.02, 0.015), int(s.view.choice((-1, 1)))
    top = s.body_wall(0.14, 0.24)

    def trachea(cx, cz, r):
        s.paint(s.ellipse(cx, cz, r, r * 0.9), -4.0, alpha=7.0, wall=1.5)
        for k in (1, 2, 3):  # reverberation rings in the air
            s.paint(np.abs(s.ellipse(cx, cz, r - 0.035 * k, r * 0.9 - 0.035 * k)) - 0.004, 16.0 + 12 * k)

    if plane == "transverse_isthmus":
        radius = s.pick(0.13, 0.18)
        for edge in (-1, 1):
            s.fluid(s.ellipse(edge * s.pick(0.5, 0.58), top + 0.3, 0.065, 0.06), wall=0.7)
            lobe = s.ellipse(edge * s.pick(0.26, 0.32), top + s.pick(0.17, 0.21), 0.17, 0.14, edge * 0.4)
            s.paint(lobe, gland, wall=0.4)
        s.paint(s.ellipse(0, top + 0.05, 0.24, 0.04), gland, wall=0.3)
        trachea(0, top + 0.09 + radius, radius)
    elif plane == "transverse_lobe":
        lobe = s.ellipse(0, top + s.pick(0.17, 0.23), s.pick(0.2, 0.26), s.pick(0.15, 0.19), 0.25 * side)
        s.paint(lobe, gland, wall=0.5)
        trachea(-0.42 * side, top + 0.24, 0.17)
        s.fluid(s.ellipse(0.36 * side, top + s.pick(0.26, 0.34), 0.09, 0.085), wall=0.8)
        s.fluid(s.ellipse(0.48 * side, top + s.pick(0.1, 0.15), 0.1, s.pick(0.03, 0.06)), wall=0.3)
    else:
        lobe = s.ellipse(0, top + s.pick(0.16, 0.2), s.pick(0.48, 0.62), s.pick(0.12, 0.17), 0.08 * side)
        s.paint(lobe, gland, wall=0.5)
        deep = s.streaks(-13, 20, 0.35, 0.4, 0.013, 0.08 * side)
        s.paint(s.layer(top + 0.37, top + 0.58), deep, wall=0.6)
    across = 0.28 * side if plane == "transverse_isthmus" else 0.0
    s.add_lesion(across, top + s.pick(0.16, 0.22), s.pick(0.06, 0.11), probe)


def kidney(s: Scene, plane: str, probe: Probe):
    side, tilt = int(s.view.choice((-1, 1))), s.pick(-0.3, 0.3)
    s.echo += s.septa(-9, 12, 0.25, 0.07, s.pick(-0.5, 0.5)) + 4 * s.noise(0.2, 0.12)  # psoas, bowel
    cx, cz = s.pick(-0.08, 0.08), s.pick(0.44, 0.58)
    liver_side = s.layer(0.0, cz - 0.1, 0.05)
    s.paint(liver_side, 2 * s.noise(0.2, 0.2) + 2 * s.noise(0.03, 0.02), soft=3)
    rx, rz = s.pick(0.2, 0.25) if plane == "transverse" else s.pick(0.34, 0.44), s.pick(0.17, 0.21)
    outline = s.ellipse(cx, cz, rx, rz, tilt)
    s.paint(np.abs(outline) - 0.02 - 0.012 * s.noise(0.2, 0.2), 4 + 3 * s.noise(0.06, 0.04), soft=5)  # perirenal fat
    s.paint(outline, s.pick(-9, -4) + 2 * s.noise(0.04, 0.04), wall=0.7)
    cos, sin = np.cos(tilt), np.sin(tilt)
    if plane == "coronal":  # pyramids around the sinus
        for phi in np.arange(8) * np.pi / 4 + s.view.uniform(0, 0.5):
            u, v = 0.66 * rx * np.cos(phi), 0.62 * rz * np.sin(phi)
            s.paint(s.ellipse(cx + u * cos - v * sin, cz + u * sin + v * cos, 0.052, 0.04, phi + tilt), -18.0, soft=2)
    sinus = 8 + 3 * s.noise(0.05, 0.03)
    if plane == "transverse":  # the sinus opens to the hilum, the renal vein leaves through it
        s.paint(s.ellipse(cx + side * 0.4 * rx, cz, 0.6 * rx, 0.36 * rz, tilt), sinus, soft=5)
        s.fluid(s.tube((cx + side * 0.3 * rx, cz), (cx + side * (rx + 0.25), cz + 0.08), 0.02, 0.03, 0.02), wall=0.4)
    else:
        s.paint(s.ellipse(cx, cz, rx * s.pick(0.5, 0.65), rz * s.pick(0.3, 0.42), tilt), sinus, soft=5)
        if s.patient.random() < 0.3:  # dilated renal pelvis
            s.fluid(s.ellipse(cx, cz, rx * 0.3, rz * s.pick(0.12, 0.25), tilt))
    pole = 0.0 if plane == "transverse" else s.view.choice((-0.55, 0.55)) * rx
    s.add_lesion(cx + pole, cz + 0.3 * rz, s.pick(0.07, 0.12), probe)
    s.body_wall(0.1, 0.22)


def fetal_head(s: Scene, plane: str, probe: Probe):
    tilt, side = s.pick(-0.35, 0.35), int(s.view.choice((-1, 1)))
    cx, cz, rx, rz = s.pick(-0.08, 0.08), s.pick(0.5, 0.58), s.pick(0.38, 0.48), s.pick(0.27, 0.34)
    s.echo += s.septa(-5, 9, 0.25, 0.06) + 3 * s.noise(0.25, 0.15)  # uterus, placenta
    s.fluid(s.ellipse(cx + s.pick(-0.1, 0.1), cz, rx + s.pick(0.0, 0.3), rz + s.pick(-0.02, 0.1)))
    skull = s.ellipse(cx, cz, rx, rz, tilt)
    s.paint(skull - 0.02, -10.0, alpha=TISSUE_ALPHA)
    brain = s.streaks(-21, 16, 0.25, 0.07, 0.014, tilt) + 4 * s.noise(0.15, 0.1, tilt)  # sulci in dark brain
    s.paint(skull, np.minimum(brain, -3))
    s.paint(np.abs(skull) - 0.006, 4 + 5 * s.noise(0.1, 0.1), alpha=s.pick(2.0, 5.0), wall=1.3)

    def at(u, v):  # head coordinates: u along the midline (front at +1), v across it, in skull radii
        u, v = side * u * rx, v * rz
        return cx + u * np.cos(tilt) - v * np.sin(tilt), cz + u * np.sin(tilt) + v * np.cos(tilt)

    def part(u, v, ru, rv, turn=0.0):
        return s.ellipse(*at(u, v), ru * rx, rv * rz, tilt + turn * side)

    s.paint(s.tube(at(-0.88, 0), at(0.25, 0), 0.002), 2.0, wall=0.5)  # falx, interrupted by the cavum
    s.paint(s.tube(at(0.55, 0), at(0.9, 0), 0.002), 2.0, wall=0.5)
    s.paint(part(0.42, 0, 0.12, 0.08), -40.0, wall=0.4)  # cavum septi pellucidi
    if plane == "transthalamic":
        for edge in (-1, 1):
            s.paint(part(-0.02, 0.2 * edge, 0.24, 0.19, 0.35 * edge), -34.0, soft=2, wall=0.25)
    elif plane == "transventricular":
        for edge in (-1, 1):
            s.fluid(part(-0.35, 0.42 * edge, s.pick(0.36, 0.44), s.pick(0.11, 0.17), -0.2 * edge), wall=0.6)
            s.paint(part(-0.28, 0.42 * edge, 0.26, 0.1, -0.2 * edge), 3 + 3 * s.noise(0.03, 0.02), soft=3)
    else:
        s.fluid(part(-0.78, 0, 0.13, 0.3))  # cisterna magna
        for edge in (-1, 1):
            s.paint(part(-0.55, 0.26 * edge, 0.17, 0.26), -10 + 4 * s.noise(0.3, 0.014), wall=0.6)
        s.paint(part(-0.52, 0, 0.09, 0.1), 2.0, soft=3)  # vermis
        for edge in (-1, 1):
            s.paint(part(0.02, 0.17 * edge, 0.2, 0.15, 0.35 * edge), -34.0, soft=2)
    s.body_wall(0.08, 0.18)


def muscle(s: Scene, plane: str, probe: Probe):
    top, slope = s.body_wall(0.08, 0.24), s.pick(-0.06, 0.06)
    if plane == "gastrocnemius_longitudinal":  # pennate fibres between two aponeuroses
        angle, deep = s.view.choice((-1, 1)) * s.pick(0.22, 0.5), s.pick(0.55, 0.7)
        for upper, lower, turn in ((top, deep, angle), (deep, 1.3, -0.4 * angle)):
            fibres = s.streaks(-15, 24, s.pick(0.3, 0.55), 0.17, 0.012, turn) + 4 * s.noise(0.1, 0.1)
            middle = (upper + lower) / 2
            belly = s.tube((-1.5, middle - 1.5 * slope), (1.5, middle + 1.5 * slope), (lower - upper) / 2)
            s.paint(belly, fibres)
        for depth in (top, deep):
            s.paint(s.tube((-1.5, depth - 1.5 * slope), (1.5, depth + 1.5 * slope), 0.011, bend=0.03), 9.0, wall=1.2)
        return
    speckled = s.streaks(-16, 22, 0.35, 0.045, 0.014, slope) + 4 * s.noise(0.12, 0.1)
    s.paint(s.layer(top, 1.5), speckled)
    if plane == "rectus_femoris_transverse":
        cx, cz = s.pick(-0.08, 0.08), top + s.pick(0.16, 0.2)
        s.paint(s.ellipse(cx, cz, s.pick(0.36, 0.46), s.pick(0.13, 0.17), slope), speckled - 1, wall=1.2)
        s.paint(s.tube((cx, cz - 0.11), (cx + 0.04, cz + 0.07), 0.008, bend=0.03), 8.0)  # central aponeurosis
        s.bone(s.ellipse(s.pick(-0.1, 0.1), top + s.pick(0.6, 0.72), 0.17, 0.15))  # femur
        return
    for edge in (-1, 1):  # radius and ulna, flexor bellies, tendons
        s.bone(s.ellipse(edge * s.pick(0.32, 0.46), top + s.pick(0.42, 0.6), 0.12, 0.08, 0.3 * edge))
        s.paint(s.ellipse(edge * s.pick(0.2, 0.3), top + 0.14, 0.22, 0.11, 0.2 * edge), speckled - 1, wall=0.9)
        s.paint(s.ellipse(edge * s.pick(0.12, 0.2), top + s.pick(0.28, 0.34), 0.05, 0.03), 5.0, soft=2)
    cx, cz = s.pick(-0.05, 0.05), top + s.pick(0.26, 0.32)
    s.paint(s.ellipse(cx, cz, 0.085, 0.05), -4 + 9 * s.noise(0.02, 0.02), wall=0.7)  # median nerve, honeycomb


def gallbladder(s: Scene, plane: str, probe: Probe):
    side, tilt = int(s.view.choice((-1, 1))), s.pick(0.15, 0.6)
    liver_tissue(s)
    cx, cz = s.pick(-0.08, 0.08), s.pick(0.42, 0.55)
    bowel = s.layer(cz + s.pick(0.12, 0.2), 1.5, 0.08)
    gas = 0.6 + 3 * np.clip(s.noise(0.12, 9.0) - 0.2, 0, 1)  # dirty shadows below gas
    content = s.streaks(-6, 16, 0.45, 0.1, 0.04) + 4 * s.noise(0.12, 0.08)
    s.paint(bowel, content, alpha=gas, wall=s.pick(0.1, 0.8), soft=3)
    wall = s.pick(0.5, 1.0)
    if plane == "transverse":
        floor = s.pick(0.12, 0.17)
        s.fluid(s.ellipse(cx, cz, floor * s.pick(1.0, 1.2), floor), wall=wall)
    else:
        long, floor = (s.pick(0.26, 0.36), 0.08) if plane == "longitudinal" else (0.16, 0.06)
        body = (cx + side * long * np.cos(tilt), cz + long * np.sin(tilt) * 0.6)
        neck = (cx - side * long * np.cos(tilt), cz - long * np.sin(tilt) * 0.6)
        s.fluid(s.tube(body, neck, s.pick(0.08, 0.12), 0.02, 0.02), wall=wall)
        if plane == "porta_hepatis":  # portal vein and bile duct run past the neck
            for offset, width in ((0.12, 0.036), (0.05, 0.012)):
                start, end = (cx - 0.42, cz + offset + 0.04), (cx + 0.42, cz + offset - 0.1)
                s.fluid(s.tube(start, end, width, width * 0.8, 0.02), wall=0.9)
    if plane != "porta_hepatis" and s.patient.random() < 0.35:
        for _ in range(s.view.integers(1, 4)):  # stones lie on the floor
            size = s.view.uniform(0.018, 0.035)
            s.bone(s.ellipse(cx + s.view.normal(0, 0.05), cz + floor * 0.75, size, size))
    s.body_wall(0.07, 0.18)


ANATOMY = {f.__name__: f for f in (breast, liver, thyroid, kidney, fetal_head, muscle, gallbladder)}


# ---------------------------------------------------------------- one phantom


def make_phantom(
    index: int, seed: int = 0, size: int = 256, organ: str | None = None, plane: str | None = None
) -> Phantom:
    """Phantom number `index`; the same bytes for the same arguments. Organ and plane cycle with the index."""
    names = list(ORGANS)
    organ = organ or (names[index % len(names)] if plane is None else None)
    if organ not in ORGANS:
        raise ValueError(f"organ={organ!r} with plane={plane!r}: name the organ, one of {', '.join(names)}")
    plane = plane or ORGANS[organ][index // len(names) % 3]
    if plane not in ORGANS[organ]:
        raise ValueError(f"plane={plane!r}: {organ} has {', '.join(ORGANS[organ])}")
    if size < 32:
        raise ValueError(f"size={size}: at least 32 pixels")
    patient = np.random.default_rng((seed, 1, index // IMAGES_PER_BLOCK, names.index(organ)))
    view, grain = np.random.default_rng((seed, 2, index)), np.random.default_rng((seed, 3, index))

    # The field of view, in units of the imaged depth, and the scanner.
    rows, lines = round(1.25 * size), round(0.75 * size)
    zoom = patient.uniform(0.85, 1.2) * view.uniform(0.95, 1.05)
    shallow = DEPTH_MM[organ] < 60
    geometry = "sector" if view.random() < (0.4 if shallow else 0.6) else "linear"
    d = ((np.arange(rows, dtype=np.float32) + 0.5) / rows)[:, None]
    across = np.linspace(-1, 1, lines, dtype=np.float32)[None, :]
    if geometry == "sector":
        half, radius = view.uniform(0.45, 0.7), view.uniform(0.2, 0.45)  # radian, probe radius
        x, z = (radius + d) * np.sin(half * across), (radius + d) * np.cos(half * across) - radius
        pitch = (radius + d[:, 0]) * 2 * half / lines
    else:
        half, radius = view.uniform(0.42, 0.72), 0.0  # half the width
        x, z, pitch = half * across + 0 * d, d + 0 * across, np.full(rows, 2 * half / lines, np.float32)
    depth = DEPTH_MM[organ] * zoom
    frequency = float(np.clip(480 / depth * view.uniform(0.75, 1.2), 2.2, 13))
    probe = Probe(
        depth,
        frequency,
        f_number=view.uniform(2.2, 3.8),
        focus=depth * view.uniform(0.35, 0.65),
        cycles=view.uniform(1.6, 2.4),
        noise_margin=view.uniform(14, 30),
        dynamic_range=view.uniform(48, 66),
        smoothing=view.uniform(0.5, 1.0) * size / 256,
    )

    scene = Scene(x * zoom, z * zoom, (d + 0 * across) * zoom, pitch, patient, view)
    ANATOMY[organ](scene, plane, probe)
    slope_d = np.gradient(scene.impedance, axis=0)
    slope_x = np.gradient(scene.impedance, axis=1) / (rows * pitch[:, None])
    specular = 8 * np.abs(slope_d) ** 3 / (slope_d**2 + slope_x**2 + 1e-8)  # |gradient| cos^3
    specular *= np.clip(0.8 + scene.noise(0.1, 0.1) + 0.9 * scene.noise(0.03, 0.02), 0.05, 2.5)  # rough, broken
    # A wide aperture looks around small obstacles, so shadows are soft; poor contact darkens whole lines.
    stray = patient.uniform(0.8, 1.4)
    scene.path = ndimage.gaussian_filter1d(np.cumsum(scene.alpha, axis=0) * np.float32(stray), lines / 90, axis=1)
    scene.contact = np.clip(view.uniform(2, 9) * (scene.noise(0.25, 9.0)[:1] - 0.2), 0, 14)
    scatterers = complex_noise(grain, x.shape) * 10 ** (scene.echo / 20)
    sliders = 4.0 * scene.noise(9.0, 0.25)[:, :1]  # dB, the operator's time-gain sliders
    high = scan(scene, probe, scatterers, specular, grain, sliders)
    worse = replace(
        probe,
        frequency=probe.frequency * view.uniform(0.55, 0.7),
        f_number=probe.f_number * view.uniform(1.9, 2.7),  # fewer elements
        side_lobe=view.uniform(0.02, 0.05),
        noise_margin=probe.noise_margin - view.uniform(4, 10),
        dynamic_range=probe.dynamic_range * view.uniform(0.7, 0.85),
        levels=int(view.integers(20, 40)),
        smoothing=0.0,
    )
    low = scan(scene, worse, scatterers, specular, grain, sliders)

    # Scan conversion: where in (row, line) each pixel of the square picture lies.
    left = (1 + radius) * np.sin(half) if geometry == "sector" else half
    top = radius * np.cos(half) - radius if geometry == "sector" else 0.0
    span = max(2 * left, 1 - top) * (view.uniform(0.75, 1) if view.random() < 0.35 else 1.0)
    pixel = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    px, pz = span * pixel[None, :], span * pixel[:, None] + (1 + top) / 2
    if geometry == "sector":
        beam, away = np.arctan2(px, pz + radius) / half, np.hypot(px, pz + radius) - radius
    else:
        beam, away = px / half + 0 * pz, pz + 0 * px
    where = np.stack([away * rows - 0.5, (beam + 1) / 2 * (lines - 1)])
    inside = (np.abs(beam) <= 1) & (away > 0) & (away < 1)
    gain, gamma = view.uniform(-9, 5), view.uniform(0.85, 1.2)

    def picture(decibel: np.ndarray, scanner: Probe) -> np.ndarray:
        top = np.percentile(decibel[::4, ::4], 99) - gain
        grey = np.clip(1 + (decibel - top) / scanner.dynamic_range, 0, 1) ** gamma
        grey = ndimage.map_coordinates(grey, where, np.float32, order=1, mode="nearest") * inside
        return np.round(np.round(grey * (scanner.levels - 1)) * (255 / (scanner.levels - 1))).astype(np.uint8)

    mask = ndimage.map_coordinates(scene.label, where, order=0, mode="nearest") * inside
    lesion = scene.lesion if mask.any() else "none"
    return Phantom(picture(high, probe), picture(low, worse), mask, organ, plane, lesion, geometry)


# ---------------------------------------------------------------- folders of phantoms


def _save(array: np.ndarray, path: Path):
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    Image.fromarray(array).save(temporary, format="PNG", compress_level=1)
    os.replace(temporary, path)


def _split(block: int, organ_number: int) -> str:
    """70/10/20 by patient within each organ; the first three patients of an organ cover all three splits."""
    cycle = ["train", "val", "test", "train", "train", "test", "train", "train", "train", "train"]
    if organ_number % 2:
        cycle[1:3] = ["test", "val"]
    return cycle[block % 10]


def _write_images(out: Path, jobs: list[tuple[str, str, str, int]], size: int, seed: int) -> int:
    for part, label, name, index in jobs:
        paths = [out / part / tree / label / name for tree in ("masks", "low_quality", "images")]
        if not all(path.exists() for path in paths):
            phantom = make_phantom(index, seed, size)
            for path, array in zip(paths, (phantom.mask, phantom.low_quality, phantom.image), strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                _save(array, path)
    return len(jobs)


def _write_atomically(path: Path, text: str):
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _write_table(path: Path, header: str, rows: list[list[str]]):
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header.split(","), *rows])
    os.replace(temporary, path)


def write_quickstart_phantoms() -> Path:
    """The images of the built-in downstream runs (configs/smoke/), under the working directory; made once."""
    return write_phantoms(Path("data/phantoms-600-64"), 600, 64)


def write_phantoms(
    out: Path, count: int = 2000, size: int = 256, seed: int = 0, workers: int | None = None, progress: bool = True
) -> Path:
    """Write `count` phantoms, half labelled by organ (out/coarse), half by organ and plane (out/fine); returns out.

    Each half holds images/<label>/*.png, masks/, low_quality/, manifest.csv (path,label,group,split,mask,target; target
    is empty) and pairs.csv (path = low quality, target = image). A group is a virtual patient. A second call does
    nothing, an interrupted one continues. With workers > 1, call it from under `if __name__ == "__main__":`.
    Raises ValueError if `out` holds something else or `count` is too small for three splits.
    """
    out, least = Path(out), 4 * IMAGES_PER_BLOCK
    if count < least:
        raise ValueError(f"count={count}: at least {least}, so that every label is trained on and no split is empty")
    arguments = {"version": VERSION, "count": count, "size": size, "seed": seed}
    done, begun = out / "phantoms.json", out / ".phantoms.begun.json"
    for record in (done, begun):
        if record.exists() and (there := json.loads(record.read_text())) != arguments:
            raise ValueError(f"{out} holds phantoms of {there}, not {arguments}: use another folder or delete it")
    if done.exists():
        return out
    if not begun.exists() and ((out / "coarse").exists() or (out / "fine").exists()):
        raise ValueError(f"{out} holds coarse/ or fine/ that write_phantoms did not make: use another folder")
    out.mkdir(parents=True, exist_ok=True)
    _write_atomically(begun, json.dumps(arguments))

    names, jobs = list(ORGANS), []
    first_fine = -(-(count // 2) // IMAGES_PER_BLOCK) * IMAGES_PER_BLOCK  # no patient in both halves
    for part, first, number in (("coarse", 0, count // 2), ("fine", first_fine, count - count // 2)):
        manifest, pairs = [], []
        for index in range(first, first + number):
            organ = names[index % len(names)]
            plane = ORGANS[organ][index // len(names) % 3]
            label, name = organ if part == "coarse" else f"{organ}_{plane}", f"{index:06d}.png"
            block = index // IMAGES_PER_BLOCK
            group = f"patient_{organ}_{block:05d}"
            split = _split(block - first // IMAGES_PER_BLOCK, names.index(organ))
            image, low, mask = (f"{tree}/{label}/{name}" for tree in ("images", "low_quality", "masks"))
            manifest.append([image, label, group, split, mask, ""])
            pairs.append([low, image, label, group, split])
            jobs.append((part, label, name, index))
        (out / part).mkdir(exist_ok=True)
        _write_table(out / part / "manifest.csv", "path,label,group,split,mask,target", manifest)
        _write_table(out / part / "pairs.csv", "path,target,label,group,split", pairs)

    workers = workers or os.cpu_count() or 1
    chunks = [jobs[i : i + 16] for i in range(0, len(jobs), 16)]
    with tqdm(total=count, desc="phantoms", unit="image", disable=not progress) as bar:
        if workers == 1:
            for chunk in chunks:
                bar.update(_write_images(out, chunk, size, seed))
        else:
            pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
            try:
                for future in as_completed([pool.submit(_write_images, out, chunk, size, seed) for chunk in chunks]):
                    bar.update(future.result())
            finally:
                pool.shutdown(cancel_futures=True)
    os.replace(begun, done)
    return out
