"""Duplicates are found, look-alikes are not, and no group is ever on two sides."""

import csv
import io
import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.sparse.csgraph import connected_components

from vfm4us.data import prepare as preparing
from vfm4us.data.splits import (
    assign,
    duplicate_clusters,
    folds,
    leakage,
    near_duplicates,
    perceptual_hash,
    thumbnail,
)

REAL = Path(os.environ.get("VFM4US_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))


def picture(seed, height=120, width=150):
    blobs = gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), 8)
    return ((blobs - blobs.min()) / np.ptp(blobs) * 255).astype(np.uint8)


def altered(grey, scale=1.0, quality=40, gain=1.0):
    image = Image.fromarray((grey * gain).clip(0, 255).astype(np.uint8))
    image = image.resize((int(image.width * scale), int(image.height * scale)))
    image.save(data := io.BytesIO(), "JPEG", quality=quality)
    return np.asarray(Image.open(data))


def side(pictures, names=None):
    return SimpleNamespace(
        sha256=[
            name or str(hash(p.tobytes())) for name, p in zip(names or [None] * len(pictures), pictures, strict=True)
        ],
        phash=np.array([perceptual_hash(p) for p in pictures], dtype=np.uint64),
        thumbnail_of=lambda i: thumbnail(pictures[i]),
    )


def test_hash_survives_compression_size_and_gain_and_tells_pictures_apart():
    hashes = [perceptual_hash(picture(seed)) for seed in range(20)]
    for seed in range(20):
        for change in ({"scale": 0.5}, {"scale": 1.7}, {"quality": 20}, {"gain": 0.8}):
            copy = perceptual_hash(altered(picture(seed), **change))
            assert np.bitwise_count(copy ^ hashes[seed]) <= 10
    others = [np.bitwise_count(a ^ b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(others) > 10 and 28 < np.mean(others) < 36  # unrelated pictures: half of the 64 bits


def test_near_duplicates_equal_the_plain_double_loop():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2**63, 300, dtype=np.uint64)
    b = np.concatenate([a[:50] ^ np.uint64(0b10110), rng.integers(0, 2**63, 100, dtype=np.uint64)])
    for distance in (0, 2, 3, 22):
        plain = [(i, j) for i in range(300) for j in range(150) if bin(int(a[i] ^ b[j])).count("1") <= distance]
        assert near_duplicates(a, b, distance).tolist() == [list(pair) for pair in plain]
    assert near_duplicates(a[:0], b, 3).shape == (0, 2) and near_duplicates(a, b[:0], 3).shape == (0, 2)


def test_near_duplicates_are_fast_enough_for_large_archives():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**63, count, dtype=np.uint64) for count in (100_000, 1_000))
    start = time.perf_counter()
    near_duplicates(a, b, 3)
    assert time.perf_counter() - start < 10  # 0.3 s on 2 cores; 10^5 x 10^4 is ten of these


def test_clusters_join_copies_and_chains_and_nothing_else():
    pictures = [picture(0), picture(1), altered(picture(0)), picture(2), picture(1), altered(picture(0), 0.6)]
    both = side(pictures)
    for confirm in (None, both.thumbnail_of):
        assert duplicate_clusters(both.sha256, both.phash, thumbnail_of=confirm).tolist() == [0, 1, 0, 2, 1, 0]
    assert duplicate_clusters([], np.zeros(0, np.uint64)).tolist() == []
    far = [0, 0xFFFF, 0xFFFF_FFFF, 0xFFFF_0000_0000_0000]
    assert duplicate_clusters(["a", "b", "a", "c"], far).tolist() == [0, 1, 0, 2]  # equal files, whatever the hash


