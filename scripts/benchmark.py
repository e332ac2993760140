"""Ours against the plain way, in turn in one run, by CPU time; prints medians, spread and ratios.

    python scripts/benchmark.py [PART ...] [--out FOLDER]    all parts by default

patches      5, 20 and 50 patches of 96 px per image from images of 256 px, 20 of 96 px and 2 of 224 px from images of 512 px,
             against decoding the file once and augmenting with torchvision v1 on PIL, as EMP-SSL's code does, with v2 on tensors,
             and with lightly's VICRegViewTransform, which its EMPSSLLoss names
coding_rate  the objective forward and backward at n = 20, b = 100, d = 1024, against a d x d logdet per patch and lightly's
             EMPSSLLoss
loop         a whole step, from packed images or PNG files to new weights, against the same network in a plain loop (torchvision v1,
             a logdet per patch, momentum) and lightly's transform and loss
step         a training step in FLOP/s beside what a product of matrices reaches, and its share in the network
layers       each convolution of a ResNet18 on patches of 96 px in bf16 where the CPU multiplies it, forward and backward, in
             channels_last and contiguous, and those of small maps as products of matrices, as training in bf16 computes them
processes    the share of a step of two gloo processes that the flat all-reduce of the gradients takes
large        opening, first leakage check, going on, and clusters of near-duplicates against the number of images; --largest sets it
attention    a ViT-Ti/8 in bf16 on a CPU, forward and backward on 32 crops of 64 px: attention as `choose_kernels` leaves it,
             against torch's fused kernel
finetune     a fine-tuning step of a ResNet18 with a linear head, 32 images of 128 px, in float32 and in bfloat16
load         load_encoder on a ResNet18 file, against torch.load and load_state_dict into a model that is there already, and
             one that has to be made
phantoms     2,000 synthetic images of 256 x 256, each with its mask and low-quality partner, written as PNG
packing      `prepare` from the listing to the finished folder, against a plain loop that reads each file, takes its sha256,
             decodes it with PIL, converts to grey, resizes the longer side to 256 px (Lanczos), pads and stacks: no hash of the
             picture, no check, no journal, nothing written. 960 screens of 512 to 1024 px as PNG and as JPEG, and BUSI where
             VFM4US_REAL_DATA names the folder of the real sets. Times on the clock where there are two cores
"""

import copy
import functools
import hashlib
import importlib.util
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import vfm4us
from vfm4us.command_line import Parser
from vfm4us.config import from_dict
from vfm4us.lazy import Lazy
from vfm4us.phantoms.folders import write_phantoms
from vfm4us.phantoms.make import make_phantom
from vfm4us.pretraining.sections import EmpSSLConfig
from vfm4us.views import PatchConfig

torch, F, flop_counter = Lazy("torch"), Lazy("torch.nn.functional"), Lazy("torch.utils.flop_counter")
transforms, augment, encoders = Lazy("torchvision.transforms"), Lazy("vfm4us.augment"), Lazy("vfm4us.encoders")
pools, splits = Lazy("vfm4us.data.pools"), Lazy("vfm4us.data.splits")
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


FOUND: list[dict] = []  # what --out writes
SAID: list[dict] = []
PART = [""]  # that is being measured


def note(what: str, name: str, values: np.ndarray, unit: str) -> None:
    """Print and keep the median and the spread of one side of a comparison; the first side of a `what` is ours."""
    middle = float(np.median(values))
    spread = {"median": middle, "low": float(values.min()), "high": float(values.max()), "unit": unit}
    entry = {"part": PART[0], "what": what, "name": name} | spread
    first = next((e for e in FOUND if e["what"] == what), entry)
    entry["ratio"] = middle / first["median"]
    FOUND.append(entry)
    print(
        f"{what}: {name} {middle:.2f} {unit} ({entry['low']:.2f} to {entry['high']:.2f})"
        + (f", {entry['ratio']:.2f} times the first" if entry is not first else "")
    )


def remark(text: str) -> None:
    """Print and keep a sentence that goes below the table of a part."""
    SAID.append({"part": PART[0], "text": text})
    print(text)


