"""Many patches per image, cut and varied for the whole batch at once on the device, from one packed uint8 image each.

Every random number of a batch comes from one CPU generator and is drawn for the *global* batch, in a fixed order. So the
same seed gives the same patches on CPU and GPU, for any number of loader workers, and process r of k gets exactly the
patches that one process would have cut for the same images.

What is varied is what a scanner varies: position and size of the window, left/right, gain, dynamic range (contrast),
gamma, sharpness, time-gain compensation (a slope over depth), an acoustic shadow, and multiplicative speckle.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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
    count: int = option(20, "patches per image (n)", low=2, high=1024)
    size: int = option(96, "side of a patch, px (P)", low=16, high=4096)


# The uniform numbers drawn per patch; a name ending in _on decides whether the change of that name happens.
_NAMES = (
    "area",
    "aspect",
    "down",
    "right",
    "flip_on",
    "blur_on",
    "blur",
    "gain_on",
    "gain",
    "contrast_on",
    "contrast",
    "gamma_on",
    "gamma",
    "slope_on",
    "slope",
    "shadow_on",
    "shadow_column",
    "shadow_width",
    "shadow_depth",
    "speckle_on",
    "speckle",
    "speckle_row",
    "speckle_column",
)


class PatchSampler:
    """Cuts `config.count` patches from each image of a batch.

    >>> patches = PatchSampler(PatchConfig(count=20, size=96))(images, valid, torch.Generator().manual_seed(0))

    images: (b, S, S) uint8, the packed store's. valid: (b, 4) top, left, height, width of the part that is no padding.
    Returns (n, b, 1, P, P) float32 in [0, 1] on the images' device. Windows never leave the valid rectangle.
    With masks (b, S, S) uint8 also what lies under the patches, (n, b, P, P) uint8, cut from the same windows by the nearest pixel.
    """

    def __init__(self, config: PatchConfig):  # or another ViewConfig that has a count and a size
        if config.scale_low > config.scale_high:
            raise ValueError(f"patches.scale_low {config.scale_low} is above patches.scale_high {config.scale_high}")
        self.config = config

    def __call__(
        self,
        images: Tensor,
        valid: Tensor,
        generator: torch.Generator,
        rank: int = 0,
        world_size: int = 1,
        masks: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        numbers, bank = self.draw(len(images) * world_size, generator)
        own = slice(rank * len(images), (rank + 1) * len(images))
        numbers = dict(zip(_NAMES, numbers[:, :, own], strict=True))  # each (n, b)
        device, (n, b, size) = images.device, (self.config.count, len(images), self.config.size)
        valid, bank = valid.to(device), bank.to(device)
        boxes, changes = self.boxes(valid, {k: v.to(device) for k, v in numbers.items()}), self.changes(numbers)
        flip = changes["flip"].to(device)
        out = torch.empty((n, b, 1, size, size), device=device)
        # On a CPU some 3 MB at a time: what stays in the cache is not fetched again by each of the many small steps.
        few = n * b if images.is_cuda else max(1, 800_000 // size**2)
        for i in range(0, b, max(1, few // n)):
            some = slice(i, i + max(1, few // n))
            source, cell = self.source(images[some], valid[some])
            for p in range(0, n, few):
                part = (slice(p, p + few), some)
                patches = self.cut(source, cell, valid[some], boxes[part], flip[part])
                self.vary(patches, {k: v[part] for k, v in changes.items()}, bank, out[part])
        if masks is None:
            return out
        under = self.cut(masks[:, None].to(device).float(), 1, valid, boxes, flip, mode="nearest")
        return out, under[:, :, 0].to(torch.uint8)

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """All random numbers of a global batch: uniform (names, n, b), and a speckle field patches take windows of."""
        numbers = torch.rand((len(_NAMES), self.config.count, batch), generator=generator)
        side = 3 * self.config.size
        field = torch.randn((1, 1, side + 2, side + 2), generator=generator)
        field = F.avg_pool2d(field, 3, stride=1)[0, 0] * 3  # grains about 3 px wide, unit variance
        return numbers, field

    def boxes(self, valid: Tensor, numbers: dict[str, Tensor]) -> Tensor:
        """Windows (n, b, 4) as top, left, height, width in px of the store, inside `valid` (b, 4)."""
        c = self.config
        top, left, height, width = valid.float().unbind(-1)  # (b,)
        share = c.scale_low + (c.scale_high - c.scale_low) * numbers["area"]
        stretch = torch.exp((2 * numbers["aspect"] - 1) * math.log(c.ratio))
        h = (share * height * width / stretch).sqrt()
        w = h * stretch
        h, w = h.minimum(height), w.minimum(width)
        return torch.stack([top + numbers["down"] * (height - h), left + numbers["right"] * (width - w), h, w], dim=-1)

    def source(self, images: Tensor, valid: Tensor) -> tuple[Tensor, int]:
        """What windows are read from: (b, 1, S / cell, S / cell) in [0, 1], and the side of the cells it is averaged over."""
        source = images[:, None].float().div_(255)
        # The usual window's side, from the config and not from this batch: every process must use the same level.
        usual = images.shape[-1] * math.sqrt((self.config.scale_low + self.config.scale_high) / 2)
        cell = 2 ** max(0, round(math.log2(usual / self.config.size)))
        # A window more than 1.4 times the patch is averaged first, or fine speckle turns into moire.
        return (self._average(source, valid, cell) if cell > 1 else source), cell

    def cut(
        self, source: Tensor, cell: int, valid: Tensor, boxes: Tensor, flip: Tensor, mode: str = "bilinear"
    ) -> Tensor:
        """Resample windows (n, b, 4) to P x P, mirrored where `flip` (n, b): one grid_sample, (n, b, 1, P, P) in [0, 1]."""
        (n, b), size = boxes.shape[:2], self.config.size
        steps = (torch.arange(size, device=source.device) + 0.5) / size
        top, left, height, width = (v[..., None] for v in boxes.unbind(-1))  # (n, b, 1)
        y = top + steps * height
        x = left + torch.where(flip[..., None], 1 - steps, steps) * width
        # Bilinear weights reach half a (pooled) pixel further than the window: keep them off the padding.
        half = 0.5 * cell
        low_y, low_x, span_y, span_x = (v.float()[None, :, None] for v in valid.unbind(-1))
        y = y.clamp(min=low_y + half).minimum(low_y + span_y - half)
        x = x.clamp(min=low_x + half).minimum(low_x + span_x - half)
        extent = source.shape[-1] * cell
        grid = torch.empty((b, n, size, size, 2), device=source.device)
        grid[..., 0] = (2 * x / extent - 1).transpose(0, 1)[:, :, None, :]
        grid[..., 1] = (2 * y / extent - 1).transpose(0, 1)[:, :, :, None]
        out = F.grid_sample(
            source, grid.view(b, n * size, size, 2), mode=mode, padding_mode="border", align_corners=False
        )
        return out.view(b, n, 1, size, size).transpose(0, 1)

    @staticmethod
    def _average(source: Tensor, valid: Tensor, cell: int) -> Tensor:
        """Cells of (b, 1, S, S) averaged over their valid pixels alone, so that no padding is mixed in at the border."""
        place = torch.arange(source.shape[-1], device=source.device)
        top, left, height, width = valid[:, :, None].unbind(1)
        inside = ((place >= top) & (place < top + height))[:, None, :, None]
        inside = (inside & ((place >= left) & (place < left + width))[:, None, None, :]).to(source.dtype)
        source, inside = (F.avg_pool2d(x, cell, ceil_mode=True) for x in (source * inside, inside))
        return source / inside.clamp(min=1e-6)

    def changes(self, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        """What happens to each patch, from uniform numbers (n, b): 0 where a change of that name does not happen."""
        c = self.config

        def drawn(name: str, probability: float, low: float, high: float) -> Tensor:
            return (numbers[name + "_on"] < probability) * (low + (high - low) * numbers[name])

        return {
            "flip": numbers["flip_on"] < c.flip,
            "blur": drawn("blur", c.blur, 0, 1),
            "gain": 1 + drawn("gain", c.jitter, -c.gain, c.gain),
            "contrast": 1 + drawn("contrast", c.jitter, -c.contrast, c.contrast),
            "gamma": torch.exp(drawn("gamma", c.jitter, -c.gamma, c.gamma)),
            "slope": drawn("slope", c.depth_gain, -0.4, 0.4),
            "shadow": 0.8 * (numbers["shadow_on"] < c.shadow),
            "shadow_column": numbers["shadow_column"],
            "shadow_width": 0.05 + 0.1 * numbers["shadow_width"],
            "shadow_depth": numbers["shadow_depth"],
            "speckle": drawn("speckle", c.speckle, 0, c.speckle_strength),
            "speckle_row": numbers["speckle_row"],
            "speckle_column": numbers["speckle_column"],
        }

    def vary(self, patches: Tensor, changes: dict[str, Tensor], bank: Tensor, out: Tensor) -> None:
        """Photometric changes of (n, b, 1, P, P) into `out`, each patch its own; black stays black, values stay in [0, 1].

        `changes` (n, b) are still on the CPU, so that which patches a rare change touches is known without waiting for a
        GPU, and only those are worked on. `patches`, as `cut` returned them, are overwritten.
        """
        size, device = self.config.size, patches.device
        x = patches.transpose(0, 1).reshape(-1, 1, size, size)  # (N, 1, P, P), image by image as `cut` laid them down
        changes = {name: value.t().flatten() for name, value in changes.items()}
        places = {name: changes[name].nonzero()[:, 0] for name in ("blur", "shadow", "speckle")}
        u = {name: value.view(-1, 1, 1, 1).to(device) for name, value in changes.items()}
        some = {name: place.to(device) for name, place in places.items() if len(place)}
        if "blur" in some:
            sharp, strength = x[some["blur"]], u["blur"][some["blur"]]
            x[some["blur"]] = torch.lerp(sharp, soften(sharp), strength)
        depth = torch.linspace(0, 1, size, device=device).view(1, 1, size, 1)
        factor = u["gain"] * u["contrast"] * (1 + u["slope"] * (2 * depth - 1))  # (N, 1, P, 1)
        offset = u["gain"] * (1 - u["contrast"]) * x.mean((2, 3), keepdim=True)
        lit = x.sign()  # outside the sector a scanner shows 0 whatever its gain
        if "shadow" in some:  # a band of columns that darkens from some depth on
            v = {name: u[name][some["shadow"]] for name in ("shadow", "shadow_column", "shadow_width", "shadow_depth")}
            column = torch.linspace(0, 1, size, device=device).view(1, 1, 1, size)
            band = torch.exp(-(((column - v["shadow_column"]) / v["shadow_width"]) ** 2))
            below = torch.sigmoid((depth - v["shadow_depth"]) * 20)
            x[some["shadow"]] *= 1 - v["shadow"] * band * below
        x = (x * factor).addcmul_(lit, offset)
        if "speckle" in some:
            v = {name: u[name][some["speckle"]] for name in ("speckle", "speckle_row", "speckle_column")}
            grains = windows(bank, v["speckle_row"].flatten(), v["speckle_column"].flatten(), size)
            x[some["speckle"]] *= 1 + grains * v["speckle"]
        x = x.clamp_(0, 1)
        if self.config.jitter and self.config.gamma:
            # x^gamma, at half the time of pow on a CPU; the logarithm of 0 would take a slow path
            x = x.clamp_(min=1e-12).log_().mul_(u["gamma"]).exp_().mul_(lit)
        n, b = out.shape[:2]
        out.copy_(x.view(b, n, 1, size, size).transpose(0, 1))


def soften(x: Tensor) -> Tensor:
    """Blur (N, 1, P, P) with the binomial kernel 1 4 6 4 1 along both axes, as four sums of neighbours each."""
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    for _ in range(4):
        x = x[..., 1:, :] + x[..., :-1, :]
    for _ in range(4):
        x = x[..., 1:] + x[..., :-1]
    return x.div_(256)


def windows(field: Tensor, row: Tensor, column: Tensor, size: int) -> Tensor:
    """Windows (N, 1, size, size) of one random `field` at places `row`, `column` (N,) in [0, 1).

    One field of 9 P^2 numbers serves a whole batch, since numbers for every pixel of every patch would cost more to draw
    than the patches to cut; two patches share pixels of it, at another place in each.
    """
    rows, columns = ((x * (side - size + 1)).long() for x, side in zip((row, column), field.shape, strict=True))
    if not field.is_cuda:  # memory is copied by whole lines: four times as fast as indexing
        return torch.stack(
            [field[r : r + size, c : c + size] for r, c in zip(rows.tolist(), columns.tolist(), strict=True)]
        )[:, None]
    return field.unfold(0, size, 1).unfold(1, size, 1)[rows, columns][:, None]
