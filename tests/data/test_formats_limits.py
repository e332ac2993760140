"""What one file may cost, and how numbers of any kind become grey."""

import os
import socket
import threading
import time

import numpy as np
import pytest
from making_formats import speckle
from PIL import Image

from vfm4us.data import greys, limits


def test_special_files_are_refused_without_opening(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    os.symlink("/dev/zero", tmp_path / "zero.png")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket.png"))
    for name, kind in (("fifo", "a FIFO"), ("zero", "a device"), ("socket", "a socket")):
        for read in (limits.file_bytes, limits.refuse_special, lambda path: limits.first_bytes(path, 4)):
            with pytest.raises(ValueError, match=f"not a regular file but {kind}"):
                read(tmp_path / f"{name}.png")
    server.close()


def test_threads_share_one_budget_of_pixels():
    budget = limits.PixelBudget(10_000_000)
    lock, under_way, most = threading.Lock(), [0], [0]

    def work(pixels):
        for _ in range(20):
            with budget.hold(pixels):
                with lock:
                    under_way[0] += min(pixels, 10_000_000)
                    most[0] = max(most[0], under_way[0])
                time.sleep(0.0005)
                with lock:
                    under_way[0] -= min(pixels, 10_000_000)

    threads = [
        threading.Thread(target=work, args=(size,)) for size in (4_000_000, 6_000_000, 1_000_000, 64_000_000) * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "two large images wait for each other"
    assert 0 < most[0] <= 10_000_000
    with pytest.raises(KeyError), budget.hold(64_000_000):
        raise KeyError
    with budget.hold(10_000_000):  # what failed has given everything back
        pass


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 128, 255]], np.uint16), (0, 255)),
        (np.array([[0, 4000]], np.uint16), (0, 4095)),
        (np.array([[0.0, 0.5]], np.float32), (0, 1)),
        (np.array([[0.0, 1.0]], np.float32), (0, 255)),  # whole numbers
        (np.array([[-5.0, 7.5]]), (-5, 7.5)),
        (np.array([[0, 70000]]), (0, 70000)),
    ],
)
def test_the_range_that_becomes_black_and_white(pixels, expected):
    assert greys.full_range(pixels) == expected


def test_stripes_change_nothing(monkeypatch):
    wide = speckle(0, 100, 80).astype(np.uint16) * 257
    rgba = Image.fromarray(np.dstack([speckle(k, 100, 80) for k in range(4)]), "RGBA")
    palette = Image.fromarray(speckle(0, 100, 80)).quantize(16)
    palette.info["transparency"] = 3
    whole = greys.to_8_bit(wide), greys.grey_of_image(rgba), greys.grey_of_image(palette)
    monkeypatch.setattr(greys, "STRIPE", 700)
    parts = greys.to_8_bit(wide), greys.grey_of_image(rgba), greys.grey_of_image(palette)
    assert all((a == b).all() for a, b in zip(whole, parts, strict=True)) and (whole[0] == speckle(0, 100, 80)).all()
