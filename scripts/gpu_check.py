"""What a GPU does with this project, in at most 8 minutes: is it right, how fast is it, what waits for what.

    python scripts/gpu_check.py [--device cuda] [--minutes 8] [--out gpu_check]
    python scripts/gpu_check.py --device cpu --tiny        the same on a CPU at a tiny size, in a minute

It makes its own images and needs no package beyond torch, torchvision, timm, numpy, scikit-learn and tensorboard (MAE's step,
which takes lightly as well, is left out without it). Writes gpu_check/gpu_check.json and gpu_check/gpu_check.md, a table with the
name of the device. The exit code is 1 where something is wrong. What time does not allow is named, not skipped in silence.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vfm4us.command_line import Parser
from vfm4us.config import from_dict
from vfm4us.lazy import Lazy
from vfm4us.pretraining.settings import PretrainingConfig
from vfm4us.views import PatchConfig

if TYPE_CHECKING:
    import torch

    from vfm4us.pretraining.trainer import Trainer

torch, F, checkpoints = Lazy("torch"), Lazy("torch.nn.functional"), Lazy("vfm4us.checkpoints")  # noqa: F811
augment, encoders, adversary = Lazy("vfm4us.augment"), Lazy("vfm4us.encoders"), Lazy("vfm4us.pretraining.adversary")
objective, trainer = Lazy("vfm4us.pretraining.objective"), Lazy("vfm4us.pretraining.trainer")
devices, rng = Lazy("vfm4us.runtime.device"), Lazy("vfm4us.runtime.rng")

ADV_MAIN = Path(__file__).resolve().parents[1] / "Pretraining" / "US-SSL" / "adv_main.py"


class Failed(Exception):
    """A check found something that is wrong."""


def require(condition: bool, text: str) -> str:
    """The text, where the condition holds; else raises Failed with it."""
    if not condition:
        raise Failed(text)
    return text


class Bench:
    """The device, the sizes, the images, and what has been found."""

    def __init__(self, device: torch.device, tiny: bool, folder: Path):
        self.device, self.tiny, self.folder = device, tiny, folder
        self.patch, self.count, self.side = (24, 3, 48) if tiny else (96, 20, 224)
        self.batches, self.steps = ((4, 8), 2) if tiny else ((96, 384), 6)
        self.peak = 0.0  # FLOP/s of a large product of matrices, measured

    def make_images(self) -> str:
        """Smooth noise in two folders of PNGs; enough for the largest batch."""
        rng, number = np.random.default_rng(0), 3 * max(self.batches) // 2 + 8
        for name in ("one", "two"):
            (self.folder / "images" / name).mkdir(parents=True)
            for i in range(number if name == "one" else number // 2):
                coarse = rng.integers(20, 255, (self.side // 8 + 1, self.side // 8 + 1)).astype(np.uint8)
                picture = Image.fromarray(coarse).resize((self.side, self.side), Image.Resampling.BICUBIC)
                picture.save(self.folder / "images" / name / f"{i:04d}.png")
        return f"{number} images of {self.side} px"

    def config(self, name: str, **more) -> PretrainingConfig:
        """A run on the images; sections of `more` are joined with the defaults."""
        values = {
            "name": name,
            "logs": str(self.folder / "logs"),
            "device": str(self.device),
            "batch_size": self.batches[0],
            "log_every": 1,
            "save_minutes": 1e6,
            "data": {
                "size": self.side,
                "root": str(self.folder / "images"),
                "cache": str(self.folder / "cache"),
                "splits": [0.9, 0.1, 0.0],
            },
            "monitor": {"reference": 20, "held_out": 10, "patches": 0},
            "stages": [{"name": "coarse", "epochs": 2, "epoch_images": 3 * self.batches[0], "data": [{"path": "one"}]}],
            "emp_ssl": {"patches": {"count": self.count, "size": self.patch}},
        }
        if self.tiny:
            values["emp_ssl"]["projector"] = {"hidden": 32, "out": 16}
        for key, value in more.items():
            values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
        return from_dict(PretrainingConfig, values)

    def trainer(self, name: str, **more) -> Trainer:
        """A trainer of one of the configs, with further keys."""
        return trainer.Trainer(self.config(name, **more), self.device, 0, 1)

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, step: Callable[[], object], count: int) -> float:
        """Of one call, after two that do not count."""
        for _ in range(2):
            step()
        self.synchronise()
        began = time.perf_counter()
        for _ in range(count):
            step()
        self.synchronise()
        return (time.perf_counter() - began) / count


# ---- is it right ----------------------------------------------------------------------------------------------------


def patches_are_those_of_the_cpu(bench: Bench) -> str:
    """Patches cut on the device differ from those cut on the CPU by less than 0.02 of the grey range, and 1e-5 in the mean."""
    images = torch.randint(0, 256, (8, bench.side, bench.side), dtype=torch.uint8, generator=rng.generator(0))
    valid = torch.tensor([[0, 0, bench.side, bench.side], [3, 5, bench.side // 2, bench.side // 3]] * 4)
    sampler = augment.PatchSampler(PatchConfig(count=bench.count, size=bench.patch, shadow=0.3, speckle=0.5))
    here, on_gpu = (
        sampler(images, valid, rng.generator(1)),
        sampler(images.to(bench.device), valid, rng.generator(1)).cpu(),
    )
    worst, mean = (here - on_gpu).abs().max().item(), (here - on_gpu).abs().mean().item()
    return require(worst < 0.02 and mean < 1e-5, f"largest difference {worst:.1e}, mean {mean:.1e} (of 1)")


def coding_rate_is_that_of_float64(bench: Bench) -> str:
    """The coding rate and its gradient on the device are within 1e-3 of those in float64, relatively."""
    worst = []
    for b, d in ((100, 1024), (24, 16)) if not bench.tiny else ((12, 32), (24, 16)):
        z = F.normalize(torch.randn(4, b, d, generator=rng.generator(2)), dim=-1)
        exact, ours = z.double().requires_grad_(), z.to(bench.device).requires_grad_()
        rates = objective.total_coding_rate(exact), objective.total_coding_rate(ours)
        for rate in rates:
            rate.sum().backward()
        worst.append(((rates[1].cpu() - rates[0]) / rates[0]).abs().max().item())
        worst.append((ours.grad.cpu() - exact.grad).abs().max().item() / exact.grad.abs().max().item())
    return require(max(worst) < 1e-3, f"largest relative difference of rate and gradient {max(worst):.1e}")


def tf32_stays_out_of_the_objective(bench: Bench) -> str:
    """The coding rate has the same bits whether TF32 is allowed or not, and leaves that switch as it was."""
    z = F.normalize(torch.randn(2, 96, 512, generator=rng.generator(3)), dim=-1).to(bench.device)
    losses, before = [], torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            losses.append(objective.total_coding_rate(z))
            require(torch.backends.cuda.matmul.allow_tf32 is allowed, "the objective left TF32 switched")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return require(torch.equal(*losses), "the coding rate is the same bits with TF32 allowed and not")


def bfloat16_loss_is_near_float32(bench: Bench) -> str:
    """The loss of a first step in bfloat16 is within 5 % of that in float32."""
    losses = []
    for precision in ("float32", "bfloat16"):
        trainer = bench.trainer(f"precision-{precision}", precision=precision)
        batch = trainer.training[0].batch(np.arange(bench.batches[0]))
        losses.append(float(trainer.update(batch)["loss"]))
        trainer.folder.close()
    relative = abs(losses[1] - losses[0]) / abs(losses[0])
    return require(relative < 0.05, f"loss {losses[0]:.3f} in float32, {losses[1]:.3f} in bfloat16")


def the_attack_stays_within_epsilon(bench: Bench) -> str:
    """The adversary changes no pixel by more than epsilon, leaves none outside [0, 1], and does move the vectors."""
    torch.manual_seed(0)
    encoder = encoders.Encoder(encoders.EncoderSpec(in_channels=1)).to(bench.device)
    patches = torch.rand(32, 1, bench.patch, bench.patch, generator=rng.generator(4)).to(bench.device)
    with adversary.frozen_statistics(encoder), devices.autocast(bench.device, "bfloat16"):
        center = encoder(patches).float().detach()
        attack = adversary.perturb(encoder, patches, center, adversary.AdversaryConfig(weight=1.0), rng.generator(5))
        moved = F.cosine_similarity(encoder(patches + attack.delta).float(), center).mean().item()
    largest, shown = attack.delta.abs().max().item(), patches + attack.delta
    require(
        largest <= adversary.AdversaryConfig().epsilon + 1e-7 and shown.min() >= 0 and shown.max() <= 1,
        f"delta {largest}",
    )
    return require(
        moved < 1, f"largest change {largest:.4f} of {adversary.AdversaryConfig().epsilon}, cosine 1 to {moved:.3f}"
    )


def a_run_in_two_parts_is_the_run_in_one(bench: Bench) -> str:
    """Optimizer state on the device, loader processes forked beside it with pinned memory."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        whole = trainer.pretrain(bench.config("whole", num_workers=2))
        for _ in range(2):
            parts = trainer.pretrain(bench.config("parts", stop_after=1))
    finally:
        torch.backends.cudnn.deterministic = before
    a, b = (checkpoints.read(f / "checkpoints" / "last.pt")["state_dict"] for f in (whole, parts))
    worst = max(float((v.float() - b[k].float()).abs().max()) for k, v in a.items())
    return require(
        worst < (1e-6 if bench.device.type == "cpu" else 1e-2), f"largest difference of a weight {worst:.1e}"
    )


