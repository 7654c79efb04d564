"""Files, no maths: open, name, pair and plan two checkpoints, loading neither torch nor transformers."""
