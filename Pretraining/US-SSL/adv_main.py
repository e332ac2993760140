"""Pretrain an encoder on ultrasound, coarse to fine.

    python Pretraining/US-SSL/adv_main.py                                   built-in synthetic ultrasound, minutes on a CPU
    python Pretraining/US-SSL/adv_main.py --config configs/pretraining/us510k.yaml
    python Pretraining/US-SSL/adv_main.py --config configs/pretraining/folder.yaml stages.0.data.0.path=DIR name=mine
    torchrun --nproc_per_node=8 Pretraining/US-SSL/adv_main.py --config ...

Any key below can follow as section.key=value; `method` chooses between this project's method and those it is compared with.
The run is written to logs/<name>; the same command continues it.
"""

import sys
from pathlib import Path

from vfm4us import config
from vfm4us.pretraining.settings import PretrainingConfig
from vfm4us.runtime.signals import exit_code

BUILT_IN = Path("configs/smoke/pretraining.yaml")
SAID = (
    f"No --config: pretraining on built-in synthetic ultrasound ({BUILT_IN}).\n"
    "For real data: --config configs/pretraining/us510k.yaml, or configs/pretraining/folder.yaml for your own images."
)


def main() -> None:
    """Read the command line and the config, pretrain or go on where this run stopped, and print what it came to.

    Raises ValueError for a config that cannot be run and Stopped where a signal ends the run.
    """
    settings, _ = config.from_command_line(PretrainingConfig, __doc__, BUILT_IN, SAID)
    from vfm4us.pretraining.trainer import pretrain, print_result  # seconds that --help can do without

    print_result(pretrain(settings), settings)


if __name__ == "__main__":
    sys.exit(exit_code(main))
