"""Formulas over groups of completions, one per file."""
