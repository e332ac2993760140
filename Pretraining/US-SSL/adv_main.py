"""Pretrain an encoder on ultrasound, coarse to fine.

    python Pretraining/US-SSL/adv_main.py                                   built-in synthetic ultrasound, minutes on a CPU
    python Pretraining/US-SSL/adv_main.py --config configs/pretraining/us510k.yaml
    python Pretraining/US-SSL/adv_main.py --config configs/pretraining/folder.yaml stages.0.data.0.path=DIR name=mine
    torchrun --nproc_per_node=8 Pretraining/US-SSL/adv_main.py --config ...

Any key below can follow as section.key=value. The run is written to logs/<name>; the same command continues it.
"""

import argparse
import os
import sys
from pathlib import Path

from vfm4us import config
from vfm4us.pretraining.stages import PretrainingConfig, Stopped, pretrain, summary

ROOT = Path(__file__).resolve().parents[2]
BUILT_IN = ROOT / "configs" / "smoke" / "pretraining.yaml"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="keys, defaults and meaning:\n" + config.describe(PretrainingConfig),
    )  # fmt: skip
    parser.add_argument("--config", type=Path, help="YAML file; without it, the built-in synthetic run")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    file = arguments.config or BUILT_IN
    if not arguments.config:
        print(
            "No --config: pretraining on built-in synthetic ultrasound (configs/smoke/pretraining.yaml).\n"
            "For real data: --config configs/pretraining/us510k.yaml, or configs/pretraining/folder.yaml for your own images."
        )
    elif not file.exists() and (ROOT / file).exists():
        file = ROOT / file  # a config of this repository, named from another working directory
    try:
        settings = config.load(PretrainingConfig, file, arguments.overrides)
        folder = pretrain(settings)
    except Stopped as stopped:
        print(stopped)
        return 128 + stopped.number
    except KeyboardInterrupt:
        print("left at once; the same command goes on from the last checkpoint, if there is one yet", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if int(os.environ.get("RANK", 0)) == 0 and (folder / "encoder.pt").is_file():
        print(f"\n{summary(folder, settings.encoder.weights or 'random')}\n")
        print(f"encoder   {folder / 'encoder.pt'}")
        print(f"pictures  {', '.join(str(p) for p in sorted(folder.glob('*.png')))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
