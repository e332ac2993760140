"""Ours against the plain way, in turn in one run, by CPU time; prints medians, spread and ratios.

    python scripts/benchmark.py [PART ...] [--out FOLDER]    all parts by default

patches      5, 20 and 50 patches of 96 px per image from the packed store, and 2 of 224 px from images of 512 px, against
             decoding the file once and augmenting with torchvision v1 on PIL, as EMP-SSL's code does, and with v2 on tensors
coding_rate  total_coding_rate forward and backward at n = 20, b = 100, d = 1024, against a d x d logdet per patch
step         the share of a training step that is spent in the network
attention    a ViT-Ti/8 in bf16 on a CPU, forward and backward on 32 crops of 64 px: attention as `choose_attention` leaves it,
             against torch's fused kernel
load         load_encoder on a ResNet18 file, against torch.load and load_state_dict into a model that is there already, and
             one that has to be made
phantoms     2,000 synthetic images of 256 x 256, each with its mask and low-quality partner, written as PNG
packing      `prepare` from the listing to the finished folder, against a plain loop that reads each file, takes its sha256,
             decodes it with PIL, converts to grey, resizes the longer side to 256 px (Lanczos), pads and stacks: no hash of the
             picture, no check, no journal, nothing written. 960 screens of 512 to 1024 px as PNG and as JPEG, and BUSI where
             VFM4US_REAL_DATA names the folder of the real sets. Times on the clock where there are two cores
"""

import argparse
import copy
import hashlib
import io
import itertools
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import vfm4us
from vfm4us.config import from_dict
from vfm4us.lazy import Lazy
from vfm4us.phantoms.folders import write_phantoms
from vfm4us.phantoms.make import make_phantom
from vfm4us.pretraining.sections import EmpSSLConfig
from vfm4us.views import PatchConfig

torch, F, flop_counter = Lazy("torch"), Lazy("torch.nn.functional"), Lazy("torch.utils.flop_counter")
transforms, augment, encoders = Lazy("torchvision.transforms"), Lazy("vfm4us.augment"), Lazy("vfm4us.encoders")
emp_ssl, objectives = Lazy("vfm4us.pretraining.methods.emp_ssl"), Lazy("vfm4us.pretraining.objective")
devices, rng = Lazy("vfm4us.runtime.device"), Lazy("vfm4us.runtime.rng")

TURN = 8  # batches a turn: one takes ours 20 ms, too short to time


def in_turn(functions: list, rounds: int) -> np.ndarray:
    """Seconds of the process's CPU (functions, rounds), called in turn after one unmeasured call of each."""
    times: list[list[float]] = [[] for _ in functions]
    for i in range(rounds + 1):
        for side, function in zip(times, functions, strict=True):
            began = time.process_time()
            function()
            if i:
                side.append(time.process_time() - began)
    return np.array(times)


def seconds_in_turn(ours, plain, rounds: int) -> tuple[float, float]:
    """Median seconds of each."""
    first, second = np.median(in_turn([ours, plain], rounds), axis=1)
    return float(first), float(second)


FOUND: list[dict] = []  # what --out writes


def note(what: str, name: str, values: np.ndarray, unit: str) -> None:
    """Print and keep the median and the spread of one side of a comparison; the first side of a `what` is ours."""
    middle = float(np.median(values))
    entry = {
        "what": what,
        "name": name,
        "median": middle,
        "low": float(values.min()),
        "high": float(values.max()),
        "unit": unit,
    }
    first = next((e for e in FOUND if e["what"] == what), entry)
    entry["ratio"] = middle / first["median"]
    FOUND.append(entry)
    print(
        f"{what}: {name} {middle:.2f} {unit} ({entry['low']:.2f} to {entry['high']:.2f})"
        + (f", {entry['ratio']:.2f} times ours" if entry is not first else "")
    )


