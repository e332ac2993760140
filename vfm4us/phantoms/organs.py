"""Seven organs in three planes each."""

from __future__ import annotations

import numpy as np

from vfm4us.phantoms.physics import TISSUE_ALPHA, Probe
from vfm4us.phantoms.scene import Scene

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


def breast(s: Scene, plane: str, probe: Probe):
    """Paint a breast in one of its planes: fat, gland, chest wall, ducts or a lymph node, perhaps a lesion."""
    fat, muscle = s.pick(0.12, 0.3), s.pick(0.36, 0.5) if plane == "axillary" else s.pick(0.66, 0.88)
    s.echo += s.septa(-13, 17, 0.22, 0.05, s.pick(-0.25, 0.25))  # fat with septa
    gland = s.streaks(-7, 13, 0.5, 0.12, 0.014, s.pick(-0.25, 0.25)) + 4 * s.noise(0.2, 0.08)
    if plane != "axillary":
        s.paint(s.layer(fat, muscle - 0.06, 0.08), gland, soft=8)
    for _ in range(s.view.integers(2, 6)):  # fat lobules between Cooper's ligaments
        x, z = s.view.uniform((-0.6, 0.05), (0.6, 0.5))
        lobule = s.ellipse(x, z, s.pick(0.08, 0.18), s.pick(0.03, 0.07))
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
    """Paint the texture of a liver and its small vessels over the whole scene."""
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
    """Paint a liver in one of its planes: tissue, diaphragm, hepatic veins, portal vein or right kidney, perhaps a lesion."""
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
    """Paint a thyroid in one of its planes: lobes between the muscles of the neck, trachea and vessels, perhaps a lesion."""
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
    """Paint a kidney in one of its planes: cortex, sinus, perirenal fat and in one plane pyramids, perhaps a lesion."""
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
    """Paint a fetal head in one of its planes: skull, brain, midline and the structures that define the plane."""
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
    """Paint a muscle in one of its planes: fibres and aponeuroses, with femur, or forearm bones, tendons and median nerve."""
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
    """Paint a gallbladder in one of its planes: liver, bowel with gas, wall and bile, perhaps stones that cast shadows."""
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
