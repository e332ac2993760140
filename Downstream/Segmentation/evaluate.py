"""Use a trained segmentation model: masks and overlays of any folder of images, metrics where there are masks to compare with.

    python Downstream/Segmentation/evaluate.py CHECKPOINT DATA [--split all|train|val|test] [--out DIR] [--flips]

CHECKPOINT is segmenter.pt or a run folder of train.py; DATA a folder of images, of images/ and masks/, a CSV manifest or a
published dataset. Writes predicted/ (masks) and overlays/ at the original size of each image and, where there are masks to compare
with, metrics.json, per_image.csv and pictures. Images that cannot be read are listed, not skipped in silence.
"""

import sys

from vfm4us.runtime.signals import exit_code
from vfm4us.tasks.command_line import evaluate

if __name__ == "__main__":
    sys.exit(exit_code(lambda: evaluate("segmentation", __doc__)))
