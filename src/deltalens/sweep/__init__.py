"""Arms beside their controls, and what a claim about them rests on."""