def draw_chart(path: Path, figures: list[dict]) -> None:
    """Each side as a multiple of ours, on a logarithmic axis, a group for each comparison."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    whats = [what for what in dict.fromkeys(e["what"] for e in figures) if sum(e["what"] == what for e in figures) > 1]
    first = {e["what"]: e for e in reversed(figures)}  # ours, which has no bar
    names = list(dict.fromkeys(e["name"] for e in figures if e is not first[e["what"]]))
    figure = Figure(figsize=(9, 1.4 + 0.6 * len(whats)), layout="constrained")
    axis = figure.subplots()
    for k, name in enumerate(names):
        rows = []
        for y, what in enumerate(whats):
            sides = [e for e in figures if e["what"] == what][1:]
            rows += [
                (y + (i - (len(sides) - 1) / 2) * 0.2, e["ratio"]) for i, e in enumerate(sides) if e["name"] == name
            ]
        axis.barh([y for y, _ in rows], [x for _, x in rows], height=0.18, label=name, color=f"C{k % 10}")
        for y, x in rows:
            axis.annotate(
                f"{x:.2f}" if x < 10 else f"{x:.0f}",
                (x, y),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    axis.set_yticks(range(len(whats)), whats, fontsize=8)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel("CPU time, as a multiple of ours; right of the line ours is faster")
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.4, -0.9 / (0.6 * len(whats))), ncols=2)
    FigureCanvasAgg(figure).print_png(path)


def draw_cost(path: Path, figures: list[dict]) -> None:
    """CPU seconds against the number of images, a line for each thing that is done, both axes logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    for name in dict.fromkeys(e["name"] for e in figures):
        points = [(int(e["what"].split()[0].replace(",", "")), e["median"]) for e in figures if e["name"] == name]
        axis.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("images")
    axis.set_ylabel("seconds of CPU, one core")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(path)


def report(parts: dict[str, dict]) -> str:
    """Markdown: for each part when and on what it was measured, a table, and what is to be said of it."""
    lines = [
        "# Speed",
        "",
        "Written by `python scripts/benchmark.py [PART ...] --out docs/results`; `speed.json` holds the same. Medians with",
        "the lowest and the highest of all rounds, in CPU time of one process. The sides of a comparison were run in turn.",
        "",
        "![Each side as a multiple of ours](speed.png)",
    ]
    for name, about in parts.items():
        lines += [
            "",
            f"## {name}",
            "",
            f"{about['date']}, {about['device']}, torch {about['torch']}, {about['rounds']} rounds.",
            "",
        ]
        if about["found"]:
            lines += ["| | | median | lowest to highest | times the first |", "| --- | --- | ---: | ---: | ---: |"]
        what = ""
        for e in about["found"]:
            shown, what = "" if e["what"] == what else e["what"], e["what"]
            times = "" if shown else f"{e['ratio']:.2f}"
            spread = f"{e['low']:.3g} to {e['high']:.3g}" if e["high"] > e["low"] else ""
            lines.append(f"| {shown} | {e['name']} | {e['median']:.3g} {e['unit']} | {spread} | {times} |")
        lines += [line for text in about["said"] for line in ("", text)]
        if name == "large":
            lines += ["", "![Cost against the number of images](large.png)"]
    return "\n".join(lines) + "\n"


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


def lightly_patches(size: int, scale: tuple[float, float]):
    """The transform that lightly's EMPSSLLoss names, for one patch of a PIL image in colour; None without lightly."""
    try:
        from lightly.transforms.vicreg_transform import VICRegViewTransform
    except ImportError:
        return None
    view = VICRegViewTransform(input_size=size)
    for part in view.transform.transforms:
        if hasattr(part, "scale"):
            part.scale = scale
    return view


