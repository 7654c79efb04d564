"""Files, no maths: open, index, name, pair and plan two checkpoints; neither torch nor transformers is loaded on import."""
