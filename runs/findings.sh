#!/usr/bin/env bash
# The five recipes and the demo's experiment on the embedded family, and docs/findings.md from their tables.
# Usage: runs/findings.sh [OUT]      (about ten minutes on two cores; repeat it to go on where it stopped)
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
out=${1:-findings-out}
mkdir -p "$out"
pair=(family:instruct family:reasoning)
sibling=(--sibling family:instruct-sibling)
sweep() { deltalens sweep --recipe "$@" --quiet > /dev/null; }

began=$SECONDS
sweep lox-reasoning "${pair[@]}" "${sibling[@]}" --further family:safe --out "$out/lox-reasoning"
sweep spectrum-behaviour "${pair[@]}" "${sibling[@]}" --out "$out/spectrum-behaviour"
sweep direct-pair "${pair[@]}" --parent family:base --n 20 --out "$out/direct-pair"
sweep contrast "${pair[@]}" "${sibling[@]}" --out "$out/contrast"
sweep negate "${pair[@]}" "${sibling[@]}" --out "$out/negate"
echo "five recipes: $((SECONDS - began)) s" >&2
sweep negate family:base family:reasoning-rl --out "$out/negate-rl"
sweep negate family:base family:reasoning-from-base --out "$out/negate-from-base"
deltalens demo --out "$out/experiment" --quiet > /dev/null
python runs/findings.py "$out" > docs/findings.md