def benchmark_patches(rounds: int) -> None:
    """Print milliseconds per image of our batched patch sampler and of torchvision's transforms, on PIL files and on tensors."""
    batch = 16
    cases = ((256, 96, (0.25, 0.25), (5, 20, 50)), (512, 96, (0.06, 0.5), (20,)), (512, 224, (0.2, 1.0), (2,)))
    for side, size, scale, counts in cases:
        images = [make_phantom(i, size=side).image for i in range(batch)]
        packed, valid = torch.from_numpy(np.stack(images)), torch.tensor([[0, 0, side, side]]).expand(batch, 4)
        tensors = [torch.from_numpy(image)[None] for image in images]
        v1, v2 = (torchvision_patches(size, scale, version) for version in (1, 2))
        lightly = lightly_patches(size, scale)
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

                def by_lightly(n=n, files=files, lightly=lightly):
                    for file in files:
                        picture = Image.open(file).convert("RGB")
                        torch.stack([lightly(picture) for _ in range(n)])

                functions = [ours, on_pil, on_tensors, *([by_lightly] if lightly else [])]
                seconds = in_turn(functions, rounds)
                names = ("ours", "torchvision v1 on PIL", "torchvision v2 on tensors", "lightly")[: len(functions)]
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

    functions, names = [ours, plain], ["ours", "d x d logdet per patch"]
    if importlib.util.find_spec("lightly"):
        from lightly.loss import EMPSSLLoss

        theirs = EMPSSLLoss()
        functions.append(lambda: theirs(list(z)).backward())
        names.append("lightly")
    for name, seconds in zip(names, in_turn(functions, rounds), strict=True):
        note("objective, n = 20, b = 100, d = 1024", name, 1e3 * seconds, "ms")


def benchmark_loop(rounds: int) -> None:
    """Milliseconds from images to new weights: ours from the packed store, others from PNG files, 16 images, 8 patches of 96 px."""
    batch, count, size, scale = 16, 8, 96, (0.25, 0.25)
    config = from_dict(EmpSSLConfig, {"patches": {"count": count, "size": size, "scale_low": 0.25, "scale_high": 0.25}})
    images = [make_phantom(i, size=256).image for i in range(batch)]
    packed, valid = torch.from_numpy(np.stack(images)), torch.tensor([[0, 0, 256, 256]]).expand(batch, 4)

    def new(channels: int):
        return emp_ssl.Network(encoders.Encoder(encoders.EncoderSpec(in_channels=channels)), config.projector)

    network, sampler, objective = new(1), augment.PatchSampler(config.patches), objectives.MultiPatchLoss()
    network, optimizer = network.to(memory_format=torch.channels_last), emp_ssl.lars(network, config.optimizer)

    def ours():
        patches = sampler(packed, valid, rng.generator(0))
        loss, _ = emp_ssl.compute_loss(network, objective, patches, config, emp_ssl.Draws(None, None))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.png" for i in range(batch)]
        for file, image in zip(files, images, strict=True):
            Image.fromarray(image).save(file)

        def loop(channels: int, transform, loss_of):
            network = new(channels)
            optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)

            def step():
                pictures = [Image.open(file).convert("L" if channels == 1 else "RGB") for file in files]
                patches = torch.stack([torch.stack([transform(p) for p in pictures]) for _ in range(count)])
                loss = loss_of(network(patches.flatten(0, 1)).view(count, batch, -1))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

            return step

        def plain_loss(z):
            identity, d = torch.eye(z.shape[-1]), z.shape[-1]
            rate = sum(0.5 * torch.logdet(identity + d / (batch * 0.2) * one.T @ one) for one in z) / count
            return -200 * F.cosine_similarity(z, z.mean(0, keepdim=True), dim=-1).mean() - rate

        functions, names = [ours, loop(1, torchvision_patches(size, scale, 1), plain_loss)], ["ours", "plain loop"]
        if (theirs := lightly_patches(size, scale)) is not None:
            from lightly.loss import EMPSSLLoss

            objective_of_lightly = EMPSSLLoss()
            functions.append(loop(3, theirs, lambda z: objective_of_lightly(list(z))))
            names.append("lightly")
        for name, seconds in zip(names, in_turn(functions, rounds), strict=True):
            note(f"whole step, {batch} images, {count} patches of {size} px", name, 1e3 * seconds, "ms")


