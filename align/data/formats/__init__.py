"""Public preference formats: a row of each becomes prompt, chosen and rejected."""
