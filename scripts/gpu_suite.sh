#!/usr/bin/env bash
# The GPU hour in three calls of at most ten minutes each, on a bare machine:
#
#   bash scripts/gpu_suite.sh 1|2|3|all [--device cpu --tiny] [--only PART ...]
#
# Results: $OUT/call-N.json (by default outputs/gpu). Wheels in .wheels/ are used beside what is
# installed (trl, peft, accelerate, datasets, pydantic and what they need); nothing is downloaded. A part that fails, or lacks a package, is told and passed over.
set -uo pipefail
cd "$(dirname "$0")/.."
call=${1:?"which call: 1, 2, 3 or all"}
shift
out=${OUT:-outputs/gpu}
root=$PWD
python=$(command -v python || command -v python3)
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
export PYTHONPATH=$root:$root/eval:$root/data_pipelines:${PYTHONPATH:-}
if compgen -G ".wheels/*.whl" > /dev/null; then
  # Behind what is installed, so that a wheel never replaces the machine's torch.
  "$python" -m pip install --quiet --no-index --no-deps --target /tmp/align-wheels .wheels/*.whl
  export PYTHONPATH=$PYTHONPATH:/tmp/align-wheels
fi
[ "$call" = all ] && calls="1 2 3" || calls=$call
exec "$python" scripts/gpu/run.py --call $calls --out "$out" "$@"
