"""Preference rows: what they are, where they come from, and what was dropped and why."""
