"""The parts of the planted-truth benchmark; `benchmarks/truth.py` runs them and writes docs/truth.md."""
