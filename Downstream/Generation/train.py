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

from vfm4us import config, run
from vfm4us.tasks import protocol
from vfm4us.tasks.generation import GenerationConfig, run_seeds, verdict

BUILT_IN = Path("configs/smoke/generation.yaml")


def main() -> None:
    arguments = config.parser(__doc__, GenerationConfig).parse_args()
    file = arguments.config
    if file is None and not any(item.startswith("data.path=") for item in arguments.overrides):
        from vfm4us.data.phantoms import write_phantoms

        file = BUILT_IN
        print(f"No --config and no data.path: enhancing built-in synthetic ultrasound ({file}).")
        write_phantoms(Path("data/phantoms-600-64"), 600, 64)
    settings = config.load(GenerationConfig, file, arguments.overrides)
    result = run_seeds(settings)
    print(f"\n{protocol.table(result, len(settings.seeds))}\n\n{verdict(result)}\nwritten to {Path(settings.logs) / settings.name}")


if __name__ == "__main__":
    sys.exit(run.exit_code(main))
