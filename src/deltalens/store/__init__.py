"""What is stored and how work is resumed; no maths."""
