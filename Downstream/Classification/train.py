"""Train and test a classifier on an encoder: several seeds, one table with intervals.

    python Downstream/Classification/train.py                                                  built-in synthetic ultrasound
    python Downstream/Classification/train.py --config configs/classification/busi.yaml data.path=DIR encoder.weights=FILE
    python Downstream/Classification/train.py data.path=DIR name=mine                          any class folders or CSV manifest

Any key below can follow as section.key=value. Each seed's run lies in logs/<name>/seed-<n>: metrics.json, predictions.csv,
classifier.pt, pictures; the table of all in logs/<name>. The same command continues, and does not repeat what is finished.
"""

import sys

from vfm4us.runtime.signals import exit_code
from vfm4us.tasks.command_line import train

if __name__ == "__main__":
    sys.exit(exit_code(lambda: train("classification", __doc__)))
