"""What prefers: rule, reward model, pairwise language model, exact table."""
