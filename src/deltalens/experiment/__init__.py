"""The experiment: phases, their settings and the verdicts that they end in."""
