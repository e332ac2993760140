"""Write an encoder in the form another library reads, read it back with that library, and compare the features.

    python scripts/export_encoder.py FILE --to torchvision|timm|smp|safetensors|onnx|torchscript
        [--out PATH] [--channels 3] [--size 224] [--prefix P] [--heads N] [--half]

FILE is anything vfm4us.load_encoder reads, a run folder too. Prints how to load the result and the largest difference of the
features of four random images; above 1e-5 (ONNX: 1e-4) of their size the export is removed and the command fails.
torchvision, timm and smp files hold the network alone: normalise images yourself, with the mean and deviation that are printed.
ONNX and TorchScript programs take images in [0, 1] and normalise them inside.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import vfm4us
from vfm4us.command_line import Parser
from vfm4us.lazy import Lazy
from vfm4us.runtime.files import unfinished
from vfm4us.runtime.signals import exit_code

if TYPE_CHECKING:
    from torch import Tensor

    from vfm4us.encoders import Encoder

torch, checkpoints, encoders = Lazy("torch"), Lazy("vfm4us.checkpoints"), Lazy("vfm4us.encoders")

ENDINGS = {
    "torchvision": ".pth",
    "timm": ".pth",
    "smp": ".pth",
    "safetensors": ".safetensors",
    "onnx": ".onnx",
    "torchscript": ".ts",
}


def main() -> int:
    """Export one encoder, compare its features with ours, and print how to load the file.

    Returns 0; 1 where the features differ, with the file removed; 2 where a package is missing.
    """
    parser = Parser(__doc__)
    parser.add_argument("file", help="checkpoint, run folder or open")
    parser.add_argument("--to", choices=list(ENDINGS), required=True)
    parser.add_argument(
        "--out", type=Path, help="default: FILE's name with -TO and the usual ending, in the working directory"
    )
    parser.add_argument("--channels", type=int, choices=[1, 3], default=3, help="of the input of ONNX and TorchScript")
    parser.add_argument("--prefix", help="what stands before the encoder's keys, where FILE holds several encoders")
    parser.add_argument("--heads", type=int, help="attention heads of a ViT, where nothing in FILE tells how many")
    parser.add_argument(
        "--half", action="store_true", help="safetensors in half the size: kernels in float16, all else in float32"
    )
    parser.add_argument(
        "--size", type=int, default=0, help="side of the compared images, px (default: 224, or a BEiT's own)"
    )
    arguments = parser.parse_args()
    if arguments.half and arguments.to != "safetensors":
        parser.error("--half is for --to safetensors")
    to, out = arguments.to, arguments.out or Path(f"{Path(arguments.file).stem}-{arguments.to}{ENDINGS[arguments.to]}")
    try:
        program = to in ("onnx", "torchscript")
        encoder = vfm4us.load_encoder(
            arguments.file,
            in_channels=arguments.channels if program else 3,
            prefix=arguments.prefix,
            heads=arguments.heads,
        )
        print(encoder.report)
        size = arguments.size or (224 if encoder.any_size else encoder.spec.image)
        images = torch.rand(4, encoder.spec.in_channels, size, size, generator=torch.Generator().manual_seed(0))
        out.parent.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            if arguments.half:
                print(round_kernels(encoder, images))
            ours = encoder(images)
            if arguments.half:
                theirs, how = to_safetensors(encoder, images, out, half=True)
            else:
                theirs, how = EXPORTS[to](encoder, images, out)
    except ImportError as error:
        print(
            f"error: {to} needs a package that is not installed ({error.name}): pip install -e '.[export]'",
            file=sys.stderr,
        )
        return 2
    difference, largest = (ours - theirs).abs().max().item(), ours.abs().max().item()
    allowed = (1e-4 if to == "onnx" else 1e-5) * max(1.0, largest)
    print(f"largest difference of the features: {difference:.1e} (features up to {largest:.2f}, allowed {allowed:.1e})")
    if not difference <= allowed:
        out.unlink(missing_ok=True)
        print(f"error: the features differ, so {out} was removed", file=sys.stderr)
        return 1
    print(f"wrote {out}, {out.stat().st_size / 1e6:.1f} MB, sha256 {file_sha256(out)}. Load it with:\n\n{how}\n")
    if not program:
        print(
            f"Its input: images in [0, 1], minus {encoder.spec.mean}, divided by {encoder.spec.std}, on every channel."
        )
    return 0


def to_torchvision(encoder: Encoder, images: Tensor, out: Path) -> tuple[Tensor, str]:
    """Save for torchvision and read back with it: features (N, D) of the images, and the code that loads the file."""
    from torchvision.models import get_model

    name = _torchvision_name(encoder, "torchvision")
    checkpoints.save(out, encoder.published_state())
    model = get_model(name)
    model.fc = torch.nn.Identity()
    model.load_state_dict(torch.load(out, weights_only=True))
    return model.eval()(encoder.normalize(images)), (
        f"model = torchvision.models.{name}()\nmodel.fc = torch.nn.Identity()\n"
        f'model.load_state_dict(torch.load("{out}", weights_only=True))'
    )


def to_timm(encoder: Encoder, images: Tensor, out: Path) -> tuple[Tensor, str]:
    """timm's loader wants a classifier: zeros, for the 1,000 classes it makes by default."""
    import timm

    spec, head = encoder.spec, encoder.head
    name, options = encoder.timm_model()
    ours = encoder.published_state()
    zeros = {f"{head}.weight": torch.zeros(1000, encoder.width), f"{head}.bias": torch.zeros(1000)}
    try:
        wanted = {k: tuple(v.shape) for k, v in timm.create_model(name, **options).state_dict().items()}
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"timm has no model {name}, so this {spec.name} cannot be exported to it") from error
    if spec.heads or wanted != {k: tuple(v.shape) for k, v in (ours | zeros).items()}:
        raise ValueError(f"timm's {name} differs from this {spec.name} ({spec}): use --to safetensors")
    checkpoints.save(out, ours | zeros)
    model = timm.create_model(name, checkpoint_path=str(out), **options)
    model.reset_classifier(0)
    words = "".join(f", {k}={v}" for k, v in options.items())
    return model.eval()(encoder.normalize(images)), (
        f'model = timm.create_model("{name}", checkpoint_path="{out}"{words})   # its classifier is zeros\n'
        f"model.reset_classifier(0)                                             # features"
    )