@pytest.mark.parametrize("confirm", [False, True])
def test_clusters_and_leaks_equal_those_of_the_plain_double_loop(confirm):
    rng = np.random.default_rng(1)
    seeds = rng.integers(0, 2**63, 40, dtype=np.uint64)
    of = rng.integers(0, 40, 600)
    flips = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 62, (600, 6)).astype(np.uint64), axis=1)
    phash = seeds[of] ^ np.where(rng.random(600) < 0.2, np.uint64(0), flips)
    faces = rng.standard_normal((40, 2, 1024)).astype(np.float32)
    pictures = faces[of, rng.integers(0, 2, 600)]  # images of one hash show one of two pictures
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
    names = [f"{i // 2}" if i < 40 else f"f{i}" for i in range(600)]  # equal files
    phash[1:40:2], pictures[1:40:2] = phash[0:40:2], pictures[0:40:2]
    thumbnail_of = (lambda i: pictures[i]) if confirm else None

    near = np.bitwise_count(phash[:, None] ^ phash[None]) <= 10
    near &= (pictures @ pictures.T > 0.9) | (not confirm)
    near |= np.array(names)[:, None] == np.array(names)[None]
    plain = connected_components(near)[1]
    clusters = duplicate_clusters(names, phash, thumbnail_of=thumbnail_of)
    assert (clusters[:, None] == clusters[None]).tolist() == (plain[:, None] == plain[None]).tolist()

    pool, protected = side([]), side([])
    for part, rows in ((pool, slice(0, 500)), (protected, slice(500, 600))):
        part.sha256, part.phash = [f"{rows}{name}" for name in names[rows]], phash[rows]
        if confirm:
            part.thumbnail_of = lambda i, part_pictures=pictures[rows]: part_pictures[i]
    if not confirm:
        pool.thumbnail_of = protected.thumbnail_of = None
    bits = np.bitwise_count(phash[:500, None] ^ phash[None, 500:]).astype(int)
    bits[(bits > 10) | (confirm & (pictures[:500] @ pictures[500:].T < 0.9))] = 99
    wanted = [(i, int(row.argmin()), int(row.min())) for i, row in enumerate(bits) if row.min() <= 10]
    leaks = leakage(pool, protected) if confirm else leakage(Plain(pool), Plain(protected))
    assert [(leak.pool_index, leak.protected_index, leak.distance) for leak in leaks] == wanted


class Plain:
    """sha256 and phash alone."""

    def __init__(self, of):
        self.sha256, self.phash = of.sha256, of.phash


def test_pictures_that_only_hash_alike_are_told_apart_by_their_thumbnails():
    pictures = [picture(0), picture(1)]
    alike = side(pictures)
    alike.phash[1] = alike.phash[0] ^ np.uint64(3)
    assert duplicate_clusters(alike.sha256, alike.phash).tolist() == [0, 0]
    assert duplicate_clusters(alike.sha256, alike.phash, thumbnail_of=alike.thumbnail_of).tolist() == [0, 1]
    alike.phash[1] = alike.phash[0]
    assert duplicate_clusters(alike.sha256, alike.phash, thumbnail_of=alike.thumbnail_of).tolist() == [0, 1]
    pool, protected = side(pictures[:1]), side(pictures[1:])
    protected.phash[0] = pool.phash[0]
    assert leakage(pool, protected) == []


def test_thousands_of_flat_frames_are_one_cluster_in_no_time():
    start = time.perf_counter()
    flat = thumbnail(np.zeros((20, 20), np.uint8))
    clusters = duplicate_clusters([str(i) for i in range(5000)], np.zeros(5000, np.uint64), thumbnail_of=lambda i: flat)
    assert set(clusters.tolist()) == {0} and time.perf_counter() - start < 5


def test_leakage_finds_identical_and_altered_copies_and_no_others():
    protected = [picture(seed) for seed in range(10)]
    pool = [picture(100), protected[3], altered(protected[5], 0.5), altered(protected[7], gain=0.9), picture(101)]
    leaks = leakage(side(pool), side(protected))
    assert [(leak.pool_index, leak.protected_index, leak.kind) for leak in leaks] == [
        (1, 3, "identical"),
        (2, 5, "near"),
        (3, 7, "near"),
    ]
    hashes_alone = [SimpleNamespace(sha256=s.sha256, phash=s.phash) for s in (side(pool), side(protected))]
    assert leakage(*hashes_alone) == leaks


def test_leakage_names_the_nearest_protected_image():
    pool = SimpleNamespace(sha256=["p"], phash=np.array([0], np.uint64))
    protected = SimpleNamespace(sha256=["a", "b", "c"], phash=np.array([0b111, 0b1, 0b11], np.uint64))
    (leak,) = leakage(pool, protected)
    assert (leak.protected_index, leak.distance) == (1, 1)
    assert leakage(pool, protected, distance=0) == []


