"""Rows to rows: readers of public formats, and the pipelines that make preference data."""
