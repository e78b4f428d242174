#!/usr/bin/env bash
# Lint, types, import directions, and every test that needs no GPU and no network.
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env dev
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check .
pyright
lint-imports
pytest -n "${TEST_WORKERS:-2}" "$@"
