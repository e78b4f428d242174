"""What each pipeline that builds preference data is told: one node of a recipe each."""
