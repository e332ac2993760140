"""Every picture the project draws. Figures are built without pyplot, so nothing global is touched and no screen is needed."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor


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
    rows, width = min(4, len(images)), 1 + sum(len(part) for _, part, _ in parts)
    figure = Figure(figsize=(1.05 * width, 1.12 * rows + 0.55))
    grid = figure.subplots(rows, width, squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.04})
    grid[0][0].set_title("image", fontsize=8, loc="left")
    for i in range(rows):
        cases = [(images[i], ("gray", 0, 255))]
        for name, part, colours in parts:
            if i == 0:
                grid[0][len(cases)].set_title(name, fontsize=8, loc="left")
            cases += [(patch, colours) for patch in part[:, i]]
        for axis, (picture, (colours, low, high)) in zip(grid[i], cases, strict=True):
            axis.set_facecolor("tab:orange")  # shows through where a cell is masked
            axis.imshow(picture, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
    figure.suptitle(title, fontsize=9, x=0.125, ha="left")
    return _save(figure, path)


def training_curve(path: Path, lines: list[dict], title: str = "") -> None:
    """Loss terms per step and held-out k-NN and effective rank per epoch, from the lines of metrics.jsonl."""
    steps = [line for line in lines if line["kind"] == "train"]
    epochs = [line for line in lines if line["kind"] == "monitor"]
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    axes = figure.subplots(1, 4)
    for axis, key, name in zip(
        axes[:2], ("similarity", "coding_rate"), ("patch similarity", "coding rate"), strict=True
    ):
        axis.plot([s["step"] for s in steps], [s[key] for s in steps], linewidth=1, label="clean")
        attacked = [s for s in steps if "adversarial_" + key in s]
        if attacked:
            axis.plot(
                [s["step"] for s in attacked],
                [s["adversarial_" + key] for s in attacked],
                linewidth=1,
                label="adversarial",
            )
            axis.legend(fontsize=7)
        axis.set_title(name, fontsize=9)
    for axis, key, name in (
        (axes[2], "knn", "held-out k-NN balanced accuracy"),
        (axes[3], "effective_rank", "effective rank"),
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
    _save(figure, path)


def intervals(path: Path, rows: list[str], series: dict[str, list[tuple[float, float, float]]], label: str) -> None:
    """Means with their intervals: one line of points per row, one colour per series of (mean, low, high) per row."""
    figure = Figure(figsize=(7.5, 0.42 * len(rows) + 1.2), layout="constrained")
    axis = figure.subplots()
    for k, (name, values) in enumerate(series.items()):
        mean, low, high = np.array(values).T
        place = np.arange(len(rows)) + (k - (len(series) - 1) / 2) * 0.17
        axis.errorbar(mean, place, xerr=[mean - low, high - mean], fmt="o", markersize=4, linewidth=1, label=name)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(label, fontsize=9)
    axis.grid(axis="x", color="0.9")
    figure.legend(fontsize=8, loc="outside upper center", ncols=len(series))
    _save(figure, path)


def _save(figure: Figure, path: Path) -> np.ndarray:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
