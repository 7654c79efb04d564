#!/usr/bin/env bash
# docs/real_models.md: what the same command takes on well-known pairs, from headers of their shapes (nothing is downloaded).
# Usage: runs/real_models.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
shapes=$(mktemp -d)
trap 'rm -rf "$shapes"' EXIT
python runs/shapes.py "$shapes"
# The family's tokenizer stands in: a dry run counts passes and prompts, and real tokenizers are not here.
for model in "$shapes"/*/; do cp src/deltalens/family/models/reasoning/{tokenizer.json,tokenizer_config.json,chat_template.jinja} "$model"; done

ask() { # base, tuned, and the hub ids of both
    echo "| \`deltalens run $3 $4 --out EXP\` |" \
        "$(deltalens plan "$shapes/$1" "$shapes/$2" | sed -n 's/^measure: *reads \([^;]*\);.*peak memory \([^,]*\), time \(.*\)$/\1 | \2, \3/p') |" \
        "$(deltalens run "$shapes/$1" "$shapes/$2" --out "$shapes/none" --dry-run | sed -n 's/^in all about \([^,]*\), at most \([^ ]* [^ ]*\) of memory.*/\2 | \1/p') |"
}

{
    cat <<'TEXT'
<!-- Written by runs/real_models.sh; do not edit the figures by hand. -->
# The same command on real models

Disk is what both sides take in bfloat16. *Spectra* is `deltalens measure` alone: it needs no GPU. *Memory of the run* is
in float32 on a CPU, with the base as a second model for the KL and the singular vectors of Δ; in bfloat16 on a GPU the
models take half, and `kl = false` leaves one of them out. *Time of the run* is for the two CPU cores of this machine at
4096 tokens a completion, which says that these pairs want a GPU. `--dry-run` on your machine says what every step takes,
`--minutes` thins it, and a config with `generate = "few"` or `max_tokens = 1024` takes most of the completions away.
Nothing of this table was run: figures are estimates from headers of these shapes, on two cores.

| command | disk | spectra: memory, time | memory of the run | time of the run |
|---|---|---|---|---|
TEXT
    ask Qwen2.5-Math-1.5B R1-Distill-Qwen-1.5B Qwen/Qwen2.5-Math-1.5B deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
    ask Qwen2.5-Math-7B R1-Distill-Qwen-7B Qwen/Qwen2.5-Math-7B deepseek-ai/DeepSeek-R1-Distill-Qwen-7B
    ask Qwen3-4B-Instruct-2507 Qwen3-4B-Thinking-2507 Qwen/Qwen3-4B-Instruct-2507 Qwen/Qwen3-4B-Thinking-2507
    ask Qwen2.5-32B QwQ-32B Qwen/Qwen2.5-32B Qwen/QwQ-32B
    cat <<'TEXT'

What to name beside them, in a config file (`deltalens run --config FILE --out EXP`; every key in
[config.default.toml](../src/deltalens/experiment/config.default.toml)):

```toml
[[pairs]]
name = "main"
base = "Qwen/Qwen2.5-32B"
tuned = "Qwen/QwQ-32B"
role = "main"

[[pairs]]        # ordinary instruction tuning from the same base: is any fine-tune like this?
name = "instruct"
base = "Qwen/Qwen2.5-32B"
tuned = "Qwen/Qwen2.5-32B-Instruct"
role = "sibling"
```

- QwQ-32B: first ask which base is the parent: `deltalens sweep --recipe direct-pair Qwen/Qwen2.5-32B Qwen/QwQ-32B --parent
  Qwen/Qwen2.5-32B-Instruct`. Distance alone does not say (docs/findings.md, recipe 3).
- R1-Distill and QwQ templates open the think block themselves: the measure is then p_skip, the probability that the block
  is closed at once, and every curve is read as 1 − p.
- An edit swapped into a loaded model keeps a copy of what it touches: an arm over every tensor takes the model twice.
TEXT
} > docs/real_models.md
