"""One file per verb or published method, made of directions, edits and evaluations."""
