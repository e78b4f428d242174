"""What a reader sees of finished runs: tables in the terminal, pictures on disk."""