def sigterm_is_answered_and_gone_on_from(bench: Bench) -> str:
    """A run that gets SIGTERM saves and ends with code 143, and the same command goes on from there."""
    config = bench.config("asked")
    keys = [f"name={config.name}", f"logs={config.logs}", f"device={bench.device}", "save_minutes=1000", "log_every=1"]
    keys += [
        f"data={{size: {bench.side}, root: {config.data.root}, cache: {config.data.cache}, splits: [0.9, 0.1, 0.0]}}"
    ]
    keys += [f"stages=[{{name: coarse, epochs: 30, epoch_images: {bench.batches[0]}, data: [{{path: one}}]}}]"]
    keys += [f"batch_size={bench.batches[0]}", f"emp_ssl={{patches: {{count: 2, size: {bench.patch}}}}}"]
    command = [sys.executable, str(ADV_MAIN), *keys, "monitor={reference: 20, held_out: 10, patches: 0}"]
    log = Path(config.logs) / config.name / "metrics.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until and not (log.is_file() and '"train"' in log.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    require(process.returncode == 143 and "same command goes on" in said, f"code {process.returncode}: {said[-300:]}")
    at = checkpoints.read(log.parent / "checkpoints" / "last.pt")["step"]
    done = subprocess.run([*command, "stop_after=1"], capture_output=True, text=True, timeout=200)
    require(done.returncode == 0 and "continuing" in done.stdout, f"code {done.returncode}: {done.stderr[-300:]}")
    return f"code 143 at step {at}, then gone on from there"


