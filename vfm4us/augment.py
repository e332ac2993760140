"""Many patches per image, cut and varied for the whole batch at once on the device, from one packed uint8 image each.

Each change draws its random numbers from a stream of its own name, on the CPU and for the *global* batch. So a new change
moves no number of another; the same seed gives the same patches on CPU and GPU, for any number of loader workers; and process r
of k gets exactly the patches that one process would have cut for the same images.

What is varied is what a scanner varies: position and size of the window, left/right, gain, dynamic range (contrast),
gamma, sharpness, time-gain compensation (a slope over depth), an acoustic shadow, and multiplicative speckle.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vfm4us.runtime.rng import stream
from vfm4us.views import PatchConfig, check_scales

# The uniform numbers that each change draws for a patch, from the stream of its name. In `<name>_on` lies whether it happens.
DRAWN = {
    "window": ("area", "aspect", "down", "right"),
    "flip": ("flip_on",),
    "blur": ("blur_on", "blur"),
    "gain": ("gain_on", "gain"),
    "contrast": ("contrast_on", "contrast"),
    "gamma": ("gamma_on", "gamma"),
    "slope": ("slope_on", "slope"),
    "shadow": ("shadow_on", "shadow_column", "shadow_width", "shadow_depth"),
    "speckle": ("speckle_on", "speckle", "speckle_row", "speckle_column"),
}
RARE = ("blur", "shadow", "speckle")  # worked on only where they happen


class PatchSampler:
    """Cuts `config.count` patches from each image of a batch.

    >>> patches = PatchSampler(PatchConfig(count=20, size=96))(images, valid, torch.Generator().manual_seed(0))

    images: (b, S, S) uint8, the packed store's. valid: (b, 4) top, left, height, width of the part that is no padding.
    Returns (n, b, 1, P, P) float32 in [0, 1] on the images' device. Windows never leave the valid rectangle.
    With masks (b, S, S) uint8 also what lies under the patches, (n, b, P, P) uint8, cut from the same windows by the nearest pixel.
    """

    def __init__(self, config: PatchConfig):  # or another ViewConfig that has a count and a size
        check_scales(config)
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
        n, b, size = self.config.count, len(images), self.config.size
        mine, device = slice(rank * b, (rank + 1) * b), images.device
        drawn, bank = self.draw(b * world_size, generator)
        drawn = {name: numbers[:, mine] for name, numbers in drawn.items()}  # each (n, b), on the CPU
        numbers = dict(zip(drawn, moved(torch.stack(list(drawn.values())), device), strict=True))  # in one copy
        whole = bool((valid == torch.tensor([0, 0, *images.shape[-2:]])).all()) if not valid.is_cuda else False
        valid, bank = moved(valid, device), None if bank is None else moved(bank, device)
        boxes, changes = self.boxes(valid, numbers), self.changes(numbers)
        happens = {name: drawn[f"{name}_on"] < getattr(self.config, name) for name in RARE if f"{name}_on" in drawn}
        out = torch.empty((n, b, 1, size, size), device=device)
        # On a CPU some 3 MB at a time: what stays in the cache is not fetched again by each of the many small steps.
        few = n * b if images.is_cuda else max(1, 800_000 // size**2)
        for i in range(0, b, max(1, few // n)):
            some = slice(i, i + max(1, few // n))
            source, cell = self.source(images[some], None if whole else valid[some])
            for p in range(0, n, few):
                part = (slice(p, p + few), some)
                patches = self.cut(source, cell, valid[some], boxes[part], changes["flip"][part])
                places = _places({name: where[part] for name, where in happens.items()}, device)
                self.vary(patches, {k: v[part] for k, v in changes.items()}, places, bank, out[part])
        if masks is None:
            return out
        under = self.cut(masks[:, None].to(device).float(), 1, valid, boxes, changes["flip"], mode="nearest")
        return out, under[:, :, 0].to(torch.uint8)

    def happening(self) -> list[str]:
        """Names of the streams that are drawn from: all whose change can happen at all."""
        c = self.config
        probability = {"flip": c.flip, "blur": c.blur, "slope": c.depth_gain, "shadow": c.shadow, "speckle": c.speckle}
        probability |= {name: c.jitter * getattr(c, name) for name in ("gain", "contrast", "gamma")}
        return [name for name in DRAWN if probability.get(name, 1.0) > 0]

    def draw(self, batch: int, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor | None]:
        """All random numbers of a global batch: uniform (n, batch) by name, and a speckle field patches take windows of."""
        seed, numbers, field = int(torch.randint(2**62, (1,), generator=generator)), {}, None
        for name in self.happening():
            drawn = torch.rand((len(DRAWN[name]), self.config.count, batch), generator=stream(name, seed))
            numbers |= dict(zip(DRAWN[name], drawn, strict=True))
        if "speckle_on" in numbers:
            side = 3 * self.config.size
            # grains about 3 px wide, unit variance
            field = means_of_9(torch.randn((side + 2, side + 2), generator=stream("grains", seed))).mul_(3)
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

    def source(self, images: Tensor, valid: Tensor | None) -> tuple[Tensor, int]:
        """What windows are read from: (b, 1, S / cell, S / cell) in [0, 1], and the side of the cells it is averaged over.

        valid: None where no image has padding.
        """
        # The usual window's side, from the config and not from this batch: every process must use the same level.
        usual = images.shape[-1] * math.sqrt((self.config.scale_low + self.config.scale_high) / 2)
        cell = 2 ** max(0, round(math.log2(usual / self.config.size)))
        if cell == 1:
            return images[:, None].float().div_(255), cell
        # A window more than 1.4 times the patch is averaged first, or fine speckle turns into moire.
        return average(images, valid, cell)[:, None], cell

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

    def changes(self, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        """What happens to each patch, from uniform numbers (n, b): 0 where a change of that name does not happen."""
        c, never = self.config, torch.zeros_like(numbers["area"])

        def drawn(name: str, probability: float, low: float, high: float) -> Tensor:
            if name not in numbers:
                return never
            return (numbers[name + "_on"] < probability) * (low + (high - low) * numbers[name])

        values = {
            "flip": numbers.get("flip_on", never + 1) < c.flip,
            "blur": drawn("blur", c.blur, 0, 1),
            "gain": 1 + drawn("gain", c.jitter, -c.gain, c.gain),
            "contrast": 1 + drawn("contrast", c.jitter, -c.contrast, c.contrast),
            "gamma": torch.exp(drawn("gamma", c.jitter, -c.gamma, c.gamma)),
            "slope": drawn("slope", c.depth_gain, -0.4, 0.4),
            "speckle": drawn("speckle", c.speckle, 0, c.speckle_strength),
        }
        if "shadow_on" in numbers:
            values["shadow_width"] = 0.05 + 0.1 * numbers["shadow_width"]
        places = ("shadow_column", "shadow_depth", "speckle_row", "speckle_column")
        return values | {name: numbers[name] for name in places if name in numbers}

    def vary(
        self, patches: Tensor, changes: dict[str, Tensor], some: dict[str, Tensor], bank: Tensor | None, out: Tensor
    ) -> None:
        """Photometric changes of (n, b, 1, P, P) into `out`, each patch its own; black stays black, values stay in [0, 1].

        `some`: the numbers of the patches, image by image, to which a rare change happens; only those are worked on.
        `patches`, as `cut` returned them, are overwritten.
        """
        size, device = self.config.size, patches.device
        x = patches.transpose(0, 1).reshape(-1, 1, size, size)  # (N, 1, P, P), image by image as `cut` laid them down
        u = {name: value.t().reshape(-1, 1, 1, 1) for name, value in changes.items()}
        if "blur" in some:
            sharp, strength = x[some["blur"]], u["blur"][some["blur"]]
            x[some["blur"]] = torch.lerp(sharp, soften(sharp), strength)
        depth = torch.linspace(0, 1, size, device=device).view(1, 1, size, 1)
        factor = u["gain"] * u["contrast"] * (1 + u["slope"] * (2 * depth - 1))  # (N, 1, P, 1)
        offset = u["gain"] * (1 - u["contrast"]) * x.mean((2, 3), keepdim=True)
        lit = x.sign()  # outside the sector a scanner shows 0 whatever its gain
        if "shadow" in some:  # a band of columns that darkens from some depth on
            v = {name: u[name][some["shadow"]] for name in ("shadow_column", "shadow_width", "shadow_depth")}
            column = torch.linspace(0, 1, size, device=device).view(1, 1, 1, size)
            band = torch.exp(-(((column - v["shadow_column"]) / v["shadow_width"]) ** 2))
            below = torch.sigmoid((depth - v["shadow_depth"]) * 20)
            x[some["shadow"]] *= 1 - 0.8 * band * below
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


def moved(x: Tensor, device: torch.device | str) -> Tensor:
    """On the device, without waiting for it."""
    device = torch.device(device)
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and not x.is_cuda else x.to(device)


def _places(happens: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Numbers of the patches, image by image, where bool (n, b) on the CPU holds, moved in one copy; none where nowhere."""
    places = {name: where.t().flatten().nonzero()[:, 0] for name, where in happens.items()}
    places = {name: place for name, place in places.items() if len(place)}
    if not places:
        return {}
    parts = moved(torch.cat(list(places.values())), device).split([len(place) for place in places.values()])
    return dict(zip(places, parts, strict=True))


