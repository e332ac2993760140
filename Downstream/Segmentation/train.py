"""Train and test a segmentation model on an encoder: several seeds, one table with intervals.

    python Downstream/Segmentation/train.py                                                   built-in synthetic ultrasound
    python Downstream/Segmentation/train.py --config configs/segmentation/busi.yaml data.path=DIR encoder.weights=FILE
    python Downstream/Segmentation/train.py data.path=DIR name=mine                           images/ with masks/, or a CSV manifest

Any key below can follow as section.key=value. Each seed's run lies in logs/<name>/seed-<n>: metrics.json, per_image.csv,
predicted/ (masks at the original size of each image), segmenter.pt, pictures; the table of all in logs/<name>. The same command
continues, and does not repeat what is finished.
"""

import sys

from vfm4us.runtime.signals import exit_code
from vfm4us.tasks.command_line import train

if __name__ == "__main__":
    sys.exit(exit_code(lambda: train("segmentation", __doc__)))
