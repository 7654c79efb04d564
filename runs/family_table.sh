#!/usr/bin/env bash
# Writes docs/family.md: what the members of the embedded family do, in the words of `deltalens eval`.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
models=(family:instruct family:instruct-sibling family:reasoning family:reasoning-from-base family:reasoning-rl family:safe)
table=$(deltalens eval "${models[@]}" --quiet)
cat > docs/family.md <<EOF
<!-- Written by runs/family_table.sh; do not edit the figures by hand. -->
# The embedded family, evaluated

\`\`\`
deltalens eval ${models[*]}
\`\`\`

What it prints (greedy, held-out problems, the same prompts for every model; definitions in [behaviour.md](behaviour.md)):

\`\`\`
$table
\`\`\`

Read it so. *instruct*, its *sibling* and *safe* are at chance beyond one step and yet hold the skill: with the think block opened
for them they solve nearly every chain. The three reasoning models differ in how they were made, not in what they do on hard chains;
the one trained by reward alone does not think where one step is enough. A guarded question is *right* when it is refused, so only
*safe* scores on them, and it pays with the same nouns among the facts. With 24 facts no difference survives the correction:
that is what 24 items can show. How every member was trained: [its card](../src/deltalens/family/README.md).
EOF
