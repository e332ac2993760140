"""Several processes that train as one: their group, and the mean of their gradients."""

import contextlib
import datetime
import os

import torch
import torch.distributed as dist

_cpu_group = None  # None: the only one there is


@contextlib.contextmanager
def processes(device_type: str):
    """(rank, world size) under torchrun, with the process group open; (0, 1) for a plain `python script`."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield 0, 1
        return
    # Process 0 alone packs data, measures and draws while the others wait, for longer than the default 10 minutes.
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=datetime.timedelta(hours=12))
    global _cpu_group
    _cpu_group = dist.new_group(backend="gloo") if device_type == "cuda" else None
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def cpu_group():
    """The group of all processes whose messages lie in the memory of the CPU."""
    return _cpu_group


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes; one flat message."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
