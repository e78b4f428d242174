#!/usr/bin/env bash
# The main job, with nothing but Python 3.11 and git: build a small base model, sample pairs from it,
# align it with DPO and with RPO, and print before and after.
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env report
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
.venv/bin/align train recipes/dpo/tiny.yaml --run outputs/quickstart/dpo "$@"
.venv/bin/align train recipes/rpo/tiny.yaml --run outputs/quickstart/rpo "$@"
.venv/bin/align report outputs/quickstart/dpo outputs/quickstart/rpo --picture outputs/quickstart/comparison.png
echo "Models, metrics, curves and the picture are in outputs/quickstart."