def groups_and_labels(seed, groups=120, images=900):
    rng = np.random.default_rng(seed)
    of_image = rng.integers(0, groups, images)
    labels = np.array(["a", "b", "b", "c"])[of_image % 4]
    return [f"patient {number}" for number in of_image], labels.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_divided_and_shares_hold_for_every_label(seed):
    groups, labels = groups_and_labels(seed)
    names = assign(groups, (0.7, 0.15, 0.15), labels, seed=seed)
    side_of = {}
    for group, name in zip(groups, names, strict=True):
        assert side_of.setdefault(group, name) == name
    for label in "abc":
        counts = Counter(name for name, other in zip(names.tolist(), labels, strict=True) if other == label)
        assert (
            abs(counts["train"] / sum(counts.values()) - 0.7) < 0.06
            and abs(counts["test"] / sum(counts.values()) - 0.15) < 0.06
        )


def test_assignment_depends_on_seed_and_not_on_order():
    groups, labels = groups_and_labels(0)
    names = assign(groups, labels=labels, seed=1)
    order = np.random.default_rng(0).permutation(len(groups))
    shuffled = assign([groups[i] for i in order], labels=[labels[i] for i in order], seed=1)
    assert (shuffled == names[order]).all()
    assert (assign(groups, labels=labels, seed=2) != names).any()


def test_three_patients_give_three_splits_and_a_zero_share_stays_empty():
    assert sorted(assign(["p", "q", "r", "p", "q", "r"]).tolist()) == ["test"] * 2 + ["train"] * 2 + ["val"] * 2
    assert set(assign([str(i) for i in range(50)], (0.9, 0.1, 0)).tolist()) == {"train", "val"}
    assert assign([], (0.8, 0.1, 0.1)).tolist() == []


@pytest.mark.parametrize("fractions", [(0.8, 0.2), (0.8, 0.3, 0.1), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)])
def test_bad_fractions_are_refused(fractions):
    with pytest.raises(ValueError, match="summing to 1"):
        assign(["a", "b"], fractions)


@pytest.mark.skipif(not (REAL / "busi" / "manifest.csv").is_file(), reason=f"the real BUSI set is not in {REAL}")
def test_published_duplicates_of_busi_are_found(tmp_path):
    dataset = preparing.prepare(REAL / "busi", tmp_path / "busi", size=128, progress=False)
    clusters = duplicate_clusters(dataset.sha256, dataset.phash, thumbnail_of=dataset.thumbnail_of)
    with open(REAL / "busi" / "manifest.csv", newline="") as file:
        group_of = {row["path"]: row["group"] for row in csv.DictReader(file)}
    published = {}
    for index, record in enumerate(dataset.records):
        published.setdefault(group_of[record.path], []).append(index)
    duplicates = [members for members in published.values() if len(members) > 1]
    assert len(duplicates) == 122
    assert all(len(set(dataset.groups[members].tolist())) == 1 for members in duplicates)
    assert all(len(set(clusters[members].tolist())) == 1 for members in duplicates)
    assert len(set(clusters.tolist())) >= 600  # 630 published groups: look-alikes are not swept together
    held_out = np.concatenate([dataset.indices("val"), dataset.indices("test")])
    leaks = leakage(dataset.fingerprints(dataset.indices("train")), dataset.fingerprints(held_out))
    assert all(leak.kind == "near" for leak in leaks) and len(leaks) <= 15


def test_folds_divide_no_group_and_keep_the_shares_of_labels():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(90), 4)
    labels = np.repeat(rng.choice(["a", "b", "c"], 90, p=[0.6, 0.3, 0.1]), 4)
    place = folds(groups, labels, 3)
    assert all(len(set(place[groups == g])) == 1 for g in range(90))
    for label in "abc":
        shares = np.bincount(place[labels == label], minlength=3) / (labels == label).sum()
        assert abs(shares - 1 / 3).max() < 0.12
    assert np.array_equal(place, folds(groups, labels, 3))
