"""A script ends with the exit code and the line that belong to what happened."""

import os
import pty
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.runtime import device, signals
from vfm4us.runtime.device import choose_kernels
from vfm4us.runtime.run import RunFolder
from vfm4us.runtime.signals import exit_code


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (None, 0, ""),
        (ValueError("mode: 'x' is not known"), 2, "error: mode: 'x' is not known"),
        (FileNotFoundError("a.pt does not exist"), 2, "error: a.pt does not exist"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device"),
        (FloatingPointError("the loss is nan"), 2, "error: the loss is nan"),
        (signals.Stopped(signal.SIGINT, Path("logs/a")), 130, "saved in logs/a; the same command goes on from here"),
        (signals.Stopped(signal.SIGTERM, Path("logs/a")), 143, "saved in logs/a"),
        (KeyboardInterrupt(), 130, "left at once"),
    ],
)
def test_exit_codes(raised, code, said, capsys):
    def main():
        if raised is not None:
            raise raised

    assert exit_code(main) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err and "Traceback" not in printed.err


LOOP = """
import sys, time
from pathlib import Path
from vfm4us.runtime import signals

def main():
    with signals.StopSignal() as stop:
        Path("begun").touch()
        while not stop.number:
            print("a step", flush=True)
            time.sleep(0.01)
        print("said to nobody", flush=True)
        Path("saved").write_text(str(stop.number))
        raise signals.Stopped(stop.number, Path("logs/a"))

sys.exit(signals.exit_code(main))
"""


@pytest.mark.parametrize(
    "before, code", [("", 129), ("import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)", 143)]
)
def test_a_closed_terminal_is_a_signal_to_save_and_leave_but_for_nohup(tmp_path, before, code):
    child, master = pty.fork()
    if not child:  # a session of its own, whose terminal the test holds
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-c", before + LOOP], os.environ | {"PYTHONPATH": str(ROOT)})
    wait_for(tmp_path / "begun")
    os.read(master, 10)
    if before:
        os.kill(child, signal.SIGHUP)
        time.sleep(0.2)
        assert not (tmp_path / "saved").exists(), "what nohup started goes on"
        os.kill(child, signal.SIGTERM)
    else:
        os.close(master)  # the terminal is gone: the kernel sends SIGHUP
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == code and (tmp_path / "saved").read_text() == str(code - 128)


def wait_for(path, seconds=30.0):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.01)


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(KeyError):
        exit_code(lambda: {}["missing"])


def test_attention_is_written_out_on_a_cpu_in_bfloat16_alone():
    encoder = Encoder(EncoderSpec("vit_tiny", in_channels=1))
    attention, x = encoder.body.blocks[0].attn, torch.rand(2, 1, 48, 48)
    attention.fused_attn, before = True, encoder(x)
    for where, precision in (("cpu", "auto"), ("cpu", "float32"), ("cuda", "bfloat16")):
        choose_kernels(encoder, torch.device(where), precision)
        assert attention.fused_attn is True
    choose_kernels(encoder, torch.device("cpu"), "bfloat16")
    assert not any(block.attn.fused_attn for block in encoder.body.blocks)
    torch.testing.assert_close(encoder(x), before, rtol=1e-4, atol=1e-5)


def test_auto_is_bfloat16_where_it_is_multiplied(monkeypatch):
    for has, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(device, "multiplies_bfloat16", lambda has=has: has)
        assert device.choose_precision(torch.device("cpu"), "auto") == expected
        assert device.choose_precision(torch.device("cpu"), "float32") == "float32"
        assert device.choose_precision(torch.device("cuda"), "auto") == "bfloat16"
        assert ("(precision=bfloat16" in device.computing(torch.device("cpu"), "auto")) is has  # how to use it is said
        assert ", float32" in device.computing(torch.device("cpu"), "auto")
        assert device.computing(torch.device("cpu"), "bfloat16").endswith(", bfloat16")


def test_a_run_keeps_the_precision_it_was_started_with(tmp_path):
    folder = RunFolder(tmp_path / "a", EncoderSpec())
    assert folder.kept("precision", "bfloat16", before="float32") == "bfloat16"
    folder.close()
    folder = RunFolder(tmp_path / "a", EncoderSpec())  # on another machine, say
    assert folder.kept("precision", "float32", before="float32") == "bfloat16"
    folder.close()
    older = RunFolder(tmp_path / "b", EncoderSpec())
    older.close()
    older = RunFolder(tmp_path / "b", EncoderSpec())  # its first start did not say
    assert older.kept("precision", "bfloat16", before="float32") == "float32"
    older.close()