def compiled_is_as_it_is_not(bench: Bench) -> str:
    """The loss of a compiled step is within 2 % of that of the same step uncompiled; both times are told."""
    losses, times = [], []
    for compiled in (False, True):
        trainer = bench.trainer(f"compile-{compiled}", precision="float32" if bench.tiny else "bfloat16")
        if compiled:
            trainer.method.forward = torch.compile(
                trainer.method.forward, backend="aot_eager" if bench.tiny else "inductor"
            )
        batch = trainer.training[0].batch(np.arange(bench.batches[0]))
        losses.append(float(trainer.update(batch)["loss"]))
        times.append(bench.seconds(lambda: trainer.update(batch), bench.steps))  # noqa: B023
        trainer.folder.close()
    relative = abs(losses[1] - losses[0]) / abs(losses[0])
    text = f"loss {losses[0]:.3f} and {losses[1]:.3f}; step {1e3 * times[0]:.0f} ms, compiled {1e3 * times[1]:.0f} ms"
    return require(relative < 0.02, text)


# ---- how fast is it -------------------------------------------------------------------------------------------------

VARIANTS = {
    "plain": {"adversary": {"weight": 0.0}},
    "adversary": {"adversary": {"weight": 0.5}},
    "adversary and masks": {"adversary": {"weight": 0.5}, "masking": {"strategy": "adversarial", "cell": 4}},
}


