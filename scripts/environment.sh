# Sourced by the other scripts: the active Python environment, or .venv here, with requirements.txt installed.
# Expects $root, the repository. Installs again only when the list of requirements has changed.
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
  if [ ! -x "$root/.venv/bin/python" ]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "error: Python 3.11 or newer is needed, python3 is $(python3 --version 2>&1)" >&2
      exit 1
    }
    echo "making $root/.venv"
    python3 -m venv "$root/.venv" || { rm -rf "$root/.venv"; exit 1; }
  fi
  source "$root/.venv/bin/activate"
fi
stamp="$(python -c 'import sys; print(sys.prefix)')/.vfm4us-installed"
wanted="$root $(cat "$root/pyproject.toml" "$root/requirements.txt" | cksum)"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
  echo "installing requirements.txt (a few minutes; PyTorch is large)"
  (cd "$root" && python -m pip install --quiet -r requirements.txt)
  echo "$wanted" > "$stamp"
fi
