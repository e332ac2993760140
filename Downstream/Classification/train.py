"""Train and test a classifier on an encoder: several seeds, one table with intervals.

    python Downstream/Classification/train.py                                                  built-in synthetic ultrasound
    python Downstream/Classification/train.py --config configs/classification/busi.yaml data.path=DIR encoder.weights=FILE
    python Downstream/Classification/train.py data.path=DIR name=mine                          any class folders or CSV manifest

Any key below can follow as section.key=value. Each seed's run lies in logs/<name>/seed-<n>: metrics.json, predictions.csv,
classifier.pt, pictures; the table of all in logs/<name>. The same command continues, and does not repeat what is finished.
"""

import argparse
import sys
from pathlib import Path

from vfm4us import config
from vfm4us.tasks.classification import ClassificationConfig, run_seeds, table

ROOT = Path(__file__).resolve().parents[2]
BUILT_IN = ROOT / "configs" / "smoke" / "classification.yaml"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="keys, defaults and meaning:\n" + config.describe(ClassificationConfig),
    )  # fmt: skip
    parser.add_argument("--config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    file = arguments.config
    try:
        if file is None and not any(item.startswith("data.path=") for item in arguments.overrides):
            from vfm4us.data.phantoms import write_phantoms

            print("No --config and no data.path: classifying the organs of built-in synthetic ultrasound "
                  "(configs/smoke/classification.yaml).")  # fmt: skip
            file = BUILT_IN
            write_phantoms(Path("data/phantoms-600-64"), 600, 64)
        elif file is not None and not file.exists() and (ROOT / file).exists():
            file = ROOT / file  # a config of this repository, named from another working directory
        settings = config.load(ClassificationConfig, file, arguments.overrides)
        result = run_seeds(settings)
    except KeyboardInterrupt:
        print("left at once; the same command goes on from the last checkpoint, if there is one yet", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if result is None:
        print("saved; the same command goes on from here")
        return 130
    print(f"\n{table(result, settings.seeds)}\n\nwritten to {Path(settings.logs) / settings.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
