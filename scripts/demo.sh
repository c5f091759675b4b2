#!/usr/bin/env bash
# The main job on this machine, from a model's name to generated text: plan, render, prepare, submit, a stop in the
# middle as a scheduler asks for one, resume, export. Expects `fullft-cluster` on PATH (`make demo` sees to that).
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${DEMO_RUNS_DIR:-runs/demo}
name=demo-$(date +%H%M%S)
job=(--config configs/jobs/tiny-local.yaml --data configs/sample/train.jsonl --runs-dir "$runs" --name "$name")
step() { printf '\n\033[1m== %s\033[0m\n' "$*" >&2; }
[ -t 2 ] || step() { printf '\n== %s\n' "$*" >&2; }

step "1/7 plan: what a 65B takes on A100s, and what this demo takes here"
fullft-cluster plan --model 65b
fullft-cluster plan --config configs/jobs/tiny-local.yaml --data configs/sample/train.jsonl

step "2/7 render: the script that would be started"
fullft-cluster render "${job[@]}"

step "3/7 prepare: what will be learnt, then tokenise and pack once"
fullft-cluster prepare --preview "${job[@]}"
fullft-cluster prepare "${job[@]}"

step "4/7 submit: two ZeRO-3 processes"
fullft-cluster submit "${job[@]}"

step "5/7 a scheduler's warning in the middle: checkpoint, stop, start again"
python3 scripts/demo_warn.py "$runs/$name" &
warner=$!
fullft-cluster status "$name" --runs-dir "$runs" --watch
wait "$warner"

step "6/7 the account of every attempt"
echo "$runs/$name/attempts.jsonl:" >&2
cat "$runs/$name/attempts.jsonl"

step "7/7 the export, by from_pretrained"
python scripts/demo_generate.py "$runs/$name/export"
printf '\nThe demo is done. Its run: %s (a toy of a million parameters is not expected to make sense).\n' "$runs/$name" >&2
