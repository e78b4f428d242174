"""Records to token rows: chat templates, budgets of length, pictures."""
