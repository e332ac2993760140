"""The keys of what is cut from an image and how it is varied; `augment.py` does it."""

from dataclasses import dataclass

from vfm4us.config import option


@dataclass
class ViewConfig:
    """How a window is placed and varied; also the augmentation of the tasks, with other defaults."""

    scale_low: float = option(0.06, "smallest share of the image's area in a patch", low=0.001, high=1.0)
    scale_high: float = option(0.5, "largest share of the image's area in a patch", low=0.001, high=1.0)
    ratio: float = option(1.333, "widest aspect ratio of a window before it is resized to a square", low=1.0)
    flip: float = option(0.5, "probability of a left/right flip", low=0.0, high=1.0)
    jitter: float = option(0.8, "probability of each change of gain, contrast and gamma", low=0.0, high=1.0)
    gain: float = option(0.2, "gain factor within 1 +- this", low=0.0, high=0.95)
    contrast: float = option(0.2, "contrast factor within 1 +- this", low=0.0, high=0.95)
    gamma: float = option(0.15, "log of gamma within +- this", low=0.0, high=2.0)
    blur: float = option(0.3, "probability of a loss of sharpness", low=0.0, high=1.0)
    speckle: float = option(0.1, "probability of added multiplicative speckle", low=0.0, high=1.0)
    speckle_strength: float = option(0.25, "largest standard deviation of that speckle", low=0.0, high=1.0)
    depth_gain: float = option(0.2, "probability of a gain slope over depth", low=0.0, high=1.0)
    shadow: float = option(0.0, "probability of an acoustic shadow", low=0.0, high=1.0)


@dataclass
class PatchConfig(ViewConfig):
    """How many patches are cut from an image, how large they are, and how each of them is varied."""

    count: int = option(20, "patches per image (n)", low=2, high=1024)
    size: int = option(96, "side of a patch, px (P)", low=16, high=4096)


def check_scales(config: ViewConfig, name: str = "patches") -> None:
    """ValueError where the smallest share of an image that the section `name` cuts is above the largest."""
    if config.scale_low > config.scale_high:
        raise ValueError(f"{name}.scale_low {config.scale_low} is above {name}.scale_high {config.scale_high}")
