"""Released USFM weights, which are a BEiT-B, go through the tasks: a file of that layout, shallow and narrow, trains and predicts.

That a BEiT-B of full size is filled tensor by tensor is in tests/checkpoints/test_loading.py.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.beit import Beit

from vfm4us import checkpoints, config, encoders
from vfm4us.tasks import classification, segmentation


@pytest.fixture
def usfm(tmp_path, monkeypatch):
    """A file with the keys of USFM's release, q and v biases and a table of relative positions in each block."""
    monkeypatch.setitem(encoders.BEiT.sizes, "beit_base", (48, 2, 4))
    torch.manual_seed(0)
    model = Beit(
        img_size=64,
        patch_size=16,
        num_classes=3,
        embed_dim=48,
        depth=2,
        num_heads=4,
        init_values=0.1,
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        global_pool="avg",
    )
    state = {k: v for k, v in model.state_dict().items() if "k_bias" not in k and "relative_position_index" not in k}
    assert {"blocks.0.gamma_1", "blocks.0.attn.q_bias", "blocks.0.attn.relative_position_bias_table"} <= state.keys()
    torch.save({"model": state | {"mask_token": torch.zeros(1, 1, 48)}, "epoch": 3}, tmp_path / "USFM_latest.pth")
    return tmp_path / "USFM_latest.pth"


def pictures(root, masks: bool):
    """Two classes of noise, dark and bright; with masks, dark squares in noise."""
    rng = np.random.default_rng(0)
    for i in range(24):
        picture = rng.normal(150, 12, (48, 64))
        mask = np.zeros((48, 64), np.uint8)
        mask[10:30, i : i + 20] = 255
        picture = picture - 90 * (mask > 0) if masks else picture - 90 * (i % 2)
        where = root / ("images" if masks else f"class{i % 2}") / f"{i}.png"
        where.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(where)
        if masks:
            (root / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / f"{i}.png")


def settings_of(kind, root, tmp_path, usfm, **more):
    return config.from_dict(
        kind,
        {
            "name": "usfm",
            "logs": str(tmp_path / "logs"),
            "seeds": [0],
            "device": "cpu",
            "encoder": {"weights": str(usfm)},
            "data": {"path": str(root), "size": 64, "cache": str(tmp_path / "cache"), "splits": [0.5, 0.25, 0.25]},
            "finetune": {"epochs": 1, "min_steps": 2, "batch_size": 4, "patience": 0},
        }
        | more,
    )


@pytest.mark.parametrize("mode", ["finetune", "linear", "knn"])
def test_it_classifies(tmp_path, usfm, mode):
    pictures(tmp_path / "data", masks=False)
    settings = settings_of(
        classification.ClassificationConfig, tmp_path / "data", tmp_path, usfm, mode=mode, head={"hidden": 8}
    )
    result = classification.TASK.run_seeds(settings, lambda *_: None)
    assert 0 <= result["accuracy"]["mean"] <= 1
    state = checkpoints.read(next((tmp_path / "logs").rglob("classifier.pt")))
    assert state["encoder"]["name"] == "beit_base"


def test_it_segments(tmp_path, usfm):
    pictures(tmp_path / "data", masks=True)
    settings = settings_of(
        segmentation.SegmentationConfig, tmp_path / "data", tmp_path, usfm, decoder_width=16, atrous_rates=[1, 2, 3]
    )
    result = segmentation.TASK.run_seeds(settings, lambda *_: None)
    assert any(name.startswith("dice") for name in result)
    state = checkpoints.read(next((tmp_path / "logs").rglob("segmenter.pt")))
    assert state["encoder"]["name"] == "beit_base"
