#!/usr/bin/env bash
# Phases 2 and 3 on the embedded family: a direction from activations, what it overlaps with, what it reads, what it causes.
# Usage: runs/directions.sh [OUT]
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
out=${1:-directions-out}
mkdir -p "$out"
bank=$out/thinking.safetensors
[ -e "$bank" ] || deltalens directions activations family:reasoning --against family:instruct --out "$bank"
deltalens measure family:instruct family:reasoning --out "$out/pair" --quiet > /dev/null
deltalens compare "$bank" "$out/pair"
deltalens compare "$bank" --refusal family:safe
deltalens probe family:reasoning --direction "$bank" --against family:instruct --out "$out/probe"
deltalens steer family:instruct --direction "$bank" --out "$out/steer"
deltalens report "$out/probe" "$out/steer" --out "$out/report.html"
