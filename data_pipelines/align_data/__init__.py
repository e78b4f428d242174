"""Rows to rows: the pipelines that make preference data, as stages of a recipe."""
