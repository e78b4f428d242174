"""Step-level preference pairs from Monte-Carlo tree search, by two published recipes."""
