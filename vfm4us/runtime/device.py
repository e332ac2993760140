"""Where a run computes, and in which precision."""

import os
import platform
from pathlib import Path

import torch


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is this process's GPU where there is one, else the CPU. Raises ValueError for a GPU that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: {name!r} is no device; use auto, cpu, cuda or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: {name!r} is not supported; use auto, cpu or cuda")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device={name}: PyTorch sees no GPU here; use device=cpu or device=auto")
        index, count = int(os.environ.get("LOCAL_RANK", device.index or 0)), torch.cuda.device_count()
        if index >= count:
            raise ValueError(
                f"device: GPU {index} was asked for, there are {count}; lower --nproc_per_node or change device"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return device


def choose_precision(device: torch.device, wanted: str) -> str:
    """float32 or bfloat16; `auto` is bfloat16 on a GPU, and on a CPU that multiplies it (AVX512-BF16 or AMX)."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if device.type == "cuda" or multiplies_bfloat16() else "float32"


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for it; without them bfloat16 is 7 to 20 times slower than float32."""
    flags = next((line.split(":")[1].split() for line in _cpuinfo() if line.startswith("flags")), [])
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """bf16 autocast where `precision` asks for it; `auto` is bf16 on a GPU and float32 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(device, precision))


def in_bfloat16(device: torch.device, precision: str) -> bool:
    """Whether a network computes in bfloat16: always where the precision says so, with auto on a GPU only."""
    return precision == "bfloat16" or (precision == "auto" and device.type == "cuda")


def computing(device: torch.device, precision: str) -> str:
    """The device and the precision of a task, to be said first; with auto on a CPU that has bfloat16 also how to use it."""
    chosen = "bfloat16" if in_bfloat16(device, precision) else "float32"
    faster = precision == "auto" and device.type == "cpu" and multiplies_bfloat16()
    return f"{device_name()}, {chosen}" + (" (precision=bfloat16 is faster on this CPU)" if faster else "")


def choose_kernels(network: torch.nn.Module, device: torch.device, precision: str) -> None:
    """What is faster on a CPU in bf16: timm's attention written out, and convolutions of small maps as matrix products.

    `benchmark.py attention` and `benchmark.py layers` have the ratios.
    """
    if device.type == "cpu" and in_bfloat16(device, precision):
        from vfm4us.encoders import use_small_maps, write_attention_out

        write_attention_out(network)
        use_small_maps(network)


def device_name() -> str:
    """The GPU's name, else the CPU's with the number of threads in use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    count = torch.get_num_threads()
    return f"{names[0] if names else platform.machine()}, {count} thread{'s'[: count > 1]}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
