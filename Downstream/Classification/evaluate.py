"""Use a trained classifier: metrics where there are labels, predictions.csv for any folder of images.

    python Downstream/Classification/evaluate.py CHECKPOINT DATA [--split all|train|val|test] [--out DIR] [--merge 'old > new' ...]

CHECKPOINT is classifier.pt or a run folder of train.py; DATA a folder of images, class folders or a CSV manifest. Probabilities are
calibrated. Images that cannot be read are listed, not skipped in silence. Writes predictions.csv and, with labels, metrics.json.
"""

import sys

from vfm4us.runtime.signals import exit_code
from vfm4us.tasks.command_line import evaluate

if __name__ == "__main__":
    sys.exit(exit_code(lambda: evaluate("classification", __doc__)))