def draw_chart(path: Path, title: str) -> None:
    """Each side as a multiple of ours, a group for each comparison."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    whats = list(dict.fromkeys(entry["what"] for entry in FOUND))
    names = list(dict.fromkeys(entry["name"] for entry in FOUND))
    figure = Figure(figsize=(8, 1.2 + 0.55 * len(whats)), layout="constrained")
    axis = figure.subplots()
    for k, name in enumerate(names):
        rows = [(whats.index(e["what"]) + 0.25 * (k - 1), e["ratio"]) for e in FOUND if e["name"] == name]
        axis.barh([y for y, _ in rows], [x for _, x in rows], height=0.23, label=name)
    axis.set_yticks(range(len(whats)), whats)
    axis.invert_yaxis()
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel("CPU time, as a multiple of ours")
    axis.set_title(title, fontsize=9)
    axis.legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(path)


def torchvision_patches(size: int, scale: tuple[float, float], version: int):
    """EMP-SSL's transform with a one-channel colour jitter: torchvision's v1 on PIL images, or v2 on uint8 tensors."""
    if version == 1:
        t, last = transforms, [transforms.ToTensor()]
    else:
        from torchvision.transforms import v2 as t

        last = [t.ToDtype(torch.float32, scale=True)]
    return t.Compose(
        [
            t.RandomResizedCrop(size, scale=scale, antialias=True),
            t.RandomHorizontalFlip(),
            t.RandomApply([t.ColorJitter(0.4, 0.4)], p=0.8),
            t.RandomApply([t.GaussianBlur(5, (0.1, 2.0))], p=0.3),
            *last,
        ]
    )


def benchmark_patches(rounds: int) -> None:
    """Print milliseconds per image of our batched patch sampler and of torchvision's transforms, on PIL files and on tensors."""
    batch = 16
    for side, size, scale, counts in ((256, 96, (0.25, 0.25), (5, 20, 50)), (512, 224, (0.2, 1.0), (2,))):
        images = [make_phantom(i, size=side).image for i in range(batch)]
        packed, valid = torch.from_numpy(np.stack(images)), torch.tensor([[0, 0, side, side]]).expand(batch, 4)
        tensors = [torch.from_numpy(image)[None] for image in images]
        v1, v2 = (torchvision_patches(size, scale, version) for version in (1, 2))
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"{i}.png" for i in range(batch)]
            for file, image in zip(files, images, strict=True):
                Image.fromarray(image).save(file)
            for n in counts:
                sampler = augment.PatchSampler(PatchConfig(count=n, size=size, scale_low=scale[0], scale_high=scale[1]))

                def ours(sampler=sampler, packed=packed, valid=valid):
                    for _ in range(TURN):
                        sampler(packed, valid, rng.generator(0))

                def on_pil(n=n, files=files, v1=v1):
                    for file in files:
                        picture = Image.open(file).convert("L")
                        torch.stack([v1(picture) for _ in range(n)])

                def on_tensors(n=n, tensors=tensors, v2=v2):
                    for image in tensors:
                        torch.stack([v2(image) for _ in range(n)])

                seconds = in_turn([ours, on_pil, on_tensors], rounds)
                names = ("ours", "decode once, torchvision v1 on PIL", "torchvision v2 on tensors")
                for name, times in zip(names, [seconds[0] / TURN, *seconds[1:]], strict=True):
                    note(f"{n} patches of {size} px from {side} px", name, 1e3 * times / batch, "ms per image")


def benchmark_coding_rate(rounds: int) -> None:
    """Print the time of our coding rate with its gradient, and of one logdet of a d x d matrix per patch, in milliseconds."""
    z = F.normalize(torch.randn(20, 100, 1024), dim=-1).requires_grad_()

    def ours():
        objectives.total_coding_rate(z).mean().backward()

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
    """Print a training step's FLOP/s, its share of what a product of matrices reaches, and the share of its time in the network."""
    config = from_dict(EmpSSLConfig, {"patches": {"count": 8, "size": 64}})
    network = emp_ssl.Network(encoders.Encoder(encoders.EncoderSpec(in_channels=1)), config.projector).to(
        memory_format=torch.channels_last
    )
    images = torch.randint(0, 256, (32, 128, 128), dtype=torch.uint8)
    valid = torch.tensor([[0, 0, 128, 128]]).expand(32, 4)
    sampler, objective, optimizer = (
        augment.PatchSampler(config.patches),
        objectives.MultiPatchLoss(),
        emp_ssl.lars(network, config.optimizer),
    )
    patches = sampler(images, valid, rng.generator(0))

    def step():
        loss, _ = emp_ssl.compute_loss(
            network, objective, sampler(images, valid, rng.generator(0)), config, emp_ssl.Draws(None, None)
        )
        loss.backward()
        optimizer.step()

    def network_alone():
        network(patches.flatten(0, 1)).sum().backward()
        optimizer.step()

    whole, inside = seconds_in_turn(step, network_alone, rounds)
    with flop_counter.FlopCounterMode(display=False) as counter:
        step()
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    peak = 2 * 1024**3 / np.median(in_turn([lambda: a @ b], rounds))
    share = counter.get_total_flops() / whole / peak
    print(
        f"training step: {counter.get_total_flops() / whole / 1e9:.0f} GFLOP/s, {100 * share:.0f} % of a product of matrices"
    )
    print(
        f"training step, 32 images, 8 patches of 64 px: {1e3 * whole:.0f} ms, network and optimizer {1e3 * inside:.0f} ms, "
        f"share in the network {100 * inside / whole:.0f} %"
    )


