"""IFEval: instructions whose fulfilment a program checks.

Source: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models",
arXiv:2311.07911. The checks are those of `align.instructions`; here are the benchmark's files, the
four published numbers with their intervals, and the run.
"""

from __future__ import annotations

from align_eval.ifeval.files import Question, read_questions, read_responses
from align_eval.ifeval.scoring import Verdicts, judged, scores

__all__ = ["Question", "Verdicts", "judged", "read_questions", "read_responses", "scores"]
