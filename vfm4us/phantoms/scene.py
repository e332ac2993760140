"""Tissue maps on the beam grid, drawn from signed distances."""

from __future__ import annotations

import math

import numpy as np

from vfm4us.phantoms.physics import TISSUE_ALPHA, Probe


def stretch(field: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Every fourth sample back to `size` samples along an axis, linearly."""
    at = np.minimum(np.arange(size, dtype=np.float32) / 4, field.shape[axis] - 1)
    low = np.minimum(at.astype(np.int32), field.shape[axis] - 2)
    weight = np.expand_dims(at - low, 1 - axis)
    return field.take(low, axis) * (1 - weight) + field.take(low + 1, axis) * weight


class Scene:
    """Tissue maps on the beam grid; x, z, d in units of the imaged depth times `zoom`, z down, d along the beam."""

    path: np.ndarray  # attenuation on the way to each sample, dB/MHz
    contact: np.ndarray  # loss of each line at the skin, dB

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
        """Paint what hardly echoes and brightens what lies behind it."""
        self.paint(distance, echo=-45.0, alpha=0.02, impedance=-0.15, wall=wall)

    def bone(self, distance):
        """Paint what echoes strongly and leaves a shadow behind it."""
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
