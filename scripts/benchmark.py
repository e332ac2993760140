"""Ours against the plain way, in turn in one run; prints times and ratios. Nothing else should be running.

    python scripts/benchmark.py [patches] [coding_rate] [step] [attention] [phantoms] [load]        all of them by default

patches      20 patches of 96 px per image from the packed store, against decoding the file once and augmenting 20 crops
             with torchvision on PIL, as EMP-SSL's code does; and the cost of a patch as their number grows
coding_rate  total_coding_rate forward and backward at n = 20, b = 100, d = 1024, against a d x d logdet per patch
step         the share of a training step that is spent in the network
attention    a ViT-Ti/8 in bf16 on a CPU, forward and backward on 32 crops of 64 px: attention as `choose_attention` leaves it,
             against torch's fused kernel
load         load_encoder on a ResNet18 file, against torch.load and load_state_dict into a model that is there already, and
             one that has to be made
phantoms     2,000 synthetic images of 256 x 256, each with its mask and low-quality partner, written as PNG
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

from vfm4us.augment import PatchConfig, PatchSampler
from vfm4us.checkpoints import load_encoder
from vfm4us.config import from_dict
from vfm4us.encoders import Encoder, EncoderSpec
from vfm4us.phantoms.folders import write_phantoms
from vfm4us.phantoms.make import make_phantom
from vfm4us.pretraining.methods.emp_ssl import Draws, EmpSSLConfig, Network, compute_loss, lars
from vfm4us.pretraining.objective import MultiPatchLoss, total_coding_rate
from vfm4us.runtime.device import autocast, choose_attention, device_name
from vfm4us.runtime.rng import generator

TURN = 8  # batches a turn: one takes ours 20 ms, too short to time


def seconds_in_turn(ours, plain, rounds: int) -> tuple[float, float]:
    """Median seconds of each, called alternately after one unmeasured call."""
    times: tuple[list, list] = ([], [])
    for i in range(rounds + 1):
        for side, function in zip(times, (ours, plain), strict=True):
            began = time.perf_counter()
            function()
            if i:
                side.append(time.perf_counter() - began)
    return float(np.median(times[0])), float(np.median(times[1]))


def benchmark_patches(rounds: int) -> None:
    plain_transform = transforms.Compose(
        [  # EMP-SSL's, with a one-channel colour jitter
            transforms.RandomResizedCrop(96, scale=(0.25, 0.25)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4)], p=0.8),
            transforms.RandomApply([transforms.GaussianBlur(5, (0.1, 2.0))], p=0.3),
            transforms.ToTensor(),
        ]
    )
    batch = 16
    images = [make_phantom(i, size=256).image for i in range(batch)]
    packed, valid = torch.from_numpy(np.stack(images)), torch.tensor([[0, 0, 256, 256]]).expand(batch, 4)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.png" for i in range(batch)]
        for file, image in zip(files, images, strict=True):
            Image.fromarray(image).save(file)
        per_patch = {}
        for n in (5, 20, 50):
            sampler = PatchSampler(PatchConfig(count=n, size=96))

            def cut(sampler=sampler):
                for _ in range(TURN):
                    sampler(packed, valid, generator(0))

            def plain(n=n):
                for file in files * TURN:
                    picture = Image.open(file).convert("L")
                    torch.stack([plain_transform(picture) for _ in range(n)])

            ours, theirs = (seconds / TURN for seconds in seconds_in_turn(cut, plain, rounds))
            per_patch[n] = ours / (batch * n)
            print(
                f"patches, n = {n:2d}: ours {batch * n / ours:7.0f} patches/s, decode once + torchvision on PIL "
                f"{batch * n / theirs:7.0f} patches/s, ratio {theirs / ours:.1f}"
            )
    print("patches, cost of one patch: " + ", ".join(f"n = {n}: {1e6 * s:.0f} us" for n, s in per_patch.items()))


def benchmark_coding_rate(rounds: int) -> None:
    z = F.normalize(torch.randn(20, 100, 1024), dim=-1).requires_grad_()

    def ours():
        total_coding_rate(z).mean().backward()

    def plain():
        identity = torch.eye(1024)
        loss = 0.0
        for patch in z:
            loss = loss + 0.5 * torch.logdet(identity + 1024 / (100 * 0.2) * patch.T @ patch) / 20
        loss.backward()

    a, b = seconds_in_turn(ours, plain, rounds)
    print(
        f"coding rate, n = 20, b = 100, d = 1024: ours {1e3 * a:.1f} ms, d x d logdet per patch {1e3 * b:.0f} ms, "
        f"ratio {b / a:.0f}"
    )


def benchmark_step(rounds: int) -> None:
    config = from_dict(EmpSSLConfig, {"patches": {"count": 8, "size": 64}})
    network = Network(Encoder(EncoderSpec(in_channels=1)), config.projector).to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (32, 128, 128), dtype=torch.uint8)
    valid = torch.tensor([[0, 0, 128, 128]]).expand(32, 4)
    sampler, objective, optimizer = PatchSampler(config.patches), MultiPatchLoss(), lars(network, config.optimizer)
    patches = sampler(images, valid, generator(0))

    def step():
        loss, _ = compute_loss(network, objective, sampler(images, valid, generator(0)), config, Draws(None, None))
        loss.backward()
        optimizer.step()

    def network_alone():
        network(patches.flatten(0, 1)).sum().backward()
        optimizer.step()

    whole, inside = seconds_in_turn(step, network_alone, rounds)
    print(
        f"training step, 32 images, 8 patches of 64 px: {1e3 * whole:.0f} ms, network and optimizer {1e3 * inside:.0f} ms, "
        f"share in the network {100 * inside / whole:.0f} %"
    )


def benchmark_attention(rounds: int) -> None:
    device, encoder = torch.device("cpu"), Encoder(EncoderSpec("vit_tiny", in_channels=1, patch=8))
    fused, crops = copy.deepcopy(encoder), torch.rand(32, 1, 64, 64)
    choose_attention(encoder, device, "bfloat16")

    def both_ways(network):
        with autocast(device, "bfloat16"):
            vectors = network(crops)
        vectors.float().sum().backward()

    ours, plain = seconds_in_turn(lambda: both_ways(encoder), lambda: both_ways(fused), 3 * rounds)
    print(
        f"ViT-Ti/8, bf16 on a CPU, 32 crops of 64 px: attention written out {1e3 * ours:.0f} ms, fused {1e3 * plain:.0f} ms, "
        f"ratio {plain / ours:.2f}"
    )


def benchmark_phantoms(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        write_phantoms(Path(folder) / "phantoms", 2000, 256)
        print(f"phantoms: 2,000 images in {time.perf_counter() - began:.0f} s")


def benchmark_load(rounds: int) -> None:
    from torchvision.models import resnet18

    with tempfile.TemporaryDirectory() as folder:
        file, model = Path(folder) / "resnet18.pth", resnet18()
        torch.save({"state_dict": model.state_dict()}, file)

        def bare():
            model.load_state_dict(torch.load(file, weights_only=True)["state_dict"])

        def bare_and_model():
            resnet18().load_state_dict(torch.load(file, weights_only=True)["state_dict"])

        for plain, what in ((bare, "an existing model"), (bare_and_model, "a new model")):
            ours, theirs = seconds_in_turn(lambda: load_encoder(file), plain, 3 * rounds)
            print(
                f"loading a ResNet18: load_encoder {1e3 * ours:.0f} ms, torch.load + load_state_dict into {what} "
                f"{1e3 * theirs:.0f} ms, ratio {ours / theirs:.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {
        "patches": benchmark_patches,
        "coding_rate": benchmark_coding_rate,
        "step": benchmark_step,
        "attention": benchmark_attention,
        "load": benchmark_load,
        "phantoms": benchmark_phantoms,
    }
    parser.add_argument("parts", nargs="*", metavar="part", help=f"any of {', '.join(parts)}")
    parser.add_argument("--rounds", type=int, default=5, help="measured calls of each side (default 5)")
    arguments = parser.parse_args()
    if unknown := [p for p in arguments.parts if p not in parts]:
        parser.error(f"unknown part {unknown[0]!r}; choose from {', '.join(parts)}")
    print(f"{device_name()}, torch {torch.__version__}")
    for name in arguments.parts or parts:
        parts[name](arguments.rounds)


if __name__ == "__main__":
    main()