def to_smp(encoder: Encoder, images: Tensor, out: Path) -> tuple[Tensor, str]:
    """Save for segmentation_models_pytorch and read back with it: features (N, D) of the images, and the code that loads the file.

    Raises AssertionError where one of its feature maps differs from ours.
    """
    import segmentation_models_pytorch as smp

    name = _torchvision_name(encoder, "smp")
    checkpoints.save(out, encoder.published_state())
    model = smp.Unet(name, encoder_weights=None)
    model.encoder.load_state_dict(torch.load(out, weights_only=True), strict=True)
    model.eval()
    maps = model.encoder(encoder.normalize(images))[1:]
    for mine, theirs in zip(encoder.pyramid(images), maps, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    return maps[-1].mean((2, 3)), (
        f'model = segmentation_models_pytorch.Unet("{name}", encoder_weights=None)\n'
        f'model.encoder.load_state_dict(torch.load("{out}", weights_only=True), strict=True)'
    )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def round_kernels(encoder: Encoder, images: Tensor) -> str:
    """Round every tensor but the vectors (biases, batch norm) to float16, in place; what that does to the features, in words."""
    before = encoder(images)
    for name, parameter in encoder.named_parameters():
        if parameter.ndim > 1:
            rounded = parameter.half().float()
            if not rounded.isfinite().all():
                raise ValueError(f"{name} holds numbers beyond float16: leave out --half")
            parameter.copy_(rounded)
    after = encoder(images)
    cosine = torch.nn.functional.cosine_similarity(before, after).min().item()
    apart = (before - after).abs().max().item()
    return f"kernels in float16: features differ by at most {apart:.1e}, cosine at least {cosine:.6f}"


def to_safetensors(encoder: Encoder, images: Tensor, out: Path, half: bool = False) -> tuple[Tensor, str]:
    """Save as safetensors and read back: features (N, D) of the images, and the code that loads the file.

    With `half`, kernels are stored in float16. Raises AssertionError where `load_encoder` reads the file otherwise.
    """
    from safetensors.torch import load_file, save_file

    state = encoder.published_state()
    if half:
        state = {k: v.half() if v.ndim > 1 and v.is_floating_point() else v for k, v in state.items()}
    with unfinished(out) as path:
        save_file(state, path, metadata={"format": "pt", "encoder": json.dumps(encoder.spec_dict())})
    again = encoders.Encoder(encoder.spec)
    again.load_published_state(load_file(out))
    mine = vfm4us.load_encoder(out)
    torch.testing.assert_close(mine(images), again.eval()(images))
    return again(images), f'encoder = vfm4us.load_encoder("{out}")\ntensors = safetensors.torch.load_file("{out}")'


def to_onnx(encoder: Encoder, images: Tensor, out: Path) -> tuple[Tensor, str]:
    """Save as an ONNX program and run it in onnxruntime: features (N, D) of the images, and the code that loads the file."""
    import onnxruntime
    import onnxscript  # noqa: F401  torch's exporter needs it

    batch = torch.export.Dim("batch")
    shapes = {0: batch}
    if not encoder.has_tokens:
        shapes |= {2: torch.export.Dim("height", min=32), 3: torch.export.Dim("width", min=32)}
    program = torch.onnx.export(
        encoder.program(),
        (images[:2],),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes={"images": shapes},
    )
    program.save(str(out))
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), (
        f'session = onnxruntime.InferenceSession("{out}")\n'
        f'features = session.run(None, {{"images": images}})[0]     # float32 (N, {encoder.spec.in_channels}, H, W) in [0, 1]'
    )


def to_torchscript(encoder: Encoder, images: Tensor, out: Path) -> tuple[Tensor, str]:
    """Save as a TorchScript program and run it: features (N, D) of the images, and the code that loads the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        torch.jit.trace(encoder.program(), images[:2], check_trace=False).save(str(out))
        program = torch.jit.load(str(out))
    return program(images), (
        f'encoder = torch.jit.load("{out}")\n'
        f"features = encoder(images)     # float32 (N, {encoder.spec.in_channels}, H, W) in [0, 1]"
    )


def _torchvision_name(encoder: Encoder, library: str) -> str:
    name = encoder.torchvision_name(encoder.spec.name)
    if name is None:
        raise ValueError(f"{library} has no encoder for a {encoder.spec.name}: use --to timm or --to safetensors")
    return name


EXPORTS = {
    "torchvision": to_torchvision,
    "timm": to_timm,
    "smp": to_smp,
    "safetensors": to_safetensors,
    "onnx": to_onnx,
    "torchscript": to_torchscript,
}

if __name__ == "__main__":
    sys.exit(exit_code(main))