def benchmark_step(rounds: int) -> None:
    """Print a training step's FLOP/s, its share of what a product of matrices reaches, and the share of its time in the network.

    And where the CPU multiplies bf16 the step in it, with the kernels that training chooses and with the library's.
    """
    config = from_dict(EmpSSLConfig, {"patches": {"count": 8, "size": 64}})
    network = emp_ssl.Network(encoders.Encoder(encoders.EncoderSpec(in_channels=1)), config.projector).to(
        memory_format=torch.channels_last
    )
    images = torch.randint(0, 256, (32, 128, 128), dtype=torch.uint8)
    valid = torch.tensor([[0, 0, 128, 128]]).expand(32, 4)
    sampler, objective = augment.PatchSampler(config.patches), objectives.MultiPatchLoss()
    patches, optimizer = sampler(images, valid, rng.generator(0)), emp_ssl.lars(network, config.optimizer)

    def step(network=network, optimizer=optimizer, precision="float32"):
        shown = sampler(images, valid, rng.generator(0))
        with devices.autocast(torch.device("cpu"), precision):
            loss, _ = emp_ssl.compute_loss(network, objective, shown, config, emp_ssl.Draws(None, None))
        loss.backward()
        optimizer.step()

    def network_alone():
        network(patches.flatten(0, 1)).sum().backward()
        optimizer.step()

    both = in_turn([step, network_alone], rounds)
    for name, seconds in zip(("whole step", "network and optimizer alone"), both, strict=True):
        note("training step, 32 images, 8 patches of 64 px", name, 1e3 * seconds, "ms")
    with flop_counter.FlopCounterMode(display=False) as counter:
        step()
    rate, product = counter.get_total_flops() / np.median(both[0]) / 1e9, peak_rate(torch.float32) / 1e9
    remark(f"The step runs at {rate:.0f} GFLOP/s in float32, a product of matrices at {product:.0f}.")
    if devices.multiplies_bfloat16():
        sides = []
        for choose in (devices.choose_kernels, lambda *_: None):
            choose(one := copy.deepcopy(network), torch.device("cpu"), "bfloat16")
            sides.append(functools.partial(step, one, emp_ssl.lars(one, config.optimizer), "bfloat16"))
        names = ("as training computes it", "with the library's convolutions")
        for name, seconds in zip(names, in_turn(sides, rounds), strict=True):
            note("the same step in bf16", name, 1e3 * seconds, "ms")


def peak_rate(dtype) -> float:
    """FLOP/s of a product of two square matrices, the fastest of 20 of each of three sizes."""
    rates = []
    for side in (512, 1024, 2048):
        a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
        rates.append(2 * side**3 / in_turn([lambda a=a, b=b: a @ b], 20).min())
    return float(max(rates))


