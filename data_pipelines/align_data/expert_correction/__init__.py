"""Pairs from an expert who corrects the policy's own responses, and the alignment before training.

Yang et al. 2025, "Mitigating Hallucinations in Large Vision-Language Models via DPO: On-Policy Data
Hold the Key" (OPA-DPO, arXiv 2501.09695). `stage` corrects and makes the pairs, of text and of
pictures; `on_policy` is the alignment that follows it.
"""

from align_data.expert_correction.work import ExpertCorrectionWork

__all__ = ["ExpertCorrectionWork"]
