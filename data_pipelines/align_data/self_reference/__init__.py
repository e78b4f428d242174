"""Preference pairs from an annotator that answers itself before it compares.

Bao et al. 2024, "Aligning Large Language Models from Self-Reference AI Feedback with one General
Principle" (arXiv 2406.11190). The authors' program lacks the prompts, the verdict parser and the
step that turns perplexity into strength; these are ours, and named so in every row.
"""

from align_data.self_reference.work import SelfReferenceWork

__all__ = ["SelfReferenceWork"]
