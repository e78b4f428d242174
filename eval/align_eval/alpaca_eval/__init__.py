"""AlpacaEval 2: annotations in the official format, raw and length-controlled win rate."""

from align_eval.alpaca_eval.annotations import (
    AlpacaScore,
    leaderboard_row,
    read_leaderboard,
    score_annotations,
    write_leaderboard,
)
from align_eval.alpaca_eval.annotator import JudgeCaller, Pairing, annotate, parse_reply
from align_eval.alpaca_eval.length_controlled import (
    LengthControlled,
    fit_length_controlled,
    read_difficulty,
    read_gamed,
    with_length_control,
)
from align_eval.alpaca_eval.run import AlpacaEval, outputs_of, prompts_of, run_alpaca_eval

__all__ = [
    "AlpacaEval",
    "AlpacaScore",
    "JudgeCaller",
    "LengthControlled",
    "Pairing",
    "annotate",
    "fit_length_controlled",
    "leaderboard_row",
    "outputs_of",
    "parse_reply",
    "prompts_of",
    "read_difficulty",
    "read_gamed",
    "read_leaderboard",
    "run_alpaca_eval",
    "score_annotations",
    "with_length_control",
    "write_leaderboard",
]
