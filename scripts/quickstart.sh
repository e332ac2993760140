#!/usr/bin/env bash
# From nothing to a pretrained encoder: environment, install, and the built-in coarse-to-fine run on synthetic ultrasound.
# Stop it whenever you like; the same command goes on. Arguments are config keys, such as seed=1 name=again.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/environment.sh"
cd "$root"
exec python Pretraining/US-SSL/adv_main.py "$@"
