"""What annotations draw: outlines, boxes, run lengths and bitmaps, each of one class."""

import numpy as np

CLASS_LIMIT = 254  # 255 is left for what is to be ignored
OTHER_SHAPE = 0.02  # difference of the two scales, beyond which an image is no copy of another size
CIRCLE_POINTS = 72  # corners of a circle or an ellipse


def ellipse(x: float, y: float, across: float, down: float, tilt: float = 0.0) -> np.ndarray:
    """The corners (N, 2) of an ellipse by its centre, its two radii and its tilt in radians."""
    turn = np.linspace(0, 2 * np.pi, CIRCLE_POINTS, endpoint=False)
    right, below = across * np.cos(turn), down * np.sin(turn)
    return np.stack(
        [x + right * np.cos(tilt) - below * np.sin(tilt), y + right * np.sin(tilt) + below * np.cos(tilt)], axis=1
    )


def with_size(shapes: list, height, width) -> list:
    """The same shapes, which know the size of the image they were drawn on; nothing of a size that is missing or 0."""
    size = int(float(height or 0)), int(float(width or 0))
    for shape in shapes:
        if isinstance(shape, Outline) and min(size) > 0:
            shape.size = size
    return shapes


class Outline:
    """A polygon of points (N, 2) as x, y in pixels, the centre of the first pixel at 0, 0; `relative` to width and height.

    holes: polygons within it that do not belong to it; size: height and width of the image it was drawn on, where known
    """

    size: tuple[int, int] | None = None

    def __init__(self, points, number: int, relative: bool = False, holes=()):
        self.points = np.asarray(points, np.float64).reshape(-1, 2)
        if len(self.points) < 3 or not np.isfinite(self.points).all() or np.abs(self.points).max() > 1e6:
            raise ValueError("an outline needs three points or more, within the image")
        self.number, self.relative = _class(number), relative
        self.holes = [Outline(hole, number) for hole in holes]

    def on_image(self, height: int, width: int) -> "Outline":
        """The outline for an image of that size, which may be a larger or smaller copy. ValueError where its shape is another."""
        if self.size is None or self.size == (height, width) or self.relative:
            return self
        down, across = height / self.size[0], width / self.size[1]
        if abs(down / across - 1) > OTHER_SHAPE:
            raise ValueError(
                f"its outlines are for {self.size[1]} x {self.size[0]} pixels, the image has {width} x {height}: write the size of "
                "the image for which they are"
            )

        def scaled(points: np.ndarray) -> np.ndarray:
            return (points + 0.5) * (across, down) - 0.5

        return Outline(scaled(self.points), self.number, holes=[scaled(hole.points) for hole in self.holes])

    def draw(self, mask: np.ndarray) -> None:
        """Fill the outline in `mask` (H, W). ValueError where shares of the image reach beyond it."""
        points = self.points
        if self.relative:
            if points.min() < -0.01 or points.max() > 1.01:
                raise ValueError("outlines in shares of the image must lie between 0 and 1")
            points = points * (mask.shape[1], mask.shape[0]) - 0.5
        from skimage.draw import polygon as inside  # a machine that only pretrains may lack it

        rows, columns = inside(points[:, 1], points[:, 0], mask.shape)
        if not self.holes:
            mask[rows, columns] = self.number
            return
        filled = np.zeros(mask.shape, bool)
        filled[rows, columns] = True
        for hole in self.holes:
            cut = np.zeros(mask.shape, np.uint8)
            hole.draw(cut)
            filled &= cut == 0
        mask[filled] = self.number


class Box:
    """What is no mask: an image that has one is refused when it is read, the others of its file are not."""

    def __init__(self, what: str):
        self.what = what

    def draw(self, mask: np.ndarray) -> None:
        """ValueError: a box is no outline."""
        raise ValueError(f"{self.what} is a box, no outline: boxes are no masks")


class Runs:
    """Run lengths over the pixels column by column: `pairs` (N, 2) of start, from 0, and length."""

    def __init__(self, pairs, number: int, size: tuple[int, int] | None = None):
        self.pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
        self.number, self.size = _class(number), size
        if len(self.pairs) and self.pairs.min() < 0:
            raise ValueError("run lengths are damaged: negative numbers")

    def draw(self, mask: np.ndarray) -> None:
        """Fill the runs in `mask` (H, W). ValueError where they belong to another size."""
        if self.size is not None and self.size != mask.shape:
            raise ValueError(
                f"its run lengths are for {self.size[1]} x {self.size[0]} pixels, not {mask.shape[1]} x {mask.shape[0]}"
            )
        if len(self.pairs) and int(self.pairs.sum(1).max()) > mask.size:
            raise ValueError("its run lengths reach beyond the image")
        flat = np.zeros(mask.size, bool)
        for start, length in self.pairs.tolist():
            flat[start : start + length] = True
        mask[flat.reshape(mask.shape[::-1]).T] = self.number


class Bitmap:
    """A small mask (H, W) of booleans whose first pixel lies at `top`, `left` of the image; `size`, where known, is the image's."""

    def __init__(self, pixels: np.ndarray, top: int, left: int, number: int, size: tuple[int, int] | None = None):
        self.pixels, self.top, self.left, self.number, self.size = pixels, int(top), int(left), _class(number), size
        if self.top < 0 or self.left < 0:
            raise ValueError("a bitmap lies outside of the image")

    def draw(self, mask: np.ndarray) -> None:
        """Fill the bitmap in `mask` (H, W). ValueError where it reaches beyond, or belongs to another size."""
        bottom, right = self.top + self.pixels.shape[0], self.left + self.pixels.shape[1]
        if bottom > mask.shape[0] or right > mask.shape[1] or (self.size is not None and self.size != mask.shape):
            raise ValueError(
                f"its bitmap reaches to {right} x {bottom} pixels, the image has {mask.shape[1]} x {mask.shape[0]}"
            )
        mask[self.top : bottom, self.left : right][self.pixels] = self.number


def _class(number: int) -> int:
    if not 1 <= number <= CLASS_LIMIT:
        raise ValueError(f"class {number - 1}: 0 to {CLASS_LIMIT - 1} are read")
    return int(number)