def peak(bench: Bench) -> dict:
    """The TFLOP/s of a large product of matrices in bfloat16, kept as `bench.peak` for the shares of later measurements."""
    side = 256 if bench.tiny else 8192
    a = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    bench.peak = 2 * side**3 / bench.seconds(lambda: a @ a, 10)
    return {"what": f"product of {side} x {side} in bfloat16", "TFLOP/s": bench.peak / 1e12}


def step_speed(bench: Bench, batch_size: int, variant: str) -> dict:
    """One row: a pretraining step's milliseconds, patches per second, share of the peak, idle share, waits and peak memory."""
    extra = {"patches": {"count": bench.count, "size": bench.patch}} | VARIANTS[variant]
    extra |= {"projector": {"hidden": 32, "out": 16}} if bench.tiny else {}
    trainer = bench.trainer(
        f"speed-{batch_size}-{variant.replace(' ', '-')}",
        batch_size=batch_size,
        precision="bfloat16",
        emp_ssl=extra,
    )
    batch = trainer.training[0].batch(np.arange(batch_size))
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        batch = tuple(x.pin_memory() for x in batch)
    trainer.update(batch)  # counts the FLOPs
    seconds = bench.seconds(lambda: trainer.update(batch), bench.steps)
    speeds = {
        "what": f"step, {batch_size} images, {bench.count} patches of {bench.patch} px, {variant}",
        "ms": 1e3 * seconds,
        "patches/s": batch_size * bench.count / seconds,
        "share of peak": trainer.flops / seconds / bench.peak if bench.peak else None,
        "idle share": idle_share(bench, lambda: trainer.update(batch)),
        "waits": waits(bench, lambda: trainer.update(batch)),
    }
    if bench.device.type == "cuda":
        speeds["peak memory, GB"] = torch.cuda.max_memory_allocated() / 1e9
    trainer.folder.close()
    return speeds


def idle_share(bench: Bench, step: Callable[[], object]) -> float | None:
    """Share of the time of some steps in which no kernel runs on the GPU."""
    if bench.device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        bench.synchronise()
        began = time.perf_counter()
        for _ in range(3):
            step()
        bench.synchronise()
        wall = time.perf_counter() - began
    busy = sum(event.self_device_time_total for event in seen.key_averages()) / 1e6
    return max(0.0, 1 - busy / wall)


def waits(bench: Bench, step: Callable[[], object]) -> list[str]:
    """Where a step waits for the GPU: file, line and how often; [] on a CPU, where nothing does."""
    if bench.device.type != "cuda":
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    named = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message).lower())
    return [f"{place} x {count}" for place, count in named.most_common()]


def loader_speed(bench: Bench) -> dict:
    """Images per second of the loader alone, forked and pinned as in a run."""
    trainer = bench.trainer("loader", num_workers=2 if bench.tiny else min(12, os.cpu_count() or 1))
    began, images, rounds = time.perf_counter(), 0, 3
    for epoch in range(rounds):
        trainer.loop.epoch = epoch % 2
        images += sum(len(batch[0]) for batch in trainer.batches())
    seconds = time.perf_counter() - began
    trainer.folder.close()
    return {
        "what": f"loader, {trainer.config.num_workers} processes (their start included)",
        "images/s": images / seconds,
    }


