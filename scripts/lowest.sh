#!/usr/bin/env bash
# The quick tests with the lowest versions that pyproject.toml names, in an environment of its own: .venv-lowest, several GB.
# Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv-lowest/bin/python
[ -x "$python" ] || python3.11 -m venv .venv-lowest
echo "installing the lowest versions into .venv-lowest (several GB, a few minutes)"
"$python" -m pip install --quiet uv
"$python" -m uv pip install --quiet --python "$python" --resolution lowest-direct -r pyproject.toml --all-extras
"$python" -m uv pip install --quiet --python "$python" --no-deps -e .
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PATH="$PWD/.venv-lowest/bin:$PATH" "$python" -m pytest -n 2 --dist loadfile -m "not slow" "$@"
