"""One phantom: a virtual patient, a view, a scanner, and the pictures of two qualities."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from vfm4us.phantoms.organs import ANATOMY, DEPTH_MM, ORGANS
from vfm4us.phantoms.physics import Probe, complex_noise, scan
from vfm4us.phantoms.scene import Scene

VERSION = 2  # raise it whenever the pixels change
IMAGES_PER_BLOCK = 3 * len(ORGANS)  # one virtual patient per organ, each seen in three planes


@dataclass(frozen=True)
class Phantom:
    """One synthetic image in two qualities, with its mask and what is shown in it."""

    image: np.ndarray  # uint8 (S, S), high quality
    low_quality: np.ndarray  # uint8 (S, S), same anatomy and scatterers
    mask: np.ndarray  # uint8 (S, S): 0 none, 1 benign, 2 malignant
    organ: str
    plane: str
    lesion: str  # none, benign, malignant
    geometry: str  # sector, linear


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
