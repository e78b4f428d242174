#!/usr/bin/env bash
# Makes .venv beside this folder when it is absent or was made for other requirements. Sourced by
# quickstart.sh (set-up "run") and test.sh (set-up "dev"); prints nothing when there is nothing to do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

setup_env() { # $1: the extras to install
  local python=${PYTHON:-} candidate wanted stamp=".venv/installed-${1//,/-}"
  if [ ! -x .venv/bin/python ]; then
    for candidate in ${python:-python3.11 python3.12 python3.13 python3}; do
      if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
      fi
    done
    [ -n "$python" ] || { echo "Python 3.11 or newer is needed and was not found; set PYTHON=/path/to/python3.11." >&2; exit 4; }
    echo "Making .venv with $("$python" --version)"
    "$python" -m venv .venv
  fi
  wanted=$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing align-toolkit[$1] with constraints.txt (minutes, once)"
    # torch first: a later resolver step then finds its pinned build already there.
    .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch
    .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[$1]"
    echo "$wanted" > "$stamp"
  fi
}
