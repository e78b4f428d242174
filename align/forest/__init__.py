"""Token rows -> forest -> log-probs: each unique prefix computed once, only edges scored."""

from align.forest.backends import (
    BACKENDS,
    PADDED,
    TREE,
    TREE_FLEX,
    TREE_VARLEN,
    Backend,
    Choice,
    choose_backend,
)
from align.forest.logps import forest_logps
from align.forest.pack import Pack
from align.forest.padded import score_rows
from align.forest.rows import TokenRow

__all__ = [
    "BACKENDS",
    "PADDED",
    "TREE",
    "TREE_FLEX",
    "TREE_VARLEN",
    "Backend",
    "Choice",
    "Pack",
    "TokenRow",
    "choose_backend",
    "forest_logps",
    "score_rows",
]
