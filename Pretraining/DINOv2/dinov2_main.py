"""Pretrain DINOv2 on ultrasound, coarse to fine, on the same images as Pretraining/US-SSL/adv_main.py.

    python Pretraining/DINOv2/dinov2_main.py                                     built-in synthetic ultrasound, a minute on a CPU
    python Pretraining/DINOv2/dinov2_main.py --config configs/pretraining/dinov2.yaml
    python Pretraining/DINOv2/dinov2_main.py --config configs/pretraining/small/dinov2.yaml data.root=DIR
    torchrun --nproc_per_node=8 Pretraining/DINOv2/dinov2_main.py --config ...

Needs `pip install -e .[baselines]`. Any key below can follow as section.key=value; those of the method are under dinov2.
The run is written to logs/<name>; the same command continues it.
"""

import sys
from pathlib import Path

from vfm4us import config
from vfm4us.pretraining.settings import PretrainingConfig
from vfm4us.runtime.signals import exit_code

METHOD = "dinov2"
BUILT_IN = Path("configs/smoke/dinov2.yaml")
SAID = (
    f"No --config: pretraining on built-in synthetic ultrasound ({BUILT_IN}).\n"
    "For real data: --config configs/pretraining/dinov2.yaml, or configs/pretraining/small/dinov2.yaml for a CPU."
)


def main() -> None:
    """Read the command line and the config, pretrain DINOv2 or go on where this run stopped, and print what it came to.

    Raises ValueError for a config that cannot be run and Stopped where a signal ends the run.
    """
    settings, _ = config.from_command_line(PretrainingConfig, __doc__, BUILT_IN, SAID)
    from vfm4us.pretraining.trainer import pretrain, print_result  # seconds that --help can do without

    print_result(pretrain(settings, METHOD), settings)


if __name__ == "__main__":
    sys.exit(exit_code(main))
