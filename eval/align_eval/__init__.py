"""Models and rows to numbers with intervals."""
