"""Arena-Hard-Auto v0.1 and v2.0: its files, its verdicts, its scores."""

from align_eval.arena_hard.files import (
    BENCHMARKS,
    ArenaQuestion,
    Benchmark,
    ModelAnswer,
    answer_rows,
    read_answers,
    read_judgments,
    read_questions,
    write_answers,
)
from align_eval.arena_hard.judging import Judged, judge_model
from align_eval.arena_hard.run import answers_of, prompts_of, run_arena_hard
from align_eval.arena_hard.scoring import (
    ArenaScore,
    Battles,
    StyleControlled,
    battle_scores,
    battles_of,
    leaderboard,
    read_battles,
    style_controlled,
)
from align_eval.arena_hard.style import StyleCounts, style_counts, style_features
from align_eval.arena_hard.verdicts import Label, parse_verdict

__all__ = [
    "BENCHMARKS",
    "ArenaQuestion",
    "ArenaScore",
    "Battles",
    "Benchmark",
    "Judged",
    "Label",
    "ModelAnswer",
    "StyleControlled",
    "StyleCounts",
    "answer_rows",
    "answers_of",
    "battle_scores",
    "battles_of",
    "judge_model",
    "leaderboard",
    "parse_verdict",
    "prompts_of",
    "read_answers",
    "read_battles",
    "read_judgments",
    "read_questions",
    "run_arena_hard",
    "style_controlled",
    "style_counts",
    "style_features",
    "write_answers",
]
