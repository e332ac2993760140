"""A script ends with the exit code and the line that belong to what happened."""

import signal
from pathlib import Path

import pytest
import torch

from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.runtime import device, signals
from vfm4us.runtime.device import choose_attention
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


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(KeyError):
        exit_code(lambda: {}["missing"])


def test_attention_is_written_out_on_a_cpu_in_bfloat16_alone():
    encoder = Encoder(EncoderSpec("vit_tiny", in_channels=1))
    attention, x = encoder.body.blocks[0].attn, torch.rand(2, 1, 48, 48)
    attention.fused_attn, before = True, encoder(x)
    for where, precision in (("cpu", "auto"), ("cpu", "float32"), ("cuda", "bfloat16")):
        choose_attention(encoder, torch.device(where), precision)
        assert attention.fused_attn is True
    choose_attention(encoder, torch.device("cpu"), "bfloat16")
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