def average(images: Tensor, valid: Tensor | None, cell: int) -> Tensor:
    """Cells of (b, S, S) uint8 averaged over their valid pixels alone, in [0, 1]: (b, S / cell, S / cell), cell a power of 2.

    Nothing of the padding outside `valid` (b, 4) is mixed in at the border.
    """
    size = images.shape[-1]
    if valid is None:
        count = _cells(torch.ones(1, size, dtype=torch.int32, device=images.device), cell)
        across, down = count[:, None, :], count[:, :, None]
    else:
        place = torch.arange(size, device=images.device)
        top, left, height, width = valid[:, :, None].unbind(1)
        rows, columns = (place >= top) & (place < top + height), (place >= left) & (place < left + width)
        images = images * (rows[:, :, None] & columns[:, None, :])
        down, across = _cells(rows.int(), cell)[:, :, None], _cells(columns.int(), cell)[:, None, :]
    sums = images.to(torch.int16 if cell <= 8 else torch.int32)  # 255 * 8 * 8 fits
    sums = _cells(_cells(sums.mT, cell).mT, cell)
    return sums / (255.0 * (down * across).clamp(min=1))


def _cells(x: Tensor, cell: int) -> Tensor:
    """Sums of `cell` neighbours along the last axis; the last cell may have fewer."""
    if lacking := -x.shape[-1] % cell:
        x = F.pad(x, (0, lacking))
    while cell > 1:
        x, cell = x[..., 0::2] + x[..., 1::2], cell // 2
    return x


def means_of_9(field: Tensor) -> Tensor:
    """Mean of each 3 x 3 window of (H, W): (H - 2, W - 2). The bits of `F.avg_pool2d`, in a fifth of its time on a CPU."""
    height, width = (side - 2 for side in field.shape)
    total = field[:height, :width].clone()
    for place in range(1, 9):  # in this order, on which the last bit depends
        row, column = divmod(place, 3)
        total += field[row : row + height, column : column + width]
    return total.div_(9)


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
