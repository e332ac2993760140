"""Train and test an enhancer, low-quality ultrasound into high-quality, on an encoder: several seeds, one table with intervals.

    python Downstream/Generation/train.py                                                   built-in synthetic ultrasound
    python Downstream/Generation/train.py --config configs/generation/usenhance_thyroid.yaml data.path=DIR encoder.weights=FILE
    python Downstream/Generation/train.py data.path=DIR data.degrade=true name=mine         any folder of good images

Any key below can follow as section.key=value. Each seed's run lies in logs/<name>/seed-<n>: metrics.json, per_image.csv,
enhanced/ (test images at their original size), grids/ (real, fake, reconstructed, each epoch), generator.pt, pictures; the table of
all in logs/<name>. The same command continues, and does not repeat what is finished.
"""

import sys
from pathlib import Path

from vfm4us import config
from vfm4us.runtime.signals import exit_code
from vfm4us.tasks import base
from vfm4us.tasks.generation import GenerationConfig, run_seeds, verdict

BUILT_IN = Path("configs/smoke/generation.yaml")


def main() -> None:
    said = f"No --config and no data.path: enhancing built-in synthetic ultrasound ({BUILT_IN})."
    settings, built_in = config.from_command_line(GenerationConfig, __doc__, BUILT_IN, said, unless="data.path")
    if built_in:
        from vfm4us.phantoms.folders import write_quickstart_phantoms

        write_quickstart_phantoms()
    result = run_seeds(settings)
    print(
        f"\n{base.table(result, len(settings.seeds))}\n\n{verdict(result)}\nwritten to {Path(settings.logs) / settings.name}"
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
