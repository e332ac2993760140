"""Pictures show what they are given, and only that."""

import numpy as np
import torch
from PIL import Image

from vfm4us import plots
from vfm4us.pretraining.methods.emp_ssl import EmpSSL


def test_the_contact_sheet_leaves_out_what_did_not_happen(tmp_path):
    images = torch.randint(0, 255, (5, 32, 32), dtype=torch.uint8)
    patches = torch.rand(3, 5, 1, 16, 16)
    cells = torch.zeros(3, 5, 1, 16, 16, dtype=torch.bool)
    cells[..., :8, :8] = True
    plain = plots.contact_sheet(tmp_path / "plain.png", images, patches)
    full = plots.contact_sheet(
        tmp_path / "full.png", images, patches, (patches + 0.01).clamp(0, 1), cells, 0.01, "title"
    )
    assert full.shape[1] > 1.5 * plain.shape[1] and full.dtype == plain.dtype
    orange = [
        ((s[..., 0] > 240) & (abs(s[..., 1].astype(int) - 127) < 6) & (s[..., 2] < 30)).mean() for s in (plain, full)
    ]
    assert orange[0] == 0 and orange[1] > 0.01
    assert Image.open(tmp_path / "full.png").size[0] > 100


def test_the_curve_marks_where_a_stage_ended(tmp_path):
    lines = [
        {"kind": "train", "step": i, "stage": "a" if i < 5 else "b", "similarity": 0.5, "coding_rate": 3.0}
        for i in range(9)
    ]
    lines += [{"kind": "monitor", "step": 4, "dataset": "a", "after": "a", "effective_rank": 4.0}]
    plots.training_curve(tmp_path / "curve.png", lines, "title", EmpSSL.panels)
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_a_curve_of_one_logged_step_is_not_empty(tmp_path):
    line = {"kind": "train", "step": 10, "stage": "a", "similarity": 0.5, "coding_rate": 3.0}
    plots.training_curve(tmp_path / "curve.png", [line], "title", EmpSSL.panels)
    picture = np.asarray(Image.open(tmp_path / "curve.png").convert("RGB")).astype(int)
    assert (abs(picture - (31, 119, 180)).max(-1) < 4).sum() > 20, "the step is not to be seen"


def test_outlines_lie_inside_a_mask_at_the_size_of_the_image():
    image = np.full((20, 30), 50, np.uint8)
    mask, truth = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    mask[5:10, 8:20], truth[12:20, 0:6] = 2, 1  # the truth touches two borders
    picture = plots.outlined(image, mask, truth)
    edge = mask.astype(bool)
    edge[6:9, 9:19] = False
    assert picture.shape == (20, 30, 3) and (picture[edge] == plots.CLASS_COLOURS[1]).all()
    white = (picture == 255).all(2)
    assert white.any() and not white[truth == 0].any() and white[-1].any() and not white[14:19, 1:5].any()
    assert (picture[~edge & (truth == 0)] == 50).all()
    assert (plots.outlined(image, np.zeros_like(mask)) == 50).all()


def test_overlays_show_what_was_predicted_and_the_truth_where_there_is_one(tmp_path):
    images = [np.full((40, 50 + i), 30, np.uint8) for i in range(4)]
    masks = [np.zeros(image.shape, np.uint8) for image in images]
    for mask in masks[1:]:
        mask[10:30, 10:40] = 1
    for name, truths, expected in (("none", None, False), ("both", [np.ones_like(m) for m in masks], True)):
        plots.overlays(tmp_path / f"{name}.png", images, masks, list("abcd"), ["lesion"], truths)
        picture = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
        panel = picture[
            : picture.shape[0] // 3, : picture.shape[1] // 3
        ]  # the first image, in which nothing was predicted
        orange = (abs(picture - plots.CLASS_COLOURS[0]).sum(2) < 30).sum()
        assert orange > 200 and (abs(panel - plots.CLASS_COLOURS[0]).sum(2) < 30).sum() == 0
        grey = np.argwhere((panel == 30).all(2))
        inside = panel[grey[:, 0].min() : grey[:, 0].max() + 1, grey[:, 1].min() : grey[:, 1].max() + 1]
        assert ((inside > 200).all(2).mean() > 0.002) == expected


def test_dice_is_drawn_even_of_a_class_that_never_occurs(tmp_path):
    dice = {"a": (np.array([0.2, 0.9]), np.array([0.01, 0.2])), "b": (np.empty(0), np.empty(0))}
    plots.dice_by_size(tmp_path / "dice.png", dice)
    assert Image.open(tmp_path / "dice.png").size[0] > 500
