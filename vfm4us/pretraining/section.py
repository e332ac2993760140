"""What a method's section says of it before torch is imported: its keys, what it needs, and what can be wrong with it."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from vfm4us.config import option
from vfm4us.views import ViewConfig, check_scales


class Section:
    """What a method's section says of the method, beside its keys."""

    about: ClassVar[str]  # in a few words, for --help
    masks_tokens: ClassVar[bool] = False  # needs a transformer
    package: ClassVar[str] = ""  # of the extra `baselines`, that the method cannot do without
    highest_rate: ClassVar[float] = math.inf  # a rate above it is meant for another optimizer

    def check(self, patch: int) -> None:
        """ValueError for what cannot work, beginning with the key within the section; `patch`: side of a transformer's token."""

    def cuts(self) -> dict[str, Any]:
        """Name -> what is cut from each image, with a `size` in px; the first is what a transformer is made for."""
        raise NotImplementedError

    def image_side(self) -> int:
        """Side of the images that a transformer's positions are made for; 0: as usual."""
        return next(iter(self.cuts().values())).size


# ---- of the methods that train with AdamW ------------------------------------------------------------------------------


@dataclass
class AdamWConfig:
    """The optimizer of all methods but emp_ssl: its averages, weight decay and clipping; the rate is the stage's."""

    beta1: float = option(0.9, "decay of the mean gradient", low=0.0, high=0.9999)
    beta2: float = option(0.95, "decay of the mean squared gradient", low=0.0, high=0.9999)
    weight_decay: float = option(0.05, "on matrices and kernels only", low=0.0)
    weight_decay_end: float = option(-1.0, "reached by a cosine at the end of the stage; -1: constant", low=-1.0)
    clip: float = option(0.0, "longest gradient over all parameters; 0: any", low=0.0)


@dataclass
class CropConfig(ViewConfig):
    """How many crops are cut from an image, how large they are, and how each of them is varied."""

    count: int = option(1, "crops per image", low=0, high=1024)
    size: int = option(224, "side of a crop, px", low=16, high=4096)


# One crop of most of the image, hardly varied: the images are the target.
WEAK = {
    "scale_low": 0.2,
    "scale_high": 1.0,
    "gain": 0.1,
    "contrast": 0.1,
    "gamma": 0.1,
    "blur": 0.0,
    "speckle": 0.0,
    "depth_gain": 0.0,
}
STRONG = {"gain": 0.4, "contrast": 0.4, "gamma": 0.3, "blur": 0.5, "speckle": 0.2, "depth_gain": 0.3}


class BaselineSection(Section):
    """What the sections of others' methods share: AdamW, and parts of lightly (`pip install -e .[baselines]`)."""

    package = "lightly"
    highest_rate = 0.15

    def check(self, patch: int) -> None:
        for name, crops in self.cuts().items():
            if crops.count == 0 and name != "local_crops":
                raise ValueError(f"{name}.count is 0: a method without crops sees nothing")
            check_scales(crops, name)

    def cuts(self) -> dict[str, Any]:
        return {"crops": self.crops}  # type: ignore[attr-defined]  # a key of each of them
