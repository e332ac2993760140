"""What is in these checkpoints, and what would load into what? Nothing in them is executed.

    python scripts/inspect_checkpoint.py FILE... [--keys] [--heads N]

One block per file: layout, encoder, stage and epoch, tensors, NaNs, size and sha256, and the models it fills. A file with
several encoders gets a line for each, with the `prefix` that vfm4us.load_encoder needs. --keys lists all tensors with their
shapes. The exit status is 1 if a file loads into nothing.
"""

import hashlib
import sys
from pathlib import Path

import vfm4us
from vfm4us.command_line import Parser
from vfm4us.lazy import Lazy

checkpoints = Lazy("vfm4us.checkpoints")


def main() -> int:
    """Print one block per file and return 0, or 1 where one of the files does not load as an encoder."""
    parser = Parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="checkpoints or run folders")
    parser.add_argument("--keys", action="store_true", help="list every tensor")
    parser.add_argument("--heads", type=int, help="attention heads of a ViT, where nothing in the file tells how many")
    arguments = parser.parse_args()
    return 0 if all([inspect(path, arguments.keys, arguments.heads) for path in arguments.files]) else 1


def inspect(path: Path, keys: bool, heads: int | None = None) -> bool:
    """Print one file's block; whether it loads."""
    print(f"\n{path}")
    try:
        where, state = checkpoints.open_checkpoint(str(path))  # a released name too
    except (ValueError, OSError) as error:
        _row("refused", str(error).removeprefix(f"{path} is refused: "))
        return False
    place, endings = Path(where), (".safetensors", ".bin")
    for file in [place] if place.is_file() else sorted(p for p in place.iterdir() if p.suffix in endings):
        with open(file, "rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        _row(
            "size", f"{file.stat().st_size / 1e6:.1f} MB, sha256 {sha256}" + (f", {file.name}" if file != path else "")
        )
    flat = checkpoints.flatten(state)
    real = {k: v for k, v in flat.items() if v.is_floating_point() and "float4" not in str(v.dtype)}
    bad = [k for k, v in real.items() if not v.float().isfinite().all()]
    numbers = sum(v.numel() for v in flat.values())
    kinds = ", ".join(sorted({str(v.dtype).removeprefix("torch.") for v in flat.values()}))
    _row(
        "tensors",
        f"{len(flat)} ({numbers / 1e6:.1f} million numbers, {kinds}), with NaN or infinity: "
        + (f"{len(bad)}, e.g. {bad[0]}" if bad else "none"),
    )
    said = {k: state[k] for k in ("stage", "epoch", "step", "arch") if isinstance(state.get(k), int | str)}
    if said:
        _row("it says", ", ".join(f"{k} {v}" for k, v in said.items()))
    others = [str(k) for k, v in state.items() if not hasattr(v, "shape") and k not in said]
    if others:
        _row("top level", ", ".join(others[:12]))
    if keys:
        for key, value in flat.items():
            print(f"    {key} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}")
    roots = checkpoints.roots(flat)
    loads = False
    for root in roots or [None]:
        try:
            encoder = vfm4us.load_encoder(state, prefix=root, heads=heads)
        except ValueError as error:
            _row(f"prefix {root!r}" if root else "encoder", f"does not load: {error}")
            continue
        loads, spec = True, encoder.spec
        _row("encoder", f"{spec.name}, {encoder.width} features" + (f"; prefix={root!r}" if len(roots) > 1 else ""))
        _row("report", encoder.report)
        if published := encoder.torchvision_name(spec.name):
            _row(
                "loads into",
                f"vfm4us, torchvision {published}, timm {published}, smp Unet/DeepLabV3Plus({published!r}).encoder "
                f"(scripts/export_encoder.py)",
            )
        else:
            _row(
                "loads into",
                f"vfm4us, timm ({spec.name}, patch {spec.patch}, {spec.image} px; scripts/export_encoder.py)",
            )
    return loads


def _row(title: str, text) -> None:
    print(f"  {title:<12}{text}")


if __name__ == "__main__":
    sys.exit(main())
