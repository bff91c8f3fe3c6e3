#!/usr/bin/env bash
# A base model on records of Lost in the Middle and LongEval, with a window of 2,048 declared: how
# unlikely right answers are after the whole text, by plain attention, SelfExtend and YaRN, and after
# what BM25 brings. docs/methods.md shows it of Gemma 3 270M. Started again, it continues.
#
#   bash benchmarks/gemma.sh DATA=FOLDER MODEL=FOLDER
#
# DATA   has qa_data/ and kv_retrieval_data/ of Lost in the Middle, and lines/testcases/ of LongEval,
#        or folders that have them
# MODEL  hub id or folder, google/gemma-3-270m by default
# OUT    folder for results, runs/gemma by default
# QUESTIONS, LINES, KEYS  documents of each kind: 5, 2 and 1 by default, as the page has them
# PYTHON  interpreter, python by default
set -euo pipefail

for argument in "$@"; do
  if [[ ! $argument =~ ^(DATA|MODEL|OUT|QUESTIONS|LINES|KEYS|PYTHON)= ]]; then
    printf 'gemma.sh: %s is no variable of this script; see its first lines\n' "$argument" >&2
    exit 2
  fi
  export "${argument?}"
done

out=${OUT:-runs/gemma}
measure() { # folder, documents, methods, task and its options
  "${PYTHON:-python}" -m selfextend_rag.evals --data "${DATA:?name the folder of records}" \
    --model "${MODEL:-google/gemma-3-270m}" --pretraining-window 2048 --dtype bfloat16 \
    --methods "$3" --inputs whole --likelihood --answer-tokens 8 --no-plot \
    --out "$out/$1" --limit "$2" "${@:4}"
}

measure questions "${QUESTIONS:-5}" plain,selfextend,leaky_rerope,yarn,bm25 mdqa/20/gold_at_9
measure lines "${LINES:-2}" plain,selfextend,yarn,bm25 longeval/lines/200
measure keys "${KEYS:-1}" plain,selfextend,yarn,bm25 kv/75/as_given --passage-words 20
"${PYTHON:-python}" "$(dirname "${BASH_SOURCE[0]}")/eval_table.py" \
  "$out"/{questions,lines,keys}/summary.json
