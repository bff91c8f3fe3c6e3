#!/usr/bin/env bash
# The paper's table (arXiv 2401.01325) on one GPU: Llama-3-8B-Instruct, Llama-2-7b-chat,
# Mistral-7B-Instruct-v0.1 and Phi-2 on LongBench, L-Eval and pass keys, next to published figures.
#
#   bash benchmarks/paper.sh DATA=FOLDER
#   bash benchmarks/paper.sh DRY_RUN=1 MODELS=phi-2 TASKS=leval,longbench/qasper LIMIT=50
#
# Variables, as arguments or of the environment:
#
# DRY_RUN  1 prints the expected cost and the commands, and runs nothing
# DATA     folder with the files of LongBench, L-Eval and LongLM (pass keys), each in its own folder;
#          without it LongBench and L-Eval are looked for on the hub, and pass keys fail
# WEIGHTS  folder with the models' folders; the hub by default
# OUT      folder for results, runs/paper by default; started again, a run continues there
# MODELS, TASKS  names by space or comma; all by default. LIMIT  documents of each task
# DEVICE   cuda by default; cpu is of use for models of a few layers, to see that all is in place
# TFLOPS, MS_PER_TOKEN  speed that the expected hours are derived with
# PYTHON   interpreter, python by default
#
# Runs that fail are named at the end, with exit code 1; the others go on.
set -euo pipefail

for argument in "$@"; do
  if [[ ! $argument =~ ^(DRY_RUN|DATA|WEIGHTS|OUT|MODELS|TASKS|LIMIT|DEVICE|TFLOPS|MS_PER_TOKEN|PYTHON)= ]]; then
    printf 'paper.sh: %s is no variable of this script; see its first lines\n' "$argument" >&2
    exit 2
  fi
  export "${argument?}"
done

paper=("${PYTHON:-python}" "$(dirname "${BASH_SOURCE[0]}")/paper.py")
out=${OUT:-runs/paper}
failed=""

models=$("${paper[@]}" models)
for model in $models; do
  "${paper[@]}" cost "$model"
  commands=$("${paper[@]}" commands "$model")
  while IFS= read -r command; do
    printf '$ %s\n' "$command"
    if [ "${DRY_RUN:-0}" = 1 ]; then
      continue
    fi
    status=0
    bash -c "$command" </dev/null || status=$?
    if [ "$status" = 130 ]; then # Ctrl-C
      exit 130
    elif [ "$status" != 0 ]; then
      failed+="$command"$'\n'
    fi
  done <<<"$commands"
  if [ "${DRY_RUN:-0}" != 1 ]; then
    mkdir -p "$out"
    "${paper[@]}" table "$model" | tee "$out/$model.md"
  fi
done

if [ -n "$failed" ]; then
  printf 'failed:\n%s' "$failed" >&2
  exit 1
fi
