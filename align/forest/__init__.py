"""Token rows to log-probabilities.

Objectives and trainers see `Logps`, never how they were computed.
"""

from align.forest.padded import TokenRow, completion_logps, pad_rows, score_rows

__all__ = ["TokenRow", "completion_logps", "pad_rows", "score_rows"]