def benchmark_layers(rounds: int) -> None:
    """GFLOP/s of each kind of convolution of a ResNet18, forward and backward, of 160 patches of 96 px, in both memory formats.

    In bf16 also as training computes those of small maps, `use_small_maps`.
    """
    dtype = torch.bfloat16 if devices.multiplies_bfloat16() else torch.float32
    peak, batch, spent, slow = peak_rate(dtype), 160, {}, []
    kinds = [(1, 64, 7, 2, 96, 1)]  # channels in and out, kernel, stride, side, how many of it in the network
    for stage, (width, side) in enumerate(((64, 24), (128, 12), (256, 6), (512, 3))):
        if stage:
            kinds += [(width // 2, width, 3, 2, 2 * side, 1), (width // 2, width, 1, 2, 2 * side, 1)]
        kinds.append((width, width, 3, 1, side, 3 if stage else 4))
    for low, high, kernel, stride, side, number in kinds:
        sides = []
        for layout in (torch.channels_last, torch.contiguous_format):
            layer = (
                torch.nn.Conv2d(low, high, kernel, stride, kernel // 2, bias=False).to(dtype).to(memory_format=layout)
            )
            x = torch.randn(batch, low, side, side, dtype=dtype).contiguous(memory_format=layout)
            x.requires_grad_(low > 1)  # no gradient of the images is wanted
            gradient = torch.ones_like(layer(x).detach())
            sides.append(lambda layer=layer, x=x, gradient=gradient: layer(x).backward(gradient))
            if layout == torch.channels_last:
                by_products, its_own = copy.deepcopy(layer), (x, gradient)
        encoders.use_small_maps(by_products)
        if dtype == torch.bfloat16 and type(by_products) is not torch.nn.Conv2d and -(-side // stride) <= 3:

            def products(layer=by_products, x=its_own[0], gradient=its_own[1]):
                with torch.autocast("cpu", torch.bfloat16):
                    made = layer(x)
                made.backward(gradient)

            sides.append(products)
        flops = 2 * batch * (-(-side // stride)) ** 2 * low * high * kernel**2 * (3 if low > 1 else 2)
        what = f"{number} x {low} to {high} channels, {kernel} x {kernel}, stride {stride}, {side} px"
        rates = flops / in_turn(sides, rounds) / 1e9
        names = ("channels_last", "contiguous", "products")[: len(rates)]
        for name, values in zip(names, rates, strict=True):
            note(what, name, values, "GFLOP/s")
            spent.setdefault(name, []).append((number * flops, number * flops / np.median(values)))
        if len(rates) == 2 and dtype == torch.bfloat16:
            spent.setdefault("products", []).append(spent["channels_last"][-1])
        best = float(np.median(rates, axis=1).max())
        if best < 0.65e-9 * peak:
            slow.append(f"{what} ({100e9 * best / peak:.0f} %)")
    for name, pairs in spent.items():
        rate = 1e9 * sum(f for f, _ in pairs) / sum(s for _, s in pairs)
        how = {"products": "channels_last, small maps as products of matrices"}.get(name, name)
        remark(
            f"All convolutions in {how}: {100 * rate / peak:.0f} % of a product of matrices ({peak / 1e9:.0f} GFLOP/s, {dtype})."
        )
    fastest = [min(sides, key=lambda pair: pair[1]) for sides in zip(*spent.values(), strict=True)]
    rate = 1e9 * sum(f for f, _ in fastest) / sum(s for _, s in fastest)
    remark(f"Each in its fastest way, with no cost of changing between them: {100 * rate / peak:.0f} %.")
    remark("Below 65 % in every way: " + ("; ".join(slow) or "none") + ".")


def benchmark_processes(rounds: int) -> None:
    """Milliseconds on the clock of a step of two gloo processes, and of the flat all-reduce of its gradients alone."""
    with tempfile.TemporaryDirectory() as folder:
        code = (
            "import runpy, sys; found = runpy.run_path(sys.argv[1]); "
            "found['one_of_two'](int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))"
        )
        command = [sys.executable, "-c", code, __file__]
        both = [subprocess.Popen([*command, str(rank), f"{folder}/meeting", str(rounds)]) for rank in (0, 1)]
        if any(process.wait() for process in both):
            raise RuntimeError("one of two processes failed: see above")
        seconds = np.load(f"{folder}/meeting.npy")
    what = "step of two processes, 16 images each, 8 patches of 96 px"
    note(what, "whole step, on the clock", 1e3 * seconds[0], "ms")
    note(what, "flat all-reduce of the gradients, on the clock", 1e3 * seconds[1], "ms")
    note(what, "the same, by CPU of one process", 1e3 * seconds[2], "ms")
    share = np.median(seconds[1]) / np.median(seconds[0])
    remark(
        f"The flat all-reduce takes {100 * share:.1f} % of the step; overlapping it with the backward pass could save no more."
    )


def one_of_two(rank: int, meeting: str, rounds: int) -> None:
    """A process of `benchmark_processes`: its times go to MEETING.npy."""
    from torch import distributed

    from vfm4us.runtime.processes import average_gradients

    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    config = from_dict(EmpSSLConfig, {"patches": {"count": 8, "size": 96}})
    network = emp_ssl.Network(encoders.Encoder(encoders.EncoderSpec(in_channels=1)), config.projector)
    network = network.to(memory_format=torch.channels_last)
    optimizer, objective = emp_ssl.lars(network, config.optimizer), objectives.MultiPatchLoss()
    sampler, parameters = augment.PatchSampler(config.patches), list(network.parameters())
    images, valid = (
        torch.randint(0, 256, (16, 224, 224), dtype=torch.uint8),
        torch.tensor([[0, 0, 224, 224]]).expand(16, 4),
    )
    seconds = np.zeros((3, rounds + 1))
    for i in range(rounds + 1):
        distributed.barrier()
        began = time.perf_counter()
        patches = sampler(images, valid, rng.generator(i), rank, 2)
        with devices.autocast(torch.device("cpu"), devices.choose_precision(torch.device("cpu"), "auto")):
            loss, _ = emp_ssl.compute_loss(network, objective, patches, config, emp_ssl.Draws(None, None))
        optimizer.zero_grad()
        loss.backward()
        distributed.barrier()  # waiting for the slower process is not the message's cost
        middle, cpu = time.perf_counter(), time.process_time()
        average_gradients(parameters)
        seconds[1, i], seconds[2, i] = time.perf_counter() - middle, time.process_time() - cpu
        optimizer.step()
        seconds[0, i] = time.perf_counter() - began
    if rank == 0:
        np.save(f"{meeting}.npy", seconds[:, 1:])
    distributed.barrier()
    distributed.destroy_process_group()


def benchmark_attention(rounds: int) -> None:
    """Print the time of a small ViT in bfloat16 on a CPU, forward and backward, with attention written out and fused."""
    device, encoder = torch.device("cpu"), encoders.Encoder(encoders.EncoderSpec("vit_tiny", in_channels=1, patch=8))
    fused, crops = copy.deepcopy(encoder), torch.rand(32, 1, 64, 64)
    devices.choose_kernels(encoder, device, "bfloat16")

    def both_ways(network):
        with devices.autocast(device, "bfloat16"):
            vectors = network(crops)
        vectors.float().sum().backward()

    times = in_turn([lambda: both_ways(encoder), lambda: both_ways(fused)], 3 * rounds)
    for name, seconds in zip(("written out, ours", "fused"), times, strict=True):
        note("attention, ViT-Ti/8, bf16, 32 crops of 64 px", name, 1e3 * seconds, "ms")


def benchmark_phantoms(rounds: int) -> None:
    """Print the seconds it takes to write 2,000 synthetic images of 256 px; run once, whatever `rounds` says."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        write_phantoms(Path(folder) / "phantoms", 2000, 256)
        note("2,000 phantoms of 256 px", "ours", np.array([time.process_time() - began]), "s")


def benchmark_finetune(rounds: int) -> None:
    """Milliseconds of a fine-tuning step: forward, backward, clipping and AdamW of ResNet18 and a linear head."""
    images, truth = torch.rand(32, 1, 128, 128), torch.randint(3, (32,))

    def step_in(precision: str):
        encoder = encoders.Encoder(encoders.EncoderSpec(in_channels=1)).to(memory_format=torch.channels_last)
        head = torch.nn.Linear(encoder.width, 3)
        parameters = [*encoder.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3)

        def step():
            with devices.autocast(torch.device("cpu"), precision):
                loss = F.cross_entropy(head(encoder(images).float()), truth)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

        return step

    precisions = ("float32", "bfloat16")
    for name, seconds in zip(precisions, in_turn([step_in(p) for p in precisions], rounds), strict=True):
        note("fine-tuning step, 32 images of 128 px", name, 1e3 * seconds, "ms")


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

        times = in_turn([lambda: vfm4us.load_encoder(file), bare, bare_and_model], 3 * rounds)
        for name, seconds in zip(("ours", "torch.load, existing model", "torch.load, new model"), times, strict=True):
            note("loading a ResNet18", name, 1e3 * seconds, "ms")


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
        if real and (pictures := sorted(Path(real).glob("busi/**/*.png"))):
            sources["PNG of BUSI"] = folder / "busi"
            sources["PNG of BUSI"].mkdir()
            for k, file in enumerate(file for file in pictures if "_mask" not in file.name):
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


def real_hashes() -> tuple[list[np.ndarray], str]:
    """Perceptual hashes of up to 400 images of each set in the folder VFM4US_REAL_DATA, else of phantoms; and whose they are."""
    from vfm4us.data.decode import read_grey

    root, hashes = os.environ.get("VFM4US_REAL_DATA"), []
    for folder in sorted(Path(root).iterdir()) if root else []:
        files = [f for f in sorted(folder.rglob("*")) if f.suffix in (".png", ".jpg") and "mask" not in str(f)]
        chosen = np.random.default_rng(0).permutation(len(files))[:400]
        if len(chosen) > 1:
            hashes.append(np.array([splits.perceptual_hash(read_grey(files[i])) for i in chosen], dtype=np.uint64))
    if hashes:
        return hashes, f"{sum(map(len, hashes)):,} images of {len(hashes)} real sets"
    phantoms = [splits.perceptual_hash(make_phantom(i, size=128).image) for i in range(600)]
    return [np.array(phantoms, dtype=np.uint64)], "600 phantoms"


def bits_like(real: np.ndarray, count: int, numbers: np.random.Generator) -> np.ndarray:
    """(count, 64) bool: bits that are set and go together as often as those of the hashes `real`.

    Normal vectors with the correlations of the real bits are cut at their frequencies.
    """
    bits = np.unpackbits(real.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1).astype(np.float32)
    with np.errstate(invalid="ignore"):
        together = np.nan_to_num(np.corrcoef(bits.T))
    np.fill_diagonal(together, 1.0)
    values, vectors = np.linalg.eigh(np.sin(np.pi / 2 * together))  # of the normal variables behind the bits
    root = vectors * np.sqrt(values.clip(0))
    normal = numbers.standard_normal((20_000, 64)) @ root.T
    limits = np.array([np.quantile(normal[:, k], 1 - bits[:, k].mean()) for k in range(64)])
    blocks = [min(50_000, count - i) for i in range(0, count, 50_000)]
    return np.concatenate([numbers.standard_normal((size, 64)) @ root.T > limits for size in blocks])


def hashes_like(real: list[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` hashes, as many like those of each real set, and the image of which each is a picture.

    A fifth of the images are further frames or copies of one of the 40 before, with a few other bits.
    """
    numbers = np.random.default_rng(0)
    sizes = [len(part) for part in np.array_split(np.arange(count), len(real))]
    made = np.concatenate([bits_like(of_set, size, numbers) for of_set, size in zip(real, sizes, strict=True)])
    picture = np.arange(count)
    copies = np.flatnonzero(numbers.random(count) < 0.2)
    copies = copies[copies > 0]
    back = 1 + (numbers.random(len(copies)) * np.minimum(copies, 40)).astype(int)
    for place, step in zip(copies.tolist(), back.tolist(), strict=True):
        picture[place] = picture[place - step]
    flips = numbers.random((len(copies), 64)) < numbers.integers(0, 7, len(copies))[:, None] / 64
    made[copies] = made[picture[copies]] ^ flips
    return np.packbits(made, axis=1).view(">u8").astype(np.uint64)[:, 0], picture


def write_large_set(folder: Path, hashes: np.ndarray, picture: np.ndarray) -> None:
    """A prepared dataset of images of 32 px: frames and copies of one image are equal pictures, others are not alike."""
    from vfm4us.data.records import Record, write_manifest

    count, side = len(hashes), 32
    folder.mkdir(parents=True)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(count, side, side))
    for i in range(0, count, 20_000):
        part = picture[i : i + 20_000]
        coarse = np.random.default_rng(1).integers(0, 256, (8, 8)) + part[:, None, None] * np.arange(1, 65).reshape(
            8, 8
        )
        coarse = (coarse * 2654435761 >> 7) % 256
        images[i : i + 20_000] = coarse.astype(np.uint8).repeat(4, 1).repeat(4, 2)
    images.flush()
    of_split = np.random.default_rng(2).random(count)
    records = [
        Record(
            id=f"image-{i}",
            path=f"clips/{i // 40}/{i:07d}.png",
            label=str(i % 16),
            group=f"patient-{picture[i]}",
            split="train" if of_split[i] < 0.95 else "val",
            height=600,
            width=800,
            valid_height=side,
            valid_width=side,
            sha256=hashlib.sha256(str(i).encode()).hexdigest(),
            phash=f"{int(hashes[i]):016x}",
        )
        for i in range(count)
    ]
    write_manifest(folder / "manifest.csv", records)
    about = {"name": folder.name, "size": side, "count": count, "masks": 0, "targets": 0, "complete": True}
    (folder / "dataset.json").write_text(json.dumps(about))


def benchmark_large(rounds: int, largest: int = 500_000) -> None:
    """CPU seconds of what depends on the number of images; each is run once, whatever `rounds` says."""
    from vfm4us.pretraining.settings import StageConfig

    real, whose = real_hashes()
    counts = [n for n in (1_000, 10_000, 100_000) if n < largest] + [largest]
    for count in counts:
        hashes, picture = hashes_like(real, count)
        what = f"{count:,} images"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "set"
            write_large_set(folder, hashes, picture)
            stage = StageConfig(data=[pools.SourceConfig(str(folder))])
            where = pools.Locations(Path(name), 32, (0.95, 0.05, 0.0))
            for step in ("first start: open, leakage check", "going on: open, what is kept"):
                began = time.process_time()
                [pool] = pools.stage_pools([stage], [], where, 0)
                note(what, step, np.array([time.process_time() - began]), "s")
            remark(f"{what}: {pool.removed:,} training images removed, compared with {pool.checked:,} held-out ones.")
            dataset = pool.training.datasets[0]
            began = time.process_time()
            clusters = splits.duplicate_clusters(dataset.sha256, dataset.phash, thumbnail_of=dataset.thumbnail_of)
            note(what, "clusters of near-duplicates", np.array([time.process_time() - began]), "s")
            remark(f"{what}: {len(set(clusters.tolist())):,} clusters.")
    together = np.concatenate(real)
    near, made = (len(splits.near_duplicates(h, h)) - len(h) for h in (together, hashes_like(real, len(together))[0]))
    pairs = len(together) * (len(together) - 1)
    remark(
        f"Hashes are drawn with the bit frequencies and correlations of {whose}; a fifth are frames or copies of others. Of the "
        f"pairs of the real ones {100 * near / pairs:.3f} % lie within {splits.HASH_DISTANCE} bits, of as many drawn ones "
        f"{100 * made / pairs:.3f} %."
    )


def main() -> None:
    """Measure the parts named on the command line, all of them by default; with --out, write benchmark.json and benchmark.png."""
    parser = Parser(__doc__)
    parts = {
        "patches": benchmark_patches,
        "coding_rate": benchmark_coding_rate,
        "loop": benchmark_loop,
        "step": benchmark_step,
        "layers": benchmark_layers,
        "processes": benchmark_processes,
        "large": benchmark_large,
        "attention": benchmark_attention,
        "finetune": benchmark_finetune,
        "load": benchmark_load,
        "phantoms": benchmark_phantoms,
        "packing": benchmark_packing,
    }
    parser.add_argument("parts", nargs="*", default=[], metavar="part", help=f"any of {', '.join(parts)}")
    parser.add_argument(
        "--out", type=Path, help="folder for speed.md, speed.json and pictures; parts measured earlier stay"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured calls of each side (default 5)")
    parser.add_argument("--largest", type=int, default=500_000, help="number of images of `large` (default 500,000)")
    arguments = parser.parse_args()
    if unknown := [p for p in arguments.parts if p not in parts]:
        parser.error(f"unknown part {unknown[0]!r}; choose from {', '.join(parts)}")
    print(f"{devices.device_name()}, torch {torch.__version__}")
    for name in arguments.parts or parts:
        PART[0] = name
        parts[name](arguments.rounds, *([arguments.largest] if name == "large" else []))
        if arguments.out is not None:
            keep(arguments.out, name, list(parts), arguments.rounds)


def keep(out: Path, name: str, order: list[str], rounds: int) -> None:
    """Put what was found of a part into speed.json of the folder, and write the report and the pictures of all parts anew."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "speed.json"
    earlier = json.loads(file.read_text()) if file.is_file() else {}
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "device": devices.device_name(),
        "torch": torch.__version__,
        "rounds": rounds,
    }
    about["found"] = [{k: v for k, v in e.items() if k != "part"} for e in FOUND if e["part"] == name]
    about["said"] = [e["text"] for e in SAID if e["part"] == name]
    parts = earlier | {name: about}
    parts = {part: parts[part] for part in order if part in parts}
    file.write_text(json.dumps(parts, indent=1) + "\n")
    (out / "speed.md").write_text(report(parts))
    compared = ("patches", "coding_rate", "loop", "attention", "load", "packing")
    if sides := [e for part in compared for e in parts.get(part, {"found": []})["found"]]:
        draw_chart(out / "speed.png", sides)
    if "large" in parts:
        draw_cost(out / "large.png", parts["large"]["found"])


if __name__ == "__main__":
    main()
