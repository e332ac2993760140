#!/usr/bin/env bash
# Checks form, types and behaviour in the active environment, or in .venv (made on first use). Arguments go to pytest; two
# processes by default: -n 0 for one, which debuggers need, and -m "not slow" for the quick tests.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/environment.sh"
cd "$root"
ruff check .
ruff format --check --quiet .
mypy
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} python -m pytest -n 2 --dist loadfile "$@"
