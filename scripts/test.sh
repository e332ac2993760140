#!/usr/bin/env bash
# Runs the tests in the active environment, or in .venv (made on first use). Arguments go to pytest.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/scripts/environment.sh"
cd "$root"
ruff check .
ruff format --check --quiet .
python -m pytest "$@"
