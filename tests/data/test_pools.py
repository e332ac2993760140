"""Pools on real ultrasound: nothing held out, nor a near-duplicate of it, is trained on."""

from types import SimpleNamespace

import numpy as np
import pytest

from vfm4us.data import pools
from vfm4us.data.splits import leakage


def test_no_val_or_test_image_of_the_real_sets_nor_its_near_duplicate_is_in_the_pool(real_data, tmp_path):
    where = pools.Locations(tmp_path, 96, (0.8, 0.1, 0.1), root=str(real_data))
    sources = [pools.SourceConfig(name, label=name) for name in ("busi", "liver", "nerve")]
    datasets = pools.open_sources(sources, "data", where)
    pool = pools.build_pool(sources, datasets)
    kept, rows, checked = pools.remove_leaks(pool, datasets)
    assert checked == sum(int((d.splits == "val").sum() + (d.splits == "test").sum()) for d in datasets)
    assert 0 < len(pool) - len(kept) < 0.1 * len(pool)  # published splits of these sets do divide near-duplicates
    assert len({(r[0], r[1]) for r in rows}) == len(pool) - len(kept)
    for dataset, part in zip(kept.datasets, kept.parts, strict=True):
        for other in datasets:
            held_out = other.fingerprints([i for i, s in enumerate(other.splits) if s in ("val", "test")])
            assert leakage(dataset.fingerprints(part), held_out) == []
    assert set(kept.labels) == {"busi", "liver", "nerve"}
    images, valid = kept.batch([0, len(kept) - 1])
    assert images.shape == (2, 96, 96) and valid.shape == (2, 4) and images.float().mean() > 5


def test_a_fold_that_is_held_back_is_in_no_pool_and_every_image_is_held_back_once(textures, tmp_path):
    where = pools.Locations(tmp_path, 48, (0.6, 0.2, 0.2), root=str(textures))
    whole = pools.open_sources([pools.SourceConfig("one")], "data", where)[0]
    held = []
    for fold in range(3):
        source = pools.SourceConfig("one", folds=3, fold=fold)
        [dataset] = pools.open_sources([source], "data", where)
        pool, _, checked = pools.remove_leaks(pools.build_pool([source], [dataset]), [dataset])
        back = dataset.indices("val")
        assert checked == len(back) + len(whole.indices("test")) and len(pool)
        assert not set(dataset.groups[pool.index]) & set(dataset.groups[back])
        assert np.array_equal(dataset.indices("test"), whole.indices("test"))
        held.append(back)
    assert sorted(np.concatenate(held)) == np.flatnonzero(np.isin(whole.splits, ["train", "val"])).tolist()
    with pytest.raises(ValueError, match="fold 3 of 3 cannot be held back"):
        pools.open_sources([pools.SourceConfig("one", folds=3, fold=3)], "data", where)


def test_what_one_stage_holds_back_is_in_no_pool_of_another_that_holds_back_another_fold(textures, tmp_path):
    where = pools.Locations(cache=tmp_path, size=32, splits=(0.8, 0.1, 0.1), root=str(textures))
    stages = [SimpleNamespace(data=[pools.SourceConfig("one", folds=3, fold=fold)]) for fold in (0, 1)]
    first, second = pools.stage_pools(stages, [], where, seed=0)
    for training, held_out in ((first, second), (second, first)):
        seen, held = (
            {d.sha256[i] for d, part in zip(pool.datasets, pool.parts, strict=True) for i in part}
            for pool in (training.training, held_out.held_out)
        )
        assert seen and held and not seen & held
