"""Train and test a segmentation model on an encoder: several seeds, one table with intervals.

    python Downstream/Segmentation/train.py                                                   built-in synthetic ultrasound
    python Downstream/Segmentation/train.py --config configs/segmentation/busi.yaml data.path=DIR encoder.weights=FILE
    python Downstream/Segmentation/train.py data.path=DIR name=mine                           images/ with masks/, or a CSV manifest

Any key below can follow as section.key=value. Each seed's run lies in logs/<name>/seed-<n>: metrics.json, per_image.csv,
predicted/ (masks at the original size of each image), segmenter.pt, pictures; the table of all in logs/<name>. The same command
continues, and does not repeat what is finished.
"""

import sys
from pathlib import Path

from vfm4us import config
from vfm4us.runtime.signals import exit_code
from vfm4us.tasks import base
from vfm4us.tasks.segmentation import SegmentationConfig, run_seeds

BUILT_IN = Path("configs/smoke/segmentation.yaml")


def main() -> None:
    said = f"No --config and no data.path: segmenting the lesions of built-in synthetic ultrasound ({BUILT_IN})."
    settings, built_in = config.from_command_line(SegmentationConfig, __doc__, BUILT_IN, said, unless="data.path")
    if built_in:
        from vfm4us.phantoms.folders import write_quickstart_phantoms

        write_quickstart_phantoms()
    result = run_seeds(settings)
    print(f"\n{base.table(result, len(settings.seeds))}\n\nwritten to {Path(settings.logs) / settings.name}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
