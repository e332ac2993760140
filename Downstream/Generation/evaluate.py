"""Use a trained enhancer: better images of any folder, figures where there are high-quality images to compare with.

    python Downstream/Generation/evaluate.py CHECKPOINT DATA [--split all|train|val|test] [--out DIR]
        [--degrade mild|middle|strong|NUMBER] [--segmenter FILE] [--tile PX] [--reference DIR] [--kid-encoder FILE]

CHECKPOINT is generator.pt or a run folder of train.py; DATA a folder of images, of low_quality/ and high_quality/, a CSV manifest
(path, target) or a published dataset. Writes enhanced/ at the original size of each image and comparison.png; where there are
targets also metrics.json and per_image.csv, beside the untouched input and three
filters. --degrade takes the images for high quality and enhances
their degraded versions, so that any archive is a test. --segmenter reads every version of the images by a segmentation
model and compares with their masks. --reference is a set of high-quality images for KID. Images that cannot be
read are listed, not skipped in silence.
"""

import sys

from vfm4us.runtime.signals import exit_code
from vfm4us.tasks.command_line import evaluate

if __name__ == "__main__":
    sys.exit(exit_code(lambda: evaluate("generation", __doc__)))
