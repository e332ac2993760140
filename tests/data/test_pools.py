"""Pools on real ultrasound: nothing held out, nor a near-duplicate of it, is trained on."""

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