def mae_speed(bench: Bench) -> dict:
    """One row: a MAE step's milliseconds and images per second; says that it is left out where lightly is missing."""
    if importlib.util.find_spec("lightly") is None:
        return {"what": "step of MAE", "left out": "lightly is not installed"}
    side = 32 if bench.tiny else 224
    trainer = bench.trainer(
        "mae",
        method="mae",
        precision="bfloat16",
        batch_size=bench.batches[0],
        encoder={"name": "vit_tiny" if bench.tiny else "vit_base", "patch": 8 if bench.tiny else 16},
        mae={"crops": {"size": side}}
        | ({"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2} if bench.tiny else {}),
        data={
            "size": 48 if bench.tiny else 224,
            "root": str(bench.folder / "images"),
            "cache": str(bench.folder / "cache"),
        },
        stages=[{"name": "coarse", "epochs": 1, "learning_rate": 1e-3, "data": [{"path": "one"}]}],
    )
    batch = trainer.training[0].batch(np.arange(bench.batches[0]))
    trainer.update(batch)
    seconds = bench.seconds(lambda: trainer.update(batch), bench.steps)
    speeds = {
        "what": f"step of MAE, {trainer.config.encoder.name}, {bench.batches[0]} crops of {side} px",
        "ms": 1e3 * seconds,
        "images/s": bench.batches[0] / seconds,
        "share of peak": trainer.flops / seconds / bench.peak if bench.peak else None,
        "waits": waits(bench, lambda: trainer.update(batch)),
    }
    trainer.folder.close()
    return speeds


def cyclegan_speed(bench: Bench) -> dict:
    """One row: a CycleGAN step's milliseconds, images per second and waits; says that it is left out where a package is missing."""
    missing = [name for name in ("monai", "skimage", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        return {"what": "step of CycleGAN", "left out": f"{', '.join(missing)} is not installed"}
    from vfm4us.runtime.run import RunFolder
    from vfm4us.tasks.cyclegan import CycleGAN, GeneratorConfig, TrainingConfig

    networks = GeneratorConfig(width=4, blocks=1, discriminator_width=4) if bench.tiny else GeneratorConfig()
    side, batch_size = (64, 1) if bench.tiny else (256, 4)
    folder = RunFolder(bench.folder / "logs" / "cyclegan", networks)
    gan = CycleGAN(
        encoders.Encoder(encoders.EncoderSpec(in_channels=1)),
        networks,
        TrainingConfig(crop=side, batch_size=batch_size, won=0.0),
        folder,
        bench.device,
        0,
        precision="bfloat16",
    )
    low, high = (torch.rand(batch_size, 1, side, side, generator=rng.generator(i)).to(bench.device) for i in (6, 7))
    seconds = bench.seconds(lambda: gan._update(low, high, rng.generator(8), 0), bench.steps)
    speeds = {
        "what": f"step of CycleGAN, {batch_size} crops of {side} px",
        "ms": 1e3 * seconds,
        "images/s": 2 * batch_size / seconds,
        "waits": waits(bench, lambda: gan._update(low, high, rng.generator(8), 0)),
    }
    folder.close()
    return speeds


# ---- all of it ------------------------------------------------------------------------------------------------------

CHECKS = [
    patches_are_those_of_the_cpu,
    coding_rate_is_that_of_float64,
    tf32_stays_out_of_the_objective,
    bfloat16_loss_is_near_float32,
    the_attack_stays_within_epsilon,
    a_run_in_two_parts_is_the_run_in_one,
    sigterm_is_answered_and_gone_on_from,
]


def run(bench: Bench, minutes: float) -> dict:
    """Every check and every measurement, the most telling first, for as long as there is time."""
    began = time.monotonic()
    result: dict = {
        "device": devices.device_name(),
        "torch": torch.__version__,
        "tiny": bench.tiny,
        "checks": [],
        "speed": [],
    }

    def due(name: str, kind: str, function: Callable[[], object]) -> None:
        at = time.monotonic()
        entry: dict = {"name": name}
        if at - began > 60 * minutes - 20:
            entry["left out"] = "no time was left"
        else:
            try:
                answer = function()
                entry |= answer if isinstance(answer, dict) else {"passed": True, "detail": answer}
            except Failed as failed:
                entry |= {"passed": False, "detail": str(failed)}
            except Exception:  # what is broken is reported as such, and the rest is still worth knowing
                entry |= {"passed": False, "detail": traceback.format_exc(limit=-3)}
        entry["seconds"] = round(time.monotonic() - at, 1)
        result[kind].append(entry)
        print(f"{'FAILED ' if entry.get('passed') is False else ''}{json.dumps(entry)}", flush=True)

    due("images", "checks", bench.make_images)
    for check in CHECKS:
        due(check.__name__.replace("_", " "), "checks", lambda check=check: check(bench))
    due("peak", "speed", lambda: peak(bench))
    for batch_size in bench.batches:
        for variant in VARIANTS:
            due("step", "speed", lambda b=batch_size, v=variant: step_speed(bench, b, v))
    due("loader", "speed", lambda: loader_speed(bench))
    due("MAE", "speed", lambda: mae_speed(bench))
    due("CycleGAN", "speed", lambda: cyclegan_speed(bench))
    due("compiled is as it is not", "checks", lambda: compiled_is_as_it_is_not(bench))
    result["seconds"] = round(time.monotonic() - began, 1)
    return result


def _cell(name: str, value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %" if "share" in name else f"{value:,.1f}"


def markdown(result: dict) -> str:
    """A table of the checks and one of the speeds."""
    lines = [
        f"{result['device']}, torch {result['torch']}, {result['seconds']:.0f} s",
        "",
        "| check | | |",
        "| --- | --- | --- |",
    ]
    for entry in result["checks"]:
        verdict = "passed" if entry.get("passed") else "FAILED" if entry.get("passed") is False else "left out"
        detail = str(entry.get("detail", entry.get("left out"))).strip().splitlines()[-1]
        lines.append(f"| {entry['name']} | {verdict} | {detail} |")
    columns = ["ms", "patches/s", "images/s", "TFLOP/s", "share of peak", "idle share", "peak memory, GB"]
    lines += [
        "",
        "| | " + " | ".join(columns) + " | waits for the GPU |",
        "| --- |" + " ---: |" * len(columns) + " --- |",
    ]
    for entry in result["speed"]:
        cells = [entry.get(column) for column in columns]
        shown = [_cell(name, value) for name, value in zip(columns, cells, strict=True)]
        last = entry.get("left out") or (
            "FAILED" if entry.get("passed") is False else ", ".join(entry.get("waits", [])) or "-"
        )
        lines.append(f"| {entry.get('what', entry['name'])} | " + " | ".join(shown) + f" | {last} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the checks and measurements, write gpu_check.json and gpu_check.md to --out, and return 1 where any of them failed."""
    parser = Parser(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, cpu")
    parser.add_argument("--tiny", action="store_true", help="sizes at which nothing is measured that counts, for a CPU")
    parser.add_argument("--minutes", type=float, default=8.0, help="at most (default 8)")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu_check"), help="folder for the results (default gpu_check)"
    )
    arguments = parser.parse_args()
    work = arguments.out / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    bench = Bench(devices.choose_device(arguments.device), arguments.tiny, work.resolve())
    result = run(bench, arguments.minutes)
    (arguments.out / "gpu_check.json").write_text(json.dumps(result, indent=1))
    (arguments.out / "gpu_check.md").write_text(markdown(result))
    shutil.rmtree(work)
    failed = [entry["name"] for kind in ("checks", "speed") for entry in result[kind] if entry.get("passed") is False]
    print(f"\n{markdown(result)}\nwritten to {arguments.out}/gpu_check.json and gpu_check.md")
    if failed:
        print(f"error: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
