"""Train and test an enhancer, low-quality ultrasound into high-quality, on an encoder: several seeds, one table with intervals.

    python Downstream/Generation/train.py                                                   built-in synthetic ultrasound
    python Downstream/Generation/train.py --config configs/generation/usenhance_thyroid.yaml data.path=DIR encoder.weights=FILE
    python Downstream/Generation/train.py data.path=DIR data.degrade=true name=mine         any folder of good images
    python Downstream/Generation/train.py data.path=DIR method=supervised name=paired       with pairs: the ceiling

Any key below can follow as section.key=value. Each seed's run lies in logs/<name>/seed-<n>: metrics.json, per_image.csv,
enhanced/ (test images at their original size), grids/ (real, fake, reconstructed, each epoch), generator.pt, pictures; the table of
all in logs/<name>. The same command continues, and does not repeat what is finished.
"""

import sys

from vfm4us.runtime.signals import exit_code
from vfm4us.tasks.command_line import train

if __name__ == "__main__":
    sys.exit(exit_code(lambda: train("generation", __doc__)))