def benchmark_attention(rounds: int) -> None:
    """Print the time of a small ViT in bfloat16 on a CPU, forward and backward, with attention written out and fused."""
    device, encoder = torch.device("cpu"), encoders.Encoder(encoders.EncoderSpec("vit_tiny", in_channels=1, patch=8))
    fused, crops = copy.deepcopy(encoder), torch.rand(32, 1, 64, 64)
    devices.choose_attention(encoder, device, "bfloat16")

    def both_ways(network):
        with devices.autocast(device, "bfloat16"):
            vectors = network(crops)
        vectors.float().sum().backward()

    ours, plain = seconds_in_turn(lambda: both_ways(encoder), lambda: both_ways(fused), 3 * rounds)
    print(
        f"ViT-Ti/8, bf16 on a CPU, 32 crops of 64 px: attention written out {1e3 * ours:.0f} ms, fused {1e3 * plain:.0f} ms, "
        f"ratio {plain / ours:.2f}"
    )


def benchmark_phantoms(rounds: int) -> None:
    """Print the seconds it takes to write 2,000 synthetic images of 256 px; run once, whatever `rounds` says."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        write_phantoms(Path(folder) / "phantoms", 2000, 256)
        print(f"phantoms: 2,000 images in {time.perf_counter() - began:.0f} s")


def benchmark_load(rounds: int) -> None:
    """Print the time of `load_encoder` on a ResNet18 file beside torch.load into an existing and into a new model."""
    from torchvision.models import resnet18

    with tempfile.TemporaryDirectory() as folder:
        file, model = Path(folder) / "resnet18.pth", resnet18()
        torch.save({"state_dict": model.state_dict()}, file)

        def bare():
            model.load_state_dict(torch.load(file, weights_only=True)["state_dict"])

        def bare_and_model():
            resnet18().load_state_dict(torch.load(file, weights_only=True)["state_dict"])

        for plain, what in ((bare, "an existing model"), (bare_and_model, "a new model")):
            ours, theirs = seconds_in_turn(lambda: vfm4us.load_encoder(file), plain, 3 * rounds)
            print(
                f"loading a ResNet18: load_encoder {1e3 * ours:.0f} ms, torch.load + load_state_dict into {what} "
                f"{1e3 * theirs:.0f} ms, ratio {ours / theirs:.2f}"
            )


def benchmark_packing(rounds: int) -> None:
    """Print CPU per image of `prepare` and of a plain PIL loop, in turn, and wall times of one and two workers and of the loop."""
    from vfm4us.data.prepare import prepare

    def write_screens(folder: Path, ending: str, count: int = 120) -> None:
        folder.mkdir()
        rng = np.random.default_rng(0)
        for i in range(count):
            width, height = ((512, 384), (640, 480), (800, 600), (1024, 768))[i % 4]
            side = int(0.9 * height)
            scan = Image.fromarray(make_phantom(i % 24, size=256).image).resize((side, side), Image.Resampling.BICUBIC)
            noisy = np.asarray(scan, np.float32) + (np.asarray(scan) > 8) * rng.normal(0, 2, (side, side))
            screen = Image.new("L", (width, height))
            screen.paste(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), (width // 2 - side // 2, height // 20))
            screen = screen.convert("RGB") if i // 4 % 2 else screen
            screen.save(folder / f"{i:04d}.{ending}", **({"quality": 90} if ending == "jpg" else {}))

    def plain(files: list[Path], size: int = 256) -> np.ndarray:
        frames = []
        for file in files:
            data = file.read_bytes()
            hashlib.sha256(data).hexdigest()
            picture = Image.open(io.BytesIO(data)).convert("L")
            scale = size / max(picture.size)
            small = tuple(max(1, round(side * scale)) for side in picture.size)
            frame = np.zeros((size, size), np.uint8)
            frame[: small[1], : small[0]] = np.asarray(picture.resize(small, Image.Resampling.LANCZOS))
            frames.append(frame)
        return np.stack(frames)

    def timed(function) -> tuple[float, float]:
        """Seconds of CPU, those of processes that have ended with it, and seconds on the clock."""
        cpu, clock = sum(os.times()[:4]), time.perf_counter()
        function()
        return sum(os.times()[:4]) - cpu, time.perf_counter() - clock

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = {"PNG of 512 to 1024 px": folder / "png", "JPEG of 512 to 1024 px": folder / "jpg"}
        for source in sources.values():
            write_screens(source, source.name)
        real = os.environ.get("VFM4US_REAL_DATA")
        if real and (found := sorted(Path(real).glob("busi/**/*.png"))):
            sources["PNG of BUSI"] = folder / "busi"
            sources["PNG of BUSI"].mkdir()
            for k, file in enumerate(file for file in found if "_mask" not in file.name):
                shutil.copy(file, sources["PNG of BUSI"] / f"{k:04d}.png")
        for source in sources.values():  # as many as a real set has, so that processes are worth their start
            first = sorted(source.iterdir())
            for k, file in itertools.product(range(7), first):
                shutil.copy(file, source / f"{file.stem}-{k}{file.suffix}")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        for what, source in sources.items():
            files = sorted(source.iterdir())

            def ours(workers: int = 1, source: Path = source) -> None:
                shutil.rmtree(folder / "packed", ignore_errors=True)
                prepare(source, folder / "packed", size=256, workers=workers, progress=False)

            sides = {"ours": ours, "plain PIL loop": lambda files=files: plain(files)}
            spent = [[timed(function)[0] for function in sides.values()] for _ in range(rounds + 1)]
            for side, seconds in zip(sides, np.array(spent[1:]).T, strict=True):
                note(f"packing {what}", side, 1e3 * seconds / len(files), "ms of CPU per image")
            if cores < 2:
                print(f"packing {what}: one core, so two workers were not timed")
                continue
            sides = {
                "two workers": lambda ours=ours: ours(2),
                "one worker": ours,
                "plain PIL loop": sides["plain PIL loop"],
            }
            clocks = [[timed(function)[1] for function in sides.values()] for _ in range(rounds)]
            for side, seconds in zip(sides, np.array(clocks).T, strict=True):
                note(f"packing {what}, on the clock", side, seconds, "s")


def main() -> None:
    """Measure the parts named on the command line, all of them by default; with --out, write benchmark.json and benchmark.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {
        "patches": benchmark_patches,
        "coding_rate": benchmark_coding_rate,
        "step": benchmark_step,
        "attention": benchmark_attention,
        "load": benchmark_load,
        "phantoms": benchmark_phantoms,
        "packing": benchmark_packing,
    }
    parser.add_argument("parts", nargs="*", metavar="part", help=f"any of {', '.join(parts)}")
    parser.add_argument("--out", type=Path, help="folder for benchmark.json and benchmark.png (of patches and peak)")
    parser.add_argument("--rounds", type=int, default=5, help="measured calls of each side (default 5)")
    arguments = parser.parse_args()
    if unknown := [p for p in arguments.parts if p not in parts]:
        parser.error(f"unknown part {unknown[0]!r}; choose from {', '.join(parts)}")
    print(f"{devices.device_name()}, torch {torch.__version__}")
    for name in arguments.parts or parts:
        parts[name](arguments.rounds)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        about = {
            "device": devices.device_name(),
            "torch": torch.__version__,
            "rounds": arguments.rounds,
            "found": FOUND,
        }
        (arguments.out / "benchmark.json").write_text(json.dumps(about, indent=1))
        if FOUND:
            draw_chart(arguments.out / "benchmark.png", f"{devices.device_name()}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
