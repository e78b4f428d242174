import pytest
from pydantic import ValidationError

from align.recipe.pipelines.mcts import MCTS


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"variant": "agent_q", "length_penalty": 2.0}, "length_penalty"),
        ({"variant": "agent_q", "backup": "mean"}, "backup"),
        ({"variant": "agent_q", "ranking": "none"}, "mix"),
        ({"variant": "agent_q", "labels": "visits"}, "labels"),
        ({"variant": "agent_q", "breadth": 27}, "breadth"),
        ({"threshold": 0.3}, "threshold"),
        ({"beyond_depth": "stop", "confidence": "none"}, "beyond_depth"),
        ({"backup": "mean", "root_count": "twice"}, "root_count"),
        ({"confidence": "grades", "confidence_scale": "normalised"}, "confidence_scale"),
        ({"max_steps": 3}, "max_steps"),
    ],
)
def test_what_cannot_stand_together_is_refused(fields, key):
    with pytest.raises(ValidationError, match=f"{key}: "):
        MCTS(**fields)


def test_each_variant_has_its_own_defaults():
    xie, agent_q = MCTS(), MCTS(variant="agent_q")
    assert (xie.children, xie.from_root, xie.from_step) == (2, 20, 10)
    assert (xie.most_pairs, xie.pairs_are_from, xie.labelled_by) == (8, "committed", "visits")
    assert xie.trees_kept == "right"
    assert (agent_q.children, agent_q.from_root, agent_q.most_pairs) == (4, 20, None)
    assert (agent_q.pairs_are_from, agent_q.labelled_by) == ("all", "hard")
    assert agent_q.trees_kept == "all"


def test_every_default_is_accepted_when_written_out():
    for settings in (MCTS(), MCTS(variant="agent_q")):
        assert MCTS(**settings.model_dump()) == settings
