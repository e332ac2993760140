"""Every picture the project draws. Figures are built without pyplot, so nothing global is touched and no screen is needed."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

HIDDEN = (255, 127, 14)  # orange: what is masked

# RGB of the classes 1 to 16 of a mask, apart from each other and from the grey of an image
CLASS_COLOURS = [
    (255, 150, 0),
    (0, 190, 255),
    (60, 220, 90),
    (255, 70, 160),
    (190, 130, 255),
    (255, 235, 60),
    (255, 80, 60),
    (0, 220, 190),
    (150, 180, 60),
    (90, 110, 255),
    (255, 190, 170),
    (170, 90, 40),
    (120, 255, 220),
    (220, 60, 255),
    (180, 220, 255),
    (120, 60, 120),
]


def contact_sheet(
    path: Path,
    images: Tensor,
    patches: Tensor,
    attacked: Tensor | None = None,
    cells: Tensor | None = None,
    epsilon: float = 0.0,
    title: str = "",
    columns: int = 6,
) -> np.ndarray:
    """What the network saw, one row per image: the image, its patches, adversarial patches, the change, masked patches.

    images (b, S, S) uint8; patches, attacked (n, b, 1, P, P) in [0, 1]; cells (n, b, 1, P, P) bool. `attacked` or `cells` None
    leaves their columns out. Written as PNG to `path`; returned as (H, W, 3) uint8.
    """
    images = images.cpu().numpy()
    patches, attacked = (None if x is None else x[:, :, 0].float().cpu().numpy() for x in (patches, attacked))
    columns = min(columns, len(patches))
    few = columns // 2 + 1
    grey, change = ("gray", 0, 1), ("RdBu_r", -max(epsilon, 1e-6), max(epsilon, 1e-6))
    parts = [("patch", patches[:columns], grey)]
    if attacked is not None:
        parts += [("adversarial", attacked[:few], grey), (f"change (±{epsilon:g})", (attacked - patches)[:few], change)]
    if cells is not None:
        shown = patches if attacked is None else attacked
        parts += [("masked", np.where(cells[:, :, 0].cpu().numpy(), np.nan, shown)[:few], grey)]
    few_images = min(4, len(images))
    heads, grid = {"image": 0}, [[_coloured(image, "gray", 0, 255)] for image in images[:few_images]]
    for name, part, colours in parts:
        heads[name] = len(grid[0])
        for i, row in enumerate(grid):
            row += [_coloured(patch, *colours) for patch in part[:, i]]
    return _mosaic(path, grid, title, heads=heads)


def _marker(points: Sequence) -> str:
    """A dot where a line would have no length: a short run logs one step, and its panel would look empty."""
    return "o" if len(points) == 1 else ""


# Two panels of a pretraining curve: title, label and key of each line, and a bound or None.
def training_curve(path: Path, lines: list[dict], title: str, panels: tuple) -> None:
    """Loss terms per step (`Method.panels`) and held-out k-NN and effective rank per epoch, from the lines of metrics.jsonl."""
    steps = [line for line in lines if line["kind"] == "train"]
    epochs = [line for line in lines if line["kind"] == "monitor"]
    count = len(panels) + 2
    figure = Figure(figsize=(2.75 * count, 2.9), dpi=110)
    axes = figure.subplots(1, count)
    figure.subplots_adjust(left=0.16 / count, right=1 - 0.05 / count, bottom=0.15, top=0.82, wspace=0.22)
    for axis, (name, keys, bound) in zip(axes[:-2], panels, strict=True):
        for label, key in keys.items():
            points = [(s["step"], s[key]) for s in steps if key in s]
            if points:
                axis.plot(*zip(*points, strict=True), marker=_marker(points), markersize=3, linewidth=1, label=label)
        if bound is not None:
            axis.axhline(bound[1], color="0.4", linestyle="--", linewidth=1, label=bound[0])
        if len(axis.lines) > 1:
            axis.legend(fontsize=7)
        axis.set_title(name, fontsize=9)
    for axis, key, name in (
        (axes[-2], "knn", "held-out k-NN balanced accuracy"),
        (axes[-1], "effective_rank", "effective rank"),
    ):
        for dataset in dict.fromkeys(e["dataset"] for e in epochs):
            points = [(e["step"], e[key]) for e in epochs if e["dataset"] == dataset and key in e]
            axis.plot(
                *zip(*points, strict=True), marker="o", markersize=3, linewidth=1, label=dataset
            ) if points else None
        axis.set_title(name, fontsize=9)
        if axis.lines:
            axis.legend(fontsize=7)
    changes = [a["step"] for a, b in zip(steps, steps[1:], strict=False) if a["stage"] != b["stage"]]
    for axis in axes:
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        for step in changes:
            axis.axvline(step, color="0.6", linestyle=":", linewidth=1)
    figure.suptitle(title, fontsize=9)
    _write(figure, path)


def picture_rows(path: Path, rows: dict[str, Tensor], title: str = "") -> np.ndarray:
    """Named rows of square grey pictures, each (n, P, P) in [0, 1], one column per image; returned as (H, W, 3) uint8."""
    grid = [[_coloured(picture, "gray", 0, 1) for picture in row.float().cpu().numpy()] for row in rows.values()]
    return _mosaic(path, grid, title, names=list(rows))


def _coloured(picture: np.ndarray, colours: str, low: float, high: float) -> np.ndarray:
    """(H, W) numbers as RGB, uint8, by a colour map between two limits; NaN, which is hidden, as orange."""
    hidden = np.isnan(picture) if picture.dtype.kind == "f" else np.zeros(picture.shape, bool)
    shown = colormaps[colours]((np.where(hidden, low, picture) - low) / (high - low), bytes=True)[..., :3]
    shown[hidden] = HIDDEN
    return shown


def _mosaic(
    path: Path,
    grid: list[list[np.ndarray]],
    title: str,
    heads: dict[str, int] | None = None,
    names: Sequence[str] = (),
    side: int = 92,
) -> np.ndarray:
    """Rows of RGB squares as one picture, `side` px each: drawn as one image, since an axis for each costs a second a dozen.

    heads: words above the first row -> column; names: words before each row. Returned as (H, W, 3) uint8.
    """
    dpi, gap = 110, 3
    left, top = (13 + 8 * max(map(len, names), default=0), 44 + 14 * bool(heads))
    columns = max(map(len, grid))
    width, height = left + columns * (side + gap) + 10, top + len(grid) * (side + gap) + 8
    canvas = np.full((height, width, 3), 255, np.uint8)
    for i, row in enumerate(grid):
        for k, cell in enumerate(row):
            y, x = top + i * (side + gap), left + k * (side + gap)
            near = [np.arange(side) * n // side for n in cell.shape[:2]]
            canvas[y : y + side, x : x + side] = 0
            canvas[y + 1 : y + side - 1, x + 1 : x + side - 1] = cell[np.ix_(*near)][1:-1, 1:-1]
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi)
    figure.figimage(canvas, 0, 0, origin="upper")
    figure.text(13 / width, 1 - 10 / height, title, fontsize=9, va="top")
    for name, column in (heads or {}).items():
        figure.text((left + column * (side + gap)) / width, 1 - (top - 6) / height, name, fontsize=8, va="bottom")
    for i, name in enumerate(names):
        middle = 1 - (top + i * (side + gap) + side / 2) / height
        figure.text((left - 6) / width, middle, name, fontsize=8, ha="right", va="center")
    return _write(figure, path)


def captioned_rows(path: Path, rows: list[list[tuple[np.ndarray, str]]], title: str, side: float = 1.5) -> None:
    """Rows of grey uint8 pictures of any shape, each with a caption below; rows may differ in length. `side`: inches of a cell."""
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(side * columns, (side + 0.35) * len(rows) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axis in grid.flat:
        axis.axis("off")
    for line, row in zip(grid, rows, strict=True):
        for axis, (picture, caption) in zip(line, row, strict=False):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
            below = {"xytext": (0, -2), "textcoords": "offset points", "ha": "center", "va": "top"}
            axis.annotate(caption, (0.5, 0), xycoords="axes fraction", fontsize=6.5, **below)
    figure.suptitle(title, fontsize=9)
    _save(figure, path)


def finetuning_curve(path: Path, lines: list[dict], measure: str, best: int) -> None:
    """Loss and the validation's `measure` against steps, from the lines of metrics.jsonl; `best` is the step chosen."""
    steps = [line for line in lines if line["kind"] == "train"]
    epochs = [line for line in lines if line["kind"] == "monitor"]
    figure = Figure(figsize=(8.4, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    width = max(1, len(steps) // 100)
    smooth = [np.mean([s["loss"] for s in steps[i : i + width]]) for i in range(0, len(steps), width)]
    left.plot(
        [s["step"] for s in steps[::width]],
        smooth,
        marker=_marker(smooth),
        markersize=3,
        linewidth=1,
        label="training",
    )
    left.plot(
        [e["step"] for e in epochs], [e["val_loss"] for e in epochs], marker="o", markersize=3, label="validation"
    )
    left.set_ylabel("loss", fontsize=9)
    left.legend(fontsize=8)
    right.plot([e["step"] for e in epochs], [e[measure] for e in epochs], marker="o", markersize=3)
    right.axvline(best, color="0.6", linestyle=":", linewidth=1)
    right.set_ylabel(measure.replace("val_", "validation ").replace("_", " "), fontsize=9)
    for axis in (left, right):
        axis.set_xlabel("step", fontsize=9)
        axis.grid(color="0.9")
    _save(figure, path)


def intervals(
    path: Path, rows: list[str], series: dict[str, list[tuple[float, float, float]]], label: str, bound: float = 0.0
) -> None:
    """Means with their intervals: one line of points per row, one colour per series of (mean, low, high) per row.

    bound: of differences, what lies within +- bound counts as none; shown as a band around a line at 0.
    """
    figure = Figure(figsize=(7.5, 0.42 * len(rows) + 1.2), layout="constrained")
    axis = figure.subplots()
    for k, (name, values) in enumerate(series.items()):
        mean, low, high = np.array(values).T
        place = np.arange(len(rows)) + (k - (len(series) - 1) / 2) * 0.17
        axis.errorbar(mean, place, xerr=[mean - low, high - mean], fmt="o", markersize=4, linewidth=1, label=name)
    if bound:
        axis.axvspan(-bound, bound, color="0.93", zorder=0)
        axis.axvline(0, color="0.5", linewidth=0.8, zorder=1.8)  # above the grid
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel(label, fontsize=9)
    axis.grid(axis="x", color="0.9")
    figure.legend(fontsize=8, loc="outside upper center", ncols=len(series))
    _save(figure, path)


def label_curves(
    path: Path, panels: dict[str, dict[str, list[tuple[float, float, float, float]]]], measure: str = "macro AUROC"
) -> None:
    """A score against the number of labelled images, on a log scale: panels[title][arm] = [(images, mean, low, high)]; bands."""
    figure = Figure(figsize=(0.6 + 4.8 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))  # an arm has one colour in all
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, points in curves.items():
            color = f"C{names.index(name)}"
            images, mean, low, high = np.array(points).T
            axis.plot(images, mean, marker="o", markersize=3.5, linewidth=1.3, color=color, label=name)
            axis.fill_between(images, low, high, color=color, alpha=0.18, linewidth=0)
        axis.set_xscale("log")
        ticks = sorted({round(point[0]) for points in curves.values() for point in points})
        ticks = [a for a, b in zip(ticks, [*ticks[1:], math.inf], strict=True) if a * 1.3 < b]  # labels that have room
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
        axis.minorticks_off()
        axis.set_xlabel("labelled images", fontsize=9)
        axis.set_ylabel(measure if axis is axes[0] else "", fontsize=9)
        axis.set_title(title, fontsize=9, loc="left")
        axis.grid(color="0.92")
    axes[0].legend(fontsize=8, loc="lower right", title="bands: 95 %", title_fontsize=8)
    _save(figure, path)


def method_panels(
    path: Path, methods: list[str], panels: dict[str, dict[str, dict[str, tuple[float, float, float]]]], label: str
) -> None:
    """Panels side by side with a row per method: panels[title][series][method] = (mean, low, high), one colour per series."""
    figure = Figure(figsize=(2.2 + 3.2 * len(panels), 0.42 * len(methods) + 1.5), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    for axis, (title, series) in zip(axes, panels.items(), strict=True):
        for k, name in enumerate(names):
            rows = [i for i, method in enumerate(methods) if method in series.get(name, {})]
            mean, low, high = np.array([series[name][methods[i]] for i in rows]).reshape(-1, 3).T
            place = np.array(rows) + (k - (len(names) - 1) / 2) * 0.17
            axis.errorbar(
                mean,
                place,
                xerr=[mean - low, high - mean],
                fmt="o",
                markersize=4,
                linewidth=1,
                color=f"C{k}",
                label=name if axis is axes[0] else None,
            )
        axis.set_title(title, fontsize=9)
        axis.set_yticks(range(len(methods)), methods, fontsize=8)
        axis.set_ylim(len(methods) - 0.5, -0.5)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", color="0.9")
    figure.supxlabel(label, fontsize=9)
    figure.legend(fontsize=8, loc="outside upper center", ncols=len(names))
    _save(figure, path)


def confusion_matrix(path: Path, counts: np.ndarray, classes: list[str]) -> None:
    """Rows are the true classes, columns the predicted; colour is the share of the row, numbers are images."""
    many = len(classes) > 12
    side = max(3.2, min(12, 0.6 * len(classes) + 1.6))
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axis = figure.subplots()
    share = counts / np.maximum(1, counts.sum(1, keepdims=True))
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if not many:
        for i, j in np.ndindex(counts.shape):
            colour = "white" if share[i, j] > 0.5 else "black"
            axis.text(
                j, i, f"{counts[i, j]}\n{100 * share[i, j]:.0f} %", ha="center", va="center", color=colour, fontsize=8
            )
    if len(classes) <= 60:
        axis.set_xticks(range(len(classes)), classes, rotation=60 if many else 30, ha="right", fontsize=8)
        axis.set_yticks(range(len(classes)), classes, fontsize=8)
    axis.set_xlabel("predicted", fontsize=9)
    axis.set_ylabel("true", fontsize=9)
    _save(figure, path)


def roc_curves(path: Path, labels: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> None:
    """One-vs-rest ROC curve of each class that occurs and is not alone; at most the twelve most frequent."""
    from sklearn.metrics import roc_auc_score, roc_curve

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle=":")
    present, counts = np.unique(labels, return_counts=True)
    if len(present) > 1:
        for c in present[np.argsort(-counts, kind="stable")][:12]:
            false, true, _ = roc_curve(labels == c, probabilities[:, c])
            area = roc_auc_score(labels == c, probabilities[:, c])
            axis.plot(false, true, linewidth=1.3, label=f"{classes[c]}, area {area:.3f}")
        axis.legend(fontsize=8, loc="lower right")
    axis.set_xlabel("false positive rate", fontsize=9)
    axis.set_ylabel("true positive rate", fontsize=9)
    _save(figure, path)


def reliability(path: Path, labels: np.ndarray, series: dict[str, np.ndarray], bins: int = 10) -> None:
    """Accuracy against confidence in equally wide bins, and how many images lie in each; one line per series of (N, C)."""
    figure = Figure(figsize=(4.6, 5), layout="constrained")
    axis, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle=":")
    for k, (name, probabilities) in enumerate(series.items()):
        confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
        place = np.minimum((confidence * bins).astype(int), bins - 1)
        used = np.unique(place)
        axis.plot(
            [confidence[place == b].mean() for b in used],
            [right[place == b].mean() for b in used],
            marker="o",
            markersize=4,
            linewidth=1.3,
            label=name,
        )
        below.bar((np.arange(bins) + 0.3 + 0.4 * k) / bins, np.bincount(place, minlength=bins), width=0.4 / bins)
    axis.set_ylabel("accuracy", fontsize=9)
    axis.set_xlim(0, 1)
    axis.legend(fontsize=8, loc="upper left")
    below.set_xlabel("confidence", fontsize=9)
    below.set_ylabel("images", fontsize=9)
    _save(figure, path)


def tsne(path: Path, features: np.ndarray, labels: list[str], limit: int = 2000) -> None:
    """Features (N, d) in the plane, coloured by label; a fixed choice of at most `limit`."""
    from sklearn.manifold import TSNE

    rows = np.random.default_rng(0).permutation(len(features))[:limit]
    figure = Figure(figsize=(5.4, 5), layout="constrained")
    axis = figure.subplots()
    if len(rows) > 3:
        unit = features[rows] / np.maximum(1e-12, np.linalg.norm(features[rows], axis=1, keepdims=True))
        place = TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), init="random", random_state=0).fit_transform(unit)
        names = np.array(labels)[rows]
        for name in np.unique(names)[:20]:
            axis.scatter(*place[names == name].T, s=9, label=name)
        axis.legend(fontsize=8, markerscale=1.6)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title("t-SNE of the encoder's features of the test images", fontsize=9)
    _save(figure, path)


def heat_maps(path: Path, images: np.ndarray, heat: np.ndarray, titles: list[str], rows: list[str]) -> None:
    """Images (N, H, W) in [0, 1], each beside itself with the map (N, H, W) in [0, 1] laid over; `rows`: a title for each row."""
    columns = max(1, len(images) // len(rows))
    figure = Figure(figsize=(3.25 * columns, 2.25 * len(rows)), layout="constrained")
    parts = figure.subfigures(len(rows), squeeze=False)[:, 0]
    for part, row in zip(parts, rows, strict=True):
        part.suptitle(row, fontsize=9, x=0.005, ha="left")
    grid = [part.subplots(1, 2 * columns, squeeze=False)[0] for part in parts]
    for axis in np.ravel(grid):
        axis.axis("off")
    for i, (image, over) in enumerate(zip(images, heat, strict=True)):
        row, place = divmod(i, columns)
        plain, coloured = grid[row][2 * place : 2 * place + 2]
        plain.imshow(image, cmap="gray", vmin=0, vmax=1)
        plain.set_title(titles[i], fontsize=7, loc="left")
        coloured.imshow(image, cmap="gray", vmin=0, vmax=1)
        coloured.imshow(over, cmap="inferno", alpha=0.5, vmin=0, vmax=1)
    _save(figure, path)


def overlays(
    path: Path, images: list, predictions: list, titles: list[str], classes: list[str], truths: list | None = None
) -> None:
    """Images (H, W) uint8, three in a row, with outlines: what was predicted in the class's colour, the truth dashed, in white.

    Of several classes the truth is dashed in a pale shade of each class's colour.
    """
    colours = [[value / 255 for value in colour] for colour in CLASS_COLOURS[: len(classes)]]
    pale = ["white"] if len(classes) == 1 else [[0.45 + 0.55 * value for value in colour] for colour in colours]
    dashed = (0, (3, 2))
    shapes = [image.shape[0] / image.shape[1] for image in images]
    heights = [3.4 * max(shapes[i : i + 3]) + 0.3 for i in range(0, len(images), 3)]
    figure = Figure(figsize=(10.5, sum(heights) + 0.4), layout="constrained")
    grid = figure.subplots(len(heights), 3, squeeze=False, height_ratios=heights)
    for axis in grid.flat:
        axis.axis("off")
    for i, (axis, image, predicted) in enumerate(zip(grid.flat, images, predictions, strict=False)):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        axis.set_title(titles[i], fontsize=8, loc="left")
        for number in range(1, len(classes) + 1):
            _outline(axis, predicted == number, colors=[colours[number - 1]], linewidths=1.6)
            if truths is not None:
                _outline(axis, truths[i] == number, colors=[pale[number - 1]], linewidths=1.1, linestyles=[dashed])
    lines = [Line2D([], [], color=c, label=f"{name}, predicted") for c, name in zip(colours, classes, strict=True)]
    if truths is not None:
        lines += [
            Line2D([], [], color=c, linestyle=dashed, label=f"{name}, truth")
            for c, name in zip(pale, classes, strict=True)
        ]
    figure.legend(handles=lines, loc="outside lower center", ncols=6, fontsize=8, facecolor="0.25", labelcolor="white")
    _save(figure, path)


def _outline(axis, mask: np.ndarray, **style) -> None:
    """The border of a mask (H, W) in a picture's own pixels; one that touches the border of the picture is closed there."""
    if mask.any():
        axis.contour(np.pad(mask, 1).astype(float), [0.5], extent=(-1, mask.shape[1], -1, mask.shape[0]), **style)


def outlined(image: np.ndarray, mask: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
    """(H, W, 3) uint8 at the image's own size: one-pixel outlines inside each class, the truth's in white, dotted."""
    picture = np.repeat(image[..., None], 3, axis=2)
    for classes, dotted in ((truth, True), (mask, False)):
        if classes is None:
            continue
        classes = np.where(classes == 255, 0, classes)  # what is to be ignored is no class
        around = np.pad(classes, 1)
        edge = np.zeros(image.shape, bool)
        for shift in (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]):
            edge |= shift != classes
        edge &= classes > 0
        if dotted:
            edge &= np.add.outer(np.arange(len(edge)), np.arange(edge.shape[1])) % 4 < 2
            picture[edge] = 255
        else:
            picture[edge] = np.array(CLASS_COLOURS, dtype=np.uint8)[classes[edge].astype(int) - 1]
    return picture


def dice_by_size(path: Path, dice: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Per class the Dice of images in which it occurs, and its share of the image's area: histogram, and one against the other."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
    for k, (name, (values, share)) in enumerate(dice.items()):
        colour = [value / 255 for value in CLASS_COLOURS[k]]
        said = f"{name}, n = {len(values)}" + (f", mean {values.mean():.3f}" if len(values) else "")
        left.hist(values, bins=np.linspace(0, 1, 21), histtype="stepfilled", alpha=0.45, color=colour)
        left.hist(values, bins=np.linspace(0, 1, 21), histtype="step", color=colour)
        right.scatter(100 * share, values, s=9, color=colour, label=said)
    left.set_xlabel("Dice", fontsize=9)
    left.set_ylabel("images", fontsize=9)
    right.set_xscale("log")
    right.set_ylim(-0.02, 1.02)
    right.set_xlabel("size, % of the image", fontsize=9)
    right.set_ylabel("Dice", fontsize=9)
    right.grid(color="0.9")
    figure.legend(fontsize=8, loc="outside upper center", ncols=3)
    _save(figure, path)


def picture_grid(path: Path, columns: dict[str, np.ndarray], title: str = "") -> None:
    """Grey pictures (N, H, W) uint8 side by side: one row per picture, one column per name."""
    height, width = max(len(part) for part in columns.values()), len(columns)
    figure = Figure(figsize=(1.7 * width, 1.7 * height + 0.5), layout="constrained")
    grid = figure.subplots(height, width, squeeze=False)
    for axis in grid.flat:
        axis.axis("off")
    for k, (name, part) in enumerate(columns.items()):
        grid[0][k].set_title(name, fontsize=8, loc="left")
        for i, picture in enumerate(part):
            grid[i][k].imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    figure.suptitle(title, fontsize=9)
    _save(figure, path)


def cycle_curve(path: Path, lines: list[dict], best: int) -> None:
    """Losses of generators and discriminators, the validation's figures and those of the untouched input; `best` is a step."""
    steps = [line for line in lines if line["kind"] == "train"]
    epochs = [line for line in lines if line["kind"] == "monitor"]
    figure = Figure(figsize=(12, 3), layout="constrained")
    axes = figure.subplots(1, 4)
    width = max(1, len(steps) // 100)
    at = [s["step"] for s in steps[::width]]
    for axis, kinds, title in (
        (
            axes[0],
            ("cycle_low", "cycle_high", "identity_low", "identity_high", "l1", "pair", "contrast_low"),
            "cycle, identity, pairs",
        ),
        (
            axes[1],
            ("adversarial_high", "adversarial_low", "discriminator_high", "discriminator_low"),
            "adversarial (0.25: a draw)",
        ),
    ):
        for kind in kinds:
            if steps and kind in steps[0]:
                smooth = [np.mean([s[kind] for s in steps[i : i + width]]) for i in range(0, len(steps), width)]
                label = kind.replace("_", " ")
                axis.plot(at, smooth, marker=_marker(smooth), markersize=3, linewidth=1, label=label)
        axis.set_title(title, fontsize=9)
        if axis.lines:
            axis.legend(fontsize=7)
    for axis, name in ((axes[2], "ssim"), (axes[3], "psnr")):
        axis.set_title(f"validation {name.upper()}", fontsize=9)
        if epochs and f"val_{name}" in epochs[0]:
            axis.plot(
                [e["step"] for e in epochs],
                [e[f"val_{name}"] for e in epochs],
                marker="o",
                markersize=3,
                label="enhanced",
            )
            axis.axhline(
                epochs[0][f"val_{name}_input"], color="0.5", linestyle="--", linewidth=1, label="untouched input"
            )
            axis.axvline(best, color="0.6", linestyle=":", linewidth=1)
            axis.legend(fontsize=7)
        else:
            axis.text(0.5, 0.5, "no validation pairs", ha="center", va="center", fontsize=8, transform=axis.transAxes)
    for axis in axes:
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(color="0.9")
    _save(figure, path)


def before_and_after(path: Path, rows: list[tuple[dict[str, np.ndarray], np.ndarray | None]]) -> None:
    """Rows of pictures (H, W) uint8 by their titles, and behind them enhanced minus target where that is given."""
    columns = len(rows[0][0]) + (rows[0][1] is not None)
    shapes = [next(iter(pictures.values())).shape for pictures, _ in rows]
    heights = [2.9 * height / width + 0.25 for height, width in shapes]
    figure = Figure(figsize=(2.9 * columns + 0.5, sum(heights) + 0.2), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    shown = None
    for axes, (pictures, difference) in zip(grid, rows, strict=True):
        for axis, (title, picture) in zip(axes, pictures.items(), strict=False):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axis.set_title(title, fontsize=8, loc="left")
        if difference is not None:
            shown = axes[-1].imshow(difference, cmap="RdBu_r", vmin=-100, vmax=100)
            axes[-1].set_title("enhanced - target", fontsize=8, loc="left")
    for axis in grid.flat:
        axis.axis("off")
    if shown is not None:
        bar = figure.colorbar(shown, ax=grid[:, -1].tolist(), shrink=0.6, aspect=30)
        bar.ax.tick_params(labelsize=7)
        bar.set_label("grey levels of 255", fontsize=7)
    _save(figure, path)


def _write(figure: Figure, path: Path) -> np.ndarray:
    """Draw once, at the size that the figure has; `_save` draws twice, to fit the border. Returned as (H, W, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return picture


def _save(figure: Figure, path: Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, bbox_inches="tight")
