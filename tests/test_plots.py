"""Pictures show what they are given, and only that."""

import torch
from PIL import Image

from vfm4us import plots


def test_the_contact_sheet_leaves_out_what_did_not_happen(tmp_path):
    images = torch.randint(0, 255, (5, 32, 32), dtype=torch.uint8)
    patches = torch.rand(3, 5, 1, 16, 16)
    cells = torch.zeros(3, 5, 1, 16, 16, dtype=torch.bool)
    cells[..., :8, :8] = True
    plain = plots.contact_sheet(tmp_path / "plain.png", images, patches)
    full = plots.contact_sheet(tmp_path / "full.png", images, patches, (patches + 0.01).clamp(0, 1), cells, 0.01, "title")
    assert full.shape[1] > 1.5 * plain.shape[1] and full.dtype == plain.dtype
    orange = [((s[..., 0] > 240) & (abs(s[..., 1].astype(int) - 127) < 6) & (s[..., 2] < 30)).mean() for s in (plain, full)]
    assert orange[0] == 0 and orange[1] > 0.01
    assert Image.open(tmp_path / "full.png").size[0] > 100


def test_the_curve_marks_where_a_stage_ended(tmp_path):
    lines = [{"kind": "train", "step": i, "stage": "a" if i < 5 else "b", "similarity": 0.5, "coding_rate": 3.0} for i in range(9)]
    lines += [{"kind": "monitor", "step": 4, "dataset": "a", "after": "a", "effective_rank": 4.0}]
    plots.training_curve(tmp_path / "curve.png", lines)
    assert (tmp_path / "curve.png").stat().st_size > 1000
